//! Greedy: the tensor that saves most time for its bytes first. It stays if device memory is left,
//! travels if the link has time and the host room for it, and is recomputed otherwise.
//!
//! Block inputs come first whatever they save: without one its block cannot be made again. Of a
//! kind, late blocks stay and early ones travel, since these have longest until they are wanted.

use super::{Candidate, Context};
use crate::build::{build, Infeasible};
use crate::ids::TensorId;
use crate::plan::{Fate, Hold, Placement, Plan};
use crate::problem::{Phase, Split};

/// How often the device allowance is corrected after a build that did not fit.
const ROUNDS: usize = 6;

/// The greedy plan, with the simplest placement of model states under which one fits.
pub fn solve(context: &Context<'_>) -> Result<Candidate, Infeasible> {
    let mut miss = Infeasible::default();
    for placement in context.placed(&Plan::keep_all(context.problem)) {
        match with_states(context, placement) {
            Err(infeasible) => miss = super::nearer(Some(miss), infeasible),
            found => return found,
        }
    }
    Err(miss)
}

fn with_states(context: &Context<'_>, start: Plan) -> Result<Candidate, Infeasible> {
    let problem = context.problem;
    if !context.can_win(fastest(context, &start)) {
        return Err(Infeasible::default());
    }
    // The room beside everything that every plan has.
    let mut bare = start.clone();
    bare.fates
        .values_mut()
        .for_each(|fate| *fate = Fate::RECOMPUTED);
    for (id, tensor) in problem.tensors.iter() {
        if problem.values[tensor.value].split == Split::Whole {
            bare.fates[id] = Fate::swapped(tensor.pieces);
        }
    }
    if context.surely_misses(&bare) {
        return Err(Infeasible::default());
    }
    let used = match build(problem, &bare) {
        Ok(built) => built.peak,
        Err(infeasible) => return Err(infeasible),
    };
    let mut room = problem.budget.device.saturating_sub(used).get();
    let mut miss = None;
    for _ in 0..ROUNDS {
        // Built whether it can win or not: with less room it may come out faster.
        let plan = fill(context, &start, room);
        match build(problem, &plan) {
            Ok(built) => return Ok(context.found(plan, built)),
            Err(infeasible) => {
                room =
                    room.saturating_sub(infeasible.needed.saturating_sub(infeasible.limit).get());
                miss = Some(infeasible);
            }
        }
    }
    context
        .best_of([bare])
        .map_err(|infeasible| miss.unwrap_or(infeasible))
}

/// No greedy plan is faster, whatever room there is, in nanoseconds: all of the device and what can
/// travel go to block inputs first, then to parts of tensors by worth. With less room an input less
/// may be retained, on the device and on the host, and its room be used better.
fn fastest(context: &Context<'_>, start: &Plan) -> u64 {
    let problem = context.problem;
    let groups = context.outline.groups.iter().zip(&start.placements);
    let resident = groups.filter(|(_, p)| **p == Placement::Resident);
    let states: u64 = resident.map(|(g, _)| g.weight_bytes + g.state_bytes).sum();
    let device = problem.budget.device.get().saturating_sub(states);
    let filled = fill(context, start, device);
    let (host, link) = elsewhere(context, start);
    // A packed byte stands for several.
    let packed = context.outline.tensors.values();
    let packed = packed.map(|t| t.bytes.div_ceil(t.host_bytes.max(1))).max();
    let elsewhere = host.min(link).saturating_mul(packed.unwrap_or(1));
    let mut room = device.saturating_add(elsewhere);
    let mut remade = filled.clone();
    let mut input = 0;
    for (id, fate) in filled.iter() {
        if problem.values[problem.tensors[id].value].split == Split::Whole {
            input = context.outline.tensors[id].bytes.max(input);
            let retained = problem.pieces_bytes(id, 0, fate.keep + fate.swap);
            room = room.saturating_sub(retained.get());
        } else {
            remade.fates[id] = Fate::RECOMPUTED;
        }
    }
    room = room.saturating_add(2 * input);
    let mut saved = 0;
    for id in by_worth(context) {
        let tensor = &context.outline.tensors[id];
        if problem.values[problem.tensors[id].value].split != Split::Whole {
            let retained = tensor.bytes.min(room);
            room -= retained;
            let part = u128::from(tensor.recompute_ns) * u128::from(retained);
            saved += part.div_ceil(u128::from(tensor.bytes.max(1)));
        }
    }
    let saved = u64::try_from(saved).unwrap_or(u64::MAX);
    let saved = saved.saturating_mul(u64::from(problem.rounds()));
    context.plan_floor(&remade).saturating_sub(saved)
}

/// The bytes that the host has room for and those that the link moves during forward.
fn elsewhere(context: &Context<'_>, start: &Plan) -> (u64, u64) {
    let problem = context.problem;
    let host = problem.budget.host.get();
    let host = host.saturating_sub(context.states_on_host(start));
    let forward_ns: u64 = problem
        .program
        .iter()
        .filter(|(_, s)| s.phase == Phase::Forward)
        .map(|(id, _)| context.outline.steps[id].compute_ns)
        .sum();
    let rate = problem.machine.links.d2h.rate.get();
    let moved = u128::from(forward_ns) * u128::from(rate) / 1_000_000_000;
    (host, u64::try_from(moved).unwrap_or(u64::MAX))
}

fn fill(context: &Context<'_>, start: &Plan, mut room: u64) -> Plan {
    let mut plan = Plan {
        hold: Hold::ALL,
        ..start.clone()
    };
    let (mut host, mut link) = elsewhere(context, start);
    for id in by_worth(context) {
        let tensor = &context.outline.tensors[id];
        let piece = |bytes: u64| (bytes / u64::from(tensor.pieces.max(1))).max(1);
        let (here, there) = (piece(tensor.bytes), piece(tensor.host_bytes));
        let whole = |bytes: u64| u32::try_from(bytes).unwrap_or(u32::MAX);
        let keep = whole(room / here).min(tensor.pieces);
        let swap = whole(host.min(link) / there).min(tensor.pieces - keep);
        room -= u64::from(keep) * here;
        host -= u64::from(swap) * there;
        link -= u64::from(swap) * there;
        plan.fates[id] = Fate {
            keep,
            swap,
            ..Fate::RECOMPUTED
        };
    }
    plan
}

/// Block inputs, then by time saved for each byte; late blocks first, so that they are kept.
fn by_worth(context: &Context<'_>) -> Vec<TensorId> {
    let mut order: Vec<_> = context.outline.tensors.iter().collect();
    let split = |id| context.problem.values[context.problem.tensors[id].value].split;
    order.sort_by(|(a, ta), (b, tb)| {
        let inputs = (split(*b) == Split::Whole).cmp(&(split(*a) == Split::Whole));
        let worth = (u128::from(tb.recompute_ns) * u128::from(ta.bytes))
            .cmp(&(u128::from(ta.recompute_ns) * u128::from(tb.bytes)));
        inputs.then(worth).then(b.cmp(a))
    });
    order.into_iter().map(|(id, _)| id).collect()
}
