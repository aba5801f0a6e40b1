//! What a schedule runs on, as far as time beside the operators goes: the two copy directions and
//! how they contend, how much copies slow compute, and the host's optimizer.
//!
//! In: numbers somebody measured. Out: the same numbers as exact integers, in the two forms that
//! its readers need: rates per state for the simulator, half-planes for the search. How long an
//! operator takes is not here: that is in the problem, operator by operator.

use crate::units::{Bytes, BytesPerSec, Nanos};
use std::num::NonZeroU64;

/// One copy direction when the other is idle: `latency + bytes / rate`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Link {
    /// What a copy costs before its first byte.
    pub latency: Nanos,
    /// Its rate from then on.
    pub rate: BytesPerSec,
}

impl Link {
    /// How long a copy of `size` takes alone.
    pub fn time(self, size: Bytes) -> Nanos {
        self.latency + size / self.rate
    }
}

/// The rates of the two directions at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LinkRates {
    /// Device to host.
    pub d2h: BytesPerSec,
    /// Host to device.
    pub h2d: BytesPerSec,
}

/// Both copy directions. The rates `(d2h, h2d)` that can be had together are a polygon:
///
/// ```text
///  h2d |
///  β_in x-----.___
///       |         `-x both          every point inside can be had, e.g. by turns;
///       |            \              the two slanted edges are the two cuts
///       |             \
///       +--------------x--- d2h
///                     β_out
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Links {
    /// Device to host, alone.
    pub d2h: Link,
    /// Host to device, alone.
    pub h2d: Link,
    /// Each direction's rate while both are busy.
    pub both: LinkRates,
}

/// One edge of the polygon: over any time Δ (seconds) in which `out` bytes leave the device and
/// `in` bytes arrive, `d2h_weight·out + h2d_weight·in ≤ capacity·Δ`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ContentionCut {
    /// Factor of the bytes from device to host.
    pub d2h_weight: u64,
    /// Factor of the bytes from host to device.
    pub h2d_weight: u64,
    /// Weighted bytes each second.
    pub capacity: u128,
}

impl Links {
    /// Links whose polygon is convex, whatever the noise of the measurement: no direction is
    /// faster beside the other than alone, and the two together are no slower than by turns.
    pub fn new(d2h: Link, h2d: Link, both: LinkRates) -> Self {
        let (out, into) = (both.d2h.min(d2h.rate), both.h2d.min(h2d.rate));
        // By turns: out/β_out + in/β_in = 1. A slower pair is scaled up to that.
        let (a, b) = (u128::from(out.get()), u128::from(into.get()));
        let (alone_a, alone_b) = (u128::from(d2h.rate.get()), u128::from(h2d.rate.get()));
        let turns = a * alone_b + b * alone_a;
        if turns >= alone_a * alone_b {
            return Self {
                d2h,
                h2d,
                both: LinkRates {
                    d2h: out,
                    h2d: into,
                },
            };
        }
        // `alone·mine·other / turns`, divided through by `mine` so that it stays within 128 bits.
        let by_turns = |alone: u128, mine: u128, others: u128, other_alone: u128| {
            let rate = (alone * other_alone).div_ceil(other_alone + others * alone / mine);
            let rate = u64::try_from(rate).ok().and_then(BytesPerSec::new);
            rate.expect("more than nothing and at most the rate alone")
        };
        let d2h_turn = by_turns(alone_a, a, b, alone_b);
        let h2d_turn = by_turns(alone_b, b, a, alone_a);
        Self {
            d2h,
            h2d,
            both: LinkRates {
                d2h: d2h_turn,
                h2d: h2d_turn,
            },
        }
    }

    /// The slanted edges: through `(β_out, 0)` and `both`, and through `both` and `(0, β_in)`.
    ///
    /// Divided by its first weight the first reads `out + c·in ≤ β_out·Δ` with
    /// `c = (β_out − both.d2h) / both.h2d`; the second is its mirror.
    pub fn contention(&self) -> [ContentionCut; 2] {
        let (out, into) = (self.both.d2h.get(), self.both.h2d.get());
        let (alone_out, alone_in) = (self.d2h.rate.get(), self.h2d.rate.get());
        [
            ContentionCut {
                d2h_weight: into,
                h2d_weight: alone_out.saturating_sub(out),
                capacity: u128::from(alone_out) * u128::from(into),
            },
            ContentionCut {
                d2h_weight: alone_in.saturating_sub(into),
                h2d_weight: out,
                capacity: u128::from(alone_in) * u128::from(out),
            },
        ]
    }
}

/// How much longer an operator takes while copies run, in parts per million of its time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Slowdown {
    /// Beside a copy from device to host.
    pub d2h_ppm: u32,
    /// Beside a copy from host to device.
    pub h2d_ppm: u32,
    /// Beside both.
    pub both_ppm: u32,
}

impl Slowdown {
    /// `alone`, stretched by the copies that run beside all of it.
    pub fn stretch(self, alone: Nanos, d2h_busy: bool, h2d_busy: bool) -> Nanos {
        let ppm = match (d2h_busy, h2d_busy) {
            (false, false) => 0,
            (true, false) => self.d2h_ppm,
            (false, true) => self.h2d_ppm,
            (true, true) => self.both_ppm,
        };
        alone.scaled(1_000_000 + u64::from(ppm), 1_000_000)
    }
}

/// The optimizer that runs on the host's cores.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HostAdam {
    /// Parameters updated each second when nothing else uses host memory.
    pub params_per_s: NonZeroU64,
    /// Host memory read and written for one parameter.
    pub bytes_per_param: Bytes,
}

impl HostAdam {
    /// How long an update of `params` parameters takes, rounded up.
    ///
    /// # Panics
    /// When it does not fit in 64 bits of nanoseconds.
    pub fn time(self, params: u64) -> Nanos {
        let nanos = (u128::from(params) * 1_000_000_000).div_ceil(self.params_per_s.get().into());
        Nanos::new(u64::try_from(nanos).expect("update time fits in 64 bits"))
    }
}

/// Everything about the machine that the simulator needs beside the operators' own times.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Machine {
    /// The copy directions and their contention.
    pub links: Links,
    /// Slowdown of GEMMs and attention beside copies.
    pub matmul_slowdown: Slowdown,
    /// Slowdown of everything else beside copies.
    pub elementwise_slowdown: Slowdown,
    /// What packs and unpacks tensors on the device: what a run costs before its first byte, and
    /// the bytes that it reads and writes each second. Nothing where packing takes no time.
    pub packing: Option<Link>,
    /// The optimizer on the host.
    pub host_adam: HostAdam,
    /// Host memory traffic (read + written) each second, shared by the optimizer and the copies
    /// (a copied byte is one byte of traffic); nothing where it is never the limit.
    pub host_memory: Option<BytesPerSec>,
}

impl Machine {
    /// How long packing `plain` bytes into `packed`, or unpacking them, takes on the device;
    /// nothing where both are as large, so that there is nothing to do.
    pub fn packing_time(&self, plain: Bytes, packed: Bytes) -> Nanos {
        match self.packing {
            Some(packing) if plain != packed => packing.time(plain + packed),
            _ => Nanos::ZERO,
        }
    }
    /// How long a copy over `link` takes alone that moves `moved` bytes of what is `plain` bytes on
    /// the device: packing and moving overlap, so as long as the slower of the two.
    pub fn copy_time(&self, link: Link, plain: Bytes, moved: Bytes) -> Nanos {
        link.time(moved).max(self.packing_time(plain, moved))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rate(value: u64) -> BytesPerSec {
        BytesPerSec::new(value).unwrap()
    }
    fn links(alone: [u64; 2], both: [u64; 2]) -> Links {
        let link = |value| Link {
            latency: Nanos::ZERO,
            rate: rate(value),
        };
        let both = LinkRates {
            d2h: rate(both[0]),
            h2d: rate(both[1]),
        };
        Links::new(link(alone[0]), link(alone[1]), both)
    }

    #[test]
    fn cuts_pass_through_the_measured_points() {
        let links = links([53, 52], [40, 39]);
        let [out, into] = links.contention();
        let load = |cut: ContentionCut, d2h: u128, h2d: u128| {
            u128::from(cut.d2h_weight) * d2h + u128::from(cut.h2d_weight) * h2d
        };
        assert_eq!(load(out, 53, 0), out.capacity);
        assert_eq!(load(out, 40, 39), out.capacity);
        assert_eq!(load(into, 0, 52), into.capacity);
        assert_eq!(load(into, 40, 39), into.capacity);
        assert!(
            load(into, 53, 0) <= into.capacity,
            "alone at full rate is inside both"
        );
        assert!(load(out, 0, 52) <= out.capacity);
    }

    #[test]
    fn polygon_is_convex_whatever_was_measured() {
        assert_eq!(
            links([50, 50], [51, 49]).both,
            LinkRates {
                d2h: rate(50),
                h2d: rate(49)
            }
        );
        // Together slower than by turns: 20 + 20 of 100 becomes 50 + 50.
        let turns = links([100, 100], [20, 20]).both;
        assert_eq!(
            turns,
            LinkRates {
                d2h: rate(50),
                h2d: rate(50)
            }
        );
        let e18 = 1_000_000_000_000_000_000;
        assert_eq!(links([e18, e18], [1, 1]).both.d2h, rate(e18 / 2));
    }

    #[test]
    fn copies_stretch_compute() {
        let slowdown = Slowdown {
            d2h_ppm: 10_000,
            h2d_ppm: 20_000,
            both_ppm: 30_000,
        };
        let stretched = |d2h, h2d| slowdown.stretch(Nanos::new(100), d2h, h2d).get();
        let all = [(false, false), (true, false), (false, true), (true, true)];
        assert_eq!(
            all.map(|(d2h, h2d)| stretched(d2h, h2d)),
            [100, 101, 102, 103]
        );
    }

    #[test]
    fn unit_times() {
        let link = Link {
            latency: Nanos::new(5),
            rate: rate(1_000_000_000),
        };
        assert_eq!(link.time(Bytes::new(7)), Nanos::new(12));
        let params_per_s = NonZeroU64::new(1_000_000_000).unwrap();
        let adam = HostAdam {
            params_per_s,
            bytes_per_param: Bytes::new(28),
        };
        assert_eq!(adam.time(9), Nanos::new(9));
    }
}
