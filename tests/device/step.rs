//! A training step issued by hand through the device's trait, as an executor would: every operator,
//! by head groups and by tiles.

use std::collections::BTreeMap;

use ebbtide::device::cpu::{CpuDevice, CpuOptions};
use ebbtide::device::layout::{Layout, States, WeightValue};
use ebbtide::device::{
    Device, Operator, Region, Reservation, RotaryTable, Rows, Space, StepParameters, Stream,
    UpdateRule,
};
use ebbtide::model::{Compressed, ModelConfig};
use ebbtide::profile::Dtype;

use crate::reference::{Batch, Name, Weights};

mod pass;

/// How a step is cut, and in which type it runs.
#[derive(Clone, Copy, Debug)]
pub struct Cut {
    pub groups: u64,
    pub tile: u64,
    pub dtype: Dtype,
}

/// What a step gave: loss and gradients by weight, as the bytes decode.
#[derive(Debug, PartialEq)]
pub struct Outcome {
    pub loss: f64,
    pub norm: f64,
    pub gradients: BTreeMap<(Option<u64>, &'static str), Vec<f32>>,
}

const ARENA: u64 = 4 << 20;

struct Step<'a> {
    device: CpuDevice,
    layout: Layout<'a>,
    cut: Cut,
    batch: &'a Batch,
    used: u64,
    launched: u32,
    weights: BTreeMap<(Option<u64>, &'static str), Region>,
    gradients: BTreeMap<(Option<u64>, &'static str), Vec<Region>>,
}

/// Runs forward and backward of one micro-batch, then reads every gradient through an update of
/// zeros by plain descent. `by_group`: updates come group by group, as the device's do.
pub fn run(
    config: &ModelConfig,
    weights: &Weights,
    batch: &Batch,
    cut: Cut,
    by_group: bool,
) -> Outcome {
    let tokens = batch.tokens.len() as u64;
    let sequence = batch.sequence as u64;
    let layout = Layout {
        model: config,
        dtype: cut.dtype,
        groups: cut.groups,
        compressed: Compressed::default(),
    };
    let mut device = CpuDevice::new(CpuOptions::default());
    device
        .reserve(Reservation {
            dtype: cut.dtype,
            arena_bytes: ARENA,
            slab_bytes: 0,
            events: 0,
            rows: tokens,
            micro_batches: 1,
            loss_slots: tokens.div_ceil(cut.tile) as u32,
            norm_slots: 1,
            carry_elements: layout.carry_elements(WeightValue::Qkv),
            rotary: RotaryTable::new(&config.positions, config.head_dim, sequence),
        })
        .unwrap();
    device.load_batch(0, &batch.tokens, &batch.labels).unwrap();
    let mut step = Step {
        device,
        layout,
        cut,
        batch,
        used: 0,
        launched: 0,
        weights: BTreeMap::new(),
        gradients: BTreeMap::new(),
    };
    step.place_weights(weights);
    let labelled = batch.labels.iter().filter(|&&l| l >= 0).count();
    let parameters = StepParameters {
        learning_rate: 1.0,
        loss_scale: 1.0 / labelled as f64,
        ..StepParameters::STILL
    };
    step.device.begin_step(&parameters).unwrap();
    step.forward_and_backward();
    let shadows = step.updates(by_group);
    let result = step.device.finish().unwrap();
    let gradients = shadows.into_iter().map(|(name, region)| {
        let values = step.read(region).into_iter().map(|v| -v).collect();
        (name, values)
    });
    Outcome {
        loss: result.loss,
        norm: result.gradient_norm.unwrap(),
        gradients: gradients.collect(),
    }
}

impl Step<'_> {
    fn config(&self) -> &ModelConfig {
        self.layout.model
    }
    fn tokens(&self) -> u64 {
        self.batch.tokens.len() as u64
    }
    fn bytes(&mut self, bytes: u64) -> Region {
        let offset_bytes = self.used;
        self.used += bytes.next_multiple_of(512);
        assert!(self.used <= ARENA, "{}", self.used);
        Region {
            space: Space::Device,
            offset_bytes,
            bytes,
        }
    }
    fn elements(&mut self, elements: u64) -> Region {
        self.bytes(elements * self.cut.dtype.bytes())
    }
    fn activation(&mut self, width: u64) -> Region {
        let tokens = self.tokens();
        self.elements(tokens * width)
    }
    fn launch(&mut self, operator: &Operator) {
        self.launched += 1;
        self.device
            .launch(Stream::Compute, self.launched, operator)
            .unwrap();
    }
    fn tiles(&self) -> Vec<Rows> {
        let (tokens, tile) = (self.tokens(), self.cut.tile);
        let starts = (0..tokens).step_by(tile as usize);
        starts
            .map(|first| Rows {
                first,
                count: tile.min(tokens - first),
                sequence: self.batch.sequence as u64,
            })
            .collect()
    }
    /// A tile's rows of an activation.
    fn of(&self, region: Region, rows: Rows, width: u64) -> Region {
        let row = width * self.cut.dtype.bytes();
        region.part(rows.first * row, rows.count * row)
    }
    fn names(&self) -> Vec<(Option<u64>, WeightValue)> {
        let inner = |value: &WeightValue| {
            !matches!(
                value,
                WeightValue::Embedding | WeightValue::FinalNorm | WeightValue::LmHead
            )
        };
        let mut names: Vec<_> = WeightValue::ALL.into_iter().map(|v| (None, v)).collect();
        names.retain(|(_, value)| !inner(value) && self.layout.elements(*value) > 0);
        for block in 0..self.config().layers {
            let of_block = WeightValue::ALL.into_iter().filter(inner);
            names.extend(of_block.map(|value| (Some(block), value)));
        }
        names
    }

    fn place_weights(&mut self, weights: &Weights) {
        for (block, value) in self.names() {
            let region = self.elements(self.layout.elements(value));
            for placed in self.layout.parts(value) {
                let name: Name = (block, placed.weight.part);
                let part = self.layout.part(value, region, placed.weight.part).unwrap();
                let bytes = encode(&weights[&name], self.cut.dtype);
                self.device.write(part, &bytes).unwrap();
            }
            self.weights.insert((block, value.name()), region);
            let mut pieces = Vec::new();
            if value.by_groups() {
                let parts = self.layout.gradient_parts(value);
                let elements = parts.iter().map(|p| p.elements * p.copies).sum();
                for _ in 0..self.cut.groups {
                    pieces.push(self.elements(elements));
                }
            } else {
                pieces.push(self.elements(self.layout.elements(value)));
            }
            self.gradients.insert((block, value.name()), pieces);
        }
    }

    fn read(&mut self, region: Region) -> Vec<f32> {
        let mut bytes = vec![0; region.bytes as usize];
        self.device.read(region, &mut bytes).unwrap();
        match self.cut.dtype {
            Dtype::F32 => bytes
                .chunks(4)
                .map(|b| f32::from_le_bytes(b.try_into().unwrap()))
                .collect(),
            _ => bytes
                .chunks(2)
                .map(|b| half::bf16::from_le_bytes(b.try_into().unwrap()).to_f32())
                .collect(),
        }
    }

    /// Updates zeros by gradient descent at rate 1: minus the gradients, in the weights' places.
    fn updates(&mut self, by_group: bool) -> BTreeMap<(Option<u64>, &'static str), Region> {
        let mut shadows = BTreeMap::new();
        let mut gradients = Vec::new();
        let (rule, states) = (UpdateRule::Sgd, None::<States>);
        for (block, value) in self.names() {
            let name = (block, value.name());
            let shadow = self.elements(self.layout.elements(value));
            self.launch(&Operator::Zero { region: shadow });
            let pieces = self.gradients[&name].clone();
            gradients.extend(self.layout.gradients(value, &pieces));
            let of = |first: u64, pieces: &[Region]| {
                self.layout
                    .update_groups(rule, value, shadow, (first, pieces), states, 0)
            };
            let runs = match (value.by_groups(), by_group) {
                (false, _) => vec![self.layout.update(rule, shadow, pieces[0], states)],
                (true, false) => vec![of(0, &pieces)],
                (true, true) => (0..).zip(&pieces).map(|(g, &p)| of(g, &[p])).collect(),
            };
            for slices in runs {
                self.launch(&Operator::Update { rule, slices });
            }
            shadows.insert(name, shadow);
        }
        self.launch(&Operator::GradientNorm { gradients, slot: 0 });
        shadows
    }
}

fn encode(values: &[f64], dtype: Dtype) -> Vec<u8> {
    let bytes = values.iter().map(|&v| match dtype {
        Dtype::F32 => (v as f32).to_le_bytes().to_vec(),
        _ => half::bf16::from_f64(v).to_le_bytes().to_vec(),
    });
    bytes.flatten().collect()
}
