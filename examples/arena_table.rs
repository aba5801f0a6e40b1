//! The arena on published, generated and real instances: writes `reports/solver/arena.md`.
//!
//! `cargo run --release --example arena_table`; every instance gets at most three seconds.

use std::fmt::Write as _;
use std::time::{Duration, Instant};

use ebbtide::lower::Workload;
use ebbtide::methods::Method;
use ebbtide::model::load;
use ebbtide::planning;
use ebbtide::profile::{self, Dtype};
use ebbtide_solver::arena::generate::{cut_rectangle, Cut, Rectangle};
use ebbtide_solver::arena::{place, Options, Placement, Request, Status};
use ebbtide_solver::build::with_addresses;
use ebbtide_solver::problem::{Budget, Problem};
use ebbtide_solver::search::{self, contexts, Strategy};
use ebbtide_solver::units::Bytes;

const LIMIT: Duration = Duration::from_secs(3);
const CAPACITY: u64 = 1 << 20;

fn main() {
    let mut text = String::from(
        "# Arena: heights against live bytes\n\n\
         Written by `cargo run --release --example arena_table`. One thread, at most 3 s for each \
         instance; the bound is the most bytes alive at once.\n",
    );
    published(&mut text);
    generated(&mut text);
    real(&mut text);
    std::fs::write("reports/solver/arena.md", &text).expect("the repository is writable");
    print!("{text}");
}

fn timed(requests: &[Request], capacity: Option<u64>) -> (Placement, f64) {
    let begun = Instant::now();
    let options = Options {
        alignment: Bytes::new(1),
        capacity: capacity.map(Bytes::new),
        deadline: Some(begun + LIMIT),
        nodes: u64::MAX,
        ..Options::default()
    };
    let placement = place(requests, &options);
    (placement, begun.elapsed().as_secs_f64())
}

/// The instances of google/minimalloc, each asked for the capacity it is published with.
fn published(text: &mut String) {
    text.push_str("\n## Published (minimalloc), capacity 1,048,576\n\n");
    text.push_str("| instance | buffers | height | bound | fits | seconds |\n");
    text.push_str("|---|--:|--:|--:|---|--:|\n");
    for name in 'A'..='K' {
        let file = format!("tests/data/minimalloc/{name}.csv");
        let lines = std::fs::read_to_string(file).expect("committed");
        let requests: Vec<Request> = lines.lines().skip(1).map(request).collect();
        let (placement, seconds) = timed(&requests, Some(CAPACITY));
        let (height, bound) = (placement.height.get(), placement.lower_bound.get());
        let (count, fits) = (
            requests.len(),
            if height <= CAPACITY { "yes" } else { "no" },
        );
        row(
            text,
            format!("{name} | {count} | {height} | {bound} | {fits} | {seconds:.3}"),
        );
    }
}

/// A line of `id,lower,upper,size`.
fn request(line: &str) -> Request {
    let fields = line.split(',').skip(1);
    let fields: Vec<u64> = fields.map(|f| f.parse().expect("a number")).collect();
    Request::new(fields[0], fields[1], Bytes::new(fields[2]))
}

/// Rectangles cut into pieces: the optimum is the capacity.
fn generated(text: &mut String) {
    text.push_str("\n## Generated, optimum 1,048,576, seeds 1 to 3\n\n");
    text.push_str("| cut | buffers | positions | height / optimum | seconds |\n");
    text.push_str("|---|--:|--:|--:|--:|\n");
    for time in [40, 100, 400] {
        for pieces in [350, 500] {
            for cut in Cut::ALL {
                let solved = [1, 2, 3].map(|seed| {
                    let rectangle = Rectangle {
                        time,
                        capacity: CAPACITY,
                        pieces,
                        shrunk_percent: 0,
                        cut,
                    };
                    let (placement, seconds) = timed(&cut_rectangle(&rectangle, seed), None);
                    (placement.height.get() as f64 / CAPACITY as f64, seconds)
                });
                let heights = solved.map(|(height, _)| format!("{height:.3}")).join(", ");
                let seconds = solved
                    .map(|(_, seconds)| format!("{seconds:.2}"))
                    .join(", ");
                row(
                    text,
                    format!("{cut:?} | {pieces} | {time} | {heights} | {seconds}"),
                );
            }
        }
    }
}

/// The schedule of every strategy, as `plan` gives it its addresses.
fn real(text: &mut String) {
    text.push_str("\n## Schedules of every strategy (lomo, H100, 72 GiB and 110 GiB)\n\n");
    text.push_str("| model | tokens | strategy | buffers | live bytes | arena / live | status |\n");
    text.push_str("|---|--:|---|--:|--:|--:|---|\n");
    for model in ["llama-3.1-8b", "llama-2-7b", "qwen2.5-7b"] {
        for k_tokens in [4, 32, 128] {
            let problems = problems(model, k_tokens);
            let options = search::Options::default();
            let contexts = contexts(&problems, &options);
            for strategy in Strategy::ALL {
                let Ok(solution) = search::solve(&contexts, strategy, &options) else {
                    continue;
                };
                let live = solution.candidate.built.peak;
                let schedule = with_addresses(solution.candidate.built);
                let above = schedule.arena_bytes.get() as f64 / live.get().max(1) as f64;
                let status = if schedule.arena_bytes == live {
                    Status::Optimal
                } else {
                    Status::Gap
                };
                let (name, count) = (strategy.name(), schedule.buffers.len());
                let live = live.get();
                row(
                    text,
                    format!(
                        "{model} | {k_tokens}K | {name} | {count} | {live} | {above:.4} \
                         | {status:?}"
                    ),
                );
            }
        }
    }
}

fn problems(model: &str, k_tokens: u64) -> Vec<Problem> {
    let model = load(model).expect("shipped");
    let profile = profile::load("h100-sxm5-80gb").expect("shipped");
    let workload = Workload {
        seq: k_tokens << 10,
        batch: 1,
        accumulate: 1,
        dtype: Dtype::Bf16,
    };
    let budget = Budget {
        device: Bytes::gib(72),
        host: Bytes::gib(110),
    };
    let request = planning::Request {
        model: &model,
        profile: &profile,
        workload,
        method: Method::Lomo,
        budget,
    };
    let variants = planning::variants(&request).expect("can be lowered");
    planning::problems(&variants, budget)
}

fn row(text: &mut String, cells: String) {
    writeln!(text, "| {cells} |").expect("a string");
}
