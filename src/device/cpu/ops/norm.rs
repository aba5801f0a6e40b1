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
                        d_scale[i] += d_y[i] * normed[i];
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

#[cfg(test)]
mod tests {
    use super::super::testing::*;
    use super::*;

    const KINDS: [NormKind; 3] = [NormKind::Rms, NormKind::RmsPlusOne, NormKind::Layer];

    fn plain(norm: &Norm<f64>, x: &[f64], scale: &[f64], shift: &[f64]) -> Vec<f64> {
        let mut y = Vec::new();
        for x in x.chunks(norm.width) {
            let n = norm.width as f64;
            let mean = match norm.kind {
                NormKind::Layer => x.iter().sum::<f64>() / n,
                _ => 0.0,
            };
            let variance = x.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / n;
            let one = if norm.kind == NormKind::RmsPlusOne {
                1.0
            } else {
                0.0
            };
            let row = x.iter().zip(scale).zip(shift);
            y.extend(
                row.map(|((x, w), b)| {
                    (one + w) * (x - mean) / (variance + norm.epsilon).sqrt() + b
                }),
            );
        }
        y
    }

    #[test]
    fn norms_and_their_gradients() {
        for (kind, width) in KINDS.into_iter().flat_map(|k| [(k, 5), (k, 37)]) {
            let norm = Norm {
                kind,
                width,
                epsilon: 1e-3,
            };
            let rows = 3;
            let (x, scale) = (noise(1, rows * width), noise(2, width));
            let layer = kind == NormKind::Layer;
            let shift = if layer {
                noise(3, width)
            } else {
                vec![0.0; width]
            };
            let weights = noise(4, rows * width);
            let y = |x: &[f64], scale: &[f64], shift: &[f64]| {
                let mut y = vec![0.0; x.len()];
                norm.forward(x, scale, layer.then_some(shift), &mut y);
                y
            };
            let exact = plain(&norm, &x, &scale, &shift);
            assert_close("y", &y(&x, &scale, &shift), &exact, 1e-13);
            let mut d_x = vec![0.0; x.len()];
            let (mut d_scale, mut d_shift) = (vec![0.0; width], vec![0.0; width]);
            let given = (&x[..], &scale[..], &weights[..]);
            norm.backward(
                given,
                &mut d_x,
                &mut d_scale,
                layer.then_some(&mut d_shift[..]),
            );
            let loss = |y: Vec<f64>| weighted(&y, &weights);
            assert_gradient("dx", &x, &d_x, |x| loss(y(x, &scale, &shift)));
            assert_gradient("dw", &scale, &d_scale, |scale| loss(y(&x, scale, &shift)));
            if layer {
                assert_gradient("db", &shift, &d_shift, |shift| loss(y(&x, &scale, shift)));
            }
            let single = Norm {
                kind,
                width,
                epsilon: 1e-3f32,
            };
            let mut narrow_y = vec![0.0; x.len()];
            let narrow_shift = narrow(&shift);
            let shift = layer.then_some(&narrow_shift[..]);
            single.forward(&narrow(&x), &narrow(&scale), shift, &mut narrow_y);
            assert_close("f32 y", &widen(&narrow_y), &exact, 2e-6);
        }
    }
}
