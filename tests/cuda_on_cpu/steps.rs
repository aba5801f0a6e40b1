//! Whole steps on the stand-in: near the CPU device's, and the same bits for every plan.

use ebbtide::device::cpu::{CpuDevice, CpuOptions};
use ebbtide::device::Device;
use ebbtide::execute::Optimizer;
use ebbtide::format::schedule::ScheduleFile;
use ebbtide::memory;
use ebbtide::methods::Method;
use ebbtide::model::ModelConfig;
use ebbtide::profile::Dtype;
use ebbtide_solver::check::check;
use ebbtide_solver::schedule::Schedule;

use super::models::{self, model};
use super::plans::{
    by_strategies, file_of, mixed, problem, random_cut, random_plan, schedule, with_budget, Cut,
};
use super::runs::{batches, optimizer, outcome, session_on, Outcome, STEPS};
use super::straight::{straight, Kept};
use super::support::tiny::random::Random;
use super::{card, has_cudnn, is_there};

/// Methods that change weights element by element.
const METHODS: [Method; 3] = [Method::AdamW, Method::Sgd, Method::Lomo];

/// What steps are held to.
pub fn processor() -> Box<dyn Device> {
    Box::new(CpuDevice::new(CpuOptions::default()))
}

/// Some steps from a seed, and what they leave.
pub fn run(
    device: Box<dyn Device>,
    what: (&ModelConfig, &Cut, &Schedule),
    how: (u64, &Optimizer),
) -> Outcome {
    run_noted(device, what, how).0
}

/// The same, and what the device says of how it computed.
fn run_noted(
    device: Box<dyn Device>,
    (model, cut, schedule): (&ModelConfig, &Cut, &Schedule),
    (steps, with): (u64, &Optimizer),
) -> (Outcome, Vec<String>) {
    let file = file_of(model, cut, schedule.clone());
    run_file_noted(device, (model, &file), (steps, with))
}

/// The same from a whole file.
pub fn run_file(
    device: Box<dyn Device>,
    what: (&ModelConfig, &ScheduleFile),
    how: (u64, &Optimizer),
) -> Outcome {
    run_file_noted(device, what, how).0
}

fn run_file_noted(
    device: Box<dyn Device>,
    what: (&ModelConfig, &ScheduleFile),
    how: (u64, &Optimizer),
) -> (Outcome, Vec<String>) {
    assert_eq!(check(&what.1.schedule), []);
    run_unchecked(device, what, how)
}

/// The step without the plan that a schedule has. It is not put before the referee: it holds every
/// value in one buffer, where the second micro-batch's gradient would hide the first one's if that
/// had not been added up in a space of low rank.
pub fn run_straight(
    device: Box<dyn Device>,
    (model, cut, planned): (&ModelConfig, &Cut, &Schedule),
    how: (u64, &Optimizer),
) -> Outcome {
    let file = file_of(model, cut, straight(planned));
    run_unchecked(device, (model, &file), how).0
}

fn run_unchecked(
    device: Box<dyn Device>,
    (model, file): (&ModelConfig, &ScheduleFile),
    (steps, with): (u64, &Optimizer),
) -> (Outcome, Vec<String>) {
    const SEED: u64 = 3;
    let schedule = &file.schedule;
    let mut session = session_on(device, file, model, SEED, with).unwrap();
    let losses = (0..steps).map(|step| {
        let batches = batches(file, model, step, SEED);
        let result = session.attempt(step, &batches, with).unwrap();
        result.loss.to_bits()
    });
    let losses = losses.collect();
    let used = session.arena_use();
    assert_eq!(used.high_water_bytes, schedule.arena_bytes.get());
    assert_eq!(used.peak_live_bytes, memory::peak(schedule).bytes.get());
    let notes = session.device_notes();
    (outcome(&mut session, model, losses).unwrap(), notes)
}

/// How a method trains so that what it leaves says what its gradients were. AdamW: the moments;
/// an ε so large that elements which are 0 but for rounding do not count. Without moments: one
/// step so long that the weights themselves do not count.
pub fn telling(method: Method) -> (u64, Optimizer) {
    match method {
        Method::AdamW => {
            let with = Optimizer {
                epsilon: 1e-3,
                ..optimizer()
            };
            (STEPS, with)
        }
        _ => {
            let with = Optimizer {
                learning_rate: (1u64 << 24) as f64,
                ..Optimizer::default()
            };
            (1, with)
        }
    }
}

/// How far apart two lists of floats are, relative to the second's norm.
pub fn apart(found: &[u32], expected: &[u32]) -> f64 {
    let value = |bits: &u32| f64::from(f32::from_bits(*bits));
    let norm: f64 = expected.iter().map(|bits| value(bits).powi(2)).sum();
    let pairs = found.iter().zip(expected);
    let difference: f64 = pairs.map(|(a, b)| (value(a) - value(b)).powi(2)).sum();
    assert_eq!(found.len(), expected.len());
    // A NaN must not pass as near.
    match (difference / (norm + 1e-12)).sqrt() {
        apart if apart.is_nan() => f64::INFINITY,
        apart => apart,
    }
}

/// Holds losses and weights to others', and states by a tolerance of their own: second moments are
/// squares.
pub fn assert_near(
    what: &str,
    found: &Outcome,
    expected: &Outcome,
    (tolerance, of_states): (f64, f64),
) {
    for (a, b) in found.losses.iter().zip(&expected.losses) {
        let (a, b) = (f64::from_bits(*a), f64::from_bits(*b));
        assert!(
            (a - b).abs() <= tolerance * b,
            "{what}: loss {a}, expected {b}"
        );
    }
    for ((name, a), (_, b)) in found.weights.iter().zip(&expected.weights) {
        let apart = apart(a, b);
        assert!(apart <= tolerance, "{what} {name}: {apart:.1e} apart");
    }
    assert_eq!(found.states.len(), expected.states.len());
    for ((name, a), b) in found.states.iter().zip(expected.states.values()) {
        let apart = apart(a, b);
        assert!(
            apart <= of_states,
            "{what} states of {name}: {apart:.1e} apart"
        );
    }
}

/// A plan with everything in it, on both devices, and against the step without a plan on this one;
/// with cuDNN's attention, whose dQ has no fixed bits, only on both devices.
fn step(name: &str, method: Method, dtype: Dtype, deterministic: bool) {
    let model = model(name);
    let mut cut = Cut::new(method, 2);
    cut.workload.dtype = dtype;
    cut.workload.accumulate = 1;
    let planned = mixed(&problem(&model, &cut));
    let what = format!("{name} {method} {dtype}");
    let (steps, with) = telling(method);
    let how = (steps, &with);
    let (found, notes) = run_noted(card(deterministic), (&model, &cut, &planned), how);
    let as_asked = |note: &String| note.contains(" by cuDNN") != deterministic;
    assert!(
        !notes.is_empty() && notes.iter().all(as_asked),
        "{what}: {notes:?}"
    );
    let expected = run(processor(), (&model, &cut, &planned), how);
    let tolerance = match dtype {
        // A card rounds sums otherwise than the stand-in does.
        Dtype::F32 => (2e-5, 5e-6),
        _ => (5e-2, 2e-2),
    };
    assert_near(&what, &found, &expected, tolerance);
    if deterministic {
        let plain = run(card(true), (&model, &cut, &straight(&planned)), how);
        assert_eq!(found.difference(&plain), None, "{what}");
    }
}

#[test]
fn every_model_in_f32() {
    if !is_there() {
        return;
    }
    for (name, method) in models::names().zip(METHODS.into_iter().cycle()) {
        step(name, method, Dtype::F32, true);
    }
}

#[test]
fn every_model_in_bf16() {
    if !is_there() {
        return;
    }
    for (name, method) in models::names().zip(METHODS.into_iter().cycle().skip(1)) {
        step(name, method, Dtype::Bf16, true);
    }
}

/// Of these, heads are of 8: cuDNN's attention, with scratch memory as it is planned.
#[test]
fn models_in_bf16_by_cudnn() {
    if !is_there() || !has_cudnn() {
        return;
    }
    for (name, method) in ["gqa", "qk-norm"].into_iter().zip(METHODS) {
        step(name, method, Dtype::Bf16, false);
    }
}

/// A plan and the step without one leave the same bits; `plain`: what those of this cut left.
fn same_bits(
    what: &str,
    (model, cut, planned): (&ModelConfig, &Cut, &Schedule),
    plain: &mut Kept<Outcome>,
) {
    let how = (STEPS, &optimizer());
    let found = run(card(true), (model, cut, planned), how);
    let plain = plain.of(planned, |straight| {
        run(card(true), (model, cut, straight), how)
    });
    assert_eq!(found.difference(plain), None, "{what}");
}

#[test]
fn strategies_give_the_same_bits() {
    if !is_there() {
        return;
    }
    let model = model("gqa");
    let mut cut = Cut::new(Method::AdamW, 2);
    cut.workload.accumulate = 2;
    let free = problem(&model, &cut);
    let mut seen: Vec<Schedule> = Vec::new();
    let mut plain = Kept::new();
    for (strategy, mut planned) in by_strategies(&with_budget(&free, 25)) {
        planned.budget = free.budget;
        if seen.len() < 4 && !seen.contains(&planned) {
            same_bits(&strategy, (&model, &cut, &planned), &mut plain);
            seen.push(planned);
        }
    }
    assert!(seen.len() > 2, "only {} schedules", seen.len());
}

#[test]
fn random_plans_give_the_same_bits() {
    if !is_there() {
        return;
    }
    let mut random = Random::new(5);
    for (name, method) in models::names().zip(METHODS.into_iter().cycle()) {
        let model = model(name);
        let cut = random_cut(method, model.kv_heads, &mut random);
        let problem = problem(&model, &cut);
        let planned = schedule(&problem, &random_plan(&problem, &mut random));
        same_bits(name, (&model, &cut, &planned), &mut Kept::new());
    }
}

#[test]
fn clipped_gradients() {
    if !is_there() {
        return;
    }
    let model = model("qk-norm");
    // LOMO in two passes.
    for method in [Method::AdamW, Method::Lomo] {
        let mut cut = Cut::new(method, 2);
        cut.workload.accumulate = 1;
        cut.workload.clip = true;
        let planned = mixed(&problem(&model, &cut));
        let (steps, with) = telling(method);
        let with = Optimizer {
            clip: Some(0.5),
            ..with
        };
        let how = (steps, &with);
        let found = run(card(true), (&model, &cut, &planned), how);
        let expected = run(processor(), (&model, &cut, &planned), how);
        assert_near(
            &format!("{method} clipped"),
            &found,
            &expected,
            (5e-6, 5e-6),
        );
    }
}
