//! Updates of whole tensors: the bits of the CPU device where they go element by element, its
//! numbers where sums have another order.

use ebbtide::device::tensors::{
    GradientBlock, Moments, TensorRule, TensorShape, TensorUpdate, EIGHT_BIT_FROM,
};
use ebbtide::device::{Operator, Region};
use ebbtide::profile::Dtype;

use crate::case::{Case, Setting, SETTINGS};

/// How a gradient lies.
#[derive(Clone, Copy, Debug)]
pub enum Lies {
    Whole,
    /// Two blocks one below the other.
    Below,
    /// Two blocks side by side, as head groups leave those of output projections.
    Beside,
    /// Two copies that are added up.
    Twice,
}

pub const WAYS: [Lies; 4] = [Lies::Whole, Lies::Below, Lies::Beside, Lies::Twice];

/// Rows and columns; a block of 8-bit moments more or less, a vector, a tensor of several areas.
const SHAPES: [(u64, u64); 5] = [(1, 1), (37, 1), (40, 103), (64, 80), SEVERAL_AREAS];
/// In half of the settings of each rule.
const SEVERAL_AREAS: (u64, u64) = (301, 24);

pub fn case(setting: Setting, seed: u64) -> Case {
    let mut case = Case::new(setting, seed);
    case.tolerance = 0.0;
    // 256 rows of the widest shape, and what is beside them.
    case.scratch = 128 << 10;
    case
}

/// A random gradient that lies so.
pub fn gradient(case: &mut Case, shape: TensorShape, lies: Lies) -> Vec<GradientBlock> {
    let TensorShape { rows, columns } = shape;
    let mut block = |row, rows, column, columns| GradientBlock {
        region: case.random(rows * columns),
        row,
        rows,
        column,
        columns,
    };
    match lies {
        Lies::Below if rows > 1 => {
            let some = rows / 3 + 1;
            vec![
                block(0, some, 0, columns),
                block(some, rows - some, 0, columns),
            ]
        }
        Lies::Beside if columns > 1 => {
            let some = columns / 3 + 1;
            vec![
                block(0, rows, 0, some),
                block(0, rows, some, columns - some),
            ]
        }
        Lies::Twice => vec![block(0, rows, 0, columns), block(0, rows, 0, columns)],
        _ => vec![block(0, rows, 0, columns)],
    }
}

/// Adam's states of so many elements.
pub fn moments(case: &mut Case, moments: Moments, elements: u64) -> Vec<Region> {
    let small = elements < EIGHT_BIT_FROM;
    match moments {
        Moments::EightBit if !small => {
            let scales = elements.div_ceil(256);
            let scale = |x: f32| x.abs() + 0.01;
            vec![
                case.bytes(elements),
                case.bytes(elements),
                case.floats(scales, scale),
                case.floats(scales, scale),
            ]
        }
        Moments::AsWeights if case.setting.dtype == Dtype::Bf16 => {
            let values = |case: &mut Case, of: fn(f32) -> f32| {
                let count = elements.next_multiple_of(2);
                let values: Vec<f32> = (0..count).map(|_| of(case.number())).collect();
                case.elements(&values)
            };
            vec![values(case, |x| x), values(case, f32::abs)]
        }
        _ => vec![
            case.floats(elements, |x| x),
            case.floats(elements, f32::abs),
        ],
    }
}

/// The norm of the update before: there was none, one that limits, one that does not.
fn norm(case: &mut Case) -> Region {
    let norm = match case.step.step {
        1 => 0.0,
        2 => 1.0,
        _ => 1e4,
    };
    case.floats(1, |_| norm)
}

/// States of any rule, in its order.
fn states(case: &mut Case, rule: TensorRule, shape: TensorShape) -> Vec<Region> {
    let positive = |x: f32| x.abs() + 0.01;
    let (long, short) = shape.sides();
    match rule {
        TensorRule::Adam(kept) => moments(case, kept, shape.elements()),
        TensorRule::AdaLomo if shape.is_vector() => vec![case.floats(shape.rows, f32::abs)],
        TensorRule::AdaLomo => vec![
            case.floats(shape.rows, positive),
            case.floats(shape.columns, positive),
        ],
        TensorRule::Compact { moments: kept, .. } => {
            moments(case, kept, rule.gradient_shape(shape).elements())
        }
        TensorRule::Galore {
            projection,
            moments: kept,
            ..
        }
        | TensorRule::Fira {
            projection,
            moments: kept,
            ..
        } => {
            // A state is a whole number of words.
            let of_word = 4 / case.setting.dtype.bytes();
            let count = (projection.rank * short).next_multiple_of(of_word);
            let basis = case.random(count);
            let kept = moments(case, kept, long * projection.rank);
            let norm = matches!(rule, TensorRule::Fira { .. }).then(|| norm(case));
            [vec![basis], kept, norm.into_iter().collect()].concat()
        }
        TensorRule::Apollo {
            projection,
            moments: kept,
            ..
        } => {
            let kept = moments(case, kept, long * projection.rank);
            [kept, vec![norm(case)]].concat()
        }
        TensorRule::Flora { projection, .. } => vec![
            case.floats(long * projection.rank, |x| x),
            case.floats(long, positive),
            case.floats(short, positive),
        ],
    }
}

pub fn tensor(case: &mut Case, rule: TensorRule, (rows, columns): (u64, u64), lies: Lies) {
    let shape = TensorShape { rows, columns };
    let tensor = TensorUpdate {
        rule,
        shape,
        weight: case.random(shape.elements()),
        gradient: gradient(case, rule.gradient_shape(shape), lies),
        states: states(case, rule, shape),
        key: 0x0123_4567_89AB_CDEF,
        projection_key: 7,
    };
    let workspace = case.workspace(rule.workspace_bytes(shape));
    case.operators.push(Operator::TensorUpdate {
        tensors: vec![tensor],
        workspace,
    });
}

#[test]
fn adam_gives_the_same_bits_however_moments_are_kept() {
    for setting in SETTINGS {
        for (rule, kept) in (0..).zip([Moments::F32, Moments::AsWeights, Moments::EightBit]) {
            for (nth, shape) in (0..).zip(SHAPES) {
                if shape == SEVERAL_AREAS && !setting.serves_long(rule) {
                    continue;
                }
                let lies = WAYS[nth % WAYS.len()];
                let mut case = case(setting, nth as u64);
                for lies in [Lies::Whole, lies] {
                    tensor(&mut case, TensorRule::Adam(kept), shape, lies);
                }
                case.check(&format!("Adam of {shape:?}, {kept:?}, {lies:?}"));
            }
        }
    }
}

#[test]
fn adalomo_is_near() {
    for setting in SETTINGS {
        for (nth, shape) in (0..).zip(SHAPES) {
            for (which, step) in [(0, 1), (1, 3)] {
                if shape == SEVERAL_AREAS && !setting.serves_long(which) {
                    continue;
                }
                let lies = WAYS[(nth + step) % WAYS.len()];
                let mut case = case(setting, nth as u64);
                (case.tolerance, case.step.step) = (2e-6, step as u64);
                // A step that is more than bf16 may be off.
                case.step.learning_rate = 0.3;
                for lies in [Lies::Whole, lies] {
                    tensor(&mut case, TensorRule::AdaLomo, shape, lies);
                }
                case.check(&format!("AdaLomo of {shape:?}, {lies:?}, step {step}"));
            }
        }
    }
}

/// By value, then by the norm of what was not clipped by value.
#[test]
fn gradients_of_tensors_are_clipped() {
    for setting in SETTINGS {
        let mut case = case(setting, 1);
        case.reservation.norm_slots = 2;
        (case.step.clip, case.step.clip_value) = (Some(4.0), Some(0.3));
        tensor(
            &mut case,
            TensorRule::Adam(Moments::AsWeights),
            (40, 103),
            Lies::Beside,
        );
        tensor(
            &mut case,
            TensorRule::Adam(Moments::EightBit),
            (40, 103),
            Lies::Whole,
        );
        let Operator::TensorUpdate { tensors, .. } = &case.operators[0] else {
            unreachable!("it was put there");
        };
        let gradients = tensors[0].gradient.iter().map(|block| vec![block.region]);
        let norm = Operator::GradientNorm {
            gradients: gradients.collect(),
            slot: 1,
        };
        case.operators.insert(0, norm);
        case.scratch = (8 << 20) + 4096;
        case.check("clipped tensors");
    }
}
