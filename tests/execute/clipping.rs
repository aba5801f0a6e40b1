//! Clipping by the global norm, whatever the plan: over accumulated micro-batches, or in two passes
//! where weights are updated inside backward.

use ebbtide::device::cpu::{CpuDevice, CpuOptions};
use ebbtide::execute::Optimizer;
use ebbtide::methods::{LowRank, Method};
use ebbtide::model::ModelConfig;
use ebbtide_solver::check::check;
use ebbtide_solver::plan::{Placement, Plan};
use ebbtide_solver::schedule::{Action, Instruction, Schedule, GRADIENT_NORM};

use super::models::{self, model};
use super::plans::{file_of, problem, random_plan, schedule, segments, Cut};
use super::runs::{batches, run_with, session_on, Outcome};
use super::straight::Kept;
use super::support::tiny::random::Random;

fn clipped(limit: Option<f64>) -> Optimizer {
    Optimizer {
        learning_rate: 0.5,
        clip: limit,
        ..Optimizer::default()
    }
}

fn trained(
    model: &ModelConfig,
    cut: &Cut,
    schedule: Schedule,
    limit: Option<f64>,
) -> (Outcome, Vec<f64>) {
    let file = file_of(model, cut, schedule);
    let run = run_with(&file, model, CpuOptions::default(), 6, &clipped(limit));
    let (outcome, _, norms) = run.unwrap();
    (outcome, norms)
}

/// The same method, but with weights updated inside backward, where it has that choice.
fn per_layer(method: Method) -> Option<Method> {
    let inside = |low_rank: LowRank| LowRank {
        per_layer: true,
        ..low_rank
    };
    Some(match method {
        Method::Sgd => Method::Lomo,
        Method::Galore(low_rank) => Method::Galore(inside(low_rank)),
        Method::Fira(low_rank) => Method::Fira(inside(low_rank)),
        Method::Apollo(low_rank) => Method::Apollo(inside(low_rank)),
        Method::ApolloMini(low_rank) => Method::ApolloMini(inside(low_rank)),
        Method::Flora(low_rank) => Method::Flora(inside(low_rank)),
        Method::Compact(low_rank) => Method::Compact(inside(low_rank)),
        _ => return None,
    })
}

fn cut(method: Method) -> Cut {
    let mut cut = Cut::new(method, 2);
    cut.workload.clip = true;
    cut
}

/// Random plans, with updates here and there.
fn plans(model: &ModelConfig, cut: &Cut, seed: u64) -> Vec<Schedule> {
    let problem = problem(model, cut);
    let mut random = Random::new(seed);
    let random = (0..2).map(|_| schedule(&problem, &random_plan(&problem, &mut random)));
    let mut plans: Vec<Schedule> = random.collect();
    plans.push(segments(&problem));
    plans
}

#[test]
fn clipped_plans_give_the_bits_of_the_step_without_a_plan() {
    let mut on_host = [0; 2];
    let fused = per_layer(Method::Galore(LowRank::GALORE));
    for (seed, name) in (1..).zip(models::names()) {
        let model = model(name);
        for method in Method::ALL.into_iter().chain(fused) {
            let cut = cut(method);
            let mut kept = Kept::new();
            for (nth, plan) in plans(&model, &cut, seed).into_iter().enumerate() {
                on_host[usize::from(plan.state_groups.iter().any(|g| g.on_host))] += 1;
                assert_eq!(
                    check(&plan),
                    [],
                    "{name} {method}, plan {nth} of seed {seed}"
                );
                let (expected, norms) = kept.of(&plan, |straight| {
                    trained(&model, &cut, straight.clone(), Some(0.1))
                });
                let (found, again) = trained(&model, &cut, plan, Some(0.1));
                let what = format!("{name} {method}, plan {nth} of seed {seed}");
                assert_eq!(found.difference(expected), None, "{what}");
                assert_eq!(*norms, again, "{what}");
                assert!(norms.len() == 2 && norms[0] > 0.1, "{what}: {norms:?}");
            }
        }
    }
    assert!(on_host.into_iter().all(|plans| plans > 4), "{on_host:?}");
}

/// L3: weights, states, losses and norms of two passes are, bit by bit, those of one pass whose
/// updates wait for its end.
#[test]
fn two_passes_clip_as_one_that_waits() {
    for name in models::names() {
        let model = model(name);
        for method in Method::ALL {
            let Some(inside) = per_layer(method) else {
                continue;
            };
            let cuts = [method, inside].map(|method| {
                let mut cut = cut(method);
                cut.workload.accumulate = 1;
                cut
            });
            let [one, two] = cuts.map(|cut| segments(&problem(&model, &cut)));
            assert_eq!((one.passes, two.passes), (1, 2));
            let (expected, norms) = trained(&model, &cuts[0], one, Some(0.1));
            let (found, again) = trained(&model, &cuts[1], two, Some(0.1));
            assert_eq!(found.difference(&expected), None, "{name} {method}");
            assert_eq!(norms, again, "{name} {method}");
            assert!(norms[0] > 0.1, "{name} {method}: {norms:?}");
        }
    }
}

/// A limit that is not reached leaves what one pass without clipping does; one that is scales
/// AdaLomo's second moments by the factor's square, whose first step forgets what was.
#[test]
fn adalomo_is_clipped_before_its_moments() {
    let model = model("gqa");
    let run = |clip: bool, limit: Option<f64>| {
        let mut cut = cut(Method::AdaLomo);
        cut.workload.clip = clip;
        let schedule = segments(&problem(&model, &cut));
        let file = file_of(&model, &cut, schedule);
        let with = clipped(limit);
        let device = Box::new(CpuDevice::new(CpuOptions::default()));
        let mut session = session_on(device, &file, &model, 6, &with).unwrap();
        let batches = batches(&file, &model, 0, 6);
        let result = session.step(0, &batches, &with).unwrap();
        let states = session.states().unwrap();
        (result, states.into_values().collect::<Vec<_>>().concat())
    };
    let (plain, moments) = run(false, None);
    let (free, unclipped) = run(true, Some(1e9));
    assert_eq!((plain.loss, &moments), (free.loss, &unclipped));
    const LIMIT: f64 = 0.25;
    let (short, clipped) = run(true, Some(LIMIT));
    let norm = short.gradient_norm.unwrap();
    assert!(norm > 2.0 * LIMIT && short.loss == plain.loss, "{norm}");
    let factor = (LIMIT / (norm + 1e-6)).powi(2);
    let mut counted = 0;
    for (plain, clipped) in moments.iter().zip(&clipped) {
        let (plain, clipped) = (f64::from(*plain), f64::from(*clipped));
        // Where no token came by, there is nothing but what is added to squares.
        if plain > 1e-20 {
            let apart = (clipped - plain * factor).abs();
            assert!(apart < 1e-4 * plain * factor, "{plain} {clipped}");
            counted += 1;
        }
    }
    assert!(counted > 100, "{counted}");
}

/// A schedule is not clipped by which weights change before all gradients have been counted.
#[test]
fn a_schedule_that_does_not_count_in_time_is_refused() {
    let model = model("gqa");
    let refused = |cut: &Cut, change: &dyn Fn(&mut Schedule)| {
        let problem = problem(&model, cut);
        let mut plan = Plan::keep_all(&problem);
        if !cut.method.fused() {
            plan.placements.fill(Placement::HostOptimizer);
        }
        let mut schedule = schedule(&problem, &plan);
        change(&mut schedule);
        let file = file_of(&model, cut, schedule);
        let run = run_with(&file, &model, CpuOptions::default(), 6, &clipped(Some(0.1)));
        run.map(|_| ()).map_err(|error| error.to_string())
    };
    let cut = cut(Method::AdamW);
    refused(&cut, &|_| {}).unwrap();
    let counts = |schedule: &Schedule, instruction: &Instruction| match instruction.action {
        Action::Run(op) => schedule.ops[op].name == GRADIENT_NORM,
        _ => false,
    };
    let unaware = [Method::AdamW, Method::Lomo].map(|method| Cut::new(method, 2));
    let one_pass = |s: &mut Schedule| {
        let all = s.streams[0].iter();
        let second = all.filter(|i| i.micro_batch == 1 || i.operands.is_empty());
        s.streams[0] = second.cloned().collect();
    };
    let mut two_passes = Cut::new(Method::Lomo, 2);
    two_passes.workload.clip = true;
    let said = [
        (refused(&unaware[0], &|_| {}), "does not count them"),
        (refused(&unaware[1], &|_| {}), "does not count them"),
        (refused(&two_passes, &one_pass), "does not count them"),
        (
            refused(&cut, &|s| {
                let all = s.streams[0].clone();
                let one = all.iter().position(|i| counts(s, i)).unwrap();
                s.streams[0].remove(one);
            }),
            "counts",
        ),
        (
            refused(&cut, &|s| s.streams[3][0].waits.clear()),
            "does not wait",
        ),
    ];
    for (found, expected) in said {
        let error = found.unwrap_err();
        assert!(
            error.contains("global norm") && error.contains(expected),
            "{error}"
        );
    }
}

/// A step of descent from the same weights, of both micro-batches: a clipped one is shorter by the
/// factor that PyTorch has, `limit / (norm + 1e-6)`, where the norm is of what was not clipped.
#[test]
fn a_clipped_step_is_the_step_times_limit_over_norm() {
    const LIMIT: f64 = 0.25;
    let model = model("gqa");
    let cut = cut(Method::Sgd);
    assert_eq!(cut.workload.accumulate, 2);
    let moved = |limit: Option<f64>| {
        let file = file_of(&model, &cut, segments(&problem(&model, &cut)));
        let with = clipped(limit);
        let first = |rate: f64| {
            let with = Optimizer {
                learning_rate: rate,
                ..with
            };
            super::runs::first_step(&file, &model, 6, &with).unwrap()
        };
        let (before, after) = (first(0.0), first(with.learning_rate));
        let each = before.iter().zip(after);
        let moved = each.map(|(b, a)| (f64::from(*b) - f64::from(a)) / with.learning_rate);
        moved.collect::<Vec<f64>>()
    };
    let norm = |g: &[f64]| g.iter().map(|g| g * g).sum::<f64>().sqrt();
    let (plain, clipped) = (moved(None), moved(Some(LIMIT)));
    let factor = LIMIT / (norm(&plain) + 1e-6);
    assert!(factor < 0.5, "{factor}");
    let difference: Vec<f64> = plain
        .iter()
        .zip(&clipped)
        .map(|(p, c)| p * factor - c)
        .collect();
    assert!(norm(&difference) < 1e-5 * LIMIT, "{}", norm(&difference));
    assert!((norm(&clipped) - LIMIT).abs() < 1e-5 * LIMIT);
    // A limit that is not reached changes nothing.
    assert_eq!(moved(Some(1e9)), plain);
}

/// Clipped by value, a step is that of the gradient whose elements are no larger; fused into
/// backward or not, by AdamW too.
#[test]
fn elements_are_clipped_before_they_are_used() {
    const MOST: f64 = 0.01;
    let model = model("gqa");
    let moved = |method: Method, most: Option<f64>| {
        let mut cut = Cut::new(method, 2);
        cut.workload.accumulate = 1;
        let file = file_of(&model, &cut, segments(&problem(&model, &cut)));
        let first = |rate: f64| {
            let with = Optimizer {
                learning_rate: rate,
                clip_value: most,
                ..Optimizer::default()
            };
            super::runs::first_step(&file, &model, 6, &with).unwrap()
        };
        let (before, after) = (first(0.0), first(0.5));
        let each = before.iter().zip(after);
        each.map(|(b, a)| (f64::from(*b) - f64::from(a)) / 0.5)
            .collect::<Vec<f64>>()
    };
    for method in [Method::Sgd, Method::Lomo] {
        let (plain, clipped) = (moved(method, None), moved(method, Some(MOST)));
        let large = plain.iter().filter(|g| g.abs() > 2.0 * MOST).count();
        assert!(large > 10, "{large}");
        for (plain, clipped) in plain.iter().zip(&clipped) {
            let expected = plain.clamp(-MOST, MOST);
            assert!(
                (clipped - expected).abs() < 1e-6,
                "{method}: {plain} {clipped}"
            );
        }
        assert_eq!(moved(method, Some(1e9)), plain, "{method}");
    }
    // AdaLomo's step does not depend on a gradient's scale, but on its shape.
    let adalomo = Method::AdaLomo;
    assert_ne!(moved(adalomo, None), moved(adalomo, Some(MOST)));
    assert_eq!(moved(adalomo, None), moved(adalomo, Some(1e9)));
}
