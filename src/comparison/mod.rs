//! Strategies side by side: plans of one model on one machine, over lengths, methods and device
//! memories. In: a [`Request`]. Out: the plain values of [`crate::format::comparison`], which know
//! nothing of plans. Pure but for the clock of the search's time limit.
//!
//! Every strategy may take any of the same ways to cut operators into tiles and head groups. The
//! two that people run today are planned once more without, as their trainers do.

mod timeline;

pub use timeline::timeline;

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use ebbtide_solver::build::Infeasible;
use ebbtide_solver::plan::Placement;
use ebbtide_solver::problem::{Budget, Category};
use ebbtide_solver::search::{contexts, find, Context, Options, Status, Strategy};
use ebbtide_solver::units::{Bytes, Nanos};

use crate::error::Result;
use crate::format::comparison::{BudgetPoint, Cell, Fit, Group, Share, TensorCost};
use crate::format::schedule::Status as FileStatus;
use crate::lower::Lowered;
use crate::memory;
use crate::planning::{self, Planned, Request};
use crate::report;

/// What people run today: speedups are told against these.
pub const BASELINES: [Strategy; 2] = [Strategy::Checkpoint, Strategy::CheckpointOffload];

/// How the search is limited.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// How long one plan may be searched for.
    pub time: Duration,
    /// A plan this close to the bound, as a fraction, is good enough.
    pub gap: f64,
}

impl Limits {
    /// For one plan, of which the search begins now.
    pub fn options(&self) -> Options {
        Options {
            deadline: Instant::now().checked_add(self.time),
            gap: self.gap,
            // The other cores have other lengths.
            abreast: 1,
        }
    }
    /// Why a strategy found nothing: it may be that its time was up.
    fn late(&self, options: &Options, why: String) -> String {
        match options.expired() {
            true => format!(
                "search time: nothing found in {}, the nearest miss is one of {why}",
                Nanos::new(u64::try_from(self.time.as_nanos()).unwrap_or(u64::MAX))
            ),
            false => why,
        }
    }
    /// The same, told to what has been prepared.
    fn begin(&self, prepared: &mut [Context<'_>]) -> Options {
        let options = self.options();
        prepared.iter_mut().for_each(|c| c.limit(&options));
        options
    }
}

/// All strategies for one method and length.
///
/// # Errors
/// As [`planning::variants`] and [`planning::check_countable`].
pub fn group(request: &Request<'_>, strategies: &[Strategy], limits: &Limits) -> Result<Group> {
    let variants = planning::variants(request)?;
    for &strategy in strategies {
        planning::check_countable(&variants, strategy)?;
    }
    let problems = planning::problems(&variants, request.budget);
    let mut prepared = contexts(&problems, &limits.options());
    let mut extrapolated = None;
    let mut cells = Vec::new();
    for &strategy in strategies {
        let options = limits.begin(&mut prepared);
        let found = planning::plan_prepared(request, &variants, &prepared, strategy, &options);
        if let Ok(planned) = &found {
            let guessed = || Vec::from_iter(planned.lowered.extrapolated.iter().cloned());
            extrapolated.get_or_insert_with(guessed);
        }
        let mut found = cell(strategy, true, found);
        let why = |why: String| limits.late(&options, why);
        found.misses = found.misses.map(why);
        cells.push(found);
    }
    tell_search(&mut cells);
    let whole = planning::untiled(request)?;
    let problems_whole = planning::problems(&whole, request.budget);
    let mut prepared_whole = contexts(&problems_whole, &limits.options());
    for strategy in BASELINES {
        let options = limits.begin(&mut prepared_whole);
        let found = planning::plan_unproved(request, &whole, &prepared_whole, strategy, &options);
        cells.push(cell(strategy, false, found));
    }
    let floor = prepared.iter().map(Context::floor).min();
    Ok(Group {
        method: request.method.name().into(),
        seq: request.workload.seq,
        floor_ns: floor.map_or(0, |floor| floor.get()),
        cells,
        tensors: prepared.first().map(tensor_costs).unwrap_or_default(),
        extrapolated: extrapolated.unwrap_or_default(),
    })
}

/// The search begins with what the others find. Where its time was up before it had heard of the
/// best of that, it is told.
fn tell_search(cells: &mut [Cell]) {
    let best = cells.iter().filter_map(|cell| cell.fits.as_ref());
    let Some(best) = best.min_by_key(|fit| fit.step_ns).cloned() else {
        return;
    };
    let searched = cells
        .iter_mut()
        .find(|c| c.strategy == Strategy::Ilp.name());
    let slower = |cell: &&mut Cell| {
        let step = cell.fits.as_ref().map(|fit| fit.step_ns);
        step.is_none_or(|step| step > best.step_ns)
    };
    if let Some(cell) = searched.filter(slower) {
        cell.misses = None;
        cell.fits = Some(Fit {
            status: Status::TimeLimit.name().into(),
            ..best
        });
    }
}

fn cell(strategy: Strategy, tiled: bool, found: std::result::Result<Planned, Infeasible>) -> Cell {
    let misses = found.as_ref().err().map(report::infeasible::what_binds);
    Cell {
        strategy: strategy.name().into(),
        tiled,
        fits: found.ok().map(|planned| fit(&planned)),
        misses,
    }
}

fn fit(planned: &Planned) -> Fit {
    let Planned {
        file,
        lowered,
        found_by,
        timeline,
    } = planned;
    let predicted = &file.predicted;
    let by_name = |parts: [(Category, Bytes); 6]| {
        let parts = parts.into_iter().filter(|(_, bytes)| !bytes.is_zero());
        parts
            .map(|(c, bytes)| (c.name().to_owned(), bytes.get()))
            .collect()
    };
    let mut states: BTreeMap<String, u64> = BTreeMap::new();
    for state in &file.states {
        let place = match state.placement {
            Placement::Resident => "resident",
            Placement::HostOptimizer => "host_optimizer",
            Placement::Streamed => "streamed",
        };
        *states.entry(place.into()).or_default() += state.parameters;
    }
    Fit {
        step_ns: predicted.step.get(),
        recompute_ns: predicted.recompute.get(),
        slowed_ns: timeline.slowed.get(),
        stall_ns: predicted.stall.get(),
        tail_ns: predicted.optimizer_tail.get(),
        tokens_per_s: predicted.tokens_per_s,
        mfu: predicted.mfu,
        hfu: predicted.hfu,
        arena_bytes: predicted.arena.get(),
        device_bytes: by_name(memory::peak(&file.schedule).by_category),
        host_bytes: by_name(memory::host(&file.schedule)),
        d2h_bytes: predicted.d2h.get(),
        h2d_bytes: predicted.h2d.get(),
        bound_ns: file.solver.bound.map_or(0, |bound| bound.get()),
        status: match file.solver.status {
            FileStatus::Optimal => Status::Optimal.name(),
            FileStatus::TimeLimit => Status::TimeLimit.name(),
            FileStatus::Gap => Status::Gap.name(),
            FileStatus::Unproved => "unproved",
        }
        .into(),
        found_by: found_by.name().into(),
        tile: lowered.tiling.tile,
        head_tile: lowered.tiling.head_tile,
        head_groups: lowered.tiling.groups,
        shares: shares(planned),
        states,
    }
}

/// What becomes of every kind of tensor that blocks have, all blocks together.
fn shares(planned: &Planned) -> Vec<Share> {
    let mut kinds: Vec<(&str, [u64; 3])> = Vec::new();
    for decision in planned.file.decisions.iter().filter(|d| d.block.is_some()) {
        let tokens = [
            decision.keep_tokens,
            decision.swap_tokens,
            decision.recompute_tokens,
        ];
        let known = kinds.iter_mut().find(|(name, _)| *name == decision.tensor);
        match known {
            Some((_, sums)) => sums.iter_mut().zip(tokens).for_each(|(sum, n)| *sum += n),
            None => kinds.push((&decision.tensor, tokens)),
        }
    }
    let share = |(name, sums): (&str, [u64; 3])| {
        let all = sums.iter().sum::<u64>().max(1) as f64;
        let [keep, swap, recompute] = sums.map(|sum| sum as f64 / all);
        Share {
            tensor: name.into(),
            keep,
            swap,
            recompute,
        }
    };
    kinds.into_iter().map(share).collect()
}

/// What recomputing each tensor of the middle block takes, and what copying it takes.
fn tensor_costs(context: &Context<'_>) -> Vec<TensorCost> {
    let problem = context.problem;
    let middle = Some(problem.blocks() / 2);
    let links = problem.machine.links;
    let costs = problem.tensors.iter().filter_map(|(id, tensor)| {
        let value = &problem.values[tensor.value];
        let outline = &context.outline.tensors[id];
        let size = Bytes::new(outline.bytes);
        let copy = links.d2h.time(size).max(links.h2d.time(size));
        (value.block == middle).then(|| TensorCost {
            tensor: value.name.clone(),
            bytes: outline.bytes,
            recompute_ns: outline.recompute_ns,
            copy_ns: copy.get(),
        })
    });
    costs.collect()
}

/// The step of every strategy under another budget.
pub fn under_budget(
    variants: &[Lowered],
    strategies: &[Strategy],
    budget: Budget,
    limits: &Limits,
) -> Vec<BudgetPoint> {
    let problems = planning::problems(variants, budget);
    let mut prepared = contexts(&problems, &limits.options());
    let point = |&strategy: &Strategy| {
        let options = limits.begin(&mut prepared);
        let found = find(&prepared, strategy, &options);
        BudgetPoint {
            strategy: strategy.name().into(),
            device_bytes: budget.device.get(),
            misses: found.as_ref().err().map(|miss| {
                let why = report::infeasible::what_binds(miss);
                limits.late(&options, why)
            }),
            step_ns: found.ok().map(|found| found.candidate.step().get()),
        }
    };
    let mut points: Vec<BudgetPoint> = strategies.iter().map(point).collect();
    // As with whole plans: the search is told what the others have found.
    let best = points.iter().filter_map(|point| point.step_ns).min();
    let searched = |point: &&mut BudgetPoint| point.strategy == Strategy::Ilp.name();
    if let Some((point, best)) = points.iter_mut().find(searched).zip(best) {
        point.step_ns = Some(best);
        point.misses = None;
    }
    points
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_search_is_never_slower_than_what_it_is_compared_with() {
        let fit = |step_ns| Fit {
            step_ns,
            recompute_ns: 0,
            slowed_ns: 0,
            stall_ns: 0,
            tail_ns: 0,
            tokens_per_s: 1.0,
            mfu: 0.5,
            hfu: 0.5,
            arena_bytes: 1,
            device_bytes: BTreeMap::new(),
            host_bytes: BTreeMap::new(),
            d2h_bytes: 0,
            h2d_bytes: 0,
            bound_ns: 1,
            status: Status::Gap.name().into(),
            found_by: "checkpoint".into(),
            tile: 1,
            head_tile: 1,
            head_groups: 1,
            shares: Vec::new(),
            states: BTreeMap::new(),
        };
        let cell = |strategy: &str, fits: Option<Fit>| Cell {
            strategy: strategy.into(),
            tiled: true,
            misses: fits.is_none().then(|| "device memory".into()),
            fits,
        };
        for (found, told) in [(None, true), (Some(fit(9)), true), (Some(fit(4)), false)] {
            let mut cells = [
                cell("keep", None),
                cell("checkpoint", Some(fit(5))),
                cell("ilp", found.clone()),
            ];
            tell_search(&mut cells);
            let searched = cells[2].fits.clone().unwrap();
            assert_eq!(searched.step_ns, if told { 5 } else { 4 });
            assert_eq!(searched.status == Status::TimeLimit.name(), told);
            assert_eq!(cells[2].misses, None);
        }
    }
}
