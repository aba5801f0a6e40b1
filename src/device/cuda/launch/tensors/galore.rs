//! GaLore: Adam in a space that the gradient's own leading directions span; Fira's too.

use super::super::super::super::{Failure, Region, Result};
use super::super::operand::{kernel, number};
use super::super::Argument;
use super::low_rank::{Basis, Projected, Space, Workspace};
use super::sequence::{Factor, Given, Sequence};
use crate::device::tensors::{Moments, Projection, TensorUpdate};
use crate::profile::Dtype;

impl Sequence<'_> {
    pub(super) fn galore(
        &mut self,
        tensor: &TensorUpdate,
        projection: Projection,
        (scale, svd, kept): (f64, bool, Moments),
        workspace: Option<Region>,
    ) -> Result<()> {
        let space = Space::of(tensor.shape, projection);
        let elements = space.long * space.rank;
        let kept = self.moments(kept, elements, &tensor.states[1..])?;
        let mut workspace = Workspace::of(tensor, workspace)?;
        let small = workspace.take(4 * elements);
        let wide = workspace.take(4 * space.rank * space.short);
        let basis = self.basis(tensor, (projection, svd), (small, wide))?;
        let given = Given::of(tensor);
        self.project(given, (space, basis), Projected::floats(small))?;
        self.directed((small, small), &kept, elements, tensor.key)?;
        let factor = self.step.learning_rate * scale;
        self.back(tensor, (space, basis), factor, |_, first, _| {
            Ok(space.rows(small, first))
        })
    }

    /// The basis that a tensor's states begin with, renewed where the step does that; `y` and `q`
    /// as [`Self::renew`] takes them.
    pub(super) fn basis(
        &mut self,
        tensor: &TensorUpdate,
        (projection, svd): (Projection, bool),
        (y, q): (Argument, Argument),
    ) -> Result<Basis> {
        if svd {
            return Err(Failure::refused(
                "projections by a singular value decomposition (--svd) are not made on a GPU; plan \
                 without --svd, which iterates subspaces, or run on the cpu device",
            ));
        }
        let space = Space::of(tensor.shape, projection);
        let elements = space.rank * space.short;
        let place = tensor.states[0].part(0, elements * self.operands.size());
        let at = self.operands.elements(place, elements)?;
        if projection.renews(self.step.step) {
            if self.step.step == 1 {
                self.draw(at, tensor.key, 0, space)?;
            }
            self.renew(tensor, space, at, (y, q))?;
        }
        Ok(Basis { at, factor: 1.0 })
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
                        at: self.dense(Given::of(tensor), area)?,
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
    /// span is taken off, twice (Barlow and Smoktunowicz 2013). Costs 4 r² μ operations.
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
