//! The best memory-persistent schedule, by dynamic programming.
//!
//! Persistent: a checkpoint stays until the backward of its layer, a saved layer's output stays
//! with its internals. Beaumont, Eyraud-Dubois, Herrmann, Joly, Shilova, "Optimal checkpointing for
//! heterogeneous chains: how to train deep neural networks with limited memory" (2019), whose table
//! over memory slots is replaced by exact Pareto fronts: no budget is lost to rounding.

use super::costs::Costs;
use super::interval::{Intervals, Scope};
use super::{bound, Chain, Failure, Solution, Status};
use std::time::Instant;

/// Fronts longer than this are thinned out; no problem seen so far comes near.
const MOST_POINTS: usize = 1 << 14;

/// The fastest memory-persistent schedule.
///
/// # Errors
/// [`Failure::Infeasible`] when no persistent schedule fits, [`Failure::NoTime`] when the deadline
/// passes first, and whatever is wrong with the chain itself.
pub fn solve(chain: &Chain, deadline: Option<Instant>) -> Result<Solution, Failure> {
    let costs = Costs::of(chain)?;
    let scope = Scope {
        budget: costs.budget,
        rebuilds: false,
        inner_limit: u64::MAX,
        extra_limit: u64::MAX,
        most_points: MOST_POINTS,
        deadline,
    };
    let table = Intervals::solve(&costs, scope).ok_or(Failure::NoTime)?;
    match table.sequence() {
        Some(sequence) => {
            Ok(super::judged(chain, sequence, Some(costs.floor()), Status::Gap))
        }
        None => Err(super::infeasible(&costs, chain)),
    }
}
