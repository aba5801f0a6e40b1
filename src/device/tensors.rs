//! Updates that look at a whole tensor: at its norm, its factors, its blocks of 8-bit states.
//!
//! A [`TensorRule`] says how one tensor follows its gradient and which states it keeps; a
//! [`TensorUpdate`] where weight, gradient and states lie. Every device runs the same rules; the
//! planner reads their bytes here too, so that what is planned is what is held.

use super::{Failure, Region};
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
    /// The longer and the shorter side.
    pub const fn sides(self) -> (u64, u64) {
        if self.rows >= self.columns {
            (self.rows, self.columns)
        } else {
            (self.columns, self.rows)
        }
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
    /// GaLore (Zhao et al. 2024) on a matrix, turned so that it has `M` rows and `μ ≤ M` columns.
    /// Every `refresh` steps, from the first on, `P [r × μ]` becomes an orthonormal basis of the
    /// gradient's leading directions. Then `R = g Pᵀ`, `m ← β₁ m + (1 − β₁) R`,
    /// `v ← β₂ v + (1 − β₂) R²`, `N = m / (√v + ε)`,
    /// `w ← w − η √(1 − β₂ᵗ)/(1 − β₁ᵗ) · α N P`, `w ← w − ηλ w`. `ε` is added before the bias is
    /// corrected.
    Galore {
        /// Rank and period.
        projection: Projection,
        /// α.
        scale: f64,
        /// Whether the basis is exact: right singular vectors. Otherwise two subspace iterations,
        /// from the basis before.
        svd: bool,
        /// How moments are kept.
        moments: Moments,
    },
    /// Fira (Chen et al. 2024): GaLore's `P`, `R` and `N`, the bias corrected in `N`, and what they
    /// leave of the gradient, scaled as APOLLO does: `S = g − α R P`, row `j` times
    /// `s_j = |N_j| / (|R_j| + 10⁻⁸)`, then `|S| ← min(|S|, 1.01 · |S| of the step before)`;
    /// `w ← w − η (α N P + S)`, `w ← w − ηλ w`. As published, `α` is taken off before the
    /// residual: for `α = 1` that is what the projection loses, and no more.
    Fira {
        /// Rank and period.
        projection: Projection,
        /// α.
        scale: f64,
        /// As GaLore's.
        svd: bool,
        /// How moments are kept.
        moments: Moments,
    },
    /// APOLLO (Zhu et al. 2025): `R = g Pᵀ` with a random `P [r × μ]` of variance `1/r`, drawn anew
    /// every `refresh` steps; Adam as in GaLore makes `R̃` of it. Row `j` of `g` is scaled by
    /// `s_j = |R̃_j| / (|R_j| + 10⁻⁸)`, or all of it by the same of whole matrices; then
    /// `|u| ← min(|u|, 1.01 · |u| of the step before)` and `w ← w − η √scale · u`, `w ← w − ηλ w`.
    Apollo {
        /// Rank and period.
        projection: Projection,
        /// The factor's square.
        scale: f64,
        /// Whether each row has a factor of its own.
        channels: bool,
        /// How moments are kept.
        moments: Moments,
    },
    /// CompAct (Shamshoum et al. 2025): the gradient is one of low rank already, `G = g Pᵀ`
    /// `[rows × r]`, for a random `P [r × columns]` of variance `1/r` that is drawn anew every
    /// `refresh` steps. Adam as in GaLore makes `N` of it, then `w ← w − η α N P`,
    /// `w ← w − ηλ w`. Without a projection `G = g` and `w ← w − η α N`.
    Compact {
        /// Rank and period, where the input was compressed.
        projection: Option<Projection>,
        /// α.
        scale: f64,
        /// How moments are kept.
        moments: Moments,
    },
    /// FLORA (Hao et al. 2024): `u` is the gradient over its factored second moment, as AdaLomo has
    /// it; `d = (1 − β₁) u + β₁ M A`; every `refresh` steps `M ← M A A'ᵀ` for a new `A'`;
    /// `M ← β₁ M + (1 − β₁) u Aᵀ`; the weights follow `d` as in AdaLomo. `A [r × μ]` is random with
    /// variance `1/r`. Where the gradient was accumulated as `C = Σ g Aᵀ` `[M × r]` by
    /// [`super::Operator::CompressGradient`], `u` is made of `C A`, with the step's own `A`.
    Flora {
        /// Rank and period.
        projection: Projection,
        /// Whether the gradient was accumulated so.
        accumulated: bool,
    },
}

/// A space of low rank.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Projection {
    /// `r`.
    pub rank: u64,
    /// Steps after which it is renewed.
    pub refresh: u32,
}

impl Projection {
    /// How often it has been renewed once `done` steps are done; it is first drawn in the first.
    pub const fn epoch(self, done: u64) -> u32 {
        (done / self.refresh as u64) as u32
    }
    /// Whether a step, counted from 1, renews it.
    pub const fn renews(self, step: u64) -> bool {
        (step - 1) % self.refresh as u64 == 0
    }
}

/// A product `[m × k] · [k × n]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Multiplied {
    /// Rows.
    pub m: u64,
    /// What is summed over.
    pub k: u64,
    /// Columns.
    pub n: u64,
}

/// What a renewal of a projection takes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Renewal {
    /// Nothing: it is drawn.
    None,
    /// Matrix products.
    Products(Vec<Multiplied>),
    /// A singular value decomposition of so many rows and columns.
    Decomposition(TensorShape),
}

impl TensorRule {
    /// Bytes of each state of a tensor, in the order in which they lie behind each other. Each is
    /// a whole number of words of 4 bytes. All begin as zeros.
    ///
    /// Adam: `m`, `v`, and with 8 bits the scales of `m`, those of `v`. AdaLomo: of a matrix `R`
    /// `[rows]` and `C` `[columns]`, of a vector `V`. GaLore: `P` in the weights' type, then Adam's
    /// of `[M × r]`; Fira: the same and the last residual's norm. CompAct: Adam's of the gradient.
    /// APOLLO: Adam's of `[M × r]`, the last update's norm. FLORA: `M` `[M × r]`, `R` `[M]`, `C`
    /// `[μ]`.
    pub fn states(self, shape: TensorShape, dtype: Dtype) -> Vec<u64> {
        let words = |bytes: u64| bytes.next_multiple_of(4);
        let (long, short) = shape.sides();
        match self {
            TensorRule::Adam(moments) => {
                let moments = moments.bytes(shape.elements(), dtype).into_iter();
                moments.map(words).collect()
            }
            TensorRule::Compact { moments, .. } => {
                let elements = self.gradient_shape(shape).elements();
                let moments = moments.bytes(elements, dtype).into_iter();
                moments.map(words).collect()
            }
            TensorRule::Galore {
                projection: Projection { rank, .. },
                moments,
                ..
            }
            | TensorRule::Fira {
                projection: Projection { rank, .. },
                moments,
                ..
            } => {
                let moments = moments.bytes(long * rank, dtype).into_iter();
                let basis = [rank * short * dtype.bytes()].into_iter();
                let norm = matches!(self, TensorRule::Fira { .. }).then_some(4);
                basis.chain(moments).chain(norm).map(words).collect()
            }
            TensorRule::Apollo {
                projection: Projection { rank, .. },
                moments,
                ..
            } => {
                let moments = moments.bytes(long * rank, dtype).into_iter();
                moments.chain([4]).map(words).collect()
            }
            TensorRule::Flora {
                projection: Projection { rank, .. },
                ..
            } => vec![4 * long * rank, 4 * long, 4 * short],
            TensorRule::AdaLomo if shape.is_vector() => vec![4 * shape.rows],
            TensorRule::AdaLomo => vec![4 * shape.rows, 4 * shape.columns],
        }
    }

    /// The shape of a tensor's gradient, as it is when the tensor is updated.
    pub fn gradient_shape(self, shape: TensorShape) -> TensorShape {
        match self {
            TensorRule::Compact {
                projection: Some(Projection { rank, .. }),
                ..
            } => TensorShape {
                columns: rank,
                ..shape
            },
            TensorRule::Flora {
                projection: Projection { rank, .. },
                accumulated: true,
            } => TensorShape {
                rows: shape.sides().0,
                columns: rank,
            },
            _ => shape,
        }
    }

    /// The rank of the space in which micro-batches' gradients are added up, if that is done.
    pub const fn accumulated_rank(self) -> Option<u64> {
        match self {
            TensorRule::Flora {
                projection: Projection { rank, .. },
                accumulated: true,
            } => Some(rank),
            _ => None,
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
        // APOLLO: its projection; its scaling. Fira: its projection; its residual. FLORA: as
        // AdaLomo, and its update in f32 written and read twice.
        let scratch = match self {
            // What only a renewal needs is no traffic of every step.
            TensorRule::Galore { projection, .. } => 4 * shape.sides().0 * projection.rank,
            TensorRule::Fira { projection, .. } => 4 * projection.beside(shape),
            TensorRule::Compact { .. } => 0,
            _ => self.workspace_bytes(shape),
        };
        let (gradient, weight) = match self {
            TensorRule::Adam(_) | TensorRule::Galore { .. } | TensorRule::Compact { .. } => (1, 2),
            TensorRule::Apollo { .. } | TensorRule::Fira { .. } => (2, 2),
            TensorRule::AdaLomo | TensorRule::Flora { .. } => (3, 3),
        };
        let gradients = gradient * self.gradient_shape(shape).elements();
        (gradients + weight * shape.elements()) * dtype.bytes()
            + 2 * self.state_bytes(shape, dtype)
            + 2 * scratch
    }

    /// Scratch memory of an update in bytes, all f32: what is projected, random matrices, updates
    /// that are not formed within a product, and what a renewal needs.
    pub fn workspace_bytes(self, shape: TensorShape) -> u64 {
        let (long, short) = shape.sides();
        let elements = match self {
            TensorRule::Adam(_) | TensorRule::AdaLomo => 0,
            TensorRule::Compact { projection, .. } => {
                projection.map_or(0, |p| p.rank * shape.columns)
            }
            TensorRule::Galore {
                projection, svd, ..
            } => projection.renewing(shape, svd),
            TensorRule::Fira {
                projection, svd, ..
            } => projection
                .renewing(shape, svd)
                .max(projection.beside(shape)),
            TensorRule::Apollo { projection, .. } => (long + short) * projection.rank + long,
            TensorRule::Flora { projection, .. } => {
                (long + 2 * short) * projection.rank + long * short
            }
        };
        // What has been accumulated in a space of low rank is brought back first.
        let back = self
            .accumulated_rank()
            .map_or(0, |rank| (long + rank) * short);
        4 * (elements + back)
    }

    /// The matrix products of an update.
    pub fn products(self, shape: TensorShape) -> Vec<Multiplied> {
        let (m, k) = shape.sides();
        let down = |n| Multiplied { m, k, n };
        let up = |n| Multiplied { m, k: n, n: k };
        match self {
            TensorRule::Adam(_) | TensorRule::AdaLomo => Vec::new(),
            TensorRule::Galore { projection, .. } => {
                vec![down(projection.rank), up(projection.rank)]
            }
            TensorRule::Flora {
                projection: Projection { rank, .. },
                accumulated,
            } => {
                let back = accumulated.then(|| up(rank));
                [down(rank), up(rank)].into_iter().chain(back).collect()
            }
            TensorRule::Fira { projection, .. } => {
                let up = up(projection.rank);
                vec![down(projection.rank), up, up]
            }
            TensorRule::Apollo { projection, .. } => vec![down(projection.rank)],
            TensorRule::Compact { projection, .. } => {
                let back = |p: Projection| Multiplied {
                    m: shape.rows,
                    k: p.rank,
                    n: shape.columns,
                };
                projection.map(back).into_iter().collect()
            }
        }
    }

    /// What a renewal of the projection takes, and after how many steps there is one.
    pub fn renewal(self, shape: TensorShape) -> (Renewal, u32) {
        let (m, k) = shape.sides();
        match self {
            TensorRule::Adam(_) | TensorRule::AdaLomo => (Renewal::None, 1),
            TensorRule::Apollo { projection, .. } => (Renewal::None, projection.refresh),
            TensorRule::Compact { projection, .. } => {
                (Renewal::None, projection.map_or(1, |p| p.refresh))
            }
            TensorRule::Galore {
                projection: Projection { refresh, .. },
                svd: true,
                ..
            }
            | TensorRule::Fira {
                projection: Projection { refresh, .. },
                svd: true,
                ..
            } => (Renewal::Decomposition(shape), refresh),
            TensorRule::Galore { projection, .. } | TensorRule::Fira { projection, .. } => {
                let n = projection.rank;
                let there = Multiplied { m, k, n };
                let back = Multiplied { m: k, k: m, n };
                // A QR decomposition takes as much as two products of that shape.
                let orthogonal = Multiplied { m: k, k: n, n };
                let iteration = [there, back, orthogonal, orthogonal];
                (Renewal::Products(iteration.repeat(2)), projection.refresh)
            }
            TensorRule::Flora { projection, .. } => {
                let n = projection.rank;
                let moved = vec![Multiplied { m, k: n, n: k }, Multiplied { m, k, n }];
                (Renewal::Products(moved), projection.refresh)
            }
        }
    }
}

impl Projection {
    /// Elements beside a renewal of GaLore's basis.
    const fn renewing(self, shape: TensorShape, svd: bool) -> u64 {
        let (long, short) = shape.sides();
        match svd {
            // The matrix and its singular vectors.
            true => 2 * long * short + short * short,
            // Products from either side.
            false => (long + short) * self.rank,
        }
    }
    /// Elements beside every update of Fira: `R`, `N` and the residual.
    const fn beside(self, shape: TensorShape) -> u64 {
        let (long, short) = shape.sides();
        long * (2 * self.rank + short)
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

impl GradientBlock {
    /// Whether it lies within a gradient of this shape, in as many bytes as it has elements.
    fn fits(&self, gradient: TensorShape, dtype: Dtype) -> bool {
        self.row + self.rows <= gradient.rows
            && self.column + self.columns <= gradient.columns
            && self.region.bytes == self.rows * self.columns * dtype.bytes()
    }
}

/// A micro-batch's gradient of a tensor, to be added to the step's.
#[derive(Clone, Debug, PartialEq)]
pub struct GradientSum {
    /// The tensor's shape.
    pub shape: TensorShape,
    /// The gradient, in blocks.
    pub gradient: Vec<GradientBlock>,
    /// The rank of the space in which it is added up; none: as it is.
    pub rank: Option<u64>,
    /// The sum: `[M × r]`, or of the tensor's shape.
    pub sum: Region,
    /// Which random numbers are its own.
    pub key: u64,
}

impl GradientSum {
    /// Refuses operands that have not the sizes which shape and rank give them.
    pub(super) fn check(&self, dtype: Dtype) -> Result<(), Failure> {
        let TensorShape { rows, columns } = self.shape;
        let elements = match self.rank {
            Some(rank) => self.shape.sides().0 * rank,
            None => self.shape.elements(),
        };
        let fits = |block: &GradientBlock| block.fits(self.shape, dtype);
        let wrong = match () {
            () if self.sum.bytes != elements * dtype.bytes() => "sum",
            () if !self.gradient.iter().all(fits) => "gradient",
            () => return Ok(()),
        };
        let what =
            format!("a sum of gradients of {rows} × {columns}: its {wrong} has another size");
        Err(Failure::refused(what))
    }
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
    /// Which random numbers it shares with what reads the same input.
    pub projection_key: u64,
}

impl TensorUpdate {
    /// Refuses operands that have not the sizes which rule and shape give them.
    pub(super) fn check(&self, dtype: Dtype) -> Result<(), Failure> {
        let TensorShape { rows, columns } = self.shape;
        let gradient = self.rule.gradient_shape(self.shape);
        let states = self.rule.states(self.shape, dtype);
        let block_fits = |block: &GradientBlock| block.fits(gradient, dtype);
        let wrong = match () {
            () if !states.into_iter().eq(self.states.iter().map(|s| s.bytes)) => "states",
            () if self.weight.bytes != self.shape.elements() * dtype.bytes() => "weights",
            () if !self.gradient.iter().all(block_fits) => "gradients",
            () => return Ok(()),
        };
        let what = format!("a tensor of {rows} × {columns} whose {wrong} have other sizes");
        Err(Failure::refused(what))
    }
}
