//! Other people's trainers: what each can do of what a schedule does, what that costs by
//! simulation, and how it is written in its settings.
//!
//! None of them decides block by block and range by range. So what a system can do ([`Does`]) is
//! simulated as it would run there: the same in every block, model states in one place, no tiles.
//! The fastest that fits is exported.

mod settings;

pub use settings::settings;

use ebbtide_solver::build::{build, Infeasible};
use ebbtide_solver::plan::{Fate, Hold, Placement, Plan};
use ebbtide_solver::problem::Problem;
use ebbtide_solver::units::Nanos;

use crate::device::arithmetic::Arithmetic;
use crate::error::Result;
use crate::format::schedule::ScheduleFile;
use crate::planning::{self, Request};
use crate::report::{infeasible::what_binds, percent};

/// A system with settings of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum System {
    /// Hugging Face TRL.
    Trl,
    /// Axolotl.
    Axolotl,
    /// DeepSpeed.
    DeepSpeed,
    /// Megatron-LM.
    Megatron,
    /// torchtitan.
    Torchtitan,
    /// JAX.
    Jax,
}

/// What a trainer does with activations.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Does {
    /// Keeps them all.
    Keep,
    /// Keeps block inputs and recomputes the rest.
    Checkpoint,
    /// Sends block inputs to the host and recomputes the rest.
    CheckpointOffload,
    /// Recomputes norms, the activation function and additions.
    Selective,
    /// Keeps, sends or recomputes each kind of tensor as a whole, the same in every block.
    ByName,
}

/// What a simulated choice takes, or why it does not fit.
#[derive(Clone, Debug)]
pub struct Cost {
    /// The choice.
    pub does: Does,
    /// Where all model states live.
    pub states: Placement,
    /// Its step.
    pub step: std::result::Result<Nanos, String>,
}

/// A schedule in the large.
#[derive(Clone, Debug)]
pub struct Traits {
    /// For every kind of tensor of a block: its name and the parts kept, swapped and recomputed.
    pub tensors: Vec<(String, [f64; 3])>,
    /// Parts of the parameters that stay, are updated by the host, and are streamed.
    pub states: [f64; 3],
}

impl System {
    /// All systems.
    pub const ALL: [System; 6] = [
        System::Trl,
        System::Axolotl,
        System::DeepSpeed,
        System::Megatron,
        System::Torchtitan,
        System::Jax,
    ];
    /// The name in flags.
    pub const fn name(self) -> &'static str {
        match self {
            System::Trl => "trl",
            System::Axolotl => "axolotl",
            System::DeepSpeed => "deepspeed",
            System::Megatron => "megatron",
            System::Torchtitan => "torchtitan",
            System::Jax => "jax",
        }
    }
    /// What it can do with activations.
    const fn can(self) -> &'static [Does] {
        match self {
            System::Trl | System::Axolotl | System::DeepSpeed => {
                &[Does::Keep, Does::Checkpoint, Does::CheckpointOffload]
            }
            System::Torchtitan => &[Does::Keep, Does::Selective, Does::Checkpoint],
            System::Megatron | System::Jax => &[Does::Keep, Does::ByName, Does::Checkpoint],
        }
    }
    /// Where it can leave model states.
    const fn places(self) -> &'static [Placement] {
        match self {
            System::Trl | System::Axolotl | System::DeepSpeed => &[
                Placement::Resident,
                Placement::HostOptimizer,
                Placement::Streamed,
            ],
            System::Megatron => &[Placement::Resident, Placement::HostOptimizer],
            System::Torchtitan => &[Placement::Resident, Placement::Streamed],
            System::Jax => &[Placement::Resident],
        }
    }
}

impl Does {
    /// In words.
    pub const fn name(self) -> &'static str {
        match self {
            Does::Keep => "keep everything",
            Does::Checkpoint => "checkpoint every block",
            Does::CheckpointOffload => "checkpoint every block, inputs on the host",
            Does::Selective => "recompute norms and activation functions",
            Does::ByName => "keep, offload or recompute by name",
        }
    }
}

/// Kept, swapped or recomputed, in the order of all triples here.
const KEPT: usize = 0;
const SWAPPED: usize = 1;
const RECOMPUTED: usize = 2;

impl Traits {
    /// Of a schedule.
    pub fn of(file: &ScheduleFile) -> Self {
        let mut sums: Vec<(String, [u64; 3])> = Vec::new();
        for decision in file.decisions.iter().filter(|d| d.block.is_some()) {
            let tokens = [
                decision.keep_tokens,
                decision.swap_tokens,
                decision.recompute_tokens,
            ];
            match sums.iter_mut().find(|(name, _)| *name == decision.tensor) {
                Some((_, sum)) => sum.iter_mut().zip(tokens).for_each(|(sum, n)| *sum += n),
                None => sums.push((decision.tensor.clone(), tokens)),
            }
        }
        let parts = |sums: [u64; 3]| {
            let all = sums.iter().sum::<u64>().max(1) as f64;
            sums.map(|sum| sum as f64 / all)
        };
        let mut states = [0; 3];
        for state in &file.states {
            states[place(state.placement)] += state.parameters;
        }
        Self {
            tensors: sums
                .into_iter()
                .map(|(name, sums)| (name, parts(sums)))
                .collect(),
            states: parts(states),
        }
    }
    /// What becomes of most of a kind of tensor: 0 kept, 1 swapped, 2 recomputed.
    pub fn mostly(&self, tensor: &str) -> usize {
        let found = self.tensors.iter().find(|(name, _)| name == tensor);
        let parts = found.map_or([0.0, 0.0, 1.0], |(_, parts)| *parts);
        (0..3)
            .max_by(|&a, &b| parts[a].total_cmp(&parts[b]))
            .unwrap_or(2)
    }
}

const fn place(placement: Placement) -> usize {
    match placement {
        Placement::Resident => 0,
        Placement::HostOptimizer => 1,
        Placement::Streamed => 2,
    }
}

/// What becomes of a kind of tensor of every block.
fn becomes(system: System, does: Does, tensor: &str, traits: &Traits) -> usize {
    match does {
        Does::Keep => KEPT,
        Does::Checkpoint if tensor == "x" => KEPT,
        Does::CheckpointOffload if tensor == "x" => SWAPPED,
        Does::Checkpoint | Does::CheckpointOffload => RECOMPUTED,
        Does::Selective => match tensor {
            "n1" | "n2" | "x2" | "h" => RECOMPUTED,
            _ => KEPT,
        },
        Does::ByName if system == System::Megatron => megatron(tensor, traits),
        Does::ByName => traits.mostly(tensor),
    }
}

/// Megatron recomputes norms, attention and the MLP as modules, and offloads what some of them
/// read; block inputs are always saved, and attention's output travels only with what it reads.
fn megatron(tensor: &str, traits: &Traits) -> usize {
    // Modules, not tensors, are recomputed: both norms, and all of the MLP.
    let leads = match tensor {
        "n2" => "n1",
        "h" => "gate_up",
        other => other,
    };
    match (leads, traits.mostly(leads)) {
        ("n1" | "gate_up" | "o", RECOMPUTED) => RECOMPUTED,
        ("x" | "x2" | "qkv", SWAPPED) => SWAPPED,
        ("o", SWAPPED) if traits.mostly("qkv") == SWAPPED => SWAPPED,
        _ => KEPT,
    }
}

/// What each thing that a system can do takes, with model states where it is fastest.
///
/// # Errors
/// As [`planning::variants`].
pub fn simulated(system: System, request: &Request<'_>, traits: &Traits) -> Result<Vec<Cost>> {
    let whole = planning::untiled(request)?;
    let problems = planning::problems(&whole, request.budget);
    let problem = &problems[0];
    let cost = |&does: &Does| {
        let mut best: Option<Cost> = None;
        let mut miss = String::new();
        for &states in system.places() {
            let on_host = problem.states.iter().all(|group| group.host.is_some());
            if states == Placement::HostOptimizer && !on_host {
                continue;
            }
            let one = |tensor: &str| becomes(system, does, tensor, traits);
            match uniform(problem, one, states) {
                Ok(step) => {
                    let known = best.as_ref().and_then(|cost| cost.step.as_ref().ok());
                    if known.is_none_or(|known| step < *known) {
                        best = Some(Cost {
                            does,
                            states,
                            step: Ok(step),
                        });
                    }
                }
                Err(why) => miss = what_binds(&why),
            }
        }
        best.unwrap_or(Cost {
            does,
            states: Placement::Resident,
            step: Err(miss),
        })
    };
    Ok(system.can().iter().map(cost).collect())
}

/// The step with the same decision for a kind of tensor in every block, and all model states in one
/// place; what is made again stays as long as it fits.
fn uniform(
    problem: &Problem,
    becomes: impl Fn(&str) -> usize,
    states: Placement,
) -> std::result::Result<Nanos, Infeasible> {
    let mut plan = Plan::keep_all(problem);
    plan.placements.fill(states);
    for (id, tensor) in problem.tensors.iter() {
        let value = &problem.values[tensor.value];
        if value.block.is_some() {
            plan.fates[id] = match becomes(&value.name) {
                KEPT => Fate::kept(tensor.pieces),
                SWAPPED => Fate::swapped(tensor.pieces),
                _ => Fate::RECOMPUTED,
            };
        }
    }
    let mut nearest = None;
    for hold in Hold::CHOICES {
        plan.hold = hold;
        match build(problem, &plan) {
            Ok(built) => return Ok(built.timeline.step),
            Err(miss) => nearest = Some(miss),
        }
    }
    Err(nearest.unwrap_or_default())
}

fn in_words(states: Placement) -> &'static str {
    match states {
        Placement::Resident => "on the device",
        Placement::HostOptimizer => "updated on the host",
        Placement::Streamed => "streamed from the host",
    }
}

/// What the settings leave out of the schedule, and what they cost.
pub fn words(
    system: System,
    best: &Cost,
    costs: &[Cost],
    file: &ScheduleFile,
    traits: &Traits,
) -> Vec<String> {
    let planned = file.predicted.step;
    let name = system.name();
    let mut lines = Vec::new();
    if let Ok(step) = &best.step {
        let over = step.get() as f64 / planned.get().max(1) as f64;
        lines.push(format!(
            "nearest that {name} can do: {}, model states {}; {step} a step by simulation, \
             {over:.2} × the schedule's {planned}",
            best.does.name(),
            in_words(best.states)
        ));
    }
    for cost in costs.iter().filter(|cost| cost.does != best.does) {
        lines.push(match &cost.step {
            Ok(step) if Ok(step) == best.step.as_ref() => {
                format!("as fast: {}", cost.does.name())
            }
            Ok(step) => format!("slower: {}, {step}", cost.does.name()),
            Err(why) => format!("does not fit: {}, {why}", cost.does.name()),
        });
    }
    let mixed = traits
        .tensors
        .iter()
        .filter(|(_, parts)| parts.iter().all(|part| *part < 0.999));
    let mixed = mixed.map(|(tensor, [keep, swap, again])| {
        let (keep, swap, again) = (percent(*keep), percent(*swap), percent(*again));
        format!("{tensor} {keep} kept, {swap} swapped, {again} recomputed")
    });
    let mixed = Vec::from_iter(mixed);
    if !mixed.is_empty() {
        lines.push(format!(
            "{name} cannot decide block by block and by token range: {}",
            mixed.join("; ")
        ));
    }
    let [resident, ..] = traits.states;
    if resident < 1.0 {
        lines.push(format!(
            "the schedule leaves the states of {} of the parameters on the host; {name} moves all \
             or none",
            percent(1.0 - resident)
        ));
    }
    let named = matches!(system, System::Trl | System::Axolotl);
    if named && best.states != Placement::Resident {
        lines.push("`ebbtide export` with --to deepspeed prints the ds_config.json".into());
    }
    if file.method != "adamw" && !(named && settings::optimizer(file).is_some()) {
        lines.push(format!(
            "the settings name no optimizer: choose one that works as {}, by which they were \
             simulated",
            file.method
        ));
    }
    if ["adamw-bf16-sr", "flora", "compact"].contains(&file.method.as_str()) {
        lines.push(format!(
            "{name} has no {}: the settings are of AdamW, whose states and gradients are larger",
            file.method
        ));
    }
    if system == System::Torchtitan && !file.schedule.clips() {
        lines.push(
            "torchtitan clips gradients to a norm of max_norm=1.0; the schedule does not".into(),
        );
    }
    let micro_batches = file.schedule.micro_batches;
    if system == System::Jax && micro_batches > 1 {
        lines.push(format!(
            "a step of the schedule adds up the gradients of {micro_batches} micro-batches, which \
             the training loop has to do (optax.MultiSteps)"
        ));
    }
    if let Some(storage) = file.storage {
        lines.push(format!(
            "{name} does not pack what is saved in {storage}, as the schedule does"
        ));
    }
    if file.arithmetic != Arithmetic::Plain {
        lines.push(format!(
            "{name}: choose linear layers by {}",
            file.arithmetic
        ));
    }
    if file.schedule.groups > 1 {
        lines.push(format!(
            "the schedule runs attention in {} head groups and MLP and head in its tiles; {name} \
             as simulated does not",
            file.schedule.groups
        ));
    }
    lines
}
