//! A variant of the problem with all that strategies want to know of it, and the one way in which
//! they build plans: what cannot beat the best plan known is not built.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Instant;

use super::coarse::{coarsen, Coarse};
use super::lp::Unsolved;
use super::outline::{outline, Outline};
use super::relaxation::{proved_bound, relax, Margins, Relaxed};
use super::{better, simple, Candidate, Options};
use crate::build::{build, Built, Infeasible, STACK_BYTES};
use crate::plan::{Fate, Placement, Plan};
use crate::problem::Problem;
use crate::units::{Bytes, Nanos};

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
    infeasible: OnceLock<Infeasible>,
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
            infeasible: OnceLock::new(),
            deadline: options.deadline,
            gap: options.gap,
            cutoff: Arc::clone(cutoff),
        }
    }
    /// What is searched from now on ends at another time and gap.
    pub fn limit(&mut self, options: &Options) {
        (self.deadline, self.gap) = (options.deadline, options.gap);
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
            let proved = proved_bound(self.problem, &self.coarse);
            // That nothing fits is believed where both methods say so.
            if proved.is_err() && matches!(self.relaxed(), Err(Unsolved::Infeasible)) {
                return Nanos::MAX;
            }
            Nanos::new(proved.unwrap_or(0)).max(self.compute())
        })
    }
    /// Every operator as often as it must run, apart from updates that depend on placement.
    fn compute(&self) -> Nanos {
        let round: u64 = self.outline.steps.values().map(|s| s.compute_ns).sum();
        Nanos::new(round * u64::from(self.problem.rounds()) + self.outline.once_ns)
    }
    /// The step with everything resident: no recomputation, no stall.
    pub fn floor(&self) -> Nanos {
        let update: u64 = self.outline.groups.iter().map(|g| g.update_ns).sum();
        self.compute() + Nanos::new(update)
    }
    /// Whether a step is further from the bound than this many times the gap that is wanted.
    pub(super) fn far(&self, step: Nanos, times: f64) -> bool {
        let bound = self.bound().get();
        step.get().saturating_sub(bound) as f64 > bound as f64 * times * self.gap
    }
    pub(super) fn expired(&self) -> bool {
        self.deadline.is_some_and(|d| Instant::now() >= d)
    }
    /// What to say where nothing fits: why the plan that needs least does not.
    pub(super) fn infeasible(&self) -> Infeasible {
        let built = || build(self.problem, &simple::leanest(self.problem));
        let miss = || built().err().unwrap_or_default();
        self.infeasible.get_or_init(miss).clone()
    }
    /// No build of the plan is faster: its operators, run back to back.
    pub(super) fn plan_floor(&self, plan: &Plan) -> u64 {
        let again = plan.iter().map(|(id, fate)| {
            let tensor = &self.outline.tensors[id];
            let pieces = u64::from(tensor.pieces.max(1));
            tensor.recompute_ns / pieces * u64::from(fate.recompute(tensor.pieces))
                + tensor.packing_ns / pieces * u64::from(fate.pack)
        });
        let again = again.sum::<u64>() * u64::from(self.problem.rounds());
        let updates = self.outline.groups.iter().zip(&plan.placements);
        let updates = updates
            .filter(|(_, p)| **p == Placement::Resident)
            .map(|(g, _)| g.update_ns);
        self.compute().get() + again + updates.sum::<u64>()
    }
    /// Builds and simulates a plan, unless it cannot beat the best one known.
    pub(super) fn candidate(&self, mut plan: Plan) -> Result<Candidate, Infeasible> {
        // What backward does not read need not travel or be packed.
        let tensors = self.outline.tensors.values().zip(plan.fates.values_mut());
        for (_, fate) in
            tensors.filter(|(tensor, fate)| !tensor.read && fate.keep < fate.retained())
        {
            *fate = Fate::RECOMPUTED;
        }
        if !self.can_win(self.plan_floor(&plan)) {
            return Err(Infeasible::default());
        }
        let (needed, limit) = (self.states_on_device(&plan), self.problem.budget.device);
        if needed > limit {
            return Err(Infeasible {
                step: Some("model states".into()),
                needed,
                limit,
                ..Infeasible::default()
            });
        }
        let built = build(self.problem, &plan)?;
        Ok(self.found(plan, built))
    }
    /// Device memory that a plan's weights and optimizer states take at all times.
    fn states_on_device(&self, plan: &Plan) -> Bytes {
        let groups = self.outline.groups.iter().zip(&plan.placements);
        let bytes = groups.map(|(group, placement)| match placement {
            Placement::Resident => group.weight_bytes + group.state_bytes,
            Placement::HostOptimizer => group.weight_bytes,
            Placement::Streamed => 0,
        });
        Bytes::new(bytes.sum())
    }
    /// Starts anew: any plan may be the best.
    pub(super) fn forget_best(&self) {
        self.cutoff.store(u64::MAX, Ordering::Relaxed);
    }
    /// A plan that fits: slower ones are not built any more.
    pub(super) fn found(&self, plan: Plan, built: Built) -> Candidate {
        let candidate = Candidate { plan, built };
        let step = candidate.step().get();
        self.cutoff.fetch_min(step, Ordering::Relaxed);
        candidate
    }
    /// Whether a plan that takes at least this long may still be the best. Of equals the first
    /// strategy's wins, so they are built, whichever thread was faster.
    pub(super) fn can_win(&self, at_least: u64) -> bool {
        at_least <= self.cutoff.load(Ordering::Relaxed)
    }
    /// Host memory that the model states of a plan take.
    pub(super) fn states_on_host(&self, plan: &Plan) -> u64 {
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
    pub(super) fn best_of(
        &self,
        plans: impl IntoIterator<Item = Plan>,
    ) -> Result<Candidate, Infeasible> {
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
    pub(super) fn placed(&self, plan: &Plan) -> Vec<Plan> {
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
                    .pieces_host_bytes(id, fate.keep, fate.keep + fate.swap)
                    .get()
            })
            .sum();
        let room = problem
            .budget
            .host
            .get()
            .saturating_sub(swapped * u64::from(problem.rounds()));
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

/// All variants, prepared in parallel.
pub fn contexts<'a>(problems: &'a [Problem], options: &Options) -> Vec<Context<'a>> {
    let cutoff = Arc::new(AtomicU64::new(u64::MAX));
    parallel(problems, |p| Context::sharing(p, options, &cutoff))
}

/// Runs `work` on every item, on as many threads as there are cores, each with the stack to build
/// a plan.
pub(super) fn parallel<'a, T: Sync, R: Send>(
    items: &'a [T],
    work: impl Fn(&'a T) -> R + Sync,
) -> Vec<R> {
    let threads = std::thread::available_parallelism()
        .map_or(1, usize::from)
        .min(items.len());
    let next = AtomicUsize::new(0);
    let mut results: Vec<(usize, R)> = std::thread::scope(|scope| {
        let workers: Vec<_> = (0..threads.max(1))
            .map(|_| {
                let builder = std::thread::Builder::new().stack_size(STACK_BYTES);
                let worker = builder.spawn_scoped(scope, || {
                    let mut done = Vec::new();
                    loop {
                        let i = next.fetch_add(1, Ordering::Relaxed);
                        let Some(item) = items.get(i) else {
                            return done;
                        };
                        done.push((i, work(item)));
                    }
                });
                worker.expect("a thread can be made")
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
