//! Other people's trainers: what each can do of what a schedule does, what that costs by
//! simulation, and how it is written in its settings.
//!
//! None of them decides tensor by tensor and range by range. So of what a system can do ([`Does`])
//! the fastest that fits is exported, simulated without tiles, as it would run there.

mod settings;

pub use settings::settings;

use ebbtide_solver::build::build;
use ebbtide_solver::plan::{Fate, Hold, Placement, Plan};
use ebbtide_solver::search::{contexts, find, Options, Strategy};
use ebbtide_solver::units::Nanos;

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
    /// Recomputes what is cheap.
    Selective,
    /// Keeps, sends or recomputes each kind of tensor as a whole, the same in every block.
    ByName,
}

/// What a simulated choice takes, or why it does not fit.
#[derive(Clone, Debug)]
pub struct Cost {
    /// The choice.
    pub does: Does,
    /// Its step without tiles.
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
    /// What it can do.
    const fn can(self) -> &'static [Does] {
        match self {
            System::Trl | System::Axolotl | System::DeepSpeed => {
                &[Does::Keep, Does::Checkpoint, Does::CheckpointOffload]
            }
            System::Torchtitan => &[Does::Keep, Does::Selective, Does::Checkpoint],
            System::Megatron => &[
                Does::Keep,
                Does::Selective,
                Does::Checkpoint,
                Does::CheckpointOffload,
            ],
            System::Jax => &[Does::Keep, Does::ByName, Does::Checkpoint],
        }
    }
    /// Whether it can keep optimizer states on the host, and whether weights.
    const fn states_on_host(self) -> (bool, bool) {
        match self {
            System::DeepSpeed => (true, true),
            System::Megatron => (true, false),
            // By a DeepSpeed or FSDP config of their own.
            System::Trl | System::Axolotl | System::Torchtitan => (true, true),
            System::Jax => (false, false),
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
            Does::Selective => "recompute what is cheap",
            Does::ByName => "keep, offload or recompute by name",
        }
    }
}

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

/// What each thing that a system can do takes.
///
/// # Errors
/// As [`planning::variants`].
pub fn simulated(system: System, request: &Request<'_>, traits: &Traits) -> Result<Vec<Cost>> {
    let whole = planning::untiled(request)?;
    let problems = planning::problems(&whole, request.budget);
    let options = Options::default();
    let prepared = contexts(&problems, &options);
    let of_strategy = |strategy: Strategy| {
        let found = find(&prepared, strategy, &options);
        found
            .map(|found| found.candidate.step())
            .map_err(|miss| what_binds(&miss))
    };
    let cost = |&does: &Does| Cost {
        does,
        step: match does {
            Does::Keep => of_strategy(Strategy::Keep),
            Does::Checkpoint => of_strategy(Strategy::Checkpoint),
            Does::CheckpointOffload => of_strategy(Strategy::CheckpointOffload),
            Does::Selective => of_strategy(Strategy::Selective),
            Does::ByName => by_name(&problems[0], traits),
        },
    };
    Ok(system.can().iter().map(cost).collect())
}

/// Every kind of tensor as most of it is in the schedule, the same in every block; all model states
/// on the device.
fn by_name(
    problem: &ebbtide_solver::problem::Problem,
    traits: &Traits,
) -> std::result::Result<Nanos, String> {
    let mut plan = Plan::keep_all(problem);
    plan.hold = Hold::OUTPUT;
    plan.placements.fill(Placement::Resident);
    for (id, tensor) in problem.tensors.iter() {
        let value = &problem.values[tensor.value];
        if value.block.is_some() {
            plan.fates[id] = match traits.mostly(&value.name) {
                0 => Fate::kept(tensor.pieces),
                1 => Fate::swapped(tensor.pieces),
                _ => Fate::RECOMPUTED,
            };
        }
    }
    let built = build(problem, &plan).map_err(|miss| what_binds(&miss))?;
    Ok(built.timeline.step)
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
            "nearest that {name} can do: {}; {step} a step by simulation, {over:.2} × the \
             schedule's {planned}",
            best.does.name()
        ));
    }
    for cost in costs.iter().filter(|cost| cost.does != best.does) {
        lines.push(match &cost.step {
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
    let [_, updated, streamed] = traits.states;
    let (optimizer, weights) = system.states_on_host();
    if updated + streamed > 0.0 && !optimizer {
        let part = percent(updated + streamed);
        lines.push(format!(
            "{name} cannot leave optimizer states of {part} on the host"
        ));
    }
    if streamed > 0.0 && !weights {
        lines.push(format!(
            "{name} cannot stream the weights of {}",
            percent(streamed)
        ));
    }
    if updated + streamed > 0.0 && updated + streamed < 1.0 && optimizer {
        lines.push(format!(
            "the schedule leaves {} of the states on the host; {name} moves all or none",
            percent(updated + streamed)
        ));
    }
    if file.method == "lomo" && system != System::Jax {
        lines.push(format!(
            "{name}: choose an optimizer that is fused into backward (LOMO)"
        ));
    }
    if file.schedule.groups > 1 {
        lines.push(format!(
            "the schedule runs attention in {} head groups and cuts MLP and head into tiles; \
             {name} as simulated does not",
            file.schedule.groups
        ));
    }
    lines
}
