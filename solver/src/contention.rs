//! How the two copy directions share the link, as the half-planes that the search needs.
//!
//! In: the three measured points of a [`Machine`]: each direction alone, and both at once. Out:
//! the edges of the polygon of rates `(d2h, h2d)` that can be had together, in exact integers.
//!
//! ```text
//!  h2d |
//!  β_in x-----.___
//!       |         `-x both          every point inside can be had, e.g. by turns;
//!       |            \              the two slanted edges are the two cuts
//!       |             \
//!       +--------------x--- d2h
//!                     β_out
//! ```

use crate::machine::{Machine, Rates};
use crate::units::BytesPerSec;

/// One edge of the polygon: over any time Δ (seconds) in which `out` bytes leave the device and
/// `in` bytes arrive, `d2h_weight·out + h2d_weight·in ≤ capacity·Δ`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cut {
    /// Factor of the bytes from device to host.
    pub d2h_weight: u64,
    /// Factor of the bytes from host to device.
    pub h2d_weight: u64,
    /// Weighted bytes each second.
    pub capacity: u128,
}

/// The slanted edges: through `(β_out, 0)` and `both`, and through `both` and `(0, β_in)`.
///
/// Divided by its first weight the first reads `out + c·in ≤ β_out·Δ` with
/// `c = (β_out − both.d2h) / both.h2d`; the second is its mirror. `both` must be as [`convex`]
/// gives it, or the edges cut off what can be had.
pub fn cuts(machine: &Machine) -> [Cut; 2] {
    let (out, into) = (machine.both.d2h.get(), machine.both.h2d.get());
    let (alone_out, alone_in) = (machine.d2h.rate.get(), machine.h2d.rate.get());
    [
        Cut {
            d2h_weight: into,
            h2d_weight: alone_out.saturating_sub(out),
            capacity: u128::from(alone_out) * u128::from(into),
        },
        Cut {
            d2h_weight: alone_in.saturating_sub(into),
            h2d_weight: out,
            capacity: u128::from(alone_in) * u128::from(out),
        },
    ]
}

/// The rates of both directions at once such that the polygon is convex, whatever the noise of the
/// measurement `both`: no direction is faster beside the other than alone, and the two together
/// are no slower than by turns.
pub fn convex(alone: Rates, both: Rates) -> Rates {
    let both = Rates {
        d2h: both.d2h.min(alone.d2h),
        h2d: both.h2d.min(alone.h2d),
    };
    let [out, into, alone_out, alone_in] =
        [both.d2h, both.h2d, alone.d2h, alone.h2d].map(|rate| u128::from(rate.get()));
    // out/β_out + in/β_in ≥ 1, without the division and without leaving 128 bits.
    if into * alone_out >= (alone_out - out) * alone_in {
        return both;
    }
    // Scaled until that sum is 1: β_out·out·β_in / (out·β_in + in·β_out), divided by `out`.
    let by_turns = |alone: u128, mine: u128, others: u128, other_alone: u128| {
        let rate = (alone * other_alone).div_ceil(other_alone + others * alone / mine);
        let rate = u64::try_from(rate).ok().and_then(BytesPerSec::new);
        rate.expect("more than nothing and at most the rate alone")
    };
    Rates {
        d2h: by_turns(alone_out, out, into, alone_in),
        h2d: by_turns(alone_in, into, out, alone_out),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::{Link, Slowdown};
    use crate::units::Nanos;

    fn rates(d2h: u64, h2d: u64) -> Rates {
        let [d2h, h2d] = [d2h, h2d].map(|rate| BytesPerSec::new(rate).unwrap());
        Rates { d2h, h2d }
    }

    #[test]
    fn cuts_pass_through_the_measured_points() {
        let alone = rates(53, 52);
        let link = |rate| Link {
            latency: Nanos::ZERO,
            rate,
        };
        let [out, into] = cuts(&Machine {
            d2h: link(alone.d2h),
            h2d: link(alone.h2d),
            both: rates(40, 39),
            slowdown: Slowdown::default(),
        });
        let load = |cut: Cut, d2h: u128, h2d: u128| {
            u128::from(cut.d2h_weight) * d2h + u128::from(cut.h2d_weight) * h2d
        };
        assert_eq!(load(out, 53, 0), out.capacity);
        assert_eq!(load(out, 40, 39), out.capacity);
        assert_eq!(load(into, 0, 52), into.capacity);
        assert_eq!(load(into, 40, 39), into.capacity);
        // A direction at its full rate alone is inside both.
        assert!(load(into, 53, 0) <= into.capacity);
        assert!(load(out, 0, 52) <= out.capacity);
    }

    #[test]
    fn polygon_is_convex_whatever_was_measured() {
        assert_eq!(convex(rates(50, 50), rates(40, 30)), rates(40, 30));
        assert_eq!(convex(rates(50, 50), rates(51, 49)), rates(50, 49));
        assert_eq!(convex(rates(100, 100), rates(20, 20)), rates(50, 50));
        assert_eq!(convex(rates(90, 30), rates(30, 5)), rates(60, 10));
        let most = 1_000_000_000_000_000_000;
        let turns = convex(rates(most, most), rates(1, 1));
        assert_eq!(turns, rates(most / 2, most / 2));
    }
}
