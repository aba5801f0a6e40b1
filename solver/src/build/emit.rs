//! Writes the instruction lists: what every instruction waits for and what it signals.
//!
//! Compute begins with a barrier that every other stream waits for and ends with one that waits for
//! every other stream, so that steps can follow one another on the same streams.
//!
//! | who waits | for what | why |
//! |---|---|---|
//! | copy to the host | the operator that wrote its buffer last | the content is complete |
//! | compute, at a retirement | that copy | the buffer's bytes are used again from here on |
//! | copy from the host | the operator before its place, what retires there | its bytes are free |
//! | copy from the host | the copy to the host of the same piece | it is there |
//! | compute, at first use | that copy | it has arrived |
//! | host optimizer | the copies of its gradients | they are there |
//! | host optimizer, where gradients are clipped | the last norm | all gradients are counted |
//! | copy of new weights | the host optimizer, the last use of the old ones | |

use std::collections::BTreeSet;

use super::draft::{Draft, DraftBuffer, DraftHostUpdate};
use super::pieces::all_groups;
use super::transfer::Transfers;
use crate::ids::{BufferId, EventId, Id, OpId, Table};
use crate::machine::Link;
use crate::problem::{Problem, Split};
use crate::schedule::{
    Access, Action, Buffer, Instruction, Operand, Schedule, ScheduledGroup, ScheduledOp,
    ScheduledValue, Space,
};
use crate::units::{Bytes, Nanos, Span};

struct Emitter<'a> {
    problem: &'a Problem,
    draft: &'a Draft,
    transfers: &'a Transfers,
    streams: [Vec<Instruction>; 4],
    events: u32,
    /// Event of a compute instruction, by its index on the stream (the barrier is 0).
    computed: Vec<Option<EventId>>,
    departed: Vec<EventId>,
    arrived: Vec<EventId>,
}

/// New weights on the host.
struct Made {
    /// By which of the draft's updates.
    nth: usize,
    event: EventId,
    /// The predicted end of that update, in nanoseconds.
    at: u64,
}

const COMPUTE: usize = 0;
const D2H: usize = 1;
const H2D: usize = 2;
const HOST: usize = 3;

/// Writes the schedule, every offset on the device still zero.
pub fn emit(problem: &Problem, draft: &Draft, transfers: &Transfers) -> Schedule {
    let mut emitter = Emitter {
        problem,
        draft,
        transfers,
        streams: Default::default(),
        events: 0,
        computed: vec![None; draft.instructions.len() + 2],
        departed: vec![EventId::from_index(0); draft.departures.len()],
        arrived: vec![EventId::from_index(0); draft.arrivals.len()],
    };
    emitter.compute();
    emitter.departures();
    emitter.copies_in();
    emitter.end();
    let (buffers, host_bytes) = emitter.buffers();
    Schedule {
        tokens: problem.tokens.get(),
        groups: u64::from(problem.groups),
        micro_batches: problem.micro_batches,
        passes: problem.passes,
        ops: scheduled_ops(problem, draft),
        values: scheduled_values(problem),
        state_groups: scheduled_groups(problem, draft),
        buffers,
        streams: emitter.streams,
        events: emitter.events,
        arena_bytes: transfers.peak,
        host_bytes,
        budget: problem.budget,
        machine: problem.machine,
    }
}

impl Emitter<'_> {
    fn event(&mut self) -> EventId {
        self.events += 1;
        EventId::from_index(self.events as usize - 1)
    }

    /// The event of the compute instruction before `position` (that of the barrier at 0).
    fn before(&mut self, position: usize) -> EventId {
        if let Some(event) = self.computed[position] {
            return event;
        }
        let event = self.event();
        self.computed[position] = Some(event);
        self.streams[COMPUTE][position].signals = Some(event);
        event
    }

    /// Host buffers follow the device's in the table.
    fn host(&self, host: usize) -> BufferId {
        BufferId::from_index(self.draft.buffers.len() + host)
    }

    /// A copy of `moved` bytes from or to a buffer on the device.
    fn copy(
        &self,
        (from, to): (BufferId, BufferId),
        buffer: &DraftBuffer,
        moved: Bytes,
        link: Link,
    ) -> Instruction {
        Instruction {
            action: Action::Copy,
            rows: buffer.rows,
            groups: buffer.groups,
            micro_batch: 0,
            operands: vec![
                Operand {
                    buffer: from,
                    access: Access::Read,
                },
                Operand {
                    buffer: to,
                    access: Access::Write,
                },
            ],
            waits: Vec::new(),
            signals: None,
            duration: self.problem.machine.copy_time(link, buffer.bytes, moved),
        }
    }

    fn barrier(&self) -> Instruction {
        Instruction {
            action: Action::Barrier,
            rows: Span::new(0, 0),
            groups: Span::new(0, 0),
            micro_batch: 0,
            operands: Vec::new(),
            waits: Vec::new(),
            signals: None,
            duration: Nanos::ZERO,
        }
    }

    fn compute(&mut self) {
        let begin = self.barrier();
        self.streams[COMPUTE].reserve(self.draft.instructions.len() + 2);
        self.streams[COMPUTE].push(begin);
        for instruction in &self.draft.instructions {
            let operand = |&(buffer, access): &(usize, Access)| Operand {
                buffer: BufferId::from_index(buffer),
                access,
            };
            let operands = self.draft.operands(instruction);
            self.streams[COMPUTE].push(Instruction {
                action: instruction.action,
                rows: instruction.rows,
                groups: instruction.groups,
                micro_batch: instruction.micro_batch,
                operands: operands.iter().map(operand).collect(),
                waits: Vec::new(),
                signals: None,
                duration: instruction.duration,
            });
        }
        let end = self.barrier();
        self.streams[COMPUTE].push(end);
    }

    fn departures(&mut self) {
        // Compute waits once a position for the last copy that retires there: copies keep order.
        let mut covered = 0;
        let mut retirements = Vec::new();
        for (nth, &d) in self.transfers.out_order.iter().enumerate() {
            let departure = self.draft.departures[d];
            let buffer = &self.draft.buffers[departure.buffer];
            let source = BufferId::from_index(departure.buffer);
            let host = self.host(departure.host);
            let bytes = self.draft.departing(&departure);
            let link = self.problem.machine.links.d2h;
            let mut copy = self.copy((source, host), buffer, bytes, link);
            copy.waits.push(self.before(buffer.last_write + 1));
            let event = self.event();
            copy.signals = Some(event);
            self.departed[d] = event;
            self.streams[D2H].push(copy);
            retirements.push((self.transfers.retired[d], nth, event));
        }
        retirements.sort_unstable();
        for window in 0..retirements.len() {
            let (position, nth, event) = retirements[window];
            let last_here = retirements
                .get(window + 1)
                .is_none_or(|next| next.0 != position);
            if last_here && nth >= covered {
                covered = nth;
                self.streams[COMPUTE][position + 1].waits.push(event);
            }
        }
    }

    fn copies_in(&mut self) {
        // What retires exactly where an arrival is issued is not yet behind the operator before.
        let mut retiring = vec![None; self.draft.instructions.len() + 1];
        for &d in &self.transfers.out_order {
            retiring[self.transfers.retired[d]] = Some(self.departed[d]);
        }
        // New weights travel once the host has made them: queued earlier, they would keep what is
        // fetched behind them waiting.
        let mut returning = self.host_updates().into_iter().peekable();
        for a in self.transfers.in_order.clone() {
            let start = self.transfers.clock[self.transfers.issued[a]];
            while let Some(made) = returning.next_if(|made| made.at <= start) {
                self.new_weights(&made);
            }
            self.arrival(a, &retiring);
        }
        for made in returning {
            self.new_weights(&made);
        }
    }

    /// Queues the host's updates in the order in which their gradients are complete.
    fn host_updates(&mut self) -> Vec<Made> {
        let mut order: Vec<(usize, usize)> = (self.draft.host_updates.iter().enumerate())
            .map(|(nth, update)| (self.update_position(update), nth))
            .collect();
        order.sort_unstable();
        // The host works in order: what its first update waits for, all do.
        let counted = self.counted();
        let mut free = counted.map_or(0, |position| self.transfers.clock[position]);
        let mut counted = counted.map(|position| self.before(position));
        let updates = order.into_iter().map(|(_, nth)| {
            let update = &self.draft.host_updates[nth];
            let arrived = update.gradients.iter().map(|&d| self.transfers.departed[d]);
            let work = self.problem.states[update.group]
                .host
                .map_or(Nanos::ZERO, |h| h.duration);
            free = free.max(arrived.max().unwrap_or(0)) + work.get();
            let event = self.host_update(nth, counted.take());
            Made {
                nth,
                event,
                at: free,
            }
        });
        updates.collect()
    }

    fn arrival(&mut self, a: usize, retiring: &[Option<EventId>]) {
        let arrival = self.draft.arrivals[a];
        let buffer = &self.draft.buffers[arrival.buffer];
        let target = BufferId::from_index(arrival.buffer);
        let issued = self.transfers.issued[a];
        let moved = self.draft.arriving(&arrival);
        let sides = (self.host(arrival.host), target);
        let mut copy = self.copy(sides, buffer, moved, self.problem.machine.links.h2d);
        copy.waits.push(self.before(issued));
        copy.waits.extend(retiring[issued]);
        if let Some(d) = arrival.departure {
            if self.transfers.retired[d] >= issued && Some(self.departed[d]) != retiring[issued] {
                copy.waits.push(self.departed[d]);
            }
        }
        let event = self.event();
        copy.signals = Some(event);
        self.arrived[a] = event;
        self.streams[H2D].push(copy);
        // Copies keep order: a later arrival at the same position covers this one.
        self.streams[COMPUTE][buffer.first + 1].waits.push(event);
    }

    /// The position behind which all gradients of an update have left.
    fn update_position(&self, update: &DraftHostUpdate) -> usize {
        let last = |&d: &usize| self.draft.buffers[self.draft.departures[d].buffer].last_write;
        update.gradients.iter().map(last).max().map_or(0, |p| p + 1)
    }

    /// The position behind which all gradients have been counted, where they are.
    fn counted(&self) -> Option<usize> {
        let norms: BTreeSet<OpId> = self.problem.norms().map(|(_, op)| op).collect();
        let instructions = &self.draft.instructions;
        let last = instructions.iter().rposition(|i| norms.contains(&i.op));
        last.map(|position| position + 1)
    }

    fn host_update(&mut self, nth: usize, counted: Option<EventId>) -> EventId {
        let update = &self.draft.host_updates[nth];
        let group = &self.problem.states[update.group];
        let mut operands: Vec<Operand> = update
            .gradients
            .iter()
            .map(|&d| Operand {
                buffer: self.host(self.draft.departures[d].host),
                access: Access::Read,
            })
            .collect();
        operands.extend(update.states.map(|states| Operand {
            buffer: self.host(states),
            access: Access::Update,
        }));
        for &(weight, _) in &update.weights {
            operands.push(Operand {
                buffer: self.host(weight),
                access: Access::Update,
            });
        }
        let mut waits: Vec<EventId> = update.gradients.iter().map(|&d| self.departed[d]).collect();
        waits.extend(counted);
        waits.sort_unstable();
        let event = self.event();
        self.streams[HOST].push(Instruction {
            action: Action::HostUpdate(update.group as u32),
            rows: self.problem.all_rows(),
            groups: all_groups(self.problem),
            micro_batch: self.problem.rounds() - 1,
            operands,
            waits,
            signals: Some(event),
            duration: group.host.map_or(Nanos::ZERO, |h| h.duration),
        });
        event
    }

    fn new_weights(&mut self, made: &Made) {
        for &(weight, resident) in &self.draft.host_updates[made.nth].weights {
            let Some(resident) = resident else { continue };
            let buffer = &self.draft.buffers[resident];
            let target = BufferId::from_index(resident);
            let sides = (self.host(weight), target);
            let link = self.problem.machine.links.h2d;
            let mut copy = self.copy(sides, buffer, buffer.bytes, link);
            copy.waits.push(made.event);
            copy.waits.push(self.before(buffer.last + 1));
            self.streams[H2D].push(copy);
        }
    }

    /// The step ends when every stream has.
    fn end(&mut self) {
        for stream in [D2H, H2D, HOST] {
            let Some(at) = self.streams[stream].len().checked_sub(1) else {
                continue;
            };
            let event = match self.streams[stream][at].signals {
                Some(event) => event,
                None => self.event(),
            };
            self.streams[stream][at].signals = Some(event);
            let end = self.streams[COMPUTE].len() - 1;
            if !self.streams[COMPUTE][end].waits.contains(&event) {
                self.streams[COMPUTE][end].waits.push(event);
            }
        }
    }

    /// Device buffers in the draft's order, then host buffers, each in a place of its own.
    fn buffers(&self) -> (Table<BufferId, Buffer>, Bytes) {
        let mut buffers = Table::new();
        for (buffer, lifetime) in self.draft.buffers.iter().zip(&self.transfers.lifetimes) {
            buffers.push(Buffer {
                value: buffer.value,
                category: buffer.category,
                space: Space::Device,
                offset: Bytes::ZERO,
                bytes: buffer.bytes,
                rows: buffer.rows,
                groups: buffer.groups,
                packed: buffer.packed,
                persistent: buffer.persistent,
                // The opening barrier is the first instruction.
                lifetime: Span::new(lifetime.start + 1, lifetime.end + 1),
            });
        }
        let mut offset = Bytes::ZERO;
        for host in &self.draft.host_buffers {
            buffers.push(Buffer {
                value: Some(host.value),
                category: self.problem.values[host.value].category,
                space: Space::Host,
                offset,
                bytes: host.bytes,
                rows: host.rows,
                groups: host.groups,
                packed: false,
                persistent: host.persistent,
                lifetime: Span::new(0, self.draft.instructions.len() as u64),
            });
            offset += host.bytes.align_up(super::ALIGNMENT);
        }
        (buffers, offset)
    }
}

fn scheduled_ops(problem: &Problem, draft: &Draft) -> Table<crate::ids::OpId, ScheduledOp> {
    let mut required = vec![false; problem.ops.len()];
    for instruction in &draft.instructions {
        required[instruction.op.index()] |= matches!(instruction.action, Action::Run(_));
    }
    problem
        .ops
        .iter()
        .map(|(id, op)| ScheduledOp {
            name: op.name.clone(),
            block: op.block,
            domain: op.domain,
            memory_bound: op.memory_bound,
            required: required[id.index()],
            reads: op.reads.clone(),
            writes: op.writes.clone(),
            accumulates: op.accumulates.clone(),
            updates: op.updates.clone(),
        })
        .collect()
}

fn scheduled_groups(problem: &Problem, draft: &Draft) -> Vec<ScheduledGroup> {
    let mut groups: Vec<ScheduledGroup> = problem
        .states
        .iter()
        .map(|group| ScheduledGroup {
            name: group.name.clone(),
            weights: group.weights.clone(),
            gradients: group.gradients.clone(),
            states: group.states,
            on_host: false,
        })
        .collect();
    for update in &draft.host_updates {
        groups[update.group].on_host = true;
    }
    groups
}

fn scheduled_values(problem: &Problem) -> Table<crate::ids::ValueId, ScheduledValue> {
    problem
        .values
        .values()
        .map(|value| ScheduledValue {
            name: value.name.clone(),
            block: value.block,
            category: value.category,
            row_bytes: value.row_bytes,
            packed_row_bytes: value.packed_row_bytes,
            fixed_bytes: value.fixed_bytes,
            by_groups: value.split == Split::Groups,
        })
        .collect()
}
