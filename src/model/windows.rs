//! Which layers attend only to a sliding window of tokens, and how wide it is.
//!
//! A window of `w` lets a token see itself and the `w - 1` before it. Mistral gives every layer
//! the same; Qwen gives it to late layers, or to those that `layer_types` names.

use super::families::{Traits, Windowed};
use super::fields::Fields;
use super::positions::MAX_POSITIONS;
use crate::error::{Error, Result};

/// The most layers.
pub(super) const MAX_LAYERS: u64 = 10_000;
/// HF's window when a family with windows does not state its size.
const DEFAULT_WINDOW: u64 = 4096;
/// HF's first layer with a window when Qwen does not state it.
const DEFAULT_MAX_WINDOW_LAYERS: u64 = 28;

/// Each layer's window.
pub(super) fn read_windows(
    fields: Fields,
    traits: &Traits,
    layers: u64,
) -> Result<Vec<Option<u64>>> {
    let size = read_window_size(fields, traits)?;
    let first = match traits.windowed {
        Windowed::Late => fields
            .whole("max_window_layers", 0..=MAX_LAYERS)?
            .unwrap_or(DEFAULT_MAX_WINDOW_LAYERS),
        Windowed::Always | Windowed::Never => 0,
    };
    let usual = (0..layers)
        .map(|layer| size.filter(|_| layer >= first))
        .collect();
    let Some(types) = fields.texts("layer_types")? else {
        return Ok(usual);
    };
    if types.len() as u64 != layers {
        return Err(Error::bad_input(format!(
            "layer_types names {} layers, but the model has {layers}",
            types.len()
        )));
    }
    let mut windows = Vec::with_capacity(types.len());
    for (layer, kind) in types.into_iter().enumerate() {
        windows.push(match kind {
            "full_attention" => None,
            "sliding_attention" if size.is_some() => size,
            "sliding_attention" => {
                return Err(Error::bad_input(format!(
                    "layer_types[{layer}] is sliding_attention, but no sliding window is stated"
                ))
                .hint("state sliding_window, and use_sliding_window true where the family has it"))
            }
            other => {
                return Err(Error::bad_input(format!(
                    "layer_types[{layer}] is \"{other}\", which is not modelled"
                ))
                .hint("full_attention and sliding_attention are"))
            }
        });
    }
    if traits.windowed != Windowed::Late && windows != usual {
        return Err(Error::bad_input(format!(
            "layer_types gives layers windows of their own, which {} does not read",
            traits.model_type
        )));
    }
    Ok(windows)
}

/// The size of the model's window, where any layer may have one.
fn read_window_size(fields: Fields, traits: &Traits) -> Result<Option<u64>> {
    let key = "sliding_window";
    let stated = fields.whole(key, 1..=MAX_POSITIONS)?;
    let used = match traits.windowed {
        Windowed::Never if stated.is_some() => {
            return Err(fields
                .wrong(key, "null")
                .hint(format!("{} has no sliding window", traits.model_type)))
        }
        Windowed::Never => false,
        Windowed::Always => true,
        Windowed::Late => fields.flag("use_sliding_window")?.unwrap_or(false),
    };
    Ok(match stated {
        _ if !used || fields.is_null(key) => None,
        stated => stated.or(Some(DEFAULT_WINDOW)),
    })
}
