//! Linear layers and their gradients.

use super::super::memory::rounded;
use super::super::ops::linear;
use super::super::ops::packed::{round_columns, round_rows};
use super::super::scratch::Loan;
use super::{Outcome, Runner};
use crate::device::arithmetic::Arithmetic;
use crate::device::operator::{Operator, Panel};
use crate::device::packed::Storage;
use crate::device::{Cause, Region};

impl<'a> Runner<'a> {
    fn arithmetic(&self) -> Arithmetic {
        self.state.options.arithmetic
    }

    /// Rounds weights for training that is aware of it, and then to the step's type, in which they
    /// are multiplied.
    fn round_aware(&self, format: Storage, w: &mut [f32], inputs: u64) {
        round_rows(format, w, inputs as usize);
        w.iter_mut().for_each(|w| *w = rounded(*w, self.dtype()));
    }

    /// `x·Wᵀ + b` in scratch.
    pub(super) fn project(
        &self,
        rows: u64,
        x: Region,
        weight: &[Panel],
        bias: &[Region],
    ) -> Result<Loan<'a>, Cause> {
        let inputs = weight.first().map_or(0, |panel| panel.columns);
        let mut x = self.load(x, rows * inputs)?;
        let (mut w, outputs) = self.load_panels(weight, inputs)?;
        if let Some(format) = self.arithmetic().format() {
            match self.arithmetic().is_aware() {
                true => self.round_aware(format, &mut w, inputs),
                false => {
                    round_rows(format, &mut w, inputs as usize);
                    round_rows(format, &mut x, inputs as usize);
                }
            }
        }
        let mut y = self.scratch.take((rows * outputs) as usize);
        linear::forward(&x, &w, &mut y, sizes(rows, inputs, outputs));
        if let Some(bias) = self.load_bias(bias, outputs)? {
            linear::add_bias(&mut y, &bias);
        }
        Ok(y)
    }

    pub(super) fn run_linear(&self, operator: &Operator) -> Outcome {
        match *operator {
            Operator::Linear {
                rows,
                x,
                ref weight,
                ref bias,
                residual,
                y,
                workspace: _,
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
                workspace: _,
            } => {
                let inputs = weight.first().map_or(0, |panel| panel.columns);
                let (mut w, outputs) = self.load_panels(weight, inputs)?;
                let mut d_y = self.load(d_y, rows * outputs)?;
                match (self.arithmetic().format(), self.arithmetic().is_aware()) {
                    (None, _) => {}
                    (Some(format), true) => self.round_aware(format, &mut w, inputs),
                    (Some(format), false) => {
                        round_rows(format, &mut d_y, outputs as usize);
                        round_columns(format, &mut w, inputs as usize);
                    }
                }
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
}

fn sizes(rows: u64, inputs: u64, outputs: u64) -> (usize, usize, usize) {
    (rows as usize, inputs as usize, outputs as usize)
}
