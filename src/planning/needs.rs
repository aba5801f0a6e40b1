//! Whether something fits, by whichever plan, and what would make it fit.
//!
//! Nobody reads these plans: they are built only until one fits, and get no addresses.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use ebbtide_solver::build::Infeasible;
use ebbtide_solver::problem::Budget;
use ebbtide_solver::search::{self, contexts, Options, Strategy};
use ebbtide_solver::units::{Bytes, Nanos};

use super::{check_countable, problems, variants, Request};
use crate::error::Result;
use crate::format::number::LARGEST;
use crate::lower::{Lowered, Workload};
use crate::methods::Method;

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

fn any_fits(request: &Request<'_>, lean: &[Strategy]) -> bool {
    let found = probe(request, lean, Duration::ZERO);
    found.is_ok_and(|found| found.iter().any(std::result::Result::is_ok))
}

/// The first other method that fits.
fn leaner(request: &Request<'_>, lean: &[Strategy]) -> Option<Method> {
    let others = [Method::Sgd, Method::Lomo].into_iter();
    let fits = |&method: &Method| {
        let request = Request { method, ..*request };
        any_fits(&request, lean)
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
        any_fits(&request, lean)
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
    let mut prepared = contexts(&problems, &options);
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
                ..Options::default()
            };
            prepared.iter_mut().for_each(|c| c.limit(&options));
            search::find(&prepared, Strategy::Ilp, &options).map(drop)
        };
        found.insert(Strategy::Ilp, ilp);
    }
    Ok(strategies.iter().map(|s| found[s].clone()).collect())
}
