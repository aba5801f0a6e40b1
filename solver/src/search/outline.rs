//! The problem in the large: what the relaxation and the strategies need to know of it.
//!
//! In: a [`Problem`]. Out: an [`Outline`]: for every step its time with nothing recomputed, for
//! every tensor its size, the steps between which it is needed, and what making it again costs; for
//! every step the moments at which memory is tightest. All of it is read off two expansions of the
//! program, one that keeps everything and one that keeps nothing, so that no cost is written twice.
//!
//! A [`Moment`] says what must be on the device at one position *whatever the plan decides*: what
//! the operator there works on, what is passing through, the parts of saved tensors that forward
//! still
//! needs. So a bound that respects all moments is a bound for every plan.

use std::collections::{BTreeMap, BTreeSet};

use crate::build::{expand, Draft};
use crate::ids::{Id, OpId, StepId, Table, TensorId};
use crate::plan::{Fate, Hold, Plan};
use crate::problem::{Category, Domain, Node, Phase, Problem, Split, StateGroup};
use crate::units::Span;

/// The problem in the large.
#[derive(Clone, Debug)]
pub struct Outline {
    /// Every step, in order.
    pub steps: Table<StepId, StepOutline>,
    /// Every storable tensor.
    pub tensors: Table<TensorId, TensorOutline>,
    /// Every group of model states.
    pub groups: Vec<GroupOutline>,
    /// Nanoseconds of what runs once in every step, where forward and backward run more often:
    /// norms of gradients and updates inside backward. They are no part of the steps.
    pub once_ns: u64,
}

/// A step.
#[derive(Clone, Debug)]
pub struct StepOutline {
    /// Nanoseconds with nothing recomputed, without updates that depend on placement.
    pub compute_ns: u64,
    /// When memory is tightest, none implied by another.
    pub moments: Vec<Moment>,
    /// Tensors that its operators read or write when nothing is recomputed.
    pub touched: Vec<TensorId>,
}

/// What memory must hold at one position, whatever the plan.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Moment {
    /// Bytes that every plan has there.
    pub fixed: u64,
    /// Tensors that this step touches of which the kept part is there beside the fixed bytes. The
    /// kept parts of untouched tensors that are needed later are there at every moment.
    pub kept: Vec<TensorId>,
    /// For every group: bytes of its weights that are in `fixed` already.
    pub weights: BTreeMap<usize, u64>,
    /// For every group: bytes of complete gradients that wait for the update at the end.
    pub gradients: BTreeMap<usize, u64>,
    /// Nanoseconds of the step's operators from here to its end, nothing recomputed.
    pub to_come_ns: u64,
}

/// A storable tensor.
#[derive(Clone, Debug)]
pub struct TensorOutline {
    /// Its size.
    pub bytes: u64,
    /// Its size where it travels, or where it stays packed.
    pub host_bytes: u64,
    /// Whether it can stay packed.
    pub packs: bool,
    /// Nanoseconds of packing all of it once and unpacking it once, wherever it is meanwhile; 0
    /// where backward does not read it.
    pub packing_ns: u64,
    /// Pieces that decisions are made of.
    pub pieces: u32,
    /// Nanoseconds of making all of it again from its producer's operands; 0 where backward does
    /// not read it, so that it is made again for others only.
    pub recompute_ns: u64,
    /// Whether backward reads it.
    pub read: bool,
    /// The step that makes it.
    pub made: StepId,
    /// The last forward step that uses it.
    pub forward_until: StepId,
    /// The first backward step that needs it.
    pub needed: StepId,
    /// The last backward step that needs it.
    pub needed_until: StepId,
    /// Tensors that its producer reads.
    pub operands: Vec<TensorId>,
    /// Whether it stays once made again, so that it is made again once only.
    pub held: bool,
}

/// A group of model states.
#[derive(Clone, Debug)]
pub struct GroupOutline {
    /// Bytes of its weights.
    pub weight_bytes: u64,
    /// Bytes of its gradients.
    pub gradient_bytes: u64,
    /// Bytes of its optimizer states that are on the device if the group is; those that are there
    /// in any case belong to every moment's fixed bytes.
    pub state_bytes: u64,
    /// Nanoseconds of its update on the device at the end of the step; 0 where it is fused.
    pub update_ns: u64,
    /// First and last step of forward that uses it.
    pub forward: Option<(StepId, StepId)>,
    /// First and last step of backward that uses it, or contributes to its gradient.
    pub backward: Option<(StepId, StepId)>,
}

impl GroupOutline {
    /// Host memory that the group takes where its optimizer runs there, or where it is streamed.
    pub fn host_bytes(&self, group: &StateGroup) -> u64 {
        match group.host {
            Some(host) => host.bytes.get() + self.gradient_bytes + self.weight_bytes,
            None => self.weight_bytes,
        }
    }
}

/// Reads the outline off the program.
pub fn outline(problem: &Problem) -> Outline {
    let single = Problem {
        micro_batches: 1,
        passes: 1,
        ..problem.clone()
    };
    let keep = expand(&single, &Plan::keep_all(problem));
    let mut nothing = Plan::keep_all(problem);
    nothing
        .fates
        .values_mut()
        .for_each(|fate| *fate = Fate::RECOMPUTED);
    nothing.hold = Hold::NONE;
    let drop = expand(&single, &nothing);
    let tensors = tensors(problem, &keep);
    let groups = groups(problem, &keep);
    let (steps, once_ns) = steps(problem, &keep, &drop, &tensors);
    Outline {
        steps,
        tensors,
        groups,
        once_ns,
    }
}

fn tensors(problem: &Problem, keep: &Draft) -> Table<TensorId, TensorOutline> {
    let first = StepId::from_index(0);
    let last = problem.last_step();
    let mut tensors: Table<TensorId, TensorOutline> = problem
        .tensors
        .iter()
        .map(|(id, tensor)| {
            let producer = &problem.ops[tensor.producer];
            let operands = producer
                .reads
                .iter()
                .filter_map(|&v| problem.values[v].tensor)
                .collect();
            let held = match problem.values[tensor.value].split {
                Split::Rows => false,
                Split::Whole | Split::Groups => true,
            };
            let plain = problem.tensor_bytes(id);
            let packed = problem.pieces_host_bytes(id, 0, tensor.pieces);
            TensorOutline {
                bytes: plain.get(),
                host_bytes: packed.get(),
                packs: problem.packs(id),
                packing_ns: 2 * problem.machine.packing_time(plain, packed).get(),
                pieces: tensor.pieces,
                recompute_ns: 0,
                read: false,
                made: first,
                forward_until: first,
                needed: last,
                needed_until: last,
                operands,
                held,
            }
        })
        .collect();
    for instruction in &keep.instructions {
        let op = &problem.ops[instruction.op];
        for &value in op.writes.iter().chain(&op.accumulates) {
            if let Some(tensor) = problem.values[value].tensor {
                tensors[tensor].made = instruction.step;
                tensors[tensor].forward_until = instruction.step;
                tensors[tensor].recompute_ns += instruction.duration.get();
            }
        }
        for &value in &op.reads {
            let Some(tensor) = problem.values[value].tensor else {
                continue;
            };
            if problem.program[instruction.step].phase == Phase::Forward {
                tensors[tensor].forward_until = instruction.step;
            } else {
                if !std::mem::replace(&mut tensors[tensor].read, true) {
                    tensors[tensor].needed = instruction.step;
                }
                tensors[tensor].needed_until = instruction.step;
            }
        }
    }
    let unread = tensors.values_mut().filter(|tensor| !tensor.read);
    unread.for_each(|tensor| (tensor.recompute_ns, tensor.packing_ns) = (0, 0));
    tensors
}

/// Bytes of states that are where the plan says; 0 where no host optimizer could change them.
fn state_bytes(problem: &Problem, group: &StateGroup) -> u64 {
    let movable = group.states.filter(|_| group.host.is_some());
    movable.map_or(0, |v| problem.value_bytes(v).get())
}

fn groups(problem: &Problem, keep: &Draft) -> Vec<GroupOutline> {
    let mut of_weight = vec![None; problem.values.len()];
    let mut outlines: Vec<GroupOutline> = Vec::new();
    for (g, group) in problem.states.iter().enumerate() {
        for &value in group.weights.iter().chain(&group.gradients) {
            of_weight[value.index()] = Some(g);
        }
        let bytes = |values: &[_]| values.iter().map(|&v| problem.value_bytes(v).get()).sum();
        outlines.push(GroupOutline {
            weight_bytes: bytes(&group.weights),
            gradient_bytes: bytes(&group.gradients),
            state_bytes: state_bytes(problem, group),
            update_ns: 0,
            forward: None,
            backward: None,
        });
    }
    for instruction in &keep.instructions {
        let op = &problem.ops[instruction.op];
        let update = op.updates.iter().find_map(|v| of_weight[v.index()]);
        if let Some(g) = update {
            if problem.states[g].host.is_some() {
                outlines[g].update_ns += instruction.duration.get();
            }
            continue;
        }
        let phase = problem.program[instruction.step].phase;
        for value in op.reads.iter().chain(&op.accumulates) {
            let Some(g) = of_weight[value.index()] else {
                continue;
            };
            let range = match phase {
                Phase::Forward => &mut outlines[g].forward,
                Phase::Backward => &mut outlines[g].backward,
            };
            let start = range.map_or(instruction.step, |r| r.0);
            *range = Some((start, instruction.step));
        }
    }
    outlines
}

fn steps(
    problem: &Problem,
    keep: &Draft,
    drop: &Draft,
    tensors: &Table<TensorId, TensorOutline>,
) -> (Table<StepId, StepOutline>, u64) {
    let mut once_ns = 0;
    let mut steps: Table<StepId, StepOutline> = problem
        .program
        .values()
        .map(|step| StepOutline {
            compute_ns: 0,
            moments: Vec::new(),
            touched: touched(problem, &step.body),
        })
        .collect();
    let passing = live(problem, keep, |c| {
        matches!(c, Category::Transients | Category::Workspace)
    });
    let required = forward_required(problem, drop);
    let gradients = gradients(problem, keep);
    let first_in_step = first_uses(problem, keep);
    let in_use = parts_in_use(problem, keep);
    let telling = telling_positions(problem, keep, &passing);
    let norms: BTreeSet<OpId> = problem.norms().map(|(_, op)| op).collect();
    let rooted = problem.states.iter().filter(|g| g.host.is_none());
    let rooted = rooted.filter_map(|g| g.states);
    let rooted: u64 = rooted.map(|v| problem.value_bytes(v).get()).sum();
    for (position, instruction) in keep.instructions.iter().enumerate() {
        let step = instruction.step;
        let op = &problem.ops[instruction.op];
        let update = op
            .updates
            .iter()
            .any(|&v| problem.values[v].category == Category::Weights);
        if update && problem.states.iter().any(|g| g.host.is_some()) {
            continue;
        }
        if problem.rounds() > 1 && (update || norms.contains(&instruction.op)) {
            once_ns += instruction.duration.get();
            continue;
        }
        steps[step].compute_ns += instruction.duration.get();
        if !telling[position] {
            continue;
        }
        let mut moment = Moment {
            fixed: rooted + passing[position],
            kept: Vec::new(),
            weights: BTreeMap::new(),
            gradients: BTreeMap::new(),
            // Until the whole step is known: what comes before.
            to_come_ns: steps[step].compute_ns - instruction.duration.get(),
        };
        for &(g, until, bytes, first) in &gradients {
            if first <= position && position <= until {
                moment.fixed += bytes;
            } else if until < position && problem.states[g].host.is_some() {
                *moment.gradients.entry(g).or_default() += bytes;
            }
        }
        for (g, group) in problem.states.iter().enumerate() {
            for weight in group.weights.iter().filter(|w| op.reads.contains(w)) {
                let bytes = problem.value_bytes(*weight).get();
                moment.fixed += bytes;
                *moment.weights.entry(g).or_default() += bytes;
            }
        }
        let forward = problem.program[step].phase == Phase::Forward;
        for &id in &steps[step].touched {
            let tensor = &tensors[id];
            let must = if forward {
                required
                    .get(position)
                    .map_or(0, |r| r.get(&id).copied().unwrap_or(0))
            } else {
                let parts = in_use.get(&step).map_or(&[][..], Vec::as_slice);
                let there =
                    |p: &&PartInUse| p.tensor == id && p.first <= position && position <= p.last;
                parts
                    .iter()
                    .filter(there)
                    .map(|p| p.bytes)
                    .sum::<u64>()
                    .min(tensor.bytes)
            };
            if 2 * must >= tensor.bytes && must > 0 {
                moment.fixed += must;
            } else if forward && tensor.made < step
                || !forward && (tensor.needed_until > step || position <= first_in_step[id.index()])
            {
                // In the step of its last use a kept range may be through before others, so it
                // counts up to that step's first use only.
                moment.kept.push(id);
            }
        }
        add_moment(&mut steps[step].moments, moment, tensors);
    }
    for step in steps.values_mut() {
        for moment in &mut step.moments {
            moment.to_come_ns = step.compute_ns - moment.to_come_ns;
        }
    }
    (steps, once_ns)
}

/// The positions worth looking at: for every operator of a step its first run, and the first
/// run beside which most is passing through.
fn telling_positions(problem: &Problem, keep: &Draft, passing: &[u64]) -> Vec<bool> {
    let mut telling = vec![false; passing.len()];
    let mut most: Vec<Option<(StepId, usize)>> = vec![None; problem.ops.len()];
    let mut mark = |at: Option<(StepId, usize)>| {
        if let Some((_, position)) = at {
            telling[position] = true;
        }
    };
    for (position, instruction) in keep.instructions.iter().enumerate() {
        let best = &mut most[instruction.op.index()];
        match best {
            Some((step, at)) if *step == instruction.step => {
                if passing[position] > passing[*at] {
                    *at = position;
                }
            }
            _ => {
                mark(best.replace((instruction.step, position)));
                mark(Some((instruction.step, position)));
            }
        }
    }
    most.into_iter().for_each(mark);
    telling
}

/// The tensors that a loop nest reads or writes.
fn touched(problem: &Problem, body: &[Node]) -> Vec<TensorId> {
    let mut tensors = Vec::new();
    for node in body {
        match node {
            Node::Op(op) => {
                let op = &problem.ops[*op];
                let values = op.reads.iter().chain(&op.writes).chain(&op.accumulates);
                tensors.extend(values.filter_map(|&v| problem.values[v].tensor));
            }
            Node::Rows(body) | Node::Groups(body) => tensors.extend(touched(problem, body)),
        }
    }
    tensors.sort_unstable();
    tensors.dedup();
    tensors
}

/// For every tensor: the position of its first use in the last step that uses it.
fn first_uses(problem: &Problem, keep: &Draft) -> Vec<usize> {
    let mut uses = vec![(StepId::from_index(0), 0usize); problem.tensors.len()];
    for (position, instruction) in keep.instructions.iter().enumerate() {
        for &value in &problem.ops[instruction.op].reads {
            if let Some(tensor) = problem.values[value].tensor {
                let (step, at) = &mut uses[tensor.index()];
                if *step != instruction.step {
                    (*step, *at) = (instruction.step, position);
                }
            }
        }
    }
    uses.into_iter().map(|(_, at)| at).collect()
}

/// Bytes alive at every position of a draft, of some categories.
fn live(problem: &Problem, draft: &Draft, which: impl Fn(Category) -> bool) -> Vec<u64> {
    let mut change = vec![0i128; draft.instructions.len() + 1];
    for buffer in draft
        .buffers
        .iter()
        .filter(|b| which(b.category) && b.first != usize::MAX)
    {
        let saved = buffer
            .value
            .is_some_and(|v| problem.values[v].tensor.is_some());
        if !saved {
            change[buffer.first] += i128::from(buffer.bytes.get());
            change[buffer.last + 1] -= i128::from(buffer.bytes.get());
        }
    }
    let mut sum = 0i128;
    let totals = change.iter().take(draft.instructions.len()).map(|c| {
        sum += c;
        u64::try_from(sum).unwrap_or(0)
    });
    totals.collect()
}

/// For every position of forward: the bytes of each tensor that are needed later in forward, so
/// that no plan can be without them. The expansion that keeps nothing shows exactly these.
fn forward_required(problem: &Problem, drop: &Draft) -> Vec<BTreeMap<TensorId, u64>> {
    let is_forward = |step: StepId| problem.program[step].phase == Phase::Forward;
    let positions = drop
        .instructions
        .iter()
        .take_while(|i| is_forward(i.step))
        .count();
    let mut required = vec![BTreeMap::new(); positions];
    for buffer in &drop.buffers {
        let tensor = buffer.value.and_then(|v| problem.values[v].tensor);
        let (Some(tensor), true) = (tensor, buffer.first < positions) else {
            continue;
        };
        for at in required
            .iter_mut()
            .take(buffer.last.min(positions - 1) + 1)
            .skip(buffer.first)
        {
            *at.entry(tensor).or_insert(0) += buffer.bytes.get();
        }
    }
    required
}

/// Every gradient buffer: its group, the last position at which it is on the device in every plan,
/// bytes, first contribution. That is its last contribution, or its update where that cannot be
/// on the host.
fn gradients(problem: &Problem, keep: &Draft) -> Vec<(usize, usize, u64, usize)> {
    let mut of_gradient = vec![None; problem.values.len()];
    for (g, group) in problem.states.iter().enumerate() {
        for &value in &group.gradients {
            of_gradient[value.index()] = Some(g);
        }
    }
    keep.buffers
        .iter()
        .filter_map(|b| {
            let group = of_gradient[b.value?.index()]?;
            let until = match problem.states[group].host {
                Some(_) => b.last_write,
                None => b.last,
            };
            Some((group, until, b.bytes.get(), b.first))
        })
        .collect()
}

/// For every step: the parts of tensors that its operators read, with the positions of their first
/// and last use in it. Between the two a part must be there, whatever became of it before.
fn parts_in_use(problem: &Problem, keep: &Draft) -> BTreeMap<StepId, Vec<PartInUse>> {
    /// A tensor's rows and groups, with the positions of their first and last use.
    type Parts = BTreeMap<(TensorId, Span, Span), (usize, usize)>;
    let mut steps: BTreeMap<StepId, Parts> = BTreeMap::new();
    for (position, instruction) in keep.instructions.iter().enumerate() {
        let op = &problem.ops[instruction.op];
        for &value in &op.reads {
            let Some(tensor) = problem.values[value].tensor else {
                continue;
            };
            let by_rows = matches!(op.domain, Domain::Rows | Domain::RowsOfGroup);
            // A tensor in one piece is there as a whole or not at all.
            let split = problem.values[value].split;
            let rows = match split {
                Split::Rows if by_rows => instruction.rows,
                _ => problem.all_rows(),
            };
            let groups = match split {
                Split::Groups => instruction.groups,
                _ => Span::new(0, u64::from(problem.groups)),
            };
            let parts = steps.entry(instruction.step).or_default();
            parts
                .entry((tensor, rows, groups))
                .or_insert((position, position))
                .1 = position;
        }
    }
    let part = |((tensor, rows, groups), (first, last)): ((TensorId, Span, Span), _)| {
        let value = &problem.values[problem.tensors[tensor].value];
        let of = u64::from(problem.groups);
        let bytes = value.bytes(rows.len(), groups.len(), of).get();
        PartInUse {
            tensor,
            bytes,
            first,
            last,
        }
    };
    steps
        .into_iter()
        .map(|(step, parts)| (step, parts.into_iter().map(part).collect()))
        .collect()
}

/// A part of a tensor that a step uses.
struct PartInUse {
    tensor: TensorId,
    bytes: u64,
    first: usize,
    last: usize,
}

/// Keeps a moment unless another one of its step implies it.
fn add_moment(moments: &mut Vec<Moment>, new: Moment, tensors: &Table<TensorId, TensorOutline>) {
    let sum = |bytes: &BTreeMap<usize, u64>| bytes.values().sum::<u64>();
    let implies = |a: &Moment, b: &Moment| {
        // What `b` counts as kept and `a` does not is at most so many bytes; weights count once
        // more where they are resident and not at work, gradients where they stay.
        let only_in_b = b.kept.iter().filter(|t| !a.kept.contains(t));
        let missing: u64 = only_in_b.map(|t| tensors[*t].bytes).sum();
        let (wa, wb) = (sum(&a.weights), sum(&b.weights));
        let (ga, gb) = (sum(&a.gradients), sum(&b.gradients));
        a.fixed >= b.fixed + missing
            && a.fixed + wb >= b.fixed + missing + wa
            && a.fixed + ga >= b.fixed + missing + gb
            && a.fixed + ga + wb >= b.fixed + missing + gb + wa
    };
    if moments.iter().any(|m| implies(m, &new)) {
        return;
    }
    moments.retain(|m| !implies(&new, m));
    moments.push(new);
}
