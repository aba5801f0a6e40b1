//! When copies start and when compute waits for them.
//!
//! In: a [`Draft`] and the predicted start of every position on the compute stream. Out: for every
//! departure the position at which its device bytes are free again, for every arrival the position
//! from which its landing buffer is taken; with them, every buffer's lifetime.
//!
//! Positions on the compute stream are the clock of all memory: a departure *retires* at a position
//! at which compute waits for the copy, an arrival is *issued* after the operator before its
//! position has ended. So lifetimes are facts of the schedule, whatever the copies' speed turns out
//! to be; predicted times only choose good positions.
//!
//! Departures go in the order in which their buffers are complete, retire when they are predicted
//! to have ended, and earlier, with a stall, where memory is needed. Arrivals go in the order in
//! which they are needed, each as late as the link allows with one copy's time to spare, later
//! where memory forbids.

use super::draft::{Draft, DraftBuffer};
use crate::ids::StepId;
use crate::problem::Problem;
use crate::units::{Bytes, Span};

/// The places of all copies, and every buffer's lifetime.
#[derive(Debug)]
pub struct Transfers {
    /// Departures in the order of their stream.
    pub out_order: Vec<usize>,
    /// For every departure: before this position compute waits for it.
    pub retired: Vec<usize>,
    /// Arrivals in the order of their stream.
    pub in_order: Vec<usize>,
    /// For every arrival: it starts once everything before this position has ended.
    pub issued: Vec<usize>,
    /// For every departure: its predicted end, in nanoseconds.
    pub departed: Vec<u64>,
    /// Predicted start of every position with the stalls that memory forces, in nanoseconds.
    pub clock: Vec<u64>,
    /// For every buffer: the positions between which its bytes are taken.
    pub lifetimes: Vec<Span>,
    /// The most bytes alive at any position.
    pub peak: Bytes,
    /// Where that is.
    pub peak_position: usize,
}

/// Memory does not suffice, whatever waits for whatever.
#[derive(Debug, Clone)]
pub struct Overflow {
    /// Where most is missing.
    pub position: usize,
    /// The bytes that must coexist there.
    pub needed: Bytes,
    /// For every step in which memory does not suffice: the most that is missing.
    pub missing: Vec<(StepId, Bytes)>,
}

/// Finds places for all copies that keep within `budget`. `clock[p]` is the predicted start of
/// position `p`, in nanoseconds; one entry more than there are instructions.
pub fn place_transfers(
    problem: &Problem,
    draft: &Draft,
    clock: &[u64],
    budget: Bytes,
) -> Result<Transfers, Overflow> {
    let mut lifetimes: Vec<Span> = draft
        .buffers
        .iter()
        .map(|b| lifetime(b, draft.instructions.len()))
        .collect();
    let outward = retire(problem, draft, clock, budget.get(), &mut lifetimes)?;
    let (in_order, issued) = issue(problem, draft, &outward, budget.get(), &mut lifetimes);
    let usage = usage(draft, &lifetimes);
    let (peak_position, peak) = usage
        .iter()
        .copied()
        .enumerate()
        .max_by_key(|&(p, u)| (u, usize::MAX - p))
        .unwrap_or((0, 0));
    Ok(Transfers {
        out_order: outward.order,
        retired: outward.retired,
        in_order,
        issued,
        departed: outward.ended,
        clock: outward.clock,
        lifetimes,
        peak: Bytes::new(peak),
        peak_position,
    })
}

/// From first to last use on the compute stream.
fn lifetime(buffer: &DraftBuffer, positions: usize) -> Span {
    if buffer.persistent {
        return Span::new(0, positions.max(1) as u64);
    }
    if buffer.first == usize::MAX {
        return Span::new(0, 0);
    }
    Span::new(buffer.first as u64, buffer.last as u64 + 1)
}

/// Bytes alive at every position.
fn usage(draft: &Draft, lifetimes: &[Span]) -> Vec<u64> {
    let mut change = vec![0i128; draft.instructions.len() + 2];
    for (buffer, life) in draft.buffers.iter().zip(lifetimes) {
        if !life.is_empty() {
            change[life.start as usize] += i128::from(aligned(buffer.bytes));
            change[life.end as usize] -= i128::from(aligned(buffer.bytes));
        }
    }
    change.pop();
    let mut live = 0i128;
    change
        .into_iter()
        .map(|c| {
            live += c;
            u64::try_from(live).expect("lifetimes balance")
        })
        .collect()
}

/// Sizes are counted as the arena places them.
fn aligned(bytes: Bytes) -> u64 {
    bytes.align_up(super::ALIGNMENT).get()
}

/// A departure retires this many lengths after its predicted end unless memory is short: a wait for
/// a copy that is late costs time, memory that is not needed costs nothing.
const SPARE: u64 = 4;

/// What the sweep over departures finds.
struct Outward {
    order: Vec<usize>,
    retired: Vec<usize>,
    /// Predicted start of every position with the stalls that memory forces.
    clock: Vec<u64>,
    /// Predicted end of every departure.
    ended: Vec<u64>,
    /// Its predicted length.
    length: Vec<u64>,
}

fn retire(
    problem: &Problem,
    draft: &Draft,
    clock: &[u64],
    budget: u64,
    lifetimes: &mut [Span],
) -> Result<Outward, Overflow> {
    let positions = draft.instructions.len();
    let buffer_of = |d: usize| &draft.buffers[draft.departures[d].buffer];
    let mut order: Vec<usize> = (0..draft.departures.len()).collect();
    order.sort_by_key(|&d| (buffer_of(d).last_write, d));
    // What departs is alive until it retires, which the sweep decides: let it end never at first.
    for departure in &draft.departures {
        lifetimes[departure.buffer].end = positions as u64 + 1;
    }
    let mut live = usage(draft, lifetimes);
    let mut outward = Outward {
        retired: vec![positions; order.len()],
        ended: vec![0; order.len()],
        length: vec![0; order.len()],
        clock: Vec::with_capacity(positions + 1),
        order,
    };
    let (mut stall, mut link_free, mut freed, mut next) = (0u64, 0u64, 0u64, 0usize);
    let mut pending: Vec<usize> = Vec::new();
    // When the first that is pending retires, though memory be free.
    let mut due = u64::MAX;
    let mut over: Vec<(usize, u64)> = Vec::new();
    for position in 0..=positions {
        let now = clock[position] + stall;
        while next < outward.order.len() && buffer_of(outward.order[next]).last_write < position {
            let departure = outward.order[next];
            let bytes = draft.departing(&draft.departures[departure]);
            let plain = buffer_of(departure).bytes;
            let machine = &problem.machine;
            let length = machine.copy_time(machine.links.d2h, plain, bytes).get();
            link_free = link_free.max(now) + length;
            outward.ended[departure] = link_free;
            outward.length[departure] = length;
            due = due.min(link_free + SPARE * length);
            pending.push(departure);
            next += 1;
        }
        let mut wait = now;
        let short = |freed| live[position] - freed > budget && position < positions;
        if short(freed) || due <= now {
            due = u64::MAX;
            pending.retain(|&d| {
                let late = outward.ended[d] + SPARE * outward.length[d];
                let leaves = buffer_of(d).last < position && (short(freed) || late <= now);
                if leaves {
                    wait = wait.max(outward.ended[d]);
                    freed += aligned(buffer_of(d).bytes);
                    outward.retired[d] = position;
                    lifetimes[draft.departures[d].buffer].end = position as u64;
                } else {
                    due = due.min(late);
                }
                !leaves
            });
        }
        live[position] -= freed;
        if live[position] > budget && position < positions {
            over.push((position, live[position]));
        }
        stall += wait - now;
        outward.clock.push(clock[position] + stall);
    }
    if let Some(&(position, needed)) = over.iter().max_by_key(|o| o.1) {
        return Err(Overflow {
            position,
            needed: Bytes::new(needed),
            missing: missing(draft, budget, &over),
        });
    }
    for &d in &pending {
        lifetimes[draft.departures[d].buffer].end = positions as u64;
    }
    Ok(outward)
}

fn missing(draft: &Draft, budget: u64, over: &[(usize, u64)]) -> Vec<(StepId, Bytes)> {
    let mut steps: Vec<(StepId, Bytes)> = Vec::new();
    for &(position, needed) in over {
        let step = draft.instructions[position].step;
        let short = Bytes::new(needed - budget);
        match steps.last_mut() {
            Some((last, most)) if *last == step => *most = short.max(*most),
            _ => steps.push((step, short)),
        }
    }
    steps
}

/// Chooses the start of every arrival and extends its buffer's lifetime to it.
fn issue(
    problem: &Problem,
    draft: &Draft,
    outward: &Outward,
    budget: u64,
    lifetimes: &mut [Span],
) -> (Vec<usize>, Vec<usize>) {
    let used = |a: usize| draft.buffers[draft.arrivals[a].buffer].first;
    let mut order: Vec<usize> = (0..draft.arrivals.len())
        .filter(|&a| used(a) != usize::MAX)
        .collect();
    order.sort_by_key(|&a| (used(a), a));
    let mut latest = latest_starts(problem, draft, outward, &order);
    let mut live = usage(draft, lifetimes);
    let mut issued = vec![0; draft.arrivals.len()];
    let mut earliest = 0;
    for &arrival in &order {
        let buffer = draft.arrivals[arrival].buffer;
        let bytes = aligned(draft.buffers[buffer].bytes);
        let start = latest.pop().expect("one start for every arrival");
        let wanted = outward
            .clock
            .partition_point(|&t| t <= start)
            .saturating_sub(1);
        let wanted = wanted.max(earliest).min(used(arrival));
        let mut at = used(arrival);
        while at > wanted && live[at - 1] + bytes <= budget {
            at -= 1;
            live[at] += bytes;
        }
        issued[arrival] = at;
        earliest = at;
        lifetimes[buffer].start = at as u64;
    }
    (order, issued)
}

/// The latest start of every arrival, in reverse order of use, that lets it and all after it come
/// in time, with one copy's time to spare.
fn latest_starts(problem: &Problem, draft: &Draft, outward: &Outward, order: &[usize]) -> Vec<u64> {
    let contended = contended(draft);
    let mut next_start = u64::MAX;
    order
        .iter()
        .rev()
        .map(|&arrival| {
            let buffer = &draft.buffers[draft.arrivals[arrival].buffer];
            let link = problem.machine.links.h2d;
            let bytes = draft.arriving(&draft.arrivals[arrival]);
            let alone = problem.machine.copy_time(link, buffer.bytes, bytes);
            let length = if contended {
                link.latency + bytes / problem.machine.links.both.h2d
            } else {
                alone
            };
            let length = length.max(alone).get();
            let start = outward.clock[buffer.first]
                .min(next_start)
                .saturating_sub(length);
            next_start = start;
            let source = draft.arrivals[arrival]
                .departure
                .map_or(0, |d| outward.ended[d]);
            start.saturating_sub(length).max(source)
        })
        .collect()
}

/// Whether much leaves while things arrive: weights or gradients in backward.
fn contended(draft: &Draft) -> bool {
    let arrivals = draft.arrivals.iter();
    let fetched: Bytes = arrivals.clone().map(|a| draft.arriving(a)).sum();
    let swapped = arrivals.filter(|a| a.departure.is_some());
    let swapped: Bytes = swapped.map(|a| draft.arriving(a)).sum();
    let departures = draft.departures.iter();
    let left: Bytes = departures.map(|d| draft.departing(d)).sum();
    let beside = left.saturating_sub(swapped);
    beside * 10 > fetched
}
