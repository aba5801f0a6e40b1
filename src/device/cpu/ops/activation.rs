//! The MLP's non-linearities.

use super::{vectorised, Real};
use crate::model::Activation;

/// `φ(x)` and `φ'(x)`.
#[inline(always)]
fn value_and_slope<T: Real>(kind: Activation, x: T) -> (T, T) {
    let half = T::of(0.5);
    match kind {
        Activation::Silu => {
            let s = T::ONE / (T::ONE + (-x).exponential());
            (x * s, s * (T::ONE + x * (T::ONE - s)))
        }
        Activation::Gelu => {
            let below =
                half * (T::ONE + (x * T::of(std::f64::consts::FRAC_1_SQRT_2)).error_function());
            let density = T::of(0.398_942_280_401_432_7) * (-half * x * x).exponential();
            (x * below, below + x * density)
        }
        Activation::GeluTanh => {
            // √(2/π)
            let c = T::of(0.797_884_560_802_865_4);
            let cube = T::of(0.044_715);
            let t = (c * (x + cube * x * x * x)).hyperbolic_tangent();
            let inner = c * (T::ONE + T::of(3.0) * cube * x * x);
            let value = half * x * (T::ONE + t);
            (
                value,
                half * (T::ONE + t) + half * x * (T::ONE - t * t) * inner,
            )
        }
    }
}

/// Runs a loop with the kind as a constant, so that it has no branch inside.
#[inline(always)]
fn each_kind(kind: Activation, mut rows: impl FnMut(Activation)) {
    match kind {
        Activation::Silu => rows(Activation::Silu),
        Activation::Gelu => rows(Activation::Gelu),
        Activation::GeluTanh => rows(Activation::GeluTanh),
    }
}

/// `h` of every row; `x` has the gate before the up half where gated.
pub fn forward<T: Real>(kind: Activation, gated: bool, width: usize, x: &[T], h: &mut [T]) {
    let inputs = if gated { 2 * width } else { width };
    vectorised(
        #[inline(always)]
        || {
            each_kind(
                kind,
                #[inline(always)]
                |kind| {
                    for (x, h) in x.chunks_exact(inputs).zip(h.chunks_exact_mut(width)) {
                        let (gate, up) = x.split_at(width);
                        for (h, &g) in h.iter_mut().zip(gate) {
                            *h = value_and_slope(kind, g).0;
                        }
                        for (h, &u) in h.iter_mut().zip(up) {
                            *h *= u;
                        }
                    }
                },
            );
        },
    );
}

/// `dx` of every row.
pub fn backward<T: Real>(
    kind: Activation,
    gated: bool,
    width: usize,
    (x, d_h): (&[T], &[T]),
    d_x: &mut [T],
) {
    let inputs = if gated { 2 * width } else { width };
    vectorised(
        #[inline(always)]
        || {
            each_kind(
                kind,
                #[inline(always)]
                |kind| {
                    let rows = x.chunks_exact(inputs).zip(d_h.chunks_exact(width));
                    for ((x, d_h), d_x) in rows.zip(d_x.chunks_exact_mut(inputs)) {
                        let (gate, up) = x.split_at(width);
                        let (d_gate, d_up) = d_x.split_at_mut(width);
                        if up.is_empty() {
                            for i in 0..width {
                                d_gate[i] = d_h[i] * value_and_slope(kind, gate[i]).1;
                            }
                            continue;
                        }
                        for i in 0..width {
                            let (value, slope) = value_and_slope(kind, gate[i]);
                            d_gate[i] = d_h[i] * up[i] * slope;
                            d_up[i] = d_h[i] * value;
                        }
                    }
                },
            );
        },
    );
}

#[cfg(test)]
mod tests {
    use super::super::testing::*;
    use super::*;

    const KINDS: [Activation; 3] = [Activation::Silu, Activation::Gelu, Activation::GeluTanh];

    #[test]
    fn values_at_one_are_the_published_ones() {
        let at = |kind| {
            let (mut double, mut single) = ([0.0f64], [0.0f32]);
            forward(kind, false, 1, &[1.0f64], &mut double);
            forward(kind, false, 1, &[1.0f32], &mut single);
            assert!((double[0] - f64::from(single[0])).abs() < 2e-7, "{kind:?}");
            double[0]
        };
        assert!((at(Activation::Silu) - 0.731_058_578_630_004_9).abs() < 1e-15);
        assert!((at(Activation::Gelu) - 0.841_344_746_068_542_9).abs() < 1e-15);
        assert!((at(Activation::GeluTanh) - 0.841_191_990_608_276_7).abs() < 1e-15);
    }

    #[test]
    fn gradients_of_gated_and_plain() {
        for (kind, gated) in KINDS.into_iter().flat_map(|k| [(k, true), (k, false)]) {
            let (rows, width) = (2, 5);
            let x: Vec<f64> = noise(1, rows * width * if gated { 2 } else { 1 });
            let x: Vec<f64> = x.iter().map(|x| 3.0 * x).collect();
            let weights = noise(2, rows * width);
            let h = |x: &[f64]| {
                let mut h = vec![0.0; rows * width];
                forward(kind, gated, width, x, &mut h);
                h
            };
            if gated {
                // A gate of a row is the row's first half.
                let mut alone = [0.0];
                forward(kind, false, 1, &[x[10]], &mut alone);
                assert_eq!(h(&x)[5], alone[0] * x[15]);
            }
            let mut d_x = vec![0.0; x.len()];
            backward(kind, gated, width, (&x, &weights), &mut d_x);
            let what = format!("{kind:?} {gated}");
            assert_gradient(&what, &x, &d_x, |x| weighted(&h(x), &weights));
            let mut single = vec![0.0; x.len()];
            backward(
                kind,
                gated,
                width,
                (&narrow(&x), &narrow(&weights)),
                &mut single,
            );
            assert_close(&what, &widen(&single), &d_x, 2e-6);
        }
    }
}
