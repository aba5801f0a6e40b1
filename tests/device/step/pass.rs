//! Forward and backward of a step, operator by operator.

use ebbtide::device::layout::WeightValue;
use ebbtide::device::{
    AttentionShape, HeadNorms, HeadNormsBackward, NormShape, Operator, Region, Rows,
};
use ebbtide::model::{Part, Positions};

use super::Step;

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

impl Step<'_> {
    pub(super) fn whole(&self, block: Option<u64>, value: WeightValue) -> (Region, Region) {
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

    pub(super) fn forward_and_backward(&mut self) {
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
}
