//! Saves first what is worth most: the layers that cost the most time per byte held.
//!
//! Values are kept at the start of every segment of equal length (Chen et al. 2016, "Training deep
//! nets with sublinear memory cost"), the shortest length that fits; then layers are saved in the
//! order of forward time per byte as long as the schedule still fits. A segment runs a second time
//! just before its backward, saving everything.

use super::costs::Costs;
use super::{replay, Chain, Failure, Op, Solution, Status};
use crate::units::Bytes;

/// The greedy schedule. Its bound is the floor: it proves nothing more.
///
/// # Errors
/// [`Failure::Infeasible`] when no segment length fits, and whatever is wrong with the chain.
pub fn solve(chain: &Chain) -> Result<Solution, Failure> {
    let costs = Costs::of(chain)?;
    let mut plan = shortest_segments(chain, &costs)?;
    let mut order: Vec<usize> = (0..costs.layers).collect();
    // forward_a / saved_a > forward_b / saved_b without leaving the integers.
    let worth = |a: usize, b: usize| u128::from(costs.forward[a]) * u128::from(costs.saved(b));
    order.sort_by(|&a, &b| worth(b, a).cmp(&worth(a, b)));
    for layer in order {
        plan.saved[layer] = true;
        plan.saved[layer] = replay(chain, &plan.sequence()).is_ok();
    }
    Ok(Solution::judged(
        chain,
        plan.sequence(),
        chain.floor(),
        Status::Gap,
    ))
}

/// Which layers the first forward saves, and which values it keeps.
struct Plan {
    saved: Vec<bool>,
    start: Vec<bool>,
}

fn shortest_segments(chain: &Chain, costs: &Costs) -> Result<Plan, Failure> {
    let unlimited = Chain {
        budget: Bytes::MAX,
        ..chain.clone()
    };
    let mut smallest = Bytes::MAX;
    for length in 1..=costs.layers {
        let start = (0..=costs.layers).map(|j| j % length == 0).collect();
        let plan = Plan {
            saved: vec![false; costs.layers],
            start,
        };
        let replayed = replay(&unlimited, &plan.sequence()).expect("segments are legal");
        if replayed.peak <= chain.budget {
            return Ok(plan);
        }
        smallest = smallest.min(replayed.peak);
    }
    Err(Failure::Infeasible { smallest })
}

impl Plan {
    /// Whether `x_j` stays after the first forward has used it.
    fn keeps(&self, j: usize) -> bool {
        let of = |layer: Option<usize>| layer.and_then(|i| self.saved.get(i)) == Some(&true);
        self.start[j] || of(Some(j)) || of(j.checked_sub(1))
    }

    fn sequence(&self) -> Vec<Op> {
        let layers = self.saved.len();
        let mut ops = Vec::new();
        for i in 0..layers {
            ops.push(if self.saved[i] {
                Op::ForwardSave(i)
            } else {
                Op::Forward(i)
            });
            if !self.keeps(i) {
                ops.push(Op::Drop(i));
            }
        }
        ops.push(Op::Loss);
        let mut above = layers;
        while above > 0 {
            let layer = above - 1;
            if self.saved[layer] {
                ops.push(Op::Backward(layer));
                above = layer;
                continue;
            }
            let start = (0..above)
                .rev()
                .find(|&j| self.keeps(j))
                .expect("x0 is kept");
            ops.push(Op::Drop(above));
            ops.extend((start..above).map(Op::ForwardSave));
            ops.extend((start..above).rev().map(Op::Backward));
            above = start;
        }
        ops
    }
}
