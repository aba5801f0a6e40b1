//! Samples in, curves out: a line for copies, a monotone curve over one size, a monotone grid over
//! a product's three dimensions.
//!
//! Two rules hold for all: a curve passes through its samples, and no time falls when a size
//! grows. Where noise breaks the second rule the later sample is raised, and how far is reported.
//! Times inside are f64 nanoseconds; they leave the module next door as integers.

use crate::profile::cost::Extrapolation;
use ebbtide_solver::machine::Link;
use ebbtide_solver::units::{Bytes, BytesPerSec, Nanos};

/// Copies below this size are not part of the line: their cost is not a latency plus a rate.
pub const LINE_FROM: Bytes = Bytes::mib(1);

/// The line `latency + bytes / rate` with the least squared relative error, and its largest
/// relative error in parts per million; nothing when no sample gives a rate.
///
/// Relative, so that the 2 GiB sample does not drown the 1 MiB one. Samples below [`LINE_FROM`]
/// count only if there are no others; a negative latency is taken as none.
pub fn line(samples: &[(Bytes, Nanos)]) -> Option<(Link, u64)> {
    let large = || samples.iter().filter(|(size, _)| *size >= LINE_FROM);
    let used = if large().next().is_some() {
        large().collect()
    } else {
        Vec::from_iter(samples)
    };
    let points = used
        .iter()
        .map(|(size, time)| (size.get() as f64, time.get() as f64));
    // With u = 1/t and v = x/t the relative residual of a + b·x is a·u + b·v − 1.
    let (mut uu, mut uv, mut vv, mut u1, mut v1) = (0.0, 0.0, 0.0, 0.0, 0.0);
    for (x, t) in points.clone() {
        let (u, v) = (1.0 / t, x / t);
        (uu, uv, vv, u1, v1) = (uu + u * u, uv + u * v, vv + v * v, u1 + u, v1 + v);
    }
    let determinant = uu * vv - uv * uv;
    let latency = (u1 * vv - v1 * uv) / determinant;
    // Samples of one size alone give a determinant of zero but for rounding.
    let singular = determinant <= 1e-9 * uu * vv;
    let latency = if singular || latency < 0.0 {
        0.0
    } else {
        latency
    };
    let slope = (v1 - latency * uv) / vv;
    let worst = points
        .map(|(x, t)| ((latency + slope * x) / t - 1.0).abs())
        .fold(0.0, f64::max);
    let rate = BytesPerSec::new((1e9 / slope).round() as u64)?;
    Some((
        Link {
            latency: Nanos::new(latency.round() as u64),
            rate,
        },
        ppm(worst),
    ))
}

/// A fraction in parts per million.
pub fn ppm(fraction: f64) -> u64 {
    (fraction * 1e6).round() as u64
}

/// Time over one size: straight lines between samples in log-log space.
///
/// Above the largest sample time grows with `size^power`. Below the smallest it falls as between
/// the two smallest, since rates go on falling there, but no faster than with `size^power`.
#[derive(Clone, Debug, PartialEq)]
pub struct Curve {
    /// `(size, nanoseconds)`, ascending in both.
    points: Vec<(u64, f64)>,
    power: f64,
}

impl Curve {
    /// The curve through `samples` `(size, nanoseconds)`, and the largest fraction by which one
    /// was raised.
    ///
    /// # Panics
    /// When there is no sample.
    pub fn new(mut samples: Vec<(u64, f64)>, power: f64) -> (Self, f64) {
        samples.sort_by_key(|(size, _)| *size);
        let (mut floor, mut raised) = (0.0, 0.0);
        for (_, time) in &mut samples {
            raised = f64::max(raised, floor / *time - 1.0);
            floor = time.max(floor);
            *time = floor;
        }
        assert!(!samples.is_empty(), "a curve needs a sample");
        (
            Self {
                points: samples,
                power,
            },
            raised,
        )
    }

    /// Nanoseconds at `size`.
    pub fn at(&self, size: u64) -> f64 {
        let after = self.points.partition_point(|(x, _)| *x <= size);
        let exponent = |from: (u64, f64), to: (u64, f64)| {
            (to.1 / from.1).ln() / (to.0 as f64 / from.0 as f64).ln()
        };
        let (from, exponent) = match (after, self.points.as_slice()) {
            (0, [first, second, ..]) => (*first, exponent(*first, *second).min(self.power)),
            (0, [first, ..]) => (*first, self.power),
            (n, points) if n == points.len() => (points[n - 1], self.power),
            (n, points) => (points[n - 1], exponent(points[n - 1], points[n])),
        };
        from.1 * (size as f64 / from.0 as f64).powf(exponent)
    }

    /// Whether `size` is outside the samples, as a fact about `quantity`.
    pub fn beyond(&self, quantity: &'static str, size: u64) -> Option<Extrapolation> {
        Extrapolation::beyond(quantity, size, self.points[0].0, self.points.last()?.0)
    }
}

/// Time over `(m, k, n)`.
///
/// The samples' coordinates span a grid. A node that is a sample has its time; any other has its
/// FLOPs times the mean time per FLOP of all samples, weighted by 1/distance in log space (Shepard
/// 1968; a higher power follows the noise of the nearest sample and predicts hidden ones worse),
/// but no more than any sample that is as large in every dimension. Then every node is raised to
/// its predecessors. Between nodes log time is linear in each log dimension, which keeps monotone
/// nodes monotone; outside the grid time is that of the nearest point inside, in proportion.
#[derive(Clone, Debug, PartialEq)]
pub struct Grid {
    /// Ascending coordinates of m, k and n.
    axes: [Vec<u64>; 3],
    /// Log nanoseconds, n fastest.
    log_time: Vec<f64>,
}

/// The largest number of nodes times samples of a grid: a second of work.
pub const GRID_WORK_LARGEST: usize = 50_000_000;

impl Grid {
    /// The grid of `samples` (shape, nanoseconds), and the largest fraction by which one was
    /// raised. Nothing when it would be larger than `GRID_WORK_LARGEST`.
    ///
    /// # Panics
    /// When there is no sample.
    pub fn new(samples: &[([u64; 3], f64)]) -> Option<(Self, f64)> {
        assert!(!samples.is_empty(), "a grid needs a sample");
        let axes = [0, 1, 2].map(|axis| {
            let mut coordinates = Vec::from_iter(samples.iter().map(|(shape, _)| shape[axis]));
            coordinates.sort_unstable();
            coordinates.dedup();
            coordinates
        });
        let [ms, ks, ns] = axes.each_ref().map(Vec::len);
        let nodes = ms.checked_mul(ks)?.checked_mul(ns)?;
        if nodes.checked_mul(samples.len())? > GRID_WORK_LARGEST {
            return None;
        }
        let mut grid = Self {
            axes,
            log_time: vec![0.0; nodes],
        };
        let mut raised = 0.0;
        for (m, k, n) in (0..nodes).map(|i| (i / ns / ks, i / ns % ks, i % ns)) {
            let shape = [grid.axes[0][m], grid.axes[1][k], grid.axes[2][n]];
            let own = node_time(shape, samples).ln();
            let before = [
                m.checked_sub(1).map(|m| grid.node([m, k, n])),
                k.checked_sub(1).map(|k| grid.node([m, k, n])),
                n.checked_sub(1).map(|n| grid.node([m, k, n])),
            ];
            let time = before
                .into_iter()
                .flatten()
                .map(|i| grid.log_time[i])
                .fold(own, f64::max);
            if samples.iter().any(|(sampled, _)| *sampled == shape) {
                raised = f64::max(raised, (time - own).exp_m1());
            }
            let node = grid.node([m, k, n]);
            grid.log_time[node] = time;
        }
        Some((grid, raised))
    }

    fn node(&self, [m, k, n]: [usize; 3]) -> usize {
        (m * self.axes[1].len() + k) * self.axes[2].len() + n
    }

    /// Nanoseconds of a product of this shape.
    pub fn at(&self, shape: [u64; 3]) -> f64 {
        // On each axis: the node below, and how far from it to the next in log space.
        let mut cell = [(0usize, 0.0f64); 3];
        let mut scale = 1.0;
        for (axis, cell) in cell.iter_mut().enumerate() {
            let nodes = &self.axes[axis];
            let inside = shape[axis].clamp(nodes[0], nodes[nodes.len() - 1]);
            scale *= shape[axis] as f64 / inside as f64;
            let below = nodes.partition_point(|x| *x <= inside) - 1;
            *cell = match nodes.get(below + 1) {
                Some(above) => {
                    let part = |x: u64| (x as f64 / nodes[below] as f64).ln();
                    (below, part(inside) / part(*above))
                }
                None => (below, 0.0),
            };
        }
        // Each line as a + part·(b − a): where both ends are equal, so is everything between.
        let line = |axis: usize, ends: &dyn Fn(usize) -> f64| {
            let (below, part) = cell[axis];
            let start = ends(below);
            if part > 0.0 {
                start + part * (ends(below + 1) - start)
            } else {
                start
            }
        };
        let log_time = line(0, &|m| {
            line(1, &|k| line(2, &|n| self.log_time[self.node([m, k, n])]))
        });
        log_time.exp() * scale
    }

    /// The first dimension of `shape` that is outside the samples' range.
    pub fn beyond(&self, shape: [u64; 3]) -> Option<Extrapolation> {
        let names = ["GEMM tokens", "GEMM features in", "GEMM features out"];
        (0..3).find_map(|i| {
            let nodes = &self.axes[i];
            Extrapolation::beyond(names[i], shape[i], nodes[0], *nodes.last()?)
        })
    }
}

/// A grid node's own time, before it is raised to its predecessors.
fn node_time(shape: [u64; 3], samples: &[([u64; 3], f64)]) -> f64 {
    let flops = |shape: [u64; 3]| shape.iter().map(|x| *x as f64).product::<f64>();
    let (mut weights, mut weighted, mut cap) = (0.0, 0.0, f64::INFINITY);
    for (sampled, time) in samples {
        let squared: f64 = (0..3)
            .map(|i| (shape[i] as f64 / sampled[i] as f64).ln().powi(2))
            .sum();
        if squared == 0.0 {
            return *time;
        }
        let weight = 1.0 / squared.sqrt();
        weights += weight;
        weighted += weight * time / flops(*sampled);
        if (0..3).all(|i| sampled[i] >= shape[i]) {
            cap = cap.min(*time);
        }
    }
    (flops(shape) * weighted / weights).min(cap)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn samples(pairs: &[(u64, u64)]) -> Vec<(Bytes, Nanos)> {
        pairs
            .iter()
            .map(|(x, t)| (Bytes::new(*x), Nanos::new(*t)))
            .collect()
    }

    #[test]
    fn line_finds_latency_and_rate_and_leaves_small_copies_out() {
        let mib = 1 << 20;
        // 1000 ns + 1 byte/ns; the 1 KiB copy is far off that line.
        let exact = [
            (1024, 9_000),
            (mib, mib + 1000),
            (64 * mib, 64 * mib + 1000),
        ];
        let (link, worst) = line(&samples(&exact)).unwrap();
        assert_eq!(
            (link.latency.get(), link.rate.get(), worst),
            (1000, 1_000_000_000, 0)
        );
    }

    #[test]
    fn line_through_one_sample_has_no_latency() {
        let (link, worst) = line(&samples(&[(1 << 20, 1 << 21)])).unwrap();
        assert_eq!(
            (link.latency.get(), link.rate.get(), worst),
            (0, 500_000_000, 0)
        );
        // A line that would start below zero: 10 % off at worst, and no negative latency.
        let (link, worst) = line(&samples(&[(1 << 20, 1_000_000), (1 << 21, 2_200_000)])).unwrap();
        assert_eq!(link.latency, Nanos::ZERO);
        assert!((40_000..60_000).contains(&worst), "{worst}");
        assert_eq!(line(&[]), None);
    }

    #[test]
    fn curve_passes_through_its_samples_and_goes_on_outside() {
        // Beyond: with the square. Before: by the first slope, which is 1.
        let (curve, raised) = Curve::new(vec![(400, 800.0), (100, 100.0), (200, 200.0)], 2.0);
        assert_eq!(raised, 0.0);
        for (x, t) in [
            (50, 50.0),
            (100, 100.0),
            (200, 200.0),
            (400, 800.0),
            (800, 3200.0),
        ] {
            assert!(
                (curve.at(x) / t - 1.0).abs() < 1e-12,
                "{x}: {}",
                curve.at(x)
            );
        }
        assert_eq!(curve.beyond("tokens", 100), None);
        assert_eq!(
            curve
                .beyond("tokens", 401)
                .map(|e| e.to_string())
                .as_deref(),
            Some("tokens 401 (measured: 100 to 400)")
        );
    }

    #[test]
    fn noise_is_raised_and_reported() {
        let (curve, raised) = Curve::new(vec![(1, 10.0), (2, 8.0), (4, 20.0)], 1.0);
        assert_eq!((curve.at(2), raised), (10.0, 0.25));
        let (grid, raised) =
            Grid::new(&[([1, 1, 1], 10.0), ([2, 1, 1], 8.0), ([4, 1, 1], 20.0)]).unwrap();
        assert!((grid.at([2, 1, 1]) - 10.0).abs() < 1e-9);
        assert!((raised - 0.25).abs() < 1e-9);
    }

    #[test]
    fn nodes_between_samples_raise_no_sample() {
        // By the mean of their rates the node (1, 1, 1) would take 500 ns, more than (1, 2, 1).
        let samples = [([2, 1, 1], 2000.0), ([1, 2, 1], 10.0)];
        let (grid, raised) = Grid::new(&samples).unwrap();
        assert_eq!(raised, 0.0);
        for (shape, time) in samples {
            assert!((grid.at(shape) / time - 1.0).abs() < 1e-12, "{shape:?}");
        }
    }

    #[test]
    fn grid_of_one_sample_is_a_constant_rate() {
        let (grid, _) = Grid::new(&[([10, 20, 30], 6000.0)]).unwrap();
        assert!((grid.at([20, 20, 15]) - 6000.0).abs() < 1e-9);
        assert!((grid.at([1, 1, 1]) - 1.0).abs() < 1e-9);
        assert_eq!(grid.beyond([10, 20, 30]), None);
        assert!(grid.beyond([10, 20, 31]).is_some());
    }

    #[test]
    fn grid_that_would_be_too_large_is_refused() {
        let diagonal: Vec<_> = (1..100).map(|i| ([i, i, i], i as f64)).collect();
        assert_eq!(Grid::new(&diagonal), None);
    }
}
