//! Copies by size, each way alone and both at once. What timing adds is left in: a step's copies
//! are timed too.

use super::bench::{length, of, Bench};
use super::statistics::Summary;
use super::{positive, Request};
use crate::device::{Device, Region, Space, Stream, TraceEntry};
use crate::error::Result;
use crate::format::number::{LinkRate, Natural, Positive};
use crate::format::profile::{BothSection, LinkSection, LinksSection, SizeSample};

/// The smallest copy; sizes go up by factors of 4.
const SMALLEST: u64 = 64 << 10;
/// The largest copy.
const LARGEST: u64 = 64 << 20;
/// No larger copy is timed once one takes this long, in nanoseconds.
const LONGEST: u64 = 50_000_000;
/// Copies of a size, after one that does not count and is at least as large as [`FIRST`], so that
/// the host that queues is not what is timed.
const COPIES: u32 = 7;
const FIRST: u64 = 16 << 20;

/// Measures both directions.
pub(super) fn links(request: &Request<'_>) -> Result<LinksSection> {
    let mut bench = Bench::new(
        request.target.open()?,
        request.dtype,
        (2 * LARGEST, 2 * LARGEST),
        0,
    )?;
    let sides = [(); 2].map(|()| Sides {
        device: bench.take(Space::Device, LARGEST),
        host: bench.take(Space::Host, LARGEST),
    });
    let d2h = alone(&mut bench, Stream::D2h, sides[0])?;
    let h2d = alone(&mut bench, Stream::H2d, sides[1])?;
    // The largest that both directions were timed with: latencies matter least there.
    let size = [&d2h, &h2d].map(|samples| samples.last().map_or(SMALLEST, |s| s.bytes.get()));
    let both = both(&mut bench, sides, size[0].min(size[1]))?;
    let section = |samples| LinkSection {
        samples: Some(samples),
        bytes_per_s: None,
        latency_ns: None,
    };
    Ok(LinksSection {
        source: format!(
            "measured: copies by size, each direction alone, and both at once{}",
            request.held_to()
        ),
        d2h: section(d2h),
        h2d: section(h2d),
        both,
    })
}

/// A place on each side of the link.
#[derive(Clone, Copy)]
pub(super) struct Sides {
    pub(super) device: Region,
    pub(super) host: Region,
}

impl Sides {
    /// A part of both.
    pub(super) fn part(self, offset: u64, bytes: u64) -> Self {
        Self {
            device: self.device.part(offset, bytes),
            host: self.host.part(offset, bytes),
        }
    }

    /// Queues a copy of the first `bytes` bytes.
    pub(super) fn copy(
        self,
        device: &mut dyn Device,
        stream: Stream,
        at: u32,
        bytes: u64,
    ) -> crate::device::Result<()> {
        let (there, here) = (self.device.part(0, bytes), self.host.part(0, bytes));
        match stream {
            Stream::D2h => device.copy(stream, at, there, here),
            _ => device.copy(stream, at, here, there),
        }
    }
}

fn alone(bench: &mut Bench, stream: Stream, sides: Sides) -> Result<Vec<SizeSample>> {
    let mut samples = Vec::new();
    let mut bytes = SMALLEST;
    while bytes <= LARGEST {
        let trace = bench.step(|device| {
            sides.copy(device, stream, 0, bytes.max(FIRST))?;
            (1..=COPIES).try_for_each(|at| sides.copy(device, stream, at, bytes))
        })?;
        let took: Vec<u64> = of(&trace, stream)[1..].iter().map(length).collect();
        let summary = Summary::of(&took);
        samples.push(SizeSample {
            bytes: positive(bytes),
            ns: positive(summary.median),
            spread_ns: Natural::new(summary.spread),
            repetitions: Positive::new(summary.count),
        });
        if summary.median > LONGEST {
            break;
        }
        bytes *= 4;
    }
    Ok(samples)
}

/// Rates of copies that had the other direction beside them from start to end.
fn both(bench: &mut Bench, sides: [Sides; 2], bytes: u64) -> Result<BothSection> {
    const STREAMS: [Stream; 2] = [Stream::D2h, Stream::H2d];
    let trace = bench.step(|device| {
        for at in 0..=COPIES {
            for (stream, sides) in STREAMS.into_iter().zip(sides) {
                sides.copy(device, stream, at, bytes)?;
            }
        }
        Ok(())
    })?;
    let rate = |stream: Stream, other: Stream| {
        let beside = busy(&trace, other);
        let ran = of(&trace, stream);
        let took: Vec<u64> = ran
            .iter()
            .filter(|entry| within(entry, beside))
            .map(length)
            .collect();
        // With directions of very different speed none is beside another all the time.
        let took = if took.is_empty() {
            ran.iter().map(length).collect()
        } else {
            took
        };
        let ns = Summary::of(&took).median.max(1);
        let rate = u128::from(bytes) * 1_000_000_000 / u128::from(ns);
        let rate = u64::try_from(rate).unwrap_or(LinkRate::MOST);
        LinkRate::new(rate.clamp(LinkRate::LEAST, LinkRate::MOST)).expect("in range")
    };
    Ok(BothSection {
        d2h_bytes_per_s: rate(Stream::D2h, Stream::H2d),
        h2d_bytes_per_s: rate(Stream::H2d, Stream::D2h),
    })
}

/// From the first start to the last end on a stream.
pub(super) fn busy(trace: &[TraceEntry], stream: Stream) -> (u64, u64) {
    let entries = of(trace, stream);
    let (first, last) = (entries.first(), entries.last());
    (
        first.map_or(0, |entry| entry.start_ns),
        last.map_or(0, |entry| entry.end_ns),
    )
}

/// Whether an entry lies within a span.
pub(super) fn within(entry: &TraceEntry, (start, end): (u64, u64)) -> bool {
    start <= entry.start_ns && entry.end_ns <= end
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::null::NullDevice;
    use crate::profile::Dtype;

    /// A device on which every copy takes 5 µs to the host and 8 µs back.
    fn bench() -> (Bench, [Sides; 2]) {
        let clock = |stream, _, _: Option<&_>| match stream {
            Stream::D2h => 5_000,
            _ => 8_000,
        };
        let device = Box::new(NullDevice::new(Box::new(clock)));
        let memories = (4 * LARGEST, 4 * LARGEST);
        let mut bench = Bench::new(device, Dtype::F32, memories, 0).unwrap();
        let sides = [(); 2].map(|()| Sides {
            device: bench.take(Space::Device, LARGEST),
            host: bench.take(Space::Host, LARGEST),
        });
        (bench, sides)
    }

    #[test]
    fn every_size_is_timed_as_often() {
        let (mut bench, sides) = bench();
        let samples = alone(&mut bench, Stream::D2h, sides[0]).unwrap();
        let sizes: Vec<u64> = samples
            .iter()
            .map(|sample| sample.bytes.get() >> 10)
            .collect();
        assert_eq!(sizes, [64, 256, 1024, 4096, 16384, 65536]);
        for sample in samples {
            let repetitions = sample.repetitions.unwrap().get();
            let found = (
                sample.ns.get(),
                repetitions,
                sample.spread_ns.unwrap().get(),
            );
            assert_eq!(found, (5_000, u64::from(COPIES), 0));
        }
    }

    #[test]
    fn each_direction_has_its_own_rate_beside_the_other() {
        let (mut bench, sides) = bench();
        let both = both(&mut bench, sides, 1 << 20).unwrap();
        assert_eq!(both.d2h_bytes_per_s.get(), (1 << 20) * 200_000);
        assert_eq!(both.h2d_bytes_per_s.get(), (1 << 20) * 125_000);
    }
}
