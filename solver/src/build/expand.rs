//! From a plan to the compute stream: which operator runs on which range, in which order, on which
//! buffers.
//!
//! In: a [`Problem`] and a [`Plan`]. Out: a [`Draft`], whose buffers have lifetimes in positions on
//! the compute stream but no addresses yet, and whose copies have no place yet.
//!
//! The program's loop nest is run as written. In backward an operand that is not there is made
//! available on demand: a swapped piece gets a landing buffer, everything else is made again by its
//! producer on the same rows, which first makes its own operands available in the same way. So
//! the closure of a recomputation, and checkpoint segments longer than one block, follow from the
//! program and are written nowhere. What has been made again is forgotten at the end of its step,
//! apart from block inputs and what [`crate::plan::Hold`] names.

use std::ops::Range;
use std::rc::Rc;

use super::pieces::{all_groups, cover, covers, gaps, intersect, pieces_of};
use crate::ids::{Id, OpId, StepId, Table, TensorId, ValueId};
use crate::plan::{Placement, Plan};
use crate::problem::{Category, Domain, Node, Phase, Problem, Split, Tensor, Value};
use crate::schedule::Access;
use crate::units::{Bytes, Nanos, Span};

/// The compute stream with its buffers, before copies and addresses.
#[derive(Debug, Default)]
pub struct Draft {
    /// In execution order; the index is the position.
    pub instructions: Vec<DraftInstruction>,
    /// Operands of all instructions.
    operands: Vec<(usize, Access)>,
    /// All device buffers.
    pub buffers: Vec<DraftBuffer>,
    /// All host buffers.
    pub host_buffers: Vec<HostBuffer>,
    /// Copies to the host.
    pub departures: Vec<Departure>,
    /// Copies from the host into buffers that are used from `before` on.
    pub arrivals: Vec<Arrival>,
    /// Updates on the host.
    pub host_updates: Vec<DraftHostUpdate>,
}

/// An operator run on the compute stream.
#[derive(Debug)]
pub struct DraftInstruction {
    /// Which operator.
    pub op: OpId,
    /// Whether it runs again because its result was not retained.
    pub recompute: bool,
    /// The step in which it runs.
    pub step: StepId,
    /// The micro-batch it works for.
    pub micro_batch: u32,
    /// The rows it covers.
    pub rows: Span,
    /// The head groups it covers.
    pub groups: Span,
    /// Where its operands are.
    operands: Range<usize>,
    /// How long it takes, undisturbed.
    pub duration: Nanos,
}

impl Draft {
    /// Bytes that a copy to the host moves.
    pub fn departing(&self, departure: &Departure) -> Bytes {
        self.host_buffers[departure.host].bytes
    }

    /// Bytes that a copy from the host moves.
    pub fn arriving(&self, arrival: &Arrival) -> Bytes {
        self.host_buffers[arrival.host].bytes
    }

    /// The buffers that an instruction uses, by their index, and how.
    pub fn operands(&self, instruction: &DraftInstruction) -> &[(usize, Access)] {
        &self.operands[instruction.operands.clone()]
    }
}

/// A range of device memory with the positions between which compute uses it.
#[derive(Debug)]
pub struct DraftBuffer {
    pub value: Option<ValueId>,
    pub category: Category,
    pub rows: Span,
    pub groups: Span,
    pub bytes: Bytes,
    pub persistent: bool,
    /// Position of the first access.
    pub first: usize,
    /// Position of the last access.
    pub last: usize,
    /// Position of the last access that writes.
    pub last_write: usize,
}

/// A range of host memory.
#[derive(Debug)]
pub struct HostBuffer {
    pub value: ValueId,
    pub rows: Span,
    pub groups: Span,
    pub bytes: Bytes,
    pub persistent: bool,
}

/// A copy to the host, possible once its buffer has been written for the last time.
#[derive(Debug, Clone, Copy)]
pub struct Departure {
    pub buffer: usize,
    pub host: usize,
}

/// A copy from the host into a buffer of its own.
#[derive(Debug, Clone, Copy)]
pub struct Arrival {
    pub buffer: usize,
    pub host: usize,
    /// The departure that fills the host buffer in this step, if one does.
    pub departure: Option<usize>,
}

/// The optimizer's work for one group on the host.
#[derive(Debug)]
pub struct DraftHostUpdate {
    pub group: usize,
    /// The departures of its gradients.
    pub gradients: Vec<usize>,
    /// Host buffer of the optimizer's states, if it has any.
    pub states: Option<usize>,
    /// Host buffers of the weights, with the resident weight that each is copied back to.
    pub weights: Vec<(usize, Option<usize>)>,
}

/// A buffer that holds a part of a value right now.
#[derive(Clone, Debug)]
struct Instance {
    buffer: usize,
    rows: Span,
    groups: Span,
    /// The rows that have been written; empty when all have.
    written: Vec<Span>,
    recomputed: bool,
    landed: bool,
    last_step: StepId,
}

impl Instance {
    /// A buffer of which all rows are written.
    fn full(buffer: usize, rows: Span, groups: Span, step: StepId) -> Self {
        Self {
            buffer,
            rows,
            groups,
            written: Vec::new(),
            recomputed: false,
            landed: false,
            last_step: step,
        }
    }
    fn holds(&self, rows: Span) -> bool {
        self.written.is_empty() || covers(&self.written, rows)
    }
    fn missing(&self, rows: Span) -> Vec<Span> {
        if self.written.is_empty() {
            return Vec::new();
        }
        gaps(&self.written, rows)
    }
    fn write(&mut self, rows: Span) {
        cover(&mut self.written, rows);
        if covers(&self.written, self.rows) {
            self.written.clear();
        }
    }
}

struct Expander<'a> {
    problem: &'a Problem,
    plan: &'a Plan,
    draft: Draft,
    live: Table<ValueId, Vec<Instance>>,
    /// For every value: the host buffer of its streamed weights.
    host_weight: Table<ValueId, Option<usize>>,
    /// Token tiles of every block, and of what belongs to none.
    grids: Vec<Option<Rc<Vec<Span>>>>,
    /// Departure of every swapped piece: (tensor, first piece) in order of production.
    departed: Table<TensorId, Vec<(Span, Span, usize)>>,
    step: StepId,
    phase: Phase,
    micro_batch: u32,
    recomputing: bool,
    /// Operands of the operators that are being run, the innermost's last.
    stack: Vec<(usize, Access)>,
}

/// Runs the program under the plan.
pub fn expand(problem: &Problem, plan: &Plan) -> Draft {
    let mut expander = Expander {
        problem,
        plan,
        draft: Draft::default(),
        live: problem.values.values().map(|_| Vec::new()).collect(),
        host_weight: problem.values.values().map(|_| None).collect(),
        grids: vec![None; problem.blocks() as usize + 1],
        departed: problem.tensors.values().map(|_| Vec::new()).collect(),
        step: StepId::from_index(0),
        phase: Phase::Forward,
        micro_batch: 0,
        recomputing: false,
        stack: Vec::new(),
    };
    expander.run_program();
    expander.draft
}

impl Expander<'_> {
    fn run_program(&mut self) {
        let problem = self.problem;
        self.place_states();
        for micro_batch in 0..problem.micro_batches {
            self.micro_batch = micro_batch;
            self.phase = Phase::Forward;
            self.forget(|value| {
                !matches!(
                    value.category,
                    Category::Weights | Category::Gradients | Category::OptimizerStates
                )
            });
            self.departed.values_mut().for_each(Vec::clear);
            for (id, step) in problem.program.iter() {
                self.step = id;
                if step.phase == Phase::Backward && self.phase == Phase::Forward {
                    self.turn_around();
                }
                self.phase = step.phase;
                let tiles = self.grid(step.block, step.tile.get());
                self.run_nodes(&step.body, &tiles, None, None);
                self.end_step();
            }
        }
        self.finish_states();
    }

    /// Resident weights and states get persistent buffers; what the host keeps gets host buffers.
    /// States that no host optimizer could change are on the device wherever their weights are.
    fn place_states(&mut self) {
        let problem = self.problem;
        for (group, &placement) in problem.states.iter().zip(&self.plan.placements) {
            if placement != Placement::Streamed {
                for &weight in &group.weights {
                    self.persistent(weight);
                }
            }
            if placement == Placement::Resident || group.host.is_none() {
                if let Some(states) = group.states {
                    self.persistent(states);
                }
            }
            if placement == Placement::Resident {
                continue;
            }
            for &weight in &group.weights {
                let host = self.host_buffer(weight, problem.all_rows(), all_groups(problem), true);
                self.host_weight[weight] = Some(host);
            }
        }
    }

    fn persistent(&mut self, value: ValueId) {
        let rows = self.problem.all_rows();
        let groups = all_groups(self.problem);
        let buffer = self.buffer(Some(value), rows, groups, true);
        self.live[value].push(Instance::full(buffer, rows, groups, self.step));
    }

    /// After the last contribution: what leaves for the host, and what the host does with it.
    fn finish_states(&mut self) {
        let problem = self.problem;
        for (g, group) in problem.states.iter().enumerate() {
            let placement = self.plan.placements[g];
            if placement == Placement::Resident || group.host.is_none() {
                continue;
            }
            let mut gradients = Vec::new();
            for &gradient in &group.gradients {
                for instance in std::mem::take(&mut self.live[gradient]) {
                    let departure = self.depart(gradient, &instance);
                    gradients.push(departure);
                }
            }
            let states = group
                .states
                .map(|s| self.host_buffer(s, problem.all_rows(), all_groups(problem), true));
            let weights = group
                .weights
                .iter()
                .map(|&w| {
                    let host = self.host_weight[w].expect("placed on the host");
                    let resident =
                        (placement == Placement::HostOptimizer).then(|| self.live[w][0].buffer);
                    (host, resident)
                })
                .collect();
            self.draft.host_updates.push(DraftHostUpdate {
                group: g,
                gradients,
                states,
                weights,
            });
        }
    }

    /// Swapped and recomputed pieces are not to be had any more once backward begins.
    fn turn_around(&mut self) {
        for (tensor, fate) in self.plan.iter() {
            let value = self.problem.tensors[tensor].value;
            let (kept_rows, kept_groups) = self.problem.pieces_extent(tensor, 0, fate.keep);
            let kept = |i: &Instance| {
                fate.keep > 0 && kept_rows.contains(i.rows) && kept_groups.contains(i.groups)
            };
            self.live[value].retain(kept);
        }
    }

    /// Forgets what was made again, apart from what is held, and updates that are due.
    fn end_step(&mut self) {
        if self.phase == Phase::Backward {
            for tensor in self.problem.tensors.values() {
                let held = self.is_held(tensor);
                let whole = self.problem.values[tensor.value].split == Split::Whole;
                let fetched = whole || held && self.plan.hold.fetched;
                self.live[tensor.value]
                    .retain(|i| (held || !i.recomputed) && (fetched || !i.landed));
            }
        }
        if self.micro_batch + 1 == self.problem.micro_batches {
            self.run_norms();
            self.run_updates();
        }
    }

    /// Counts the gradients whose last contribution came in this step.
    fn run_norms(&mut self) {
        let problem = self.problem;
        for (step, op) in problem.norms() {
            if step == self.step {
                self.run_op(op, &Rc::new(vec![problem.all_rows()]), None, None);
            }
        }
    }

    /// Whether it stays once it was made again.
    fn is_held(&self, tensor: &Tensor) -> bool {
        match self.problem.values[tensor.value].split {
            Split::Whole => true,
            Split::Rows => false,
            Split::Groups if self.problem.ops[tensor.producer].domain == Domain::Group => {
                self.plan.hold.output
            }
            Split::Groups => self.plan.hold.projections,
        }
    }

    /// Updates whose last contribution came in this step, where the device does them.
    fn run_updates(&mut self) {
        let problem = self.problem;
        for (g, group) in problem.states.iter().enumerate() {
            let placement = self.plan.placements[g];
            if placement != Placement::Resident && group.host.is_some() {
                continue;
            }
            let mut updated = false;
            for &(step, op) in &group.updates {
                if step == self.step {
                    let tiles = Rc::new(vec![problem.all_rows()]);
                    self.run_op(op, &tiles, None, None);
                    updated = true;
                }
            }
            let last = group.updates.iter().map(|&(step, _)| step).max();
            if updated && last == Some(self.step) && placement == Placement::Streamed {
                for &weight in &group.weights {
                    for instance in std::mem::take(&mut self.live[weight]) {
                        self.depart(weight, &instance);
                    }
                }
            }
        }
    }

    fn forget(&mut self, which: impl Fn(&Value) -> bool) {
        for (id, value) in self.problem.values.iter() {
            if which(value) {
                self.live[id].clear();
            }
        }
    }

    // ---- the loop nest ------------------------------------------------------------------------

    fn run_nodes(
        &mut self,
        nodes: &[Node],
        tiles: &Rc<Vec<Span>>,
        rows: Option<Span>,
        group: Option<u64>,
    ) {
        for node in nodes {
            match node {
                Node::Op(op) => self.run_op(*op, tiles, rows, group),
                Node::Rows(body) => {
                    for &tile in tiles.iter() {
                        self.run_nodes(body, tiles, Some(tile), group);
                    }
                }
                Node::Groups(body) => {
                    for g in 0..u64::from(self.problem.groups) {
                        self.run_nodes(body, tiles, rows, Some(g));
                    }
                }
            }
        }
    }

    /// Runs an operator on whatever of its domain the surrounding loops leave open.
    fn run_op(&mut self, op: OpId, tiles: &Rc<Vec<Span>>, rows: Option<Span>, group: Option<u64>) {
        let domain = self.problem.ops[op].domain;
        let over_rows = matches!(domain, Domain::Rows | Domain::RowsOfGroup);
        let over_groups = matches!(domain, Domain::RowsOfGroup | Domain::Group);
        let all = self.problem.all_rows();
        let tiles = match &rows {
            Some(tile) if over_rows => std::slice::from_ref(tile),
            None if over_rows => tiles.as_slice(),
            _ => std::slice::from_ref(&all),
        };
        // One group after the other, or all at once.
        let (groups, together) = match group {
            Some(g) if over_groups => (g..g + 1, 1),
            None if over_groups => (0..u64::from(self.problem.groups), 1),
            _ => (0..1, u64::from(self.problem.groups)),
        };
        for &tile in tiles {
            for g in groups.clone() {
                self.run(op, tile, Span::new(g, g + together));
            }
        }
    }

    fn run(&mut self, op_id: OpId, rows: Span, groups: Span) {
        let problem = self.problem;
        let op = &problem.ops[op_id];
        // Making an operand available runs other operators: theirs lie above on the stack.
        let base = self.stack.len();
        for &value in &op.reads {
            let buffer = self.ensure(value, rows, groups);
            self.stack.push((buffer, Access::Read));
        }
        for &value in &op.updates {
            let buffer = self.ensure(value, rows, groups);
            self.stack.push((buffer, Access::Update));
        }
        for (&value, fresh) in op
            .accumulates
            .iter()
            .map(|v| (v, false))
            .chain(op.writes.iter().map(|v| (v, true)))
        {
            let operand = self.write(value, rows, groups, fresh);
            self.stack.push(operand);
        }
        let length = if matches!(op.domain, Domain::Rows | Domain::RowsOfGroup) {
            rows.len()
        } else {
            0
        };
        let scratch = op.workspace.of(length);
        if scratch > 0 {
            let buffer = self.buffer(None, rows, groups, false);
            self.draft.buffers[buffer].bytes = Bytes::new(scratch);
            self.stack.push((buffer, Access::Write));
        }
        let position = self.draft.instructions.len();
        for &(buffer, access) in &self.stack[base..] {
            let buffer = &mut self.draft.buffers[buffer];
            buffer.first = buffer.first.min(position);
            buffer.last = position;
            if access != Access::Read {
                buffer.last_write = position;
            }
        }
        let first = self.draft.operands.len();
        self.draft.operands.extend(self.stack.drain(base..));
        self.draft.instructions.push(DraftInstruction {
            op: op_id,
            recompute: self.recomputing,
            step: self.step,
            micro_batch: self.micro_batch,
            rows,
            groups,
            operands: first..self.draft.operands.len(),
            duration: op.duration(length),
        });
    }

    // ---- operands -----------------------------------------------------------------------------

    /// The part of a value that a run over `rows` and `groups` uses.
    fn part(&self, value: ValueId, rows: Span, groups: Span) -> (Span, Span) {
        let Value {
            split, row_bytes, ..
        } = self.problem.values[value];
        let rows = if row_bytes == 0 {
            self.problem.all_rows()
        } else {
            rows
        };
        let groups = if split == Split::Groups {
            groups
        } else {
            all_groups(self.problem)
        };
        (rows, groups)
    }

    fn find(&self, value: ValueId, rows: Span, groups: Span) -> Option<usize> {
        self.live[value]
            .iter()
            .rposition(|i| i.rows.contains(rows) && i.groups.contains(groups))
    }

    /// The buffer that holds this part of a value, made available if it is not there.
    fn ensure(&mut self, value: ValueId, rows: Span, groups: Span) -> usize {
        let (rows, groups) = self.part(value, rows, groups);
        if self.problem.values[value].category == Category::Weights {
            return self.weight(value);
        }
        for attempt in 0..2 {
            if let Some(at) = self.find(value, rows, groups) {
                let instance = &self.live[value][at];
                if instance.holds(rows) {
                    return instance.buffer;
                }
            }
            if attempt == 0 {
                self.make_available(value, rows, groups);
            }
        }
        panic!(
            "the program reads {} before it is written (step {})",
            self.problem.value_name(value),
            self.problem.program[self.step].name
        );
    }

    fn make_available(&mut self, value: ValueId, rows: Span, groups: Span) {
        let Some(tensor) = self.problem.values[value].tensor else {
            return;
        };
        if self.phase == Phase::Backward {
            let landed = self.departed[tensor]
                .iter()
                .find(|(r, g, _)| r.contains(rows) && g.contains(groups))
                .copied();
            if let Some((rows, groups, departure)) = landed {
                self.land(value, rows, groups, departure);
                return;
            }
        }
        let producer = self.problem.tensors[tensor].producer;
        let op = &self.problem.ops[producer];
        let tile = self.problem.program[self.step].tile.get();
        let tiles = self.grid(op.block, tile);
        let split = self.problem.values[value].split;
        let group = (split == Split::Groups && groups.len() == 1).then_some(groups.start);
        // A block input is made as a whole, so that a segment is made block by block and what one
        // block needs of the host is there for that block only.
        let wanted = if split == Split::Whole {
            self.problem.all_rows()
        } else {
            rows
        };
        let outer = std::mem::replace(&mut self.recomputing, true);
        match op.domain {
            Domain::Rows | Domain::RowsOfGroup => {
                for tile in tiles.iter().filter_map(|t| intersect(*t, wanted)) {
                    let missing = match self.find(value, tile, groups) {
                        Some(at) => self.live[value][at].missing(tile),
                        None => vec![tile],
                    };
                    for rows in missing {
                        self.run_op(producer, &tiles, Some(rows), group);
                    }
                }
            }
            Domain::Group | Domain::Whole => self.run_op(producer, &tiles, None, group),
        }
        self.recomputing = outer;
        if split == Split::Whole {
            self.drop_passed(op.block);
        }
    }

    /// What landed for a block only to make its output again, and what was made for it unless that
    /// is held; it lands or is made anew when it is due itself.
    fn drop_passed(&mut self, block: Option<u32>) {
        let ahead = block.is_some_and(|block| block < self.plan.hold.ahead);
        for tensor in self.problem.tensors.values() {
            let value = &self.problem.values[tensor.value];
            if value.block == block && value.split != Split::Whole {
                let held = ahead && self.is_held(tensor);
                let stays = |i: &Instance| !i.landed && (held || !i.recomputed);
                self.live[tensor.value].retain(stays);
            }
        }
    }

    fn land(&mut self, value: ValueId, rows: Span, groups: Span, departure: usize) {
        let buffer = self.buffer(Some(value), rows, groups, false);
        let host = self.draft.departures[departure].host;
        self.draft.arrivals.push(Arrival {
            buffer,
            host,
            departure: Some(departure),
        });
        let landed = Instance::full(buffer, rows, groups, self.step);
        self.live[value].push(Instance {
            landed: self.recomputing,
            ..landed
        });
    }

    /// Resident weights are there; streamed ones land anew when their last use is too long ago.
    fn weight(&mut self, value: ValueId) -> usize {
        let step = self.step;
        let gap = self.plan.weight_gap as usize;
        if let Some(instance) = self.live[value].last_mut() {
            let streamed = self.host_weight[value].is_some()
                && !self.draft.buffers[instance.buffer].persistent;
            if !streamed || step.index().abs_diff(instance.last_step.index()) <= gap {
                instance.last_step = step;
                return instance.buffer;
            }
        }
        let host = self.host_weight[value].expect("weights are resident or on the host");
        let (rows, groups) = (self.problem.all_rows(), all_groups(self.problem));
        let buffer = self.buffer(Some(value), rows, groups, false);
        self.draft.arrivals.push(Arrival {
            buffer,
            host,
            departure: None,
        });
        self.live[value] = vec![Instance::full(buffer, rows, groups, step)];
        buffer
    }

    /// The buffer that a run writes, and whether it writes anew or adds.
    fn write(&mut self, value: ValueId, rows: Span, groups: Span, fresh: bool) -> (usize, Access) {
        let (rows, groups) = self.part(value, rows, groups);
        if let Some(at) = self.find(value, rows, groups) {
            let instance = &mut self.live[value][at];
            let added = instance.holds(rows);
            if !added {
                instance.write(rows);
            }
            let access = if added && !fresh {
                Access::Update
            } else {
                Access::Write
            };
            return (instance.buffer, access);
        }
        let (extent, all, swapped) = self.extent(value, rows, groups);
        let buffer = self.buffer(Some(value), extent, all, false);
        let instance = Instance {
            written: if rows == extent {
                Vec::new()
            } else {
                vec![rows]
            },
            recomputed: self.recomputing,
            ..Instance::full(buffer, extent, all, self.step)
        };
        if swapped {
            let departure = self.depart(value, &instance);
            let tensor = self.problem.values[value]
                .tensor
                .expect("only tensors are swapped");
            self.departed[tensor].push((extent, all, departure));
        }
        self.live[value].push(instance);
        (buffer, Access::Write)
    }

    /// How much a new buffer holds, and whether it leaves for the host.
    fn extent(&self, value: ValueId, rows: Span, groups: Span) -> (Span, Span, bool) {
        let v = &self.problem.values[value];
        let planned = match v.tensor {
            Some(tensor) if self.phase == Phase::Forward => {
                let pieces = self.problem.tensors[tensor].pieces;
                pieces_of(self.problem, tensor, self.plan.fates[tensor], pieces)
                    .into_iter()
                    .find(|(r, g, _)| r.contains(rows) && g.contains(groups))
            }
            _ => None,
        };
        match (planned, v.split) {
            (Some(piece), _) => piece,
            (None, Split::Whole | Split::Groups) => (self.problem.all_rows(), groups, false),
            (None, Split::Rows) => (rows, groups, false),
        }
    }

    fn depart(&mut self, value: ValueId, instance: &Instance) -> usize {
        let host = match self.host_weight[value] {
            Some(host) => host,
            None => self.host_buffer(value, instance.rows, instance.groups, false),
        };
        self.draft.departures.push(Departure {
            buffer: instance.buffer,
            host,
        });
        self.draft.departures.len() - 1
    }

    fn host_buffer(&mut self, value: ValueId, rows: Span, groups: Span, persistent: bool) -> usize {
        let of_groups = u64::from(self.problem.groups);
        let bytes = self.problem.values[value].host_bytes(rows.len(), groups.len(), of_groups);
        self.draft.host_buffers.push(HostBuffer {
            value,
            rows,
            groups,
            bytes,
            persistent,
        });
        self.draft.host_buffers.len() - 1
    }

    fn bytes(&self, value: ValueId, rows: Span, groups: Span) -> Bytes {
        let of_groups = u64::from(self.problem.groups);
        self.problem.values[value].bytes(rows.len(), groups.len(), of_groups)
    }

    fn buffer(
        &mut self,
        value: Option<ValueId>,
        rows: Span,
        groups: Span,
        persistent: bool,
    ) -> usize {
        self.draft.buffers.push(DraftBuffer {
            value,
            category: value.map_or(Category::Workspace, |v| self.problem.values[v].category),
            rows,
            groups,
            bytes: value.map_or(Bytes::ZERO, |v| self.bytes(v, rows, groups)),
            persistent,
            first: usize::MAX,
            last: 0,
            last_write: 0,
        });
        self.draft.buffers.len() - 1
    }

    /// Token tiles of a block's loops: no tile crosses a boundary between kept, swapped and
    /// recomputed pieces, and none is longer than `tile`.
    fn grid(&mut self, block: Option<u32>, tile: u64) -> Rc<Vec<Span>> {
        let slot = block.map_or(self.grids.len() - 1, |b| b as usize);
        if block.is_some() {
            if let Some(grid) = &self.grids[slot] {
                return Rc::clone(grid);
            }
        }
        let tokens = self.problem.tokens.get();
        let mut cuts: Vec<u64> = (0..tokens).step_by(tile as usize).chain([tokens]).collect();
        for (tensor, fate) in self.plan.iter() {
            let value = &self.problem.values[self.problem.tensors[tensor].value];
            if value.block == block && block.is_some() && value.split == Split::Rows {
                let pieces = self.problem.tensors[tensor].pieces;
                for (rows, _, _) in pieces_of(self.problem, tensor, fate, pieces) {
                    cuts.extend([rows.start, rows.end]);
                }
            }
        }
        cuts.sort_unstable();
        cuts.dedup();
        let grid = Rc::new(
            cuts.windows(2)
                .map(|w| Span::new(w[0], w[1]))
                .collect::<Vec<_>>(),
        );
        if block.is_some() {
            self.grids[slot] = Some(Rc::clone(&grid));
        }
        grid
    }
}
