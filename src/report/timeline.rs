//! A simulated schedule for a person: its streams, the parts of its step, its memory peak.

use ebbtide_solver::schedule::{Schedule, Stream};
use ebbtide_solver::simulate::{copied_bytes, Timeline};
use ebbtide_solver::units::Nanos;

use super::{by_category, columns, grouped, percent};
use crate::format::schedule::ScheduleFile;
use crate::memory::{self, content, running};

/// How many of the largest buffers are named.
const LARGEST: usize = 8;

/// The tables.
pub fn table(file: &ScheduleFile, timeline: &Timeline) -> String {
    let schedule = &file.schedule;
    let share = |part: u64| percent(part as f64 / timeline.step.get().max(1) as f64);
    let mut lines = vec![
        format!(
            "{}, {}, {} on {}",
            file.model.name, file.method, file.strategy, file.hardware.name
        ),
        String::new(),
    ];
    let mut rows = vec![Vec::from(
        ["stream", "instructions", "busy", "", "bytes"].map(String::from),
    )];
    for stream in Stream::ALL {
        let busy = timeline.busy[stream as usize];
        let bytes = match stream {
            Stream::D2h | Stream::H2d => copied_bytes(schedule, stream).to_string(),
            Stream::Compute | Stream::Host => String::new(),
        };
        rows.push(vec![
            stream.name().into(),
            grouped(schedule.stream(stream).len() as u64),
            busy.to_string(),
            share(busy.get()),
            bytes,
        ]);
    }
    lines.extend(columns(&rows, &[false, true, true, true, true]));
    lines.push(String::new());
    let mut parts = vec![
        ("step", timeline.step),
        ("compute", timeline.compute),
        ("recompute", timeline.recompute),
        ("packing", timeline.packing),
        ("slowed", timeline.slowed),
        ("stall", timeline.stall),
        ("tail", timeline.tail),
    ];
    parts.retain(|&(name, length)| name != "packing" || !length.is_zero());
    let row =
        |(name, length): (&str, Nanos)| vec![name.into(), length.to_string(), share(length.get())];
    let rows: Vec<_> = parts.into_iter().map(row).collect();
    lines.extend(columns(&rows, &[false, true, true]));
    lines.push(String::new());
    lines.extend(peak(schedule));
    lines.join("\n") + "\n"
}

fn peak(schedule: &Schedule) -> Vec<String> {
    let peak = memory::peak(schedule);
    let mut lines = vec![
        format!(
            "peak of {} in an arena of {}: instruction {}, {}",
            peak.bytes,
            schedule.arena_bytes,
            grouped(peak.position),
            running(schedule, peak.position)
        ),
        by_category(&peak.by_category),
        String::new(),
    ];
    let title = ["largest alive there", "bytes", "rows"];
    let mut rows = vec![Vec::from(title.map(String::from))];
    for &id in peak.buffers.iter().take(LARGEST) {
        let buffer = &schedule.buffers[id];
        let span = format!("[{}, {})", buffer.rows.start, buffer.rows.end);
        rows.push(vec![content(schedule, id), buffer.bytes.to_string(), span]);
    }
    lines.extend(columns(&rows, &[false, true, true]));
    lines
}
