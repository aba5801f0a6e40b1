//! Runs one operator: operands from memory to floats, arithmetic, results back, rounded once.

mod heads;
mod low_rank;
mod packed;
mod products;
mod rows;
mod tensors;

use super::ops::linear;
use super::ops::norm::Norm;
use super::scratch::{Loan, Scratch};
use super::state::State;
use super::update;
use crate::device::operator::{NormShape, Operator, Panel};
use crate::device::{Cause, Region};
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
            self.sized(panel.region, panel.span(), self.dtype())?;
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
            Operator::TensorUpdate { ref tensors, .. } => self.run_tensors(tensors),
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
            Operator::Project { .. } => self.run_project(operator),
            Operator::CompressGradient {
                ref tensors,
                accumulate,
                ..
            } => self.run_compress(tensors, accumulate),
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
}

fn norm_of(norm: NormShape) -> Norm<f32> {
    Norm {
        kind: norm.kind,
        width: norm.width as usize,
        epsilon: norm.epsilon as f32,
    }
}

fn bias_size(elements: u64) -> Cause {
    Cause::Refused(format!(
        "a bias that has not the {elements} elements of its layer"
    ))
}
