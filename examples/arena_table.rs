//! The arena on published, generated and real instances: writes `reports/solver/arena.md`.
//!
//! `cargo run --release --example arena_table`; every instance gets at most three seconds. With the
//! argument `real`, only the last part is made anew; with `slack`, only pieces that have lost an
//! eighth are tried, and nothing is written.

use std::fmt::Write as _;
use std::time::{Duration, Instant};

use ebbtide::device::arithmetic::Arithmetic;
use ebbtide::lower::Workload;
use ebbtide::methods::Method;
use ebbtide::model::load;
use ebbtide::planning;
use ebbtide::profile::{self, Dtype};
use ebbtide_solver::arena::generate::{cut_rectangle, Cut, Rectangle};
use ebbtide_solver::arena::{place, Options, Placement, Request};
use ebbtide_solver::build::with_addresses;
use ebbtide_solver::problem::{Budget, Problem};
use ebbtide_solver::search::{self, contexts, Strategy};
use ebbtide_solver::units::Bytes;

const LIMIT: Duration = Duration::from_secs(3);
const CAPACITY: u64 = 1 << 20;
const FILE: &str = "reports/solver/arena.md";
/// What the tables of generated instances show.
const OPEN: &str = "\
\nFull rectangles are solved by undoing their cuts, which equal sums of sizes give away. The open \
ones have a dozen beginnings and a dozen ends at each position: of so many, sums agree by chance \
as often as by a cut, and what is left to the exact search has no slack.\n";
const SLACK: &str = "\
\nWhere pieces have lost an eighth, sums agree no more, and the exact search is alone with some \
5 % of slack everywhere. Three seconds mostly do not do.\n";
/// Where the last part begins.
const REAL: &str = "\n## Schedules";

/// What the last table shows.
const WHY: &str = "\
Those above their live bytes move pieces of tensors to the host and back, whose lifetimes cross, \
so that what is free lies in holes. In llama-2-7b's `ilp` plan at 32K and 24 GiB, 118 of 7,610 \
positions are within 2 % of the peak, and 20 s of search found nothing lower than 2.55 % above it; \
whether live bytes are attainable there is open. `plan` prints both numbers, and where the arena \
is over the budget it searches again with a budget smaller by the excess (`src/planning.rs`).\n\n";

fn main() {
    let mut text = String::from(
        "# Arena: heights against live bytes\n\n\
         Written by `cargo run --release --example arena_table`. One thread, at most 3 s for each \
         instance; the bound is the most bytes alive at once.\n",
    );
    let part = std::env::args().nth(1);
    if part.as_deref() == Some("slack") {
        loosened(&mut text);
        text.push_str(SLACK);
        print!("{text}");
        return;
    }
    if part.as_deref() == Some("real") {
        let known = std::fs::read_to_string(FILE).expect("made once before");
        text = known.split(REAL).next().unwrap_or_default().to_owned();
    } else {
        published(&mut text);
        generated(&mut text);
        text.push_str(OPEN);
    }
    real(&mut text);
    std::fs::write(FILE, &text).expect("the repository is writable");
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

/// Rectangles cut into pieces of which some lose an eighth, asked for the rectangle's capacity.
fn loosened(text: &mut String) {
    text.push_str("\n## Generated with slack, capacity 1,048,576, seeds 1 to 3\n\n");
    text.push_str("| cut | buffers | positions | pieces that lose an eighth | fits | seconds |\n");
    text.push_str("|---|--:|--:|--:|---|--:|\n");
    for (time, pieces) in [(40, 350), (100, 350), (400, 500)] {
        for shrunk_percent in [40, 80] {
            for cut in Cut::ALL {
                let solved = [1, 2, 3].map(|seed| {
                    let rectangle = Rectangle {
                        time,
                        capacity: CAPACITY,
                        pieces,
                        shrunk_percent,
                        cut,
                    };
                    timed(&cut_rectangle(&rectangle, seed), Some(CAPACITY))
                });
                let fits = solved.iter().filter(|(p, _)| p.height.get() <= CAPACITY);
                let fits = fits.count();
                let seconds = solved.map(|(_, seconds)| format!("{seconds:.2}"));
                let seconds = seconds.join(", ");
                row(
                    text,
                    format!(
                        "{cut:?} | {pieces} | {time} | {shrunk_percent} % | {fits} of 3 \
                         | {seconds}"
                    ),
                );
            }
        }
    }
}

/// The schedule of every strategy, as `plan` gives it its addresses.
fn real(text: &mut String) {
    text.push_str(REAL);
    text.push_str(" of every strategy (lomo, H100, 110 GiB of host memory)\n\n");
    text.push_str(WHY);
    text.push_str(
        "| model | tokens | device GiB | strategy | buffers | live bytes | arena / live \
         | device left |\n|---|--:|--:|---|--:|--:|--:|--:|\n",
    );
    let (mut count, mut optimal) = (0, 0);
    for model in ["llama-3.1-8b", "llama-2-7b", "qwen2.5-7b"] {
        for (k_tokens, gib) in [(4, 72), (32, 24), (32, 40), (32, 72), (128, 24), (128, 72)] {
            let problems = problems(model, k_tokens, gib);
            let options = search::Options::default();
            let contexts = contexts(&problems, &options);
            for strategy in Strategy::ALL {
                let Ok(solution) = search::solve(&contexts, strategy, &options) else {
                    continue;
                };
                let live = solution.found.candidate.built.peak;
                let schedule = with_addresses(solution.found.candidate.built);
                count += 1;
                optimal += i32::from(schedule.arena_bytes == live);
                let above = schedule.arena_bytes.get() as f64 / live.get().max(1) as f64;
                let left = 100.0 - 100.0 * schedule.arena_bytes.get() as f64 / (gib << 30) as f64;
                let (name, buffers) = (strategy.name(), schedule.buffers.len());
                let live = live.get();
                row(
                    text,
                    format!(
                        "{model} | {k_tokens}K | {gib} | {name} | {buffers} | {live} \
                         | {above:.4} | {left:.1} %"
                    ),
                );
            }
        }
    }
    writeln!(text, "\n{optimal} of {count} at their live bytes.").expect("a string");
}

fn problems(model: &str, k_tokens: u64, gib: u64) -> Vec<Problem> {
    let model = load(model).expect("shipped");
    let profile = profile::load("h100-sxm5-80gb").expect("shipped");
    let workload = Workload {
        seq: k_tokens << 10,
        batch: 1,
        accumulate: 1,
        dtype: Dtype::Bf16,
        clip: false,
    };
    let budget = Budget {
        device: Bytes::gib(gib),
        host: Bytes::gib(110),
    };
    let request = planning::Request {
        model: &model,
        profile: &profile,
        workload,
        method: Method::Lomo,
        storage: None,
        arithmetic: Arithmetic::Plain,
        budget,
    };
    let variants = planning::variants(&request).expect("can be lowered");
    planning::problems(&variants, budget)
}

fn row(text: &mut String, cells: String) {
    writeln!(text, "| {cells} |").expect("a string");
}
