//! The optimizer and the norm of all gradients.

use super::super::super::{
    Failure, Operator, Region, Result, StepParameters, UpdateRule, UpdateSlice,
};
use super::operand::{blocks, flag, kernel, launch, number, Operands};
use super::{Argument, Buffer, Launch, SCRATCH_BYTES};
use crate::device::cpu::ops::low_rank::adam_factor;
use crate::device::cpu::ops::update::Constants;

/// Threads of a block.
const THREADS: u64 = 256;

/// Elements that a thread has at once where some are f32.
const OF_THREAD: u64 = 4;

/// Copies that one launch adds up.
const COPIES: usize = 8;

/// Where partial sums of squares end in scratch memory and summed gradients begin.
const SUMMED_AT: u64 = 8 << 20;

/// Blocks that add up one gradient's copies, at most.
const SUMMING: u64 = 1024;

/// Bytes of [`Buffer::Constants`].
pub const CONSTANTS_BYTES: usize = 64;

/// The contents of [`Buffer::Constants`] at the start of a step; `clip_factor` changes the first
/// number once the norm of the gradients is known.
pub fn constants(step: &StepParameters) -> [u8; CONSTANTS_BYTES] {
    let of = Constants::new(step, 1.0);
    let floats = [
        of.clip,
        of.keep,
        of.first,
        of.second,
        of.second_new,
        of.correction,
        of.epsilon,
        of.step_size,
        of.learning_rate,
        of.weight_decay,
        step.loss_scale as f32,
        of.most,
    ];
    let mut bytes = [0; CONSTANTS_BYTES];
    for (place, float) in bytes.chunks_exact_mut(4).zip(floats) {
        place.copy_from_slice(&float.to_le_bytes());
    }
    let limit = step.clip.unwrap_or(f64::INFINITY);
    bytes[48..56].copy_from_slice(&limit.to_le_bytes());
    bytes[56..60].copy_from_slice(&(step.beta1 as f32).to_le_bytes());
    bytes[60..64].copy_from_slice(&(adam_factor(step) as f32).to_le_bytes());
    bytes
}

pub fn launches(operands: &Operands, operator: &Operator) -> Result<Vec<Launch>> {
    match operator {
        Operator::GradientNorm { gradients, slot } => gradient_norm(operands, gradients, *slot),
        Operator::Update { rule, slices } => {
            let mut all: Vec<Launch> = clip_factor(operands)?.into_iter().collect();
            for slice in slices {
                update(operands, *rule, slice, &mut all)?;
            }
            Ok(all)
        }
        other => Err(Failure::refused(format!(
            "{} updates nothing",
            other.name()
        ))),
    }
}

/// What finds the factor of all gradients, where their norm is known.
pub fn clip_factor(operands: &Operands) -> Result<Option<Launch>> {
    let slots = operands.reservation.norm_slots;
    if slots == 0 {
        return Ok(None);
    }
    let arguments = vec![
        Argument::Own(Buffer::Squares, 0),
        Argument::U32(slots),
        Argument::Own(Buffer::Constants, 0),
    ];
    let name = kernel!(operands, "clip_factor");
    launch(name, [1; 3], THREADS as u32, 0, arguments).map(Some)
}

/// Adds copies of `count` elements up in f32; `begun`: to what is there.
fn sum(
    operands: &Operands,
    out: Argument,
    copies: &[Argument],
    count: u64,
    mut begun: bool,
    all: &mut Vec<Launch>,
) -> Result<()> {
    for some in copies.chunks(COPIES) {
        let mut arguments = vec![out, Argument::U64(count), flag(!begun)];
        arguments.push(number(some.len() as u64)?);
        arguments.extend(some);
        arguments.resize(4 + COPIES, Argument::Null);
        let grid = [blocks(count.div_ceil(OF_THREAD), THREADS, SUMMING), 1, 1];
        let name = kernel!(operands, "gradient_sum");
        all.push(launch(name, grid, THREADS as u32, 0, arguments)?);
        begun = true;
    }
    Ok(())
}

// ---- the norm -----------------------------------------------------------------------------------

fn gradient_norm(operands: &Operands, gradients: &[Vec<Region>], slot: u32) -> Result<Vec<Launch>> {
    let slots = operands.reservation.norm_slots;
    if slot >= slots {
        let what = format!("norm slot {slot} of {slots} that were reserved");
        return Err(Failure::refused(what));
    }
    let size = operands.size();
    let mut all = Vec::new();
    let mut partials = 0;
    for copies in gradients {
        let Some(first) = copies.first() else {
            return Err(Failure::refused("no gradients"));
        };
        let count = first.bytes / size;
        if count == 0 {
            continue;
        }
        // As many elements at a time as scratch memory holds sums of.
        let at_once = match copies.len() {
            1 => count,
            _ => count.min((SCRATCH_BYTES - SUMMED_AT) / 4),
        };
        for &copy in copies {
            operands.elements(copy, count)?;
        }
        let mut at = 0;
        while at < count {
            let some = at_once.min(count - at);
            let part = |copy: &Region| Argument::Region(copy.part(at * size, some * size));
            let of: Vec<Argument> = copies.iter().map(part).collect();
            let gradient = match of[..] {
                [alone] => (alone, false),
                _ => {
                    let summed = Argument::Own(Buffer::Scratch, SUMMED_AT);
                    sum(operands, summed, &of, some, false, &mut all)?;
                    (summed, true)
                }
            };
            let to = Argument::Own(Buffer::Scratch, 8 * partials);
            let (squares, parts) = operands.squares(gradient, some, to)?;
            all.push(squares);
            partials += parts;
            at += some;
        }
    }
    if 8 * partials > SUMMED_AT {
        let what = format!("a norm of {} gradients at once", gradients.len());
        return Err(Failure::refused(what));
    }
    let slot = Argument::Own(Buffer::Squares, 8 * u64::from(slot));
    all.push(operands.sum_doubles(Argument::Own(Buffer::Scratch, 0), partials, slot)?);
    Ok(all)
}

// ---- updates ------------------------------------------------------------------------------------

fn update(
    operands: &Operands,
    rule: UpdateRule,
    slice: &UpdateSlice,
    all: &mut Vec<Launch>,
) -> Result<()> {
    let panel = slice.weight;
    let (mut rows, mut columns) = (panel.rows, panel.columns);
    let elements = rows * columns;
    let span = panel.span();
    let planes = rule.planes(operands.reservation.dtype) as usize;
    if elements == 0 || slice.gradients.is_empty() || slice.states.len() != planes {
        let what = format!("an update of {elements} parameters without what it needs");
        return Err(Failure::refused(what));
    }
    let copies = slice.gradients.iter();
    let copies: Result<Vec<Argument>> = copies
        .map(|&copy| operands.elements(copy, elements))
        .collect();
    let copies = copies?;
    let summed = match slice.carry {
        None if copies.len() == 1 => None,
        None if 4 * elements > SCRATCH_BYTES - SUMMED_AT => {
            let what = format!("{} copies of {elements} gradients", copies.len());
            return Err(Failure::refused(what));
        }
        None => Some((Argument::Own(Buffer::Scratch, SUMMED_AT), false)),
        Some(carry) if carry.offset + elements > operands.reservation.carry_elements => {
            return Err(Failure::refused(format!(
                "carried gradients up to element {} of {}",
                carry.offset + elements,
                operands.reservation.carry_elements
            )));
        }
        Some(carry) => {
            let place = Argument::Own(Buffer::Carry, 4 * carry.offset);
            Some((place, !carry.first))
        }
    };
    if let Some((place, begun)) = summed {
        sum(operands, place, &copies, elements, begun, all)?;
    }
    let weight = operands.elements(panel.region, span)?;
    let states = slice.states.iter();
    let states: Result<Vec<Argument>> = states.map(|&state| operands.floats(state, span)).collect();
    let states = states?;
    if slice.carry.is_some_and(|carry| !carry.last) {
        return Ok(());
    }
    if panel.stride == columns {
        (rows, columns) = (1, elements);
    }
    let (name, mut arguments) = match (rule, summed) {
        (UpdateRule::AdamW, None) => (kernel!(operands, "adamw"), vec![weight, copies[0]]),
        (UpdateRule::AdamW, Some((sum, _))) => {
            (kernel!(operands, "adamw_summed"), vec![weight, sum])
        }
        (UpdateRule::Sgd, None) => (kernel!(operands, "sgd"), vec![weight, copies[0]]),
        (UpdateRule::Sgd, Some((sum, _))) => (kernel!(operands, "sgd_summed"), vec![weight, sum]),
    };
    if planes == 2 {
        arguments.push(Argument::Null);
    }
    arguments.extend(states);
    arguments.extend([
        Argument::Own(Buffer::Constants, 0),
        number(rows)?,
        Argument::U64(columns),
        Argument::U64(panel.stride),
    ]);
    let alone = rule == UpdateRule::Sgd && summed.is_none();
    let pieces = columns.div_ceil(if alone { operands.wide() } else { OF_THREAD });
    let grid = [
        blocks(pieces, THREADS, i32::MAX as u64),
        rows.min(65_535),
        1,
    ];
    all.push(launch(name, grid, THREADS as u32, 0, arguments)?);
    Ok(())
}
