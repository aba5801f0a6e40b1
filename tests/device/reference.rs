//! The model written down plainly in f64, token by token, sharing nothing with the device but the
//! config: what a step's loss is, and by differences what its gradients are.

use std::collections::BTreeMap;

use ebbtide::device::RotaryTable;
use ebbtide::model::{Activation, ModelConfig, NormKind, Part};

/// A weight: its block and what it is for.
pub type Name = (Option<u64>, Part);

/// All weights.
pub type Weights = BTreeMap<Name, Vec<f64>>;

/// Tokens and labels, sequences one after the other.
#[derive(Clone)]
pub struct Batch {
    pub tokens: Vec<u32>,
    pub labels: Vec<i32>,
    pub sequence: usize,
}

type Rows = Vec<Vec<f64>>;

struct Model<'a> {
    config: &'a ModelConfig,
    weights: &'a Weights,
    table: Option<RotaryTable>,
}

/// The loss of a token on average.
pub fn loss(config: &ModelConfig, weights: &Weights, batch: &Batch) -> f64 {
    let table = RotaryTable::new(&config.positions, config.head_dim, batch.sequence as u64);
    let model = Model {
        config,
        weights,
        table,
    };
    let starts = (0..batch.tokens.len()).step_by(batch.sequence);
    let sum: f64 = starts
        .map(|start| {
            let range = start..start + batch.sequence;
            model.sequence(&batch.tokens[range.clone()], &batch.labels[range])
        })
        .sum();
    sum / batch.labels.iter().filter(|&&l| l >= 0).count() as f64
}

impl Model<'_> {
    fn weight(&self, block: Option<u64>, part: Part) -> Option<&[f64]> {
        self.weights.get(&(block, part)).map(Vec::as_slice)
    }

    fn sequence(&self, tokens: &[u32], labels: &[i32]) -> f64 {
        let d = self.config.hidden as usize;
        let embedding = self.weight(None, Part::Embedding).unwrap();
        let scale = self.config.embedding_scale.unwrap_or(1.0);
        let mut x: Rows = Vec::new();
        for (i, &token) in tokens.iter().enumerate() {
            let vector = &embedding[token as usize * d..][..d];
            let mut row: Vec<f64> = vector.iter().map(|e| scale * e).collect();
            if let Some(positions) = self.weight(None, Part::PositionEmbedding) {
                add(&mut row, &positions[i * d..][..d]);
            }
            x.push(row);
        }
        for block in 0..self.config.layers {
            self.block(block, &mut x);
        }
        let head = self.weight(None, Part::LmHead).unwrap_or(embedding);
        let mut sum = 0.0;
        for (x, &label) in x.iter().zip(labels) {
            let n = self.norm(x, None, Part::FinalNorm, Part::FinalNormBias);
            let z = product(&n, head, None);
            if let Ok(label) = usize::try_from(label) {
                sum += z.iter().map(|z| z.exp()).sum::<f64>().ln() - z[label];
            }
        }
        sum
    }

    fn block(&self, block: u64, x: &mut Rows) {
        let at = Some(block);
        let w = |part| self.weight(at, part);
        let qkv: Rows = x
            .iter()
            .enumerate()
            .map(|(i, x)| {
                let n = self.norm(x, at, Part::AttnNorm, Part::AttnNormBias);
                let mut z = product(&n, w(Part::Qkv).unwrap(), w(Part::QkvBias));
                self.turn(block, i, &mut z);
                z
            })
            .collect();
        for (i, x) in x.iter_mut().enumerate() {
            let o = self.attend(block, &qkv, i);
            add(x, &product(&o, w(Part::O).unwrap(), w(Part::OBias)));
            let n = self.norm(x, at, Part::MlpNorm, Part::MlpNormBias);
            let inner = match w(Part::GateUp) {
                Some(gate_up) => {
                    let both = product(&n, gate_up, w(Part::GateUpBias));
                    let (gate, up) = both.split_at(both.len() / 2);
                    let pairs = gate.iter().zip(up);
                    pairs.map(|(&g, u)| self.activation(g) * u).collect()
                }
                None => {
                    let up = product(&n, w(Part::Up).unwrap(), w(Part::UpBias));
                    up.into_iter()
                        .map(|u| self.activation(u))
                        .collect::<Vec<_>>()
                }
            };
            add(
                x,
                &product(&inner, w(Part::Down).unwrap(), w(Part::DownBias)),
            );
        }
    }

    /// Norms q and k of a token and rotates them.
    fn turn(&self, block: u64, position: usize, z: &mut [f64]) {
        let width = self.config.head_dim as usize;
        let heads = z.chunks_mut(width).enumerate();
        for (h, head) in heads.take((self.config.heads + self.config.kv_heads) as usize) {
            let part = if h < self.config.heads as usize {
                Part::QNorm
            } else {
                Part::KNorm
            };
            if self.config.qk_norm {
                // Without a shift, whatever the kind.
                let normed = self.norm(head, Some(block), part, part);
                head.copy_from_slice(&normed);
            }
            let Some(table) = &self.table else { continue };
            for i in 0..width / 2 {
                let at = position * width / 2 + i;
                let (c, s) = (f64::from(table.cos[at]), f64::from(table.sin[at]));
                let (a, b) = (head[i], head[i + width / 2]);
                (head[i], head[i + width / 2]) = (a * c - b * s, b * c + a * s);
            }
        }
    }

    fn attend(&self, block: u64, qkv: &Rows, i: usize) -> Vec<f64> {
        let (heads, kv_heads) = (self.config.heads as usize, self.config.kv_heads as usize);
        let width = self.config.head_dim as usize;
        let window = self.config.windows[block as usize].unwrap_or(u64::MAX) as usize;
        let at = |token: usize, head: usize| &qkv[token][head * width..][..width];
        let mut o = Vec::new();
        for head in 0..heads {
            let kv = head / (heads / kv_heads);
            let seen = (0..=i).filter(|j| i - j < window);
            let weight = |j: usize| {
                let pairs = at(i, head).iter().zip(at(j, heads + kv));
                (pairs.map(|(q, k)| q * k).sum::<f64>() / (width as f64).sqrt()).exp()
            };
            let sum: f64 = seen.clone().map(weight).sum();
            for e in 0..width {
                let v = |j: usize| at(j, heads + kv_heads + kv)[e];
                o.push(seen.clone().map(|j| weight(j) / sum * v(j)).sum());
            }
        }
        o
    }

    fn norm(&self, x: &[f64], block: Option<u64>, scale: Part, shift: Part) -> Vec<f64> {
        let n = x.len() as f64;
        let kind = self.config.norm;
        let mean = if kind == NormKind::Layer {
            x.iter().sum::<f64>() / n
        } else {
            0.0
        };
        let variance = x.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / n;
        let one = if kind == NormKind::RmsPlusOne {
            1.0
        } else {
            0.0
        };
        let root = (variance + self.config.norm_eps).sqrt();
        let scale = self.weight(block, scale).unwrap();
        let mut y: Vec<f64> = x
            .iter()
            .zip(scale)
            .map(|(x, w)| (one + w) * (x - mean) / root)
            .collect();
        if kind == NormKind::Layer {
            add(&mut y, self.weight(block, shift).unwrap());
        }
        y
    }

    fn activation(&self, x: f64) -> f64 {
        match self.config.activation {
            Activation::Silu => x / (1.0 + (-x).exp()),
            Activation::Gelu => unreachable!("no family of these tests has it"),
            Activation::GeluTanh => {
                let inner = (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x.powi(3));
                0.5 * x * (1.0 + inner.tanh())
            }
        }
    }
}

/// `W·x + b`.
fn product(x: &[f64], w: &[f64], bias: Option<&[f64]>) -> Vec<f64> {
    let rows = w.chunks(x.len());
    let mut y: Vec<f64> = rows
        .map(|row| row.iter().zip(x).map(|(w, x)| w * x).sum())
        .collect();
    if let Some(bias) = bias {
        add(&mut y, bias);
    }
    y
}

fn add(a: &mut [f64], b: &[f64]) {
    for (a, b) in a.iter_mut().zip(b) {
        *a += b;
    }
}
