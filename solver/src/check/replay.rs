//! Two steps, instruction by instruction: what is read, written and owned.

use std::collections::HashSet;
use std::ops::Range;

use super::bytes::Owners;
use super::cells::{Cells, Content, Written};
use super::form::{extent, operator, value_of, Extent};
use super::order::{Clock, Moment, Order};
use super::violation::{Fault, Findings};
use crate::ids::{BufferId, Id, OpId, ValueId};
use crate::problem::{Category, Domain};
use crate::schedule::{Access, Action, Buffer, Instruction, Schedule, ScheduledOp, Space, Stream};

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
fn on_line(schedule: &Schedule, buffer: &Buffer, part: Option<Extent>) -> Vec<Range<u64>> {
    let value = value_of(schedule, buffer).map(|(_, value)| value);
    let Some(value) = value.filter(|value| value.row_bytes > 0) else {
        return vec![0..1];
    };
    let Extent { rows, groups } = part.unwrap_or(Extent {
        rows: buffer.rows,
        groups: buffer.groups,
    });
    let (start, end) = (
        rows.start.max(buffer.rows.start),
        rows.end.min(buffer.rows.end),
    );
    let end = end.min(schedule.tokens);
    if start >= end {
        return Vec::new();
    }
    if !value.by_groups {
        return vec![start..end];
    }
    let first = groups.start.max(buffer.groups.start);
    let last = groups.end.min(buffer.groups.end).min(schedule.groups);
    (first..last)
        .map(|group| group * schedule.tokens)
        .map(|at| at + start..at + end)
        .collect()
}

/// Spreads what an operator adds for one group over 64 bits (the finaliser of splitmix64).
fn hash(op: OpId, group: u64) -> u64 {
    let mut x = (op.index() as u64 + 1) << 16 ^ (group + 1);
    x = (x ^ x >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ x >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ x >> 31
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
    fn is_copy(&self, moment: Moment) -> bool {
        self.action(moment) == Action::Copy
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
            self.lives[id.index()].cells = Cells::filled(ranges.into_iter());
            self.take(id.index(), buffer, &mut before);
            for &with in &before {
                let with = self.buffer_of(with);
                self.findings
                    .add(overlap(buffer.space, with), None, Some(id), None);
            }
        }
    }

    fn take(&mut self, life: usize, buffer: &Buffer, before: &mut Vec<u32>) {
        let owners = match buffer.space {
            Space::Device => &mut self.device,
            Space::Host => &mut self.host,
        };
        let (start, bytes) = (buffer.offset.get(), buffer.bytes.get());
        owners.take(start, start.saturating_add(bytes), life as u32, before);
        self.lives[life].begun = true;
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

    /// The bytes: who uses a buffer comes after all uses of what lay there before, and never
    /// after its own bytes have gone to another.
    fn own(&mut self, now: Now, id: BufferId, buffer: &Buffer) {
        let life = self.life_of(id, buffer, now.step);
        if !self.lives[life].begun {
            let mut before = Vec::new();
            self.take(life, buffer, &mut before);
            for previous in before {
                self.succeed(now, life, id, buffer, previous);
            }
        }
        let Life {
            last,
            after,
            before,
            taken,
            accused,
            ..
        } = &mut self.lives[life];
        last[usize::from(now.moment.stream)] = now.moment.position + 1;
        if *accused {
            return;
        }
        let stream = (0..4u8).find(|&s| after[usize::from(s)] > now.clock[usize::from(s)]);
        if let Some(stream) = stream {
            let s = usize::from(stream);
            let (previous, other) = (
                before[s],
                Moment {
                    stream,
                    position: after[s] - 1,
                },
            );
            *accused = true;
            let with = self.buffer_of(previous);
            let fault = self.shared_bytes(buffer.space, with, other, now.moment);
            self.report(fault, now.moment, id, Some(other));
        } else if let Some((owner, since)) = *taken {
            *accused = true;
            let owner = self.buffer_of(owner);
            let fault = match since.before(now.clock) {
                true => Fault::UseAfterFree { owner },
                false => self.shared_bytes(buffer.space, owner, now.moment, since),
            };
            self.report(fault, now.moment, id, Some(since));
        }
    }

    /// `life` takes bytes of `previous`.
    fn succeed(&mut self, now: Now, life: usize, id: BufferId, buffer: &Buffer, previous: u32) {
        let with = self.buffer_of(previous);
        if self.schedule.buffers[with].persistent {
            if now.step == 1 {
                self.report(overlap(buffer.space, with), now.moment, id, None);
            }
            return;
        }
        self.lives[previous as usize].taken = Some((life as u32, now.moment));
        let last = self.lives[previous as usize].last;
        let Life { after, before, .. } = &mut self.lives[life];
        for stream in 0..4 {
            if last[stream] > after[stream] {
                after[stream] = last[stream];
                before[stream] = previous;
            }
        }
    }

    /// Two buffers share bytes and two of their uses are not ordered: `earlier` was to be the last
    /// use of the one, `later` takes the bytes for the other.
    fn shared_bytes(&self, space: Space, with: BufferId, earlier: Moment, later: Moment) -> Fault {
        let reads = |moment: Moment| {
            self.is_copy(moment) && (moment.stream == Stream::D2h as u8) == (space == Space::Device)
        };
        if !self.same_step(earlier, later) {
            Fault::RaceAcrossSteps
        } else if earlier == later {
            overlap(space, with)
        } else if reads(earlier) {
            Fault::SourceOverwritten
        } else if self.is_copy(earlier) || self.is_copy(later) && !reads(later) {
            Fault::LandingInUse
        } else {
            overlap(space, with)
        }
    }

    fn read(
        &mut self,
        now: Now,
        id: BufferId,
        buffer: &Buffer,
        part: Option<Extent>,
        access: Access,
        carried: &mut Vec<(Range<u64>, Content)>,
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
                    carried.push((cell.start..cell.end, cell.content));
                }
            }
            self.lives[life].cells = cells;
        }
    }

    /// A read that no order ties to the write that was met before it.
    fn read_race(&self, now: Now, buffer: &Buffer, access: Access, writer: Moment) -> Fault {
        if !self.same_step(now.moment, writer) {
            Fault::RaceAcrossSteps
        } else if access == Access::Update || self.updates(writer, buffer) {
            Fault::UnorderedUpdate
        } else if is_fetch(now, buffer) {
            Fault::FetchBeforeOffload
        } else {
            Fault::MissingEvent
        }
    }

    /// A write that no order ties to an access that was met before it.
    fn write_race(
        &self,
        now: Now,
        buffer: &Buffer,
        access: Access,
        other: Moment,
        read: bool,
    ) -> Fault {
        let source = read && self.is_copy(other);
        if !self.same_step(now.moment, other) {
            Fault::RaceAcrossSteps
        } else if access == Access::Update || self.updates(other, buffer) {
            Fault::UnorderedUpdate
        } else if source && other.stream == Stream::H2d as u8 {
            Fault::FetchBeforeOffload
        } else if source {
            Fault::SourceOverwritten
        } else if self.is_copy(now.moment) {
            Fault::LandingInUse
        } else {
            Fault::MissingEvent
        }
    }

    /// Whether the instruction at a moment changes the buffer in place.
    fn updates(&self, moment: Moment, buffer: &Buffer) -> bool {
        let place = self.order.place(moment);
        let operands = &self.schedule.stream(place.stream)[place.index].operands;
        operands.iter().any(|operand| {
            operand.access == Access::Update
                && self
                    .schedule
                    .buffers
                    .get(operand.buffer)
                    .is_some_and(|b| std::ptr::eq(b, buffer))
        })
    }

    fn write(
        &mut self,
        now: Now,
        id: BufferId,
        buffer: &Buffer,
        part: Option<Extent>,
        access: Access,
        carried: &[(Range<u64>, Content)],
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
            for cell in self.lives[life].cells.of(range.clone()) {
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

    /// What a cell holds once the instruction has written it.
    fn content_after(&self, now: Now, buffer: &Buffer, access: Access, old: Content) -> Content {
        let mut new = match access {
            Access::Update => old,
            _ => Content {
                step: now.step,
                micro_batch: Some(now.instruction.micro_batch),
                ..Content::default()
            },
        };
        let value = value_of(self.schedule, buffer);
        if let Some((op, entry)) = now.op {
            let adds = adds(self.schedule, now, buffer);
            new.remade |= matches!(now.instruction.action, Action::Recompute(_));
            if adds || access == Access::Update {
                let grouped = matches!(entry.domain, Domain::RowsOfGroup | Domain::Group)
                    && value.is_some_and(|(_, value)| !value.by_groups);
                let groups = now.instruction.groups;
                let last = groups.end.min(self.schedule.groups);
                new.sum = match grouped {
                    true => (groups.start..last)
                        .fold(new.sum, |sum, group| sum.wrapping_add(hash(op, group))),
                    false => new.sum.wrapping_add(hash(op, u64::MAX - 1)),
                };
            } else {
                new.base = op.index() as u32 + 1;
            }
            if adds {
                new.contributed = Some(now.moment);
            }
        }
        let updater = match now.op {
            Some((_, op)) => value.is_some_and(|(value, _)| op.updates.contains(&value)),
            None => matches!(now.instruction.action, Action::HostUpdate(_)),
        };
        if updater {
            new.updated = Some(now.moment);
        }
        new
    }

    /// A sum is initialised once, added to before it is used, and not written over.
    fn check_sum(
        &mut self,
        now: Now,
        id: BufferId,
        buffer: &Buffer,
        access: Access,
        written: Written,
        old: &Content,
    ) {
        let Some((value, entry)) = value_of(self.schedule, buffer) else {
            return;
        };
        if !self.accumulated[value.index()] {
            return;
        }
        let adds = adds(self.schedule, now, buffer);
        let is_gradient = entry.category == Category::Gradients;
        let here = old.step == now.step && matches!(written, Written::At(_));
        if access == Access::Write {
            let reused = !is_gradient && old.micro_batch != Some(now.instruction.micro_batch);
            let unread = is_gradient && old.contributed.is_some() && old.consumed.is_none();
            if (here && !reused) || unread {
                let other = old.contributed;
                self.report(Fault::ContributionLost, now.moment, id, other);
            }
        } else if is_gradient && adds {
            if !here && matches!(written, Written::At(_) | Written::Before) {
                self.report(Fault::ContributionUninitialised, now.moment, id, None);
            }
            if old.consumed.is_some() {
                self.report(Fault::GradientUsedEarly, now.moment, id, old.consumed);
            }
        }
    }

    /// Whether what an instruction reads is of the right update, micro-batch and version.
    fn check_content(
        &mut self,
        now: Now,
        id: BufferId,
        buffer: &Buffer,
        access: Access,
        content: &Content,
    ) {
        let Some((op, entry)) = now.op else { return };
        let Some((value, value_entry)) = value_of(self.schedule, buffer) else {
            return;
        };
        if self.trained[value.index()] && !self.is_optimizer(entry) {
            match content
                .updated
                .map(|update| (update, self.order.place(update).step))
            {
                Some((update, step)) if step == now.step => {
                    self.report(Fault::WeightsUpdatedEarly, now.moment, id, Some(update));
                }
                None if now.step == 2 => self.report(Fault::StaleWeights, now.moment, id, None),
                _ => {}
            }
        }
        if buffer.persistent || value_entry.row_bytes == 0 {
            return;
        }
        let passing = matches!(
            value_entry.category,
            Category::Activations | Category::Transients
        );
        let foreign = content
            .micro_batch
            .is_some_and(|mb| mb != now.instruction.micro_batch);
        if passing && foreign {
            self.report(Fault::StaleMicroBatch, now.moment, id, None);
        }
        let changes = entry.accumulates.contains(&value) || entry.updates.contains(&value);
        if access == Access::Read && !changes {
            self.check_version(
                now,
                op,
                id,
                (value, content.base, content.sum),
                content.remade,
            );
        }
    }

    /// Whether an operator changes weights, so that it may read what has just been updated.
    fn is_optimizer(&self, op: &ScheduledOp) -> bool {
        let values = &self.schedule.values;
        let mut updated = op.updates.iter().filter_map(|&value| values.get(value));
        updated.any(|value| value.category == Category::Weights)
    }

    /// An operator reads the same version of a value in all its runs; a version made again must
    /// be one that was read before it was thrown away.
    fn check_version(&mut self, now: Now, op: OpId, id: BufferId, version: Version, remade: bool) {
        let seen = &mut self.seen[op.index()];
        if seen.contains(&(version, remade)) {
            return;
        }
        let (value, base, _) = version;
        let differs = seen
            .iter()
            .any(|&(v, _)| (v.0, v.1) == (value, base) && v != version);
        seen.push((version, remade));
        if differs {
            self.report(Fault::WrongVersion, now.moment, id, None);
        }
        match remade {
            true => self.remade.push((version, now.moment, id)),
            false => {
                self.first_hand.insert(version);
            }
        }
    }

    /// Versions that recomputation made are versions that were there before.
    fn check_remade(&mut self) {
        for (version, at, id) in std::mem::take(&mut self.remade) {
            if self.first_hand.contains(&version) {
                continue;
            }
            let (value, base, _) = version;
            let same_base = |&&(v, b, _): &&Version| (v, b) == (value, base);
            let read = self.first_hand.iter().any(|v| same_base(&v));
            if read
                || self
                    .final_versions(value, base)
                    .is_some_and(|all| !all.contains(&version))
            {
                self.report(Fault::WrongVersion, at, id, None);
            }
        }
    }

    /// What the buffers of a value that were written at first hand hold in the end; nothing if
    /// there is none.
    fn final_versions(&self, value: ValueId, base: u32) -> Option<HashSet<Version>> {
        let buffers = self
            .schedule
            .buffers
            .iter()
            .filter(|(_, b)| b.value == Some(value));
        let cells = buffers.flat_map(|(id, _)| self.lives[id.index()].cells.all());
        let written = cells.filter(|c| c.written != Written::Never && !c.content.remade);
        let versions: HashSet<Version> = written
            .filter(|cell| cell.content.base == base)
            .map(|cell| (value, base, cell.content.sum))
            .collect();
        (!versions.is_empty()).then_some(versions)
    }

    /// Gradients that arrive somewhere and go nowhere.
    fn check_unread(&mut self) {
        for (id, buffer) in self.schedule.buffers.iter().filter(|(_, b)| !b.persistent) {
            let Some((_, value)) = value_of(self.schedule, buffer) else {
                continue;
            };
            let cells = self.lives[id.index()].cells.all();
            let unread = cells.iter().find(|c| c.content.consumed.is_none());
            let contributed = unread.and_then(|cell| cell.content.contributed);
            if let (Category::Gradients, Some(at)) = (value.category, contributed) {
                self.report(Fault::ContributionUnread, at, id, None);
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

fn overlap(space: Space, with: BufferId) -> Fault {
    match space {
        Space::Device => Fault::ArenaOverlap { with },
        Space::Host => Fault::HostOverlap { with },
    }
}

/// The rows that a part of a buffer's line stands for.
fn row_span(schedule: &Schedule, start: u64, end: u64) -> crate::units::Span {
    let group_start = start / schedule.tokens * schedule.tokens;
    crate::units::Span::new(start - group_start, end - group_start)
}
