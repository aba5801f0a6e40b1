//! From a model, a machine and a workload to a schedule file: lower, search, give addresses,
//! simulate, count. Pure but for the clock that its time limit needs.
//!
//! ```text
//! Request ─ lower ─► Variants ─ solve ─► Solution ─ addresses ─► Schedule ─ count ─► Planned
//! ```
//! The search counts live bytes; an arena can need more. Then the search is repeated with a budget
//! smaller by the excess, while the bound stays that of the whole budget.

mod counts;
mod needs;

pub use needs::{probe, would_fit, WouldFit};

use std::time::Instant;

use ebbtide_solver::build::{with_addresses, Infeasible};
use ebbtide_solver::plan::Plan;
use ebbtide_solver::problem::{Budget, Problem};
use ebbtide_solver::schedule::{Schedule, Stream};
use ebbtide_solver::search::{
    self, contexts, exhaustive, Context, Found, Options, Solution, Strategy,
};
use ebbtide_solver::simulate::{simulate, Timeline};
use ebbtide_solver::units::{Bytes, BytesPerSec, Nanos};

use self::counts::{decisions, describe_model, peak_flops_per_s, predict, states};
use crate::device::arithmetic::Arithmetic;
use crate::device::packed::Storage;
use crate::error::{Error, Result};
use crate::format::schedule as file;
use crate::lower::{lower, tilings, Lowered, Tiling, Workload};
use crate::methods::Method;
use crate::model::{compressed_step_graph, ModelConfig};
use crate::profile::Profile;

/// What is to be planned.
#[derive(Clone, Copy, Debug)]
pub struct Request<'a> {
    /// The model.
    pub model: &'a ModelConfig,
    /// The machine.
    pub profile: &'a Profile,
    /// What it is trained on.
    pub workload: Workload,
    /// How it is trained.
    pub method: Method,
    /// How saved tensors are packed where they travel or stay packed, if they are.
    pub storage: Option<Storage>,
    /// How linear layers multiply.
    pub arithmetic: Arithmetic,
    /// What the plan may use.
    pub budget: Budget,
}

impl Request<'_> {
    /// Device memory beside the arena: of context and libraries, and of the length.
    fn beside_arena(&self) -> Bytes {
        self.profile.device.overhead + self.workload.beside_arena(self.model)
    }
    /// Device memory that is left for the arena.
    pub fn left_for_arena(&self) -> Bytes {
        let usable = self.profile.device.usable;
        usable.saturating_sub(self.beside_arena())
    }
    /// Refuses what cannot be planned, whatever the budget.
    ///
    /// # Errors
    /// Lengths that the model has no positions for, and what the method cannot be combined with.
    pub fn check(&self) -> Result<()> {
        let workload = &self.workload;
        workload.check(self.model)?;
        let Workload {
            accumulate,
            dtype,
            clip,
            ..
        } = *workload;
        self.method.check(accumulate, dtype, clip)
    }
}

/// A plan with its addresses, and what was learnt on the way.
#[derive(Debug)]
pub struct Planned {
    /// All that is written.
    pub file: file::ScheduleFile,
    /// How its operators are cut, and what their costs are guesses of.
    pub lowered: Lowered,
    /// Which strategy found the plan.
    pub found_by: Strategy,
    /// When everything happens.
    pub timeline: Timeline,
}

/// Lowers every way to cut the operators.
///
/// # Errors
/// A workload that cannot be planned for this model, method or machine.
pub fn variants(request: &Request<'_>) -> Result<Vec<Lowered>> {
    lower_with(request, tilings(request.model, &request.workload))
}

/// Lowers without cutting any operator: what a trainer does that knows no tiles.
///
/// # Errors
/// As [`variants`].
pub fn untiled(request: &Request<'_>) -> Result<Vec<Lowered>> {
    let tokens = request.workload.tokens();
    let whole = Tiling {
        tile: tokens,
        head_tile: tokens,
        groups: 1,
    };
    lower_with(request, vec![whole])
}

fn lower_with(request: &Request<'_>, tilings: Vec<Tiling>) -> Result<Vec<Lowered>> {
    let Request {
        model,
        profile,
        workload,
        method,
        storage,
        arithmetic,
        budget,
    } = *request;
    request.check()?;
    let compressed = method.resolved(model)?.compressed(model);
    let graph = compressed_step_graph(model, compressed);
    tilings
        .into_iter()
        .map(|tiling| {
            let lowered = lower(&graph, model, profile, method, &workload, budget, tiling)?;
            let lowered = lowered.in_arithmetic(arithmetic, profile, workload.dtype)?;
            Ok(match storage {
                Some(_) => lowered.packed(),
                None => lowered,
            })
        })
        .collect()
}

/// The variants' problems under another budget.
pub fn problems(variants: &[Lowered], budget: Budget) -> Vec<Problem> {
    let with_budget = |lowered: &Lowered| Problem {
        budget,
        ..lowered.problem.clone()
    };
    variants.iter().map(with_budget).collect()
}

/// What is left of what was [`Found`] once its instructions have become a schedule.
struct Placed {
    variant: usize,
    plan: Plan,
    found_by: Strategy,
    schedule: Schedule,
}

/// How often the search is repeated because the arena is larger than what lives in it.
const ROUNDS: usize = 4;

/// Plans: the outer error is one of input, the inner one says why nothing fits.
///
/// # Errors
/// As [`variants`].
pub fn plan(
    request: &Request<'_>,
    strategy: Strategy,
    options: &Options,
) -> Result<std::result::Result<Planned, Infeasible>> {
    let variants = variants(request)?;
    check_countable(&variants, strategy)?;
    Ok(plan_variants(request, variants, strategy, options))
}

/// Plans with these ways to cut the operators and no others.
///
/// # Errors
/// Why nothing fits.
pub fn plan_variants(
    request: &Request<'_>,
    variants: Vec<Lowered>,
    strategy: Strategy,
    options: &Options,
) -> std::result::Result<Planned, Infeasible> {
    let problems = problems(&variants, request.budget);
    let contexts = contexts(&problems, options);
    plan_prepared(request, &variants, &contexts, strategy, options)
}

/// Plans by one strategy what has been prepared for several: contexts of the problems of these
/// variants, under the request's budget.
///
/// # Errors
/// Why nothing fits.
pub fn plan_prepared(
    request: &Request<'_>,
    variants: &[Lowered],
    contexts: &[Context<'_>],
    strategy: Strategy,
    options: &Options,
) -> std::result::Result<Planned, Infeasible> {
    let begun = Instant::now();
    let Solution {
        found,
        bound,
        status,
    } = search::solve(contexts, strategy, options)?;
    let found = (found, begun);
    let mut planned = complete(request, variants, contexts, strategy, options, found)?;
    let step = planned.timeline.step;
    let solver = &mut planned.file.solver;
    solver.status = match status {
        _ if step <= bound => file::Status::Optimal,
        search::Status::Optimal | search::Status::Gap => file::Status::Gap,
        search::Status::TimeLimit => file::Status::TimeLimit,
    };
    solver.bound = Some(bound);
    solver.gap = Some(search::gap(step, bound));
    Ok(planned)
}

/// As [`plan_prepared`], without a bound, which takes longer than a simple strategy's plan.
///
/// # Errors
/// Why nothing fits.
pub fn plan_unproved(
    request: &Request<'_>,
    variants: &[Lowered],
    contexts: &[Context<'_>],
    strategy: Strategy,
    options: &Options,
) -> std::result::Result<Planned, Infeasible> {
    let begun = Instant::now();
    let found = (search::find(contexts, strategy, options)?, begun);
    complete(request, variants, contexts, strategy, options, found)
}

/// Addresses, times and counts for what a search, begun then, has found. Not proved yet.
fn complete(
    request: &Request<'_>,
    variants: &[Lowered],
    contexts: &[Context<'_>],
    strategy: Strategy,
    options: &Options,
    (found, begun): (Found, Instant),
) -> std::result::Result<Planned, Infeasible> {
    let Placed {
        variant,
        plan,
        found_by,
        schedule,
    } = place(variants, found, strategy, request.budget, options)?;
    let lowered = variants[variant].clone();
    let timeline = simulate(&schedule);
    let floor = contexts.iter().map(Context::floor).min();
    let floor = floor.unwrap_or(Nanos::ZERO);
    let method = request.method.resolved(request.model).ok();
    let predicted = predict(request, &lowered, &schedule, &timeline, floor);
    let file = file::ScheduleFile {
        ebbtide_version: env!("CARGO_PKG_VERSION").into(),
        model: describe_model(request.model),
        workload: file::Workload {
            seq: request.workload.seq,
            batch: request.workload.batch,
            dtype: request.workload.dtype.to_string(),
        },
        hardware: file::Hardware {
            name: request.profile.name.clone(),
            overhead: request.beside_arena(),
            peak_flops_per_s: peak_flops_per_s(request),
            host_memory: request.profile.host.memory,
        },
        method: request.method.name().into(),
        method_options: method.and_then(Method::low_rank),
        storage: request.storage,
        arithmetic: request.arithmetic,
        strategy: strategy.name().into(),
        decisions: decisions(&lowered.problem, &plan, request),
        states: states(&lowered.problem, &plan.placements),
        schedule,
        solver: file::Solver {
            status: file::Status::Unproved,
            bound: None,
            gap: None,
            solve_ms: u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX),
        },
        predicted,
    };
    Ok(Planned {
        file,
        lowered,
        found_by,
        timeline,
    })
}

/// Refuses to try all plans where they are too many.
///
/// # Errors
/// [`Strategy::Exhaustive`] and no variant with few enough plans.
pub fn check_countable(variants: &[Lowered], strategy: Strategy) -> Result<()> {
    let countable = |lowered: &Lowered| exhaustive::count(&lowered.problem).is_some();
    if strategy != Strategy::Exhaustive || variants.iter().any(countable) {
        return Ok(());
    }
    let most = exhaustive::MOST_PLANS;
    Err(Error::bad_input(format!(
        "exhaustive tries at most {most} plans; this problem has more"
    ))
    .hint(
        "--strategy ilp finds a plan for every problem, and says how far it can be from the best",
    ))
}

/// Gives what was found its addresses, and finds something else where they do not fit.
fn place(
    variants: &[Lowered],
    mut found: Found,
    strategy: Strategy,
    budget: Budget,
    options: &Options,
) -> std::result::Result<Placed, Infeasible> {
    let mut reduced = budget;
    for round in 1.. {
        let candidate = found.candidate;
        let peak_step = candidate.built.peak_step.clone();
        let mut schedule = with_addresses(candidate.built);
        schedule.budget = budget;
        let excess = schedule.arena_bytes.saturating_sub(budget.device);
        if excess.is_zero() {
            return Ok(Placed {
                variant: found.variant,
                plan: candidate.plan,
                found_by: found.found_by,
                schedule,
            });
        }
        if round == ROUNDS {
            return Err(Infeasible {
                step: Some(peak_step),
                operator: None,
                needed: schedule.arena_bytes,
                limit: budget.device,
                ..Infeasible::default()
            });
        }
        reduced.device = reduced.device.saturating_sub(excess);
        let problems = problems(variants, reduced);
        found = search::find(&contexts(&problems, options), strategy, options)?;
    }
    unreachable!("the last round returns")
}

/// The step that the same schedule takes on a machine a little different from the profile's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sensitivity {
    /// With links a tenth slower.
    pub slow_links: Nanos,
    /// With operators a twentieth slower.
    pub slow_compute: Nanos,
    /// With operators a twentieth faster.
    pub fast_compute: Nanos,
}

/// Simulates a schedule on machines a little different: profiles are noisy.
pub fn sensitivity(schedule: &Schedule) -> Sensitivity {
    let compute = |percent: u64| {
        let mut schedule = schedule.clone();
        for instruction in &mut schedule.streams[Stream::Compute as usize] {
            instruction.duration = instruction.duration.scaled(percent, 100);
        }
        simulate(&schedule).step
    };
    Sensitivity {
        slow_links: simulate(&with_slow_links(schedule)).step,
        slow_compute: compute(105),
        fast_compute: compute(95),
    }
}

fn with_slow_links(schedule: &Schedule) -> Schedule {
    let slower = |rate: BytesPerSec| {
        BytesPerSec::new(Bytes::new(rate.get()).scaled(9, 10).get()).unwrap_or(rate)
    };
    let mut schedule = schedule.clone();
    let links = &mut schedule.machine.links;
    for rate in [
        &mut links.d2h.rate,
        &mut links.h2d.rate,
        &mut links.both.d2h,
        &mut links.both.h2d,
    ] {
        *rate = slower(*rate);
    }
    for stream in [Stream::D2h, Stream::H2d] {
        for instruction in &mut schedule.streams[stream as usize] {
            instruction.duration = instruction.duration.scaled(10, 9);
        }
    }
    schedule
}
