//! The driver's calls, each checked: context, memory, streams, events.
//!
//! Handles are owned by plain types that give them back when they are dropped. All of them are
//! used by the thread that opened the context, after [`super::library::probe`] found the driver.

use std::ffi::{c_void, CStr};
use std::ptr;

use cudarc::driver::sys::{self, CUresult};

use crate::device::{Cause, Failure, Result};

/// The oldest driver that has every function called here: that of CUDA 12.8.
const OLDEST: i32 = 12_080;
/// The first compute capability with bf16 arithmetic.
const BF16: (u32, u32) = (8, 0);

/// Makes an error of what a call said.
pub(super) fn check(call: &str, status: CUresult) -> Result<()> {
    match status {
        CUresult::CUDA_SUCCESS => Ok(()),
        _ => Err(Failure::new(Cause::Failed(format!(
            "{call}: {}",
            described(status)
        )))),
    }
}

/// An error's name and what the driver says of it.
fn described(status: CUresult) -> String {
    let (mut name, mut text) = (ptr::null(), ptr::null());
    // SAFETY: both calls take any status and write a pointer to a constant, or leave it null.
    let said = unsafe {
        let _ = sys::cuGetErrorName(status, &mut name);
        let _ = sys::cuGetErrorString(status, &mut text);
        [name, text].map(|s| (!s.is_null()).then(|| CStr::from_ptr(s).to_string_lossy()))
    };
    match said {
        [Some(name), Some(text)] => format!("{name} ({text})"),
        [Some(name), None] => name.into_owned(),
        _ => format!("error {}", status as u32),
    }
}

/// A card, and its primary context. That stays until the process ends, as does what a kernel that
/// failed has left in it: to end it with every device would cost each new one tenths of a second.
pub(super) struct Context {
    card: sys::CUdevice,
    raw: sys::CUcontext,
}

/// Device memory, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Memory {
    pub free: u64,
    pub total: u64,
}

impl Context {
    /// Opens a card by its number and makes its context this thread's.
    ///
    /// # Errors
    /// A driver that is too old or does not work, no such card, a card without bf16.
    pub fn open(number: u32) -> Result<Context> {
        let failed = |what: String| Failure::new(Cause::Failed(what));
        // SAFETY: the driver is there; every pointer is to a local that outlives its call.
        unsafe {
            check("cuInit", sys::cuInit(0))?;
            let mut version = 0;
            let status = sys::cuDriverGetVersion(&mut version);
            check("cuDriverGetVersion", status)?;
            if version < OLDEST {
                let (found, needed) = (dotted(version), dotted(OLDEST));
                return Err(failed(format!(
                    "the driver is for CUDA {found}; {needed} or later is needed"
                )));
            }
            let mut count = 0;
            check("cuDeviceGetCount", sys::cuDeviceGetCount(&mut count))?;
            let number = i32::try_from(number).ok().filter(|&n| n < count);
            let number = number
                .ok_or_else(|| failed(format!("there is no such card: the driver sees {count}")))?;
            let mut card = 0;
            check("cuDeviceGet", sys::cuDeviceGet(&mut card, number))?;
            let mut context = Context {
                card,
                raw: ptr::null_mut(),
            };
            let capability = context.capability()?;
            if capability < BF16 {
                return Err(failed(format!(
                    "{} has compute capability {}.{}; bf16 arithmetic needs 8.0",
                    context.name()?,
                    capability.0,
                    capability.1
                )));
            }
            let status = sys::cuDevicePrimaryCtxRetain(&mut context.raw, card);
            check("cuDevicePrimaryCtxRetain", status)?;
            context.enter()?;
            Ok(context)
        }
    }

    /// Makes the context this thread's.
    pub fn enter(&self) -> Result<()> {
        // SAFETY: the context is retained until the process ends.
        check("cuCtxSetCurrent", unsafe { sys::cuCtxSetCurrent(self.raw) })
    }

    /// What the card calls itself.
    pub fn name(&self) -> Result<String> {
        let mut name = [0u8; 256];
        // SAFETY: the driver writes at most as many bytes as it is told, the last one 0.
        let status = unsafe { sys::cuDeviceGetName(name.as_mut_ptr().cast(), 255, self.card) };
        check("cuDeviceGetName", status)?;
        let text = CStr::from_bytes_until_nul(&name);
        Ok(text.map_or_else(
            |_| "a GPU".into(),
            |text| text.to_string_lossy().into_owned(),
        ))
    }

    /// Its compute capability.
    pub fn capability(&self) -> Result<(u32, u32)> {
        use sys::CUdevice_attribute as Attribute;
        let major = Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR;
        let minor = Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR;
        Ok((self.attribute(major)?, self.attribute(minor)?))
    }

    /// The most shared memory that a block can be given.
    pub fn shared_bytes(&self) -> Result<u32> {
        use sys::CUdevice_attribute as Attribute;
        self.attribute(Attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN)
    }

    fn attribute(&self, attribute: sys::CUdevice_attribute) -> Result<u32> {
        let mut value = 0;
        // SAFETY: the card is one that the driver gave; the pointer is to a local.
        let status = unsafe { sys::cuDeviceGetAttribute(&mut value, attribute, self.card) };
        check("cuDeviceGetAttribute", status)?;
        Ok(u32::try_from(value).unwrap_or(0))
    }

    /// The card's memory now.
    pub fn memory(&self) -> Result<Memory> {
        let (mut free, mut total) = (0, 0);
        // SAFETY: the context is current; the pointers are to locals.
        let status = unsafe { sys::cuMemGetInfo_v2(&mut free, &mut total) };
        check("cuMemGetInfo", status)?;
        Ok(Memory {
            free: free as u64,
            total: total as u64,
        })
    }

    /// Waits for everything on the card.
    pub fn synchronize(&self) -> Result<()> {
        // SAFETY: it only waits.
        check("cuCtxSynchronize", unsafe { sys::cuCtxSynchronize() })
    }

    /// A stream whose kernels go before those of others.
    pub fn urgent_queue(&self) -> Result<Queue> {
        let (mut least, mut greatest, mut raw) = (0, 0, ptr::null_mut());
        let flags = sys::CUstream_flags::CU_STREAM_NON_BLOCKING as u32;
        // SAFETY: the context is current; the pointers are to locals.
        unsafe {
            let status = sys::cuCtxGetStreamPriorityRange(&mut least, &mut greatest);
            check("cuCtxGetStreamPriorityRange", status)?;
            let status = sys::cuStreamCreateWithPriority(&mut raw, flags, greatest);
            check("cuStreamCreateWithPriority", status)?;
        }
        Ok(Queue(raw))
    }

    /// The driver's version, as CUDA counts.
    pub fn driver_version(&self) -> Result<i32> {
        let mut version = 0;
        // SAFETY: the pointer is to a local.
        let status = unsafe { sys::cuDriverGetVersion(&mut version) };
        check("cuDriverGetVersion", status)?;
        Ok(version)
    }
}

/// 12080 is CUDA 12.8.
fn dotted(version: i32) -> String {
    format!("{}.{}", version / 1000, version % 1000 / 10)
}

/// Memory of the card, given back when dropped.
#[derive(Debug)]
pub(super) struct Allocation {
    pub address: u64,
    pub bytes: u64,
}

impl Allocation {
    /// `bytes` bytes; 0 are no allocation.
    ///
    /// # Errors
    /// Out of memory, for what is said of it.
    pub fn new(what: &str, bytes: u64) -> Result<Allocation> {
        let mut address = 0;
        if bytes > 0 {
            let out = || {
                let what = what.to_owned();
                Failure::new(Cause::OutOfMemory { what, bytes })
            };
            let size = usize::try_from(bytes).map_err(|_| out())?;
            // SAFETY: the pointer is to a local.
            match unsafe { sys::cuMemAlloc_v2(&mut address, size) } {
                CUresult::CUDA_ERROR_OUT_OF_MEMORY => return Err(out()),
                status => check("cuMemAlloc", status)?,
            }
        }
        Ok(Allocation { address, bytes })
    }

    /// Writes bytes and waits.
    pub fn write(&self, offset: u64, bytes: &[u8]) -> Result<()> {
        self.assert_within(offset, bytes.len());
        if bytes.is_empty() {
            return Ok(());
        }
        // SAFETY: source and target are as long as is said, and the call returns when it is done
        // with the source.
        let status = unsafe {
            sys::cuMemcpyHtoD_v2(self.address + offset, bytes.as_ptr().cast(), bytes.len())
        };
        check("cuMemcpyHtoD", status)?;
        // What was not pinned may still be on its way from the driver's own memory, and the
        // device's streams do not wait for the stream that brings it.
        // SAFETY: it only waits.
        check("cuCtxSynchronize", unsafe { sys::cuCtxSynchronize() })
    }

    /// Reads bytes and waits.
    pub fn read(&self, offset: u64, bytes: &mut [u8]) -> Result<()> {
        self.assert_within(offset, bytes.len());
        if bytes.is_empty() {
            return Ok(());
        }
        let (to, count) = (bytes.as_mut_ptr().cast(), bytes.len());
        // SAFETY: source and target are as long as is said, and the call waits.
        let status = unsafe { sys::cuMemcpyDtoH_v2(to, self.address + offset, count) };
        check("cuMemcpyDtoH", status)
    }

    fn assert_within(&self, offset: u64, bytes: usize) {
        let end = offset.checked_add(bytes as u64);
        assert!(end.is_some_and(|end| end <= self.bytes), "outside memory");
    }
}

impl Drop for Allocation {
    fn drop(&mut self) {
        if self.address != 0 {
            // SAFETY: it is the address of an allocation that nobody uses any more: the device
            // waits for all its streams before it is dropped.
            let _ = unsafe { sys::cuMemFree_v2(self.address) };
        }
    }
}

/// A stream.
pub(super) struct Queue(sys::CUstream);

/// A function that the driver calls in a stream's order, and what it is given.
pub(super) type HostFunction = unsafe extern "C" fn(*mut c_void);

impl Queue {
    /// A stream that waits for no other.
    pub fn new() -> Result<Queue> {
        let mut raw = ptr::null_mut();
        let flags = sys::CUstream_flags::CU_STREAM_NON_BLOCKING as u32;
        // SAFETY: the pointer is to a local.
        check("cuStreamCreate", unsafe {
            sys::cuStreamCreate(&mut raw, flags)
        })?;
        Ok(Queue(raw))
    }

    /// The driver's handle.
    pub fn raw(&self) -> sys::CUstream {
        self.0
    }

    /// What follows waits for the last record of a mark.
    pub fn wait(&self, mark: &Mark) -> Result<()> {
        // SAFETY: both handles are alive.
        check("cuStreamWaitEvent", unsafe {
            sys::cuStreamWaitEvent(self.0, mark.0, 0)
        })
    }

    /// Waits until everything queued has ended.
    pub fn synchronize(&self) -> Result<()> {
        // SAFETY: the handle is alive.
        check("cuStreamSynchronize", unsafe {
            sys::cuStreamSynchronize(self.0)
        })
    }

    /// Fills memory of the card with a byte.
    ///
    /// # Safety
    /// The range lies within one allocation, which outlives the queued work.
    pub unsafe fn fill(&self, address: u64, bytes: u64, byte: u8) -> Result<()> {
        let status = sys::cuMemsetD8Async(address, byte, bytes as usize, self.0);
        check("cuMemsetD8Async", status)
    }

    /// Copies from the card to pinned memory.
    ///
    /// # Safety
    /// Both ranges lie within allocations that outlive the queued work.
    pub unsafe fn copy_out(&self, from: u64, to: *mut u8, bytes: u64) -> Result<()> {
        let status = sys::cuMemcpyDtoHAsync_v2(to.cast(), from, bytes as usize, self.0);
        check("cuMemcpyDtoHAsync", status)
    }

    /// Copies from pinned memory to the card.
    ///
    /// # Safety
    /// As [`Queue::copy_out`].
    pub unsafe fn copy_in(&self, from: *const u8, to: u64, bytes: u64) -> Result<()> {
        let status = sys::cuMemcpyHtoDAsync_v2(to, from.cast(), bytes as usize, self.0);
        check("cuMemcpyHtoDAsync", status)
    }

    /// Copies within the card.
    ///
    /// # Safety
    /// As [`Queue::copy_out`].
    pub unsafe fn copy_within(&self, from: u64, to: u64, bytes: u64) -> Result<()> {
        let status = sys::cuMemcpyDtoDAsync_v2(to, from, bytes as usize, self.0);
        check("cuMemcpyDtoDAsync", status)
    }

    /// Has the driver call a function in the stream's order.
    ///
    /// # Safety
    /// What is given is alive when the call comes; the function calls nothing of the driver and
    /// does not unwind.
    pub unsafe fn call(&self, function: HostFunction, given: *mut c_void) -> Result<()> {
        let status = sys::cuLaunchHostFunc(self.0, Some(function), given);
        check("cuLaunchHostFunc", status)
    }
}

impl Drop for Queue {
    fn drop(&mut self) {
        // SAFETY: the handle is used by nobody else; the driver ends what is queued first.
        let _ = unsafe { sys::cuStreamDestroy_v2(self.0) };
    }
}

/// An event: a place in a stream that others wait for, or whose time is taken.
pub(super) struct Mark(sys::CUevent);

impl Mark {
    /// One to be waited for, or one that takes the time too.
    pub fn new(timed: bool) -> Result<Mark> {
        use sys::CUevent_flags as Flags;
        let flags = match timed {
            true => Flags::CU_EVENT_DEFAULT,
            false => Flags::CU_EVENT_DISABLE_TIMING,
        };
        let mut raw = ptr::null_mut();
        // SAFETY: the pointer is to a local.
        let status = unsafe { sys::cuEventCreate(&mut raw, flags as u32) };
        check("cuEventCreate", status)?;
        Ok(Mark(raw))
    }

    /// Marks where the stream is now.
    pub fn record(&self, queue: &Queue) -> Result<()> {
        // SAFETY: both handles are alive.
        check("cuEventRecord", unsafe {
            sys::cuEventRecord(self.0, queue.0)
        })
    }

    /// Nanoseconds from an earlier mark to this one; both have been reached.
    pub fn since(&self, earlier: &Mark) -> Result<f64> {
        let mut milliseconds = 0f32;
        // SAFETY: both handles are alive; the pointer is to a local.
        let status = unsafe { sys::cuEventElapsedTime_v2(&mut milliseconds, earlier.0, self.0) };
        check("cuEventElapsedTime", status)?;
        Ok(f64::from(milliseconds) * 1e6)
    }
}

impl Drop for Mark {
    fn drop(&mut self) {
        // SAFETY: the handle is used by nobody else.
        let _ = unsafe { sys::cuEventDestroy_v2(self.0) };
    }
}
