//! Prints the chain benchmark as Markdown: other solvers' makespans beside ours.
//!
//! `cargo run --release --example chain_table > reports/solver/chain.md`

use ebbtide::format::chain::parse;
use ebbtide_solver::chain::{greedy, ilp, rotor, Failure, Solution, Status};
use std::path::Path;
use std::time::{Duration, Instant};

const TEXT: &str = "\
# Chains: makespans in ms

`cargo run --release --example chain_table > reports/solver/chain.md`

Published columns are from `tests/data/chain/results.csv`: rotor with 2000 slots of memory; *exact*,
the optimum of whole blocks by an integer program, known to a tenth of a percent of the floor; and
Checkmate's integer program. The last is a finer problem (outputs rebuilt from internals for
nothing; some of its plans exceed the budget): no sequence of our operations need reach it. `*`:
stopped by its limit. Seconds of ours are of one run on one core.

| chain | budget | floor | published: rotor | s | exact | Checkmate | s | greedy | rotor | s | ilp \
| bound | status | s |
|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|---|--:|";

/// Of how many rows something holds that others have published.
#[derive(Default)]
struct Summary {
    rows: usize,
    solved: usize,
    optimal: usize,
    rotor: [usize; 2],
    faster_than_rotor: usize,
    slower_than_rotor: usize,
    exact: [usize; 2],
    slowest: f64,
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let data = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/chain");
    println!("{TEXT}");
    let mut summary = Summary::default();
    for row in std::fs::read_to_string(data.join("results.csv"))?
        .lines()
        .skip(1)
    {
        let cells: Vec<&str> = row.split(',').collect();
        let percent = (cells[1].parse::<f64>()? * 100.0).round();
        let text = std::fs::read_to_string(data.join(format!("{}_{percent}.json", cells[0])))?;
        let (_, chain) = parse(&text)?;
        let floor = ms(chain.floor().get());
        let (greedy, _) = timed(|| greedy::solve(&chain));
        let (rotor, rotor_s) = timed(|| rotor::solve(&chain, None));
        let limit = Instant::now().checked_add(Duration::from_secs(60));
        let (best, seconds) = timed(|| ilp::solve(&chain, limit));
        let (bound, status) = match &best {
            Ok(best) => (ms(best.bound.get()).to_string(), word(best.status)),
            Err(_) => ("-".into(), "infeasible"),
        };
        // The published overhead is rounded to a tenth of a percent.
        let exact = cells[5]
            .parse()
            .map(|over: f64| floor * (1.0 + over / 100.0));
        summary.add(
            cells[3].parse().ok(),
            exact.as_ref().ok(),
            [&rotor, &best],
            seconds,
        );
        println!(
            "| {} | {percent} % | {floor} | {} | {} | {} | {} | {} | {} | {} | {rotor_s:.4} | {} \
             | {bound} | {status} | {seconds:.4} |",
            cells[0],
            cells[3],
            cells[4],
            exact.map_or(String::new(), |exact| format!("{exact:.0}")),
            rounded(cells[6]),
            cells[7],
            makespan(&greedy),
            makespan(&rotor),
            makespan(&best),
        );
    }
    summary.print();
    Ok(())
}

impl Summary {
    fn add(
        &mut self,
        published_rotor: Option<f64>,
        exact: Option<&f64>,
        [rotor, best]: [&Result<Solution, Failure>; 2],
        seconds: f64,
    ) {
        self.rows += 1;
        self.slowest = self.slowest.max(seconds);
        let (Ok(rotor), Ok(best)) = (rotor, best) else {
            return;
        };
        self.solved += 1;
        self.optimal += usize::from(best.status == Status::Optimal);
        self.faster_than_rotor += usize::from(best.makespan < rotor.makespan);
        self.slower_than_rotor += usize::from(best.makespan > rotor.makespan);
        if let Some(published) = published_rotor {
            self.rotor[0] += usize::from(ms(rotor.makespan.get()) <= published);
            self.rotor[1] += 1;
        }
        if let Some(exact) = exact {
            self.exact[0] += usize::from(ms(best.makespan.get()) <= exact * 1.005);
            self.exact[1] += 1;
        }
    }

    fn print(&self) {
        let [rotor, rotors] = self.rotor;
        let [exact, exacts] = self.exact;
        println!(
            "\n{} rows, {} with a schedule, {} of them proved optimal. Our rotor is as fast as the \
             published one or faster in {rotor} of {rotors} rows. ilp is faster than our rotor in \
             {} rows and slower in {}; within 0.5 % of the exact optimum or faster in {exact} of \
             {exacts}. It took {:.3} s at most.",
            self.rows,
            self.solved,
            self.optimal,
            self.faster_than_rotor,
            self.slower_than_rotor,
            self.slowest
        );
    }
}

fn timed<T>(work: impl FnOnce() -> T) -> (T, f64) {
    let started = Instant::now();
    let done = work();
    (done, started.elapsed().as_secs_f64())
}

fn ms(nanos: u64) -> f64 {
    nanos as f64 / 1e6
}

/// A published number to a tenth; words, and numbers marked as unproved, as they are.
fn rounded(cell: &str) -> String {
    let number = cell.trim_end_matches('*');
    let mark = &cell[number.len()..];
    number
        .parse()
        .map_or(cell.into(), |number: f64| format!("{number:.1}{mark}"))
}

fn makespan(solved: &Result<Solution, Failure>) -> String {
    solved.as_ref().map_or("-".into(), |solution| {
        ms(solution.makespan.get()).to_string()
    })
}

fn word(status: Status) -> &'static str {
    match status {
        Status::Optimal => "optimal",
        Status::Gap => "gap",
        Status::TimeLimit => "time limit",
    }
}
