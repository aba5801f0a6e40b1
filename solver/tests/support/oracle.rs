//! What a schedule does, found out the slow way: by doing it.
//!
//! The oracle shares nothing with the referee but the nouns. It knows two ways to see harm:
//! - it *executes* two steps on symbolic memory, byte ranges that hold hashes of whatever was
//!   computed, in every order of preference among the streams: should any order leave other
//!   weights or states than the good schedule does, training is corrupted;
//! - it looks at *every pair* of instructions that touch common bytes, one of them writing, and
//!   asks a full reachability matrix whether one of them precedes the other.
//!
//! Time and memory grow with the square of the instructions: some thousands are its limit.

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash, Hasher};

use ebbtide_solver::ids::{BufferId, Id};
use ebbtide_solver::problem::Domain;
use ebbtide_solver::schedule::{
    Access, Action, Buffer, Instruction, Operand, Schedule, Space, Stream,
};
use ebbtide_solver::units::Span;

/// Bytes `[start, end)` of one memory.
#[derive(Clone, Copy, Debug)]
struct Bytes {
    space: Space,
    start: u64,
    end: u64,
}

/// The bytes that an instruction touches of a buffer; nothing where that makes no sense.
fn touched(s: &Schedule, instruction: &Instruction, b: &Buffer) -> Option<Vec<Bytes>> {
    let (start, end) = (b.offset.get(), b.offset.get().checked_add(b.bytes.get())?);
    let whole = vec![Bytes {
        space: b.space,
        start,
        end,
    }];
    let (Action::Run(op) | Action::Recompute(op)) = instruction.action else {
        return Some(whole);
    };
    let Some(value) = b.value else {
        return Some(whole);
    };
    let value = s.values.get(value)?;
    if value.row_bytes == 0 {
        return Some(whole);
    }
    let (mut rows, mut groups) = (instruction.rows, instruction.groups);
    match s.ops.get(op)?.domain {
        Domain::Rows => groups = Span::new(0, s.groups),
        Domain::RowsOfGroup => {}
        Domain::Group => rows = Span::new(0, s.tokens),
        Domain::Whole => (rows, groups) = (Span::new(0, s.tokens), Span::new(0, s.groups)),
    }
    if !value.by_groups {
        groups = Span::new(0, 1);
    } else if !b.groups.contains(groups) {
        return None;
    }
    if !b.rows.contains(rows) || rows.is_empty() || groups.is_empty() {
        return None;
    }
    let row = value.row_bytes / if value.by_groups { s.groups } else { 1 };
    let first = if value.by_groups { b.groups.start } else { 0 };
    let part = |group: u64| {
        let plane = start + (group - first) * b.rows.len() * row;
        let at = |r: u64| plane + (r - b.rows.start) * row;
        Bytes {
            space: b.space,
            start: at(rows.start),
            end: at(rows.end),
        }
    };
    let parts: Vec<Bytes> = (groups.start..groups.end).map(part).collect();
    parts.iter().all(|part| part.end <= end).then_some(parts)
}

/// Memory whose ranges hold hashes, each with the position in what was written as one piece.
#[derive(Clone, Default)]
struct Memory {
    ranges: BTreeMap<(Space, u64), (u64, u64, u64)>,
}

impl Memory {
    fn write(&mut self, bytes: Bytes, content: u64) {
        self.put(bytes, content, 0);
    }
    fn put(&mut self, Bytes { space, start, end }: Bytes, content: u64, position: u64) {
        let below = self.ranges.range((space, 0)..(space, end)).rev();
        let hit: Vec<_> = below
            .map(|(&(_, at), &entry)| (at, entry))
            .take_while(|&(_, (last, ..))| last > start)
            .collect();
        for (at, (last, old, offset)) in hit {
            self.ranges.remove(&(space, at));
            if at < start {
                self.ranges.insert((space, at), (start, old, offset));
            }
            if last > end {
                self.ranges
                    .insert((space, end), (last, old, offset + (end - at)));
            }
        }
        self.ranges.insert((space, start), (end, content, position));
    }
    /// The pieces of a range, relative to its start.
    fn pieces(&self, Bytes { space, start, end }: Bytes) -> Vec<(u64, u64, u64, u64)> {
        let below = self.ranges.range((space, 0)..(space, end)).rev();
        let mut pieces: Vec<_> = below
            .map(|(&(_, at), &entry)| (at, entry))
            .take_while(|&(_, (last, ..))| last > start)
            .map(|(at, (last, content, offset))| {
                let from = at.max(start);
                (
                    from - start,
                    last.min(end) - start,
                    content,
                    offset + (from - at),
                )
            })
            .collect();
        pieces.reverse();
        pieces
    }
    /// One number for what a range holds: the content itself where it was written as one piece.
    fn read(&self, bytes: Bytes) -> u64 {
        match self.pieces(bytes).as_slice() {
            &[(0, end, content, 0)] if end == bytes.end - bytes.start => content,
            pieces => hash(&pieces),
        }
    }
}

fn hash(of: &impl Hash) -> u64 {
    let mut hasher = DefaultHasher::new();
    of.hash(&mut hasher);
    hasher.finish()
}

/// Does one instruction; nothing if it cannot be done.
fn execute(s: &Schedule, memory: &mut Memory, instruction: &Instruction) -> Option<()> {
    let operands: Vec<(&Operand, &Buffer, Vec<Bytes>)> = instruction
        .operands
        .iter()
        .map(|o| {
            let buffer = s.buffers.get(o.buffer)?;
            Some((o, buffer, touched(s, instruction, buffer)?))
        })
        .collect::<Option<_>>()?;
    if instruction.action == Action::Copy {
        let [(_, _, from), (_, _, to)] = operands.as_slice() else {
            return None;
        };
        let (from, to) = (from[0], to[0]);
        // Packed rows are shorter, and as many.
        let there = |at: u64| at * (to.end - to.start) / (from.end - from.start).max(1);
        for (start, end, content, offset) in memory.pieces(from) {
            let target = Bytes {
                start: to.start + there(start),
                end: to.start + there(end),
                ..to
            };
            memory.put(target, content, there(offset));
        }
        return Some(());
    }
    let (op, kind) = match instruction.action {
        Action::Run(op) | Action::Recompute(op) => (Some(s.ops.get(op)?), op.index()),
        Action::HostUpdate(group) => (None, 1_000_000 + group as usize),
        _ => return Some(()),
    };
    let sums =
        |b: &Buffer| op.is_some_and(|op| b.value.is_some_and(|v| op.accumulates.contains(&v)));
    let mut inputs = Vec::new();
    for (operand, buffer, parts) in &operands {
        if operand.access == Access::Read || operand.access == Access::Update && !sums(buffer) {
            inputs.extend(parts.iter().map(|&part| memory.read(part)));
        }
    }
    let domain = op.map_or(Domain::Whole, |op| op.domain);
    let Instruction {
        mut rows,
        mut groups,
        micro_batch,
        ..
    } = *instruction;
    if matches!(domain, Domain::Group | Domain::Whole) {
        rows = Span::default();
    }
    if matches!(domain, Domain::Rows | Domain::Whole) {
        groups = Span::default();
    }
    let seed = hash(&(kind, inputs, rows, groups, micro_batch));
    for (position, (operand, buffer, parts)) in operands.iter().enumerate() {
        for (part, &bytes) in parts.iter().enumerate() {
            let made = hash(&(seed, position, part));
            match operand.access {
                Access::Read => {}
                Access::Update if sums(buffer) => {
                    let sum = memory.read(bytes).wrapping_add(made);
                    memory.write(bytes, sum);
                }
                _ => memory.write(bytes, made),
            }
        }
    }
    Some(())
}

fn signaller(s: &Schedule, event: u32) -> Option<(usize, usize)> {
    let on = |list: &[Instruction]| {
        list.iter()
            .position(|i| i.signals.is_some_and(|e| e.index() == event as usize))
    };
    (0..4).find_map(|stream| Some((stream, on(&s.streams[stream])?)))
}

/// By stream and position: the instructions whose events are waited for. Nothing if one of them
/// does not exist.
type Waits = [Vec<Vec<(usize, usize)>>; 4];
fn waits(s: &Schedule) -> Option<Waits> {
    let of = |i: &Instruction| {
        i.waits
            .iter()
            .map(|e| signaller(s, e.index() as u32))
            .collect()
    };
    let mut all = Waits::default();
    for (stream, list) in s.streams.iter().enumerate() {
        all[stream] = list.iter().map(of).collect::<Option<_>>()?;
    }
    Some(all)
}

/// What two steps leave in the given persistent buffers when streams run in this order of
/// preference, each
/// as far ahead as it can; nothing if they do not come to their end.
fn outcome(
    s: &Schedule,
    waits: &Waits,
    preference: [usize; 4],
    persistent: &[BufferId],
) -> Option<Vec<u64>> {
    let mut memory = Memory::default();
    let extent = |b: &Buffer| Bytes {
        space: b.space,
        start: b.offset.get(),
        end: b.offset.get() + b.bytes.get(),
    };
    for &id in persistent {
        memory.write(extent(&s.buffers[id]), hash(&id.index()));
    }
    let length = |stream: usize| s.streams[stream].len();
    let mut next = [0usize; 4];
    while (0..4).any(|stream| next[stream] < 2 * length(stream)) {
        let ready = preference.into_iter().find(|&stream| {
            let at = next[stream];
            at < 2 * length(stream)
                && waits[stream][at % length(stream)]
                    .iter()
                    .all(|&(other, index)| {
                        next[other] > index + at / length(stream) * length(other)
                    })
        })?;
        execute(
            s,
            &mut memory,
            &s.streams[ready][next[ready] % length(ready)],
        )?;
        next[ready] += 1;
    }
    Some(
        persistent
            .iter()
            .map(|&id| memory.read(extent(&s.buffers[id])))
            .collect(),
    )
}

fn preferences() -> Vec<[usize; 4]> {
    let mut all = Vec::new();
    for code in 0..256usize {
        let order = [code & 3, code >> 2 & 3, code >> 4 & 3, code >> 6 & 3];
        if (0..4).all(|stream| order.contains(&stream)) {
            all.push(order);
        }
    }
    all
}

/// Whether two steps hold a pair of instructions on common bytes, one writing, in no order.
fn races(s: &Schedule, waits: &Waits) -> bool {
    let lengths: Vec<usize> = s.streams.iter().map(Vec::len).collect();
    let first: Vec<usize> = (0..4)
        .map(|i| 2 * lengths[..i].iter().sum::<usize>())
        .collect();
    let count = 2 * lengths.iter().sum::<usize>();
    let mut before = vec![vec![false; count]; count];
    for stream in 0..4 {
        for position in 0..2 * lengths[stream] {
            let me = first[stream] + position;
            if position > 0 {
                before[me][me - 1] = true;
            }
            for &(other, index) in &waits[stream][position % lengths[stream]] {
                before[me][first[other] + index + position / lengths[stream] * lengths[other]] =
                    true;
            }
        }
    }
    for middle in 0..count {
        let reached = before[middle].clone();
        for row in before.iter_mut().filter(|row| row[middle]) {
            row.iter_mut()
                .zip(&reached)
                .for_each(|(cell, &more)| *cell |= more);
        }
    }
    let mut touches: Vec<(usize, Bytes, bool)> = Vec::new();
    for stream in Stream::ALL {
        for (index, instruction) in s.stream(stream).iter().enumerate() {
            for operand in &instruction.operands {
                let Some(buffer) = s.buffers.get(operand.buffer) else {
                    continue;
                };
                for bytes in touched(s, instruction, buffer).into_iter().flatten() {
                    let writes = operand.access != Access::Read;
                    let at = first[stream as usize] + index;
                    touches.push((at, bytes, writes));
                    touches.push((at + lengths[stream as usize], bytes, writes));
                }
            }
        }
    }
    touches.iter().enumerate().any(|(i, &(a, x, x_writes))| {
        touches[..i].iter().any(|&(b, y, y_writes)| {
            let common = x.space == y.space && x.start < y.end && y.start < x.end;
            a != b && common && (x_writes || y_writes) && !before[a][b] && !before[b][a]
        })
    })
}

/// What the good schedule leaves behind, and where.
pub struct Outcome {
    persistent: Vec<BufferId>,
    contents: Vec<u64>,
}

/// What the good schedule leaves behind.
///
/// # Panics
/// When it is not good: when it ends otherwise in another order, races, or does not end.
pub fn good_outcome(good: &Schedule) -> Outcome {
    let waits = waits(good).expect("events are signalled");
    assert!(!races(good, &waits), "the good schedule races");
    let persistent = good
        .buffers
        .iter()
        .filter(|(_, b)| b.persistent)
        .map(|(id, _)| id);
    let persistent: Vec<_> = persistent.collect();
    let run = |preference| outcome(good, &waits, preference, &persistent).expect("it ends");
    let mut contents: Vec<_> = preferences().into_iter().map(run).collect();
    contents.dedup();
    assert_eq!(contents.len(), 1, "the good schedule ends in one way");
    Outcome {
        contents: contents.remove(0),
        persistent,
    }
}

/// Whether a schedule certainly does harm: it races, does not end, or trains something else.
pub fn is_harmful(bad: &Schedule, good: &Outcome) -> bool {
    let Some(waits) = waits(bad) else { return true };
    let found = |preference| outcome(bad, &waits, preference, &good.persistent);
    let same = |preference| found(preference).is_some_and(|found| found == good.contents);
    !preferences().into_iter().all(same) || races(bad, &waits)
}
