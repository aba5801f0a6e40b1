//! Steps of every method that changes whole tensors: near the CPU device's, and the same bits for
//! every plan.

use ebbtide::execute::Optimizer;
use ebbtide::methods::{Method, Told};
use ebbtide::profile::Dtype;

use super::models::{self, model};
use super::plans::{mixed, problem, random_cut, random_plan, schedule, Cut};
use super::runs::{optimizer, Outcome};
use super::steps::{apart, processor, run, run_straight};
use super::support::tiny::random::Random;
use super::{card, is_there};

/// Projections are renewed in the first step and in the third.
const STEPS: u64 = 3;

/// Every method that changes tensors; of those that have the choice, also with moments in 8 bits
/// and layer by layer, FLORA without and with sums of low rank.
fn methods() -> Vec<Method> {
    let mut all = vec![Method::AdamWBf16Sr, Method::AdamW8bit, Method::AdaLomo];
    for method in Method::ALL.into_iter().filter(|m| m.low_rank().is_some()) {
        let told = |eight_bit, per_layer| {
            let told = Told {
                refresh: Some(2),
                eight_bit,
                per_layer,
                ..Told::default()
            };
            method.told(told).unwrap()
        };
        all.push(told(false, false));
        match method {
            Method::Galore(_) | Method::Fira(_) => all.push(told(true, true)),
            Method::Flora(_) => all.push(told(false, true)),
            _ => {}
        }
    }
    all
}

/// All models from one on, again and again.
fn names(first: usize) -> impl Iterator<Item = &'static str> {
    let all: Vec<_> = models::names().collect();
    (first..).map(move |at| all[at % all.len()])
}

/// An ε so large that elements which are 0 but for rounding do not count; clipped by value. Steps
/// of AdaLomo and FLORA are shares of a weight, and long: shorter ones are less than bf16 may be
/// off.
fn with(method: Method) -> Optimizer {
    let learning_rate = match method {
        Method::AdaLomo | Method::Flora(_) => 0.3,
        _ => optimizer().learning_rate,
    };
    Optimizer {
        learning_rate,
        epsilon: 1e-3,
        clip_value: Some(0.05),
        ..optimizer()
    }
}

/// In bf16 an element in 64 is left out: where a step is a share of the weight, whatever the
/// gradient's size, one that is 0 but for rounding goes either way.
fn assert_near(what: &str, found: &Outcome, expected: &Outcome, dtype: Dtype) {
    let (tolerance, left_out) = match dtype {
        Dtype::F32 => (1e-4, 0),
        _ => (5e-2, 1),
    };
    for (a, b) in found.losses.iter().zip(&expected.losses) {
        let (a, b) = (f64::from_bits(*a), f64::from_bits(*b));
        let near = (a - b).abs() <= tolerance * b;
        assert!(near, "{what}: loss {a}, expected {b}");
    }
    for ((name, a), (_, b)) in found.weights.iter().zip(&expected.weights) {
        let finite = a.iter().all(|&bits| f32::from_bits(bits).is_finite());
        assert!(finite, "{what} {name}: not all of it is finite");
        let mut pairs: Vec<(u32, u32)> = a.iter().copied().zip(b.iter().copied()).collect();
        let apart_by = |&(a, b): &(u32, u32)| (f32::from_bits(a) - f32::from_bits(b)).abs();
        pairs.sort_by(|one, other| apart_by(one).total_cmp(&apart_by(other)));
        pairs.truncate(a.len() - left_out * a.len().div_ceil(64));
        let (a, b): (Vec<u32>, Vec<u32>) = pairs.into_iter().unzip();
        let apart = apart(&a, &b);
        assert!(apart <= tolerance, "{what} {name}: {apart:.1e} apart");
    }
}

/// A plan with everything in it on both devices, and of bf16 the step without one on this.
fn step(name: &str, method: Method, dtype: Dtype, clip: bool) {
    let model = model(name);
    let mut cut = Cut::new(method, 2);
    (cut.workload.dtype, cut.workload.clip) = (dtype, clip);
    let planned = mixed(&problem(&model, &cut));
    let what = format!("{name} {method} {dtype}");
    let with = Optimizer {
        clip: clip.then_some(0.5),
        ..with(method)
    };
    let how = (STEPS, &with);
    let found = run(card(true), (&model, &cut, &planned), how);
    let expected = run(processor(), (&model, &cut, &planned), how);
    assert_near(&what, &found, &expected, dtype);
    if dtype == Dtype::F32 {
        return;
    }
    let plain = run_straight(card(true), (&model, &cut, &planned), how);
    assert_eq!(found.difference(&plain), None, "{what}");
}

#[test]
fn every_method_in_f32() {
    if !is_there() {
        return;
    }
    for (method, name) in methods().into_iter().zip(names(0)) {
        if method != Method::AdamWBf16Sr {
            step(name, method, Dtype::F32, !method.fused());
        }
    }
}

#[test]
fn every_method_in_bf16() {
    if !is_there() {
        return;
    }
    for (method, name) in methods().into_iter().zip(names(3)) {
        step(name, method, Dtype::Bf16, false);
    }
}

/// Whatever travels, is made again or is updated on the host.
#[test]
fn random_plans_give_the_same_bits() {
    if !is_there() {
        return;
    }
    let mut random = Random::new(11);
    for (method, name) in methods().into_iter().zip(names(0)).step_by(3) {
        let model = model(name);
        let mut cut = random_cut(method, model.kv_heads, &mut random);
        cut.workload.dtype = Dtype::Bf16;
        let problem = problem(&model, &cut);
        let planned = schedule(&problem, &random_plan(&problem, &mut random));
        let how = (STEPS, &with(method));
        let found = run(card(true), (&model, &cut, &planned), how);
        let plain = run_straight(card(true), (&model, &cut, &planned), how);
        assert_eq!(found.difference(&plain), None, "{name} {method}");
    }
}
