//! The schedule file: everything that is needed to run, simulate, check and explain one plan.
//!
//! In and out: [`ScheduleFile`], plain data, and its JSON (`schemas/schedule.schema.json`). One
//! buffer, operator, value or instruction stands on each line, so that files can be compared with
//! `diff`. Keys carry their unit; row ranges are half-open `[first, end]`; an operand is its access
//! and its buffer, `"r12"` read, `"w12"` written from nothing, `"u12"` changed in place.
//!
//! What a file says twice is kept once in memory: `workload.tokens`, `workload.accumulate`,
//! `workload.passes`, `budget`, the machine and the rest of `states` live in the [`Schedule`].
//!
//! Reading refuses what is not a schedule of this format, and whatever cannot be represented. It
//! does not judge: ids out of range, overlaps and races are the referee's, with all other faults.

mod decode;
mod encode;
mod wire;

use ebbtide_solver::plan::Placement;
use ebbtide_solver::schedule::Schedule;
use ebbtide_solver::units::{Bytes, Nanos};

use crate::device::arithmetic::Arithmetic;
use crate::device::packed::Storage;
use crate::error::{Error, Result};
use crate::methods::LowRank;

/// The format that is written and read.
pub const SCHEMA: &str = "ebbtide/schedule/1";
const SCHEMA_PREFIX: &str = "ebbtide/schedule/";

/// A schedule with what it was made from and what is expected of it.
#[derive(Clone, Debug, PartialEq)]
pub struct ScheduleFile {
    /// The version of ebbtide that wrote it.
    pub ebbtide_version: String,
    /// What is trained.
    pub model: Model,
    /// On how much at once.
    pub workload: Workload,
    /// What it was planned for, apart from [`Schedule::machine`].
    pub hardware: Hardware,
    /// The training method.
    pub method: String,
    /// What a low-rank method was told, its rank included.
    pub method_options: Option<LowRank>,
    /// How what is stored between forward and backward is packed, if it is.
    pub storage: Option<Storage>,
    /// How linear layers multiply.
    pub arithmetic: Arithmetic,
    /// The strategy that found it.
    pub strategy: String,
    /// What becomes of every storable tensor.
    pub decisions: Vec<Decision>,
    /// Where model states live; one for each of [`Schedule::state_groups`], in that order.
    pub states: Vec<State>,
    /// The instructions and buffers.
    pub schedule: Schedule,
    /// What the search can say of it.
    pub solver: Solver,
    /// What the simulator says of it.
    pub predicted: Predicted,
}

/// The model as far as a reader of a schedule wants to know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Model {
    /// What a person calls it.
    pub name: String,
    /// Its number of parameters.
    pub parameters: u64,
    /// Its number of blocks.
    pub layers: u32,
    /// Width of the residual stream.
    pub hidden: u64,
    /// Width of the MLP.
    pub intermediate: u64,
    /// Query heads.
    pub heads: u32,
    /// Key and value heads.
    pub kv_heads: u32,
    /// Width of a head.
    pub head_dim: u32,
    /// Size of the vocabulary.
    pub vocab: u64,
    /// Its HF `config.json` object, which says how to compute it: what an executor needs.
    pub config: Option<serde_json::Map<String, serde_json::Value>>,
}

/// What one step trains on; its tokens and micro-batches are the schedule's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Workload {
    /// Tokens of one sequence.
    pub seq: u64,
    /// Sequences of a micro-batch.
    pub batch: u64,
    /// The type of the numbers: `bf16`, `f32`.
    pub dtype: String,
}

/// The hardware as the profile describes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hardware {
    /// Name of the profile.
    pub name: String,
    /// Device memory that context and libraries take beside the arena.
    pub overhead: Bytes,
    /// Fastest arithmetic, for MFU.
    pub peak_flops_per_s: u64,
    /// Host memory.
    pub host_memory: Bytes,
}

/// What becomes of one tensor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decision {
    /// Its block, if it is of one.
    pub block: Option<u32>,
    /// Its name within the block.
    pub tensor: String,
    /// Tokens that stay on the device.
    pub keep_tokens: u64,
    /// Those of them that stay packed.
    pub packed_tokens: u64,
    /// Tokens that travel to the host and back.
    pub swap_tokens: u64,
    /// Tokens that are made again.
    pub recompute_tokens: u64,
    /// The type in which what is not kept as it is is stored: `bf16`, `fp8`.
    pub stored_as: String,
}

/// Where one group of model states lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct State {
    /// Where.
    pub placement: Placement,
    /// Its number of parameters.
    pub parameters: u64,
}

/// How much is proved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    /// No plan of any strategy is faster.
    Optimal,
    /// None is faster by more than the gap.
    Gap,
    /// The search was stopped by its time limit.
    TimeLimit,
    /// A strategy without a bound.
    Unproved,
}

/// What the search says of its plan.
#[derive(Clone, Debug, PartialEq)]
pub struct Solver {
    /// How much is proved.
    pub status: Status,
    /// No plan takes less, if that is known.
    pub bound: Option<Nanos>,
    /// (step − bound) / step, a fraction, if there is a bound.
    pub gap: Option<f64>,
    /// How long the search took, in milliseconds.
    pub solve_ms: u64,
}

/// What the simulator says of one step.
#[derive(Clone, Debug, PartialEq)]
pub struct Predicted {
    /// The whole step.
    pub step: Nanos,
    /// Its compute with everything resident.
    pub floor: Nanos,
    /// Compute spent on making things again.
    pub recompute: Nanos,
    /// Compute spent on packing what stays packed, and on unpacking it.
    pub packing: Nanos,
    /// Time in which the device waits for copies.
    pub stall: Nanos,
    /// Time after the last backward step.
    pub optimizer_tail: Nanos,
    /// Tokens each second.
    pub tokens_per_s: f64,
    /// Model FLOPs by peak, a fraction.
    pub mfu: f64,
    /// Executed FLOPs by peak, a fraction.
    pub hfu: f64,
    /// Most bytes alive at once on the device.
    pub peak_live: Bytes,
    /// Size of the arena.
    pub arena: Bytes,
    /// Arena and constant overhead.
    pub device: Bytes,
    /// Host memory taken.
    pub host: Bytes,
    /// Bytes sent to the host.
    pub d2h: Bytes,
    /// Bytes fetched from the host.
    pub h2d: Bytes,
}

/// The file's text, one entry a line.
///
/// # Panics
/// When a predicted number is not finite, or states and their names are not equally many: both
/// are bugs of whoever made the file.
pub fn write(file: &ScheduleFile) -> String {
    assert_states(file);
    encode::to_text(file)
}

/// The same object without its long lists: operators, values, buffers and streams.
///
/// # Panics
/// As [`write()`].
pub fn write_summary(file: &ScheduleFile) -> String {
    assert_states(file);
    encode::to_summary(file)
}

/// What is predicted of a step, or measured in the same terms, as JSON.
pub(super) fn prediction(predicted: &Predicted) -> serde_json::Value {
    encode::to_value(predicted)
}

fn assert_states(file: &ScheduleFile) {
    assert_eq!(
        file.states.len(),
        file.schedule.state_groups.len(),
        "a state for every group"
    );
}

/// The file of a text.
///
/// # Errors
/// Bad input: text that is not JSON, is cut off, is not a schedule, is one of another format
/// version, or has keys or values that no schedule has. Ids may be out of range.
pub fn read(text: &str) -> Result<ScheduleFile> {
    let head: wire::Head = serde_json::from_str(text).map_err(|error| refusal(&error, "$"))?;
    match head.schema.as_deref() {
        Some(SCHEMA) => {}
        Some(other) if other.starts_with(SCHEMA_PREFIX) => {
            let message = format!("schedule has format {other}, this ebbtide reads {SCHEMA}");
            return Err(Error::bad_input(message).hint("plan again with this version of ebbtide"));
        }
        Some(other) => {
            let message = format!("not a schedule: schema is {other:?}, expected {SCHEMA:?}");
            return Err(Error::bad_input(message).hint("pass a file that `ebbtide plan -o` wrote"));
        }
        None => {
            let message = format!("not a schedule: no \"schema\": {SCHEMA:?} at the top");
            return Err(Error::bad_input(message).hint("pass a file that `ebbtide plan -o` wrote"));
        }
    }
    let mut json = serde_json::Deserializer::from_str(text);
    let file: wire::File = serde_path_to_error::deserialize(&mut json)
        .map_err(|error| refusal(error.inner(), &error.path().to_string()))?;
    decode::into_domain(file)
}

/// A serde failure for people: where, what, and what to do.
fn refusal(error: &serde_json::Error, path: &str) -> Error {
    if error.is_eof() {
        return Error::bad_input(format!("schedule is {}", super::cut_off(error)))
            .hint("write it again with `ebbtide plan -o`");
    }
    let error = super::in_words(error);
    match path {
        "$" | "." | "?" => Error::bad_input(format!("schedule is unusable: {error}")),
        path => Error::bad_input(format!("schedule is unusable at {path}: {error}")),
    }
}
