//! Attention whose tensors have more than 2³¹ elements: what is counted in too few bits is wrong in
//! their last rows. By cuDNN and by our kernels, which share nothing but the operands.

use ebbtide::device::{
    AttentionShape, Device, HeadShape, Operator, Region, Reservation, Space, StepParameters, Stream,
};
use ebbtide::profile::{Dtype, FusedShape};

use super::attention::assert_near;
use super::support::tiny::random::Random;
use super::{card, has_cudnn, is_there};

/// Rows of 12,288 elements for q, k and v, the last 5,461 of them beyond 2³¹.
const TOKENS: u64 = 176 << 10;
const HEADS: HeadShape = HeadShape {
    heads: 32,
    kv_heads: 32,
    head_dim: 128,
};
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
        ("first", &found[..3], &ours[..3]),
        ("last", &found[3..], &ours[3..]),
    ] {
        assert_near(end, found, ours);
    }
}

/// The first rows of o, lse and dqkv, their last ones, and what attention was computed by.
fn ends(mut device: Box<dyn Device>) -> (Vec<Vec<f32>>, Vec<String>) {
    let mut used = 0;
    let mut take = |bytes: u64| {
        let offset_bytes = used;
        used += bytes.next_multiple_of(512);
        Region {
            space: Space::Device,
            offset_bytes,
            bytes,
        }
    };
    let [of_qkv, of_o] = [HEADS.qkv_width(), HEADS.query_width()].map(|width| 2 * width);
    let [qkv, d_qkv] = [(); 2].map(|()| take(TOKENS * of_qkv));
    let [o, d_o] = [(); 2].map(|()| take(TOKENS * of_o));
    let lse = take(TOKENS * 4 * HEADS.heads);
    let sizes = FusedShape {
        rows: TOKENS,
        heads: HEADS.heads,
        kv_heads: HEADS.kv_heads,
        head_dim: HEADS.head_dim,
    };
    let workspace = take(sizes.part(8).backward_bytes() as u64);
    device
        .reserve(Reservation {
            dtype: Dtype::Bf16,
            arena_bytes: used,
            slab_bytes: 0,
            events: 0,
            rows: TOKENS,
            micro_batches: 1,
            loss_slots: 0,
            norm_slots: 0,
            carry_elements: 0,
            rotary: None,
        })
        .unwrap();
    // Again and again the same numbers, but never at the same place of a row.
    let mut random = Random::new(7);
    let numbers = (0..(1 << 23) + 7).map(|_| random.below(4001) as f32 / 1000.0 - 2.0);
    let drawn: Vec<u8> = numbers
        .flat_map(|number| half::bf16::from_f32(number).to_le_bytes())
        .collect();
    for region in [qkv, d_o] {
        for at in (0..region.bytes).step_by(drawn.len()) {
            let part = region.part(at, (region.bytes - at).min(drawn.len() as u64));
            device.write(part, &drawn[..part.bytes as usize]).unwrap();
        }
    }
    let shape = AttentionShape {
        heads: HEADS,
        sequences: 1,
        sequence: TOKENS,
        window: None,
    };
    device.begin_step(&StepParameters::STILL).unwrap();
    let forward = Operator::Attention {
        shape,
        qkv,
        o,
        lse,
        workspace: None,
    };
    let backward = Operator::AttentionBackward {
        shape,
        qkv,
        o,
        lse,
        d_o,
        d_qkv,
        workspace: Some(workspace),
    };
    device.launch(Stream::Compute, 0, &forward).unwrap();
    device.launch(Stream::Compute, 1, &backward).unwrap();
    device.finish().unwrap();
    let mut ends = Vec::new();
    for first in [0, TOKENS - COMPARED] {
        for (region, row, is_bf16) in [
            (o, of_o, true),
            (lse, 4 * HEADS.heads, false),
            (d_qkv, of_qkv, true),
        ] {
            let mut bytes = vec![0; (COMPARED * row) as usize];
            let part = region.part(first * row, COMPARED * row);
            device.read(part, &mut bytes).unwrap();
            ends.push(match is_bf16 {
                true => bytes
                    .chunks_exact(2)
                    .map(|b| half::bf16::from_le_bytes([b[0], b[1]]).to_f32())
                    .collect(),
                false => bytes
                    .chunks_exact(4)
                    .map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]))
                    .collect(),
            });
        }
    }
    (ends, device.notes())
}
