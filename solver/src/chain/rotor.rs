//! The best memory-persistent schedule, by dynamic programming.
//!
//! Persistent: a checkpoint stays until the backward of its layer, a saved layer's output stays
//! with its internals. Beaumont, Eyraud-Dubois, Herrmann, Joly, Shilova, "Optimal checkpointing for
//! heterogeneous chains: how to train deep neural networks with limited memory" (2019), whose table
//! over memory slots is replaced by exact Pareto fronts: no budget is lost to rounding.

use super::costs::Costs;
use super::{interval, Chain, Failure, Solution, Status};
use std::time::Instant;

/// The fastest memory-persistent schedule. Its bound holds for every schedule, persistent or not.
///
/// # Errors
/// [`Failure::Infeasible`] or [`Failure::LayerDoesNotFit`] when no persistent schedule fits,
/// [`Failure::NoTime`] when the deadline passes first, and whatever is wrong with the chain.
pub fn solve(chain: &Chain, deadline: Option<Instant>) -> Result<Solution, Failure> {
    let costs = Costs::of(chain)?;
    let best = interval::best(&costs, false, deadline)?;
    let bound = costs.floor_with(best.bound);
    Ok(Solution::judged(chain, best.sequence, bound, Status::Gap))
}
