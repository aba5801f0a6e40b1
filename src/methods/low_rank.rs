//! What low-rank methods can be told, and their defaults.
//!
//! Sources: GaLore, Zhao et al. 2024 (arXiv 2403.03507); Fira, Chen et al. 2024 (arXiv
//! 2410.01623); APOLLO and APOLLO-Mini, Zhu et al. 2025 (arXiv 2412.05270); FLORA, Hao et al. 2024
//! (arXiv 2402.03293); CompAct, Shamshoum et al. 2025 (arXiv 2410.15352).

use crate::error::{Error, Result};
use crate::model::{Compressed, ModelConfig, Part, Weight};
use std::fmt;

/// Dimensions of a small space.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rank {
    /// So many.
    Of(u64),
    /// One part in so many of what is projected.
    Part(u64),
}

impl Rank {
    /// The dimensions of the space into which so many are projected.
    pub const fn of(self, width: u64) -> u64 {
        match self {
            Rank::Of(rank) => rank,
            Rank::Part(parts) => {
                let nearest = (width + parts / 2) / parts;
                if nearest == 0 {
                    1
                } else {
                    nearest
                }
            }
        }
    }
}

impl fmt::Display for Rank {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Rank::Of(rank) => write!(f, "{rank}"),
            Rank::Part(parts) => write!(f, "1/{parts}"),
        }
    }
}

/// Layers whose inputs CompAct compresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layers {
    /// q, k and v.
    pub qkv: bool,
    /// Gate and up.
    pub gate_up: bool,
    /// Down.
    pub down: bool,
}

impl Layers {
    /// All of them.
    pub const ALL: Self = Self {
        qkv: true,
        gate_up: true,
        down: true,
    };
    /// The names in flags and files.
    pub const NAMES: [&'static str; 3] = ["qkv", "gate_up", "down"];

    /// The layers of these names; nothing where one is unknown.
    pub fn named<'a>(names: impl IntoIterator<Item = &'a str>) -> Option<Self> {
        let mut layers = [false; 3];
        for name in names {
            let at = Self::NAMES.iter().position(|known| *known == name)?;
            layers[at] = true;
        }
        let [qkv, gate_up, down] = layers;
        Some(Self { qkv, gate_up, down })
    }
    /// Their names.
    pub fn names(self) -> Vec<&'static str> {
        let chosen = [self.qkv, self.gate_up, self.down];
        let named = Self::NAMES.into_iter().zip(chosen);
        named.filter(|n| n.1).map(|n| n.0).collect()
    }
    /// Whether the input of a layer is compressed.
    pub const fn has(self, part: Part) -> bool {
        match part {
            Part::Qkv => self.qkv,
            Part::GateUp | Part::Up => self.gate_up,
            Part::Down => self.down,
            _ => false,
        }
    }
}

/// How a low-rank method is run.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LowRank {
    /// Rank of the small space; nothing: the method's own, but at most a quarter of the smallest
    /// side of a matrix.
    pub rank: Option<Rank>,
    /// Steps after which a projection is renewed.
    pub refresh: u32,
    /// What the update is scaled by: α of GaLore, Fira and CompAct, the square of APOLLO's factor;
    /// FLORA has none.
    pub scale: f64,
    /// Whether each weight is updated inside backward, once its gradient is complete.
    pub per_layer: bool,
    /// Whether GaLore's or Fira's projection is found by a singular value decomposition rather than
    /// by subspace iteration.
    pub svd: bool,
    /// Whether Adam's moments are in 8 bits.
    pub eight_bit: bool,
    /// Of CompAct: whose inputs are compressed.
    pub layers: Layers,
    /// Of FLORA: whether micro-batches' gradients are added up in a space of low rank, as it does
    /// wherever there are several ([`super::Method::accumulating`]).
    pub accumulated: bool,
}

/// `--rank`, as only CompAct takes it.
pub(super) const RANK_PART: &str = "--rank with a part of the input";

/// What the command line says of a low-rank method.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Told {
    /// `--rank`.
    pub rank: Option<Rank>,
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
    /// `--compress`.
    pub layers: Option<Layers>,
}

impl Told {
    /// The flags that were given.
    pub fn given(&self) -> impl Iterator<Item = &'static str> {
        let given = [
            (matches!(self.rank, Some(Rank::Part(_))), RANK_PART),
            (self.rank.is_some(), "--rank"),
            (self.refresh.is_some(), "--refresh"),
            (self.scale.is_some(), "--scale"),
            (self.per_layer, "--per-layer"),
            (self.svd, "--svd"),
            (self.eight_bit, "--eight-bit"),
            (self.layers.is_some(), "--compress"),
        ];
        given.into_iter().filter(|flag| flag.0).map(|flag| flag.1)
    }
}

impl LowRank {
    const fn new(rank: u64, refresh: u32, scale: f64) -> Self {
        Self {
            rank: Some(Rank::Of(rank)),
            refresh,
            scale,
            per_layer: false,
            svd: false,
            eight_bit: false,
            layers: Layers::ALL,
            accumulated: false,
        }
    }
    /// GaLore's: rank 128, T 200, α 0.25.
    pub const GALORE: Self = Self {
        rank: None,
        ..Self::new(128, 200, 0.25)
    };
    /// Fira's: as GaLore.
    pub const FIRA: Self = Self::GALORE;
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

    /// CompAct's: a quarter of every input, T 200, α 0.25.
    pub const COMPACT: Self = Self {
        rank: Some(Rank::Part(4)),
        ..Self::new(1, 200, 0.25)
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
            layers: told.layers.unwrap_or(self.layers),
            accumulated: self.accumulated,
        }
    }

    /// With a rank that suits a model; `own` is the method's. What is projected is the smaller side
    /// of a matrix or, where `inputs` are, its columns.
    ///
    /// # Errors
    /// A rank that is larger than what is projected.
    pub fn resolved(self, own: u64, model: &ModelConfig, inputs: bool) -> Result<Self> {
        let weights = model.block_weights().into_iter();
        let tensors = weights.flat_map(|weight| model.tensors(weight));
        let sides = tensors.filter(Weight::is_linear).map(|t| match inputs {
            true => t.columns,
            false => t.rows.min(t.columns),
        });
        let smallest = sides.min().unwrap_or(1);
        let rank = self.rank;
        let rank = rank.unwrap_or(Rank::Of(own.min(smallest / 4).max(1)));
        if matches!(rank, Rank::Of(rank) if rank == 0 || rank > smallest) {
            let side = match inputs {
                true => "the narrowest input of",
                false => "the smallest side of",
            };
            return Err(Error::bad_input(format!(
                "--rank {rank} is not between 1 and {smallest}, {side} {}'s matrices",
                model.name
            )));
        }
        Ok(Self {
            rank: Some(rank),
            ..self
        })
    }

    /// What CompAct saves instead of inputs, once the rank is known.
    pub(super) fn compressed(self, model: &ModelConfig) -> Compressed {
        let rank = |part: Part| {
            let chosen = self.rank.filter(|_| self.layers.has(part))?;
            let weights = model.block_weights();
            let weight = weights.iter().find(|weight| weight.part == part)?;
            Some(chosen.of(weight.columns))
        };
        Compressed {
            qkv: rank(Part::Qkv),
            gate_up: rank(Part::GateUp).or(rank(Part::Up)),
            down: rank(Part::Down),
        }
    }
}
