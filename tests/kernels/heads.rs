//! What follows the projection to q, k and v, and its backward.

use ebbtide::device::{
    HeadNorms, HeadNormsBackward, HeadShape, NormShape, Operator, Panel, Region, Rows,
};
use ebbtide::model::NormKind;

use crate::case::{Case, Setting, SETTINGS};

/// Heads by lanes of all counts: from pieces of a few elements to more than a warp has.
const SHAPES: [(u64, u64, u64); 6] = [
    (2, 1, 2),
    (4, 2, 6),
    (3, 3, 16),
    (4, 1, 64),
    (2, 2, 128),
    (1, 1, 200),
];

fn heads_of((heads, kv_heads, head_dim): (u64, u64, u64)) -> HeadShape {
    HeadShape {
        heads,
        kv_heads,
        head_dim,
    }
}

const ROWS: Rows = Rows {
    first: 3,
    count: 9,
    sequence: 5,
};

fn norms_of(case: &mut Case, heads: HeadShape, kind: NormKind, deviations: Region) -> HeadNorms {
    let scale = |case: &mut Case| {
        let values: Vec<f32> = (0..heads.head_dim)
            .map(|_| 0.75 + 0.25 * case.number())
            .collect();
        case.elements(&values)
    };
    HeadNorms {
        norm: NormShape {
            kind,
            width: heads.head_dim,
            epsilon: 1e-5,
        },
        q_scale: scale(case),
        k_scale: scale(case),
        inverse_deviations: deviations,
    }
}

fn projection(
    setting: Setting,
    shape: (u64, u64, u64),
    bias: &[u64],
    norm: Option<NormKind>,
    rotate: bool,
) {
    let heads = heads_of(shape);
    let (count, width) = (ROWS.count, heads.qkv_width());
    let mut case = Case::new(setting, width);
    case.load(ROWS.first + count, 7);
    case.rotary(heads.head_dim / 2, ROWS.sequence);
    // By the identity, so that the product is its input.
    let x = case.random(count * width);
    let mut identity = vec![0.0; (width * width) as usize];
    for i in 0..width {
        identity[(i * width + i) as usize] = 1.0;
    }
    let weight = Panel {
        region: case.elements(&identity),
        rows: width,
        columns: width,
        stride: width,
    };
    let qkv = case.poisoned(count * width);
    case.product(qkv, x);
    let bias = bias
        .iter()
        .map(|&heads| case.random(heads * shape.2))
        .collect();
    let deviations = case.poisoned_floats(count * (shape.0 + shape.1));
    let norms = norm.map(|kind| norms_of(&mut case, heads, kind, deviations));
    case.operators.push(Operator::QkvProjection {
        rows: ROWS,
        heads,
        x,
        weight: vec![weight],
        bias,
        norms,
        rotate,
        qkv,
        workspace: None,
    });
    case.check(&format!("{shape:?} heads, {norm:?}, rotated: {rotate}"));
}

#[test]
fn heads_get_their_bias_norm_and_rotation() {
    for setting in SETTINGS {
        for shape in SHAPES {
            let (heads, kv_heads, _) = shape;
            let pieces = [heads, kv_heads, kv_heads];
            projection(setting, shape, &[], None, true);
            projection(setting, shape, &pieces, None, true);
            projection(setting, shape, &[heads + 2 * kv_heads], None, false);
            projection(setting, shape, &[], Some(NormKind::Rms), true);
            projection(setting, shape, &pieces, Some(NormKind::RmsPlusOne), true);
            projection(setting, shape, &pieces[..0], Some(NormKind::Rms), false);
        }
        // Odd heads, as models without rotation have them.
        projection(setting, (2, 1, 3), &[2, 1, 1], None, false);
        projection(setting, (2, 1, 3), &[], None, false);
    }
}

fn backward(
    setting: Setting,
    shape: (u64, u64, u64),
    rows: Rows,
    norm: Option<NormKind>,
    rotate: bool,
) {
    let heads = heads_of(shape);
    let (count, width) = (rows.count, heads.qkv_width());
    let mut case = Case::new(setting, width);
    case.load(rows.first + count, 7);
    case.rotary(heads.head_dim / 2, rows.sequence);
    let qkv = case.random(count * width);
    let deviations = case.floats(count * (shape.0 + shape.1), |x| 1.5 + x);
    let d_qkv = case.random(count * width);
    let accumulate = shape.0 % 2 == 0;
    let norms = norm.map(|kind| {
        let norms = norms_of(&mut case, heads, kind, deviations);
        let mut out = || match accumulate {
            true => case.random(heads.kv_width()),
            false => case.poisoned(heads.kv_width()),
        };
        HeadNormsBackward {
            norms,
            qkv,
            d_q_scale: out(),
            d_k_scale: out(),
            accumulate,
        }
    });
    case.operators.push(Operator::RotaryBackward {
        rows,
        heads,
        rotate,
        norms,
        d_qkv,
    });
    case.tolerance = 4e-6;
    case.check(&format!("backward of {shape:?} heads, {norm:?}"));
}

#[test]
fn gradients_of_heads_are_turned_back() {
    for setting in SETTINGS {
        for shape in SHAPES {
            backward(setting, shape, ROWS, None, true);
            backward(setting, shape, ROWS, Some(NormKind::Rms), true);
            backward(setting, shape, ROWS, Some(NormKind::RmsPlusOne), false);
        }
        // More rows than there are parts.
        let many = Rows {
            first: 1,
            count: 700,
            sequence: 300,
        };
        backward(setting, (2, 1, 16), many, Some(NormKind::Rms), true);
        // More heads for a key head than a block has at once.
        let few = Rows { count: 2, ..ROWS };
        backward(setting, (70, 1, 64), few, Some(NormKind::Rms), true);
    }
}
