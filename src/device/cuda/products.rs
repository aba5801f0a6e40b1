//! From a linear layer to matrix products: which operands, which of them turned, what is added.
//!
//! In: an operator. Out: [`Product`]s, to be queued in order on one stream. Updates of tensors make
//! theirs themselves (`launch::tensors`). Pure; `multiply` hands them to cuBLASLt, which counts
//! columns first. A row-major matrix is its own transpose there, so every product is written down
//! turned: `y = x·Wᵀ` as `yᵀ = W·xᵀ`, whose columns are the rows of `y`.
//!
//! What a weight has in several blocks becomes a product for each. For `dx`, which sums over them,
//! each block after the first is added to what the ones before have left in memory, rounded to the
//! dtype there. Biases of projections to q, k and v are not added here but by the kernel behind.

use super::launch::Argument;
use crate::device::operator::Panel;
use crate::device::packed::Storage;
use crate::device::{Failure, Operator, Region, Result};
use crate::profile::Dtype;

/// A matrix in memory, columns first: `stride` elements from one column to the next.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Matrix {
    /// The address of its first element.
    pub at: Argument,
    /// Elements from one column to the next.
    pub stride: u64,
    /// Whether it is used as its transpose.
    pub turned: bool,
}

/// What is multiplied, and what is made of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Numbers {
    /// Elements, of which elements are made.
    Elements,
    /// Codes, of which sums are made: f32 of FP8, i32 of integers.
    Sums(Storage),
    /// Codes of FP8, of which elements are made: f32 `[m]` and `[n]` scale rows and columns.
    Scaled([Region; 2]),
}

/// `out = factor·a·b + kept·added + bias`, columns first: `a` is `[m, k]`, `b` `[k, n]`, the others
/// `[m, n]`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Product {
    /// `m`, `n` and `k`.
    pub sizes: [u64; 3],
    /// The left one.
    pub a: Matrix,
    /// The right one.
    pub b: Matrix,
    /// Lies as `out` does, or is `out`.
    pub added: Option<Argument>,
    /// `[m]`: added to every column.
    pub bias: Option<Argument>,
    /// The result.
    pub out: Argument,
    /// Elements from one column of `out` to the next.
    pub stride: u64,
    /// What `a` and `b` are of, and what `added` and `out` are.
    pub dtypes: [Dtype; 2],
    /// What the product and what is added are multiplied with.
    pub factors: [f32; 2],
    /// What is multiplied.
    pub numbers: Numbers,
}

/// The products of an operator, in order; none where it has none.
///
/// # Errors
/// Operands whose sizes contradict each other.
pub(super) fn products(operator: &Operator, dtype: Dtype) -> Result<Vec<Product>> {
    let sizes = Sizes {
        element: dtype.bytes(),
        dtype,
    };
    match *operator {
        Operator::Linear {
            rows,
            x,
            ref weight,
            ref bias,
            residual,
            y,
            ..
        } => sizes.forward((rows, x, y), weight, bias, residual),
        Operator::QkvProjection {
            rows,
            x,
            ref weight,
            qkv,
            ..
        } => sizes.forward((rows.count, x, qkv), weight, &[], None),
        Operator::LinearInputGradient {
            rows,
            d_y,
            ref weight,
            d_x,
            accumulate,
            ..
        } => sizes.input_gradient((rows, d_y, d_x), weight, accumulate),
        Operator::LinearWeightGradient {
            rows,
            x,
            inputs,
            d_y,
            outputs,
            d_weight,
            accumulate,
            ..
        } => {
            sizes.same("x", x, rows * inputs)?;
            sizes.same("dy", d_y, rows * outputs)?;
            sizes.same("dW", d_weight, outputs * inputs)?;
            Ok(vec![Product {
                sizes: [inputs, outputs, rows],
                a: plain(x, inputs),
                b: turned(d_y, outputs),
                added: accumulate.then_some(Argument::Region(d_weight)),
                bias: None,
                out: Argument::Region(d_weight),
                stride: inputs,
                dtypes: [dtype; 2],
                factors: [1.0; 2],
                numbers: Numbers::Elements,
            }])
        }
        _ => Ok(Vec::new()),
    }
}

pub(super) const fn plain(region: Region, stride: u64) -> Matrix {
    Matrix {
        at: Argument::Region(region),
        stride,
        turned: false,
    }
}

pub(super) const fn turned(region: Region, stride: u64) -> Matrix {
    Matrix {
        at: Argument::Region(region),
        stride,
        turned: true,
    }
}

/// Sizes of regions, by the type of an element.
pub(super) struct Sizes {
    pub element: u64,
    pub dtype: Dtype,
}

impl Sizes {
    fn same(&self, what: &str, region: Region, elements: u64) -> Result<()> {
        match region.bytes == elements * self.element {
            true => Ok(()),
            false => Err(Failure::refused(format!(
                "{what} has {} bytes for {elements} elements of {}",
                region.bytes, self.element
            ))),
        }
    }

    /// The part of a region from an element on, as long as `columns` columns of `rows` elements
    /// are whose starts are `stride` elements apart.
    pub fn columns(
        &self,
        region: Region,
        first: u64,
        (rows, columns, stride): (u64, u64, u64),
    ) -> Region {
        let elements = columns.saturating_sub(1) * stride + rows;
        region.part(first * self.element, elements * self.element)
    }

    /// Width and height of the weight, whose blocks have been compared with them.
    fn weight(&self, weight: &[Panel]) -> Result<(u64, u64)> {
        let inputs = weight.first().map_or(0, |panel| panel.columns);
        for panel in weight {
            if panel.columns != inputs || panel.stride < inputs || panel.rows == 0 {
                return Err(Failure::refused(
                    "blocks of a weight that do not belong together",
                ));
            }
            let span = (panel.rows - 1) * panel.stride + inputs;
            self.same("a block of a weight", panel.region, span)?;
        }
        match inputs {
            0 => Err(Failure::refused("a weight without elements")),
            _ => Ok((inputs, weight.iter().map(|panel| panel.rows).sum())),
        }
    }

    fn forward(
        &self,
        (rows, x, y): (u64, Region, Region),
        weight: &[Panel],
        bias: &[Region],
        residual: Option<Region>,
    ) -> Result<Vec<Product>> {
        let (inputs, outputs) = self.weight(weight)?;
        self.same("x", x, rows * inputs)?;
        for region in [Some(y), residual].into_iter().flatten() {
            self.same("y", region, rows * outputs)?;
        }
        let of_bias: u64 = bias.iter().map(|piece| piece.bytes).sum();
        if !bias.is_empty() && of_bias != outputs * self.element {
            return Err(Failure::refused(format!(
                "a bias of {of_bias} bytes for {outputs}"
            )));
        }
        let mut products = Vec::new();
        let mut first = 0;
        for panel in weight {
            let end = first + panel.rows;
            let mut at = first;
            while at < end {
                let (piece, until) = self.bias_at(bias, at, end);
                let row = (at - first) * panel.stride;
                let count = until - at;
                let of_y = |region| self.columns(region, at, (count, rows, outputs));
                let block = self.columns(panel.region, row, (inputs, count, panel.stride));
                products.push(Product {
                    sizes: [count, rows, inputs],
                    a: turned(block, panel.stride),
                    b: plain(x, inputs),
                    added: residual.map(of_y).map(Argument::Region),
                    bias: piece.map(Argument::Region),
                    out: Argument::Region(of_y(y)),
                    stride: outputs,
                    dtypes: [self.dtype; 2],
                    factors: [1.0; 2],
                    numbers: Numbers::Elements,
                });
                at = until;
            }
            first = end;
        }
        Ok(products)
    }

    /// The bias from output `at` on, and up to which output before `end` it is of one piece.
    pub fn bias_at(&self, bias: &[Region], at: u64, end: u64) -> (Option<Region>, u64) {
        let mut first = 0;
        for piece in bias {
            let behind = first + piece.bytes / self.element;
            if at < behind {
                let until = behind.min(end);
                let bytes = (until - at) * self.element;
                return (Some(piece.part((at - first) * self.element, bytes)), until);
            }
            first = behind;
        }
        (None, end)
    }

    fn input_gradient(
        &self,
        (rows, d_y, d_x): (u64, Region, Region),
        weight: &[Panel],
        accumulate: bool,
    ) -> Result<Vec<Product>> {
        let (inputs, outputs) = self.weight(weight)?;
        self.same("dy", d_y, rows * outputs)?;
        self.same("dx", d_x, rows * inputs)?;
        let mut first = 0;
        let product = |panel: &Panel| {
            let adds = accumulate || first > 0;
            let of_y = self.columns(d_y, first, (panel.rows, rows, outputs));
            first += panel.rows;
            Product {
                sizes: [inputs, rows, panel.rows],
                a: plain(panel.region, panel.stride),
                b: plain(of_y, outputs),
                added: adds.then_some(Argument::Region(d_x)),
                bias: None,
                out: Argument::Region(d_x),
                stride: inputs,
                dtypes: [self.dtype; 2],
                factors: [1.0; 2],
                numbers: Numbers::Elements,
            }
        };
        Ok(weight.iter().map(product).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::Space;

    fn region(offset_bytes: u64, elements: u64) -> Region {
        Region {
            space: Space::Device,
            offset_bytes,
            bytes: elements * 4,
        }
    }

    fn panel(offset: u64, rows: u64, columns: u64, stride: u64) -> Panel {
        Panel {
            region: region(offset, (rows - 1) * stride + columns),
            rows,
            columns,
            stride,
        }
    }

    /// Columns first, as cuBLASLt has it: the product of memory that holds small integers.
    fn run(memory: &mut [f32], product: &Product) {
        let [m, n, k] = product.sizes.map(|size| size as usize);
        let start = |argument: Argument| match argument {
            Argument::Region(region) => region.offset_bytes as usize / 4,
            other => panic!("{other:?}"),
        };
        let at = |matrix: &Matrix, row: usize, column: usize| {
            let (row, column) = if matrix.turned {
                (column, row)
            } else {
                (row, column)
            };
            start(matrix.at) + column * matrix.stride as usize + row
        };
        for column in 0..n {
            for row in 0..m {
                let sum: f32 = (0..k)
                    .map(|i| memory[at(&product.a, row, i)] * memory[at(&product.b, i, column)])
                    .sum();
                let place = |argument| start(argument) + column * product.stride as usize + row;
                let added = product.added.map_or(0.0, |added| memory[place(added)]);
                let bias = product.bias.map_or(0.0, |bias| memory[start(bias) + row]);
                memory[place(product.out)] = sum + added + bias;
            }
        }
    }

    /// 3 rows, 4 inputs, 5 outputs in blocks of 2 and 3 rows that are 6 elements apart.
    const ROWS: usize = 3;
    const IN: usize = 4;
    const OUT: usize = 5;
    const X: u64 = 0;
    const W: u64 = 100;
    const Y: u64 = 300;
    const B: u64 = 400;

    fn weight() -> Vec<Panel> {
        vec![panel(4 * W, 2, 4, 6), panel(4 * (W + 50), 3, 4, 6)]
    }

    fn at_weight(out: usize, input: usize) -> usize {
        let (block, row) = if out < 2 { (0, out) } else { (50, out - 2) };
        W as usize + block + 6 * row + input
    }

    fn memory() -> Vec<f32> {
        (0..500).map(|i| ((i * 7 + 3) % 11) as f32 - 5.0).collect()
    }

    #[test]
    fn a_layer_has_its_blocks_its_bias_and_its_residual() {
        let operator = Operator::Linear {
            rows: 3,
            x: region(4 * X, 12),
            weight: weight(),
            // Cut elsewhere than the weight.
            bias: vec![region(4 * B, 1), region(4 * (B + 20), 4)],
            residual: Some(region(4 * Y, 15)),
            y: region(4 * Y, 15),
            workspace: None,
        };
        let (before, mut after) = (memory(), memory());
        let products = products(&operator, Dtype::F32).unwrap();
        assert_eq!(products.len(), 3);
        products.iter().for_each(|product| run(&mut after, product));
        for row in 0..ROWS {
            for out in 0..OUT {
                let bias = B as usize + if out < 1 { 0 } else { 19 + out };
                let place = Y as usize + row * OUT + out;
                let sum: f32 = (0..IN)
                    .map(|i| before[X as usize + row * IN + i] * before[at_weight(out, i)])
                    .sum();
                assert_eq!(
                    after[place],
                    sum + before[bias] + before[place],
                    "{row} {out}"
                );
            }
        }
    }

    #[test]
    fn gradients_are_of_the_transposes() {
        let (x, d_y) = (region(4 * X, 12), region(4 * Y, 15));
        let (before, mut after) = (memory(), memory());
        let operator = Operator::LinearInputGradient {
            rows: 3,
            d_y,
            weight: weight(),
            d_x: x,
            accumulate: true,
            workspace: None,
        };
        let inputs = products(&operator, Dtype::F32).unwrap();
        inputs.iter().for_each(|product| run(&mut after, product));
        for row in 0..ROWS {
            for i in 0..IN {
                let sum: f32 = (0..OUT)
                    .map(|out| before[Y as usize + row * OUT + out] * before[at_weight(out, i)])
                    .sum();
                let place = X as usize + row * IN + i;
                assert_eq!(after[place], before[place] + sum, "{row} {i}");
            }
        }
        let (before, mut after) = (memory(), memory());
        let operator = Operator::LinearWeightGradient {
            rows: 3,
            x,
            inputs: 4,
            d_y,
            outputs: 5,
            d_weight: region(4 * W, 20),
            d_bias: None,
            accumulate: false,
        };
        let weights = products(&operator, Dtype::F32).unwrap();
        weights.iter().for_each(|product| run(&mut after, product));
        for out in 0..OUT {
            for i in 0..IN {
                let sum: f32 = (0..ROWS)
                    .map(|r| before[Y as usize + r * OUT + out] * before[X as usize + r * IN + i])
                    .sum();
                assert_eq!(after[W as usize + out * IN + i], sum, "{out} {i}");
            }
        }
    }

    #[test]
    fn sizes_that_contradict_each_other_are_refused() {
        let layer = |x: Region, bias: Vec<Region>| Operator::Linear {
            rows: 3,
            x,
            weight: weight(),
            bias,
            residual: None,
            y: region(4 * Y, 15),
            workspace: None,
        };
        let refused = |operator: &Operator| products(operator, Dtype::F32).is_err();
        assert!(!refused(&layer(region(0, 12), Vec::new())));
        assert!(refused(&layer(region(0, 11), Vec::new())));
        assert!(refused(&layer(region(0, 12), vec![region(4 * B, 4)])));
    }
}
