//! The rotation of every position: RoPE's table, with the scalings that configs state.
//!
//! In: [`Positions`], the width of a head, the length of a sequence. Out: cosines and sines. Angles
//! are computed in f64 (at a million positions f32 would be off by a hundredth of a turn) and
//! stored as f32. Frequencies: Su et al. 2021; linear: Chen et al. 2023; Llama 3.1's ramp; YaRN:
//! Peng et al. 2023, section 3.

use crate::model::{Positions, RopeScaling};
use std::f64::consts::TAU;

/// Cosine and sine of every position and pair: two tables `[positions, head_dim / 2]`.
#[derive(Clone, Debug, PartialEq)]
pub struct RotaryTable {
    /// Elements of a row: half a head.
    pub half: u64,
    /// Rows: the longest sequence.
    pub positions: u64,
    /// Cosines, times YaRN's attention factor.
    pub cos: Vec<f32>,
    /// Sines, times YaRN's attention factor.
    pub sin: Vec<f32>,
}

impl RotaryTable {
    /// The table of a model's first `sequence` positions; none where positions are learned.
    pub fn new(positions: &Positions, head_dim: u64, sequence: u64) -> Option<RotaryTable> {
        let Positions::Rope { theta, scaling } = positions else {
            return None;
        };
        let half = head_dim / 2;
        let frequencies: Vec<f64> = (0..half)
            .map(|pair| frequency(*theta, scaling.as_ref(), head_dim, pair))
            .collect();
        let factor = match scaling {
            Some(RopeScaling::Yarn {
                attention_factor, ..
            }) => *attention_factor,
            _ => 1.0,
        };
        let angles = || {
            let positions = 0..sequence;
            positions.flat_map(|position| frequencies.iter().map(move |f| position as f64 * f))
        };
        Some(RotaryTable {
            half,
            positions: sequence,
            cos: angles().map(|a| (a.cos() * factor) as f32).collect(),
            sin: angles().map(|a| (a.sin() * factor) as f32).collect(),
        })
    }
}

/// Radians that a pair turns from one position to the next.
fn frequency(theta: f64, scaling: Option<&RopeScaling>, head_dim: u64, pair: u64) -> f64 {
    let plain = theta.powf(-2.0 * pair as f64 / head_dim as f64);
    match *match scaling {
        None => return plain,
        Some(scaling) => scaling,
    } {
        RopeScaling::Linear { factor } => plain / factor,
        RopeScaling::Llama3 {
            factor,
            low_freq_factor,
            high_freq_factor,
            original_positions,
        } => {
            // How often the pair turns within the pre-training's positions.
            let turns = original_positions as f64 * plain / TAU;
            let ramp = (turns - low_freq_factor) / (high_freq_factor - low_freq_factor);
            mix(plain / factor, plain, ramp.clamp(0.0, 1.0))
        }
        RopeScaling::Yarn {
            factor,
            beta_fast,
            beta_slow,
            original_positions,
            truncate,
            ..
        } => {
            // The pair that turns `beta` times within the pre-training's positions.
            let pair_of = |beta: f64| {
                head_dim as f64 * (original_positions as f64 / (beta * TAU)).ln()
                    / (2.0 * theta.ln())
            };
            let (mut low, mut high) = (pair_of(beta_fast), pair_of(beta_slow));
            if truncate {
                (low, high) = (low.floor(), high.ceil());
            }
            (low, high) = (low.max(0.0), high.min(head_dim as f64 - 1.0));
            if low == high {
                high += 0.001;
            }
            let ramp = ((pair as f64 - low) / (high - low)).clamp(0.0, 1.0);
            mix(plain, plain / factor, ramp)
        }
    }
}

/// `a` where `t` is 0, `b` where it is 1.
fn mix(a: f64, b: f64, t: f64) -> f64 {
    (1.0 - t) * a + t * b
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(scaling: Option<RopeScaling>) -> RotaryTable {
        let theta = 10_000.0;
        RotaryTable::new(&Positions::Rope { theta, scaling }, 8, 3).unwrap()
    }

    #[test]
    fn pairs_turn_by_powers_of_theta() {
        let plain = table(None);
        assert_eq!((plain.half, plain.positions), (4, 3));
        for (pair, frequency) in [1.0, 0.1, 0.01, 0.001f64].into_iter().enumerate() {
            let angle = 2.0 * frequency;
            assert_eq!(plain.cos[2 * 4 + pair], angle.cos() as f32);
            assert_eq!(plain.sin[2 * 4 + pair], angle.sin() as f32);
        }
    }

    #[test]
    fn scalings_reach_what_they_should() {
        let sine = |table: &RotaryTable, pair: usize| f64::from(table.sin[4 + pair]).asin();
        let linear = table(Some(RopeScaling::Linear { factor: 4.0 }));
        assert!((sine(&linear, 0) - 0.25).abs() < 1e-6);
        // Of 1024 positions pair 0 turns 163 times, pair 1 16, pair 2 1.6, pair 3 0.16 times.
        let llama = table(Some(RopeScaling::Llama3 {
            factor: 8.0,
            low_freq_factor: 1.0,
            high_freq_factor: 4.0,
            original_positions: 1024,
        }));
        assert!((sine(&llama, 0) - 1.0).abs() < 1e-6);
        assert!((sine(&llama, 1) - 0.1).abs() < 1e-6);
        let share = (1024.0 * 0.01 / TAU - 1.0) / 3.0;
        let between = share * 0.01 + (1.0 - share) * 0.01 / 8.0;
        assert!((sine(&llama, 2) - between).abs() < 1e-8);
        assert!((sine(&llama, 3) - 0.001 / 8.0).abs() < 1e-9);
        // The ramp runs from pair floor(0.7) = 0 to pair ceil(2.2) = 3.
        let yarn = table(Some(RopeScaling::Yarn {
            factor: 2.0,
            beta_fast: 32.0,
            beta_slow: 1.0,
            original_positions: 1024,
            attention_factor: 1.5,
            truncate: true,
        }));
        assert_eq!(yarn.cos[0], 1.5);
        let angle = |pair: usize| (f64::from(yarn.sin[4 + pair]) / 1.5).asin();
        assert!((angle(0) - 1.0).abs() < 1e-6);
        assert!((angle(1) - 0.1 * (2.0 / 3.0 + 1.0 / 6.0)).abs() < 1e-7);
        assert!((angle(3) - 0.0005).abs() < 1e-9);
    }
}
