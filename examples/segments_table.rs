//! How much longer sequences fit when block inputs may be made again from earlier blocks: writes
//! `reports/solver/segments.md`.
//!
//! `cargo run --release --example segments_table`. *Without* is the longest sequence for which some
//! plan fits that retains every block input but the first block's (a gather makes that one again):
//! as many of the last as the host has no room for stay on the device, the others travel, and
//! everything else is made again. *With* is what `ebbtide fit` says of `ilp`.

use std::fmt::Write as _;

use ebbtide::commands::{fit, setting};
use ebbtide::lower::MAX_TOKENS;
use ebbtide::methods::Method;
use ebbtide::planning::variants;
use ebbtide_solver::build::build;
use ebbtide_solver::plan::{Fate, Hold, Placement, Plan};
use ebbtide_solver::problem::{Problem, Split};
use ebbtide_solver::search::Strategy;
use ebbtide_solver::units::{Bytes, Tokens};

/// Lengths are told apart to this part of them, as `fit` does.
const PARTS: u64 = 40;
const MODELS: [&str; 2] = ["llama-3.1-8b", "llama-2-7b"];

fn main() {
    let mut text = String::from(
        "# Segments: the longest sequence with block inputs made again, and without\n\n\
         Written by `cargo run --release --example segments_table`: H100 profile, lomo, batch 1. \
         *Without*: every block input but the first is kept or swapped, everything else is made \
         again, weights all resident or all streamed (a mixture might reach further). *With*: \
         `ebbtide fit --strategy ilp`, which may make \
         block inputs again from the block before.\n\n\
         | model | device GiB | host GiB | without | with | ratio | a longer one needs |\n\
         |---|--:|--:|--:|--:|--:|---|\n",
    );
    for model in MODELS {
        for device in [40, 72] {
            for host in [32, 64, 110] {
                let args = arguments(model, device, host);
                let without = longest(&args);
                let (with, binds) = fit(args);
                let ratio = match without {
                    0 => "-".to_owned(),
                    _ => format!("{:.2}", with as f64 / without as f64),
                };
                let [without, with] = [without, with].map(|tokens| match tokens {
                    0 => "none".to_owned(),
                    tokens => Tokens::new(tokens).to_string(),
                });
                let row = format!(
                    "| {model} | {device} | {host} | {without} | {with} | {ratio} | {binds} |"
                );
                eprintln!("{row}");
                writeln!(text, "{row}").expect("a string");
            }
        }
    }
    std::fs::write("reports/solver/segments.md", &text).expect("the repository is writable");
}

fn arguments(model: &str, device: u64, host: u64) -> setting::Args {
    setting::Args {
        model: model.into(),
        profile: "h100-sxm5-80gb".into(),
        batch: 1,
        accumulate: 1,
        clip: false,
        dtype: None,
        device_memory: Some(Bytes::gib(device)),
        host_memory: Some(Bytes::gib(host)),
    }
}

/// What `ebbtide fit` prints: the longest sequence, and what binds there.
fn fit(setting: setting::Args) -> (u64, String) {
    let args = fit::Args {
        setting,
        method: vec![Method::Lomo],
        strategy: vec![Strategy::Ilp],
        json: true,
    };
    let mut out = Vec::new();
    // That nothing fits is an error of the command, and printed all the same.
    let _ = fit::run(&args, &mut out);
    let printed: serde_json::Value = serde_json::from_slice(&out).expect("one JSON object");
    let row = &printed["rows"][0];
    let binds = row["binds"].as_str().expect("text").to_owned();
    (row["max_tokens"].as_u64().expect("a number"), binds)
}

/// The longest that fits without segments if all shorter ones do, in tokens.
fn longest(args: &setting::Args) -> u64 {
    let setting = args.read().expect("shipped");
    let fits = |seq| {
        let variants = variants(&setting.request(Method::Lomo, seq)).expect("can be planned");
        variants.iter().any(|lowered| {
            let problem = &lowered.problem;
            [Placement::Streamed, Placement::Resident]
                .into_iter()
                .any(|placement| {
                    [Hold::NONE, Hold::OUTPUT]
                        .into_iter()
                        .any(|hold| retains_inputs(problem, placement, hold))
                })
        })
    };
    let (mut known, mut missed) = (0, 4096);
    while missed <= MAX_TOKENS && fits(missed) {
        (known, missed) = (missed, 2 * missed);
    }
    loop {
        let step = (known / PARTS / 1024 * 1024).max(1024);
        let middle = (known + missed) / 2 / step * step;
        if middle <= known {
            return known;
        }
        if fits(middle) {
            known = middle;
        } else {
            missed = middle;
        }
    }
}

/// Whether a plan fits that keeps the inputs of the last blocks, as few as the host allows, and
/// swaps those of the others.
fn retains_inputs(problem: &Problem, placement: Placement, hold: Hold) -> bool {
    let blocks = problem.blocks();
    for kept in 0..=blocks {
        let mut plan = Plan::keep_all(problem);
        plan.placements.fill(placement);
        plan.hold = hold;
        for (id, tensor) in problem.tensors.iter() {
            let value = &problem.values[tensor.value];
            plan.fates[id] = match (value.split, value.block) {
                (Split::Whole, Some(0)) => Fate::RECOMPUTED,
                (Split::Whole, Some(block)) if block >= blocks - kept => Fate::kept(tensor.pieces),
                (Split::Whole, _) => Fate::swapped(tensor.pieces),
                _ => Fate::RECOMPUTED,
            };
        }
        match build(problem, &plan) {
            Ok(_) => return true,
            // The host has no room for it: keep one more.
            Err(miss) if miss.step.is_none() => {}
            Err(_) => return false,
        }
    }
    false
}
