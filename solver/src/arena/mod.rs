//! Dynamic storage allocation: lifetimes and sizes in, offsets in one arena out.
//!
//! A *request* is alive over half-open positions and needs some bytes; requests that are ever alive
//! at once must not share bytes; the *height* is where the highest ends. The *lower bound* is the
//! most bytes alive at one position, and a placement that reaches it is proved optimal. The problem
//! is NP-complete (Garey & Johnson SR2), but the lifetimes of a training step nest or queue, and
//! cheap orders mostly reach the bound. So heuristics go first, several and in order of cost
//! ([`place_quick`]), then an exact search ([`place`]) that decides height after height.
//!
//! ```text
//! offset            requests ─► instance ─► sweep · skyline · best_fit ─► at the bound? ─► done
//!   ▲  ┌────┐┌──┐                                                           │ no
//!   │ ┌┴──┐ └┤  │                                                           ▼
//!   │ │   │  │  │                                                  exact (until the deadline)
//!   └─┴───┴──┴──┴─► position
//! ```
//!
//! What it does not know: what the requests are, what time is (positions are only compared), where
//! the arena lies. [`validate`] shares nothing with the search and is there to be asked.

mod best_fit;
pub mod generate;
mod heuristics;
mod instance;
mod skyline;
mod sweep;
mod validate;

pub use validate::{validate, Fault};

use crate::units::Bytes;
use instance::Instance;

/// What must have an address: `size` bytes, alive at positions `start..end`.
///
/// A request without bytes or without a lifetime shares with nobody and lies at offset 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Request {
    /// First position at which it is alive.
    pub start: u64,
    /// First position at which it no longer is.
    pub end: u64,
    /// Its size, before rounding up to the alignment.
    pub size: Bytes,
}

impl Request {
    /// `size` bytes alive at `start..end`.
    pub const fn new(start: u64, end: u64, size: Bytes) -> Self {
        Self { start, end, size }
    }
}

/// What is proved of a placement.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    /// No placement is lower.
    Optimal,
    /// Valid; the bound is lower, and nobody asked for more.
    Gap,
    /// Valid; the bound is lower, and the deadline came before either could move.
    TimedOut,
    /// Valid, but no placement fits into the capacity asked for.
    Infeasible,
}

/// Where every request lies.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Placement {
    /// One offset for each request, in their order; multiples of the alignment.
    pub offsets: Vec<Bytes>,
    /// Where the highest request ends, its size rounded up to the alignment.
    pub height: Bytes,
    /// No placement is lower than this.
    pub lower_bound: Bytes,
    /// What is proved.
    pub status: Status,
}

/// How to place.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Sizes are rounded up to it and offsets are multiples of it; zero is one.
    pub alignment: Bytes,
    /// A height that is low enough: the search stops there. Without it, it minimises.
    pub capacity: Option<Bytes>,
    /// When to stop at the latest.
    pub deadline: Option<std::time::Instant>,
}

/// What a GPU's allocator gives.
pub const DEFAULT_ALIGNMENT: Bytes = Bytes::new(512);

impl Default for Options {
    fn default() -> Self {
        Self {
            alignment: DEFAULT_ALIGNMENT,
            capacity: None,
            deadline: None,
        }
    }
}

/// Most bytes alive at one position, every size rounded up to `alignment`.
///
/// # Panics
/// When the sizes sum to 2⁶³ bytes or more.
pub fn lower_bound(requests: &[Request], alignment: Bytes) -> Bytes {
    let instance = Instance::new(requests, alignment);
    Bytes::new(instance.lower_bound * instance.unit)
}

/// The best placement that the cheap heuristics find: milliseconds for ten thousand requests.
///
/// # Panics
/// When the sizes sum to 2⁶³ bytes or more.
pub fn place_quick(requests: &[Request], alignment: Bytes) -> Placement {
    let instance = Instance::new(requests, alignment);
    let offsets = heuristics::quick(&instance);
    finish(
        requests,
        &instance,
        &offsets,
        instance.lower_bound,
        Status::Gap,
    )
}

/// The placement in bytes; `status` is what is true of it unless it is at the bound.
fn finish(
    requests: &[Request],
    instance: &Instance,
    offsets: &[u64],
    lower_bound: u64,
    status: Status,
) -> Placement {
    let mut placed = vec![Bytes::ZERO; requests.len()];
    for (item, offset) in instance.items.iter().zip(offsets) {
        placed[item.request as usize] = Bytes::new(offset * instance.unit);
    }
    let height = instance.height(offsets);
    let status = if height == lower_bound {
        Status::Optimal
    } else {
        status
    };
    Placement {
        offsets: placed,
        height: Bytes::new(height * instance.unit),
        lower_bound: Bytes::new(lower_bound * instance.unit),
        status,
    }
}
