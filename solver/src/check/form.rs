//! What one buffer or one instruction shows by itself: ids, spans, sizes, capacities, streams.

use std::collections::HashSet;

use super::violation::{Fault, Findings, Place};
use crate::ids::{BufferId, OpId, ValueId};
use crate::problem::{Category, Domain};
use crate::schedule::{
    Access, Action, Buffer, Instruction, Schedule, ScheduledOp, ScheduledValue, Space, Stream,
};
use crate::units::{Bytes, Span};

/// Device buffers start at multiples of this many bytes.
const ALIGNMENT: u64 = 512;
/// More rows than any machine can hold; keeps every product of rows and groups in 64 bits.
const MOST_TOKENS: u64 = 1 << 40;
/// More head groups than any model has heads.
const MOST_GROUPS: u64 = 1 << 10;

/// What an instruction covers of a value that has rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Extent {
    pub(super) rows: Span,
    pub(super) groups: Span,
}

/// All rows of all groups.
pub(super) fn everything(schedule: &Schedule) -> Extent {
    Extent {
        rows: Span::new(0, schedule.tokens),
        groups: Span::new(0, schedule.groups),
    }
}

/// The operator that an instruction runs, if it runs one.
pub(super) fn operator(schedule: &Schedule, action: Action) -> Option<(OpId, &ScheduledOp)> {
    match action {
        Action::Run(op) | Action::Recompute(op) => Some((op, schedule.ops.get(op)?)),
        _ => None,
    }
}

/// The value that a buffer holds a part of.
pub(super) fn value_of<'a>(
    schedule: &'a Schedule,
    buffer: &Buffer,
) -> Option<(ValueId, &'a ScheduledValue)> {
    let value = buffer.value?;
    Some((value, schedule.values.get(value)?))
}

/// What an instruction covers of its operands: an operator as its domain says, a copy and the
/// host's optimizer the whole buffer (nothing is returned).
pub(super) fn extent(schedule: &Schedule, instruction: &Instruction) -> Option<Extent> {
    let all = everything(schedule);
    let Instruction { rows, groups, .. } = *instruction;
    operator(schedule, instruction.action).map(|(_, op)| match op.domain {
        Domain::Rows => Extent {
            rows,
            groups: all.groups,
        },
        Domain::RowsOfGroup => Extent { rows, groups },
        Domain::Group => Extent {
            rows: all.rows,
            groups,
        },
        Domain::Whole => all,
    })
}

fn is_within(span: Span, limit: u64) -> bool {
    span.start <= span.end && span.end <= limit
}

/// Whether the numbers are of a size that the rest can calculate with.
pub(super) fn check_limits(schedule: &Schedule, findings: &mut Findings) -> bool {
    let before = [
        (schedule.tokens <= MOST_TOKENS, "tokens"),
        (schedule.groups <= MOST_GROUPS, "groups"),
        (schedule.tokens > 0, "tokens"),
        (schedule.groups > 0, "groups"),
        (schedule.micro_batches > 0, "micro_batches"),
        (matches!(schedule.passes, 1 | 2), "passes"),
    ];
    let mut sane = true;
    for (_, what) in before.into_iter().filter(|(holds, _)| !holds) {
        findings.add(Fault::BadRange { what }, None, None, None);
        sane = false;
    }
    sane
}

pub(super) fn check_form(schedule: &Schedule, findings: &mut Findings) {
    let Schedule {
        arena_bytes,
        host_bytes,
        budget,
        ..
    } = *schedule;
    if arena_bytes > budget.device {
        let fault = Fault::OverDeviceBudget {
            bytes: arena_bytes,
            budget: budget.device,
        };
        findings.add(fault, None, None, None);
    }
    if host_bytes > budget.host {
        let fault = Fault::OverHostBudget {
            bytes: host_bytes,
            budget: budget.host,
        };
        findings.add(fault, None, None, None);
    }
    for op in schedule.ops.values() {
        let changed = op.accumulates.iter().chain(&op.updates);
        check_values(
            schedule,
            op.reads.iter().chain(&op.writes).chain(changed),
            findings,
        );
    }
    for group in &schedule.state_groups {
        let trained = group.weights.iter().chain(&group.gradients);
        check_values(schedule, trained.chain(&group.states), findings);
    }
    for (id, buffer) in schedule.buffers.iter() {
        check_buffer(schedule, id, buffer, findings);
    }
    for stream in Stream::ALL {
        for (index, instruction) in schedule.stream(stream).iter().enumerate() {
            let at = Place {
                step: 1,
                stream,
                index,
            };
            check_action(schedule, at, instruction, findings);
            check_operands(schedule, at, instruction, findings);
        }
    }
    check_states(schedule, findings);
}

fn check_values<'a>(
    schedule: &Schedule,
    values: impl Iterator<Item = &'a ValueId>,
    findings: &mut Findings,
) {
    for &value in values.filter(|&&value| schedule.values.get(value).is_none()) {
        findings.add(Fault::UnknownValue { value }, None, None, None);
    }
}

/// Optimizer states live for ever and change in every step, in place.
fn check_states(schedule: &Schedule, findings: &mut Findings) {
    let operands = schedule.streams.iter().flatten().flat_map(|i| &i.operands);
    let updates = operands.filter(|operand| operand.access == Access::Update);
    let updated: HashSet<BufferId> = updates.map(|operand| operand.buffer).collect();
    for (id, buffer) in schedule.buffers.iter() {
        let states = buffer.persistent && buffer.category == Category::OptimizerStates;
        if states && !updated.contains(&id) {
            findings.add(Fault::StatesNotUpdated, None, Some(id), None);
        }
    }
}

fn check_buffer(schedule: &Schedule, id: BufferId, buffer: &Buffer, findings: &mut Findings) {
    let mut refuse = |fault| findings.add(fault, None, Some(id), None);
    let limit = match buffer.space {
        Space::Device => schedule.arena_bytes,
        Space::Host => schedule.host_bytes,
    };
    if buffer
        .offset
        .checked_add(buffer.bytes)
        .is_none_or(|end| end > limit)
    {
        refuse(Fault::OutOfBounds { limit });
    }
    if buffer.space == Space::Device && buffer.offset.get() % ALIGNMENT != 0 {
        refuse(Fault::Misaligned {
            offset: buffer.offset,
        });
    }
    if buffer.lifetime.start > buffer.lifetime.end {
        refuse(Fault::BadRange { what: "lifetime" });
    }
    let Some(value) = buffer.value else { return };
    let Some(value_entry) = schedule.values.get(value) else {
        return refuse(Fault::UnknownValue { value });
    };
    if value_entry.row_bytes > 0 {
        if !is_within(buffer.rows, schedule.tokens) {
            return refuse(Fault::BadRange {
                what: "rows of the buffer",
            });
        }
        if !is_within(buffer.groups, schedule.groups) {
            return refuse(Fault::BadRange {
                what: "groups of the buffer",
            });
        }
    }
    let expected = expected_bytes(schedule, value_entry, buffer);
    if expected != u128::from(buffer.bytes.get()) {
        let expected = Bytes::new(u64::try_from(expected).unwrap_or(u64::MAX));
        refuse(Fault::WrongSize {
            bytes: buffer.bytes,
            expected,
        });
    }
}

/// The bytes of the rows and groups of a value that a buffer holds.
fn expected_bytes(schedule: &Schedule, value: &ScheduledValue, buffer: &Buffer) -> u128 {
    let fixed = u128::from(value.fixed_bytes.get());
    let row_bytes = match (buffer.space, buffer.packed) {
        (Space::Device, false) => value.row_bytes,
        _ => value.packed_row_bytes.unwrap_or(value.row_bytes),
    };
    let all = u128::from(row_bytes) * u128::from(buffer.rows.len()) + fixed;
    match value.by_groups {
        true => all * u128::from(buffer.groups.len()) / u128::from(schedule.groups),
        false => all,
    }
}

fn check_action(
    schedule: &Schedule,
    at: Place,
    instruction: &Instruction,
    findings: &mut Findings,
) {
    let mut refuse = |fault| findings.add(fault, Some(at), None, None);
    let fits = match instruction.action {
        Action::Run(_) | Action::Recompute(_) => at.stream == Stream::Compute,
        Action::HostUpdate(_) => at.stream == Stream::Host,
        Action::Copy => at.stream != Stream::Host,
        Action::Barrier => true,
    };
    if !fits {
        refuse(Fault::WrongStream);
    }
    if instruction.micro_batch >= schedule.rounds() {
        refuse(Fault::BadRange {
            what: "micro-batch",
        });
    }
    match instruction.action {
        Action::Run(op) | Action::Recompute(op) => match schedule.ops.get(op) {
            None => refuse(Fault::UnknownOp { op }),
            Some(entry) => {
                if let Some(what) = bad_range(schedule, entry.domain, instruction) {
                    refuse(Fault::BadRange { what });
                }
            }
        },
        Action::HostUpdate(group) => {
            if group as usize >= schedule.state_groups.len() {
                refuse(Fault::UnknownStateGroup { group });
            }
        }
        Action::Copy => check_copy(schedule, at, instruction, findings),
        Action::Barrier => {}
    }
}

/// What of an operator's range cannot be: rows or groups that are none, or not all where its
/// domain says all (an operator over all rows may also say none).
fn bad_range(
    schedule: &Schedule,
    domain: Domain,
    instruction: &Instruction,
) -> Option<&'static str> {
    let all = everything(schedule);
    let Instruction { rows, groups, .. } = *instruction;
    let rows_fit = match domain {
        Domain::Rows | Domain::RowsOfGroup => is_within(rows, schedule.tokens) && !rows.is_empty(),
        Domain::Group | Domain::Whole => rows == all.rows || rows.start == rows.end,
    };
    let groups_fit = match domain {
        Domain::RowsOfGroup | Domain::Group => {
            is_within(groups, schedule.groups) && !groups.is_empty()
        }
        Domain::Rows | Domain::Whole => true,
    };
    match (rows_fit, groups_fit) {
        (false, _) => Some("rows of the instruction"),
        (_, false) => Some("groups of the instruction"),
        _ => None,
    }
}

fn check_copy(schedule: &Schedule, at: Place, copy: &Instruction, findings: &mut Findings) {
    let mut refuse = |what| findings.add(Fault::CopyMismatch { what }, Some(at), None, None);
    let [from, to] = copy.operands.as_slice() else {
        return refuse("two operands");
    };
    if (from.access, to.access) != (Access::Read, Access::Write) {
        return refuse("a source that is read and a target that is written");
    }
    let (Some(source), Some(target)) = (
        schedule.buffers.get(from.buffer),
        schedule.buffers.get(to.buffer),
    ) else {
        return;
    };
    let spaces = match at.stream {
        Stream::H2d => (Space::Host, Space::Device),
        Stream::Compute => (Space::Device, Space::Device),
        _ => (Space::Device, Space::Host),
    };
    if (source.space, target.space) != spaces {
        refuse("the source and target memory of its stream");
    }
    let value = value_of(schedule, source);
    let packed = value.is_some_and(|(_, value)| value.packed_row_bytes.is_some());
    if source.value != target.value || (!packed && source.bytes != target.bytes) {
        refuse("the same value and bytes on both sides");
    }
    let within = at.stream == Stream::Compute;
    if (source.packed != target.packed) != within || (within && !packed) {
        refuse("a packed side and another on the compute stream, and nowhere else");
    }
    let extents = [source, target].map(|buffer| (buffer.rows, buffer.groups));
    if extents[0] != extents[1] || extents[0] != (copy.rows, copy.groups) {
        refuse("the rows and groups of both its buffers");
    }
}

fn check_operands(schedule: &Schedule, at: Place, from: &Instruction, findings: &mut Findings) {
    let extent = extent(schedule, from);
    let recompute = matches!(from.action, Action::Recompute(_));
    for operand in &from.operands {
        let id = operand.buffer;
        let mut refuse = |fault| findings.add(fault, Some(at), Some(id), None);
        let Some(buffer) = schedule.buffers.get(id) else {
            refuse(Fault::UnknownBuffer);
            continue;
        };
        let reachable = match at.stream {
            Stream::Compute => buffer.space == Space::Device,
            Stream::Host => buffer.space == Space::Host,
            Stream::D2h | Stream::H2d => true,
        };
        if !reachable {
            refuse(Fault::WrongSpace);
        }
        if buffer.packed && from.action != Action::Copy {
            refuse(Fault::PackedOperand);
        }
        let position = at.index as u64;
        let alive = Span::new(position, position + 1);
        if at.stream == Stream::Compute && !buffer.persistent && !buffer.lifetime.contains(alive) {
            refuse(Fault::OutsideLifetime {
                lifetime: buffer.lifetime,
            });
        }
        let Some((_, value)) = value_of(schedule, buffer) else {
            continue;
        };
        if let Some(Extent { rows, groups }) = extent.filter(|_| value.row_bytes > 0) {
            if !(buffer.rows.contains(rows) && (!value.by_groups || buffer.groups.contains(groups)))
            {
                refuse(Fault::WrongExtent { rows, groups });
            }
        }
        let is_state = matches!(
            value.category,
            Category::Weights | Category::Gradients | Category::OptimizerStates
        );
        if recompute && is_state && operand.access != Access::Read {
            refuse(Fault::RecomputeChangesState);
        }
    }
}
