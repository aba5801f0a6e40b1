//! What products in 8 bits change of a problem: times and scratch memory, nothing that is saved.

use ebbtide_solver::units::Bytes;

use super::{is_of_method, Charge, Lowered};
use crate::device::arithmetic::{Arithmetic, Scratch};
use crate::error::Result;
use crate::profile::cost::GemmDirection;
use crate::profile::{Dtype, Profile};

impl Lowered {
    /// The same where linear layers multiply so. Products take what the profile's FP8 peak makes of
    /// their time, integers too; rounding an operand is one pass over it into scratch memory.
    ///
    /// # Errors
    /// Products in 8 bits by a profile without a peak for FP8.
    pub fn in_arithmetic(
        mut self,
        arithmetic: Arithmetic,
        profile: &Profile,
        dtype: Dtype,
    ) -> Result<Self> {
        if arithmetic == Arithmetic::Plain {
            return Ok(self);
        }
        let plain = profile.costs(dtype)?;
        let low = match arithmetic.is_aware() {
            true => None,
            false => Some(profile.costs(Dtype::Fp8).map_err(|error| {
                let hint = "products in 8 bits are planned by that peak: add it to the profile";
                error.within(arithmetic).hint(hint)
            })?),
        };
        let width = dtype.bytes();
        let ops = self.problem.ops.values_mut();
        for (op, charges) in ops.zip(self.charges.values()) {
            let method = is_of_method(&op.name);
            for charge in charges.iter().filter(|_| !method) {
                let Charge::Gemm(gemm) = *charge else {
                    continue;
                };
                if gemm.direction == GemmDirection::Wgrad {
                    continue;
                }
                let weight = gemm.k * gemm.n;
                let (summed, made) = match gemm.direction {
                    GemmDirection::Forward => (gemm.k, gemm.n),
                    _ => (gemm.n, gemm.k),
                };
                let scratch = Scratch::new(arithmetic, (summed, made), dtype);
                op.workspace.fixed += scratch.fixed;
                op.workspace.row += scratch.row;
                let rounded = |elements: u64, to: u64| {
                    let traffic = Bytes::new(elements * (width + to));
                    plain.operator("cast", traffic).time.get() * 1000
                };
                let Some(low) = &low else {
                    op.picos.fixed += rounded(weight, width);
                    continue;
                };
                op.picos.fixed += rounded(weight, 1);
                let rows = gemm.m.max(1);
                let (before, now) = (plain.gemm(&gemm).time, low.gemm(&gemm).time);
                let saved = before.saturating_sub(now).get() * 1000 / rows;
                op.picos.row =
                    op.picos.row.saturating_sub(saved) + rounded(rows * summed, 1) / rows;
            }
        }
        if !arithmetic.is_aware() {
            let why = format!("{arithmetic}: nothing is measured; times by the peak of fp8");
            self.extrapolated.insert(why);
        }
        Ok(self)
    }
}
