//! The default: the linear relaxation, rounded to a plan, repaired until it fits.
//!
//! Blocks are alike, so the relaxation decides classes of them by fractions; rounding hands out
//! whole pieces along the blocks, carrying the remainder from one to the next, so that what is
//! kept, swapped and recomputed interleaves and no class is off by more than a piece. The relaxation
//! is in the plan's favour inside a step; where the built plan needs more memory than it said, the
//! difference becomes a margin and the program is solved again.

use super::coarse::Coarse;
use super::relaxation::{relax, Margins, Relaxed};
use super::{Candidate, Context};
use crate::build::{build, Infeasible};
use crate::ids::{Table, TensorId};
use crate::plan::{Fate, Hold, Placement, Plan};
use crate::problem::Problem;

/// How often the relaxation is solved again for one problem.
const ROUNDS: usize = 6;

/// What is held of recomputed attention: each is tried.
const HOLDS: [Hold; 3] = [
    Hold::ALL,
    Hold {
        output: true,
        projections: false,
    },
    Hold::NONE,
];

/// The best plan that rounding finds.
pub fn solve(context: &Context<'_>) -> Result<Candidate, Infeasible> {
    let mut best: Result<Candidate, Infeasible> = Err(context.infeasible());
    for hold in HOLDS {
        let found = with_hold(context, hold);
        // Holding matters only where attention is recomputed.
        let same = found
            .as_ref()
            .is_ok_and(|c| !recomputes_attention(context.problem, &c.plan));
        best = super::better(best, found);
        if same || context.expired() {
            break;
        }
    }
    best
}

fn recomputes_attention(problem: &Problem, plan: &Plan) -> bool {
    plan.iter().any(|(id, fate)| {
        let tensor = &problem.tensors[id];
        let groups = problem.values[tensor.value].split == crate::problem::Split::Groups;
        groups && fate.recompute(tensor.pieces) > 0
    })
}

fn with_hold(context: &Context<'_>, hold: Hold) -> Result<Candidate, Infeasible> {
    let epochs = context.coarse.epochs.len();
    let mut margins = Margins {
        device: vec![0; epochs],
        host: 0,
    };
    let mut best: Result<Candidate, Infeasible> = Err(context.infeasible());
    for round in 0..ROUNDS {
        let solved = match (round, &context.relaxed) {
            (0, Some(relaxed)) => Some(relaxed.clone()),
            _ => relax(context.problem, &context.coarse, &margins),
        };
        let Some(relaxed) = solved else { break };
        let plan = round_to_plan(context.problem, &context.coarse, &relaxed, hold);
        match build(context.problem, &plan) {
            Ok(built) => {
                let candidate = Candidate::of(plan, built);
                let slack = context
                    .problem
                    .budget
                    .device
                    .saturating_sub(candidate.built.peak)
                    .get();
                let close = slack < context.problem.budget.device.get() / 100;
                let gap = candidate
                    .timeline
                    .step
                    .get()
                    .saturating_sub(context.bound().get());
                let done = close || gap * 1000 < context.bound().get();
                best = super::better(best, Ok(candidate));
                if done || margins.device.iter().all(|&m| m == 0) {
                    break;
                }
                // Half of what is free beyond the margin goes back to work.
                margins
                    .device
                    .iter_mut()
                    .for_each(|m| *m = m.saturating_sub(slack / 2));
            }
            Err(infeasible) => {
                let excess = infeasible.needed.saturating_sub(infeasible.limit).get();
                match infeasible.step {
                    None => margins.host += excess + 1,
                    Some(_) => margins.device.iter_mut().for_each(|m| *m += excess),
                }
                best = super::better(best, Err(infeasible));
            }
        }
        if context.expired() {
            break;
        }
    }
    best
}

/// Whole pieces for fractions.
fn round_to_plan(problem: &Problem, coarse: &Coarse, relaxed: &Relaxed, hold: Hold) -> Plan {
    let mut plan = Plan::keep_all(problem);
    plan.hold = hold;
    round_fates(problem, coarse, relaxed, &mut plan.fates);
    for (class, group) in coarse.groups.iter().enumerate() {
        let [resident, host, _] = relaxed.placements[class];
        let (mut carried_resident, mut carried_host) = (0.0, 0.0);
        // The first groups are wanted first and updated last: they stay.
        for &member in &group.members {
            carried_resident += resident;
            carried_host += host;
            plan.placements[member] = if carried_resident >= 1.0 - 1e-6 {
                carried_resident -= 1.0;
                Placement::Resident
            } else if carried_host >= 1.0 - 1e-6 {
                carried_host -= 1.0;
                Placement::HostOptimizer
            } else {
                Placement::Streamed
            };
        }
    }
    plan
}

fn round_fates(
    problem: &Problem,
    coarse: &Coarse,
    relaxed: &Relaxed,
    fates: &mut Table<TensorId, Fate>,
) {
    let mut fractions: Vec<(&str, TensorId, f64, f64)> = Vec::new();
    for (class, &(keep, swap)) in coarse.classes.iter().zip(&relaxed.fates) {
        for &id in &class.members {
            let name = problem.values[problem.tensors[id].value].name.as_str();
            fractions.push((name, id, keep, swap));
        }
    }
    fractions.sort_by(|a, b| (a.0, a.1).cmp(&(b.0, b.1)));
    for kind in fractions.chunk_by(|a, b| a.0 == b.0) {
        let (mut carried_keep, mut carried_swap) = (0.0, 0.0);
        for &(_, id, keep, swap) in kind {
            let pieces = problem.tensors[id].pieces;
            carried_keep += keep * f64::from(pieces);
            let kept = whole(carried_keep).min(pieces);
            carried_keep -= f64::from(kept);
            carried_swap += swap * f64::from(pieces);
            let swapped = whole(carried_swap).min(pieces - kept);
            carried_swap -= f64::from(swapped);
            fates[id] = Fate {
                keep: kept,
                swap: swapped,
            };
        }
    }
}

/// Rounded down, but for the solver's tolerance.
fn whole(fraction: f64) -> u32 {
    (fraction + 1e-6).floor().max(0.0) as u32
}
