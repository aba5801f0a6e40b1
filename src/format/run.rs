//! `R.json`: what a run measured beside what was predicted (`schemas/run.schema.json`).

use serde::{Deserialize, Serialize};
use serde_json::{json, Map, Value};

use super::schedule::{self, Predicted};
use crate::error::{Error, Result};
use ebbtide_solver::units::Nanos;

/// The format that is written.
pub const SCHEMA: &str = "ebbtide/run/1";

/// A finished run.
#[derive(Clone, Debug, PartialEq)]
pub struct RunFile {
    /// The version of ebbtide that ran it.
    pub ebbtide_version: String,
    /// The model's name.
    pub model: String,
    /// The training method.
    pub method: String,
    /// The strategy that found the schedule.
    pub strategy: String,
    /// The hardware that it was planned for.
    pub hardware: String,
    /// The device that ran it.
    pub device: String,
    /// What it says of how it computed.
    pub device_notes: Vec<String>,
    /// Optimizer steps that are done, those before a resumed run included.
    pub steps: u64,
    /// What the simulator said of a step.
    pub predicted: Predicted,
    /// The same of the step of median length.
    pub measured: Predicted,
    /// The loss of every step, from the first on.
    pub losses: Vec<f64>,
    /// The global norm of the gradients of every step of this run, where it was asked for.
    pub gradient_norms: Vec<f64>,
    /// Parts of the step, predicted and measured.
    pub parts: Vec<Part>,
}

/// What a part is one of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// The step and what it is made of.
    Total,
    /// The busy time of a stream.
    Stream,
    /// The compute of a block.
    Block,
    /// The compute of all operators of a name.
    Operator,
}

impl Kind {
    /// All kinds, in the order of tables.
    pub const ALL: [Kind; 4] = [Kind::Total, Kind::Stream, Kind::Block, Kind::Operator];

    /// The name in tables and files.
    pub const fn name(self) -> &'static str {
        match self {
            Kind::Total => "total",
            Kind::Stream => "stream",
            Kind::Block => "block",
            Kind::Operator => "operator",
        }
    }
}

/// A part of a step, predicted and measured.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Part {
    /// What it is one of.
    pub kind: Kind,
    /// Which one.
    pub name: String,
    /// What the simulator said.
    pub predicted: Nanos,
    /// What it took.
    pub measured: Nanos,
}

/// What a reader of a run's file wants to know for a comparison.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Measured {
    /// What was run: model, method, strategy and device.
    pub title: String,
    /// Parts of the step, predicted and measured.
    pub parts: Vec<Part>,
}

/// The run of a file.
///
/// # Errors
/// As [`super::read_json`], and a part of a kind that there is not.
pub fn read(text: &str) -> Result<Measured> {
    #[derive(Deserialize)]
    struct Wire {
        model: String,
        method: String,
        strategy: String,
        device: String,
        parts: Vec<ReadPart>,
    }
    #[derive(Deserialize)]
    struct ReadPart {
        kind: String,
        name: String,
        predicted_ns: u64,
        measured_ns: u64,
    }
    let wire: Wire = super::read_json(text, SCHEMA)?;
    let part = |part: ReadPart| {
        let kind = Kind::ALL.into_iter().find(|kind| kind.name() == part.kind);
        let unknown = || Error::bad_input(format!("parts: `{}` is no kind of part", part.kind));
        Ok(Part {
            kind: kind.ok_or_else(unknown)?,
            name: part.name,
            predicted: Nanos::new(part.predicted_ns),
            measured: Nanos::new(part.measured_ns),
        })
    };
    Ok(Measured {
        title: format!(
            "{}, {}, {} on {}",
            wire.model, wire.method, wire.strategy, wire.device
        ),
        parts: wire.parts.into_iter().map(part).collect::<Result<_>>()?,
    })
}

#[derive(Serialize)]
struct WirePart<'a> {
    kind: &'static str,
    name: &'a str,
    predicted_ns: u64,
    measured_ns: u64,
}

/// The file's text.
///
/// # Panics
/// When a number is not finite, which is a bug of whoever made the file.
pub fn write(file: &RunFile) -> String {
    let parts = file.parts.iter().map(|part| WirePart {
        kind: part.kind.name(),
        name: &part.name,
        predicted_ns: part.predicted.get(),
        measured_ns: part.measured.get(),
    });
    assert!(
        file.losses
            .iter()
            .chain(&file.gradient_norms)
            .all(|n| n.is_finite()),
        "losses and norms are finite"
    );
    let fields: [(&str, Value); 15] = [
        ("schema", SCHEMA.into()),
        ("ebbtide_version", file.ebbtide_version.as_str().into()),
        ("model", file.model.as_str().into()),
        ("method", file.method.as_str().into()),
        ("strategy", file.strategy.as_str().into()),
        ("hardware", file.hardware.as_str().into()),
        ("device", file.device.as_str().into()),
        ("device_notes", json!(file.device_notes)),
        ("steps", file.steps.into()),
        ("loss", file.losses.last().copied().into()),
        ("losses", json!(file.losses)),
        ("gradient_norms", json!(file.gradient_norms)),
        ("predicted", schedule::prediction(&file.predicted)),
        ("measured", schedule::prediction(&file.measured)),
        ("parts", json!(Vec::from_iter(parts))),
    ];
    let object = Map::from_iter(fields.map(|(key, value)| (key.to_owned(), value)));
    let text = serde_json::to_string(&Value::Object(object));
    text.expect("plain data with text keys") + "\n"
}
