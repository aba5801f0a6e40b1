//! What an operator costs: its time by the profile, its FLOPs, what the kernels need beside it.

use ebbtide_solver::problem::Scaling;
use ebbtide_solver::units::Bytes;

use super::{Charge, Flops, Lowering, LONGEST};
use crate::model::graph::{Cut, Operator, Product, Shared, Stage, Work};
use crate::profile::cost::{Attention, AttentionDirection, Estimate, Gemm, GemmDirection};

impl Lowering<'_> {
    pub(super) fn cost(&mut self, operator: &Operator) -> (Scaling, Flops, Vec<Charge>) {
        let by_rows = matches!(operator.cut, Cut::Rows | Cut::RowsAndGroups);
        let tile = match operator.stage {
            Stage::Head => self.tiling.head_tile,
            _ => self.tiling.tile,
        };
        let rows = if by_rows {
            tile.min(self.workload.tokens())
        } else {
            self.workload.tokens()
        };
        let groups = match operator.cut {
            Cut::RowsAndGroups | Cut::Groups => u64::from(self.tiling.groups),
            Cut::Rows | Cut::Nothing => 1,
        };
        let launch = self.profile.launch;
        let (mut picos, mut flops) = (Scaling::default(), Flops::default());
        let mut charges = Vec::new();
        for &work in &operator.work {
            let by_rows = by_rows && !matches!(work, Work::Drawn { .. });
            let charge = self.charge(work, rows, groups, operator);
            charges.push(charge);
            let (estimate, count) = self.estimate(charge, operator.name);
            if estimate.time > LONGEST {
                self.too_long = Some(operator.name);
                continue;
            }
            if let Some(why) = estimate.extrapolated {
                self.extrapolated.insert(format!("{}: {why}", kind(work)));
            }
            if by_rows {
                picos.fixed += launch.get() * 1000;
                picos.row += estimate.time.saturating_sub(launch).get() * 1000 / rows.max(1);
                flops.row += count / u128::from(rows.max(1));
            } else {
                picos.fixed += estimate.time.get() * 1000;
                flops.fixed += count;
            }
        }
        (picos, flops, charges)
    }

    /// Time and FLOPs of a kernel of an operator.
    pub(super) fn estimate(&self, charge: Charge, operator: &str) -> (Estimate, u128) {
        match charge {
            Charge::Gemm(gemm) => (self.costs.gemm(&gemm), gemm.flops()),
            Charge::Attention(attention) => (self.costs.attention(&attention), attention.flops()),
            Charge::Kernel(bytes) => (self.costs.operator(operator, bytes), 0),
        }
    }

    /// The shape of one run over `rows` rows of one of `groups` groups.
    fn charge(&self, work: Work, rows: u64, groups: u64, operator: &Operator) -> Charge {
        match work {
            Work::Gemm {
                k,
                n,
                product,
                shared,
            } => {
                Charge::Gemm(Gemm {
                    m: rows,
                    k: if shared == Shared::Input {
                        k / groups
                    } else {
                        k
                    },
                    n: if shared == Shared::Output {
                        n / groups
                    } else {
                        n
                    },
                    direction: match product {
                        Product::Forward => GemmDirection::Forward,
                        Product::InputGradient => GemmDirection::Dgrad,
                        Product::WeightGradient => GemmDirection::Wgrad,
                    },
                    // Residuals and sums over head groups and tiles are added to what is there.
                    accumulate: product == Product::WeightGradient
                        || matches!(operator.name, "output_projection" | "down_projection")
                        || (operator.name == "qkv_input_gradient" && groups > 1),
                })
            }
            Work::Attention { backward, window } => {
                Charge::Attention(self.attention(backward, window))
            }
            Work::Elementwise { elements } => {
                let bytes = elements * rows / groups * self.workload.dtype.bytes();
                Charge::Kernel(Bytes::new(bytes))
            }
            Work::Drawn { elements } => {
                Charge::Kernel(Bytes::new(elements * self.workload.dtype.bytes()))
            }
            Work::Update { .. } => unreachable!("updates are lowered with their states"),
        }
    }

    fn attention(&self, backward: bool, window: Option<u64>) -> Attention {
        let groups = u64::from(self.tiling.groups);
        Attention {
            tokens: self.workload.seq,
            batch: self.workload.batch,
            heads: self.model.heads / groups,
            kv_heads: self.model.kv_heads / groups,
            head_dim: self.model.head_dim,
            window,
            direction: if backward {
                AttentionDirection::Backward
            } else {
                AttentionDirection::Forward
            },
        }
    }

    pub(super) fn workspace(&self, operator: &Operator) -> Scaling {
        let bytes = operator.work.iter().map(|&work| match work {
            Work::Attention { backward, window } => self
                .costs
                .attention_workspace(&self.attention(backward, window))
                .get(),
            Work::Drawn { elements } => elements * self.workload.dtype.bytes(),
            _ => 0,
        });
        Scaling::fixed(bytes.sum())
    }
}

const fn kind(work: Work) -> &'static str {
    match work {
        Work::Gemm { .. } => "matrix product",
        Work::Attention { .. } => "attention",
        Work::Elementwise { .. } => "element-wise",
        Work::Drawn { .. } => "random numbers",
        Work::Update { .. } => "update",
    }
}
