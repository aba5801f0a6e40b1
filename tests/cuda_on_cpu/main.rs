//! The real CUDA device on a stand-in for NVIDIA's driver and libraries (`tests/standin`), with the
//! real kernels as the host's compiler makes them: whole training steps, in the order of events and
//! with random delays, against the CPU device; and everything that can go wrong. Not a GPU: what a
//! card's compiler, its products and its timing do is not seen here.

#[path = "../support/mod.rs"]
mod support;

#[path = "../execute/hf.rs"]
mod hf;
#[path = "../kernels/library.rs"]
mod library;
#[path = "../execute/models.rs"]
mod models;
#[path = "../execute/plans.rs"]
mod plans;
#[path = "../execute/runs.rs"]
mod runs;
#[path = "../execute/straight.rs"]
mod straight;

mod arithmetic;
mod attention;
mod clock;
mod cudnn;
mod eight;
mod faults;
mod large;
mod methods;
mod place;
mod steps;

use ebbtide::device::cuda::{CudaDevice, CudaOptions};
use ebbtide::device::Device;

/// How far sums of FP8 are off beside those of f32: products here are summed in f32.
const FP8_SUMS: f32 = 0.0;

/// What steps run on: it fills what is released with NaNs. `deterministic`: without cuDNN.
fn card(deterministic: bool) -> Box<dyn Device> {
    place::stand_in();
    let options = CudaOptions {
        host_threads: 2,
        poison: true,
        deterministic,
        ..CudaOptions::default()
    };
    Box::new(CudaDevice::open(0, options).unwrap_or_else(|error| panic!("{error}")))
}

/// Whether there is a compiler to make such a device with; it has been said if not.
fn is_there() -> bool {
    place::kernels().is_some()
}

/// The stand-in is cuDNN too.
fn has_cudnn() -> bool {
    true
}

/// What HF's fixtures run on.
fn device() -> Box<dyn Device> {
    card(false)
}

/// Each meets one case: what a model computes and what a method does with it are kernels apart, and
/// `tests/execute` has every case.
fn every_case() -> bool {
    false
}
