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
    // Not `from_row_major_slice_with_stride_mut`: faer 0.24.4 swaps its strides and writes beyond.
    let c = MatMut::from_column_major_slice_with_stride_mut(
        data,
        shape.columns,
        shape.rows,
        shape.stride,
    )
    .transpose_mut();
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
        *a = *a + *b;
    }
}
