//! Operators on heads: projection to q, k and v with norms and rotation, and attention.

use super::super::ops::attention::Attention;
use super::super::ops::rotary::{self, Heads, Scales};
use super::super::scratch::Loan;
use super::{norm_of, Outcome, Runner};
use crate::device::operator::{
    AttentionShape, HeadNorms, HeadNormsBackward, HeadShape, Operator, Rows,
};
use crate::device::Cause;
use crate::profile::Dtype;

impl<'a> Runner<'a> {
    pub(super) fn run_rotary(&self, operator: &Operator) -> Outcome {
        match *operator {
            Operator::QkvProjection {
                rows,
                heads,
                x,
                ref weight,
                ref bias,
                norms,
                rotate,
                qkv,
                workspace: _,
            } => {
                let mut out = self.project(rows.count, x, weight, bias)?;
                if out.len() as u64 != rows.count * heads.qkv_width() {
                    return Err(Cause::Refused("weights of other heads".into()));
                }
                self.norm_and_rotate(rows, heads, norms, rotate, &mut out)?;
                self.store(qkv, &out)
            }
            Operator::RotaryBackward {
                rows,
                heads,
                rotate,
                norms,
                d_qkv,
            } => {
                let mut d = self.load(d_qkv, rows.count * heads.qkv_width())?;
                if rotate {
                    for (row, d) in self.positions(rows).zip(rows_of(heads, &mut d)) {
                        rotary::rotate_back(heads_of(heads), d, self.turn(row)?);
                    }
                }
                if let Some(norms) = norms {
                    self.head_norms_backward(rows, heads, norms, rotate, &mut d)?;
                }
                self.store(d_qkv, &d)
            }
            _ => unreachable!("dispatched by name"),
        }
    }

    fn positions(&self, rows: Rows) -> impl Iterator<Item = u64> {
        (rows.first..rows.first + rows.count).map(move |row| row % rows.sequence)
    }

    fn turn(&self, position: u64) -> Result<rotary::Turn<'a>, Cause> {
        let table = self.state.reservation.rotary.as_ref();
        let table = table
            .filter(|table| position < table.positions)
            .ok_or_else(|| {
                Cause::Refused(format!("no rotation of position {position} was reserved"))
            })?;
        let half = table.half as usize;
        let row = position as usize * half..(position as usize + 1) * half;
        Ok((&table.cos[row.clone()], &table.sin[row]))
    }

    fn scales(&self, norms: &HeadNorms) -> Result<(Loan<'a>, Loan<'a>), Cause> {
        if norms.norm.kind == crate::model::NormKind::Layer {
            return Err(Cause::Refused("layer norms of q and k".into()));
        }
        let width = norms.norm.width;
        Ok((
            self.load(norms.q_scale, width)?,
            self.load(norms.k_scale, width)?,
        ))
    }

    fn norm_and_rotate(
        &self,
        rows: Rows,
        heads: HeadShape,
        norms: Option<HeadNorms>,
        rotate: bool,
        out: &mut [f32],
    ) -> Outcome {
        if let Some(norms) = norms {
            let (q, k) = self.scales(&norms)?;
            let scales = Scales {
                norm: norm_of(norms.norm),
                q: &q,
                k: &k,
            };
            let turned = heads_of(heads).turned();
            let mut inverses = self.scratch.take(rows.count as usize * turned);
            let of_rows = inverses.chunks_exact_mut(turned);
            for (row, inverses) in rows_of(heads, out).zip(of_rows) {
                rotary::norm_heads(heads_of(heads), row, &scales, inverses);
            }
            self.store_as(norms.inverse_deviations, &inverses, Dtype::F32)?;
        }
        if rotate {
            for (position, row) in self.positions(rows).zip(rows_of(heads, out)) {
                rotary::rotate(heads_of(heads), row, self.turn(position)?);
            }
        }
        Ok(())
    }

    fn head_norms_backward(
        &self,
        rows: Rows,
        heads: HeadShape,
        given: HeadNormsBackward,
        rotate: bool,
        d: &mut [f32],
    ) -> Outcome {
        let (q, k) = self.scales(&given.norms)?;
        let scales = Scales {
            norm: norm_of(given.norms.norm),
            q: &q,
            k: &k,
        };
        let turned = heads_of(heads).turned();
        let qkv = self.load(given.qkv, rows.count * heads.qkv_width())?;
        let inverses = given.norms.inverse_deviations;
        let inverses = self.load_as(inverses, rows.count * turned as u64, Dtype::F32)?;
        let mut d_q = self.scratch.zeros(heads.kv_width() as usize);
        let mut d_k = self.scratch.zeros(heads.kv_width() as usize);
        let forward = qkv.chunks_exact(heads.qkv_width() as usize);
        let forward = forward.zip(inverses.chunks_exact(turned));
        let of_rows = self.positions(rows).zip(rows_of(heads, d)).zip(forward);
        for ((position, d), row) in of_rows {
            let by = rotate.then(|| self.turn(position)).transpose()?;
            let sums = (&mut d_q[..], &mut d_k[..]);
            rotary::norm_heads_backward(heads_of(heads), row, d, by, &scales, sums);
        }
        self.store_or_add(given.d_q_scale, &mut d_q, given.accumulate)?;
        self.store_or_add(given.d_k_scale, &mut d_k, given.accumulate)
    }

    pub(super) fn run_attention(&self, operator: &Operator) -> Outcome {
        match *operator {
            Operator::Attention {
                shape, qkv, o, lse, ..
            } => {
                let rows = shape.sequences * shape.sequence;
                let qkv = self.load(qkv, rows * shape.heads.qkv_width())?;
                let mut out = self
                    .scratch
                    .take((rows * shape.heads.query_width()) as usize);
                let mut sums = self.scratch.take((rows * shape.heads.heads) as usize);
                attention_of(shape).forward(&qkv, &mut out, &mut sums);
                self.store(o, &out)?;
                self.store_as(lse, &sums, Dtype::F32)
            }
            Operator::AttentionBackward {
                shape,
                qkv,
                o,
                lse,
                d_o,
                d_qkv,
                ..
            } => {
                let rows = shape.sequences * shape.sequence;
                let width = shape.heads.query_width();
                let qkv = self.load(qkv, rows * shape.heads.qkv_width())?;
                let o = self.load(o, rows * width)?;
                let lse = self.load_as(lse, rows * shape.heads.heads, Dtype::F32)?;
                let d_o = self.load(d_o, rows * width)?;
                let mut out = self.scratch.take(qkv.len());
                attention_of(shape).backward((&qkv, &o, &lse, &d_o), &mut out);
                self.store(d_qkv, &out)
            }
            _ => unreachable!("dispatched by name"),
        }
    }
}

const fn heads_of(heads: HeadShape) -> Heads {
    Heads {
        heads: heads.heads as usize,
        kv_heads: heads.kv_heads as usize,
        head_dim: heads.head_dim as usize,
    }
}

fn rows_of(heads: HeadShape, all: &mut [f32]) -> impl Iterator<Item = &mut [f32]> {
    all.chunks_exact_mut(heads.qkv_width() as usize)
}

fn attention_of(shape: AttentionShape) -> Attention {
    Attention {
        heads: heads_of(shape.heads),
        sequences: shape.sequences as usize,
        sequence: shape.sequence as usize,
        window: shape.window.map(|window| window as usize),
    }
}
