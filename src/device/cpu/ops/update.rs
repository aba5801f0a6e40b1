//! Updates of parameters, element by element: one function for the device and for the host.

use super::{vectorised, Real};
use crate::device::StepParameters;

/// What an update multiplies with: computed once a step in f64, rounded to f32.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Constants {
    /// What clipping multiplies gradients with.
    pub clip: f32,
    /// `1 − ηλ`.
    pub keep: f32,
    /// `1 − β₁`.
    pub first: f32,
    /// `β₂`.
    pub second: f32,
    /// `1 − β₂`.
    pub second_new: f32,
    /// `√(1 − β₂ᵗ)`.
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
            keep: (1.0 - step.learning_rate * step.weight_decay) as f32,
            first: (1.0 - step.beta1) as f32,
            second: step.beta2 as f32,
            second_new: (1.0 - step.beta2) as f32,
            correction: power(step.beta2).sqrt() as f32,
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
                let g = *g * c.clip;
                let (m_new, v_new) = (
                    *m + c.first * (g - *m),
                    *v * c.second + c.second_new * g * g,
                );
                let deviation = v_new.root() / c.correction + c.epsilon;
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
                *w = *w - c.learning_rate * (*g * c.clip + c.weight_decay * *w);
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
