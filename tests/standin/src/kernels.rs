//! Kernels: the host's compilation of them says which there are and how long their parameters are,
//! and runs them.

use std::env;
use std::ffi::{c_char, c_int, c_uint, c_void, CString};
use std::sync::{Arc, Mutex, OnceLock};

use crate::faults::{injected, lock};
use crate::memory::{check, Side};
use crate::status::{INVALID_IMAGE, INVALID_VALUE, LAUNCH_FAILED};
use crate::streams::Stream;

/// Dynamic shared memory that a function may have without being told: a card allows 48 KiB with the
/// function's own, which is not known here.
const SHARED: u32 = 32 << 10;
/// The most that it can be told.
pub const SHARED_MOST: u32 = 227 << 10;
/// Nanoseconds of a kernel on a virtual clock, but for its blocks, of which eight run at once.
const LAUNCH_NS: u64 = 5_000;
const BLOCKS_NS: u64 = 100;

/// A function of a module.
pub struct Function {
    name: CString,
    /// Bytes of each parameter; 0: an address.
    parameters: Vec<usize>,
    shared: Mutex<u32>,
}

/// A loaded module: the type of elements that it is for, and the functions that were asked for.
pub struct Module {
    suffix: String,
    functions: Mutex<Vec<Arc<Function>>>,
}

/// What machine code begins with here.
const MAGIC: &[u8; 16] = b"ebbtide-standin\0";

/// Machine code of a source: which type of elements it is for, and the source itself.
pub fn assemble(source: &str, suffix: &str) -> Vec<u8> {
    let text = format!("{suffix}\n{source}");
    let mut code = MAGIC.to_vec();
    code.extend((text.len() as u64).to_le_bytes());
    code.extend(text.as_bytes());
    code
}

impl Module {
    /// Loads machine code.
    pub unsafe fn load(image: *const u8) -> Result<Module, u32> {
        if std::slice::from_raw_parts(image, MAGIC.len()) != MAGIC {
            return Err(INVALID_IMAGE);
        }
        let length = image.add(MAGIC.len()).cast::<u64>().read_unaligned();
        let text = std::slice::from_raw_parts(image.add(MAGIC.len() + 8), length as usize);
        let text = std::str::from_utf8(text).map_err(|_| INVALID_IMAGE)?;
        let (suffix, _) = text.split_once('\n').ok_or(INVALID_IMAGE)?;
        Ok(Module {
            suffix: format!("_{suffix}"),
            functions: Mutex::default(),
        })
    }

    /// A function by its name.
    pub fn function(&self, name: &str) -> Option<*const Function> {
        if !name.ends_with(&self.suffix) {
            return None;
        }
        let name = CString::new(name).ok()?;
        let mut sizes = std::ptr::null();
        // SAFETY: the name ends with 0; the library writes a pointer to as many sizes as it says.
        let sizes = unsafe {
            let count = (host().parameters)(name.as_ptr(), &mut sizes);
            let count = usize::try_from(count).ok()?;
            std::slice::from_raw_parts(sizes, count)
        };
        let function = Arc::new(Function {
            name,
            parameters: sizes.to_vec(),
            shared: Mutex::new(SHARED),
        });
        let address = Arc::as_ptr(&function);
        lock(&self.functions).push(function);
        Some(address)
    }
}

/// The shape of a launch.
pub struct Launch {
    pub grid: [u32; 3],
    pub block: [u32; 3],
    pub shared: u32,
}

impl Function {
    /// Allows a block so much dynamic shared memory.
    pub fn allow(&self, bytes: c_int) -> Result<(), u32> {
        match u32::try_from(bytes) {
            Ok(bytes) if bytes <= SHARED_MOST => {
                *lock(&self.shared) = bytes;
                Ok(())
            }
            _ => Err(INVALID_VALUE),
        }
    }

    /// Queues a launch; the parameters are read now.
    pub unsafe fn launch(
        &self,
        stream: &Stream,
        launch: Launch,
        parameters: *const *const c_void,
    ) -> Result<(), u32> {
        let blocks: u64 = launch.grid.iter().map(|&size| u64::from(size)).product();
        let threads: u64 = launch.block.iter().map(|&size| u64::from(size)).product();
        let [x, y, z] = launch.grid;
        let fits = x <= i32::MAX as u32 && y.max(z) <= 65_535 && (1..=1024).contains(&threads);
        if blocks == 0 || !fits || launch.shared > *lock(&self.shared) {
            return Err(INVALID_VALUE);
        }
        let mut values = Vec::new();
        for (at, bytes) in self.parameters.iter().enumerate() {
            let from = *parameters.add(at);
            let value = match bytes {
                4 => u64::from(from.cast::<u32>().read()),
                _ => from.cast::<u64>().read(),
            };
            if *bytes == 0 && value != 0 {
                check(Side::Card, value, 1)?;
            }
            values.push(value);
        }
        let name = self.name.clone();
        stream.run(LAUNCH_NS + BLOCKS_NS * blocks.div_ceil(8), move || {
            injected("kernel")?;
            let mut values = values;
            let pointers = values.iter_mut().map(|value| (&raw mut *value).cast());
            let mut pointers: Vec<*mut c_void> = pointers.collect();
            let Launch {
                grid,
                block,
                shared,
            } = launch;
            let (name, pointers) = (name.as_ptr(), pointers.as_mut_ptr());
            // SAFETY: the library has this function, which takes these parameters.
            let ended =
                unsafe { (host().launch)(name, grid.as_ptr(), block.as_ptr(), shared, pointers) };
            match ended {
                0 => Ok(()),
                _ => Err(LAUNCH_FAILED),
            }
        })
    }
}

/// The kernels as the host's compiler has made them.
struct Host {
    /// Runs a kernel thread by thread; 0 when it is done.
    launch: unsafe extern "C" fn(
        *const c_char,
        *const c_uint,
        *const c_uint,
        c_uint,
        *mut *mut c_void,
    ) -> c_int,
    /// How many parameters a kernel has and how long each is; below 0 where there is no kernel.
    parameters: unsafe extern "C" fn(*const c_char, *mut *const usize) -> c_int,
}

fn host() -> &'static Host {
    static FOUND: OnceLock<Host> = OnceLock::new();
    FOUND.get_or_init(|| {
        let path = env::var_os("EBBTIDE_STANDIN_KERNELS").expect("EBBTIDE_STANDIN_KERNELS is set");
        // SAFETY: the library runs nothing when it is opened, stays open, and has these functions.
        unsafe {
            let library = libloading::Library::new(path).expect("the kernels can be loaded");
            let library = Box::leak(Box::new(library));
            Host {
                launch: *library.get(b"ebbtide_host_launch\0").expect("it launches"),
                parameters: *library.get(b"ebbtide_host_parameters\0").expect("it tells"),
            }
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn code_that_is_none_is_refused() {
        let code = assemble("KERNEL(8, a, int x) {}", "f32");
        // SAFETY: both are as long as a module says that it is.
        unsafe {
            let module = Module::load(code.as_ptr()).unwrap();
            assert!(module.function("a_bf16").is_none());
            assert!(Module::load([7u8; 64].as_ptr()).is_err());
        }
    }
}
