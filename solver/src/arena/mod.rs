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
//! offset           requests ─► instance ─► skyline · sweep · best_fit · blame ─► at the bound?
//!   ▲  ┌────┐┌──┐                                                           yes │      │ no
//!   │ ┌┴──┐ └┤  │                                                               ▼      ▼
//!   │ │   │  │  │                                                             done   exact
//!   └─┴───┴──┴──┴─► position                                                 (until the deadline)
//! ```
//!
//! What it does not know: what the requests are, what time is (positions are only compared), where
//! the arena lies. [`validate()`] shares nothing with the search and is there to be asked.

mod best_fit;
pub mod bilevel;
mod blame;
mod exact;
pub mod generate;
mod heuristics;
mod instance;
mod mip;
mod seams;
mod skyline;
mod sweep;
mod validate;

pub use exact::Rules;
pub use mip::place_by_mip;
pub use validate::{validate, Fault};

use crate::units::Bytes;
use instance::{Instance, Known};

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
    /// When to stop at the latest. Without it, the nodes decide alone, the same everywhere.
    pub deadline: Option<std::time::Instant>,
    /// How many states the exact search may look at, in each thread.
    pub nodes: u64,
    /// Searches side by side. With more than one, which optimum is found may differ between runs.
    pub threads: usize,
    /// The pruning rules of the exact search.
    pub rules: Rules,
}

/// What a GPU's allocator gives.
pub const DEFAULT_ALIGNMENT: Bytes = Bytes::new(512);

impl Default for Options {
    fn default() -> Self {
        Self {
            alignment: DEFAULT_ALIGNMENT,
            capacity: None,
            deadline: None,
            nodes: 1_000_000,
            threads: 1,
            rules: Rules::ALL,
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

/// The best placement that the cheap heuristics find, or the first that is no higher than `enough`:
/// milliseconds for ten thousand requests.
///
/// # Panics
/// When the sizes sum to 2⁶³ bytes or more.
pub fn place_quick(requests: &[Request], alignment: Bytes, enough: Bytes) -> Placement {
    let instance = Instance::new(requests, alignment);
    let known = heuristics::quick(&instance, enough.get() / instance.unit);
    let optimal = known.height == known.lower_bound;
    let status = if optimal {
        Status::Optimal
    } else {
        Status::Gap
    };
    finish(requests, &instance, known, status)
}

/// The best placement that the heuristics and then the exact search find.
///
/// # Panics
/// When the sizes sum to 2⁶³ bytes or more.
pub fn place(requests: &[Request], options: &Options) -> Placement {
    let instance = Instance::new(requests, options.alignment);
    let known = heuristics::quick(&instance, 0);
    let capacity = options
        .capacity
        .map(|capacity| capacity.get() / instance.unit);
    let known = match capacity {
        Some(capacity) if known.height <= capacity || known.lower_bound > capacity => known,
        _ if known.height == known.lower_bound => known,
        _ => exact::improve(&instance, known, capacity.unwrap_or(0), options),
    };
    let late = options
        .deadline
        .is_some_and(|deadline| std::time::Instant::now() >= deadline);
    let status = match capacity {
        Some(capacity) if known.lower_bound > capacity => Status::Infeasible,
        _ if known.height == known.lower_bound => Status::Optimal,
        Some(capacity) if known.height <= capacity => Status::Gap,
        _ if late => Status::TimedOut,
        _ => Status::Gap,
    };
    finish(requests, &instance, known, status)
}

/// The placement in bytes.
fn finish(requests: &[Request], instance: &Instance, known: Known, status: Status) -> Placement {
    let mut placed = vec![Bytes::ZERO; requests.len()];
    for (item, offset) in instance.items.iter().zip(&known.offsets) {
        placed[item.request as usize] = Bytes::new(offset * instance.unit);
    }
    Placement {
        offsets: placed,
        height: Bytes::new(known.height * instance.unit),
        lower_bound: Bytes::new(known.lower_bound * instance.unit),
        status,
    }
}
