//! cuDNN's functions, found at run time, with a status that may be any number.
//!
//! Not through cudarc, whose statuses are enums and whose missing functions panic; the numbers of
//! attributes and types are its. A found library is kept by its path, so that no other cuDNN on the
//! machine is taken for it.

use std::ffi::{c_char, c_int, c_void, CStr};
use std::sync::OnceLock;

use cudarc::cudnn::sys::{
    cudnnBackendAttributeName_t as Attribute, cudnnBackendAttributeType_t as AttributeType,
    cudnnBackendDescriptorType_t as DescriptorType,
};
use cudarc::driver::sys::CUstream;
use libloading::os::unix::Library as Opened;

use crate::device::cuda::library::{first_of, looked};

/// The oldest that is used: from 9.10 on a hidden score is −∞, and dQ's accumulator needs no zeros.
const OLDEST: usize = 91_000;

pub(super) type Status = c_int;
pub(super) type Raw = *mut c_void;

/// cuDNN.
pub(super) struct Library {
    /// 91900 is 9.19.0.
    version: usize,
    pub create: unsafe extern "C" fn(*mut Raw) -> Status,
    pub destroy: unsafe extern "C" fn(Raw) -> Status,
    pub set_stream: unsafe extern "C" fn(Raw, CUstream) -> Status,
    pub describe: unsafe extern "C" fn(DescriptorType, *mut Raw) -> Status,
    pub forget: unsafe extern "C" fn(Raw) -> Status,
    pub set: unsafe extern "C" fn(Raw, Attribute, AttributeType, i64, *const c_void) -> Status,
    pub get:
        unsafe extern "C" fn(Raw, Attribute, AttributeType, i64, *mut i64, *mut c_void) -> Status,
    pub finalize: unsafe extern "C" fn(Raw) -> Status,
    pub execute: unsafe extern "C" fn(Raw, Raw, Raw) -> Status,
    text: unsafe extern "C" fn(Status) -> *const c_char,
    last: unsafe extern "C" fn(*mut c_char, usize),
}

impl Library {
    /// Finds cuDNN and what it opens itself; the driver and the other libraries have been found.
    ///
    /// # Errors
    /// Why it cannot be used, for a person.
    pub fn open() -> Result<&'static Library, String> {
        static FOUND: OnceLock<Result<Library, String>> = OnceLock::new();
        FOUND
            .get_or_init(Library::find)
            .as_ref()
            .map_err(Clone::clone)
    }

    fn find() -> Result<Library, String> {
        let opened = first_of(&["libcudnn.so.9", "libcudnn.so"]);
        let opened =
            opened.ok_or_else(|| format!("cuDNN (libcudnn.so.9) was not found; {}", looked()))?;
        // SAFETY: types and meanings are those of cudnn.h, cudnn_graph.h and their documentation.
        unsafe {
            let version: unsafe extern "C" fn() -> usize = function(&opened, "cudnnGetVersion")?;
            let runtime: unsafe extern "C" fn() -> usize =
                function(&opened, "cudnnGetCudartVersion")?;
            let (version, major) = (version(), runtime() / 1000);
            if version < OLDEST {
                let (found, needed) = (dotted(version), dotted(OLDEST));
                return Err(format!("cuDNN is {found}; {needed} or later is needed"));
            }
            // It ends the process where it does not find them.
            for stem in ["cublasLt", "nvrtc"] {
                let name = format!("lib{stem}.so.{major}");
                let opened = first_of(&[&name]).ok_or_else(|| {
                    format!(
                        "cuDNN {} needs {name}, which was not found",
                        dotted(version)
                    )
                })?;
                std::mem::forget(opened);
            }
            let library = Library {
                version,
                create: function(&opened, "cudnnCreate")?,
                destroy: function(&opened, "cudnnDestroy")?,
                set_stream: function(&opened, "cudnnSetStream")?,
                describe: function(&opened, "cudnnBackendCreateDescriptor")?,
                forget: function(&opened, "cudnnBackendDestroyDescriptor")?,
                set: function(&opened, "cudnnBackendSetAttribute")?,
                get: function(&opened, "cudnnBackendGetAttribute")?,
                finalize: function(&opened, "cudnnBackendFinalize")?,
                execute: function(&opened, "cudnnBackendExecute")?,
                text: function(&opened, "cudnnGetErrorString")?,
                last: function(&opened, "cudnnGetLastErrorString")?,
            };
            // Its functions are called until the process ends.
            std::mem::forget(opened);
            Ok(library)
        }
    }

    /// Its version, as people write it.
    pub fn version(&self) -> String {
        dotted(self.version)
    }

    /// Makes an error of what a call said, with what the library says of it.
    pub fn check(&self, call: &str, status: Status) -> Result<(), String> {
        if status == 0 {
            return Ok(());
        }
        let mut said = [0u8; 512];
        // SAFETY: the name of a status is a constant; the library writes at most as many bytes as
        // it is told, the last one 0.
        let name = unsafe {
            (self.last)(said.as_mut_ptr().cast(), said.len());
            let text = (self.text)(status);
            (!text.is_null()).then(|| CStr::from_ptr(text).to_string_lossy())
        };
        let said = CStr::from_bytes_until_nul(&said).unwrap_or_default();
        let said = said.to_string_lossy();
        // One line, and not where in the library it was said.
        let said = said.lines().next().unwrap_or_default().trim();
        Err(match (name, said.is_empty()) {
            (Some(name), true) => format!("{call}: {name}"),
            (Some(name), false) => format!("{call}: {name} ({said})"),
            (None, _) => format!("{call}: status {status} {said}"),
        })
    }
}

/// A function by its name.
///
/// # Safety
/// `F` is its type.
unsafe fn function<F: Copy>(opened: &Opened, name: &str) -> Result<F, String> {
    let found = opened.get::<F>(name.as_bytes());
    let found = found.map_err(|_| format!("cuDNN is too old: it has no `{name}`"))?;
    Ok(*found)
}

/// 91900 is 9.19.0.
fn dotted(version: usize) -> String {
    format!(
        "{}.{}.{}",
        version / 10_000,
        version / 100 % 100,
        version % 100
    )
}
