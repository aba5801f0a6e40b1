//! The CUDA device on a real card: what `tests/cuda_on_cpu` runs on a stand-in. Without a card it
//! skips aloud; with `EBBTIDE_REQUIRE_GPU` set, that is a failure.

#[path = "../support/mod.rs"]
mod support;

#[path = "../cuda_on_cpu/attention.rs"]
mod attention;
#[path = "../cuda_on_cpu/eight.rs"]
mod eight;
#[path = "../execute/hf.rs"]
mod hf;
mod long;
#[path = "../cuda_on_cpu/methods.rs"]
mod methods;
#[path = "../execute/models.rs"]
mod models;
#[path = "../execute/plans.rs"]
mod plans;
#[path = "../execute/runs.rs"]
mod runs;
#[path = "../cuda_on_cpu/steps.rs"]
mod steps;
#[path = "../execute/straight.rs"]
mod straight;

use std::io::Write;
use std::sync::OnceLock;

use ebbtide::device::cuda::{self, CudaDevice, CudaOptions};
use ebbtide::device::Device;

/// How far sums of FP8 are off: tensor cores keep some 13 bits of them between promotions.
const FP8_SUMS: f32 = 1e-3;

/// What steps run on: it fills what is released with NaNs. `deterministic`: without cuDNN.
fn card(deterministic: bool) -> Box<dyn Device> {
    let options = CudaOptions {
        host_threads: 2,
        poison: true,
        deterministic,
        ..CudaOptions::default()
    };
    Box::new(CudaDevice::open(0, options).unwrap_or_else(|error| panic!("{error}")))
}

/// Whether HF's fixtures each meet every case on it.
fn every_case() -> bool {
    true
}

/// Whether there is a card; says so if not.
fn is_there() -> bool {
    static THERE: OnceLock<bool> = OnceLock::new();
    let there = *THERE.get_or_init(|| match cuda::facts(0) {
        Ok(_) => true,
        Err(error) => {
            let required = std::env::var_os("EBBTIDE_REQUIRE_GPU").is_some();
            assert!(!required, "EBBTIDE_REQUIRE_GPU is set: {error}");
            // Not by `eprintln`, which tests keep to themselves.
            let _ = writeln!(std::io::stderr(), "no card: {error}");
            false
        }
    });
    if !there {
        let thread = std::thread::current();
        let name = thread.name().unwrap_or("a test");
        let _ = writeln!(std::io::stderr(), "skipped without a card: {name}");
    }
    there
}

/// Whether cuDNN is there; with `EBBTIDE_REQUIRE_CUDNN` set it has to be. Says so if not.
fn has_cudnn() -> bool {
    let there = cuda::facts(0).is_ok_and(|facts| facts.has_cudnn);
    let required = std::env::var_os("EBBTIDE_REQUIRE_CUDNN").is_some();
    assert!(
        there || !required,
        "EBBTIDE_REQUIRE_CUDNN is set: {:?}",
        cuda::cudnn::version()
    );
    if !there {
        let _ = writeln!(
            std::io::stderr(),
            "cuDNN's attention is left out: it is not there"
        );
    }
    there
}

/// What HF's fixtures run on.
fn device() -> Box<dyn Device> {
    card(false)
}
