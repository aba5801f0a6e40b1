//! A simulated schedule as a PyTorch CUDA memory snapshot, for pytorch.org/memory_viz and
//! `torch.cuda._memory_viz`: the pickle that `torch.cuda.memory._dump_snapshot` would write if the
//! plan's arena were one segment of PyTorch's allocator on device 0.
//!
//! In: a schedule that passes the checker, and its timeline. Out: bytes. The structure is that of
//! PyTorch's `torch/csrc/cuda/memory_snapshot.cpp`. Every device buffer is allocated when its
//! lifetime begins and freed when it ends; what persists is there from the start and stays, and is
//! what the segment's blocks show, because viewers go back in time from them. A stack frame names
//! the buffer's content, one more what first uses it; their line is a position or an index in the
//! stream. Times are whole microseconds, as PyTorch has them.
//!
//! Events carry no category: some versions of the viewer fail on a file with categories of which
//! none is called unknown.

use ebbtide_solver::ids::{BufferId, Id};
use ebbtide_solver::schedule::{Buffer, Schedule, Stream};
use ebbtide_solver::simulate::Timeline;
use ebbtide_solver::units::Instant;

use super::pickle::{self, Value};
use crate::memory;

/// Where the arena starts: an address that looks like the device's and is exact in JavaScript.
const BASE: u64 = 0x7f00_0000_0000;

/// The snapshot's bytes.
pub fn write(schedule: &Schedule, timeline: &Timeline) -> Vec<u8> {
    let users = first_users(schedule, timeline);
    let frames = |id: BufferId| frames(schedule, id, users[id.index()]);
    let events = events(schedule, timeline, frames);
    let snapshot = Value::Dict(vec![
        ("segments", Value::List(vec![segment(schedule, frames)])),
        ("device_traces", Value::List(vec![Value::List(events)])),
        (
            "allocator_settings",
            Value::Dict(vec![
                ("PYTORCH_CUDA_ALLOC_CONF", text("")),
                ("max_split_size", Value::Int(-1)),
                ("expandable_segments", Value::Bool(false)),
            ]),
        ),
        ("external_annotations", Value::List(Vec::new())),
    ]);
    pickle::dump(&snapshot)
}

fn int(n: u64) -> Value {
    Value::Int(i64::try_from(n).unwrap_or(i64::MAX))
}

fn text(text: impl Into<String>) -> Value {
    Value::Str(text.into())
}

fn address(buffer: &Buffer) -> Value {
    int(BASE.saturating_add(buffer.offset.get()))
}

/// Everything that happens to the arena, in order.
fn events(
    schedule: &Schedule,
    timeline: &Timeline,
    frames: impl Fn(BufferId) -> Value,
) -> Vec<Value> {
    let event = |action: &str, addr: Value, size: u64, at: Instant, frames: &Value| {
        Value::Dict(vec![
            ("action", text(action)),
            ("addr", addr),
            ("size", int(size)),
            ("stream", Value::Int(0)),
            ("time_us", int(at.get() / 1000)),
            ("frames", frames.clone()),
        ])
    };
    let arena = schedule.arena_bytes.get();
    let none = Value::List(Vec::new());
    let mut events = vec![event(
        "segment_alloc",
        int(BASE),
        arena,
        Instant::START,
        &none,
    )];
    for change in memory::changes(schedule) {
        let buffer = &schedule.buffers[change.buffer];
        let at = memory::moment(timeline, change.position);
        let actions: &[&str] = match (change.begins, buffer.persistent) {
            (true, _) => &["alloc"],
            (false, false) => &["free_requested", "free_completed"],
            (false, true) => &[],
        };
        let frames = frames(change.buffer);
        for action in actions {
            let size = buffer.bytes.get();
            events.push(event(action, address(buffer), size, at, &frames));
        }
    }
    events
}

/// The arena after the step: persistent blocks, and what is free between them.
fn segment(schedule: &Schedule, frames: impl Fn(BufferId) -> Value) -> Value {
    let ends = memory::changes(schedule).into_iter();
    let staying = ends.filter(|c| c.begins && schedule.buffers[c.buffer].persistent);
    let mut staying: Vec<_> = staying.collect();
    staying.sort_by_key(|c| schedule.buffers[c.buffer].offset);
    let block = |offset: u64, size: u64, requested: u64, state: &str, frames: Value| {
        Value::Dict(vec![
            ("address", int(BASE.saturating_add(offset))),
            ("size", int(size)),
            ("requested_size", int(requested)),
            ("state", text(state)),
            ("frames", frames),
        ])
    };
    let free = |from: u64, to: u64| {
        let gap = (to > from).then(|| to - from);
        gap.map(|gap| block(from, gap, 0, "inactive", Value::List(Vec::new())))
    };
    let (mut blocks, mut end, mut active, mut requested) = (Vec::new(), 0, 0, 0);
    for change in staying {
        let buffer = &schedule.buffers[change.buffer];
        let (offset, size) = (buffer.offset.get(), change.bytes.get());
        let frames = frames(change.buffer);
        blocks.extend(free(end, offset));
        let asked = buffer.bytes.get();
        blocks.push(block(offset, size, asked, "active_allocated", frames));
        end = offset + size;
        active += size;
        requested += asked;
    }
    let arena = schedule.arena_bytes.get();
    blocks.extend(free(end, arena));
    Value::Dict(vec![
        ("device", Value::Int(0)),
        ("address", int(BASE)),
        ("total_size", int(arena)),
        ("allocated_size", int(active)),
        ("active_size", int(active)),
        ("requested_size", int(requested)),
        ("stream", Value::Int(0)),
        ("segment_type", text("large")),
        (
            "segment_pool_id",
            Value::Pair(Box::new((Value::Int(0), Value::Int(0)))),
        ),
        ("is_expandable", Value::Bool(false)),
        ("frames", Value::List(Vec::new())),
        ("blocks", Value::List(blocks)),
    ])
}

/// For every buffer the instruction that uses it first: its stream and its index there.
fn first_users(schedule: &Schedule, timeline: &Timeline) -> Vec<Option<(Stream, usize)>> {
    let mut first: Vec<Option<(Instant, Stream, usize)>> = vec![None; schedule.buffers.len()];
    for stream in Stream::ALL {
        for (index, instruction) in schedule.stream(stream).iter().enumerate() {
            let (start, _) = timeline.spans[stream as usize][index];
            for operand in &instruction.operands {
                let entry = &mut first[operand.buffer.index()];
                if entry.is_none_or(|(before, ..)| start < before) {
                    *entry = Some((start, stream, index));
                }
            }
        }
    }
    let users = first.into_iter();
    users.map(|user| user.map(|(_, s, i)| (s, i))).collect()
}

/// What the viewer shows as the stack: the content, then who uses it first.
fn frames(schedule: &Schedule, id: BufferId, user: Option<(Stream, usize)>) -> Value {
    let buffer = &schedule.buffers[id];
    let frame = |filename: &str, line: u64, name: String| {
        Value::Dict(vec![
            ("filename", text(filename)),
            ("name", text(name)),
            ("line", int(line)),
        ])
    };
    let content = memory::content(schedule, id);
    let rows = format!("rows [{}, {})", buffer.rows.start, buffer.rows.end);
    let content = format!("{content}, {rows}");
    let mut frames = vec![frame(
        buffer.category.name(),
        buffer.lifetime.start,
        content,
    )];
    frames.extend(user.map(|(stream, index)| {
        let user = &schedule.stream(stream)[index];
        frame(stream.name(), index as u64, memory::doing(schedule, user))
    }));
    Value::List(frames)
}
