//! The oracle: a shortest path over everything that can be live.
//!
//! A state is the set of live values, the set of saved internals and the place of the gradient; an
//! operation is an edge. A* (Hart, Nilsson, Raphael 1968) with the time that any schedule still has
//! to spend: the backwards to come, and a forward for every layer to come that is not saved. It
//! shares no reasoning with the other strategies: any operation may follow any other.

use super::costs::Costs;
use super::{interval, replay, Chain, Failure, Op, Solution, Status};
use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};
use std::time::Instant;

/// Longer chains are refused: the states would not fit in memory.
pub const MOST_LAYERS: usize = 12;

/// Live values and saved internals as bit sets; the gradient is that of `x_gradient`, or not made
/// yet when that is L + 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct State {
    pub values: u32,
    pub internals: u32,
    pub gradient: u8,
}

/// What is known of a reached state: its distance, and how it was reached.
struct Reached {
    distance: u64,
    from: Option<(State, Op)>,
    settled: bool,
}

/// What a search from the start came to.
pub(super) enum Outcome {
    /// The fastest schedule.
    Found(Vec<Op>),
    /// No schedule within the limit.
    Nothing,
    /// Too many states, or the deadline.
    GaveUp,
}

/// Where a search ends without an answer.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    /// Schedules slower than this are of no interest, ns.
    pub time: u64,
    /// The most states to remember.
    pub states: usize,
    /// When to give up.
    pub deadline: Option<Instant>,
}

/// The fastest schedule of a tiny chain, proved by trying everything.
///
/// # Errors
/// [`Failure::TooManyLayers`] beyond [`MOST_LAYERS`], [`Failure::Infeasible`] when no state at the
/// end can be reached, [`Failure::NoTime`] when the deadline passes first.
pub fn solve(chain: &Chain, deadline: Option<Instant>) -> Result<Solution, Failure> {
    let costs = Costs::of(chain)?;
    if costs.layers > MOST_LAYERS {
        return Err(Failure::TooManyLayers {
            layers: costs.layers,
            limit: MOST_LAYERS,
        });
    }
    let limits = Limits {
        time: u64::MAX,
        states: usize::MAX,
        deadline,
    };
    match shortest(&costs, limits, |state| Some(to_come(&costs, state))) {
        Outcome::Found(sequence) => {
            let makespan = replay(chain, &sequence)
                .expect("only legal operations")
                .makespan;
            Ok(Solution::judged(chain, sequence, makespan, Status::Optimal))
        }
        Outcome::Nothing => Err(interval::infeasible(&costs, true)),
        Outcome::GaveUp => Err(Failure::NoTime),
    }
}

/// The fastest schedule. `estimate` never exceeds the time that a state still has to spend, and is
/// nothing for a state from which no schedule is worth finding.
pub(super) fn shortest(
    costs: &Costs,
    limits: Limits,
    estimate: impl Fn(State) -> Option<u64>,
) -> Outcome {
    let start = State {
        values: 1,
        internals: 0,
        gradient: costs.layers as u8 + 1,
    };
    let mut reached = HashMap::new();
    reached.insert(
        start,
        Reached {
            distance: 0,
            from: None,
            settled: false,
        },
    );
    let mut open = BinaryHeap::from([Reverse((0, start))]);
    while let Some(Reverse((_, state))) = open.pop() {
        let entry = reached.get_mut(&state).expect("open states are reached");
        if std::mem::replace(&mut entry.settled, true) {
            continue;
        }
        let distance = entry.distance;
        if state.gradient == 0 {
            return Outcome::Found(path_to(&reached, state));
        }
        let late = open.len() % 256 == 0 && limits.deadline.is_some_and(|at| Instant::now() >= at);
        if late || reached.len() > limits.states {
            return Outcome::GaveUp;
        }
        for op in operations(costs, state) {
            let Some((next, time)) = execute(costs, state, op) else {
                continue;
            };
            let distance = distance + time;
            if reached
                .get(&next)
                .is_some_and(|known| known.distance <= distance)
            {
                continue;
            }
            let Some(rest) = estimate(next) else { continue };
            if distance + rest <= limits.time {
                let from = Some((state, op));
                reached.insert(
                    next,
                    Reached {
                        distance,
                        from,
                        settled: false,
                    },
                );
                open.push(Reverse((distance + rest, next)));
            }
        }
    }
    Outcome::Nothing
}

fn path_to(reached: &HashMap<State, Reached>, mut state: State) -> Vec<Op> {
    let mut ops = Vec::new();
    while let Some((before, op)) = reached[&state].from {
        ops.push(op);
        state = before;
    }
    ops.reverse();
    ops
}

/// The backwards to come, and a forward for every layer to come that is not saved.
fn to_come(costs: &Costs, state: State) -> u64 {
    let layers = usize::from(state.gradient).min(costs.layers);
    let forwards = (0..layers).filter(|i| state.internals >> i & 1 == 0);
    let backwards: u64 = costs.backward[..layers].iter().sum();
    backwards + forwards.map(|i| costs.forward[i]).sum::<u64>()
}

/// All operations whose operands are live and whose results are not.
fn operations(costs: &Costs, state: State) -> Vec<Op> {
    let value = |j: usize| state.values >> j & 1 == 1;
    let saved = |i: usize| state.internals >> i & 1 == 1;
    let mut ops = Vec::new();
    let no_gradient = usize::from(state.gradient) > costs.layers;
    if no_gradient && value(costs.layers) {
        ops.push(Op::Loss);
    }
    let below = usize::from(state.gradient).min(costs.layers);
    for i in 0..below {
        if value(i) && !value(i + 1) {
            ops.push(Op::Forward(i));
            if !saved(i) {
                ops.push(Op::ForwardSave(i));
            }
        }
    }
    ops.extend((1..=below).filter(|&j| value(j)).map(Op::Drop));
    if !no_gradient && value(below - 1) && value(below) && saved(below - 1) {
        ops.push(Op::Backward(below - 1));
    }
    ops
}

/// The state after `op` and its time; nothing when it does not fit.
fn execute(costs: &Costs, state: State, op: Op) -> Option<(State, u64)> {
    let mut after = state;
    let (made, time) = match op {
        Op::Forward(i) => {
            after.values |= 2 << i;
            (costs.x[i + 1] + costs.transient[i], costs.forward[i])
        }
        Op::ForwardSave(i) => {
            after.values |= 2 << i;
            after.internals |= 1 << i;
            (costs.saved(i), costs.forward[i])
        }
        Op::Drop(j) => {
            after.values &= !(1 << j);
            (0, 0)
        }
        Op::Loss => {
            after.gradient = costs.layers as u8;
            (costs.x[costs.layers], 0)
        }
        Op::Backward(i) => {
            after.gradient = i as u8;
            after.internals &= !(1 << i);
            after.values &= !(2 << i);
            (costs.x[i], costs.backward[i])
        }
    };
    (held(costs, state) + made <= costs.budget).then_some((after, time))
}

fn held(costs: &Costs, state: State) -> u64 {
    let values = (0..=costs.layers).filter(|j| state.values >> j & 1 == 1);
    let internals = (0..costs.layers).filter(|i| state.internals >> i & 1 == 1);
    let gradient = costs
        .x
        .get(usize::from(state.gradient))
        .copied()
        .unwrap_or(0);
    gradient
        + values.map(|j| costs.x[j]).sum::<u64>()
        + internals.map(|i| costs.internals[i]).sum::<u64>()
}
