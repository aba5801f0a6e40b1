//! The CUDA device.

pub mod launch;
