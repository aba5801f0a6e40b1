//! One random fault in a good schedule.

use super::oracle::{good_outcome, is_harmful};
use super::random::Random;
use ebbtide_solver::check::check;
use ebbtide_solver::ids::{BufferId, EventId, Id};
use ebbtide_solver::schedule::{Access, Action, Instruction, Schedule, Space};
use ebbtide_solver::units::{Bytes, Span};

/// What became of the faults of one kind.
#[derive(Default)]
pub struct Tally {
    pub kind: &'static str,
    /// Refused, and the oracle sees harm.
    pub refused: u32,
    /// Refused, though the oracle cannot show harm: sizes, lifetimes, lucky values.
    pub strict: u32,
    /// Neither minds.
    pub harmless: u32,
    /// Accepted although harm is certain: the seed and the first instruction that differs.
    pub missed: Vec<String>,
}

/// Injects this many faults of each kind into a good schedule, one at a time, and asks the
/// referee and the oracle.
pub fn inject_faults(good: &Schedule, faults: u64) -> Vec<Tally> {
    let outcome = good_outcome(good);
    let tally = |&(kind, inject): &(&'static str, Fault)| {
        let mut tally = Tally {
            kind,
            ..Tally::default()
        };
        for seed in 0..faults {
            let mut bad = good.clone();
            inject(&mut bad, &mut Random::new(seed));
            match (check(&bad).is_empty(), is_harmful(&bad, &outcome)) {
                (false, true) => tally.refused += 1,
                (false, false) => tally.strict += 1,
                (true, false) => tally.harmless += 1,
                (true, true) => tally.missed.push(difference(seed, good, &bad)),
            }
        }
        tally
    };
    KINDS.iter().map(tally).collect()
}

/// Injects one fault of a random kind and says which.
pub fn random_fault(schedule: &mut Schedule, random: &mut Random) -> &'static str {
    let (kind, inject) = random.pick(KINDS);
    inject(schedule, random);
    kind
}

/// The first instruction that a fault changed.
pub fn difference(seed: u64, good: &Schedule, bad: &Schedule) -> String {
    let pairs = good
        .streams
        .iter()
        .flatten()
        .zip(bad.streams.iter().flatten());
    match pairs.into_iter().find(|(a, b)| a != b) {
        Some((a, b)) => format!("seed {seed}: {a:?}\n  became {b:?}"),
        None => format!("seed {seed}: buffers"),
    }
}

type Fault = fn(&mut Schedule, &mut Random);

/// The kinds of fault, with how each is made. A fault may turn out to change nothing.
const KINDS: &[(&str, Fault)] = &[
    ("drop a wait", |s, r| {
        if let Some(i) = any(s, r, |i| !i.waits.is_empty()) {
            let which = r.below(i.waits.len());
            i.waits.remove(which);
        }
    }),
    ("wait for another event", |s, r| {
        let event = EventId::from_index(r.below(s.events.max(1) as usize));
        if let Some(i) = any(s, r, |i| !i.waits.is_empty()) {
            let which = r.below(i.waits.len());
            i.waits[which] = event;
        }
    }),
    ("drop a signal", |s, r| {
        if let Some(i) = any(s, r, |i| i.signals.is_some()) {
            i.signals = None;
        }
    }),
    ("swap two neighbours", |s, r| {
        let list = stream(s, r);
        let at = r.below(list.len().max(2) - 1);
        if at + 1 < list.len() {
            list.swap(at, at + 1);
        }
    }),
    ("move an instruction", |s, r| {
        let list = stream(s, r);
        let moved = list.remove(r.below(list.len()));
        list.insert(r.below(list.len() + 1), moved);
    }),
    ("silence an instruction", |s, r| {
        if let Some(i) = any(s, r, |i| i.action != Action::Barrier) {
            i.action = Action::Barrier;
            i.operands.clear();
        }
    }),
    ("drop an instruction", |s, r| {
        let list = stream(s, r);
        list.remove(r.below(list.len()));
    }),
    ("repeat an instruction", |s, r| {
        let list = stream(s, r);
        let at = r.below(list.len());
        let mut again = list[at].clone();
        again.signals = None;
        let after = at + 1 + r.below(list.len() - at);
        list.insert(after, again);
    }),
    ("give a buffer the address of another", |s, r| {
        let (a, b) = (buffer(s, r), buffer(s, r));
        s.buffers[a].offset = s.buffers[b].offset;
    }),
    ("shift a buffer", |s, r| {
        let id = buffer(s, r);
        let step = if s.buffers[id].space == Space::Device {
            512
        } else {
            64
        };
        let b = &mut s.buffers[id];
        let by = step * (1 + r.below(4) as u64);
        b.offset = Bytes::new(match r.below(2) {
            0 => b.offset.get().saturating_sub(by),
            _ => b.offset.get().saturating_add(by),
        });
    }),
    ("shrink a buffer", |s, r| {
        let id = buffer(s, r);
        s.buffers[id].bytes = Bytes::new(s.buffers[id].bytes.get() / 2);
    }),
    ("shorten a lifetime", |s, r| {
        let id = buffer(s, r);
        let Span { start, end } = s.buffers[id].lifetime;
        let cut = start + r.next() % (end.saturating_sub(start) + 1);
        s.buffers[id].lifetime = Span { start, end: cut };
    }),
    ("forget a buffer after the step", |s, r| {
        let id = buffer(s, r);
        s.buffers[id].persistent = !s.buffers[id].persistent;
    }),
    ("change rows", |s, r| {
        let other = any(s, r, |_| true).map(|i| i.rows);
        let all = Span::new(0, s.tokens);
        if let Some(i) = any(s, r, |i| i.action != Action::Barrier) {
            let Span { start, end } = i.rows;
            let half = Span {
                start,
                end: start + end.saturating_sub(start) / 2,
            };
            i.rows = r.pick(&[half, all, other.unwrap_or(all)]);
        }
    }),
    ("change groups", |s, r| {
        let other = any(s, r, |_| true).map(|i| i.groups);
        if let (Some(i), Some(groups)) = (any(s, r, |i| i.action != Action::Barrier), other) {
            i.groups = groups;
        }
    }),
    ("redirect an operand", |s, r| {
        let id = buffer(s, r);
        if let Some(i) = any(s, r, |i| !i.operands.is_empty()) {
            let which = r.below(i.operands.len());
            i.operands[which].buffer = id;
        }
    }),
    ("change an access", |s, r| {
        if let Some(i) = any(s, r, |i| !i.operands.is_empty()) {
            let which = r.below(i.operands.len());
            i.operands[which].access = r.pick(&[Access::Read, Access::Write, Access::Update]);
        }
    }),
    ("drop an operand", |s, r| {
        if let Some(i) = any(s, r, |i| !i.operands.is_empty()) {
            let which = r.below(i.operands.len());
            i.operands.remove(which);
        }
    }),
];

/// A stream that has instructions.
fn stream<'a>(s: &'a mut Schedule, r: &mut Random) -> &'a mut Vec<Instruction> {
    let full: Vec<usize> = (0..4).filter(|&i| !s.streams[i].is_empty()).collect();
    &mut s.streams[r.pick(&full)]
}

/// A random instruction of this sort, short streams as likely as long ones.
fn any<'a>(
    s: &'a mut Schedule,
    r: &mut Random,
    sort: fn(&Instruction) -> bool,
) -> Option<&'a mut Instruction> {
    let full: Vec<usize> = (0..4).filter(|&i| s.streams[i].iter().any(sort)).collect();
    if full.is_empty() {
        return None;
    }
    let mut found: Vec<_> = s.streams[r.pick(&full)]
        .iter_mut()
        .filter(|i| sort(i))
        .collect();
    let which = r.below(found.len());
    Some(found.swap_remove(which))
}

fn buffer(s: &Schedule, r: &mut Random) -> BufferId {
    BufferId::from_index(r.below(s.buffers.len()))
}
