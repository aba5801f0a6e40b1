//! Prints the chain benchmark as Markdown: other solvers' makespans beside ours.
//!
//! `cargo run --release --example chain_table > reports/solver/chain.md`

use ebbtide::format::chain::parse;
use ebbtide_solver::chain::{greedy, ilp, rotor, Failure, Solution, Status};
use std::path::Path;
use std::time::{Duration, Instant};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let data = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/chain");
    println!("# Chains: makespans in ms\n");
    println!("`cargo run --release --example chain_table > reports/solver/chain.md`\n");
    println!("Published columns are from `tests/data/chain/results.csv`. Checkmate's is a finer");
    println!("problem (outputs rebuilt from internals for nothing; some of its plans exceed the");
    println!("budget): no sequence of our operations need reach it. `*`: stopped by its limit.\n");
    println!(
        "| chain | budget | floor | rotor, published | checkmate, published | greedy | rotor \
              | ilp | ilp bound | status | ilp s |"
    );
    println!("|---|---|---|---|---|---|---|---|---|---|---|");
    for row in std::fs::read_to_string(data.join("results.csv"))?
        .lines()
        .skip(1)
    {
        let cells: Vec<&str> = row.split(',').collect();
        let percent = (cells[1].parse::<f64>()? * 100.0).round();
        let text = std::fs::read_to_string(data.join(format!("{}_{percent}.json", cells[0])))?;
        let (_, chain) = parse(&text)?;
        let started = Instant::now();
        let best = ilp::solve(&chain, started.checked_add(Duration::from_secs(60)));
        let seconds = started.elapsed().as_secs_f64();
        let (bound, status) = match &best {
            Ok(best) => (ms(best.bound.get()), word(best.status)),
            Err(_) => ("-".into(), "infeasible"),
        };
        println!(
            "| {} | {percent} % | {} | {} | {} | {} | {} | {} | {bound} | {status} | \
             {seconds:.4} |",
            cells[0],
            ms(chain.floor().get()),
            cells[3],
            cells[6],
            makespan(&greedy::solve(&chain)),
            makespan(&rotor::solve(&chain, None)),
            makespan(&best),
        );
    }
    Ok(())
}

fn ms(nanos: u64) -> String {
    (nanos as f64 / 1e6).to_string()
}

fn makespan(solved: &Result<Solution, Failure>) -> String {
    solved
        .as_ref()
        .map_or("-".into(), |solution| ms(solution.makespan.get()))
}

fn word(status: Status) -> &'static str {
    match status {
        Status::Optimal => "optimal",
        Status::Gap => "gap",
        Status::TimeLimit => "time limit",
    }
}
