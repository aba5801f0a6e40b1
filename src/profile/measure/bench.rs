//! A device with one reservation, for what is timed outside training steps.

use crate::device::{Device, Region, Reservation, Space, StepParameters, Stream, TraceEntry};
use crate::error::Result;
use crate::profile::Dtype;
use crate::training::elements::encode;
use crate::training::random::Random;

/// A device whose arena and slab are given out from the front.
pub(super) struct Bench {
    device: Box<dyn Device>,
    dtype: Dtype,
    taken: [u64; 2],
}

impl Bench {
    /// Reserves an arena and a slab of so many bytes, and events.
    pub(super) fn new(
        mut device: Box<dyn Device>,
        dtype: Dtype,
        (arena_bytes, slab_bytes): (u64, u64),
        events: u32,
    ) -> Result<Self> {
        let reserved = device.reserve(Reservation {
            dtype,
            arena_bytes,
            slab_bytes,
            events,
            rows: 1,
            micro_batches: 1,
            loss_slots: 0,
            norm_slots: 0,
            carry_elements: 0,
            rotary: None,
        });
        reserved.map_err(|failure| failure.told())?;
        Ok(Self {
            device,
            dtype,
            taken: [0; 2],
        })
    }

    /// The next bytes of a memory.
    pub(super) fn take(&mut self, space: Space, bytes: u64) -> Region {
        const ALIGNMENT: u64 = 256;
        let taken = &mut self.taken[space as usize];
        let offset_bytes = *taken;
        *taken += bytes.next_multiple_of(ALIGNMENT);
        Region {
            space,
            offset_bytes,
            bytes,
        }
    }

    /// Fills a region with numbers as weights are: of zeros a card multiplies faster.
    pub(super) fn fill(&mut self, region: Region) -> Result<()> {
        const DRAWN: u64 = 1 << 20;
        let mut random = Random::new(0);
        let drawn = DRAWN.min(region.bytes / self.dtype.bytes());
        let values: Vec<f32> = (0..drawn).map(|_| random.normal() as f32 / 50.0).collect();
        let bytes = encode(self.dtype, &values);
        let mut at = 0;
        while at < region.bytes {
            let part = region.part(at, (region.bytes - at).min(bytes.len() as u64));
            let written = self.device.write(part, &bytes[..part.bytes as usize]);
            written.map_err(|failure| failure.told())?;
            at += part.bytes;
        }
        Ok(())
    }

    /// Runs what `queue` queues; when everything ran.
    pub(super) fn step(
        &mut self,
        queue: impl FnOnce(&mut dyn Device) -> crate::device::Result<()>,
    ) -> Result<Vec<TraceEntry>> {
        let device = self.device.as_mut();
        let begun = device.begin_step(&StepParameters::STILL);
        let queued = begun.and_then(|()| queue(device));
        // The step ends even where a command could not be queued.
        let finished = device.finish();
        let ended = queued.and(finished);
        ended.map_err(|failure| failure.told())?;
        Ok(self.device.trace().to_vec())
    }
}

/// The entries of a stream, in order.
pub(super) fn of(trace: &[TraceEntry], stream: Stream) -> Vec<TraceEntry> {
    let entries = trace.iter().filter(|entry| entry.stream == stream);
    entries.copied().collect()
}

/// How long an entry took.
pub(super) fn length(entry: &TraceEntry) -> u64 {
    entry.end_ns.saturating_sub(entry.start_ns)
}
