//! Every weight tensor of a model, once: parameter counts are sums over this list.
//!
//! q, k and v are one tensor, as are gate and up: that is how a step computes them. A matrix is
//! [out × in], as PyTorch's `Linear` has it (GPT-2's files hold the transpose).

use super::config::ModelConfig;
use super::families::NormKind;
use super::positions::Positions;

/// What a weight tensor is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Part {
    /// Scale of the norm before attention.
    AttnNorm,
    /// Shift of the norm before attention.
    AttnNormBias,
    /// Projections to q, k and v, in this order.
    Qkv,
    /// Biases of q, k and v.
    QkvBias,
    /// Scale of the norm of q, one for all heads.
    QNorm,
    /// Scale of the norm of k, one for all heads.
    KNorm,
    /// Projection of the heads' outputs.
    O,
    /// Bias of the attention output.
    OBias,
    /// Scale of the norm before the MLP.
    MlpNorm,
    /// Shift of the norm before the MLP.
    MlpNormBias,
    /// Gate and up projections of a gated MLP, in this order.
    GateUp,
    /// Biases of gate and up.
    GateUpBias,
    /// Up projection of a plain MLP.
    Up,
    /// Bias of up.
    UpBias,
    /// Down projection.
    Down,
    /// Bias of down.
    DownBias,
    /// A vector per token id; the LM head too where tied.
    Embedding,
    /// A vector per position.
    PositionEmbedding,
    /// Scale of the norm after the last block.
    FinalNorm,
    /// Shift of the norm after the last block.
    FinalNormBias,
    /// Projection to logits, where not tied.
    LmHead,
}

impl Part {
    /// The name in files and tables.
    pub fn name(self) -> &'static str {
        match self {
            Part::AttnNorm => "attn_norm",
            Part::AttnNormBias => "attn_norm_bias",
            Part::Qkv => "qkv",
            Part::QkvBias => "qkv_bias",
            Part::QNorm => "q_norm",
            Part::KNorm => "k_norm",
            Part::O => "o",
            Part::OBias => "o_bias",
            Part::MlpNorm => "mlp_norm",
            Part::MlpNormBias => "mlp_norm_bias",
            Part::GateUp => "gate_up",
            Part::GateUpBias => "gate_up_bias",
            Part::Up => "up",
            Part::UpBias => "up_bias",
            Part::Down => "down",
            Part::DownBias => "down_bias",
            Part::Embedding => "embedding",
            Part::PositionEmbedding => "position_embedding",
            Part::FinalNorm => "final_norm",
            Part::FinalNormBias => "final_norm_bias",
            Part::LmHead => "lm_head",
        }
    }
}

/// A weight tensor: what it is for and its shape.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Weight {
    /// What it is for.
    pub part: Part,
    /// Output features, or the length of a vector.
    pub rows: u64,
    /// Input features; 1 for a vector.
    pub columns: u64,
}

impl Weight {
    /// Elements.
    pub fn elements(&self) -> u64 {
        self.rows * self.columns
    }

    /// Whether it is a matrix, which methods that project or factor need.
    pub fn is_matrix(&self) -> bool {
        self.columns > 1
    }

    /// Whether it is a layer's matrix within a block: what low-rank methods project. Embedding and
    /// head are none.
    pub fn is_linear(&self) -> bool {
        let table = matches!(
            self.part,
            Part::Embedding | Part::PositionEmbedding | Part::LmHead
        );
        self.is_matrix() && !table
    }
}

impl ModelConfig {
    /// The weights of one block, in the order of their use; all blocks have the same.
    pub fn block_weights(&self) -> Vec<Weight> {
        let (hidden, inner, head) = (self.hidden, self.intermediate, self.head_dim);
        let qkv = self.query_width() + 2 * self.kv_width();
        let shifted = self.norm == NormKind::Layer;
        let (up, up_part, up_bias) = match self.gated {
            true => (2 * inner, Part::GateUp, Part::GateUpBias),
            false => (inner, Part::Up, Part::UpBias),
        };
        present([
            (true, Part::AttnNorm, hidden, 1),
            (shifted, Part::AttnNormBias, hidden, 1),
            (true, Part::Qkv, qkv, hidden),
            (self.qkv_bias, Part::QkvBias, qkv, 1),
            (self.qk_norm, Part::QNorm, head, 1),
            (self.qk_norm, Part::KNorm, head, 1),
            (true, Part::O, hidden, self.query_width()),
            (self.o_bias, Part::OBias, hidden, 1),
            (true, Part::MlpNorm, hidden, 1),
            (shifted, Part::MlpNormBias, hidden, 1),
            (true, up_part, up, hidden),
            (self.mlp_bias, up_bias, up, 1),
            (true, Part::Down, hidden, inner),
            (self.mlp_bias, Part::DownBias, hidden, 1),
        ])
    }

    /// The weights outside the blocks, in the order of their use.
    pub fn outer_weights(&self) -> Vec<Weight> {
        let positions = match self.positions {
            Positions::Learned { positions } => positions,
            Positions::Rope { .. } => 0,
        };
        let shifted = self.norm == NormKind::Layer;
        present([
            (true, Part::Embedding, self.vocab, self.hidden),
            (
                positions > 0,
                Part::PositionEmbedding,
                positions,
                self.hidden,
            ),
            (true, Part::FinalNorm, self.hidden, 1),
            (shifted, Part::FinalNormBias, self.hidden, 1),
            (!self.tied, Part::LmHead, self.vocab, self.hidden),
        ])
    }

    /// The tensors that make a weight, one below the other, as HF has them: q, k and v apart, and
    /// gate and up. What a method knows of a tensor (its norm, its rank) it knows of these.
    pub fn tensors(&self, weight: Weight) -> Vec<Weight> {
        let rows = match weight.part {
            Part::Qkv | Part::QkvBias => {
                vec![self.query_width(), self.kv_width(), self.kv_width()]
            }
            Part::GateUp | Part::GateUpBias => vec![self.intermediate; 2],
            _ => vec![weight.rows],
        };
        let tensor = |rows| Weight { rows, ..weight };
        rows.into_iter().map(tensor).collect()
    }

    /// Parameters of one block.
    pub fn block_parameters(&self) -> u64 {
        self.block_weights().iter().map(Weight::elements).sum()
    }

    /// Parameters of the model, a tied LM head counted once.
    pub fn parameters(&self) -> u64 {
        let outer: u64 = self.outer_weights().iter().map(Weight::elements).sum();
        self.layers * self.block_parameters() + outer
    }
}

/// The weights whose flag is true.
fn present<const N: usize>(rows: [(bool, Part, u64, u64); N]) -> Vec<Weight> {
    let present = rows.into_iter().filter(|row| row.0);
    present
        .map(|(_, part, rows, columns)| Weight {
            part,
            rows,
            columns,
        })
        .collect()
}
