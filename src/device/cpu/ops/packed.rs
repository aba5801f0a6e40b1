//! Numbers of 8 bits in groups that share a scale: FP8 and integers. Layout and sources are at
//! [`crate::device::packed`].

use crate::device::packed::{Storage, GROUP};

/// A floating-point format of 8 bits without infinities, or whose infinities are not made.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Float8 {
    /// Bits of mantissa.
    mantissa: u32,
    /// What is added to exponents.
    bias: i32,
    /// The largest number.
    pub largest: f32,
    /// A NaN.
    nan: u8,
}

/// 4 bits of exponent, 3 of mantissa, the last of which with an exponent of ones is NaN
/// (Micikevicius et al. 2022, arXiv 2209.05433).
pub const E4M3: Float8 = Float8 {
    mantissa: 3,
    bias: 7,
    largest: 448.0,
    nan: 0x7F,
};

/// 5 bits of exponent, 2 of mantissa, as IEEE 754 would have it.
pub const E5M2: Float8 = Float8 {
    mantissa: 2,
    bias: 15,
    largest: 57344.0,
    nan: 0x7F,
};

impl Float8 {
    /// The code of the nearest number, of two as near the even one; what is larger than the
    /// largest becomes that.
    pub fn encode(self, value: f32) -> u8 {
        if value.is_nan() {
            return self.nan;
        }
        let sign = u8::from(value.is_sign_negative()) << 7;
        let magnitude = f64::from(value.abs().min(self.largest));
        let hidden = f64::from(1u32 << self.mantissa);
        // Below the smallest exponent numbers are as far apart as above it.
        let exponent = exponent(magnitude).max(1 - self.bias);
        let steps = (magnitude / power(exponent) * hidden).round_ties_even();
        let code = f64::from((exponent + self.bias) << self.mantissa) + steps - hidden;
        sign | code as u8
    }

    /// The number of a code.
    pub fn decode(self, code: u8) -> f32 {
        let bits = i32::from(code & 0x7F);
        let fraction = f64::from(bits & ((1 << self.mantissa) - 1));
        let hidden = f64::from(1u32 << self.mantissa);
        let magnitude = match bits >> self.mantissa {
            0 => fraction / hidden * power(1 - self.bias),
            exponent => (1.0 + fraction / hidden) * power(exponent - self.bias),
        };
        if magnitude > f64::from(self.largest) {
            return f32::NAN;
        }
        let magnitude = magnitude as f32;
        if code & 0x80 == 0 {
            magnitude
        } else {
            -magnitude
        }
    }
}

/// `⌊log₂ x⌋` of a normal number; something very small of 0.
fn exponent(x: f64) -> i32 {
    (x.to_bits() >> 52) as i32 - 1023
}

fn power(exponent: i32) -> f64 {
    2f64.powi(exponent)
}

/// Codes of rows of `width` elements, and the scales of their groups. A group with a number that
/// is not finite comes back as NaNs.
pub fn pack(storage: Storage, values: &[f32], width: usize, codes: &mut [u8], scales: &mut [f32]) {
    let mut scales = scales.iter_mut();
    for (row, codes) in values.chunks(width).zip(codes.chunks_mut(width)) {
        let groups = row
            .chunks(GROUP as usize)
            .zip(codes.chunks_mut(GROUP as usize));
        for ((group, codes), scale) in groups.zip(&mut scales) {
            *scale = scale_of(storage, group.iter());
            for (value, code) in group.iter().zip(codes) {
                *code = code_of(storage, *value, *scale);
            }
        }
    }
}

/// The values of codes.
pub fn unpack(storage: Storage, codes: &[u8], scales: &[f32], width: usize, values: &mut [f32]) {
    let mut scales = scales.iter();
    for (row, codes) in values.chunks_mut(width).zip(codes.chunks(width)) {
        let groups = row
            .chunks_mut(GROUP as usize)
            .zip(codes.chunks(GROUP as usize));
        for ((group, codes), scale) in groups.zip(&mut scales) {
            for (value, &code) in group.iter_mut().zip(codes) {
                *value = value_of(storage, code, *scale);
            }
        }
    }
}

/// Rounds rows of `width` elements, each by a scale of its own.
pub fn round_rows(storage: Storage, values: &mut [f32], width: usize) {
    for row in values.chunks_mut(width.max(1)) {
        let scale = scale_of(storage, row.iter());
        row.iter_mut()
            .for_each(|value| *value = rounded(storage, *value, scale));
    }
}

/// Rounds the columns of rows of `width` elements, each by a scale of its own.
pub fn round_columns(storage: Storage, values: &mut [f32], width: usize) {
    for column in 0..width {
        let of_column = || {
            (column..)
                .step_by(width)
                .take_while(|&at| at < values.len())
        };
        let scale = scale_of(storage, of_column().map(|at| &values[at]));
        for at in (column..values.len()).step_by(width) {
            values[at] = rounded(storage, values[at], scale);
        }
    }
}

/// What one is in a group of numbers; NaN where they are not all finite.
fn scale_of<'a>(storage: Storage, values: impl Iterator<Item = &'a f32>) -> f32 {
    let larger = |most: f32, value: &f32| match value.is_finite() {
        true => most.max(value.abs()),
        false => f32::NAN,
    };
    let most = values.fold(0.0f32, |most, value| match most.is_nan() {
        true => most,
        false => larger(most, value),
    });
    most / largest(storage)
}

fn code_of(storage: Storage, value: f32, scale: f32) -> u8 {
    let quotient = if scale == 0.0 { 0.0 } else { value / scale };
    match storage {
        Storage::Fp8 => E4M3.encode(quotient),
        // A scale that is not normal can be too small by a little.
        Storage::Int8 => quotient.round_ties_even().clamp(-127.0, 127.0) as i8 as u8,
    }
}

fn value_of(storage: Storage, code: u8, scale: f32) -> f32 {
    scale
        * match storage {
            Storage::Fp8 => E4M3.decode(code),
            Storage::Int8 => f32::from(code as i8),
        }
}

fn rounded(storage: Storage, value: f32, scale: f32) -> f32 {
    value_of(storage, code_of(storage, value, scale), scale)
}

const fn largest(storage: Storage) -> f32 {
    match storage {
        Storage::Fp8 => E4M3.largest,
        Storage::Int8 => 127.0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn values(count: usize) -> Vec<f32> {
        let wave = |i: usize| ((i * i) as f32 * 0.37).sin() * (1 + i % 7) as f32;
        (0..count).map(wave).collect()
    }

    fn there_and_back(storage: Storage, values: &[f32], width: usize) -> (Vec<f32>, Vec<f32>) {
        let groups = width.div_ceil(GROUP as usize);
        let (mut codes, mut scales) = (
            vec![0; values.len()],
            vec![0.0; values.len() / width * groups],
        );
        pack(storage, values, width, &mut codes, &mut scales);
        let mut back = vec![0.0; values.len()];
        unpack(storage, &codes, &scales, width, &mut back);
        (back, scales)
    }

    /// Every number comes back from its code, and what lies between two goes to the nearer.
    #[test]
    fn codes_are_the_nearest_numbers() {
        for (format, finite) in [(E4M3, 0x7E), (E5M2, 0x7B)] {
            let all: Vec<f32> = (0..=finite).map(|code| format.decode(code)).collect();
            assert_eq!(all[usize::from(finite)], format.largest);
            assert!(all.windows(2).all(|pair| pair[0] < pair[1]));
            for (code, &number) in (0..).zip(&all) {
                assert_eq!(format.encode(number), code);
                assert_eq!(format.encode(-number), 0x80 | code);
                assert_eq!(format.decode(0x80 | code), -number);
            }
            for (code, pair) in (0u8..).zip(all.windows(2)) {
                let middle = (pair[0] + pair[1]) / 2.0;
                let even = if code % 2 == 0 { code } else { code + 1 };
                assert_eq!(format.encode(middle), even);
                assert_eq!(format.encode(middle * 0.999), code);
                assert_eq!(format.encode(middle * 1.001), code + 1);
            }
        }
        assert_eq!(E4M3.decode(1), 2f32.powi(-9));
        assert_eq!(E5M2.decode(1), 2f32.powi(-16));
    }

    /// Q6: too large numbers become the largest, never NaN; NaN stays.
    #[test]
    fn overflow_saturates() {
        for (format, largest) in [(E4M3, 448.0), (E5M2, 57344.0)] {
            for huge in [500.0 * largest, f32::MAX, f32::INFINITY] {
                assert_eq!(format.decode(format.encode(huge)), largest);
                assert_eq!(format.decode(format.encode(-huge)), -largest);
            }
            assert!(format.decode(format.encode(f32::NAN)).is_nan());
        }
    }

    /// Q1: half a step is the most that an integer is away; of FP8 an eighth of it, half.
    #[test]
    fn nothing_moves_further_than_half_a_step() {
        let values = values(6 * 300);
        let (back, scales) = there_and_back(Storage::Int8, &values, 300);
        for (at, (value, back)) in values.iter().zip(&back).enumerate() {
            let scale = scales[at / 300 * 3 + at % 300 / 128];
            assert!(
                (value - back).abs() <= scale * 0.5001,
                "{at}: {value} {back}"
            );
        }
        let (back, scales) = there_and_back(Storage::Fp8, &values, 300);
        for (at, (value, back)) in values.iter().zip(&back).enumerate() {
            let least = scales[at / 300 * 3 + at % 300 / 128] * 2f32.powi(-10);
            assert!((value - back).abs() <= value.abs() / 15.9 + least, "{at}");
        }
    }

    /// The largest of a group comes back, zeros stay, and so does what is not finite.
    #[test]
    fn extremes_come_back() {
        for storage in [Storage::Fp8, Storage::Int8] {
            let mut row = values(130);
            row[5] = -1e4;
            row[128] = 0.0;
            row[129] = 0.0;
            let (back, scales) = there_and_back(storage, &row, 130);
            assert!((back[5] + 1e4).abs() < 1e-2, "{}", back[5]);
            assert_eq!(back[128..], [0.0, 0.0]);
            assert_eq!(scales.len(), 2);
            row[7] = f32::INFINITY;
            let (back, _) = there_and_back(storage, &row, 130);
            assert!(back[..128].iter().all(|v| v.is_nan()));
            assert_eq!(back[128], 0.0);
        }
    }

    /// Rows and columns are rounded by their own scales, and so nothing by another's size.
    #[test]
    fn a_large_row_rounds_no_other() {
        for storage in [Storage::Fp8, Storage::Int8] {
            let mut rows = vec![1e6, -3e5, 0.3, 0.7, 0.0, 0.0];
            round_rows(storage, &mut rows, 2);
            assert!(
                (rows[3] - 0.7).abs() < 1e-6 && (rows[2] - 0.3).abs() < 0.02,
                "{rows:?}"
            );
            assert_eq!(rows[4..], [0.0, 0.0]);
            let mut columns = vec![1e6, 0.3, -3e5, 0.7];
            round_columns(storage, &mut columns, 2);
            assert!((columns[3] - 0.7).abs() < 1e-6 && (columns[1] - 0.3).abs() < 0.02);
            let mut bad = vec![f32::NAN, 1.0, 2.0, 2.0];
            round_rows(storage, &mut bad, 2);
            assert!(bad[..2].iter().all(|v| v.is_nan()) && bad[2..] == [2.0, 2.0]);
        }
    }

    /// Q5: a product of powers of two within the range is exact.
    #[test]
    fn products_of_powers_of_two_are_exact() {
        let powers = [-8.0f32, -2.0, -0.5, 0.25, 1.0, 4.0, 16.0, 256.0];
        let of = |value: f32| E4M3.decode(E4M3.encode(value));
        for a in powers {
            for b in powers {
                assert_eq!(of(a) * of(b), a * b);
            }
        }
    }
}
