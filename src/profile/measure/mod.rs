//! Measures a device: what it can do, as a [`ProfileFile`](crate::format::profile::ProfileFile).
//!
//! In: a [`Target`], a model, numbers of tokens. Out: samples, by stages that are whole or not
//! there, so that a measurement can be interrupted and go on. Everything goes through
//! [`crate::device::Device`] and is read off its trace; nothing here knows which device it is.
//!
//! ```text
//! calibration ─ links ─ slowdown ─ host ─ step 128, 1 group ─ step 128, 2 groups ─ … ─► profile
//! ```
//! Operators are timed in their place in whole training steps (`step`), after `step::WARM_UP`
//! steps that do not count. What the timer adds is taken off every operator, and what a launch
//! costs is put on, as the lowering takes it off again. Medians, spread and outliers:
//! `statistics`.
//!
//! Not measured: how a hot device slows down over minutes, and other models' shapes, for which
//! curves interpolate.

mod assemble;
mod bench;
mod beside;
mod calibration;
mod copies;
mod host;
mod statistics;
mod step;

use std::fmt;

pub use assemble::assemble;

use crate::device::Target;
use crate::error::{Error, Result};
use crate::format::measured::{MeasuredFile, Settings, SCHEMA};
use crate::format::number::{Dimension, LinkRate, Positive};
use crate::format::profile::DtypeName;
use crate::lower::{tilings, Tiling, Workload};
use crate::methods::Method;
use crate::model::ModelConfig;
use crate::profile::{Dtype, Workspace};
use ebbtide_solver::units::{Bytes, BytesPerSec, Tokens};

/// What is measured.
#[derive(Clone, Debug)]
pub struct Request<'a> {
    /// On what.
    pub target: Target,
    /// What the device's attention needs beside its operands.
    pub workspace: Workspace,
    /// Whose operators.
    pub model: &'a ModelConfig,
    /// In which type of numbers.
    pub dtype: Dtype,
    /// Over how many tokens, ascending.
    pub tokens: Vec<u64>,
    /// What a step may take of the device's memory.
    pub memory: Bytes,
    /// The speed that copies are held to; none: what the link gives.
    pub link: Option<BytesPerSec>,
    /// Whether the device is asked for the same bits in every run.
    pub deterministic: bool,
}

/// A part of the measurement.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Stage {
    /// What measuring itself costs.
    Calibration,
    /// Copies by size.
    Links,
    /// Compute beside copies.
    Slowdown,
    /// The host's optimizer and memory.
    Host,
    /// Training steps of so many tokens, cut like this, with a method.
    Step(u64, Tiling, Method),
}

impl fmt::Display for Stage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Stage::Calibration => f.write_str("calibration"),
            Stage::Links => f.write_str("copies"),
            Stage::Slowdown => f.write_str("compute beside copies"),
            Stage::Host => f.write_str("host"),
            Stage::Step(tokens, tiling, method) => {
                let tokens = Tokens::new(*tokens);
                write!(
                    f,
                    "{tokens} tokens, {} head groups, {method}",
                    tiling.groups
                )
            }
        }
    }
}

impl Request<'_> {
    /// All stages, in order: steps of every length for every way to cut attention that plans
    /// choose from; the methods whose updates differ once.
    ///
    /// # Errors
    /// Tokens that the model cannot take, or none.
    pub fn stages(&self) -> Result<Vec<Stage>> {
        let mut stages = vec![
            Stage::Calibration,
            Stage::Links,
            Stage::Slowdown,
            Stage::Host,
        ];
        let (Some(&least), Some(&most)) = (self.tokens.first(), self.tokens.last()) else {
            return Err(Error::bad_input("no number of tokens to measure at"));
        };
        if least < 2 {
            let message = format!("a step of {least} tokens has nothing to predict");
            return Err(Error::bad_input(message).hint("2 tokens and more"));
        }
        if most > Dimension::MOST {
            let limit = Tokens::new(Dimension::MOST);
            return Err(Error::bad_input(format!("more than {limit} tokens")));
        }
        for &seq in &self.tokens {
            let workload = Workload {
                seq,
                batch: 1,
                accumulate: 1,
                dtype: self.dtype,
                clip: false,
            };
            workload.check(self.model)?;
            for (at, tiling) in tilings(self.model, &workload).into_iter().enumerate() {
                stages.push(Stage::Step(seq, tiling, Method::AdamW));
                if (seq, at) == (least, 0) {
                    let others = [Method::Sgd, Method::Lomo];
                    stages.extend(others.map(|method| Stage::Step(seq, tiling, method)));
                }
            }
        }
        Ok(stages)
    }

    /// Refuses a stage that the device has no memory for, before minutes are spent on others.
    ///
    /// # Errors
    /// `Infeasible` where a step keeps more than can be used.
    pub fn check(&self, stage: Stage) -> Result<()> {
        let Stage::Step(tokens, tiling, method) = stage else {
            return Ok(());
        };
        let needed = step::needed(self, (tokens, tiling, method)).map_err(|e| e.within(stage))?;
        if needed <= self.memory {
            return Ok(());
        }
        let message = format!(
            "a step keeps {needed}, of which the device has {}",
            self.memory
        );
        let error = Error::infeasible(message).within(stage);
        Err(error.hint("curves go on beyond what is measured: profile fewer tokens"))
    }

    /// A file in which nothing has been measured.
    pub fn begin(&self, device: &str) -> MeasuredFile {
        let tokens = self.tokens.iter().map(|&tokens| Dimension::new(tokens));
        MeasuredFile {
            schema: SCHEMA.into(),
            settings: Settings {
                ebbtide_version: env!("CARGO_PKG_VERSION").into(),
                model: self.model.name.clone(),
                config: self.model.source.as_object().cloned().unwrap_or_default(),
                device: device.to_owned(),
                dtype: dtype_name(self.dtype),
                link_bytes_per_s: self.link.and_then(|rate| LinkRate::new(rate.get())),
                deterministic: self.deterministic,
                tokens: tokens.flatten().collect(),
            },
            calibration: None,
            links: None,
            slowdown: None,
            host: None,
            steps: Vec::new(),
        }
    }

    /// Whether a stage has been measured.
    pub fn done(&self, stage: Stage, file: &MeasuredFile) -> bool {
        match stage {
            Stage::Calibration => file.calibration.is_some(),
            Stage::Links => file.links.is_some(),
            Stage::Slowdown => file.slowdown.is_some(),
            Stage::Host => file.host.is_some(),
            Stage::Step(tokens, tiling, method) => file.steps.iter().any(|step| {
                step.tokens.get() == tokens
                    && step.groups.get() == u64::from(tiling.groups)
                    && step.method == method.name()
            }),
        }
    }

    /// Measures a stage.
    ///
    /// # Errors
    /// A device without the memory for it, and every failure of the device.
    ///
    /// # Panics
    /// When the calibration was not measured first.
    pub fn measure(&self, stage: Stage, file: &mut MeasuredFile) -> Result<()> {
        let known = file.calibration.clone();
        let known = || known.as_ref().expect("the first stage");
        match stage {
            Stage::Calibration => file.calibration = Some(calibration::calibrate(self)?),
            Stage::Links => file.links = Some(copies::links(self)?),
            Stage::Slowdown => file.slowdown = Some(beside::slowdown(self)?),
            Stage::Host => file.host = Some(host::host(self)?),
            Stage::Step(tokens, tiling, method) => {
                let measured = step::step(self, (tokens, tiling, method), known());
                file.steps.push(measured.map_err(|e| e.within(stage))?);
            }
        }
        Ok(())
    }

    /// How copies are held to a speed, for `source` fields.
    fn held_to(&self) -> String {
        let held = |rate: BytesPerSec| format!("; copies are held to {rate}");
        self.link.map_or_else(String::new, held)
    }
}

fn dtype_name(dtype: Dtype) -> DtypeName {
    match dtype {
        Dtype::F32 => DtypeName::F32,
        Dtype::Bf16 => DtypeName::Bf16,
        Dtype::Fp8 => DtypeName::Fp8,
    }
}

/// A number for a file, at least 1.
fn positive(number: u64) -> Positive {
    Positive::new(number.clamp(1, Positive::MOST)).expect("in range")
}
