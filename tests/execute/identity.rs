//! Every plan gives the bits of the step without a plan. Plans of a cut share weights and tokens,
//! so that the step without one runs once for all; delays are each plan's own.
//! `SEEDS=10 cargo test --release --test execute identity` runs each with so many of both.

use std::collections::BTreeSet;
use std::time::Duration;

use ebbtide::device::cpu::{CpuOptions, Delays};
use ebbtide::format::schedule::ScheduleFile;
use ebbtide::memory;
use ebbtide::methods::{Layers, LowRank, Method};
use ebbtide::model::ModelConfig;
use ebbtide::profile::Dtype;
use ebbtide_solver::check::check;
use ebbtide_solver::schedule::{Action, Schedule, Stream};

use super::models::{self, model};
use super::plans::*;
use super::runs::{run, Outcome};
use super::straight::Kept;
use super::support::tiny::random::Random;

fn delays(seed: u64) -> CpuOptions {
    CpuOptions {
        delays: Some(Delays {
            seed,
            longest: Duration::from_micros(20),
        }),
        host_threads: 2,
        ..CpuOptions::default()
    }
}

/// What a schedule makes use of.
fn features(schedule: &Schedule) -> BTreeSet<&'static str> {
    let has = |stream: Stream, which: fn(Action) -> bool| {
        schedule.stream(stream).iter().any(|i| which(i.action))
    };
    let all = [
        ("copies out", has(Stream::D2h, |a| a == Action::Copy)),
        ("copies in", has(Stream::H2d, |a| a == Action::Copy)),
        (
            "recomputation",
            has(Stream::Compute, |a| matches!(a, Action::Recompute(_))),
        ),
        (
            "host updates",
            has(Stream::Host, |a| matches!(a, Action::HostUpdate(_))),
        ),
        ("head groups", schedule.groups > 1),
        ("micro-batches", schedule.micro_batches > 1),
    ];
    all.into_iter().filter(|f| f.1).map(|f| f.0).collect()
}

/// Runs a planned file and the straight one and compares.
fn compare(name: &str, model: &ModelConfig, cut: &Cut, schedule: Schedule, seed: u64) {
    Cases::new(model, cut, seed).compare(name, schedule, seed);
}

/// Plans of one cut, all from the same weights and on the same tokens.
struct Cases<'a> {
    model: &'a ModelConfig,
    cut: &'a Cut,
    seeds: Vec<u64>,
    /// What the straight ones left from each seed.
    expected: Kept<Vec<Outcome>>,
}

impl<'a> Cases<'a> {
    fn new(model: &'a ModelConfig, cut: &'a Cut, seed: u64) -> Self {
        let seeds = std::env::var("SEEDS").map_or(1, |n| n.parse().expect("SEEDS is a number"));
        Self {
            model,
            cut,
            seeds: (0..seeds).map(|nth| seed + 1000 * nth).collect(),
            expected: Kept::new(),
        }
    }

    fn compare(&mut self, name: &str, schedule: Schedule, delayed: u64) {
        assert_eq!(check(&schedule), [], "{name}");
        let &mut Cases { model, cut, .. } = self;
        let run = |file: &ScheduleFile, options, seed| {
            let told = |error| panic!("{name}, seed {seed}: {error}");
            run(file, model, options, seed).unwrap_or_else(told)
        };
        let seeds = &self.seeds;
        let expected = self.expected.of(&schedule, |straight| {
            let plain = file_of(model, cut, straight.clone());
            let left = |&seed: &u64| {
                let (left, _) = run(&plain, CpuOptions::default(), seed);
                let loss = f64::from_bits(left.losses[0]);
                assert!(loss > 1.0 && loss < 20.0, "{name}: loss {loss}");
                assert_ne!(left.losses[0], left.losses[1], "{name}");
                left
            };
            seeds.iter().map(left).collect()
        });
        let planned = file_of(model, cut, schedule);
        for (nth, (&seed, expected)) in (0..).zip(seeds.iter().zip(expected)) {
            let (found, used) = run(&planned, delays(delayed + 1000 * nth), seed);
            if let Some(difference) = found.difference(expected) {
                panic!("{name}, seed {seed}: {difference}");
            }
            let schedule = &planned.schedule;
            assert_eq!(used.high_water_bytes, schedule.arena_bytes.get(), "{name}");
            let peak = memory::peak(schedule).bytes.get();
            assert_eq!(used.peak_live_bytes, peak, "{name}");
        }
    }
}

/// All strategies and hand-made extremes of one model by every method.
fn all_plans(name: &str) {
    let model = model(name);
    let mut used = BTreeSet::new();
    let mut seen: Vec<Schedule> = Vec::new();
    for (nth, method) in Method::ALL.into_iter().enumerate() {
        for groups in [1, 2] {
            let cut = Cut::new(method, groups);
            let mut cases = Cases::new(&model, &cut, seen.len() as u64);
            let free = problem(&model, &cut);
            let mut plans = vec![
                ("mixed".to_owned(), mixed(&free)),
                ("segments".to_owned(), segments(&free)),
            ];
            // In turns, since methods make much the same plans of much the same memory.
            let percent = if groups == 2 && nth % 2 == 0 { 25 } else { 60 };
            plans.extend(by_strategies(&with_budget(&free, percent)));
            for (strategy, mut schedule) in plans {
                used.extend(features(&schedule));
                schedule.budget = free.budget;
                if seen.contains(&schedule) {
                    continue;
                }
                let what = format!("{name} {method} {groups} groups {strategy}");
                cases.compare(&what, schedule.clone(), seen.len() as u64);
                seen.push(schedule);
            }
        }
    }
    println!("{name}: {} different schedules", seen.len());
    assert!(seen.len() > 20, "{name}: only {} schedules", seen.len());
    assert_eq!(used.len(), 6, "{name}: every feature occurs: {used:?}");
}

#[test]
fn multi_head_attention() {
    all_plans("mha");
}
#[test]
fn grouped_queries() {
    all_plans("gqa");
}
#[test]
fn tied_embeddings() {
    all_plans("tied");
}
#[test]
fn qkv_bias() {
    all_plans("bias");
}
#[test]
fn norms_of_q_and_k() {
    all_plans("qk-norm");
}
#[test]
fn sliding_windows() {
    all_plans("window");
}
#[test]
fn layer_norms_and_learned_positions() {
    all_plans("gpt2");
}

/// Random plans of random cuts: what no strategy would choose is as right.
#[test]
fn random_plans() {
    for (seed, name) in (1..).zip(models::names()) {
        let model = model(name);
        let mut random = Random::new(seed);
        for nth in 0..2 * Method::ALL.len() {
            let method = Method::ALL[nth % Method::ALL.len()];
            let cut = random_cut(method, model.kv_heads, &mut random);
            let problem = problem(&model, &cut);
            let plan = random_plan(&problem, &mut random);
            let what = format!("{name} {method}, random plan {nth} of seed {seed}");
            compare(&what, &model, &cut, schedule(&problem, &plan), seed);
        }
    }
}

#[test]
fn the_exhaustive_strategy() {
    let mut model = model("gqa");
    model.layers = 1;
    // Compressed everywhere, there are too many tensors to try all plans.
    let down = Method::Compact(LowRank {
        layers: Layers {
            qkv: false,
            gate_up: false,
            down: true,
        },
        ..LowRank::COMPACT
    });
    let small = |method| match method {
        Method::Compact(_) => down,
        other => other,
    };
    for method in Method::ALL.map(small) {
        let mut cut = Cut::new(method, 1);
        (cut.granule, cut.workload.accumulate) = (40, 1);
        let problem = with_budget(&problem(&model, &cut), 100);
        let what = format!("exhaustive {method}");
        compare(&what, &model, &cut, exhaustive(&problem), 4);
    }
}

#[test]
fn bf16_with_masters() {
    for name in models::names() {
        let model = model(name);
        for method in Method::ALL {
            let mut cut = Cut::new(method, 2);
            cut.workload.dtype = Dtype::Bf16;
            let what = format!("{name} {method} bf16");
            compare(&what, &model, &cut, mixed(&problem(&model, &cut)), 7);
        }
    }
}

/// Where all tiles end at multiples of the granule, a plan and the planner's own `keep` have the
/// same tiles, and so the same bits.
#[test]
fn plans_agree_with_the_planners_own_keep() {
    let model = model("gqa");
    let mut cut = Cut::new(Method::AdamW, 2);
    (cut.tile, cut.granule) = (8, 8);
    let free = problem(&model, &cut);
    let keep = by_strategies(&free)
        .into_iter()
        .find(|(strategy, _)| strategy == "keep")
        .expect("everything fits");
    let keep = file_of(&model, &cut, keep.1);
    assert!(features(&keep.schedule)
        .iter()
        .all(|f| !f.starts_with("cop")));
    let (expected, _) = run(&keep, &model, CpuOptions::default(), 5).unwrap();
    for (strategy, schedule) in by_strategies(&with_budget(&free, 30)) {
        let planned = file_of(&model, &cut, schedule);
        let (found, _) = run(&planned, &model, delays(5), 5).unwrap();
        assert_eq!(found.difference(&expected), None, "{strategy}");
    }
}

/// Another tiling changes the order of sums, and little else.
#[test]
fn other_tiles_agree_to_rounding() {
    for name in models::names() {
        let model = model(name);
        let outcome = |tile: u64, groups: u32| {
            let mut cut = Cut::new(Method::Sgd, groups);
            (cut.tile, cut.head_tile, cut.granule) = (tile, tile, tile);
            let file = file_of(&model, &cut, segments(&problem(&model, &cut)));
            run(&file, &model, CpuOptions::default(), 3).unwrap().0
        };
        let (a, b) = (outcome(40, 1), outcome(12, 2));
        for (a, b) in a.losses.iter().zip(&b.losses) {
            let (a, b) = (f64::from_bits(*a), f64::from_bits(*b));
            assert!((a - b).abs() < 1e-5 * a, "{name}: {a} and {b}");
        }
        for ((part, a), (_, b)) in a.weights.iter().zip(&b.weights) {
            let value = |bits: &u32| f64::from(f32::from_bits(*bits));
            let norm = a.iter().map(|x| value(x).powi(2)).sum::<f64>().sqrt();
            let apart = a.iter().zip(b).map(|(x, y)| (value(x) - value(y)).powi(2));
            let apart = apart.sum::<f64>().sqrt();
            assert!(
                apart <= 1e-5 * norm + 1e-9,
                "{name} {part}: {apart} of {norm}"
            );
        }
    }
}
