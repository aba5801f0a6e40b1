//! Stochastic rounding to bf16: up with the probability of the part that is cut off.
//!
//! A weight without a master copy loses every update smaller than half its last bit when it is
//! rounded to nearest; rounded at random it follows the update in the mean (Gupta et al. 2015,
//! "Deep learning with limited numerical precision", section 3). Of the f32's bits the upper half
//! is the bf16: 16 random bits added to the lower half carry over as often as they should.

use super::philox::Draws;

/// Rounds `value` by 16 random bits; infinities and NaNs stay.
pub fn stochastic_bf16(value: f32, random: u32) -> f32 {
    if !value.is_finite() {
        return value;
    }
    let bits = value.to_bits();
    let rounded = bits.wrapping_add(random & 0xFFFF) & 0xFFFF_0000;
    f32::from_bits(rounded)
}

/// Rounds elements `first ..` in place, each by the half of a word that its place has; `first` is
/// a multiple of 8.
pub fn round_all(draws: Draws, first: u64, values: &mut [f32]) {
    for (block, eight) in (first / 8..).zip(values.chunks_mut(8)) {
        let words = draws.words(block);
        let halves = words.iter().flat_map(|word| [word & 0xFFFF, word >> 16]);
        for (value, half) in eight.iter_mut().zip(halves) {
            *value = stochastic_bf16(*value, half);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::philox::Purpose;
    use super::*;

    /// Q7: over all 2¹⁶ random numbers exactly the cut-off fraction of them rounds up.
    #[test]
    fn the_fraction_is_the_probability() {
        for (low, sign) in [(0u32, 0u32), (1, 0), (0x8000, 0), (0xFFFF, 0), (0x1234, 1)] {
            let value = f32::from_bits(0x3F81_0000 | low | sign << 31);
            let ups = (0..1 << 16).filter(|&random| {
                let rounded = stochastic_bf16(value, random).to_bits();
                assert_eq!(rounded & 0xFFFF, 0);
                rounded != value.to_bits() & 0xFFFF_0000
            });
            assert_eq!(ups.count(), low as usize);
        }
        for odd in [f32::INFINITY, f32::NEG_INFINITY] {
            assert_eq!(stochastic_bf16(odd, 0xFFFF), odd);
        }
        assert!(stochastic_bf16(f32::NAN, 0xFFFF).is_nan());
    }

    /// Q2: the mean over many roundings is the value, within five standard errors.
    #[test]
    fn the_mean_is_the_value() {
        let draws = Draws {
            key: 3,
            epoch: 1,
            purpose: Purpose::Weights,
        };
        let mut values = vec![0.3; 200_000];
        round_all(draws, 0, &mut values);
        let mean = values.iter().map(|&v| f64::from(v)).sum::<f64>() / 2e5;
        let step = 2f64.powi(-9);
        assert!(
            (mean - f64::from(0.3f32)).abs() < 5.0 * step / 2.0 / 2e5f64.sqrt(),
            "{mean}"
        );
    }
}
