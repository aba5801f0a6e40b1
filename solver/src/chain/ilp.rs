//! The default strategy: rotor's recursion with outputs that may be rebuilt, and a proof.
//!
//! 1. [`bound`] says what every schedule must recompute.
//! 2. The interval recursion, restricted to schedules that recompute hardly more than that, finds
//!    the best of them. Its schedules include all persistent ones, so it is never slower than
//!    [`rotor`](super::rotor); on chains of more than a dozen layers it usually meets the bound.
//! 3. Where it does not, the bound of two moments is tried, and on short chains an exact search
//!    over states, which either finds something faster or proves that there is nothing.
//!
//! What the recursion does not know: a kept value that serves as a start once and is then freed,
//! while the layers after it run again from an earlier start. On short chains the exact search
//! does.

use super::costs::Costs;
use super::exhaustive::{shortest, Limits, Outcome};
use super::guide::Guide;
use super::{bound, greedy, interval, replay, Chain, Failure, Solution, Status};
use std::time::Instant;

/// The exact search takes chains up to this many layers …
const MOST_LAYERS: usize = 16;
/// … and remembers this many states: about a second.
const MOST_STATES: usize = 300_000;

/// The fastest schedule found, with the best bound proved.
///
/// # Errors
/// [`Failure::Infeasible`] or [`Failure::LayerDoesNotFit`] when nothing fits, [`Failure::NoTime`]
/// when the deadline passes before the first schedule, and whatever is wrong with the chain.
pub fn solve(chain: &Chain, deadline: Option<Instant>) -> Result<Solution, Failure> {
    let costs = Costs::of(chain)?;
    let best = match interval::best(&costs, true, deadline) {
        Ok(best) => best,
        Err(Failure::NoTime) => return in_haste(chain, &costs),
        Err(failure) => return exactly(chain, &costs, u64::MAX, deadline).ok_or(failure),
    };
    let found = replay(chain, &best.sequence)
        .expect("the recursion's schedule is legal")
        .makespan;
    let extra = found.get() - costs.floor();
    let bound = match extra > best.bound {
        true => bound::two_moments(&costs, best.bound, extra).unwrap_or(best.bound),
        false => best.bound,
    };
    if extra > bound {
        if let Some(solution) = exactly(chain, &costs, found.get(), deadline) {
            return Ok(solution);
        }
    }
    Ok(Solution::judged(
        chain,
        best.sequence,
        costs.floor_with(bound),
        Status::Gap,
    ))
}

/// The greedy schedule when there is no time for a better one.
fn in_haste(chain: &Chain, costs: &Costs) -> Result<Solution, Failure> {
    let greedy = greedy::solve(chain).map_err(|_| Failure::NoTime)?;
    let bound = costs.floor_with(bound::one_moment(costs).unwrap_or(0));
    Ok(Solution::judged(
        chain,
        greedy.sequence,
        bound,
        Status::TimeLimit,
    ))
}

/// The optimum of a short chain if it takes at most `limit` ns and few enough states.
fn exactly(
    chain: &Chain,
    costs: &Costs,
    limit: u64,
    deadline: Option<Instant>,
) -> Option<Solution> {
    if costs.layers > MOST_LAYERS {
        return None;
    }
    let limits = Limits {
        time: limit,
        states: MOST_STATES,
        deadline,
    };
    let guide = Guide::of(costs);
    let outcome = shortest(costs, limits, |state| guide.estimate(state));
    let Outcome::Found(sequence) = outcome else {
        return None;
    };
    let makespan = replay(chain, &sequence)
        .expect("only legal operations")
        .makespan;
    Some(Solution::judged(chain, sequence, makespan, Status::Optimal))
}
