//! Integer units. Sums are associative, goldens are stable across machines, `==` is legal.
//!
//! What is absent is the point: no `Bytes × Bytes`, no `Instant + Instant`, no conversion from a
//! bare number but by a constructor that names the unit. A number leaves a unit through `.get()`.

use std::fmt;
use std::iter::Sum;
use std::ops::{Add, AddAssign, Div, Mul, Sub, SubAssign};

macro_rules! quantity {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(u64);

        impl $name {
            /// Nothing.
            pub const ZERO: Self = Self(0);
            /// The largest value; stands for "no limit".
            pub const MAX: Self = Self(u64::MAX);

            /// The quantity of this many of its unit.
            pub const fn new(value: u64) -> Self {
                Self(value)
            }
            /// The bare number.
            pub const fn get(self) -> u64 {
                self.0
            }
            /// Whether it is nothing.
            pub const fn is_zero(self) -> bool {
                self.0 == 0
            }
            /// `self + other`, or nothing when it does not fit in 64 bits.
            pub fn checked_add(self, other: Self) -> Option<Self> {
                self.0.checked_add(other.0).map(Self)
            }
            /// `self - other`, or nothing when `other` is larger.
            pub fn checked_sub(self, other: Self) -> Option<Self> {
                self.0.checked_sub(other.0).map(Self)
            }
            /// `self × factor`, or nothing when it does not fit in 64 bits.
            pub fn checked_mul(self, factor: u64) -> Option<Self> {
                self.0.checked_mul(factor).map(Self)
            }
            /// `self - other`, or zero when `other` is larger.
            pub fn saturating_sub(self, other: Self) -> Self {
                Self(self.0.saturating_sub(other.0))
            }
            /// `self × numerator / denominator`, rounded down.
            ///
            /// # Panics
            /// When `denominator` is zero or the result does not fit in 64 bits.
            pub fn scaled(self, numerator: u64, denominator: u64) -> Self {
                let wide = u128::from(self.0) * u128::from(numerator) / u128::from(denominator);
                Self(u64::try_from(wide).expect("scaled quantity fits in 64 bits"))
            }
        }
        impl Sum for $name {
            fn sum<I: Iterator<Item = Self>>(terms: I) -> Self {
                terms.fold(Self::ZERO, |total, term| total + term)
            }
        }
        impl Mul<u64> for $name {
            type Output = Self;
            fn mul(self, factor: u64) -> Self {
                Self(self.0.checked_mul(factor).expect(concat!(stringify!($name), " overflow")))
            }
        }
    };
}

macro_rules! additive {
    ($name:ident) => {
        impl Add for $name {
            type Output = Self;
            fn add(self, other: Self) -> Self {
                Self(
                    self.0
                        .checked_add(other.0)
                        .expect(concat!(stringify!($name), " overflow")),
                )
            }
        }
        impl AddAssign for $name {
            fn add_assign(&mut self, other: Self) {
                *self = *self + other;
            }
        }
        impl Sub for $name {
            type Output = Self;
            fn sub(self, other: Self) -> Self {
                Self(
                    self.0
                        .checked_sub(other.0)
                        .expect(concat!(stringify!($name), " underflow")),
                )
            }
        }
        impl SubAssign for $name {
            fn sub_assign(&mut self, other: Self) {
                *self = *self - other;
            }
        }
    };
}

quantity! {
    /// A size in memory.
    Bytes
}
quantity! {
    /// A length of time in nanoseconds.
    Nanos
}
quantity! {
    /// A number of tokens (rows of every activation).
    Tokens
}
additive!(Bytes);
additive!(Nanos);
additive!(Tokens);

/// A point in time: nanoseconds since the schedule began.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Instant(u64);

impl Instant {
    /// When the schedule begins.
    pub const START: Self = Self(0);
    /// This many nanoseconds after the start.
    pub const fn from_nanos(nanos: u64) -> Self {
        Self(nanos)
    }
    /// Nanoseconds since the start.
    pub const fn get(self) -> u64 {
        self.0
    }
    /// Time since the schedule began.
    pub const fn since_start(self) -> Nanos {
        Nanos(self.0)
    }
}
impl Add<Nanos> for Instant {
    type Output = Self;
    fn add(self, length: Nanos) -> Self {
        Self(self.0.checked_add(length.0).expect("Instant overflow"))
    }
}
impl Sub for Instant {
    type Output = Nanos;
    fn sub(self, earlier: Self) -> Nanos {
        Nanos(self.0.checked_sub(earlier.0).expect("Instant underflow"))
    }
}

/// A transfer rate, never zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct BytesPerSec(std::num::NonZeroU64);

impl BytesPerSec {
    /// The rate of this many bytes each second; nothing when it is zero.
    pub fn new(rate: u64) -> Option<Self> {
        std::num::NonZeroU64::new(rate).map(Self)
    }
    /// Bytes each second.
    pub const fn get(self) -> u64 {
        self.0.get()
    }
}
impl Div<BytesPerSec> for Bytes {
    type Output = Nanos;
    /// The time the transfer takes, rounded up.
    #[expect(clippy::suspicious_arithmetic_impl, reason = "nanoseconds in a second")]
    fn div(self, rate: BytesPerSec) -> Nanos {
        let nanos = (u128::from(self.0) * 1_000_000_000).div_ceil(u128::from(rate.get()));
        Nanos(u64::try_from(nanos).expect("transfer time fits in 64 bits"))
    }
}

impl Bytes {
    /// `n` × 2³⁰ bytes.
    pub const fn gib(n: u64) -> Self {
        Self(n << 30)
    }
    /// `n` × 2²⁰ bytes.
    pub const fn mib(n: u64) -> Self {
        Self(n << 20)
    }
    /// The next multiple of `alignment`.
    pub fn align_up(self, alignment: Bytes) -> Self {
        Self(self.0.div_ceil(alignment.0) * alignment.0)
    }
}

impl fmt::Display for Bytes {
    /// One style: `71.3 GiB`, `512 MiB`, `37 B`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let steps = [("TiB", 40), ("GiB", 30), ("MiB", 20), ("KiB", 10)];
        for (unit, shift) in steps {
            if self.0 >> shift > 0 {
                // In tenths, rounded to nearest, without leaving the integers.
                let tenths = (u128::from(self.0) * 10 + (1 << (shift - 1))) >> shift;
                return f.pad(&format!("{}.{} {unit}", tenths / 10, tenths % 10));
            }
        }
        f.pad(&format!("{} B", self.0))
    }
}
impl fmt::Display for Nanos {
    /// One style: `36.42 s`, `3.91 ms`, `820 ns`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (unit, one) in [("s", 1_000_000_000u64), ("ms", 1_000_000), ("µs", 1_000)] {
            if self.0 >= one {
                let hundredths = (u128::from(self.0) * 100 + u128::from(one / 2)) / u128::from(one);
                return f.pad(&format!(
                    "{}.{:02} {unit}",
                    hundredths / 100,
                    hundredths % 100
                ));
            }
        }
        f.pad(&format!("{} ns", self.0))
    }
}
impl fmt::Display for BytesPerSec {
    /// One style: `53.0 GB/s`, `200.0 MB/s`, `37 B/s`; decimal, as links are sold.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (unit, one) in [("GB/s", 1_000_000_000u64), ("MB/s", 1_000_000)] {
            if self.get() >= one {
                let tenths = (u128::from(self.get()) * 10 + u128::from(one / 2)) / u128::from(one);
                return f.pad(&format!("{}.{} {unit}", tenths / 10, tenths % 10));
            }
        }
        f.pad(&format!("{} B/s", self.get()))
    }
}
impl fmt::Display for Tokens {
    /// `128k` and `1m` where exact (k = 1024), else the number.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const M: u64 = 1 << 20;
        match self.0 {
            n if n >= M && n % M == 0 => f.pad(&format!("{}m", n / M)),
            n if n >= 1024 && n % 1024 == 0 => f.pad(&format!("{}k", n / 1024)),
            n => f.pad(&n.to_string()),
        }
    }
}

/// A half-open range `[start, end)`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Span {
    /// First row (or position) inside.
    pub start: u64,
    /// First row (or position) after it.
    pub end: u64,
}

impl Span {
    /// `[start, end)`.
    pub const fn new(start: u64, end: u64) -> Self {
        Self { start, end }
    }
    /// How many it holds.
    pub const fn len(self) -> u64 {
        self.end.saturating_sub(self.start)
    }
    /// Whether it holds nothing.
    pub const fn is_empty(self) -> bool {
        self.start >= self.end
    }
    /// Whether all of `other` lies inside.
    pub const fn contains(self, other: Span) -> bool {
        self.start <= other.start && other.end <= self.end
    }
    /// Whether the two share anything.
    pub const fn overlaps(self, other: Span) -> bool {
        self.start < other.end && other.start < self.end
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn transfers_round_up() {
        let rate = BytesPerSec::new(3).unwrap();
        assert_eq!(Bytes::new(1) / rate, Nanos::new(333_333_334));
    }

    #[test]
    fn one_style_of_display() {
        assert_eq!(Bytes::gib(72).to_string(), "72.0 GiB");
        assert_eq!(Bytes::new(37).to_string(), "37 B");
        assert_eq!(Nanos::new(3_914_000).to_string(), "3.91 ms");
        assert_eq!(Tokens::new(131_072).to_string(), "128k");
    }
}
