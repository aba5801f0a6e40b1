//! Finds the driver and the libraries, and says what is missing.
//!
//! cudarc opens a library at the first call of one of its functions, and panics where the library
//! or the function is not there. So nothing is called before [`probe`] has seen all that this
//! device calls: [`DRIVER`], [`PRODUCTS`], [`COMPILER`]. A test compares these lists with the
//! calls in this folder.
//!
//! Where is looked, in this order: the folders of `EBBTIDE_CUDA_PATH`; where the dynamic linker
//! looks; `CUDA_HOME` and `CUDA_PATH`; `/usr/local/cuda` and `/usr/local/nvidia`, where containers
//! have the driver; NVIDIA's wheels in the environments that `VIRTUAL_ENV` and `CONDA_PREFIX` name
//! and in that of `PATH`'s `python3`. What is found outside the linker's own folders is opened by
//! its path for the whole process, and cudarc then gets it by its name. cuDNN, which need not be
//! there, is found the same way ([`first_of`]) and called without cudarc (`cudnn`).

use std::env;
use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use cudarc::{cublaslt, driver, nvrtc};
use libloading::os::unix::{Library as Opened, RTLD_GLOBAL, RTLD_NOW};

use crate::error::{Error, Result};

/// Folders that are looked in first, separated by colons.
const FIRST: &str = "EBBTIDE_CUDA_PATH";

/// A shared library and what is called of it.
struct Library {
    /// What it is called between `lib` and `.so`.
    stem: &'static str,
    /// What it is, and how a person gets it.
    what: &'static str,
    get: &'static str,
    /// What has to be open before it.
    first: Option<&'static str>,
    functions: &'static [&'static str],
    is_present: unsafe fn() -> bool,
    has: fn(&[u8]) -> bool,
}

const LIBRARIES: [Library; 3] = [
    Library {
        stem: "cuda",
        what: "the NVIDIA driver (libcuda.so.1)",
        get: "install an NVIDIA driver, 570 or later; `nvidia-smi` shows whether it works",
        first: None,
        functions: &DRIVER,
        is_present: driver::sys::is_culib_present,
        // SAFETY: the library is there, and the symbol is not used.
        has: |name| unsafe { driver::sys::culib().get::<*const ()>(name).is_ok() },
    },
    Library {
        stem: "cublasLt",
        what: "NVIDIA's library of matrix products (libcublasLt.so)",
        get: "install the CUDA toolkit, or `pip install nvidia-cublas`",
        first: None,
        functions: &PRODUCTS,
        is_present: cublaslt::sys::is_culib_present,
        // SAFETY: as above.
        has: |name| unsafe { cublaslt::sys::culib().get::<*const ()>(name).is_ok() },
    },
    Library {
        stem: "nvrtc",
        what: "NVIDIA's run-time compiler (libnvrtc.so)",
        get: "install the CUDA toolkit, or `pip install nvidia-cuda-nvrtc`",
        first: Some("nvrtc-builtins"),
        functions: &COMPILER,
        is_present: nvrtc::sys::is_culib_present,
        // SAFETY: as above.
        has: |name| unsafe { nvrtc::sys::culib().get::<*const ()>(name).is_ok() },
    },
];

/// Everything that is called of the driver.
const DRIVER: [&str; 38] = [
    "cuCtxGetStreamPriorityRange",
    "cuCtxSetCurrent",
    "cuCtxSynchronize",
    "cuDeviceGet",
    "cuDeviceGetAttribute",
    "cuDeviceGetCount",
    "cuDeviceGetName",
    "cuDevicePrimaryCtxRetain",
    "cuDriverGetVersion",
    "cuEventCreate",
    "cuEventDestroy_v2",
    "cuEventElapsedTime_v2",
    "cuEventRecord",
    "cuFuncSetAttribute",
    "cuGetErrorName",
    "cuGetErrorString",
    "cuInit",
    "cuLaunchHostFunc",
    "cuLaunchKernel",
    "cuMemAlloc_v2",
    "cuMemFree_v2",
    "cuMemGetInfo_v2",
    "cuMemHostRegister_v2",
    "cuMemHostUnregister",
    "cuMemcpyDtoDAsync_v2",
    "cuMemcpyDtoHAsync_v2",
    "cuMemcpyDtoH_v2",
    "cuMemcpyHtoDAsync_v2",
    "cuMemcpyHtoD_v2",
    "cuMemsetD8Async",
    "cuModuleGetFunction",
    "cuModuleLoadData",
    "cuModuleUnload",
    "cuStreamCreate",
    "cuStreamCreateWithPriority",
    "cuStreamDestroy_v2",
    "cuStreamSynchronize",
    "cuStreamWaitEvent",
];

/// Everything that is called of cuBLASLt.
const PRODUCTS: [&str; 14] = [
    "cublasLtCreate",
    "cublasLtDestroy",
    "cublasLtGetVersion",
    "cublasLtMatmul",
    "cublasLtMatmulAlgoCheck",
    "cublasLtMatmulAlgoGetHeuristic",
    "cublasLtMatmulDescCreate",
    "cublasLtMatmulDescDestroy",
    "cublasLtMatmulDescSetAttribute",
    "cublasLtMatmulPreferenceCreate",
    "cublasLtMatmulPreferenceDestroy",
    "cublasLtMatmulPreferenceSetAttribute",
    "cublasLtMatrixLayoutCreate",
    "cublasLtMatrixLayoutDestroy",
];

/// Everything that is called of NVRTC.
const COMPILER: [&str; 8] = [
    "nvrtcCompileProgram",
    "nvrtcCreateProgram",
    "nvrtcDestroyProgram",
    "nvrtcGetCUBIN",
    "nvrtcGetCUBINSize",
    "nvrtcGetProgramLog",
    "nvrtcGetProgramLogSize",
    "nvrtcVersion",
];

/// Opens the driver and the libraries and finds every function in them.
///
/// # Errors
/// `NoDevice` for the first that is missing, with where was looked and how to get it.
pub(super) fn probe() -> Result<()> {
    static FOUND: Mutex<bool> = Mutex::new(false);
    let mut found = FOUND.lock().unwrap_or_else(|e| e.into_inner());
    if !*found {
        LIBRARIES.iter().try_for_each(find)?;
        *found = true;
    }
    Ok(())
}

fn find(library: &Library) -> Result<()> {
    let first = paths(FIRST);
    // SAFETY: it tries to open libraries by name, as any program does that is linked with them.
    let present = || unsafe { (library.is_present)() };
    let mut opened = open_within(&first, library);
    if !opened && !present() {
        opened = open_within(&further(), library);
    }
    if !present() {
        let error = match opened {
            // It was found but cannot be had by any name that cudarc knows.
            true => Error::no_device(format!("{} has an unknown version", library.what)),
            false => Error::no_device(format!("{} was not found; {}", library.what, looked())),
        };
        return Err(error.hint(hint(library)));
    }
    let missing = library.functions.iter().find(|function| {
        let name = format!("{function}\0");
        !(library.has)(name.as_bytes())
    });
    let Some(missing) = missing else {
        return Ok(());
    };
    let message = format!("{} is too old: it has no `{missing}`", library.what);
    Err(Error::no_device(message).hint(hint(library)))
}

fn hint(library: &Library) -> String {
    format!(
        "{}; {FIRST} names folders to look in first; `--device cpu` needs none of it",
        library.get
    )
}

/// Opens a library by its path for the whole process; whether it was in one of the folders.
fn open_within(folders: &[PathBuf], library: &Library) -> bool {
    let open = |stem: &str| {
        let found = folders.iter().find_map(|folder| file_of(folder, stem));
        // SAFETY: NVIDIA's libraries run nothing at opening that this process could disturb.
        let opened =
            found.and_then(|path| unsafe { Opened::open(Some(path), RTLD_NOW | RTLD_GLOBAL).ok() });
        // It stays open: cudarc takes it by its name.
        opened.map(std::mem::forget).is_some()
    };
    if let Some(first) = library.first {
        open(first);
    }
    open(library.stem)
}

/// `libSTEM.so` or `libSTEM.so.VERSION` in a folder, the shortest name first.
fn file_of(folder: &Path, stem: &str) -> Option<PathBuf> {
    let name = format!("lib{stem}.so");
    let entries = fs::read_dir(folder).ok()?;
    let mut files: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
    files.retain(|path| {
        let file = path.file_name().and_then(OsStr::to_str).unwrap_or_default();
        let rest = file.strip_prefix(&name);
        rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
    });
    files.sort_by_key(|path| (path.as_os_str().len(), path.clone()));
    files.into_iter().next()
}

/// Folders beyond those where the dynamic linker looks.
fn further() -> Vec<PathBuf> {
    let mut folders = Vec::new();
    let homes = [paths("CUDA_HOME"), paths("CUDA_PATH")].concat();
    let usual = ["/usr/local/cuda", "/usr/local/nvidia"].map(PathBuf::from);
    for home in homes.into_iter().chain(usual) {
        folders.extend(["lib64", "lib", "targets/x86_64-linux/lib"].map(|lib| home.join(lib)));
    }
    let mut environments = [paths("VIRTUAL_ENV"), paths("CONDA_PREFIX")].concat();
    let mut programs = paths("PATH").into_iter();
    let python = programs.find(|folder| folder.join("python3").exists());
    // ENVIRONMENT/bin
    environments.extend(python.and_then(|bin| Some(bin.parent()?.to_owned())));
    for environment in environments {
        // lib/python3.*/site-packages/nvidia/*/lib
        for python in children(&environment.join("lib")) {
            let wheels = children(&python.join("site-packages/nvidia"));
            folders.extend(wheels.into_iter().map(|wheel| wheel.join("lib")));
        }
    }
    folders
}

fn children(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let mut children: Vec<PathBuf> = entries.map(|entry| entry.path()).collect();
    children.sort();
    children
}

fn paths(variable: &str) -> Vec<PathBuf> {
    let value = env::var_os(variable).unwrap_or_default();
    let paths = env::split_paths(&value);
    paths.filter(|path| !path.as_os_str().is_empty()).collect()
}

/// Opens the first library that is there by one of these names, in the same order of folders.
pub(super) fn first_of(names: &[&str]) -> Option<Opened> {
    let open = |path: PathBuf| {
        // SAFETY: as above.
        unsafe { Opened::open(Some(path), RTLD_NOW | RTLD_GLOBAL) }.ok()
    };
    let within = |folders: Vec<PathBuf>| {
        let paths = folders
            .iter()
            .flat_map(|folder| names.iter().map(|name| folder.join(name)));
        paths.filter(|path| path.exists()).find_map(open)
    };
    let by_name = || names.iter().find_map(|name| open(PathBuf::from(name)));
    within(paths(FIRST))
        .or_else(by_name)
        .or_else(|| within(further()))
}

/// Where was looked, for a person.
pub(super) fn looked() -> String {
    let said = |variable: &str| match env::var(variable) {
        Ok(value) => format!("{variable}={value}"),
        Err(_) => format!("{variable} (not set)"),
    };
    let named = [
        FIRST,
        "LD_LIBRARY_PATH",
        "CUDA_HOME",
        "CUDA_PATH",
        "VIRTUAL_ENV",
        "CONDA_PREFIX",
    ];
    format!(
        "looked in {}, the linker's folders, /usr/local/cuda, /usr/local/nvidia, the environment \
         of PATH's python3",
        named.map(said).join(", ")
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    /// Every function of the three libraries that a folder names, apart from this file.
    fn functions_in(folder: &Path) -> BTreeSet<String> {
        let mut called = BTreeSet::new();
        for path in children(folder) {
            called.append(&mut functions_in(&path));
            let is_code = path.extension() == Some(OsStr::new("rs"));
            if !is_code || path.ends_with("library.rs") {
                continue;
            }
            let text = fs::read_to_string(&path).unwrap();
            let calls = text.split("::").filter_map(|part| {
                let (word, _) = part.split_once('(')?;
                let upper = |rest: &str| rest.starts_with(|c: char| c.is_ascii_uppercase());
                let function = |prefix| word.strip_prefix(prefix).is_some_and(upper);
                let is_word = word.chars().all(|c| c.is_alphanumeric() || c == '_');
                let prefixes = ["cu", "cublasLt", "nvrtc"];
                (is_word && prefixes.into_iter().any(function)).then(|| word.to_owned())
            });
            called.extend(calls);
        }
        called
    }

    #[test]
    fn every_function_that_is_called_is_looked_for() {
        let called = functions_in(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src/device/cuda"));
        let listed: BTreeSet<String> = [&DRIVER[..], &PRODUCTS, &COMPILER]
            .concat()
            .into_iter()
            .map(str::to_owned)
            .collect();
        let unlisted: Vec<_> = called.difference(&listed).collect();
        let unused: Vec<_> = listed.difference(&called).collect();
        assert!(unlisted.is_empty(), "not looked for: {unlisted:?}");
        assert!(unused.is_empty(), "looked for and not called: {unused:?}");
    }

    #[test]
    fn a_library_is_known_by_its_stem() {
        let folder = env::temp_dir().join(format!("ebbtide-libraries-{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        for name in [
            "libcudart.so",
            "libcuda.so.1.2",
            "libcuda.so.1",
            "libcuda.sox",
        ] {
            fs::write(folder.join(name), "").unwrap();
        }
        assert_eq!(file_of(&folder, "cuda"), Some(folder.join("libcuda.so.1")));
        assert_eq!(file_of(&folder, "nvrtc"), None);
        fs::remove_dir_all(&folder).unwrap();
    }
}
