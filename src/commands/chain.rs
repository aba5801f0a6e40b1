//! `ebbtide chain`: the fastest rematerialisation of a chain within a budget.

use crate::cli::parse;
use crate::error::{Error, Result};
use crate::files::read_text;
use crate::format::chain::{self, SolutionFile};
use ebbtide_solver::chain::{exhaustive, greedy, ilp, rotor, Chain, Failure, Solution};
use ebbtide_solver::units::Bytes;
use std::io::Write;
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// Chains have hundreds of layers.
const LARGEST_PROBLEM: Bytes = Bytes::mib(64);

/// What `ebbtide chain` is asked.
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    /// A chain problem as JSON.
    #[arg(value_name = "PROBLEM.json")]
    pub problem: PathBuf,
    /// How to search.
    #[arg(long, value_enum, default_value_t = Strategy::Ilp)]
    pub strategy: Strategy,
    /// Print one JSON object instead of a table.
    #[arg(long)]
    pub json: bool,
    /// When to stop searching for something better, such as 500ms, 10s or 2m.
    #[arg(long, value_name = "TIME", default_value = "10s", value_parser = parse::time)]
    #[arg(allow_hyphen_values = true)]
    pub time_limit: Duration,
}

/// The strategies for chains.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Strategy {
    /// The fastest schedule found, and a proof.
    Ilp,
    /// The best memory-persistent schedule.
    Rotor,
    /// The layers that cost the most time per byte are saved first.
    Greedy,
    /// Everything is tried: at most 12 layers.
    Exhaustive,
}

impl Strategy {
    /// Its name on the command line.
    pub const fn name(self) -> &'static str {
        match self {
            Strategy::Ilp => "ilp",
            Strategy::Rotor => "rotor",
            Strategy::Greedy => "greedy",
            Strategy::Exhaustive => "exhaustive",
        }
    }
}

/// Solves the problem and prints the answer.
///
/// # Errors
/// A file that cannot be read or used; a chain for which nothing fits; output that cannot be
/// written.
pub fn run(args: &Args, out: &mut dyn Write) -> Result<()> {
    let path = args.problem.display();
    let text = read_text(&args.problem, LARGEST_PROBLEM, "a chain problem")?;
    let (name, chain) = chain::parse(&text).map_err(|error| error.within(&path))?;
    let started = Instant::now();
    let deadline = started.checked_add(args.time_limit);
    let solution = solve(&chain, args.strategy, deadline)
        .map_err(|failure| error_of(failure, &chain, args.strategy).within(&path))?;
    let solve_s = started.elapsed().as_secs_f64();
    let written = SolutionFile::of(&solution, args.strategy.name(), solve_s);
    let text = match args.json {
        true => serde_json::to_string(&written).expect("plain numbers and words"),
        false => table(
            &name.unwrap_or(path.to_string()),
            &chain,
            &solution,
            &written,
        ),
    };
    writeln!(out, "{text}").map_err(|error| Error::bad_input(error.to_string()).within("stdout"))
}

fn solve(
    chain: &Chain,
    strategy: Strategy,
    deadline: Option<Instant>,
) -> std::result::Result<Solution, Failure> {
    match strategy {
        Strategy::Ilp => ilp::solve(chain, deadline),
        Strategy::Rotor => rotor::solve(chain, deadline),
        Strategy::Greedy => greedy::solve(chain),
        Strategy::Exhaustive => exhaustive::solve(chain, deadline),
    }
}

fn error_of(failure: Failure, chain: &Chain, strategy: Strategy) -> Error {
    let (name, budget) = (strategy.name(), chain.budget);
    match failure {
        Failure::Empty | Failure::TooLarge(_) => Error::bad_input(failure.to_string()),
        Failure::TooManyLayers { .. } => {
            Error::bad_input(format!("{name}: {failure}")).hint("ilp takes the longest chains")
        }
        Failure::LayerDoesNotFit { smallest, .. } | Failure::Infeasible { smallest } => {
            Error::infeasible(format!("budget of {} ({budget}): {failure}", budget.get())).hint(
                format!(
                    "{name} has a schedule for `budget_bytes` {}",
                    smallest.get()
                ),
            )
        }
        Failure::NoTime => Error::bad_input(format!("{name}: {failure}"))
            .hint("raise --time-limit, or use --strategy greedy"),
    }
}

fn table(name: &str, chain: &Chain, solution: &Solution, written: &SolutionFile) -> String {
    let percent = |part: f64| format!("{:.2} %", 100.0 * part);
    let floor = chain.floor();
    let above = (solution.makespan - floor).get() as f64 / floor.get().max(1) as f64;
    let layers = match chain.layers.len() {
        1 => "1 layer".to_owned(),
        layers => format!("{layers} layers"),
    };
    let rows = [
        ("chain", format!("{name}, {layers}")),
        ("strategy", written.strategy.clone()),
        (
            "makespan",
            format!("{} ({} recomputed)", solution.makespan, percent(above)),
        ),
        (
            "bound",
            format!("{} (gap {})", solution.bound, percent(written.gap)),
        ),
        ("status", written.status.to_owned()),
        ("peak", format!("{} of {}", solution.peak, chain.budget)),
        ("solved in", format!("{:.3} s", written.solve_s)),
    ];
    let mut text = String::new();
    for (what, value) in rows {
        text += &format!("{what:<10} {value}\n");
    }
    text += "sequence";
    for ops in written.sequence.chunks(6) {
        let words: Vec<String> = ops.iter().map(|(op, i)| format!("{op} {i}")).collect();
        text += &format!("\n  {}", words.join(", "));
    }
    text
}
