//! Numbers of a file: whole, not negative, and small enough that no later sum overflows.

use serde::de::{Deserialize, Deserializer, Error, Unexpected, Visitor};
use serde::{Serialize, Serializer};
use std::fmt;

/// A whole number from `MIN` to `MAX`. A file may also write it with an exponent (`1e9`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Within<const MIN: u64, const MAX: u64>(u64);

/// The largest number a file may hold: 10¹⁸ (an exabyte, 31 years of nanoseconds).
pub const LARGEST: u64 = 1_000_000_000_000_000_000;

/// A size, time or rate that may be nothing.
pub type Natural = Within<0, LARGEST>;
/// A size, time or rate that may not be nothing.
pub type Positive = Within<1, LARGEST>;
/// The rate of a link: from 1 MB/s, so that no copy takes centuries.
pub type LinkRate = Within<1_000_000, LARGEST>;
/// Bytes that an update reads and writes for a parameter: AdamW's are 28.
pub type TrafficPerParameter = Within<0, 100_000>;
/// A dimension of a matrix or a number of tokens.
pub type Dimension = Within<1, 0x4000_0000>;
/// Parts per million, up to ten times the whole.
pub type Ppm = Within<0, 10_000_000>;

impl<const MIN: u64, const MAX: u64> Within<MIN, MAX> {
    /// The least that is in range.
    pub const LEAST: u64 = MIN;
    /// The most that is in range.
    pub const MOST: u64 = MAX;

    /// The number, if it is in range.
    pub fn new(value: u64) -> Option<Self> {
        (MIN..=MAX).contains(&value).then_some(Self(value))
    }
    /// The bare number.
    pub const fn get(self) -> u64 {
        self.0
    }
}

impl<const MIN: u64, const MAX: u64> Serialize for Within<MIN, MAX> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_u64(self.0)
    }
}

impl<'de, const MIN: u64, const MAX: u64> Deserialize<'de> for Within<MIN, MAX> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_u64(Whole::<MIN, MAX>)
    }
}

/// Accepts what JSON readers call an integer or a float, when it is whole and in range.
struct Whole<const MIN: u64, const MAX: u64>;

impl<const MIN: u64, const MAX: u64> Visitor<'_> for Whole<MIN, MAX> {
    type Value = Within<MIN, MAX>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a whole number from {MIN} to {MAX}")
    }
    fn visit_u64<E: Error>(self, value: u64) -> Result<Self::Value, E> {
        Within::new(value).ok_or_else(|| E::invalid_value(Unexpected::Unsigned(value), &self))
    }
    fn visit_i64<E: Error>(self, value: i64) -> Result<Self::Value, E> {
        u64::try_from(value)
            .ok()
            .and_then(Within::new)
            .ok_or_else(|| E::invalid_value(Unexpected::Signed(value), &self))
    }
    fn visit_f64<E: Error>(self, value: f64) -> Result<Self::Value, E> {
        let whole = value.fract() == 0.0 && (0.0..=LARGEST as f64).contains(&value);
        let number = if whole {
            Within::new(value as u64)
        } else {
            None
        };
        number.ok_or_else(|| E::invalid_value(Unexpected::Float(value), &self))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_whole_numbers_in_range() {
        let read = |text: &str| serde_json::from_str::<Positive>(text).map(Within::get).ok();
        assert_eq!(read("1"), Some(1));
        assert_eq!(read("1e9"), Some(1_000_000_000));
        assert_eq!(read("1e18"), Some(LARGEST));
        for refused in [
            "0", "-1", "0.5", "-0.0", "NaN", "1e19", "1e999", "null", "\"1\"", "[1]",
        ] {
            assert_eq!(read(refused), None, "{refused}");
        }
    }
}
