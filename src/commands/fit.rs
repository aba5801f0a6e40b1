//! `ebbtide fit`: the longest sequence that fits, per strategy and method, and what binds there.
//!
//! Longer sequences need more memory, so lengths are doubled until one does not fit and then
//! bisected. What binds is why the shortest length that was found too long does not fit.

use super::setting;
use crate::cli::output::print;
use crate::cli::parse;
use crate::error::{Error, Result};
use crate::lower::MAX_TOKENS;
use crate::methods::Method;
use crate::model::Positions;
use crate::planning;
use crate::report::{self, columns};
use ebbtide_solver::build::Infeasible;
use ebbtide_solver::search::Strategy;
use ebbtide_solver::units::Tokens;
use std::collections::BTreeMap;
use std::io::{IsTerminal, Write};
use std::time::Duration;

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

/// What is known of one strategy with one method.
pub(super) struct Row {
    pub(super) strategy: Strategy,
    pub(super) method: Method,
    /// The longest length that was found to fit.
    pub(super) fits: u64,
    /// The shortest that was found not to, and what binds there.
    pub(super) misses: Option<(u64, String)>,
    /// Lengths are told apart to this part of them.
    pub(super) parts: u64,
}

/// The part to which `fit` tells lengths apart.
const PARTS: u64 = 40;

/// The shortest length that is tried first.
const FIRST: u64 = 4096;

/// How long `ilp` may look for a plan of one length that no simple strategy has one for.
const PATIENCE: Duration = Duration::from_secs(5);

/// Searches and reports.
///
/// # Errors
/// `BadInput` for what cannot be read or planned; `Infeasible` where nothing fits at any length.
pub fn run(args: &Args, out: &mut dyn Write) -> Result<()> {
    let setting = args.setting.read()?;
    let strategies = if args.strategy.is_empty() {
        let all = Strategy::ALL.into_iter();
        all.filter(|&s| s != Strategy::Exhaustive).collect()
    } else {
        args.strategy.clone()
    };
    let mut rows = Vec::new();
    for &method in &args.method {
        setting.request(method, 1).check()?;
        rows.extend(strategies.iter().map(|&strategy| Row {
            strategy,
            method,
            fits: 0,
            misses: None,
            parts: PARTS,
        }));
    }
    let limit = match setting.model.positions {
        Positions::Learned { positions } => positions,
        Positions::Rope { .. } => MAX_TOKENS / args.setting.batch,
    };
    let told = std::io::stderr().is_terminal();
    narrow(&mut rows, limit, told, |seq, method, strategies| {
        planning::probe(&setting.request(method, seq), strategies, PATIENCE)
    })?;
    let text = if args.json {
        to_json(&rows, limit)
    } else {
        to_table(&rows, limit)
    };
    print(out, text)?;
    let Some(row) = rows.iter().min_by_key(|row| std::cmp::Reverse(row.fits)) else {
        return Ok(());
    };
    match row.fits {
        0 => Err(Error::infeasible(format!(
            "no strategy fits {} at any length: {}",
            setting.model.name,
            row.binds(limit)
        ))),
        _ => Ok(()),
    }
}

pub(super) type Probed = Result<Vec<std::result::Result<(), Infeasible>>>;

/// Asks, as long as a row has a length to ask for, for all rows of one length and method at once:
/// what they have in common is then prepared once.
pub(super) fn narrow(
    rows: &mut [Row],
    limit: u64,
    told: bool,
    probe: impl Fn(u64, Method, &[Strategy]) -> Probed,
) -> Result<()> {
    loop {
        let mut wanted: BTreeMap<(u64, &str), Vec<usize>> = BTreeMap::new();
        for (i, row) in rows.iter().enumerate() {
            if let Some(seq) = row.next(limit) {
                wanted.entry((seq, row.method.name())).or_default().push(i);
            }
        }
        let Some(((seq, name), asking)) = wanted.pop_first() else {
            break;
        };
        if told {
            eprint!("\r\x1b[K{} tokens with {name} ...", Tokens::new(seq));
        }
        let strategies: Vec<Strategy> = asking.iter().map(|&i| rows[i].strategy).collect();
        let method = rows[asking[0]].method;
        let found = match probe(seq, method, &strategies) {
            Ok(found) => found,
            // What can be planned at all ends at a length, too: an operator takes too long.
            Err(error) if asking.iter().all(|&i| rows[i].fits > 0) => {
                let miss = |&i: &usize| rows[i].misses = Some((seq, error.message.clone()));
                asking.iter().for_each(miss);
                continue;
            }
            Err(error) => return Err(error),
        };
        for (i, found) in asking.into_iter().zip(found) {
            match found {
                Ok(()) => rows[i].fits = seq,
                Err(miss) => rows[i].misses = Some((seq, report::infeasible::what_binds(&miss))),
            }
        }
    }
    if told {
        eprint!("\r\x1b[K");
    }
    Ok(())
}

impl Row {
    /// The next length to ask for: twice the last one, then the middle.
    fn next(&self, limit: u64) -> Option<u64> {
        let Some((misses, _)) = &self.misses else {
            let next = self.fits.saturating_mul(2).clamp(FIRST.min(limit), limit);
            return (self.fits < limit).then_some(next);
        };
        let step = precision(self.fits, self.parts);
        let middle = (self.fits + misses) / 2;
        let middle = middle - middle % step;
        (middle > self.fits).then_some(middle)
    }
    pub(super) fn binds(&self, limit: u64) -> String {
        match &self.misses {
            Some((_, binds)) => binds.clone(),
            None => format!("{} tokens are the most", Tokens::new(limit)),
        }
    }
}

/// To how many tokens lengths are told apart: a few below 1k, 64 below 8k, else 1k or a part of
/// them.
fn precision(tokens: u64, parts: u64) -> u64 {
    match tokens {
        0..64 => 1,
        64..1024 => 16,
        1024..8192 => 64,
        _ => (tokens / parts / 1024 * 1024).max(1024),
    }
}

fn to_json(rows: &[Row], limit: u64) -> String {
    let rows = rows.iter().map(|row| {
        serde_json::json!({
            "strategy": row.strategy.name(),
            "method": row.method.name(),
            "max_tokens": row.fits,
            "binds": row.binds(limit),
            "misses_tokens": row.misses.as_ref().map(|(seq, _)| seq),
        })
    });
    format!("{}\n", serde_json::json!({ "rows": Vec::from_iter(rows) }))
}

fn to_table(rows: &[Row], limit: u64) -> String {
    let title = ["strategy", "method", "fits", "too long", "what it needs"];
    let mut table = vec![Vec::from(title.map(String::from))];
    table.extend(rows.iter().map(|row| {
        let longest = match row.fits {
            0 => "none".into(),
            tokens => Tokens::new(tokens).to_string(),
        };
        let missed = row.misses.as_ref().map(|&(seq, _)| Tokens::new(seq));
        vec![
            row.strategy.name().into(),
            row.method.name().into(),
            longest,
            missed.map_or(String::new(), |seq| seq.to_string()),
            row.binds(limit),
        ]
    }));
    columns(&table, &[false, false, true, true, false]).join("\n") + "\n"
}

#[cfg(test)]
mod tests {
    use super::*;
    use ebbtide_solver::units::Bytes;

    #[test]
    fn narrowing_ends_within_its_precision() {
        for longest in [0, 255, 256, 5000, 9_999, 100_000, 1_000_000, MAX_TOKENS] {
            let mut row = [Row {
                strategy: Strategy::Keep,
                method: Method::Lomo,
                fits: 0,
                misses: None,
                parts: PARTS,
            }];
            narrow(&mut row, MAX_TOKENS, false, |seq, _, _| {
                Ok(vec![match seq <= longest {
                    true => Ok(()),
                    false => Err(Infeasible {
                        step: None,
                        operator: None,
                        needed: Bytes::new(seq),
                        limit: Bytes::new(longest),
                        ..Infeasible::default()
                    }),
                }])
            })
            .unwrap();
            let found = row[0].fits;
            assert!(
                found <= longest && longest < found + 2 * precision(longest, PARTS),
                "{found}"
            );
        }
    }
}
