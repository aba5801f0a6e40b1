//! The kernels of `kernels/`, compiled for the card that is there.
//!
//! NVRTC makes machine code of each file once for each kind of card and type of elements, of
//! several files at once; it lies in the user's cache folder under a name that is made of
//! everything it depends on. What cannot be cached is compiled every time. A cached file that the
//! driver refuses is compiled again.

use std::cell::RefCell;
use std::collections::HashMap;
use std::env;
use std::ffi::{c_char, c_int, c_void, CString};
use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::PathBuf;
use std::ptr;

use cudarc::driver::sys;
use cudarc::nvrtc::sys as nvrtc;
use rayon::prelude::*;

use super::driver::{check, Context, Queue};
use super::launch::sources::{Source, HEADERS, SOURCES};
use super::launch::Launch;
use crate::device::{Cause, Failure, Result};
use crate::files::write_atomically;
use crate::profile::Dtype;

/// With no more than this, no function has to be told of its dynamic shared memory: of 48 KiB, what
/// kernels have beside it counts too.
const SHARED_BYTES: u32 = 32 << 10;

/// All kernels of one type of elements.
pub(super) struct Kernels {
    modules: Vec<Module>,
    /// Functions that were launched before, with the shared memory that they were allowed.
    found: RefCell<HashMap<&'static str, (sys::CUfunction, u32)>>,
    /// What a block can have.
    pub shared_bytes: u32,
}

struct Module(sys::CUmodule);

impl Drop for Module {
    fn drop(&mut self) {
        // SAFETY: nothing of it runs any more: the device waits for its streams first.
        let _ = unsafe { sys::cuModuleUnload(self.0) };
    }
}

impl Kernels {
    /// Compiles, or takes from the cache, and loads.
    ///
    /// # Errors
    /// What the compiler and the driver say.
    pub fn new(context: &Context, dtype: Dtype) -> Result<Kernels> {
        let (major, minor) = context.capability()?;
        let (mut compiler, mut least) = (0, 0);
        // SAFETY: the pointers are to locals.
        let status = unsafe { nvrtc::nvrtcVersion(&mut compiler, &mut least) };
        compiled("nvrtcVersion", status)?;
        let versions = (compiler, least, context.driver_version()?);
        let (mut modules, mut missing) = (Vec::new(), Vec::new());
        for source in SOURCES.iter().filter(|source| source.has(dtype)) {
            let options = source.options(&format!("sm_{major}{minor}"), dtype);
            let cached = place(source, &options, versions);
            let found = cached.as_ref().and_then(|path| fs::read(path).ok());
            match found.and_then(|code| load(&code).ok()) {
                Some(module) => modules.push(module),
                None => missing.push((source, options, cached)),
            }
        }
        let compiled = missing.par_iter().map(|(source, options, cached)| {
            let code = compile(source, options)?;
            if let Some(path) = cached {
                // Without a cache everything works as well, only later.
                let folder = path.parent().map(fs::create_dir_all);
                let _ = folder
                    .and_then(|made| made.ok())
                    .map(|()| write_atomically(path, &code));
            }
            Ok(code)
        });
        for code in compiled.collect::<Result<Vec<_>>>()? {
            modules.push(load(&code)?);
        }
        Ok(Kernels {
            modules,
            found: RefCell::default(),
            shared_bytes: context.shared_bytes()?,
        })
    }

    /// Queues a launch; `pointers` are the addresses of its arguments in order.
    ///
    /// # Safety
    /// Each pointer is to a value of the parameter's type, and the addresses among them are of
    /// memory that outlives the queued work and is as large as the kernel takes it to be.
    pub unsafe fn launch(
        &self,
        queue: &Queue,
        launch: &Launch,
        pointers: &mut [*mut c_void],
    ) -> Result<()> {
        let function = self.function(launch.kernel, launch.shared_bytes)?;
        let ([x, y, z], [a, b, c]) = (launch.grid, launch.block);
        let status = sys::cuLaunchKernel(
            function,
            x,
            y,
            z,
            a,
            b,
            c,
            launch.shared_bytes,
            queue.raw(),
            pointers.as_mut_ptr(),
            ptr::null_mut(),
        );
        check(launch.kernel, status)
    }

    /// A function by its name, allowed the shared memory that it needs.
    fn function(&self, name: &'static str, shared: u32) -> Result<sys::CUfunction> {
        let mut found = self.found.borrow_mut();
        if !found.contains_key(name) {
            found.insert(name, (self.find(name)?, SHARED_BYTES));
        }
        let (function, allowed) = found.get_mut(name).expect("it was put there");
        if shared > *allowed {
            if shared > self.shared_bytes {
                return Err(Failure::refused(format!(
                    "{name} needs {shared} bytes of shared memory, the card has {}",
                    self.shared_bytes
                )));
            }
            let attribute =
                sys::CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
            // SAFETY: the function is of a module that is loaded.
            let status = unsafe { sys::cuFuncSetAttribute(*function, attribute, shared as c_int) };
            check("cuFuncSetAttribute", status)?;
            *allowed = shared;
        }
        Ok(*function)
    }

    fn find(&self, name: &str) -> Result<sys::CUfunction> {
        let text = CString::new(name).expect("a kernel's name");
        for module in &self.modules {
            let mut function = ptr::null_mut();
            // SAFETY: the module is loaded; the name ends with 0.
            match unsafe { sys::cuModuleGetFunction(&mut function, module.0, text.as_ptr()) } {
                sys::CUresult::CUDA_ERROR_NOT_FOUND => {}
                status => return check("cuModuleGetFunction", status).map(|()| function),
            }
        }
        Err(Failure::refused(format!("there is no kernel {name}")))
    }
}

fn load(code: &[u8]) -> Result<Module> {
    let mut module = ptr::null_mut();
    // SAFETY: the code is a whole cubin, which says itself how long it is.
    let status = unsafe { sys::cuModuleLoadData(&mut module, code.as_ptr().cast()) };
    check("cuModuleLoadData", status)?;
    Ok(Module(module))
}

/// Where the machine code of a file lies; none where there is no cache.
fn place(source: &Source, options: &[String], versions: (i32, i32, i32)) -> Option<PathBuf> {
    let mut hasher = DefaultHasher::new();
    (
        source.text,
        HEADERS,
        options,
        versions,
        env!("CARGO_PKG_VERSION"),
    )
        .hash(&mut hasher);
    let folder = |variable| env::var_os(variable).filter(|path| !path.is_empty());
    let of_user = || folder("HOME").map(|home| PathBuf::from(home).join(".cache"));
    let folder = folder("XDG_CACHE_HOME")
        .map(PathBuf::from)
        .or_else(of_user)?;
    let stem = source.file.trim_end_matches(".cu");
    let name = format!("{stem}-{:016x}.cubin", hasher.finish());
    Some(folder.join("ebbtide").join("kernels").join(name))
}

fn compiled(call: &str, status: nvrtc::nvrtcResult) -> Result<()> {
    match status {
        nvrtc::nvrtcResult::NVRTC_SUCCESS => Ok(()),
        _ => Err(Failure::new(Cause::Failed(format!("{call}: {status:?}")))),
    }
}

/// A program of the compiler's, given back when dropped.
struct Program(nvrtc::nvrtcProgram);

impl Drop for Program {
    fn drop(&mut self) {
        // SAFETY: it was made and is used nowhere else.
        let _ = unsafe { nvrtc::nvrtcDestroyProgram(&mut self.0) };
    }
}

fn compile(source: &Source, options: &[String]) -> Result<Vec<u8>> {
    let text = |text: &str| CString::new(text).expect("sources have no zeros");
    let (name, code) = (text(source.file), text(source.text));
    let headers = HEADERS.map(|(name, header)| (text(name), text(header)));
    let (names, headers): (Vec<_>, Vec<_>) = headers
        .iter()
        .map(|(name, header)| (name.as_ptr(), header.as_ptr()))
        .unzip();
    let options: Vec<CString> = options.iter().map(|option| text(option)).collect();
    let options: Vec<*const c_char> = options.iter().map(|option| option.as_ptr()).collect();
    let mut program = Program(ptr::null_mut());
    // SAFETY: all texts end with 0 and outlive the program; the compiler writes as many bytes as
    // it says that it has.
    unsafe {
        let status = nvrtc::nvrtcCreateProgram(
            &mut program.0,
            code.as_ptr(),
            name.as_ptr(),
            HEADERS.len() as c_int,
            headers.as_ptr(),
            names.as_ptr(),
        );
        compiled("nvrtcCreateProgram", status)?;
        let count = options.len() as c_int;
        let status = nvrtc::nvrtcCompileProgram(program.0, count, options.as_ptr());
        let said = log(&program).unwrap_or_default();
        compiled(&format!("{}: {said}", source.file), status)?;
        let mut size = 0;
        let status = nvrtc::nvrtcGetCUBINSize(program.0, &mut size);
        compiled("nvrtcGetCUBINSize", status)?;
        let mut code = vec![0u8; size];
        let status = nvrtc::nvrtcGetCUBIN(program.0, code.as_mut_ptr().cast());
        compiled("nvrtcGetCUBIN", status)?;
        Ok(code)
    }
}

/// What the compiler wrote of a program.
fn log(program: &Program) -> Option<String> {
    let mut size = 0;
    // SAFETY: the program is alive; the compiler writes as many bytes as it says.
    unsafe {
        compiled("", nvrtc::nvrtcGetProgramLogSize(program.0, &mut size)).ok()?;
        let mut text = vec![0u8; size];
        let status = nvrtc::nvrtcGetProgramLog(program.0, text.as_mut_ptr().cast());
        compiled("", status).ok()?;
        let text = String::from_utf8_lossy(&text);
        Some(text.trim_end_matches('\0').trim().to_owned())
    }
}
