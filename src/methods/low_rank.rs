//! What low-rank methods can be told, and their defaults.
//!
//! Sources: GaLore, Zhao et al. 2024 (arXiv 2403.03507); APOLLO and APOLLO-Mini, Zhu et al. 2025
//! (arXiv 2412.05270); FLORA, Hao et al. 2024 (arXiv 2402.03293).

use crate::error::{Error, Result};
use crate::model::{ModelConfig, Weight};

/// How a low-rank method is run.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LowRank {
    /// Rank of the small space; nothing: the method's own, but at most a quarter of the smallest
    /// side of a matrix.
    pub rank: Option<u64>,
    /// Steps after which a projection is renewed.
    pub refresh: u32,
    /// What the update is scaled by: α of GaLore, the square of APOLLO's factor; FLORA has none.
    pub scale: f64,
    /// Whether each weight is updated inside backward, once its gradient is complete.
    pub per_layer: bool,
    /// Whether GaLore's projection is found by a singular value decomposition rather than by
    /// subspace iteration.
    pub svd: bool,
    /// Whether Adam's moments are in 8 bits.
    pub eight_bit: bool,
}

/// What the command line says of a low-rank method.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Told {
    /// `--rank`.
    pub rank: Option<u64>,
    /// `--refresh`.
    pub refresh: Option<u32>,
    /// `--scale`.
    pub scale: Option<f64>,
    /// `--per-layer`.
    pub per_layer: bool,
    /// `--svd`.
    pub svd: bool,
    /// `--eight-bit`.
    pub eight_bit: bool,
}

impl Told {
    /// The first flag that was given.
    pub fn first(&self) -> Option<&'static str> {
        let given = [
            (self.rank.is_some(), "--rank"),
            (self.refresh.is_some(), "--refresh"),
            (self.scale.is_some(), "--scale"),
            (self.per_layer, "--per-layer"),
            (self.svd, "--svd"),
            (self.eight_bit, "--eight-bit"),
        ];
        given.into_iter().find(|flag| flag.0).map(|flag| flag.1)
    }
}

impl LowRank {
    const fn new(rank: u64, refresh: u32, scale: f64) -> Self {
        Self {
            rank: Some(rank),
            refresh,
            scale,
            per_layer: false,
            svd: false,
            eight_bit: false,
        }
    }
    /// GaLore's: rank 128, T 200, α 0.25.
    pub const GALORE: Self = Self {
        rank: None,
        ..Self::new(128, 200, 0.25)
    };
    /// APOLLO's: rank 256, T 200, scale 1.
    pub const APOLLO: Self = Self {
        rank: None,
        ..Self::new(256, 200, 1.0)
    };
    /// APOLLO-Mini's: rank 1, T 200, scale 128.
    pub const APOLLO_MINI: Self = Self::new(1, 200, 128.0);
    /// FLORA's: κ 1000. It has no rank of its own; this is GaLore's.
    pub const FLORA: Self = Self {
        rank: None,
        ..Self::new(128, 1000, 1.0)
    };

    /// With what was told.
    pub fn with(self, told: Told) -> Self {
        Self {
            rank: told.rank.or(self.rank),
            refresh: told.refresh.unwrap_or(self.refresh),
            scale: told.scale.unwrap_or(self.scale),
            per_layer: told.per_layer,
            svd: told.svd,
            eight_bit: told.eight_bit,
        }
    }

    /// With a rank that suits a model; `own` is the method's.
    ///
    /// # Errors
    /// A rank that is larger than a matrix.
    pub fn resolved(self, own: u64, model: &ModelConfig) -> Result<Self> {
        let weights = model.block_weights().into_iter();
        let tensors = weights.flat_map(|weight| model.tensors(weight));
        let sides = tensors
            .filter(Weight::is_linear)
            .map(|t| t.rows.min(t.columns));
        let smallest = sides.min().unwrap_or(1);
        let rank = self.rank.unwrap_or(own.min(smallest / 4).max(1));
        if rank == 0 || rank > smallest {
            return Err(Error::bad_input(format!(
                "--rank {rank} is not between 1 and {smallest}, the smallest side of {}'s matrices",
                model.name
            )));
        }
        Ok(Self {
            rank: Some(rank),
            ..self
        })
    }
}
