//! What a step took, in the same parts whether it was simulated or measured.
//!
//! In: when every instruction started and ended. Out: [`Timing`]: the sums that tables compare. One
//! function makes both, so that a difference is never one of definition.

use std::collections::BTreeMap;

use ebbtide_solver::schedule::{Action, Schedule, Stream};
use ebbtide_solver::simulate::Timeline;
use ebbtide_solver::units::Nanos;

use crate::device::TraceEntry;

/// Start and end of every instruction in nanoseconds, by stream; none where it did not run.
pub type Spans = [Vec<Option<(u64, u64)>>; 4];

/// The parts of a step.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Timing {
    /// The whole step.
    pub step: Nanos,
    /// Time in which an operator ran for the first time.
    pub compute: Nanos,
    /// Time in which one ran again.
    pub recompute: Nanos,
    /// Time in which compute packed what stays packed, and unpacked it.
    pub packing: Nanos,
    /// Time in which compute waited, before its last operator ended.
    pub stall: Nanos,
    /// Time after the last operator, for copies and the host optimizer.
    pub tail: Nanos,
    /// Busy time of every stream.
    pub busy: [Nanos; 4],
    /// Compute of every block; none for what is of no block.
    pub blocks: BTreeMap<Option<u32>, Nanos>,
    /// Compute of every kind of operator; recomputation included.
    pub operators: BTreeMap<String, Nanos>,
}

/// The spans of a simulated step.
pub fn simulated(timeline: &Timeline) -> Spans {
    let spans = |stream: usize| {
        let spans = timeline.spans[stream].iter();
        spans
            .map(|&(start, end)| Some((start.get(), end.get())))
            .collect()
    };
    [0, 1, 2, 3].map(spans)
}

/// The spans of a measured step. An instruction that became several operators lasts from the first
/// one's start to the last one's end.
pub fn measured(schedule: &Schedule, trace: &[TraceEntry]) -> Spans {
    let mut spans = Stream::ALL.map(|stream| vec![None; schedule.stream(stream).len()]);
    for entry in trace {
        let span = spans[entry.stream as usize].get_mut(entry.instruction as usize);
        let Some(span) = span else { continue };
        let (start, end) = span.unwrap_or((entry.start_ns, entry.end_ns));
        *span = Some((start.min(entry.start_ns), end.max(entry.end_ns)));
    }
    spans
}

/// Sums up a step.
pub fn timing(schedule: &Schedule, spans: &Spans) -> Timing {
    let mut timing = Timing::default();
    let length = |&(start, end): &(u64, u64)| Nanos::new(end.saturating_sub(start));
    for stream in Stream::ALL {
        let ran = spans[stream as usize].iter().flatten();
        timing.busy[stream as usize] = ran.clone().map(length).sum();
        let end = ran.map(|span| span.1).max().unwrap_or(0);
        timing.step = timing.step.max(Nanos::new(end));
    }
    let (mut busy, mut last) = (Nanos::ZERO, Nanos::ZERO);
    let compute = schedule.stream(Stream::Compute).iter();
    for (instruction, span) in compute.zip(&spans[Stream::Compute as usize]) {
        let Some(span) = span else { continue };
        let (part, op) = match instruction.action {
            Action::Run(op) => (&mut timing.compute, schedule.ops.get(op)),
            Action::Recompute(op) => (&mut timing.recompute, schedule.ops.get(op)),
            Action::Copy => (&mut timing.packing, None),
            Action::HostUpdate(_) | Action::Barrier => continue,
        };
        let took = length(span);
        *part += took;
        busy += took;
        last = last.max(Nanos::new(span.1));
        if let Some(op) = op {
            *timing.blocks.entry(op.block).or_default() += took;
            *timing.operators.entry(op.name.clone()).or_default() += took;
        }
    }
    timing.stall = last.saturating_sub(busy);
    timing.tail = timing.step.saturating_sub(last);
    timing
}

/// The step whose length is the median of all.
pub fn median(mut steps: Vec<Timing>) -> Option<Timing> {
    steps.sort_by_key(|timing| timing.step);
    let middle = steps.len().checked_sub(1)? / 2;
    Some(steps.swap_remove(middle))
}
