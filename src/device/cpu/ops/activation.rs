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
                            *h = *h * u;
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
