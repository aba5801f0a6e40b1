//! Norms of rows.

use super::{dot, sum_of, vectorised, Real};
use crate::model::NormKind;

/// Which norm, over vectors of how many elements, with which ε.
#[derive(Clone, Copy, Debug)]
pub struct Norm<T> {
    /// The kind.
    pub kind: NormKind,
    /// Elements of a vector.
    pub width: usize,
    /// Added under the root.
    pub epsilon: T,
}

impl<T: Real> Norm<T> {
    /// Mean (0 for RMS) and inverse deviation.
    #[inline(always)]
    pub fn statistics(&self, x: &[T]) -> (T, T) {
        let share = T::ONE / T::of(self.width as f64);
        let mean = match self.kind {
            NormKind::Layer => sum_of(x, x, |a, _| a) * share,
            NormKind::Rms | NormKind::RmsPlusOne => T::ZERO,
        };
        let squares = sum_of(x, x, |a, _| (a - mean) * (a - mean));
        (mean, T::ONE / (squares * share + self.epsilon).root())
    }

    /// What multiplies `x̂`.
    #[inline(always)]
    pub fn factor(&self, scale: T) -> T {
        match self.kind {
            NormKind::RmsPlusOne => T::ONE + scale,
            NormKind::Rms | NormKind::Layer => scale,
        }
    }

    /// `y` of every row.
    pub fn forward(&self, x: &[T], scale: &[T], shift: Option<&[T]>, y: &mut [T]) {
        vectorised(
            #[inline(always)]
            || {
                let rows = x
                    .chunks_exact(self.width)
                    .zip(y.chunks_exact_mut(self.width));
                for (x, y) in rows {
                    let (mean, inverse) = self.statistics(x);
                    for ((y, &x), &w) in y.iter_mut().zip(x).zip(scale) {
                        *y = self.factor(w) * ((x - mean) * inverse);
                    }
                    if let Some(shift) = shift {
                        super::linear::add(y, shift);
                    }
                }
            },
        );
    }

    /// `dx` of every row; adds to `d_scale` and `d_shift`.
    pub fn backward(
        &self,
        (x, scale, d_y): (&[T], &[T], &[T]),
        d_x: &mut [T],
        d_scale: &mut [T],
        mut d_shift: Option<&mut [T]>,
    ) {
        let width = self.width;
        let share = T::ONE / T::of(width as f64);
        // x̂ and u of a row.
        let (mut normed, mut u) = (vec![T::ZERO; width], vec![T::ZERO; width]);
        vectorised(
            #[inline(always)]
            || {
                let rows = x.chunks_exact(width).zip(d_y.chunks_exact(width));
                for ((x, d_y), d_x) in rows.zip(d_x.chunks_exact_mut(width)) {
                    let (mean, inverse) = self.statistics(x);
                    for i in 0..width {
                        normed[i] = (x[i] - mean) * inverse;
                        u[i] = d_y[i] * self.factor(scale[i]);
                        d_scale[i] = d_scale[i] + d_y[i] * normed[i];
                    }
                    let along = dot(&u, &normed) * share;
                    let level = match self.kind {
                        NormKind::Layer => sum_of(&u, &u, |a, _| a) * share,
                        NormKind::Rms | NormKind::RmsPlusOne => T::ZERO,
                    };
                    for i in 0..width {
                        d_x[i] = inverse * (u[i] - level - normed[i] * along);
                    }
                    if let Some(d_shift) = d_shift.as_deref_mut() {
                        super::linear::add(d_shift, d_y);
                    }
                }
            },
        );
    }
}
