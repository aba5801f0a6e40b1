//! What training methods cost by the planner, beside what their papers print, and what they refuse.
//!
//! GiB is 2³⁰ bytes. Published numbers that follow from no formula that their papers state are
//! listed in `docs/methods.md` and not reproduced.

mod compact;

use ebbtide::device::arithmetic::Arithmetic;
use ebbtide::error::Kind;
use ebbtide::format::schedule::{Predicted, ScheduleFile};
use ebbtide::lower::{lower, tilings, Lowered, Workload};
use ebbtide::memory;
use ebbtide::methods::{LowRank, Method, Rank, Told};
use ebbtide::model::{self, compressed_step_graph, ModelConfig};
use ebbtide::planning::{plan, Request};
use ebbtide::profile::{self, Dtype};
use ebbtide_solver::problem::{Budget, Category};
use ebbtide_solver::search::{Options, Strategy};
use ebbtide_solver::units::{Bytes, Nanos};

const GIB: f64 = (1u64 << 30) as f64;

fn roomy() -> Budget {
    let all = Bytes::new(1 << 44);
    Budget {
        device: all,
        host: all,
    }
}

fn workload(seq: u64, dtype: Dtype) -> Workload {
    Workload {
        seq,
        batch: 1,
        accumulate: 1,
        dtype,
        clip: false,
    }
}

fn lowered(model: &ModelConfig, method: Method) -> Lowered {
    lowered_for(model, method, &workload(512, Dtype::Bf16))
}

fn lowered_for(model: &ModelConfig, method: Method, workload: &Workload) -> Lowered {
    let profile = profile::load("h100-sxm5-80gb").unwrap();
    let tiling = tilings(model, workload)[0];
    let method = method.resolved(model).unwrap();
    let graph = compressed_step_graph(model, method.compressed(model));
    lower(&graph, model, &profile, method, workload, roomy(), tiling).unwrap()
}

/// GiB of all values of a category.
fn gib(lowered: &Lowered, category: Category) -> f64 {
    let problem = &lowered.problem;
    let values = problem.values.iter().filter(|v| v.1.category == category);
    let bytes: u64 = values.map(|(id, _)| problem.value_bytes(id).get()).sum();
    bytes as f64 / GIB
}

/// The most bytes of gradients that live at once when everything is kept.
fn gradient_peak(model: &ModelConfig, method: Method) -> u64 {
    let profile = profile::load("h100-sxm5-80gb").unwrap();
    let request = Request {
        model,
        profile: &profile,
        workload: workload(512, Dtype::Bf16),
        method,
        storage: None,
        arithmetic: Arithmetic::Plain,
        budget: roomy(),
    };
    let planned = plan(&request, Strategy::Keep, &Options::default()).unwrap();
    let schedule = planned.expect("it fits").file.schedule;
    let (mut live, mut peak) = (0i128, 0);
    for change in memory::changes(&schedule) {
        let buffer = &schedule.buffers[change.buffer];
        if buffer.category == Category::Gradients {
            live += i128::from(buffer.bytes.get()) * if change.begins { 1 } else { -1 };
            peak = peak.max(live);
        }
    }
    u64::try_from(peak).unwrap()
}

fn close(found: f64, published: f64) {
    assert!(
        (found - published).abs() < 0.005,
        "{found}, published {published}"
    );
}

/// P1: LOMO's table 1, LLaMA-7B: 12.55 GiB of parameters and of gradients, 75.31 of AdamW's states.
/// SGD's 25.10 are a master and a momentum, which this SGD does not have.
#[test]
fn p1_states_of_llama_7b() {
    let model = model::load("llama-2-7b").unwrap();
    assert_eq!(model.parameters(), 6_738_415_616);
    let adamw = lowered(&model, Method::AdamW);
    close(gib(&adamw, Category::Weights), 12.55);
    close(gib(&adamw, Category::Gradients), 12.55);
    close(gib(&adamw, Category::OptimizerStates), 75.31);
    let lomo = lowered(&model, Method::Lomo);
    assert_eq!(gib(&lomo, Category::OptimizerStates), 0.0);
    // With activation checkpointing the paper adds 1.79: 102.20 in all.
    let sum = [
        Category::Weights,
        Category::Gradients,
        Category::OptimizerStates,
    ];
    let adamw: f64 = sum.iter().map(|&c| gib(&adamw, c)).sum();
    assert!((adamw + 1.79 - 102.20).abs() < 0.01, "{adamw}");
}

/// P1: "gradients 0.24" is the largest tensor, 32000 × 4096 in bf16, and 14.58 GiB the sum with
/// activation checkpointing. Weights of a stage are updated when the stage is over, so that two
/// gradients of an MLP and a norm's live at once and are a little more: 0.252.
#[test]
fn p1_fused_methods_keep_one_stages_gradients() {
    let model = model::load("llama-2-7b").unwrap();
    close((2 * 32000 * 4096) as f64 / GIB, 0.24);
    for method in [Method::Lomo, Method::AdaLomo] {
        let peak = gradient_peak(&model, method);
        assert_eq!(peak, 2 * (3 * 11008 * 4096 + 4096), "{method}");
        let weights = gib(&lowered(&model, method), Category::Weights);
        let all = weights + peak as f64 / GIB + 1.79;
        assert!((all - 14.58).abs() < 0.02, "{all}");
    }
    let adamw = gradient_peak(&model, Method::AdamW);
    assert_eq!(adamw, 2 * model.parameters());
}

/// Clipped by the global norm, LOMO goes forward and backward twice: no gradient more is kept, the
/// floor is twice and what the norms take, and the model's FLOPs count once.
#[test]
fn clipping_lomo_takes_a_second_pass_and_no_memory() {
    let model = model::load("tiny-llama-10m").unwrap();
    let profile = profile::load("h100-sxm5-80gb").unwrap();
    let planned = |clip: bool| {
        let request = Request {
            model: &model,
            profile: &profile,
            workload: Workload {
                clip,
                ..workload(2048, Dtype::Bf16)
            },
            method: Method::Lomo,
            storage: None,
            arithmetic: Arithmetic::Plain,
            budget: roomy(),
        };
        let planned = plan(&request, Strategy::Keep, &Options::default()).unwrap();
        planned.expect("it fits").file
    };
    let (one, two) = (planned(false), planned(true));
    assert_eq!((one.schedule.passes, two.schedule.passes), (1, 2));
    let (before, after) = (&one.predicted, &two.predicted);
    let steps = after.step.get() as f64 / before.step.get() as f64;
    assert!((1.9..2.1).contains(&steps), "{steps}");
    assert_eq!(after.step, after.floor);
    let flops = |mfu: f64, step: Nanos| mfu * step.get() as f64;
    let of_model = flops(after.mfu, after.step) / flops(before.mfu, before.step);
    let executed = flops(after.hfu, after.step) / flops(before.hfu, before.step);
    assert!((of_model - 1.0).abs() < 1e-9, "{of_model}");
    assert!((executed - 2.0).abs() < 1e-9, "{executed}");
    let tokens = |p: &Predicted| p.tokens_per_s * p.step.get() as f64;
    assert!((tokens(after) / tokens(before) - 1.0).abs() < 1e-9);
    assert_eq!(after.peak_live, before.peak_live);
}

/// Beside GaLore's states Fira keeps one number for each matrix of a layer: the last residual's
/// norm.
#[test]
fn fira_keeps_a_number_more_than_galore() {
    let model = model::load("llama-2-7b").unwrap();
    let bytes = |method| gib(&lowered(&model, method), Category::OptimizerStates) * GIB;
    let more = bytes(Method::Fira(LowRank::FIRA)) - bytes(Method::Galore(LowRank::GALORE));
    assert_eq!(more, 4.0 * 7.0 * 32.0);
}

fn galore(told: Told) -> Method {
    Method::Galore(LowRank::GALORE).told(told).unwrap()
}

/// P8: 8-bit GaLore of rank 1024, 18G: weights 12.55, projections and moments 4.81, the rest 0.50.
#[test]
fn p8_eight_bit_galore_of_7b() {
    let model = model::load("llama-2-7b").unwrap();
    let method = galore(Told {
        rank: Some(Rank::Of(1024)),
        eight_bit: true,
        ..Told::default()
    });
    let lowered = lowered(&model, method);
    let states = gib(&lowered, Category::OptimizerStates);
    let outside = lowered
        .problem
        .states
        .iter()
        .filter(|g| !g.name.starts_with("block"));
    let outside = outside.map(|g| lowered.problem.value_bytes(g.states.unwrap()).get());
    let outside = outside.sum::<u64>() as f64 / GIB;
    // Norms are in f32: they are smaller than a block of 8-bit moments is worth.
    assert!(
        (states - outside - 4.81).abs() < 0.01,
        "{states}, {outside}"
    );
    close(outside, 0.50);
    let all = gib(&lowered, Category::Weights) + states;
    assert!((all - 17.86).abs() < 0.01, "{all}");
}

/// P9: updating layer by layer saves 13.5G of gradients, in decimal GB.
#[test]
fn p9_galore_layer_by_layer_saves_the_gradients() {
    let model = model::load("llama-2-7b").unwrap();
    let per_layer = galore(Told {
        per_layer: true,
        ..Told::default()
    });
    let kept = gradient_peak(&model, galore(Told::default()));
    let fused = gradient_peak(&model, per_layer);
    assert!((kept as f64 / 1e9 - 13.48).abs() < 0.005, "{kept}");
    assert!(fused < 271_000_000, "{fused}");
}

/// Bytes of states for a parameter, or for a matrix's sides.
#[test]
fn states_are_those_of_the_formulas() {
    let model = model::load("llama-2-7b").unwrap();
    let parameters = model.parameters() as f64 / GIB;
    let states = |method| gib(&lowered(&model, method), Category::OptimizerStates);
    assert!((states(Method::AdamWBf16Sr) - 4.0 * parameters).abs() < 1e-9);
    let eight_bit = states(Method::AdamW8bit) / parameters;
    // 2 (1 + 4/256); 65 norms of 4096 are in 8 bits too.
    assert!((eight_bit - 2.03125).abs() < 1e-6, "{eight_bit}");
    let sides: u64 = 2 * 36096 + 32 * (4 * 8192 + 3 * 15104) + 65 * 4096;
    let adalomo = states(Method::AdaLomo) * GIB;
    assert!((adalomo - 4.0 * sides as f64).abs() < 1.0, "{adalomo}");
    // APOLLO of rank r: 2 r M f32 moments and a norm for each matrix, AdamW on the rest.
    let (r, rest) = (256u64, 2u64 * 32000 * 4096 + 65 * 4096);
    let blocks = 32 * (4 * (8 * r * 4096 + 4) + 3 * (8 * r * 11008 + 4));
    let apollo = states(Method::Apollo(LowRank::APOLLO)) * GIB;
    assert!(
        (apollo - (blocks + 8 * rest) as f64).abs() < 1.0,
        "{apollo}"
    );
    let mini = states(Method::ApolloMini(LowRank::APOLLO_MINI)) * GIB;
    let blocks = 32u64 * (4 * (8 * 4096 + 4) + 3 * (8 * 11008 + 4));
    assert!((mini - (blocks + 8 * rest) as f64).abs() < 1.0, "{mini}");
}

/// M4: a larger rank never needs less, in states and in scratch memory.
#[test]
fn m4_a_larger_rank_never_lowers_memory() {
    let model = model::load("llama-2-7b").unwrap();
    for method in Method::ALL.into_iter().filter(|m| m.low_rank().is_some()) {
        let mut before = (0.0, 0);
        for rank in [1, 16, 128, 1024, 4096] {
            let told = Told {
                rank: Some(Rank::Of(rank)),
                ..Told::default()
            };
            let lowered = lowered(&model, method.told(told).unwrap());
            let scratch = lowered.problem.ops.values().map(|op| op.workspace.fixed);
            let now = (
                gib(&lowered, Category::OptimizerStates),
                scratch.max().unwrap(),
            );
            assert!(now.0 >= before.0 && now.1 >= before.1, "{method} {rank}");
            before = now;
        }
    }
}

/// A renewal by singular values is a spike, and one by iterations a small one; both are spread.
#[test]
fn renewals_are_amortised() {
    let model = model::load("llama-2-7b").unwrap();
    let with = |svd| {
        galore(Told {
            rank: Some(Rank::Of(1024)),
            svd,
            ..Told::default()
        })
    };
    let (svd, iterated) = (lowered(&model, with(true)), lowered(&model, with(false)));
    assert_eq!(svd.renewal.every, 200);
    assert!(svd.renewal.time > iterated.renewal.time);
    let updates = |lowered: &Lowered| -> u64 {
        let ops = lowered.problem.ops.values();
        let updates = ops.filter(|op| op.name == "galore_update");
        updates.map(|op| op.picos.fixed / 1000).sum()
    };
    let difference = (svd.renewal.time - iterated.renewal.time).get() / 200;
    let found = updates(&svd) - updates(&iterated);
    assert!(found.abs_diff(difference) <= 500, "{found} {difference}");
    assert!(svd.extrapolated.iter().any(|e| e.contains("singular")));
}

#[test]
fn what_cannot_be_combined_is_refused_with_a_way_out() {
    for method in [Method::Lomo, Method::AdaLomo] {
        let error = method.check(2, Dtype::F32, false).unwrap_err();
        assert_eq!(error.kind, Kind::BadInput);
        assert!(error.to_string().contains("cannot accumulate"), "{error}");
    }
    // Clipped, they go through one micro-batch twice; through several it would be for nothing.
    Method::Lomo.check(1, Dtype::F32, true).unwrap();
    let error = Method::AdamWBf16Sr.check(1, Dtype::F32, false).unwrap_err();
    assert!(error.to_string().contains("bf16"), "{error}");
    // Layer by layer, a low-rank method waits for the last micro-batch.
    let per_layer = galore(Told {
        per_layer: true,
        ..Told::default()
    });
    per_layer.check(4, Dtype::Bf16, false).unwrap();
    per_layer.check(1, Dtype::Bf16, true).unwrap();
    let error = per_layer.check(4, Dtype::Bf16, true).unwrap_err();
    assert!(
        error.to_string().contains("4 micro-batches twice"),
        "{error}"
    );
    let model = model::load("llama-2-7b").unwrap();
    for rank in [0, 4097] {
        let told = Told {
            rank: Some(Rank::Of(rank)),
            ..Told::default()
        };
        let error = galore(told).resolved(&model).unwrap_err();
        assert!(error.to_string().contains("smallest side"), "{error}");
    }
    let svd = Told {
        svd: true,
        ..Told::default()
    };
    for method in [Method::AdamW, Method::Apollo(LowRank::APOLLO)] {
        let error = method.told(svd).unwrap_err();
        assert!(error.to_string().contains("--svd"), "{error}");
    }
}

/// P12: torchao's float8 saves inputs in bf16: no memory is saved (47.65 GB become 47.77), time is.
#[test]
fn p12_products_in_fp8_save_time_and_no_memory() {
    let model = model::load("llama-3.1-8b").unwrap();
    let profile = profile::load("h100-sxm5-80gb").unwrap();
    let of = |arithmetic| {
        let request = Request {
            model: &model,
            profile: &profile,
            workload: workload(8192, Dtype::Bf16),
            method: Method::Sgd,
            storage: None,
            arithmetic,
            budget: roomy(),
        };
        let planned = plan(&request, Strategy::Keep, &Options::default()).unwrap();
        planned.expect("it fits").file
    };
    let (plain, fp8) = (of(Arithmetic::Plain), of(Arithmetic::Fp8));
    let saved = |file: &ScheduleFile| {
        let buffers = file.schedule.buffers.values();
        let saved = buffers.filter(|b| b.category == Category::Activations);
        saved.map(|b| b.bytes.get()).sum::<u64>()
    };
    assert_eq!(saved(&plain), saved(&fp8));
    let [before, now] = [&plain, &fp8].map(|file| file.predicted.arena.get() as f64);
    assert!(now >= before && now < before * 1.01, "{before} {now}");
    let [before, now] = [&plain, &fp8].map(|file| file.predicted.step.get() as f64);
    assert!(now < before && now > before / 2.0, "{before} {now}");
    // Weights that are rounded for training's sake are rounded in time of its own.
    let aware = of(Arithmetic::QatInt8);
    assert!(aware.predicted.step > plain.predicted.step);
}
