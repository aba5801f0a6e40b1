//! Block-wise 8-bit numbers on a dynamic map, for optimizer states.
//!
//! Dettmers et al. 2022, "8-bit optimizers via block-wise quantization", sections 2.1 and 2.2: a
//! block of 256 elements is divided by its largest magnitude and each quotient becomes the code of
//! the nearest of 256 values. These are spaced by the exponent: decade `10^(e−7) ‥ 10^(e−6)`,
//! `e = 0 ‥ 6`, is cut into `2^e` equal cells (signed, for either sign) or `2^(e+1)` (unsigned), of
//! which the centres are values; 0 and 1 complete them.

use std::sync::LazyLock;

/// Elements that share a scale.
pub const BLOCK: usize = 256;

/// The value of each code, and the code of each number.
#[derive(Debug)]
pub struct Map {
    /// In ascending order.
    pub values: [f32; 256],
    /// What [`Map::code`] looks up: for each group of magnitudes with the same leading bits, from
    /// `SMALLEST` to 1, the code of the first in the lowest byte, and at the top the trailing bits
    /// of the last that has it: a group has two codes at the most. First of positive numbers, then
    /// of negative ones, where there are any.
    pub turns: Vec<u32>,
    trailing: u32,
}

/// For numbers of either sign.
pub static SIGNED: LazyLock<Map> = LazyLock::new(|| Map::new(true));

/// For numbers that are not negative.
pub static UNSIGNED: LazyLock<Map> = LazyLock::new(|| Map::new(false));

/// What is smaller is nearest to 0 on either map.
const SMALLEST: f32 = 1.0 / (1 << 23) as f32;

impl Map {
    fn new(signed: bool) -> Self {
        let values = values(signed);
        // Cells are half as wide without signs.
        let trailing = if signed { 17 } else { 16 };
        let mut turns = Vec::new();
        for sign in 0..=u32::from(signed) {
            let groups = SMALLEST.to_bits() >> trailing..=1f32.to_bits() >> trailing;
            turns.extend(groups.map(|leading| {
                let code = |low: u32| {
                    nearest(
                        &values,
                        f32::from_bits(sign << 31 | leading << trailing | low),
                    )
                };
                let last = (0..trailing).rev().fold(0, |last, bit| {
                    let low = last | 1 << bit;
                    if code(low) == code(0) {
                        low
                    } else {
                        last
                    }
                });
                last << (32 - trailing) | u32::from(code(0))
            }));
        }
        Self {
            values,
            turns,
            trailing,
        }
    }

    /// The code of the value nearest to `x`; of two as near the lower. What is no number is taken
    /// for a large one.
    pub fn code(&self, x: f32) -> u8 {
        let magnitude = x.abs().to_bits();
        let [least, most] = [SMALLEST, 1.0].map(|x| x.to_bits() >> self.trailing);
        let group = (magnitude >> self.trailing).clamp(least, most) - least;
        let of_sign = if x.is_sign_negative() {
            most - least + 1
        } else {
            0
        };
        let turn = self.turns[(group + of_sign) as usize];
        match (
            magnitude << (32 - self.trailing) > turn,
            x.is_sign_negative(),
        ) {
            (false, _) => turn as u8,
            (true, false) => turn as u8 + 1,
            (true, true) => turn as u8 - 1,
        }
    }
}

fn values(signed: bool) -> [f32; 256] {
    let mut values = vec![0.0, 1.0];
    for exponent in 0..7 {
        let cells = 1 << if signed { exponent } else { exponent + 1 };
        let width = 0.9 / f64::from(cells);
        let decade = 10f64.powi(exponent - 6);
        for cell in 0..cells {
            let value = (decade * (0.1 + width * (f64::from(cell) + 0.5))) as f32;
            values.push(value);
            if signed {
                values.push(-value);
            }
        }
    }
    values.sort_unstable_by(f32::total_cmp);
    values.try_into().expect("2 + 2 · 127 values")
}

/// What [`Map::code`] gives, by search.
fn nearest(values: &[f32; 256], x: f32) -> u8 {
    let above = values.partition_point(|&value| value < x).min(255);
    let below = above.saturating_sub(1);
    let code = if x - values[below] <= values[above] - x {
        below
    } else {
        above
    };
    code as u8
}

/// Codes of `values`, and a scale for every block.
pub fn quantise(map: &Map, values: &[f32], codes: &mut [u8], scales: &mut [f32]) {
    let blocks = values.chunks(BLOCK).zip(codes.chunks_mut(BLOCK));
    for ((values, codes), scale) in blocks.zip(scales) {
        *scale = values.iter().fold(0.0, |most, v| v.abs().max(most));
        let by = if *scale > 0.0 { scale.recip() } else { 0.0 };
        for (value, code) in values.iter().zip(codes) {
            // A reciprocal can be infinite where a scale is not normal.
            let quotient = if by.is_finite() {
                value * by
            } else {
                value / *scale
            };
            *code = map.code(quotient);
        }
    }
}

/// The values of codes.
pub fn dequantise(map: &Map, codes: &[u8], scales: &[f32], values: &mut [f32]) {
    let blocks = values.chunks_mut(BLOCK).zip(codes.chunks(BLOCK));
    for ((values, codes), scale) in blocks.zip(scales) {
        for (value, &code) in values.iter_mut().zip(codes) {
            *value = map.values[usize::from(code)] * scale;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Q4.
    #[test]
    fn the_maps_are_sorted_and_hold_0_and_1() {
        for map in [&*SIGNED, &*UNSIGNED] {
            let values = map.values;
            assert!(values.windows(2).all(|pair| pair[0] < pair[1]));
            assert!(values.contains(&0.0));
            assert_eq!(values[255], 1.0);
            for (code, value) in (0..=255).zip(values) {
                assert_eq!(map.code(value), code);
            }
        }
        assert_eq!(UNSIGNED.values[0], 0.0);
        assert!(SIGNED.values.iter().filter(|v| **v < 0.0).count() == 127);
    }

    /// Where codes change, and at a million places between.
    #[test]
    fn codes_are_those_of_the_nearest_values() {
        for (map, signs) in [(&*SIGNED, &[0, 1 << 31][..]), (&*UNSIGNED, &[0])] {
            let halfway = map.values.windows(2).map(|pair| (pair[0] + pair[1]) / 2.0);
            let around = halfway.flat_map(|x| (0..9).map(move |ulp| x.to_bits() - 4 + ulp));
            let between = (0..=1f32.to_bits() + (1 << 20)).step_by(1021);
            let between = between.flat_map(|bits| signs.iter().map(move |sign| bits | sign));
            for bits in around.chain(between) {
                let x = f32::from_bits(bits);
                assert_eq!(map.code(x), nearest(&map.values, x), "{x:e}");
            }
        }
    }

    /// Q4: what is constant comes back, and so does 0.
    #[test]
    fn constant_blocks_come_back() {
        let values: Vec<f32> = (0..700).map(|i| [0.7, 0.0, 1e-39][i / BLOCK]).collect();
        let (mut codes, mut scales) = (vec![0; 700], vec![0.0; 3]);
        for map in [&*SIGNED, &*UNSIGNED] {
            quantise(map, &values, &mut codes, &mut scales);
            let mut back = vec![1.0; 700];
            dequantise(map, &codes, &scales, &mut back);
            assert_eq!(back, values);
        }
    }

    #[test]
    fn no_element_is_further_away_than_half_a_gap() {
        let values: Vec<f32> = (0..1000).map(|i| ((i * i) as f32).sin() * 3.0).collect();
        let (mut codes, mut scales) = (vec![0; 1000], vec![0.0; 4]);
        quantise(&SIGNED, &values, &mut codes, &mut scales);
        let mut back = vec![0.0; 1000];
        dequantise(&SIGNED, &codes, &scales, &mut back);
        // The widest gap is that between −1's neighbour, which is not there, and −0.993.
        let cell = 0.9 / 64.0;
        for ((value, back), at) in values.iter().zip(&back).zip(0..) {
            let scale = scales[at / BLOCK];
            assert!(
                (value - back).abs() <= scale * cell * 0.51,
                "{at}: {value} {back}"
            );
        }
    }
}
