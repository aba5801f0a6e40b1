//! What the fastest plan of each length has in memory, and what it decides.

use ebbtide_solver::problem::Category;
use ebbtide_solver::units::Bytes;

use super::{category_colour, gaps, key, token_axis, DECISIONS, GIB};
use crate::format::comparison::{ComparisonFile, Fit, Group};
use crate::report::comparison::words::{fastest, tensor_kinds, tokens};
use crate::report::figure::{Axis, Colour, Figure, Mark, Panel, Shape};
use crate::report::percent;

/// Stacked columns of memory by category, and the budget as a line.
fn columns_of(
    groups: &[&Group],
    parts: impl Fn(&Fit) -> Vec<(String, u64)>,
    budget: u64,
) -> (f64, Vec<Mark>) {
    const HALF: f64 = 0.3;
    let mut marks = Vec::new();
    let mut most = budget as f64 / GIB;
    let mut last: Option<Vec<Mark>> = None;
    for group in groups {
        let x = (group.seq as f64).log2();
        let Some((cell, fit)) = fastest(group) else {
            continue;
        };
        let mut top = 0.0;
        let mut names = Vec::new();
        for (name, bytes) in parts(fit) {
            let (from, words) = (top, name.replace('_', " "));
            top += bytes as f64 / GIB;
            let colour = category_colour(&name);
            marks.push(Mark::Box {
                from: (x - HALF, from),
                to: (x + HALF, top),
                colour,
                says: format!(
                    "{} tokens ({}): {words} {}",
                    tokens(group.seq),
                    cell.strategy,
                    Bytes::new(bytes)
                ),
            });
            let middle = (x + HALF, f64::midpoint(from, top));
            names.push(key(middle, words, Shape::Square, colour));
        }
        if !names.is_empty() {
            last = Some(names);
        }
        most = most.max(top);
    }
    marks.extend(last.unwrap_or_default());
    marks.extend(gaps(groups, |_, group| ((group.seq as f64).log2(), 0.0)));
    (most, marks)
}

/// Device and host memory by category.
pub(super) fn memory(file: &ComparisonFile, method: &str, groups: &[&Group]) -> Figure {
    let panel = |title: &str, budget: u64, parts: fn(&Fit) -> Vec<(String, u64)>| {
        let (most, mut marks) = columns_of(groups, parts, budget);
        let x = token_axis(groups);
        let at = budget as f64 / GIB;
        marks.push(Mark::Line {
            points: vec![(x.from, at), (x.to, at)],
            colour: Colour::Ink,
            width: 1,
            dashed: true,
        });
        let words = format!("budget {} (dashed)", Bytes::new(budget));
        marks.push(key((x.to, at), words, Shape::None, Colour::Ink));
        Panel {
            title: title.into(),
            height: 250,
            x,
            y: Axis::linear(most, |v| format!("{v:.0} GiB")),
            marks,
        }
    };
    let settings = &file.settings;
    Figure {
        name: format!("memory-{method}"),
        title: format!("Memory of the fastest plan with {method}"),
        words: "What the fastest plan has on the device at its peak, and on the host, over the \
                length of a sequence; the dashed line is what there is, a cross where nothing \
                fits."
            .into(),
        panels: vec![
            panel("device memory at its peak", settings.device_bytes, |fit| {
                by_category(&fit.device_bytes)
            }),
            panel("host memory", settings.host_bytes, |fit| {
                by_category(&fit.host_bytes)
            }),
        ],
        margins: (74, 190),
    }
}

fn by_category(parts: &std::collections::BTreeMap<String, u64>) -> Vec<(String, u64)> {
    let all = Category::ALL.iter();
    let all = all.filter_map(|c| Some((c.name().to_owned(), *parts.get(c.name())?)));
    all.collect()
}

/// For every kind of tensor and length a bar of what is kept, swapped and recomputed.
pub(super) fn decisions(method: &str, groups: &[&Group]) -> Figure {
    let kinds = tensor_kinds(groups.iter().copied());
    let mut y = Axis::rows(kinds.clone());
    let mut marks = Vec::new();
    for (column, group) in groups.iter().enumerate() {
        let x = column as f64 + 0.08;
        let Some((_, fit)) = fastest(group) else {
            continue;
        };
        for (row, share) in fit.shares.iter().enumerate() {
            let base = y.to - 1.0 - row as f64 + 0.14;
            let mut left = x;
            for ((words, colour), part) in
                DECISIONS
                    .into_iter()
                    .zip([share.keep, share.swap, share.recompute])
            {
                let right = left + part * 0.84;
                if part > 0.0 {
                    marks.push(Mark::Box {
                        from: (left, base),
                        to: (right, base + 0.72),
                        colour,
                        says: format!(
                            "{} at {} tokens: {} {words}",
                            share.tensor,
                            tokens(group.seq),
                            percent(part)
                        ),
                    });
                }
                left = right;
            }
        }
    }
    for (i, (words, colour)) in DECISIONS.into_iter().enumerate() {
        let at = (groups.len() as f64, y.to - 0.5 - i as f64 * 0.6);
        marks.push(key(at, words, Shape::Square, colour));
    }
    marks.extend(gaps(groups, |column, _| (column as f64 + 0.5, y.to / 2.0)));
    y.lines = false;
    let at = |(column, group): (usize, &&Group)| (column as f64 + 0.5, tokens(group.seq));
    let x = Axis {
        from: 0.0,
        to: groups.len().max(1) as f64,
        ticks: groups.iter().enumerate().map(at).collect(),
        lines: false,
    };
    Figure {
        name: format!("decisions-{method}"),
        title: format!("What the fastest plan decides with {method}"),
        words: "For every tensor of a block and every length how much of it is kept on the \
                device, swapped to the host, and recomputed, all blocks together; a cross where \
                nothing fits."
            .into(),
        panels: vec![Panel {
            title: "tensors of a block, in the order in which they are made".into(),
            height: 26 * kinds.len().max(2) as i32,
            x,
            y,
            marks,
        }],
        margins: (74, 110),
    }
}
