//! Updates of parameters, element by element: one function for the device and for the host.

use super::{vectorised, Real};
use crate::device::StepParameters;

/// What an update multiplies with: computed once a step in f64, rounded to f32.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Constants {
    /// What clipping multiplies gradients with.
    pub clip: f32,
    /// What their elements are clipped to before.
    pub most: f32,
    /// `1 − ηλ`.
    pub keep: f32,
    /// `1 − β₁`.
    pub first: f32,
    /// `β₂`.
    pub second: f32,
    /// `1 − β₂`.
    pub second_new: f32,
    /// `1 / √(1 − β₂ᵗ)`: a factor, since divisions are what an update has no time for.
    pub correction: f32,
    /// ε.
    pub epsilon: f32,
    /// `η / (1 − β₁ᵗ)`.
    pub step_size: f32,
    /// η.
    pub learning_rate: f32,
    /// λ.
    pub weight_decay: f32,
}

impl Constants {
    /// Of a step; `clip` is what gradients are multiplied with.
    pub fn new(step: &StepParameters, clip: f64) -> Constants {
        let power = |beta: f64| 1.0 - beta.powf(step.step as f64);
        Constants {
            clip: clip as f32,
            most: step.clip_value.map_or(f32::INFINITY, |most| most as f32),
            keep: (1.0 - step.learning_rate * step.weight_decay) as f32,
            first: (1.0 - step.beta1) as f32,
            second: step.beta2 as f32,
            second_new: (1.0 - step.beta2) as f32,
            correction: power(step.beta2).sqrt().recip() as f32,
            epsilon: step.epsilon as f32,
            step_size: (step.learning_rate / power(step.beta1)) as f32,
            learning_rate: step.learning_rate as f32,
            weight_decay: step.weight_decay as f32,
        }
    }
}

/// AdamW of parameters `w` with moments `m`, `v` and gradients `g`.
pub fn adamw(c: &Constants, w: &mut [f32], m: &mut [f32], v: &mut [f32], g: &[f32]) {
    let elements = w.iter_mut().zip(m).zip(v).zip(g);
    vectorised(
        #[inline(always)]
        || {
            for (((w, m), v), g) in elements {
                let g = g.clamp(-c.most, c.most) * c.clip;
                let (m_new, v_new) = (
                    *m + c.first * (g - *m),
                    *v * c.second + c.second_new * g * g,
                );
                let deviation = v_new.root() * c.correction + c.epsilon;
                *w = *w * c.keep - c.step_size * m_new / deviation;
                (*m, *v) = (m_new, v_new);
            }
        },
    );
}

/// Gradient descent.
pub fn sgd(c: &Constants, w: &mut [f32], g: &[f32]) {
    let elements = w.iter_mut().zip(g);
    vectorised(
        #[inline(always)]
        || {
            for (w, g) in elements {
                let g = g.clamp(-c.most, c.most) * c.clip;
                *w = *w - c.learning_rate * (g + c.weight_decay * *w);
            }
        },
    );
}

/// `Σ g²` in f64, from `sum` on.
pub fn add_squares(sum: f64, gradients: &[f32]) -> f64 {
    const LANES: usize = 8;
    let mut lanes = [0.0; LANES];
    vectorised(
        #[inline(always)]
        || {
            for chunk in gradients.chunks(LANES) {
                for (lane, &g) in lanes.iter_mut().zip(chunk) {
                    *lane += f64::from(g) * f64::from(g);
                }
            }
        },
    );
    sum + lanes.into_iter().sum::<f64>()
}

#[cfg(test)]
mod tests {
    use super::super::testing::*;
    use super::*;

    fn parameters(step: u64) -> StepParameters {
        StepParameters {
            step,
            learning_rate: 0.01,
            beta2: 0.95,
            weight_decay: 0.1,
            ..StepParameters::STILL
        }
    }

    #[test]
    fn adamw_is_the_published_rule() {
        let (mut w, g) = (narrow(&noise(1, 40)), narrow(&noise(2, 40)));
        let (mut m, mut v) = (vec![0.0f32; 40], vec![0.0f32; 40]);
        let mut exact: Vec<(f64, f64, f64)> = w.iter().map(|&w| (f64::from(w), 0.0, 0.0)).collect();
        for step in 1..=3 {
            let constants = Constants::new(&parameters(step), 0.5);
            adamw(&constants, &mut w, &mut m, &mut v, &g);
            for ((w, m, v), g) in exact.iter_mut().zip(&g) {
                let g = 0.5 * f64::from(*g);
                *w -= 0.01 * 0.1 * *w;
                *m = 0.9 * *m + 0.1 * g;
                *v = 0.95 * *v + 0.05 * g * g;
                let (m, v) = (
                    *m / (1.0 - 0.9f64.powi(step as i32)),
                    *v / (1.0 - 0.95f64.powi(step as i32)),
                );
                *w -= 0.01 * m / (v.sqrt() + 1e-8);
            }
        }
        let of = |f: fn(&(f64, f64, f64)) -> f64| exact.iter().map(f).collect::<Vec<_>>();
        assert_close("w", &widen(&w), &of(|e| e.0), 1e-6);
        assert_close("m", &widen(&m), &of(|e| e.1), 1e-6);
        assert_close("v", &widen(&v), &of(|e| e.2), 1e-6);
    }

    #[test]
    fn descent_decays_and_clips() {
        let mut w = [1.0f32, -2.0];
        sgd(&Constants::new(&parameters(1), 0.5), &mut w, &[0.2, 0.4]);
        let exact = [1.0 - 0.01 * (0.1 + 0.1), -2.0 - 0.01 * (0.2 - 0.2)];
        assert_close("w", &widen(&w), &exact, 1e-7);
        let g: Vec<f32> = (1..=11).map(|i| i as f32).collect();
        assert_eq!(add_squares(1.0, &g), 507.0);
    }
}
