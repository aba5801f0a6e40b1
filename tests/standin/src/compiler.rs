//! NVRTC: takes a source and gives it back as machine code that `kernels` can load.

use std::ffi::{c_char, c_int, CStr};

use crate::faults::injected;
use crate::kernels::assemble;

/// NVRTC's status codes that are given here.
const SUCCESS: u32 = 0;
const COMPILATION: u32 = 6;
const INVALID_OPTION: u32 = 5;

/// A program.
pub struct Program {
    source: String,
    header: String,
    code: Vec<u8>,
    log: Vec<u8>,
}

#[no_mangle]
unsafe extern "C" fn nvrtcVersion(major: *mut c_int, minor: *mut c_int) -> u32 {
    (*major, *minor) = (13, 0);
    SUCCESS
}

#[no_mangle]
unsafe extern "C" fn nvrtcCreateProgram(
    program: *mut *mut Program,
    source: *const c_char,
    _name: *const c_char,
    count: c_int,
    headers: *const *const c_char,
    names: *const *const c_char,
) -> u32 {
    let text = |text: *const c_char| CStr::from_ptr(text).to_string_lossy().into_owned();
    let mut header = String::new();
    for at in 0..count as usize {
        header.push_str(&text(*names.add(at)));
    }
    let _ = headers;
    let made = Program {
        source: text(source),
        header,
        code: Vec::new(),
        log: Vec::new(),
    };
    *program = Box::into_raw(Box::new(made));
    SUCCESS
}

#[no_mangle]
unsafe extern "C" fn nvrtcCompileProgram(
    program: *mut Program,
    count: c_int,
    options: *const *const c_char,
) -> u32 {
    let program = &mut *program;
    let option = |at: usize| CStr::from_ptr(*options.add(at)).to_string_lossy();
    let options: Vec<_> = (0..count as usize).map(option).collect();
    let has = |option: &str| options.iter().any(|given| given == option);
    let architecture = options
        .iter()
        .any(|o| o.starts_with("--gpu-architecture=sm_"));
    let suffix = match (has("-DEBBTIDE_BF16"), has("-DEBBTIDE_F32")) {
        (true, false) => "bf16",
        (false, true) => "f32",
        _ => return INVALID_OPTION,
    };
    if !architecture {
        return INVALID_OPTION;
    }
    let missing = program.source.contains("#include \"device.cuh\"")
        && !program.header.contains("device.cuh");
    if missing || injected("compile").is_err() {
        program.log = b"error: it does not compile\0".to_vec();
        return COMPILATION;
    }
    program.code = assemble(&program.source, suffix);
    SUCCESS
}

#[no_mangle]
unsafe extern "C" fn nvrtcGetCUBINSize(program: *mut Program, size: *mut usize) -> u32 {
    *size = (*program).code.len();
    SUCCESS
}

#[no_mangle]
unsafe extern "C" fn nvrtcGetCUBIN(program: *mut Program, code: *mut u8) -> u32 {
    let from = &(*program).code;
    code.copy_from_nonoverlapping(from.as_ptr(), from.len());
    SUCCESS
}

#[no_mangle]
unsafe extern "C" fn nvrtcGetProgramLogSize(program: *mut Program, size: *mut usize) -> u32 {
    *size = (*program).log.len();
    SUCCESS
}

#[no_mangle]
unsafe extern "C" fn nvrtcGetProgramLog(program: *mut Program, log: *mut u8) -> u32 {
    let from = &(*program).log;
    log.copy_from_nonoverlapping(from.as_ptr(), from.len());
    SUCCESS
}

#[no_mangle]
unsafe extern "C" fn nvrtcDestroyProgram(program: *mut *mut Program) -> u32 {
    drop(Box::from_raw(*program));
    *program = std::ptr::null_mut();
    SUCCESS
}
