//! Updates of whole tensors: kernels and matrix products in turns.
//!
//! What lies in several pieces, or is more than scratch memory holds, is taken area by area: by how
//! much at once depends on shapes alone, so that plans do not change a bit. Scratch memory is given
//! out anew for every tensor ([`Sequence`]).

mod apollo;
mod factored;
mod fira;
mod flora;
mod galore;
mod low_rank;
mod sequence;

use super::super::super::{Failure, Operator, Region, Reservation, Result, StepParameters};
use super::operand::{blocks, kernel, Operands};
use super::{update, Argument, Buffer, Task};
use crate::device::cpu::ops::quantised::{SIGNED, UNSIGNED};
use crate::device::tensors::{Moments, TensorRule, TensorUpdate};
use sequence::{Given, Sequence};

/// Bytes of [`Buffer::Maps`].
pub const MAPS_BYTES: u64 = (2 * 256 + 2 * 23 * 64 + 2 + 23 * 128 + 1) * 4;

/// The contents of [`Buffer::Maps`]: the values of signed codes and of unsigned ones, as bits, then
/// where numbers change their code, in the same order.
pub fn maps() -> Vec<u32> {
    let maps = [&*SIGNED, &*UNSIGNED];
    let values = maps.iter().flat_map(|map| map.values.map(f32::to_bits));
    let turns = maps.iter().flat_map(|map| map.turns.iter().copied());
    values.chain(turns).collect()
}

/// All that runs an operator, in so many bytes of [`Buffer::Scratch`].
///
/// # Errors
/// Operands of other sizes than they should have, tensors of which too little fits into scratch
/// memory.
pub fn tasks(
    operator: &Operator,
    reservation: &Reservation,
    step: &StepParameters,
    scratch_bytes: u64,
) -> Result<Vec<Task>> {
    let operands = Operands::new(reservation, &[])?;
    let mut all = Sequence::new(operands, step, scratch_bytes);
    match operator {
        Operator::Project { .. } => all.project_inputs(operator)?,
        Operator::TensorUpdate { tensors, workspace } => {
            let clips = update::clip_factor(&all.operands)?;
            all.tasks.extend(clips.map(Task::Launch));
            for tensor in tensors {
                tensor.check(reservation.dtype)?;
                all.release(0);
                all.change(tensor, *workspace)?;
            }
        }
        Operator::CompressGradient {
            tensors,
            accumulate,
            workspace,
        } => {
            // Only what they add up to is cut.
            all.most = None;
            for tensor in tensors {
                tensor.check(reservation.dtype)?;
                all.release(0);
                all.compress(tensor, *accumulate, *workspace)?;
            }
        }
        other => {
            let what = format!("{} changes no tensors", other.name());
            return Err(Failure::refused(what));
        }
    }
    Ok(all.tasks)
}

impl Sequence<'_> {
    fn change(&mut self, tensor: &TensorUpdate, workspace: Option<Region>) -> Result<()> {
        match tensor.rule {
            TensorRule::Adam(moments) => self.adam(tensor, moments),
            TensorRule::AdaLomo => self.adalomo(tensor),
            TensorRule::Galore {
                projection,
                scale,
                svd,
                moments,
            } => self.galore(tensor, projection, (scale, svd, moments), workspace),
            TensorRule::Fira {
                projection,
                scale,
                svd,
                moments,
            } => self.fira(tensor, projection, (scale, svd, moments), workspace),
            TensorRule::Apollo {
                projection,
                scale,
                channels,
                moments,
            } => self.apollo(tensor, projection, (scale, channels, moments), workspace),
            TensorRule::Compact {
                projection,
                scale,
                moments,
            } => self.compact(tensor, projection, (scale, moments), workspace),
            TensorRule::Flora {
                projection,
                accumulated,
            } => self.flora(tensor, projection, accumulated, workspace),
        }
    }

    /// Adam on weights without master copies.
    fn adam(&mut self, tensor: &TensorUpdate, moments: Moments) -> Result<()> {
        let shape = tensor.shape;
        let moments = self.moments(moments, shape.elements(), &tensor.states)?;
        let weight = self.operands.elements(tensor.weight, shape.elements())?;
        let given = Given::of(tensor);
        for area in self.areas(given, shape)? {
            let mark = self.mark();
            let gradient = self.gradient(given, area)?;
            let name = match moments.kind {
                Moments::F32 => by_gradient!(self.operands, gradient, "adam"),
                Moments::AsWeights => by_gradient!(self.operands, gradient, "adam_rounded"),
                Moments::EightBit => by_gradient!(self.operands, gradient, "adam_in_8_bits"),
            };
            let elements = (area.row * shape.columns, area.rows * shape.columns);
            self.by_moments(
                name,
                (weight, gradient.at),
                &moments,
                elements,
                tensor.key,
                &[],
            )?;
            self.release(mark);
        }
        Ok(())
    }

    /// Adam's moments of so many elements, which lie in these states.
    fn moments(&self, moments: Moments, elements: u64, states: &[Region]) -> Result<Kept> {
        let kind = moments.of(elements);
        let operands = &self.operands;
        let (m, v) = (states[0], states[1]);
        let arguments = match kind {
            Moments::F32 => vec![operands.floats(m, elements)?, operands.floats(v, elements)?],
            // A state is a whole number of words.
            Moments::AsWeights => [m, v]
                .map(|state| state.part(0, elements * operands.size()))
                .into_iter()
                .map(|state| operands.elements(state, elements))
                .collect::<Result<_>>()?,
            Moments::EightBit => {
                let scales = states[2].bytes / 4;
                vec![
                    operands.bytes(m)?,
                    operands.bytes(v)?,
                    operands.floats(states[2], scales)?,
                    operands.floats(states[3], scales)?,
                    Argument::Own(Buffer::Maps, 0),
                ]
            }
        };
        Ok(Kept { kind, arguments })
    }

    /// Runs a kernel over the moments of `count` elements from `first` on.
    fn by_moments(
        &mut self,
        name: &'static str,
        (target, gradient): (Argument, Argument),
        moments: &Kept,
        (first, count): (u64, u64),
        key: u64,
        more: &[Argument],
    ) -> Result<()> {
        let mut arguments = vec![target, gradient];
        arguments.extend(&moments.arguments);
        arguments.extend([
            Argument::Own(Buffer::Constants, 0),
            Argument::U64(first),
            Argument::U64(count),
            Argument::U64(key),
            self.epoch(),
        ]);
        arguments.extend(more);
        // A thread has 8 elements, or 4 of f32. What changes 8-bit moments loads the maps first:
        // worth it for some more.
        let at_once = match moments.kind {
            Moments::EightBit => 8 * 8 * 256,
            Moments::AsWeights => self.operands.wide() * 256,
            Moments::F32 => 4 * 256,
        };
        let grid = blocks(count, at_once, i32::MAX as u64);
        self.launch(name, [grid, 1, 1], 256, arguments)
    }
}

/// Moments as kernels take them.
struct Kept {
    kind: Moments,
    arguments: Vec<Argument>,
}

/// The name of a kernel that takes a gradient of elements, or of f32.
macro_rules! by_gradient {
    ($operands:expr, $gradient:expr, $name:literal) => {
        match $gradient.summed {
            true => kernel!($operands, $name, "_summed"),
            false => kernel!($operands, $name),
        }
    };
}
use by_gradient;
