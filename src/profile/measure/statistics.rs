//! From repetitions to one number.
//!
//! A repetition is an outlier when its modified z-score 0.6745·|x − median| / MAD is above 3.5
//! (Iglewicz and Hoaglin 1993, "How to Detect and Handle Outliers"), where MAD is the median of
//! |x − median|, at least a nanosecond. Outliers are left out once; what is told is the median of
//! the others, their spread and their number.

/// The outlier rule in words, for files.
pub const OUTLIERS: &str =
    "left out: modified z-score 0.6745·|x − median| / MAD above 3.5 (Iglewicz and Hoaglin 1993)";

/// Repetitions, summed up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Summary {
    /// The median.
    pub median: u64,
    /// 1.4826 × the median distance from it: of normal noise the standard deviation.
    pub spread: u64,
    /// How many counted.
    pub count: u64,
}

impl Summary {
    /// Sums up repetitions.
    ///
    /// # Panics
    /// When there are none.
    pub fn of(samples: &[u64]) -> Self {
        let (middle, distance) = middle(samples);
        let limit = 3.5 / 0.6745 * distance.max(1) as f64;
        let near = |x: &u64| x.abs_diff(middle) as f64 <= limit;
        let kept: Vec<u64> = samples.iter().copied().filter(near).collect();
        let (median, distance) = self::middle(&kept);
        Self {
            median,
            spread: (distance as f64 * 1.4826).round() as u64,
            count: kept.len() as u64,
        }
    }
}

/// The median, and the median distance from it.
fn middle(samples: &[u64]) -> (u64, u64) {
    let median = median(samples);
    let distances: Vec<u64> = samples.iter().map(|x| x.abs_diff(median)).collect();
    (median, self::median(&distances))
}

/// The median; of an even number of samples the mean of the middle two.
///
/// # Panics
/// When there are none.
pub fn median(samples: &[u64]) -> u64 {
    assert!(!samples.is_empty(), "a median needs a sample");
    let mut sorted = samples.to_vec();
    sorted.sort_unstable();
    let half = sorted.len() / 2;
    match sorted.len() % 2 {
        0 => sorted[half - 1].midpoint(sorted[half]),
        _ => sorted[half],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn outliers_do_not_count() {
        let quiet = [100, 101, 102, 103, 104];
        let summary = |median, spread, count| Summary {
            median,
            spread,
            count,
        };
        assert_eq!(Summary::of(&quiet), summary(102, 1, 5));
        assert_eq!(Summary::of(&[&quiet[..], &[900]].concat()).count, 5);
        assert_eq!(Summary::of(&[7]), summary(7, 0, 1));
        assert_eq!(Summary::of(&[7, 7, 7, 7, 900]), summary(7, 0, 4));
        assert_eq!(median(&[1, 4]), 2);
    }
}
