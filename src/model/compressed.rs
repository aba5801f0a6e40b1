//! Which linear layers' inputs are saved in a space of low rank, as CompAct does (Shamshoum et al.
//! 2025, arXiv 2410.15352): the weights' gradients are of that rank then, everything else is exact.

use super::weights::{Part, Weight};

/// For the layers that read each input the rank of what is saved of it; none: the input itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Compressed {
    /// Of q, k and v, which share one projection.
    pub qkv: Option<u64>,
    /// Of gate and up, which share one; of the up projection of a plain MLP.
    pub gate_up: Option<u64>,
    /// Of the down projection.
    pub down: Option<u64>,
}

impl Compressed {
    /// The rank of what is saved for a matrix.
    pub const fn rank(self, part: Part) -> Option<u64> {
        match part {
            Part::Qkv => self.qkv,
            Part::GateUp | Part::Up => self.gate_up,
            Part::Down => self.down,
            _ => None,
        }
    }

    /// The shape of a weight's gradient.
    pub fn gradient(self, weight: Weight) -> Weight {
        Weight {
            columns: self.rank(weight.part).unwrap_or(weight.columns),
            ..weight
        }
    }
}
