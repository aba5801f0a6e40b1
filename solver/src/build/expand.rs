//! From a plan to the compute stream: which operator runs on which range, in which order, on which
//! buffers.
//!
//! In: a [`Problem`] and a [`Plan`]. Out: a [`Draft`], whose buffers have lifetimes in positions on
//! the compute stream but no addresses yet, and whose copies have no place yet.
//!
//! The program's loop nest is run as written. In backward an operand that is not there is made
//! available on demand: a swapped piece gets a landing buffer, a packed one is unpacked, everything
//! else is made again by its producer on the same rows, which first makes its own operands
//! available in the same way. So the closure of a recomputation, and checkpoint segments longer
//! than one block, follow from the program and are written nowhere. What has been made again is
//! forgotten at the end of its step, apart from block inputs and what [`crate::plan::Hold`]
//! names.

mod operands;
mod packing;

use std::rc::Rc;

use super::draft::{Draft, DraftHostUpdate, DraftInstruction};
use super::pieces::{all_groups, cover, covers, gaps, pieces_of};
use crate::ids::{Id, OpId, StepId, Table, TensorId, ValueId};
use crate::plan::{Placement, Plan};
use crate::problem::{Category, Domain, Node, Phase, Problem, Split, Tensor};
use crate::schedule::{Access, Action};
use crate::units::{Bytes, Nanos, Span};

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

/// Where backward finds what forward stored.
#[derive(Clone, Copy, Debug)]
enum Far {
    /// On the host, once this departure has ended.
    Host(usize),
    /// In this packed buffer.
    Packed(usize),
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
    /// Where every swapped and every packed piece is, in order of production.
    stored: Table<TensorId, Vec<(Span, Span, Far)>>,
    /// Pieces of this micro-batch that are packed at the end of forward: value, buffer, packed
    /// buffer.
    packed: Vec<(ValueId, usize, usize)>,
    /// Tensors of which something was made again, or landed to make something else, in this step.
    passing: Vec<TensorId>,
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
        stored: problem.tensors.values().map(|_| Vec::new()).collect(),
        packed: Vec::new(),
        passing: Vec::new(),
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
        for micro_batch in 0..problem.rounds() {
            self.micro_batch = micro_batch;
            self.phase = Phase::Forward;
            self.forget_passed();
            self.stored.values_mut().for_each(Vec::clear);
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

    /// Packed, swapped and recomputed pieces are not to be had any more once backward begins.
    fn turn_around(&mut self) {
        self.pack();
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
            for tensor in std::mem::take(&mut self.passing) {
                let tensor = &self.problem.tensors[tensor];
                let held = self.is_held(tensor);
                let whole = self.problem.values[tensor.value].split == Split::Whole;
                let fetched = whole || held && self.plan.hold.fetched;
                self.live[tensor.value]
                    .retain(|i| (held || !i.recomputed) && (fetched || !i.landed));
            }
        }
        let done = self.micro_batch + 1;
        if done == self.problem.micro_batches {
            self.run_norms();
        }
        if done == self.problem.rounds() {
            self.run_updates();
        }
    }

    /// Counts the gradients whose last contribution came in this step, and drops them where another
    /// pass makes them again.
    fn run_norms(&mut self) {
        let problem = self.problem;
        for (step, op) in problem.norms() {
            if step == self.step {
                self.run_op(op, &Rc::new(vec![problem.all_rows()]), None, None);
                if problem.passes > 1 {
                    let counted = problem.ops[op].reads.iter();
                    counted.for_each(|&gradient| self.live[gradient].clear());
                }
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

    /// Forgets what is of one round: all but model states and the gradients that they follow.
    fn forget_passed(&mut self) {
        let problem = self.problem;
        let mut followed = vec![false; problem.values.len()];
        for gradient in problem.states.iter().flat_map(|g| &g.gradients) {
            followed[gradient.index()] = true;
        }
        for (id, value) in problem.values.iter() {
            let stays = match value.category {
                Category::Weights | Category::OptimizerStates => true,
                Category::Gradients => followed[id.index()],
                _ => false,
            };
            if !stays {
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
        let action = match self.recomputing {
            true => Action::Recompute(op_id),
            false => Action::Run(op_id),
        };
        self.push((action, op_id), (rows, groups), base, op.duration(length));
    }

    /// Appends an instruction on the operands that lie on the stack from `base` on.
    fn push(
        &mut self,
        (action, op): (Action, OpId),
        (rows, groups): (Span, Span),
        base: usize,
        duration: Nanos,
    ) {
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
            op,
            action,
            step: self.step,
            micro_batch: self.micro_batch,
            rows,
            groups,
            operands: first..self.draft.operands.len(),
            duration,
        });
    }

    /// Token tiles of a block's loops: no tile crosses a boundary between kept, packed, swapped and
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
