//! Placement as a mixed-integer program, for a few dozen requests at most.
//!
//! MEMO's formulation (arXiv 2407.12117, section 4.2): an address `A` for each request, and for
//! each pair that is ever alive at once a binary `z` that says which lies below; minimise `M`,
//!
//! ```text
//! A_i + S_i <= M
//! A_i + S_i <= A_j + z M_cap            z = 0: i below j
//! A_j + S_j <= A_i + (1 - z) M_cap      z = 1: j below i
//! ```
//!
//! with the height of a greedy placement as `M_cap` and as the start. The numbers of the MIP are
//! floating point; only the order of its addresses is taken, and the items are dropped in it.

use super::instance::{Instance, Known};
use super::skyline::drop_in_order;
use super::{finish, heuristics, Options, Placement, Request, Status};
use good_lp::solvers::{SolutionStatus, WithInitialSolution, WithTimeLimit};
use good_lp::{microlp, variable, variables, Expression, Solution, SolverModel, Variable};
use std::time::Instant as Clock;

/// Most pairs of requests alive at once for which the MIP is worth its time.
pub(crate) const MOST_PAIRS: usize = 150;
/// Seconds it gets without a deadline.
const SECONDS: f64 = 60.0;

/// The best placement that greedy and then the MIP find.
///
/// The solver's own proof makes it [`Status::Optimal`] even where live bytes alone do not.
///
/// # Panics
/// When the sizes sum to 2⁶³ bytes or more.
pub fn place_by_mip(requests: &[Request], options: &Options) -> Placement {
    let instance = Instance::new(requests, options.alignment);
    let mut known = heuristics::quick(&instance, 0);
    if known.height > known.lower_bound {
        solve(&instance, &mut known, options);
    }
    let status = if known.height == known.lower_bound {
        Status::Optimal
    } else {
        Status::Gap
    };
    finish(requests, &instance, known, status)
}

/// The pairs of items that are ever alive at once.
pub(crate) fn pairs(instance: &Instance) -> Vec<(usize, usize)> {
    let items = &instance.items;
    let others = |i: usize| (i + 1..items.len()).filter(move |&j| items[i].meets(&items[j]));
    (0..items.len())
        .flat_map(|i| others(i).map(move |j| (i, j)))
        .collect()
}

fn solve(instance: &Instance, known: &mut Known, options: &Options) {
    let items = &instance.items;
    // Sizes relative to the height keep the matrix near one.
    let scale = known.height as f64;
    let size = |i: usize| items[i].size as f64 / scale;
    let pairs = pairs(instance);
    let mut vars = variables!();
    let bound = instance.lower_bound as f64 / scale;
    let height_variable = vars.add(variable().min(bound).max(1.0));
    let address: Vec<Variable> = (0..items.len())
        .map(|i| vars.add(variable().min(0.0).max(1.0 - size(i))))
        .collect();
    let above: Vec<Variable> = pairs
        .iter()
        .map(|_| vars.add(variable().binary()))
        .collect();
    let mut start = vec![(height_variable, 1.0)];
    start.extend(
        address
            .iter()
            .zip(&known.offsets)
            .map(|(&a, &offset)| (a, offset as f64 / scale)),
    );
    start.extend(
        above
            .iter()
            .zip(&pairs)
            .map(|(&z, &(i, j))| (z, f64::from(u8::from(known.offsets[j] < known.offsets[i])))),
    );
    let seconds = options.deadline.map_or(SECONDS, |deadline| {
        deadline
            .saturating_duration_since(Clock::now())
            .as_secs_f64()
    });
    let mut model = vars
        .minimise(height_variable)
        .using(microlp)
        .with_initial_solution(start)
        .with_time_limit(seconds);
    for (i, &a) in address.iter().enumerate() {
        model.add_constraint((Expression::from(a) + size(i)).leq(height_variable));
    }
    for (&(i, j), &z) in pairs.iter().zip(&above) {
        model.add_constraint((Expression::from(address[i]) + size(i)).leq(address[j] + z));
        model.add_constraint((Expression::from(address[j]) + size(j)).leq(address[i] + 1.0 - z));
    }
    // A solver that fails leaves greedy's answer.
    let Ok(solution) = model.solve() else { return };
    let mut order: Vec<u32> = (0..items.len() as u32).collect();
    let value = |i: u32| solution.value(address[i as usize]);
    order.sort_by(|&i, &j| value(i).total_cmp(&value(j)));
    let offsets = drop_in_order(instance, &order);
    let height = instance.height(&offsets);
    if height < known.height {
        (known.offsets, known.height) = (offsets, height);
    }
    let optimum = (solution.value(height_variable) * scale).round() as u64;
    if matches!(solution.status(), SolutionStatus::Optimal) && optimum == known.height {
        known.lower_bound = known.height;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arena::bilevel::tests::figure_3b;
    use crate::arena::generate::Random;
    use crate::arena::{place, validate};
    use crate::units::Bytes;

    /// What the MIP makes of everything piled up, which leaves all to it.
    fn from_a_pile(requests: &[Request], options: &Options) -> Placement {
        let instance = Instance::new(requests, options.alignment);
        let mut pile = Known::nothing(&instance);
        pile.height = 0;
        for item in &instance.items {
            pile.offsets.push(pile.height);
            pile.height += item.size;
        }
        solve(&instance, &mut pile, options);
        let status = if pile.height == pile.lower_bound {
            Status::Optimal
        } else {
            Status::Gap
        };
        finish(requests, &instance, pile, status)
    }

    #[test]
    fn the_mip_and_the_exact_search_agree() {
        let options = Options {
            alignment: Bytes::new(1),
            ..Options::default()
        };
        for seed in 0..30 {
            let mut random = Random::new(seed);
            let requests: Vec<_> = (0..9)
                .map(|_| {
                    let start = random.below(8);
                    let end = start + 1 + random.below(5);
                    Request::new(start, end, Bytes::new(1 + random.below(6)))
                })
                .collect();
            let by_mip = from_a_pile(&requests, &options);
            let exact = place(&requests, &options);
            assert_eq!(
                validate(&requests, options.alignment, &by_mip),
                [],
                "seed {seed}"
            );
            assert_eq!(by_mip.height, exact.height, "seed {seed}");
            assert_eq!(by_mip.status, Status::Optimal, "seed {seed}");
        }
    }

    #[test]
    fn the_mip_alone_finds_the_peaks_of_figure_3b() {
        let (forward, backward) = figure_3b();
        for (requests, peak) in [(forward, 512), (backward, 1920)] {
            let placement = from_a_pile(&requests, &Options::default());
            assert_eq!(placement.height, Bytes::mib(peak));
            assert_eq!(placement.status, Status::Optimal);
        }
    }
}
