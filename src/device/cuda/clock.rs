//! When instructions ran: timed events between them, read once the step has ended.
//!
//! An instruction begins where the one before it on its stream ended, unless the stream waited or
//! signalled in between; so one event for each instruction is the rule, and what an event costs is
//! in the time of the instruction, like the launch. Times are differences from one event to the
//! next along a stream: the driver gives them as f32 milliseconds, which are exact to nanoseconds
//! over short spans and not over a whole step. Events are made once and used in every step.

use super::driver::{Mark, Queue};
use crate::device::{Result, Stream, TraceEntry};

/// The timed events of a step.
#[derive(Default)]
pub(super) struct Clock {
    /// All that were ever made, in use from the front.
    marks: Vec<Mark>,
    used: usize,
    streams: [Vec<Taken>; Stream::ALL.len()],
    /// Whether the last mark of a stream is right before what is queued next.
    fresh: [bool; Stream::ALL.len()],
}

/// An instruction between two marks.
struct Taken {
    instruction: u32,
    /// The mark before it; marks of a stream are in its order.
    start: usize,
    end: usize,
}

impl Clock {
    /// Begins a step at a mark on the first of the queues, for which all others wait.
    pub fn begin(&mut self, queues: &[Queue]) -> Result<()> {
        self.used = 0;
        self.streams.iter_mut().for_each(Vec::clear);
        self.fresh = [false; Stream::ALL.len()];
        let began = self.mark(&queues[0])?;
        let mut others = queues[1..].iter();
        others.try_for_each(|queue| queue.wait(&self.marks[began]))
    }

    /// Says that the stream did something else than instructions.
    pub fn interrupted(&mut self, stream: Stream) {
        self.fresh[stream as usize] = false;
    }

    /// The mark before an instruction that is queued next.
    pub fn before(&mut self, stream: Stream, queue: &Queue) -> Result<usize> {
        let last = self.streams[stream as usize].last();
        match last.filter(|_| self.fresh[stream as usize]) {
            Some(last) => Ok(last.end),
            None => self.mark(queue),
        }
    }

    /// Marks the end of an instruction that began at a mark.
    pub fn after(
        &mut self,
        stream: Stream,
        queue: &Queue,
        instruction: u32,
        start: usize,
    ) -> Result<()> {
        let end = self.mark(queue)?;
        self.fresh[stream as usize] = true;
        self.streams[stream as usize].push(Taken {
            instruction,
            start,
            end,
        });
        Ok(())
    }

    fn mark(&mut self, queue: &Queue) -> Result<usize> {
        if self.used == self.marks.len() {
            self.marks.push(Mark::new(true)?);
        }
        self.marks[self.used].record(queue)?;
        self.used += 1;
        Ok(self.used - 1)
    }

    /// The trace of a step that has ended, by stream and in order.
    pub fn trace(&self) -> Result<Vec<TraceEntry>> {
        let mut trace = Vec::new();
        for (stream, taken) in Stream::ALL.into_iter().zip(&self.streams) {
            // The step's beginning is the first mark.
            let (mut at, mut now) = (0, 0.0);
            for taken in taken {
                for (mark, is_end) in [(taken.start, false), (taken.end, true)] {
                    let start = now;
                    if mark != at {
                        now += self.marks[mark].since(&self.marks[at])?.max(0.0);
                        at = mark;
                    }
                    if is_end {
                        trace.push(TraceEntry {
                            stream,
                            instruction: taken.instruction,
                            start_ns: start.round() as u64,
                            end_ns: now.round() as u64,
                        });
                    }
                }
            }
        }
        Ok(trace)
    }
}
