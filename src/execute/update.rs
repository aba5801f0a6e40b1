//! Updates of weights: the part of a group of states that an instruction changes.
//!
//! The device updates a weight at a time, of `qkv` and `o` a head group at a time; the host a whole
//! group of weights at once. Both become the same slices for the same arithmetic.

use ebbtide_solver::problem::Category;
use ebbtide_solver::schedule::Instruction;

use super::bind::Taken;
use super::program::{Member, Program};
use crate::device::layout::WeightValue;
use crate::device::{Operator, Region, UpdateSlice};
use crate::error::{Error, Result};

/// An update on the device.
pub(super) fn on_device(
    program: &Program<'_>,
    instruction: &Instruction,
    gradient: Taken<'_>,
    weight: Taken<'_>,
    states: Option<Taken<'_>>,
) -> Result<Vec<Operator>> {
    let id = weight.buffer.value;
    let id = id.ok_or_else(|| Error::bad_input("changes no weight"))?;
    let value = program.weight_value(weight.value)?;
    let of_gradient = program.weight_value(gradient.value)?;
    let right = [
        (of_gradient == value, "the gradient is of another weight"),
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
            states.is_some() == (program.layout.planes(program.rule) > 0),
            "states do not fit the method",
        ),
    ];
    if let Some((_, wrong)) = right.into_iter().find(|(right, _)| !right) {
        return Err(Error::bad_input(wrong));
    }
    let member = program.member(id)?;
    let group = instruction.groups.start;
    let slices = slices(
        program,
        (value, program.carry(id)),
        weight.region,
        (group, &[gradient.region]),
        (member, states.map(|s| s.region)),
    );
    Ok(vec![Operator::Update {
        rule: program.rule,
        slices,
    }])
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
        let pieces = if value.by_groups {
            program.layout.groups
        } else {
            1
        };
        let regions = (0..pieces).map(|_| next(&value.name, value.fixed_bytes.get() / pieces));
        gradients.push(regions.collect::<Result<Vec<Region>>>()?);
    }
    let states = match named.states {
        Some(states) => {
            let states = name(states)?;
            Some(next(&states.name, states.fixed_bytes.get())?)
        }
        None => None,
    };
    let mut all = Vec::new();
    for (&id, pieces) in named.weights.iter().zip(&gradients) {
        let value = name(id)?;
        let region = next(&value.name, value.fixed_bytes.get())?;
        let weight = (program.weight_value(value)?, program.carry(id));
        let member = program.member(id)?;
        all.extend(slices(
            program,
            weight,
            region,
            (0, pieces),
            (member, states),
        ));
    }
    Ok(vec![Operator::Update {
        rule: program.rule,
        slices: all,
    }])
}

/// What is changed of one weight, by the gradients of the head groups from the first given on.
fn slices(
    program: &Program<'_>,
    (weight, carry): (WeightValue, u64),
    region: Region,
    (first_group, pieces): (u64, &[Region]),
    (member, states): (Member<'_>, Option<Region>),
) -> Vec<UpdateSlice> {
    let layout = &program.layout;
    let states = states.map(|region| program.states(member, region));
    match weight.by_groups() {
        true => {
            let pieces = (first_group, pieces);
            layout.update_groups(program.rule, weight, region, pieces, states, carry)
        }
        false => layout.update(program.rule, region, pieces[0], states),
    }
}
