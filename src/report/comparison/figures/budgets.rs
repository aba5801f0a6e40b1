//! Step time over device memory: what it costs to have less.

use ebbtide_solver::units::{Bytes, Nanos};

use super::{key, line, look, GIB, KEYS};
use crate::format::comparison::{BudgetPoint, ComparisonFile};
use crate::report::comparison::words::{cause, tokens};
use crate::report::figure::{Axis, Colour, Figure, Mark, Panel, Shape};

/// Step time over device memory, and the front that no strategy is below.
pub(super) fn budgets(file: &ComparisonFile) -> Option<Figure> {
    let focus = file.focus.as_ref()?;
    let mut points = Vec::from_iter(&file.budgets);
    points.sort_by_key(|point| point.device_bytes);
    let fitting: Vec<(f64, f64)> = points.iter().filter_map(|p| place(p)).collect();
    let slowest = fitting.iter().map(|(_, step)| *step).fold(0.0, f64::max);
    let mut marks = vec![
        Mark::Line {
            points: front(&fitting),
            colour: Colour::Faint,
            width: 9,
            dashed: false,
        },
        key(
            (0.0, 0.0),
            "Pareto front (broad)",
            Shape::None,
            Colour::Muted,
        ),
    ];
    for strategy in &file.settings.strategies {
        let of_it = points.iter().filter(|p| p.strategy == *strategy).copied();
        let of_it = Vec::from_iter(of_it);
        if !of_it.is_empty() {
            marks.extend(of_strategy(file, strategy, &of_it));
        }
    }
    let (least, most) = (points.first()?.device_bytes, points.last()?.device_bytes);
    let mut ticks: Vec<_> = points
        .iter()
        .map(|p| (gib(p).log2(), Bytes::new(p.device_bytes).to_string()))
        .collect();
    ticks.dedup();
    Some(Figure {
        name: "budget".into(),
        title: format!(
            "Step time by device memory: {} tokens with {}",
            tokens(focus.seq),
            focus.method
        ),
        words: "The step of every strategy under different device memories, host memory as it is: \
                to keep, to offload, to recompute. The broad line is the Pareto front: nothing \
                compared is faster in less memory. In brackets the most memory in which a strategy \
                does not fit, and what is short there."
            .into(),
        panels: vec![Panel {
            title: "seconds a step, over device memory (logarithmic)".into(),
            height: 320,
            x: Axis {
                from: (least as f64 / GIB).log2() - 0.3,
                to: (most as f64 / GIB).log2() + 0.3,
                ticks,
                lines: true,
            },
            y: Axis::linear(slowest, |v| format!("{v:.0} s")),
            marks,
        }],
        margins: KEYS,
    })
}

fn gib(point: &BudgetPoint) -> f64 {
    point.device_bytes as f64 / GIB
}

/// Where a point stands, if the strategy fits.
fn place(point: &BudgetPoint) -> Option<(f64, f64)> {
    Some((gib(point).log2(), point.step_ns? as f64 / 1e9))
}

/// Its points, its line, and its key, which says where it does not fit.
fn of_strategy(file: &ComparisonFile, strategy: &str, points: &[&BudgetPoint]) -> Vec<Mark> {
    let (colour, shape, width) = look(file, strategy);
    let places: Vec<(f64, f64)> = points.iter().filter_map(|p| place(p)).collect();
    let miss = points
        .iter()
        .rev()
        .find_map(|p| Some((p.device_bytes, p.misses.as_deref()?)));
    let words = match miss {
        Some((bytes, why)) => format!("{strategy} ({}: {})", Bytes::new(bytes), cause(why)),
        None => strategy.to_owned(),
    };
    let at = places.last().copied().unwrap_or((0.0, 0.0));
    let mut marks = vec![key(at, words, shape, colour)];
    marks.extend(line(places, colour, width));
    marks.extend(points.iter().filter_map(|point| {
        Some(Mark::Dot {
            at: place(point)?,
            shape,
            colour,
            says: format!(
                "{strategy} in {}: {} a step",
                Bytes::new(point.device_bytes),
                Nanos::new(point.step_ns?)
            ),
        })
    }));
    marks
}

/// The least step so far as memory grows, as steps: between two points only the one with less
/// memory is known to fit.
fn front(fitting: &[(f64, f64)]) -> Vec<(f64, f64)> {
    let mut steps: Vec<(f64, f64)> = Vec::new();
    for &(memory, step) in fitting {
        match steps.last_mut() {
            Some((at, best)) if *at == memory => *best = best.min(step),
            Some(&mut (_, best)) => steps.extend([(memory, best), (memory, best.min(step))]),
            None => steps.push((memory, step)),
        }
    }
    steps
}
