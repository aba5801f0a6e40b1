//! Counts what the arena is asked to hold, and refuses what no device takes.

use super::{ArenaUse, Failure, Region, Result, Space};

/// What is held now, and the most so far.
#[derive(Default)]
pub(super) struct Held {
    live_bytes: u64,
    most: ArenaUse,
}

impl Held {
    pub(super) fn hold(&mut self, region: Region) {
        self.live_bytes += region.bytes;
        self.most.peak_live_bytes = self.most.peak_live_bytes.max(self.live_bytes);
        self.most.high_water_bytes = self.most.high_water_bytes.max(region.end());
    }
    pub(super) fn release(&mut self, region: Region) -> Result<()> {
        let left = self.live_bytes.checked_sub(region.bytes);
        self.live_bytes = left.ok_or_else(|| Failure::refused("a release of what was not held"))?;
        Ok(())
    }
    pub(super) fn most(&self) -> ArenaUse {
        self.most
    }
}

/// Refuses regions of the host.
pub(super) fn in_arena(region: Region) -> Result<()> {
    match region.space {
        Space::Device => Ok(()),
        Space::Host => Err(Failure::refused("only the arena's buffers are counted")),
    }
}

/// Refuses sizes that differ.
pub(super) fn same_size(a: u64, b: u64) -> Result<()> {
    match a == b {
        true => Ok(()),
        false => Err(Failure::refused(format!("{b} where {a} belong"))),
    }
}
