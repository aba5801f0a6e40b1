//! The memory curve of a schedule: what lives in the arena while the compute stream is at each of
//! its instructions, and what lies in host memory.
//!
//! Lifetimes are positions on the compute stream, so the curve is a fact of the schedule, whatever
//! its copies' speed turns out to be. Sizes are counted as the arena places them.

use ebbtide_solver::build::ALIGNMENT;
use ebbtide_solver::ids::{BufferId, Id};
use ebbtide_solver::problem::Category;
use ebbtide_solver::schedule::{Action, Instruction, Schedule, Space, Stream};
use ebbtide_solver::simulate::Timeline;
use ebbtide_solver::units::{Bytes, Instant, Span};

/// Where most lives in the arena.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peak {
    /// Position on the compute stream, the first of several.
    pub position: u64,
    /// What lives there.
    pub bytes: Bytes,
    /// What lives there, by what it is there for.
    pub by_category: [(Category, Bytes); 6],
    /// The buffers that live there, largest first.
    pub buffers: Vec<BufferId>,
}

/// A buffer on the device comes to life or ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Change {
    /// Position on the compute stream.
    pub position: u64,
    /// Whether it comes to life there.
    pub begins: bool,
    /// Which buffer.
    pub buffer: BufferId,
    /// Its size as the arena places it.
    pub bytes: Bytes,
}

/// Every change of what lives in the arena, in order: what ends at a position is gone before what
/// begins there.
pub fn changes(schedule: &Schedule) -> Vec<Change> {
    let both = living(schedule).flat_map(|(buffer, span, bytes)| {
        [(span.start, true), (span.end, false)].map(|(position, begins)| Change {
            position,
            begins,
            buffer,
            bytes,
        })
    });
    let mut changes: Vec<Change> = both.collect();
    changes.sort_unstable();
    changes
}

/// When a position is reached: its simulated start; the end of the step for those after the last.
pub fn moment(timeline: &Timeline, position: u64) -> Instant {
    let at = usize::try_from(position).ok();
    let span = at.and_then(|at| timeline.spans[Stream::Compute as usize].get(at));
    span.map_or(Instant::START + timeline.step, |&(start, _)| start)
}

/// Finds the peak of any schedule, checked or not.
pub fn peak(schedule: &Schedule) -> Peak {
    let (mut live, mut position, mut most) = (0u128, 0, 0);
    for change in changes(schedule) {
        let bytes = u128::from(change.bytes.get());
        if change.begins {
            live += bytes;
        } else {
            live -= bytes;
        }
        if live > most {
            (position, most) = (change.position, live);
        }
    }
    let alive =
        living(schedule).filter(|(_, span, _)| span.contains(Span::new(position, position + 1)));
    let mut alive: Vec<(BufferId, Bytes)> = alive.map(|(id, _, bytes)| (id, bytes)).collect();
    alive.sort_by_key(|&(id, bytes)| (std::cmp::Reverse(bytes), id));
    Peak {
        position,
        bytes: Bytes::new(u64::try_from(most).unwrap_or(u64::MAX)),
        by_category: sums(
            alive
                .iter()
                .map(|&(id, bytes)| (schedule.buffers[id].category, bytes)),
        ),
        buffers: alive.into_iter().map(|(id, _)| id).collect(),
    }
}

/// Buffers on the device that ever live, with their lifetime and aligned size.
fn living(schedule: &Schedule) -> impl Iterator<Item = (BufferId, Span, Bytes)> + '_ {
    let end = schedule.stream(Stream::Compute).len().max(1) as u64;
    schedule.buffers.iter().filter_map(move |(id, buffer)| {
        let span = if buffer.persistent {
            Span::new(0, end)
        } else {
            buffer.lifetime
        };
        let here = buffer.space == Space::Device && !span.is_empty();
        here.then(|| (id, span, buffer.bytes.align_up(ALIGNMENT)))
    })
}

/// Host memory by what it is there for.
pub fn host(schedule: &Schedule) -> [(Category, Bytes); 6] {
    let there = schedule.buffers.values().filter(|b| b.space == Space::Host);
    sums(there.map(|b| (b.category, b.bytes.align_up(ALIGNMENT))))
}

fn sums(parts: impl Iterator<Item = (Category, Bytes)>) -> [(Category, Bytes); 6] {
    let mut sums = Category::ALL.map(|category| (category, Bytes::ZERO));
    for (category, bytes) in parts {
        let sum = &mut sums[category as usize].1;
        *sum = sum.checked_add(bytes).unwrap_or(Bytes::MAX);
    }
    sums
}

/// What runs at a position of the compute stream: `attention_backward of block 3`.
pub fn running(schedule: &Schedule, position: u64) -> String {
    let at = usize::try_from(position).ok();
    let instruction = at.and_then(|at| schedule.stream(Stream::Compute).get(at));
    match instruction.map(|i| (i, i.action)) {
        Some((i, Action::Run(_) | Action::Copy)) => doing(schedule, i),
        Some((i, Action::Recompute(_))) => format!("{}, recomputed", doing(schedule, i)),
        _ => "the step's edge".into(),
    }
}

/// What an instruction does: `attention of block 3`, `swap out x of block 3`,
/// `unpack h of block 3`.
pub fn doing(schedule: &Schedule, instruction: &Instruction) -> String {
    let from = instruction.operands.first().map(|operand| operand.buffer);
    match (instruction.action, from) {
        (Action::Run(op) | Action::Recompute(op), _) => match schedule.ops.get(op) {
            Some(op) => format!("{}{}", op.name, of_block(op.block)),
            None => format!("unknown operator {}", op.index()),
        },
        (Action::HostUpdate(group), _) => match schedule.state_groups.get(group as usize) {
            Some(group) => format!("update {}", group.name),
            None => format!("update unknown group {group}"),
        },
        (Action::Copy, Some(from)) if schedule.buffers.get(from).is_some() => {
            let target = instruction.operands.get(1);
            let target = target.and_then(|to| schedule.buffers.get(to.buffer));
            let what = match (&schedule.buffers[from], target) {
                (source, _) if source.packed => "unpack",
                (_, Some(target)) if target.packed => "pack",
                (source, _) if source.space == Space::Device => "swap out",
                _ => "swap in",
            };
            format!("{what} {}", content(schedule, from))
        }
        (Action::Copy, _) => "copy of nothing".into(),
        (Action::Barrier, _) => "the step's edge".into(),
    }
}

/// What a buffer holds: `qkv.gradient of block 3`.
pub fn content(schedule: &Schedule, buffer: BufferId) -> String {
    let buffer = &schedule.buffers[buffer];
    match buffer.value.and_then(|value| schedule.values.get(value)) {
        Some(value) => format!("{}{}", value.name, of_block(value.block)),
        None => buffer.category.name().into(),
    }
}

fn of_block(block: Option<u32>) -> String {
    block.map_or_else(String::new, |block| format!(" of block {block}"))
}
