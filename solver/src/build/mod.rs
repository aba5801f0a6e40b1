//! From a plan to a schedule that can be run: expand, place the copies, give addresses, emit.
//!
//! ```text
//! Problem, Plan ─ expand ─► Draft ─ place_transfers ─► lifetimes ─ arena ─► offsets ─ emit ─► Schedule
//! ```
//! [`draft`] stops before addresses, which is what the search needs of hundreds of plans;
//! [`schedule`] gives the whole thing for the one that is chosen.

mod emit;
mod expand;
mod transfer;

use crate::arena;
use crate::plan::Plan;
use crate::problem::{Category, Problem};
use crate::schedule::Schedule;
use crate::simulate::simulate;
use crate::units::{Bytes, Nanos};

pub use expand::{expand, Draft, DraftInstruction};
pub use transfer::Transfers;

/// Every device offset is a multiple of it.
pub const ALIGNMENT: Bytes = arena::DEFAULT_ALIGNMENT;

/// Why a plan cannot be built.
#[derive(Clone, Debug, PartialEq, Eq)]
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
}

/// A plan with all its instructions in place.
#[derive(Debug)]
pub struct Built {
    draft: Draft,
    transfers: Transfers,
    /// Addresses, where memory is so short that fragmentation could matter.
    placement: Option<arena::Placement>,
    /// The schedule; offsets are all zero until [`with_addresses`].
    pub schedule: Schedule,
    /// Most bytes alive at once: no arena is smaller.
    pub peak: Bytes,
    /// The step in which that is.
    pub peak_step: String,
}

/// Builds a plan, without addresses.
///
/// Copies are placed by predicted times. The first prediction knows no stalls; a second one takes
/// them from the simulation of the first, and is kept if it is faster.
pub fn build(problem: &Problem, plan: &Plan) -> Result<Built, Infeasible> {
    let mut built = build_once(problem, plan, None)?;
    let timeline = simulate(&built.schedule);
    if timeline.stall > Nanos::ZERO {
        if let Ok(again) = build_once(problem, plan, Some(&timeline.compute_starts)) {
            if simulate(&again.schedule).step < timeline.step {
                built = again;
            }
        }
    }
    Ok(built)
}

fn build_once(problem: &Problem, plan: &Plan, clock: Option<&[u64]>) -> Result<Built, Infeasible> {
    let draft = expand::expand(problem, plan);
    let host = host_bytes(&draft);
    if host > problem.budget.host {
        return Err(Infeasible {
            step: None,
            operator: None,
            needed: host,
            limit: problem.budget.host,
            by_category: host_categories(problem, &draft),
        });
    }
    let undisturbed;
    let clock = match clock {
        Some(clock) => clock,
        None => {
            undisturbed = starts(&draft);
            &undisturbed
        }
    };
    let transfers = transfer::place_transfers(problem, &draft, clock)
        .map_err(|overflow| explain(problem, &draft, overflow))?;
    let peak_step = draft
        .instructions
        .get(transfers.peak_position)
        .map_or_else(String::new, |i| problem.program[i.step].name.clone());
    let placement = place_if_tight(problem, &draft, &transfers, &peak_step)?;
    let schedule = emit::emit(problem, &draft, &transfers);
    let peak = transfers.peak;
    Ok(Built {
        draft,
        transfers,
        placement,
        schedule,
        peak,
        peak_step,
    })
}

/// Gives every buffer its address. The arena is as large as its placement is high, which is the
/// peak where the placement is optimal.
pub fn with_addresses(built: Built) -> Schedule {
    let Built {
        draft,
        transfers,
        placement,
        mut schedule,
        ..
    } = built;
    let placement = placement.unwrap_or_else(|| place(&draft, &transfers));
    for (buffer, offset) in schedule.buffers.values_mut().zip(&placement.offsets) {
        buffer.offset = *offset;
    }
    schedule.arena_bytes = placement.height;
    schedule
}

fn place(draft: &Draft, transfers: &Transfers) -> arena::Placement {
    let requests: Vec<arena::Request> = draft
        .buffers
        .iter()
        .zip(&transfers.lifetimes)
        .map(|(b, life)| arena::Request::new(life.start, life.end, b.bytes))
        .collect();
    arena::place_quick(&requests, ALIGNMENT)
}

/// Where less than a tenth of the budget is free, addresses are found at once: a plan whose
/// buffers fit but for fragmentation does not fit.
fn place_if_tight(
    problem: &Problem,
    draft: &Draft,
    transfers: &Transfers,
    peak_step: &str,
) -> Result<Option<arena::Placement>, Infeasible> {
    let limit = problem.budget.device;
    if transfers.peak <= limit.scaled(9, 10) {
        return Ok(None);
    }
    let placement = place(draft, transfers);
    if placement.height > limit {
        return Err(Infeasible {
            step: Some(peak_step.to_owned()),
            operator: None,
            needed: placement.height,
            limit,
            by_category: Vec::new(),
        });
    }
    Ok(Some(placement))
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
        operator: Some(problem.ops[instruction.op].name.clone()),
        needed: overflow.needed,
        limit: problem.budget.device,
        by_category: sum_categories(alive.map(|b| (b.category, b.bytes))),
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
