//! The driver: every function of it that the CUDA device calls.

use std::env;
use std::ffi::{c_char, c_int, c_uint, c_void, CStr};

use crate::faults::{call, enter, number};
use crate::kernels::{Function, Launch, Module, SHARED_MOST};
use crate::memory::{self, check, Side};
use crate::status::*;
use crate::streams::{synchronize_all, Event, Stream};

/// Bytes of a nanosecond on a virtual clock.
const LINK: u64 = 25;
/// Nanoseconds before a copy's first byte.
const LATENCY: u64 = 5_000;

fn told(result: Result<(), u32>) -> u32 {
    result.err().unwrap_or(SUCCESS)
}

// ---- errors, cards, contexts ------------------------------------------------------------------

#[no_mangle]
unsafe extern "C" fn cuGetErrorName(status: u32, text: *mut *const c_char) -> u32 {
    *text = match status {
        INVALID_VALUE => c"CUDA_ERROR_INVALID_VALUE",
        OUT_OF_MEMORY => c"CUDA_ERROR_OUT_OF_MEMORY",
        ILLEGAL_ADDRESS => c"CUDA_ERROR_ILLEGAL_ADDRESS",
        LAUNCH_FAILED => c"CUDA_ERROR_LAUNCH_FAILED",
        _ => c"CUDA_ERROR_UNKNOWN",
    }
    .as_ptr();
    SUCCESS
}

#[no_mangle]
unsafe extern "C" fn cuGetErrorString(_status: u32, text: *mut *const c_char) -> u32 {
    *text = c"said by the stand-in driver".as_ptr();
    SUCCESS
}

#[no_mangle]
unsafe extern "C" fn cuInit(_flags: c_uint) -> u32 {
    told(call("cuInit"))
}

#[no_mangle]
unsafe extern "C" fn cuDriverGetVersion(version: *mut c_int) -> u32 {
    *version = number("EBBTIDE_STANDIN_VERSION", 13_000) as c_int;
    SUCCESS
}

#[no_mangle]
unsafe extern "C" fn cuDeviceGetCount(count: *mut c_int) -> u32 {
    *count = 1;
    told(call("cuDeviceGetCount"))
}

#[no_mangle]
unsafe extern "C" fn cuDeviceGet(card: *mut c_int, number: c_int) -> u32 {
    *card = number;
    match number {
        0 => SUCCESS,
        _ => INVALID_DEVICE,
    }
}

#[no_mangle]
unsafe extern "C" fn cuDeviceGetName(name: *mut c_char, bytes: c_int, _card: c_int) -> u32 {
    let text = c"the stand-in card".to_bytes_with_nul();
    if text.len() > bytes as usize {
        return INVALID_VALUE;
    }
    name.copy_from_nonoverlapping(text.as_ptr().cast(), text.len());
    SUCCESS
}

#[no_mangle]
unsafe extern "C" fn cuDeviceGetAttribute(value: *mut c_int, which: u32, _card: c_int) -> u32 {
    let capability = env::var("EBBTIDE_STANDIN_CAPABILITY").unwrap_or_else(|_| "9.0".into());
    let (major, minor) = capability.split_once('.').unwrap_or(("9", "0"));
    *value = match which {
        75 => major.parse().unwrap_or(9),
        76 => minor.parse().unwrap_or(0),
        97 => SHARED_MOST as c_int,
        _ => return INVALID_VALUE,
    };
    SUCCESS
}

#[no_mangle]
unsafe extern "C" fn cuDevicePrimaryCtxRetain(context: *mut *mut c_void, _card: c_int) -> u32 {
    *context = std::ptr::dangling_mut::<u8>().cast();
    told(call("cuDevicePrimaryCtxRetain"))
}

#[no_mangle]
extern "C" fn cuCtxSetCurrent(_context: *mut c_void) -> u32 {
    told(call("cuCtxSetCurrent").inspect(|()| enter()))
}

#[no_mangle]
extern "C" fn cuCtxSynchronize() -> u32 {
    synchronize_all();
    told(call("cuCtxSynchronize"))
}

// ---- memory -----------------------------------------------------------------------------------

#[no_mangle]
unsafe extern "C" fn cuMemGetInfo_v2(free: *mut usize, total: *mut usize) -> u32 {
    let (left, all) = memory::info();
    (*free, *total) = (left as usize, all as usize);
    told(call("cuMemGetInfo_v2"))
}

#[no_mangle]
unsafe extern "C" fn cuMemAlloc_v2(address: *mut u64, bytes: usize) -> u32 {
    let allocated = call("cuMemAlloc_v2").and_then(|()| memory::allocate(bytes as u64));
    told(allocated.map(|allocated| *address = allocated))
}

#[no_mangle]
extern "C" fn cuMemFree_v2(address: u64) -> u32 {
    synchronize_all();
    told(memory::free(address))
}

#[no_mangle]
extern "C" fn cuMemHostRegister_v2(address: u64, bytes: usize, _flags: c_uint) -> u32 {
    told(call("cuMemHostRegister_v2").and_then(|()| memory::pin(address, bytes as u64)))
}

#[no_mangle]
extern "C" fn cuMemHostUnregister(address: u64) -> u32 {
    synchronize_all();
    told(memory::unpin(address))
}

/// Copies between two addresses that have been looked at.
unsafe fn move_bytes(to: u64, from: u64, bytes: usize) {
    std::ptr::copy(from as *const u8, to as *mut u8, bytes);
}

#[no_mangle]
unsafe extern "C" fn cuMemcpyHtoD_v2(to: u64, from: u64, bytes: usize) -> u32 {
    told(call("cuMemcpyHtoD_v2").and_then(|()| {
        check(Side::Card, to, bytes as u64)?;
        move_bytes(to, from, bytes);
        Ok(())
    }))
}

#[no_mangle]
unsafe extern "C" fn cuMemcpyDtoH_v2(to: u64, from: u64, bytes: usize) -> u32 {
    told(call("cuMemcpyDtoH_v2").and_then(|()| {
        check(Side::Card, from, bytes as u64)?;
        move_bytes(to, from, bytes);
        Ok(())
    }))
}

/// Queues a copy between sides.
unsafe fn copy(
    name: &'static str,
    (to_side, to): (Side, u64),
    (from_side, from): (Side, u64),
    bytes: usize,
    stream: *const Stream,
) -> u32 {
    told(call(name).and_then(|()| {
        check(to_side, to, bytes as u64)?;
        check(from_side, from, bytes as u64)?;
        (*stream).run(LATENCY + bytes as u64 / LINK, move || {
            crate::faults::injected("copy")?;
            // Again, now that it runs: nobody may have given it back.
            check(to_side, to, bytes as u64)?;
            check(from_side, from, bytes as u64)?;
            // SAFETY: both ranges are within allocations.
            unsafe { move_bytes(to, from, bytes) };
            Ok(())
        })
    }))
}

#[no_mangle]
unsafe extern "C" fn cuMemcpyDtoHAsync_v2(
    to: u64,
    from: u64,
    bytes: usize,
    stream: *const Stream,
) -> u32 {
    let name = "cuMemcpyDtoHAsync_v2";
    copy(name, (Side::Pinned, to), (Side::Card, from), bytes, stream)
}

#[no_mangle]
unsafe extern "C" fn cuMemcpyHtoDAsync_v2(
    to: u64,
    from: u64,
    bytes: usize,
    stream: *const Stream,
) -> u32 {
    let name = "cuMemcpyHtoDAsync_v2";
    copy(name, (Side::Card, to), (Side::Pinned, from), bytes, stream)
}

#[no_mangle]
unsafe extern "C" fn cuMemcpyDtoDAsync_v2(
    to: u64,
    from: u64,
    bytes: usize,
    stream: *const Stream,
) -> u32 {
    let name = "cuMemcpyDtoDAsync_v2";
    copy(name, (Side::Card, to), (Side::Card, from), bytes, stream)
}

#[no_mangle]
unsafe extern "C" fn cuMemsetD8Async(
    to: u64,
    byte: u8,
    bytes: usize,
    stream: *const Stream,
) -> u32 {
    told(call("cuMemsetD8Async").and_then(|()| {
        check(Side::Card, to, bytes as u64)?;
        (*stream).run(LATENCY, move || {
            check(Side::Card, to, bytes as u64)?;
            // SAFETY: the range is within an allocation.
            unsafe { (to as *mut u8).write_bytes(byte, bytes) };
            Ok(())
        })
    }))
}

// ---- streams and events -----------------------------------------------------------------------

#[no_mangle]
unsafe extern "C" fn cuStreamCreate(stream: *mut *mut Stream, flags: c_uint) -> u32 {
    // One that waits for the default stream would hide a missing wait.
    if flags != 1 {
        return INVALID_VALUE;
    }
    *stream = Box::into_raw(Box::new(Stream::new()));
    told(call("cuStreamCreate"))
}

#[no_mangle]
unsafe extern "C" fn cuCtxGetStreamPriorityRange(least: *mut c_int, greatest: *mut c_int) -> u32 {
    (*least, *greatest) = (0, -5);
    told(call("cuCtxGetStreamPriorityRange"))
}

#[no_mangle]
unsafe extern "C" fn cuStreamCreateWithPriority(
    stream: *mut *mut Stream,
    flags: c_uint,
    priority: c_int,
) -> u32 {
    match priority {
        -5..=0 => cuStreamCreate(stream, flags),
        _ => INVALID_VALUE,
    }
}

#[no_mangle]
unsafe extern "C" fn cuStreamDestroy_v2(stream: *mut Stream) -> u32 {
    drop(Box::from_raw(stream));
    SUCCESS
}

#[no_mangle]
unsafe extern "C" fn cuStreamSynchronize(stream: *const Stream) -> u32 {
    let done = (*stream).synchronize();
    told(done.and_then(|()| call("cuStreamSynchronize")))
}

#[no_mangle]
unsafe extern "C" fn cuStreamWaitEvent(
    stream: *const Stream,
    event: *const Event,
    _flags: c_uint,
) -> u32 {
    told(call("cuStreamWaitEvent").and_then(|()| (*stream).wait(&*event)))
}

#[no_mangle]
unsafe extern "C" fn cuLaunchHostFunc(
    stream: *const Stream,
    function: unsafe extern "C" fn(*mut c_void),
    given: *mut c_void,
) -> u32 {
    let given = given as usize;
    told(call("cuLaunchHostFunc").and_then(|()| {
        (*stream).run(LATENCY, move || {
            // SAFETY: whoever queued it keeps what it is given.
            unsafe { function(given as *mut c_void) };
            Ok(())
        })
    }))
}

#[no_mangle]
unsafe extern "C" fn cuEventCreate(event: *mut *mut Event, flags: c_uint) -> u32 {
    const DISABLE_TIMING: c_uint = 2;
    *event = Box::into_raw(Box::new(Event::new(flags & DISABLE_TIMING == 0)));
    told(call("cuEventCreate"))
}

#[no_mangle]
unsafe extern "C" fn cuEventDestroy_v2(event: *mut Event) -> u32 {
    drop(Box::from_raw(event));
    SUCCESS
}

#[no_mangle]
unsafe extern "C" fn cuEventRecord(event: *const Event, stream: *const Stream) -> u32 {
    told(call("cuEventRecord").and_then(|()| (*stream).record(&*event)))
}

#[no_mangle]
unsafe extern "C" fn cuEventElapsedTime_v2(
    milliseconds: *mut f32,
    start: *const Event,
    end: *const Event,
) -> u32 {
    let elapsed = (*end).since(&*start);
    told(elapsed.map(|ns| *milliseconds = (ns / 1e6) as f32))
}

// ---- modules ----------------------------------------------------------------------------------

#[no_mangle]
unsafe extern "C" fn cuModuleLoadData(module: *mut *mut Module, image: *const u8) -> u32 {
    let loaded = call("cuModuleLoadData").and_then(|()| Module::load(image));
    told(loaded.map(|loaded| *module = Box::into_raw(Box::new(loaded))))
}

#[no_mangle]
unsafe extern "C" fn cuModuleUnload(module: *mut Module) -> u32 {
    drop(Box::from_raw(module));
    SUCCESS
}

#[no_mangle]
unsafe extern "C" fn cuModuleGetFunction(
    function: *mut *const Function,
    module: *const Module,
    name: *const c_char,
) -> u32 {
    let name = CStr::from_ptr(name).to_string_lossy();
    match (*module).function(&name) {
        Some(found) => {
            *function = found;
            SUCCESS
        }
        None => NOT_FOUND,
    }
}

#[no_mangle]
unsafe extern "C" fn cuFuncSetAttribute(
    function: *const Function,
    which: u32,
    value: c_int,
) -> u32 {
    match which {
        8 => told((*function).allow(value)),
        _ => INVALID_VALUE,
    }
}

#[no_mangle]
unsafe extern "C" fn cuLaunchKernel(
    function: *const Function,
    grid_x: c_uint,
    grid_y: c_uint,
    grid_z: c_uint,
    block_x: c_uint,
    block_y: c_uint,
    block_z: c_uint,
    shared: c_uint,
    stream: *const Stream,
    parameters: *const *const c_void,
    extra: *const *const c_void,
) -> u32 {
    if !extra.is_null() {
        return INVALID_VALUE;
    }
    let launch = Launch {
        grid: [grid_x, grid_y, grid_z],
        block: [block_x, block_y, block_z],
        shared,
    };
    told(call("cuLaunchKernel").and_then(|()| (*function).launch(&*stream, launch, parameters)))
}
