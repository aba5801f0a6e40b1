//! `training.json`: how far a saved run is, and of what it was.

use serde::{Deserialize, Serialize};

use super::number::LARGEST;
use crate::error::{Error, Result};

/// The format that is written and read.
pub const SCHEMA: &str = "ebbtide/training/1";

/// How far a run is.
#[derive(Clone, Debug, PartialEq)]
pub struct Progress {
    /// Optimizer steps that are done.
    pub step: u64,
    /// Sequences that they have consumed.
    pub sequences: u64,
    /// The seed of the run.
    pub seed: u64,
    /// The training method.
    pub method: String,
    /// The type of weights and activations.
    pub dtype: String,
    /// What it trains on; none where an older version did not say.
    pub data: Option<String>,
    /// The loss of every step, from the first on.
    pub losses: Vec<f64>,
}

/// The file.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Wire {
    schema: String,
    step: u64,
    sequences: u64,
    seed: u64,
    method: String,
    dtype: String,
    #[serde(default)]
    data: Option<String>,
    losses: Vec<f64>,
}

/// The file's text.
pub fn write(progress: &Progress) -> String {
    let Progress {
        step,
        sequences,
        seed,
        method,
        dtype,
        data,
        losses,
    } = progress.clone();
    let wire = Wire {
        schema: SCHEMA.into(),
        step,
        sequences,
        seed,
        method,
        dtype,
        data,
        losses,
    };
    serde_json::to_string_pretty(&wire).expect("plain data") + "\n"
}

/// The file of a text.
///
/// # Errors
/// Text that is not of this format.
pub fn read(text: &str) -> Result<Progress> {
    let wire: Wire = super::read_json(text, SCHEMA)?;
    if wire.losses.len() as u64 != wire.step {
        return Err(Error::bad_input(format!(
            "step is {}, but there are {} losses",
            wire.step,
            wire.losses.len()
        )));
    }
    if wire.sequences > LARGEST {
        return Err(Error::bad_input(format!(
            "sequences is {}, more than {LARGEST}",
            wire.sequences
        )));
    }
    Ok(Progress {
        step: wire.step,
        sequences: wire.sequences,
        seed: wire.seed,
        method: wire.method,
        dtype: wire.dtype,
        data: wire.data,
        losses: wire.losses,
    })
}
