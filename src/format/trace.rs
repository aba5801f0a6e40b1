//! A simulated schedule as Chrome trace JSON, for ui.perfetto.dev and chrome://tracing.
//!
//! In: a schedule file that passes the checker, and its timeline. Out: JSON, one event on a line.
//! Every stream is a thread of complete events, live device memory by category is a counter, and a
//! flow arrow leads from every swap-out to the swap-in of the same host buffer. Barriers take no
//! time and are left out.
//!
//! Times are microseconds with nanoseconds as fraction. Memory follows the lifetimes of buffers:
//! positions on the compute stream, each at its simulated start. While compute waits before a
//! position, what begins there is not counted yet, although its copy may have started.

use ebbtide_solver::ids::BufferId;
use ebbtide_solver::problem::Category;
use ebbtide_solver::schedule::{Access, Action, Instruction, Schedule, Stream};
use ebbtide_solver::simulate::Timeline;
use ebbtide_solver::units::Instant;
use serde_json::{json, Map, Value};
use std::collections::HashMap;

use super::schedule::ScheduleFile;
use crate::memory;

/// The process that all rows belong to.
const PID: u32 = 1;

/// The trace's text.
pub fn write(file: &ScheduleFile, timeline: &Timeline) -> String {
    let mut events = names(file);
    for stream in Stream::ALL {
        let timed = file.schedule.stream(stream).iter();
        let timed = timed.zip(&timeline.spans[stream as usize]);
        let slices = timed.filter(|(instruction, _)| instruction.action != Action::Barrier);
        events.extend(slices.map(|(i, &span)| slice(&file.schedule, stream, i, span)));
    }
    events.extend(arrows(&file.schedule, timeline));
    events.extend(counters(&file.schedule, timeline));
    let lines: Vec<String> = events.iter().map(Value::to_string).collect();
    format!(
        "{{\"displayTimeUnit\":\"ns\",\"traceEvents\":[\n{}\n]}}\n",
        lines.join(",\n")
    )
}

/// Names of the process and its threads, in the order of the streams.
fn names(file: &ScheduleFile) -> Vec<Value> {
    let title = format!(
        "{}, {}, {} on {}",
        file.model.name, file.method, file.strategy, file.hardware.name
    );
    let mut events =
        vec![json!({"ph": "M", "pid": PID, "name": "process_name", "args": {"name": title}})];
    for stream in Stream::ALL {
        let tid = tid(stream);
        let mut name = |what: &str, args: Value| {
            events.push(json!({"ph": "M", "pid": PID, "tid": tid, "name": what, "args": args}));
        };
        name("thread_name", json!({"name": stream.name()}));
        name("thread_sort_index", json!({"sort_index": tid}));
    }
    events
}

fn tid(stream: Stream) -> u32 {
    stream as u32 + 1
}

/// Microseconds that are the same nanosecond again when a reader multiplies and truncates, so that
/// one event's end is the next one's start there too.
fn micros(nanos: u64) -> f64 {
    let nearest = nanos as f64 / 1000.0;
    if nearest * 1000.0 < nanos as f64 {
        f64::from_bits(nearest.to_bits() + 1)
    } else {
        nearest
    }
}

/// One instruction as a complete event.
fn slice(
    schedule: &Schedule,
    stream: Stream,
    instruction: &Instruction,
    (from, to): (Instant, Instant),
) -> Value {
    let mut args = Map::new();
    let block = match instruction.action {
        Action::Run(op) | Action::Recompute(op) => {
            args.insert("operator".into(), schedule.ops[op].name.as_str().into());
            schedule.ops[op].block
        }
        _ => instruction
            .operands
            .first()
            .and_then(|operand| schedule.buffers[operand.buffer].value)
            .and_then(|value| schedule.values[value].block),
    };
    let recompute = matches!(instruction.action, Action::Recompute(_));
    args.insert("block".into(), block.into());
    args.insert("recompute".into(), recompute.into());
    args.insert("micro_batch".into(), instruction.micro_batch.into());
    for (key, span) in [("rows", instruction.rows), ("groups", instruction.groups)] {
        args.insert(key.into(), json!([span.start, span.end]));
    }
    if let (Action::Copy, Some(operand)) = (instruction.action, instruction.operands.first()) {
        let bytes = schedule.buffers[operand.buffer].bytes;
        args.insert("bytes".into(), bytes.get().into());
    }
    json!({
        "ph": "X",
        "pid": PID,
        "tid": tid(stream),
        "ts": micros(from.get()),
        "dur": micros((to - from).get()),
        "name": memory::doing(schedule, instruction),
        "cat": if recompute { "recompute" } else { stream.name() },
        "args": args,
    })
}

/// The buffer that a copy reads or writes.
fn operand(copy: &Instruction, access: Access) -> Option<BufferId> {
    let operand = copy.operands.iter().find(|o| o.access == access);
    operand.map(|o| o.buffer)
}

/// From every swap-out to each swap-in of what it wrote: the last one that had ended by then.
fn arrows(schedule: &Schedule, timeline: &Timeline) -> Vec<Value> {
    let copies = |stream: Stream, host: Access| {
        let timed = schedule.stream(stream).iter();
        let timed = timed.zip(&timeline.spans[stream as usize]);
        let copies = timed.filter(|(instruction, _)| instruction.action == Action::Copy);
        copies.filter_map(move |(copy, &span)| Some((operand(copy, host)?, span)))
    };
    let mut written: HashMap<BufferId, Vec<(Instant, Instant)>> = HashMap::new();
    for (host, span) in copies(Stream::D2h, Access::Write) {
        written.entry(host).or_default().push(span);
    }
    let mut events = Vec::new();
    for (host, (back, _)) in copies(Stream::H2d, Access::Read) {
        let outs = written.get(&host).into_iter().flatten();
        let Some((out, _)) = outs.rev().find(|(_, ended)| *ended <= back) else {
            continue;
        };
        let id = events.len() / 2;
        let mut end = |ph: &str, stream: Stream, at: Instant| {
            events.push(json!({
                "ph": ph,
                "bp": "e",
                "id": id,
                "pid": PID,
                "tid": tid(stream),
                "ts": micros(at.get()),
                "name": "swap",
                "cat": "swap",
            }));
        };
        end("s", Stream::D2h, *out);
        end("f", Stream::H2d, back);
    }
    events
}

/// Live bytes by category, whenever they change.
fn counters(schedule: &Schedule, timeline: &Timeline) -> Vec<Value> {
    let mut live = Category::ALL.map(|_| 0u64);
    let mut events: Vec<(Instant, Value)> = Vec::new();
    for change in memory::changes(schedule) {
        let sum = &mut live[schedule.buffers[change.buffer].category as usize];
        if change.begins {
            *sum += change.bytes.get();
        } else {
            *sum -= change.bytes.get();
        }
        let at = memory::moment(timeline, change.position);
        let args = Category::ALL.map(|c| (c.name().to_owned(), live[c as usize].into()));
        let event = json!({
            "ph": "C",
            "pid": PID,
            "ts": micros(at.get()),
            "name": "device memory",
            "args": Map::from_iter(args),
        });
        match events.last_mut() {
            Some((before, last)) if *before == at => *last = event,
            _ => events.push((at, event)),
        }
    }
    events.into_iter().map(|(_, event)| event).collect()
}
