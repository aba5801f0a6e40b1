//! A comparison as figures: values become marks; how they are drawn is [`figure`]'s business.

use ebbtide_solver::problem::Category;
use ebbtide_solver::units::{Bytes, Nanos};

use super::tables::ratios;
use super::words::{beyond_measured_lengths, cause, fastest, tokens};
use crate::format::comparison::{ComparisonFile, Fit, Group};
use crate::format::run::{Kind, Measured};
use crate::report::figure::{Axis, Colour, Figure, Mark, Panel, Shape, Side, PALETTE};
use crate::report::percent;

mod timeline;

const GIB: f64 = (1u64 << 30) as f64;
/// Room for the names of lines.
const NAMES: (i32, i32) = (74, 190);

/// Every figure that there is something to draw for.
pub(super) fn all(file: &ComparisonFile, runs: &[Measured]) -> Vec<Figure> {
    let mut figures = Vec::new();
    for method in file.methods() {
        let groups: Vec<&Group> = file.of_method(method).collect();
        figures.push(speed(file, method, &groups));
        figures.push(memory(file, method, &groups));
        figures.push(decisions(method, &groups));
    }
    figures.extend(budgets(file));
    figures.extend(longest(file));
    figures.extend(crossover(file));
    figures.extend(timeline::timeline(file));
    figures.extend(measured(runs));
    figures
}

/// Lengths on an axis of powers of two, labelled where something was compared.
fn token_axis(groups: &[&Group]) -> Axis {
    let at = |group: &&Group| (group.seq as f64).log2();
    let lengths = groups.iter().map(at);
    let least = lengths.clone().fold(f64::INFINITY, f64::min);
    let most = lengths.fold(f64::NEG_INFINITY, f64::max);
    Axis {
        from: least - 0.3,
        to: most + 0.3,
        ticks: groups.iter().map(|g| (at(g), tokens(g.seq))).collect(),
        lines: true,
    }
}

/// The colour and the form by which a strategy is known in every figure.
fn look(file: &ComparisonFile, strategy: &str) -> (Colour, Shape, u32) {
    const SHAPES: [Shape; 3] = [Shape::Disc, Shape::Square, Shape::Triangle];
    if strategy == "ilp" {
        return (PALETTE[0], Shape::Disc, 3);
    }
    let others = file.settings.strategies.iter().filter(|s| *s != "ilp");
    let nth = others.into_iter().position(|s| s == strategy).unwrap_or(0);
    let hue = 1 + nth % (PALETTE.len() - 1);
    (PALETTE[hue], SHAPES[(nth + 1) % SHAPES.len()], 1)
}

/// One value of every plan over the lengths: a line for each strategy, broken where nothing fits.
fn lines(
    file: &ComparisonFile,
    groups: &[&Group],
    value: impl Fn(&Group, &Fit) -> f64,
    show: impl Fn(f64) -> String,
    floor: &[(f64, f64)],
) -> Vec<Mark> {
    let mut marks = Vec::new();
    if let Some(&last) = floor.last() {
        marks.push(Mark::Line {
            points: floor.to_vec(),
            colour: Colour::Muted,
            width: 1,
            dashed: true,
        });
        marks.push(label(last, "floor: all on the device", Colour::Muted));
    }
    let mut dots = Vec::new();
    for strategy in &file.settings.strategies {
        let (colour, shape, width) = look(file, strategy);
        let mut points = Vec::new();
        let mut last = None;
        for (i, group) in groups.iter().enumerate() {
            let Some(fit) = group.fit(strategy) else {
                marks.extend(line(std::mem::take(&mut points), colour, width));
                continue;
            };
            let (x, y) = ((group.seq as f64).log2(), value(group, fit));
            points.push((x, y));
            let guessed = beyond_measured_lengths(group);
            dots.push(Mark::Dot {
                at: (x, y),
                shape: if guessed { Shape::Ring } else { shape },
                colour,
                says: format!(
                    "{strategy} at {} tokens: {}, {} a step, {:.3} × the floor{}",
                    tokens(group.seq),
                    show(y),
                    Nanos::new(fit.step_ns),
                    fit.over(group.floor_ns),
                    if guessed {
                        " (beyond the measured lengths)"
                    } else {
                        ""
                    }
                ),
            });
            let next = groups.get(i + 1);
            let next =
                next.and_then(|next| Some((next.seq, next.cell(strategy)?.misses.as_deref()?)));
            last = Some(((x, y), next));
        }
        marks.extend(line(points, colour, width));
        let Some((at, miss)) = last else {
            continue;
        };
        let why = match miss {
            Some((seq, why)) => format!("{strategy} ({}: {})", tokens(seq), cause(why)),
            None => strategy.clone(),
        };
        marks.push(label(at, why, colour));
    }
    marks.extend(dots);
    marks
}

fn line(points: Vec<(f64, f64)>, colour: Colour, width: u32) -> Option<Mark> {
    (points.len() > 1).then_some(Mark::Line {
        points,
        colour,
        width: width + 1,
        dashed: false,
    })
}

fn label(at: (f64, f64), text: impl Into<String>, colour: Colour) -> Mark {
    Mark::Label {
        at,
        text: text.into(),
        colour,
        side: Side::Right,
    }
}

/// Tokens a second and MFU.
fn speed(file: &ComparisonFile, method: &str, groups: &[&Group]) -> Figure {
    let per_step = file.settings.batch * u64::from(file.settings.accumulate);
    let rate = |group: &Group| (group.seq * per_step) as f64 / (group.floor_ns.max(1) as f64 / 1e9);
    let log = |v: f64| v.max(1e-9).log2();
    let rates = groups.iter().map(|g| ((g.seq as f64).log2(), log(rate(g))));
    let rates = Vec::from_iter(rates);
    let all = groups
        .iter()
        .flat_map(|g| g.cells.iter().filter(|c| c.tiled));
    let all = all.filter_map(|cell| Some(cell.fits.as_ref()?.tokens_per_s));
    let (least, most) = groups
        .iter()
        .map(|g| rate(g))
        .chain(all)
        .fold((f64::INFINITY, 1.0), |(least, most): (f64, f64), rate| {
            (least.min(rate), most.max(rate))
        });
    let whole = |v: f64| format!("{v:.0}");
    let tokens_per_s = Panel {
        title: "tokens a second (logarithmic)".into(),
        height: 300,
        x: token_axis(groups),
        y: Axis::log2(least.max(1e-3), most, whole),
        marks: lines(
            file,
            groups,
            |_, fit| log(fit.tokens_per_s),
            |v| format!("{:.0} tokens/s", v.exp2()),
            &rates,
        ),
    };
    // The model's own FLOPs are the same for every plan of a length.
    let floors = groups.iter().filter_map(|group| {
        let fit = fastest(group)?.1;
        Some((
            (group.seq as f64).log2(),
            fit.mfu * fit.over(group.floor_ns),
        ))
    });
    let floors = Vec::from_iter(floors);
    let best = floors.iter().map(|(_, mfu)| *mfu).fold(0.0, f64::max);
    let mfu = Panel {
        title: "MFU: the model's own FLOPs by the device's peak".into(),
        height: 300,
        x: token_axis(groups),
        y: Axis::linear(best, |v| format!("{:.0} %", v * 100.0)),
        marks: lines(file, groups, |_, fit| fit.mfu, percent, &floors),
    };
    Figure {
        name: format!("speed-{method}"),
        title: format!(
            "Speed with {method}: {} on {}",
            file.settings.model, file.settings.profile
        ),
        words: "Tokens a second and MFU over the length of a sequence, a line for each strategy; \
                a line that ends says what \
                is short at the next length. The dashed line is the \
                floor. Rings lie beyond the lengths that the profile measured."
            .into(),
        panels: vec![tokens_per_s, mfu],
        margins: NAMES,
    }
}

fn category_colour(name: &str) -> Colour {
    let at = Category::ALL
        .iter()
        .position(|c| c.name() == name)
        .unwrap_or(0);
    [
        PALETTE[0], PALETTE[4], PALETTE[3], PALETTE[2], PALETTE[1], PALETTE[6],
    ][at]
}

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
            let why = group.cells.iter().find_map(|cell| cell.misses.as_deref());
            marks.extend(nothing((x, 0.0), &tokens(group.seq), why.unwrap_or("")));
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
            names.push(label((x + HALF, f64::midpoint(from, top)), words, colour));
        }
        if !names.is_empty() {
            last = Some(names);
        }
        most = most.max(top);
    }
    marks.extend(last.unwrap_or_default());
    (most, marks)
}

/// A cross where nothing fits.
fn nothing(at: (f64, f64), what: &str, why: &str) -> [Mark; 1] {
    [Mark::Dot {
        at,
        shape: Shape::Cross,
        colour: Colour::Muted,
        says: format!("{what}: nothing fits: {why}"),
    }]
}

/// Device and host memory by category.
fn memory(file: &ComparisonFile, method: &str, groups: &[&Group]) -> Figure {
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
        marks.push(Mark::Label {
            at: (x.to, at),
            text: format!("budget {}", Bytes::new(budget)),
            colour: Colour::Ink,
            side: Side::RightFixed,
        });
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
        margins: NAMES,
    }
}

fn by_category(parts: &std::collections::BTreeMap<String, u64>) -> Vec<(String, u64)> {
    let all = Category::ALL.iter();
    let all = all.filter_map(|c| Some((c.name().to_owned(), *parts.get(c.name())?)));
    all.collect()
}

/// Kept, swapped, recomputed: the colours of decisions.
const DECISIONS: [(&str, Colour); 3] = [
    ("kept", PALETTE[2]),
    ("swapped", PALETTE[0]),
    ("recomputed", PALETTE[1]),
];

/// For every kind of tensor and length a bar of what is kept, swapped and recomputed.
fn decisions(method: &str, groups: &[&Group]) -> Figure {
    let kinds: Vec<String> = groups
        .iter()
        .find_map(|g| {
            Some(
                fastest(g)?
                    .1
                    .shares
                    .iter()
                    .map(|s| s.tensor.clone())
                    .collect(),
            )
        })
        .unwrap_or_default();
    let mut y = Axis::rows(kinds.clone());
    let mut marks = Vec::new();
    for (column, group) in groups.iter().enumerate() {
        let x = column as f64 + 0.08;
        let Some((_, fit)) = fastest(group) else {
            let why = group.cells.iter().find_map(|cell| cell.misses.as_deref());
            let at = (x + 0.42, y.to / 2.0);
            marks.extend(nothing(at, &tokens(group.seq), why.unwrap_or("")));
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
        marks.push(label(
            (groups.len() as f64, y.to - 0.5 - i as f64 * 0.6),
            words,
            colour,
        ));
    }
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

/// Step time over device memory, and the front that no strategy is below.
fn budgets(file: &ComparisonFile) -> Option<Figure> {
    let focus = file.focus.as_ref()?;
    let fitting: Vec<(f64, f64)> = file
        .budgets
        .iter()
        .filter_map(|p| Some((p.device_bytes as f64 / GIB, p.step_ns? as f64 / 1e9)))
        .collect();
    let least = file
        .budgets
        .iter()
        .map(|p| p.device_bytes as f64 / GIB)
        .fold(f64::MAX, f64::min);
    let memory = fitting.iter().map(|(gib, _)| *gib).fold(0.0, f64::max);
    let slowest = fitting.iter().map(|(_, step)| *step).fold(0.0, f64::max);
    let mut marks = Vec::new();
    let mut front: Vec<(f64, f64)> = Vec::new();
    for &(gib, step) in &fitting {
        match front.iter_mut().find(|(x, _)| *x == gib) {
            Some((_, best)) => *best = best.min(step),
            None => front.push((gib, step)),
        }
    }
    front.sort_by(|a, b| a.0.total_cmp(&b.0));
    let mut best = f64::INFINITY;
    front.retain(|&(_, step)| {
        let better = step < best;
        best = best.min(step);
        better
    });
    // Steps: with less memory than the next point only the one before is known.
    let mut steps = Vec::new();
    for &(gib, step) in &front {
        steps.extend(steps.last().map(|&(_, y)| (gib.log2(), y)));
        steps.push((gib.log2(), step));
    }
    marks.push(Mark::Line {
        points: steps,
        colour: Colour::Faint,
        width: 9,
        dashed: false,
    });
    for strategy in &file.settings.strategies {
        let (colour, shape, width) = look(file, strategy);
        let points = file.budgets.iter().filter(|p| p.strategy == *strategy);
        let points = points.filter_map(|p| Some((p.device_bytes as f64 / GIB, p.step_ns?)));
        let mut points: Vec<(f64, u64)> = points.collect();
        points.sort_by(|a, b| a.0.total_cmp(&b.0));
        let seconds = |&(gib, step): &(f64, u64)| (gib.log2(), step as f64 / 1e9);
        let places: Vec<(f64, f64)> = points.iter().map(seconds).collect();
        if let Some(&last) = places.last() {
            marks.push(label(last, strategy.clone(), colour));
        }
        marks.extend(
            places
                .iter()
                .zip(&points)
                .map(|(&at, &(gib, step))| Mark::Dot {
                    at,
                    shape,
                    colour,
                    says: format!("{strategy} in {gib:.1} GiB: {} a step", Nanos::new(step)),
                }),
        );
        marks.extend(line(places, colour, width));
    }
    let x = Axis::log2(least, memory.max(least * 2.0), |v| format!("{v:.0} GiB"));
    Some(Figure {
        name: "budget".into(),
        title: format!(
            "Step time by device memory: {} tokens with {}",
            tokens(focus.seq),
            focus.method
        ),
        words: "The step of every strategy under different device memories, host memory as it is: \
                to keep, to offload, to recompute. The broad line is the Pareto front: nothing \
                compared is faster in less memory. A strategy has no point where it does not fit."
            .into(),
        panels: vec![Panel {
            title: "seconds a step, over device memory (logarithmic)".into(),
            height: 320,
            x,
            y: Axis::linear(slowest, |v| format!("{v:.0} s")),
            marks,
        }],
        margins: NAMES,
    })
}

/// The longest sequences as bars.
fn longest(file: &ComparisonFile) -> Option<Figure> {
    let methods = file.methods();
    let most = file.longest.iter().map(|row| row.max_tokens).max()?;
    let strategies = &file.settings.strategies;
    let rows = strategies.len() as f64;
    let slot = 0.8 / methods.len().max(1) as f64;
    let mut marks = Vec::new();
    for row in &file.longest {
        let (Some(strategy), Some(method)) = (
            strategies.iter().position(|s| *s == row.strategy),
            methods.iter().position(|m| *m == row.method),
        ) else {
            continue;
        };
        let top = rows - strategy as f64 - 0.1 - method as f64 * slot;
        let end = row.max_tokens as f64 / 1024.0;
        let colour = PALETTE[method % PALETTE.len()];
        let binds = match row.too_long {
            Some(seq) => format!("{} does not fit: {}", tokens(seq), row.binds),
            None => row.binds.clone(),
        };
        marks.push(Mark::Box {
            from: (0.0, top - slot * 0.86),
            to: (end, top),
            colour,
            says: format!(
                "{} with {}: {}; {binds}",
                row.strategy,
                row.method,
                tokens(row.max_tokens)
            ),
        });
        marks.push(Mark::Label {
            at: (end, top - slot * 0.43),
            text: match row.max_tokens {
                0 => format!("{}: none", row.method),
                most => format!("{}: {}", row.method, tokens(most)),
            },
            colour,
            side: Side::RightFixed,
        });
    }
    Some(Figure {
        name: "longest".into(),
        title: format!(
            "The longest sequence that fits: {} on {}",
            file.settings.model, file.settings.profile
        ),
        words: "The longest sequence of every strategy and method, to an eighth of its length, up \
                to the longest that was compared."
            .into(),
        panels: vec![Panel {
            title: "tokens (× 1024)".into(),
            height: (methods.len() as i32 * 15 + 8) * strategies.len() as i32,
            x: Axis::linear(most as f64 / 1024.0, |v| format!("{v:.0}k")),
            y: Axis::rows(strategies.clone()),
            marks,
        }],
        margins: (140, 110),
    })
}

/// Recompute time by copy time of every tensor.
fn crossover(file: &ComparisonFile) -> Option<Figure> {
    let method = *file.methods().first()?;
    let groups: Vec<&Group> = file.of_method(method).collect();
    let tensors = &groups.first()?.tensors;
    let mut marks = Vec::new();
    let mut range = (0.5f64, 2.0f64);
    for (nth, tensor) in tensors.iter().enumerate() {
        let colour = PALETTE[nth % PALETTE.len()];
        let points = ratios(&groups, &tensor.tensor);
        let shown = points.iter().filter(|(_, ratio)| *ratio >= 1.0 / 64.0);
        let places: Vec<(f64, f64)> = shown
            .clone()
            .map(|(seq, r)| ((*seq as f64).log2(), r.log2()))
            .collect();
        let Some(&last) = places.last() else { continue };
        for &(_, ratio) in shown.clone() {
            range = (range.0.min(ratio), range.1.max(ratio));
        }
        marks.push(label(last, tensor.tensor.clone(), colour));
        marks.extend(shown.zip(&places).map(|(&(seq, ratio), &at)| Mark::Dot {
            at,
            shape: Shape::Disc,
            colour,
            says: format!(
                "{} at {} tokens: making it again takes {ratio:.2} × a copy",
                tensor.tensor,
                tokens(seq)
            ),
        }));
        marks.extend(line(places, colour, 1));
    }
    let x = token_axis(&groups);
    marks.insert(
        0,
        Mark::Line {
            points: vec![(x.from, 0.0), (x.to, 0.0)],
            colour: Colour::Ink,
            width: 1,
            dashed: true,
        },
    );
    Some(Figure {
        name: "crossover".into(),
        title: format!(
            "Recompute or swap? {} on {}",
            file.settings.model, file.settings.profile
        ),
        words: "How long making a tensor again takes, by how long a copy to or from the host \
                takes. Above the dashed line a copy is quicker: below it recompute. What takes \
                less than a sixty-fourth of its copy is left out."
            .into(),
        panels: vec![Panel {
            title: "recompute time by copy time (logarithmic)".into(),
            height: 280,
            x,
            y: Axis::log2(range.0, range.1, |v| match v < 1.0 {
                true => format!("1/{:.0}", 1.0 / v),
                false => format!("{v:.0} ×"),
            }),
            marks,
        }],
        margins: NAMES,
    })
}

/// Predicted beside measured, run by run.
fn measured(runs: &[Measured]) -> Option<Figure> {
    let panel = |run: &Measured| {
        let shown = |kind| matches!(kind, Kind::Total | Kind::Stream);
        let parts = run.parts.iter().filter(|part| shown(part.kind));
        let parts: Vec<_> = parts
            .filter(|part| !(part.predicted.is_zero() && part.measured.is_zero()))
            .collect();
        let most = parts
            .iter()
            .map(|part| part.predicted.max(part.measured).get())
            .max();
        let unit = match most.unwrap_or(0) {
            1_000_000_000.. => (1e9, "s"),
            _ => (1e6, "ms"),
        };
        let names = parts.iter().map(|part| match part.kind {
            Kind::Stream => format!("{} stream", part.name),
            _ => part.name.clone(),
        });
        let rows = parts.len() as f64;
        let bars = parts.iter().enumerate().flat_map(|(row, part)| {
            let both = [
                ("predicted", part.predicted, PALETTE[6]),
                ("measured", part.measured, PALETTE[0]),
            ];
            both.into_iter()
                .enumerate()
                .flat_map(move |(nth, (what, time, colour))| {
                    let top = rows - row as f64 - 0.12 - nth as f64 * 0.38;
                    let end = time.get() as f64 / unit.0;
                    let bar = Mark::Box {
                        from: (0.0, top - 0.34),
                        to: (end, top),
                        colour,
                        says: format!("{} {what}: {time}", part.name),
                    };
                    let name = Mark::Label {
                        at: (end, top - 0.17),
                        text: format!("{what} {time}"),
                        colour,
                        side: Side::RightFixed,
                    };
                    [bar, name]
                })
        });
        Panel {
            title: run.title.clone(),
            height: 36 * parts.len().max(1) as i32,
            x: Axis::linear(most.unwrap_or(0) as f64 / unit.0, |v| {
                format!("{v} {}", unit.1)
            }),
            y: Axis::rows(names.collect()),
            marks: bars.collect(),
        }
    };
    (!runs.is_empty()).then(|| Figure {
        name: "measured".into(),
        title: "Predicted against measured".into(),
        words: "Parts of a step and busy times of streams, as the simulator said and as the run \
                took them."
            .into(),
        panels: runs.iter().map(panel).collect(),
        margins: (140, 170),
    })
}
