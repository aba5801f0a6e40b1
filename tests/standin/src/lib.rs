//! A driver for tests: what the CUDA device calls of NVIDIA's driver, cuBLASLt, NVRTC and cuDNN, on
//! this machine's processor.
//!
//! Built as a shared library that tests put where the CUDA device looks for those four. Then the
//! real device runs: real threads are its streams, real memory its card, and a kernel is the same
//! source compiled by the host's compiler; graphs of cuDNN's are computed operation by operation.
//! It is strict where a card is lenient or slow to tell: every copy, product, tensor and pointer of
//! a kernel is compared with the allocations there are, every launch with what the kernel's source
//! says of its parameters and threads, and a thread that has no context gets none of it.
//!
//! | variable | what |
//! |---|---|
//! | `EBBTIDE_STANDIN_KERNELS` | the library with `ebbtide_host_launch` |
//! | `EBBTIDE_STANDIN_DELAYS` | a seed: commands begin after random times |
//! | `EBBTIDE_STANDIN_FAIL` | `cuMemAlloc_v2:2=2,kernel:7=700`: call 2 returns 2, launch 7 700 |
//! | `EBBTIDE_STANDIN_CLOCK` | `virtual`: events show a computed time, the same in every run |
//! | `EBBTIDE_STANDIN_IDLE` | anything: what is queued is looked at and timed, but not done |
//! | `EBBTIDE_STANDIN_MEMORY` | bytes of the card |
//! | `EBBTIDE_STANDIN_CAPABILITY` | compute capability, such as `7.5` |
//! | `EBBTIDE_STANDIN_VERSION` | the driver's version, such as `12020` |
//! | `EBBTIDE_STANDIN_CUDNN` | cuDNN's version, such as `91900` |
//! | `EBBTIDE_STANDIN_CUBLASLT` | cuBLASLt's version, such as `130100` |
//! | `EBBTIDE_STANDIN_SCALES` | `apart`: no product takes a scale for each row and column |
//!
//! It knows nothing of training, and it is not fast.
#![allow(
    non_snake_case,
    clippy::missing_safety_doc,
    clippy::too_many_arguments,
    reason = "names and contracts are the driver's; a caller who breaks one is what tests look for"
)]

mod compiler;
mod cudnn;
mod driver;
mod faults;
mod graph;
mod kernels;
mod memory;
mod products;
mod streams;

/// The driver's status codes that are given here.
pub mod status {
    /// All is well.
    pub const SUCCESS: u32 = 0;
    /// An argument that cannot be.
    pub const INVALID_VALUE: u32 = 1;
    /// No memory.
    pub const OUT_OF_MEMORY: u32 = 2;
    /// No such card.
    pub const INVALID_DEVICE: u32 = 101;
    /// Not a module.
    pub const INVALID_IMAGE: u32 = 200;
    /// No context is the thread's.
    pub const INVALID_CONTEXT: u32 = 201;
    /// No such function.
    pub const NOT_FOUND: u32 = 500;
    /// Not there yet.
    pub const NOT_READY: u32 = 600;
    /// An address that is nobody's.
    pub const ILLEGAL_ADDRESS: u32 = 700;
    /// A kernel that failed.
    pub const LAUNCH_FAILED: u32 = 719;
}
