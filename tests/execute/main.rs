//! The executor on the CPU device: what a schedule computes, whatever plan it is.

#[path = "../support/mod.rs"]
mod support;

mod characters;
mod clipping;
mod clock;
mod faults;
mod hf;
mod identity;
mod models;
mod oracles;
mod plans;
mod refused;
mod runs;
mod storage;
mod straight;
mod weights;

use ebbtide::device::cpu::{CpuDevice, CpuOptions};
use ebbtide::device::Device;

/// What the fixtures run on.
fn device() -> Box<dyn Device> {
    Box::new(CpuDevice::new(CpuOptions::default()))
}

/// Whether every fixture meets every case on it.
fn every_case() -> bool {
    true
}

/// Whether there is such a device.
fn is_there() -> bool {
    true
}
