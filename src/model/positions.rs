//! How a model knows the order of its tokens: RoPE with its scalings, or a learned table.
//!
//! RoPE (Su et al. 2021) turns pair `i` of a head by `position · theta^(-2i / head_dim)`; a
//! scaling changes those frequencies. They are kept as data: whoever computes the tables reads
//! them here. HF writes them as `rope_theta` + `rope_scaling`, or since version 5 as one
//! `rope_parameters`.

use super::fields::Fields;
use crate::error::{Error, Result};

/// The largest number of positions.
pub(super) const MAX_POSITIONS: u64 = 1 << 32;

/// HF's `rope_theta` when a config does not say.
const DEFAULT_THETA: f64 = 10_000.0;

/// How positions enter the model.
#[derive(Clone, Debug, PartialEq)]
pub enum Positions {
    /// Rotary embedding of q and k in every block.
    Rope {
        /// Base of the frequencies.
        theta: f64,
        /// What changes the frequencies, if anything.
        scaling: Option<RopeScaling>,
    },
    /// A learned vector per position, added to the embedding.
    Learned {
        /// Rows of the table.
        positions: u64,
    },
}

/// How RoPE's frequencies are changed for contexts longer than the pre-training's.
#[derive(Clone, Debug, PartialEq)]
pub enum RopeScaling {
    /// Every frequency is divided by `factor` (Chen et al. 2023).
    Linear {
        /// At least 1.
        factor: f64,
    },
    /// Llama 3.1: long wavelengths are divided by `factor`, short ones kept, a ramp between.
    Llama3 {
        /// At least 1.
        factor: f64,
        /// Wavelengths above `original_positions / low_freq_factor` are scaled.
        low_freq_factor: f64,
        /// Wavelengths below `original_positions / high_freq_factor` are kept.
        high_freq_factor: f64,
        /// Positions of the pre-training.
        original_positions: u64,
    },
    /// YaRN (Peng et al. 2023): a ramp over dimensions, and cos and sin times `attention_factor`.
    Yarn {
        /// At least 1.
        factor: f64,
        /// Rotations above which a dimension is kept.
        beta_fast: f64,
        /// Rotations below which a dimension is scaled.
        beta_slow: f64,
        /// Positions of the pre-training.
        original_positions: u64,
        /// Factor of cos and sin.
        attention_factor: f64,
        /// Whether the ramp's ends are rounded to whole dimensions.
        truncate: bool,
    },
}

/// RoPE as the config states it; `max_positions` is the context for which it was made.
pub(super) fn read_rope(config: Fields, max_positions: u64) -> Result<Positions> {
    let old = config.object("rope_scaling")?;
    let new = config.object("rope_parameters")?;
    if old.is_some() && new.is_some() {
        return Err(
            Error::bad_input("both rope_scaling and rope_parameters are stated")
                .hint("keep the one that the model was trained with"),
        );
    }
    let outer = config.number("rope_theta", 1.0)?;
    let inner = new.map_or(Ok(None), |fields| fields.number("rope_theta", 1.0))?;
    if let (Some(outer), Some(inner)) = (outer, inner) {
        if outer != inner {
            return Err(Error::bad_input(format!(
                "rope_theta is {outer}, but rope_parameters.rope_theta is {inner}"
            )));
        }
    }
    let scaling = old
        .or(new)
        .map_or(Ok(None), |fields| read_scaling(fields, max_positions))?;
    Ok(Positions::Rope {
        theta: inner.or(outer).unwrap_or(DEFAULT_THETA),
        scaling,
    })
}

fn read_scaling(fields: Fields, max_positions: u64) -> Result<Option<RopeScaling>> {
    let kind_key = fields.either(&["rope_type", "type"]);
    let kind = fields.text(kind_key)?.unwrap_or("default");
    let used: &[&str] = match kind {
        "default" => &[],
        "linear" => &["factor"],
        "llama3" => &[
            "factor",
            "low_freq_factor",
            "high_freq_factor",
            "original_max_position_embeddings",
        ],
        "yarn" => &[
            "factor",
            "beta_fast",
            "beta_slow",
            "original_max_position_embeddings",
            "attention_factor",
            "mscale",
            "mscale_all_dim",
            "truncate",
        ],
        _ => return Err(fields.wrong(kind_key, "one of default, linear, llama3, yarn")),
    };
    for (key, _) in fields.stated() {
        if !["rope_type", "type", "rope_theta"].contains(&key.as_str())
            && !used.contains(&key.as_str())
        {
            return Err(fields.wrong(key, format!("something that RoPE of kind {kind} reads")));
        }
    }
    let original = fields.whole("original_max_position_embeddings", 1..=MAX_POSITIONS)?;
    Ok(Some(match kind {
        "default" => return Ok(None),
        "linear" => RopeScaling::Linear {
            factor: fields.need("factor", fields.number("factor", 1.0)?)?,
        },
        "llama3" => read_llama3(fields, original)?,
        _ => read_yarn(fields, original.unwrap_or(max_positions))?,
    }))
}

fn read_llama3(fields: Fields, original_positions: Option<u64>) -> Result<RopeScaling> {
    let low = fields.need("low_freq_factor", fields.positive("low_freq_factor")?)?;
    let high = fields.need("high_freq_factor", fields.positive("high_freq_factor")?)?;
    if high <= low {
        return Err(fields.wrong(
            "high_freq_factor",
            format!("more than low_freq_factor {low}"),
        ));
    }
    Ok(RopeScaling::Llama3 {
        factor: fields.need("factor", fields.number("factor", 1.0)?)?,
        low_freq_factor: low,
        high_freq_factor: high,
        original_positions: fields.need("original_max_position_embeddings", original_positions)?,
    })
}

fn read_yarn(fields: Fields, original_positions: u64) -> Result<RopeScaling> {
    let factor = fields.need("factor", fields.number("factor", 1.0)?)?;
    let scale = |m: f64| 0.1 * m * factor.ln() + 1.0;
    let stated = fields.positive("attention_factor")?;
    let mscale = fields.number("mscale", 0.0)?.filter(|&m| m != 0.0);
    let mscale_all_dim = fields.number("mscale_all_dim", 0.0)?.filter(|&m| m != 0.0);
    let attention_factor = stated.unwrap_or(match (mscale, mscale_all_dim) {
        (Some(m), Some(all)) => scale(m) / scale(all),
        _ => scale(1.0),
    });
    let beta_slow = fields.positive("beta_slow")?.unwrap_or(1.0);
    let beta_fast = fields.positive("beta_fast")?.unwrap_or(32.0);
    if beta_fast < beta_slow {
        return Err(fields.wrong("beta_fast", format!("at least beta_slow {beta_slow}")));
    }
    let truncate = fields.flag("truncate")?.unwrap_or(true);
    Ok(RopeScaling::Yarn {
        factor,
        beta_fast,
        beta_slow,
        original_positions,
        attention_factor,
        truncate,
    })
}
