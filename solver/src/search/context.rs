//! A variant of the problem with all that strategies want to know of it, and the one way in which
//! they build plans: what cannot beat the best plan known is not built.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use super::coarse::{coarsen, Coarse};
use super::lp::Unsolved;
use super::outline::{outline, Outline};
use super::relaxation::{relax, Margins, Relaxed};
use super::{better, needs, simple, Candidate, Options};
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
    infeasible: OnceLock<Infeasible>,
    options: Options,
    /// Step of the best plan that is known of any variant, in nanoseconds: plans that cannot beat
    /// it are not built.
    cutoff: Arc<AtomicU64>,
    /// The steps of plans that have been built, in nanoseconds: strategies have plans in common.
    built: Mutex<HashMap<Plan, Result<u64, Infeasible>>>,
    /// Of plans that were sure not to fit the one that needs least, with what it needs at least; of
    /// equals the last, which holds least.
    unbuilt: Mutex<Option<(u64, Plan)>>,
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
            infeasible: OnceLock::new(),
            options: *options,
            cutoff: Arc::clone(cutoff),
            built: Mutex::default(),
            unbuilt: Mutex::default(),
        }
    }
    /// What is searched from now on ends at another time and gap.
    pub fn limit(&mut self, options: &Options) {
        self.options = *options;
    }
    /// The relaxation, or why there is none; solved when it is first asked for.
    pub fn relaxed(&self) -> &Result<Relaxed, Unsolved> {
        let solved = || relax(self.problem, &self.coarse, &Margins::default());
        self.relaxed.get_or_init(solved)
    }
    /// No plan of this variant is faster: proved by weak duality, and never less than every
    /// operator once. There is none where the relaxation is infeasible.
    pub fn bound(&self) -> Nanos {
        match self.relaxed() {
            Err(Unsolved::Infeasible) => Nanos::MAX,
            Err(Unsolved::Failed) => self.compute(),
            Ok(relaxed) => Nanos::new(relaxed.bound_ns).max(self.compute()),
        }
    }
    /// The bound where it is known already, and what it is never less than where it is not.
    pub(super) fn rough_bound(&self) -> Nanos {
        match self.relaxed.get() {
            Some(_) => self.bound(),
            None => self.compute(),
        }
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
        step.get().saturating_sub(bound) as f64 > bound as f64 * times * self.options.gap
    }
    pub(super) fn expired(&self) -> bool {
        self.options.expired()
    }
    /// What to say where nothing fits: why the plan that needs least does not.
    pub(super) fn infeasible(&self) -> Infeasible {
        let built = || build(self.problem, &simple::leanest(self.problem));
        let miss = || built().err().unwrap_or_default();
        self.infeasible.get_or_init(miss).clone()
    }
    /// No build of the plan is faster: its operators, run back to back, and its copies likewise.
    pub(super) fn plan_floor(&self, plan: &Plan) -> u64 {
        let (problem, outline) = (self.problem, &self.outline);
        let links = problem.machine.links;
        let travels = Bytes::new(needs::swapped(problem, plan));
        let copies = links.d2h.time(travels).max(links.h2d.time(travels));
        let beside = needs::beside_compute_ns(problem, outline, plan);
        (self.compute().get() + beside).max(copies.get())
    }
    /// What a plan takes at the least, told without building it: its step, and bytes of the device
    /// and of the host.
    pub fn least(&self, plan: &Plan) -> (Nanos, Bytes, Bytes) {
        let (problem, outline) = (self.problem, &self.outline);
        (
            Nanos::new(self.plan_floor(plan)),
            Bytes::new(needs::device(problem, outline, plan)),
            Bytes::new(needs::host(problem, outline, plan)),
        )
    }
    /// Builds and simulates a plan, unless it cannot beat the best one known.
    pub(super) fn candidate(&self, plan: Plan) -> Result<Candidate, Infeasible> {
        let plan = self.without_unread(plan);
        if !self.can_win(self.plan_floor(&plan)) {
            return Err(Infeasible::default());
        }
        if let Some(Err(miss)) = lock(&self.built).get(&plan) {
            return Err(miss.clone());
        }
        let built = build(self.problem, &plan);
        let outcome = match &built {
            Ok(built) => Ok(built.timeline.step.get()),
            Err(miss) => Err(miss.clone()),
        };
        lock(&self.built).insert(plan.clone(), outcome);
        Ok(self.found(plan, built?))
    }
    /// What backward does not read need not travel or be packed.
    fn without_unread(&self, mut plan: Plan) -> Plan {
        let tensors = self.outline.tensors.values().zip(plan.fates.values_mut());
        for (_, fate) in
            tensors.filter(|(tensor, fate)| !tensor.read && fate.keep < fate.retained())
        {
            *fate = Fate::RECOMPUTED;
        }
        plan
    }
    /// Whether a plan is sure not to fit, which is then remembered.
    pub(super) fn surely_misses(&self, plan: &Plan) -> bool {
        let (problem, budget) = (self.problem, self.problem.budget);
        let host = needs::host(problem, &self.outline, plan);
        let device = || needs::device(problem, &self.outline, plan);
        let misses = |needed: u64, limit: Bytes| (needed > limit.get()).then_some(needed);
        let missed = misses(host, budget.host).or_else(|| misses(device(), budget.device));
        let Some(needed) = missed else {
            return false;
        };
        let mut nearest = lock(&self.unbuilt);
        if nearest.as_ref().is_none_or(|(least, _)| needed <= *least) {
            *nearest = Some((needed, plan.clone()));
        }
        true
    }
    /// What the nearest miss that was not built needs at least.
    pub(super) fn unbuilt_needs(&self) -> Option<u64> {
        lock(&self.unbuilt).as_ref().map(|(needed, _)| *needed)
    }
    /// Why the nearest miss of all plans that were sure not to fit, and so not built, does not.
    pub(super) fn unbuilt_miss(&self) -> Option<Infeasible> {
        let nearest = lock(&self.unbuilt).take();
        nearest.and_then(|(_, plan)| self.candidate(plan).err())
    }
    /// Starts anew: any plan may be the best.
    pub(super) fn forget_best(&self) {
        lock(&self.unbuilt).take();
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
        needs::states_on_host(self.problem, &self.outline, plan)
    }
    /// Whether a plan has been built and fits.
    pub(super) fn fits(&self, plan: &Plan) -> bool {
        let plan = self.without_unread(plan.clone());
        lock(&self.built).get(&plan).is_some_and(Result::is_ok)
    }
    /// Builds every plan that may fit, and win, and keeps the fastest.
    pub(super) fn best_of(
        &self,
        plans: impl IntoIterator<Item = Plan>,
    ) -> Result<Candidate, Infeasible> {
        let mut best: Option<Result<Candidate, Infeasible>> = None;
        for plan in plans {
            let plan = self.without_unread(plan);
            let known = lock(&self.built).get(&plan).cloned();
            let slower = known.is_some_and(|step| step.is_ok_and(|step| !self.can_win(step)));
            let found = match slower || self.surely_misses(&plan) {
                true => Err(Infeasible::default()),
                false => self.candidate(plan),
            };
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
        let host = problem.budget.host.get();
        let room = host.saturating_sub(needs::swapped(problem, plan));
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

fn lock<T>(shared: &Mutex<T>) -> MutexGuard<'_, T> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
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
    let take = || {
        let mut done = Vec::new();
        loop {
            let i = next.fetch_add(1, Ordering::Relaxed);
            let Some(item) = items.get(i) else {
                return done;
            };
            done.push((i, work(item)));
        }
    };
    let mut results: Vec<(usize, R)> = std::thread::scope(|scope| {
        let spawn = |_| {
            let builder = std::thread::Builder::new().stack_size(STACK_BYTES);
            builder.spawn_scoped(scope, take).ok()
        };
        // Where memory is too short for the stack of one, the others do its work, or this one.
        let workers: Vec<_> = (0..threads).map_while(spawn).collect();
        let mine = if workers.is_empty() {
            take()
        } else {
            Vec::new()
        };
        let joined = workers.into_iter().map(|w| w.join());
        let others = joined.flat_map(|done| done.expect("a worker does not panic"));
        mine.into_iter().chain(others).collect()
    });
    results.sort_by_key(|&(i, _)| i);
    results.into_iter().map(|(_, result)| result).collect()
}
