//! `ebbtide/profile/1`: what one machine can do, as measured.
//!
//! Every section says in `source` where its numbers are from (measured, datasheet, assumed). A
//! section states either samples, to be interpolated, or a constant rate. Sizes are bytes, times
//! nanoseconds, rates per second, all whole numbers; the key ends in its unit. Where a memory
//! bandwidth is left out, memory is never the limit.
//!
//! This module knows the text; what the numbers mean is in [`crate::profile`].

use super::number::{Dimension, LinkRate, Natural, Positive, Ppm, TrafficPerParameter};
use crate::error::Result;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// The format's name and version.
pub const SCHEMA: &str = "ebbtide/profile/1";

/// One file, checked number by number but not yet as a whole.
///
/// # Errors
/// As [`super::read_json`].
pub fn read(text: &str) -> Result<ProfileFile> {
    super::read_json(text, SCHEMA)
}

/// The text of a file.
pub fn write(file: &ProfileFile) -> String {
    let mut text = serde_json::to_string_pretty(file).expect("string keys and finite numbers");
    text.push('\n');
    text
}

/// Defines structs of the file: documented, public fields, nothing unknown accepted.
macro_rules! section {
    ($($(#[$doc:meta])* $name:ident {
        $($(#[$field_doc:meta])* $field:ident: $type:ty,)*
    })*) => {$(
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
        #[serde(deny_unknown_fields)]
        pub struct $name {
            $($(#[$field_doc])* pub $field: $type,)*
        }
    )*};
}
pub(super) use section;

section! {
    /// The whole file.
    ProfileFile {
        /// [`SCHEMA`].
        schema: String,
        /// What the profile is called; a shipped one has its file's name.
        name: String,
        /// The type of numbers that the operators' samples were measured with.
        default_dtype: DtypeName,
        /// The accelerator.
        device: DeviceSection,
        /// The machine around it.
        host: HostSection,
        /// Copies between the two.
        links: LinksSection,
        /// How much longer operators take beside copies.
        slowdown: SlowdownSection,
        /// How long operators take.
        operators: OperatorsSection,
        /// How `ebbtide profile` measured, and what the sum of the operators misses.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        measurement: Option<MeasurementSection>,
    }

    /// How it was measured. Nothing is planned by it.
    MeasurementSection {
        /// The version of ebbtide.
        ebbtide_version: String,
        /// The model whose operators were timed.
        model: String,
        /// Steps that are run before any that count.
        warm_up_steps: Natural,
        /// Which repetitions do not count.
        outliers: String,
        /// What the timer itself adds to an operator's time; taken off.
        timer_ns: Natural,
        /// From a stream's signal to the start of what waits for it on another.
        handover_ns: Natural,
        /// Blocks from end to end.
        blocks: Vec<BlockSample>,
    }

    /// A block from end to end, beside the sum of its operators' median times.
    BlockSample {
        /// Tokens.
        tokens: Dimension,
        /// Head groups.
        groups: Dimension,
        /// Forward: median time.
        forward_ns: Positive,
        /// The sum of its operators.
        forward_operators_ns: Positive,
        /// Backward: median time.
        backward_ns: Positive,
        /// The sum of its operators.
        backward_operators_ns: Positive,
    }

    /// The accelerator.
    DeviceSection {
        /// Where the numbers are from.
        source: String,
        /// The device's own name.
        name: String,
        /// Its memory.
        memory_bytes: Positive,
        /// What a process can get of it.
        usable_bytes: Positive,
        /// What context and libraries take of the usable memory.
        overhead_bytes: Natural,
        /// Datasheet peak per type of numbers (dense): what MFU is counted against.
        peak_flops_per_s: BTreeMap<DtypeName, Positive>,
        /// Memory traffic of a device copy, bytes read plus bytes written.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        memory_bytes_per_s: Option<Positive>,
    }

    /// The machine around the device.
    HostSection {
        /// Where the numbers are from.
        source: String,
        /// Its memory.
        memory_bytes: Positive,
        /// Its cores.
        cores: Positive,
        /// Memory traffic it sustains, bytes read plus bytes written.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        memory_bytes_per_s: Option<Positive>,
        /// How fast memory is pinned; absent: at once.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pin_bytes_per_s: Option<Positive>,
        /// Parameters the host's AdamW updates each second.
        adam_params_per_s: Positive,
        /// Memory traffic of one such update.
        adam_bytes_per_param: TrafficPerParameter,
    }

    /// Copies between host and device.
    LinksSection {
        /// Where the numbers are from.
        source: String,
        /// Device to host, alone.
        d2h: LinkSection,
        /// Host to device, alone.
        h2d: LinkSection,
        /// Each direction while both are busy.
        both: BothSection,
    }

    /// One direction: samples, or a rate with a latency.
    LinkSection {
        /// Copies timed by size; a line is fitted through those of 1 MiB and more.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        samples: Option<Vec<SizeSample>>,
        /// A constant rate.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        bytes_per_s: Option<LinkRate>,
        /// With a constant rate: the fixed cost of a copy; absent: none.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        latency_ns: Option<Natural>,
    }

    /// The rates of the two directions at once.
    BothSection {
        /// Host to device.
        h2d_bytes_per_s: LinkRate,
        /// Device to host.
        d2h_bytes_per_s: LinkRate,
    }

    /// How much longer operators take beside copies.
    SlowdownSection {
        /// Where the numbers are from.
        source: String,
        /// GEMMs and attention.
        matmul: SlowdownPpm,
        /// Everything else.
        elementwise: SlowdownPpm,
    }

    /// Added time in parts per million of the time without copies.
    SlowdownPpm {
        /// Beside a copy from device to host.
        d2h_ppm: Ppm,
        /// Beside a copy from host to device.
        h2d_ppm: Ppm,
        /// Beside both.
        both_ppm: Ppm,
    }

    /// How long operators take.
    OperatorsSection {
        /// The fixed cost of every kernel.
        launch: LaunchSection,
        /// Matrix products.
        gemm: GemmSection,
        /// Causal attention.
        attention: AttentionSection,
        /// Kernels that are limited by memory.
        elementwise: ElementwiseSection,
        /// The optimizer on the device.
        optimizer: OptimizerSection,
    }

    /// The fixed cost of a kernel; part of every sample's time.
    LaunchSection {
        /// Where the number is from.
        source: String,
        /// The cost.
        ns: Natural,
    }

    /// Matrix products: samples, or a rate.
    GemmSection {
        /// Where the numbers are from.
        source: String,
        /// A constant rate, 2·m·k·n FLOPs a product.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        flops_per_s: Option<Positive>,
        /// Products timed by shape.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        samples: Option<Vec<GemmSample>>,
        /// On a GPU: the fastest of the library's algorithms, by product.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        algorithms: Option<AlgorithmsSection>,
    }

    /// Algorithms of matrix products that were timed on a card. `run --profile` uses them.
    AlgorithmsSection {
        /// The library and its version; no other takes its algorithms.
        library: String,
        /// The fastest algorithm of each product: sizes, how operands lie, their numbers and the
        /// alignment of their addresses.
        fastest: BTreeMap<String, TimedAlgorithm>,
    }

    /// The fastest of a product's algorithms.
    TimedAlgorithm {
        /// As the library writes it, in hexadecimal digits.
        algorithm: String,
        /// Its time.
        ns: Positive,
        /// The time of the first of the library's choices that ran.
        first_ns: Positive,
        /// How many were timed.
        timed: Positive,
    }

    /// One timed product of a linear layer from k to n features over m tokens: `y = x·W`
    /// (forward), `dx = dy·Wᵀ` (dgrad) or `dW = xᵀ·dy` (wgrad).
    GemmSample {
        /// Tokens.
        m: Dimension,
        /// Features in.
        k: Dimension,
        /// Features out.
        n: Dimension,
        /// Which of the three products.
        direction: GemmDirectionName,
        /// Median time.
        ns: Positive,
        /// Spread of the repetitions.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        spread_ns: Option<Natural>,
        /// How many repetitions.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        repetitions: Option<Positive>,
    }

    /// Causal attention: samples, or a rate.
    AttentionSection {
        /// Where the numbers are from.
        source: String,
        /// A constant rate; forward 2·S²·heads·head_dim FLOPs, backward 2.5 times that.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        flops_per_s: Option<Positive>,
        /// Calls timed by length.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        samples: Option<Vec<AttentionSample>>,
        /// What the kernels need beside their operands, where samples do not say.
        workspace: WorkspaceName,
    }

    /// One timed call for one sequence.
    AttentionSample {
        /// Tokens.
        tokens: Dimension,
        /// Query heads.
        heads: Dimension,
        /// Key and value heads.
        kv_heads: Dimension,
        /// Elements of one head.
        head_dim: Dimension,
        /// Forward or backward.
        direction: AttentionDirectionName,
        /// Median time.
        ns: Positive,
        /// Memory beside the operands.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        workspace_bytes: Option<Natural>,
        /// Spread of the repetitions.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        spread_ns: Option<Natural>,
        /// How many repetitions.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        repetitions: Option<Positive>,
    }

    /// Kernels that are limited by memory; without samples at the device's memory bandwidth.
    ElementwiseSection {
        /// Where the numbers are from.
        source: String,
        /// Kernels timed by the bytes they read plus write.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        samples: Option<Vec<SizeSample>>,
        /// The same for single operators, which then do not follow `samples`.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        kernels: Option<Vec<KernelSample>>,
    }

    /// A timed operator of a training step that is limited by memory, or its part beside a matrix
    /// product (the rotation in `qkv_projection`). Updates of weights are such operators too.
    KernelSample {
        /// The operator's name in a schedule.
        operator: String,
        /// Bytes that it reads plus writes, as the step's graph counts them.
        bytes: Positive,
        /// Median time.
        ns: Positive,
        /// Spread of the repetitions.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        spread_ns: Option<Natural>,
        /// How many repetitions.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        repetitions: Option<Positive>,
    }

    /// A timed copy or kernel.
    SizeSample {
        /// Bytes copied, or read plus written by a kernel.
        bytes: Positive,
        /// Median time.
        ns: Positive,
        /// Spread of the repetitions.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        spread_ns: Option<Natural>,
        /// How many repetitions.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        repetitions: Option<Positive>,
    }

    /// The optimizer on the device.
    OptimizerSection {
        /// Where the number is from.
        source: String,
        /// Parameters updated each second; absent: its traffic at the memory bandwidth.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        adam_params_per_s: Option<Positive>,
    }
}

/// Defines an enum of the file, written in lower case.
macro_rules! names {
    ($($(#[$doc:meta])* $name:ident { $($(#[$variant_doc:meta])* $variant:ident,)* })*) => {$(
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
        #[serde(rename_all = "lowercase")]
        pub enum $name { $($(#[$variant_doc])* $variant,)* }
    )*};
}

names! {
    /// A type of numbers.
    DtypeName {
        /// IEEE single.
        F32,
        /// bfloat16 with f32 accumulation.
        Bf16,
        /// 8-bit floats with f32 accumulation.
        Fp8,
    }
    /// One of the three products of a linear layer.
    GemmDirectionName {
        /// `y = x·W`.
        Forward,
        /// `dx = dy·Wᵀ`.
        Dgrad,
        /// `dW = xᵀ·dy`.
        Wgrad,
    }
    /// Which pass of attention.
    AttentionDirectionName {
        /// The forward pass.
        Forward,
        /// The backward pass.
        Backward,
    }
    /// A rule for attention's workspace.
    WorkspaceName {
        /// None.
        None,
        /// As cuDNN's fused kernels need it.
        Cudnn,
    }
}
