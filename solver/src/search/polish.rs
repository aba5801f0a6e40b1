//! Polish: the memory that a plan leaves is spent on what it makes again.
//!
//! In: a plan that fits. Out: a faster one, if there is one in reach. Rounding and the margins of
//! planning leave a little of the device unused; pieces that are made again stay there instead, the
//! ones that save most time for their bytes first. How much really fits only a build tells, so
//! amounts are tried from all that seems free downwards.

use std::cmp::Ordering;

use super::{Candidate, Context};
use crate::ids::TensorId;
use crate::plan::{Fate, Plan};
use crate::problem::Split;

/// How many amounts are tried.
const AMOUNTS: u64 = 8;
/// The part of what is swapped that may travel besides: links are planned with something to spare.
const MORE: u64 = 50;

/// A faster plan than `candidate`, where one is found: with more that stays, or more that travels.
pub fn polished(context: &Context<'_>, candidate: &Candidate) -> Option<Candidate> {
    let device = context.problem.budget.device;
    let device = device.saturating_sub(candidate.built.peak).get();
    let link = candidate.built.copied.get() / MORE;
    let stays = |fate: &mut Fate, pieces| fate.keep += pieces;
    let travels = |fate: &mut Fate, pieces| fate.swap += pieces;
    // Late blocks stay, since their tensors live shortest; early ones have most time to travel.
    let mut order = by_worth(context, &candidate.plan);
    improved(context, candidate, &order, device, stays).or_else(|| {
        order.sort_by(|&a, &b| by_saving(context, a, b).then(a.cmp(&b)));
        improved(context, candidate, &order, link, travels)
    })
}

fn improved(
    context: &Context<'_>,
    candidate: &Candidate,
    order: &[TensorId],
    room: u64,
    retain: fn(&mut Fate, u32),
) -> Option<Candidate> {
    let mut tried = candidate.plan.clone();
    (1..=AMOUNTS).rev().find_map(|part| {
        let plan = filled(
            context,
            &candidate.plan,
            order,
            room / AMOUNTS * part,
            retain,
        );
        if plan == tried || context.expired() {
            return None;
        }
        tried.clone_from(&plan);
        let found = context.candidate(plan).ok()?;
        (found.step() < candidate.step()).then_some(found)
    })
}

/// Tensors that are made again in part, by the time that keeping them saves for each byte; late
/// blocks first, whose tensors live shortest. Block inputs are a matter of segments.
fn by_worth(context: &Context<'_>, plan: &Plan) -> Vec<TensorId> {
    let problem = context.problem;
    let again = plan.iter().filter(|&(id, fate)| {
        let tensor = &problem.tensors[id];
        fate.recompute(tensor.pieces) > 0 && problem.values[tensor.value].split != Split::Whole
    });
    let mut order: Vec<TensorId> = again.map(|(id, _)| id).collect();
    order.sort_by(|&a, &b| by_saving(context, a, b).then(b.cmp(&a)));
    order
}

/// The tensor first that saves more time for each byte.
fn by_saving(context: &Context<'_>, a: TensorId, b: TensorId) -> Ordering {
    let saving = |id: TensorId| {
        let tensor = &context.outline.tensors[id];
        tensor.recompute_ns as f64 / tensor.bytes.max(1) as f64
    };
    saving(b).total_cmp(&saving(a))
}

/// The plan with `room` bytes more of what it makes again retained.
fn filled(
    context: &Context<'_>,
    plan: &Plan,
    order: &[TensorId],
    mut room: u64,
    retain: fn(&mut Fate, u32),
) -> Plan {
    let mut plan = plan.clone();
    for &id in order {
        let pieces = context.problem.tensors[id].pieces;
        let piece = context.problem.pieces_bytes(id, 0, 1).get().max(1);
        let again = u64::from(plan.fates[id].recompute(pieces));
        let more = again.min(room / piece);
        retain(&mut plan.fates[id], more as u32);
        room -= more * piece;
    }
    plan
}
