//! From a plan to a schedule that can be run: expand, place the copies, give addresses, emit.
//!
//! ```text
//! Problem, Plan ─ expand ─► Draft ─ place_transfers ─► lifetimes ─ arena ─► offsets ─ emit ─►
//! Schedule
//! ```
//! [`build()`] stops before addresses, which is what the search needs of hundreds of plans;
//! [`with_addresses`] gives them to the one that is chosen.

mod draft;
mod emit;
mod expand;
mod pieces;
mod transfer;

use crate::arena;
use crate::ids::StepId;
use crate::plan::Plan;
use crate::problem::{Category, Problem};
use crate::schedule::{Action, Schedule};
use crate::simulate::{simulate, Timeline};
use crate::units::{Bytes, Nanos};

pub use draft::{Draft, DraftInstruction};
pub use expand::expand;
pub use transfer::Transfers;

/// Every device offset is a multiple of it.
pub const ALIGNMENT: Bytes = arena::DEFAULT_ALIGNMENT;

/// The stack for building any plan: making a block input again recurses through the blocks before
/// it. Memory that is not touched is not used.
pub const STACK_BYTES: usize = 256 << 20;

/// Why a plan cannot be built.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Infeasible {
    /// The step in which memory runs out; none where host memory does.
    pub step: Option<String>,
    /// The operator that runs then.
    pub operator: Option<String>,
    /// The bytes that must coexist.
    pub needed: Bytes,
    /// What there is.
    pub limit: Bytes,
    /// The bytes by what they are there for, largest first.
    pub by_category: Vec<(Category, Bytes)>,
    /// For every step in which device memory does not suffice: the most that is missing.
    pub missing: Vec<(StepId, Bytes)>,
}

/// A plan with all its instructions in place.
#[derive(Debug)]
pub struct Built {
    draft: Draft,
    copies: Copies,
    /// The schedule; offsets are all zero until [`with_addresses`].
    pub schedule: Schedule,
    /// What it takes.
    pub timeline: Timeline,
    /// Most bytes alive at once: no arena is smaller.
    pub peak: Bytes,
    /// Bytes of all copies.
    pub copied: Bytes,
    /// The step in which that is.
    pub peak_step: String,
}

/// Builds a plan, without addresses.
///
/// Copies are placed by predicted times. The first prediction knows no stalls; a second one takes
/// them from the simulation of the first, and is kept if it is faster.
pub fn build(problem: &Problem, plan: &Plan) -> Result<Built, Infeasible> {
    let draft = expand::expand(problem, plan);
    let host = host_bytes(&draft);
    if host > problem.budget.host {
        return Err(Infeasible {
            step: None,
            operator: None,
            needed: host,
            limit: problem.budget.host,
            by_category: host_categories(problem, &draft),
            missing: Vec::new(),
        });
    }
    let mut copies = place_all(problem, &draft, &starts(&draft))?;
    let mut schedule = emit::emit(problem, &draft, &copies.transfers);
    let mut timeline = simulate(&schedule);
    if timeline.stall > Nanos::ZERO {
        if let Ok(again) = place_all(problem, &draft, &timeline.compute_starts) {
            let candidate = emit::emit(problem, &draft, &again.transfers);
            let faster = simulate(&candidate);
            if faster.step < timeline.step {
                (copies, schedule, timeline) = (again, candidate, faster);
            }
        }
    }
    let peak_step = peak_step(problem, &draft, &copies.transfers);
    Ok(Built {
        peak: copies.transfers.peak,
        copied: copied(&draft),
        draft,
        copies,
        schedule,
        timeline,
        peak_step,
    })
}

/// Where copies and, where it matters, buffers are.
#[derive(Debug)]
struct Copies {
    transfers: Transfers,
    /// Addresses, where memory is so short that fragmentation could matter.
    placement: Option<arena::Placement>,
}

/// How often copies are placed again because addresses did not fit.
const PLACEMENTS: usize = 3;

/// Places copies, then addresses where memory is tight. Copies that wait in memory for a better
/// moment fill whatever there is; where fragmentation then makes the arena too high, they get less.
fn place_all(problem: &Problem, draft: &Draft, clock: &[u64]) -> Result<Copies, Infeasible> {
    let limit = problem.budget.device;
    let mut budget = limit;
    let mut fragmented = None;
    for _ in 0..PLACEMENTS {
        let transfers = match transfer::place_transfers(problem, draft, clock, budget) {
            Ok(transfers) => transfers,
            Err(overflow) => {
                return Err(fragmented.unwrap_or_else(|| explain(problem, draft, overflow)));
            }
        };
        // Where a tenth of the budget is free, fragmentation does not matter.
        if transfers.peak <= limit.scaled(9, 10) {
            return Ok(Copies {
                transfers,
                placement: None,
            });
        }
        let placement = place(draft, &transfers, limit);
        if placement.height <= limit {
            return Ok(Copies {
                transfers,
                placement: Some(placement),
            });
        }
        let excess = placement.height - limit;
        budget = transfers.peak.saturating_sub(excess + excess.scaled(1, 4));
        fragmented = Some(Infeasible {
            step: Some(peak_step(problem, draft, &transfers)),
            operator: None,
            needed: placement.height,
            limit,
            by_category: Vec::new(),
            missing: Vec::new(),
        });
    }
    Err(fragmented.expect("every round ends or is fragmented"))
}

fn peak_step(problem: &Problem, draft: &Draft, transfers: &Transfers) -> String {
    let at = draft.instructions.get(transfers.peak_position);
    at.map_or_else(String::new, |i| problem.program[i.step].name.clone())
}

/// Gives every buffer its address. The arena is as large as its placement is high, which is the
/// peak where the placement is optimal.
pub fn with_addresses(built: Built) -> Schedule {
    let Built {
        draft,
        copies,
        mut schedule,
        ..
    } = built;
    let Copies {
        transfers,
        placement,
    } = copies;
    let best = place(&draft, &transfers, Bytes::ZERO);
    let placement = placement.filter(|p| p.height < best.height).unwrap_or(best);
    for (buffer, offset) in schedule.buffers.values_mut().zip(&placement.offsets) {
        buffer.offset = *offset;
    }
    schedule.arena_bytes = placement.height;
    schedule
}

fn place(draft: &Draft, transfers: &Transfers, enough: Bytes) -> arena::Placement {
    let requests: Vec<arena::Request> = draft
        .buffers
        .iter()
        .zip(&transfers.lifetimes)
        .map(|(b, life)| arena::Request::new(life.start, life.end, b.bytes))
        .collect();
    arena::place_quick(&requests, ALIGNMENT, enough)
}

/// When every position starts if nothing ever waits; one entry more than positions.
fn starts(draft: &Draft) -> Vec<u64> {
    let mut now = 0u64;
    let mut starts = Vec::with_capacity(draft.instructions.len() + 1);
    starts.push(0);
    for instruction in &draft.instructions {
        now += instruction.duration.get();
        starts.push(now);
    }
    starts
}

fn host_bytes(draft: &Draft) -> Bytes {
    draft
        .host_buffers
        .iter()
        .map(|b| b.bytes.align_up(ALIGNMENT))
        .sum()
}

fn copied(draft: &Draft) -> Bytes {
    let out = draft.departures.iter().map(|d| draft.departing(d));
    let into = draft.arrivals.iter().map(|a| draft.arriving(a));
    out.chain(into).sum()
}

fn host_categories(problem: &Problem, draft: &Draft) -> Vec<(Category, Bytes)> {
    sum_categories(
        draft
            .host_buffers
            .iter()
            .map(|b| (problem.values[b.value].category, b.bytes)),
    )
}

fn explain(problem: &Problem, draft: &Draft, overflow: transfer::Overflow) -> Infeasible {
    let at = overflow.position;
    let instruction = &draft.instructions[at];
    let alive = draft
        .buffers
        .iter()
        .filter(|b| b.persistent || (b.first <= at && at <= b.last));
    Infeasible {
        step: Some(problem.program[instruction.step].name.clone()),
        operator: Some(match instruction.action {
            Action::Copy => "packing".to_owned(),
            _ => problem.ops[instruction.op].name.clone(),
        }),
        needed: overflow.needed,
        limit: problem.budget.device,
        by_category: sum_categories(alive.map(|b| (b.category, b.bytes))),
        missing: overflow.missing,
    }
}

fn sum_categories(parts: impl Iterator<Item = (Category, Bytes)>) -> Vec<(Category, Bytes)> {
    let mut sums = Category::ALL.map(|c| (c, Bytes::ZERO));
    for (category, bytes) in parts {
        sums[category as usize].1 += bytes;
    }
    let mut sums: Vec<_> = sums.into_iter().filter(|(_, b)| !b.is_zero()).collect();
    sums.sort_by_key(|&(_, bytes)| std::cmp::Reverse(bytes));
    sums
}
