//! A training step issued by hand through the device's trait, as an executor would: every operator,
//! by head groups and by tiles.

use std::collections::BTreeMap;

use ebbtide::device::cpu::{CpuDevice, CpuOptions};
use ebbtide::device::layout::{Layout, States, WeightValue};
use ebbtide::device::{
    AttentionShape, Device, HeadNorms, HeadNormsBackward, NormShape, Operator, Region, Reservation,
    RotaryTable, Rows, Space, StepParameters, Stream, UpdateRule,
};
use ebbtide::model::{Compressed, ModelConfig, Part, Positions};
use ebbtide::profile::Dtype;

use crate::reference::{Batch, Name, Weights};

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

/// The values of a block that backward needs.
struct Block {
    x: Region,
    n1: Region,
    qkv: Vec<Region>,
    o: Vec<Region>,
    x2: Region,
    n2: Region,
    gate_up: Region,
    h: Region,
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

    // ---- operators ----------------------------------------------------------------------------

    fn whole(&self, block: Option<u64>, value: WeightValue) -> (Region, Region) {
        let name = (block, value.name());
        (self.weights[&name], self.gradients[&name][0])
    }

    fn part(&self, block: Option<u64>, value: WeightValue, part: Part) -> Option<Region> {
        self.layout.part(value, self.whole(block, value).0, part)
    }

    fn norm_shape(&self) -> NormShape {
        NormShape {
            kind: self.config().norm,
            width: self.config().hidden,
            epsilon: self.config().norm_eps,
        }
    }

    fn norm_parts(value: WeightValue) -> (Part, Part) {
        match value {
            WeightValue::Norm1 => (Part::AttnNorm, Part::AttnNormBias),
            WeightValue::Norm2 => (Part::MlpNorm, Part::MlpNormBias),
            _ => (Part::FinalNorm, Part::FinalNormBias),
        }
    }

    fn norm(&mut self, rows: Rows, at: (Option<u64>, WeightValue), x: Region, y: Region) {
        let (scale, shift) = Self::norm_parts(at.1);
        let d = self.config().hidden;
        self.launch(&Operator::Norm {
            norm: self.norm_shape(),
            rows: rows.count,
            x: self.of(x, rows, d),
            scale: self.part(at.0, at.1, scale).unwrap(),
            shift: self.part(at.0, at.1, shift),
            y: self.of(y, rows, d),
        });
    }

    fn norm_backward(
        &mut self,
        rows: Rows,
        at: (Option<u64>, WeightValue),
        (x, d_y, d_x): (Region, Region, Region),
        accumulate_x: bool,
    ) {
        let (scale, shift) = Self::norm_parts(at.1);
        let d = self.config().hidden;
        let gradient = self.whole(at.0, at.1).1;
        self.launch(&Operator::NormBackward {
            norm: self.norm_shape(),
            rows: rows.count,
            x: self.of(x, rows, d),
            scale: self.part(at.0, at.1, scale).unwrap(),
            d_y: self.of(d_y, rows, d),
            d_x: self.of(d_x, rows, d),
            accumulate_x,
            d_scale: self.layout.part(at.1, gradient, scale).unwrap(),
            d_shift: self.layout.part(at.1, gradient, shift),
            accumulate_weight: rows.first > 0,
        });
    }

    /// A linear layer of the whole width and its two gradients.
    fn linear(
        &mut self,
        rows: Rows,
        at: (Option<u64>, WeightValue),
        (x, residual, y): (Region, Option<Region>, Region),
    ) {
        let panel = self.layout.matrix(at.1, self.whole(at.0, at.1).0);
        let bias = match at.1 {
            WeightValue::Down => Part::DownBias,
            _ if self.config().gated => Part::GateUpBias,
            _ => Part::UpBias,
        };
        self.launch(&Operator::Linear {
            rows: rows.count,
            x: self.of(x, rows, panel.columns),
            weight: vec![panel],
            bias: self.part(at.0, at.1, bias).into_iter().collect(),
            residual: residual.map(|r| self.of(r, rows, panel.rows)),
            y: self.of(y, rows, panel.rows),
            workspace: None,
        });
    }

    fn linear_backward(
        &mut self,
        rows: Rows,
        at: (Option<u64>, WeightValue),
        (x, d_y, d_x): (Region, Region, Region),
    ) {
        let (weight, gradient) = self.whole(at.0, at.1);
        let panel = self.layout.matrix(at.1, weight);
        let parts = self.layout.parts(at.1);
        let bias = parts.get(1).filter(|p| p.weight.columns == 1);
        let d_y = self.of(d_y, rows, panel.rows);
        self.launch(&Operator::LinearInputGradient {
            rows: rows.count,
            d_y,
            weight: vec![panel],
            d_x: self.of(d_x, rows, panel.columns),
            accumulate: false,
            workspace: None,
        });
        self.launch(&Operator::LinearWeightGradient {
            rows: rows.count,
            x: self.of(x, rows, panel.columns),
            inputs: panel.columns,
            d_y,
            outputs: panel.rows,
            d_weight: self.layout.matrix(at.1, gradient).region,
            d_bias: bias.and_then(|b| self.layout.part(at.1, gradient, b.weight.part)),
            accumulate: rows.first > 0,
        });
    }

    fn forward_and_backward(&mut self) {
        let d = self.config().hidden;
        let mut blocks: Vec<Block> = Vec::new();
        let mut x = self.activation(d);
        for rows in self.tiles() {
            self.launch(&Operator::Embedding {
                rows,
                micro_batch: 0,
                weight: self
                    .part(None, WeightValue::Embedding, Part::Embedding)
                    .unwrap(),
                vocab: self.config().vocab,
                positions: self.part(None, WeightValue::Embedding, Part::PositionEmbedding),
                width: d,
                scale: self.config().embedding_scale,
                x: self.of(x, rows, d),
            });
        }
        for block in 0..self.config().layers {
            let (values, next) = self.block_forward(block, x);
            blocks.push(values);
            x = next;
        }
        let gradient = self.head(x);
        for (block, values) in blocks.iter().enumerate().rev() {
            let block = block as u64;
            self.mlp_backward(block, values, gradient);
            self.attention_backward(block, values, gradient);
        }
        let embedding = self.whole(None, WeightValue::Embedding).1;
        if !self.config().tied {
            self.launch(&Operator::Zero { region: embedding });
        }
        let part = |part| self.layout.part(WeightValue::Embedding, embedding, part);
        let (d_weight, d_positions) = (part(Part::Embedding), part(Part::PositionEmbedding));
        for rows in self.tiles() {
            self.launch(&Operator::EmbeddingBackward {
                rows,
                micro_batch: 0,
                d_x: self.of(gradient, rows, d),
                width: d,
                scale: self.config().embedding_scale,
                d_weight: d_weight.unwrap(),
                vocab: self.config().vocab,
                d_positions,
            });
        }
    }

    fn head_norms(&self, block: u64, inverses: Region) -> Option<HeadNorms> {
        let at = |part| self.part(Some(block), WeightValue::Qkv, part);
        Some(HeadNorms {
            norm: NormShape {
                width: self.config().head_dim,
                ..self.norm_shape()
            },
            q_scale: at(Part::QNorm)?,
            k_scale: at(Part::KNorm)?,
            inverse_deviations: inverses,
        })
    }

    fn rotates(&self) -> bool {
        matches!(self.config().positions, Positions::Rope { .. })
    }

    fn shape(&self, block: u64) -> AttentionShape {
        AttentionShape {
            heads: self.layout.heads(),
            sequences: self.tokens() / self.batch.sequence as u64,
            sequence: self.batch.sequence as u64,
            window: self.config().windows[block as usize],
        }
    }

    /// Rows of a group's piece with its f32 extras.
    fn of_group(&self, piece: Region, rows: Rows, width: u64, extras: u64) -> (Region, Region) {
        let range = (rows.first, rows.count);
        self.layout
            .rows(piece, self.tokens(), range, (width, extras))
    }

    fn all_rows(&self) -> Rows {
        Rows {
            first: 0,
            count: self.tokens(),
            sequence: self.batch.sequence as u64,
        }
    }

    fn block_forward(&mut self, block: u64, x: Region) -> (Block, Region) {
        let (d, f) = (self.config().hidden, self.config().intermediate);
        let at = Some(block);
        let heads = self.layout.heads();
        let tokens = self.tokens();
        let extras = if self.config().qk_norm {
            heads.heads + heads.kv_heads
        } else {
            0
        };
        let ups = if self.config().gated { 2 * f } else { f };
        let size = self.cut.dtype.bytes();
        let mut pieces = |width: u64, extras: u64| -> Vec<Region> {
            let bytes = tokens * (width * size + 4 * extras);
            (0..self.cut.groups).map(|_| self.bytes(bytes)).collect()
        };
        let qkv = pieces(heads.qkv_width(), extras);
        let o = pieces(heads.query_width(), heads.heads);
        let [n1, x2, n2, next] = [(); 4].map(|()| self.activation(d));
        let (gate_up, h) = (self.activation(ups), self.activation(f));
        for rows in self.tiles() {
            self.norm(rows, (at, WeightValue::Norm1), x, n1);
        }
        for group in 0..self.cut.groups {
            let piece = qkv[group as usize];
            for rows in self.tiles() {
                let weight = self.whole(at, WeightValue::Qkv).0;
                let (qkv, inverses) = self.of_group(piece, rows, heads.qkv_width(), extras);
                self.launch(&Operator::QkvProjection {
                    rows,
                    heads,
                    x: self.of(n1, rows, d),
                    weight: self.layout.qkv_weight(weight, group),
                    bias: self.layout.qkv_bias(weight, group),
                    norms: self.head_norms(block, inverses),
                    rotate: self.rotates(),
                    qkv,
                    workspace: None,
                });
            }
            let all = self.all_rows();
            let (o, lse) = self.of_group(o[group as usize], all, heads.query_width(), heads.heads);
            self.launch(&Operator::Attention {
                shape: self.shape(block),
                qkv: self.of_group(piece, all, heads.qkv_width(), extras).0,
                o,
                lse,
                workspace: None,
            });
        }
        for group in 0..self.cut.groups {
            for rows in self.tiles() {
                let first = group == 0;
                let weight = self.whole(at, WeightValue::O).0;
                let bias = self.part(at, WeightValue::O, Part::OBias).filter(|_| first);
                let o = o[group as usize];
                self.launch(&Operator::Linear {
                    rows: rows.count,
                    x: self.of_group(o, rows, heads.query_width(), heads.heads).0,
                    weight: vec![self.layout.o_weight(weight, group)],
                    bias: bias.into_iter().collect(),
                    residual: Some(self.of(if first { x } else { x2 }, rows, d)),
                    y: self.of(x2, rows, d),
                    workspace: None,
                });
            }
        }
        for rows in self.tiles() {
            self.norm(rows, (at, WeightValue::Norm2), x2, n2);
            self.linear(rows, (at, WeightValue::GateUp), (n2, None, gate_up));
            self.launch(&Operator::Activation {
                kind: self.config().activation,
                gated: self.config().gated,
                rows: rows.count,
                width: f,
                x: self.of(gate_up, rows, ups),
                h: self.of(h, rows, f),
            });
            self.linear(rows, (at, WeightValue::Down), (h, Some(x2), next));
        }
        let values = Block {
            x,
            n1,
            qkv,
            o,
            x2,
            n2,
            gate_up,
            h,
        };
        (values, next)
    }

    fn head(&mut self, x: Region) -> Region {
        let (d, vocab) = (self.config().hidden, self.config().vocab);
        let [normed, d_normed, gradient] = [(); 3].map(|()| self.activation(d));
        let logits = self.activation(vocab);
        let value = if self.config().tied {
            WeightValue::Embedding
        } else {
            WeightValue::LmHead
        };
        let (weight, d_weight) = self.whole(None, value);
        let panel = self.layout.matrix(value, weight);
        if self.config().tied {
            self.launch(&Operator::Zero { region: d_weight });
        }
        for (slot, rows) in self.tiles().into_iter().enumerate() {
            self.norm(rows, (None, WeightValue::FinalNorm), x, normed);
            let (n, z) = (self.of(normed, rows, d), self.of(logits, rows, vocab));
            self.launch(&Operator::Linear {
                rows: rows.count,
                x: n,
                weight: vec![panel],
                bias: Vec::new(),
                residual: None,
                y: z,
                workspace: None,
            });
            self.launch(&Operator::CrossEntropy {
                rows,
                micro_batch: 0,
                vocab,
                logits: z,
                slot: slot as u32,
            });
            self.launch(&Operator::LinearInputGradient {
                rows: rows.count,
                d_y: z,
                weight: vec![panel],
                d_x: self.of(d_normed, rows, d),
                accumulate: false,
                workspace: None,
            });
            self.launch(&Operator::LinearWeightGradient {
                rows: rows.count,
                x: n,
                inputs: d,
                d_y: z,
                outputs: vocab,
                d_weight: self.layout.matrix(value, d_weight).region,
                d_bias: None,
                accumulate: rows.first > 0,
            });
            let at = (None, WeightValue::FinalNorm);
            self.norm_backward(rows, at, (x, d_normed, gradient), false);
        }
        gradient
    }

    fn mlp_backward(&mut self, block: u64, b: &Block, gradient: Region) {
        let (d, f) = (self.config().hidden, self.config().intermediate);
        let ups = if self.config().gated { 2 * f } else { f };
        let (d_h, d_up, d_n2) = (self.activation(f), self.activation(ups), self.activation(d));
        let at = Some(block);
        for rows in self.tiles() {
            self.linear_backward(rows, (at, WeightValue::Down), (b.h, gradient, d_h));
            self.launch(&Operator::ActivationBackward {
                kind: self.config().activation,
                gated: self.config().gated,
                rows: rows.count,
                width: f,
                x: self.of(b.gate_up, rows, ups),
                d_h: self.of(d_h, rows, f),
                d_x: self.of(d_up, rows, ups),
            });
            self.linear_backward(rows, (at, WeightValue::GateUp), (b.n2, d_up, d_n2));
            self.norm_backward(rows, (at, WeightValue::Norm2), (b.x2, d_n2, gradient), true);
        }
    }

    fn attention_backward(&mut self, block: u64, b: &Block, gradient: Region) {
        let d = self.config().hidden;
        let at = Some(block);
        let heads = self.layout.heads();
        let (q, width) = (heads.query_width(), heads.qkv_width());
        let extras = if self.config().qk_norm {
            heads.heads + heads.kv_heads
        } else {
            0
        };
        let (d_o, d_qkv, d_n1) = (
            self.activation(q),
            self.activation(width),
            self.activation(d),
        );
        for group in 0..self.cut.groups {
            let index = group as usize;
            let (qkv_weight, o_weight) = (
                self.whole(at, WeightValue::Qkv).0,
                self.whole(at, WeightValue::O).0,
            );
            let gradients = |value: WeightValue| self.gradients[&(at, value.name())][index];
            let (qkv_gradient, o_gradient) =
                (gradients(WeightValue::Qkv), gradients(WeightValue::O));
            let part = |value, piece, part| self.layout.gradient_part(value, piece, part);
            let o_bias = part(WeightValue::O, o_gradient, Part::OBias);
            let o_bias = o_bias
                .filter(|_| group == 0)
                .map(|copies| copies.part(0, d * self.cut.dtype.bytes()));
            let d_o_weight = part(WeightValue::O, o_gradient, Part::O).unwrap();
            let d_qkv_weight = part(WeightValue::Qkv, qkv_gradient, Part::Qkv).unwrap();
            let d_qkv_bias = part(WeightValue::Qkv, qkv_gradient, Part::QkvBias);
            let d_q_scale = part(WeightValue::Qkv, qkv_gradient, Part::QNorm);
            let d_k_scale = part(WeightValue::Qkv, qkv_gradient, Part::KNorm);
            for rows in self.tiles() {
                let d_y = self.of(gradient, rows, d);
                self.launch(&Operator::LinearInputGradient {
                    rows: rows.count,
                    d_y,
                    weight: vec![self.layout.o_weight(o_weight, group)],
                    d_x: self.of(d_o, rows, q),
                    accumulate: false,
                    workspace: None,
                });
                self.launch(&Operator::LinearWeightGradient {
                    rows: rows.count,
                    x: self.of_group(b.o[index], rows, q, heads.heads).0,
                    inputs: q,
                    d_y,
                    outputs: d,
                    d_weight: d_o_weight,
                    d_bias: o_bias,
                    accumulate: rows.first > 0,
                });
            }
            let all = self.all_rows();
            let (o, lse) = self.of_group(b.o[index], all, q, heads.heads);
            self.launch(&Operator::AttentionBackward {
                shape: self.shape(block),
                qkv: self.of_group(b.qkv[index], all, width, extras).0,
                o,
                lse,
                d_o,
                d_qkv,
                workspace: None,
            });
            if self.config().qk_norm {
                self.launch(&Operator::Zero {
                    region: qkv_gradient,
                });
            }
            for rows in self.tiles() {
                let (qkv, inverses) = self.of_group(b.qkv[index], rows, width, extras);
                let norms = self
                    .head_norms(block, inverses)
                    .map(|norms| HeadNormsBackward {
                        norms,
                        qkv,
                        d_q_scale: d_q_scale.unwrap(),
                        d_k_scale: d_k_scale.unwrap(),
                        accumulate: true,
                    });
                let d_z = self.of(d_qkv, rows, width);
                self.launch(&Operator::RotaryBackward {
                    rows,
                    heads,
                    rotate: self.rotates(),
                    norms,
                    d_qkv: d_z,
                });
                self.launch(&Operator::LinearInputGradient {
                    rows: rows.count,
                    d_y: d_z,
                    weight: self.layout.qkv_weight(qkv_weight, group),
                    d_x: self.of(d_n1, rows, d),
                    accumulate: group > 0,
                    workspace: None,
                });
                self.launch(&Operator::LinearWeightGradient {
                    rows: rows.count,
                    x: self.of(b.n1, rows, d),
                    inputs: d,
                    d_y: d_z,
                    outputs: width,
                    d_weight: d_qkv_weight,
                    d_bias: d_qkv_bias,
                    accumulate: rows.first > 0 || self.config().qk_norm,
                });
            }
        }
        for rows in self.tiles() {
            self.norm_backward(rows, (at, WeightValue::Norm1), (b.x, d_n1, gradient), true);
        }
    }

    // ---- the update ---------------------------------------------------------------------------

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
