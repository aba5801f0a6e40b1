//! `ebbtide/measured/1`: what `ebbtide profile` has measured so far, beside its output, so that a
//! measurement that was interrupted goes on. Its sections are those of the profile; what a stage
//! measures is there as a whole or not at all.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::number::{Dimension, LinkRate, Natural, Positive};
use super::profile::{
    section, AlgorithmsSection, AttentionSample, BlockSample, DtypeName, GemmSample, KernelSample,
    LinksSection, SlowdownSection,
};
use crate::error::Result;

/// The format's name and version.
pub const SCHEMA: &str = "ebbtide/measured/1";

/// One file.
///
/// # Errors
/// As [`super::read_json`].
pub fn read(text: &str) -> Result<MeasuredFile> {
    super::read_json(text, SCHEMA)
}

/// The text of a file.
pub fn write(file: &MeasuredFile) -> String {
    serde_json::to_string(file).expect("string keys and finite numbers") + "\n"
}

section! {
    /// The whole file.
    MeasuredFile {
        /// [`SCHEMA`].
        schema: String,
        /// What is measured.
        settings: Settings,
        /// What measuring itself costs.
        calibration: Option<Calibration>,
        /// Copies.
        links: Option<LinksSection>,
        /// Compute beside copies.
        slowdown: Option<SlowdownSection>,
        /// The host.
        host: Option<MeasuredHost>,
        /// Training steps.
        steps: Vec<MeasuredStep>,
    }

    /// What is measured: a file goes on only with the same.
    Settings {
        /// The version of ebbtide.
        ebbtide_version: String,
        /// The model's name.
        model: String,
        /// The model's HF config.
        config: Map<String, Value>,
        /// The device.
        device: String,
        /// The type of numbers.
        dtype: DtypeName,
        /// The speed that copies are held to.
        link_bytes_per_s: Option<LinkRate>,
        /// Whether every run gives the same bits.
        deterministic: bool,
        /// Tokens of the steps.
        tokens: Vec<Dimension>,
    }

    /// What measuring itself costs.
    Calibration {
        /// From the start of an operator without work to the start of the next.
        launch_ns: Natural,
        /// How long an operator without work seems to take.
        timer_ns: Natural,
        /// From a stream's signal to the start of what waits for it on another.
        handover_ns: Natural,
    }

    /// The host.
    MeasuredHost {
        /// Parameters its AdamW updates each second.
        adam_params_per_s: Positive,
        /// How fast its memory is pinned.
        pin_bytes_per_s: Positive,
    }

    /// A training step of the model, cut in one way.
    MeasuredStep {
        /// Tokens.
        tokens: Dimension,
        /// Head groups.
        groups: Dimension,
        /// The training method.
        method: String,
        /// Its matrix products.
        gemm: Vec<GemmSample>,
        /// The fastest algorithms of its matrix products, where the device has a choice.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        algorithms: Option<AlgorithmsSection>,
        /// Its attention.
        attention: Vec<AttentionSample>,
        /// Its other operators.
        kernels: Vec<KernelSample>,
        /// A block of it.
        block: BlockSample,
        /// Device memory in use beside what the schedule places.
        overhead_bytes: Natural,
        /// What the device says of how it computed.
        device_notes: Vec<String>,
    }
}
