//! Every plan of a tiny problem: the oracle of the tests.

use super::{Candidate, Context};
use crate::build::Infeasible;
use crate::plan::{Fate, Hold, Placement, Plan};
use crate::problem::Problem;

/// The most plans that are tried.
pub const MOST_PLANS: u64 = 1_000_000;

/// How many plans there are; nothing beyond [`MOST_PLANS`].
pub fn count(problem: &Problem) -> Option<u64> {
    let mut plans = holds(problem).len() as u64;
    let fates = problem
        .tensors
        .iter()
        .map(|(id, t)| fates(t.pieces, problem.packs(id)).len() as u64);
    let places = problem
        .states
        .iter()
        .map(|g| placements(g.host.is_some()).len() as u64);
    for options in fates.chain(places) {
        plans = plans.checked_mul(options).filter(|&p| p <= MOST_PLANS)?;
    }
    Some(plans)
}

/// The fastest of all plans, if there are few enough to try them all.
pub fn solve(context: &Context<'_>) -> Result<Candidate, Infeasible> {
    let problem = context.problem;
    let Some(plans) = count(problem) else {
        return Err(Infeasible::default());
    };
    context.best_of((0..plans).map(|nth| nth_plan(problem, nth)))
}

/// The digits of `nth` in the mixed radix of all options.
fn nth_plan(problem: &Problem, mut nth: u64) -> Plan {
    let mut digit = |options: usize| {
        let digit = nth % options as u64;
        nth /= options as u64;
        digit as usize
    };
    let mut plan = Plan::keep_all(problem);
    let holds = holds(problem);
    plan.hold = holds[digit(holds.len())];
    for (fate, (id, tensor)) in plan.fates.values_mut().zip(problem.tensors.iter()) {
        let fates = fates(tensor.pieces, problem.packs(id));
        *fate = fates[digit(fates.len())];
    }
    for (placement, group) in plan.placements.iter_mut().zip(&problem.states) {
        let placements = placements(group.host.is_some());
        *placement = placements[digit(placements.len())];
    }
    plan
}

/// All fates, those that pack last.
fn fates(pieces: u32, packs: bool) -> Vec<Fate> {
    let most = if packs { pieces } else { 0 };
    let mut fates = Vec::new();
    for pack in 0..=most {
        for keep in 0..=pieces - pack {
            let swap = 0..=pieces - pack - keep;
            fates.extend(swap.map(|swap| Fate { keep, pack, swap }));
        }
    }
    fates
}

fn placements(on_host: bool) -> Vec<Placement> {
    let mut all = vec![Placement::Resident, Placement::Streamed];
    if on_host {
        all.push(Placement::HostOptimizer);
    }
    all
}

/// Holding matters only where something is made by head groups.
fn holds(problem: &Problem) -> Vec<Hold> {
    let groups = |v| problem.values[v].split == crate::problem::Split::Groups;
    if problem.tensors.values().any(|t| groups(t.value)) {
        Hold::CHOICES.to_vec()
    } else {
        vec![Hold::ALL]
    }
}
