//! Random faults in the schedules of real models: the referee refuses what does harm.
//!
//! Two layers of real models, lowered for two machines, planned by every strategy under budgets
//! from the leanest plan's to everything's. Each schedule must be clean; then faults are injected,
//! and whatever the referee accepts is executed by the slow oracle.
//! `FAULTS=1000 cargo test --release --test library mutation` injects more into each.

use std::collections::BTreeMap;

use ebbtide::lower::{lower, tilings, Workload};
use ebbtide::methods::Method;
use ebbtide::model::{self, step_graph, ModelConfig};
use ebbtide::profile::{self, Dtype, Profile};
use ebbtide_solver::build::{build, with_addresses};
use ebbtide_solver::check::check;
use ebbtide_solver::plan::{Fate, Hold, Placement, Plan};
use ebbtide_solver::problem::{Budget, Problem};
use ebbtide_solver::schedule::{Action, Schedule, Stream};
use ebbtide_solver::search::{contexts, solve, Options, Strategy};
use ebbtide_solver::units::Bytes;
use rayon::prelude::*;

use super::support::tiny::mutation::{difference, random_fault};
use super::support::tiny::oracle::{good_outcome, is_harmful};
use super::support::tiny::random::Random;

/// What a schedule makes use of.
fn features(problem: &Problem, schedule: &Schedule) -> Vec<&'static str> {
    let runs = |stream: Stream, which: &dyn Fn(Action) -> bool| {
        schedule.stream(stream).iter().any(|i| which(i.action))
    };
    let travels = |stream: Stream, category| {
        schedule
            .stream(stream)
            .iter()
            .flat_map(|i| &i.operands)
            .any(|o| {
                let buffer = &schedule.buffers[o.buffer];
                buffer.category == category
            })
    };
    use ebbtide_solver::problem::Category::{Activations, Weights};
    let input_again = |action| match action {
        Action::Recompute(op) => {
            let op = &problem.ops[op];
            op.block.is_some() && op.name == "down_projection"
        }
        _ => false,
    };
    let again = |action| matches!(action, Action::Recompute(_));
    let on_host = |action| matches!(action, Action::HostUpdate(_));
    let all = [
        ("swapped activations", travels(Stream::D2h, Activations)),
        ("streamed weights", travels(Stream::H2d, Weights)),
        ("host optimizer", runs(Stream::Host, &on_host)),
        ("recomputation", runs(Stream::Compute, &again)),
        ("segments", runs(Stream::Compute, &input_again)),
        ("head groups", schedule.groups > 1),
        ("micro-batches", schedule.micro_batches > 1),
    ];
    all.into_iter().filter(|f| f.1).map(|f| f.0).collect()
}

fn layers(name: &str, layers: u64) -> ModelConfig {
    let mut model = model::load(name).expect("shipped");
    model.layers = layers;
    model
}

/// All problems of a model: machines, methods, micro-batches, head groups; budgets still open.
fn problems(model: &ModelConfig, seq: u64) -> Vec<(String, Problem)> {
    let graph = step_graph(model);
    let mut problems = Vec::new();
    for machine in ["unit", "h100-sxm5-80gb"] {
        let profile: Profile = profile::load(machine).expect("shipped");
        for (method, accumulate) in [
            (Method::AdamW, 1),
            (Method::AdamW, 2),
            (Method::Sgd, 2),
            (Method::Lomo, 1),
            (Method::AdaLomo, 1),
            (Method::AdamW8bit, 2),
        ] {
            let dtype = if machine == "unit" {
                Dtype::F32
            } else {
                Dtype::Bf16
            };
            let workload = Workload {
                seq,
                batch: 1,
                accumulate,
                dtype,
                clip: false,
            };
            for tiling in tilings(model, &workload).into_iter().take(2) {
                let all = Bytes::new(1 << 50);
                let budget = Budget {
                    device: all,
                    host: all,
                };
                let lowered = lower(&graph, model, &profile, method, &workload, budget, tiling);
                let name = format!(
                    "{} {seq} {machine} {method}×{accumulate} groups {}",
                    model.name, tiling.groups
                );
                problems.push((name, lowered.expect("can be lowered").problem));
            }
        }
    }
    problems
}

/// The same problem with device memory between what is needed at least and what is needed at most.
fn budgets(problem: &Problem) -> Vec<Problem> {
    let mut lean = Plan::keep_all(problem);
    lean.hold = Hold::NONE;
    lean.placements.fill(Placement::Streamed);
    lean.fates
        .values_mut()
        .for_each(|fate| *fate = Fate::RECOMPUTED);
    let peak = |plan: &Plan| build(problem, plan).expect("unlimited").peak.get();
    let (low, high) = (peak(&lean), peak(&Plan::keep_all(problem)));
    let (low, high) = (low.min(high), low.max(high));
    [30, 70, 103]
        .map(|percent| {
            let mut problem = problem.clone();
            problem.budget.device = Bytes::new(low + (high - low) * percent / 100 + (1 << 14));
            problem
        })
        .into()
}

/// The schedules of all strategies and of two extreme plans, with what they are called.
fn schedules(name: &str, problem: &Problem) -> Vec<(String, Schedule)> {
    let options = Options::default();
    let contexts = contexts(std::slice::from_ref(problem), &options);
    let mut found: Vec<(String, Schedule)> = Vec::new();
    for strategy in Strategy::ALL
        .into_iter()
        .filter(|s| *s != Strategy::Exhaustive)
    {
        if let Ok(solution) = solve(&contexts, strategy, &options) {
            let schedule = with_addresses(solution.found.candidate.built);
            found.push((format!("{name} {}", strategy.name()), schedule));
        }
    }
    let mut plan = Plan::keep_all(problem);
    plan.fates
        .values_mut()
        .for_each(|fate| *fate = Fate::RECOMPUTED);
    for hold in [Hold::ALL, Hold::NONE] {
        plan.hold = hold;
        if let Ok(built) = build(problem, &plan) {
            found.push((format!("{name} segments {hold:?}"), with_addresses(built)));
        }
    }
    found.retain(|(_, s)| s.arena_bytes <= s.budget.device);
    found
}

#[test]
fn faults_in_real_schedules_are_refused() {
    let faults: u64 =
        std::env::var("FAULTS").map_or(40, |n| n.parse().expect("FAULTS is a number"));
    let models = [(layers("tiny", 2), 256), (layers("llama-3.2-1b", 3), 4096)];
    let problems = models
        .iter()
        .flat_map(|(model, seq)| problems(model, *seq))
        .flat_map(|(name, problem)| {
            budgets(&problem)
                .into_iter()
                .map(move |p| (name.clone(), p))
        });
    let problems: Vec<(String, Problem)> = problems.collect();
    let planned = problems.par_iter().flat_map_iter(|(name, problem)| {
        let found = schedules(name, problem).into_iter();
        found.map(|(name, schedule)| (name, schedule, problem.clone()))
    });
    let mut cases: Vec<(String, Schedule, Problem)> = planned.collect();
    let mut unclean = Vec::new();
    let mut used: BTreeMap<&str, u32> = BTreeMap::new();
    for (name, schedule, problem) in &cases {
        if let Some(violation) = check(schedule).first() {
            unclean.push(format!("{name}: {violation:?}"));
        }
        for feature in features(problem, schedule) {
            *used.entry(feature).or_default() += 1;
        }
    }
    println!("{} schedules: {used:?}", cases.len());
    assert!(
        unclean.is_empty(),
        "{} unclean:\n{}",
        unclean.len(),
        unclean.join("\n")
    );
    assert_eq!(used.len(), 7, "every feature occurs: {used:?}");
    // The oracle's effort grows with the cube of the instructions.
    let length = |s: &Schedule| s.streams.iter().map(Vec::len).sum::<usize>();
    cases.retain(|(_, s, _)| length(s) <= 160);
    let mut tally: BTreeMap<&str, [u64; 3]> = BTreeMap::new();
    let mut missed = Vec::new();
    let mut faulty: BTreeMap<&str, u32> = BTreeMap::new();
    let judged = cases.par_iter().enumerate().map(|(n, (name, good, _))| {
        let outcome = good_outcome(good);
        let judge = |fault| {
            let seed = n as u64 * 1_000_003 + fault;
            let mut bad = good.clone();
            let kind = random_fault(&mut bad, &mut Random::new(seed));
            if !check(&bad).is_empty() {
                (kind, 0, None)
            } else if bad == *good || !is_harmful(&bad, &outcome) {
                (kind, 1, None)
            } else {
                let what = difference(seed, good, &bad);
                (kind, 2, Some(format!("{name}, {kind}: {what}")))
            }
        };
        (0..faults).map(judge).collect::<Vec<_>>()
    });
    let judged: Vec<Vec<(&str, usize, Option<String>)>> = judged.collect();
    for ((_, good, problem), results) in cases.iter().zip(judged) {
        for feature in features(problem, good) {
            *faulty.entry(feature).or_default() += 1;
        }
        for (kind, result, told) in results {
            tally.entry(kind).or_default()[result] += 1;
            missed.extend(told);
        }
    }
    println!("faults in {} of them, {faulty:?}", cases.len());
    println!("{:40} refused  harmless  missed", "");
    for (kind, [refused, harmless, missed]) in &tally {
        println!("{kind:40} {refused:7} {harmless:9} {missed:7}");
    }
    let sum = |i: usize| tally.values().map(|t| t[i]).sum::<u64>();
    let [a, b, c] = [0, 1, 2].map(sum);
    println!("{:40} {a:7} {b:9} {c:7}", "all");
    let shown = &missed[..missed.len().min(10)];
    assert!(
        missed.is_empty(),
        "{} missed:\n{}",
        missed.len(),
        shown.join("\n")
    );
    assert_eq!(faulty.len(), 7, "faults meet every feature: {faulty:?}");
}
