//! Strategies that decide every tensor of a kind alike.

use super::{Candidate, Context};
use crate::build::Infeasible;
use crate::plan::{Fate, Hold, Placement, Plan};
use crate::problem::{Problem, Split};

/// Everything stays on the device.
pub fn keep(context: &Context<'_>) -> Result<Candidate, Infeasible> {
    context.best_of(context.placed(&Plan::keep_all(context.problem)))
}

/// Everything travels, apart from the last block, whose tensors are needed at once.
pub fn swap(context: &Context<'_>) -> Result<Candidate, Infeasible> {
    let problem = context.problem;
    let last = problem.blocks().checked_sub(1);
    let mut plan = Plan::keep_all(problem);
    for (id, tensor) in problem.tensors.iter() {
        if problem.values[tensor.value].block != last {
            plan.fates[id] = Fate::swapped(tensor.pieces);
        }
    }
    context.best_of(context.placed(&plan))
}

/// What costs least to make again for its bytes is recomputed, the rest stays: Korthikanti et al.
/// recompute what element-wise kernels make (and, without fused attention, the scores). Here: every
/// tensor whose recomputation takes less than a tenth of the most expensive one's, byte for byte.
pub fn selective(context: &Context<'_>) -> Result<Candidate, Infeasible> {
    let per_byte =
        |t: &super::outline::TensorOutline| t.recompute_ns as f64 / t.bytes.max(1) as f64;
    // Rows only: attention is what selective recomputation was made to spare.
    let problem = context.problem;
    let by_rows = |id| problem.values[problem.tensors[id].value].split == Split::Rows;
    let tensors = context
        .outline
        .tensors
        .iter()
        .filter(|&(id, _)| by_rows(id));
    let dearest = tensors.map(|(_, t)| per_byte(t)).fold(0.0, f64::max);
    let mut plan = Plan::keep_all(problem);
    for (id, tensor) in context.outline.tensors.iter() {
        if by_rows(id) && per_byte(tensor) * 10.0 < dearest {
            plan.fates[id] = Fate::RECOMPUTED;
        }
    }
    context.best_of(context.placed(&plan))
}

/// The plan that needs least memory of all that strategies try first: block inputs and attention
/// outputs travel, nothing is held, weights are streamed.
pub fn leanest(problem: &Problem) -> Plan {
    let mut plan = Plan::keep_all(problem);
    plan.hold = Hold::NONE;
    plan.placements.fill(Placement::Streamed);
    for (id, tensor) in problem.tensors.iter() {
        plan.fates[id] = match problem.values[tensor.value].split {
            Split::Whole => Fate::swapped(tensor.pieces),
            Split::Rows | Split::Groups => Fate::RECOMPUTED,
        };
    }
    plan
}
