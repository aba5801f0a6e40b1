//! What the tests of the operators share: numbers from a seed, and finite differences.

/// Numbers between −1 and 1 (splitmix64, Steele et al. 2014).
pub fn noise(seed: u64, count: usize) -> Vec<f64> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15);
    let mut next = || {
        state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = state;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        ((z ^ (z >> 31)) >> 11) as f64 / (1u64 << 52) as f64 - 1.0
    };
    (0..count).map(|_| next()).collect()
}

/// Asserts that `gradient` is what central differences of `loss` at `x` give.
pub fn assert_gradient(what: &str, x: &[f64], gradient: &[f64], loss: impl Fn(&[f64]) -> f64) {
    const STEP: f64 = 1e-5;
    assert_eq!(x.len(), gradient.len(), "{what}");
    assert!(gradient.iter().any(|g| *g != 0.0), "{what} is all zero");
    let mut moved = x.to_vec();
    for i in 0..x.len() {
        moved[i] = x[i] + STEP;
        let up = loss(&moved);
        moved[i] = x[i] - STEP;
        let down = loss(&moved);
        moved[i] = x[i];
        let slope = (up - down) / (2.0 * STEP);
        let off = (slope - gradient[i]).abs();
        assert!(
            off <= 1e-8 + 1e-6 * slope.abs(),
            "{what}[{i}] is {}, differences say {slope}",
            gradient[i]
        );
    }
}

/// Asserts that all elements agree to `tolerance`, relative to the largest.
pub fn assert_close(what: &str, a: &[f64], b: &[f64], tolerance: f64) {
    assert_eq!(a.len(), b.len(), "{what}");
    let size = b.iter().fold(0.0f64, |most, b| most.max(b.abs()));
    for (i, (a, b)) in a.iter().zip(b).enumerate() {
        let off = (a - b).abs();
        assert!(off <= tolerance * size, "{what}[{i}]: {a} for {b}");
    }
}

/// The sum of products: a loss whose gradient by `y` is `weights`.
pub fn weighted(y: &[f64], weights: &[f64]) -> f64 {
    y.iter().zip(weights).map(|(y, w)| y * w).sum()
}

/// As f32.
pub fn narrow(values: &[f64]) -> Vec<f32> {
    values.iter().map(|&v| v as f32).collect()
}

/// As f64.
pub fn widen(values: &[f32]) -> Vec<f64> {
    values.iter().map(|&v| f64::from(v)).collect()
}
