//! The problem: one training step as a program of operators over values, and the limits it must
//! keep. Plain data; it knows nothing of transformers, files or GPUs.
//!
//! ```text
//! step:    embed │ attn 0 │ mlp 0 │ attn 1 │ … │ head │ … │ mlp 0 backward │ attn 0 backward │ …
//! body:            Rows{ norm }                          one loop over token tiles
//!                  Groups{ Rows{ qkv } attention }       one loop over head groups
//! ```
//! A *step* is the unit in which the search thinks. Its *body* is a small loop nest: what stands in
//! `Rows` runs once a token tile, what stands in `Groups` once a head group. An operator's operands
//! are *values*; a value of which backward has need again is a storable *tensor*, and for each the
//! plan says how much of it is kept, swapped or recomputed. Recomputing runs the one operator that
//! writes the value, on the same rows, after making its own operands available in the same way.

use crate::ids::{Id, OpId, StepId, Table, TensorId, ValueId};
use crate::machine::Machine;
use crate::units::{Bytes, Nanos, Span, Tokens};

/// One training step and the limits it must keep.
#[derive(Clone, Debug)]
pub struct Problem {
    /// Rows of every activation: sequence length × micro-batch size.
    pub tokens: Tokens,
    /// Micro-batches before the optimizer runs.
    pub micro_batches: u32,
    /// How often forward and backward run on each: twice where updates inside backward want the
    /// global norm of all gradients. The first pass counts gradients and drops them.
    pub passes: u32,
    /// How many groups the attention heads are processed in.
    pub groups: u32,
    /// The unit of token ranges: what is kept, swapped or recomputed is a multiple of it.
    pub granule: Tokens,
    /// What operators read and write.
    pub values: Table<ValueId, Value>,
    /// The values that backward needs again.
    pub tensors: Table<TensorId, Tensor>,
    /// All operators.
    pub ops: Table<OpId, Op>,
    /// Forward and backward in execution order.
    pub program: Table<StepId, Step>,
    /// Weights with their gradients and optimizer states, in groups that are placed together.
    pub states: Vec<StateGroup>,
    /// What link, host and contention can do.
    pub machine: Machine,
    /// What the plan may use.
    pub budget: Budget,
}

/// The memory that a plan may use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Budget {
    /// Size of the arena on the device.
    pub device: Bytes,
    /// Size of the pinned slab and the states in host memory.
    pub host: Bytes,
}

/// What a buffer's bytes are there for; the rows of every memory table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Category {
    /// Model weights.
    Weights,
    /// Gradients of weights.
    Gradients,
    /// Optimizer states and master weights.
    OptimizerStates,
    /// Activations that backward needs again.
    Activations,
    /// What lives within a pass only: gradients of activations, tiles, logits.
    Transients,
    /// Scratch memory of one operator.
    Workspace,
}

impl Category {
    /// All categories, in the order in which tables show them.
    pub const ALL: [Category; 6] = [
        Category::Weights,
        Category::Gradients,
        Category::OptimizerStates,
        Category::Activations,
        Category::Transients,
        Category::Workspace,
    ];
    /// The name in tables and files.
    pub const fn name(self) -> &'static str {
        match self {
            Category::Weights => "weights",
            Category::Gradients => "gradients",
            Category::OptimizerStates => "optimizer_states",
            Category::Activations => "activations",
            Category::Transients => "transients",
            Category::Workspace => "workspace",
        }
    }
}

/// How a value is cut into buffers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Split {
    /// One buffer for all rows and groups.
    Whole,
    /// A buffer for each token range.
    Rows,
    /// A buffer for each head group, all rows in it.
    Groups,
}

/// Something that operators read and write.
#[derive(Clone, Debug)]
pub struct Value {
    /// Name within its block: `qkv`, `gate_up.weight`.
    pub name: String,
    /// The block it belongs to; none for the embedding, the head and what flows between blocks.
    pub block: Option<u32>,
    /// What its bytes are there for.
    pub category: Category,
    /// Bytes of one row, all head groups together.
    pub row_bytes: u64,
    /// Bytes of one row in host memory, or packed on the device, all head groups together, where
    /// what is saved may be packed.
    pub packed_row_bytes: Option<u64>,
    /// Bytes that do not depend on rows (weights and their kin).
    pub fixed_bytes: Bytes,
    /// How it is cut into buffers.
    pub split: Split,
    /// The tensor that it is, if backward needs it again.
    pub tensor: Option<TensorId>,
}

/// A value that backward needs again, for which the plan decides.
#[derive(Clone, Debug)]
pub struct Tensor {
    /// The value.
    pub value: ValueId,
    /// The operator that makes it, and makes it again.
    pub producer: OpId,
    /// How many pieces decisions are made of: granules, head groups, or one.
    pub pieces: u32,
}

/// Over what one run of an operator extends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Domain {
    /// A token range, all heads.
    Rows,
    /// A token range of one head group.
    RowsOfGroup,
    /// All tokens of one head group.
    Group,
    /// Everything at once.
    Whole,
}

/// An operator of the program.
#[derive(Clone, Debug)]
pub struct Op {
    /// What a device knows it by: `qkv_projection`, `attention_backward`.
    pub name: String,
    /// The block whose weights it uses.
    pub block: Option<u32>,
    /// Over what one run extends.
    pub domain: Domain,
    /// Whether memory bounds it rather than arithmetic: copies beside it slow it by another factor.
    pub memory_bound: bool,
    /// Read only.
    pub reads: Vec<ValueId>,
    /// Written from nothing.
    pub writes: Vec<ValueId>,
    /// Added to; the first contribution writes.
    pub accumulates: Vec<ValueId>,
    /// Changed in place; must have been written before.
    pub updates: Vec<ValueId>,
    /// Scratch memory of a run over `n` rows: `fixed + n × row`.
    pub workspace: Scaling,
    /// Picoseconds of a run over `n` rows: `fixed + n × row`. A `Group` or `Whole` run has no rows.
    pub picos: Scaling,
}

/// A quantity that is linear in the rows of a run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Scaling {
    /// Part that every run has.
    pub fixed: u64,
    /// Part for each row.
    pub row: u64,
}

impl Scaling {
    /// The same for every run.
    pub const fn fixed(fixed: u64) -> Self {
        Self { fixed, row: 0 }
    }
    /// The quantity of a run over `rows` rows.
    pub fn of(self, rows: u64) -> u64 {
        self.row
            .checked_mul(rows)
            .and_then(|r| r.checked_add(self.fixed))
            .expect("bounded by size limits")
    }
}

impl Op {
    /// How long a run over `rows` rows takes, rounded up to a nanosecond.
    pub fn duration(&self, rows: u64) -> Nanos {
        Nanos::new(self.picos.of(rows).div_ceil(1000))
    }
}

/// A node of a step's loop nest.
#[derive(Clone, Debug)]
pub enum Node {
    /// Run this operator.
    Op(OpId),
    /// For every token tile.
    Rows(Vec<Node>),
    /// For every head group.
    Groups(Vec<Node>),
}

/// Where in the training step a step lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Phase {
    /// Forward, loss included.
    Forward,
    /// Backward.
    Backward,
}

/// The unit in which the search thinks.
#[derive(Clone, Debug)]
pub struct Step {
    /// What a person calls it: `mlp 3 backward`.
    pub name: String,
    /// Its block, if it is of one.
    pub block: Option<u32>,
    /// Forward or backward.
    pub phase: Phase,
    /// The longest token tile of its loops.
    pub tile: Tokens,
    /// What it does.
    pub body: Vec<Node>,
}

/// Weights that are placed together, with what trains them.
#[derive(Clone, Debug)]
pub struct StateGroup {
    /// What a person calls it: `block 3`, `embedding`.
    pub name: String,
    /// The weights.
    pub weights: Vec<ValueId>,
    /// Their gradients, in the same order.
    pub gradients: Vec<ValueId>,
    /// Their number of parameters.
    pub parameters: u64,
    /// Optimizer states on the device, where the optimizer runs there (one value for all weights).
    pub states: Option<ValueId>,
    /// The updates, each with the step after which it may run. The step is that of the last
    /// contribution for a fused method, the last step of all where gradients are kept until the
    /// end.
    pub updates: Vec<(StepId, OpId)>,
    /// What counts its gradients for clipping by the global norm, each with the step of the last
    /// contribution of the first pass. Where there are any, no update of any group runs before all
    /// of them.
    pub norms: Vec<(StepId, OpId)>,
    /// What the host optimizer needs, where the method has one. Without one, states and gradients
    /// are on the device until the update, whatever the placement.
    pub host: Option<HostOptimizer>,
}

/// The optimizer's work for one group where the host does it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HostOptimizer {
    /// Time of the update.
    pub duration: Nanos,
    /// Host memory of master weights and moments.
    pub bytes: Bytes,
}

impl Value {
    /// Bytes of the part of this value that covers `rows` rows of `groups` of `of_groups` groups.
    pub fn bytes(&self, rows: u64, groups: u64, of_groups: u64) -> Bytes {
        self.sized(self.row_bytes, rows, (groups, of_groups))
    }
    /// The same in host memory, or packed on the device.
    pub fn host_bytes(&self, rows: u64, groups: u64, of_groups: u64) -> Bytes {
        let row_bytes = self.packed_row_bytes.unwrap_or(self.row_bytes);
        self.sized(row_bytes, rows, (groups, of_groups))
    }
    /// Whether it can stay on the device packed, and is smaller there.
    pub fn packs(&self) -> bool {
        self.packed_row_bytes
            .is_some_and(|packed| packed < self.row_bytes)
    }
    fn sized(&self, row_bytes: u64, rows: u64, (groups, of_groups): (u64, u64)) -> Bytes {
        let all = Bytes::new(row_bytes) * rows + self.fixed_bytes;
        match self.split {
            Split::Groups => all.scaled(groups, of_groups),
            Split::Whole | Split::Rows => all,
        }
    }
}

impl Problem {
    /// How often forward and backward run.
    pub const fn rounds(&self) -> u32 {
        self.micro_batches * self.passes
    }
    /// What counts gradients for clipping, each with the step behind which it runs.
    pub fn norms(&self) -> impl Iterator<Item = (StepId, OpId)> + '_ {
        self.states
            .iter()
            .flat_map(|group| group.norms.iter().copied())
    }
    /// Whether updates wait for the global norm of all gradients.
    pub fn clips(&self) -> bool {
        self.norms().next().is_some()
    }
    /// All rows.
    pub fn all_rows(&self) -> Span {
        Span::new(0, self.tokens.get())
    }
    /// Bytes of the whole of a value.
    pub fn value_bytes(&self, value: ValueId) -> Bytes {
        self.values[value].bytes(self.tokens.get(), 1, 1)
    }
    /// Bytes of a storable tensor.
    pub fn tensor_bytes(&self, tensor: TensorId) -> Bytes {
        self.value_bytes(self.tensors[tensor].value)
    }
    /// The rows and groups of the pieces `[first, last)` of a tensor.
    pub fn pieces_extent(&self, tensor: TensorId, first: u32, last: u32) -> (Span, Span) {
        let all_groups = Span::new(0, u64::from(self.groups));
        match self.values[self.tensors[tensor].value].split {
            Split::Whole => (self.all_rows(), all_groups),
            Split::Groups => (
                self.all_rows(),
                Span::new(u64::from(first), u64::from(last)),
            ),
            Split::Rows => {
                let at =
                    |piece: u32| (u64::from(piece) * self.granule.get()).min(self.tokens.get());
                (Span::new(at(first), at(last)), all_groups)
            }
        }
    }
    /// Bytes of the pieces `[first, last)` of a tensor.
    pub fn pieces_bytes(&self, tensor: TensorId, first: u32, last: u32) -> Bytes {
        self.sized(tensor, first, last, Value::bytes)
    }
    /// The same in host memory, or packed on the device.
    pub fn pieces_host_bytes(&self, tensor: TensorId, first: u32, last: u32) -> Bytes {
        self.sized(tensor, first, last, Value::host_bytes)
    }
    fn sized(
        &self,
        tensor: TensorId,
        first: u32,
        last: u32,
        bytes: fn(&Value, u64, u64, u64) -> Bytes,
    ) -> Bytes {
        if first == last {
            return Bytes::ZERO;
        }
        let (rows, groups) = self.pieces_extent(tensor, first, last);
        let value = &self.values[self.tensors[tensor].value];
        bytes(value, rows.len(), groups.len(), u64::from(self.groups))
    }
    /// Whether a tensor can stay on the device packed.
    pub fn packs(&self, tensor: TensorId) -> bool {
        self.values[self.tensors[tensor].value].packs()
    }
    /// The name of a value with its block: `qkv of block 3`.
    pub fn value_name(&self, value: ValueId) -> String {
        let Value { name, block, .. } = &self.values[value];
        match block {
            Some(block) => format!("{name} of block {block}"),
            None => name.clone(),
        }
    }
    /// How many blocks the model has.
    pub fn blocks(&self) -> u32 {
        let blocks = self.program.values().filter_map(|s| s.block);
        blocks.max().map_or(0, |last| last + 1)
    }
    /// The step that follows all others.
    pub fn last_step(&self) -> StepId {
        StepId::from_index(self.program.len() - 1)
    }
}
