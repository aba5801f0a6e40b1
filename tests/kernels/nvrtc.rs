//! The kernels by NVRTC, for each architecture as far as machine code, so that ptxas sees them.
//! NVRTC needs no GPU; `kernels/nvrtc.sh` installs it. Skipped, aloud, where it is not.

use std::ffi::{c_char, c_int, CStr, CString};
use std::path::PathBuf;

use ebbtide::device::cuda::launch::sources::{Source, HEADERS, SOURCES};
use ebbtide::profile::Dtype;
use libloading::os::unix::{Library, Symbol, RTLD_GLOBAL, RTLD_NOW};

use crate::library;

/// As the device asks for them: no kernel needs what only `sm_90a` has.
const ARCHITECTURES: [&str; 3] = ["sm_80", "sm_90", "sm_100"];

type Program = *mut std::ffi::c_void;
type Create = unsafe extern "C" fn(
    *mut Program,
    *const c_char,
    *const c_char,
    c_int,
    *const *const c_char,
    *const *const c_char,
) -> c_int;
type Compile = unsafe extern "C" fn(Program, c_int, *const *const c_char) -> c_int;
type Size = unsafe extern "C" fn(Program, *mut usize) -> c_int;
type Get = unsafe extern "C" fn(Program, *mut c_char) -> c_int;

struct Nvrtc {
    library: Library,
}

impl Nvrtc {
    /// From `EBBTIDE_NVRTC`, a directory, or where `kernels/nvrtc.sh` puts it.
    fn open() -> Option<Nvrtc> {
        let usual = concat!(env!("CARGO_MANIFEST_DIR"), "/target/nvrtc/nvidia/cu13/lib");
        let directory = std::env::var_os("EBBTIDE_NVRTC").unwrap_or_else(|| usual.into());
        let directory = PathBuf::from(directory);
        let open = |name| {
            let path = directory.join(name);
            // SAFETY: NVIDIA's own libraries, whose initialisers do nothing else.
            unsafe { Library::open(Some(path), RTLD_NOW | RTLD_GLOBAL) }
        };
        // First what NVRTC itself opens by its name only.
        std::mem::forget(open("libnvrtc-builtins.so.13.0").ok()?);
        let library = open("libnvrtc.so.13").ok()?;
        Some(Nvrtc { library })
    }

    fn symbol<T>(&self, name: &str) -> Symbol<T> {
        // SAFETY: the types are those of nvrtc.h.
        unsafe { self.library.get(name.as_bytes()) }.unwrap()
    }

    fn text(&self, program: Program, what: &str) -> Vec<u8> {
        let mut bytes = 0;
        let size: Symbol<Size> = self.symbol(&format!("nvrtcGet{what}Size"));
        let get: Symbol<Get> = self.symbol(&format!("nvrtcGet{what}"));
        // SAFETY: the second call fills as many bytes as the first says.
        unsafe {
            assert_eq!(size(program, &mut bytes), 0);
            let mut text = vec![0u8; bytes];
            assert_eq!(get(program, text.as_mut_ptr().cast()), 0);
            text
        }
    }

    /// Machine code and what the compiler says, or only that.
    fn compile(&self, source: &Source, options: &[String]) -> Result<(Vec<u8>, String), String> {
        let c = |text: &str| CString::new(text).unwrap();
        let (file, text) = (c(source.file), c(source.text));
        let names = HEADERS.map(|(name, _)| c(name));
        let headers = HEADERS.map(|(_, text)| c(text));
        let options: Vec<CString> = options.iter().map(|option| c(option)).collect();
        let options: Vec<*const c_char> = options.iter().map(|option| option.as_ptr()).collect();
        let create: Symbol<Create> = self.symbol("nvrtcCreateProgram");
        let compile: Symbol<Compile> = self.symbol("nvrtcCompileProgram");
        let mut program = std::ptr::null_mut();
        // SAFETY: all strings outlive the calls, and their numbers are right.
        let code = unsafe {
            let pointers = |texts: &[CString; 3]| texts.each_ref().map(|text| text.as_ptr());
            let (names, headers) = (pointers(&names), pointers(&headers));
            let made = create(
                &mut program,
                text.as_ptr(),
                file.as_ptr(),
                headers.len() as c_int,
                headers.as_ptr(),
                names.as_ptr(),
            );
            assert_eq!(made, 0);
            compile(program, options.len() as c_int, options.as_ptr())
        };
        let log = self.text(program, "ProgramLog");
        let log = CStr::from_bytes_until_nul(&log).unwrap();
        let log = log.to_string_lossy().into_owned();
        match code {
            0 => Ok((self.text(program, "CUBIN"), log)),
            _ => Err(log),
        }
    }
}

/// Refuses kernels that keep registers in local memory, by ptxas' own account.
fn nothing_is_spilled(log: &str) {
    let mut kernel = "";
    for line in log.lines() {
        if let Some((_, named)) = line.split_once("Compiling entry function '") {
            kernel = named.split('\'').next().unwrap();
        }
        if let Some((bytes, _)) = line.split_once(" bytes stack frame") {
            assert!(bytes.ends_with(" 0"), "{kernel}: {line}");
        }
    }
    assert!(!kernel.is_empty(), "no kernel in {log}");
}

#[test]
fn kernels_compile_for_every_architecture() {
    let Some(nvrtc) = Nvrtc::open() else {
        let line = "skipped: no NVRTC to compile the kernels with (kernels/nvrtc.sh installs it)";
        library::skip::<()>(line);
        return;
    };
    // Of f32, which only tests compute in, one architecture is enough.
    let of = |dtype, architectures: &[&'static str]| -> Vec<_> {
        let architectures = architectures.iter().map(move |&a| (a, dtype));
        architectures.collect()
    };
    let targets = [of(Dtype::Bf16, &ARCHITECTURES), of(Dtype::F32, &["sm_90"])].concat();
    std::thread::scope(|scope| {
        for (architecture, dtype) in targets {
            let nvrtc = &nvrtc;
            scope.spawn(move || {
                for source in SOURCES.into_iter().filter(|source| source.has(dtype)) {
                    let mut options = source.options(architecture, dtype);
                    options.push("--ptxas-options=-v".into());
                    let told = nvrtc.compile(&source, &options);
                    let (code, log) =
                        told.unwrap_or_else(|told| panic!("{} {options:?}: {told}", source.file));
                    // An ELF file with a section for every kernel.
                    assert_eq!(&code[..4], b"\x7fELF");
                    let text = String::from_utf8_lossy(&code);
                    let named = text.contains(".text.") && text.contains(&format!("_{dtype}"));
                    assert!(named, "{} {options:?}", source.file);
                    if (architecture, dtype) == ("sm_90", Dtype::Bf16) {
                        nothing_is_spilled(&log);
                    }
                }
            });
        }
    });
}

#[test]
fn what_is_wrong_is_told() {
    let Some(nvrtc) = Nvrtc::open() else {
        return;
    };
    let wrong = Source {
        file: "wrong.cu",
        text: "#include \"device.cuh\"\nKERNEL(32, wrong, E* x) { x[0] = missing; }\n",
        fused: false,
    };
    let told = nvrtc
        .compile(&wrong, &wrong.options("sm_80", Dtype::F32))
        .unwrap_err();
    assert!(told.contains("missing"), "{told}");
}
