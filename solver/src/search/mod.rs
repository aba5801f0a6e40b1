//! The search: from a problem to the fastest plan it can find, and a bound that no plan beats.
//!
//! A problem comes in several *variants* (how operators are cut); a strategy may take any. All
//! strategies produce plans in the same space, which the same code builds and simulates, so their
//! times compare and one relaxation bounds them all. [`ilp`] starts from the best of the others.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Instant;

use crate::build::{build, Built, Infeasible};
use crate::plan::{Placement, Plan};
use crate::problem::Problem;
use crate::units::Nanos;

mod checkpoint;
pub mod coarse;
pub mod exhaustive;
mod greedy;
mod ilp;
pub mod lp;
mod memo;
pub mod outline;
mod protrain;
pub mod relaxation;
mod rounding;
mod segments;
mod simple;

pub use memo::{alpha, AlphaProblem};
pub use protrain::interleave;

use coarse::{coarsen, Coarse};
use lp::Unsolved;
use outline::{outline, Outline};
use relaxation::{proved_bound, relax, Margins, Relaxed};

/// How a plan is found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Strategy {
    /// Everything stays: the floor, if it fits.
    Keep,
    /// Every block input stays, the rest is recomputed (Chen et al. 2016, one block a segment).
    Checkpoint,
    /// Block inputs at every √n-th block stay (Chen et al. 2016).
    CheckpointSqrt,
    /// Only what is cheap to make again is recomputed (Korthikanti et al. 2022).
    Selective,
    /// Everything travels to the host and back.
    Swap,
    /// Block inputs travel, the rest is recomputed.
    CheckpointOffload,
    /// ProTrain (arXiv 2406.08334): blocks swapped, checkpointed or untouched, interleaved.
    ProTrain,
    /// MEMO (arXiv 2407.12117): block input and attention output travel, one fraction for the rest.
    Memo,
    /// Most time saved for its bytes first.
    Greedy,
    /// The linear relaxation, rounded; never slower than any other.
    Ilp,
    /// Every plan of a tiny problem.
    Exhaustive,
}

impl Strategy {
    /// All strategies, simple ones first.
    pub const ALL: [Strategy; 11] = [
        Strategy::Keep,
        Strategy::Checkpoint,
        Strategy::CheckpointSqrt,
        Strategy::Selective,
        Strategy::Swap,
        Strategy::CheckpointOffload,
        Strategy::ProTrain,
        Strategy::Memo,
        Strategy::Greedy,
        Strategy::Ilp,
        Strategy::Exhaustive,
    ];
    /// The strategies that [`Strategy::Ilp`] is never slower than, likely winners first.
    const SEEDS: [Strategy; 9] = [
        Strategy::Keep,
        Strategy::Greedy,
        Strategy::Memo,
        Strategy::ProTrain,
        Strategy::CheckpointOffload,
        Strategy::Swap,
        Strategy::Selective,
        Strategy::Checkpoint,
        Strategy::CheckpointSqrt,
    ];

    /// The name in flags and files.
    pub const fn name(self) -> &'static str {
        match self {
            Strategy::Keep => "keep",
            Strategy::Checkpoint => "checkpoint",
            Strategy::CheckpointSqrt => "checkpoint-sqrt",
            Strategy::Selective => "selective",
            Strategy::Swap => "swap",
            Strategy::CheckpointOffload => "checkpoint-offload",
            Strategy::ProTrain => "protrain",
            Strategy::Memo => "memo",
            Strategy::Greedy => "greedy",
            Strategy::Ilp => "ilp",
            Strategy::Exhaustive => "exhaustive",
        }
    }
    /// What it does, in a line.
    pub const fn summary(self) -> &'static str {
        match self {
            Strategy::Keep => "nothing saved: the floor, if it fits",
            Strategy::Checkpoint => "every block input kept, the rest recomputed",
            Strategy::CheckpointSqrt => "every sqrt(n)-th block input kept (Chen et al. 2016)",
            Strategy::Selective => "only the cheap tensors recomputed (Korthikanti et al. 2022)",
            Strategy::Swap => "everything swapped to host memory",
            Strategy::CheckpointOffload => "block inputs swapped, the rest recomputed",
            Strategy::ProTrain => "ProTrain's interleaved blocks and chunks, its own search",
            Strategy::Memo => "MEMO's token fraction, two rounding buffers",
            Strategy::Greedy => "best time saved per byte and link second first",
            Strategy::Ilp => "linear relaxation with a proved bound, seeded with all the others",
            Strategy::Exhaustive => "every plan of a tiny problem: the tests' oracle",
        }
    }
}

/// When to stop.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Stop here at the latest, with the best plan found.
    pub deadline: Option<Instant>,
    /// A plan this close to the bound, as a fraction, is good enough.
    pub gap: f64,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            deadline: None,
            gap: 0.005,
        }
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

/// What a strategy found.
#[derive(Debug)]
pub struct Solution {
    /// Which variant of the problem.
    pub variant: usize,
    /// The plan.
    pub candidate: Candidate,
    /// The strategy that found it: another one's plan can be the best that `ilp` knows.
    pub found_by: Strategy,
    /// No plan of any variant is faster.
    pub bound: Nanos,
    /// How sure it is.
    pub status: Status,
}

impl Solution {
    /// How much slower than the bound the plan is, as a fraction of the plan's time.
    pub fn gap(&self) -> f64 {
        gap(self.candidate.step(), self.bound)
    }
}

/// A variant with all that strategies want to know of it.
#[derive(Debug)]
pub struct Context<'a> {
    /// The variant.
    pub problem: &'a Problem,
    /// The problem in the large.
    pub outline: Outline,
    /// The same, coarser.
    pub coarse: Coarse,
    relaxed: OnceLock<Result<Relaxed, Unsolved>>,
    bound: OnceLock<Nanos>,
    deadline: Option<Instant>,
    gap: f64,
    /// Step of the best plan that is known of any variant, in nanoseconds: plans that cannot beat
    /// it are not built.
    cutoff: Arc<AtomicU64>,
}

impl<'a> Context<'a> {
    /// Prepares a variant.
    pub fn new(problem: &'a Problem, options: &Options) -> Self {
        Self::sharing(problem, options, &Arc::new(AtomicU64::new(u64::MAX)))
    }
    fn sharing(problem: &'a Problem, options: &Options, cutoff: &Arc<AtomicU64>) -> Self {
        let outline = outline(problem);
        let coarse = coarsen(problem, &outline);
        Self {
            problem,
            outline,
            coarse,
            relaxed: OnceLock::new(),
            bound: OnceLock::new(),
            deadline: options.deadline,
            gap: options.gap,
            cutoff: Arc::clone(cutoff),
        }
    }
    /// The relaxation, or why there is none; solved when it is first asked for.
    pub fn relaxed(&self) -> &Result<Relaxed, Unsolved> {
        let solved = || relax(self.problem, &self.coarse, &Margins::default());
        self.relaxed.get_or_init(solved)
    }
    /// No plan of this variant is faster: proved by weak duality, and never less than every
    /// operator once. There is none where the relaxation is infeasible.
    pub fn bound(&self) -> Nanos {
        *self.bound.get_or_init(|| {
            let hoped = match self.relaxed() {
                Err(Unsolved::Infeasible) => return Nanos::MAX,
                Err(Unsolved::Failed) => 0,
                Ok(relaxed) => relaxed.bound_ns,
            };
            let proved = proved_bound(self.problem, &self.coarse, hoped);
            Nanos::new(proved.unwrap_or(0)).max(self.compute())
        })
    }
    /// Every operator once, nothing else.
    fn compute(&self) -> Nanos {
        let once: u64 = self.outline.steps.values().map(|s| s.compute_ns).sum();
        Nanos::new(once) * u64::from(self.problem.micro_batches)
    }
    /// The step with everything resident: no recomputation, no stall.
    pub fn floor(&self) -> Nanos {
        let update: u64 = self.outline.groups.iter().map(|g| g.update_ns).sum();
        self.compute() + Nanos::new(update)
    }
    /// Whether a step is further from the bound than this many times the gap that is wanted.
    fn far(&self, step: Nanos, times: f64) -> bool {
        let bound = self.bound().get();
        step.get().saturating_sub(bound) as f64 > bound as f64 * times * self.gap
    }
    fn expired(&self) -> bool {
        self.deadline.is_some_and(|d| Instant::now() >= d)
    }
    /// What to say where nothing fits: why the plan that needs least does not.
    fn infeasible(&self) -> Infeasible {
        build(self.problem, &simple::leanest(self.problem))
            .err()
            .unwrap_or_default()
    }
    /// No build of the plan is faster: its operators, run back to back.
    fn plan_floor(&self, plan: &Plan) -> u64 {
        let again = plan.iter().map(|(id, fate)| {
            let tensor = &self.outline.tensors[id];
            let pieces = u64::from(tensor.pieces.max(1));
            tensor.recompute_ns / pieces * u64::from(fate.recompute(tensor.pieces))
        });
        let micro_batches = u64::from(self.problem.micro_batches);
        let updates = self.outline.groups.iter().zip(&plan.placements);
        let updates = updates
            .filter(|(_, p)| **p == Placement::Resident)
            .map(|(g, _)| g.update_ns);
        let once: u64 = self.outline.steps.values().map(|s| s.compute_ns).sum();
        (once + again.sum::<u64>()) * micro_batches + updates.sum::<u64>()
    }
    /// Builds and simulates a plan, unless it cannot beat the best one known.
    fn candidate(&self, plan: Plan) -> Result<Candidate, Infeasible> {
        if !self.can_win(self.plan_floor(&plan)) {
            return Err(Infeasible::default());
        }
        let built = build(self.problem, &plan)?;
        Ok(self.found(plan, built))
    }
    /// A plan that fits: slower ones are not built any more.
    fn found(&self, plan: Plan, built: Built) -> Candidate {
        let candidate = Candidate { plan, built };
        let step = candidate.step().get();
        self.cutoff.fetch_min(step, Ordering::Relaxed);
        candidate
    }
    /// Whether a plan that takes at least this long may still be the best. Of equals the first
    /// strategy's wins, so they are built, whichever thread was faster.
    fn can_win(&self, at_least: u64) -> bool {
        at_least <= self.cutoff.load(Ordering::Relaxed)
    }
    /// Host memory that the model states of a plan take.
    fn states_on_host(&self, plan: &Plan) -> u64 {
        let groups = self
            .outline
            .groups
            .iter()
            .zip(&self.problem.states)
            .zip(&plan.placements);
        let there = groups.filter(|(_, placement)| **placement != Placement::Resident);
        there
            .map(|((outline, group), _)| outline.host_bytes(group))
            .sum()
    }
    /// Builds every plan and keeps the fastest.
    fn best_of(&self, plans: impl IntoIterator<Item = Plan>) -> Result<Candidate, Infeasible> {
        let mut best: Option<Result<Candidate, Infeasible>> = None;
        for plan in plans {
            let found = self.candidate(plan);
            best = Some(match best {
                Some(best) => better(best, found),
                None => found,
            });
            if self.expired() {
                break;
            }
        }
        best.unwrap_or_else(|| Err(Infeasible::default()))
    }
    /// The same fates under the placements of model states that are simple to say: all resident,
    /// or with their optimizers on the host, or streamed; and, of the latter two, as many of the
    /// last groups as the host has room for beside what is swapped. The first are wanted first and
    /// updated last, so they stay (ProTrain's argument).
    fn placed(&self, plan: &Plan) -> Vec<Plan> {
        let problem = self.problem;
        let groups = problem.states.len();
        let with = |first: usize, placement: Placement| {
            let mut placements = vec![Placement::Resident; groups];
            placements[first..].fill(placement);
            Plan {
                placements,
                ..plan.clone()
            }
        };
        let swapped: u64 = plan
            .iter()
            .map(|(id, fate)| {
                problem
                    .pieces_bytes(id, fate.keep, fate.keep + fate.swap)
                    .get()
            })
            .sum();
        let room = problem
            .budget
            .host
            .get()
            .saturating_sub(swapped * u64::from(problem.micro_batches));
        let mut plans = vec![with(groups, Placement::Resident)];
        for placement in [Placement::HostOptimizer, Placement::Streamed] {
            if placement == Placement::HostOptimizer
                && problem.states.iter().all(|g| g.host.is_none())
            {
                continue;
            }
            let mut left = room;
            let fits = (0..groups).rev().take_while(|&g| {
                let bytes = self.outline.groups[g].host_bytes(&problem.states[g]);
                left = left.saturating_sub(bytes);
                left > 0
            });
            let first = fits.last().unwrap_or(groups);
            plans.extend((first < groups).then(|| with(first, placement)));
        }
        plans
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

/// All variants, prepared in parallel.
pub fn contexts<'a>(problems: &'a [Problem], options: &Options) -> Vec<Context<'a>> {
    let cutoff = Arc::new(AtomicU64::new(u64::MAX));
    parallel(problems, |p| Context::sharing(p, options, &cutoff))
}

/// Runs `work` on every item, on as many threads as there are cores.
fn parallel<'a, T: Sync, R: Send>(items: &'a [T], work: impl Fn(&'a T) -> R + Sync) -> Vec<R> {
    let threads = std::thread::available_parallelism()
        .map_or(1, usize::from)
        .min(items.len());
    let next = AtomicUsize::new(0);
    let mut results: Vec<(usize, R)> = std::thread::scope(|scope| {
        let workers: Vec<_> = (0..threads.max(1))
            .map(|_| {
                scope.spawn(|| {
                    let mut done = Vec::new();
                    loop {
                        let i = next.fetch_add(1, Ordering::Relaxed);
                        let Some(item) = items.get(i) else {
                            return done;
                        };
                        done.push((i, work(item)));
                    }
                })
            })
            .collect();
        workers
            .into_iter()
            .flat_map(|w| w.join().expect("a worker does not panic"))
            .collect()
    });
    results.sort_by_key(|&(i, _)| i);
    results.into_iter().map(|(_, result)| result).collect()
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
    let bound = lowest_bound(contexts);
    let Found {
        variant,
        candidate,
        found_by,
    } = find(contexts, strategy, options)?;
    let mut solution = Solution {
        variant,
        candidate,
        found_by,
        bound,
        status: Status::Gap,
    };
    let expired = options.deadline.is_some_and(|d| Instant::now() >= d);
    if solution.candidate.step() <= bound {
        solution.status = Status::Optimal;
    } else if expired && solution.gap() > options.gap {
        solution.status = Status::TimeLimit;
    }
    Ok(solution)
}

/// The best plan of all variants.
#[derive(Debug)]
pub struct Found {
    /// Which variant of the problem.
    pub variant: usize,
    /// The plan.
    pub candidate: Candidate,
    /// The strategy that found it.
    pub found_by: Strategy,
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
    for context in contexts {
        context.cutoff.store(u64::MAX, Ordering::Relaxed);
    }
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
        let bound = lowest_bound(contexts);
        // Variants by bound, two at a time, one that cannot win any more left out. The likely
        // winners first: what cannot beat them is not built. So the others come after one pair.
        let mut variants: Vec<usize> = (0..contexts.len()).collect();
        variants.sort_by_key(|&v| contexts[v].bound());
        for (nth, pair) in variants.chunks(2).enumerate() {
            let open = |v: &&usize| match best.step() {
                Some(step) => gap(step, bound) > options.gap && contexts[**v].bound() < step,
                None => contexts[**v].relaxed().is_ok(),
            };
            let tasks: Vec<_> = pair.iter().filter(open).map(|&v| (v, strategy)).collect();
            best.consider(&tasks);
            if nth == 0 {
                best.consider(&on_all(&Strategy::SEEDS));
            }
        }
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
        let leanest = contexts.iter().map(Context::infeasible);
        let miss = leanest.fold(best.miss, |miss, one| Some(nearer(miss, one)));
        miss.unwrap_or_default()
    })
}

/// No plan of any variant is faster.
fn lowest_bound(contexts: &[Context<'_>]) -> Nanos {
    let bounds = parallel(contexts, Context::bound);
    bounds.into_iter().min().unwrap_or(Nanos::ZERO)
}

/// How much slower than the bound a step is, as a fraction of the step.
fn gap(step: Nanos, bound: Nanos) -> f64 {
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
