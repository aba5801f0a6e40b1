//! From an operator to kernels and matrix products in order, with operands rounded where linear
//! layers multiply in 8 bits or train to be rounded.
//!
//! ```text
//! plain     products ─ kernels
//! qat       weight ─ round ─► workspace ─ products ─ kernels
//! 8 bits    weight, x ─ round ─► codes and scales in the workspace
//!             fused   product of codes, scaled as it is stored             ─ kernels
//!             apart   [product into scratch memory ─ scale ─► y] in pieces ─ kernels
//! ```
//! cuBLASLt multiplies codes only where what is summed over lies along memory in both operands, in
//! rows of whole 16 bytes: codes are written so, the weight's columns as rows where `dx` sums over
//! them, and filled up with zeros. Whether a product takes scales for every row and column is the
//! library's choice (since 12.9, on Hopper); where it does not, sums are stored and scaled apart.

use super::launch::rounded::{Codes, Rounding, Sums};
use super::launch::{launches, tasks, Argument, BatchFacts, Buffer, Operands, Task, SCRATCH_BYTES};
use super::products::{plain, products, turned, Numbers, Product, Sizes};
use crate::device::arithmetic::{Arithmetic, Scratch};
use crate::device::operator::Panel;
use crate::device::packed::Storage;
use crate::device::{Failure, Operator, Region, Reservation, Result, StepParameters};

/// The most columns of sums that are stored at once: as many rows as this leaves are long enough
/// for a product.
const COLUMNS: u64 = 16 << 10;

/// What is known where operators are run.
pub(super) struct Setting<'a> {
    pub reservation: &'a Reservation,
    pub batches: &'a [BatchFacts],
    pub step: &'a StepParameters,
    pub arithmetic: Arithmetic,
    /// What a block can have.
    pub shared_bytes: u64,
    /// Whether cuBLASLt has an algorithm for a product.
    pub serves: &'a dyn Fn(&Product) -> Result<bool>,
}

impl Setting<'_> {
    /// What runs an operator, in order.
    ///
    /// # Errors
    /// Shapes that contradict each other, and all that [`launches`] refuses; a layer without the
    /// memory that rounding needs.
    pub fn work(&self, operator: &Operator) -> Result<Vec<Task>> {
        if let Operator::TensorUpdate { .. }
        | Operator::Project { .. }
        | Operator::CompressGradient { .. } = operator
        {
            return tasks(operator, self.reservation, self.step, SCRATCH_BYTES);
        }
        let dtype = self.reservation.dtype;
        let plain = products(operator, dtype)?;
        let mut work = match (self.arithmetic.format(), Layer::of(operator)) {
            (Some(storage), Some(layer)) => self.rounded(operator, &layer, storage)?,
            _ => plain.into_iter().map(Task::Multiply).collect(),
        };
        let after = launches(operator, self.reservation, self.batches, self.shared_bytes)?;
        work.extend(after.into_iter().map(Task::Launch));
        Ok(work)
    }

    fn rounded(&self, operator: &Operator, layer: &Layer, storage: Storage) -> Result<Vec<Task>> {
        let operands = Operands::new(self.reservation, &[])?;
        let rounding = Rounding {
            operands: &operands,
            storage,
        };
        let (inputs, outputs) = layer.sizes();
        let dtype = self.reservation.dtype;
        let (summed, made) = if layer.back {
            (outputs, inputs)
        } else {
            (inputs, outputs)
        };
        let scratch = Scratch::new(self.arithmetic, (summed, made), dtype);
        let needed = scratch.bytes(layer.rows);
        let workspace = layer.workspace.filter(|region| region.bytes >= needed);
        let Some(workspace) = workspace else {
            return Err(Failure::refused(format!(
                "{} without the {needed} bytes of scratch memory that a plan for it has",
                self.arithmetic
            )));
        };
        if self.arithmetic.is_aware() {
            return aware(rounding, operator, (inputs, outputs), workspace);
        }
        let [a, b] = scratch.codes(layer.rows).map(|(codes, scales)| Codes {
            codes: workspace.part(codes.start, codes.end - codes.start),
            scales: workspace.part(scales.start, scales.end - scales.start),
            padded: scratch.summed,
        });
        let mut work = Vec::new();
        if layer.back {
            let launches = rounding.columns(layer.weight, a)?;
            work.extend(launches.into_iter().map(Task::Launch));
        } else {
            let mut first = 0;
            for (at, panel) in layer.weight.iter().enumerate() {
                let is_last = at + 1 == layer.weight.len();
                let rows = if is_last {
                    scratch.made - first
                } else {
                    panel.rows
                };
                work.push(Task::Launch(rounding.rows(panel, a.part(first, rows))?));
                first += panel.rows;
            }
        }
        let x = Panel {
            region: layer.x,
            rows: layer.rows,
            columns: summed,
            stride: summed,
        };
        work.push(Task::Launch(rounding.rows(&x, b)?));
        let product = Codified {
            setting: self,
            layer,
            rounding,
            operands: [a, b],
            made,
        };
        work.extend(product.work()?);
        Ok(work)
    }
}

/// A product of weights that are rounded before.
fn aware(
    rounding: Rounding<'_>,
    operator: &Operator,
    (inputs, outputs): (u64, u64),
    workspace: Region,
) -> Result<Vec<Task>> {
    let size = rounding.operands.size();
    let mut operator = operator.clone();
    let (Operator::Linear { weight, .. }
    | Operator::LinearInputGradient { weight, .. }
    | Operator::QkvProjection { weight, .. }) = &mut operator
    else {
        return Ok(Vec::new());
    };
    let mut work = Vec::new();
    let mut first = 0;
    for panel in weight.iter() {
        let to = workspace.part(first * inputs * size, panel.rows * inputs * size);
        work.push(Task::Launch(rounding.weight(panel, to)?));
        first += panel.rows;
    }
    *weight = vec![Panel {
        region: workspace.part(0, outputs * inputs * size),
        rows: outputs,
        columns: inputs,
        stride: inputs,
    }];
    let products = products(&operator, rounding.operands.reservation.dtype)?;
    work.extend(products.into_iter().map(Task::Multiply));
    Ok(work)
}

/// A linear layer or the gradient of its input.
struct Layer<'a> {
    rows: u64,
    /// `x`, or `dy`.
    x: Region,
    weight: &'a [Panel],
    bias: &'a [Region],
    added: Option<Region>,
    out: Region,
    workspace: Option<Region>,
    /// Whether it sums over outputs.
    back: bool,
}

impl<'a> Layer<'a> {
    fn of(operator: &'a Operator) -> Option<Layer<'a>> {
        Some(match *operator {
            Operator::Linear {
                rows,
                x,
                ref weight,
                ref bias,
                residual,
                y,
                workspace,
            } => Layer {
                rows,
                x,
                weight,
                bias,
                added: residual,
                out: y,
                workspace,
                back: false,
            },
            // Its bias is added by the kernel that follows.
            Operator::QkvProjection {
                rows,
                x,
                ref weight,
                qkv,
                workspace,
                ..
            } => Layer {
                rows: rows.count,
                x,
                weight,
                bias: &[],
                added: None,
                out: qkv,
                workspace,
                back: false,
            },
            Operator::LinearInputGradient {
                rows,
                d_y,
                ref weight,
                d_x,
                accumulate,
                workspace,
            } => Layer {
                rows,
                x: d_y,
                weight,
                bias: &[],
                added: accumulate.then_some(d_x),
                out: d_x,
                workspace,
                back: true,
            },
            _ => return None,
        })
    }

    /// Inputs and outputs.
    fn sizes(&self) -> (u64, u64) {
        let inputs = self.weight.first().map_or(0, |panel| panel.columns);
        (inputs, self.weight.iter().map(|panel| panel.rows).sum())
    }
}

/// A layer whose operands are codes.
struct Codified<'a> {
    setting: &'a Setting<'a>,
    layer: &'a Layer<'a>,
    rounding: Rounding<'a>,
    /// Of the weight, and of `x` or `dy`.
    operands: [Codes; 2],
    /// Columns of what is made.
    made: u64,
}

impl Codified<'_> {
    fn sizes(&self) -> Sizes {
        Sizes {
            element: self.rounding.operands.size(),
            dtype: self.setting.reservation.dtype,
        }
    }

    fn work(&self) -> Result<Vec<Task>> {
        let fused = self.fused();
        let serves = |product: &Product| (self.setting.serves)(product);
        if self.rounding.storage == Storage::Fp8 {
            let mut all = fused.iter().map(serves);
            if all.try_fold(true, |all, one| Ok::<_, Failure>(all && one?))? {
                return Ok(fused.into_iter().map(Task::Multiply).collect());
            }
        }
        self.apart()
    }

    /// A product for each piece of the bias.
    fn pieces(&self) -> impl Iterator<Item = (u64, u64, Option<Region>)> + '_ {
        let mut at = 0;
        std::iter::from_fn(move || {
            let (bias, until) = self.sizes().bias_at(self.layer.bias, at, self.made);
            let piece = (at < self.made).then_some((at, until, bias));
            at = until;
            piece
        })
    }

    fn product(&self, (first, count): (u64, u64), rows: (u64, u64)) -> Product {
        let [a, b] = [
            self.operands[0].part(first, count),
            self.operands[1].part(rows.0, rows.1),
        ];
        Product {
            sizes: [count, rows.1, a.padded],
            a: turned(a.codes, a.padded),
            b: plain(b.codes, b.padded),
            added: None,
            bias: None,
            out: Argument::Own(Buffer::Scratch, 0),
            stride: count,
            dtypes: [self.setting.reservation.dtype; 2],
            factors: [1.0; 2],
            numbers: Numbers::Sums(self.rounding.storage),
        }
    }

    /// Products that scale what they store.
    fn fused(&self) -> Vec<Product> {
        let (rows, made) = (self.layer.rows, self.made);
        let product = |(first, until, bias): (u64, u64, Option<Region>)| {
            let count = until - first;
            let of_out = |region| self.sizes().columns(region, first, (count, rows, made));
            let scales = [
                self.operands[0].part(first, count).scales,
                self.operands[1].scales,
            ];
            Product {
                added: self.layer.added.map(of_out).map(Argument::Region),
                bias: bias.map(Argument::Region),
                out: Argument::Region(of_out(self.layer.out)),
                stride: made,
                numbers: Numbers::Scaled(scales),
                ..self.product((first, count), (0, rows))
            }
        };
        self.pieces().map(product).collect()
    }

    /// Sums in pieces that fit scratch memory, each scaled as soon as it is there.
    fn apart(&self) -> Result<Vec<Task>> {
        let [a, b] = self.operands;
        let (all_rows, all_columns) = (b.scales.bytes / 4, a.scales.bytes / 4);
        let at_once = SCRATCH_BYTES / (4 * COLUMNS.min(all_columns));
        let mut work = Vec::new();
        for row in (0..all_rows).step_by(at_once as usize) {
            let rows = at_once.min(all_rows - row);
            for column in (0..all_columns).step_by(COLUMNS as usize) {
                let columns = COLUMNS.min(all_columns - column);
                let product = self.product((column, columns), (row, rows));
                work.push(Task::Multiply(product));
                for (first, until, bias) in self.pieces() {
                    let (from, to) = (first.max(column), until.min(column + columns));
                    if from >= to {
                        continue;
                    }
                    let count = to - from;
                    let start = row * self.made + from;
                    let shape = (count, rows, self.made);
                    let of_out = |region| self.sizes().columns(region, start, shape);
                    let element = self.sizes().element;
                    let of_bias =
                        |bias: Region| bias.part((from - first) * element, count * element);
                    work.push(Task::Launch(self.rounding.scaled(&Sums {
                        first: from - column,
                        stride: columns,
                        rows,
                        columns: count,
                        of_rows: b.part(row, rows).scales,
                        of_columns: a.part(from, count).scales,
                        bias: bias.map(of_bias),
                        added: self.layer.added.map(of_out),
                        out: of_out(self.layer.out),
                        out_stride: self.made,
                    })?));
                }
            }
        }
        Ok(work)
    }
}
