//! Runs one operator: operands from memory to floats, arithmetic, results back, rounded once.

use super::memory::rounded;
use super::ops::attention::Attention;
use super::ops::norm::Norm;
use super::ops::rotary::{self, Heads, Scales};
use super::ops::{activation, cross_entropy, embedding, linear};
use super::scratch::{Loan, Scratch};
use super::state::State;
use super::update;
use crate::device::operator::{
    AttentionShape, HeadNorms, HeadNormsBackward, HeadShape, NormShape, Operator, Panel, Rows,
};
use crate::device::{Cause, Region, IGNORED_LABEL};
use crate::profile::Dtype;

/// The result of an operator.
pub type Outcome = Result<(), Cause>;

/// Where operators find what they need.
pub struct Runner<'a> {
    /// Memories and batches.
    pub state: &'a State,
    /// The thread's vectors.
    pub scratch: &'a Scratch,
    /// Whether it runs on the host's threads.
    pub on_host: bool,
}

impl<'a> Runner<'a> {
    fn dtype(&self) -> Dtype {
        self.state.reservation.dtype
    }

    // ---- operands -----------------------------------------------------------------------------

    fn sized(&self, region: Region, elements: u64, dtype: Dtype) -> Result<usize, Cause> {
        if region.bytes != elements * dtype.bytes() {
            return Err(Cause::Refused(format!(
                "a region of {} bytes for {elements} elements of {dtype}",
                region.bytes
            )));
        }
        self.state.check(region).map_err(|failure| failure.cause)?;
        Ok(elements as usize)
    }

    fn load_as(&self, region: Region, elements: u64, dtype: Dtype) -> Result<Loan<'a>, Cause> {
        let mut loan = self.scratch.take(self.sized(region, elements, dtype)?);
        let memory = self.state.memory(region.space);
        memory.load(region.offset_bytes, dtype, &mut loan);
        Ok(loan)
    }

    fn load(&self, region: Region, elements: u64) -> Result<Loan<'a>, Cause> {
        self.load_as(region, elements, self.dtype())
    }

    fn load_optional(
        &self,
        region: Option<Region>,
        elements: u64,
    ) -> Result<Option<Loan<'a>>, Cause> {
        region.map(|region| self.load(region, elements)).transpose()
    }

    fn store_as(&self, region: Region, values: &[f32], dtype: Dtype) -> Outcome {
        self.sized(region, values.len() as u64, dtype)?;
        let memory = self.state.memory(region.space);
        memory.store(region.offset_bytes, dtype, values);
        Ok(())
    }

    fn store(&self, region: Region, values: &[f32]) -> Outcome {
        self.store_as(region, values, self.dtype())
    }

    /// Stores, or adds to what is there.
    fn store_or_add(&self, region: Region, values: &mut [f32], accumulate: bool) -> Outcome {
        if accumulate {
            let old = self.load(region, values.len() as u64)?;
            linear::add(values, &old);
        }
        self.store(region, values)
    }

    /// The blocks of a matrix one below the other, each `columns` wide.
    fn load_panels(&self, panels: &[Panel], columns: u64) -> Result<(Loan<'a>, u64), Cause> {
        let rows: u64 = panels.iter().map(|p| p.rows).sum();
        let mut all = self.scratch.take((rows * columns) as usize);
        let size = self.dtype().bytes();
        let mut first = 0;
        for panel in panels {
            if panel.columns != columns {
                return Err(Cause::Refused(format!(
                    "a weight of {} columns for inputs of {columns}",
                    panel.columns
                )));
            }
            let span = panel.rows.saturating_sub(1) * panel.stride + columns;
            self.sized(panel.region, span, self.dtype())?;
            let (runs, length) = match panel.stride == columns {
                true => (1, panel.rows * columns),
                false => (panel.rows, columns),
            };
            let memory = self.state.memory(panel.region.space);
            for run in 0..runs {
                let out = &mut all[first..first + length as usize];
                let offset = panel.region.offset_bytes + run * panel.stride * size;
                memory.load(offset, self.dtype(), out);
                first += length as usize;
            }
        }
        Ok((all, rows))
    }

    fn load_bias(&self, pieces: &[Region], elements: u64) -> Result<Option<Loan<'a>>, Cause> {
        if pieces.is_empty() {
            return Ok(None);
        }
        let mut all = self.scratch.take(elements as usize);
        let mut first = 0;
        for &piece in pieces {
            let part = self.load(piece, piece.bytes / self.dtype().bytes())?;
            let end = first + part.len();
            let place = all.get_mut(first..end).ok_or_else(|| bias_size(elements))?;
            place.copy_from_slice(&part);
            first = end;
        }
        if first != elements as usize {
            return Err(bias_size(elements));
        }
        Ok(Some(all))
    }

    // ---- operators ----------------------------------------------------------------------------

    /// Runs an operator.
    pub fn run(&self, operator: &Operator) -> Outcome {
        match *operator {
            Operator::Zero { region } => {
                self.state.check(region).map_err(|failure| failure.cause)?;
                let memory = self.state.memory(region.space);
                memory.fill(region.offset_bytes, region.bytes, 0);
                Ok(())
            }
            Operator::Update { rule, ref slices } => {
                update::run(self.state, rule, slices, self.on_host)
            }
            Operator::GradientNorm {
                ref gradients,
                slot,
            } => update::square(self.state, gradients, slot, self.on_host),
            ref other if self.on_host => Err(Cause::Refused(format!(
                "{} does not run on the host",
                other.name()
            ))),
            Operator::Embedding { .. } | Operator::EmbeddingBackward { .. } => {
                self.run_embedding(operator)
            }
            Operator::Norm { .. } | Operator::NormBackward { .. } => self.run_norm(operator),
            Operator::Linear { .. }
            | Operator::LinearInputGradient { .. }
            | Operator::LinearWeightGradient { .. } => self.run_linear(operator),
            Operator::QkvProjection { .. } | Operator::RotaryBackward { .. } => {
                self.run_rotary(operator)
            }
            Operator::Attention { .. } | Operator::AttentionBackward { .. } => {
                self.run_attention(operator)
            }
            Operator::Activation { .. }
            | Operator::ActivationBackward { .. }
            | Operator::CrossEntropy { .. } => self.run_rows(operator),
        }
    }

    fn run_embedding(&self, operator: &Operator) -> Outcome {
        match *operator {
            Operator::Embedding {
                rows,
                micro_batch,
                weight,
                vocab,
                positions,
                width,
                scale,
                x,
            } => {
                let scale = scale.map(|c| rounded(c as f32, self.dtype()));
                let mut out = self.scratch.take((rows.count * width) as usize);
                let vectors = out.chunks_exact_mut(width as usize);
                for (row, out) in self.tokens(rows, micro_batch)?.iter().zip(vectors) {
                    let (token, position) = *row;
                    let vector =
                        self.load(vector_of(weight, token, vocab, width, self.dtype())?, width)?;
                    let at = positions.map(|p| self.position(p, position, width));
                    let position = self.load_optional(at.transpose()?, width)?;
                    embedding::forward(scale, &vector, position.as_deref(), out);
                }
                self.store(x, &out)
            }
            Operator::EmbeddingBackward {
                rows,
                micro_batch,
                d_x,
                width,
                scale,
                d_weight,
                vocab,
                d_positions,
            } => {
                let scale = scale.map(|c| rounded(c as f32, self.dtype()));
                let d_x = self.load(d_x, rows.count * width)?;
                let vectors = d_x.chunks_exact(width as usize);
                for (row, d_x) in self.tokens(rows, micro_batch)?.iter().zip(vectors) {
                    let (token, position) = *row;
                    let place = vector_of(d_weight, token, vocab, width, self.dtype())?;
                    let mut vector = self.load(place, width)?;
                    embedding::backward(scale, d_x, &mut vector);
                    self.store(place, &vector)?;
                    if let Some(d_positions) = d_positions {
                        let place = self.position(d_positions, position, width)?;
                        let mut vector = self.load(place, width)?;
                        embedding::backward(None, d_x, &mut vector);
                        self.store(place, &vector)?;
                    }
                }
                Ok(())
            }
            _ => unreachable!("dispatched by name"),
        }
    }

    /// Token id and position of every row.
    fn tokens(&self, rows: Rows, micro_batch: u32) -> Result<Vec<(u64, u64)>, Cause> {
        self.of_batch(rows, micro_batch, |batch, row| {
            (u64::from(batch.tokens[row]), row as u64 % rows.sequence)
        })
    }

    fn of_batch<R>(
        &self,
        rows: Rows,
        micro_batch: u32,
        of: impl Fn(&super::state::Batch, usize) -> R,
    ) -> Result<Vec<R>, Cause> {
        let batch = self.state.batches.get(micro_batch as usize);
        let batch = batch.map(|batch| batch.read().unwrap_or_else(|e| e.into_inner()));
        let end = rows.first + rows.count;
        match batch {
            Some(batch) if end <= batch.tokens.len() as u64 => Ok((rows.first..end)
                .map(|row| of(&batch, row as usize))
                .collect()),
            _ => Err(Cause::Refused(format!(
                "rows {}..{end} of micro-batch {micro_batch} were not loaded",
                rows.first
            ))),
        }
    }

    fn position(&self, table: Region, position: u64, width: u64) -> Result<Region, Cause> {
        let rows = table.bytes / (width * self.dtype().bytes());
        vector_of(table, position, rows, width, self.dtype())
    }

    fn run_norm(&self, operator: &Operator) -> Outcome {
        match *operator {
            Operator::Norm {
                norm,
                rows,
                x,
                scale,
                shift,
                y,
            } => {
                let x = self.load(x, rows * norm.width)?;
                let scale = self.load(scale, norm.width)?;
                let shift = self.load_optional(shift, norm.width)?;
                let mut out = self.scratch.take(x.len());
                norm_of(norm).forward(&x, &scale, shift.as_deref(), &mut out);
                self.store(y, &out)
            }
            Operator::NormBackward {
                norm,
                rows,
                x,
                scale,
                d_y,
                d_x,
                accumulate_x,
                d_scale,
                d_shift,
                accumulate_weight,
            } => {
                let x = self.load(x, rows * norm.width)?;
                let scale = self.load(scale, norm.width)?;
                let d_y = self.load(d_y, rows * norm.width)?;
                let mut out = self.scratch.take(x.len());
                let mut of_scale = self.scratch.zeros(norm.width as usize);
                let mut of_shift = d_shift.map(|_| self.scratch.zeros(norm.width as usize));
                norm_of(norm).backward(
                    (&x, &scale, &d_y),
                    &mut out,
                    &mut of_scale,
                    of_shift.as_deref_mut(),
                );
                self.store_or_add(d_x, &mut out, accumulate_x)?;
                self.store_or_add(d_scale, &mut of_scale, accumulate_weight)?;
                match (d_shift, of_shift) {
                    (Some(region), Some(mut sums)) => {
                        self.store_or_add(region, &mut sums, accumulate_weight)
                    }
                    _ => Ok(()),
                }
            }
            _ => unreachable!("dispatched by name"),
        }
    }

    /// `x·Wᵀ + b` in scratch.
    fn project(
        &self,
        rows: u64,
        x: Region,
        weight: &[Panel],
        bias: &[Region],
    ) -> Result<Loan<'a>, Cause> {
        let inputs = weight.first().map_or(0, |panel| panel.columns);
        let x = self.load(x, rows * inputs)?;
        let (w, outputs) = self.load_panels(weight, inputs)?;
        let mut y = self.scratch.take((rows * outputs) as usize);
        linear::forward(&x, &w, &mut y, sizes(rows, inputs, outputs));
        if let Some(bias) = self.load_bias(bias, outputs)? {
            linear::add_bias(&mut y, &bias);
        }
        Ok(y)
    }

    fn run_linear(&self, operator: &Operator) -> Outcome {
        match *operator {
            Operator::Linear {
                rows,
                x,
                ref weight,
                ref bias,
                residual,
                y,
            } => {
                let mut out = self.project(rows, x, weight, bias)?;
                if let Some(residual) = self.load_optional(residual, out.len() as u64)? {
                    linear::add(&mut out, &residual);
                }
                self.store(y, &out)
            }
            Operator::LinearInputGradient {
                rows,
                d_y,
                ref weight,
                d_x,
                accumulate,
            } => {
                let inputs = weight.first().map_or(0, |panel| panel.columns);
                let (w, outputs) = self.load_panels(weight, inputs)?;
                let d_y = self.load(d_y, rows * outputs)?;
                let mut out = self.scratch.take((rows * inputs) as usize);
                linear::input_gradient(&d_y, &w, &mut out, sizes(rows, inputs, outputs));
                self.store_or_add(d_x, &mut out, accumulate)
            }
            Operator::LinearWeightGradient {
                rows,
                x,
                inputs,
                d_y,
                outputs,
                d_weight,
                d_bias,
                accumulate,
            } => {
                let x = self.load(x, rows * inputs)?;
                let d_y = self.load(d_y, rows * outputs)?;
                let mut out = self.scratch.take((outputs * inputs) as usize);
                linear::weight_gradient(&d_y, &x, &mut out, sizes(rows, inputs, outputs));
                self.store_or_add(d_weight, &mut out, accumulate)?;
                if let Some(d_bias) = d_bias {
                    let mut sums = self.scratch.zeros(outputs as usize);
                    linear::sum_rows(&d_y, &mut sums);
                    self.store_or_add(d_bias, &mut sums, accumulate)?;
                }
                Ok(())
            }
            _ => unreachable!("dispatched by name"),
        }
    }

    fn run_rotary(&self, operator: &Operator) -> Outcome {
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

    fn run_attention(&self, operator: &Operator) -> Outcome {
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

    fn run_rows(&self, operator: &Operator) -> Outcome {
        match *operator {
            Operator::Activation {
                kind,
                gated,
                rows,
                width,
                x,
                h,
            } => {
                let x = self.load(x, rows * width * if gated { 2 } else { 1 })?;
                let mut out = self.scratch.take((rows * width) as usize);
                activation::forward(kind, gated, width as usize, &x, &mut out);
                self.store(h, &out)
            }
            Operator::ActivationBackward {
                kind,
                gated,
                rows,
                width,
                x,
                d_h,
                d_x,
            } => {
                let x = self.load(x, rows * width * if gated { 2 } else { 1 })?;
                let d_h = self.load(d_h, rows * width)?;
                let mut out = self.scratch.take(x.len());
                activation::backward(kind, gated, width as usize, (&x, &d_h), &mut out);
                self.store(d_x, &out)
            }
            Operator::CrossEntropy {
                rows,
                micro_batch,
                vocab,
                logits,
                slot,
            } => {
                let labels = self.of_batch(rows, micro_batch, |batch, row| batch.labels[row])?;
                let mut z = self.load(logits, rows.count * vocab)?;
                let loss_scale = self.state.step().parameters.loss_scale as f32;
                let mut loss = 0.0;
                for (&label, z) in labels.iter().zip(z.chunks_exact_mut(vocab as usize)) {
                    loss += cross_entropy::in_place(z, label_of(label, vocab)?, loss_scale);
                }
                self.store(logits, &z)?;
                self.state.set_loss(slot, loss)
            }
            _ => unreachable!("dispatched by name"),
        }
    }
}

fn bias_size(elements: u64) -> Cause {
    Cause::Refused(format!(
        "a bias that has not the {elements} elements of its layer"
    ))
}

fn sizes(rows: u64, inputs: u64, outputs: u64) -> (usize, usize, usize) {
    (rows as usize, inputs as usize, outputs as usize)
}

fn label_of(label: i32, vocab: u64) -> Result<Option<usize>, Cause> {
    match u64::try_from(label) {
        Ok(label) if label < vocab => Ok(Some(label as usize)),
        Err(_) if label == IGNORED_LABEL => Ok(None),
        _ => Err(Cause::Refused(format!("label {label} of {vocab} tokens"))),
    }
}

fn vector_of(
    table: Region,
    row: u64,
    rows: u64,
    width: u64,
    dtype: Dtype,
) -> Result<Region, Cause> {
    let bytes = width * dtype.bytes();
    if row >= rows || (row + 1) * bytes > table.bytes {
        return Err(Cause::Refused(format!("vector {row} of a table of {rows}")));
    }
    Ok(table.part(row * bytes, bytes))
}

fn norm_of(norm: NormShape) -> Norm<f32> {
    Norm {
        kind: norm.kind,
        width: norm.width as usize,
        epsilon: norm.epsilon as f32,
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
