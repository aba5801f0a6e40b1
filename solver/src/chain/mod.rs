//! Rematerialisation on a chain: which activations to keep, drop and compute again.
//!
//! ```text
//! x0 ─ layer 0 ─ x1 ─ layer 1 ─ x2 … xL ─ loss ─ backward L-1 … backward 0
//! ```
//! In goes a [`Chain`] (what every layer costs, and a budget), out comes a [`Solution`]: a sequence
//! of [`Op`]s that stays within the budget, its makespan, and a proved lower bound. The rules of
//! memory are those of [`replay()`], which shares nothing with the searches and judges them all.
//!
//! | module | what |
//! |---|---|
//! | [`rotor`] | the best memory-persistent schedule (Beaumont et al.), exact in bytes |
//! | [`ilp`] | the default: rotor's recursion with outputs that may be rebuilt, then exact search |
//! | [`greedy`] | saves the layers that cost most time per byte |
//! | [`exhaustive`] | the shortest path over all states: the oracle for tiny chains |
//! | [`bound`] | what no schedule can beat |
//!
//! Nothing here knows swapping, token ranges or addresses: a layer is saved whole or not at all.

pub mod bound;
mod costs;
pub mod exhaustive;
mod front;
pub mod greedy;
mod guide;
pub mod ilp;
mod interval;
mod replay;
pub mod rotor;

pub use replay::{replay, IllegalOp, Reason, Replayed};

use crate::units::{Bytes, Nanos};
use std::fmt;

/// What one layer costs. Layer `i` maps `x_i` to `x_{i+1}`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Layer {
    /// Time of its forward, whether it saves or not.
    pub forward: Nanos,
    /// Time of its backward.
    pub backward: Nanos,
    /// Saved inside for its own backward.
    pub internal_bytes: Bytes,
    /// Size of its output, and of the gradient of its output.
    pub out_bytes: Bytes,
    /// Transient of a forward that saves nothing.
    pub nograd_tmp_bytes: Bytes,
}

/// A chain of layers and the memory to train it in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chain {
    /// Size of `x_0`, and of its gradient.
    pub input_bytes: Bytes,
    /// The layers in forward order.
    pub layers: Vec<Layer>,
    /// What live values, gradients and transients may take together.
    pub budget: Bytes,
}

/// One operation. Memory while it runs: everything live plus what it makes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Op {
    /// Needs `x_i`, makes `x_{i+1}`; has the layer's transient.
    Forward(usize),
    /// Needs `x_i`, makes `x_{i+1}` and the internals of `i`.
    ForwardSave(usize),
    /// Frees `x_j`.
    Drop(usize),
    /// Needs `x_L`, makes the gradient of `x_L`.
    Loss,
    /// Needs the internals of `i`, `x_i`, `x_{i+1}` and the gradient of `x_{i+1}`; makes the
    /// gradient of `x_i`, then frees all of these but `x_i`.
    Backward(usize),
}

/// How much is proved about a solution.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    /// No schedule of this chain is faster.
    Optimal,
    /// A faster schedule may exist, but none below the bound.
    Gap,
    /// As `Gap`; the time limit cut the search short.
    TimeLimit,
}

/// A schedule within the budget and what is known of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Solution {
    /// The operations in order.
    pub sequence: Vec<Op>,
    /// Their time together, as [`replay()`] counts it.
    pub makespan: Nanos,
    /// The most memory at any moment, as [`replay()`] counts it.
    pub peak: Bytes,
    /// No schedule within the budget is faster than this.
    pub bound: Nanos,
    /// What the bound proves.
    pub status: Status,
}

/// Why there is no solution.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Failure {
    /// The chain has no layer.
    Empty,
    /// Sizes or times add up to more than 2⁶⁰; the named quantity is too large.
    TooLarge(&'static str),
    /// More layers than this strategy can take.
    TooManyLayers {
        /// How many the chain has.
        layers: usize,
        /// How many it may have.
        limit: usize,
    },
    /// Nothing fits: the backward of `layer` alone needs more than the budget.
    LayerDoesNotFit {
        /// The layer.
        layer: usize,
        /// What its backward needs live at once.
        needed: Bytes,
        /// A budget for which this strategy has a schedule.
        smallest: Bytes,
    },
    /// This strategy has no schedule within the budget.
    Infeasible {
        /// A budget for which it has one; for `rotor` the smallest.
        smallest: Bytes,
    },
    /// The time limit came before any schedule.
    NoTime,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Failure::Empty => write!(f, "the chain has no layers"),
            Failure::TooLarge(what) => write!(f, "the {what} of all layers exceed 2^60 together"),
            Failure::TooManyLayers { layers, limit } => {
                write!(f, "{layers} layers, this strategy takes at most {limit}")
            }
            Failure::LayerDoesNotFit { layer, needed, .. } => {
                write!(f, "the backward of layer {layer} needs {needed} at once")
            }
            Failure::Infeasible { smallest } => {
                write!(f, "no schedule of this strategy found below {smallest}")
            }
            Failure::NoTime => write!(f, "the time limit came before the first schedule"),
        }
    }
}
impl std::error::Error for Failure {}

impl Chain {
    /// What the chain takes when nothing is computed twice: no schedule is faster.
    pub fn floor(&self) -> Nanos {
        self.layers
            .iter()
            .map(|layer| layer.forward + layer.backward)
            .sum()
    }

    /// Size of `x_j`.
    ///
    /// # Panics
    /// When `j` is larger than the number of layers.
    pub fn x_bytes(&self, j: usize) -> Bytes {
        match j.checked_sub(1) {
            None => self.input_bytes,
            Some(layer) => self.layers[layer].out_bytes,
        }
    }
}

impl Solution {
    /// The solution with this sequence, as the referee sees it.
    fn judged(chain: &Chain, sequence: Vec<Op>, bound: Nanos, unproved: Status) -> Self {
        let Replayed { makespan, peak } =
            replay(chain, &sequence).expect("a strategy's schedule is legal");
        let status = if bound == makespan {
            Status::Optimal
        } else {
            unproved
        };
        Self {
            sequence,
            makespan,
            peak,
            bound,
            status,
        }
    }
}
