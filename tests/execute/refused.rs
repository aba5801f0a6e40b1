//! What the checker refuses goes wrong when it is executed all the same: for every fault of
//! `tests/refused/` the same change to the schedule of a real model. Most end with an error or
//! other bits whatever the timing; races show with slow links and random delays.

use std::time::Duration;

use ebbtide::device::cpu::{CpuOptions, Delays, LinkSpeed};
use ebbtide::methods::Method;
use ebbtide_solver::check::{check, Fault};
use ebbtide_solver::ids::{BufferId, EventId, Id, OpId, ValueId};
use ebbtide_solver::schedule::{Access, Action, Instruction, Schedule, Stream};
use ebbtide_solver::units::{Bytes, BytesPerSec, Nanos, Span};

use super::models::model;
use super::plans::{file_of, mixed, problem, Cut};
use super::runs::{run, Outcome};
use super::straight::straight;

type Change = fn(&mut Schedule);

/// The `nth` run of an operator, by its position on the compute stream.
fn position(s: &Schedule, name: &str, nth: usize) -> usize {
    let runs = s.stream(Stream::Compute).iter().enumerate();
    let mut of_name = runs.filter(|(_, i)| match i.action {
        Action::Run(op) => s.ops[op].name == name,
        _ => false,
    });
    of_name
        .nth(nth)
        .unwrap_or_else(|| panic!("no {name} {nth}"))
        .0
}
fn op<'a>(s: &'a mut Schedule, name: &str, nth: usize) -> &'a mut Instruction {
    let at = position(s, name, nth);
    &mut s.streams[0][at]
}
fn at(s: &mut Schedule, stream: Stream, index: usize) -> &mut Instruction {
    &mut s.streams[stream as usize][index]
}
/// The `nth` copy that moves a value.
fn copy(s: &Schedule, stream: Stream, value: &str, nth: usize) -> usize {
    let copies = s.stream(stream).iter().enumerate();
    let mut of_value = copies.filter(|(_, i)| {
        let buffer = i.operands.first().map(|o| &s.buffers[o.buffer]);
        buffer
            .and_then(|b| b.value)
            .is_some_and(|v| s.values[v].name == value)
    });
    of_value
        .nth(nth)
        .unwrap_or_else(|| panic!("no copy of {value}"))
        .0
}
fn silence(instruction: &mut Instruction) {
    instruction.action = Action::Barrier;
    instruction.operands.clear();
}
fn repeat(s: &mut Schedule, stream: Stream, index: usize) {
    let mut again = at(s, stream, index).clone();
    again.signals = None;
    s.streams[stream as usize].insert(index + 1, again);
}
/// The operand of an instruction that uses a buffer so, at the latest.
fn operand(i: &Instruction, access: Access) -> usize {
    i.operands
        .iter()
        .rposition(|o| o.access == access)
        .expect("it has one")
}
/// The device buffer that an operator's run writes.
fn written(s: &Schedule, name: &str, nth: usize) -> BufferId {
    let i = &s.streams[0][position(s, name, nth)];
    i.operands[operand(i, Access::Write)].buffer
}
/// The events that copies of a stream signal.
fn signalled(s: &Schedule, stream: Stream) -> Vec<EventId> {
    s.stream(stream).iter().filter_map(|i| i.signals).collect()
}
/// Compute does not wait for what a stream copies any more.
fn do_not_wait(s: &mut Schedule, stream: Stream) {
    let copied = signalled(s, stream);
    let last = s.streams[0].len() - 1;
    for instruction in &mut s.streams[0][..last] {
        instruction.waits.retain(|event| !copied.contains(event));
    }
}

const SHOWN: &[(&str, Change)] = &[
    ("read-before-write", |s| silence(op(s, "embedding", 0))),
    ("missing-event", |s| do_not_wait(s, Stream::H2d)),
    ("use-after-free", |s| {
        let first = s.streams[1][copy(s, Stream::D2h, "x", 0)].operands[1].buffer;
        let other = s.streams[1][copy(s, Stream::D2h, "x", 1)].operands[1].buffer;
        s.buffers[other].offset = s.buffers[first].offset;
    }),
    ("arena-overlap", |s| {
        let (first, other) = (written(s, "qkv_projection", 0), written(s, "attention", 0));
        s.buffers[other].offset = s.buffers[first].offset;
    }),
    ("host-overlap", |s| {
        let update = at(s, Stream::Host, 0).operands.clone();
        let [.., states, weight] = &update[..] else {
            unreachable!()
        };
        s.buffers[weight.buffer].offset = s.buffers[states.buffer].offset;
    }),
    ("source-overwritten", |s| do_not_wait(s, Stream::D2h)),
    ("landing-in-use", |s| {
        let sent = signalled(s, Stream::D2h);
        for instruction in &mut s.streams[2] {
            instruction.waits.retain(|event| sent.contains(event));
        }
    }),
    ("fetch-before-offload", |s| {
        let sent = signalled(s, Stream::D2h);
        for instruction in &mut s.streams[2] {
            instruction.waits.retain(|event| !sent.contains(event));
        }
        do_not_wait(s, Stream::D2h);
    }),
    ("out-of-bounds", |s| {
        s.arena_bytes = Bytes::new(s.arena_bytes.get() / 2)
    }),
    ("wrong-size", |s| {
        let n2 = written(s, "norm", 1);
        s.buffers[n2].bytes = Bytes::new(s.buffers[n2].bytes.get() / 2);
    }),
    ("copy-mismatch", |s| {
        at(s, Stream::D2h, 0).rows = Span::new(0, 2)
    }),
    ("wrong-stream", |s| {
        at(s, Stream::Host, 0).action = Action::Copy
    }),
    ("wrong-space", |s| {
        let gradient = at(s, Stream::Host, 0).operands[0].buffer;
        let sent = s.streams[1]
            .iter()
            .find(|i| i.operands[1].buffer == gradient);
        let source = sent.expect("it was sent").operands[0].buffer;
        at(s, Stream::Host, 0).operands[0].buffer = source;
    }),
    ("wrong-extent", |s| {
        let other = written(s, "norm", 0);
        let second = op(s, "norm", 1);
        let last = second.operands.len() - 1;
        second.operands[last].buffer = other;
    }),
    ("bad-range", |s| {
        op(s, "activation", 0).rows = Span { start: 4, end: 0 }
    }),
    ("outside-lifetime", |s| {
        let qkv = written(s, "qkv_projection", 0);
        let made = s.buffers[qkv].lifetime.start;
        s.buffers[qkv].lifetime = Span::new(made, made + 1);
    }),
    ("unknown-buffer", |s| {
        op(s, "activation", 0).operands[0].buffer = BufferId::from_index(9999)
    }),
    ("unknown-op", |s| {
        op(s, "activation", 0).action = Action::Run(OpId::from_index(9999))
    }),
    ("unknown-value", |s| {
        let n2 = written(s, "norm", 1);
        s.buffers[n2].value = Some(ValueId::from_index(9999));
    }),
    ("unknown-event", |s| {
        at(s, Stream::D2h, 0)
            .waits
            .push(EventId::from_index(99_999))
    }),
    ("unknown-state-group", |s| {
        at(s, Stream::Host, 0).action = Action::HostUpdate(99)
    }),
    ("never-signalled", |s| at(s, Stream::H2d, 0).signals = None),
    ("signalled-twice", |s| {
        at(s, Stream::H2d, 1).signals = at(s, Stream::H2d, 0).signals
    }),
    ("deadlock", |s| {
        let event = at(s, Stream::D2h, 0).signals.expect("copies signal");
        op(s, "embedding", 0).waits.push(event);
    }),
    ("missing-range", |s| silence(op(s, "attention", 1))),
    // Most operators run twice change nothing; this one works in place.
    ("double-range", |s| {
        repeat(s, Stream::Compute, position(s, "rotary_backward", 0))
    }),
    ("contribution-missing", |s| {
        silence(op(s, "up_weight_gradient", 1))
    }),
    ("contribution-twice", |s| {
        repeat(s, Stream::Compute, position(s, "up_weight_gradient", 1))
    }),
    ("contribution-lost", |s| {
        let second = op(s, "up_weight_gradient", 1);
        let last = second.operands.len() - 1;
        second.operands[last].access = Access::Write;
    }),
    ("contribution-unread", |s| {
        at(s, Stream::Host, 0).operands.remove(0);
    }),
    ("contribution-uninitialised", |s| {
        let first = op(s, "up_weight_gradient", 0);
        let last = first.operands.len() - 1;
        first.operands[last].access = Access::Update;
    }),
    ("weights-updated-early", |s| {
        let (update, first) = (position(s, "adamw_update", 0), position(s, "norm", 0));
        let early = s.streams[0].remove(update);
        s.streams[0].insert(first, early);
    }),
    ("stale-weights", |s| {
        let index = copy(s, Stream::H2d, "qkv.weight", 0);
        let last = s.streams[2].iter().rposition(|i| {
            let to = i.operands.get(1).map(|o| &s.buffers[o.buffer]);
            to.is_some_and(|b| b.persistent)
        });
        silence(at(s, Stream::H2d, last.unwrap_or(index)));
    }),
    ("host-update-twice", |s| repeat(s, Stream::Host, 0)),
    ("host-update-missing", |s| silence(at(s, Stream::Host, 0))),
    ("host-update-stray", |s| {
        let device = s.state_groups.iter().position(|g| !g.on_host).expect("one");
        at(s, Stream::Host, 0).action = Action::HostUpdate(device as u32);
    }),
    ("states-not-updated", |s| {
        let update = at(s, Stream::Host, 0);
        let states = update
            .operands
            .iter()
            .position(|o| o.access == Access::Update);
        update.operands.remove(states.expect("it has states"));
    }),
    ("stale-micro-batch", |s| {
        let second = position(s, "cross_entropy", 0);
        let of_second = (second..).find(|&at| {
            let i = &s.streams[0][at];
            let named = matches!(i.action, Action::Run(op) if s.ops[op].name == "cross_entropy");
            named && i.micro_batch == 1
        });
        s.streams[0][of_second.expect("two micro-batches")].micro_batch = 0;
    }),
    ("wrong-version", |s| {
        let at = position(s, "rotary_backward", 0);
        let next = position(s, "qkv_input_gradient", 0);
        s.streams[0].swap(at, next);
    }),
    ("wrong-operand", |s| {
        let other = op(s, "down_weight_gradient", 0).operands[0].buffer;
        op(s, "activation_backward", 0).operands[0].buffer = other;
    }),
    ("extra-operand", |s| {
        let again = op(s, "activation", 0).operands[0];
        op(s, "activation", 0).operands.push(again);
    }),
    ("recompute-changes-state", |s| {
        let at = position(s, "up_weight_gradient", 1);
        let Action::Run(id) = s.streams[0][at].action else {
            unreachable!()
        };
        s.streams[0].insert(at, s.streams[0][at].clone());
        s.streams[0][at].action = Action::Recompute(id);
        s.streams[0][at].signals = None;
    }),
];

/// The same on a schedule whose buffers live all the time, so that nothing else is wrong.
const SHOWN_STRAIGHT: &[(&str, Change)] = &[("gradient-used-early", |s| {
    let update = position(s, "adamw_update", 0);
    let gradient = s.streams[0][update].operands[0].buffer;
    let adds = |i: &Instruction| {
        let mut operands = i.operands.iter();
        operands.any(|o| o.buffer == gradient && o.access == Access::Update)
    };
    let last = s.streams[0][..update].iter().rposition(adds);
    s.streams[0].swap(update, last.expect("it is added to"));
})];

/// What no execution shows: why.
const NOT_SHOWN: &[(&str, &str)] = &[
    (
        "race-across-steps",
        "a run ends every step before the next begins",
    ),
    (
        "unordered-update",
        "an access beside an update is what the other races show too",
    ),
    (
        "over-device-budget",
        "the budget is a promise to others, not this device's memory",
    ),
    (
        "misaligned",
        "a processor reads at any address; a GPU does not",
    ),
    (
        "operands-differ",
        "scratch memory, which operators of the CPU device do not need",
    ),
    (
        "over-host-budget",
        "the budget is a promise to others, not this device's memory",
    ),
    (
        "packed-operand",
        "nothing is packed here; `storage` runs what is",
    ),
    (
        "updated-before-counted",
        "no step is clipped here; `clipping` has those that are",
    ),
];

fn slow(seed: u64) -> CpuOptions {
    let link = LinkSpeed {
        latency: Nanos::new(300_000),
        rate: BytesPerSec::new(1_000_000_000).unwrap(),
    };
    CpuOptions {
        d2h: Some(link),
        h2d: Some(link),
        delays: Some(Delays {
            seed,
            longest: Duration::from_micros(20),
        }),
        host_threads: 1,
        ..CpuOptions::default()
    }
}

/// How it goes wrong; none where it does not in any of a few attempts.
fn symptom(
    bad: Schedule,
    cut: &Cut,
    model: &ebbtide::model::ModelConfig,
    expected: &Outcome,
) -> Option<String> {
    let file = file_of(model, cut, bad);
    (0..4).find_map(|seed| match run(&file, model, slow(seed), 11) {
        Err(error) => Some(format!("error: {}", error.message)),
        Ok((found, _)) => found.difference(expected),
    })
}

#[test]
fn what_is_refused_goes_wrong() {
    let model = model("gqa");
    let cut = Cut::new(Method::AdamW, 2);
    let good = mixed(&problem(&model, &cut));
    let file = file_of(&model, &cut, good.clone());
    let (expected, _) = run(&file, &model, CpuOptions::default(), 11).unwrap();
    assert_eq!(symptom(good.clone(), &cut, &model, &expected), None);
    assert_eq!(check(&straight(&good)), []);
    let mut unseen = Vec::new();
    let plain = straight(&good);
    let planned = SHOWN.iter().map(|change| (&good, change));
    let all = planned.chain(SHOWN_STRAIGHT.iter().map(|change| (&plain, change)));
    for (base, (name, change)) in all {
        let mut bad = base.clone();
        change(&mut bad);
        let violations = check(&bad);
        if !violations.iter().any(|v| v.fault.name() == *name) {
            let found: Vec<&str> = violations.iter().map(|v| v.fault.name()).collect();
            unseen.push(format!("{name}: the checker finds {found:?}"));
        }
        match symptom(bad, &cut, &model, &expected) {
            Some(symptom) => println!("{name:28} {symptom}"),
            None => unseen.push(format!("{name}: executes as if nothing was wrong")),
        }
    }
    assert!(unseen.is_empty(), "{}", unseen.join("\n"));
}

#[test]
fn every_fault_is_tried_or_said_not_to_show() {
    let tried = SHOWN.iter().chain(SHOWN_STRAIGHT).map(|s| s.0);
    let mut named: Vec<&str> = tried.chain(NOT_SHOWN.iter().map(|n| n.0)).collect();
    named.sort_unstable();
    let mut known = Fault::NAMES.to_vec();
    known.sort_unstable();
    assert_eq!(named, known);
}
