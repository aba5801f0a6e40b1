//! Every operator that a device runs, with its shapes, its formula and where that is from.
//!
//! Names: `T` rows (tokens) of a call, `d` width of the residual stream, `x` inputs, `y` outputs,
//! `dx` the gradient of the loss by `x`. All matrices are row-major. Elements are of the
//! reservation's dtype unless a field says f32. Arithmetic is in f32 at least, and what is stored
//! is rounded once. An operator's result depends on its operands and shapes alone, never on the
//! stream, the time or the threads: a range that is computed again gives the same bits.
//!
//! *Overwrite or add*: a field `accumulate` says whether a result is added to what the region holds
//! (loaded, added in f32, rounded) or replaces it. The first contribution of a step replaces.

use super::tensors::{GradientSum, Projection, TensorUpdate};
use super::Region;
use crate::model::{Activation, NormKind};
use crate::profile::Dtype;

/// The rows of a call within the micro-batch's. Row `r` is position `r mod sequence` of sequence
/// `r / sequence`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rows {
    /// The first one.
    pub first: u64,
    /// How many: `T`.
    pub count: u64,
    /// Tokens of a sequence.
    pub sequence: u64,
}

/// A norm over vectors of `width`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct NormShape {
    /// Which one.
    pub kind: NormKind,
    /// Elements of a vector.
    pub width: u64,
    /// ε: added under the root.
    pub epsilon: f64,
}

/// The heads of a call: all of a model's, or those of one group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HeadShape {
    /// Query heads; query head `h` belongs to key/value head `h / (heads / kv_heads)`.
    pub heads: u64,
    /// Key heads, and as many value heads.
    pub kv_heads: u64,
    /// Elements of a head.
    pub head_dim: u64,
}

impl HeadShape {
    /// Elements of a row of q.
    pub fn query_width(self) -> u64 {
        self.heads * self.head_dim
    }
    /// Elements of a row of k, and of v.
    pub fn kv_width(self) -> u64 {
        self.kv_heads * self.head_dim
    }
    /// Elements of a row of q, k and v: its q heads, then its k heads, then its v heads.
    pub fn qkv_width(self) -> u64 {
        self.query_width() + 2 * self.kv_width()
    }
}

/// Norms of q and k, each with one scale vector for all heads.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct HeadNorms {
    /// The norm; its width is the head's. [`NormKind::Layer`] is refused.
    pub norm: NormShape,
    /// Scale of q's norm, `[head_dim]`.
    pub q_scale: Region,
    /// Scale of k's norm, `[head_dim]`.
    pub k_scale: Region,
    /// `1 / rms` of every q head, then of every k head: f32 `[T, heads + kv_heads]`.
    pub inverse_deviations: Region,
}

/// What the backward of q's and k's norms needs and makes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct HeadNormsBackward {
    /// As in the forward; the deviations are read.
    pub norms: HeadNorms,
    /// What the forward left: `[T, qkv_width]`, normed and rotated.
    pub qkv: Region,
    /// Gradient of q's scale, a copy for each key/value head: `[kv_heads, head_dim]`. Copy `j` is
    /// the sum over the rows and over the query heads of key/value head `j`.
    pub d_q_scale: Region,
    /// Gradient of k's scale, likewise `[kv_heads, head_dim]`.
    pub d_k_scale: Region,
    /// Whether both are added to.
    pub accumulate: bool,
}

/// A block of a row-major matrix: `rows × columns` elements, `stride` elements from one row to the
/// next. Weights of a head group are such blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Panel {
    /// From its first element to its last.
    pub region: Region,
    /// Rows.
    pub rows: u64,
    /// Columns.
    pub columns: u64,
    /// Elements from row to row; `columns` when it is dense.
    pub stride: u64,
}

impl Panel {
    /// Elements from its first to its last.
    pub const fn span(self) -> u64 {
        self.rows.saturating_sub(1) * self.stride + self.columns
    }
}

/// Attention over whole sequences.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AttentionShape {
    /// The heads of this call.
    pub heads: HeadShape,
    /// Sequences, one after the other in the rows; `T = sequences × sequence`.
    pub sequences: u64,
    /// Tokens of a sequence.
    pub sequence: u64,
    /// A token sees itself and the `window - 1` before it; none: all before it.
    pub window: Option<u64>,
}

/// How a parameter follows its gradient `g`. `η`, `β₁`, `β₂`, `ε`, `λ` and the step `t` are the
/// step's parameters; `g` has been multiplied by the clipping factor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UpdateRule {
    /// AdamW (Loshchilov and Hutter 2019), in PyTorch's order of operations:
    /// `w ← w·(1 − ηλ)`, `m ← m + (1 − β₁)(g − m)`, `v ← β₂v + (1 − β₂)g²`,
    /// `w ← w − η/(1 − β₁ᵗ) · m / (√v / √(1 − β₂ᵗ) + ε)`.
    /// In bf16 `w` is the f32 master; the weight is its rounding.
    AdamW,
    /// `w ← w − η(g + λw)`; LOMO's update too (Lv et al. 2024), which differs in when it runs. No
    /// states; in bf16 the weight itself is rounded.
    Sgd,
}

impl UpdateRule {
    /// f32 planes of states, each with an element for every parameter.
    pub const fn planes(self, dtype: Dtype) -> u64 {
        match (self, dtype) {
            (UpdateRule::Sgd, _) => 0,
            (UpdateRule::AdamW, Dtype::F32) => 2,
            (UpdateRule::AdamW, _) => 3,
        }
    }
    /// Bytes of states for a parameter.
    pub const fn state_bytes(self, dtype: Dtype) -> u64 {
        4 * self.planes(dtype)
    }
    /// Memory traffic of an update in bytes for a parameter: gradient and weight read, weight
    /// written, states read and written.
    pub const fn traffic(self, dtype: Dtype) -> u64 {
        3 * dtype.bytes() + 2 * self.state_bytes(dtype)
    }
}

/// Gradients of a shared parameter that reach an update in several runs (one for each head group)
/// are carried from run to run in the device's own f32 memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Carry {
    /// First f32 element in that memory.
    pub offset: u64,
    /// Whether this run is the first: it starts from nothing.
    pub first: bool,
    /// Whether it is the last: it updates. The others only add.
    pub last: bool,
}

/// Parameters that an update changes: a block of a weight with its gradient and states.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UpdateSlice {
    /// The weights.
    pub weight: Panel,
    /// Dense gradients `[rows, columns]`: one, or copies that are added up in order, in f32.
    pub gradients: Vec<Region>,
    /// f32 states with the weight's rows, columns and stride: of AdamW `m`, `v`, in bf16
    /// `master`, `m`, `v`.
    pub states: Vec<Region>,
    /// Where gradients come in several runs.
    pub carry: Option<Carry>,
}

impl UpdateSlice {
    /// Whether its operands have the sizes that the weight's shape gives them.
    pub(super) fn fits(&self, rule: UpdateRule, dtype: Dtype) -> bool {
        let (panel, size) = (self.weight, dtype.bytes());
        let elements = panel.rows * panel.columns;
        let span = panel.span();
        elements > 0
            && panel.region.bytes == span * size
            && !self.gradients.is_empty()
            && self.gradients.iter().all(|g| g.bytes == elements * size)
            && self.states.len() as u64 == rule.planes(dtype)
            && self.states.iter().all(|state| state.bytes == span * 4)
    }
}

/// Something that a device runs.
#[derive(Clone, Debug, PartialEq)]
pub enum Operator {
    /// Every byte 0.
    Zero {
        /// What is cleared.
        region: Region,
    },

    /// Tokens to vectors: `x[r] = c · E[token r] + P[position r]`. `c` is rounded to the dtype
    /// first (HF's Gemma); both optional. Vaswani et al. 2017, section 3.4.
    Embedding {
        /// The rows.
        rows: Rows,
        /// Whose tokens.
        micro_batch: u32,
        /// `E`: `[vocab, width]`.
        weight: Region,
        /// Rows of `E`.
        vocab: u64,
        /// `P`: `[positions, width]`, where positions are learned.
        positions: Option<Region>,
        /// `d`.
        width: u64,
        /// `c`.
        scale: Option<f64>,
        /// `x`: `[T, width]`.
        x: Region,
    },

    /// Backward of the embedding, always added to the gradients, rows in order:
    /// `dE[token r] += c · dx[r]`, `dP[position r] += dx[r]`.
    EmbeddingBackward {
        /// The rows.
        rows: Rows,
        /// Whose tokens.
        micro_batch: u32,
        /// `dx`: `[T, width]`.
        d_x: Region,
        /// `d`.
        width: u64,
        /// `c`.
        scale: Option<f64>,
        /// `dE`: `[vocab, width]`.
        d_weight: Region,
        /// Rows of `E`.
        vocab: u64,
        /// `dP`: `[positions, width]`.
        d_positions: Option<Region>,
    },

    /// A norm of every row (Zhang and Sennrich 2019; Ba et al. 2016). With
    /// `r = 1/√(mean(x²) + ε)`, RMS: `y = w · (x · r)`, Gemma's `y = (1 + w) · (x · r)`. Layer:
    /// `y = w · x̂ + b`, `x̂ = (x − μ)/√(mean((x − μ)²) + ε)`.
    Norm {
        /// Kind, `d`, ε.
        norm: NormShape,
        /// `T`.
        rows: u64,
        /// `[T, d]`.
        x: Region,
        /// `w`: `[d]`.
        scale: Region,
        /// `b`: `[d]`, of a layer norm.
        shift: Option<Region>,
        /// `[T, d]`.
        y: Region,
    },

    /// Backward of a norm; statistics are computed again from `x`. With `x̂` as above and
    /// `u = dy · w` (or `· (1 + w)`): RMS `dx = r · (u − x̂ · mean(u · x̂))`, layer
    /// `dx = (u − mean(u) − x̂ · mean(u · x̂))/σ`; `dw = Σ_T dy · x̂`, `db = Σ_T dy`.
    NormBackward {
        /// Kind, `d`, ε.
        norm: NormShape,
        /// `T`.
        rows: u64,
        /// `[T, d]`.
        x: Region,
        /// `w`: `[d]`.
        scale: Region,
        /// `[T, d]`.
        d_y: Region,
        /// `[T, d]`.
        d_x: Region,
        /// Whether `dx` is added to (the residual's gradient).
        accumulate_x: bool,
        /// `dw`: `[d]`.
        d_scale: Region,
        /// `db`: `[d]`, of a layer norm.
        d_shift: Option<Region>,
        /// Whether `dw` and `db` are added to.
        accumulate_weight: bool,
    },

    /// A linear layer: `y = x · Wᵀ + b + residual`.
    Linear {
        /// `T`.
        rows: u64,
        /// `[T, in]`.
        x: Region,
        /// `W [out, in]` as blocks one below the other, each as wide as `x`.
        weight: Vec<Panel>,
        /// `b` as pieces one after the other, `[out]` in all; empty: none.
        bias: Vec<Region>,
        /// `[T, out]`; may be `y` itself, which is then added to.
        residual: Option<Region>,
        /// `[T, out]`.
        y: Region,
        /// Scratch memory, where the plan gives any.
        workspace: Option<Region>,
    },

    /// `dx = dy · W`.
    LinearInputGradient {
        /// `T`.
        rows: u64,
        /// `[T, out]`.
        d_y: Region,
        /// `W [out, in]` as blocks one below the other.
        weight: Vec<Panel>,
        /// `[T, in]`.
        d_x: Region,
        /// Whether `dx` is added to.
        accumulate: bool,
        /// Scratch memory, where the plan gives any.
        workspace: Option<Region>,
    },

    /// `dW = dyᵀ · x`, `db = Σ_T dy`.
    LinearWeightGradient {
        /// `T`.
        rows: u64,
        /// `[T, in]`.
        x: Region,
        /// `in`.
        inputs: u64,
        /// `[T, out]`.
        d_y: Region,
        /// `out`.
        outputs: u64,
        /// `[out, in]`, dense.
        d_weight: Region,
        /// `[out]`.
        d_bias: Option<Region>,
        /// Whether both are added to.
        accumulate: bool,
    },

    /// What is saved of a linear layer's input for its gradient: `z = x Pᵀ` (Shamshoum et al.
    /// 2025). `P [r × in]` is random with variance `1/r`, the same in every run of a step and in
    /// the update ([`super::tensors::TensorRule::Compact`]).
    Project {
        /// `T`.
        rows: u64,
        /// `[T, in]`.
        x: Region,
        /// `in`.
        inputs: u64,
        /// Rank and period.
        projection: Projection,
        /// Which random numbers.
        key: u64,
        /// `[T, r]`.
        z: Region,
        /// Scratch memory, where the plan gives any.
        workspace: Option<Region>,
    },

    /// q, k and v of a head group: `z = n · Wᵀ + b`; q and k are then normed head by head
    /// (optional) and rotated by their position (optional):
    /// `qkv = [R(norm(z_q)), R(norm(z_k)), z_v]`.
    ///
    /// RoPE (Su et al. 2021) as HF pairs elements: with `h = head_dim / 2`, `c`, `s` row and column
    /// `i` of the [`super::RotaryTable`], `y_i = x_i c − x_{i+h} s`, `y_{i+h} = x_{i+h} c + x_i s`.
    /// q/k norm: Henry et al. 2020, as Qwen 3 has it.
    QkvProjection {
        /// The rows.
        rows: Rows,
        /// The heads of the group.
        heads: HeadShape,
        /// `n`: `[T, in]`.
        x: Region,
        /// `W`: rows of q, of k, of v, as blocks one below the other.
        weight: Vec<Panel>,
        /// `b` in the same order; empty: none.
        bias: Vec<Region>,
        /// Norms of q and k.
        norms: Option<HeadNorms>,
        /// Whether q and k are rotated.
        rotate: bool,
        /// `[T, qkv_width]`.
        qkv: Region,
        /// Scratch memory, where the plan gives any.
        workspace: Option<Region>,
    },

    /// Backward of rotation and of q's and k's norms, in place: `dz` from `dqkv`.
    ///
    /// The rotation is orthogonal up to YaRN's factor `a`: `dz = R(position)ᵀ · dqkv`. The norm's
    /// input is not kept; its output `y` is: with `u = w · dy`, `c = mean(dy · y)`, `x̂ = y / w`:
    /// `dz = r · (u − x̂ · c)`, `dw = Σ dy · x̂`. A scale element that is exactly 0 has lost its
    /// `x̂`: its gradient is NaN.
    RotaryBackward {
        /// The rows.
        rows: Rows,
        /// The heads of the group.
        heads: HeadShape,
        /// Whether q and k were rotated.
        rotate: bool,
        /// Norms of q and k.
        norms: Option<HeadNormsBackward>,
        /// `[T, qkv_width]`, changed in place.
        d_qkv: Region,
    },

    /// Causal attention of a head group by online softmax (Milakov and Gimelshein 2018; Dao 2023).
    /// For token `i` of a sequence, over `j` in `max(0, i − window + 1) ..= i`:
    /// `s_ij = q_i · k_j / √head_dim`, `lse_i = ln Σ_j exp(s_ij)`,
    /// `o_i = Σ_j exp(s_ij − lse_i) v_j`.
    Attention {
        /// Heads and sequences.
        shape: AttentionShape,
        /// `[T, qkv_width]`.
        qkv: Region,
        /// `[T, query_width]`.
        o: Region,
        /// f32 `[T, heads]`.
        lse: Region,
        /// Scratch memory, where the plan gives any.
        workspace: Option<Region>,
    },

    /// Backward of attention (Dao 2023, algorithm 2), sums in a fixed order:
    /// `P_ij = exp(s_ij − lse_i)`, `D_i = Σ do_i · o_i`, `dv_j = Σ_i P_ij do_i`,
    /// `ds_ij = P_ij (do_i · v_j − D_i)`, `dq_i = Σ_j ds_ij k_j / √head_dim`,
    /// `dk_j = Σ_i ds_ij q_i / √head_dim`; `k` and `v` sum over the query heads they serve.
    AttentionBackward {
        /// Heads and sequences.
        shape: AttentionShape,
        /// `[T, qkv_width]`.
        qkv: Region,
        /// `[T, query_width]`.
        o: Region,
        /// f32 `[T, heads]`.
        lse: Region,
        /// `[T, query_width]`.
        d_o: Region,
        /// `[T, qkv_width]`.
        d_qkv: Region,
        /// Scratch memory, where the plan gives any.
        workspace: Option<Region>,
    },

    /// The MLP's non-linearity. Gated, with `x = [g, u]`: `h = φ(g) · u` (Shazeer 2020); plain
    /// `h = φ(x)`. SiLU: `φ(x) = x/(1 + e⁻ˣ)`; GELU: `φ(x) = x/2 · (1 + erf(x/√2))` or, by tanh,
    /// `x/2 · (1 + tanh(√(2/π)(x + 0.044715x³)))` (Hendrycks and Gimpel 2016).
    Activation {
        /// φ.
        kind: Activation,
        /// Whether `x` has a gate.
        gated: bool,
        /// `T`.
        rows: u64,
        /// `f`: elements of a row of `h`.
        width: u64,
        /// `[T, 2f]`, gate first, or `[T, f]`.
        x: Region,
        /// `[T, f]`.
        h: Region,
    },

    /// Backward of the non-linearity: `dg = dh · u · φ'(g)`, `du = dh · φ(g)`; plain
    /// `dx = dh · φ'(x)`.
    ActivationBackward {
        /// φ.
        kind: Activation,
        /// Whether `x` has a gate.
        gated: bool,
        /// `T`.
        rows: u64,
        /// `f`: elements of a row of `h`.
        width: u64,
        /// `[T, 2f]` or `[T, f]`.
        x: Region,
        /// `[T, f]`.
        d_h: Region,
        /// As `x`.
        d_x: Region,
    },

    /// Cross entropy and its gradient, in place. For row `r` with label `t`:
    /// `loss = ln Σ_j exp(z_j) − z_t`, `dz = (softmax(z) − onehot(t)) · loss_scale`. An ignored
    /// label gives no loss and a zero gradient. The rows' losses are summed in f64, unscaled, and
    /// written to a slot, so that running it again changes nothing.
    CrossEntropy {
        /// The rows.
        rows: Rows,
        /// Whose labels.
        micro_batch: u32,
        /// Elements of a row.
        vocab: u64,
        /// `z`, then `dz`: `[T, vocab]`.
        logits: Region,
        /// Which slot.
        slot: u32,
    },

    /// Sum of the squares of gradients, in f64, written to a slot; copies of shared gradients are
    /// added up first. An update's gradients are scaled by
    /// `min(1, clip / (√(Σ slots) + 10⁻⁶))` (Pascanu et al. 2013, as PyTorch does it) if the step
    /// clips.
    GradientNorm {
        /// Gradients: of each entry its copies, all of the same size.
        gradients: Vec<Vec<Region>>,
        /// Which slot.
        slot: u32,
    },

    /// Adds a micro-batch's gradients to the step's, those of matrices in a space of low rank: with
    /// the matrix turned so that it has `M` rows and `μ ≤ M` columns, `C += g Aᵀ` for an `A`
    /// `[r × μ]` of variance `1/r` that is drawn anew in every step (FLORA, Hao et al. 2024).
    CompressGradient {
        /// Which ones.
        tensors: Vec<GradientSum>,
        /// Whether they are added to, or begin the sums.
        accumulate: bool,
        /// Scratch memory, where the plan gives any.
        workspace: Option<Region>,
    },

    /// Changes weights by their gradients; on the device or, with host regions, on the host's
    /// threads: the same arithmetic, the same bits.
    Update {
        /// By which rule.
        rule: UpdateRule,
        /// Which parameters.
        slices: Vec<UpdateSlice>,
    },

    /// Changes whole tensors, each by its own rule; on the device or on the host, with the same
    /// bits.
    TensorUpdate {
        /// Which ones.
        tensors: Vec<TensorUpdate>,
        /// Scratch memory, where the plan gives any.
        workspace: Option<Region>,
    },
}

impl Operator {
    /// What logs and errors call it.
    pub const fn name(&self) -> &'static str {
        match self {
            Operator::Zero { .. } => "zero",
            Operator::Embedding { .. } => "embedding",
            Operator::EmbeddingBackward { .. } => "embedding_backward",
            Operator::Norm { .. } => "norm",
            Operator::NormBackward { .. } => "norm_backward",
            Operator::Linear { .. } => "linear",
            Operator::LinearInputGradient { .. } => "linear_input_gradient",
            Operator::LinearWeightGradient { .. } => "linear_weight_gradient",
            Operator::Project { .. } => "project",
            Operator::QkvProjection { .. } => "qkv_projection",
            Operator::RotaryBackward { .. } => "rotary_backward",
            Operator::Attention { .. } => "attention",
            Operator::AttentionBackward { .. } => "attention_backward",
            Operator::Activation { .. } => "activation",
            Operator::ActivationBackward { .. } => "activation_backward",
            Operator::CrossEntropy { .. } => "cross_entropy",
            Operator::GradientNorm { .. } => "gradient_norm",
            Operator::CompressGradient { .. } => "compress_gradient",
            Operator::Update { .. } => "update",
            Operator::TensorUpdate { .. } => "tensor_update",
        }
    }
}
