//! One change to the tiny schedule for every fault that the referee knows.

use super::*;
use ebbtide_solver::schedule::Stream::{Compute, D2h, H2d, Host};
use ebbtide_solver::schedule::GRADIENT_NORM;

/// A change that makes a good schedule bad.
pub type Change = fn(&mut Schedule);

fn at(schedule: &mut Schedule, stream: Stream, index: usize) -> &mut Instruction {
    &mut schedule.streams[stream as usize][index]
}
fn run(schedule: &mut Schedule, op: usize, which: usize) -> &mut Instruction {
    let index = runs(schedule, op)[which];
    at(schedule, Compute, index)
}
/// The `which`-th buffer of a value in this memory.
fn buffer<'a>(s: &'a mut Schedule, value: &str, space: Space, which: usize) -> &'a mut Buffer {
    let id = buffer_id(s, value, space, which);
    &mut s.buffers[id]
}
fn buffer_id(s: &Schedule, value: &str, space: Space, which: usize) -> BufferId {
    let name = |b: &Buffer| b.value.map_or("", |value| s.values[value].name.as_str());
    let mut found = s
        .buffers
        .iter()
        .filter(|(_, b)| name(b) == value && b.space == space);
    found.nth(which).expect("the tiny schedule has it").0
}
fn silence(instruction: &mut Instruction) {
    instruction.action = Action::Barrier;
    instruction.operands.clear();
}
fn repeat(schedule: &mut Schedule, stream: Stream, index: usize) {
    let mut again = at(schedule, stream, index).clone();
    again.signals = None;
    schedule.streams[stream as usize].insert(index + 1, again);
}

/// What lies in `y` also travels, after its sum is complete but beside its rotation.
fn offload_beside_rotation(s: &mut Schedule) {
    let source = buffer_id(s, "y", Space::Device, 0);
    let target = Buffer {
        space: Space::Host,
        offset: Bytes::new(2560),
        ..s.buffers[source].clone()
    };
    let target = s.buffers.push(target);
    let event = EventId::from_index(s.events as usize);
    s.events += 1;
    run(s, OUT, 3).signals = Some(event);
    let mut copy = at(s, D2h, 0).clone();
    copy.rows = ALL;
    copy.operands[0].buffer = source;
    copy.operands[1].buffer = target;
    copy.waits = vec![event];
    copy.signals = None;
    s.streams[D2h as usize].insert(1, copy);
}

/// Every fault with a change that brings it about (and perhaps others with it).
pub const CHANGES: &[(&str, Change)] = &[
    ("read-before-write", |s| silence(run(s, EMBED, 0))),
    ("missing-event", |s| run(s, BACK, 0).waits.clear()),
    ("race-across-steps", |s| {
        s.streams[0].last_mut().unwrap().waits.clear()
    }),
    ("unordered-update", offload_beside_rotation),
    ("use-after-free", |s| {
        buffer(s, "x", Space::Device, 3).offset = Bytes::new(7168)
    }),
    ("arena-overlap", |s| {
        buffer(s, "", Space::Device, 0).offset = Bytes::new(6144)
    }),
    ("host-overlap", |s| {
        buffer(s, "dw", Space::Host, 0).offset = Bytes::new(2048)
    }),
    ("source-overwritten", |s| {
        buffer(s, "y", Space::Device, 0).offset = Bytes::new(3072)
    }),
    ("landing-in-use", |s| at(s, H2d, 0).waits.truncate(1)),
    ("fetch-before-offload", |s| {
        at(s, H2d, 0).waits.remove(0);
    }),
    ("over-device-budget", |s| s.budget.device = Bytes::new(8192)),
    ("over-host-budget", |s| s.budget.host = Bytes::new(1024)),
    ("out-of-bounds", |s| s.arena_bytes = Bytes::new(8192)),
    ("misaligned", |s| {
        buffer(s, "", Space::Device, 0).offset = Bytes::new(8191)
    }),
    ("wrong-size", |s| {
        buffer(s, "x", Space::Device, 0).bytes = Bytes::new(256)
    }),
    ("copy-mismatch", |s| at(s, D2h, 0).rows = Span::new(0, 2)),
    ("wrong-stream", |s| at(s, Host, 0).action = Action::Copy),
    ("wrong-space", |s| {
        at(s, Host, 0).operands[0].buffer = buffer_id(s, "dw", Space::Device, 0);
    }),
    ("packed-operand", |s| {
        buffer(s, "x", Space::Device, 0).packed = true
    }),
    ("wrong-extent", |s| {
        run(s, EMBED, 1).operands[2].buffer = buffer_id(s, "x", Space::Device, 0);
    }),
    ("bad-range", |s| run(s, LOSS, 0).rows = Span::new(4, 0)),
    ("outside-lifetime", |s| {
        buffer(s, "y", Space::Device, 0).lifetime = Span::new(9, 15)
    }),
    ("unknown-buffer", |s| {
        run(s, LOSS, 0).operands[0].buffer = BufferId::from_index(99)
    }),
    ("unknown-op", |s| {
        run(s, LOSS, 0).action = Action::Run(op(99))
    }),
    ("unknown-value", |s| {
        buffer(s, "x", Space::Device, 0).value = Some(ValueId::from_index(99));
    }),
    ("unknown-event", |s| {
        at(s, D2h, 0).waits.push(EventId::from_index(99))
    }),
    ("unknown-state-group", |s| {
        at(s, Host, 0).action = Action::HostUpdate(99)
    }),
    ("never-signalled", |s| run(s, EMBED, 0).signals = None),
    ("signalled-twice", |s| {
        run(s, EMBED, 1).signals = run(s, EMBED, 0).signals
    }),
    ("deadlock", |s| {
        let event = at(s, D2h, 0).signals.unwrap();
        run(s, EMBED, 0).waits.push(event);
    }),
    ("missing-range", |s| silence(run(s, ATTENTION, 1))),
    ("double-range", |s| repeat(s, Compute, runs(s, EMBED)[0])),
    ("contribution-missing", |s| silence(run(s, GATHER, 3))),
    ("contribution-twice", |s| {
        repeat(s, Compute, runs(s, GATHER)[1])
    }),
    ("contribution-lost", |s| {
        run(s, BACK, 2).operands[2].access = Access::Write
    }),
    ("contribution-unread", |s| {
        at(s, Host, 0).operands.remove(0);
    }),
    ("contribution-uninitialised", |s| {
        buffer(s, "du", Space::Device, 0).persistent = true;
        run(s, BACK, 0).operands[2].access = Access::Update;
    }),
    ("gradient-used-early", |s| {
        let (back, sgd) = (runs(s, BACK)[7], runs(s, SGD)[0]);
        s.streams[0].swap(back, sgd);
    }),
    ("weights-updated-early", |s| {
        let (sgd, embed) = (runs(s, SGD)[0], runs(s, EMBED)[2]);
        let early = s.streams[0].remove(sgd);
        s.streams[0].insert(embed, early);
    }),
    ("updated-before-counted", |s| {
        let late = runs(s, SGD)[0];
        let norm = ScheduledOp {
            name: GRADIENT_NORM.into(),
            updates: Vec::new(),
            ..s.ops[op(SGD)].clone()
        };
        let norm = Action::Run(s.ops.push(norm));
        let mut counted = at(s, Compute, late).clone();
        counted.action = norm;
        counted.operands.truncate(1);
        counted.signals = None;
        s.streams[0].insert(late + 1, counted);
    }),
    ("stale-weights", |s| silence(at(s, H2d, 2))),
    ("host-update-twice", |s| repeat(s, Host, 0)),
    ("host-update-missing", |s| silence(at(s, Host, 0))),
    ("host-update-stray", |s| {
        at(s, Host, 0).action = Action::HostUpdate(1)
    }),
    ("states-not-updated", |s| {
        at(s, Host, 0).operands.remove(1);
    }),
    ("stale-micro-batch", |s| run(s, LOSS, 2).micro_batch = 0),
    ("wrong-version", |s| {
        let (rotate, loss) = (runs(s, ROTATE)[0], runs(s, LOSS)[0]);
        s.streams[0].swap(rotate, loss);
    }),
    ("wrong-operand", |s| {
        run(s, SGD, 0).operands[0].buffer = buffer_id(s, "w", Space::Device, 0);
    }),
    ("extra-operand", |s| {
        let again = run(s, SGD, 0).operands[0];
        run(s, SGD, 0).operands.push(again);
    }),
    ("operands-differ", |s| {
        run(s, LOSS, 1).operands.pop();
    }),
    ("recompute-changes-state", |s| {
        run(s, GATHER, 1).action = Action::Recompute(op(GATHER))
    }),
];
