//! Operators that treat every row alone: embedding, norms, non-linearities, the loss.

use super::super::memory::rounded;
use super::super::ops::{activation, cross_entropy, embedding};
use super::super::state::Batch;
use super::{norm_of, Outcome, Runner};
use crate::device::operator::{Operator, Rows};
use crate::device::{Cause, Region, IGNORED_LABEL};
use crate::profile::Dtype;

impl Runner<'_> {
    pub(super) fn run_embedding(&self, operator: &Operator) -> Outcome {
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
        of: impl Fn(&Batch, usize) -> R,
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

    pub(super) fn run_norm(&self, operator: &Operator) -> Outcome {
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

    pub(super) fn run_rows(&self, operator: &Operator) -> Outcome {
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
