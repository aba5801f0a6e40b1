//! FLORA: a momentum in a space of low rank, of gradients over their factored second moments.

use super::super::super::super::{Region, Result};
use super::super::operand::{kernel, number};
use super::super::{Argument, Buffer};
use super::by_gradient;
use super::factored::Factors;
use super::low_rank::{Space, Workspace};
use super::sequence::{Factor, Sequence};
use crate::device::tensors::{Projection, TensorUpdate};
use crate::profile::Dtype;

impl Sequence<'_> {
    pub(super) fn flora(
        &mut self,
        tensor: &TensorUpdate,
        projection: Projection,
        workspace: Option<Region>,
    ) -> Result<()> {
        let space = Space::of(tensor.shape, projection);
        let Space {
            long,
            short,
            rank,
            wide,
        } = space;
        let momentum = self.operands.floats(tensor.states[0], long * rank)?;
        let of_long = self.operands.floats(tensor.states[1], long)?;
        let of_short = self.operands.floats(tensor.states[2], short)?;
        let mut workspace = Workspace::of(tensor, workspace)?;
        let (size, dtype) = (self.operands.size(), self.dtype());
        let [old, new] = [0, 1].map(|_| workspace.take(rank * short * size));
        let direction = workspace.take(4 * long * short);
        // Steps that are done.
        let done = self.step.step - 1;
        let [before, now] = [done.saturating_sub(1), done].map(|done| projection.epoch(done));
        let a = self.draw(old, tensor.key, before, space)?;
        let renewed = match before == now {
            true => None,
            false => Some(self.draw(new, tensor.key, now, space)?),
        };

        let factors = self.factored(tensor, (of_long, of_short), wide)?;
        let [keep, take] = [self.step.beta1, 1.0 - self.step.beta1].map(|share| share as f32);
        // The gathered gradient; u, the direction and the momentum as elements.
        let row = (4 + 2 * size) * short + size * rank;
        let at_once = self.at_once(self.left(), (long, rank), row)?;
        let columns = tensor.shape.columns;
        for (area, first, some) in space.along(at_once) {
            let mark = self.mark();
            let rows = momentum.behind(4 * first * rank);
            let m = Factor {
                at: self.narrowed(rows, rank, (some, rank))?,
                stride: rank,
                turned: wide,
            };
            let here = direction.behind(space.before(area));
            let p = space.basis(a, wide);
            // M A; of a wide matrix its transpose.
            let pair = if wide { (p, m) } else { (m, p) };
            self.multiply([area.rows, area.columns, rank], pair, dtype)
                .factor(a.factor)
                .to(here, columns, Dtype::F32);
            // What is as long as the area's part of M: a matrix of it times A'ᵀ.
            let tall = |at| Factor {
                at,
                stride: area.columns,
                turned: wide,
            };
            let sizes = [some, rank, short];
            if let Some(new) = renewed {
                let moved = self.narrowed(here, columns, (area.rows, area.columns))?;
                self.multiply(sizes, (tall(moved), space.basis(new, true)), dtype)
                    .factor(new.factor)
                    .to(rows, rank, Dtype::F32);
            }
            let update = self.take(area.elements() * size)?;
            let gradient = self.gradient(tensor, area)?;
            let mut arguments = vec![
                here,
                Argument::U64(columns),
                gradient.at,
                Argument::U64(gradient.stride),
            ];
            arguments.extend(factors.of(area));
            arguments.extend([
                update,
                Argument::Own(Buffer::Constants, 0),
                number(area.rows)?,
                number(area.columns)?,
                Argument::F32(keep),
                Argument::F32(take),
            ]);
            let name = by_gradient!(self.operands, gradient, "mixed");
            self.over(name, (area.rows, area.columns), arguments)?;
            let basis = renewed.unwrap_or(a);
            self.multiply(sizes, (tall(update), space.basis(basis, true)), dtype)
                .factor(take * basis.factor)
                .added_to(rows, keep)
                .to(rows, rank, Dtype::F32);
            self.release(mark);
        }

        let elements = tensor.shape.elements();
        let weight = self.operands.elements(tensor.weight, elements)?;
        let of_weights = self.squares(weight, elements, false)?;
        let of_update = self.squares(direction, elements, true)?;
        let rate = self.rate(of_weights, of_update, elements)?;
        let mut arguments = self.part(tensor, space.area())?;
        arguments.extend([
            direction,
            Argument::U64(columns),
            Argument::Own(Buffer::Constants, 0),
            rate,
        ]);
        arguments.extend(self.sizes_and_draws(tensor, space.area())?);
        let name = kernel!(self.operands, "stored_update");
        self.over(name, (tensor.shape.rows, columns), arguments)
    }

    /// Moves second moments by a gradient: those of `M` over their mean, and those of `μ`.
    fn factored(
        &mut self,
        tensor: &TensorUpdate,
        (of_long, of_short): (Argument, Argument),
        wide: bool,
    ) -> Result<Factors> {
        let (rows, columns) = match wide {
            true => (of_short, of_long),
            false => (of_long, of_short),
        };
        self.factors(tensor, rows, columns)?;
        let mean = self.mean(of_long, tensor.shape.sides().0)?;
        let [row_mean, column_mean] = match wide {
            true => [Argument::Null, mean],
            false => [mean, Argument::Null],
        };
        Ok(Factors {
            rows,
            row_mean,
            columns,
            column_mean,
        })
    }
}
