//! FLORA: a momentum in a space of low rank, of gradients over their factored second moments; and
//! sums of micro-batches' gradients in one.

use super::super::super::super::{Region, Result};
use super::super::operand::{kernel, number};
use super::super::{Argument, Buffer};
use super::by_gradient;
use super::factored::Factors;
use super::low_rank::{Drawn, Projected, Space, Workspace};
use super::sequence::{Area, Factor, Given, Sequence};
use crate::device::cpu::ops::philox::Purpose;
use crate::device::tensors::{GradientSum, Projection, TensorUpdate};
use crate::profile::Dtype;

impl Sequence<'_> {
    pub(super) fn flora(
        &mut self,
        tensor: &TensorUpdate,
        projection: Projection,
        accumulated: bool,
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

        let given = match accumulated {
            true => self.decompressed(tensor, space, &mut workspace)?,
            false => Given::of(tensor),
        };
        let factors = self.factored(given, (of_long, of_short), wide)?;
        let [keep, take] = [self.step.beta1, 1.0 - self.step.beta1].map(|share| share as f32);
        // The gathered gradient; u, the direction and the momentum as elements.
        let row = (4 + 2 * size) * short + size * rank;
        let at_once = self.at_once(self.left(), (long, rank), row)?;
        let columns = tensor.shape.columns;
        for (area, first, some) in space.along(at_once) {
            let mark = self.mark();
            let here = direction.behind(space.before(area));
            // M A; of a wide matrix its transpose.
            let m = space.rows(momentum, first);
            self.returned((space, a), area, m, (here, columns))?;
            let rows = m.at;
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
            let gradient = self.gradient(given, area)?;
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
        given: Given<'_>,
        (of_long, of_short): (Argument, Argument),
        wide: bool,
    ) -> Result<Factors> {
        let (rows, columns) = match wide {
            true => (of_short, of_long),
            false => (of_long, of_short),
        };
        self.factors(given, rows, columns)?;
        Ok(Factors {
            rows: self.inverse_roots(rows, given.shape.rows, !wide)?,
            columns: self.inverse_roots(columns, given.shape.columns, wide)?,
        })
    }

    /// The numbers of the projection in which a step's gradients of a tensor are added up.
    fn accumulation(&self, key: u64) -> Drawn {
        (key, self.step.step as u32, Purpose::Accumulation)
    }

    /// What has been added up in a space of low rank, as a gradient of the tensor's shape: `C A`.
    fn decompressed<'t>(
        &mut self,
        tensor: &'t TensorUpdate,
        space: Space,
        workspace: &mut Workspace,
    ) -> Result<Given<'t>> {
        let Space {
            long, short, rank, ..
        } = space;
        let size = self.operands.size();
        let at = workspace.take(rank * short * size);
        let to = workspace.take(4 * long * short);
        let a = self.draw_for(at, self.accumulation(tensor.key), space)?;
        let sums = Given::of(tensor);
        let at_once = match sums.is_whole() {
            true => long,
            false => self.at_once(self.left(), (long, rank), (4 + size) * rank)?,
        };
        for (area, first, some) in space.along(at_once) {
            let mark = self.mark();
            let c = self.gradient(sums, Area::of(sums.shape).part(first, some))?;
            let here = (to.behind(space.before(area)), tensor.shape.columns);
            self.returned((space, a), area, c, here)?;
            self.release(mark);
        }
        Ok(Given::whole(tensor.shape, to))
    }

    /// Adds a micro-batch's gradient to a sum, in a space of low rank or as it is.
    pub(super) fn compress(
        &mut self,
        tensor: &GradientSum,
        accumulate: bool,
        workspace: Option<Region>,
    ) -> Result<()> {
        let given = Given::in_blocks(tensor.shape, &tensor.gradient);
        let size = self.operands.size();
        let Some(rank) = tensor.rank else {
            let columns = tensor.shape.columns;
            let sum = self
                .operands
                .elements(tensor.sum, tensor.shape.elements())?;
            // What is added up in f32.
            let (sides, row) = ((tensor.shape.rows, columns), 4 * columns);
            let at_once = self.at_once(self.left(), sides, row)?;
            for area in Area::of(tensor.shape).by_rows(at_once) {
                let mark = self.mark();
                let here = sum.behind(area.row * columns * size);
                let added = self.dense(given, area)?;
                if accumulate {
                    self.add(here, added, area.elements())?;
                }
                self.narrow(added, columns, here, (area.rows, columns))?;
                self.release(mark);
            }
            return Ok(());
        };
        let refresh = 1;
        let space = Space::of(tensor.shape, Projection { rank, refresh });
        let sum = Projected {
            at: self.operands.elements(tensor.sum, space.long * rank)?,
            dtype: self.dtype(),
            adds: accumulate,
        };
        let bytes = rank * space.short * size;
        let at = match workspace.filter(|region| region.bytes >= bytes) {
            Some(region) => Argument::Region(region.part(0, bytes)),
            None => self.take(bytes)?,
        };
        let a = self.draw_for(at, self.accumulation(tensor.key), space)?;
        self.project(given, (space, a), sum)
    }
}
