//! The JSON side of a schedule: types that look like the file.

use serde::{Deserialize, Serialize};

use ebbtide_solver::ids::{BufferId, Id};
use ebbtide_solver::plan::Placement;
use ebbtide_solver::problem::{Category, Domain};
use ebbtide_solver::schedule::{Access, Operand, Space};

use super::Status;
use crate::device::packed::Storage;

/// What is looked at first: the rest may be of another version.
#[derive(Deserialize)]
pub(super) struct Head {
    pub(super) schema: Option<String>,
}

macro_rules! wire {
    ($(#[$meta:meta])* struct $name:ident { $($(#[$fmeta:meta])* $field:ident: $type:ty,)* }) => {
        $(#[$meta])*
        #[derive(Serialize, Deserialize)]
        #[serde(deny_unknown_fields)]
        pub(super) struct $name { $($(#[$fmeta])* pub(super) $field: $type,)* }
    };
}

/// Names for the variants of a domain enum, and the mirror that serde sees.
macro_rules! wire_enum {
    ($name:ident is $domain:ty { $($variant:ident = $text:literal,)* }) => {
        #[derive(Clone, Copy, Serialize, Deserialize)]
        pub(super) enum $name { $(#[serde(rename = $text)] $variant,)* }
        impl From<$domain> for $name {
            fn from(domain: $domain) -> Self {
                match domain { $(<$domain>::$variant => $name::$variant,)* }
            }
        }
        impl From<$name> for $domain {
            fn from(wire: $name) -> Self {
                match wire { $($name::$variant => <$domain>::$variant,)* }
            }
        }
    };
}

wire_enum!(WireCategory is Category {
    Weights = "weights",
    Gradients = "gradients",
    OptimizerStates = "optimizer_states",
    Activations = "activations",
    Transients = "transients",
    Workspace = "workspace",
});
wire_enum!(WireDomain is Domain {
    Rows = "rows",
    RowsOfGroup = "rows_of_group",
    Group = "group",
    Whole = "whole",
});
wire_enum!(WireSpace is Space { Device = "device", Host = "host", });
wire_enum!(WirePlacement is Placement {
    Resident = "resident",
    HostOptimizer = "host_optimizer",
    Streamed = "streamed",
});
wire_enum!(WireStatus is Status {
    Optimal = "optimal",
    Gap = "gap",
    TimeLimit = "time_limit",
    Unproved = "unproved",
});

wire_enum!(WireStorage is Storage {
    Fp8 = "fp8",
    Int8 = "int8",
});

wire!(
    struct File {
        schema: String,
        ebbtide_version: String,
        model: WireModel,
        workload: WireWorkload,
        hardware: WireHardware,
        method: String,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        method_options: Option<WireMethodOptions>,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        storage: Option<WireStorage>,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        arithmetic: Option<String>,
        strategy: String,
        budget: WireBudget,
        decisions: Vec<WireDecision>,
        states: Vec<WireState>,
        head_groups: u64,
        events: u32,
        arena_bytes: u64,
        host_bytes: u64,
        operators: Vec<WireOperator>,
        values: Vec<WireValue>,
        buffers: Vec<WireBuffer>,
        streams: WireStreams,
        solver: WireSolver,
        predicted: WirePredicted,
    }
);
wire!(
    struct WireMethodOptions {
        #[serde(default, skip_serializing_if = "Option::is_none")]
        rank: Option<u64>,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        rank_divisor: Option<u64>,
        refresh: u32,
        scale: f64,
        per_layer: bool,
        svd: bool,
        eight_bit: bool,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        compress: Option<Vec<String>>,
    }
);
wire!(
    struct WireModel {
        name: String,
        parameters: u64,
        layers: u32,
        hidden: u64,
        intermediate: u64,
        heads: u32,
        kv_heads: u32,
        head_dim: u32,
        vocab: u64,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        config: Option<serde_json::Map<String, serde_json::Value>>,
    }
);
wire!(
    struct WireWorkload {
        seq: u64,
        batch: u64,
        accumulate: u32,
        #[serde(default = "one", skip_serializing_if = "is_one")]
        passes: u32,
        dtype: String,
        tokens: u64,
    }
);
wire!(
    struct WireHardware {
        name: String,
        d2h: WireLink,
        h2d: WireLink,
        both: WireRates,
        matmul_slowdown: WireSlowdown,
        elementwise_slowdown: WireSlowdown,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        packing: Option<WireLink>,
        host_adam: WireHostAdam,
        host_memory_bytes_per_s: Option<u64>,
        overhead_bytes: u64,
        peak_flops_per_s: u64,
        host_memory_bytes: u64,
    }
);
wire!(
    struct WireLink {
        latency_ns: u64,
        bytes_per_s: u64,
    }
);
wire!(
    struct WireRates {
        d2h_bytes_per_s: u64,
        h2d_bytes_per_s: u64,
    }
);
wire!(
    struct WireSlowdown {
        d2h_ppm: u32,
        h2d_ppm: u32,
        both_ppm: u32,
    }
);
wire!(
    struct WireHostAdam {
        params_per_s: u64,
        bytes_per_param: u64,
    }
);
wire!(
    struct WireBudget {
        device_bytes: u64,
        host_bytes: u64,
    }
);
wire!(
    struct WireDecision {
        block: Option<u32>,
        tensor: String,
        keep_tokens: u64,
        #[serde(default, skip_serializing_if = "is_zero")]
        packed_tokens: u64,
        swap_tokens: u64,
        recompute_tokens: u64,
        stored_as: String,
    }
);
wire!(
    struct WireState {
        name: String,
        placement: WirePlacement,
        parameters: u64,
        on_host: bool,
        weights: Vec<u32>,
        gradients: Vec<u32>,
        states: Option<u32>,
    }
);
wire!(
    struct WireOperator {
        name: String,
        block: Option<u32>,
        domain: WireDomain,
        memory_bound: bool,
        required: bool,
        reads: Vec<u32>,
        writes: Vec<u32>,
        accumulates: Vec<u32>,
        updates: Vec<u32>,
    }
);
wire!(
    struct WireValue {
        name: String,
        block: Option<u32>,
        category: WireCategory,
        row_bytes: u64,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        packed_row_bytes: Option<u64>,
        fixed_bytes: u64,
        by_groups: bool,
    }
);
wire!(
    struct WireBuffer {
        value: Option<u32>,
        category: WireCategory,
        space: WireSpace,
        offset_bytes: u64,
        bytes: u64,
        rows: [u64; 2],
        groups: [u64; 2],
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        packed: bool,
        persistent: bool,
        lifetime: [u64; 2],
    }
);
wire!(
    struct WireStreams {
        compute: Vec<WireInstruction>,
        d2h: Vec<WireInstruction>,
        h2d: Vec<WireInstruction>,
        host: Vec<WireInstruction>,
    }
);
wire!(
    struct WireInstruction {
        #[serde(rename = "do")]
        verb: Verb,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        op: Option<u32>,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        state: Option<u32>,
        rows: [u64; 2],
        groups: [u64; 2],
        micro_batch: u32,
        operands: Vec<WireOperand>,
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        waits: Vec<u32>,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        signals: Option<u32>,
        duration_ns: u64,
    }
);
wire!(
    struct WireSolver {
        status: WireStatus,
        bound_ns: Option<u64>,
        gap: Option<f64>,
        solve_ms: u64,
    }
);
wire!(
    struct WirePredicted {
        step_ns: u64,
        floor_ns: u64,
        recompute_ns: u64,
        #[serde(default, skip_serializing_if = "is_zero")]
        packing_ns: u64,
        stall_ns: u64,
        optimizer_tail_ns: u64,
        tokens_per_s: f64,
        mfu: f64,
        hfu: f64,
        peak_live_bytes: u64,
        arena_bytes: u64,
        device_bytes: u64,
        host_bytes: u64,
        d2h_bytes: u64,
        h2d_bytes: u64,
    }
);

/// Most steps go forward and backward once.
const fn one() -> u32 {
    1
}
const fn is_one(passes: &u32) -> bool {
    *passes == 1
}
/// What is left out where it is nothing.
#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde asks by reference")]
fn is_zero(number: &u64) -> bool {
    *number == 0
}

/// What an instruction does; `run` and `recompute` need `op`, `host_update` needs `state`.
#[derive(Clone, Copy, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Verb {
    Run,
    Recompute,
    HostUpdate,
    Copy,
    Barrier,
}

/// An access and a buffer: `"r12"`.
#[derive(Serialize, Deserialize)]
#[serde(try_from = "std::borrow::Cow<'_, str>", into = "String")]
#[derive(Clone, Copy)]
pub(super) struct WireOperand(pub(super) Operand);

impl From<WireOperand> for String {
    fn from(WireOperand(Operand { buffer, access }): WireOperand) -> Self {
        let letter = match access {
            Access::Read => 'r',
            Access::Write => 'w',
            Access::Update => 'u',
        };
        format!("{letter}{}", buffer.index())
    }
}
impl TryFrom<std::borrow::Cow<'_, str>> for WireOperand {
    type Error = String;
    fn try_from(text: std::borrow::Cow<'_, str>) -> std::result::Result<Self, String> {
        let parse = || {
            let access = match text.as_bytes().first()? {
                b'r' => Access::Read,
                b'w' => Access::Write,
                b'u' => Access::Update,
                _ => return None,
            };
            let digits = &text[1..];
            let plain = !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit());
            let buffer: u32 = digits.parse().ok().filter(|_| plain)?;
            Some(Self(Operand {
                buffer: BufferId::from_index(buffer as usize),
                access,
            }))
        };
        parse().ok_or(format!(
            "operand {text:?} is not r, w or u and a buffer, as in \"r12\""
        ))
    }
}
