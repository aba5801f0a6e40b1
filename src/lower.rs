//! From a model's graph, a profile and a workload to the solver's [`Problem`]: the only place that
//! speaks both vocabularies.
//!
//! Every tensor node becomes a value (versions of one tensor share it), every operator node an
//! operator whose time comes from the profile and whose FLOPs from its [`Work`], every stage of a
//! block a step with a loop nest. What the profile had to guess is collected and reported.

mod arithmetic;
mod costs;
mod states;

use std::collections::{BTreeMap, BTreeSet};

use ebbtide_solver::ids::{OpId, StepId, Table, TensorId, ValueId};
use ebbtide_solver::machine::Link;
use ebbtide_solver::problem::{
    Budget, Category, Domain, Node, Op, Phase, Problem, Split, Step, Value,
};
use ebbtide_solver::units::{Bytes, Nanos, Tokens};
use petgraph::graph::NodeIndex;

use crate::device::packed::Storage;
use crate::error::{Error, Result};
use crate::methods::{Method, Updates};
use crate::model::graph::{Cut, Layout, Operator, Role, Stage, StepGraph, Work};
use crate::model::{ModelConfig, Positions};
use crate::profile::cost::{Attention, Costs, Gemm};
use crate::profile::{Dtype, Profile};

/// What is trained on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Workload {
    /// Tokens of a sequence.
    pub seq: u64,
    /// Sequences of a micro-batch.
    pub batch: u64,
    /// Micro-batches of an optimizer step.
    pub accumulate: u32,
    /// The type of weights and activations.
    pub dtype: Dtype,
    /// Whether gradients are clipped by their global norm: each is counted once it is complete, and
    /// no weight changes before all are. Where weights change inside backward, that takes a pass
    /// before, which only counts.
    pub clip: bool,
}

/// How operators are cut: a decision of the search, since it trades time for transient memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Tiling {
    /// Longest token range of a block's loops.
    pub tile: u64,
    /// Longest token range of the head's.
    pub head_tile: u64,
    /// Groups in which attention heads are processed; divides the key/value heads.
    pub groups: u32,
}

/// A problem and what only the shell knows of it.
#[derive(Clone, Debug)]
pub struct Lowered {
    /// The solver's problem.
    pub problem: Problem,
    /// How it is cut.
    pub tiling: Tiling,
    /// FLOPs of every operator: of each run, and for each row.
    pub flops: Table<OpId, Flops>,
    /// What the profile was asked for every operator: for each kernel its shape.
    pub charges: Table<OpId, Vec<Charge>>,
    /// Saved tensors, with the bytes of a row where it is packed.
    pub packable: Vec<(ValueId, u64)>,
    /// How fast the device packs and unpacks them, where that takes time.
    pub packing: Option<Link>,
    /// What the profile had to extrapolate, each once.
    pub extrapolated: BTreeSet<String>,
    /// What a step takes more in which the method renews its projections: it is spread over the
    /// steps' updates.
    pub renewal: Renewed,
}

/// Time that is spent every so many steps.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Renewed {
    /// How long; 0 where nothing is renewed.
    pub time: Nanos,
    /// Steps from one to the next.
    pub every: u32,
}

/// The shape of a kernel, over a whole tile where it can be cut by rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Charge {
    /// A matrix product.
    Gemm(Gemm),
    /// Attention.
    Attention(Attention),
    /// A kernel that is bound by memory, or an update: bytes read plus written.
    Kernel(Bytes),
}

/// Floating-point operations of a run over `n` rows: `fixed + n × row`. Causal attention counts the
/// half that it needs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Flops {
    /// Part that every run has.
    pub fixed: u128,
    /// Part for each row.
    pub row: u128,
}

/// The longest token count that a plan is made for.
pub const MAX_TOKENS: u64 = 1 << 24;

/// The longest single operator: sums of picoseconds stay in 64 bits.
const LONGEST: Nanos = Nanos::new(100_000_000_000_000);

impl Workload {
    /// Rows of every activation.
    pub fn tokens(&self) -> u64 {
        self.seq * self.batch
    }
    /// What a device keeps of a step beside its arena and that grows with the length: the table of
    /// rotations (cosines and sines of half a head in f32), and of every token of an optimizer step
    /// itself, its label and its place among equals (4 numbers of 32 bits).
    pub fn beside_arena(&self, model: &ModelConfig) -> Bytes {
        let table = match model.positions {
            Positions::Rope { .. } => self.seq.saturating_mul(2 * 4 * (model.head_dim / 2)),
            Positions::Learned { .. } => 0,
        };
        let tokens = self.seq.saturating_mul(self.batch);
        let batches = tokens.saturating_mul(16 * u64::from(self.accumulate));
        Bytes::new(table.saturating_add(batches))
    }
    /// Refuses what cannot be planned.
    pub fn check(&self, model: &ModelConfig) -> Result<()> {
        let tokens = self
            .seq
            .checked_mul(self.batch)
            .filter(|&t| t <= MAX_TOKENS);
        let least = [
            ("--seq", self.seq),
            ("--batch", self.batch),
            ("--accumulate", self.accumulate.into()),
        ];
        if let Some((flag, _)) = least.into_iter().find(|least| least.1 == 0) {
            return Err(Error::bad_input(format!("{flag} must be at least 1")));
        }
        if tokens.is_none() {
            let most = Tokens::new(MAX_TOKENS);
            return Err(Error::bad_input(format!(
                "--seq {} with --batch {} is more than {most} tokens in a micro-batch",
                self.seq, self.batch
            ))
            .hint("a shorter --seq, a smaller --batch, or --accumulate"));
        }
        if let Positions::Learned { positions } = model.positions {
            if self.seq > positions {
                return Err(Error::bad_input(format!(
                    "{} has learned positions for {positions} tokens; --seq {} is beyond them",
                    model.name, self.seq
                )));
            }
        }
        Ok(())
    }
}

/// The tilings worth trying: a tile long enough for full-rate products and short enough that
/// its transients are small beside a whole tensor; divisions of the key/value heads by powers of
/// two.
pub fn tilings(model: &ModelConfig, workload: &Workload) -> Vec<Tiling> {
    /// Logits of a tile of the head, at most.
    const LOGITS: u64 = 1 << 30;
    let tokens = workload.tokens();
    let row = (model.vocab * workload.dtype.bytes()).max(1);
    let head_tile = (LOGITS / row)
        .max(1)
        .next_power_of_two()
        .clamp(1024, 1 << 16)
        .min(tokens);
    // Longer sequences have larger transients and want finer groups.
    let coarsest = (tokens >> 18).next_power_of_two();
    let powers = (0..)
        .map(|shift| 1u64 << shift)
        .take_while(|g| model.kv_heads % g == 0);
    let mut groups: Vec<u64> = powers
        .filter(|&g| g >= coarsest && g <= 8 * coarsest)
        .collect();
    if groups.is_empty() {
        groups.push(model.kv_heads);
    }
    let tile = (tokens / 16)
        .next_power_of_two()
        .clamp(4096, (tokens / 32).next_power_of_two().max(16384))
        .min(tokens);
    let tilings = groups.into_iter().map(|groups| Tiling {
        tile,
        head_tile,
        groups: u32::try_from(groups).expect("bounded by the config reader"),
    });
    tilings.collect()
}

/// Lowers a training step.
///
/// # Errors
/// A type that the profile has no rates for; a step whose operators take more than a day.
pub fn lower(
    graph: &StepGraph,
    model: &ModelConfig,
    profile: &Profile,
    method: Method,
    workload: &Workload,
    budget: Budget,
    tiling: Tiling,
) -> Result<Lowered> {
    let method = method.resolved(model)?.accumulating(workload.accumulate);
    let costs = profile.costs(workload.dtype)?;
    let tokens = Tokens::new(workload.tokens());
    let granule = Tokens::new(tokens.get().div_ceil(16).next_multiple_of(128));
    let mut lowering = Lowering {
        graph,
        model,
        profile,
        costs,
        workload: *workload,
        tiling,
        value_of: vec![None; graph.graph.node_count()],
        // Norms of what head groups share count once, so they look at the whole, too.
        whole: method.updates() == Updates::Tensors || workload.clip,
        flops: Table::new(),
        charges: Table::new(),
        packable: Vec::new(),
        extrapolated: BTreeSet::new(),
        renewal: Renewed::default(),
        too_long: None,
        problem: Problem {
            tokens,
            micro_batches: workload.accumulate,
            passes: if workload.clip && method.fused() {
                2
            } else {
                1
            },
            groups: tiling.groups,
            granule,
            values: Table::new(),
            tensors: Table::new(),
            ops: Table::new(),
            program: Table::new(),
            states: Vec::new(),
            machine: profile.machine,
            budget,
        },
    };
    lowering.values();
    let steps = lowering.program();
    lowering.states(method, &steps);
    if let Some(name) = lowering.too_long {
        return Err(Error::bad_input(format!(
            "one {name} takes longer than {LONGEST} on {}",
            profile.name
        ))
        .hint("a shorter --seq"));
    }
    let packing = lowering.packing();
    let Lowering {
        problem,
        flops,
        charges,
        packable,
        extrapolated,
        renewal,
        ..
    } = lowering;
    Ok(Lowered {
        problem,
        tiling,
        flops,
        charges,
        packable,
        packing,
        extrapolated,
        renewal,
    })
}

impl Lowered {
    /// The same where saved tensors are packed in 8 bits if they travel, and may stay packed.
    #[must_use]
    pub fn packed(mut self) -> Self {
        for &(value, row_bytes) in &self.packable {
            self.problem.values[value].packed_row_bytes = Some(row_bytes);
        }
        self.problem.machine.packing = self.packing;
        self
    }
}

/// A stage of a block, or of the whole.
type Place = (Stage, Option<u32>);

struct Lowering<'a> {
    graph: &'a StepGraph,
    model: &'a ModelConfig,
    profile: &'a Profile,
    costs: Costs<'a>,
    workload: Workload,
    tiling: Tiling,
    value_of: Vec<Option<ValueId>>,
    /// Whether weights are updated tensor by tensor.
    whole: bool,
    flops: Table<OpId, Flops>,
    charges: Table<OpId, Vec<Charge>>,
    packable: Vec<(ValueId, u64)>,
    extrapolated: BTreeSet<String>,
    renewal: Renewed,
    too_long: Option<&'static str>,
    problem: Problem,
}

impl Lowering<'_> {
    fn value(&self, tensor: NodeIndex) -> ValueId {
        self.value_of[tensor.index()].expect("every tensor has a value")
    }

    fn values(&mut self) {
        let width = self.workload.dtype.bytes();
        for node in self.graph.graph.node_indices() {
            let Some(tensor) = self.graph.tensor(node) else {
                continue;
            };
            let value = match tensor.version_of {
                Some(original) => self.value(original),
                None => self.problem.values.push(Value {
                    name: tensor.name.clone(),
                    block: tensor.block,
                    category: match tensor.role {
                        Role::Saved => Category::Activations,
                        Role::Passing => Category::Transients,
                        Role::Weight => Category::Weights,
                        Role::Gradient => Category::Gradients,
                    },
                    row_bytes: tensor.elements * width + tensor.f32_elements * 4,
                    packed_row_bytes: None,
                    fixed_bytes: Bytes::new(tensor.fixed_elements * width),
                    split: match tensor.layout {
                        Layout::Whole => Split::Whole,
                        // Updated as a whole, a gradient is kept as a whole.
                        Layout::ByGroups if self.whole && tensor.role == Role::Gradient => {
                            Split::Whole
                        }
                        Layout::ByRows => Split::Rows,
                        Layout::ByGroups => Split::Groups,
                    },
                    tensor: None,
                }),
            };
            self.value_of[node.index()] = Some(value);
            if tensor.role == Role::Saved {
                let pieces = match tensor.layout {
                    Layout::ByGroups => u64::from(self.tiling.groups),
                    Layout::Whole | Layout::ByRows => 1,
                };
                let (elements, extras) = (tensor.elements / pieces, tensor.f32_elements / pieces);
                let row_bytes = pieces * Storage::row_bytes(elements, extras);
                self.packable.push((value, row_bytes));
            }
        }
    }

    /// Operators and steps; says which step each stage of each block became.
    fn program(&mut self) -> BTreeMap<Place, StepId> {
        let mut steps: Vec<(Place, Vec<(Cut, OpId)>)> = Vec::new();
        for &node in &self.graph.order {
            let operator = self
                .graph
                .operator(node)
                .expect("the order lists operators");
            let op = self.operator(node, operator);
            let place = (operator.stage, operator.block);
            match steps.last_mut() {
                Some((last, ops)) if *last == place => ops.push((operator.cut, op)),
                _ => steps.push((place, vec![(operator.cut, op)])),
            }
        }
        let mut by_place = BTreeMap::new();
        for ((stage, block), ops) in steps {
            let tile = if stage == Stage::Head {
                self.tiling.head_tile
            } else {
                self.tiling.tile
            };
            let step = self.problem.program.push(Step {
                name: step_name(stage, block),
                block,
                phase: match stage {
                    Stage::Embedding | Stage::Attention | Stage::Mlp | Stage::Head => {
                        Phase::Forward
                    }
                    _ => Phase::Backward,
                },
                tile: Tokens::new(tile),
                body: body(stage, &ops),
            });
            by_place.insert((stage, block), step);
        }
        by_place
    }

    /// How fast the device packs a granule of the widest saved tensor.
    fn packing(&self) -> Option<Link> {
        let both = |&(value, packed): &(ValueId, u64)| {
            let rows = self.problem.granule.get().min(self.problem.tokens.get());
            (self.problem.values[value].row_bytes + packed) * rows
        };
        let widest = self.packable.iter().map(both).max()?;
        self.costs.packing(Bytes::new(widest))
    }

    fn operator(&mut self, node: NodeIndex, operator: &Operator) -> OpId {
        let (mut writes, mut accumulates, mut updates) = (Vec::new(), Vec::new(), Vec::new());
        let mut saved = Vec::new();
        for made in self.graph.makes(node) {
            let tensor = self.graph.tensor(made).expect("operators make tensors");
            let value = self.value(made);
            let summed = operator.cut == Cut::RowsAndGroups && tensor.layout != Layout::ByGroups;
            if tensor.version_of.is_some() {
                updates.push(value);
            } else if tensor.role == Role::Gradient || summed {
                accumulates.push(value);
            } else {
                writes.push(value);
            }
            if tensor.role == Role::Saved {
                saved.push(value);
            }
        }
        let mut reads: Vec<ValueId> = self
            .graph
            .reads(node)
            .into_iter()
            .map(|t| self.value(t))
            .collect();
        reads.retain(|value| !updates.contains(value));
        let (picos, flops, charges) = self.cost(operator);
        let op = self.problem.ops.push(Op {
            name: operator.name.to_owned(),
            block: operator.block,
            domain: match operator.cut {
                Cut::Rows => Domain::Rows,
                Cut::RowsAndGroups => Domain::RowsOfGroup,
                Cut::Groups => Domain::Group,
                Cut::Nothing => Domain::Whole,
            },
            memory_bound: operator
                .work
                .iter()
                .all(|w| matches!(w, Work::Elementwise { .. })),
            reads,
            writes,
            accumulates,
            updates,
            workspace: self.workspace(operator),
            picos,
        });
        self.flops.push(flops);
        self.charges.push(charges);
        for value in saved {
            self.tensor(value, op);
        }
        op
    }

    fn tensor(&mut self, value: ValueId, producer: OpId) {
        let Problem {
            tokens,
            granule,
            groups,
            ..
        } = self.problem;
        let pieces = match self.problem.values[value].split {
            Split::Whole => 1,
            Split::Groups => groups,
            Split::Rows => u32::try_from(tokens.get().div_ceil(granule.get())).unwrap_or(1),
        };
        let tensor = ebbtide_solver::problem::Tensor {
            value,
            producer,
            pieces,
        };
        let id: TensorId = self.problem.tensors.push(tensor);
        self.problem.values[value].tensor = Some(id);
    }
}

/// The loop nest of a step: attention loops over head groups and within them over tiles,
/// everything else over tiles only, so that what it makes lives for a tile.
fn body(stage: Stage, ops: &[(Cut, OpId)]) -> Vec<Node> {
    let all = |ops: &[(Cut, OpId)]| ops.iter().map(|&(_, op)| Node::Op(op)).collect::<Vec<_>>();
    if !matches!(stage, Stage::Attention | Stage::AttentionBackward) {
        return vec![Node::Rows(all(ops))];
    }
    let of_groups = |cut: Cut| matches!(cut, Cut::RowsAndGroups | Cut::Groups);
    ops.chunk_by(|a, b| of_groups(a.0) == of_groups(b.0))
        .map(|chunk| {
            if !of_groups(chunk[0].0) {
                return Node::Rows(all(chunk));
            }
            let inner = chunk
                .chunk_by(|a, b| a.0 == b.0)
                .flat_map(|run| match run[0].0 {
                    Cut::RowsAndGroups => vec![Node::Rows(all(run))],
                    _ => all(run),
                });
            Node::Groups(inner.collect())
        })
        .collect()
}

/// What adds a micro-batch's gradient to a sum in a space of low rank.
pub const COMPRESS_GRADIENT: &str = "compress_gradient";

/// Whether an operator is a training method's own, and none of the model's.
pub fn is_of_method(operator: &str) -> bool {
    matches!(operator, "project" | COMPRESS_GRADIENT) || operator.ends_with("_update")
}

/// What an update on the device is called.
pub fn update_name(method: Method) -> String {
    format!("{}_update", method.name())
}

fn step_name(stage: Stage, block: Option<u32>) -> String {
    let stage = match stage {
        Stage::Embedding => "embedding",
        Stage::Attention => "attention",
        Stage::Mlp => "mlp",
        Stage::Head => "head and loss",
        Stage::MlpBackward => "mlp backward",
        Stage::AttentionBackward => "attention backward",
        Stage::EmbeddingBackward => "embedding backward",
        Stage::Update => "update",
    };
    match block {
        Some(block) => format!("{stage} of block {block}"),
        None => stage.to_owned(),
    }
}
