//! The host's slab: exactly as many bytes as a schedule places there, pinned.
//!
//! Pinning pages that do not exist yet makes them one by one, on one thread. So all processors
//! touch them first, in large pages where the system has them, and the driver then only pins them.
//! Large slabs say how far they are.

use std::ptr;
use std::sync::Arc;
use std::time::Duration;

use cudarc::driver::sys;
use indicatif::{ProgressBar, ProgressFinish, ProgressStyle};
use rayon::prelude::*;

use super::driver::check;
use crate::device::cpu::machine;
use crate::device::{Cause, Failure, Result};

/// Bytes that one thread touches at a time.
const PART: usize = 64 << 20;
/// From so many bytes on, people see a bar.
const LARGE: u64 = 4 << 30;
const PAGE: usize = 4096;

/// What people see of large slabs, until it is dropped.
fn bar(bytes: u64) -> ProgressBar {
    if bytes < LARGE {
        return ProgressBar::hidden();
    }
    let template = "host memory {bar:24} {bytes}/{total_bytes}  {msg}  {elapsed}";
    let style = ProgressStyle::with_template(template).expect("a constant");
    let bar = ProgressBar::new(bytes).with_style(style);
    bar.enable_steady_tick(Duration::from_millis(500));
    bar.with_finish(ProgressFinish::AndClear)
}

/// Pinned memory. Its bytes are written and read by the card and by the host's optimizer, in an
/// order that a schedule's events give; so it hands out addresses, never references.
pub(super) struct Slab {
    base: *mut u8,
    bytes: usize,
}

// SAFETY: an address and a length; whoever uses the memory behind it says why that is right.
unsafe impl Send for Slab {}
// SAFETY: as above.
unsafe impl Sync for Slab {}

impl Slab {
    /// Maps, touches and pins.
    ///
    /// # Errors
    /// More memory than the host has; what the driver says.
    pub fn new(bytes: u64) -> Result<Arc<Slab>> {
        let out = || {
            let what = "the pinned host slab".to_owned();
            Failure::new(Cause::OutOfMemory { what, bytes })
        };
        let mut slab = Slab {
            base: ptr::null_mut(),
            bytes: 0,
        };
        if bytes == 0 {
            return Ok(Arc::new(slab));
        }
        // Linux also grants more than it has, and ends the process that uses it.
        if machine::memory().is_ok_and(|memory| bytes > memory.available.get()) {
            return Err(out());
        }
        let size = usize::try_from(bytes).map_err(|_| out())?;
        let (access, kind) = (
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
        );
        // SAFETY: a new mapping, wherever the system likes.
        let base = unsafe { libc::mmap(ptr::null_mut(), size, access, kind, -1, 0) };
        if base == libc::MAP_FAILED {
            return Err(out());
        }
        // From here on, dropping it unmaps.
        (slab.base, slab.bytes) = (base.cast(), size);
        // SAFETY: the range is the mapping's. It is advice: a refusal changes nothing.
        let _ = unsafe { libc::madvise(base, size, libc::MADV_HUGEPAGE) };
        let bar = bar(bytes);
        slab.touch(&bar);
        bar.set_message("pinning");
        // SAFETY: the mapping lives until it is unregistered.
        match unsafe { sys::cuMemHostRegister_v2(base, size, 0) } {
            sys::CUresult::CUDA_ERROR_OUT_OF_MEMORY => Err(out()),
            status => check("cuMemHostRegister", status),
        }?;
        Ok(Arc::new(slab))
    }

    /// Writes to every page, on all processors.
    fn touch(&self, bar: &ProgressBar) {
        (0..self.bytes)
            .into_par_iter()
            .step_by(PART)
            .for_each(|start| {
                let end = self.bytes.min(start + PART);
                for page in (start..end).step_by(PAGE) {
                    // SAFETY: inside the mapping, which nobody else knows yet; no two threads have
                    // the same part.
                    unsafe { self.base.add(page).write_volatile(0) };
                }
                bar.inc((end - start) as u64);
            });
    }

    /// The address of a range.
    ///
    /// # Panics
    /// When it is not inside.
    pub fn address(&self, offset: u64, bytes: u64) -> *mut u8 {
        let end = offset.checked_add(bytes);
        assert!(
            end.is_some_and(|end| end <= self.bytes as u64),
            "{bytes} bytes at {offset} of {}",
            self.bytes
        );
        self.base.wrapping_add(offset as usize)
    }

    /// Writes bytes.
    ///
    /// # Safety
    /// Nobody else uses the range.
    pub unsafe fn write(&self, offset: u64, bytes: &[u8]) {
        let to = self.address(offset, bytes.len() as u64);
        ptr::copy_nonoverlapping(bytes.as_ptr(), to, bytes.len());
    }

    /// Reads bytes.
    ///
    /// # Safety
    /// Nobody writes to the range.
    pub unsafe fn read(&self, offset: u64, bytes: &mut [u8]) {
        let from = self.address(offset, bytes.len() as u64);
        ptr::copy_nonoverlapping(from, bytes.as_mut_ptr(), bytes.len());
    }
}

impl Drop for Slab {
    fn drop(&mut self) {
        if !self.base.is_null() {
            // SAFETY: the mapping was made here and nobody uses it any more. It may not have been
            // registered, which the driver then says.
            unsafe {
                let _ = sys::cuMemHostUnregister(self.base.cast());
                libc::munmap(self.base.cast(), self.bytes);
            }
        }
    }
}
