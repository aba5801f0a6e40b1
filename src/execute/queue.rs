//! The commands of a step in an order in which a device can queue them.
//!
//! Streams run side by side, but commands are queued one after the other, and a wait can only be
//! queued behind the signal that it waits for. So streams are merged: behind every instruction of
//! the compute stream, each of the others goes on until it waits for something that has not been
//! queued yet. A driver takes some thousand commands of a stream and then lets the caller wait: had
//! all of compute been queued first, copies would begin too late. If no stream can go on, the
//! schedule would hang: an error here, before anything runs.
//!
//! Where buffers begin and end is said to the device on the compute stream, whose positions are the
//! clock of all memory. What no copy sends away ends right behind the instruction that used it
//! last, before that instruction signals anything: a copy into the same bytes may wait for just
//! that signal. What a copy sends away ends where compute waits for that copy. A fetch that is
//! issued at that very place waits for the copy itself and not for compute, so such bytes are not
//! filled with NaNs, which could come after what was fetched.

use std::collections::{BTreeMap, BTreeSet};

use ebbtide_solver::ids::{BufferId, EventId, Id};
use ebbtide_solver::schedule::{
    Access, Action, Buffer, Instruction, Schedule, Space, Stream, GRADIENT_NORM,
};
use ebbtide_solver::units::Span;

use super::bind::{copied, operators};
use super::program::Program;
use crate::device::packed::Packing;
use crate::device::{Event, Operator, Region};
use crate::error::{Error, Result};
use crate::memory;

/// One call to a device.
#[derive(Clone, Debug, PartialEq)]
pub enum Command {
    /// Run an operator.
    Launch(Stream, u32, Box<Operator>),
    /// Copy from the first region to the second.
    Copy(Stream, u32, Region, Region),
    /// Copy from the first region to the second and pack or unpack.
    Packed(Stream, u32, (Region, Region), Packing),
    /// Signal an event.
    Record(Stream, Event),
    /// Wait for an event.
    Wait(Stream, Event),
    /// A buffer begins.
    Hold(Region),
    /// A buffer ends; with NaNs or not.
    Release(Region, bool),
}

/// The commands of a step, and what a device must have for them.
#[derive(Clone, Debug, PartialEq)]
pub struct Queue {
    /// In an order in which they can be queued.
    pub commands: Vec<Command>,
    /// Buffers that are held from before the first step on.
    pub persistent: Vec<Region>,
    /// Partial losses.
    pub loss_slots: u32,
    /// Partial sums of squares of gradients.
    pub norm_slots: u32,
}

/// Queues a step.
///
/// # Errors
/// Instructions that cannot be bound, and schedules that would hang. Clipping where an update comes
/// before the last gradient.
pub fn queue(program: &Program<'_>, clip: bool) -> Result<Queue> {
    let schedule = program.schedule;
    let mut merged = Merging {
        program,
        lives: Lives::of(schedule),
        queue: Queue {
            commands: Vec::new(),
            persistent: Vec::new(),
            loss_slots: 0,
            norm_slots: 0,
        },
        signalled: BTreeSet::new(),
        next: [0; 4],
    };
    let persistent = device_buffers(schedule).filter(|(_, b)| b.persistent);
    merged.queue.persistent = persistent.map(|(_, b)| program.placed(b)).collect();
    if clip {
        merged.clip()?;
    }
    loop {
        let before = merged.next;
        for stream in Stream::ALL {
            let most = if stream == Stream::Compute {
                1
            } else {
                usize::MAX
            };
            merged.advance(stream, most)?;
        }
        if merged.next == before {
            break;
        }
    }
    for stream in Stream::ALL {
        let at = merged.next[stream as usize];
        if let Some(instruction) = schedule.stream(stream).get(at) {
            return Err(Error::bad_input(format!(
                "the step would hang: {} (instruction {at} of stream {}) waits for an event that \
                 nothing signals before",
                memory::doing(schedule, instruction),
                stream.name()
            )));
        }
    }
    merged.end();
    Ok(merged.queue)
}

fn device_buffers(schedule: &Schedule) -> impl Iterator<Item = (BufferId, &Buffer)> {
    let all = schedule.buffers.iter();
    all.filter(|(_, b)| b.space == Space::Device)
}

/// What begins and ends at each position of the compute stream.
struct Lives {
    begin: BTreeMap<u64, Vec<BufferId>>,
    /// Behind the instruction before the position.
    end_used: BTreeMap<u64, Vec<BufferId>>,
    /// Behind the waits of the instruction at the position.
    end_sent: BTreeMap<u64, Vec<BufferId>>,
    /// What is fetched into, by the position at which it begins.
    landing: BTreeMap<u64, Vec<BufferId>>,
}

impl Lives {
    fn of(schedule: &Schedule) -> Self {
        let copies = |stream: Stream, access: Access| -> BTreeSet<BufferId> {
            let operands = schedule.stream(stream).iter().flat_map(|i| &i.operands);
            let chosen = operands.filter(|o| o.access == access);
            chosen.map(|o| o.buffer).collect()
        };
        let sent = copies(Stream::D2h, Access::Read);
        let landed = copies(Stream::H2d, Access::Write);
        let mut lives = Self {
            begin: BTreeMap::new(),
            end_used: BTreeMap::new(),
            end_sent: BTreeMap::new(),
            landing: BTreeMap::new(),
        };
        for (id, buffer) in device_buffers(schedule) {
            let Span { start, end } = buffer.lifetime;
            if buffer.persistent || start >= end {
                continue;
            }
            lives.begin.entry(start).or_default().push(id);
            let ends = match sent.contains(&id) {
                true => &mut lives.end_sent,
                false => &mut lives.end_used,
            };
            ends.entry(end).or_default().push(id);
            if landed.contains(&id) {
                lives.landing.entry(start).or_default().push(id);
            }
        }
        lives
    }
}

struct Merging<'a, 'b> {
    program: &'b Program<'a>,
    lives: Lives,
    queue: Queue,
    signalled: BTreeSet<Event>,
    next: [usize; 4],
}

impl Merging<'_, '_> {
    /// Queues up to `most` instructions of a stream, until one waits for what is not there yet.
    fn advance(&mut self, stream: Stream, most: usize) -> Result<()> {
        let schedule = self.program.schedule;
        let end = self.next[stream as usize].saturating_add(most);
        while let Some(instruction) = schedule.stream(stream).get(self.next[stream as usize]) {
            if self.next[stream as usize] == end {
                return Ok(());
            }
            let waits = instruction.waits.iter().map(|&e| number(e));
            let waits: Vec<Event> = waits.collect();
            if !waits.iter().all(|event| self.signalled.contains(event)) {
                return Ok(());
            }
            let at = self.next[stream as usize];
            let commands = &mut self.queue.commands;
            commands.extend(waits.into_iter().map(|event| Command::Wait(stream, event)));
            if stream == Stream::Compute {
                self.begin(at as u64);
            }
            self.body(stream, at, instruction)
                .map_err(|error| self.named(error, stream, at))?;
            if stream == Stream::Compute {
                let ended = self.lives.end_used.remove(&(at as u64 + 1));
                self.release(ended.unwrap_or_default(), &[]);
            }
            if let Some(event) = instruction.signals.map(number) {
                if u64::from(event) >= u64::from(schedule.events) {
                    let error = Error::bad_input(format!("there is no event {event}"));
                    return Err(self.named(error, stream, at));
                }
                self.queue.commands.push(Command::Record(stream, event));
                self.signalled.insert(event);
            }
            self.next[stream as usize] += 1;
        }
        Ok(())
    }

    /// What no position ends, the step does.
    fn end(&mut self) {
        let Lives {
            end_used, end_sent, ..
        } = &mut self.lives;
        let left = [std::mem::take(end_used), std::mem::take(end_sent)];
        for ended in left.into_iter().flat_map(BTreeMap::into_values) {
            self.release(ended, &[]);
        }
    }

    fn named(&self, error: Error, stream: Stream, at: usize) -> Error {
        error.within(format!("instruction {at} of stream {}", stream.name()))
    }

    /// What ends where compute has waited for its copy, then what begins.
    fn begin(&mut self, position: u64) {
        let sent = self.lives.end_sent.remove(&position).unwrap_or_default();
        let landing = self.lives.landing.remove(&position).unwrap_or_default();
        self.release(sent, &landing);
        for id in self.lives.begin.remove(&position).unwrap_or_default() {
            let region = self.program.placed(&self.program.schedule.buffers[id]);
            self.queue.commands.push(Command::Hold(region));
        }
    }

    fn release(&mut self, ended: Vec<BufferId>, landing: &[BufferId]) {
        let buffers = &self.program.schedule.buffers;
        let landing: Vec<Region> = landing
            .iter()
            .map(|&id| self.program.placed(&buffers[id]))
            .collect();
        for id in ended {
            let region = self.program.placed(&buffers[id]);
            let apart = |other: &Region| {
                other.end() <= region.offset_bytes || region.end() <= other.offset_bytes
            };
            let poison = landing.iter().all(apart);
            self.queue.commands.push(Command::Release(region, poison));
        }
    }

    fn body(&mut self, stream: Stream, at: usize, instruction: &Instruction) -> Result<()> {
        let number = u32::try_from(at).expect("ids have 32 bits");
        if instruction.action == Action::Copy {
            let (from, to, packing) = copied(self.program, instruction)?;
            self.queue.commands.push(match packing {
                Some(packing) => Command::Packed(stream, number, (from, to), packing),
                None => Command::Copy(stream, number, from, to),
            });
            return Ok(());
        }
        let schedule = self.program.schedule;
        let rounds = schedule.rounds();
        if instruction.micro_batch >= rounds {
            return Err(Error::bad_input("is of no micro-batch"));
        }
        // The last pass is the one that counts.
        let counts = rounds - instruction.micro_batch <= schedule.micro_batches;
        for mut operator in operators(self.program, instruction)? {
            match &mut operator {
                Operator::CrossEntropy { slot, .. } if counts => {
                    *slot = self.queue.loss_slots;
                    self.queue.loss_slots += 1;
                }
                // Written over by the first that counts.
                Operator::CrossEntropy { slot, .. } => *slot = 0,
                Operator::GradientNorm { slot, .. } => {
                    *slot = self.queue.norm_slots;
                    self.queue.norm_slots += 1;
                }
                _ => {}
            }
            let launch = Command::Launch(stream, number, Box::new(operator));
            self.queue.commands.push(launch);
        }
        Ok(())
    }

    // ---- clipping -----------------------------------------------------------------------------

    /// Refuses to clip where not all gradients are counted before the first update.
    fn clip(&self) -> Result<()> {
        let schedule = self.program.schedule;
        let unfit = |why: String| {
            let error = format!("gradients cannot be clipped by their global norm: {why}");
            Err(Error::bad_input(error).hint("leave out --clip, or plan again with --clip"))
        };
        let compute = schedule.stream(Stream::Compute);
        let named = |instruction: &Instruction, is: &dyn Fn(&str) -> bool| {
            matches!(instruction.action, Action::Run(op)
                if schedule.ops.get(op).is_some_and(|op| is(&op.name)))
        };
        let counts = |i: &Instruction| named(i, &|name| name == GRADIENT_NORM);
        let counted = compute.iter().filter(|i| counts(i)).count();
        let gradients: usize = schedule
            .state_groups
            .iter()
            .map(|g| g.gradients.len())
            .sum();
        let Some(last) = compute.iter().rposition(counts) else {
            return unfit("the schedule does not count them".to_owned());
        };
        if counted != gradients {
            return unfit(format!("the schedule counts {counted} of {gradients}"));
        }
        let updates = |i: &Instruction| named(i, &|name| name.ends_with("_update"));
        if let Some(early) = compute[..last].iter().find(|i| updates(i)) {
            let what = memory::doing(schedule, early);
            return unfit(format!("{what} comes before the last is counted"));
        }
        let behind: BTreeSet<EventId> = compute[last..].iter().filter_map(|i| i.signals).collect();
        match schedule.stream(Stream::Host).first() {
            Some(first) if !first.waits.iter().any(|event| behind.contains(event)) => {
                let what = memory::doing(schedule, first);
                unfit(format!("{what} does not wait until the last is counted"))
            }
            _ => Ok(()),
        }
    }
}

fn number(event: impl Id) -> Event {
    u32::try_from(event.index()).expect("ids have 32 bits")
}
