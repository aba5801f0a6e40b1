//! Predicted against measured on the CPU device, for plans of several strategies side by side.
//! Writes `README.md` and `steps.csv` in `reports/cpu-predicted`.
//!
//! `cargo run --release --example cpu_predicted` takes some minutes and wants a quiet machine with
//! two cores: one computes, the other one copies and updates. Numbers behind `--` run only those
//! cases, and write nothing.
//!
//! ```text
//! profile ─► for every case: plan by every strategy ─► rounds: a few steps of each in turn
//! ```
//! Strategies take turns, so that whatever drifts is in all of them. A turn beside which other
//! processes were busy is run again, whatever it measured.

use std::fmt::Write as _;
use std::time::Instant;

use ebbtide::device::arithmetic::Arithmetic;
use ebbtide::device::{Facts, Target};
use ebbtide::execute::timing::{self, timing, Timing};
use ebbtide::execute::{Optimizer, Session};
use ebbtide::methods::Method;
use ebbtide::model::{self, ModelConfig};
use ebbtide::planning::{self, Planned};
use ebbtide::profile::measure::{assemble, Request};
use ebbtide::profile::{build, Dtype, Profile};
use ebbtide::training::initial;
use ebbtide::training::tokens::Tokens;
use ebbtide_solver::problem::Budget;
use ebbtide_solver::schedule::Stream;
use ebbtide_solver::search::{Options, Strategy};
use ebbtide_solver::units::{Bytes, BytesPerSec, Nanos};

const MODEL: &str = "tiny-llama-10m";
/// Bytes per second in each direction: a block's tensors travel about as long as it computes.
const LINK: u64 = 400_000_000;
/// Method, tokens, and device memory in MiB.
const CASES: [(Method, u64, u64); 9] = [
    (Method::Lomo, 256, 72),
    (Method::Lomo, 256, 60),
    (Method::Lomo, 512, 100),
    (Method::Lomo, 512, 80),
    (Method::Lomo, 512, 60),
    (Method::Lomo, 1024, 160),
    (Method::Lomo, 1024, 100),
    (Method::AdamW, 512, 160),
    (Method::AdamW, 512, 100),
];
const HOST_GIB: u64 = 2;
const STRATEGIES: [Strategy; 4] = [
    Strategy::Ilp,
    Strategy::Checkpoint,
    Strategy::CheckpointOffload,
    Strategy::Swap,
];
const ROUNDS: usize = 3;
/// Steps of a turn that count, after one that does not.
const STEPS: usize = 3;
/// How busy other processes may be, in processors, and how often a turn is run for that.
const QUIET: f64 = 0.05;
const ATTEMPTS: usize = 5;

struct Row {
    case: (Method, u64, u64),
    strategy: Strategy,
    planned: Planned,
    /// The steps that counted, shortest first.
    steps: Vec<Timing>,
    /// How many processors others used at most meanwhile.
    others: f64,
}

impl Row {
    fn predicted(&self) -> Nanos {
        self.planned.timeline.step
    }

    /// The step of median length.
    fn median(&self) -> &Timing {
        &self.steps[(self.steps.len() - 1) / 2]
    }

    /// Measured above predicted, in percent.
    fn off(&self) -> f64 {
        let measured = self.median().step.get() as f64;
        (measured / self.predicted().get() as f64 - 1.0) * 100.0
    }
}

fn main() {
    let model = model::load(MODEL).expect("shipped");
    let target = Target::Cpu(BytesPerSec::new(LINK));
    let begun = Instant::now();
    let profile = profile(&model, target);
    println!("profile in {:.0} s", begun.elapsed().as_secs_f64());
    let mut rows = Vec::new();
    let chosen: Vec<usize> = std::env::args().skip(1).flat_map(|n| n.parse()).collect();
    let wanted = |at: &usize| chosen.is_empty() || chosen.contains(at);
    for case in (0..CASES.len()).filter(wanted).map(|at| CASES[at]) {
        let mut plans = plans(&model, &profile, case);
        run(&model, target, &mut plans);
        for row in &plans {
            println!("{}", line(row));
        }
        rows.extend(plans);
    }
    if !chosen.is_empty() {
        return;
    }
    let directory = "reports/cpu-predicted";
    std::fs::create_dir_all(directory).expect("the repository is writable");
    let save = |name: &str, text: String| {
        std::fs::write(format!("{directory}/{name}"), text).expect("the repository is writable");
    };
    save("steps.csv", csv(&rows));
    let text = markdown(&rows, &target.facts().expect("Linux says"));
    print!("{text}");
    println!("{:.0} s", begun.elapsed().as_secs_f64());
    save("README.md", text);
}

/// What `ebbtide profile` measures.
fn profile(model: &ModelConfig, target: Target) -> Profile {
    let facts = target.facts().expect("Linux says");
    let mut tokens: Vec<u64> = CASES.iter().map(|case| case.1).collect();
    tokens.dedup();
    let request = Request {
        target,
        workspace: facts.workspace,
        model,
        dtype: Dtype::F32,
        tokens,
        memory: facts.usable,
        link: BytesPerSec::new(LINK),
        deterministic: false,
    };
    let mut file = request.begin("cpu");
    for stage in request.stages().expect("tokens that the model takes") {
        request.measure(stage, &mut file).expect("can be measured");
    }
    let profile = assemble(&request, &file, &facts).expect("all was measured");
    build(profile).expect("a valid profile")
}

/// The strategies' plans, of those that fit.
fn plans(model: &ModelConfig, profile: &Profile, case: (Method, u64, u64)) -> Vec<Row> {
    let (method, seq, mib) = case;
    let request = planning::Request {
        model,
        profile,
        workload: ebbtide::lower::Workload {
            seq,
            batch: 1,
            accumulate: 1,
            dtype: Dtype::F32,
            clip: false,
        },
        method,
        storage: None,
        arithmetic: Arithmetic::Plain,
        budget: Budget {
            device: Bytes::mib(mib),
            host: Bytes::gib(HOST_GIB),
        },
    };
    let plan = |strategy| {
        let planned = planning::plan(&request, strategy, &Options::default());
        let planned = planned.expect("can be planned").ok()?;
        Some(Row {
            case,
            strategy,
            planned,
            steps: Vec::new(),
            others: 0.0,
        })
    };
    STRATEGIES.into_iter().filter_map(plan).collect()
}

/// Steps of every plan in turn.
fn run(model: &ModelConfig, target: Target, rows: &mut [Row]) {
    let tokens = Tokens::Synthetic {
        vocab: model.vocab,
        seed: 0,
    };
    // Weights stay as they are, so that every step computes the same.
    let optimizer = Optimizer {
        learning_rate: 0.0,
        ..Optimizer::default()
    };
    let mut sessions: Vec<_> = (rows.iter())
        .map(|row| {
            let file = &row.planned.file;
            let mut session = Session::begin(file, model, target.open().expect("the cpu"), false)
                .expect("can be run");
            let loaded = session.load(|place| initial::values(model, place, 0));
            loaded.expect("there is memory");
            session
        })
        .collect();
    let mut measured: Vec<(Vec<Timing>, f64)> = rows.iter().map(|_| Default::default()).collect();
    for _ in 0..ROUNDS {
        for ((session, row), (steps, most)) in sessions.iter_mut().zip(&*rows).zip(&mut measured) {
            let batch = [tokens.batch(0, 1, row.case.1)];
            let schedule = &row.planned.file.schedule;
            let attempts = (0..ATTEMPTS).map(|_| {
                let (busy, begun) = (busy_seconds(), Instant::now());
                let turn = (0..=STEPS).map(|_| {
                    session.step(1, &batch, &optimizer).expect("can be run");
                    timing(schedule, &timing::measured(schedule, session.trace()))
                });
                let turn: Vec<Timing> = turn.skip(1).collect();
                (
                    (busy_seconds() - busy) / begun.elapsed().as_secs_f64(),
                    turn,
                )
            });
            let mut quietest = (f64::INFINITY, Vec::new());
            for (others, turn) in attempts {
                if others < quietest.0 {
                    quietest = (others, turn);
                }
                if others <= QUIET {
                    break;
                }
            }
            *most = quietest.0.max(*most);
            steps.extend(quietest.1);
        }
    }
    drop(sessions);
    for (row, (mut steps, others)) in rows.iter_mut().zip(measured) {
        steps.sort_by_key(|timing| timing.step);
        (row.steps, row.others) = (steps, others);
    }
}

/// Processor time that others have used since the machine started, in seconds.
fn busy_seconds() -> f64 {
    const TICKS_PER_S: f64 = 100.0;
    let read = |file: &str| std::fs::read_to_string(file).expect("Linux says");
    let all = read("/proc/stat");
    let line = all
        .lines()
        .next()
        .expect("the first line sums up all processors");
    // user, nice, system, idle, iowait, irq, softirq, steal; what follows is in user and nice too.
    let numbers = line.split_whitespace().skip(1).take(8);
    let ticks = numbers.enumerate().filter(|(at, _)| ![3, 4].contains(at));
    let all: f64 = ticks.map(|(_, ticks)| ticks.parse().unwrap_or(0.0)).sum();
    let own = read("/proc/self/stat");
    // Behind the name, which may hold anything: utime and stime are the 12th and the 13th.
    let (_, fields) = own.rsplit_once(')').expect("a name in brackets");
    let own = fields.split_whitespace().skip(11).take(2);
    let own: f64 = own.map(|ticks| ticks.parse().unwrap_or(0.0)).sum();
    (all - own) / TICKS_PER_S
}

/// The parts of a step: predicted, measured.
fn parts(row: &Row) -> [(&'static str, Nanos, Nanos); 7] {
    let (timeline, measured) = (&row.planned.timeline, row.median());
    let busy = |stream: Stream| {
        (
            timeline.busy[stream as usize],
            measured.busy[stream as usize],
        )
    };
    let (d2h, h2d, host) = (busy(Stream::D2h), busy(Stream::H2d), busy(Stream::Host));
    [
        ("compute", timeline.compute, measured.compute),
        ("recompute", timeline.recompute, measured.recompute),
        ("stall", timeline.stall, measured.stall),
        ("tail", timeline.tail, measured.tail),
        ("d2h", d2h.0, d2h.1),
        ("h2d", h2d.0, h2d.1),
        ("host", host.0, host.1),
    ]
}

fn milliseconds(time: Nanos) -> String {
    format!("{:.1}", time.get() as f64 / 1e6)
}

/// A plan in a line, for whoever watches.
fn line(row: &Row) -> String {
    let (method, tokens, mib) = row.case;
    let mut text = format!(
        "{:5} {tokens:5} {mib:4} MiB {:18} {:>7} {:>7} {:+5.1} %  others {:.2}",
        method.name(),
        row.strategy.name(),
        milliseconds(row.predicted()),
        milliseconds(row.median().step),
        row.off(),
        row.others
    );
    for (name, predicted, measured) in parts(row) {
        let (predicted, measured) = (milliseconds(predicted), milliseconds(measured));
        write!(text, " {name} {predicted}/{measured}").expect("a string");
    }
    text
}

fn csv(rows: &[Row]) -> String {
    let mut text = String::from("method,tokens,device_mib,strategy,predicted_ns,measured_ns");
    text.push_str(",fastest_ns,slowest_ns,steps,others");
    for (name, ..) in rows.first().map(parts).into_iter().flatten() {
        write!(text, ",{name}_predicted_ns,{name}_measured_ns").expect("a string");
    }
    text.push('\n');
    for row in rows {
        let (method, tokens, mib) = row.case;
        let ends = [row.steps.first(), row.steps.last()].map(|t| t.expect("steps ran").step);
        write!(
            text,
            "{},{tokens},{mib},{},{},{},{},{},{},{:.3}",
            method.name(),
            row.strategy.name(),
            row.predicted().get(),
            row.median().step.get(),
            ends[0].get(),
            ends[1].get(),
            row.steps.len(),
            row.others
        )
        .expect("a string");
        for (_, predicted, measured) in parts(row) {
            write!(text, ",{},{}", predicted.get(), measured.get()).expect("a string");
        }
        text.push('\n');
    }
    text
}

/// The report: a row for every case, a column for every strategy.
fn markdown(rows: &[Row], facts: &Facts) -> String {
    let mut text = format!(
        "# Predicted and measured steps of the CPU device\n\n\
         Written by `cargo run --release --example cpu_predicted` on {}, {} cores: it profiles the \
         device ({MODEL}, f32), plans, and runs the plans in turn. One thread computes, copies are \
         held to {} MB/s each way, the host has {HOST_GIB} GiB. Each cell: milliseconds of the \
         simulated step → the median of {} measured ones, and by how much that is longer. A turn \
         beside which others used more than {QUIET} processors is run up to {ATTEMPTS} times, and \
         the quietest counts, whatever it measured. `steps.csv` has the parts of each step, its \
         fastest and slowest, and what others used.\n\n| method | tokens | device |",
        facts.name,
        facts.cores,
        LINK / 1_000_000,
        ROUNDS * STEPS
    );
    let mut rule = String::from("|---|--:|--:|");
    for strategy in STRATEGIES {
        write!(text, " {} |", strategy.name()).expect("a string");
        rule.push_str("---|");
    }
    writeln!(text, "\n{rule}").expect("a string");
    let find = |case, strategy| {
        let mut rows = rows.iter();
        rows.find(|row| row.case == case && row.strategy == strategy)
    };
    for case in CASES {
        let (method, tokens, mib) = case;
        write!(text, "| {} | {tokens} | {mib} MiB |", method.name()).expect("a string");
        for strategy in STRATEGIES {
            let cell = find(case, strategy).map_or("does not fit".into(), |row| {
                let (predicted, measured) = (row.predicted(), row.median().step);
                let (predicted, measured) = (milliseconds(predicted), milliseconds(measured));
                format!("{predicted} → {measured} ({:+.1} %)", row.off())
            });
            write!(text, " {cell} |").expect("a string");
        }
        text.push('\n');
    }
    let near = rows.iter().filter(|row| row.off().abs() <= 5.0).count();
    let mut off: Vec<f64> = rows.iter().map(|row| row.off().abs()).collect();
    off.sort_by(f64::total_cmp);
    let (middle, most) = (off[off.len() / 2], off[off.len() - 1]);
    let all = rows.len();
    write!(
        text,
        "\n* Within 5 %: {near} of {all}; distance in the median {middle:.1} %, at most {most:.1} \
         %.\n"
    )
    .expect("a string");
    for other in &STRATEGIES[1..] {
        let pairs = CASES.map(|case| Some((find(case, STRATEGIES[0])?, find(case, *other)?)));
        let pairs: Vec<_> = pairs.into_iter().flatten().collect();
        let ratios = |step: fn(&Row) -> Nanos| {
            let ratios = pairs.iter().map(|(ilp, other)| {
                let [ilp, other] = [ilp, other].map(|row| step(row).get() as f64);
                other / ilp
            });
            let least = ratios.clone().fold(f64::INFINITY, f64::min);
            format!("{least:.2} to {:.2}", ratios.fold(0.0, f64::max))
        };
        writeln!(
            text,
            "* `{}` takes {} times as long as `ilp` where {} were predicted.",
            other.name(),
            ratios(|row| row.median().step),
            ratios(Row::predicted)
        )
        .expect("a string");
    }
    text
}
