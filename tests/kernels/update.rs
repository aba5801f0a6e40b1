//! The optimizer: the bits of the CPU device.

use ebbtide::device::{Carry, Operator, Panel, Region, UpdateRule, UpdateSlice};
use ebbtide::profile::Dtype;

use crate::case::{Case, Setting, SETTINGS};

const RULES: [UpdateRule; 2] = [UpdateRule::AdamW, UpdateRule::Sgd];

fn exact(setting: Setting, seed: u64) -> Case {
    let mut case = Case::new(setting, seed);
    case.tolerance = 0.0;
    // Sums of gradients begin 8 MiB into it.
    case.scratch = (8 << 20) + 4096;
    case
}

/// Parameters of `rows × columns` in a matrix with a stride.
fn slice(
    case: &mut Case,
    rule: UpdateRule,
    (rows, columns, stride): (u64, u64, u64),
    copies: u64,
) -> UpdateSlice {
    let span = (rows - 1) * stride + columns;
    let weight = Panel {
        region: case.random(span),
        rows,
        columns,
        stride,
    };
    let gradients = (0..copies).map(|_| case.random(rows * columns)).collect();
    let states = match (rule, case.setting.dtype) {
        (UpdateRule::Sgd, _) => Vec::new(),
        (_, Dtype::F32) => vec![case.floats(span, |x| x), case.floats(span, f32::abs)],
        _ => vec![
            case.floats(span, |x| x),
            case.floats(span, |x| x),
            case.floats(span, f32::abs),
        ],
    };
    UpdateSlice {
        weight,
        gradients,
        states,
        carry: None,
    }
}

#[test]
fn parameters_follow_their_gradients() {
    for (setting, rule) in SETTINGS.into_iter().flat_map(|s| RULES.map(|r| (s, r))) {
        for (sizes, copies) in [
            ((1, 1, 1), 1),
            ((1, 4096, 4096), 1),
            ((1, 37, 37), 3),
            ((3, 16, 24), 1),
            ((5, 9, 11), 1),
            ((4, 8, 8), 20),
        ] {
            let mut case = exact(setting, sizes.1);
            let slices = vec![slice(&mut case, rule, sizes, copies)];
            case.operators.push(Operator::Update { rule, slices });
            case.check(&format!("{rule:?} of {sizes:?} by {copies} copies"));
        }
    }
}

#[test]
fn gradients_are_carried_from_run_to_run() {
    for (setting, rule) in SETTINGS.into_iter().flat_map(|s| RULES.map(|r| (s, r))) {
        let mut case = exact(setting, 1);
        case.reservation.carry_elements = 50;
        let whole = slice(&mut case, rule, (1, 40, 40), 6);
        for run in 0..3 {
            let gradients: Vec<Region> = whole.gradients[2 * run..][..2].to_vec();
            let carry = Some(Carry {
                offset: 10,
                first: run == 0,
                last: run == 2,
            });
            let slices = vec![UpdateSlice {
                gradients,
                carry,
                ..whole.clone()
            }];
            case.operators.push(Operator::Update { rule, slices });
        }
        case.check(&format!("{rule:?} with carried gradients"));
    }
}

#[test]
fn gradients_are_clipped_by_their_norm() {
    for (setting, clip) in SETTINGS
        .into_iter()
        .flat_map(|s| [0.5, 1e9].map(|c| (s, c)))
    {
        let mut case = exact(setting, 1);
        case.reservation.norm_slots = 300;
        case.step.clip = Some(clip);
        let rule = UpdateRule::AdamW;
        let sizes = [((1, 3000, 3000), 1), ((1, 16, 16), 4), ((1, 5, 5), 2)];
        let slices: Vec<_> = sizes
            .into_iter()
            .map(|(sizes, copies)| slice(&mut case, rule, sizes, copies))
            .collect();
        let gradients = slices.iter().map(|slice| slice.gradients.clone());
        let gradients: Vec<_> = gradients.collect();
        for (slot, some) in [(299, &gradients[..2]), (1, &gradients[2..])] {
            case.operators.push(Operator::GradientNorm {
                gradients: some.to_vec(),
                slot,
            });
        }
        case.operators.push(Operator::Update { rule, slices });
        case.check(&format!("clipping to {clip}"));
    }
}

#[test]
fn a_norm_that_is_no_number_clips_nothing() {
    for setting in SETTINGS {
        let mut case = exact(setting, 1);
        case.reservation.norm_slots = 1;
        case.step.clip = Some(0.1);
        let rule = UpdateRule::Sgd;
        let mut slice = slice(&mut case, rule, (1, 8, 8), 1);
        let mut values = [0.5; 8];
        values[3] = f32::NAN;
        slice.gradients = vec![case.elements(&values)];
        case.operators.push(Operator::GradientNorm {
            gradients: vec![slice.gradients.clone()],
            slot: 0,
        });
        let slices = vec![slice];
        case.operators.push(Operator::Update { rule, slices });
        case.check("a norm that is no number");
    }
}

#[test]
fn gradients_are_clipped_by_value() {
    for (setting, rule) in SETTINGS.into_iter().flat_map(|s| RULES.map(|r| (s, r))) {
        let mut case = exact(setting, 1);
        case.step.clip_value = Some(0.25);
        let sizes = [((3, 16, 24), 1), ((1, 37, 37), 3)];
        let slices = sizes.map(|(sizes, copies)| slice(&mut case, rule, sizes, copies));
        let slices = slices.to_vec();
        case.operators.push(Operator::Update { rule, slices });
        case.check(&format!("{rule:?} with gradients clipped by value"));
    }
}
