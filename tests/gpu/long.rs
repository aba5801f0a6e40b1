//! Attention whose tensors have more than 2³¹ elements: what is counted in too few bits is wrong in
//! their last rows. By cuDNN and by our kernels, which share nothing but the operands.

use ebbtide::device::Device;
use ebbtide::profile::FusedShape;

use super::attention::{assert_near, shape, Place, D_O, QKV};
use super::support::tiny::random::Random;
use super::{card, has_cudnn, is_there};

/// Rows of 12,288 elements for q, k and v, the last 5,461 of them beyond 2³¹.
const TOKENS: u64 = 176 << 10;
const HEADS: u64 = 32;
const HEAD_DIM: u64 = 128;
/// Rows that are compared, at both ends.
const COMPARED: u64 = 128;

#[test]
fn attention_reaches_the_ends_of_long_tensors() {
    if !is_there() || !has_cudnn() {
        return;
    }
    let (ours, notes) = ends(card(true));
    assert!(notes.iter().all(|n| n.contains("by ebbtide")), "{notes:?}");
    let (found, notes) = ends(card(false));
    assert!(notes.iter().all(|n| n.contains("by cuDNN")), "{notes:?}");
    for (end, found, ours) in [
        ("first", &found[0], &ours[0]),
        ("last", &found[1], &ours[1]),
    ] {
        assert_near(end, found, ours);
    }
}

/// The first rows of o, lse and dqkv, their last ones, and what attention was computed by.
fn ends(mut device: Box<dyn Device>) -> ([Vec<Vec<f32>>; 2], Vec<String>) {
    let device = device.as_mut();
    let mut place = Place::new(shape(HEADS, HEADS, HEAD_DIM, 1, TOKENS));
    let sizes = FusedShape {
        rows: TOKENS,
        heads: HEADS,
        kv_heads: HEADS,
        head_dim: HEAD_DIM,
    };
    let workspace = place.take(sizes.part(8).backward_bytes() as u64);
    place.reserve(device);
    // Again and again the same numbers, but never at the same place of a row.
    let mut random = Random::new(7);
    let numbers = (0..(1 << 23) + 7).map(|_| random.below(4001) as f32 / 1000.0 - 2.0);
    let drawn: Vec<u8> = numbers
        .flat_map(|number| half::bf16::from_f32(number).to_le_bytes())
        .collect();
    for region in [QKV, D_O].map(|operand| place.regions[operand]) {
        for at in (0..region.bytes).step_by(drawn.len()) {
            let part = region.part(at, (region.bytes - at).min(drawn.len() as u64));
            device.write(part, &drawn[..part.bytes as usize]).unwrap();
        }
    }
    place.attend(device, Some(workspace));
    let ends = [0, TOKENS - COMPARED].map(|first| place.results(device, first..first + COMPARED));
    (ends, device.notes())
}
