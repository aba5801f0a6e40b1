//! Bars from zero: the longest sequences, and predicted beside measured times.

use crate::format::comparison::ComparisonFile;
use crate::format::run::{Kind, Measured};
use crate::report::comparison::words::tokens;
use crate::report::figure::{Axis, Figure, Mark, Panel, Side, PALETTE};

/// The longest sequences as bars.
pub(super) fn longest(file: &ComparisonFile) -> Option<Figure> {
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
            side: Side::Right,
        });
    }
    Some(Figure {
        name: "longest".into(),
        title: format!(
            "The longest sequence that fits: {} on {}",
            file.settings.model, file.settings.profile
        ),
        words: "The longest sequence of every strategy and method, to an eighth of its length, up \
                to the longest that was compared: what a short search found for each length."
            .into(),
        panels: vec![Panel {
            title: "tokens (× 1024)".into(),
            height: (methods.len() as i32 * 15 + 8) * strategies.len() as i32,
            x: Axis::linear(most as f64 / 1024.0, |v| match v {
                0.0 => "0".into(),
                _ => format!("{v:.0}k"),
            }),
            y: Axis::rows(strategies.clone()),
            marks,
        }],
        margins: (140, 110),
    })
}

/// Predicted beside measured, run by run.
pub(super) fn measured(runs: &[Measured]) -> Option<Figure> {
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
                        side: Side::Right,
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
