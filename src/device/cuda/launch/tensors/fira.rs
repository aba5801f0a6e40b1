//! Fira: GaLore's update, and what its projection leaves of the gradient.
//!
//! ```text
//! g ─ Pᵀ ─► R ─ Adam ─► N      R, N ─► s, a factor for every channel
//! −αRP ─► residual memory      |s (g − αRP)| ─► growth
//! αNP ─► scratch memory        w ← w − η (αNP + growth · s (g − αRP)), w ← w − ηλ w
//! ```
//! The residual itself is not kept: what is taken off the gradient is, and both kernels that need
//! the residual read the gradient.

use super::super::super::super::{Region, Result};
use super::apollo::Scaled;
use super::low_rank::{Projected, Space, Workspace};
use super::sequence::{Given, Sequence};
use crate::device::tensors::{Moments, Projection, TensorUpdate};

impl Sequence<'_> {
    pub(super) fn fira(
        &mut self,
        tensor: &TensorUpdate,
        projection: Projection,
        (scale, svd, kept): (f64, bool, Moments),
        workspace: Option<Region>,
    ) -> Result<()> {
        let space = Space::of(tensor.shape, projection);
        let Space {
            long, short, rank, ..
        } = space;
        let elements = long * rank;
        let (norm, states) = tensor.states.split_last().expect("checked before");
        let kept = self.moments(kept, elements, &states[1..])?;
        let mut workspace = Workspace::of(tensor, workspace)?;
        let [small, direction] = [0, 1].map(|_| workspace.take(4 * elements));
        let taken = workspace.take(4 * long * short);
        let basis = self.basis(tensor, (projection, svd), (small, direction))?;
        let given = Given::of(tensor);
        self.project(given, (space, basis), Projected::floats(small))?;
        let of_gradient = self.row_squares(small, space)?;
        self.directed((small, direction), &kept, elements, tensor.key)?;
        let of_direction = self.row_squares(direction, space)?;
        let channels = self.channels((of_gradient, of_direction), space)?;

        let partials = self.partials()?;
        let columns = tensor.shape.columns;
        // The update and the gathered gradient; elements of R or N.
        let gathered = if given.is_whole() { 0 } else { 4 * short };
        let row = 4 * short + gathered + self.operands.size() * rank;
        let at_once = self.at_once(self.left(), (long, rank), row)?;
        for (area, first, _) in space.along(at_once) {
            let mark = self.mark();
            let taken = (taken.behind(space.before(area)), columns);
            let r = space.rows(small, first);
            self.returned((space, basis.times(-scale)), area, r, taken)?;
            let scaled = Scaled {
                gradient: self.gradient(given, area)?,
                taken,
                channels,
            };
            self.square_scaled(area, &scaled, partials)?;
            self.release(mark);
        }
        let growth = self.growth(partials, *norm)?;
        for (area, first, _) in space.along(at_once) {
            let mark = self.mark();
            let update = (self.take(4 * area.elements())?, area.columns);
            let n = space.rows(direction, first);
            self.returned((space, basis.times(scale)), area, n, update)?;
            let scaled = Scaled {
                gradient: self.gradient(given, area)?,
                taken: (taken.behind(space.before(area)), columns),
                channels,
            };
            let factor = self.step.learning_rate;
            self.descend_scaled((tensor, area), &scaled, (growth, update), factor)?;
            self.release(mark);
        }
        Ok(())
    }
}
