//! What training methods promise of each other, on the CPU device.

use ebbtide::device::cpu::CpuOptions;
use ebbtide::execute::{Optimizer, Session};
use ebbtide::format::schedule::ScheduleFile;
use ebbtide::methods::{LowRank, Method, Rank};
use ebbtide::model::ModelConfig;
use ebbtide::training::places;
use ebbtide::training::tokens::{Batch, Tokens};
use ebbtide_solver::check::check;
use ebbtide_solver::plan::Plan;
use ebbtide_solver::schedule::{Action, Instruction, Stream};

use super::models::{self, model};
use super::plans::*;
use super::runs::{batches, first_step, optimizer, outcome, run, session, Outcome};

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

/// C2: loss and input gradients are exact, so that after a step all that is not compressed is where
/// AdamW brings it, bit by bit; what is compressed is not.
#[test]
fn c2_compact_leaves_loss_and_input_gradients_as_they_are() {
    for name in ["gqa", "bias", "gpt2"] {
        let model = model(name);
        let compact = Method::Compact(LowRank::COMPACT);
        let adamw = after_one(&model, &single(Method::AdamW));
        let found = after_one(&model, &single(compact));
        assert_eq!(found.losses, adamw.losses, "{name}");
        let mut changed = 0;
        for ((part, found), (_, expected)) in found.weights.iter().zip(&adamw.weights) {
            let compressed = ["qkv of", "gate_up of", "up of", "down of"];
            if compressed.iter().any(|c| part.starts_with(c)) {
                assert_ne!(found, expected, "{name}: {part}");
                changed += 1;
            } else if !part.starts_with("o of") {
                assert_eq!(found, expected, "{name}: {part}");
            }
        }
        assert_eq!(changed, 3 * model.layers, "{name}");
    }
}

/// What one step from the same weights leaves.
fn after_one(model: &ModelConfig, cut: &Cut) -> Outcome {
    let file = keep(model, cut);
    let mut session = session(&file, model, CpuOptions::default(), 3).unwrap();
    let batches = batches(&file, model, 0, 3);
    let loss = session.step(0, &batches, &optimizer()).unwrap().loss;
    outcome(&mut session, model, vec![loss.to_bits()]).unwrap()
}

/// C5: micro-batches share a projection, so that two of them are one batch of both, but for the
/// order of sums.
#[test]
fn c5_micro_batches_of_compact_are_one_batch() {
    let model = model("gqa");
    let (mut whole, mut cut) = (
        single(Method::Compact(LowRank::COMPACT)),
        single(Method::Sgd),
    );
    cut.method = whole.method;
    cut.workload.accumulate = 2;
    (cut.workload.batch, whole.workload.batch) = (1, 2);
    let tokens = Tokens::Synthetic {
        vocab: model.vocab,
        seed: 5,
    };
    let steps = |batch: u64| -> Vec<Vec<Batch>> {
        let of_step = |step: u64| (0..2 / batch).map(move |nth| step * 2 + nth * batch);
        let batches = |step| {
            of_step(step)
                .map(|first| tokens.batch(first, batch, 20))
                .collect()
        };
        (0..3).map(batches).collect()
    };
    let found = trained(&keep(&model, &cut), &model, &steps(1), 1e-3);
    let expected = trained(&keep(&model, &whole), &model, &steps(2), 1e-3);
    let squares = |other: &dyn Fn(usize) -> f64| {
        let each = expected.iter().enumerate();
        each.map(|(i, e)| (e - other(i)).powi(2))
            .sum::<f64>()
            .sqrt()
    };
    let (gap, size) = (squares(&|i| found[i]), squares(&|_| 0.0));
    assert!(gap < 1e-5 * size, "{gap} of {size}");
    assert_ne!(found, expected);
}

/// L5: decay shortens weights by `1 − ηλ` beside the step: the difference that it makes is `ηλ w`.
#[test]
fn l5_decay_is_a_part_of_the_weights() {
    let model = model("gqa");
    let file = keep(&model, &single(Method::Lomo));
    let (rate, decay) = (0.25, 0.125);
    let after = |rate: f64, decay: f64| {
        let with = Optimizer {
            learning_rate: rate,
            weight_decay: decay,
            ..Optimizer::default()
        };
        first_step(&file, &model, 4, &with).unwrap()
    };
    let (before, free, decayed) = (after(0.0, 0.0), after(rate, 0.0), after(rate, decay));
    assert_ne!(free, decayed);
    for ((w, free), decayed) in before.iter().zip(&free).zip(&decayed) {
        let expected = f64::from(*free) - rate * decay * f64::from(*w);
        assert!(
            (f64::from(*decayed) - expected).abs() < 1e-6,
            "{w} {free} {decayed}"
        );
    }
}

/// G8: a renewal changes the projection and leaves the moments.
#[test]
fn g8_moments_stay_where_a_projection_is_renewed() {
    let model = model("gqa");
    let states = |refresh: u32, steps: u64| {
        let low_rank = LowRank {
            refresh,
            ..LowRank::GALORE
        };
        let file = keep(&model, &single(Method::Galore(low_rank)));
        let mut session = session(&file, &model, CpuOptions::default(), 3).unwrap();
        for step in 0..steps {
            let optimizer = Optimizer {
                // In the second step the first moment keeps all of what it was.
                beta1: if step == 0 { 0.9 } else { 1.0 - 1e-9 },
                learning_rate: 0.0,
                ..Optimizer::default()
            };
            let batches = batches(&file, &model, step, 3);
            session.step(step, &batches, &optimizer).unwrap();
        }
        session.states().unwrap()["block 0"].clone()
    };
    // Behind the moments of the first norm, 24 elements each: the projection of q [4 × 24], then
    // its moments [32 × 4].
    let (basis, moment) = (48..48 + 96, 144..144 + 128);
    let (once, renewed, stays) = (states(1, 1), states(1, 2), states(2, 2));
    assert_eq!(once, states(2, 1));
    assert_eq!(stays[basis.clone()], once[basis.clone()]);
    assert_ne!(renewed[basis.clone()], once[basis]);
    let largest = once[moment.clone()]
        .iter()
        .fold(0.0f32, |most, m| most.max(m.abs()));
    assert!(largest > 0.0);
    for (now, before) in renewed[moment.clone()].iter().zip(&once[moment]) {
        assert!((now - before).abs() <= 1e-6 * largest, "{now} {before}");
    }
}

/// Weights and states after so many steps of GaLore or Fira on matrices of 24 columns.
fn projected(method: fn(LowRank) -> Method, rank: u64, scale: f64, steps: u64) -> (Vec<f64>, f32) {
    let model = model("mha");
    let low_rank = LowRank {
        rank: Some(Rank::Of(rank)),
        scale,
        svd: true,
        ..LowRank::FIRA
    };
    let file = keep(&model, &single(method(low_rank)));
    let mut session = session(&file, &model, CpuOptions::default(), 3).unwrap();
    for step in 0..steps {
        let batches = batches(&file, &model, step, 3);
        session.step(step, &batches, &Optimizer::default()).unwrap();
    }
    let states = session.states().unwrap()["block 0"].clone();
    // Behind the moments of the first norm and q's projection and moments: its last residual.
    let norm = states[48 + 3 * 24 * rank as usize];
    let all = places(&model).flat_map(|place| session.weight(place).unwrap());
    (all.map(f64::from).collect(), norm)
}

/// G13: with α = 1 a projection to all dimensions leaves nothing, so that Fira is GaLore; with
/// another α or fewer dimensions it does.
#[test]
fn g13_fira_at_full_rank_is_galore() {
    let apart = |rank: u64, scale: f64| {
        let (before, _) = projected(Method::Galore, rank, scale, 0);
        let (galore, _) = projected(Method::Galore, rank, scale, 2);
        let (fira, _) = projected(Method::Fira, rank, scale, 2);
        let norm = |a: &[f64], b: &[f64]| {
            let squares = a.iter().zip(b).map(|(a, b)| (a - b).powi(2));
            squares.sum::<f64>().sqrt()
        };
        norm(&fira, &galore) / norm(&galore, &before)
    };
    let (full, scaled, small) = (apart(24, 1.0), apart(24, 0.5), apart(6, 1.0));
    assert!(full < 1e-3, "{full}");
    assert!(scaled > 0.1 && small > 0.1, "{scaled} {small}");
}

/// G12, of Fira's residual.
#[test]
fn g12_the_residual_of_fira_grows_slowly() {
    let norms: Vec<f32> = (1..8)
        .map(|n| projected(Method::Fira, 6, 0.25, n).1)
        .collect();
    let growth = norms.windows(2).map(|pair| pair[1] / pair[0]);
    let most = growth.fold(0.0, f32::max);
    assert!(norms[0] > 0.0 && most < 1.01 + 1e-5, "{norms:?}");
    assert!(most > 1.0099, "it never limited: {norms:?}");
}

/// Weights before, and after each of two steps of FLORA on two micro-batches of ten labels each: as
/// told, of the first sequence, of the second.
fn accumulated(parts: [[bool; 2]; 2]) -> Vec<Vec<(String, Vec<f32>)>> {
    let model = model("gqa");
    let low_rank = LowRank {
        rank: Some(Rank::Of(2)),
        ..LowRank::FLORA
    };
    let mut cut = single(Method::Flora(low_rank));
    cut.workload.accumulate = 2;
    let file = keep(&model, &cut);
    let mut session = session(&file, &model, CpuOptions::default(), 3).unwrap();
    let tokens = Tokens::Synthetic {
        vocab: model.vocab,
        seed: 4,
    };
    let mut weights = Vec::new();
    for step in 0..3 {
        let named = places(&model).map(|place| {
            let name = format!("{} of block {:?}", place.weight.part.name(), place.block);
            (name, session.weight(place).unwrap())
        });
        weights.push(named.collect());
        let batches = parts.map(|counted| {
            let mut batch = tokens.batch(2 * step, 2, 20);
            for (sequence, counts) in batch.labels.chunks_mut(20).zip(counted) {
                if !counts {
                    sequence.fill(ebbtide::training::tokens::IGNORED);
                }
            }
            batch
        });
        let with = Optimizer {
            learning_rate: 0.1,
            ..Optimizer::default()
        };
        session.step(step, &batches, &with).unwrap();
    }
    weights
}

/// F2 and F5: what micro-batches add up to is what one of them with all labels has; a step moves
/// a matrix within the rank of its projection, and the next step in another direction.
#[test]
fn f2_f5_accumulated_gradients_have_the_rank_of_their_projection() {
    let each = accumulated([[true, false], [false, true]]);
    let first = accumulated([[true, true], [false, false]]);
    let values = |nth: usize, weights: &[(String, Vec<f32>)]| -> Vec<f64> {
        let moved = weights[nth].1.iter().zip(&each[0][nth].1);
        moved.map(|(a, b)| f64::from(*a) - f64::from(*b)).collect()
    };
    let norm = |v: &[f64]| v.iter().map(|v| v * v).sum::<f64>().sqrt();
    let rank = |moved: &[f64], columns: usize| {
        let rows = moved.len() / columns;
        let matrix = faer::Mat::from_fn(rows, columns, |i, j| moved[i * columns + j]);
        let values = matrix.singular_values().unwrap();
        values.iter().filter(|&&v| v > 1e-3 * values[0]).count()
    };
    let mut matrices = 0;
    for nth in 0..each[0].len() {
        let (one, other) = (values(nth, &each[1]), values(nth, &first[1]));
        let apart: Vec<f64> = one.iter().zip(&other).map(|(a, b)| a - b).collect();
        let name = &each[0][nth].0;
        assert!(norm(&apart) <= 1e-3 * norm(&one), "{name}");
        let columns = match name {
            name if name.starts_with("down of") => 40,
            name if name.starts_with("o of") => 32,
            name if name.starts_with("gate_up of") => 24,
            _ => continue,
        };
        // Gate and up are projected one by one.
        let half = if columns == 24 {
            one.len() / 2
        } else {
            one.len()
        };
        assert_eq!(rank(&one[..half], columns), 2, "{name}");
        assert!(rank(&values(nth, &each[2])[..half], columns) > 2, "{name}");
        matrices += 1;
    }
    assert_eq!(matrices, 9);
}
