//! The float that the arithmetic runs in: f32 on the device, f64 in its tests.

use std::ops::{Add, Div, Mul, Neg, Sub};

/// A float.
pub trait Real:
    Copy
    + PartialOrd
    + Send
    + Sync
    + Add<Output = Self>
    + Sub<Output = Self>
    + Mul<Output = Self>
    + Div<Output = Self>
    + Neg<Output = Self>
    + faer::traits::ComplexField
{
    /// 0.
    const ZERO: Self;
    /// 1.
    const ONE: Self;
    /// −∞.
    const NEG_INFINITY: Self;
    /// The nearest to a double.
    fn of(value: f64) -> Self;
    /// As a double.
    fn f64(self) -> f64;
    /// `eˣ`.
    fn exponential(self) -> Self;
    /// `√x`.
    fn root(self) -> Self;
    /// `ln x`.
    fn logarithm(self) -> Self;
    /// The error function.
    fn error_function(self) -> Self;
    /// The hyperbolic tangent.
    fn hyperbolic_tangent(self) -> Self;
}

impl Real for f64 {
    const ZERO: f64 = 0.0;
    const ONE: f64 = 1.0;
    const NEG_INFINITY: f64 = f64::NEG_INFINITY;
    fn of(value: f64) -> f64 {
        value
    }
    fn f64(self) -> f64 {
        self
    }
    fn exponential(self) -> f64 {
        self.exp()
    }
    fn root(self) -> f64 {
        self.sqrt()
    }
    fn logarithm(self) -> f64 {
        self.ln()
    }
    fn error_function(self) -> f64 {
        libm::erf(self)
    }
    fn hyperbolic_tangent(self) -> f64 {
        self.tanh()
    }
}

impl Real for f32 {
    const ZERO: f32 = 0.0;
    const ONE: f32 = 1.0;
    const NEG_INFINITY: f32 = f32::NEG_INFINITY;
    #[inline(always)]
    fn of(value: f64) -> f32 {
        value as f32
    }
    #[inline(always)]
    fn f64(self) -> f64 {
        f64::from(self)
    }

    /// `2ⁿ · p(r)` with `x = n ln 2 + r`, `|r| ≤ ln 2 / 2`, and `p` the Taylor polynomial of degree
    /// 7: within 2 units in the last place, no branch, so that loops over it are vectorised. Below
    /// −87.3, where results would be subnormal, 0; above 88.3 infinity.
    #[inline(always)]
    fn exponential(self) -> f32 {
        const LOWEST: f32 = -87.3;
        const HIGHEST: f32 = 88.3;
        // Adding 1.5 · 2²³ leaves the nearest whole number in the lowest bits.
        const WHOLE: f32 = 12_582_912.0;
        // ln 2 in two parts, the first of few bits, so that its multiples are exact.
        const LN2_HIGH: f32 = 355.0 / 512.0;
        const LN2_LOW: f32 = -2.121_944_4e-4;
        // A NaN passes both comparisons.
        let x = if self < LOWEST { LOWEST } else { self };
        let x = if x > HIGHEST { HIGHEST } else { x };
        let shifted = x * std::f32::consts::LOG2_E + WHOLE;
        let n = shifted - WHOLE;
        let r = x - n * LN2_HIGH - n * LN2_LOW;
        let p = 1.0 / 5040.0;
        let p = p * r + 1.0 / 720.0;
        let p = p * r + 1.0 / 120.0;
        let p = p * r + 1.0 / 24.0;
        let p = p * r + 1.0 / 6.0;
        let p = p * r + 0.5;
        let p = p * r + 1.0;
        let p = p * r + 1.0;
        let power = f32::from_bits((shifted.to_bits() << 23).wrapping_add(0x3F80_0000));
        let result = p * power;
        let result = if self < LOWEST { 0.0 } else { result };
        if self > HIGHEST {
            f32::INFINITY
        } else {
            result
        }
    }
    #[inline(always)]
    fn root(self) -> f32 {
        self.sqrt()
    }
    fn logarithm(self) -> f32 {
        self.ln()
    }
    fn error_function(self) -> f32 {
        libm::erff(self)
    }
    /// `(1 − e⁻²ˣ)/(1 + e⁻²ˣ)` for positive `x`: right to the last place of 1, which is what GELU
    /// needs; near 0 the relative error grows.
    #[inline(always)]
    fn hyperbolic_tangent(self) -> f32 {
        let e = (-2.0 * self.abs()).exponential();
        ((1.0 - e) / (1.0 + e)).copysign(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exponentials_are_right_to_two_places() {
        let mut worst = 0.0f64;
        let mut x = -87.3f32;
        while x < 88.3 {
            let exact = f64::from(x).exp();
            worst = worst.max((f64::from(x.exponential()) - exact).abs() / exact);
            x += 0.0137;
        }
        assert!(worst < 2.0 * f64::from(f32::EPSILON), "{worst:e}");
        assert_eq!((0.0f32.exponential(), (-90.0f32).exponential()), (1.0, 0.0));
        assert_eq!(f32::NEG_INFINITY.exponential(), 0.0);
        assert_eq!(89.0f32.exponential(), f32::INFINITY);
        assert!(f32::NAN.exponential().is_nan());
    }

    #[test]
    fn tangents_are_right_beside_one() {
        for i in -1000..=1000 {
            let x = i as f32 * 0.01;
            let off = f64::from(x.hyperbolic_tangent()) - f64::from(x).tanh();
            assert!(off.abs() < 1.5e-7, "{x}: {off:e}");
        }
        assert!(f32::NAN.hyperbolic_tangent().is_nan());
    }
}
