//! Values as bytes, on all processors: what a checkpoint or a device holds.

use rayon::prelude::*;
use safetensors::tensor::Dtype as Stored;

use crate::error::{Error, Result};
use crate::profile::Dtype;

/// Values that one thread takes at a time.
const PIECE: usize = 1 << 16;

/// What makes weights and states that are to be saved stay numbers.
pub const DIVERGED: &str = "a lower --lr, or --clip; nothing was saved";

/// What a checkpoint calls a type.
pub const fn stored(dtype: Dtype) -> Stored {
    match dtype {
        Dtype::Bf16 => Stored::BF16,
        _ => Stored::F32,
    }
}

/// The values of bytes in bf16, f16 or f32; bytes behind the last whole one are left out.
pub fn decode(dtype: Stored, bytes: &[u8]) -> Vec<f32> {
    match dtype {
        Stored::BF16 => decoded(bytes, |b| half::bf16::from_le_bytes(b).to_f32()),
        Stored::F16 => decoded(bytes, |b| half::f16::from_le_bytes(b).to_f32()),
        _ => decoded(bytes, f32::from_le_bytes),
    }
}

fn decoded<const N: usize>(bytes: &[u8], value: impl Fn([u8; N]) -> f32 + Sync) -> Vec<f32> {
    let pieces = bytes.par_chunks_exact(N).with_min_len(PIECE);
    pieces
        .map(|bytes| value(bytes.try_into().expect("N bytes")))
        .collect()
}

/// Refuses values of which one is no number, or infinite.
///
/// # Errors
/// The first of them.
pub fn check_finite(name: &str, values: &[f32]) -> Result<()> {
    let bad = values.par_iter().with_min_len(PIECE);
    match bad.position_first(|value| !value.is_finite()) {
        None => Ok(()),
        Some(at) => Err(Error::bad_input(format!(
            "{name}: element {at} is {}",
            values[at]
        ))),
    }
}

/// The bytes of values in a type; bf16 is rounded to the nearest, ties to even.
pub fn encode(dtype: Dtype, values: &[f32]) -> Vec<u8> {
    match dtype {
        Dtype::Bf16 => encoded(values, |v| half::bf16::from_f32(v).to_le_bytes()),
        _ => encoded(values, f32::to_le_bytes),
    }
}

fn encoded<const N: usize>(values: &[f32], bytes: impl Fn(f32) -> [u8; N] + Sync) -> Vec<u8> {
    let pieces = values.par_iter().with_min_len(PIECE);
    let encoded: Vec<[u8; N]> = pieces.map(|&value| bytes(value)).collect();
    encoded.into_flattened()
}
