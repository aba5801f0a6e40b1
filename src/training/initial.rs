//! Initial weights from a seed, as HF initialises: matrices and embeddings normal with deviation
//! 0.02 (`initializer_range` where the config states one), biases 0, norms the identity.
//!
//! Every weight has a random stream of its own, so that its values depend on nothing but the seed
//! and its place.

use rayon::prelude::*;

use super::random::Random;
use super::Place;
use crate::error::{Error, Result};
use crate::model::{ModelConfig, NormKind, Part};

/// HF's `initializer_range` where a config does not say.
const DEVIATION: f64 = 0.02;
/// Elements that one thread draws at a time.
const PIECE: usize = 1 << 16;

/// The values of a weight, row by row.
///
/// # Errors
/// An `initializer_range` that is not a number from 0 on.
pub fn values(model: &ModelConfig, place: Place, seed: u64) -> Result<Vec<f32>> {
    let elements = usize::try_from(place.weight.elements())
        .map_err(|_| Error::bad_input("a weight is larger than this machine's memory"))?;
    let constant = match place.weight.part {
        Part::AttnNorm | Part::MlpNorm | Part::FinalNorm | Part::QNorm | Part::KNorm => {
            match model.norm {
                NormKind::RmsPlusOne => Some(0.0),
                NormKind::Rms | NormKind::Layer => Some(1.0),
            }
        }
        Part::AttnNormBias | Part::MlpNormBias | Part::FinalNormBias => Some(0.0),
        Part::QkvBias | Part::OBias | Part::GateUpBias | Part::UpBias | Part::DownBias => Some(0.0),
        Part::Qkv | Part::O | Part::GateUp | Part::Up | Part::Down => None,
        Part::Embedding | Part::PositionEmbedding | Part::LmHead => None,
    };
    if let Some(constant) = constant {
        return Ok(vec![constant; elements]);
    }
    let deviation = deviation(model)?;
    let block = place.block.map_or(0, |block| u64::from(block) + 1);
    let stream = Random::stream(seed, block << 8 | place.weight.part as u64);
    let mut values = vec![0.0; elements];
    let pieces = values.par_chunks_mut(PIECE).enumerate();
    pieces.for_each(|(at, piece)| {
        let mut random = stream.behind_normals((at * PIECE) as u64);
        piece.fill_with(|| (random.normal() * deviation) as f32);
    });
    Ok(values)
}

fn deviation(model: &ModelConfig) -> Result<f64> {
    match model.source.get("initializer_range") {
        None | Some(serde_json::Value::Null) => Ok(DEVIATION),
        Some(stated) => stated.as_f64().filter(|d| *d >= 0.0).ok_or_else(|| {
            Error::bad_input(format!("initializer_range is {stated}, not a number ≥ 0"))
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn threads_draw_the_numbers_of_one_stream() {
        let text = include_str!("../../profiles/models/tiny-llama-10m.json");
        let model = ModelConfig::read("tiny-llama-10m", text).unwrap();
        let mut weights = model.outer_weights().into_iter();
        let weight = weights.find(|w| w.part == Part::Embedding).unwrap();
        assert!(weight.elements() > 2 * PIECE as u64);
        let drawn = values(
            &model,
            Place {
                block: None,
                weight,
            },
            7,
        );
        let mut random = Random::stream(7, Part::Embedding as u64);
        for value in drawn.unwrap() {
            assert_eq!(value, (random.normal() * DEVIATION) as f32);
        }
    }
}
