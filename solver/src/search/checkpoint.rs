//! Checkpointing: block inputs are retained, whatever lies between is made again.
//!
//! Chen et al. 2016 (arXiv 1604.06174): with n blocks, retaining every block input costs one more
//! forward; retaining every √n-th divides what is retained by √n, and the inputs inside a segment
//! are made again when backward reaches it. Unsloth, ALST and TRL send the inputs to host memory.

use super::{Candidate, Context};
use crate::build::Infeasible;
use crate::plan::{Fate, Hold, Plan};
use crate::problem::{Problem, Split};

/// Every block input stays.
pub fn every_block(context: &Context<'_>) -> Result<Candidate, Infeasible> {
    inputs(context, |_| Fate::kept(1))
}

/// Every √n-th block input stays.
pub fn square_root(context: &Context<'_>) -> Result<Candidate, Infeasible> {
    let segment = f64::from(context.problem.blocks()).sqrt().round().max(1.0) as u32;
    inputs(context, |block| {
        if block % segment == 0 {
            Fate::kept(1)
        } else {
            Fate::RECOMPUTED
        }
    })
}

/// Every block input travels, apart from the last, which is needed at once.
pub fn offload(context: &Context<'_>) -> Result<Candidate, Infeasible> {
    let blocks = context.problem.blocks();
    inputs(context, |block| {
        if block + 1 == blocks {
            Fate::kept(1)
        } else {
            Fate::swapped(1)
        }
    })
}

/// Block inputs as said, everything else recomputed; held or not, whichever is faster.
fn inputs(context: &Context<'_>, fate: impl Fn(u32) -> Fate) -> Result<Candidate, Infeasible> {
    let plan = plan(context.problem, fate);
    let mut best: Option<Result<Candidate, Infeasible>> = None;
    for hold in Hold::CHOICES {
        let plans = context.placed(&Plan {
            hold,
            ..plan.clone()
        });
        let found = context.best_of(plans.iter().cloned());
        // Holding less is slower: it is tried only where holding more does not fit.
        let fits = plans.iter().any(|plan| context.fits(plan));
        best = Some(match best {
            Some(best) => super::better(best, found),
            None => found,
        });
        if fits {
            break;
        }
    }
    best.expect("at least one hold is tried")
}

fn plan(problem: &Problem, fate: impl Fn(u32) -> Fate) -> Plan {
    let mut plan = Plan::keep_all(problem);
    for (id, tensor) in problem.tensors.iter() {
        let value = &problem.values[tensor.value];
        plan.fates[id] = match (value.split, value.block) {
            (Split::Whole, Some(block)) => fate(block),
            _ => Fate::RECOMPUTED,
        };
    }
    plan
}
