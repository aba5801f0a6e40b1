//! Chain problems and their solutions as JSON (`tests/data/chain/README.md` has the contract).
//!
//! Times are milliseconds there, possibly fractional, and integer nanoseconds inside: they are
//! rounded to the nearest.

use crate::error::{Error, Result};
use ebbtide_solver::chain::{Chain, Layer, Op, Solution, Status};
use ebbtide_solver::units::{Bytes, Nanos};
use serde::{Deserialize, Serialize};

/// A chain problem.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ProblemFile {
    /// What to call it.
    #[serde(default)]
    pub name: Option<String>,
    /// How the budget was made; not used.
    #[serde(default)]
    pub budget_fraction: Option<f64>,
    /// Size of the chain's input.
    pub input_bytes: u64,
    /// The memory there is.
    pub budget_bytes: u64,
    /// The layers in forward order.
    pub layers: Vec<LayerFile>,
}

/// One layer of a chain problem.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LayerFile {
    /// Time of its forward.
    pub fwd_ms: f64,
    /// Time of its backward.
    pub bwd_ms: f64,
    /// Saved inside for its own backward.
    pub internal_bytes: u64,
    /// Size of its output, and of its output's gradient.
    pub out_bytes: u64,
    /// Transient of a forward that saves nothing.
    pub nograd_tmp_bytes: u64,
}

/// The answer to a chain problem.
#[derive(Clone, Debug, Serialize)]
pub struct SolutionFile {
    /// Time of the schedule.
    pub makespan_ms: f64,
    /// Most memory at any moment.
    pub peak_bytes: u64,
    /// No schedule is faster than this.
    pub bound_ms: f64,
    /// (makespan − bound) / bound, a fraction.
    pub gap: f64,
    /// `optimal`, `gap` or `time_limit`.
    pub status: &'static str,
    /// Seconds the search took.
    pub solve_s: f64,
    /// The strategy asked for.
    pub strategy: String,
    /// `[operation, layer or value]` in order.
    pub sequence: Vec<(&'static str, usize)>,
}

const HINT: &str = "tests/data/chain/README.md describes the fields of a chain problem";

/// Reads a problem.
///
/// # Errors
/// Text that is not JSON of this form, and times that are negative or too long.
pub fn parse(text: &str) -> Result<(Option<String>, Chain)> {
    // A list would be read as the fields in order.
    if let Some(first) = text.trim_start().chars().next().filter(|&c| c != '{') {
        let message = format!("begins with `{first}`, but a chain problem is an object: `{{...}}`");
        return Err(Error::bad_input(message).hint(HINT));
    }
    let mut reader = serde_json::Deserializer::from_str(text);
    let file: ProblemFile = serde_path_to_error::deserialize(&mut reader).map_err(|error| {
        let said = match error.inner() {
            cut if cut.is_eof() => super::cut_off(cut),
            inner => match error.path().to_string().as_str() {
                "." => super::in_words(inner),
                path => format!("`{path}`: {}", super::in_words(inner)),
            },
        };
        Error::bad_input(said).hint(HINT)
    })?;
    reader
        .end()
        .map_err(|error| Error::bad_input(error.to_string()))?;
    let layers = file
        .layers
        .iter()
        .enumerate()
        .map(|(i, layer)| layer_of(i, layer));
    let chain = Chain {
        input_bytes: Bytes::new(file.input_bytes),
        layers: layers.collect::<Result<_>>()?,
        budget: Bytes::new(file.budget_bytes),
    };
    Ok((file.name, chain))
}

fn layer_of(i: usize, layer: &LayerFile) -> Result<Layer> {
    Ok(Layer {
        forward: nanos(layer.fwd_ms, i, "fwd_ms")?,
        backward: nanos(layer.bwd_ms, i, "bwd_ms")?,
        internal_bytes: Bytes::new(layer.internal_bytes),
        out_bytes: Bytes::new(layer.out_bytes),
        nograd_tmp_bytes: Bytes::new(layer.nograd_tmp_bytes),
    })
}

/// The longest time a layer may take: thirty years.
const LONGEST_MS: f64 = 1e12;

fn nanos(ms: f64, layer: usize, field: &str) -> Result<Nanos> {
    if !(0.0..=LONGEST_MS).contains(&ms) {
        let message = format!("`layers[{layer}].{field}`: {ms} is not between 0 and {LONGEST_MS}");
        return Err(Error::bad_input(message));
    }
    Ok(Nanos::new((ms * 1e6).round() as u64))
}

fn milliseconds(time: Nanos) -> f64 {
    time.get() as f64 / 1e6
}

impl SolutionFile {
    /// What is written about a solution.
    pub fn of(solution: &Solution, strategy: &str, solve_s: f64) -> Self {
        Self {
            makespan_ms: milliseconds(solution.makespan),
            peak_bytes: solution.peak.get(),
            bound_ms: milliseconds(solution.bound),
            gap: gap(solution),
            status: status(solution.status),
            solve_s,
            strategy: strategy.to_owned(),
            sequence: solution.sequence.iter().map(|&op| written(op)).collect(),
        }
    }
}

/// How far the makespan may be above the optimum, as a fraction of the bound.
fn gap(solution: &Solution) -> f64 {
    let above = (solution.makespan - solution.bound).get();
    match solution.bound.get() {
        0 if above > 0 => 1.0,
        bound => above as f64 / bound.max(1) as f64,
    }
}

/// The word for a status.
fn status(status: Status) -> &'static str {
    match status {
        Status::Optimal => "optimal",
        Status::Gap => "gap",
        Status::TimeLimit => "time_limit",
    }
}

fn written(op: Op) -> (&'static str, usize) {
    match op {
        Op::Forward(i) => ("forward", i),
        Op::ForwardSave(i) => ("forward_save", i),
        Op::Drop(j) => ("drop", j),
        Op::Loss => ("loss", 0),
        Op::Backward(i) => ("backward", i),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with_layer(layer: &str) -> String {
        format!(r#"{{"input_bytes": 1, "budget_bytes": 9, "layers": [{layer}]}}"#)
    }
    const LAYER: &str = r#"{"fwd_ms": 1.5, "bwd_ms": 0.0000004, "internal_bytes": 3,
                            "out_bytes": 2, "nograd_tmp_bytes": 4}"#;

    #[test]
    fn milliseconds_become_the_nearest_nanoseconds() {
        let (name, chain) = parse(&with_layer(LAYER)).unwrap();
        assert_eq!(name, None);
        assert_eq!(chain.layers[0].forward, Nanos::new(1_500_000));
        assert_eq!(chain.layers[0].backward, Nanos::ZERO);
        assert_eq!(chain.layers[0].nograd_tmp_bytes, Bytes::new(4));
    }

    #[test]
    fn what_cannot_be_used_is_named() {
        for (was, is, named) in [
            ("1.5", "-1.5", "layers[0].fwd_ms"),
            ("1.5", "1e300", "layers[0].fwd_ms"),
            ("1.5", "NaN", "layers[0].fwd_ms"),
            ("1.5", "\"fast\"", "layers[0].fwd_ms"),
            ("3,", "-3,", "layers[0].internal_bytes"),
            ("3,", "1e30,", "layers[0].internal_bytes"),
            ("\"out_bytes\"", "\"outbytes\"", "outbytes"),
            ("\"out_bytes\": 2,", "", "out_bytes"),
        ] {
            let text = with_layer(&LAYER.replace(was, is));
            let message = parse(&text).expect_err(&text).message;
            assert!(message.contains(named), "{message} should name {named}");
        }
        for text in ["[]", "null", "[1, 0.5, 1, 9, []]"] {
            let message = parse(text).expect_err(text).message;
            assert!(
                message.contains("a chain problem is an object"),
                "{message}"
            );
        }
        let message = parse("{}").expect_err("no fields").message;
        assert!(
            message.starts_with("missing field `input_bytes`"),
            "{message}"
        );
        for text in ["", "{", &(with_layer(LAYER) + "x"), &"[".repeat(100_000)] {
            assert!(parse(text).is_err(), "{text}");
        }
    }
}
