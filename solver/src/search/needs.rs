//! What a plan needs at the least, told without building it: most plans that do not fit show it.
//!
//! The same rows as the relaxation's, for whole pieces: what is on the way to the host or back, and
//! what is made again, comes on top.

use super::outline::{Moment, Outline};
use crate::ids::{Id, TensorId};
use crate::plan::{Placement, Plan};
use crate::problem::Problem;

/// Host bytes that a plan takes for model states.
pub fn states_on_host(problem: &Problem, outline: &Outline, plan: &Plan) -> u64 {
    let groups = outline.groups.iter().zip(&problem.states);
    let there = groups
        .zip(&plan.placements)
        .filter(|(_, placement)| **placement != Placement::Resident);
    there
        .map(|((outline, group), _)| outline.host_bytes(group))
        .sum()
}

/// Host bytes for what travels, in all rounds of a step.
pub fn swapped(problem: &Problem, plan: &Plan) -> u64 {
    let bytes = plan.iter().map(|(id, fate)| {
        let first = fate.keep + fate.pack;
        problem
            .pieces_host_bytes(id, first, first + fate.swap)
            .get()
    });
    bytes.sum::<u64>() * u64::from(problem.rounds())
}

/// Host bytes in all.
pub fn host(problem: &Problem, outline: &Outline, plan: &Plan) -> u64 {
    states_on_host(problem, outline, plan) + swapped(problem, plan)
}

/// Nanoseconds of operators in a step beside those of every plan: what is made again, packed and
/// unpacked, and updates at the end. The last piece may be smaller than others: bytes count.
pub fn beside_compute_ns(problem: &Problem, outline: &Outline, plan: &Plan) -> u64 {
    let again = plan.iter().map(|(id, fate)| {
        let tensor = &outline.tensors[id];
        let part = |ns: u64, first: u32, last: u32| {
            let bytes = u128::from(problem.pieces_bytes(id, first, last).get());
            let part = u128::from(ns) * bytes / u128::from(tensor.bytes.max(1));
            u64::try_from(part).unwrap_or(ns)
        };
        part(tensor.recompute_ns, fate.retained(), tensor.pieces)
            + part(tensor.packing_ns, fate.keep, fate.keep + fate.pack)
    });
    let again = again.sum::<u64>() * u64::from(problem.rounds());
    let groups = outline.groups.iter().zip(&plan.placements);
    let resident = groups.filter(|(_, placement)| **placement == Placement::Resident);
    again + resident.map(|(group, _)| group.update_ns).sum::<u64>()
}

/// Device bytes at the moment that needs most; nothing is told of plans that divide a tensor, whose
/// operators run in parts and pass less on.
pub fn device(problem: &Problem, outline: &Outline, plan: &Plan) -> u64 {
    let divided = plan.iter().any(|(id, fate)| {
        let pieces = outline.tensors[id].pieces;
        let parts = [fate.keep, fate.pack, fate.swap];
        fate.retained() > 0 && !parts.contains(&pieces)
    });
    if divided {
        return 0;
    }
    let stays = |id: TensorId| {
        // What backward does not read stays for forward only.
        if !outline.tensors[id].read {
            return 0;
        }
        let fate = plan.fates[id];
        let packed = fate.keep + fate.pack;
        let kept = problem.pieces_bytes(id, 0, fate.keep);
        (kept + problem.pieces_host_bytes(id, fate.keep, packed)).get()
    };
    let stays: Vec<u64> = problem.tensors.ids().map(stays).collect();
    // What is made before a step and needed after it: the change from each step to the next.
    let mut changes = vec![0i128; outline.steps.len() + 1];
    for (id, tensor) in outline.tensors.iter() {
        let (first, end) = (tensor.made.index() + 1, tensor.needed_until.index());
        if first < end {
            changes[first] += i128::from(stays[id.index()]);
            changes[end] -= i128::from(stays[id.index()]);
        }
    }
    let states = outline.groups.iter().zip(&plan.placements);
    let states = states.map(|(group, placement)| match placement {
        Placement::Resident => group.weight_bytes + group.state_bytes,
        Placement::HostOptimizer => group.weight_bytes,
        Placement::Streamed => 0,
    });
    let states: u64 = states.sum();
    let mut there = 0;
    let mut most = 0;
    for ((id, step), change) in outline.steps.iter().zip(changes) {
        there += change;
        let passing = step.touched.iter().filter(|&&t| {
            let tensor = &outline.tensors[t];
            tensor.made < id && id < tensor.needed_until
        });
        let passing: u64 = passing.map(|t| stays[t.index()]).sum();
        let untouched = u64::try_from(there).unwrap_or(0).saturating_sub(passing);
        for moment in &step.moments {
            let kept: u64 = moment.kept.iter().map(|t| stays[t.index()]).sum();
            let needed = moment.fixed + kept + untouched + states + waiting(moment, plan);
            most = most.max(needed - at_work(moment, plan));
        }
    }
    most
}

/// Complete gradients that wait for an update on the device.
fn waiting(moment: &Moment, plan: &Plan) -> u64 {
    let gradients = moment.gradients.iter();
    let here = gradients.filter(|(&g, _)| plan.placements[g] == Placement::Resident);
    here.map(|(_, bytes)| bytes).sum()
}

/// Weights that belong to the moment's fixed bytes though they are on the device in any case.
fn at_work(moment: &Moment, plan: &Plan) -> u64 {
    let weights = moment.weights.iter();
    let here = weights.filter(|(&g, _)| plan.placements[g] != Placement::Streamed);
    here.map(|(_, bytes)| bytes).sum()
}
