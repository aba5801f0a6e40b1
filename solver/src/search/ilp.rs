//! The default: the linear relaxation, rounded to a plan, repaired until it fits.
//!
//! Blocks are alike, so the relaxation decides classes of them by fractions; rounding hands out
//! whole pieces along the blocks, carrying the remainder from one to the next, so that what is
//! kept, swapped and recomputed interleaves and no kind is off by more than a piece. The relaxation
//! is in the plan's favour inside a step; where the built plan needs more memory than it said, the
//! difference becomes a margin and the program is solved again.
//! Where block inputs themselves are recomputed, [`segments`] decides which are retained.

use super::relaxation::{relax, Margins, Relaxed};
use super::rounding::interleaved;
use super::{better, segments, Candidate, Context};
use crate::build::Infeasible;
use crate::plan::{Hold, Placement, Plan};
use crate::problem::Problem;
use crate::units::Nanos;

/// How often the relaxation is solved again for one shape.
const ROUNDS: usize = 5;
/// A stall of more than this part of the step is worth another round, with this much less of the
/// links in use.
const STALL: u64 = 1000;
const LINK_SPARE: f64 = 0.025;
/// A tail of more than this part of the step is worth room for states on the device.
const TAIL: u64 = 200;
/// The part of the device that is given up for fragmentation.
const FRAGMENTATION: u64 = 80;
/// The part of the device that is given up besides when a plan misses: less than a piece would
/// round to the same plan.
const LEAST: u64 = 200;
/// This many times the wanted gap is far enough from the bound to try streamed weights too.
const FAR: f64 = 4.0;

/// The best plan that rounding finds.
pub fn solve(context: &Context<'_>) -> Result<Candidate, Infeasible> {
    let Ok(relaxed) = context.relaxed() else {
        return Err(Infeasible::default());
    };
    if segments::inputs_recomputed(context, relaxed) {
        return segments::solve(context, relaxed);
    }
    // Weights that stay leave the links to what else must move; streaming is for tight memory.
    let free = planning_margins(context);
    let resident = Margins {
        resident: true,
        ..free.clone()
    };
    let mut best = repaired(context, &resident);
    let streams = relaxed
        .placements
        .iter()
        .any(|[_, _, streamed]| *streamed > 1e-3);
    let far = best.as_ref().map_or(true, |c| context.far(c.step(), FAR));
    if streams && far && !context.expired() {
        best = better(best, repaired(context, &free));
    }
    hide_tail(context, best)
}

/// The host's last updates end after the step's last operator. Where that is long, one more of the
/// first groups, which are updated last, stays on the device, as long as that helps.
fn hide_tail(
    context: &Context<'_>,
    mut best: Result<Candidate, Infeasible>,
) -> Result<Candidate, Infeasible> {
    while let Ok(known) = &best {
        let step = known.step();
        let short = known.built.timeline.tail <= step.scaled(1, TAIL);
        if short || !context.far(step, 1.0) || context.expired() {
            break;
        }
        let stays = |p: &&Placement| **p == Placement::Resident;
        let first = known.plan.placements.iter().take_while(stays).count() + 1;
        let streams = known.plan.placements.contains(&Placement::Streamed);
        let margins = Margins {
            first,
            resident: !streams,
            ..planning_margins(context)
        };
        let found = repaired(context, &margins);
        if !found.as_ref().is_ok_and(|c| c.step() < step) {
            break;
        }
        best = found;
    }
    best
}

/// What planning leaves free from the start: a little of the links, since copies have latencies and
/// wait for one another, and a little memory, since addresses do not fit without gaps.
fn planning_margins(context: &Context<'_>) -> Margins {
    let spare = context.problem.budget.device.get() / FRAGMENTATION;
    Margins {
        device: vec![spare; context.coarse.epochs.len()],
        link: LINK_SPARE,
        lingering: true,
        ..Margins::default()
    }
}

/// Solves, rounds and builds with growing margins until the plan fits; then with smaller ones while
/// it is too far from the bound and that helps.
fn repaired(context: &Context<'_>, margins: &Margins) -> Result<Candidate, Infeasible> {
    let mut best: Result<Candidate, Infeasible> = Err(Infeasible::default());
    let mut margins = margins.clone();
    let mut too_small = Margins {
        device: vec![0; margins.device.len()],
        ..Margins::default()
    };
    for round in 0..ROUNDS {
        if round > 0 && context.expired() {
            break;
        }
        let Ok(relaxed) = relax(context.problem, &context.coarse, &margins) else {
            break;
        };
        let known = best.as_ref().map_or(Nanos::MAX, Candidate::step);
        let found = built(context, &relaxed);
        let outcome = match &found {
            Ok(candidate) => Ok((candidate.built.timeline.stall, candidate.step())),
            Err(miss) => Err(miss.clone()),
        };
        best = better(best, found);
        let miss = match outcome {
            // Copies that come too late: the links do less than they could on paper.
            Ok((stall, step)) if stall > step.scaled(1, STALL) => {
                if step >= known {
                    break;
                }
                // Or memory leaves them too little room to come earlier.
                too_small.clone_from(&margins);
                let room = context.problem.budget.device.get() / FRAGMENTATION;
                margins.device.iter_mut().for_each(|m| *m += room);
                margins.link += LINK_SPARE;
                continue;
            }
            Ok((_, step)) if step < known && context.far(step, 1.0) => {
                for (margin, low) in margins.device.iter_mut().zip(&too_small.device) {
                    *margin = (*margin + low) / 2;
                }
                margins.link = (margins.link + too_small.link) / 2.0;
                continue;
            }
            Ok(_) => break,
            // It fits but cannot win.
            Err(miss) if miss.needed.is_zero() => break,
            Err(miss) => miss,
        };
        too_small.device.clone_from(&margins.device);
        let excess = miss.needed.saturating_sub(miss.limit).get();
        if miss.step.is_none() {
            margins.host += excess + 1;
        } else if miss.missing.is_empty() {
            // Lost to fragmentation: other plans will lose about as much.
            let lost = excess + context.problem.budget.device.get() / LEAST;
            margins.device.iter_mut().for_each(|m| *m += lost);
        }
        for (epoch, margin) in context.coarse.epochs.iter().zip(&mut margins.device) {
            let within = miss
                .missing
                .iter()
                .filter(|(s, _)| epoch.steps.0 <= *s && *s <= epoch.steps.1);
            let least = context.problem.budget.device.get() / LEAST;
            *margin += within
                .map(|(_, short)| short.get().max(least))
                .max()
                .unwrap_or(0);
        }
    }
    best
}

/// Rounds and builds; where attention is recomputed, or memory is short, with each hold.
fn built(context: &Context<'_>, relaxed: &Relaxed) -> Result<Candidate, Infeasible> {
    let mut best: Option<Result<Candidate, Infeasible>> = None;
    for hold in Hold::CHOICES {
        let plan = interleaved(context, relaxed, hold);
        let again = recomputes_attention(context.problem, &plan);
        let found = context.candidate(plan);
        let settled = found.is_ok() && !again;
        let host_short = found.as_ref().is_err_and(|miss| miss.step.is_none());
        best = Some(match best {
            Some(best) => better(best, found),
            None => found,
        });
        if settled || host_short {
            break;
        }
    }
    best.expect("at least one hold")
}

fn recomputes_attention(problem: &Problem, plan: &Plan) -> bool {
    plan.iter().any(|(id, fate)| {
        let tensor = &problem.tensors[id];
        let by_group = problem.ops[tensor.producer].domain == crate::problem::Domain::Group;
        by_group && fate.recompute(tensor.pieces) > 0
    })
}
