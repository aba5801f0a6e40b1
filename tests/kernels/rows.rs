//! Operators that treat every row alone.

use ebbtide::device::{NormShape, Operator, Region, Rows};
use ebbtide::model::{Activation, NormKind};
use ebbtide::profile::Dtype;

use crate::case::{Case, SETTINGS};

const KINDS: [NormKind; 3] = [NormKind::Rms, NormKind::RmsPlusOne, NormKind::Layer];
const ACTIVATIONS: [Activation; 3] = [Activation::Silu, Activation::Gelu, Activation::GeluTanh];

#[test]
fn memory_is_cleared_to_its_last_byte() {
    for setting in SETTINGS {
        for count in [1, 7, 8, 33, 8192, 20_001] {
            let mut case = Case::new(setting, count);
            let region = case.random(count);
            case.random(3);
            case.operators.push(Operator::Zero { region });
            case.check(&format!("zero of {count}"));
        }
    }
}

/// Rows of a call in the middle of a batch of sequences of 5.
fn rows(first: u64, count: u64) -> Rows {
    Rows {
        first,
        count,
        sequence: 5,
    }
}

#[test]
fn tokens_become_vectors() {
    for (setting, width) in SETTINGS
        .into_iter()
        .flat_map(|s| [1, 8, 40, 2056].map(|w| (s, w)))
    {
        for (positions, scale) in [(false, None), (true, None), (false, Some(5.6568542))] {
            let mut case = Case::new(setting, width);
            case.load(23, 11);
            let weight = case.random(11 * width);
            let positions = positions.then(|| case.random(5 * width));
            let x = case.poisoned(19 * width);
            case.operators.push(Operator::Embedding {
                rows: rows(3, 19),
                micro_batch: 0,
                weight,
                vocab: 11,
                positions,
                width,
                scale,
                x,
            });
            case.check(&format!("embedding of {width}"));
        }
    }
}

#[test]
fn gradients_of_a_token_are_added_in_order() {
    for (setting, width) in SETTINGS
        .into_iter()
        .flat_map(|s| [1, 40, 1032].map(|w| (s, w)))
    {
        // Many tokens, few, and one that fills more rows than a block has threads.
        for (vocab, count) in [(50, 19), (3, 19), (1, 300)] {
            let mut case = Case::new(setting, width + vocab);
            if width > 40 && count > 100 {
                continue;
            }
            case.load(count + 9, vocab);
            let d_x = case.random(count * width);
            let d_weight = case.random(vocab * width);
            let d_positions = case.random(5 * width);
            case.operators.push(Operator::EmbeddingBackward {
                rows: rows(4, count),
                micro_batch: 0,
                d_x,
                width,
                scale: (vocab == 3).then_some(2.3),
                d_weight,
                vocab,
                d_positions: (vocab != 50).then_some(d_positions),
            });
            // The CPU device rounds after every row, the kernels once.
            if setting.dtype == Dtype::Bf16 {
                case.tolerance = if count > 100 { 0.05 } else { 0.015 };
            }
            case.check(&format!("gradient of {vocab} tokens by {width}"));
        }
    }
}

fn norm(kind: NormKind, width: u64) -> NormShape {
    NormShape {
        kind,
        width,
        epsilon: 1e-5,
    }
}

#[test]
fn norms_of_rows() {
    for (setting, kind) in SETTINGS.into_iter().flat_map(|s| KINDS.map(|k| (s, k))) {
        for (count, width) in [(3, 1), (1, 5), (4, 64), (2, 257), (3, 1000), (2, 4104)] {
            let mut case = Case::new(setting, width);
            let [x, scale] = [case.random(count * width), case.random(width)];
            let shift = (kind == NormKind::Layer).then(|| case.random(width));
            let y = case.poisoned(count * width);
            case.operators.push(Operator::Norm {
                norm: norm(kind, width),
                rows: count,
                x,
                scale,
                shift,
                y,
            });
            case.check(&format!("{kind:?} norm of {count} rows of {width}"));
        }
    }
}

#[test]
fn gradients_of_norms() {
    for (setting, kind) in SETTINGS.into_iter().flat_map(|s| KINDS.map(|k| (s, k))) {
        for (count, width) in [(1, 5), (7, 64), (3, 257), (2, 2056), (600, 8)] {
            let add = count % 2 == 1;
            let mut case = Case::new(setting, width);
            let [x, scale] = [case.random(count * width), case.random(width)];
            let d_y = case.random(count * width);
            let mut out = |elements: u64| match add {
                true => case.random(elements),
                false => case.poisoned(elements),
            };
            let [d_x, d_scale, shift] = [out(count * width), out(width), out(width)];
            case.operators.push(Operator::NormBackward {
                norm: norm(kind, width),
                rows: count,
                x,
                scale,
                d_y,
                d_x,
                accumulate_x: add,
                d_scale,
                d_shift: (kind == NormKind::Layer).then_some(shift),
                accumulate_weight: add,
            });
            case.tolerance = 4e-6;
            case.check(&format!(
                "gradient of {kind:?} norm, {count} rows of {width}"
            ));
        }
    }
}

#[test]
fn biases_have_the_sums_of_columns() {
    for setting in SETTINGS {
        for (count, columns) in [(1, 1), (33, 7), (300, 40), (65, 1032)] {
            let mut case = Case::new(setting, columns);
            let (x, d_y) = (case.random(count), case.random(count * columns));
            let d_weight = case.poisoned(columns);
            let d_bias = case.random(columns);
            case.operators.push(Operator::LinearWeightGradient {
                rows: count,
                x,
                inputs: 1,
                d_y,
                outputs: columns,
                d_weight,
                d_bias: Some(d_bias),
                accumulate: columns == 40,
            });
            case.by_product(d_weight);
            case.check(&format!("sums of {count} rows of {columns}"));
        }
    }
}

fn linear(case: &mut Case, elements: u64) -> Region {
    let values: Vec<f32> = (0..elements).map(|_| 6.0 * case.number()).collect();
    case.elements(&values)
}

#[test]
fn non_linearities_and_their_gradients() {
    for (setting, kind) in SETTINGS
        .into_iter()
        .flat_map(|s| ACTIVATIONS.map(|k| (s, k)))
    {
        for (gated, count, width) in [
            (true, 3, 5),
            (false, 2, 8),
            (true, 2, 264),
            (false, 3, 2056),
            (true, 1, 2100),
        ] {
            let mut case = Case::new(setting, width);
            let inputs = width * if gated { 2 } else { 1 };
            let x = linear(&mut case, count * inputs);
            let d_h = case.random(count * width);
            let [h, d_x] = [case.poisoned(count * width), case.poisoned(count * inputs)];
            case.operators.push(Operator::Activation {
                kind,
                gated,
                rows: count,
                width,
                x,
                h,
            });
            case.operators.push(Operator::ActivationBackward {
                kind,
                gated,
                rows: count,
                width,
                x,
                d_h,
                d_x,
            });
            case.check(&format!("{kind:?} of {count} rows of {width}"));
            // The backward makes h on the way where it is asked to.
            case.change = Some(|launches| {
                let h = launches.remove(0).arguments[1];
                launches[0].arguments[3] = h;
            });
            case.check(&format!("{kind:?} and h of {count} rows of {width}"));
        }
    }
}

#[test]
fn cross_entropy_in_place() {
    for setting in SETTINGS {
        for (count, vocab) in [(1, 3), (9, 40), (5, 1000), (3, 9001), (2, 8200)] {
            let mut case = Case::new(setting, vocab);
            case.load(count + 2, vocab);
            case.batch.1[1] = (vocab - 1) as i32;
            let logits = linear(&mut case, count * vocab);
            case.operators.push(Operator::CrossEntropy {
                rows: rows(1, count),
                micro_batch: 0,
                vocab,
                logits,
                slot: 1,
            });
            case.check(&format!("cross entropy of {count} rows of {vocab}"));
            // As of a vocabulary that shared memory does not hold.
            case.shared_bytes = 5 << 10;
            case.check(&format!(
                "cross entropy of {count} rows of {vocab}, a part kept"
            ));
        }
    }
}

#[test]
fn large_logits_do_not_overflow_and_nans_show() {
    for setting in SETTINGS {
        for wrong in [3000.0, f32::NAN] {
            let mut case = Case::new(setting, 1);
            case.load(1, 3);
            case.batch.1 = vec![2];
            let logits = case.elements(&[wrong, -3000.0, 2944.0]);
            case.operators.push(Operator::CrossEntropy {
                rows: rows(0, 1),
                micro_batch: 0,
                vocab: 3,
                logits,
                slot: 0,
            });
            case.check("large logits");
        }
    }
}
