//! Polish: what a plan leaves of memory and links is spent on what it makes again.
//!
//! In: a plan that fits. Out: that one or a faster one. Rounding and the margins of planning leave
//! a little unused, and a strategy may not know of a freedom that others use. So pieces that are
//! made again stay on the device instead, packed where they can be, or travel, those first that
//! save most time for their bytes. How much really fits and pays only a build tells: amounts are
//! halved from all that there could be.

use super::{Candidate, Context};
use crate::ids::TensorId;
use crate::plan::{Fate, Plan};
use crate::problem::Split;
use crate::units::Nanos;

/// How many amounts that do not help are tried.
const FAILURES: u32 = 10;

/// The candidate, or a faster one with more that stays or travels; no faster than `enough`.
pub fn polished(context: &Context<'_>, candidate: Candidate, enough: Nanos) -> Candidate {
    let problem = context.problem;
    // Late blocks stay, since their tensors live shortest; early ones have most time to travel.
    let mut order = by_saving(context);
    let device = problem.budget.device.saturating_sub(candidate.built.peak);
    let stays = |fate: &mut Fate, pieces| fate.keep += pieces;
    let candidate = improved(context, candidate, enough, &order, device.get(), stays);
    let packs: Vec<_> = order
        .iter()
        .copied()
        .filter(|&(id, _)| problem.packs(id))
        .collect();
    let device = problem.budget.device.saturating_sub(candidate.built.peak);
    let packed = |fate: &mut Fate, pieces| fate.pack += pieces;
    let candidate = improved(context, candidate, enough, &packs, device.get(), packed);
    order.sort_by(|(a, saving_a), (b, saving_b)| saving_b.total_cmp(saving_a).then(a.cmp(b)));
    let host = problem.budget.host;
    let host = host
        .saturating_sub(candidate.built.schedule.host_bytes)
        .get();
    let host = host / u64::from(problem.rounds());
    let travels = |fate: &mut Fate, pieces| fate.swap += pieces;
    improved(context, candidate, enough, &order, host, travels)
}

fn improved(
    context: &Context<'_>,
    mut candidate: Candidate,
    enough: Nanos,
    order: &[(TensorId, f64)],
    room: u64,
    retain: fn(&mut Fate, u32),
) -> Candidate {
    let mut amount = room;
    let mut failures = 0;
    while failures < FAILURES && candidate.step() > enough && !context.expired() {
        let (plan, retained) = filled(context, &candidate.plan, order, amount, retain);
        if retained == 0 {
            break;
        }
        match context.candidate(plan) {
            Ok(found) if found.step() < candidate.step() => candidate = found,
            _ => {
                failures += 1;
                amount = retained / 2;
            }
        }
    }
    candidate
}

/// All tensors but block inputs, which are a matter of segments, with the nanoseconds that a
/// retained byte saves: most first, and of late blocks first.
fn by_saving(context: &Context<'_>) -> Vec<(TensorId, f64)> {
    let problem = context.problem;
    let inside = |id: &TensorId| problem.values[problem.tensors[*id].value].split != Split::Whole;
    let saving = |id: TensorId| {
        let tensor = &context.outline.tensors[id];
        (id, tensor.recompute_ns as f64 / tensor.bytes.max(1) as f64)
    };
    let mut order: Vec<_> = problem.tensors.ids().filter(inside).map(saving).collect();
    order.sort_by(|(a, saving_a), (b, saving_b)| saving_b.total_cmp(saving_a).then(b.cmp(a)));
    order
}

/// The plan with up to `room` bytes more of what it makes again retained, and how many they are.
fn filled(
    context: &Context<'_>,
    plan: &Plan,
    order: &[(TensorId, f64)],
    room: u64,
    retain: fn(&mut Fate, u32),
) -> (Plan, u64) {
    let mut plan = plan.clone();
    let mut left = room;
    for &(id, _) in order {
        let pieces = context.problem.tensors[id].pieces;
        let piece = context.problem.pieces_bytes(id, 0, 1).get().max(1);
        let again = plan.fates[id].recompute(pieces);
        let more = again.min(u32::try_from(left / piece).unwrap_or(u32::MAX));
        retain(&mut plan.fates[id], more);
        left -= u64::from(more) * piece;
    }
    (plan, room - left)
}
