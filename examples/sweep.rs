//! Every strategy on many (model, length, memory) cases: is the search worth it, and does the
//! bound hold? Writes `reports/sweep/sweep.csv` and `sweep.md`.
//!
//! `cargo run --release --example sweep [-- SECONDS]` stops after so many seconds.

use std::fmt::Write as _;
use std::time::{Duration, Instant};

use ebbtide::device::arithmetic::Arithmetic;
use ebbtide::lower::Workload;
use ebbtide::methods::Method;
use ebbtide::model::load;
use ebbtide::planning;
use ebbtide::profile::{self, Dtype};
use ebbtide_solver::build::with_addresses;
use ebbtide_solver::problem::{Budget, Problem};
use ebbtide_solver::search::{contexts, solve, Options, Strategy};
use ebbtide_solver::units::{Bytes, Nanos};

const MODELS: [&str; 5] = [
    "llama-2-7b",
    "llama-3.1-8b",
    "llama-3.2-1b",
    "qwen2.5-7b",
    "mistral-7b-v0.3",
];
const LENGTHS_K: [u64; 5] = [4, 32, 128, 512, 1024];
/// Device and host memory in GiB.
const BUDGETS: [(u64, u64); 9] = [
    (72, 110),
    (24, 110),
    (40, 110),
    (24, 64),
    (40, 64),
    (72, 64),
    (24, 500),
    (40, 500),
    (72, 500),
];
/// Shown in this order; all are compared.
const OTHERS: [Strategy; 9] = [
    Strategy::Greedy,
    Strategy::Memo,
    Strategy::Checkpoint,
    Strategy::CheckpointOffload,
    Strategy::ProTrain,
    Strategy::Keep,
    Strategy::CheckpointSqrt,
    Strategy::Selective,
    Strategy::Swap,
];

struct Case {
    model: &'static str,
    method: Method,
    k_tokens: u64,
    device: u64,
    host: u64,
}

struct Row {
    case: Case,
    bound: Nanos,
    /// Step of the ILP, and the strategy whose plan it took.
    ilp: Option<(Nanos, Strategy)>,
    others: [Option<Nanos>; OTHERS.len()],
    /// Arena and most bytes alive at once of the ILP's plan.
    arena: Option<(Bytes, Bytes)>,
    took: Duration,
}

fn main() {
    let limit = std::env::args()
        .nth(1)
        .map_or(u64::MAX, |s| s.parse().expect("seconds"));
    let start = Instant::now();
    let mut rows = Vec::new();
    for case in spread(cases()) {
        if start.elapsed().as_secs() >= limit {
            break;
        }
        rows.push(measure(case));
    }
    std::fs::create_dir_all("reports/sweep").expect("the repository is writable");
    std::fs::write("reports/sweep/sweep.csv", csv(&rows)).expect("the repository is writable");
    let text = markdown(&rows);
    std::fs::write("reports/sweep/sweep.md", &text).expect("the repository is writable");
    print!("{}", text.split("\n## Cases").next().unwrap_or_default());
    println!(
        "{} cases in {:.0} s",
        rows.len(),
        start.elapsed().as_secs_f64()
    );
}

fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for (device, host) in BUDGETS {
        for model in MODELS {
            for k_tokens in LENGTHS_K {
                let case = |method| Case {
                    model,
                    method,
                    k_tokens,
                    device,
                    host,
                };
                cases.push(case(Method::Lomo));
                if (device, host) == (72, 500) {
                    cases.push(case(Method::AdamW));
                }
            }
        }
    }
    cases
}

/// In an order of which every beginning is a fair sample.
fn spread(cases: Vec<Case>) -> Vec<Case> {
    const STRIDE: usize = 97;
    let count = cases.len();
    let mut cases: Vec<Option<Case>> = cases.into_iter().map(Some).collect();
    assert!(count % STRIDE > 0, "the stride meets every case");
    (0..count)
        .filter_map(|i| cases[i * STRIDE % count].take())
        .collect()
}

fn problems(case: &Case) -> Vec<Problem> {
    let model = load(case.model).expect("shipped");
    let profile = profile::load("h100-sxm5-80gb").expect("shipped");
    let workload = Workload {
        seq: case.k_tokens << 10,
        batch: 1,
        accumulate: 1,
        dtype: Dtype::Bf16,
        clip: false,
    };
    let budget = Budget {
        device: Bytes::gib(case.device),
        host: Bytes::gib(case.host),
    };
    let request = planning::Request {
        model: &model,
        profile: &profile,
        workload,
        method: case.method,
        storage: None,
        arithmetic: Arithmetic::Plain,
        budget,
    };
    let variants = planning::variants(&request).expect("can be lowered");
    planning::problems(&variants, budget)
}

fn measure(case: Case) -> Row {
    let start = Instant::now();
    let problems = problems(&case);
    let options = Options::default();
    let contexts = contexts(&problems, &options);
    let bound = contexts
        .iter()
        .map(|c| c.bound())
        .min()
        .unwrap_or(Nanos::MAX);
    let ilp = solve(&contexts, Strategy::Ilp, &options).ok();
    let took = start.elapsed();
    let step = |strategy| {
        let solution = solve(&contexts, strategy, &options).ok()?;
        Some(solution.step())
    };
    let others = OTHERS.map(step);
    let found = ilp.as_ref().map(|s| (s.step(), s.found.found_by));
    let arena = ilp.map(|s| {
        let peak = s.found.candidate.built.peak;
        (with_addresses(s.found.candidate.built).arena_bytes, peak)
    });
    Row {
        case,
        bound,
        ilp: found,
        others,
        arena,
        took,
    }
}

fn seconds(step: Option<Nanos>) -> String {
    step.map_or("–".into(), |s| format!("{:.3}", s.get() as f64 / 1e9))
}

fn csv(rows: &[Row]) -> String {
    let mut text = String::from(
        "model,method,tokens,device_gib,host_gib,bound_ns,ilp_ns,ilp_found_by,arena_bytes,\
         peak_bytes,plan_ms",
    );
    OTHERS
        .iter()
        .for_each(|s| write!(text, ",{}_ns", s.name()).expect("a string"));
    text.push('\n');
    let number = |n: Option<Nanos>| n.map_or(String::new(), |n| n.get().to_string());
    for row in rows {
        let Case {
            model,
            method,
            k_tokens,
            device,
            host,
        } = row.case;
        let found_by = row.ilp.map_or("", |(_, s)| s.name());
        let bound = (row.bound != Nanos::MAX).then_some(row.bound);
        let (arena, peak) = row.arena.map_or(Default::default(), |(a, p)| {
            (a.get().to_string(), p.get().to_string())
        });
        write!(
            text,
            "{model},{method},{},{device},{host},{},{},{found_by},{arena},{peak},{}",
            k_tokens << 10,
            number(bound),
            number(row.ilp.map(|i| i.0)),
            row.took.as_millis()
        )
        .expect("a string");
        row.others
            .iter()
            .for_each(|&s| write!(text, ",{}", number(s)).expect("a string"));
        text.push('\n');
    }
    text
}

/// What the sweep says, then a table of all cases.
fn markdown(rows: &[Row]) -> String {
    let mut text = String::from(
        "# The search against every other strategy\n\n\
         Written by `cargo run --release --example sweep`: H100 profile, batch 1, simulated step \
         time in seconds; `–` does not fit.\n\n",
    );
    let feasible: Vec<&Row> = rows.iter().filter(|r| r.ilp.is_some()).collect();
    let gaps: Vec<f64> = feasible.iter().map(|r| gap(r)).collect();
    let share = |most: f64| gaps.iter().filter(|g| **g <= most).count();
    let slower = rows.iter().filter(|r| {
        let ilp = r.ilp.map_or(Nanos::MAX, |i| i.0);
        r.others.iter().flatten().any(|&o| o < ilp)
    });
    let broken = rows.iter().filter(|r| {
        let all = r.others.iter().flatten().copied().chain(r.ilp.map(|i| i.0));
        all.into_iter().any(|step| step < r.bound)
    });
    let arenas = feasible.iter().filter_map(|r| r.arena);
    let perfect = arenas.clone().filter(|(arena, peak)| arena == peak).count();
    let above = arenas.map(|(a, p)| a.get() as f64 / p.get().max(1) as f64 - 1.0);
    let line = |text: &mut String, what: &str, value: String| {
        writeln!(text, "- {what}: {value}").expect("a string");
    };
    line(
        &mut text,
        "cases, of which fit",
        format!("{}, {}", rows.len(), feasible.len()),
    );
    line(
        &mut text,
        "another strategy is faster than the ILP",
        slower.count().to_string(),
    );
    line(
        &mut text,
        "a plan is faster than the bound",
        broken.count().to_string(),
    );
    line(
        &mut text,
        "gap at most 0.5 %, 1 %, 2 %, 5 %, largest",
        format!(
            "{}, {}, {}, {}, {:.2} %",
            share(0.005),
            share(0.01),
            share(0.02),
            share(0.05),
            gaps.iter().fold(0.0, |a: f64, &b| a.max(b)) * 100.0
        ),
    );
    line(
        &mut text,
        "arena equal to the bytes alive, at most above",
        format!("{perfect}, {:.2} %", above.fold(0.0, f64::max) * 100.0),
    );
    let mut took: Vec<_> = rows.iter().map(|r| r.took).collect();
    took.sort_unstable();
    if let (Some(middle), Some(longest)) = (took.get(took.len() / 2), took.last()) {
        line(
            &mut text,
            "planning, median and longest",
            format!("{middle:.2?}, {longest:.2?}"),
        );
    }
    for (i, strategy) in OTHERS.iter().enumerate() {
        let ratios: Vec<f64> = feasible
            .iter()
            .filter_map(|r| Some(r.others[i]?.get() as f64 / r.ilp?.0.get() as f64))
            .collect();
        let mean = (ratios.iter().map(|r| r.ln()).sum::<f64>() / ratios.len().max(1) as f64).exp();
        let taken = feasible
            .iter()
            .filter(|r| r.ilp.is_some_and(|(_, s)| s == *strategy))
            .count();
        let value = format!(
            "{} fit, {mean:.3} × the ILP's step, taken {taken} times",
            ratios.len()
        );
        line(&mut text, strategy.name(), value);
    }
    text.push_str("\n## Cases\n\n| model | method | tokens | device | host | bound | ilp | gap |");
    OTHERS[..5]
        .iter()
        .for_each(|s| write!(text, " {} |", s.name()).expect("a string"));
    text.push_str(" arena / alive |\n|---|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|\n");
    for row in rows {
        let Case {
            model,
            method,
            k_tokens,
            device,
            host,
        } = row.case;
        let bound = (row.bound != Nanos::MAX).then_some(row.bound);
        let gap = row
            .ilp
            .map_or("–".into(), |_| format!("{:.2} %", gap(row) * 100.0));
        write!(
            text,
            "| {model} | {method} | {k_tokens}K | {device} | {host} | {} | {} | {gap} |",
            seconds(bound),
            seconds(row.ilp.map(|i| i.0))
        )
        .expect("a string");
        let shown = row.others[..5].iter();
        shown.for_each(|&o| write!(text, " {} |", seconds(o)).expect("a string"));
        let arena = row.arena.map_or("–".into(), |(arena, peak)| {
            format!("{:.4}", arena.get() as f64 / peak.get().max(1) as f64)
        });
        writeln!(text, " {arena} |").expect("a string");
    }
    text
}

/// How much slower than the bound the ILP's plan is, as a fraction of its step.
fn gap(row: &Row) -> f64 {
    row.ilp.map_or(0.0, |(step, _)| {
        1.0 - row.bound.get().min(step.get()) as f64 / step.get().max(1) as f64
    })
}
