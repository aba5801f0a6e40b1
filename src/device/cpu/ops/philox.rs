//! Random numbers by counter: the same bits for the same place, whoever asks and in which order.
//!
//! Philox 4×32 with 10 rounds (Salmon, Moraes, Dror and Shaw 2011, "Parallel random numbers: as
//! easy as 1, 2, 3", section 3.3): 128 bits are a function of a 128-bit counter and a 64-bit key.
//! The counter says where (block of four words), when (epoch) and what for; the key says of which
//! tensor. Nothing is kept between draws, so that tiles, threads, recomputation and other devices
//! cannot change a number.
//!
//! Elements of random projections are sums of 32 fair bits, `(popcount − 16) / √8`: mean 0,
//! variance 1, kurtosis 3 − 1/16. A normal by logarithms and cosines would differ in its last bits
//! from device to device; this is an integer times a constant.

/// What numbers are drawn for: streams of one tensor that never meet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// Rounding of weights.
    Weights,
    /// Rounding of first moments.
    FirstMoment,
    /// Rounding of second moments.
    SecondMoment,
    /// A random projection.
    Projection,
    /// The random projection that gradients are added up in.
    Accumulation,
}

/// The numbers of one tensor for one purpose in one epoch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Draws {
    /// Of which tensor.
    pub key: u64,
    /// When: an optimizer step, or how often a projection was renewed.
    pub epoch: u32,
    /// What for.
    pub purpose: Purpose,
}

impl Draws {
    /// The four words of block `block`.
    pub fn words(&self, block: u64) -> [u32; 4] {
        let counter = [
            block as u32,
            (block >> 32) as u32,
            self.epoch,
            self.purpose as u32,
        ];
        philox(counter, [self.key as u32, (self.key >> 32) as u32])
    }

    /// Elements `first ..` of a random matrix, each of mean 0 and variance `scale²`.
    pub fn fill(&self, first: u64, scale: f32, out: &mut [f32]) {
        let unit = scale * std::f32::consts::FRAC_1_SQRT_2 / 2.0;
        let mut words = [0; 4];
        for (at, value) in (first..).zip(out) {
            if at == first || at % 4 == 0 {
                words = self.words(at / 4);
            }
            let ones = words[(at % 4) as usize].count_ones();
            *value = (ones as f32 - 16.0) * unit;
        }
    }
}

const MULTIPLIERS: [u32; 2] = [0xD251_1F53, 0xCD9E_8D57];
const WEYL: [u32; 2] = [0x9E37_79B9, 0xBB67_AE85];

/// Philox 4×32-10.
pub fn philox(mut counter: [u32; 4], mut key: [u32; 2]) -> [u32; 4] {
    for _ in 0..10 {
        let [a, b] = [0, 1].map(|i| u64::from(MULTIPLIERS[i]) * u64::from(counter[2 * i]));
        counter = [
            (b >> 32) as u32 ^ counter[1] ^ key[0],
            b as u32,
            (a >> 32) as u32 ^ counter[3] ^ key[1],
            a as u32,
        ];
        key = [0, 1].map(|i| key[i].wrapping_add(WEYL[i]));
    }
    counter
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The known answers of the authors' Random123 (`kat_vectors`).
    #[test]
    fn the_published_answers_come_out() {
        let all = u32::MAX;
        let cases = [
            (
                [0; 4],
                [0; 2],
                [0x6627_E8D5, 0xE169_C58D, 0xBC57_AC4C, 0x9B00_DBD8],
            ),
            (
                [all; 4],
                [all; 2],
                [0x408F_276D, 0x41C8_3B0E, 0xA20B_C7C6, 0x6D54_51FD],
            ),
            (
                [0x243F_6A88, 0x85A3_08D3, 0x1319_8A2E, 0x0370_7344],
                [0xA409_3822, 0x299F_31D0],
                [0xD16C_FE09, 0x94FD_CCEB, 0x5001_E420, 0x2412_6EA1],
            ),
        ];
        for (counter, key, answer) in cases {
            assert_eq!(philox(counter, key), answer);
        }
    }

    /// R6: any part of a projection is the same numbers, other epochs, tensors and purposes others.
    #[test]
    fn any_tile_draws_the_same_numbers() {
        let draws = |key, epoch, purpose| Draws {
            key,
            epoch,
            purpose,
        };
        let here = draws(7, 3, Purpose::Projection);
        let mut whole = [0.0; 101];
        here.fill(0, 0.5, &mut whole);
        for (first, length) in [(0, 101), (1, 7), (4, 4), (6, 91), (99, 2)] {
            let mut part = vec![0.0; length];
            here.fill(first as u64, 0.5, &mut part);
            assert_eq!(part, whole[first..first + length]);
        }
        let others = [
            draws(8, 3, Purpose::Projection),
            draws(7, 4, Purpose::Projection),
            draws(7, 3, Purpose::Weights),
        ];
        for other in others {
            let mut different = [0.0; 101];
            other.fill(0, 0.5, &mut different);
            assert_ne!(different, whole);
        }
    }

    #[test]
    fn elements_have_mean_0_variance_1_and_nearly_the_kurtosis_of_a_normal() {
        let mut values = vec![0.0; 1 << 20];
        let draws = Draws {
            key: 1,
            epoch: 0,
            purpose: Purpose::Projection,
        };
        draws.fill(0, 1.0, &mut values);
        let mean_of = |power: i32| {
            let powers = values.iter().map(|&v| f64::from(v).powi(power));
            powers.sum::<f64>() / values.len() as f64
        };
        // Five standard errors: √(1/n), √(1.94/n), √(90/n) with n = 2²⁰.
        assert!(mean_of(1).abs() < 0.0049, "{}", mean_of(1));
        assert!((mean_of(2) - 1.0).abs() < 0.0068, "{}", mean_of(2));
        assert!((mean_of(4) - 2.9375).abs() < 0.047, "{}", mean_of(4));
    }
}
