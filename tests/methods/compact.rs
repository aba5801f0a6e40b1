//! What CompAct saves, beside its paper's tables (Shamshoum et al. 2025, arXiv 2410.15352). Its
//! micro-batch is not printed; 128 sequences of 256 tokens fit all rows. There every layer projects
//! its input for itself; here siblings share one projection, so what they share is counted again
//! for each.

use ebbtide::device::arithmetic::Arithmetic;
use ebbtide::methods::{Layers, LowRank, Method, Rank, Told};
use ebbtide::model::ModelConfig;
use ebbtide::planning::{plan, Request};
use ebbtide::profile::{self, Dtype};
use ebbtide_solver::problem::{Category, Phase};
use ebbtide_solver::schedule::{Action, Stream};
use ebbtide_solver::search::{Options, Strategy};

use super::*;

/// Models of the C4 experiments, after GaLore's: hidden, inner, heads, layers.
const SIZES: [(&str, [u64; 4]); 4] = [
    ("60M", [512, 1376, 8, 8]),
    ("130M", [768, 2048, 12, 12]),
    ("350M", [1024, 2736, 16, 24]),
    ("1B", [2048, 5461, 32, 24]),
];

fn llama(nth: usize) -> ModelConfig {
    let (name, [hidden, inner, heads, layers]) = SIZES[nth];
    let text = format!(
        r#"{{"model_type": "llama", "hidden_size": {hidden}, "intermediate_size": {inner},
        "num_attention_heads": {heads}, "num_hidden_layers": {layers}, "vocab_size": 32000,
        "max_position_embeddings": 1024, "rms_norm_eps": 1e-6, "tie_word_embeddings": false}}"#
    );
    ModelConfig::read(name, &text).unwrap()
}

fn batch() -> Workload {
    Workload {
        batch: 128,
        ..workload(256, Dtype::Bf16)
    }
}

fn compact(parts: u64) -> Method {
    let told = Told {
        rank: Some(Rank::Part(parts)),
        ..Told::default()
    };
    Method::Compact(LowRank::COMPACT).told(told).unwrap()
}

/// GiB of all tensors of a name.
fn named(lowered: &Lowered, name: &str) -> f64 {
    let problem = &lowered.problem;
    let values = problem.values.iter().filter(|(_, v)| v.name == name);
    let bytes: u64 = values.map(|(id, _)| problem.value_bytes(id).get()).sum();
    bytes as f64 / GIB
}

/// GiB of what the gradients of linear layers are made of, saved for each layer: q, k, v, gate and
/// up, down.
fn inputs(lowered: &Lowered, suffix: &str) -> f64 {
    [("n1", 3.0), ("n2", 2.0), ("h", 1.0)]
        .map(|(name, layers)| layers * named(lowered, &format!("{name}{suffix}")))
        .iter()
        .sum()
}

/// P3: table 3, inputs of linear layers at 350M: 7.0 GiB, with a quarter of the width 2.87.
#[test]
fn p3_inputs_of_linear_layers() {
    let model = llama(2);
    let dense = lowered_for(&model, Method::AdamW, &batch());
    let dense = ["n1", "n2", "h"].map(|name| named(&dense, name));
    assert!(
        (dense.iter().sum::<f64>() - 7.008).abs() < 0.001,
        "{dense:?}"
    );
    let quarter = lowered_for(&model, compact(4), &batch());
    let found = inputs(&quarter, ".projected");
    assert!((found - 2.877).abs() < 0.001, "{found}");
    // Siblings that share a projection save three fifths of q, k and v and half of gate and up.
    let shared = ["n1.projected", "n2.projected", "h.projected"].map(|name| named(&quarter, name));
    assert!(
        (shared.iter().sum::<f64>() - 7.008 / 4.0).abs() < 0.001,
        "{shared:?}"
    );
}

/// What the peak falls by against AdamW in bf16: activations, gradients and moments (which are in
/// bf16 there, in f32 here).
fn saved(model: &ModelConfig, parts: u64) -> f64 {
    let dense = lowered_for(model, Method::AdamWBf16Sr, &batch());
    let small = lowered_for(model, compact(parts), &batch());
    let activations: f64 = ["n1", "n2", "h"]
        .map(|name| named(&dense, name))
        .iter()
        .sum();
    let of = |category| gib(&dense, category) - gib(&small, category);
    let moments =
        gib(&dense, Category::OptimizerStates) - gib(&small, Category::OptimizerStates) / 2.0;
    activations - inputs(&small, ".projected") + of(Category::Gradients) + moments
}

/// P4 to P7: table 2, what the measured peak falls by at a half, a quarter and an eighth of the
/// width. At 1B the dense run did not fit: what it falls by from each rank to the next.
#[test]
fn p4_to_p7_peaks_fall_as_measured() {
    let published = [
        (0, [0.27, 0.79, 1.05]),
        (1, [0.69, 1.88, 2.47]),
        (2, [2.03, 5.26, 6.94]),
    ];
    for (nth, falls) in published {
        let model = llama(nth);
        for (parts, fall) in [2, 4, 8].into_iter().zip(falls) {
            let found = saved(&model, parts);
            assert!(
                (found - fall).abs() < 0.05,
                "{nth} 1/{parts}: {found} {fall}"
            );
        }
    }
    let model = llama(3);
    let [half, quarter, eighth] = [2, 4, 8].map(|parts| saved(&model, parts));
    assert!((quarter - half - 7.25).abs() < 0.06, "{half} {quarter}");
    assert!((eighth - quarter - 3.69).abs() < 0.06, "{quarter} {eighth}");
}

/// P10: what a block of Llama saves by COAT's count, 22.7 times 2 d bytes a token: what is saved
/// here, and what fused kernels spare, the output of SiLU and both norms' inputs in f32.
#[test]
fn p10_coats_baseline() {
    let model = model::load("llama-2-7b").unwrap();
    let (d, f) = (model.hidden as f64, model.intermediate as f64);
    let lowered = lowered(&model, Method::AdamW);
    let problem = &lowered.problem;
    let saved = problem.tensors.values().map(|t| &problem.values[t.value]);
    let saved = saved.filter(|v| v.block == Some(7));
    // Without softmax statistics, f32 for every head.
    let here = saved.map(|v| v.row_bytes).sum::<u64>() - 4 * model.heads;
    let unfused = here as f64 + 2.0 * f + 2.0 * 4.0 * d;
    let units = unfused / (2.0 * d);
    assert!((units - 22.75).abs() < 0.01, "{units}");
    // All of it packed: a byte for each of 8 d + 3 f elements, 4 for every 128, and the statistics.
    let packed = lowered.packed().problem;
    let saved = packed.tensors.values().map(|t| &packed.values[t.value]);
    let saved = saved.filter(|v| v.block == Some(7));
    let bytes: u64 = saved.filter_map(|v| v.packed_row_bytes).sum();
    let expected = (8.0 * d + 3.0 * f) * (1.0 + 4.0 / 128.0) + 4.0 * model.heads as f64;
    assert!((bytes as f64 - expected).abs() < 1.0, "{bytes} {expected}");
    assert!((bytes as f64 / (2.0 * d) - 8.3).abs() < 0.05, "{bytes}");
}

/// C7: at the turn exactly the projections are there, `2 T r` bytes for each input, and what they
/// were made of is not.
#[test]
fn c7_what_is_saved_is_exactly_the_rank() {
    let model = llama(0);
    let profile = profile::load("h100-sxm5-80gb").unwrap();
    let request = |method| Request {
        model: &model,
        profile: &profile,
        workload: workload(512, Dtype::Bf16),
        method,
        storage: None,
        arithmetic: Arithmetic::Plain,
        budget: roomy(),
    };
    let saved = |method: Method, names: [&str; 3]| {
        let planned = plan(&request(method), Strategy::Keep, &Options::default()).unwrap();
        let planned = planned.expect("it fits");
        let (schedule, problem) = (&planned.file.schedule, &planned.lowered.problem);
        let program = problem.program.values();
        let backward = program.filter(|s| s.phase == Phase::Forward).count();
        let first = &problem.program.values().nth(backward).unwrap().name;
        assert!(first.starts_with("mlp backward"), "{first}");
        let turn = schedule.stream(Stream::Compute).iter().position(|i| {
            let (Action::Run(op) | Action::Recompute(op)) = i.action else {
                return false;
            };
            schedule.ops[op].name == "down_input_gradient"
        });
        let turn = turn.unwrap() as u64;
        let here = |buffer: &&ebbtide_solver::schedule::Buffer| {
            let named = buffer.value.map(|v| schedule.values[v].name.as_str());
            let lives = buffer.lifetime.start <= turn && turn < buffer.lifetime.end;
            lives && named.is_some_and(|name| names.contains(&name))
        };
        let bytes = schedule
            .buffers
            .values()
            .filter(here)
            .map(|b| b.bytes.get());
        bytes.sum::<u64>()
    };
    let (inputs, small) = (
        ["n1", "n2", "h"],
        ["n1.projected", "n2.projected", "h.projected"],
    );
    let all = 2 * 512 * model.layers;
    let whole = 2 * model.hidden + model.intermediate;
    assert_eq!(saved(Method::AdamW, inputs), all * whole);
    assert_eq!(saved(compact(8), inputs), 0);
    assert_eq!(saved(compact(8), small), all * whole / 8);
    let some = Method::Compact(LowRank {
        layers: Layers {
            qkv: false,
            ..Layers::ALL
        },
        ..LowRank::COMPACT
    });
    assert_eq!(saved(some, inputs), all * model.hidden);
    assert_eq!(saved(some, small), all * (whole - model.hidden) / 4);
}
