//! FLORA's accumulation in a space of low rank, operator by operator: F2 and F4 of the oracles that
//! methods are held to.

use std::slice::from_ref;

use ebbtide::device::cpu::{CpuDevice, CpuOptions};
use ebbtide::device::tensors::{
    GradientBlock, GradientSum, Projection, TensorRule, TensorShape, TensorUpdate,
};
use ebbtide::device::{Device, Operator, Region, Reservation, Space, StepParameters, Stream};
use ebbtide::profile::Dtype;

use crate::noise;

const RANK: u64 = 3;
const KEY: u64 = 5;
/// A tall matrix and a wide one.
const SHAPES: [TensorShape; 2] = [
    TensorShape {
        rows: 9,
        columns: 7,
    },
    TensorShape {
        rows: 5,
        columns: 8,
    },
];

/// f32 elements in a place of their own.
fn place(nth: u64, elements: u64) -> Region {
    Region {
        space: Space::Device,
        offset_bytes: nth * 512,
        bytes: elements * 4,
    }
}

fn block(region: Region, rows: u64, columns: u64) -> GradientBlock {
    GradientBlock {
        region,
        row: 0,
        rows,
        column: 0,
        columns,
    }
}

struct Bench {
    device: CpuDevice,
}

impl Bench {
    fn new() -> Self {
        let mut device = CpuDevice::new(CpuOptions::default());
        device
            .reserve(Reservation {
                dtype: Dtype::F32,
                arena_bytes: 1 << 14,
                slab_bytes: 0,
                events: 0,
                rows: 1,
                micro_batches: 1,
                loss_slots: 0,
                norm_slots: 0,
                carry_elements: 0,
                rotary: None,
            })
            .unwrap();
        Self { device }
    }
    fn write(&mut self, region: Region, values: &[f32]) {
        let bytes: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        self.device.write(region, &bytes).unwrap();
    }
    fn read(&mut self, region: Region) -> Vec<f32> {
        let mut bytes = vec![0; region.bytes as usize];
        self.device.read(region, &mut bytes).unwrap();
        let words = bytes.chunks_exact(4);
        words
            .map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]))
            .collect()
    }
    fn run(&mut self, step: u64, operator: &Operator) {
        let parameters = StepParameters {
            step,
            learning_rate: 0.1,
            weight_decay: 0.1,
            ..StepParameters::STILL
        };
        self.device.begin_step(&parameters).unwrap();
        self.device.launch(Stream::Compute, 0, operator).unwrap();
        self.device.finish().unwrap();
    }
    /// What these gradients are added up to in a step.
    fn sum(&mut self, shape: TensorShape, step: u64, gradients: &[Vec<f32>]) -> Vec<f32> {
        let gradient = place(0, shape.elements());
        let sum = place(1, shape.sides().0 * RANK);
        for (nth, values) in gradients.iter().enumerate() {
            self.write(gradient, values);
            let operator = Operator::CompressGradient {
                tensors: vec![GradientSum {
                    shape,
                    gradient: vec![block(gradient, shape.rows, shape.columns)],
                    rank: Some(RANK),
                    sum,
                    key: KEY,
                }],
                accumulate: nth > 0,
                workspace: None,
            };
            self.run(step, &operator);
        }
        self.read(sum)
    }
    /// Weights and states after the first update by a gradient, or by what was accumulated.
    fn updated(&mut self, shape: TensorShape, gradient: &[f32], accumulated: bool) -> Vec<f32> {
        let rule = TensorRule::Flora {
            projection: Projection {
                rank: RANK,
                refresh: u32::MAX,
            },
            accumulated,
        };
        let (weight, at) = (place(2, shape.elements()), place(3, gradient.len() as u64));
        let sizes = rule.states(shape, Dtype::F32).into_iter().enumerate();
        let states: Vec<Region> = sizes.map(|(n, b)| place(4 + n as u64, b / 4)).collect();
        self.write(weight, &random(9, shape.elements()));
        self.write(at, gradient);
        for &state in &states {
            self.write(state, &vec![0.0; (state.bytes / 4) as usize]);
        }
        let of = rule.gradient_shape(shape);
        let operator = Operator::TensorUpdate {
            tensors: vec![TensorUpdate {
                rule,
                shape,
                weight,
                gradient: vec![block(at, of.rows, of.columns)],
                states: states.clone(),
                key: KEY,
                projection_key: 0,
            }],
            workspace: None,
        };
        self.run(1, &operator);
        let all = [weight].into_iter().chain(states);
        all.flat_map(|region| self.read(region)).collect()
    }
}

fn random(seed: u64, elements: u64) -> Vec<f32> {
    let mut next = noise(seed);
    (0..elements).map(|_| next() as f32).collect()
}

fn assert_near(found: &[f32], expected: &[f32], what: &str) {
    assert_eq!(found.len(), expected.len());
    let most = expected.iter().fold(0.0f32, |most, e| most.max(e.abs()));
    for (found, expected) in found.iter().zip(expected) {
        let apart = (found - expected).abs();
        assert!(apart <= 1e-5 * most, "{what}: {found}, expected {expected}");
    }
}

/// F2: a sum of projections is the projection of the sum, within a step; the next step has another.
#[test]
fn f2_gradients_may_be_added_up_before_or_after() {
    for shape in SHAPES {
        let mut bench = Bench::new();
        let each: Vec<_> = (1..4).map(|seed| random(seed, shape.elements())).collect();
        let all = (0..shape.elements() as usize).map(|i| each.iter().map(|g| g[i]).sum());
        let all: Vec<f32> = all.collect();
        let summed = bench.sum(shape, 1, &each);
        assert_near(&summed, &bench.sum(shape, 1, from_ref(&all)), "sum");
        assert_ne!(
            bench.sum(shape, 2, from_ref(&all)),
            bench.sum(shape, 1, from_ref(&all))
        );
    }
}

/// F4: with one projection for ever and one micro-batch, the update is by the gradient projected
/// once, there and back.
#[test]
fn f4_one_micro_batch_is_projected_once() {
    for shape in SHAPES {
        let mut bench = Bench::new();
        // The projection itself: of a matrix with ones on its diagonal.
        let column = shape.columns as usize;
        let ones = (0..shape.elements() as usize).map(|i| f32::from(i / column == i % column));
        let seen = bench.sum(shape, 1, &[ones.collect()]);
        let gradient = random(1, shape.elements());
        let sum = bench.sum(shape, 1, from_ref(&gradient));
        let back = |i: u64, j: u64| {
            let at = |m: &[f32], row: u64, k: u64| f64::from(m[(row * RANK + k) as usize]);
            let each = (0..RANK).map(|k| at(&sum, i, k) * at(&seen, j, k));
            each.sum::<f64>() as f32
        };
        let projected: Vec<f32> = (0..shape.elements())
            .map(|e| (e / shape.columns, e % shape.columns))
            .map(|(row, column)| match shape.rows >= shape.columns {
                true => back(row, column),
                false => back(column, row),
            })
            .collect();
        let most = |m: &[f32]| m.iter().fold(0.0f32, |most, x| most.max(x.abs()));
        assert!(
            most(&projected) > 0.1 * most(&gradient),
            "nothing is left of it"
        );
        let expected = bench.updated(shape, &projected, false);
        assert_near(&bench.updated(shape, &sum, true), &expected, "update");
        assert_ne!(bench.updated(shape, &gradient, false), expected);
    }
}
