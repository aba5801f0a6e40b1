//! Reproducible random numbers: SplitMix64 (Steele, Lea and Flood 2014), and normal ones from it by
//! the polar-free method of Box and Muller (1958).
//!
//! Own code because a seed must give the same weights with every version of every library.

/// What the state grows by with every number.
const STEP: u64 = 0x9e37_79b9_7f4a_7c15;

/// A stream of numbers from a seed.
#[derive(Clone, Debug)]
pub struct Random {
    state: u64,
}

impl Random {
    /// The stream of a seed.
    pub const fn new(seed: u64) -> Self {
        Self { state: seed }
    }
    /// One of many streams of a seed.
    pub fn stream(seed: u64, stream: u64) -> Self {
        let mut mixed = Self::new(seed ^ Self::new(stream).next_u64());
        mixed.next_u64();
        mixed
    }
    /// The stream from behind so many of its normal numbers on.
    pub const fn behind_normals(&self, count: u64) -> Self {
        let numbers = count.wrapping_mul(2);
        Self::new(self.state.wrapping_add(STEP.wrapping_mul(numbers)))
    }
    /// The next 64 bits.
    pub fn next_u64(&mut self) -> u64 {
        self.state = self.state.wrapping_add(STEP);
        let mut z = self.state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
    /// Evenly in (0, 1].
    pub fn unit(&mut self) -> f64 {
        ((self.next_u64() >> 11) + 1) as f64 / (1u64 << 53) as f64
    }
    /// Evenly in `0..bound`, to 1 in 2⁶⁴ / bound.
    ///
    /// # Panics
    /// When the bound is 0.
    pub fn below(&mut self, bound: u64) -> u64 {
        u64::try_from((u128::from(self.next_u64()) * u128::from(bound)) >> 64)
            .expect("less than the bound")
    }
    /// Normal with mean 0 and deviation 1, of two numbers.
    pub fn normal(&mut self) -> f64 {
        let radius = (-2.0 * self.unit().ln()).sqrt();
        radius * (std::f64::consts::TAU * self.unit()).cos()
    }
}
