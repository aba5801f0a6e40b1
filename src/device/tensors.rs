//! Updates that look at a whole tensor: at its norm, its factors, its blocks of 8-bit states.
//!
//! A [`TensorRule`] says how one tensor follows its gradient and which states it keeps; a
//! [`TensorUpdate`] where weight, gradient and states lie. Every device runs the same rules; the
//! planner reads their bytes here too, so that what is planned is what is held.

use super::Region;
use crate::profile::Dtype;

/// Elements of a tensor from which on its moments are kept in 8 bits; smaller ones stay f32
/// (Dettmers et al. 2022; the default of bitsandbytes).
pub const EIGHT_BIT_FROM: u64 = 4096;
/// Elements that share a scale of 8-bit moments.
pub const EIGHT_BIT_BLOCK: u64 = 256;

/// How Adam's two moments are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Moments {
    /// f32.
    F32,
    /// In the weights' type, rounded stochastically where that is bf16.
    AsWeights,
    /// 8 bits on a dynamic map with an f32 scale for every block, in tensors of
    /// [`EIGHT_BIT_FROM`] elements or more.
    EightBit,
}

/// Rows and columns of a tensor; a vector has one column.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TensorShape {
    /// Output features, or the length of a vector.
    pub rows: u64,
    /// Input features.
    pub columns: u64,
}

impl TensorShape {
    /// Elements.
    pub const fn elements(self) -> u64 {
        self.rows * self.columns
    }
    /// Whether it has one column.
    pub const fn is_vector(self) -> bool {
        self.columns == 1
    }
}

/// How a tensor follows its gradient. `η`, `β₁`, `β₂`, `ε`, `λ` and the step `t` are the step's
/// parameters; the gradient has been multiplied by the clipping factor. bf16 weights have no master
/// copy: they are rounded stochastically.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum TensorRule {
    /// AdamW as [`super::UpdateRule::AdamW`] has it, with moments kept in one of these ways.
    Adam(Moments),
    /// AdaLomo (Lv et al. 2023, arXiv 2310.10195): a factored second moment, an update normalised
    /// over the tensor, a learning rate relative to the weights' size. `β₂ = 1 − t^(−0.8)`; of the
    /// step's parameters it takes `η` and `λ` alone.
    AdaLomo,
}

impl TensorRule {
    /// Bytes of each state of a tensor, in the order in which they lie behind each other. Each is
    /// a whole number of words of 4 bytes. All begin as zeros.
    ///
    /// Adam: `m`, `v`, and with 8 bits the scales of `m`, those of `v`. AdaLomo: of a matrix `R`
    /// `[rows]` and `C` `[columns]`, of a vector `V`.
    pub fn states(self, shape: TensorShape, dtype: Dtype) -> Vec<u64> {
        let words = |bytes: u64| bytes.next_multiple_of(4);
        match self {
            TensorRule::Adam(moments) => moments
                .bytes(shape.elements(), dtype)
                .into_iter()
                .map(words)
                .collect(),
            TensorRule::AdaLomo if shape.is_vector() => vec![4 * shape.rows],
            TensorRule::AdaLomo => vec![4 * shape.rows, 4 * shape.columns],
        }
    }

    /// Bytes of all states of a tensor.
    pub fn state_bytes(self, shape: TensorShape, dtype: Dtype) -> u64 {
        self.states(shape, dtype).into_iter().sum()
    }

    /// Memory traffic of an update in bytes: the gradient read once for each pass over it, the
    /// weight read and written, the states read and written.
    pub fn traffic(self, shape: TensorShape, dtype: Dtype) -> u64 {
        // AdaLomo: moments; the update's norm and the weights'; the update.
        let (gradient, weight) = match self {
            TensorRule::Adam(_) => (1, 2),
            TensorRule::AdaLomo => (3, 3),
        };
        (gradient + weight) * shape.elements() * dtype.bytes()
            + 2 * self.state_bytes(shape, dtype)
    }
}

impl Moments {
    /// How the moments of a tensor of so many elements are kept: small ones are not worth 8 bits.
    pub const fn of(self, elements: u64) -> Moments {
        match self {
            Moments::EightBit if elements < EIGHT_BIT_FROM => Moments::F32,
            other => other,
        }
    }

    /// Bytes of the moments and their scales.
    fn bytes(self, elements: u64, dtype: Dtype) -> Vec<u64> {
        match self.of(elements) {
            Moments::F32 => vec![4 * elements; 2],
            Moments::AsWeights => vec![dtype.bytes() * elements; 2],
            Moments::EightBit => {
                let scales = 4 * elements.div_ceil(EIGHT_BIT_BLOCK);
                vec![elements, elements, scales, scales]
            }
        }
    }
}

/// A dense block of a gradient: `[rows, columns]` from this row and column of the tensor on. Blocks
/// that cover the same elements are added up, in order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GradientBlock {
    /// Where it lies.
    pub region: Region,
    /// Its first row.
    pub row: u64,
    /// Its rows.
    pub rows: u64,
    /// Its first column.
    pub column: u64,
    /// Its columns.
    pub columns: u64,
}

/// A tensor to update.
#[derive(Clone, Debug, PartialEq)]
pub struct TensorUpdate {
    /// How.
    pub rule: TensorRule,
    /// Its shape.
    pub shape: TensorShape,
    /// The weights, dense.
    pub weight: Region,
    /// Its gradient, in blocks.
    pub gradient: Vec<GradientBlock>,
    /// Its states, in the rule's order.
    pub states: Vec<Region>,
    /// Which random numbers are its own.
    pub key: u64,
}
