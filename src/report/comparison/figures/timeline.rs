//! One plan in time: streams as rows, blocks coloured by what becomes of their tensors, the memory
//! curve under them.

use ebbtide_solver::schedule::Stream;
use ebbtide_solver::units::{Bytes, Nanos};

use super::{category_colour, key, DECISIONS, GIB};
use crate::format::comparison::{ComparisonFile, Share, Slice, Timeline};
use crate::report::comparison::words::tokens;
use crate::report::figure::{Axis, Colour, Figure, Mark, Panel, Shape, PALETTE};

/// Slices shorter than this part of the step are not drawn on their own.
const THIN: u64 = 2000;

pub(super) fn timeline(file: &ComparisonFile) -> Option<Figure> {
    let (timeline, focus) = (file.timeline.as_ref()?, file.focus.as_ref()?);
    Some(Figure {
        name: "timeline".into(),
        title: format!(
            "One step in time: {} tokens with {}",
            tokens(focus.seq),
            focus.method
        ),
        words: "What each stream does in one step, and the device memory that is alive meanwhile. \
                A block's first run has the colour of what becomes of most that it stores: kept or \
                swapped; what is run again has the colour of recomputing."
            .into(),
        panels: vec![streams(timeline), memory(timeline)],
        margins: (74, 230),
    })
}

fn axis(timeline: &Timeline) -> Axis {
    let seconds = timeline.step_ns as f64 / 1e9;
    let mut axis = Axis::linear(seconds, |v| Nanos::new((v * 1e9) as u64).to_string());
    axis.to = seconds;
    axis
}

/// What becomes of most of what a block stores; recomputed where it stores next to nothing.
fn decided(share: &Share) -> (&'static str, Colour) {
    DECISIONS[share.decided()]
}

/// The colour of a slice, and what it says.
fn look(timeline: &Timeline, slice: &Slice) -> (Colour, String) {
    let share = slice
        .block
        .and_then(|block| timeline.blocks.get(block as usize));
    let (colour, words) = match (slice.kind.as_str(), share) {
        ("recompute", _) => (PALETTE[1], ", recomputed".to_owned()),
        ("run", Some(share)) => {
            let (words, colour) = decided(share);
            (colour, format!(", what is stored mostly {words}"))
        }
        ("copy", _) => (PALETTE[5], String::new()),
        ("update", _) => (PALETTE[3], String::new()),
        _ => (PALETTE[6], String::new()),
    };
    let place = slice
        .block
        .map_or_else(|| slice.what.clone(), |block| format!("block {block}"));
    let (from, length) = (Nanos::new(slice.start_ns), slice.end_ns - slice.start_ns);
    let length = Nanos::new(length);
    (
        colour,
        format!("{}: {place}{words}, {length} from {from}", slice.stream),
    )
}

fn streams(timeline: &Timeline) -> Panel {
    let busy = |stream: &&Stream| timeline.slices.iter().any(|s| s.stream == stream.name());
    let rows: Vec<Stream> = Stream::ALL.into_iter().filter(|s| busy(&s)).collect();
    let names = rows.iter().map(|stream| stream.name().to_owned()).collect();
    let y = Axis::rows(names);
    let mut marks = Vec::new();
    for slice in &timeline.slices {
        let Some(row) = rows.iter().position(|stream| stream.name() == slice.stream) else {
            continue;
        };
        let base = y.to - 1.0 - row as f64;
        let (colour, says) = look(timeline, slice);
        let thin = slice.end_ns - slice.start_ns < timeline.step_ns / THIN;
        marks.push(Mark::Box {
            from: (slice.start_ns as f64 / 1e9, base + 0.12),
            to: (slice.end_ns as f64 / 1e9, base + 0.88),
            colour,
            says: if thin { String::new() } else { says },
        });
    }
    let end = timeline.step_ns as f64 / 1e9;
    let names = DECISIONS.map(|(words, colour)| (format!("mostly {words}"), colour));
    let others = [
        ("copies".to_owned(), PALETTE[5]),
        ("updates".to_owned(), PALETTE[3]),
    ];
    for (nth, (words, colour)) in names.into_iter().chain(others).enumerate() {
        let words = match nth {
            2 => "all of it recomputed, or run again".into(),
            _ => words,
        };
        let at = (end, y.to - (nth as f64 + 0.5) * y.to / 6.0);
        marks.push(key(at, words, Shape::Square, colour));
    }
    Panel {
        title: "streams".into(),
        height: 36 * rows.len().max(3) as i32,
        x: axis(timeline),
        y,
        marks,
    }
}

fn memory(timeline: &Timeline) -> Panel {
    let all = |bytes: &[u64]| bytes.iter().sum::<u64>() as f64 / GIB;
    let most = timeline
        .memory
        .iter()
        .map(|point| all(&point.bytes))
        .fold(0.0, f64::max);
    let mut marks = Vec::new();
    let upto = |bytes: &[u64], count: usize| all(&bytes[..count.min(bytes.len())]);
    let mut labels = Vec::new();
    for (nth, name) in timeline.categories.iter().enumerate() {
        let seconds = |at_ns: u64| at_ns as f64 / 1e9;
        let tops = timeline
            .memory
            .iter()
            .map(|p| (seconds(p.at_ns), upto(&p.bytes, nth + 1)));
        let bases = timeline
            .memory
            .iter()
            .rev()
            .map(|p| (seconds(p.at_ns), upto(&p.bytes, nth)));
        let largest = timeline
            .memory
            .iter()
            .map(|p| p.bytes[nth])
            .max()
            .unwrap_or(0);
        if largest == 0 {
            continue;
        }
        let colour = category_colour(name);
        marks.push(Mark::Area {
            points: tops.chain(bases).collect(),
            colour,
        });
        let end = timeline.step_ns as f64 / 1e9;
        let words = format!("{} {}", name.replace('_', " "), Bytes::new(largest));
        let height = most * (labels.len() as f64 + 0.5) / 7.0;
        labels.push(key((end, height), words, Shape::Square, colour));
    }
    marks.extend(labels);
    Panel {
        title: "device memory that is alive; beside it the most of each category".into(),
        height: 170,
        x: axis(timeline),
        y: Axis::linear(most, |v| format!("{v:.0} GiB")),
        marks,
    }
}
