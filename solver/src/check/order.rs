//! Happens-before: which instruction has ended when another starts.
//!
//! In: stream order and events. Out: one order in which the instructions can run, and for each of
//! two consecutive steps the *clock* of every instruction: how many instructions of each stream
//! have ended before it starts (Fidge 1988, Mattern 1989). `a` happens before `b` if and only if
//! the clock of `b` counts `a`. Events are new in every step; streams simply continue.

use super::violation::{Fault, Findings, Place};
use crate::ids::{EventId, Id};
use crate::schedule::{Schedule, Stream};

/// How many instructions of every stream have ended.
pub(super) type Clock = [u32; 4];

/// An instruction of two steps: its stream and its position on it, the second step's positions
/// following those of the first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Moment {
    pub(super) stream: u8,
    pub(super) position: u32,
}

impl Moment {
    /// Whether it has ended when an instruction with this clock starts.
    pub(super) fn before(self, clock: &Clock) -> bool {
        self.position < clock[usize::from(self.stream)]
    }
}

/// The order of two steps.
pub(super) struct Order {
    /// The instructions of one step in an order in which they can run; copies as early as they can.
    pub(super) sequence: Vec<(Stream, usize)>,
    /// The clock of every instruction by stream and position, both steps.
    clocks: [Vec<Clock>; 4],
    lengths: [usize; 4],
}

impl Order {
    pub(super) fn clock(&self, moment: Moment) -> &Clock {
        &self.clocks[usize::from(moment.stream)][moment.position as usize]
    }
    pub(super) fn moment(&self, step: usize, stream: Stream, index: usize) -> Moment {
        let position = step * self.lengths[stream as usize] + index;
        Moment {
            stream: stream as u8,
            position: u32::try_from(position).expect("limited"),
        }
    }
    pub(super) fn place(&self, moment: Moment) -> Place {
        let stream = usize::from(moment.stream);
        let position = moment.position as usize;
        let step = usize::from(position >= self.lengths[stream]);
        Place {
            step: 1 + step as u8,
            stream: Stream::ALL[stream],
            index: position - step * self.lengths[stream],
        }
    }
}

/// The instructions that signal what each instruction waits for.
struct Signallers {
    /// By stream, for every instruction the end of its part of `all`.
    ends: [Vec<usize>; 4],
    /// By stream.
    all: [Vec<(u8, u32)>; 4],
}

impl Signallers {
    fn of(&self, stream: usize, index: usize) -> &[(u8, u32)] {
        let start = if index == 0 {
            0
        } else {
            self.ends[stream][index - 1]
        };
        &self.all[stream][start..self.ends[stream][index]]
    }
}

fn signallers(schedule: &Schedule, findings: &mut Findings) -> Signallers {
    let known = |event: EventId| event.index() < schedule.events as usize;
    let place = |stream, index| {
        Some(Place {
            step: 1,
            stream,
            index,
        })
    };
    let mut signals: Vec<(EventId, u8, u32)> = Vec::new();
    for stream in Stream::ALL {
        for (index, instruction) in schedule.stream(stream).iter().enumerate() {
            match instruction.signals {
                Some(event) if known(event) => signals.push((event, stream as u8, index as u32)),
                Some(event) => {
                    findings.add(
                        Fault::UnknownEvent { event },
                        place(stream, index),
                        None,
                        None,
                    );
                }
                None => {}
            }
        }
    }
    signals.sort_unstable();
    for pair in signals.windows(2).filter(|pair| pair[0].0 == pair[1].0) {
        let at = |(_, s, i): (EventId, u8, u32)| place(Stream::ALL[s as usize], i as usize);
        findings.add(
            Fault::SignalledTwice { event: pair[1].0 },
            at(pair[1]),
            None,
            at(pair[0]),
        );
    }
    let mut found = Signallers {
        ends: Default::default(),
        all: Default::default(),
    };
    for stream in Stream::ALL {
        let s = stream as usize;
        for (index, instruction) in schedule.stream(stream).iter().enumerate() {
            for &event in &instruction.waits {
                let first = signals.partition_point(|&(e, ..)| e < event);
                match signals.get(first) {
                    Some(&(e, stream, index)) if e == event => found.all[s].push((stream, index)),
                    _ => {
                        let fault = match known(event) {
                            true => Fault::NeverSignalled { event },
                            false => Fault::UnknownEvent { event },
                        };
                        findings.add(fault, place(stream, index), None, None);
                    }
                }
            }
            found.ends[s].push(found.all[s].len());
        }
    }
    found
}

/// The order of two steps; nothing when instructions wait for one another for ever.
pub(super) fn order(schedule: &Schedule, findings: &mut Findings) -> Option<Order> {
    let lengths = Stream::ALL.map(|stream| schedule.stream(stream).len());
    let signallers = signallers(schedule, findings);
    let sequence = sequence(lengths, &signallers, findings)?;
    let mut clocks = lengths.map(|length| vec![[0; 4]; 2 * length]);
    for step in 0..2 {
        for &(stream, index) in &sequence {
            let s = stream as usize;
            let position = step * lengths[s] + index;
            let mut clock = match position {
                0 => [0; 4],
                _ => clocks[s][position - 1],
            };
            clock[s] = position as u32;
            for &(other, at) in signallers.of(s, index) {
                let o = usize::from(other);
                let ended = step * lengths[o] + at as usize;
                for (mine, theirs) in clock.iter_mut().zip(clocks[o][ended]) {
                    *mine = (*mine).max(theirs);
                }
                clock[o] = clock[o].max(ended as u32 + 1);
            }
            clocks[s][position] = clock;
        }
    }
    Some(Order {
        sequence,
        clocks,
        lengths,
    })
}

/// One step in an order in which it can run: copies as early as possible, so that a copy that
/// should have waited is met before what it should have waited for.
fn sequence(
    lengths: [usize; 4],
    signallers: &Signallers,
    findings: &mut Findings,
) -> Option<Vec<(Stream, usize)>> {
    let mut next = [0usize; 4];
    let mut sequence = Vec::with_capacity(lengths.iter().sum());
    loop {
        let before = sequence.len();
        for stream in [Stream::D2h, Stream::Host, Stream::H2d, Stream::Compute] {
            let s = stream as usize;
            while next[s] < lengths[s] {
                let mut waits = signallers.of(s, next[s]).iter();
                if !waits.all(|&(o, at)| (at as usize) < next[usize::from(o)]) {
                    break;
                }
                sequence.push((stream, next[s]));
                next[s] += 1;
                if stream == Stream::Compute {
                    break;
                }
            }
        }
        if sequence.len() == before {
            break;
        }
    }
    let stuck = Stream::ALL
        .into_iter()
        .filter(|&s| next[s as usize] < lengths[s as usize]);
    let mut deadlock = false;
    for stream in stuck {
        let index = next[stream as usize];
        let other = signallers
            .of(stream as usize, index)
            .iter()
            .find(|&&(o, at)| at as usize >= next[usize::from(o)])
            .map(|&(o, at)| Place {
                step: 1,
                stream: Stream::ALL[usize::from(o)],
                index: at as usize,
            });
        findings.add(
            Fault::Deadlock,
            Some(Place {
                step: 1,
                stream,
                index,
            }),
            None,
            other,
        );
        deadlock = true;
    }
    (!deadlock).then_some(sequence)
}
