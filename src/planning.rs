//! From a model, a machine and a workload to a schedule file: lower, search, give addresses,
//! simulate, count. Pure but for the clock that its time limit needs.
//!
//! ```text
//! Request ─ lower ─► Variants ─ solve ─► Solution ─ addresses ─► Schedule ─ count ─► Planned
//! ```
//! The search counts live bytes; an arena can need more. Then the search is repeated with a budget
//! smaller by the excess, while the bound stays that of the whole budget.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use ebbtide_solver::build::{with_addresses, Infeasible};
use ebbtide_solver::plan::{Fate, Placement, Plan};
use ebbtide_solver::problem::{Budget, Problem, Split};
use ebbtide_solver::schedule::{Action, Schedule, Stream};
use ebbtide_solver::search::{self, contexts, exhaustive, Context, Options, Solution, Strategy};
use ebbtide_solver::simulate::{copied_bytes, simulate, Timeline};
use ebbtide_solver::units::{Bytes, BytesPerSec, Nanos};

use crate::device::arithmetic::Arithmetic;
use crate::device::packed::Storage;
use crate::error::{Error, Result};
use crate::format::number::LARGEST;
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
    /// How saved tensors are packed where they travel, if they are.
    pub storage: Option<Storage>,
    /// How linear layers multiply.
    pub arithmetic: Arithmetic,
    /// What the plan may use.
    pub budget: Budget,
}

impl Request<'_> {
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

/// What is left of a [`Solution`] once its instructions have become a schedule.
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
    let first = search::solve(contexts, strategy, options)?;
    complete(
        request,
        variants,
        contexts,
        strategy,
        options,
        (first, begun),
    )
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
    let found = search::find(contexts, strategy, options)?;
    let first = Solution {
        variant: found.variant,
        candidate: found.candidate,
        found_by: found.found_by,
        bound: Nanos::ZERO,
        status: search::Status::Gap,
    };
    let mut planned = complete(
        request,
        variants,
        contexts,
        strategy,
        options,
        (first, begun),
    )?;
    planned.file.solver = file::Solver {
        status: file::Status::Unproved,
        bound: None,
        gap: None,
        ..planned.file.solver
    };
    Ok(planned)
}

/// Addresses, times and counts for a solution that a search, begun then, has found.
fn complete(
    request: &Request<'_>,
    variants: &[Lowered],
    contexts: &[Context<'_>],
    strategy: Strategy,
    options: &Options,
    (first, begun): (Solution, Instant),
) -> std::result::Result<Planned, Infeasible> {
    let floor = contexts.iter().map(Context::floor).min();
    let (bound, status) = (first.bound, first.status);
    let Placed {
        variant,
        plan,
        found_by,
        schedule,
    } = place(variants, first, strategy, request.budget, options)?;
    let lowered = variants[variant].clone();
    let timeline = simulate(&schedule);
    let step = timeline.step;
    let gap = step.saturating_sub(bound).get() as f64 / step.get().max(1) as f64;
    let solver = file::Solver {
        status: match status {
            _ if step <= bound => file::Status::Optimal,
            search::Status::Optimal | search::Status::Gap => file::Status::Gap,
            search::Status::TimeLimit => file::Status::TimeLimit,
        },
        bound: Some(bound),
        gap: Some(gap),
        solve_ms: u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX),
    };
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
            overhead: request.profile.device.overhead,
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
        solver,
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
fn check_countable(variants: &[Lowered], strategy: Strategy) -> Result<()> {
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

/// Gives a solution its addresses, and finds another where they do not fit.
fn place(
    variants: &[Lowered],
    mut solution: Solution,
    strategy: Strategy,
    budget: Budget,
    options: &Options,
) -> std::result::Result<Placed, Infeasible> {
    let mut reduced = budget;
    for round in 1.. {
        let candidate = solution.candidate;
        let peak_step = candidate.built.peak_step.clone();
        let mut schedule = with_addresses(candidate.built);
        schedule.budget = budget;
        let excess = schedule.arena_bytes.saturating_sub(budget.device);
        if excess.is_zero() {
            return Ok(Placed {
                variant: solution.variant,
                plan: candidate.plan,
                found_by: solution.found_by,
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
        solution = search::solve(&contexts(&problems, options), strategy, options)?;
    }
    unreachable!("the last round returns")
}

fn describe_model(model: &ModelConfig) -> file::Model {
    let small = |count: u64| u32::try_from(count).expect("bounded by the config reader");
    file::Model {
        name: model.name.clone(),
        parameters: model.parameters(),
        layers: small(model.layers),
        hidden: model.hidden,
        intermediate: model.intermediate,
        heads: small(model.heads),
        kv_heads: small(model.kv_heads),
        head_dim: small(model.head_dim),
        vocab: model.vocab,
        config: model.source.as_object().cloned(),
    }
}

/// The peak that MFU is counted against.
fn peak_flops_per_s(request: &Request<'_>) -> u64 {
    let peaks = &request.profile.device.peak_flops_per_s;
    let peak = peaks.get(&request.workload.dtype);
    *peak.expect("lowering refuses a type without a peak")
}

/// What becomes of every tensor, in tokens: where pieces are head groups, the same part of them.
fn decisions(problem: &Problem, plan: &Plan, request: &Request<'_>) -> Vec<file::Decision> {
    let all = problem.tokens.get();
    let decide = |(id, fate): (_, Fate)| {
        let tensor = &problem.tensors[id];
        let value = &problem.values[tensor.value];
        let tokens_until = |pieces: u32| match value.split {
            Split::Rows => problem.pieces_extent(id, 0, pieces).0.len(),
            Split::Groups | Split::Whole => {
                all * u64::from(pieces) / u64::from(tensor.pieces.max(1))
            }
        };
        let (kept, stored) = (tokens_until(fate.keep), tokens_until(fate.keep + fate.swap));
        file::Decision {
            block: value.block,
            tensor: value.name.clone(),
            keep_tokens: kept,
            swap_tokens: stored - kept,
            recompute_tokens: all - stored,
            stored_as: match request.storage.filter(|_| fate.swap > 0) {
                Some(storage) => storage.to_string(),
                None => request.workload.dtype.to_string(),
            },
        }
    };
    plan.iter().map(decide).collect()
}

fn states(problem: &Problem, placements: &[Placement]) -> Vec<file::State> {
    let groups = problem.states.iter().zip(placements);
    groups
        .map(|(group, &placement)| file::State {
            placement,
            parameters: group.parameters,
        })
        .collect()
}

fn predict(
    request: &Request<'_>,
    lowered: &Lowered,
    schedule: &Schedule,
    timeline: &Timeline,
    floor: Nanos,
) -> file::Predicted {
    let seconds = timeline.step.get().max(1) as f64 / 1e9;
    let (model, executed) = flops(lowered, schedule);
    let of_peak = |flops: u128| flops as f64 / seconds / peak_flops_per_s(request) as f64;
    let tokens = schedule.tokens * u64::from(schedule.micro_batches);
    file::Predicted {
        step: timeline.step,
        floor,
        recompute: timeline.recompute,
        stall: timeline.stall,
        optimizer_tail: timeline.tail,
        tokens_per_s: tokens as f64 / seconds,
        mfu: of_peak(model),
        hfu: of_peak(executed),
        peak_live: crate::memory::peak(schedule).bytes,
        arena: schedule.arena_bytes,
        device: schedule.arena_bytes + request.profile.device.overhead,
        host: schedule.host_bytes,
        d2h: copied_bytes(schedule, Stream::D2h),
        h2d: copied_bytes(schedule, Stream::H2d),
    }
}

/// FLOPs of a step: the model's own, and all that are executed. Of attention's five products
/// backward one makes the scores again, which is the kernel's choice and not the model's.
fn flops(lowered: &Lowered, schedule: &Schedule) -> (u128, u128) {
    let (mut model, mut executed) = (0, 0);
    for instruction in schedule.stream(Stream::Compute) {
        let (Action::Run(op) | Action::Recompute(op)) = instruction.action else {
            continue;
        };
        let flops = lowered.flops[op];
        let flops = flops.fixed + flops.row * u128::from(instruction.rows.len());
        executed += flops;
        if instruction.action == Action::Run(op) {
            model += match lowered.problem.ops[op].name.as_str() {
                "attention_backward" => flops * 4 / 5,
                // A method's own.
                "project" => 0,
                name if name.ends_with("_update") => 0,
                _ => flops,
            };
        }
    }
    (model, executed)
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

/// What would make a request fit; nothing where it was not found in time.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct WouldFit {
    /// Device memory that is enough with the host memory there is.
    pub device: Option<Bytes>,
    /// Host memory that is enough with the device memory there is.
    pub host: Option<Bytes>,
    /// Both, where neither alone is enough.
    pub both: Option<Budget>,
    /// A sequence that fits, to an eighth of its length.
    pub seq: Option<u64>,
    /// A method that keeps less.
    pub method: Option<Method>,
}

/// Looks for what would make a request fit, by strategies that need little memory.
pub fn would_fit(request: &Request<'_>, strategy: Strategy, deadline: Instant) -> WouldFit {
    let lean = match strategy {
        Strategy::Ilp => vec![
            Strategy::CheckpointOffload,
            Strategy::CheckpointSqrt,
            Strategy::Swap,
        ],
        other => vec![other],
    };
    let mut found = WouldFit::default();
    let Ok(variants) = variants(request) else {
        return found;
    };
    let enough = |raise: fn(&mut Budget, &Infeasible) -> bool| {
        let all = lean
            .iter()
            .filter_map(|&s| enough(&variants, request.budget, s, deadline, raise));
        all.min_by_key(|b| b.device.get().saturating_add(b.host.get()))
    };
    found.device = enough(|budget, miss| {
        budget.device = miss.needed;
        miss.step.is_some()
    })
    .map(|budget| budget.device);
    found.host = enough(|budget, miss| {
        budget.host = miss.needed;
        miss.step.is_none()
    })
    .map(|budget| budget.host)
    .or_else(|| with_all_host(&variants, request.budget, &lean));
    found.method = leaner(request, &lean);
    if found.device.is_none() && found.host.is_none() {
        found.both = enough(|budget, miss| {
            match miss.step {
                Some(_) => budget.device = miss.needed,
                None => budget.host = miss.needed,
            }
            true
        });
    }
    found.seq = shorter(request, &lean, deadline);
    found
}

/// Raises the budget by what is missing until the strategy finds a plan.
fn enough(
    variants: &[Lowered],
    budget: Budget,
    strategy: Strategy,
    deadline: Instant,
    raise: fn(&mut Budget, &Infeasible) -> bool,
) -> Option<Budget> {
    let mut budget = budget;
    let options = Options::default();
    for round in 0.. {
        if round > 0 && Instant::now() >= deadline {
            break;
        }
        let problems = problems(variants, budget);
        match search::find(&contexts(&problems, &options), strategy, &options) {
            Ok(_) => return Some(budget),
            Err(miss) if miss.needed <= miss.limit || miss.needed.get() > LARGEST => return None,
            Err(mut miss) => {
                // One miss after the other a little larger would take all the time there is.
                let little = miss.limit.scaled(1 << round.min(8), 256);
                miss.needed = miss.needed.max(miss.limit + little);
                if !raise(&mut budget, &miss) {
                    return None;
                }
            }
        }
    }
    None
}

/// What a plan takes of the host that may take all it wants: enough where states on the device
/// are too many, which no miss of the host says.
fn with_all_host(variants: &[Lowered], budget: Budget, lean: &[Strategy]) -> Option<Bytes> {
    let options = Options::default();
    let found = |host: Bytes| {
        let problems = problems(variants, Budget { host, ..budget });
        let contexts = contexts(&problems, &options);
        let host_bytes = |strategy: &Strategy| {
            let found = search::find(&contexts, *strategy, &options).ok()?;
            Some(found.candidate.built.schedule.host_bytes)
        };
        lean.iter().filter_map(host_bytes).min()
    };
    // With that much and no more, a plan has to be found again.
    let host = found(Bytes::new(LARGEST))?;
    found(host).map(|_| host)
}

/// The first other method that fits.
fn leaner(request: &Request<'_>, lean: &[Strategy]) -> Option<Method> {
    let others = [Method::Sgd, Method::Lomo].into_iter();
    let fits = |&method: &Method| {
        let request = Request { method, ..*request };
        let found = probe(&request, lean, Duration::ZERO);
        found.is_ok_and(|found| found.iter().any(std::result::Result::is_ok))
    };
    others.filter(|&m| m != request.method).find(fits)
}

/// A sequence that fits, found by halving and then by eighths.
fn shorter(request: &Request<'_>, lean: &[Strategy], deadline: Instant) -> Option<u64> {
    /// Shorter ones are of no use to anybody.
    const SHORTEST: u64 = 256;
    let fits = |seq: u64| {
        let workload = Workload {
            seq,
            ..request.workload
        };
        let request = Request {
            workload,
            ..*request
        };
        let found = probe(&request, lean, Duration::ZERO);
        found.is_ok_and(|found| found.iter().any(std::result::Result::is_ok))
    };
    let granule = |seq: u64| (seq / SHORTEST * SHORTEST).max(SHORTEST);
    let mut seq = request.workload.seq / 2;
    while !fits(granule(seq)) {
        seq /= 2;
        if seq < SHORTEST || Instant::now() >= deadline {
            return None;
        }
    }
    let (seq, eighth) = (granule(seq), seq / 8);
    let longer = (1..8).map(|eighths| granule(seq + eighths * eighth));
    let longest = longer
        .take_while(|&seq| Instant::now() < deadline && fits(seq))
        .last();
    Some(longest.unwrap_or(seq))
}

/// Whether each strategy finds a plan, and if not, its nearest miss. Only [`Strategy::Ilp`], which
/// can take long to find that there is none, stops after `patience`.
///
/// # Errors
/// As [`variants`].
pub fn probe(
    request: &Request<'_>,
    strategies: &[Strategy],
    patience: Duration,
) -> Result<Vec<std::result::Result<(), Infeasible>>> {
    let variants = variants(request)?;
    for &strategy in strategies {
        check_countable(&variants, strategy)?;
    }
    let problems = problems(&variants, request.budget);
    let options = Options::default();
    let prepared = contexts(&problems, &options);
    let mut found: BTreeMap<Strategy, std::result::Result<(), Infeasible>> = BTreeMap::new();
    let mut ask = |strategy| {
        let solved = || search::find(&prepared, strategy, &options).map(drop);
        found.entry(strategy).or_insert_with(solved).is_ok()
    };
    for &strategy in strategies.iter().filter(|&&s| s != Strategy::Ilp) {
        ask(strategy);
    }
    if strategies.contains(&Strategy::Ilp) {
        // What the lean ones find, it finds too.
        let lean = [Strategy::CheckpointSqrt, Strategy::CheckpointOffload].map(&mut ask);
        let hopeless = prepared.iter().all(|context| context.bound() == Nanos::MAX);
        let ilp = if lean.contains(&true) || found.values().any(std::result::Result::is_ok) {
            Ok(())
        } else if hopeless {
            found[&Strategy::CheckpointSqrt].clone()
        } else {
            let options = Options {
                deadline: Some(Instant::now() + patience),
                gap: 1.0,
            };
            search::find(&contexts(&problems, &options), Strategy::Ilp, &options).map(drop)
        };
        found.insert(Strategy::Ilp, ilp);
    }
    Ok(strategies.iter().map(|s| found[s].clone()).collect())
}
