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

/// 256 values in ascending order.
pub type Map = [f32; 256];

/// For numbers of either sign.
pub static SIGNED: LazyLock<Map> = LazyLock::new(|| map(true));

/// For numbers that are not negative.
pub static UNSIGNED: LazyLock<Map> = LazyLock::new(|| map(false));

fn map(signed: bool) -> Map {
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

/// The code of the value nearest to `x`; of two as near the lower.
fn nearest(map: &Map, x: f32) -> u8 {
    let above = map.partition_point(|&value| value < x).min(255);
    let below = above.saturating_sub(1);
    let code = if x - map[below] <= map[above] - x {
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
            *code = nearest(map, quotient);
        }
    }
}

/// The values of codes.
pub fn dequantise(map: &Map, codes: &[u8], scales: &[f32], values: &mut [f32]) {
    let blocks = values.chunks_mut(BLOCK).zip(codes.chunks(BLOCK));
    for ((values, codes), scale) in blocks.zip(scales) {
        for (value, &code) in values.iter_mut().zip(codes) {
            *value = map[usize::from(code)] * scale;
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
            assert!(map.windows(2).all(|pair| pair[0] < pair[1]));
            assert!(map.contains(&0.0));
            assert_eq!(map[255], 1.0);
            for (code, &value) in (0..=255).zip(map) {
                assert_eq!(nearest(map, value), code);
            }
        }
        assert_eq!(UNSIGNED[0], 0.0);
        assert!(SIGNED.iter().filter(|v| **v < 0.0).count() == 127);
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
