//! What link and contention can do, in integers: the part of a hardware profile that the simulator
//! and the search share with every schedule.

use crate::units::{Bytes, BytesPerSec, Nanos};

/// The hardware as schedules see it. Operators carry their own durations.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Machine {
    /// Device to host.
    pub d2h: Link,
    /// Host to device.
    pub h2d: Link,
    /// The rates of the two directions while both are busy.
    pub both: Rates,
    /// How copies slow the compute stream.
    pub slowdown: Slowdown,
}

/// One direction of the link, the other one idle.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Link {
    /// Fixed cost of a copy.
    pub latency: Nanos,
    /// Rate once it flows.
    pub rate: BytesPerSec,
}

/// A rate for each direction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rates {
    /// Device to host.
    pub d2h: BytesPerSec,
    /// Host to device.
    pub h2d: BytesPerSec,
}

/// By how many millionths compute takes longer while copies run beside it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Slowdown {
    /// Beside a copy to the host.
    pub d2h: u32,
    /// Beside a copy from the host.
    pub h2d: u32,
    /// Beside both.
    pub both: u32,
}

impl Link {
    /// The time of a copy with the link to itself.
    pub fn duration(self, bytes: Bytes) -> Nanos {
        self.latency + bytes / self.rate
    }
}
