//! The default: the linear relaxation, rounded to a plan, repaired until it fits.
//!
//! Blocks are alike, so the relaxation decides classes of them by fractions; rounding hands out
//! whole pieces along the blocks, carrying the remainder from one to the next, so that what is
//! kept, swapped and recomputed interleaves and no kind is off by more than a piece. The relaxation
//! is in the plan's favour inside a step; where the built plan needs more memory than it said, the
//! difference becomes a margin and the program is solved again.
//!
//! Where block inputs themselves are recomputed, the relaxation does not know that those made again
//! for one segment are alive together. So segment shapes are enumerated as options: lengths that
//! grow
//! with the distance from the turn, since memory is shortest there and frees up as backward goes.
//! For
//! each shape the inputs are fixed, what is alive together is a margin, and the program decides the
//! rest; shapes are built in the order of their optima until one fits.

use super::coarse::Coarse;
use super::relaxation::{relax, Margins, Relaxed};
use super::{better, Candidate, Context};
use crate::build::Infeasible;
use crate::ids::{Id, Table, TensorId};
use crate::plan::{Fate, Hold, Placement, Plan};
use crate::problem::{Problem, Split};

/// How often the relaxation is solved again for one shape.
const ROUNDS: usize = 5;
/// A stall of more than this part of the step is worth another round, with this much less of the
/// links in use.
const STALL: u64 = 1000;
const LINK_SPARE: f64 = 0.05;
/// The part of the device that is given up for fragmentation, and again when a plan misses by it.
const FRAGMENTATION: u64 = 40;
/// This many times the wanted gap is far enough from the bound to try streamed weights too.
const FAR: f64 = 4.0;
/// How many shapes of segments are built.
const SHAPES_BUILT: usize = 6;

/// The best plan that rounding finds.
pub fn solve(context: &Context<'_>) -> Result<Candidate, Infeasible> {
    let Ok(relaxed) = &context.relaxed else {
        return Err(Infeasible::default());
    };
    if inputs_recomputed(context, relaxed) {
        return segmented(context);
    }
    // Weights that stay leave the links to what else must move; streaming is for tight memory.
    let free = planning_margins(context);
    let resident = Margins {
        resident: true,
        ..free.clone()
    };
    let mut best = repaired(context, &resident, None);
    let streams = relaxed
        .placements
        .iter()
        .any(|[_, _, streamed]| *streamed > 1e-3);
    let bound = context.bound().get();
    let far = best.as_ref().map_or(true, |c| {
        c.timeline.step.get().saturating_sub(bound) as f64 > bound as f64 * FAR * context.gap
    });
    if streams && far {
        best = better(best, repaired(context, &free, None));
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
        ..Margins::default()
    }
}

/// Whether the relaxation makes block inputs again.
fn inputs_recomputed(context: &Context<'_>, relaxed: &Relaxed) -> bool {
    let classes = context.coarse.classes.iter().zip(&relaxed.fates);
    let again = classes.filter(|(class, _)| is_input(context.problem, class.members[0]));
    again
        .map(|(class, (k, s))| (1.0 - k - s) * class.members.len() as f64)
        .sum::<f64>()
        > 1.5
}

fn is_input(problem: &Problem, tensor: TensorId) -> bool {
    problem.values[problem.tensors[tensor].value].split == Split::Whole
}

/// Solves, rounds and builds with growing margins until the plan fits; then once more with less.
fn repaired(
    context: &Context<'_>,
    margins: &Margins,
    first: Option<Relaxed>,
) -> Result<Candidate, Infeasible> {
    let mut best: Result<Candidate, Infeasible> = Err(Infeasible::default());
    let mut solved = first;
    let mut margins = margins.clone();
    for _ in 0..ROUNDS {
        let fresh = || relax(context.problem, &context.coarse, &margins).ok();
        let Some(relaxed) = solved.or_else(fresh) else {
            break;
        };
        solved = None;
        let found = built(context, &relaxed);
        let outcome = match &found {
            Ok(candidate) => Ok((candidate.timeline.stall, candidate.timeline.step)),
            Err(miss) => Err(miss.clone()),
        };
        best = better(best, found);
        let miss = match outcome {
            // Copies that come too late: the links do less than they could on paper.
            Ok((stall, step)) if stall > step.scaled(1, STALL) => {
                margins.link += LINK_SPARE;
                continue;
            }
            Ok(_) => break,
            // It fits but cannot win.
            Err(miss) if miss.needed.is_zero() => break,
            Err(miss) => miss,
        };
        let excess = miss.needed.saturating_sub(miss.limit).get();
        if miss.step.is_none() {
            margins.host += excess + 1;
        } else if miss.missing.is_empty() {
            // Lost to fragmentation: other plans will lose about as much.
            let lost = excess.max(context.problem.budget.device.get() / FRAGMENTATION);
            margins.device.iter_mut().for_each(|m| *m += lost);
        }
        for (epoch, margin) in context.coarse.epochs.iter().zip(&mut margins.device) {
            let within = miss
                .missing
                .iter()
                .filter(|(s, _)| epoch.steps.0 <= *s && *s <= epoch.steps.1);
            // Less than a piece would round to the same plan.
            let least = context.problem.budget.device.get() / 200;
            *margin += within
                .map(|(_, short)| short.get().max(least))
                .max()
                .unwrap_or(0);
        }
        if context.expired() {
            break;
        }
    }
    best
}

/// Rounds and builds; where attention is recomputed, or memory is short, with each hold.
fn built(context: &Context<'_>, relaxed: &Relaxed) -> Result<Candidate, Infeasible> {
    let mut best: Option<Result<Candidate, Infeasible>> = None;
    for hold in Hold::CHOICES {
        let plan = round_to_plan(context, relaxed, hold);
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

// ---- segments ---------------------------------------------------------------------------------

/// For every block whether its input is retained, in segments whose lengths start with `first` at
/// the turn and grow by `growth`.
fn segments(blocks: usize, first: usize, growth: usize) -> Vec<bool> {
    let mut retained = vec![false; blocks];
    let (mut end, mut length) = (blocks, first);
    while end > 0 {
        end = end.saturating_sub(length);
        retained[end] = true;
        length += growth;
    }
    retained
}

fn segmented(context: &Context<'_>) -> Result<Candidate, Infeasible> {
    let blocks = context
        .problem
        .program
        .values()
        .filter_map(|s| s.block)
        .max();
    let blocks = blocks.map_or(0, |b| b as usize + 1);
    let mut shapes: Vec<Vec<bool>> = Vec::new();
    for first in [1, 2, 3, 4] {
        for growth in [0, 1, 2, 4] {
            let shape = segments(blocks, first, growth);
            if !shapes.contains(&shape) {
                shapes.push(shape);
            }
        }
    }
    let mut solved: Vec<(Relaxed, Margins)> = shapes
        .iter()
        .filter_map(|shape| {
            let margins = shape_margins(context, shape);
            let relaxed = relax(context.problem, &context.coarse, &margins).ok()?;
            Some((relaxed, margins))
        })
        .collect();
    solved.sort_by_key(|(relaxed, _)| relaxed.bound_ns);
    let mut best: Result<Candidate, Infeasible> = Err(Infeasible::default());
    for (relaxed, margins) in solved.into_iter().take(SHAPES_BUILT) {
        if best
            .as_ref()
            .is_ok_and(|b| b.timeline.step.get() <= relaxed.bound_ns)
        {
            break;
        }
        best = better(best, repaired(context, &margins, Some(relaxed)));
        if context.expired() {
            break;
        }
    }
    best
}

/// Fixes which inputs are retained, and counts those that are alive together once made again.
fn shape_margins(context: &Context<'_>, retained: &[bool]) -> Margins {
    let problem = context.problem;
    let block_of = |id: TensorId| problem.values[problem.tensors[id].value].block;
    let kept = |id: TensorId| block_of(id).is_some_and(|b| retained[b as usize]);
    let fraction = |members: &[TensorId]| {
        let kept = members.iter().filter(|&&id| kept(id)).count();
        kept as f64 / members.len() as f64
    };
    let classes = &context.coarse.classes;
    let fixed = classes
        .iter()
        .map(|c| is_input(problem, c.members[0]).then(|| fraction(&c.members)));
    let input_bytes = classes
        .iter()
        .filter(|c| is_input(problem, c.members[0]))
        .map(|c| c.bytes / c.members.len() as u64)
        .max()
        .unwrap_or(0);
    // While backward is in block j, the inputs of its segment up to j are there.
    let together = |block: usize| {
        let start = (0..=block).rev().find(|&b| retained[b]).unwrap_or(0);
        (block - start) as u64
    };
    let device = context.coarse.epochs.iter().map(|epoch| {
        let steps = epoch.steps.0.index()..=epoch.steps.1.index();
        let in_epoch = steps.map(|s| &problem.program[crate::ids::StepId::from_index(s)]);
        in_epoch
            .filter(|s| s.phase == crate::problem::Phase::Backward)
            .filter_map(|s| s.block)
            .map(|b| together(b as usize) * input_bytes)
            .max()
            .unwrap_or(0)
    });
    Margins {
        device: device.collect(),
        retained: fixed.collect(),
        ..Margins::default()
    }
}

// ---- rounding ---------------------------------------------------------------------------------

/// Whole pieces for fractions.
fn round_to_plan(context: &Context<'_>, relaxed: &Relaxed, hold: Hold) -> Plan {
    let (problem, coarse) = (context.problem, &context.coarse);
    let mut plan = Plan::keep_all(problem);
    plan.hold = hold;
    for (class, group) in coarse.groups.iter().enumerate() {
        let [resident, host, _] = relaxed.placements[class];
        let (mut carried_resident, mut carried_host) = (0.0, 0.0);
        // The first groups are wanted first and updated last: they stay.
        for &member in &group.members {
            carried_resident += resident;
            carried_host += host;
            plan.placements[member] = if carried_resident >= 0.5 {
                carried_resident -= 1.0;
                Placement::Resident
            } else if carried_host >= 0.5 {
                carried_host -= 1.0;
                Placement::HostOptimizer
            } else {
                Placement::Streamed
            };
        }
    }
    round_fates(problem, coarse, relaxed, &mut plan.fates);
    let states = context.states_on_host(&plan);
    let room = problem.budget.host.get().saturating_sub(states);
    fit_host(problem, room, &mut plan.fates);
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
        let (mut carried_keep, mut carried_retained) = (0.0, 0.0);
        for &(_, id, keep, swap) in kind {
            let pieces = problem.tensors[id].pieces;
            carried_retained += (keep + swap) * f64::from(pieces);
            carried_keep += keep * f64::from(pieces);
            let retained = whole(carried_retained).min(pieces);
            let kept = whole(carried_keep).min(retained);
            carried_retained -= f64::from(retained);
            carried_keep -= f64::from(kept);
            fates[id] = Fate {
                keep: kept,
                swap: retained - kept,
            };
        }
    }
}

/// Rounding can swap a little more than the host holds: the last pieces stay instead, small ones
/// first.
fn fit_host(problem: &Problem, room: u64, fates: &mut Table<TensorId, Fate>) {
    let repeats = u64::from(problem.micro_batches);
    let piece = |id: TensorId| problem.pieces_bytes(id, 0, 1).get() * repeats;
    let mut by_piece: Vec<TensorId> = problem
        .tensors
        .ids()
        .filter(|&id| fates[id].swap > 0)
        .collect();
    let mut swapped: u64 = by_piece
        .iter()
        .map(|&id| piece(id) * u64::from(fates[id].swap))
        .sum();
    by_piece.sort_by_key(|&id| (piece(id), std::cmp::Reverse(id)));
    for id in by_piece {
        while swapped > room && fates[id].swap > 0 {
            fates[id].swap -= 1;
            fates[id].keep += 1;
            swapped -= piece(id);
        }
    }
}

/// Rounded down, but for the solver's tolerance.
fn whole(fraction: f64) -> u32 {
    (fraction + 1e-6).floor().max(0.0) as u32
}

#[cfg(test)]
mod tests {
    use super::segments;

    #[test]
    fn segments_grow_away_from_the_turn() {
        let starts = |blocks, first, growth| -> Vec<usize> {
            let retained = segments(blocks, first, growth);
            (0..blocks).filter(|&b| retained[b]).collect()
        };
        assert_eq!(starts(8, 1, 0), [0, 1, 2, 3, 4, 5, 6, 7]);
        assert_eq!(starts(8, 2, 0), [0, 2, 4, 6]);
        assert_eq!(starts(8, 1, 1), [0, 2, 5, 7]);
    }
}
