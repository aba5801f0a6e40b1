//! What updates in a space of low rank share; CompAct's, and what it saves of inputs.
//!
//! Projections are products of elements with f32 sums and results. A random projection is drawn
//! into memory as whole numbers ([`Basis::factor`] goes with the product), which bf16 holds
//! exactly; what is multiplied back is rounded to elements for its product, as every operand of a
//! product is. So the products of a step take what the planner asks for them. Those that renew
//! GaLore's basis are of f32: a basis is made of differences.
//!
//! Matrices are turned so that they are tall, as at
//! [`TensorRule`](crate::device::tensors::TensorRule): `M` rows and `μ` columns, in
//! memory the other way round where `wide`.

use super::super::super::super::{Failure, Operator, Region, Result};
use super::super::operand::{blocks, kernel};
use super::super::{Argument, Buffer};
use super::sequence::{Area, Factor, Given, Gradient, Sequence};
use super::{by_gradient, Kept};
use crate::device::cpu::ops::philox::Purpose;
use crate::device::tensors::{Moments, Projection, TensorShape, TensorUpdate};
use crate::profile::Dtype;

/// What is projected, and by what.
#[derive(Clone, Copy)]
pub struct Space {
    /// `M`, `μ` and `r`.
    pub long: u64,
    pub short: u64,
    pub rank: u64,
    /// Whether rows are the short side.
    pub wide: bool,
}

impl Space {
    pub fn of(shape: TensorShape, projection: Projection) -> Space {
        let (long, short) = shape.sides();
        Space {
            long,
            short,
            rank: projection.rank,
            wide: shape.rows < shape.columns,
        }
    }

    /// That of a layer's inputs, which are projected whatever its outputs are.
    fn of_inputs(rows: u64, inputs: u64, projection: Projection) -> Space {
        Space {
            long: rows,
            short: inputs,
            rank: projection.rank,
            wide: false,
        }
    }

    /// Whole, in memory.
    pub fn area(&self) -> Area {
        let (rows, columns) = match self.wide {
            true => (self.short, self.long),
            false => (self.long, self.short),
        };
        Area::of(TensorShape { rows, columns })
    }

    /// Cut along `M`: areas, of each the first of its rows when it is tall, and how many.
    pub fn along(&self, at_once: u64) -> impl Iterator<Item = (Area, u64, u64)> {
        let (whole, wide) = (self.area(), self.wide);
        let starts = (0..self.long).step_by(at_once as usize);
        let long = self.long;
        starts.map(move |first| {
            let some = at_once.min(long - first);
            let area = match wide {
                true => Area {
                    column: first,
                    columns: some,
                    ..whole
                },
                false => Area {
                    row: first,
                    rows: some,
                    ..whole
                },
            };
            (area, first, some)
        })
    }

    /// Bytes before an area in f32 that lie as the tensor does.
    pub fn before(&self, area: Area) -> u64 {
        4 * (area.row * self.area().columns + area.column)
    }

    /// Rows of `[M × r]` in f32 from the first on.
    pub fn rows(&self, of: Argument, first: u64) -> Gradient {
        Gradient::dense(of.behind(4 * first * self.rank), self.rank)
    }

    /// `P` or `Pᵀ` as the right factor of a product of tall matrices.
    pub fn basis(&self, basis: Basis, turned: bool) -> Factor {
        Factor {
            at: basis.at,
            stride: self.short,
            turned,
        }
    }
}

/// `P [r × μ]`: in memory times a factor.
#[derive(Clone, Copy)]
pub struct Basis {
    pub at: Argument,
    pub factor: f32,
}

impl Basis {
    /// The same times a number.
    pub fn times(self, factor: f64) -> Basis {
        Basis {
            factor: self.factor * factor as f32,
            ..self
        }
    }
}

/// Random numbers of a tensor: its key, when, and what for.
pub type Drawn = (u64, u32, Purpose);

/// Where `[M × r]` goes.
#[derive(Clone, Copy)]
pub struct Projected {
    pub at: Argument,
    pub dtype: Dtype,
    /// Whether it is added to what is there.
    pub adds: bool,
}

impl Projected {
    /// Into f32.
    pub fn floats(at: Argument) -> Projected {
        Projected {
            at,
            dtype: Dtype::F32,
            adds: false,
        }
    }
}

/// The planned scratch memory of an update, given out from its start.
pub struct Workspace {
    region: Region,
    used: u64,
}

impl Workspace {
    pub fn of(tensor: &TensorUpdate, workspace: Option<Region>) -> Result<Workspace> {
        let needed = tensor.rule.workspace_bytes(tensor.shape);
        let region = workspace.filter(|region| region.bytes >= needed);
        let region = region.ok_or_else(|| {
            let bytes = workspace.map_or(0, |region| region.bytes);
            let shape = tensor.shape;
            Failure::refused(format!(
                "{bytes} bytes of scratch memory for a tensor of {} × {}, which needs {needed}",
                shape.rows, shape.columns
            ))
        })?;
        Ok(Workspace { region, used: 0 })
    }

    pub fn take(&mut self, bytes: u64) -> Argument {
        let first = self.used;
        // f32 may lie behind.
        self.used += bytes.next_multiple_of(4);
        Argument::Region(self.region.part(first, bytes))
    }
}

impl Sequence<'_> {
    // ---- projections --------------------------------------------------------------------------

    /// Rows `first ..` of a random projection.
    fn draw_rows(
        &mut self,
        at: Argument,
        (key, epoch, purpose): Drawn,
        (first, rows): (u64, u64),
        space: Space,
    ) -> Result<Basis> {
        let count = rows * space.short;
        let arguments = vec![
            at,
            Argument::U64(key),
            Argument::U32(epoch),
            Argument::U32(purpose as u32),
            Argument::U64(first * space.short),
            Argument::U64(count),
        ];
        let grid = blocks(count.div_ceil(4) + 1, 256, i32::MAX as u64);
        let name = kernel!(self.operands, "draw");
        self.launch(name, [grid, 1, 1], 256, arguments)?;
        Ok(Basis {
            at,
            factor: (space.rank as f32).sqrt().recip() * std::f32::consts::FRAC_1_SQRT_2 / 2.0,
        })
    }

    /// A random projection.
    pub fn draw(&mut self, at: Argument, key: u64, epoch: u32, space: Space) -> Result<Basis> {
        self.draw_for(at, (key, epoch, Purpose::Projection), space)
    }

    /// The same for any purpose.
    pub fn draw_for(&mut self, at: Argument, drawn: Drawn, space: Space) -> Result<Basis> {
        self.draw_rows(at, drawn, (0, space.rank), space)
    }

    /// `z = x Pᵀ`, by as many rows of `P` as there is memory for.
    pub(super) fn project_inputs(&mut self, operator: &Operator) -> Result<()> {
        let Operator::Project {
            rows,
            x,
            inputs,
            projection,
            key,
            z,
            workspace,
        } = *operator
        else {
            return Err(Failure::refused("no projection"));
        };
        let space = Space::of_inputs(rows, inputs, projection);
        let size = self.operands.size();
        let planned = workspace.filter(|w| w.bytes >= space.rank * inputs * size);
        let (room, at_once) = match planned {
            Some(region) => (Argument::Region(region), space.rank),
            None => {
                let at_once = (self.left() / (inputs * size)).min(space.rank);
                (self.take(at_once.max(1) * inputs * size)?, at_once)
            }
        };
        let x = Factor {
            at: self.operands.elements(x, rows * inputs)?,
            stride: inputs,
            turned: false,
        };
        let z = self.operands.elements(z, rows * space.rank)?;
        let epoch = projection.epoch(self.step.step - 1);
        let drawn = (key, epoch, Purpose::Projection);
        for first in (0..space.rank).step_by(at_once as usize) {
            let some = at_once.min(space.rank - first);
            let basis = self.draw_rows(room, drawn, (first, some), space)?;
            let dtype = self.dtype();
            self.multiply([rows, some, inputs], (x, space.basis(basis, true)), dtype)
                .factor(basis.factor)
                .to(z.behind(first * size), space.rank, dtype);
        }
        Ok(())
    }

    /// `R = g Pᵀ`, without the factor of all gradients.
    pub(super) fn project(
        &mut self,
        given: Given<'_>,
        (space, basis): (Space, Basis),
        to: Projected,
    ) -> Result<()> {
        let whole = given.is_whole() && self.most.is_none();
        let dtype = self.dtype();
        let at_once = match whole {
            true => space.long,
            false => self.at_once(self.left(), (space.long, space.rank), 8 * space.short)?,
        };
        for (area, first, some) in space.along(at_once) {
            let mark = self.mark();
            let (at, stride) = match whole {
                true => {
                    let gradient = self.gradient(given, area)?;
                    (gradient.at, gradient.stride)
                }
                false => {
                    let gathered = self.dense(given, area)?;
                    let sides = (area.rows, area.columns);
                    let narrowed = self.narrowed(gathered, area.columns, sides)?;
                    (narrowed, area.columns)
                }
            };
            let g = Factor {
                at,
                stride,
                turned: space.wide,
            };
            let sizes = [some, space.rank, space.short];
            let here = to.at.behind(to.dtype.bytes() * first * space.rank);
            let factors = (g, space.basis(basis, true));
            let mut product = self.multiply(sizes, factors, dtype).factor(basis.factor);
            if to.adds {
                product = product.added_to(here, 1.0);
            }
            product.to(here, space.rank, to.dtype);
            self.release(mark);
        }
        Ok(())
    }

    /// An area of `N P` in f32, `stride` from row to row: `n` are its rows of `N`, if it is tall.
    pub(super) fn returned(
        &mut self,
        (space, basis): (Space, Basis),
        area: Area,
        n: Gradient,
        (to, stride): (Argument, u64),
    ) -> Result<()> {
        let some = if space.wide { area.columns } else { area.rows };
        let (at, n_stride) = match n.summed {
            true => (
                self.narrowed(n.at, n.stride, (some, space.rank))?,
                space.rank,
            ),
            false => (n.at, n.stride),
        };
        let n = Factor {
            at,
            stride: n_stride,
            turned: space.wide,
        };
        let p = space.basis(basis, space.wide);
        // Of a wide matrix, the transpose: Pᵀ Nᵀ.
        let factors = if space.wide { (p, n) } else { (n, p) };
        let dtype = self.dtype();
        self.multiply([area.rows, area.columns, space.rank], factors, dtype)
            .factor(basis.factor)
            .to(to, stride, Dtype::F32);
        Ok(())
    }

    /// `w ← w − η α N P`, `w ← w − ηλ w`. `direct` gives the rows of `N` from the first on, in f32.
    pub(super) fn back(
        &mut self,
        tensor: &TensorUpdate,
        (space, basis): (Space, Basis),
        factor: f64,
        mut direct: impl FnMut(&mut Self, u64, u64) -> Result<Gradient>,
    ) -> Result<()> {
        // The update, and of N what was gathered, what it becomes, and its elements.
        let row = 4 * space.short + (8 + self.operands.size()) * space.rank;
        let at_once = self.at_once(self.left(), (space.long, space.rank), row)?;
        for (area, first, some) in space.along(at_once) {
            let mark = self.mark();
            let n = direct(self, first, some)?;
            let update = self.take(4 * area.elements())?;
            self.returned((space, basis), area, n, (update, area.columns))?;
            self.descend(tensor, area, update, factor)?;
            self.release(mark);
        }
        Ok(())
    }

    /// Takes an update in f32 off an area of the weights.
    fn descend(
        &mut self,
        tensor: &TensorUpdate,
        area: Area,
        update: Argument,
        factor: f64,
    ) -> Result<()> {
        let mut arguments = self.part(tensor, area)?;
        arguments.extend([
            update,
            Argument::U64(area.columns),
            Argument::Own(Buffer::Constants, 0),
        ]);
        arguments.extend(self.descent(factor));
        arguments.extend(self.sizes_and_draws(tensor, area)?);
        let name = kernel!(self.operands, "descended");
        self.over(name, (area.rows, area.columns), arguments)
    }

    /// What an update is multiplied with, and the decay.
    pub(super) fn descent(&self, factor: f64) -> [Argument; 2] {
        let (rate, decay) = (self.step.learning_rate, self.step.weight_decay);
        [factor, rate * decay].map(|number| Argument::F32(number as f32))
    }

    // ---- rules --------------------------------------------------------------------------------

    pub(super) fn compact(
        &mut self,
        tensor: &TensorUpdate,
        projection: Option<Projection>,
        (scale, kept): (f64, Moments),
        workspace: Option<Region>,
    ) -> Result<()> {
        let shape = tensor.rule.gradient_shape(tensor.shape);
        let kept = self.moments(kept, shape.elements(), &tensor.states)?;
        let factor = self.step.learning_rate * scale;
        let most = self.most.unwrap_or(f64::INFINITY) as f32;
        let given = Given::of(tensor);
        let directed = |all: &mut Self, first: u64, rows: u64| {
            let out = all.take(4 * rows * shape.columns)?;
            let gradient = all.gradient(given, Area::of(shape).part(first, rows))?;
            let elements = (first * shape.columns, rows * shape.columns);
            all.direct((out, gradient), &kept, elements, (tensor.key, most))?;
            Ok(Gradient::dense(out, shape.columns))
        };
        let Some(projection) = projection else {
            let at_once =
                self.at_once(self.left(), (shape.rows, shape.columns), 8 * shape.columns)?;
            for area in Area::of(shape).by_rows(at_once) {
                let mark = self.mark();
                let update = directed(self, area.row, area.rows)?;
                self.descend(tensor, area, update.at, factor)?;
                self.release(mark);
            }
            return Ok(());
        };
        let space = Space::of_inputs(shape.rows, tensor.shape.columns, projection);
        let mut workspace = Workspace::of(tensor, workspace)?;
        let at = workspace.take(space.rank * space.short * self.operands.size());
        let epoch = projection.epoch(self.step.step - 1);
        let basis = self.draw(at, tensor.projection_key, epoch, space)?;
        self.back(tensor, (space, basis), factor, directed)
    }

    /// Makes Adam's direction of what is projected, there or elsewhere.
    pub(super) fn directed(
        &mut self,
        (small, out): (Argument, Argument),
        kept: &Kept,
        elements: u64,
        key: u64,
    ) -> Result<()> {
        let projected = Gradient::dense(small, elements);
        self.direct((out, projected), kept, (0, elements), (key, f32::INFINITY))
    }

    /// Adam's direction of a gradient's elements, no larger than `most`.
    fn direct(
        &mut self,
        (out, gradient): (Argument, Gradient),
        kept: &Kept,
        elements: (u64, u64),
        (key, most): (u64, f32),
    ) -> Result<()> {
        let name = match kept.kind {
            Moments::F32 => by_gradient!(self.operands, gradient, "direction"),
            Moments::AsWeights => by_gradient!(self.operands, gradient, "direction_rounded"),
            Moments::EightBit => by_gradient!(self.operands, gradient, "direction_in_8_bits"),
        };
        let more = [Argument::F32(most)];
        self.by_moments(name, (out, gradient.at), kept, elements, key, &more)
    }
}
