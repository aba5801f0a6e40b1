//! Laws that hold for every problem: hundreds of small random ones, each named by its seed.
//! `LAWS=5000 cargo test --release -p ebbtide-solver --test laws` tries more of them.
mod support;

use std::cell::Cell;
use std::collections::BTreeSet;
use std::sync::OnceLock;
use std::thread;

use ebbtide_solver::build::{build, with_addresses, Built};
use ebbtide_solver::check::check;
use ebbtide_solver::plan::Plan;
use ebbtide_solver::problem::{Problem, Value};
use ebbtide_solver::schedule::{Action, Instruction, Schedule, Stream, GRADIENT_NORM};
use ebbtide_solver::search::{contexts, solve, Context, Options, Solution, Status, Strategy};
use ebbtide_solver::simulate::{simulate, Timeline};
use ebbtide_solver::units::{Bytes, Nanos};
use support::problems::{random_plan, random_problem, Shape};
use support::random::Random;

/// Few enough plans to try them all.
const TINY: Shape = Shape {
    most_plans: Some(1500),
    most_blocks: 4,
    unit_machine: false,
};
const SMALL: Shape = Shape {
    most_plans: None,
    most_blocks: 5,
    unit_machine: false,
};

/// How many problems there are, unless another number is asked for.
fn cases(otherwise: u64) -> u64 {
    std::env::var("LAWS").map_or(otherwise, |n| n.parse().expect("LAWS is a number"))
}

/// Runs a law on the problems of many seeds and names those that break it.
fn for_seeds(some: u64, law: impl Fn(u64) -> Result<(), String>) {
    let cases = cases(some);
    let broken: Vec<String> = (0..cases)
        .filter_map(|seed| law(seed).err().map(|why| format!("seed {seed}: {why}")))
        .collect();
    println!("{cases} seeds, {} break the law", broken.len());
    let shown = &broken[..broken.len().min(20)];
    assert!(
        broken.is_empty(),
        "{} of {cases}:\n{}",
        broken.len(),
        shown.join("\n")
    );
}

fn shape(seed: u64, shape: Shape) -> Shape {
    Shape {
        unit_machine: seed % 3 == 0,
        ..shape
    }
}

fn bound(problem: &Problem) -> Nanos {
    contexts(std::slice::from_ref(problem), &Options::default())[0].bound()
}

fn find(problem: &Problem, strategy: Strategy) -> Option<Solution> {
    let options = Options::default();
    solve(
        &contexts(std::slice::from_ref(problem), &options),
        strategy,
        &options,
    )
    .ok()
}

/// What every strategy finds of one problem; each problem is solved once for all laws.
struct Solved {
    problem: Problem,
    found: Vec<(Strategy, Option<Found>)>,
}

struct Found {
    step: Nanos,
    /// Whether a value stays packed in part.
    packs: bool,
    /// Whether its arena is over the budget, where nothing is wrong with it; else what is.
    verdict: Result<bool, String>,
}

impl Solved {
    fn new(seed: u64) -> Self {
        let problem = random_problem(seed, shape(seed, SMALL));
        let options = Options::default();
        let contexts = contexts(std::slice::from_ref(&problem), &options);
        let strategies = Strategy::ALL.into_iter();
        let found = strategies.filter(|s| *s != Strategy::Exhaustive);
        let found = found.map(|strategy| {
            let solution = solve(&contexts, strategy, &options).ok();
            (
                strategy,
                solution.map(|solution| judge(&contexts[0], solution)),
            )
        });
        Self {
            found: found.collect(),
            problem,
        }
    }

    fn step(&self, of: Strategy) -> Option<Nanos> {
        self.of(of).map(|found| found.step)
    }

    fn of(&self, of: Strategy) -> Option<&Found> {
        let found = self.found.iter().find(|(strategy, _)| *strategy == of);
        found?.1.as_ref()
    }
}

/// Checks a plan.
fn judge(context: &Context<'_>, solution: Solution) -> Found {
    let budget = context.problem.budget.device;
    let step = solution.step();
    let plan = &solution.found.candidate.plan;
    let packs = plan.fates.values().any(|fate| fate.pack > 0);
    let verdict = (|| {
        let peak = solution.found.candidate.built.peak;
        if step < solution.bound {
            return Err(format!("{step} is less than the bound {}", solution.bound));
        }
        if peak > budget {
            return Err(format!("peak {peak} over {budget}"));
        }
        let candidate = solution.found.candidate;
        takes_its_least(context, &candidate.plan, &candidate.built)?;
        let mut schedule = with_addresses(candidate.built);
        if schedule.arena_bytes < peak {
            return Err(format!("arena {} below {peak}", schedule.arena_bytes));
        }
        let over = schedule.arena_bytes > budget;
        if over {
            schedule.budget.device = schedule.arena_bytes;
        }
        match check(&schedule).first() {
            Some(violation) => Err(format!("{violation:?}")),
            None => Ok(over),
        }
    })();
    Found {
        step,
        packs,
        verdict,
    }
}

/// The first problems, solved by whichever test asks first, on two threads.
fn solved() -> &'static [Solved] {
    static SOLVED: OnceLock<Vec<Solved>> = OnceLock::new();
    SOLVED.get_or_init(|| {
        // As many as any test looks at.
        let cases = cases(300).max(200);
        let every_second = |from: u64| (from..cases).step_by(2).map(Solved::new).collect();
        let [even, odd]: [Vec<Solved>; 2] = thread::scope(|scope| {
            let odd = scope.spawn(|| every_second(1));
            [every_second(0), odd.join().expect("no law panics")]
        });
        let mut odd = odd.into_iter();
        let pairs = even.into_iter().flat_map(|even| [Some(even), odd.next()]);
        pairs.flatten().collect()
    })
}

#[test]
fn every_strategys_plan_checks_fits_and_is_no_faster_than_the_bound() {
    let (placed, missed) = (Cell::new(0), Cell::new(0));
    for_seeds(300, |seed| {
        for (strategy, found) in &solved()[seed as usize].found {
            match found.as_ref().map(|found| &found.verdict) {
                None => {}
                Some(Ok(over)) => {
                    placed.set(placed.get() + 1);
                    missed.set(missed.get() + u64::from(*over));
                }
                Some(Err(what)) => return Err(format!("{}: {what}", strategy.name())),
            }
        }
        Ok(())
    });
    assert!(placed.get() > 0);
    println!(
        "{} of {} arenas are over the budget",
        missed.get(),
        placed.get()
    );
}

/// A plan takes no less than was told without building it.
fn takes_its_least(context: &Context<'_>, plan: &Plan, built: &Built) -> Result<(), String> {
    let least = context.least(plan);
    let takes = (built.timeline.step, built.peak, built.schedule.host_bytes);
    match least.0 <= takes.0 && least.1 <= takes.1 && least.2 <= takes.2 {
        true => Ok(()),
        false => Err(format!("takes {takes:?}, at least {least:?}: {plan:?}")),
    }
}

/// Whether no weight changes before all gradients have been counted, where they are.
fn updates_wait(schedule: &Schedule, timeline: &Timeline) -> bool {
    let compute = || {
        schedule
            .stream(Stream::Compute)
            .iter()
            .zip(&timeline.spans[0])
    };
    let named = |i: &Instruction, name: &str| match i.action {
        Action::Run(op) => schedule.ops[op].name == name,
        _ => false,
    };
    let norms = compute().filter(|(i, _)| named(i, GRADIENT_NORM));
    let Some(counted) = norms.map(|(_, span)| span.1).max() else {
        return true;
    };
    let updates = compute().filter(|(i, _)| named(i, "update"));
    let updates = updates.map(|(_, span)| span).chain(&timeline.spans[3]);
    updates.into_iter().all(|span| span.0 >= counted)
}

#[test]
fn every_plan_that_builds_checks_and_is_no_faster_than_the_bound() {
    for_seeds(300, |seed| {
        let problem = random_problem(seed, shape(seed, SMALL));
        let contexts = contexts(std::slice::from_ref(&problem), &Options::default());
        let bound = contexts[0].bound();
        let mut random = Random::new(seed);
        for _ in 0..30 {
            let plan = random_plan(&problem, &mut random);
            let Ok(built) = build(&problem, &plan) else {
                continue;
            };
            let timeline = simulate(&built.schedule);
            let step = timeline.step;
            if step < bound {
                return Err(format!("{step} is less than the bound {bound}: {plan:?}"));
            }
            if !updates_wait(&built.schedule, &timeline) {
                return Err(format!("an update does not wait for all norms: {plan:?}"));
            }
            takes_its_least(&contexts[0], &plan, &built)?;
            let mut schedule = with_addresses(built);
            // A quick placement may miss the budget; that is the search's affair, not the plan's.
            schedule.budget.device = schedule.budget.device.max(schedule.arena_bytes);
            if let Some(violation) = check(&schedule).first() {
                return Err(format!("{violation:?}: {plan:?}"));
            }
        }
        Ok(())
    });
}

#[test]
fn no_plan_of_a_tiny_problem_is_faster_than_the_bound_and_ilp_is_within_its_gap() {
    let (feasible, optimal) = (Cell::new(0), Cell::new(0));
    let worst = Cell::new(0.0f64);
    for_seeds(250, |seed| {
        let problem = random_problem(seed, shape(seed, TINY));
        let Some(best) = find(&problem, Strategy::Exhaustive) else {
            return match find(&problem, Strategy::Ilp) {
                // Segments of the plan space that `exhaustive` does not have.
                Some(_) => Err("ilp finds a plan where there is none".to_owned()),
                None => Ok(()),
            };
        };
        feasible.set(feasible.get() + 1);
        let best_step = best.step();
        if best_step < best.bound {
            return Err(format!(
                "{best_step} is less than the bound {}: {:?}",
                best.bound, best.found.candidate.plan
            ));
        }
        let Some(ilp) = find(&problem, Strategy::Ilp) else {
            return Err(format!("ilp finds nothing, exhaustive {best_step}"));
        };
        let step = ilp.step();
        if step == best_step {
            optimal.set(optimal.get() + 1);
        }
        let excess = step.get() as f64 / best_step.get() as f64 - 1.0;
        worst.set(worst.get().max(excess));
        if step < best_step {
            return Err(format!("ilp {step} beats exhaustive {best_step}"));
        }
        if ilp.status == Status::Optimal && step > best_step {
            return Err(format!(
                "ilp calls {step} optimal, exhaustive has {best_step}"
            ));
        }
        let stated = 1.0 - ilp.gap();
        if (step.get() as f64 * stated - 1.0) > best_step.get() as f64 {
            return Err(format!(
                "exhaustive {best_step} is outside ilp's gap of {step}"
            ));
        }
        Ok(())
    });
    println!(
        "{} feasible, ilp at the optimum in {}, at most {:.4} slower",
        feasible.get(),
        optimal.get(),
        worst.get()
    );
    assert!(feasible.get() > 0);
}

#[test]
fn ilp_is_never_slower_than_another_strategy() {
    for_seeds(300, |seed| {
        let solved = &solved()[seed as usize];
        let ilp = solved.step(Strategy::Ilp);
        for (strategy, found) in &solved.found {
            match (ilp, found.as_ref().map(|found| found.step)) {
                (Some(ilp), Some(other)) if other < ilp => {
                    return Err(format!("{} {other} beats ilp {ilp}", strategy.name()));
                }
                (None, Some(_)) => return Err(format!("only {} fits", strategy.name())),
                _ => {}
            }
        }
        Ok(())
    });
}

/// A proof ends within the solver's tolerance of the optimum: a part in 50,000, or a nanosecond.
fn tolerated(bound: Nanos) -> Nanos {
    Nanos::new(bound.get().saturating_add(bound.get() / 50_000 + 1))
}

#[test]
fn with_more_memory_the_bound_never_rises() {
    for_seeds(300, |seed| {
        let mut problem = random_problem(seed, shape(seed, SMALL));
        let budget = problem.budget;
        let mut device = bound(&problem);
        let mut host = device;
        for more in 1..6 {
            problem.budget.device = Bytes::new(budget.device.get() * (8 + more) / 8);
            let with_more = bound(&problem);
            if with_more > tolerated(device) {
                return Err(format!("device: {device} rises to {with_more}"));
            }
            device = with_more;
            problem.budget = budget;
            problem.budget.host = Bytes::new(budget.host.get() * (8 + more) / 8);
            let with_more = bound(&problem);
            if with_more > tolerated(host) {
                return Err(format!("host: {host} rises to {with_more}"));
            }
            host = with_more;
            problem.budget = budget;
        }
        Ok(())
    });
}

#[test]
fn building_and_simulating_are_functions() {
    for_seeds(200, |seed| {
        let problem = random_problem(seed, shape(seed, SMALL));
        let plan = random_plan(&problem, &mut Random::new(seed));
        let (Ok(a), Ok(b)) = (build(&problem, &plan), build(&problem, &plan)) else {
            return Ok(());
        };
        if a.schedule != b.schedule || simulate(&a.schedule) != simulate(&a.schedule) {
            return Err("the same plan gives something else".to_owned());
        }
        if with_addresses(a) != with_addresses(b) {
            return Err("the same plan gets other addresses".to_owned());
        }
        Ok(())
    });
}

/// The generator draws what it is there for.
#[test]
fn random_problems_are_varied() {
    let (mut groups, mut batches, mut ragged, mut host, mut fits) = (0, 0, 0, 0, 0);
    let (mut passes, mut packs, mut packed) = (0, 0, 0);
    let mut lengths = BTreeSet::new();
    for solved in &solved()[..200] {
        let problem = &solved.problem;
        groups += u32::from(problem.groups > 1);
        batches += u32::from(problem.micro_batches > 1);
        passes += u32::from(problem.passes > 1);
        ragged += u32::from(problem.tokens.get() % problem.granule.get() > 0);
        host += u32::from(problem.states[0].host.is_some());
        packs += u32::from(problem.values.values().any(Value::packs));
        let found = solved.of(Strategy::Ilp);
        fits += u32::from(found.is_some());
        packed += u32::from(found.is_some_and(|found| found.packs));
        lengths.insert(problem.ops.len());
    }
    println!("groups {groups}, micro-batches {batches}, ragged {ragged}, host {host}, fits {fits}");
    println!("passes {passes}, packs {packs}, a plan that packs {packed}");
    assert!(packed > 0);
    for (what, count) in [
        ("groups", groups),
        ("micro-batches", batches),
        ("passes", passes),
        ("ragged tiles", ragged),
        ("updates on the host", host),
        ("plans that fit", fits),
        ("values that pack", packs),
    ] {
        assert!(count > 20, "{what}: {count} of 200");
    }
    assert!(fits < 200, "everything fits");
    assert!(lengths.len() > 10, "as many operators: {lengths:?}");
}
