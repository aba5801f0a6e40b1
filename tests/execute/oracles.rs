//! What training methods promise of each other, on the CPU device.

use ebbtide::device::cpu::CpuOptions;
use ebbtide::execute::{Optimizer, Session};
use ebbtide::format::schedule::ScheduleFile;
use ebbtide::methods::Method;
use ebbtide::model::ModelConfig;
use ebbtide::training::places;
use ebbtide::training::tokens::{Batch, Tokens};
use ebbtide_solver::check::check;
use ebbtide_solver::plan::Plan;
use ebbtide_solver::schedule::{Action, Instruction, Stream};

use super::models::{self, model};
use super::plans::*;
use super::runs::{run, session, Outcome};

/// A run by the plan that keeps everything.
fn kept(model: &ModelConfig, cut: &Cut, seed: u64) -> Outcome {
    let file = keep(model, cut);
    run(&file, model, CpuOptions::default(), seed).unwrap().0
}

fn keep(model: &ModelConfig, cut: &Cut) -> ScheduleFile {
    let problem = problem(model, cut);
    let plan = Plan::keep_all(&problem);
    file_of(model, cut, schedule(&problem, &plan))
}

fn single(method: Method) -> Cut {
    let mut cut = Cut::new(method, 2);
    cut.workload.accumulate = 1;
    cut
}

/// L1, and of L2 that it does not matter when a weight is updated.
#[test]
fn lomo_is_descent_bit_for_bit() {
    for name in models::names() {
        let model = model(name);
        let descent = kept(&model, &single(Method::Sgd), 3);
        let lomo = kept(&model, &single(Method::Lomo), 3);
        assert_eq!(lomo.difference(&descent), None, "{name}");
    }
}

/// Small tensors are not worth 8 bits, and f32 needs no rounding: then both are AdamW.
#[test]
fn small_tensors_in_f32_follow_adamw_bit_for_bit() {
    for name in models::names() {
        let model = model(name);
        let adamw = kept(&model, &single(Method::AdamW), 4);
        for method in [Method::AdamWBf16Sr, Method::AdamW8bit] {
            let mut found = kept(&model, &single(method), 4);
            // The same numbers, in another order.
            assert_ne!(found.states, adamw.states);
            found.states = adamw.states.clone();
            assert_eq!(found.difference(&adamw), None, "{name} {method}");
        }
    }
}

/// The rest of L2: an update before the input's gradient changes what is upstream, and the checker
/// refuses it.
#[test]
fn an_update_before_the_input_gradient_is_wrong_and_refused() {
    let model = model("gqa");
    let mut cut = single(Method::Lomo);
    (cut.tile, cut.head_tile) = (40, 40);
    let good = keep(&model, &cut);
    assert_eq!(check(&good.schedule), []);
    let mut bad = good.clone();
    let ops = bad.schedule.ops.clone();
    let values = bad.schedule.values.clone();
    let buffers = bad.schedule.buffers.clone();
    let is = |instruction: &Instruction, name: &str, value: &str| {
        let Action::Run(op) = instruction.action else {
            return false;
        };
        let named = |b| buffers.get(b).and_then(|b| values.get(b.value?));
        let mut operands = instruction.operands.iter().filter_map(|o| named(o.buffer));
        ops[op].name == name && operands.any(|v| v.name == value && v.block == Some(1))
    };
    let stream = &mut bad.schedule.streams[Stream::Compute as usize];
    let at = |name: &str, value: &str| stream.iter().position(|i| is(i, name, value)).unwrap();
    let (input, update) = (
        at("down_input_gradient", "down.weight"),
        at("lomo_update", "down.weight"),
    );
    let needs = at("down_weight_gradient", "down.gradient");
    assert_eq!(needs, input + 1);
    let moved = stream.remove(update);
    stream.swap(input, needs);
    stream.insert(needs, moved);
    let violations = check(&bad.schedule);
    assert!(
        violations
            .iter()
            .any(|v| v.to_string().starts_with("weights-updated-early")),
        "{violations:?}"
    );
    let of = |file: &ScheduleFile| run(file, &model, CpuOptions::default(), 6).unwrap().0;
    let (right, wrong) = (of(&good), of(&bad));
    assert_eq!(right.losses[0], wrong.losses[0]);
    let upstream = |outcome: &Outcome| {
        let named = |w: &&(String, Vec<u32>)| w.0.starts_with("gate_up of block Some(1)");
        outcome.weights.iter().find(named).unwrap().1.clone()
    };
    assert_ne!(upstream(&right), upstream(&wrong));
}

/// Weights after steps on these batches, one each.
fn trained(file: &ScheduleFile, model: &ModelConfig, steps: &[Vec<Batch>], rate: f64) -> Vec<f64> {
    let mut session: Session<'_> = session(file, model, CpuOptions::default(), 8).unwrap();
    for (step, batches) in (0..).zip(steps) {
        let with = Optimizer {
            learning_rate: rate,
            ..Optimizer::default()
        };
        session.step(step, batches, &with).unwrap();
    }
    let all = places(model).flat_map(|place| session.weight(place).unwrap());
    all.map(f64::from).collect()
}

/// L4: steps of LOMO on parts of a batch are not a step on the whole; they differ in second order
/// of the learning rate.
#[test]
fn micro_steps_of_lomo_differ_from_accumulation_in_second_order() {
    let model = model("mha");
    let tokens = Tokens::Synthetic {
        vocab: model.vocab,
        seed: 5,
    };
    let batch = |nth: u64| tokens.batch(nth * 2, 2, 20);
    let (lomo, mut cut) = (single(Method::Lomo), single(Method::Sgd));
    cut.workload.accumulate = 3;
    let (lomo, sgd) = (keep(&model, &lomo), keep(&model, &cut));
    let gap = |rate: f64| {
        let micro: Vec<_> = (0..3).map(|nth| vec![batch(nth)]).collect();
        let micro = trained(&lomo, &model, &micro, rate);
        // Its gradient is of the mean over all three.
        let whole = (0..3).map(batch).collect();
        let whole = trained(&sgd, &model, &[whole], 3.0 * rate);
        let squares = micro.iter().zip(whole).map(|(a, b)| (a - b).powi(2));
        squares.sum::<f64>().sqrt()
    };
    let gaps = [0.4, 0.2, 0.1].map(gap);
    assert!(gaps[2] > 1e-5, "{gaps:?}");
    for pair in gaps.windows(2) {
        let ratio = pair[0] / pair[1];
        assert!((3.3..5.0).contains(&ratio), "{gaps:?}");
    }
}
