//! The search: from a problem to the fastest plan it can find, and a bound that no plan beats.
//!
//! A problem comes in several *variants* (how operators are cut); a strategy may take any. All
//! strategies produce plans in the same space, which the same code builds and simulates, so their
//! times compare and one relaxation bounds them all. `ilp` starts from the best of the others.

use std::time::Instant;

use crate::build::{Built, Infeasible};
use crate::plan::Plan;
use crate::units::Nanos;

mod checkpoint;
pub mod coarse;
mod context;
pub mod exhaustive;
mod greedy;
mod ilp;
pub mod lp;
mod memo;
mod needs;
pub mod outline;
mod polish;
mod protrain;
pub mod relaxation;
mod rounding;
mod segments;
mod simple;
mod strategy;

pub use context::{contexts, Context};
pub use memo::{alpha, AlphaProblem};
pub use protrain::interleave;
pub use strategy::Strategy;

use context::parallel;

/// When to stop.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Stop here at the latest, with the best plan found.
    pub deadline: Option<Instant>,
    /// A plan this close to the bound, as a fraction, is good enough.
    pub gap: f64,
    /// How many variants are bounded and searched side by side: 1 where other threads have work,
    /// for one that is good enough saves the next.
    pub abreast: usize,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            deadline: None,
            gap: 0.005,
            abreast: 2,
        }
    }
}

impl Options {
    /// Whether it is time to stop.
    pub fn expired(&self) -> bool {
        self.deadline.is_some_and(|d| Instant::now() >= d)
    }
}

/// How sure it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    /// At the bound: no plan is faster.
    Optimal,
    /// The search ended; the gap is what is left.
    Gap,
    /// The time limit ended it.
    TimeLimit,
}

impl Status {
    /// The name in files.
    pub const fn name(self) -> &'static str {
        match self {
            Status::Optimal => "optimal",
            Status::Gap => "gap",
            Status::TimeLimit => "time_limit",
        }
    }
}

/// A plan that fits, built and simulated.
#[derive(Debug)]
pub struct Candidate {
    /// The plan.
    pub plan: Plan,
    /// Its instructions, without addresses, and what they take.
    pub built: Built,
}

impl Candidate {
    /// What its step takes.
    pub fn step(&self) -> Nanos {
        self.built.timeline.step
    }
    /// Faster, or as fast with less copied.
    fn beats(&self, other: &Found) -> bool {
        let rank = |c: &Candidate| (c.step(), c.built.copied);
        rank(self) < rank(&other.candidate)
    }
}

/// The best plan of all variants.
#[derive(Debug)]
pub struct Found {
    /// Which variant of the problem.
    pub variant: usize,
    /// The plan.
    pub candidate: Candidate,
    /// The strategy that found it: another one's plan can be the best that `ilp` knows.
    pub found_by: Strategy,
}

/// What a strategy found, and how good that is.
#[derive(Debug)]
pub struct Solution {
    /// The plan.
    pub found: Found,
    /// No plan of any variant is faster.
    pub bound: Nanos,
    /// How sure it is.
    pub status: Status,
}

impl Solution {
    /// What the plan's step takes.
    pub fn step(&self) -> Nanos {
        self.found.candidate.step()
    }
    /// How much slower than the bound the plan is, as a fraction of the plan's time.
    pub fn gap(&self) -> f64 {
        gap(self.step(), self.bound)
    }
}

/// The faster one; of two that do not fit, the one that misses by less.
fn better(
    a: Result<Candidate, Infeasible>,
    b: Result<Candidate, Infeasible>,
) -> Result<Candidate, Infeasible> {
    match (a, b) {
        (Ok(a), Ok(b)) => Ok(if b.step() < a.step() { b } else { a }),
        (Ok(a), Err(_)) | (Err(_), Ok(a)) => Ok(a),
        (Err(a), Err(b)) => Err(if b.needed < a.needed && !b.needed.is_zero() {
            b
        } else {
            a
        }),
    }
}

/// So many plans are quick to try, one and all.
const FEW_PLANS: u64 = 20_000;

/// Finds a plan by a strategy, and a bound that no plan beats.
///
/// # Errors
/// When nothing that the strategy considers fits: the nearest miss.
pub fn solve(
    contexts: &[Context<'_>],
    strategy: Strategy,
    options: &Options,
) -> Result<Solution, Infeasible> {
    let bound = lowest_bound(contexts, options.abreast);
    let mut solution = Solution {
        found: find(contexts, strategy, options)?,
        bound,
        status: Status::Gap,
    };
    if solution.step() <= bound {
        solution.status = Status::Optimal;
    } else if options.expired() && solution.gap() > options.gap {
        solution.status = Status::TimeLimit;
    }
    Ok(solution)
}

/// Finds a plan by a strategy, as [`solve`] does, without a bound.
///
/// # Errors
/// When nothing that the strategy considers fits: the nearest miss.
pub fn find(
    contexts: &[Context<'_>],
    strategy: Strategy,
    options: &Options,
) -> Result<Found, Infeasible> {
    contexts.iter().for_each(Context::forget_best);
    let mut best = Best {
        contexts,
        found: None,
        miss: None,
    };
    let on_all = |strategies: &[Strategy]| -> Vec<(usize, Strategy)> {
        let variants = 0..contexts.len();
        let tasks = variants.flat_map(|v| strategies.iter().map(move |&s| (v, s)));
        tasks.collect()
    };
    if strategy == Strategy::Ilp {
        let bound = lowest_bound(contexts, options.abreast);
        // Variants by bound, a few at a time, one that cannot win any more left out. The likely
        // winners first: what cannot beat them is not built. So the others come after these.
        let mut variants: Vec<usize> = (0..contexts.len()).collect();
        variants.sort_by_key(|&v| contexts[v].rough_bound());
        for (nth, few) in variants.chunks(options.abreast.max(1)).enumerate() {
            let open = |v: &&usize| match best.step() {
                Some(step) => gap(step, bound) > options.gap && contexts[**v].bound() < step,
                None => contexts[**v].relaxed().is_ok(),
            };
            let tasks: Vec<_> = few.iter().filter(open).map(|&v| (v, strategy)).collect();
            best.consider(&tasks);
            if nth == 0 {
                best.consider(&on_all(&Strategy::SEEDS));
            }
        }
        // gap(enough, bound) is the wanted one.
        best.polish(Nanos::new(
            (bound.get() as f64 / (1.0 - options.gap)) as u64,
        ));
    } else {
        best.consider(&on_all(&[strategy]));
    }
    if best.found.is_none() && strategy == Strategy::Ilp {
        // Nothing fits so far; where there are few plans, every one is tried.
        let few =
            |v: &usize| exhaustive::count(contexts[*v].problem).is_some_and(|n| n <= FEW_PLANS);
        let all = (0..contexts.len())
            .filter(few)
            .map(|v| (v, Strategy::Exhaustive));
        best.consider(&all.collect::<Vec<_>>());
    }
    best.found.ok_or_else(|| {
        let unbuilt = contexts.iter().filter(|c| c.unbuilt_needs().is_some());
        let unbuilt = unbuilt.min_by_key(|c| c.unbuilt_needs());
        let unbuilt = unbuilt.and_then(Context::unbuilt_miss).into_iter();
        let leanest = unbuilt.chain(contexts.iter().map(Context::infeasible));
        let miss = leanest.fold(best.miss, |miss, one| Some(nearer(miss, one)));
        miss.unwrap_or_default()
    })
}

/// No plan of any variant is faster. Those that cannot have the lowest bound are not asked.
fn lowest_bound(contexts: &[Context<'_>], abreast: usize) -> Nanos {
    let mut order: Vec<_> = contexts.iter().collect();
    order.sort_by_key(|context| context.rough_bound());
    let mut lowest = Nanos::MAX;
    for few in order.chunks(abreast.max(1)) {
        if few[0].rough_bound() >= lowest {
            break;
        }
        let bounds = parallel(few, |context| context.bound());
        lowest = bounds.into_iter().fold(lowest, Nanos::min);
    }
    lowest
}

/// How much slower than the bound a step is, as a fraction of the step.
pub fn gap(step: Nanos, bound: Nanos) -> f64 {
    step.saturating_sub(bound).get() as f64 / step.get().max(1) as f64
}

/// The best plan so far, or the nearest miss.
struct Best<'a, 'p> {
    contexts: &'a [Context<'p>],
    found: Option<Found>,
    miss: Option<Infeasible>,
}

impl Best<'_, '_> {
    fn step(&self) -> Option<Nanos> {
        self.found.as_ref().map(|f| f.candidate.step())
    }
    /// Makes the best plan faster while it takes longer than is good enough.
    fn polish(&mut self, enough: Nanos) {
        self.found = self.found.take().map(|found| Found {
            candidate: polish::polished(&self.contexts[found.variant], found.candidate, enough),
            ..found
        });
    }
    /// Runs strategies on variants, in parallel; of equals the one that copies less wins, or the
    /// first.
    fn consider(&mut self, tasks: &[(usize, Strategy)]) {
        let results = parallel(tasks, |&(v, strategy)| one(&self.contexts[v], strategy));
        for (&(variant, found_by), result) in tasks.iter().zip(results) {
            match result {
                Ok(candidate) if self.found.as_ref().is_none_or(|best| candidate.beats(best)) => {
                    self.found = Some(Found {
                        variant,
                        candidate,
                        found_by,
                    });
                }
                Ok(_) => {}
                Err(infeasible) => self.miss = Some(nearer(self.miss.take(), infeasible)),
            }
        }
    }
}

/// The one that misses by less.
fn nearer(a: Option<Infeasible>, b: Infeasible) -> Infeasible {
    match a {
        Some(a) if b.needed.is_zero() || (!a.needed.is_zero() && a.needed <= b.needed) => a,
        _ => b,
    }
}

/// One strategy on one variant.
fn one(context: &Context<'_>, strategy: Strategy) -> Result<Candidate, Infeasible> {
    match strategy {
        Strategy::Keep => simple::keep(context),
        Strategy::Checkpoint => checkpoint::every_block(context),
        Strategy::CheckpointSqrt => checkpoint::square_root(context),
        Strategy::Selective => simple::selective(context),
        Strategy::Swap => simple::swap(context),
        Strategy::CheckpointOffload => checkpoint::offload(context),
        Strategy::ProTrain => protrain::solve(context),
        Strategy::Memo => memo::solve(context),
        Strategy::Greedy => greedy::solve(context),
        Strategy::Ilp => ilp::solve(context),
        Strategy::Exhaustive => exhaustive::solve(context),
    }
}
