//! What a schedule takes: a discrete-event simulation in integer nanoseconds.
//!
//! Four streams run in order and wait for events. Compute progresses at full speed, or slowed by
//! the machine's millionths while copies run beside it; a copy takes what it takes alone, or
//! longer by the ratio of the rates measured alone and with both directions busy. Between two
//! events every rate is
//! constant, so time advances from event to event; nothing is sampled. No clock, no randomness.
//!
//! A copy that packs or unpacks is a kernel on the device beside it: whatever bytes that reads and
//! writes, at the machine's rate of packing, compute does without. Two copies that want more than
//! all of the device together share it.
//!
//! Work is kept in millionths of a nanosecond of undisturbed time, so rates are exact integers.

use std::fmt;

use crate::ids::Id;
use crate::machine::Machine;
use crate::schedule::{Action, Instruction, Schedule, Stream};
use crate::units::{BytesPerSec, Instant, Nanos};

/// When everything happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Timeline {
    /// Start and end of every instruction, by stream.
    pub spans: [Vec<(Instant, Instant)>; 4],
    /// Predicted starts on the compute stream by position, without the opening barrier; the last
    /// entry is the end of the step. What the builder places copies by.
    pub compute_starts: Vec<u64>,
    /// The whole step.
    pub step: Nanos,
    /// Time in which an operator ran for the first time.
    pub compute: Nanos,
    /// Time in which one ran again.
    pub recompute: Nanos,
    /// Time in which compute packed what stays so, and unpacked it.
    pub packing: Nanos,
    /// Time by which copies beside it slowed compute, by what they pack and unpack too.
    pub slowed: Nanos,
    /// Time in which compute waited, before its last operator ended.
    pub stall: Nanos,
    /// Time after the last operator, for copies and the host optimizer.
    pub tail: Nanos,
    /// Busy time of every stream.
    pub busy: [Nanos; 4],
}

/// Why a schedule cannot be simulated.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Stuck {
    /// Streams wait for one another, or for an event that nobody signals.
    Deadlock {
        /// The first stream that cannot go on.
        stream: Stream,
        /// Its instruction.
        index: usize,
    },
    /// Time does not fit in 64 bits.
    Overflow,
}

impl fmt::Display for Stuck {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Deadlock { stream, index } => write!(
                f,
                "cannot be simulated: instruction {index} of {stream:?} waits for ever"
            ),
            Self::Overflow => write!(
                f,
                "cannot be simulated: its durations add up to more than 64 bits"
            ),
        }
    }
}

const MILLION: u64 = 1_000_000;

/// The instruction that a stream is in.
#[derive(Clone, Copy)]
struct Running {
    /// Undisturbed time that is left, in millionths of a nanosecond.
    left: u128,
    /// When it started.
    start: u64,
    /// Whether it is an operator that memory bounds, or packs.
    memory_bound: bool,
    /// Millionths of the device that packing within a copy takes.
    takes: u64,
}

/// Simulates a schedule that is known to end.
///
/// # Panics
/// When it does not end; [`try_simulate`] reports that.
pub fn simulate(schedule: &Schedule) -> Timeline {
    match try_simulate(schedule) {
        Ok(timeline) => timeline,
        Err(stuck) => panic!("a built schedule cannot be simulated: {stuck:?}"),
    }
}

/// Simulates any schedule.
pub fn try_simulate(schedule: &Schedule) -> Result<Timeline, Stuck> {
    let mut signalled = vec![false; schedule.events as usize];
    let mut next = [0usize; 4];
    let mut running: [Option<Running>; 4] = [None; 4];
    let mut spans: [Vec<(Instant, Instant)>; 4] = Default::default();
    let mut now = 0u64;
    loop {
        start_ready(schedule, &signalled, &next, &mut running, now);
        let rates = rates(schedule, &running);
        let Some(advance) = shortest(&running, &rates) else {
            break;
        };
        now = now.checked_add(advance).ok_or(Stuck::Overflow)?;
        for stream in 0..4 {
            let Some(run) = &mut running[stream] else {
                continue;
            };
            run.left = run
                .left
                .saturating_sub(u128::from(advance) * u128::from(rates[stream]));
            if run.left == 0 {
                spans[stream].push((Instant::from_nanos(run.start), Instant::from_nanos(now)));
                let instruction = &schedule.streams[stream][next[stream]];
                if let Some(flag) = instruction
                    .signals
                    .and_then(|e| signalled.get_mut(e.index()))
                {
                    *flag = true;
                }
                next[stream] += 1;
                running[stream] = None;
            }
        }
    }
    for stream in Stream::ALL {
        let index = next[stream as usize];
        if index < schedule.stream(stream).len() {
            return Err(Stuck::Deadlock { stream, index });
        }
    }
    Ok(summarise(schedule, spans))
}

fn start_ready(
    schedule: &Schedule,
    signalled: &[bool],
    next: &[usize; 4],
    running: &mut [Option<Running>; 4],
    now: u64,
) {
    for stream in 0..4 {
        if running[stream].is_some() {
            continue;
        }
        let Some(instruction) = schedule.streams[stream].get(next[stream]) else {
            continue;
        };
        let ready = instruction
            .waits
            .iter()
            .all(|e| signalled.get(e.index()).copied().unwrap_or(false));
        if ready {
            let left = u128::from(instruction.duration.get()) * u128::from(MILLION);
            let memory_bound = match instruction.action {
                Action::Run(op) | Action::Recompute(op) => {
                    schedule.ops.get(op).is_some_and(|op| op.memory_bound)
                }
                action => action == Action::Copy,
            };
            running[stream] = Some(Running {
                left,
                start: now,
                memory_bound,
                takes: taken(schedule, stream, instruction),
            });
        }
    }
}

/// Millionths of the device that a copy takes beside compute, because it packs or unpacks.
fn taken(schedule: &Schedule, stream: usize, copy: &Instruction) -> u64 {
    if stream == Stream::Compute as usize || copy.action != Action::Copy {
        return 0;
    }
    let bytes = |at: usize| {
        let buffer = schedule.buffers.get(copy.operands.get(at)?.buffer)?;
        Some(buffer.bytes)
    };
    let (Some(from), Some(to)) = (bytes(0), bytes(1)) else {
        return 0;
    };
    let packing = u128::from(schedule.machine.packing_time(from, to).get());
    let share = (packing * u128::from(MILLION)).div_ceil(copy.duration.get().max(1).into());
    u64::try_from(share).unwrap_or(MILLION).min(MILLION)
}

/// Millionths of undisturbed time that pass in a nanosecond, by stream.
fn rates(schedule: &Schedule, running: &[Option<Running>; 4]) -> [u64; 4] {
    let Machine {
        links,
        host_adam,
        host_memory,
        ..
    } = schedule.machine;
    let busy = |stream: Stream| running[stream as usize].is_some_and(|r| r.left > 0);
    let (out, back) = (busy(Stream::D2h), busy(Stream::H2d));
    let slowdown = match running[Stream::Compute as usize] {
        Some(Running {
            memory_bound: true, ..
        }) => schedule.machine.elementwise_slowdown,
        _ => schedule.machine.matmul_slowdown,
    };
    let stretched = slowdown.stretch(Nanos::new(MILLION), out, back);
    let taken = [Stream::D2h, Stream::H2d].map(|s| running[s as usize].map_or(0, |r| r.takes));
    let taken: u64 = taken.iter().sum();
    let compute = (MILLION * MILLION / stretched.get()).saturating_sub(taken);
    let whole = taken.max(MILLION);
    let share = |alone: BytesPerSec, both: BytesPerSec| {
        if out && back {
            part(both.get(), alone.get()).min(MILLION * MILLION / whole)
        } else {
            MILLION
        }
    };
    let (d2h, h2d) = (
        share(links.d2h.rate, links.both.d2h),
        share(links.h2d.rate, links.both.h2d),
    );
    // What copies leave of host memory's bandwidth is the optimizer's.
    let host = host_memory.map_or(MILLION, |memory| {
        let copied = |on: bool, rate: BytesPerSec, share: u64| {
            if on {
                rate.get() / MILLION * share
            } else {
                0
            }
        };
        let taken = copied(out, links.d2h.rate, d2h) + copied(back, links.h2d.rate, h2d);
        let wanted = host_adam
            .params_per_s
            .get()
            .saturating_mul(host_adam.bytes_per_param.get());
        part(memory.get().saturating_sub(taken), wanted)
    });
    [compute, d2h, h2d, host]
}

/// `rate` in millionths of `of`: at least one, at most all.
fn part(rate: u64, of: u64) -> u64 {
    let millionths = u128::from(rate) * u128::from(MILLION) / u128::from(of.max(1));
    u64::try_from(millionths)
        .unwrap_or(MILLION)
        .clamp(1, MILLION)
}

/// Time until the next instruction ends; none when nothing runs.
fn shortest(running: &[Option<Running>; 4], rates: &[u64; 4]) -> Option<u64> {
    running
        .iter()
        .zip(rates)
        .filter(|(_, &rate)| rate > 0)
        .filter_map(|(run, &rate)| Some(run.as_ref()?.left.div_ceil(u128::from(rate))))
        .min()
        .map(|t| u64::try_from(t).unwrap_or(u64::MAX))
}

fn summarise(schedule: &Schedule, spans: [Vec<(Instant, Instant)>; 4]) -> Timeline {
    let busy = [0, 1, 2, 3].map(|s| spans[s].iter().map(|&(from, to)| to - from).sum::<Nanos>());
    let compute_stream = schedule.stream(Stream::Compute);
    let of = |which: fn(&Instruction) -> bool| -> Nanos {
        compute_stream
            .iter()
            .filter(|i| which(i))
            .map(|i| i.duration)
            .sum()
    };
    let compute = of(|i| matches!(i.action, Action::Run(_)));
    let recompute = of(|i| matches!(i.action, Action::Recompute(_)));
    let packing = of(|i| i.action == Action::Copy);
    let last_op = compute_stream
        .iter()
        .rposition(|i| i.action != Action::Barrier);
    let ops_end = last_op.map_or(Instant::START, |i| spans[0][i].1);
    let step = spans
        .iter()
        .filter_map(|s| s.last())
        .map(|&(_, end)| end.since_start())
        .max();
    let step = step.unwrap_or(Nanos::ZERO);
    let busy_before_tail: Nanos = spans[0]
        .iter()
        .take(last_op.map_or(0, |i| i + 1))
        .map(|&(from, to)| to - from)
        .sum();
    Timeline {
        compute_starts: spans[0]
            .iter()
            .skip(1)
            .map(|&(from, _)| from.get())
            .collect(),
        step,
        compute,
        recompute,
        packing,
        slowed: busy_before_tail.saturating_sub(compute + recompute + packing),
        stall: ops_end.since_start() - busy_before_tail,
        tail: step - ops_end.since_start(),
        busy,
        spans,
    }
}

/// Bytes that the copies of one stream move.
pub fn copied_bytes(schedule: &Schedule, stream: Stream) -> crate::units::Bytes {
    schedule
        .stream(stream)
        .iter()
        .filter(|i| i.action == Action::Copy)
        .filter_map(|i| {
            let buffers = i
                .operands
                .iter()
                .filter_map(|o| schedule.buffers.get(o.buffer));
            buffers.map(|b| b.bytes).min()
        })
        .sum()
}
