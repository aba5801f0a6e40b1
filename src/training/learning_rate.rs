//! The learning rate of each step: warm-up, then constant, linear or cosine, as HF's
//! `get_*_schedule_with_warmup` has them, so that curves compare. Others (PyTorch's `LinearLR` from
//! a `start_factor` of 1/n, nanoGPT) warm up one step earlier, so that no step is lost to a rate of
//! 0.

use std::fmt;
use std::str::FromStr;

use crate::error::Error;

/// How the rate goes on after the warm-up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    /// It stays.
    Constant,
    /// It falls in a straight line to 0 at the end.
    Linear,
    /// It falls to 0 along half a cosine wave (Loshchilov and Hutter 2017, without restarts).
    Cosine,
}

impl Shape {
    /// All shapes.
    pub const ALL: [Shape; 3] = [Shape::Constant, Shape::Linear, Shape::Cosine];

    /// The name in flags and files.
    pub const fn name(self) -> &'static str {
        match self {
            Shape::Constant => "constant",
            Shape::Linear => "linear",
            Shape::Cosine => "cosine",
        }
    }
}

impl fmt::Display for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for Shape {
    type Err = Error;
    fn from_str(text: &str) -> Result<Self, Error> {
        Shape::ALL
            .into_iter()
            .find(|s| s.name() == text)
            .ok_or_else(|| {
                let names = Shape::ALL.map(Shape::name).join(", ");
                Error::bad_input(format!("unknown learning-rate schedule `{text}`"))
                    .hint(format!("one of {names}"))
            })
    }
}

/// The learning rates of a run.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LearningRate {
    /// The highest.
    pub peak: f64,
    /// What follows the warm-up.
    pub shape: Shape,
    /// Steps in which it rises in a straight line.
    pub warmup: u64,
    /// Whether the first of them has its share of the peak already, and the last all of it; else
    /// the first has 0.
    pub above_zero: bool,
    /// Steps of the whole run.
    pub total: u64,
}

impl LearningRate {
    /// The rate of a step; the first is 0.
    pub fn at(&self, step: u64) -> f64 {
        if step < self.warmup {
            let risen = step + u64::from(self.above_zero);
            return self.peak * risen as f64 / self.warmup as f64;
        }
        let after = self.total.saturating_sub(self.warmup).max(1) as f64;
        let done = ((step - self.warmup) as f64 / after).min(1.0);
        self.peak
            * match self.shape {
                Shape::Constant => 1.0,
                Shape::Linear => 1.0 - done,
                Shape::Cosine => 0.5 * (1.0 + (std::f64::consts::PI * done).cos()),
            }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rates(shape: Shape) -> Vec<f64> {
        let rate = LearningRate {
            peak: 2.0,
            shape,
            warmup: 2,
            above_zero: false,
            total: 6,
        };
        (0..7).map(|step| rate.at(step)).collect()
    }

    /// By hand: half the peak in the middle of the warm-up, half of it again in the middle of
    /// what follows.
    #[test]
    fn the_shapes_are_those_of_hf() {
        assert_eq!(rates(Shape::Constant), [0.0, 1.0, 2.0, 2.0, 2.0, 2.0, 2.0]);
        assert_eq!(rates(Shape::Linear), [0.0, 1.0, 2.0, 1.5, 1.0, 0.5, 0.0]);
        let cosine = rates(Shape::Cosine);
        assert_eq!(cosine[..3], [0.0, 1.0, 2.0]);
        assert!(
            (cosine[4] - 1.0).abs() < 1e-12 && cosine[6] == 0.0,
            "{cosine:?}"
        );
        assert!((cosine[3] - (1.0 + 0.5f64.sqrt())).abs() < 1e-12);
    }
    #[test]
    fn a_warm_up_above_zero_is_one_step_earlier_and_what_follows_is_not() {
        let rate = |above_zero| LearningRate {
            peak: 3.0,
            shape: Shape::Linear,
            warmup: 3,
            above_zero,
            total: 6,
        };
        let rates = |above_zero| (0..6).map(|step| rate(above_zero).at(step)).collect();
        let (earlier, hf): (Vec<f64>, Vec<f64>) = (rates(true), rates(false));
        assert_eq!(earlier[..3], [1.0, 2.0, 3.0]);
        assert_eq!(hf[..3], [0.0, 1.0, 2.0]);
        assert_eq!(earlier[3..], hf[3..]);
    }
}
