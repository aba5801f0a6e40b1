//! The memory curve of a schedule: what lives in the arena while the compute stream is at each of
//! its instructions, and what lies in host memory.
//!
//! Lifetimes are positions on the compute stream, so the curve is a fact of the schedule, whatever
//! its copies' speed turns out to be. Sizes are counted as the arena places them.

use ebbtide_solver::build::ALIGNMENT;
use ebbtide_solver::ids::{BufferId, Id};
use ebbtide_solver::problem::Category;
use ebbtide_solver::schedule::{Action, Schedule, Space, Stream};
use ebbtide_solver::units::{Bytes, Span};

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

/// Finds the peak of any schedule, checked or not.
pub fn peak(schedule: &Schedule) -> Peak {
    let mut changes: Vec<(u64, bool, Bytes)> = Vec::new();
    for (_, span, bytes) in living(schedule) {
        changes.push((span.start, true, bytes));
        changes.push((span.end, false, bytes));
    }
    // What ends at a position is gone before what begins there.
    changes.sort_unstable();
    let (mut live, mut position, mut most) = (0u128, 0, 0);
    for (at, begins, bytes) in changes {
        if begins {
            live += u128::from(bytes.get());
        } else {
            live -= u128::from(bytes.get());
        }
        if live > most {
            (position, most) = (at, live);
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
    let (op, again) = match instruction.map(|i| i.action) {
        Some(Action::Run(op)) => (op, ""),
        Some(Action::Recompute(op)) => (op, ", recomputed"),
        _ => return "the step's edge".into(),
    };
    match schedule.ops.get(op) {
        Some(op) => format!("{}{}{again}", op.name, of_block(op.block)),
        None => format!("unknown operator {}", op.index()),
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
