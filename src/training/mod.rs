//! What a training run reads and writes besides its schedule: weights, tokens, learning rates, and
//! all that it takes to go on later.
//!
//! ```text
//! HF directory, seed ─► weights of each Place ─►          ─► HF directory
//! token file, seed   ─► Batch of each step    ─► executor
//! flags              ─► learning rate         ─►          ─► state to resume from ─►
//! ```
//! Nothing here knows of schedules, devices or buffers: a weight is named by its [`Place`] in the
//! model and passes as f32 values, row by row, in the shape that [`crate::model::Weight`] states.

pub mod checkpoint;
pub mod directory;
pub mod elements;
pub mod initial;
pub mod learning_rate;
pub mod names;
pub mod random;
pub mod resume;
pub mod text;
pub mod tokens;

use crate::model::{ModelConfig, Weight};

/// One weight tensor of a model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// Its block; none outside the blocks.
    pub block: Option<u32>,
    /// What it is for, and its shape.
    pub weight: Weight,
}

/// All weight tensors of a model: the blocks' in order, then those outside them.
pub fn places(model: &ModelConfig) -> impl Iterator<Item = Place> {
    let layers = u32::try_from(model.layers).expect("bounded by the config reader");
    let (block, outer) = (model.block_weights(), model.outer_weights());
    let blocks = (0..layers).flat_map(move |at| {
        block.clone().into_iter().map(move |weight| Place {
            block: Some(at),
            weight,
        })
    });
    blocks.chain(outer.into_iter().map(|weight| Place {
        block: None,
        weight,
    }))
}
