//! Updates in a space of low rank: CompAct, GaLore, APOLLO; and what CompAct saves of inputs.
//!
//! Projections are products of elements with f32 sums and results. A random projection is drawn into
//! memory as whole numbers ([`Basis::factor`] goes with the product), which bf16 holds exactly; what
//! is multiplied back is rounded to elements for its product, as every operand of a product is. So
//! the products of a step take what the planner asks for them. Those that renew GaLore's basis are
//! of f32: a basis is made of differences.
//!
//! Matrices are turned so that they are tall, as at [`TensorRule`](crate::device::tensors::TensorRule):
//! `M` rows and `μ` columns, in memory the other way round where `wide`.

use super::super::super::super::{Failure, Operator, Region, Result};
use super::super::operand::{blocks, kernel, number};
use super::super::{Argument, Buffer};
use super::sequence::{Area, Factor, Gradient, Sequence, MOST_PARTIALS};
use super::{by_gradient, Kept};
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

/// How often a projection has been renewed in a step; it is first drawn in the first.
pub const fn epoch(step: u64, projection: Projection) -> u32 {
    ((step - 1) / projection.refresh as u64) as u32
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
        (key, epoch): (u64, u32),
        (first, rows): (u64, u64),
        space: Space,
    ) -> Result<Basis> {
        let count = rows * space.short;
        let arguments = vec![
            at,
            Argument::U64(key),
            Argument::U32(epoch),
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
        self.draw_rows(at, (key, epoch), (0, space.rank), space)
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
        let epoch = epoch(self.step.step, projection);
        for first in (0..space.rank).step_by(at_once as usize) {
            let some = at_once.min(space.rank - first);
            let basis = self.draw_rows(room, (key, epoch), (first, some), space)?;
            let dtype = self.dtype();
            self.multiply([rows, some, inputs], (x, space.basis(basis, true)), dtype)
                .factor(basis.factor)
                .to(z.behind(first * size), space.rank, dtype);
        }
        Ok(())
    }

    /// `R = g Pᵀ` in f32, without the factor of all gradients.
    fn project(
        &mut self,
        tensor: &TensorUpdate,
        space: Space,
        basis: Basis,
        out: Argument,
    ) -> Result<()> {
        let whole = Gradient::is_whole(tensor) && self.step.clip_value.is_none();
        let dtype = self.dtype();
        let at_once = match whole {
            true => space.long,
            false => self.at_once(self.left(), (space.long, space.rank), 8 * space.short)?,
        };
        for (area, first, some) in space.along(at_once) {
            let mark = self.mark();
            let (at, stride) = match whole {
                true => {
                    let gradient = self.gradient(tensor, area)?;
                    (gradient.at, gradient.stride)
                }
                false => {
                    let gathered = self.dense(tensor, area)?;
                    (
                        self.narrowed(gathered, area.columns, (area.rows, area.columns))?,
                        area.columns,
                    )
                }
            };
            let g = Factor {
                at,
                stride,
                turned: space.wide,
            };
            let sizes = [some, space.rank, space.short];
            self.multiply(sizes, (g, space.basis(basis, true)), dtype)
                .factor(basis.factor)
                .to(out.behind(4 * first * space.rank), space.rank, Dtype::F32);
            self.release(mark);
        }
        Ok(())
    }

    /// `w ← w − η α N P`, `w ← w − ηλ w`. `direct` gives the rows of `N` from the first on, in f32.
    fn back(
        &mut self,
        tensor: &TensorUpdate,
        (space, basis): (Space, Basis),
        factor: f64,
        mut direct: impl FnMut(&mut Self, u64, u64) -> Result<Argument>,
    ) -> Result<()> {
        let dtype = self.dtype();
        let size = self.operands.size();
        // The update, and of N what was gathered, what it becomes, and its elements.
        let row = 4 * space.short + (8 + size) * space.rank;
        let at_once = self.at_once(self.left(), (space.long, space.rank), row)?;
        for (area, first, some) in space.along(at_once) {
            let mark = self.mark();
            let n = direct(self, first, some)?;
            let n = Factor {
                at: self.narrowed(n, space.rank, (some, space.rank))?,
                stride: space.rank,
                turned: space.wide,
            };
            let update = self.take(4 * area.elements())?;
            let p = space.basis(basis, space.wide);
            // Of a wide matrix, the transpose: Pᵀ Nᵀ.
            let factors = if space.wide { (p, n) } else { (n, p) };
            let sizes = [area.rows, area.columns, space.rank];
            self.multiply(sizes, factors, dtype)
                .factor(basis.factor)
                .to(update, area.columns, Dtype::F32);
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
    fn descent(&self, factor: f64) -> [Argument; 2] {
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
        let most = self
            .step
            .clip_value
            .map_or(f32::INFINITY, |most| most as f32);
        let directed = |all: &mut Self, first: u64, rows: u64| {
            let out = all.take(4 * rows * shape.columns)?;
            let area = Area {
                row: first,
                rows,
                ..Area::of(shape)
            };
            // A gathered gradient becomes its own direction.
            let gradient = all.gradient(tensor, area)?;
            let elements = (first * shape.columns, rows * shape.columns);
            all.direct((out, gradient), &kept, elements, (tensor.key, most))?;
            Ok(out)
        };
        let Some(projection) = projection else {
            let at_once =
                self.at_once(self.left(), (shape.rows, shape.columns), 8 * shape.columns)?;
            for area in Area::of(shape).by_rows(at_once) {
                let mark = self.mark();
                let update = directed(self, area.row, area.rows)?;
                self.descend(tensor, area, update, factor)?;
                self.release(mark);
            }
            return Ok(());
        };
        let space = Space::of_inputs(shape.rows, tensor.shape.columns, projection);
        let mut workspace = Workspace::of(tensor, workspace)?;
        let at = workspace.take(space.rank * space.short * self.operands.size());
        let epoch = epoch(self.step.step, projection);
        let basis = self.draw(at, tensor.projection_key, epoch, space)?;
        self.back(tensor, (space, basis), factor, directed)
    }

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
        let epoch = epoch(self.step.step, projection);
        let basis = self.draw(at, tensor.key, epoch, space)?;
        self.project(tensor, space, basis, small)?;
        let of_gradient = self.row_squares(small, space)?;
        self.directed(small, &kept, elements, tensor.key)?;
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
        let at_once = match Gradient::is_whole(tensor) {
            true => shape.rows,
            // Partial sums are beside it.
            false => {
                let sides = (shape.rows, shape.columns);
                self.at_once(self.left() / 8 * 7, sides, 4 * shape.columns)?
            }
        };
        let of_area = |area: Area| match by {
            1 => factors.behind(4 * area.row),
            _ => factors,
        };
        let areas: Vec<Area> = Area::of(shape).by_rows(at_once).collect();
        let across = blocks(shape.columns.div_ceil(4), 256, MOST_PARTIALS);
        let down = (MOST_PARTIALS / across).min(at_once);
        let parts = across * down * areas.len() as u64;
        let partials = self.take(8 * parts)?;
        for (nth, &area) in (0..).zip(&areas) {
            let mark = self.mark();
            let gradient = self.gradient(tensor, area)?;
            let arguments = vec![
                gradient.at,
                Argument::U64(shape.columns),
                of_area(area),
                Argument::U32(by),
                Argument::Own(Buffer::Constants, 0),
                number(area.rows)?,
                number(shape.columns)?,
                partials.behind(8 * across * down * nth),
            ];
            let name = by_gradient!(self.operands, gradient, "scaled_squares");
            self.launch(name, [across, down, 1], 256, arguments)?;
            self.release(mark);
        }
        let squares = self.sum(partials, parts)?;
        let growth = self.take(4)?;
        let name = kernel!(self.operands, "limited_growth");
        self.launch(name, [1; 3], 32, vec![squares, norm, growth])?;
        for area in areas {
            let mark = self.mark();
            let gradient = self.gradient(tensor, area)?;
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

    /// Makes Adam's direction of what is projected, in place.
    fn directed(&mut self, small: Argument, kept: &Kept, elements: u64, key: u64) -> Result<()> {
        let projected = Gradient {
            at: small,
            stride: 0,
            summed: true,
        };
        self.direct(
            (small, projected),
            kept,
            (0, elements),
            (key, f32::INFINITY),
        )
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

    pub(super) fn galore(
        &mut self,
        tensor: &TensorUpdate,
        projection: Projection,
        (scale, svd, kept): (f64, bool, Moments),
        workspace: Option<Region>,
    ) -> Result<()> {
        if svd {
            return Err(Failure::refused(
                "GaLore's projections by a singular value decomposition (--svd) are not made on a \
                 GPU; plan without --svd, which iterates subspaces, or run on the cpu device",
            ));
        }
        let space = Space::of(tensor.shape, projection);
        let elements = space.long * space.rank;
        let kept = self.moments(kept, elements, &tensor.states[1..])?;
        let mut workspace = Workspace::of(tensor, workspace)?;
        let small = workspace.take(4 * elements);
        let size = self.operands.size();
        let place = tensor.states[0].part(0, space.rank * space.short * size);
        let at = self.operands.elements(place, space.rank * space.short)?;
        if (self.step.step - 1) % u64::from(projection.refresh) == 0 {
            if self.step.step == 1 {
                self.draw(at, tensor.key, 0, space)?;
            }
            let wide = workspace.take(4 * space.rank * space.short);
            self.renew(tensor, space, at, (small, wide))?;
        }
        let basis = Basis { at, factor: 1.0 };
        self.project(tensor, space, basis, small)?;
        self.directed(small, &kept, elements, tensor.key)?;
        let factor = self.step.learning_rate * scale;
        self.back(tensor, (space, basis), factor, |_, first, _| {
            Ok(small.behind(4 * first * space.rank))
        })
    }

    /// Two subspace iterations from the basis at `at`: `Q ← orth(gᵀ g Q)`; `y` and `q` are f32 for
    /// `[M × r]` and `[r × μ]`.
    fn renew(
        &mut self,
        tensor: &TensorUpdate,
        space: Space,
        at: Argument,
        (y, q): (Argument, Argument),
    ) -> Result<()> {
        const ITERATIONS: usize = 2;
        // What keeps a basis of full rank where a gradient is zero.
        const SHIFT: f32 = 1e-30;
        let Space {
            short, rank, wide, ..
        } = space;
        self.widen(at, q, rank * short)?;
        let basis = Factor {
            at: q,
            stride: short,
            turned: true,
        };
        let f32 = Dtype::F32;
        for _ in 0..ITERATIONS {
            let at_once = self.at_once(self.left(), (space.long, rank), 4 * short)?;
            for forward in [true, false] {
                for (area, first, some) in space.along(at_once) {
                    let mark = self.mark();
                    let g = Factor {
                        at: self.dense(tensor, area)?,
                        stride: area.columns,
                        turned: wide,
                    };
                    let rows = Factor {
                        at: y.behind(4 * first * rank),
                        stride: rank,
                        turned: true,
                    };
                    if forward {
                        self.multiply([some, rank, short], (g, basis), f32)
                            .to(rows.at, rank, f32);
                    } else {
                        let kept = if first == 0 { SHIFT } else { 1.0 };
                        self.multiply([rank, short, some], (rows, g), f32)
                            .added_to(q, kept)
                            .to(q, short, f32);
                    }
                    self.release(mark);
                }
            }
            self.orthonormal(q, rank, short)?;
        }
        self.narrow(q, short, at, (rank, short))
    }

    /// Makes `count` vectors orthonormal, in their order: 32 at a time, of which what those before
    /// span is taken off, twice (Barlow and Smoktunowicz 2013). Costs 8 r² μ operations.
    fn orthonormal(&mut self, vectors: Argument, count: u64, width: u64) -> Result<()> {
        const PANEL: u64 = 32;
        let name = kernel!(self.operands, "orthonormal");
        let f32 = Dtype::F32;
        let mark = self.mark();
        let shares = self.take(4 * PANEL * count)?;
        let of = |at, stride, turned| Factor { at, stride, turned };
        for first in (0..count).step_by(PANEL as usize) {
            let some = PANEL.min(count - first);
            let panel = vectors.behind(4 * first * width);
            for _ in 0..if first == 0 { 1 } else { 2 } {
                if first > 0 {
                    let (z, before) = (of(panel, width, false), of(vectors, width, true));
                    self.multiply([some, first, width], (z, before), f32)
                        .to(shares, first, f32);
                    let (s, before) = (of(shares, first, false), of(vectors, width, false));
                    self.multiply([some, width, first], (s, before), f32)
                        .factor(-1.0)
                        .added_to(panel, 1.0)
                        .to(panel, width, f32);
                }
                let arguments = vec![panel, number(some)?, number(width)?];
                self.launch(name, [1; 3], 1024, arguments)?;
            }
        }
        self.release(mark);
        Ok(())
    }
}
