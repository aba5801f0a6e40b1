//! Tokens to vectors and back.

use super::Real;

/// `x[r] = c·E[token] + P[position]`; `row(t)` gives a vector of `E`.
pub fn forward<T: Real>(scale: Option<T>, vector: &[T], position: Option<&[T]>, x: &mut [T]) {
    for (x, &e) in x.iter_mut().zip(vector) {
        *x = scale.map_or(e, |scale| scale * e);
    }
    if let Some(position) = position {
        super::linear::add(x, position);
    }
}

/// `dE[token] += c·dx[r]`.
pub fn backward<T: Real>(scale: Option<T>, d_x: &[T], d_vector: &mut [T]) {
    for (d, &g) in d_vector.iter_mut().zip(d_x) {
        *d += scale.map_or(g, |scale| scale * g);
    }
}
