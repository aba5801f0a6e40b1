//! Norms and rotation of q and k, head by head, in place.

use super::norm::Norm;
use super::{dot, vectorised, Real};

/// The heads of a row: q heads, k heads, v heads of one width.
#[derive(Clone, Copy, Debug)]
pub struct Heads {
    /// Query heads.
    pub heads: usize,
    /// Key heads, and as many value heads.
    pub kv_heads: usize,
    /// Elements of a head.
    pub head_dim: usize,
}

impl Heads {
    /// Elements of a row.
    pub const fn width(&self) -> usize {
        (self.heads + 2 * self.kv_heads) * self.head_dim
    }
    /// Heads that are normed and rotated.
    pub const fn turned(&self) -> usize {
        self.heads + self.kv_heads
    }
}

/// The rotation of one position: cosines and sines of its pairs.
pub type Turn<'a> = (&'a [f32], &'a [f32]);

/// Turns one head forth.
#[inline(always)]
fn turn<T: Real>(head: &mut [T], (cos, sin): Turn) {
    let (low, high) = head.split_at_mut(cos.len());
    for i in 0..cos.len() {
        let (c, s) = (T::of(f64::from(cos[i])), T::of(f64::from(sin[i])));
        (low[i], high[i]) = (low[i] * c - high[i] * s, high[i] * c + low[i] * s);
    }
}

/// Turns one head's gradient back: the transpose.
#[inline(always)]
fn turn_back<T: Real>(head: &mut [T], (cos, sin): Turn) {
    let (low, high) = head.split_at_mut(cos.len());
    for i in 0..cos.len() {
        let (c, s) = (T::of(f64::from(cos[i])), T::of(f64::from(sin[i])));
        (low[i], high[i]) = (low[i] * c + high[i] * s, high[i] * c - low[i] * s);
    }
}

/// The norm of q and k with both scales.
#[derive(Clone, Copy, Debug)]
pub struct Scales<'a, T> {
    /// The norm of one head.
    pub norm: Norm<T>,
    /// Scale of q's.
    pub q: &'a [T],
    /// Scale of k's.
    pub k: &'a [T],
}

/// Norms every q and k head of a row, and leaves their inverse deviations.
pub fn norm_heads<T: Real>(heads: Heads, row: &mut [T], scales: &Scales<T>, inverses: &mut [T]) {
    vectorised(
        #[inline(always)]
        || {
            for (h, head) in each_turned(heads, row) {
                let (_, inverse) = scales.norm.statistics(head);
                let scale = if h < heads.heads { scales.q } else { scales.k };
                for (x, &w) in head.iter_mut().zip(scale) {
                    *x = scales.norm.factor(w) * (*x * inverse);
                }
                inverses[h] = inverse;
            }
        },
    );
}

/// Rotates every q and k head of a row.
pub fn rotate<T: Real>(heads: Heads, row: &mut [T], by: Turn) {
    vectorised(
        #[inline(always)]
        || {
            for (_, head) in each_turned(heads, row) {
                turn(head, by);
            }
        },
    );
}

/// Rotates the gradients of every q and k head of a row back.
pub fn rotate_back<T: Real>(heads: Heads, row: &mut [T], by: Turn) {
    vectorised(
        #[inline(always)]
        || {
            for (_, head) in each_turned(heads, row) {
                turn_back(head, by);
            }
        },
    );
}

/// Backward of [`norm_heads`] on a row whose gradient has been rotated back: changes `d_row`, adds
/// to the scales' gradients, `[kv_heads, head_dim]` each. `row` is the forward's result, rotated;
/// `by` the rotation (YaRN's is a turn times a factor, which is divided out).
pub fn norm_heads_backward<T: Real>(
    heads: Heads,
    (row, inverses): (&[T], &[T]),
    d_row: &mut [T],
    by: Option<Turn>,
    scales: &Scales<T>,
    (d_q, d_k): (&mut [T], &mut [T]),
) {
    let width = heads.head_dim;
    let share = T::ONE / T::of(width as f64);
    let mut y = vec![T::ZERO; width];
    let per_kv = heads.heads / heads.kv_heads;
    vectorised(
        #[inline(always)]
        || {
            for (h, d_head) in each_turned(heads, d_row) {
                y.copy_from_slice(&row[h * width..][..width]);
                if let Some((cos, sin)) = by {
                    turn_back(&mut y, (cos, sin));
                    let (low, high) = y.split_at_mut(cos.len());
                    for i in 0..cos.len() {
                        let (c, s) = (f64::from(cos[i]), f64::from(sin[i]));
                        let size = T::of(c * c + s * s);
                        (low[i], high[i]) = (low[i] / size, high[i] / size);
                    }
                }
                let (scale, d_scale) = match h.checked_sub(heads.heads) {
                    None => (scales.q, &mut d_q[h / per_kv * width..][..width]),
                    Some(k) => (scales.k, &mut d_k[k * width..][..width]),
                };
                let along = dot(d_head, &y) * share;
                for i in 0..width {
                    let factor = scales.norm.factor(scale[i]);
                    let normed = y[i] / factor;
                    d_scale[i] += d_head[i] * normed;
                    d_head[i] = inverses[h] * (factor * d_head[i] - normed * along);
                }
            }
        },
    );
}

#[inline(always)]
fn each_turned<T>(heads: Heads, row: &mut [T]) -> impl Iterator<Item = (usize, &mut [T])> {
    let turned = heads.turned() * heads.head_dim;
    row[..turned].chunks_exact_mut(heads.head_dim).enumerate()
}

#[cfg(test)]
mod tests {
    use super::super::testing::*;
    use super::*;
    use crate::model::NormKind;

    const HEADS: Heads = Heads {
        heads: 4,
        kv_heads: 2,
        head_dim: 6,
    };
    const COS: [f32; 3] = [0.9, 0.5, -0.3];
    const SIN: [f32; 3] = [-0.6, 0.7, 0.4];

    #[test]
    fn pairs_lie_half_a_head_apart_and_v_stays() {
        let row = noise(1, HEADS.width());
        let mut turned = row.clone();
        rotate(HEADS, &mut turned, (&COS, &SIN));
        for head in 0..6 {
            for i in 0..3 {
                let (a, b) = (row[head * 6 + i], row[head * 6 + i + 3]);
                let (c, s) = (f64::from(COS[i]), f64::from(SIN[i]));
                assert_eq!(turned[head * 6 + i], a * c - b * s);
                assert_eq!(turned[head * 6 + i + 3], b * c + a * s);
            }
        }
        assert_eq!(turned[36..], row[36..]);
    }

    /// The rotations here are no pure turns: like YaRN's they scale, each pair differently.
    #[test]
    fn gradients_of_norm_and_rotation() {
        for kind in [NormKind::Rms, NormKind::RmsPlusOne] {
            let norm = Norm {
                kind,
                width: 6,
                epsilon: 1e-3,
            };
            let (row, weights) = (noise(1, HEADS.width()), noise(2, HEADS.width()));
            let (q, k) = (noise(3, 6), noise(4, 6));
            let forward = |row: &[f64], q: &[f64], k: &[f64]| {
                let mut row = row.to_vec();
                let mut inverses = vec![0.0; HEADS.turned()];
                norm_heads(HEADS, &mut row, &Scales { norm, q, k }, &mut inverses);
                rotate(HEADS, &mut row, (&COS, &SIN));
                (row, inverses)
            };
            let (y, inverses) = forward(&row, &q, &k);
            let mut d = weights.clone();
            rotate_back(HEADS, &mut d, (&COS, &SIN));
            let (mut d_q, mut d_k) = (vec![0.0; 12], vec![0.0; 12]);
            let scales = Scales { norm, q: &q, k: &k };
            let by = Some((&COS[..], &SIN[..]));
            let sums = (&mut d_q[..], &mut d_k[..]);
            norm_heads_backward(HEADS, (&y, &inverses), &mut d, by, &scales, sums);
            let loss = |y: (Vec<f64>, Vec<f64>)| weighted(&y.0, &weights);
            assert_gradient("dz", &row, &d, |row| loss(forward(row, &q, &k)));
            let both = |copies: &[f64]| -> Vec<f64> {
                (0..6).map(|i| copies[i] + copies[6 + i]).collect()
            };
            assert_gradient("dq", &q, &both(&d_q), |q| loss(forward(&row, q, &k)));
            assert_gradient("dk", &k, &both(&d_k), |k| loss(forward(&row, &q, k)));
        }
    }
}
