//! Gradients scaled as Adam would in a space of low rank: APOLLO's, and Fira's residuals.

use super::super::super::super::{Region, Result};
use super::super::operand::{blocks, kernel, number};
use super::super::{Argument, Buffer};
use super::by_gradient;
use super::low_rank::{Projected, Space, Workspace};
use super::sequence::{Area, Given, Gradient, Sequence};
use crate::device::tensors::{Moments, Projection, TensorUpdate};

/// Factors of a gradient's channels, which are what the longer side counts, or one of all of it.
#[derive(Clone, Copy)]
pub struct Channels {
    at: Argument,
    /// Of rows (1), of columns (2), of all (0).
    by: u32,
}

impl Channels {
    /// Those of an area.
    fn of(self, area: Area) -> [Argument; 2] {
        let first = [0, area.row, area.column][self.by as usize];
        [self.at.behind(4 * first), Argument::U32(self.by)]
    }
}

/// A matrix of f32, and the elements from row to row.
pub type Floats = (Argument, u64);

/// No matrix.
const NONE: Floats = (Argument::Null, 0);

/// A gradient by the factors of its channels, as kernels take it; what is taken off it before is
/// negative, and not yet scaled by the norm of all gradients.
pub struct Scaled {
    pub gradient: Gradient,
    pub taken: Floats,
    pub channels: Channels,
}

impl Scaled {
    fn arguments(&self, area: Area) -> Vec<Argument> {
        let mut arguments = vec![
            self.gradient.at,
            Argument::U64(self.gradient.stride),
            self.taken.0,
            Argument::U64(self.taken.1),
        ];
        arguments.extend(self.channels.of(area));
        arguments
    }
}

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
        let given = Given::of(tensor);
        self.project(given, (space, basis), Projected::floats(small))?;
        let of_gradient = self.row_squares(small, space)?;
        self.directed((small, small), &kept, elements, tensor.key)?;
        let of_direction = self.row_squares(small, space)?;
        let channels = match channels {
            true => self.channels((of_gradient, of_direction), space)?,
            false => {
                let of_gradient = self.sum(of_gradient, space.long)?;
                let of_direction = self.sum(of_direction, space.long)?;
                self.factors_of((of_gradient, of_direction), 1, 0)?
            }
        };
        let scaled = |gradient| Scaled {
            gradient,
            taken: NONE,
            channels,
        };
        let partials = self.partials()?;
        let areas = self.areas(given, tensor.shape)?;
        for &area in &areas {
            let mark = self.mark();
            let scaled = scaled(self.gradient(given, area)?);
            self.square_scaled(area, &scaled, partials)?;
            self.release(mark);
        }
        let growth = self.growth(partials, *norm)?;
        let factor = self.step.learning_rate * scale.sqrt();
        for area in areas {
            let mark = self.mark();
            let scaled = scaled(self.gradient(given, area)?);
            self.descend_scaled((tensor, area), &scaled, (growth, NONE), factor)?;
            self.release(mark);
        }
        Ok(())
    }

    /// The factors of all channels, by the sums of squares of what is projected and of what Adam
    /// made of it.
    pub(super) fn channels(
        &mut self,
        squares: (Argument, Argument),
        space: Space,
    ) -> Result<Channels> {
        self.factors_of(squares, space.long, 1 + u32::from(space.wide))
    }

    fn factors_of(
        &mut self,
        (of_gradient, of_direction): (Argument, Argument),
        count: u64,
        by: u32,
    ) -> Result<Channels> {
        let at = self.take(4 * count)?;
        let arguments = vec![
            of_gradient,
            of_direction,
            number(count)?,
            Argument::Own(Buffer::Constants, 0),
            at,
        ];
        let name = kernel!(self.operands, "channel_factors");
        let grid = blocks(count, 256, i32::MAX as u64);
        self.launch(name, [grid, 1, 1], 256, arguments)?;
        Ok(Channels { at, by })
    }

    /// Adds the squares of an area's scaled gradient to partial sums.
    pub(super) fn square_scaled(
        &mut self,
        area: Area,
        scaled: &Scaled,
        partials: Argument,
    ) -> Result<()> {
        let mut arguments = scaled.arguments(area);
        arguments.extend([
            Argument::Own(Buffer::Constants, 0),
            number(area.rows)?,
            number(area.columns)?,
        ]);
        let name = by_gradient!(self.operands, scaled.gradient, "scaled_squares");
        self.square(name, (area.rows, area.columns), arguments, partials)
    }

    /// What an update is multiplied with so that it grows slowly, by its squares and its norm
    /// before: its address.
    pub(super) fn growth(&mut self, partials: Argument, norm: Region) -> Result<Argument> {
        let squares = self.squared(partials)?;
        let growth = self.take(4)?;
        let arguments = vec![squares, self.operands.floats(norm, 1)?, growth];
        let name = kernel!(self.operands, "limited_growth");
        self.launch(name, [1; 3], 32, arguments)?;
        Ok(growth)
    }

    /// Takes an area's scaled gradient, limited in its growth, and what is added to it off weights.
    pub(super) fn descend_scaled(
        &mut self,
        (tensor, area): (&TensorUpdate, Area),
        scaled: &Scaled,
        (growth, added): (Argument, Floats),
        factor: f64,
    ) -> Result<()> {
        let mut arguments = self.part(tensor, area)?;
        arguments.extend(scaled.arguments(area));
        arguments.extend([growth, added.0, Argument::U64(added.1)]);
        arguments.push(Argument::Own(Buffer::Constants, 0));
        arguments.extend(self.descent(factor));
        arguments.extend(self.sizes_and_draws(tensor, area)?);
        let name = by_gradient!(self.operands, scaled.gradient, "scaled_update");
        self.over(name, (area.rows, area.columns), arguments)
    }

    /// The sum of squares of every row of what is projected: f64.
    pub(super) fn row_squares(&mut self, small: Argument, space: Space) -> Result<Argument> {
        let sums = self.take(8 * space.long)?;
        let arguments = vec![small, number(space.long)?, number(space.rank)?, sums];
        let name = kernel!(self.operands, "row_squares");
        let grid = blocks(space.long, 8, i32::MAX as u64);
        self.launch(name, [grid, 1, 1], 256, arguments)?;
        Ok(sums)
    }
}
