//! Attention and its backward, from one token to many tiles.

use ebbtide::device::cuda::launch::MOST_SHARED_BYTES;
use ebbtide::device::{AttentionShape, HeadShape, Operator};
use ebbtide::profile::Dtype;

use crate::case::{Case, Setting, SETTINGS};

fn check(setting: Setting, shape: AttentionShape, seed: u64) {
    check_within(MOST_SHARED_BYTES, setting, shape, seed);
}

/// On a card whose blocks can have so much shared memory.
fn check_within(shared_bytes: u64, setting: Setting, shape: AttentionShape, seed: u64) {
    let heads = shape.heads;
    let rows = shape.sequences * shape.sequence;
    let mut case = Case::new(setting, seed);
    case.shared_bytes = shared_bytes;
    let values: Vec<f32> = (0..rows * heads.qkv_width())
        .map(|_| 2.0 * case.number())
        .collect();
    let qkv = case.elements(&values);
    let width = rows * heads.query_width();
    let (o, lse) = (
        case.poisoned(width),
        case.poisoned_floats(rows * heads.heads),
    );
    let (d_o, d_qkv) = (case.random(width), case.poisoned(rows * heads.qkv_width()));
    case.operators.push(Operator::Attention {
        shape,
        qkv,
        o,
        lse,
        workspace: None,
    });
    case.operators.push(Operator::AttentionBackward {
        shape,
        qkv,
        o,
        lse,
        d_o,
        d_qkv,
        workspace: None,
    });
    // Probabilities and the output that D is of are rounded to bf16 on the way.
    case.tolerance = match setting.dtype {
        Dtype::F32 => 1e-5,
        _ => 1e-2,
    };
    case.check(&format!("attention of {shape:?}"));
}

fn shape(
    (heads, kv_heads, head_dim): (u64, u64, u64),
    (sequences, sequence): (u64, u64),
    window: Option<u64>,
) -> AttentionShape {
    AttentionShape {
        heads: HeadShape {
            heads,
            kv_heads,
            head_dim,
        },
        sequences,
        sequence,
        window,
    }
}

#[test]
fn attention_of_any_length() {
    for (setting, length) in
        SETTINGS
            .into_iter()
            .zip([[1, 63, 65], [2, 64, 130], [31, 33, 129], [5, 97, 128]])
    {
        for sequence in length {
            check(setting, shape((2, 1, 8), (2, sequence), None), sequence);
        }
    }
}

#[test]
fn attention_through_a_window() {
    for (setting, windows) in SETTINGS
        .into_iter()
        .zip([[1, 66], [3, 65], [34, 64], [2, 500]])
    {
        for window in windows {
            check(setting, shape((2, 2, 16), (1, 150), Some(window)), window);
        }
    }
}

#[test]
fn attention_of_heads_of_any_size() {
    for setting in SETTINGS {
        for head_dim in [1, 3, 64, 72, 128, 130, 256] {
            check(setting, shape((2, 1, head_dim), (1, 37), None), head_dim);
        }
        check(setting, shape((6, 2, 20), (2, 35), Some(9)), 7);
    }
}

/// Smaller tiles, for cards with less shared memory.
#[test]
fn attention_in_tight_tiles() {
    for (setting, head_dim) in SETTINGS.into_iter().zip([72, 128, 130, 256]) {
        for (sequence, window) in [(33, None), (70, Some(20))] {
            let shape = shape((2, 1, head_dim), (1, sequence), window);
            check_within(99 << 10, setting, shape, sequence);
        }
    }
}
