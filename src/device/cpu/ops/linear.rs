//! Matrix products, by faer, on one thread: the same shape gives the same bits.

use faer::linalg::matmul::matmul;
use faer::{Accum, MatMut, MatRef, Par};

use super::{vectorised, Real};

/// A matrix within a slice: `stride` elements from row to row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// Rows.
    pub rows: usize,
    /// Columns.
    pub columns: usize,
    /// Elements from one row to the next.
    pub stride: usize,
}

impl Shape {
    /// Rows that adjoin.
    pub const fn dense(rows: usize, columns: usize) -> Shape {
        Shape {
            rows,
            columns,
            stride: columns,
        }
    }
    /// Rows of a wider matrix.
    pub const fn of(rows: usize, columns: usize, stride: usize) -> Shape {
        Shape {
            rows,
            columns,
            stride,
        }
    }
}

/// A matrix that is read.
pub fn matrix<T: Real>(data: &[T], shape: Shape) -> MatRef<'_, T> {
    MatRef::from_row_major_slice_with_stride(data, shape.rows, shape.columns, shape.stride)
}

/// `c = α·a·b`, or `c += α·a·b`.
pub fn multiply<T: Real>(
    c: (&mut [T], Shape),
    add: bool,
    (a, b): (MatRef<'_, T>, MatRef<'_, T>),
    alpha: T,
) {
    let (data, shape) = c;
    // As columns, turned: faer 0.24's own constructor of strided rows mixes up its strides.
    let columns = MatMut::from_column_major_slice_with_stride_mut(
        data,
        shape.columns,
        shape.rows,
        shape.stride,
    );
    let c = columns.transpose_mut();
    let accumulate = if add { Accum::Add } else { Accum::Replace };
    matmul(c, accumulate, a, b, alpha, Par::Seq);
}

/// `y = x·Wᵀ`: `x [T, in]`, `W [out, in]`, `y [T, out]`.
pub fn forward<T: Real>(
    x: &[T],
    w: &[T],
    y: &mut [T],
    (rows, inputs, outputs): (usize, usize, usize),
) {
    let (x, w) = (
        matrix(x, Shape::dense(rows, inputs)),
        matrix(w, Shape::dense(outputs, inputs)),
    );
    multiply(
        (y, Shape::dense(rows, outputs)),
        false,
        (x, w.transpose()),
        T::ONE,
    );
}

/// `dx = dy·W`.
pub fn input_gradient<T: Real>(
    d_y: &[T],
    w: &[T],
    d_x: &mut [T],
    (rows, inputs, outputs): (usize, usize, usize),
) {
    let (d_y, w) = (
        matrix(d_y, Shape::dense(rows, outputs)),
        matrix(w, Shape::dense(outputs, inputs)),
    );
    multiply((d_x, Shape::dense(rows, inputs)), false, (d_y, w), T::ONE);
}

/// `dW = dyᵀ·x`.
pub fn weight_gradient<T: Real>(
    d_y: &[T],
    x: &[T],
    d_w: &mut [T],
    (rows, inputs, outputs): (usize, usize, usize),
) {
    let (d_y, x) = (
        matrix(d_y, Shape::dense(rows, outputs)),
        matrix(x, Shape::dense(rows, inputs)),
    );
    multiply(
        (d_w, Shape::dense(outputs, inputs)),
        false,
        (d_y.transpose(), x),
        T::ONE,
    );
}

/// Adds a bias to every row.
pub fn add_bias<T: Real>(y: &mut [T], bias: &[T]) {
    vectorised(
        #[inline(always)]
        || {
            for row in y.chunks_exact_mut(bias.len()) {
                add(row, bias);
            }
        },
    );
}

/// The sum of the rows, in order, from `sums` on.
pub fn sum_rows<T: Real>(rows: &[T], sums: &mut [T]) {
    vectorised(
        #[inline(always)]
        || {
            for row in rows.chunks_exact(sums.len()) {
                add(sums, row);
            }
        },
    );
}

/// `a += b`.
#[inline(always)]
pub fn add<T: Real>(a: &mut [T], b: &[T]) {
    for (a, b) in a.iter_mut().zip(b) {
        *a += *b;
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::*;
    use super::*;

    #[test]
    fn products_and_their_gradients() {
        let (rows, inputs, outputs) = (5, 7, 3);
        let sizes = (rows, inputs, outputs);
        let (x, w) = (noise(1, rows * inputs), noise(2, outputs * inputs));
        let weights = noise(3, rows * outputs);
        let y = |x: &[f64], w: &[f64]| {
            let mut y = vec![0.0; rows * outputs];
            forward(x, w, &mut y, sizes);
            y
        };
        let mut plain = vec![0.0; rows * outputs];
        for (i, y) in plain.iter_mut().enumerate() {
            let (row, out) = (i / outputs, i % outputs);
            *y = (0..inputs)
                .map(|k| x[row * inputs + k] * w[out * inputs + k])
                .sum();
        }
        assert_close("y", &y(&x, &w), &plain, 1e-14);
        let (mut d_x, mut d_w) = (vec![0.0; x.len()], vec![0.0; w.len()]);
        input_gradient(&weights, &w, &mut d_x, sizes);
        weight_gradient(&weights, &x, &mut d_w, sizes);
        assert_gradient("dx", &x, &d_x, |x| weighted(&y(x, &w), &weights));
        assert_gradient("dW", &w, &d_w, |w| weighted(&y(&x, w), &weights));
    }

    /// The products come from a crate with code of its own for every kind of shape.
    #[test]
    fn products_of_any_shape_are_right_and_stay_inside() {
        const GUARD: usize = 100;
        let sizes = noise(1, 9 * 3000);
        for (case, sizes) in sizes.chunks(9).enumerate() {
            let most = if case % 50 == 0 { 150.0 } else { 24.0 };
            let size = |i: usize| 1 + (sizes[i].abs() * most) as usize;
            let (m, n, k) = (size(0), size(1), size(2));
            let (turn_a, turn_b, add) = (sizes[3] > 0.0, sizes[4] > 0.0, sizes[5] > 0.0);
            let wider = |i: usize| (sizes[i].abs() * 3.0) as usize;
            let shape = |rows, columns, i: usize| Shape::of(rows, columns, columns + wider(i));
            let a_shape = if turn_a {
                shape(k, m, 6)
            } else {
                shape(m, k, 6)
            };
            let b_shape = if turn_b {
                shape(n, k, 7)
            } else {
                shape(k, n, 7)
            };
            let c_shape = shape(m, n, 8);
            let (a, b) = (
                narrow(&noise(2, a_shape.rows * a_shape.stride)),
                narrow(&noise(3, b_shape.rows * b_shape.stride)),
            );
            let before = narrow(&noise(4, c_shape.rows * c_shape.stride + 2 * GUARD));
            let mut after = before.clone();
            let turned = |m, turn| if turn { MatRef::transpose(m) } else { m };
            let factors = (
                turned(matrix(&a, a_shape), turn_a),
                turned(matrix(&b, b_shape), turn_b),
            );
            multiply((&mut after[GUARD..], c_shape), add, factors, 0.5);
            let mut exact = before;
            for (i, j) in (0..m).flat_map(|i| (0..n).map(move |j| (i, j))) {
                let product: f32 = (0..k).map(|l| factors.0[(i, l)] * factors.1[(l, j)]).sum();
                let place = &mut exact[GUARD + i * c_shape.stride + j];
                *place = if add { *place } else { 0.0 } + 0.5 * product;
            }
            let close = |(a, b): (&f32, &f32)| (a - b).abs() < 1e-4;
            assert!(
                after.iter().zip(&exact).all(close),
                "{m} {n} {k} {turn_a} {turn_b} {add}"
            );
        }
    }

    #[test]
    fn biases_go_to_every_row_and_sum_over_them() {
        let mut y = vec![0.0, 1.0, 2.0, 3.0];
        add_bias(&mut y, &[10.0, 20.0]);
        assert_eq!(y, [10.0, 21.0, 12.0, 23.0]);
        let mut sums = vec![1.0, 0.0];
        sum_rows(&y, &mut sums);
        assert_eq!(sums, [23.0, 44.0]);
    }
}
