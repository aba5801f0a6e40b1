//! APOLLO: gradients scaled as Adam would in a space of low rank.

use super::super::super::super::{Region, Result};
use super::super::operand::{blocks, kernel, number};
use super::super::{Argument, Buffer};
use super::by_gradient;
use super::low_rank::{Projected, Space, Workspace};
use super::sequence::{Area, Given, Sequence};
use crate::device::tensors::{Moments, Projection, TensorUpdate};

impl Sequence<'_> {
    pub(super) fn apollo(
        &mut self,
        tensor: &TensorUpdate,
        projection: Projection,
        (scale, channels, kept): (f64, bool, Moments),
        workspace: Option<Region>,
    ) -> Result<()> {
        let space = Space::of(tensor.shape, projection);
        let elements = space.long * space.rank;
        let (norm, states) = tensor.states.split_last().expect("checked before");
        let kept = self.moments(kept, elements, states)?;
        let mut workspace = Workspace::of(tensor, workspace)?;
        let at = workspace.take(space.rank * space.short * self.operands.size());
        let small = workspace.take(4 * elements);
        let epoch = projection.epoch(self.step.step - 1);
        let basis = self.draw(at, tensor.key, epoch, space)?;
        self.project(Given::of(tensor), (space, basis), Projected::floats(small))?;
        let of_gradient = self.row_squares(small, space)?;
        self.directed((small, small), &kept, elements, tensor.key)?;
        let of_direction = self.row_squares(small, space)?;
        let (of_gradient, of_direction, count, by) = match channels {
            true => (
                of_gradient,
                of_direction,
                space.long,
                1 + u32::from(space.wide),
            ),
            false => {
                let all = self.sum(of_gradient, space.long)?;
                (all, self.sum(of_direction, space.long)?, 1, 0)
            }
        };
        let factors = workspace.take(4 * count);
        let arguments = vec![
            of_gradient,
            of_direction,
            number(count)?,
            Argument::Own(Buffer::Constants, 0),
            factors,
        ];
        let name = kernel!(self.operands, "channel_factors");
        let grid = blocks(count, 256, i32::MAX as u64);
        self.launch(name, [grid, 1, 1], 256, arguments)?;
        let norm = self.operands.floats(*norm, 1)?;
        self.scaled(
            tensor,
            (factors, by),
            norm,
            self.step.learning_rate * scale.sqrt(),
        )
    }

    /// Updates by a gradient whose rows, columns or all of it have factors, and that grows slowly.
    fn scaled(
        &mut self,
        tensor: &TensorUpdate,
        (factors, by): (Argument, u32),
        norm: Argument,
        factor: f64,
    ) -> Result<()> {
        let shape = tensor.shape;
        let of_area = |area: Area| match by {
            1 => factors.behind(4 * area.row),
            _ => factors,
        };
        let partials = self.partials()?;
        let areas = self.areas(Given::of(tensor), shape)?;
        for &area in &areas {
            let mark = self.mark();
            let gradient = self.gradient(Given::of(tensor), area)?;
            let arguments = vec![
                gradient.at,
                Argument::U64(shape.columns),
                of_area(area),
                Argument::U32(by),
                Argument::Own(Buffer::Constants, 0),
                number(area.rows)?,
                number(shape.columns)?,
            ];
            let name = by_gradient!(self.operands, gradient, "scaled_squares");
            self.square(name, (area.rows, shape.columns), arguments, partials)?;
            self.release(mark);
        }
        let squares = self.squared(partials)?;
        let growth = self.take(4)?;
        let name = kernel!(self.operands, "limited_growth");
        self.launch(name, [1; 3], 32, vec![squares, norm, growth])?;
        for area in areas {
            let mark = self.mark();
            let gradient = self.gradient(Given::of(tensor), area)?;
            let mut arguments = self.part(tensor, area)?;
            arguments.extend([
                gradient.at,
                Argument::U64(shape.columns),
                of_area(area),
                Argument::U32(by),
                growth,
                Argument::Own(Buffer::Constants, 0),
            ]);
            arguments.extend(self.descent(factor));
            arguments.extend(self.sizes_and_draws(tensor, area)?);
            let name = by_gradient!(self.operands, gradient, "scaled_update");
            self.over(name, (area.rows, area.columns), arguments)?;
            self.release(mark);
        }
        Ok(())
    }

    /// The sum of squares of every row of what is projected: f64.
    fn row_squares(&mut self, small: Argument, space: Space) -> Result<Argument> {
        let sums = self.take(8 * space.long)?;
        let arguments = vec![small, number(space.long)?, number(space.rank)?, sums];
        let name = kernel!(self.operands, "row_squares");
        let grid = blocks(space.long, 8, i32::MAX as u64);
        self.launch(name, [grid, 1, 1], 256, arguments)?;
        Ok(sums)
    }
}
