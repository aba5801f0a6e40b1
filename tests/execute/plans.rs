//! From a model and a cut to schedules: with tiles far smaller than a planner would choose, so that
//! tiny models have many.
#![allow(dead_code, reason = "each test binary uses its part")]

use std::time::{Duration, Instant};

use ebbtide::device::arithmetic::Arithmetic;
use ebbtide::format::schedule as file;
use ebbtide::format::schedule::ScheduleFile;
use ebbtide::lower::{lower, Lowered, Tiling, Workload};
use ebbtide::methods::Method;
use ebbtide::model::{compressed_step_graph, ModelConfig};
use ebbtide::profile::{self, Dtype, Workspace};
use ebbtide_solver::build::{build, with_addresses};
use ebbtide_solver::plan::{Fate, Hold, Placement, Plan};
use ebbtide_solver::problem::{Budget, Problem, Split};
use ebbtide_solver::schedule::Schedule;
use ebbtide_solver::search::{contexts, solve, Options, Strategy};
use ebbtide_solver::units::{Bytes, Nanos, Tokens};

use super::support::tiny::random::Random;
use super::support::tiny_file;

/// What is trained, and how its operators are cut.
#[derive(Clone, Copy)]
pub struct Cut {
    pub method: Method,
    pub workload: Workload,
    pub tile: u64,
    pub head_tile: u64,
    pub groups: u32,
    pub granule: u64,
}

impl Cut {
    /// Two sequences of 20 tokens in tiles of 16 that do not divide the 40 rows.
    pub fn new(method: Method, groups: u32) -> Self {
        Self {
            method,
            workload: Workload {
                seq: 20,
                batch: 2,
                accumulate: if method.fused() { 1 } else { 2 },
                dtype: Dtype::F32,
                clip: false,
            },
            tile: 16,
            head_tile: 12,
            groups,
            granule: 16,
        }
    }
}

/// The problem without limits.
pub fn problem(model: &ModelConfig, cut: &Cut) -> Problem {
    in_granules(lowered(model, cut).problem, cut)
}

/// The same where what travels is packed.
pub fn packed_problem(model: &ModelConfig, cut: &Cut) -> Problem {
    in_granules(lowered(model, cut).packed().problem, cut)
}

/// The same where linear layers multiply so.
pub fn problem_in(model: &ModelConfig, cut: &Cut, arithmetic: Arithmetic) -> Problem {
    let profile = profile::load("unit").expect("shipped");
    let lowered = lowered(model, cut).in_arithmetic(arithmetic, &profile, cut.workload.dtype);
    in_granules(lowered.expect("has a peak of fp8").problem, cut)
}

fn lowered(model: &ModelConfig, cut: &Cut) -> Lowered {
    let all = Bytes::new(1 << 40);
    let budget = Budget {
        device: all,
        host: all,
    };
    let tiling = Tiling {
        tile: cut.tile,
        head_tile: cut.head_tile,
        groups: cut.groups,
    };
    let mut profile = profile::load("unit").expect("shipped");
    profile.workspace = Workspace::Cudnn;
    let method = cut.method.resolved(model).expect("suits the model");
    let lowered = lower(
        &compressed_step_graph(model, method.compressed(model)),
        model,
        &profile,
        cut.method,
        &cut.workload,
        budget,
        tiling,
    );
    lowered.expect("can be lowered")
}

fn in_granules(mut problem: Problem, cut: &Cut) -> Problem {
    problem.granule = Tokens::new(cut.granule);
    let pieces = u32::try_from(problem.tokens.get().div_ceil(cut.granule)).unwrap();
    for tensor in problem.tensors.values_mut() {
        if problem.values[tensor.value].split == Split::Rows {
            tensor.pieces = pieces;
        }
    }
    problem
}

/// The plan that needs least, and that which needs most.
fn extremes(problem: &Problem) -> (Plan, Plan) {
    let keep = Plan::keep_all(problem);
    let mut lean = keep.clone();
    lean.hold = Hold::NONE;
    lean.placements.fill(Placement::Streamed);
    let fates = lean.fates.values_mut();
    fates.for_each(|fate| *fate = Fate::RECOMPUTED);
    (lean, keep)
}

/// Device memory at so many percent of the way from the leanest plan's to the largest one's.
pub fn with_budget(problem: &Problem, percent: u64) -> Problem {
    let (lean, keep) = extremes(problem);
    let peak = |plan: &Plan| build(problem, plan).expect("unlimited").peak.get();
    let (a, b) = (peak(&lean), peak(&keep));
    let (low, high) = (a.min(b), a.max(b));
    let mut problem = problem.clone();
    problem.budget.device = Bytes::new(low + (high - low) * percent / 100 + (1 << 12));
    problem
}

/// What each strategy makes of a problem, as far as it fits.
pub fn by_strategies(problem: &Problem) -> Vec<(String, Schedule)> {
    let options = Options::default();
    let contexts = contexts(std::slice::from_ref(problem), &options);
    let all = Strategy::ALL.into_iter();
    let mut found = Vec::new();
    for strategy in all.filter(|s| *s != Strategy::Exhaustive) {
        if let Ok(solution) = solve(&contexts, strategy, &options) {
            let schedule = with_addresses(solution.found.candidate.built);
            if schedule.arena_bytes <= schedule.budget.device {
                found.push((strategy.name().to_owned(), schedule));
            }
        }
    }
    found
}

/// Everything recomputed, in segments longer than a block: only the first block's input is kept.
pub fn segments(problem: &Problem) -> Schedule {
    let mut plan = Plan::keep_all(problem);
    let fates = plan.fates.values_mut();
    fates.for_each(|fate| *fate = Fate::RECOMPUTED);
    schedule(problem, &plan)
}

/// A bit of everything: the first pieces of what is cut by rows stay, the next travel, the last are
/// made again; block inputs travel; groups of states are on the device, on the host and streamed.
pub fn mixed(problem: &Problem) -> Schedule {
    let mut plan = Plan::keep_all(problem);
    for (tensor, fate) in problem.tensors.values().zip(plan.fates.values_mut()) {
        *fate = match tensor.pieces {
            1 => Fate::swapped(1),
            pieces => Fate {
                keep: pieces / 3,
                swap: pieces.div_ceil(3),
                ..Fate::RECOMPUTED
            },
        };
    }
    let on_host = problem.states.iter().all(|group| group.host.is_some());
    let placements = match on_host {
        true => vec![
            Placement::Streamed,
            Placement::HostOptimizer,
            Placement::Resident,
        ],
        false => vec![Placement::Streamed, Placement::Resident],
    };
    let chosen = placements.into_iter().cycle();
    plan.placements = chosen.take(problem.states.len()).collect();
    plan.weight_gap = 0;
    schedule(problem, &plan)
}

/// A cut at random: long and short tiles, ragged granules, one sequence or several.
pub fn random_cut(method: Method, kv_heads: u64, random: &mut Random) -> Cut {
    let mut cut = Cut::new(method, 1);
    cut.groups = random.pick(&[1, kv_heads as u32]);
    cut.workload.seq = 4 + random.below(20) as u64;
    cut.workload.batch = 1 + random.below(3) as u64;
    if !method.fused() {
        cut.workload.accumulate = 1 + random.below(3) as u32;
    }
    cut.tile = 1 + random.below(40) as u64;
    cut.head_tile = 1 + random.below(40) as u64;
    cut.granule = 1 + random.below(30) as u64;
    cut
}

/// Any plan at all.
pub fn random_plan(problem: &Problem, random: &mut Random) -> Plan {
    let mut plan = Plan::keep_all(problem);
    for (tensor, fate) in problem.tensors.values().zip(plan.fates.values_mut()) {
        let pieces = tensor.pieces as usize;
        let keep = random.below(pieces + 1);
        let swap = random.below(pieces - keep + 1);
        *fate = Fate {
            keep: keep as u32,
            swap: swap as u32,
            ..Fate::RECOMPUTED
        };
    }
    for (placement, group) in plan.placements.iter_mut().zip(&problem.states) {
        let all = [
            Placement::Resident,
            Placement::Streamed,
            Placement::HostOptimizer,
        ];
        *placement = random.pick(if group.host.is_some() {
            &all
        } else {
            &all[..2]
        });
    }
    plan.hold = random.pick(&Hold::CHOICES);
    if random.below(2) == 0 {
        plan.hold.ahead = random.below(problem.blocks() as usize + 1) as u32;
    }
    plan.weight_gap = random.below(4) as u32;
    plan
}

/// The best of all plans of a problem, as far as there is time to try them.
pub fn exhaustive(problem: &Problem) -> Schedule {
    let options = Options {
        deadline: Some(Instant::now() + Duration::from_millis(300)),
        ..Options::default()
    };
    let contexts = contexts(std::slice::from_ref(problem), &options);
    let solution = solve(&contexts, Strategy::Exhaustive, &options);
    with_addresses(solution.expect("something fits").found.candidate.built)
}

/// The schedule of a plan that fits.
pub fn schedule(problem: &Problem, plan: &Plan) -> Schedule {
    with_addresses(build(problem, plan).expect("fits"))
}

/// A schedule as a file.
pub fn file_of(model: &ModelConfig, cut: &Cut, schedule: Schedule) -> ScheduleFile {
    let states = schedule.state_groups.iter().map(|_| file::State {
        placement: Placement::Resident,
        parameters: 0,
    });
    let mut file = tiny_file();
    file.states = states.collect();
    file.model.name = model.name.clone();
    file.model.config = model.source.as_object().cloned();
    file.workload = file::Workload {
        seq: cut.workload.seq,
        batch: cut.workload.batch,
        dtype: cut.workload.dtype.to_string(),
    };
    file.method = cut.method.name().into();
    let resolved = cut.method.resolved(model).expect("suits the model");
    file.method_options = resolved.low_rank();
    file.predicted.step = Nanos::new(1);
    file.schedule = schedule;
    file
}
