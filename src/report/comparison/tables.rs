//! A comparison as tables: the same rows for Markdown, for a page and for a terminal.

use std::fmt::Write;

use ebbtide_solver::units::{Bytes, Nanos};

use super::words::{beyond_measured_lengths, cause, fastest, tensor_kinds, tokens};
use crate::format::comparison::{Cell, ComparisonFile, Fit, Group};
use crate::report::{columns, percent};

/// A table. Cells are text; those of columns that hold numbers are set right.
pub(super) struct Table {
    /// What it is called in links.
    pub(super) id: String,
    /// What it shows.
    pub(super) title: String,
    /// How to read it.
    pub(super) note: String,
    /// The names of its columns.
    pub(super) head: Vec<String>,
    /// Which columns hold numbers.
    pub(super) numbers: Vec<bool>,
    /// Its rows.
    pub(super) rows: Vec<Vec<String>>,
}

impl Table {
    /// For a terminal.
    pub(super) fn lines(&self) -> Vec<String> {
        let mut all = vec![self.head.clone()];
        all.extend(self.rows.iter().cloned());
        columns(&all, &self.numbers)
    }
    /// A section of a Markdown file.
    pub(super) fn markdown(&self) -> String {
        let line = |cells: &[String]| format!("| {} |\n", cells.join(" | "));
        let rule = self
            .numbers
            .iter()
            .map(|number| if *number { "--:" } else { "---" });
        let rule = Vec::from_iter(rule.map(String::from));
        let mut text = format!("\n## {}\n\n{}\n\n", self.title, self.note);
        text.push_str(&line(&self.head));
        text.push_str(&line(&rule));
        self.rows.iter().for_each(|row| text.push_str(&line(row)));
        text
    }
}

/// Every table, in order.
pub(super) fn all(file: &ComparisonFile) -> Vec<Table> {
    let mut tables = steps(file);
    tables.push(speedups(file));
    tables.push(crossovers(file));
    tables.push(longest(file));
    tables.push(decisions(file));
    tables.push(misses(file));
    tables.push(guesses(file));
    tables.push(sources(file));
    tables.retain(|table| !table.rows.is_empty());
    tables
}

fn head(names: &[&str]) -> Vec<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

/// For every method the step of every strategy.
pub(super) fn steps(file: &ComparisonFile) -> Vec<Table> {
    let strategies = &file.settings.strategies;
    let of_method = |method: &str| {
        let rows = file.of_method(method).map(|group| {
            let mut row = vec![tokens(group.seq), Nanos::new(group.floor_ns).to_string()];
            row.extend(
                strategies
                    .iter()
                    .map(|strategy| match group.cell(strategy) {
                        Some(Cell {
                            fits: Some(fit), ..
                        }) => {
                            format!(
                                "{} ({:.3})",
                                Nanos::new(fit.step_ns),
                                fit.over(group.floor_ns)
                            )
                        }
                        Some(cell) => format!("– {}", cause(cell.misses.as_deref().unwrap_or(""))),
                        None => String::new(),
                    }),
            );
            row
        });
        let mut names = head(&["tokens", "floor"]);
        names.extend(strategies.iter().cloned());
        Table {
            id: format!("steps-{method}"),
            title: format!("Step time with {method}"),
            note: "Seconds of a step, and in brackets how many times the floor: the step with \
                   everything on the device and nothing computed again. A dash: does not fit, and \
                   for want of what."
                .into(),
            numbers: vec![true; names.len()],
            head: names,
            rows: rows.collect(),
        }
    };
    file.methods().into_iter().map(of_method).collect()
}

/// The fastest plan beside what people run today.
fn speedups(file: &ComparisonFile) -> Table {
    let against = |group: &Group, cell: Option<&Cell>| -> Option<String> {
        let best = fastest(group)?.1.step_ns as f64;
        Some(match cell?.fits.as_ref() {
            Some(fit) => format!("{:.2} ×", fit.step_ns as f64 / best),
            None => "does not fit".into(),
        })
    };
    let rows = file.groups.iter().filter_map(|group| {
        let (cell, fit) = fastest(group)?;
        let gap = fit.step_ns.saturating_sub(fit.bound_ns) as f64 / fit.step_ns.max(1) as f64;
        let mut row = vec![
            group.method.clone(),
            tokens(group.seq),
            cell.strategy.clone(),
            Nanos::new(fit.step_ns).to_string(),
            format!("{:.0}", fit.tokens_per_s),
            percent(fit.mfu),
            percent(gap),
        ];
        for strategy in ["checkpoint", "checkpoint-offload"] {
            for cell in [group.cell(strategy), group.untiled(strategy)] {
                row.push(against(group, cell).unwrap_or_default());
            }
        }
        Some(row)
    });
    Table {
        id: "speedups".into(),
        title: "The fastest plan beside what people run today".into(),
        note:
            "How many times as long the other takes. Checkpointing keeps every block's input and \
               recomputes the rest; offloading sends the inputs to the host. With the same tiles \
               both may cut MLP, head and attention as the fastest plan may; without, nothing is \
               cut, as in a plain trainer. Gap: no plan is faster by more."
                .into(),
        head: head(&[
            "method",
            "tokens",
            "fastest",
            "step",
            "tokens/s",
            "MFU",
            "gap",
            "checkpoint, same tiles",
            "checkpoint, no tiles",
            "checkpoint-offload, same tiles",
            "checkpoint-offload, no tiles",
        ]),
        numbers: vec![
            false, true, false, true, true, true, true, true, true, true, true,
        ],
        rows: rows.collect(),
    }
}

/// Where `a` falls below `b`, both given at lengths, between the two last ones by a line through
/// the logarithms; nothing where it never does. `Some(0)`: from the first length on.
pub(super) fn crossing(points: &[(u64, f64)]) -> Option<u64> {
    let at = points.iter().position(|&(_, ratio)| ratio >= 1.0)?;
    let Some(before) = at.checked_sub(1) else {
        return Some(0);
    };
    let ((x0, r0), (x1, r1)) = (points[before], points[at]);
    let (x0, x1) = ((x0 as f64).log2(), (x1 as f64).log2());
    let part = -r0.log2() / (r1.log2() - r0.log2());
    Some((x0 + part * (x1 - x0)).exp2() as u64)
}

fn from_length(found: Option<u64>, points: &[(u64, f64)]) -> String {
    let (Some(first), Some(last)) = (points.first(), points.last()) else {
        return "no length at which both fit".into();
    };
    match found {
        Some(0) => format!("from {} or less", tokens(first.0)),
        Some(seq) => format!("from about {}k", (seq + 512) / 1024),
        None => format!("not up to {}", tokens(last.0)),
    }
}

/// From which length on swapping beats recomputing, tensor by tensor and for whole strategies.
fn crossovers(file: &ComparisonFile) -> Table {
    let mut rows = Vec::new();
    let method = file
        .methods()
        .first()
        .copied()
        .unwrap_or_default()
        .to_owned();
    let groups: Vec<&Group> = file.of_method(&method).collect();
    let tensors = groups.first().map_or(&[][..], |group| &group.tensors);
    for tensor in tensors {
        let points = ratios(&groups, &tensor.tensor);
        let at = |point: Option<&(u64, f64)>| {
            point.map_or(String::new(), |(seq, ratio)| {
                format!("{ratio:.2} at {}", tokens(*seq))
            })
        };
        rows.push(vec![
            format!("{} of a block", tensor.tensor),
            "a copy takes less time than making it again".into(),
            from_length(crossing(&points), &points),
            at(points.first()),
            at(points.last()),
        ]);
    }
    for method in file.methods() {
        for (swapping, other) in [("swap", "checkpoint"), ("checkpoint-offload", "checkpoint")] {
            let points: Vec<(u64, f64)> = file
                .of_method(method)
                .filter_map(|g| {
                    let (a, b) = (g.fit(swapping)?.step_ns, g.fit(other)?.step_ns);
                    Some((g.seq, b as f64 / a as f64))
                })
                .collect();
            let at = |point: Option<&(u64, f64)>| {
                point.map_or(String::new(), |(seq, r)| {
                    format!("{r:.3} at {}", tokens(*seq))
                })
            };
            rows.push(vec![
                format!("{swapping}, {method}"),
                format!("is at least as fast as {other}"),
                from_length(crossing(&points), &points),
                at(points.first()),
                at(points.last()),
            ]);
        }
    }
    Table {
        id: "crossovers".into(),
        title: "From which length on swapping beats recomputing on this link".into(),
        note:
            "The last columns give recompute time by copy time (for strategies: the other's step \
               by its own) at the shortest and the longest length where both are known. Lengths \
               between those compared are interpolated. A copy that takes less is free only while \
               the link has time: all of a block's tensors share it."
                .into(),
        head: head(&["what", "question", "answer", "shortest", "longest"]),
        numbers: vec![false; 5],
        rows,
    }
}

/// Recompute time by copy time of a tensor over lengths.
pub(super) fn ratios(groups: &[&Group], tensor: &str) -> Vec<(u64, f64)> {
    let ratio = |group: &&Group| {
        let cost = group.tensors.iter().find(|cost| cost.tensor == tensor)?;
        Some((
            group.seq,
            cost.recompute_ns as f64 / cost.copy_ns.max(1) as f64,
        ))
    };
    groups.iter().filter_map(ratio).collect()
}

fn longest(file: &ComparisonFile) -> Table {
    let rows = file.longest.iter().map(|row| {
        vec![
            row.strategy.clone(),
            row.method.clone(),
            match row.max_tokens {
                0 => "none".into(),
                most => tokens(most),
            },
            row.too_long.map_or(String::new(), tokens),
            row.binds.clone(),
        ]
    });
    Table {
        id: "longest".into(),
        title: "The longest sequence that fits".into(),
        note: "To an eighth of its length, up to the longest that was compared.".into(),
        head: head(&["strategy", "method", "longest", "too long", "which needs"]),
        numbers: vec![false, false, true, true, false],
        rows: rows.collect(),
    }
}

/// What the fastest plan does with tensors and states.
fn decisions(file: &ComparisonFile) -> Table {
    let kinds = tensor_kinds(&file.groups);
    let rows = file.groups.iter().filter_map(|group| {
        let (cell, fit) = fastest(group)?;
        let mut row = vec![
            group.method.clone(),
            tokens(group.seq),
            cell.strategy.clone(),
        ];
        row.extend(kinds.iter().map(|kind| {
            let share = fit.shares.iter().find(|share| share.tensor == *kind);
            share.map_or(String::new(), |share| {
                let parts = [share.keep, share.swap, share.recompute];
                parts.map(|part| format!("{:.0}", part * 100.0)).join("/")
            })
        }));
        row.push(states(fit));
        row.push(format!(
            "{} groups, tiles of {}",
            fit.head_groups,
            tokens(fit.tile)
        ));
        Some(row)
    });
    let mut names = head(&["method", "tokens", "fastest"]);
    names.extend(kinds.iter().cloned());
    names.extend(head(&["parameters", "cut"]));
    let mut numbers = vec![false; names.len()];
    numbers[1] = true;
    Table {
        id: "decisions".into(),
        title: "What the fastest plan decides".into(),
        note:
            "Of every kind of tensor the percent that is kept / swapped / recomputed, all blocks \
               together."
                .into(),
        head: names,
        numbers,
        rows: rows.collect(),
    }
}

fn states(fit: &Fit) -> String {
    let all = fit.states.values().sum::<u64>().max(1) as f64;
    let parts = fit.states.iter().map(|(place, parameters)| {
        let place = match place.as_str() {
            "host_optimizer" => "on the device, updated by the host",
            "streamed" => "streamed from the host",
            _ => "on the device",
        };
        format!("{} {place}", percent(*parameters as f64 / all))
    });
    Vec::from_iter(parts).join(", ")
}

/// Where a strategy does not fit, and why.
fn misses(file: &ComparisonFile) -> Table {
    let mut rows = Vec::new();
    for group in &file.groups {
        for cell in &group.cells {
            let Some(why) = &cell.misses else { continue };
            let tiles = if cell.tiled { "" } else { ", no tiles" };
            rows.push(vec![
                group.method.clone(),
                tokens(group.seq),
                format!("{}{tiles}", cell.strategy),
                why.clone(),
            ]);
        }
    }
    Table {
        id: "misses".into(),
        title: "What does not fit, and why".into(),
        note: "The nearest miss of all that the strategy tried.".into(),
        head: head(&["method", "tokens", "strategy", "needs"]),
        numbers: vec![false, true, false, false],
        rows,
    }
}

/// What lies outside of what was measured.
fn guesses(file: &ComparisonFile) -> Table {
    let mut rows: Vec<Vec<String>> = Vec::new();
    for group in file
        .groups
        .iter()
        .filter(|group| !group.extrapolated.is_empty())
    {
        let longer = beyond_measured_lengths(group);
        rows.push(vec![
            group.method.clone(),
            tokens(group.seq),
            if longer { "yes" } else { "no" }.into(),
            group.extrapolated.join("; "),
        ]);
    }
    Table {
        id: "guesses".into(),
        title: "What the profile had to extrapolate".into(),
        note: "Costs outside of the range that was measured.".into(),
        head: head(&["method", "tokens", "in length", "what"]),
        numbers: vec![false, true, false, false],
        rows,
    }
}

fn sources(file: &ComparisonFile) -> Table {
    let sources = file.settings.sources.iter();
    Table {
        id: "sources".into(),
        title: "Where the profile's numbers are from".into(),
        note: format!("{}: {}.", file.settings.profile, file.settings.device),
        head: head(&["section", "source"]),
        numbers: vec![false; 2],
        rows: sources
            .map(|(s, words)| vec![s.clone(), words.clone()])
            .collect(),
    }
}

/// One line for every plan, with bare numbers.
pub fn csv(file: &ComparisonFile) -> String {
    let mut text = String::from(
        "method,tokens,strategy,tiled,fits,floor_ns,step_ns,recompute_ns,slowed_ns,stall_ns,\
         tail_ns,tokens_per_s,mfu,hfu,arena_bytes,host_bytes,d2h_bytes,h2d_bytes,bound_ns,status,\
         found_by,tile,head_tile,head_groups,why_not\n",
    );
    let quoted = |words: &str| format!("\"{}\"", words.replace('"', "\"\""));
    for group in &file.groups {
        for cell in &group.cells {
            let (method, seq, floor) = (&group.method, group.seq, group.floor_ns);
            let fits = cell.fits.is_some();
            write!(
                text,
                "{method},{seq},{},{},{fits},{floor},",
                cell.strategy, cell.tiled
            )
            .expect("a string");
            match &cell.fits {
                Some(fit) => {
                    let host = fit
                        .host_bytes
                        .values()
                        .map(|b| Bytes::new(*b))
                        .sum::<Bytes>();
                    let whole = [
                        fit.step_ns,
                        fit.recompute_ns,
                        fit.slowed_ns,
                        fit.stall_ns,
                        fit.tail_ns,
                    ];
                    let whole = whole.map(|n| n.to_string()).join(",");
                    writeln!(
                        text,
                        "{whole},{:.3},{:.6},{:.6},{},{},{},{},{},{},{},{},{},{},",
                        fit.tokens_per_s,
                        fit.mfu,
                        fit.hfu,
                        fit.arena_bytes,
                        host.get(),
                        fit.d2h_bytes,
                        fit.h2d_bytes,
                        fit.bound_ns,
                        fit.status,
                        fit.found_by,
                        fit.tile,
                        fit.head_tile,
                        fit.head_groups
                    )
                }
                None => {
                    let why = cell.misses.as_deref().unwrap_or("");
                    writeln!(text, "{}{}", ",".repeat(18), quoted(why))
                }
            }
            .expect("a string");
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_cross_where_the_ratio_is_one() {
        // The ratio is the length by 16k: one at 16k, which was not asked for.
        let points = [(8192, 0.5), (32768, 2.0)];
        assert_eq!(crossing(&points), Some(16384));
        assert_eq!(crossing(&[(8192, 1.5)]), Some(0));
        assert_eq!(crossing(&[(8192, 0.5), (16384, 0.9)]), None);
        assert_eq!(crossing(&[]), None);
    }
}
