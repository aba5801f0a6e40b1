//! Whether every instruction has the operands that it is said to have: those of its operator, or
//! of its group of model states. Positions count, since a device tells operands apart by them.
//!
//! Which buffer of a value an operand names is not judged here: `form` knows whether it is large
//! enough and `replay` whether it holds the right content.

use super::form::operator;
use super::violation::{Fault, Findings, Place};
use crate::ids::{Id, ValueId};
use crate::schedule::{
    Access, Action, Buffer, Instruction, Operand, Schedule, ScheduledGroup, ScheduledOp, Stream,
};

pub(super) fn check_uses(schedule: &Schedule, findings: &mut Findings) {
    let mut scratch = vec![None; schedule.ops.len()];
    let mut updates = vec![None; schedule.state_groups.len()];
    for stream in Stream::ALL {
        for (index, instruction) in schedule.stream(stream).iter().enumerate() {
            let at = Place {
                step: 1,
                stream,
                index,
            };
            if let Some((op, entry)) = operator(schedule, instruction.action) {
                let slot = &mut scratch[op.index()];
                check_operator(schedule, at, instruction, entry, slot, findings);
            }
            let Action::HostUpdate(group) = instruction.action else {
                continue;
            };
            let Some(entry) = schedule.state_groups.get(group as usize) else {
                continue;
            };
            let mut refuse = |fault, other| findings.add(fault, Some(at), None, other);
            if !entry.on_host {
                refuse(Fault::HostUpdateStray { group }, None);
            }
            let before = updates[group as usize].replace(at);
            if before.is_some() {
                refuse(Fault::HostUpdateTwice { group }, before);
            }
            check_host_update(schedule, at, instruction, entry, findings);
        }
    }
    for (group, (entry, update)) in (0..).zip(schedule.state_groups.iter().zip(updates)) {
        if entry.on_host && update.is_none() {
            findings.add(Fault::HostUpdateMissing { group }, None, None, None);
        }
    }
}

/// What an operand names, if it holds a part of a value.
fn named<'a>(schedule: &'a Schedule, operand: Option<&Operand>) -> Option<(ValueId, &'a Buffer)> {
    let buffer = schedule.buffers.get(operand?.buffer)?;
    Some((buffer.value?, buffer))
}

fn wrong(position: usize, access: Access, value: ValueId) -> Fault {
    let access = match access {
        Access::Read => "read",
        Access::Write => "write",
        Access::Update => "update",
    };
    Fault::WrongOperand {
        position,
        access,
        value,
    }
}

/// One operand for each value that the operator reads, updates, accumulates and writes, then at
/// most one for scratch memory, which all of its runs have or none.
fn check_operator(
    schedule: &Schedule,
    at: Place,
    instruction: &Instruction,
    entry: &ScheduledOp,
    scratch: &mut Option<(Place, bool)>,
    findings: &mut Findings,
) {
    let mut refuse = |fault, other| findings.add(fault, Some(at), None, other);
    let stated = [
        (&entry.reads, Access::Read, false),
        (&entry.updates, Access::Update, false),
        (&entry.accumulates, Access::Update, true),
        (&entry.writes, Access::Write, false),
    ];
    let mut position = 0;
    for (values, access, sum) in stated {
        for &value in values {
            let operand = instruction.operands.get(position);
            // A sum's first contribution may write.
            let fits = operand
                .is_some_and(|o| o.access == access || sum && o.access == Access::Write)
                && named(schedule, operand).is_some_and(|(v, _)| v == value);
            if !fits {
                // It shifts all behind it, so that it says everything.
                return refuse(wrong(position, access, value), None);
            }
            position += 1;
        }
    }
    let rest = &instruction.operands[position..];
    let is_scratch = |operand: &Operand| {
        let buffer = schedule.buffers.get(operand.buffer);
        operand.access == Access::Write && buffer.is_some_and(|b| b.value.is_none())
    };
    match rest {
        [] => {}
        [only] if is_scratch(only) => {}
        _ => return refuse(Fault::ExtraOperand { position }, None),
    }
    match *scratch {
        None => *scratch = Some((at, !rest.is_empty())),
        Some((first, has)) if has == rest.is_empty() => {
            refuse(Fault::OperandsDiffer, Some(first));
        }
        Some(_) => {}
    }
}

/// The group's gradients are read, its states and weights updated, all head groups of each.
fn check_host_update(
    schedule: &Schedule,
    at: Place,
    instruction: &Instruction,
    group: &ScheduledGroup,
    findings: &mut Findings,
) {
    let mut refuse = |fault| findings.add(fault, Some(at), None, None);
    let read = group.gradients.iter().map(|&v| (v, Access::Read));
    let updated = group.states.iter().chain(&group.weights);
    let mut position = 0;
    for (value, access) in read.chain(updated.map(|&v| (v, Access::Update))) {
        let by_groups = schedule.values.get(value).is_some_and(|v| v.by_groups);
        let mut covered = 0;
        while covered < schedule.groups {
            let operand = instruction.operands.get(position);
            let next = named(schedule, operand).filter(|(v, buffer)| {
                *v == value && (!by_groups || buffer.groups.start == covered)
            });
            let Some((_, buffer)) = next.filter(|_| operand.is_some_and(|o| o.access == access))
            else {
                return refuse(wrong(position, access, value));
            };
            covered = match by_groups {
                true => buffer.groups.end,
                false => schedule.groups,
            };
            position += 1;
        }
    }
    if position < instruction.operands.len() {
        refuse(Fault::ExtraOperand { position });
    }
}
