//! Second moments of a matrix as a vector for its rows and one for its columns, and the update that
//! is normalised as a whole: AdaLomo (Lv et al. 2023), after Adafactor (Shazeer and Stern 2018).
//!
//! With `S = g² + 10⁻³⁰`: `R ← β R + (1 − β) mean_columns(S)`, `C ← β C + (1 − β) mean_rows(S)`,
//! `u = g / √(R / mean(R)) / √C`, row by column, by the inverses of the roots; `β = 1 − t^(−0.8)`,
//! so that step 1 forgets what was. A vector has the whole second moment: `u = g / √V`.

use super::Real;

/// What is added to squares.
const FLOOR: f64 = 1e-30;
/// The least that the size of weights counts for.
const LEAST_SCALE: f64 = 1e-3;

/// `β` of step `t`.
pub fn decay(step: u64) -> f64 {
    1.0 - (step as f64).powf(-0.8)
}

/// Where second moments are kept.
pub enum Second<'a, T> {
    /// Of a matrix: for its rows and its columns.
    Factored {
        /// `R`.
        rows: &'a mut [T],
        /// `C`.
        columns: &'a mut [T],
    },
    /// Of a vector: for each element.
    Whole(&'a mut [T]),
}

/// Makes `u` of `g`, in place.
pub fn precondition<T: Real>(g: &mut [T], second: Second<'_, T>, decay: f64) {
    let (old, new) = (T::of(decay), T::of(1.0 - decay));
    let square = |g: T| g * g + T::of(FLOOR);
    match second {
        Second::Whole(moments) => {
            for (g, v) in g.iter_mut().zip(moments) {
                *v = old * *v + new * square(*g);
                *g *= T::ONE / v.root();
            }
        }
        Second::Factored { rows, columns } => {
            let (height, width) = (rows.len(), columns.len());
            let mut sums = vec![T::ZERO; width];
            for (row, moment) in g.chunks_exact(width).zip(&mut *rows) {
                let mut sum = T::ZERO;
                for (g, column) in row.iter().zip(&mut sums) {
                    sum += square(*g);
                    *column += square(*g);
                }
                *moment = old * *moment + new * (sum / T::of(width as f64));
            }
            for (moment, sum) in columns.iter_mut().zip(sums) {
                *moment = old * *moment + new * (sum / T::of(height as f64));
            }
            let all = rows.iter().fold(T::ZERO, |sum, &row| sum + row);
            let mean = all / T::of(height as f64);
            let roots: Vec<T> = columns.iter().map(|c| T::ONE / c.root()).collect();
            for (row, moment) in g.chunks_exact_mut(width).zip(rows) {
                let root = T::ONE / (*moment / mean).root();
                for (g, column) in row.iter_mut().zip(&roots) {
                    *g = *g * root * *column;
                }
            }
        }
    }
}

/// Root of the mean square, summed in f64.
pub fn rms<T: Real>(values: &[T]) -> f64 {
    let squares = values.iter().map(|v| v.f64() * v.f64());
    (squares.sum::<f64>() / values.len().max(1) as f64).sqrt()
}

/// Moves weights against `u`: `u ← u / max(1, RMS(u))`, `η' = η max(10⁻³, RMS(w))`,
/// `w ← w (1 − η'λ) − η' u`.
pub fn descend<T: Real>(w: &mut [T], u: &[T], learning_rate: f64, weight_decay: f64) {
    let rate = learning_rate * rms(w).max(LEAST_SCALE);
    let (keep, step) = (1.0 - rate * weight_decay, rate / rms(u).max(1.0));
    let (keep, step) = (T::of(keep), T::of(step));
    for (w, u) in w.iter_mut().zip(u) {
        *w = *w * keep - step * *u;
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::noise;
    use super::*;

    /// L6: squares of rank one give signs.
    #[test]
    fn the_first_step_by_an_outer_product_takes_signs() {
        let (a, b) = (noise(1, 7), noise(2, 9));
        let mut g: Vec<f64> = a
            .iter()
            .flat_map(|a| b.iter().map(move |b| a * b))
            .collect();
        let signs: Vec<f64> = g.iter().map(|g| g.signum()).collect();
        // What was there before is forgotten.
        let (mut rows, mut columns) = (noise(3, 7), noise(4, 9));
        let second = Second::Factored {
            rows: &mut rows,
            columns: &mut columns,
        };
        precondition(&mut g, second, decay(1));
        for (u, sign) in g.iter().zip(signs) {
            assert!((u - sign).abs() < 1e-14, "{u}");
        }
    }

    /// L7: an update is never longer than the learning rate times the weights' size allows.
    #[test]
    fn updates_are_no_larger_than_one() {
        let (mut rows, mut columns) = (vec![0.0; 8], vec![0.0; 12]);
        for step in 1..20 {
            let mut u = noise(step, 96);
            // A gradient that grows outruns its own moments.
            u.iter_mut().for_each(|u| *u *= 10f64.powi(step as i32));
            let second = Second::Factored {
                rows: &mut rows,
                columns: &mut columns,
            };
            precondition(&mut u, second, decay(step));
            let mut w = noise(100 + step, 96);
            let before = w.clone();
            descend(&mut w, &u, 0.01, 0.0);
            let moved: Vec<f64> = w.iter().zip(&before).map(|(a, b)| a - b).collect();
            let most = 0.01 * rms(&before);
            assert!(rms(&moved) <= most * (1.0 + 1e-12), "step {step}");
            if step > 2 {
                assert!(rms(&u) > 1.0, "step {step} was not to be cut");
            }
        }
    }

    #[test]
    fn decay_shrinks_and_zeros_do_no_harm() {
        let (mut w, mut u) = (vec![2.0f64; 4], vec![0.0; 4]);
        let mut moments = vec![0.0; 4];
        precondition(&mut u, Second::Whole(&mut moments), decay(1));
        assert_eq!(u, [0.0; 4]);
        descend(&mut w, &u, 0.1, 0.5);
        assert!(w
            .iter()
            .all(|w| (w - 2.0 * (1.0 - 0.1 * 2.0 * 0.5)).abs() < 1e-15));
    }
}
