//! How much any continuation of a half-executed schedule must still spend.
//!
//! The guide of the exact search: it adds to the work in plain sight (backwards to come, forwards
//! of layers whose internals or output are missing) the knapsack of [`bound`](super::bound) at the
//! next backward, for the layers that have to be computed before it.

use super::bound::Knapsacks;
use super::costs::Costs;
use super::exhaustive::State;

/// The numbers that estimates need, once for each chain.
pub(super) struct Guide<'a> {
    costs: &'a Costs,
    knapsacks: Knapsacks,
}

impl<'a> Guide<'a> {
    pub fn of(costs: &'a Costs) -> Self {
        Self {
            costs,
            knapsacks: Knapsacks::at_all_moments(costs),
        }
    }

    /// At least this many ns follow; nothing when no continuation fits or is worth following.
    pub fn estimate(&self, state: State) -> Option<u64> {
        let costs = self.costs;
        let layers = usize::from(state.gradient).min(costs.layers);
        let live = |j: usize| state.values >> j & 1 == 1;
        let saved = |i: usize| state.internals >> i & 1 == 1;
        // Saving a layer and then freeing its output is never better than saving it later, unless
        // the forward that saves nothing takes more.
        let wasteful =
            |i: usize| saved(i) && !live(i + 1) && costs.transient[i] <= costs.internals[i];
        if (0..layers).any(wasteful) {
            return None;
        }
        let missing = (0..layers).filter(|&i| !saved(i) || !live(i + 1));
        let in_sight = missing.map(|i| costs.forward[i]).sum::<u64>()
            + costs.backward[..layers].iter().sum::<u64>();
        let Some(moment) = self.next_moment(state) else {
            return Some(in_sight);
        };
        let start = (0..=moment).rev().find(|&j| live(j))?;
        let held = (0..start)
            .filter(|&i| saved(i))
            .map(|i| costs.internals[i])
            .sum::<u64>();
        let memory = costs.budget.checked_sub(costs.x[0] + held)?;
        let again = self
            .knapsacks
            .at(start, moment, start == 0)
            .extra_within(memory)?;
        Some(in_sight + again)
    }

    /// The next backward, or L before the loss; nothing when all is done.
    fn next_moment(&self, state: State) -> Option<usize> {
        usize::from(state.gradient).checked_sub(1)
    }
}
