//! Updates in a space of low rank, their products among the kernels (`kernels/host/product.cu`).

use ebbtide::device::tensors::{GradientSum, Moments, Projection, TensorRule, TensorShape};
use ebbtide::device::Operator;
use ebbtide::profile::Dtype;

use crate::case::{Case, Setting, SETTINGS};
use crate::tensors::{gradient, tensor, Lies, WAYS};

/// Tall and wide; the last two are taken in several areas, and each in half of the settings.
const SHAPES: [(u64, u64); 5] = [(40, 24), (24, 37), (16, 16), (1100, 24), (23, 801)];

fn projection(rank: u64) -> Projection {
    Projection { rank, refresh: 2 }
}

fn case(setting: Setting, seed: u64) -> Case {
    let mut case = Case::new(setting, seed);
    // So long a step that the update is what is seen. In bf16 what is multiplied back is rounded.
    case.step.learning_rate = 1.0;
    case.tolerance = match setting.dtype {
        Dtype::F32 => 2e-5,
        _ => 4e-3,
    };
    case.scratch = 120 << 10;
    case
}

fn galore(rank: u64, moments: Moments) -> TensorRule {
    TensorRule::Galore {
        projection: projection(rank),
        scale: 0.25,
        svd: false,
        moments,
    }
}

fn fira(rank: u64, scale: f64, moments: Moments) -> TensorRule {
    TensorRule::Fira {
        projection: projection(rank),
        scale,
        svd: false,
        moments,
    }
}

fn flora(accumulated: bool) -> TensorRule {
    TensorRule::Flora {
        projection: projection(5),
        accumulated,
    }
}

fn apollo(rank: u64, channels: bool, moments: Moments) -> TensorRule {
    TensorRule::Apollo {
        projection: projection(rank),
        scale: 1.5,
        channels,
        moments,
    }
}

fn compact(rank: Option<u64>, moments: Moments) -> TensorRule {
    TensorRule::Compact {
        projection: rank.map(projection),
        scale: 0.25,
        moments,
    }
}

/// A rule on all shapes, its gradient in one piece and in two, in a first step, a later one and one
/// that renews the projection.
fn all(what: &str, rule: TensorRule) {
    each(what, rule, &SHAPES);
}

fn each(what: &str, rule: TensorRule, shapes: &[(u64, u64)]) {
    for setting in SETTINGS {
        for (nth, &shape) in (0..).zip(shapes) {
            if shape.0 * shape.1 > 10_000 && !setting.serves_long(nth) {
                continue;
            }
            let step = 1 + nth % 3;
            let mut case = case(setting, nth);
            case.step.step = step;
            if let TensorRule::Flora { .. } = rule {
                // A momentum moves to another space by way of elements, twice rounded.
                case.tolerance *= 4.0;
            }
            let lies = [Lies::Beside, Lies::Below][(nth % 2) as usize];
            for lies in [Lies::Whole, lies] {
                tensor(&mut case, rule, shape, lies);
            }
            case.check(&format!("{what} of {shape:?}, {lies:?}, step {step}"));
        }
    }
}

#[test]
fn compact_is_near() {
    all("CompAct", compact(Some(5), Moments::F32));
    all("CompAct rounded", compact(Some(4), Moments::AsWeights));
    each(
        "CompAct of a full gradient",
        compact(None, Moments::F32),
        &SHAPES[..4],
    );
}

#[test]
fn apollo_is_near() {
    all("APOLLO", apollo(5, true, Moments::F32));
    all("APOLLO-Mini", apollo(1, false, Moments::F32));
}

#[test]
fn flora_is_near() {
    all("FLORA", flora(false));
    all("FLORA by sums of low rank", flora(true));
}

#[test]
fn galore_is_near() {
    all("GaLore", galore(5, Moments::F32));
}

#[test]
fn fira_is_near() {
    all("Fira", fira(5, 0.25, Moments::F32));
    all("Fira of moments in bf16", fira(4, 1.0, Moments::AsWeights));
}

/// A sum of a micro-batch's gradient and of what was there, or of nothing.
fn sum(case: &mut Case, (rows, columns): (u64, u64), rank: Option<u64>, lies: Lies, begun: bool) {
    let shape = TensorShape { rows, columns };
    let (long, short) = shape.sides();
    let elements = rank.map_or(shape.elements(), |rank| long * rank);
    let tensor = GradientSum {
        shape,
        gradient: gradient(case, shape, lies),
        rank,
        sum: match begun {
            true => case.random(elements),
            false => case.poisoned(elements),
        },
        key: 0x0123_4567_89AB_CDEF,
    };
    // A plan has more of it than is needed here, or none.
    let bytes = rank
        .filter(|_| begun)
        .map_or(0, |rank| 4 * (long + short) * rank);
    let workspace = case.workspace(bytes);
    case.operators.push(Operator::CompressGradient {
        tensors: vec![tensor],
        accumulate: begun,
        workspace,
    });
}

/// What the step clips by is for the whole sum.
#[test]
fn sums_of_low_rank_are_near() {
    for setting in SETTINGS {
        for (nth, shape) in (0..).zip(SHAPES) {
            let mut case = case(setting, nth as u64);
            (case.step.step, case.step.clip_value) = (1 + nth as u64, Some(0.4));
            let lies = WAYS[nth % WAYS.len()];
            for (lies, begun) in [(Lies::Whole, false), (Lies::Whole, true), (lies, true)] {
                sum(&mut case, shape, Some(5), lies, begun);
            }
            case.check(&format!("sums of {shape:?}, {lies:?}"));
        }
    }
}

#[test]
fn sums_of_what_is_not_projected_have_the_same_bits() {
    for setting in SETTINGS {
        let shapes = [(1, 1), (37, 1), (40, 103), (1100, 24), (801, 23)];
        for (nth, shape) in (0..).zip(shapes) {
            let mut case = case(setting, nth as u64);
            (case.tolerance, case.scratch) = (0.0, 64 << 10);
            for begun in [false, true] {
                sum(&mut case, shape, None, WAYS[nth % WAYS.len()], begun);
            }
            case.check(&format!("sums of {shape:?}"));
        }
    }
}

/// Bases of more vectors than one block makes orthonormal.
#[test]
fn wide_bases_are_orthonormal() {
    for setting in SETTINGS {
        let mut case = case(setting, 9);
        case.step.step = 1;
        case.tolerance *= 10.0;
        tensor(&mut case, galore(40, Moments::F32), (70, 48), Lies::Whole);
        case.check("GaLore of rank 40");
    }
}

#[test]
fn moments_of_low_rank_in_8_bits() {
    for setting in SETTINGS {
        for rule in [
            compact(Some(8), Moments::EightBit),
            apollo(8, true, Moments::EightBit),
            galore(8, Moments::EightBit),
            fira(8, 0.25, Moments::EightBit),
        ] {
            let mut case = case(setting, 3);
            // A code is up to a hundredth of its block's largest.
            case.tolerance = 0.02;
            tensor(&mut case, rule, (521, 24), Lies::Whole);
            case.check(&format!("{rule:?}"));
        }
    }
}

#[test]
fn gradients_of_low_rank_are_clipped() {
    for setting in SETTINGS {
        for rule in [
            compact(Some(5), Moments::F32),
            apollo(5, true, Moments::F32),
            galore(5, Moments::F32),
            fira(5, 0.5, Moments::F32),
            flora(false),
            flora(true),
        ] {
            let mut case = case(setting, 4);
            case.reservation.norm_slots = 1;
            (case.step.clip, case.step.clip_value) = (Some(1.0), Some(0.4));
            // The moments are not to hide what is clipped.
            (case.step.step, case.step.epsilon) = (3, 0.1);
            tensor(&mut case, rule, (40, 24), Lies::Beside);
            let Operator::TensorUpdate { tensors, .. } = &case.operators[0] else {
                unreachable!("it was put there");
            };
            let gradients = tensors[0].gradient.iter().map(|block| vec![block.region]);
            let norm = Operator::GradientNorm {
                gradients: gradients.collect(),
                slot: 0,
            };
            case.operators.insert(0, norm);
            case.scratch = (8 << 20) + 4096;
            case.check(&format!("clipped {rule:?}"));
        }
    }
}

/// A projection of the identity is the projection itself: every element has the same bits on both
/// devices, drawn at once or row by row.
#[test]
fn random_projections_are_the_same_bits_on_both_devices() {
    for setting in SETTINGS {
        for (rank, planned) in [(5, true), (5, false), (13, true)] {
            const INPUTS: u64 = 37;
            let mut case = Case::new(setting, 1);
            (case.tolerance, case.step.step) = (0.0, 6);
            // Room for 4 rows.
            case.scratch = 4 * INPUTS * setting.dtype.bytes();
            let identity: Vec<f32> = (0..INPUTS * INPUTS)
                .map(|i| if i % (INPUTS + 1) == 0 { 1.0 } else { 0.0 })
                .collect();
            let x = case.elements(&identity);
            let z = case.poisoned(INPUTS * rank);
            let bytes = if planned {
                rank * INPUTS * setting.dtype.bytes()
            } else {
                0
            };
            let workspace = case.workspace(bytes.next_multiple_of(4));
            case.operators.push(Operator::Project {
                rows: INPUTS,
                x,
                inputs: INPUTS,
                projection: projection(rank),
                key: 0xFEDC_BA98_7654_3210,
                z,
                workspace,
            });
            case.check(&format!("a projection of rank {rank}"));
        }
    }
}
