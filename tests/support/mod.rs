//! A complete schedule file around the solver's tiny schedule.
#![allow(dead_code, reason = "each test binary uses its part")]

#[path = "../../solver/tests/support/mod.rs"]
pub mod tiny;

use ebbtide::format::schedule::*;
use ebbtide_solver::plan::Placement;
use ebbtide_solver::units::{Bytes, Nanos};

/// The tiny schedule as a file.
pub fn tiny_file() -> ScheduleFile {
    let schedule = tiny::tiny();
    ScheduleFile {
        ebbtide_version: env!("CARGO_PKG_VERSION").into(),
        model: Model {
            name: "tiny".into(),
            parameters: 512,
            layers: 1,
            hidden: 64,
            intermediate: 0,
            heads: 2,
            kv_heads: 2,
            head_dim: 32,
            vocab: 4,
            config: None,
        },
        workload: Workload {
            seq: 8,
            batch: 1,
            dtype: "bf16".into(),
        },
        hardware: Hardware {
            name: "unit".into(),
            overhead: Bytes::ZERO,
            peak_flops_per_s: 1_000_000_000,
            host_memory: Bytes::gib(1024),
        },
        method: "sgd".into(),
        method_options: None,
        storage: None,
        arithmetic: ebbtide::device::arithmetic::Arithmetic::Plain,
        strategy: "by-hand".into(),
        decisions: vec![Decision {
            block: None,
            tensor: "x".into(),
            keep_tokens: 0,
            packed_tokens: 0,
            swap_tokens: 4,
            recompute_tokens: 4,
            stored_as: "bf16".into(),
        }],
        states: vec![
            State {
                placement: Placement::HostOptimizer,
                parameters: 256,
            },
            State {
                placement: Placement::Resident,
                parameters: 256,
            },
        ],
        solver: Solver {
            status: Status::Unproved,
            bound: Some(Nanos::new(4300)),
            gap: Some(0.25),
            solve_ms: 0,
        },
        predicted: Predicted {
            step: Nanos::new(5200),
            floor: Nanos::new(4500),
            recompute: Nanos::new(200),
            packing: Nanos::ZERO,
            stall: Nanos::ZERO,
            optimizer_tail: Nanos::new(500),
            tokens_per_s: 3_076_923.5,
            mfu: 0.125,
            hfu: 0.1,
            peak_live: Bytes::new(8704),
            arena: schedule.arena_bytes,
            device: schedule.arena_bytes,
            host: schedule.host_bytes,
            d2h: Bytes::new(1536),
            h2d: Bytes::new(1536),
        },
        schedule,
    }
}
