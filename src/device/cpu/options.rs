//! How a CPU device behaves: its limits, its links, and what tests ask of it.

use std::time::Duration;

use ebbtide_solver::units::{Bytes, BytesPerSec, Nanos};

use crate::device::arithmetic::Arithmetic;
use crate::device::Stream;

/// A copy direction that is made slower than this machine's memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LinkSpeed {
    /// What a copy costs before its first byte.
    pub latency: Nanos,
    /// Its rate from then on.
    pub rate: BytesPerSec,
}

impl LinkSpeed {
    /// How long a copy takes on it.
    pub fn time(self, bytes: u64) -> Duration {
        let time = self.latency + Bytes::new(bytes) / self.rate;
        Duration::from_nanos(time.get())
    }
}

/// Sleeps of random length before one in four operators and copies, so that a missing wait shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Delays {
    /// Decides them all.
    pub seed: u64,
    /// The longest one.
    pub longest: Duration,
}

/// A command by its stream and number.
pub type Target = (Stream, u32);

/// What should go wrong, for tests.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Faults {
    /// A copy that fails.
    pub copy: Option<Target>,
    /// A command whose worker panics.
    pub panic: Option<Target>,
}

/// How a CPU device behaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CpuOptions {
    /// The largest arena; none: what the machine gives.
    pub device_memory: Option<u64>,
    /// The largest slab; none: what the machine gives.
    pub host_memory: Option<u64>,
    /// Device to host.
    pub d2h: Option<LinkSpeed>,
    /// Host to device.
    pub h2d: Option<LinkSpeed>,
    /// Threads of the host's optimizer; 0: one for each processor.
    pub host_threads: usize,
    /// Whether released buffers are filled with NaNs; off for timing.
    pub poison: bool,
    /// Whether compute waits awake, so that what follows is as fast as without a wait; for timing.
    pub awake: bool,
    /// Random delays.
    pub delays: Option<Delays>,
    /// Injected faults.
    pub faults: Faults,
    /// How linear layers multiply.
    pub arithmetic: Arithmetic,
}

impl Default for CpuOptions {
    fn default() -> Self {
        CpuOptions {
            device_memory: None,
            host_memory: None,
            d2h: None,
            h2d: None,
            host_threads: 0,
            poison: true,
            awake: false,
            delays: None,
            faults: Faults::default(),
            arithmetic: Arithmetic::Plain,
        }
    }
}
