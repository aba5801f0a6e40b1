//! A coarser outline: many blocks are alike, and far from the turn from forward to backward it does
//! not matter when exactly something moves. Naming every block makes linear programs slow and
//! integer ones symmetric; so blocks are counted instead.
//!
//! In: an [`Outline`]. Out: a [`Coarse`] one: consecutive steps in *epochs*, single steps near the
//! turn, whole runs of blocks far from it; tensors that are made and needed in the same epochs in
//! *classes*, decided by one fraction; model states likewise. Every step is coarsened in the plan's
//! favour: an epoch's rows are sums of its steps' rows, or fewer of them. So a bound stays a bound.

use std::collections::BTreeMap;

use super::outline::Outline;
use crate::ids::{Id, StepId, TensorId};
use crate::problem::{Phase, Problem};

/// The coarse outline. Epochs, classes and groups are indices into these lists.
#[derive(Clone, Debug)]
pub struct Coarse {
    /// In order.
    pub epochs: Vec<Epoch>,
    /// Tensors that are decided together.
    pub classes: Vec<Class>,
    /// Model states that are placed together.
    pub groups: Vec<Group>,
}

/// Consecutive steps.
#[derive(Clone, Debug)]
pub struct Epoch {
    /// First and last step.
    pub steps: (StepId, StepId),
    /// Nanoseconds with nothing recomputed.
    pub compute_ns: u64,
    /// When memory is tightest.
    pub moments: Vec<CoarseMoment>,
}

/// What memory must hold at one position, in classes and groups.
#[derive(Clone, Debug)]
pub struct CoarseMoment {
    /// The step it belongs to.
    pub step: StepId,
    /// Bytes that every plan has there.
    pub fixed: u64,
    /// Classes of which the kept part is there too.
    pub kept: Vec<usize>,
    /// For every group: bytes of weights that are in `fixed` already.
    pub weights: BTreeMap<usize, u64>,
    /// For every group: bytes of complete gradients that wait for the update at the end.
    pub gradients: BTreeMap<usize, u64>,
    /// Nanoseconds of the step's operators from here to its end, nothing recomputed.
    pub to_come_ns: u64,
}

/// Tensors that are made and needed in the same epochs.
#[derive(Clone, Debug)]
pub struct Class {
    /// The tensors.
    pub members: Vec<TensorId>,
    /// Their size together.
    pub bytes: u64,
    /// Their size where they travel, or where they stay packed.
    pub host_bytes: u64,
    /// Whether they can stay packed.
    pub packs: bool,
    /// Nanoseconds of packing all of them and unpacking them.
    pub packing_ns: u64,
    /// Nanoseconds of making all of them again.
    pub recompute_ns: u64,
    /// The epoch that makes them.
    pub made: usize,
    /// The last epoch of forward that uses them.
    pub forward_until: usize,
    /// The first epoch of backward that needs them.
    pub needed: usize,
    /// Classes that read members of this one to be made again before the members are needed
    /// themselves, by name: how many of the members each reads.
    pub early_readers: Vec<Vec<(usize, u64)>>,
    /// Classes whose members are read to make this one's again, one for one, and that are not held.
    pub operands: Vec<usize>,
}

/// Groups of model states that are alike.
#[derive(Clone, Debug)]
pub struct Group {
    /// Their indices in the problem.
    pub members: Vec<usize>,
    /// Bytes of weights, together.
    pub weight_bytes: u64,
    /// Bytes of gradients, together.
    pub gradient_bytes: u64,
    /// Bytes of states on the device, together.
    pub state_bytes: u64,
    /// Nanoseconds of their updates on the device at the end of the step.
    pub update_ns: u64,
    /// Nanoseconds of their updates on the host, where the method has them.
    pub host_ns: Option<u64>,
    /// Bytes on the host where the host updates them or streams them.
    pub host_bytes: u64,
    /// First and last epoch of forward and of backward that use them.
    pub forward: Option<(usize, usize)>,
    /// First and last epoch of backward.
    pub backward: Option<(usize, usize)>,
}

impl Group {
    /// Whether its last contribution comes in this epoch.
    pub fn completes_in(&self, epoch: usize) -> bool {
        let range = self.backward.or(self.forward);
        range.is_some_and(|(_, last)| last == epoch)
    }
}

/// How many blocks next to the turn are epochs step by step.
const SINGLE_STEPS: u32 = 4;

/// Coarsens the outline.
pub fn coarsen(problem: &Problem, outline: &Outline) -> Coarse {
    let (epochs, epoch_of) = epochs(problem, outline);
    let classes = classes(problem, outline, &epoch_of);
    let (groups, group_of) = groups(problem, outline, &epoch_of);
    let mut coarse = Coarse {
        epochs,
        classes,
        groups,
    };
    for j in 0..coarse.epochs.len() {
        coarse.epochs[j].moments = moments(problem, outline, &coarse, j, &group_of);
    }
    coarse
}

/// The run that a block belongs to: single ones next to the turn, longer ones further away.
fn runs(blocks: u32) -> Vec<u32> {
    let mut run_of = vec![0; blocks as usize];
    let (mut block, mut run) = (blocks, 0);
    while block > 0 {
        let length = (1 + run / (2 * SINGLE_STEPS)).min(block);
        // Blocks 0 and 1 stay apart: streamed weights are wanted first by them.
        let length = if block - length < 2 && block > 2 {
            (block - 2).min(length)
        } else {
            length
        };
        let length = if block <= 2 { 1 } else { length };
        for b in block - length..block {
            run_of[b as usize] = run;
        }
        block -= length;
        run += 1;
    }
    run_of
}

fn epochs(problem: &Problem, outline: &Outline) -> (Vec<Epoch>, Vec<usize>) {
    let blocks = problem.blocks();
    let run_of = runs(blocks);
    let key = |id: StepId| {
        let step = &problem.program[id];
        let single = step.block.is_none_or(|b| b + SINGLE_STEPS >= blocks);
        let run = step.block.map(|b| run_of[b as usize]);
        (step.phase, run, single.then_some(id))
    };
    let mut epochs: Vec<Epoch> = Vec::new();
    let mut epoch_of = Vec::new();
    for (id, step) in outline.steps.iter() {
        match epochs.last_mut() {
            Some(last) if key(last.steps.0) == key(id) => {
                last.steps.1 = id;
                last.compute_ns += step.compute_ns;
            }
            _ => epochs.push(Epoch {
                steps: (id, id),
                compute_ns: step.compute_ns,
                moments: Vec::new(),
            }),
        }
        epoch_of.push(epochs.len() - 1);
    }
    (epochs, epoch_of)
}

fn classes(problem: &Problem, outline: &Outline, epoch_of: &[usize]) -> Vec<Class> {
    let at = |step: StepId| epoch_of[step.index()];
    let mut by_key = BTreeMap::new();
    let mut classes: Vec<Class> = Vec::new();
    let mut class_of = Vec::new();
    for (id, t) in outline.tensors.iter() {
        let name = &problem.values[problem.tensors[id].value].name;
        let key = (
            name,
            at(t.made),
            at(t.forward_until),
            at(t.needed),
            at(t.needed_until),
        );
        let class = *by_key.entry(key).or_insert_with(|| {
            classes.push(Class {
                members: Vec::new(),
                bytes: 0,
                host_bytes: 0,
                packs: true,
                packing_ns: 0,
                recompute_ns: 0,
                made: at(t.made),
                forward_until: at(t.forward_until),
                needed: at(t.needed),
                early_readers: Vec::new(),
                operands: Vec::new(),
            });
            classes.len() - 1
        });
        classes[class].members.push(id);
        classes[class].bytes += t.bytes;
        classes[class].host_bytes += t.host_bytes;
        classes[class].packs &= t.packs;
        classes[class].packing_ns += t.packing_ns;
        classes[class].recompute_ns += t.recompute_ns;
        class_of.push(class);
    }
    let mut early: BTreeMap<(usize, &str), BTreeMap<usize, u64>> = BTreeMap::new();
    for (id, t) in outline.tensors.iter() {
        for &operand in t.operands.iter().filter(|&&o| !outline.tensors[o].held) {
            let (reader, read) = (class_of[id.index()], class_of[operand.index()]);
            if outline.tensors[operand].needed > t.needed {
                let name = problem.values[problem.tensors[id].value].name.as_str();
                *early
                    .entry((read, name))
                    .or_default()
                    .entry(reader)
                    .or_default() += 1;
            }
            let paired = classes[reader].members.len() == classes[read].members.len();
            if paired && !classes[reader].operands.contains(&read) {
                classes[reader].operands.push(read);
            }
        }
    }
    for ((read, _), readers) in early {
        classes[read]
            .early_readers
            .push(readers.into_iter().collect());
    }
    classes
}

fn groups(problem: &Problem, outline: &Outline, epoch_of: &[usize]) -> (Vec<Group>, Vec<usize>) {
    let at = |range: Option<(StepId, StepId)>| {
        range.map(|(a, b)| (epoch_of[a.index()], epoch_of[b.index()]))
    };
    let mut by_key = BTreeMap::new();
    let mut groups: Vec<Group> = Vec::new();
    let mut group_of = Vec::new();
    for (g, group) in outline.groups.iter().enumerate() {
        let key = (at(group.forward), at(group.backward));
        let class = *by_key.entry(key).or_insert_with(|| {
            groups.push(Group {
                members: Vec::new(),
                weight_bytes: 0,
                gradient_bytes: 0,
                state_bytes: 0,
                update_ns: 0,
                host_ns: None,
                host_bytes: 0,
                forward: key.0,
                backward: key.1,
            });
            groups.len() - 1
        });
        let entry = &mut groups[class];
        entry.members.push(g);
        entry.weight_bytes += group.weight_bytes;
        entry.gradient_bytes += group.gradient_bytes;
        entry.state_bytes += group.state_bytes;
        entry.update_ns += group.update_ns;
        entry.host_bytes += group.host_bytes(&problem.states[g]);
        if let Some(host) = problem.states[g].host {
            entry.host_ns = Some(entry.host_ns.unwrap_or(0) + host.duration.get());
        }
        group_of.push(class);
    }
    (groups, group_of)
}

/// The moments of the step of an epoch that is next to the turn, in classes: a class counts where
/// all of it is sure to be there.
fn moments(
    problem: &Problem,
    outline: &Outline,
    coarse: &Coarse,
    epoch: usize,
    group_of: &[usize],
) -> Vec<CoarseMoment> {
    let (first, last) = coarse.epochs[epoch].steps;
    let forward = problem.program[first].phase == Phase::Forward;
    let step = if forward { last } else { first };
    let touched = &outline.steps[step].touched;
    let sum = |bytes: &BTreeMap<usize, u64>| {
        let mut sums = BTreeMap::new();
        for (&g, &b) in bytes {
            *sums.entry(group_of[g]).or_insert(0) += b;
        }
        sums
    };
    let of_moment = |kept: &[TensorId]| {
        let all = |c: usize| {
            coarse.classes[c].members.iter().all(|&id| {
                let t = &outline.tensors[id];
                let there = t.made < step && t.needed_until > step;
                kept.contains(&id) || (there && !touched.contains(&id))
            })
        };
        (0..coarse.classes.len())
            .filter(|&c| all(c))
            .collect::<Vec<_>>()
    };
    outline.steps[step]
        .moments
        .iter()
        .map(|m| CoarseMoment {
            step,
            fixed: m.fixed,
            kept: of_moment(&m.kept),
            weights: sum(&m.weights),
            gradients: sum(&m.gradients),
            to_come_ns: m.to_come_ns,
        })
        .collect()
}
