//! `ebbtide fit`: the longest sequence that fits, per strategy and method, and what binds there.
//!
//! Longer sequences need more memory, so lengths are doubled until one does not fit and then
//! bisected. What binds is why the shortest length that was found too long does not fit.

use super::setting;
use crate::cli::{parse, print};
use crate::error::Result;
use crate::lower::{Workload, MAX_TOKENS};
use crate::methods::Method;
use crate::model::Positions;
use crate::planning::{self, Request};
use crate::report::{self, columns};
use ebbtide_solver::search::{Options, Strategy};
use ebbtide_solver::units::Tokens;
use std::io::{IsTerminal, Write};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::Mutex;

/// What `ebbtide fit` is asked.
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    /// Model, machine and limits.
    #[command(flatten)]
    pub setting: setting::Args,
    /// Training methods, separated by commas
    #[arg(
        long,
        value_name = "A,B",
        default_value = "adamw",
        value_delimiter = ','
    )]
    #[arg(value_parser = parse::method())]
    pub method: Vec<Method>,
    /// Strategies, separated by commas [default: all but exhaustive]
    #[arg(long, value_name = "A,B", value_delimiter = ',', value_parser = parse::strategy())]
    pub strategy: Vec<Strategy>,
    /// Print one JSON object
    #[arg(long)]
    pub json: bool,
}

/// One answer.
struct Row {
    strategy: Strategy,
    method: Method,
    max_tokens: u64,
    binds: String,
}

/// Searches and reports.
///
/// # Errors
/// `BadInput` for what cannot be read or planned.
pub fn run(args: &Args, out: &mut dyn Write) -> Result<()> {
    let setting = args.setting.read()?;
    let strategies = if args.strategy.is_empty() {
        let all = Strategy::ALL.into_iter();
        all.filter(|&s| s != Strategy::Exhaustive).collect()
    } else {
        args.strategy.clone()
    };
    let mut tasks = Vec::new();
    for &method in &args.method {
        method.check(args.setting.accumulate)?;
        tasks.extend(strategies.iter().map(|&strategy| (strategy, method)));
    }
    let request = |method| Request {
        model: &setting.model,
        profile: &setting.profile,
        workload: Workload {
            seq: 1,
            batch: args.setting.batch,
            accumulate: args.setting.accumulate,
            dtype: setting.dtype,
        },
        method,
        budget: setting.budget,
    };
    let rows = in_parallel(&tasks, |&(strategy, method)| {
        longest(&request(method), strategy)
    });
    let rows = rows.into_iter().collect::<Result<Vec<Row>>>()?;
    print(
        out,
        if args.json {
            to_json(&rows)
        } else {
            to_table(&rows)
        },
    )
}

/// To how many tokens lengths are told apart: 256 below 8k, else 1k or a fortieth.
fn precision(tokens: u64) -> u64 {
    match tokens {
        0..8192 => 256,
        _ => (tokens / 40 / 1024 * 1024).max(1024),
    }
}

/// The longest sequence that one strategy finds a plan for.
fn longest(request: &Request<'_>, strategy: Strategy) -> Result<Row> {
    let limit = match request.model.positions {
        Positions::Learned { positions } => positions,
        Positions::Rope { .. } => MAX_TOKENS / request.workload.batch,
    };
    let at = |seq| Request {
        workload: Workload {
            seq,
            ..request.workload
        },
        ..*request
    };
    let (mut fits, mut binds) = (0, None);
    let mut seq = limit.min(4096);
    while binds.is_none() && fits < limit {
        match planning::fits(&at(seq), strategy)? {
            Ok(()) => (fits, seq) = (seq, limit.min(2 * seq)),
            Err(miss) => binds = Some(miss),
        }
    }
    while seq - fits > precision(fits) {
        let middle = fits + (seq - fits) / 2;
        let middle = middle - middle % precision(fits);
        match planning::fits(&at(middle), strategy)? {
            Ok(()) => fits = middle,
            Err(miss) => (seq, binds) = (middle, Some(miss)),
        }
    }
    // Addresses may need more than what lives: what is told must be a plan that `plan` finds too.
    while fits > 0 {
        match planning::plan(&at(fits), strategy, &Options::default())? {
            Ok(_) => break,
            Err(miss) => (fits, binds) = (fits.saturating_sub(precision(fits)), Some(miss)),
        }
    }
    Ok(Row {
        strategy,
        method: request.method,
        max_tokens: fits,
        binds: match binds {
            Some(miss) => report::infeasible::what_binds(&miss),
            None => format!("{} tokens are the most", Tokens::new(limit)),
        },
    })
}

/// Works on all tasks with as many threads as there are cores, telling a terminal how far it is.
fn in_parallel<T: Sync, R: Send>(tasks: &[T], work: impl Fn(&T) -> R + Sync) -> Vec<R> {
    let (next, done) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let results: Vec<Mutex<Option<R>>> = tasks.iter().map(|_| Mutex::new(None)).collect();
    let told = std::io::stderr().is_terminal();
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        for _ in 0..threads.min(tasks.len()) {
            scope.spawn(|| {
                while let Some(i) =
                    Some(next.fetch_add(1, Ordering::Relaxed)).filter(|&i| i < tasks.len())
                {
                    *results[i].lock().expect("no other holder panics") = Some(work(&tasks[i]));
                    let done = done.fetch_add(1, Ordering::Relaxed) + 1;
                    if told {
                        eprint!("\r{done} of {} strategies", tasks.len());
                    }
                }
            });
        }
    });
    if told {
        eprint!("\r\x1b[K");
    }
    let results = results
        .into_iter()
        .map(|result| result.into_inner().expect("no holder panics"));
    results
        .map(|result| result.expect("every task was done"))
        .collect()
}

fn to_json(rows: &[Row]) -> String {
    let rows = rows.iter().map(|row| {
        serde_json::json!({
            "strategy": row.strategy.name(),
            "method": row.method.name(),
            "max_tokens": row.max_tokens,
            "binds": row.binds,
        })
    });
    format!("{}\n", serde_json::json!({ "rows": Vec::from_iter(rows) }))
}

fn to_table(rows: &[Row]) -> String {
    let title = ["strategy", "method", "longest", "the next longer needs"];
    let mut table = vec![Vec::from(title.map(String::from))];
    table.extend(rows.iter().map(|row| {
        vec![
            row.strategy.name().into(),
            row.method.name().into(),
            match row.max_tokens {
                0 => "none".into(),
                tokens => Tokens::new(tokens).to_string(),
            },
            row.binds.clone(),
        ]
    }));
    columns(&table, &[false, false, true, false]).join("\n") + "\n"
}
