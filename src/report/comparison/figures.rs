//! A comparison as figures: values become marks; how they are drawn is `figure`'s business.

use ebbtide_solver::problem::Category;

use super::words::{cause, fastest, tokens};
use crate::format::comparison::{ComparisonFile, Group};
use crate::format::run::Measured;
use crate::report::figure::{Axis, Colour, Figure, Mark, Shape, Side, PALETTE};

mod bars;
mod budgets;
mod columns;
mod lines;
mod timeline;

const GIB: f64 = (1u64 << 30) as f64;
/// Room for keys that say where a line ends, and why.
const KEYS: (i32, i32) = (74, 286);

/// Every figure that there is something to draw for.
pub(super) fn all(file: &ComparisonFile, runs: &[Measured]) -> Vec<Figure> {
    let mut figures = Vec::new();
    for method in file.methods() {
        let groups: Vec<&Group> = file.of_method(method).collect();
        figures.push(lines::speed(file, method, &groups));
        figures.push(columns::memory(file, method, &groups));
        figures.push(columns::decisions(method, &groups));
    }
    figures.extend(budgets::budgets(file));
    figures.extend(bars::longest(file));
    figures.extend(lines::crossover(file));
    figures.extend(timeline::timeline(file));
    figures.extend(bars::measured(runs));
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

/// Who sees no colours tells lines apart by these.
const SHAPES: [Shape; 4] = [Shape::Disc, Shape::Square, Shape::Triangle, Shape::Diamond];

/// The colour and the form by which a strategy is known in every figure.
fn look(file: &ComparisonFile, strategy: &str) -> (Colour, Shape, u32) {
    if strategy == "ilp" {
        return (PALETTE[0], Shape::Disc, 3);
    }
    let others = file.settings.strategies.iter().filter(|s| *s != "ilp");
    let nth = others.into_iter().position(|s| s == strategy).unwrap_or(0);
    let hue = 1 + nth % (PALETTE.len() - 1);
    (PALETTE[hue], SHAPES[(nth + 1) % SHAPES.len()], 1)
}

fn line(points: Vec<(f64, f64)>, colour: Colour, width: u32) -> Option<Mark> {
    (points.len() > 1).then_some(Mark::Line {
        points,
        colour,
        width: width + 1,
        dashed: false,
    })
}

/// A key beside the plot, near the height of what it names.
fn key(at: (f64, f64), text: impl Into<String>, shape: Shape, colour: Colour) -> Mark {
    Mark::Label {
        at,
        text: text.into(),
        colour,
        side: Side::Beside(shape),
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

/// Crosses at the lengths where nothing fits, over each what is short unless the one before it says
/// the same. A column is one wide; its middle is where `at` says.
fn gaps(groups: &[&Group], at: impl Fn(usize, &Group) -> (f64, f64)) -> Vec<Mark> {
    let mut marks = Vec::new();
    let mut before = "";
    for (column, group) in groups.iter().enumerate() {
        let Some(why) = misses(group) else {
            before = "";
            continue;
        };
        let (at, cause) = (at(column, group), cause(why));
        marks.push(Mark::Dot {
            at,
            shape: Shape::Cross,
            colour: Colour::Muted,
            says: format!("{} tokens: nothing fits: {why}", tokens(group.seq)),
        });
        if cause != before {
            marks.push(Mark::Label {
                at,
                text: cause.into(),
                colour: Colour::Muted,
                side: Side::Above,
            });
        }
        before = cause;
    }
    marks
}

/// Why nothing fits at a length: what the search says, which tries all that the others do.
fn misses(group: &Group) -> Option<&str> {
    if fastest(group).is_some() {
        return None;
    }
    let searched = group.cell("ilp").and_then(|cell| cell.misses.as_deref());
    let first = || group.cells.iter().find_map(|cell| cell.misses.as_deref());
    Some(searched.or_else(first).unwrap_or_default())
}

/// Kept, swapped, recomputed: the colours of decisions.
const DECISIONS: [(&str, Colour); 3] = [
    ("kept", PALETTE[2]),
    ("swapped", PALETTE[0]),
    ("recomputed", PALETTE[1]),
];
