//! One training step as a graph: operators and the tensors between them.
//!
//! A [`StepGraph`] is a petgraph DAG whose nodes are operators and tensors in
//! turn, an edge from a tensor to each operator that reads it and from an operator to
//! each tensor that it makes. What a tensor costs to store, to make again, and how long it must
//! live is read off the graph and written nowhere else.
//!
//! ```text
//! x ─ norm ─ n1 ─ qkv projection ─ qkv ─ attention ─ o ─┐
//! └──────────────────────────────────────── + ── output projection ─ x2 ─ norm ─ n2
//!       ┌──────────────────────────────────────────────────────────────┘└──┐
//!       └─ gate and up projection ─ gate_up ─ activation ─ h ─ down projection + ─ x of the next
//! ```
//! Backward runs the same way back on one residual gradient that is changed in place: its versions
//! are tensors of their own here and share a buffer in a plan. The graph knows shapes, not times:
//! an operator says what it computes as [`Work`].

use petgraph::graph::{DiGraph, NodeIndex};
use petgraph::Direction;

/// A node of the graph.
#[derive(Clone, Debug)]
pub enum Node {
    /// Something computed.
    Operator(Operator),
    /// Something stored.
    Tensor(Tensor),
}

/// Where in the step an operator runs: the order of execution, block by block.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Stage {
    /// Tokens to vectors.
    Embedding,
    /// Norm, projections and attention of a block.
    Attention,
    /// Output projection and MLP of a block.
    Mlp,
    /// Final norm, logits, loss, and their backward, a tile at a time.
    Head,
    /// Backward of [`Stage::Mlp`] without the output projection.
    MlpBackward,
    /// Backward of [`Stage::Attention`] and of the output projection.
    AttentionBackward,
    /// Vectors' gradients to the table.
    EmbeddingBackward,
    /// The optimizer.
    Update,
}

/// Over what an operator can be cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cut {
    /// Token ranges.
    Rows,
    /// Token ranges and head groups.
    RowsAndGroups,
    /// Head groups.
    Groups,
    /// Not at all.
    Nothing,
}

/// What an operator computes; times and FLOPs follow from it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Work {
    /// A matrix product of every token's vector with `k × n` weights (which of
    /// them head groups share out, [`Shared`] says).
    Gemm {
        /// Length of the input vector.
        k: u64,
        /// Length of the output vector.
        n: u64,
        /// Which of the three products.
        product: Product,
        /// Which of the two lengths head groups divide.
        shared: Shared,
    },
    /// Causal attention.
    Attention {
        /// Whether it is the backward.
        backward: bool,
        /// Sliding window, if the layer has one.
        window: Option<u64>,
    },
    /// A kernel that is bound by memory: elements read and written for every token, all heads.
    Elementwise {
        /// Elements for each token.
        elements: u64,
    },
    /// Random numbers, drawn into scratch memory once a run.
    Drawn {
        /// Elements.
        elements: u64,
    },
    /// The optimizer's update of this many parameters.
    Update {
        /// Parameters.
        parameters: u64,
    },
}

/// The three products of a linear layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Product {
    /// `y = x·Wᵀ`.
    Forward,
    /// `dx = dy·W`.
    InputGradient,
    /// `dW += dyᵀ·x`.
    WeightGradient,
}

/// Which side of a matrix head groups divide.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shared {
    /// Neither.
    None,
    /// The output side.
    Output,
    /// The input side.
    Input,
}

/// Something computed.
#[derive(Clone, Debug)]
pub struct Operator {
    /// What devices know it by.
    pub name: &'static str,
    /// Its block.
    pub block: Option<u32>,
    /// When it runs.
    pub stage: Stage,
    /// Over what it can be cut.
    pub cut: Cut,
    /// What it computes.
    pub work: Vec<Work>,
}

/// What a tensor is there for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// An activation that backward needs.
    Saved,
    /// An activation or gradient that lives within a stage or flows to the next.
    Passing,
    /// A weight.
    Weight,
    /// The gradient of a weight.
    Gradient,
}

/// How a tensor lies in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layout {
    /// In one piece.
    Whole,
    /// Token ranges can lie apart.
    ByRows,
    /// Head groups lie apart.
    ByGroups,
}

/// Something stored.
#[derive(Clone, Debug)]
pub struct Tensor {
    /// Name within its block.
    pub name: String,
    /// Its block.
    pub block: Option<u32>,
    /// What it is there for.
    pub role: Role,
    /// How it lies in memory.
    pub layout: Layout,
    /// Elements for each token in the workload's type.
    pub elements: u64,
    /// Elements for each token that are always f32 (softmax statistics).
    pub f32_elements: u64,
    /// Elements whatever the number of tokens.
    pub fixed_elements: u64,
    /// The tensor whose buffer this one is a new version of.
    pub version_of: Option<NodeIndex>,
}

/// Weights that are trained together, with their gradients in the same order.
#[derive(Clone, Debug)]
pub struct WeightGroup {
    /// What a person calls it.
    pub name: String,
    /// The weights.
    pub weights: Vec<NodeIndex>,
    /// Their gradients.
    pub gradients: Vec<NodeIndex>,
    /// Their parameters.
    pub parameters: Vec<u64>,
    /// The last stage that contributes to each gradient, with its block.
    pub complete_after: Vec<(Stage, Option<u32>)>,
}

/// The step.
#[derive(Clone, Debug)]
pub struct StepGraph {
    /// Operators and tensors.
    pub graph: DiGraph<Node, ()>,
    /// Operators in execution order.
    pub order: Vec<NodeIndex>,
    /// Weights by group: blocks first, then what is outside.
    pub groups: Vec<WeightGroup>,
}

impl StepGraph {
    /// The operator at a node, if it is one.
    pub fn operator(&self, node: NodeIndex) -> Option<&Operator> {
        match &self.graph[node] {
            Node::Operator(operator) => Some(operator),
            Node::Tensor(_) => None,
        }
    }
    /// The tensor at a node, if it is one.
    pub fn tensor(&self, node: NodeIndex) -> Option<&Tensor> {
        match &self.graph[node] {
            Node::Tensor(tensor) => Some(tensor),
            Node::Operator(_) => None,
        }
    }
    /// What an operator reads, in the order in which it was built.
    pub fn reads(&self, operator: NodeIndex) -> Vec<NodeIndex> {
        self.neighbours(operator, Direction::Incoming)
    }
    /// What an operator makes or adds to.
    pub fn makes(&self, operator: NodeIndex) -> Vec<NodeIndex> {
        self.neighbours(operator, Direction::Outgoing)
    }
    /// The operators that read a tensor.
    pub fn readers(&self, tensor: NodeIndex) -> Vec<NodeIndex> {
        self.neighbours(tensor, Direction::Outgoing)
    }
    /// The operators that make a tensor or add to it.
    pub fn makers(&self, tensor: NodeIndex) -> Vec<NodeIndex> {
        self.neighbours(tensor, Direction::Incoming)
    }

    /// petgraph lists the newest edge first.
    fn neighbours(&self, node: NodeIndex, direction: Direction) -> Vec<NodeIndex> {
        let mut nodes: Vec<_> = self.graph.neighbors_directed(node, direction).collect();
        nodes.reverse();
        nodes
    }

    /// The saved tensors: what a plan decides about.
    pub fn saved(&self) -> impl Iterator<Item = NodeIndex> + '_ {
        let saved = |n: &NodeIndex| self.tensor(*n).is_some_and(|t| t.role == Role::Saved);
        self.graph.node_indices().filter(saved)
    }

    /// The operators that must run again to have `tensor` when the `retained` are at hand, in
    /// execution order: those on the paths to it from what is retained.
    pub fn recompute_closure(
        &self,
        tensor: NodeIndex,
        retained: &dyn Fn(NodeIndex) -> bool,
    ) -> Vec<NodeIndex> {
        let mut wanted = vec![tensor];
        let mut operators = Vec::new();
        while let Some(tensor) = wanted.pop() {
            let role = self.tensor(tensor).map(|t| t.role);
            if role == Some(Role::Weight) || retained(tensor) {
                continue;
            }
            for maker in self.makers(tensor) {
                if !operators.contains(&maker) {
                    operators.push(maker);
                    wanted.extend(self.reads(maker));
                }
            }
        }
        operators.sort_by_key(|op| self.order.iter().position(|o| o == op));
        operators
    }

    /// First and last position in the execution order at which a tensor is touched.
    pub fn live_range(&self, tensor: NodeIndex) -> Option<(usize, usize)> {
        let touching: Vec<_> = self
            .makers(tensor)
            .into_iter()
            .chain(self.readers(tensor))
            .collect();
        let at = |op: &NodeIndex| self.order.iter().position(|o| o == op);
        let positions: Vec<usize> = touching.iter().filter_map(at).collect();
        Some((*positions.iter().min()?, *positions.iter().max()?))
    }
}
