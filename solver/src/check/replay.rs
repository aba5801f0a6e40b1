//! Two steps, instruction by instruction: what is read, written and owned.

mod content;
mod ownership;
mod races;

use std::collections::HashSet;

use super::bytes::Owners;
use super::cells::{Cells, Content, Written};
use super::form::{everything, extent, operator, value_of, Extent};
use super::order::{Clock, Moment, Order};
use super::violation::{Fault, Findings};
use crate::ids::{BufferId, Id, OpId, ValueId};
use crate::problem::Category;
use crate::schedule::{Access, Action, Buffer, Instruction, Schedule, ScheduledOp, Space, Stream};
use crate::units::Span;
use ownership::overlap;

/// One life of a buffer: a step's, or for ever where it is persistent.
#[derive(Clone, Debug, Default)]
struct Life {
    cells: Cells,
    /// For every stream how far it had come when it last used the buffer.
    last: Clock,
    /// How far every stream must have come before any use: the last uses of who had the bytes.
    after: Clock,
    /// Who had the bytes, by stream of that last use.
    before: [u32; 4],
    begun: bool,
    /// Who has the bytes now, and since when.
    taken: Option<(u32, Moment)>,
    /// Whether a fault of its bytes has been reported.
    accused: bool,
}

/// The instruction being replayed.
#[derive(Clone, Copy)]
struct Now<'a> {
    moment: Moment,
    clock: &'a Clock,
    step: u8,
    instruction: &'a Instruction,
    op: Option<(OpId, &'a ScheduledOp)>,
}

/// A content that an operator has read: of which value, from which base, with which additions.
type Version = (ValueId, u32, u64);

struct Replay<'a> {
    schedule: &'a Schedule,
    order: &'a Order,
    findings: &'a mut Findings,
    /// The first step's, then the second step's.
    lives: Vec<Life>,
    device: Owners,
    host: Owners,
    /// Values that some operator adds to.
    accumulated: Vec<bool>,
    /// Weights that something updates in every step.
    trained: Vec<bool>,
    /// By operator: the versions it has read, and whether recomputation had a part in them.
    seen: Vec<Vec<(Version, bool)>>,
    /// All versions read in which no recomputation had a part.
    first_hand: HashSet<Version>,
    /// Versions with recomputation in them, and where they are first read.
    remade: Vec<(Version, Moment, BufferId)>,
}

pub(super) fn replay(schedule: &Schedule, order: &Order, findings: &mut Findings) {
    let (accumulated, trained) = marks(schedule);
    let mut replay = Replay {
        schedule,
        order,
        findings,
        lives: vec![Life::default(); 2 * schedule.buffers.len()],
        device: Owners::default(),
        host: Owners::default(),
        accumulated,
        trained,
        seen: vec![Vec::new(); schedule.ops.len()],
        first_hand: HashSet::new(),
        remade: Vec::new(),
    };
    replay.begin();
    for step in 0..2u8 {
        for &(stream, index) in &order.sequence {
            let moment = order.moment(usize::from(step), stream, index);
            let instruction = &schedule.stream(stream)[index];
            replay.instruction(Now {
                moment,
                clock: order.clock(moment),
                step: step + 1,
                instruction,
                op: operator(schedule, instruction.action),
            });
        }
    }
    replay.check_remade();
    replay.check_unread();
}

/// Which values are sums, and which weights are trained.
fn marks(schedule: &Schedule) -> (Vec<bool>, Vec<bool>) {
    let mut accumulated = vec![false; schedule.values.len()];
    let mut trained = accumulated.clone();
    for op in schedule.ops.values() {
        for value in op
            .accumulates
            .iter()
            .filter(|v| schedule.values.get(**v).is_some())
        {
            accumulated[value.index()] = true;
        }
    }
    for instruction in schedule.streams.iter().flatten() {
        let updater = match operator(schedule, instruction.action) {
            Some((_, op)) => !op.updates.is_empty(),
            None => matches!(instruction.action, Action::HostUpdate(_)),
        };
        for operand in instruction.operands.iter().filter(|_| updater) {
            let Some(buffer) = schedule.buffers.get(operand.buffer) else {
                continue;
            };
            let Some((value, entry)) = value_of(schedule, buffer) else {
                continue;
            };
            trained[value.index()] |=
                entry.category == Category::Weights && operand.access != Access::Read;
        }
    }
    (accumulated, trained)
}

/// Where the rows and groups of a value lie on the line of its buffer's cells: the rows of group 0,
/// then those of group 1 and so on, or one single cell for what has no rows.
fn on_line(
    schedule: &Schedule,
    buffer: &Buffer,
    part: Option<Extent>,
) -> impl Iterator<Item = Span> + use<> {
    let value = value_of(schedule, buffer).map(|(_, value)| value);
    let Extent { rows, groups } = part.unwrap_or(Extent {
        rows: buffer.rows,
        groups: buffer.groups,
    });
    let common = |a: Span, b: Span| Span::new(a.start.max(b.start), a.end.min(b.end));
    let all = everything(schedule);
    let (line, groups) = match value.filter(|value| value.row_bytes > 0) {
        None => (Span::new(0, 1), Span::new(0, 1)),
        Some(value) => {
            let line = common(common(rows, buffer.rows), all.rows);
            match value.by_groups && !line.is_empty() {
                true => (line, common(common(groups, buffer.groups), all.groups)),
                false => (line, Span::new(0, 1)),
            }
        }
    };
    let tokens = schedule.tokens;
    (groups.start..groups.end)
        .map(move |group| Span::new(group * tokens + line.start, group * tokens + line.end))
}

impl<'a> Replay<'a> {
    fn life_of(&self, id: BufferId, buffer: &Buffer, step: u8) -> usize {
        match buffer.persistent {
            true => id.index(),
            false => id.index() + usize::from(step - 1) * self.schedule.buffers.len(),
        }
    }
    fn buffer_of(&self, life: u32) -> BufferId {
        BufferId::from_index(life as usize % self.schedule.buffers.len())
    }
    fn report(&mut self, fault: Fault, at: Moment, buffer: BufferId, other: Option<Moment>) {
        let other = other.map(|other| self.order.place(other));
        self.findings
            .add(fault, Some(self.order.place(at)), Some(buffer), other);
    }
    fn action(&self, moment: Moment) -> Action {
        let place = self.order.place(moment);
        self.schedule.stream(place.stream)[place.index].action
    }
    /// Whether it is a copy over a link.
    fn is_copy(&self, moment: Moment) -> bool {
        moment.stream != Stream::Compute as u8 && self.action(moment) == Action::Copy
    }
    fn same_step(&self, a: Moment, b: Moment) -> bool {
        self.order.place(a).step == self.order.place(b).step
    }

    /// Persistent buffers hold their content and own their bytes from before the first step.
    fn begin(&mut self) {
        let mut before = Vec::new();
        for (id, buffer) in self
            .schedule
            .buffers
            .iter()
            .filter(|(_, buffer)| buffer.persistent)
        {
            let ranges = on_line(self.schedule, buffer, None);
            self.lives[id.index()].cells = Cells::filled(ranges);
            self.take(id.index(), buffer, &mut before);
            for &with in &before {
                let with = self.buffer_of(with);
                self.findings
                    .add(overlap(buffer.space, with), None, Some(id), None);
            }
        }
    }

    fn instruction(&mut self, now: Now<'a>) {
        let schedule = self.schedule;
        let part = extent(schedule, now.instruction);
        let mut carried = Vec::new();
        for operand in &now.instruction.operands {
            let Some(buffer) = schedule.buffers.get(operand.buffer) else {
                continue;
            };
            self.own(now, operand.buffer, buffer);
            if operand.access != Access::Write {
                self.read(
                    now,
                    operand.buffer,
                    buffer,
                    part,
                    operand.access,
                    &mut carried,
                );
            }
        }
        for operand in &now.instruction.operands {
            let Some(buffer) = schedule.buffers.get(operand.buffer) else {
                continue;
            };
            if operand.access != Access::Read {
                self.write(now, operand.buffer, buffer, part, operand.access, &carried);
            }
        }
    }

    fn read(
        &mut self,
        now: Now,
        id: BufferId,
        buffer: &Buffer,
        part: Option<Extent>,
        access: Access,
        carried: &mut Vec<(Span, Content)>,
    ) {
        let life = self.life_of(id, buffer, now.step);
        for range in on_line(self.schedule, buffer, part) {
            let mut cells = std::mem::take(&mut self.lives[life].cells);
            for cell in cells.of(range) {
                match cell.written {
                    Written::Never => {
                        let rows = row_span(self.schedule, cell.start, cell.end);
                        let fault = match is_fetch(now, buffer) {
                            true => Fault::FetchBeforeOffload,
                            false => Fault::ReadBeforeWrite { rows },
                        };
                        self.report(fault, now.moment, id, None);
                    }
                    Written::At(writer) if !writer.before(now.clock) && writer != now.moment => {
                        let fault = self.read_race(now, buffer, access, writer);
                        self.report(fault, now.moment, id, Some(writer));
                    }
                    _ => self.check_content(now, id, buffer, access, &cell.content),
                }
                if !adds(self.schedule, now, buffer) {
                    cell.content.consumed = Some(now.moment);
                }
                if access == Access::Read {
                    cell.reads[usize::from(now.moment.stream)] = now.moment.position + 1;
                }
                if now.instruction.action == Action::Copy {
                    carried.push((Span::new(cell.start, cell.end), cell.content));
                }
            }
            self.lives[life].cells = cells;
        }
    }

    fn write(
        &mut self,
        now: Now,
        id: BufferId,
        buffer: &Buffer,
        part: Option<Extent>,
        access: Access,
        carried: &[(Span, Content)],
    ) {
        let life = self.life_of(id, buffer, now.step);
        for range in on_line(self.schedule, buffer, part) {
            let mut cells = std::mem::take(&mut self.lives[life].cells);
            for cell in cells.of(range) {
                for stream in 0..4u8 {
                    let reads = cell.reads[usize::from(stream)];
                    let reader = Moment {
                        stream,
                        position: reads.wrapping_sub(1),
                    };
                    if reads > now.clock[usize::from(stream)] && reader != now.moment {
                        let fault = self.write_race(now, buffer, access, reader, true);
                        self.report(fault, now.moment, id, Some(reader));
                    }
                }
                if let (Written::At(writer), Access::Write) = (cell.written, access) {
                    if !writer.before(now.clock) && writer != now.moment {
                        let fault = self.write_race(now, buffer, access, writer, false);
                        self.report(fault, now.moment, id, Some(writer));
                    }
                }
                self.check_sum(now, id, buffer, access, cell.written, &cell.content);
                cell.content = self.content_after(now, buffer, access, cell.content);
                cell.written = Written::At(now.moment);
                cell.reads = [0; 4];
            }
            self.lives[life].cells = cells;
        }
        for (range, content) in carried {
            for cell in self.lives[life].cells.of(*range) {
                let contributed = content.contributed.map(|_| now.moment);
                cell.written = Written::At(now.moment);
                cell.content = Content {
                    contributed,
                    consumed: None,
                    step: now.step,
                    ..*content
                };
            }
        }
    }
}

/// Whether the instruction's operator contributes to the value of this buffer.
fn adds(schedule: &Schedule, now: Now, buffer: &Buffer) -> bool {
    let Some((_, op)) = now.op else { return false };
    value_of(schedule, buffer).is_some_and(|(value, _)| op.accumulates.contains(&value))
}

fn is_fetch(now: Now, buffer: &Buffer) -> bool {
    now.moment.stream == Stream::H2d as u8
        && now.instruction.action == Action::Copy
        && buffer.space == Space::Host
}

/// The rows that a part of a buffer's line stands for.
fn row_span(schedule: &Schedule, start: u64, end: u64) -> Span {
    let group_start = start / schedule.tokens * schedule.tokens;
    Span::new(start - group_start, end - group_start)
}
