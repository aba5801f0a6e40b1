//! Updates of weights: the part of a group of states that an instruction changes.
//!
//! The device updates a weight at a time, of `qkv` and `o` a head group at a time; the host a whole
//! group of weights at once. Both become the same slices for the same arithmetic.

use ebbtide_solver::ids::ValueId;
use ebbtide_solver::problem::Category;
use ebbtide_solver::schedule::Instruction;

use super::operands::Taken;
use super::program::{Member, Program};
use crate::device::layout::{is_accumulated, Updated, WeightValue};
use crate::device::tensors::TensorUpdate;
use crate::device::{Operator, Region, UpdateRule, UpdateSlice};
use crate::error::{Error, Result};
use crate::methods::Updates;
use crate::model::Weight;

/// An update on the device.
pub(super) fn on_device(
    program: &Program<'_>,
    instruction: &Instruction,
    gradient: Taken<'_>,
    weight: Taken<'_>,
    (states, workspace): (Option<Taken<'_>>, Option<Region>),
) -> Result<Vec<Operator>> {
    let id = weight.buffer.value;
    let id = id.ok_or_else(|| Error::bad_input("changes no weight"))?;
    let value = program.weight_value(weight.value)?;
    let of_gradient = program.weight_value(gradient.value)?;
    let accumulated = is_accumulated(&gradient.value.name);
    let right = [
        (of_gradient == value, "the gradient is of another weight"),
        (
            accumulated == program.method.accumulates(&program.layout, value),
            "the gradient is not as the method accumulates it",
        ),
        (
            gradient.value.category == Category::Gradients,
            "the first operand is no gradient",
        ),
        (
            weight.value.category == Category::Weights,
            "the second operand is no weight",
        ),
        (
            gradient.value.block == weight.value.block,
            "the gradient is of another block",
        ),
        (
            states.is_some() == (program.state_bytes_of(id)? > 0),
            "states do not fit the method",
        ),
    ];
    if let Some((_, wrong)) = right.into_iter().find(|(right, _)| !right) {
        return Err(Error::bad_input(wrong));
    }
    let member = program.member(id)?;
    let states = states.map(|s| s.region);
    let at = Place {
        value,
        id,
        block: weight.value.block,
        region: weight.region,
    };
    let first_group = instruction.groups.start;
    let pieces = match gradient.value.by_groups || accumulated {
        true => vec![gradient.region],
        false => program.layout.pieces(value, gradient.region),
    };
    let change = change(program, at, (first_group, &pieces), (member, states));
    Ok(vec![change.into_operator(workspace)])
}

/// An update of a group on the host.
pub(super) fn on_host(
    program: &Program<'_>,
    instruction: &Instruction,
    group: u32,
) -> Result<Vec<Operator>> {
    let named = program.schedule.state_groups.get(group as usize);
    let named =
        named.ok_or_else(|| Error::bad_input(format!("there is no state group {group}")))?;
    let mut operands = instruction.operands.iter();
    let mut next = |expected: &str, bytes: u64| -> Result<Region> {
        let operand = operands
            .next()
            .ok_or_else(|| Error::bad_input(format!("the update of {expected} lacks operands")))?;
        let buffer = program.buffer(operand.buffer)?;
        let value = program.value(buffer)?;
        match value.name == expected && buffer.bytes.get() == bytes {
            true => Ok(program.region(buffer)),
            false => Err(Error::bad_input(format!(
                "an operand of the update is {} bytes of {}, expected {bytes} of {expected}",
                buffer.bytes.get(),
                value.name
            ))),
        }
    };
    let name = |id| {
        let value = program.schedule.values.get(id);
        value.ok_or_else(|| Error::bad_input("a state group names no value"))
    };
    let mut gradients = Vec::new();
    for &gradient in &named.gradients {
        let value = name(gradient)?;
        let bytes = value.fixed_bytes.get();
        let groups = program.layout.groups;
        gradients.push(match value.by_groups {
            true => (0..groups)
                .map(|_| next(&value.name, bytes / groups))
                .collect::<Result<Vec<Region>>>()?,
            false => {
                let whole = next(&value.name, bytes)?;
                program.layout.pieces(program.weight_value(value)?, whole)
            }
        });
    }
    let states = match named.states {
        Some(states) => {
            let states = name(states)?;
            Some(next(&states.name, states.fixed_bytes.get())?)
        }
        None => None,
    };
    let mut all: Option<Change> = None;
    for (&id, pieces) in named.weights.iter().zip(&gradients) {
        let value = name(id)?;
        let at = Place {
            value: program.weight_value(value)?,
            id,
            block: value.block,
            region: next(&value.name, value.fixed_bytes.get())?,
        };
        let member = program.member(id)?;
        let change = change(program, at, (0, pieces), (member, states));
        match &mut all {
            Some(all) => all.extend(change),
            None => all = Some(change),
        }
    }
    Ok(all.map(|all| all.into_operator(None)).into_iter().collect())
}

/// A weight to change.
#[derive(Clone, Copy)]
struct Place {
    value: WeightValue,
    id: ValueId,
    block: Option<u32>,
    region: Region,
}

/// What an update changes.
enum Change {
    Elements(UpdateRule, Vec<UpdateSlice>),
    Tensors(Vec<TensorUpdate>),
}

impl Change {
    fn extend(&mut self, more: Change) {
        match (self, more) {
            (Change::Elements(_, all), Change::Elements(_, more)) => all.extend(more),
            (Change::Tensors(all), Change::Tensors(more)) => all.extend(more),
            _ => unreachable!("a method has one way to change weights"),
        }
    }
    fn into_operator(self, workspace: Option<Region>) -> Operator {
        match self {
            Change::Elements(rule, slices) => Operator::Update { rule, slices },
            Change::Tensors(tensors) => Operator::TensorUpdate { tensors, workspace },
        }
    }
}

/// What is changed of one weight, by the gradients of the head groups from the first given on.
fn change(
    program: &Program<'_>,
    at: Place,
    (first_group, gradients): (u64, &[Region]),
    (member, states): (Member<'_>, Option<Region>),
) -> Change {
    let layout = &program.layout;
    let rule = match program.method.updates() {
        Updates::Elements(rule) => rule,
        Updates::Tensors => {
            let states = states.map(|all| {
                let first = member.first_state_byte;
                all.part(first, all.bytes - first)
            });
            let updated = Updated {
                weight: at.region,
                gradient: gradients,
                accumulated: program.method.accumulates(layout, at.value),
                states,
                block: at.block,
            };
            let rule = |weight: &Weight| program.method.tensor_rule(weight);
            return Change::Tensors(layout.update_tensors(at.value, updated, rule));
        }
    };
    let states = states.map(|region| program.states(member, region));
    let slices = match at.value.by_groups() {
        true => {
            let pieces = (first_group, gradients);
            let carry = program.carry(at.id);
            layout.update_groups(rule, at.value, at.region, pieces, states, carry)
        }
        false => layout.update(rule, at.region, gradients[0], states),
    };
    Change::Elements(rule, slices)
}
