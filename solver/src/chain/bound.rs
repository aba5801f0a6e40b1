//! What no schedule can beat.
//!
//! **One moment.** Look at any schedule at the loss. A layer is *held* if its internals and output
//! are live and it is not computed again; every other layer costs its forward once more. During the
//! backward of `k` everything held below `k` is still there. So the extra time is at least that of
//! a knapsack over the chain: layer `i` either holds `internals_i + x_{i+1}` or pays `forward_i`,
//! and for every `k` what is held below `k` fits beside the operands of the backward of `k`.
//!
//! **Two moments.** Layers not held fall into runs between values live at the loss. All of a run
//! `c..d` is computed after the loss and before the backward of `d - 1` (of `d`, when `x_d` is not
//! live at the loss and `d` is held). At that second moment the same knapsack holds for the layers
//! of the run: what is held below `c` is still there, and a layer that is not held then is computed
//! a third time. A start that no held layer pays for takes its own bytes at the loss.
//!
//! Both drop constraints (transients, starts kept between the moments, third moments) and never add
//! one, so they bound every sequence that [`replay()`](super::replay()) accepts.

use super::costs::Costs;
use super::front::{Front, Join, Point};

/// More states than this at one place, and the bound of one moment is all that is said.
const MOST_STATES: usize = 4096;
/// Bytes of starts are rounded down to this fraction of the budget.
const START_GRAIN: u64 = 1024;

/// Knapsack fronts: `at(c, t, paid)` is the extra time of layers `c..t` over the memory available
/// to them at the backward of `t` (the loss, for t = L); `paid` says whether `x_c` is accounted
/// for outside.
pub(super) struct Knapsacks {
    side: usize,
    fronts: Vec<Front>,
}

impl Knapsacks {
    /// The fronts for the loss and every backward.
    pub fn at_all_moments(costs: &Costs) -> Self {
        let limit = Point {
            memory: costs.budget,
            extra: u64::MAX,
        };
        Self::fill(costs, 0..=costs.layers, limit)
    }

    /// The fronts for all moments in `moments`, up to the given extra time.
    fn fill(costs: &Costs, moments: std::ops::RangeInclusive<usize>, limit: Point) -> Self {
        let side = costs.layers + 1;
        let mut table = Self {
            side,
            fronts: vec![Front::default(); side * side * 2],
        };
        let mut pool = Vec::new();
        for t in moments {
            for c in (0..=t).rev() {
                for paid in [false, true] {
                    table.fill_one(costs, (c, t, paid), limit, &mut pool);
                }
            }
        }
        table
    }

    fn fill_one(
        &mut self,
        costs: &Costs,
        (c, t, paid): (usize, usize, bool),
        limit: Point,
        pool: &mut Vec<Point>,
    ) {
        let floor = if paid { 0 } else { costs.x[c] } + moment(costs, c);
        let slot = self.slot(c, t, paid);
        if c == t {
            self.fronts[slot] = Front::single(floor);
            return;
        }
        let held = Join {
            held: costs.saved(c),
            floor,
            extra: 0,
            limit,
        };
        held.shift(self.at(c + 1, t, true), pool);
        let again = Join {
            held: 0,
            floor,
            extra: costs.forward[c],
            limit,
        };
        again.shift(self.at(c + 1, t, false), pool);
        self.fronts[slot] = Front::below(pool, MOST_STATES);
    }

    fn slot(&self, c: usize, t: usize, paid: bool) -> usize {
        (c * self.side + t) * 2 + usize::from(paid)
    }
    /// The front of layers `c..t`.
    pub fn at(&self, c: usize, t: usize, paid: bool) -> &Front {
        &self.fronts[self.slot(c, t, paid)]
    }
}

/// What is live at the backward of `k` (or at the loss), `x_k` and the layers below aside.
fn moment(costs: &Costs, k: usize) -> u64 {
    match k == costs.layers {
        true => costs.x[k],
        false => costs.backward_needs(k),
    }
}

/// Memory for all but `x_0`.
fn available(costs: &Costs) -> Option<u64> {
    costs.budget.checked_sub(costs.x[0])
}

/// The bound of one moment: extra time that every schedule spends; nothing when none fits.
pub(super) fn one_moment(costs: &Costs) -> Option<u64> {
    let memory = available(costs)?;
    let limit = Point {
        memory,
        extra: u64::MAX,
    };
    let table = Knapsacks::fill(costs, costs.layers..=costs.layers, limit);
    table.at(0, costs.layers, true).extra_within(memory)
}

/// Layers `0..place` decided: what they hold, the starts among them, and their extra time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct State {
    extra: u64,
    held: u64,
    starts: u64,
}

/// The bound of two moments: the least extra time if it is below `limit`, else `limit`.
///
/// `first` is the bound of one moment. Nothing when there are too many states.
pub(super) fn two_moments(costs: &Costs, first: u64, limit: u64) -> Option<u64> {
    let memory = available(costs)?;
    let layers = costs.layers;
    let whole = Point {
        memory,
        extra: limit,
    };
    let suffixes = Knapsacks::fill(costs, layers..=layers, whole);
    let runs = Knapsacks::fill(
        costs,
        0..=layers - 1,
        Point {
            memory,
            extra: limit - first,
        },
    );
    // Per place: what comes after a held layer, after a run that ends in a start, and after a run
    // whose end is to be rebuilt.
    let mut after_held = vec![Vec::new(); layers + 1];
    let mut after_start = vec![Vec::new(); layers + 1];
    let mut rebuilt = vec![Vec::new(); layers + 1];
    after_held[0].push(State {
        extra: 0,
        held: 0,
        starts: 0,
    });
    let useful = |place: usize, paid: bool, state: State| {
        let rest = suffixes
            .at(place, layers, paid)
            .extra_within(memory.checked_sub(state.held)?);
        (state.extra + rest? < limit).then_some(state)
    };
    let grain = (costs.budget / START_GRAIN).max(1);
    for c in 0..layers {
        let again = |d: usize, t: usize, paid: bool, state: State| {
            let run = runs
                .at(c, t, paid)
                .extra_within(memory.checked_sub(state.held)?)?;
            Some(State {
                extra: state.extra + run + costs.forwards(c, d),
                ..state
            })
        };
        let paid = keep_best(&mut after_held[c])?;
        let unpaid = keep_best(&mut after_start[c])?;
        let rebuild = keep_best(&mut rebuilt[c])?;
        let hold = |state: &State| State {
            held: state.held + costs.saved(c),
            ..*state
        };
        let holding = paid.iter().chain(&unpaid).chain(&rebuild).map(hold);
        after_held[c + 1].extend(holding.filter_map(|state| useful(c + 1, true, state)));
        for (states, paid) in [(&paid, true), (&unpaid, false)] {
            for d in c + 1..=layers {
                let start = if d == layers {
                    costs.x[d]
                } else {
                    costs.x[d] / grain * grain
                };
                let ends = states.iter().filter_map(|&state| {
                    let state = again(d, d - 1, paid, state)?;
                    useful(
                        d,
                        false,
                        State {
                            starts: state.starts + start,
                            ..state
                        },
                    )
                });
                after_start[d].extend(ends.filter(|s| s.held + s.starts <= memory));
                if d < layers {
                    let open = states.iter().filter_map(|&state| again(d, d, paid, state));
                    rebuilt[d].extend(open.filter_map(|state| useful(d, false, state)));
                }
            }
        }
    }
    let at_loss = after_held[layers].iter().chain(&after_start[layers]);
    let fits = |s: &&State| s.held + s.starts + costs.x[layers] <= memory;
    Some(
        at_loss
            .filter(fits)
            .map(|state| state.extra)
            .min()
            .unwrap_or(limit)
            .min(limit),
    )
}

/// The states that no other beats in all three respects; nothing when too many remain.
fn keep_best(states: &mut Vec<State>) -> Option<Vec<State>> {
    states.sort();
    let mut best: Vec<State> = Vec::new();
    for &state in states.iter() {
        let beaten = |b: &State| b.held <= state.held && b.starts <= state.starts;
        if !best.iter().any(beaten) {
            best.push(state);
        }
        if best.len() > MOST_STATES {
            return None;
        }
    }
    states.clear();
    Some(best)
}
