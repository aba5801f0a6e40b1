//! Updates in a space of low rank: GaLore, Fira, APOLLO, FLORA. Formulas and sources are at
//! [`crate::device::tensors::TensorRule`].
//!
//! All matrices are tall here: `M` rows and `μ ≤ M` columns, row-major; a projection is `[r × μ]`,
//! what is projected `[M × r]`.

use faer::{Mat, MatRef};

use super::linear::{forward, input_gradient, matrix, Shape};
use super::Real;
use crate::device::StepParameters;

/// `M`, `μ` and `r`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sizes {
    /// `M`.
    pub long: usize,
    /// `μ`.
    pub short: usize,
    /// `r`.
    pub rank: usize,
}

impl Sizes {
    /// Elements of what is projected.
    pub const fn projected(self) -> usize {
        self.long * self.rank
    }
}

/// `R = g Pᵀ`.
pub fn project<T: Real>(g: &[T], p: &[T], sizes: Sizes) -> Vec<T> {
    let mut r = vec![T::ZERO; sizes.projected()];
    forward(g, p, &mut r, (sizes.long, sizes.short, sizes.rank));
    r
}

/// `R P`.
pub fn back<T: Real>(r: &[T], p: &[T], sizes: Sizes) -> Vec<T> {
    let mut g = vec![T::ZERO; sizes.long * sizes.short];
    input_gradient(r, p, &mut g, (sizes.long, sizes.short, sizes.rank));
    g
}

/// `√(1 − β₂ᵗ)/(1 − β₁ᵗ)`.
pub fn adam_factor(step: &StepParameters) -> f64 {
    let power = |beta: f64| 1.0 - beta.powf(step.step as f64);
    power(step.beta2).sqrt() / power(step.beta1)
}

/// Makes Adam's direction of `r`, in place: `√(1 − β₂ᵗ)/(1 − β₁ᵗ) · m / (√v + ε)`.
pub fn adam<T: Real>(r: &mut [T], m: &mut [T], v: &mut [T], step: &StepParameters) {
    let factor = T::of(adam_factor(step));
    let (first, second) = (T::of(step.beta1), T::of(step.beta2));
    let (new_first, new_second) = (T::of(1.0 - step.beta1), T::of(1.0 - step.beta2));
    for ((r, m), v) in r.iter_mut().zip(m).zip(v) {
        *m = first * *m + new_first * *r;
        *v = second * *v + new_second * *r * *r;
        *r = factor * *m / (v.root() + T::of(step.epsilon));
    }
}

/// `w ← w − factor·u`, then `w ← w − ηλ w`.
pub fn descend<T: Real>(w: &mut [T], u: &[T], factor: f64, step: &StepParameters) {
    let (factor, decay) = (T::of(factor), T::of(step.learning_rate * step.weight_decay));
    for (w, u) in w.iter_mut().zip(u) {
        let moved = *w - factor * *u;
        *w = moved - decay * moved;
    }
}

/// Scales the rows of `g`, or all of it, as Adam scaled those of `r` to `adam`.
pub fn scale_as<T: Real>(g: &mut [T], r: &[T], adam: &[T], sizes: Sizes, channels: bool) {
    let rows = if channels { 1 } else { sizes.long };
    let of = |r: &[T]| r.iter().map(|r| r.f64() * r.f64()).sum::<f64>().sqrt();
    let small = r
        .chunks(rows * sizes.rank)
        .zip(adam.chunks(rows * sizes.rank));
    for (rows, (r, adam)) in g.chunks_mut(rows * sizes.short).zip(small) {
        let factor = T::of(of(adam) / (of(r) + 1e-8));
        rows.iter_mut().for_each(|g| *g *= factor);
    }
}

/// Makes of `g` what `α R P` leaves of it, its rows scaled as Adam scaled those of `r` to `adam`.
pub fn residual<T: Real>(g: &mut [T], (r, adam): (&[T], &[T]), p: &[T], scale: f64, sizes: Sizes) {
    for (g, taken) in g.iter_mut().zip(back(r, p, sizes)) {
        *g -= T::of(scale) * taken;
    }
    scale_as(g, r, adam, sizes, true);
}

/// Shortens `u` to 1.01 times the norm of the update before, where there was one; gives its norm.
pub fn limit_growth<T: Real>(u: &mut [T], before: f64) -> f64 {
    const GROWTH: f64 = 1.01;
    let norm = u.iter().map(|u| u.f64() * u.f64()).sum::<f64>().sqrt();
    if before == 0.0 || norm <= GROWTH * before {
        return norm;
    }
    let factor = T::of(GROWTH * before / norm);
    u.iter_mut().for_each(|u| *u *= factor);
    GROWTH * before
}

/// The `r` leading right singular vectors of `g`, exactly: `[r × μ]`; nothing where the
/// decomposition does not converge, as it does for no NaN.
pub fn singular_basis<T: Real>(g: &[T], sizes: Sizes) -> Option<Vec<T>> {
    let exact = Mat::from_fn(sizes.long, sizes.short, |i, j| g[i * sizes.short + j].f64());
    let svd = exact.thin_svd().ok()?;
    let vectors = svd.V();
    let at = |i: usize| T::of(vectors[(i % sizes.short, i / sizes.short)]);
    Some((0..sizes.rank * sizes.short).map(at).collect())
}

/// Two subspace iterations from `basis` `[r × μ]`: `Q ← orth(gᵀ g Q)`, every vector on the side of
/// what it was made of, as by Gram and Schmidt.
pub fn iterated_basis<T: Real>(g: &[T], basis: &[T], sizes: Sizes) -> Vec<T> {
    const ITERATIONS: usize = 2;
    let wide = |m: MatRef<'_, T>| Mat::from_fn(m.nrows(), m.ncols(), |i, j| m[(i, j)].f64());
    let g = wide(matrix(g, Shape::dense(sizes.long, sizes.short)));
    let mut q = wide(matrix(basis, Shape::dense(sizes.rank, sizes.short)).transpose());
    for _ in 0..ITERATIONS {
        let z = g.transpose() * (&g * &q);
        q = z.qr().compute_thin_Q();
        for (mut q, z) in q.col_iter_mut().zip(z.col_iter()) {
            if z.transpose() * &q < 0.0 {
                q *= -1.0;
            }
        }
    }
    let at = |i: usize| T::of(q[(i % sizes.short, i / sizes.short)]);
    (0..sizes.rank * sizes.short).map(at).collect()
}

#[cfg(test)]
mod tests;
