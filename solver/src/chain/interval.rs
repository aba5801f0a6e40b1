//! The recursion over intervals of layers that [`rotor`](super::rotor) and [`ilp`](super::ilp)
//! share.
//!
//! `C(s, t, m)` is the least recomputation to bring the gradient from `x_t` to `x_s` when `x_s` is
//! live and `m` further bytes may be used (Beaumont et al. 2019, "Optimal checkpointing for
//! heterogeneous chains", theorem 1). Either layer `s` is saved, or the layers `s..d` run without
//! saving, `x_d` is the next start, and `s..d` run again later:
//! ```text
//! save   C(s,t,m) = C(s+1, t, m - internals_s - x_{s+1})
//! split  C(s,t,m) = forwards(s..d) + C(d, t, m - x_d) + C(s, d, m)
//! ```
//! Two freedoms that rotor lacks are flags of an interval here:
//! * its **start may be freed**: `x_s` goes once layer `s` is saved, and whoever owns the layers
//!   before `s` computes it again for the backward of `s`;
//! * its **end may be open**: it first rebuilds `x_t` for the backward of `t`, whose internals,
//!   output and gradient are live meanwhile. The loss is such an end, with nothing live.
//!
//! A split is then either of the two above (`x_d` kept) or joins an interval that frees `x_d` with
//! one that rebuilds it. Memory is exact: instead of a table over slots of memory every interval
//! has a Pareto front (memory, extra time).

use super::costs::Costs;
use super::front::{Front, Join, Point};
use super::{bound, Failure, Op};
use crate::units::Bytes;
use std::time::Instant;

/// How an interval starts and ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Shape {
    /// `x_s` may be freed, and the backward of `s` is not part of the interval.
    frees_start: bool,
    /// `x_t` is to be rebuilt for the backward of `t`, which is part of the interval.
    open_end: bool,
}

/// Which schedules are considered, and how finely.
#[derive(Clone, Copy, Debug)]
pub(super) struct Scope {
    /// The memory there is.
    pub budget: u64,
    /// With the two freedoms, or rotor's persistent schedules alone.
    pub rebuilds: bool,
    /// Schedules with more recomputation than this are of no interest.
    pub extra_limit: u64,
    /// As `extra_limit`, for what is computed a third time or more often.
    pub inner_limit: u64,
    /// The most points of a front; more are thinned out.
    pub most_points: usize,
    /// When to give up.
    pub deadline: Option<Instant>,
}

/// The fronts of all intervals of one chain.
pub(super) struct Intervals<'a> {
    costs: &'a Costs,
    scope: Scope,
    fronts: Vec<Front>,
    /// `run_peak[s][d]`: memory of running `s..d` without saving, `x_s` aside.
    run_peak: Vec<u64>,
}

/// How the best schedule of an interval begins.
enum Choice {
    Save,
    Split { at: usize, keeps: bool },
}

impl Shape {
    const PLAIN: Self = Self {
        frees_start: false,
        open_end: false,
    };
    const ROOT: Self = Self {
        frees_start: false,
        open_end: true,
    };
    const ALL: [Self; 4] = [
        Self::PLAIN,
        Self::ROOT,
        Self {
            frees_start: true,
            open_end: false,
        },
        Self {
            frees_start: true,
            open_end: true,
        },
    ];
    fn index(self) -> usize {
        usize::from(self.frees_start) * 2 + usize::from(self.open_end)
    }
}

impl<'a> Intervals<'a> {
    /// Fills all fronts; nothing when the deadline passes first.
    pub fn solve(costs: &'a Costs, scope: Scope) -> Option<Self> {
        let side = costs.layers + 1;
        let mut table = Self {
            costs,
            scope,
            fronts: vec![Front::default(); side * side * 4],
            run_peak: run_peaks(costs),
        };
        let mut pool = Vec::new();
        for length in 0..side {
            if scope
                .deadline
                .is_some_and(|deadline| Instant::now() >= deadline)
            {
                return None;
            }
            for s in 0..side - length {
                for shape in Shape::ALL {
                    let front = table.front_of(shape, s, s + length, &mut pool);
                    let slot = table.slot(shape, s, s + length);
                    table.fronts[slot] = front;
                }
            }
        }
        Some(table)
    }

    /// The least recomputation within the budget.
    pub fn extra(&self) -> Option<u64> {
        let root = self.front(Shape::ROOT, 0, self.costs.layers);
        root.extra_within(self.scope.budget.checked_sub(self.costs.x[0])?)
    }

    /// The smallest budget for which there is a schedule of interest.
    pub fn smallest_budget(&self) -> Option<u64> {
        let root = self.front(Shape::ROOT, 0, self.costs.layers);
        root.least_memory().map(|memory| memory + self.costs.x[0])
    }

    /// The best schedule within the budget.
    pub fn sequence(&self) -> Option<Vec<Op>> {
        self.extra()?;
        let mut ops = Vec::new();
        let memory = self.scope.budget - self.costs.x[0];
        self.emit(Shape::ROOT, 0, self.costs.layers, memory, &mut ops);
        Some(ops)
    }

    fn slot(&self, shape: Shape, s: usize, t: usize) -> usize {
        ((s * (self.costs.layers + 1)) + t) * 4 + shape.index()
    }

    fn front(&self, shape: Shape, s: usize, t: usize) -> &Front {
        &self.fronts[self.slot(shape, s, t)]
    }

    /// Live beside the interval's own values until the backward of its last layer (or of `t`).
    fn beside(&self, shape: Shape, t: usize) -> u64 {
        match (shape.open_end, t == self.costs.layers) {
            (false, _) => self.costs.x[t],
            (true, true) => 0,
            (true, false) => self.costs.saved(t) + self.costs.x[t + 1],
        }
    }

    fn front_of(&self, shape: Shape, s: usize, t: usize, pool: &mut Vec<Point>) -> Front {
        let costs = self.costs;
        let useful =
            self.scope.rebuilds || (!shape.frees_start && shape.open_end == (t == costs.layers));
        if s == t {
            return match (shape.frees_start, shape.open_end) {
                (true, _) => Front::default(),
                (false, false) => Front::single(costs.x[t]),
                (false, true) => Front::single(self.beside(shape, t) + costs.x[t]),
            };
        }
        if !useful {
            return Front::default();
        }
        self.save(shape, s, t).shift(
            self.front(
                Shape {
                    frees_start: false,
                    ..shape
                },
                s + 1,
                t,
            ),
            pool,
        );
        for d in s + 1..=t {
            for keeps in [true, false] {
                let (join, first, second) = self.split(shape, s, d, t, keeps);
                join.both(first, second, pool);
            }
        }
        Front::of(pool, self.scope.most_points)
    }

    /// Points above this can be part of no schedule of interest.
    fn limit(&self, shape: Shape, s: usize, t: usize) -> Point {
        let input = if s == 0 { 0 } else { self.costs.x[0] };
        let pinned = if shape.frees_start {
            0
        } else {
            self.costs.x[s]
        };
        let to_loss = shape.open_end && t == self.costs.layers;
        Point {
            memory: self.scope.budget.saturating_sub(input + pinned),
            extra: if to_loss {
                self.scope.extra_limit
            } else {
                self.scope.inner_limit
            },
        }
    }

    fn save(&self, shape: Shape, s: usize, t: usize) -> Join {
        let costs = self.costs;
        let during = costs.saved(s) + self.beside(shape, t);
        let floor = match shape.frees_start {
            true => during + costs.x[s],
            false => during.max(costs.backward_needs(s)),
        };
        Join {
            held: costs.saved(s),
            floor,
            extra: 0,
            limit: self.limit(shape, s, t),
        }
    }

    fn split(
        &self,
        shape: Shape,
        s: usize,
        d: usize,
        t: usize,
        keeps: bool,
    ) -> (Join, &Front, &Front) {
        let costs = self.costs;
        let start = if shape.frees_start { costs.x[s] } else { 0 };
        let join = Join {
            held: start + if keeps { costs.x[d] } else { 0 },
            floor: start + self.beside(shape, t) + self.run_peak[s * (costs.layers + 1) + d],
            extra: costs.forwards(s, d),
            limit: self.limit(shape, s, t),
        };
        // A closed interval has `x_t` only by saving its last layer: no split at its end.
        let at_closed_end = d == t && !shape.open_end;
        let first = match at_closed_end {
            true => self.front(Shape::ALL[2], t, t),
            false => self.front(
                Shape {
                    frees_start: !keeps,
                    ..shape
                },
                d,
                t,
            ),
        };
        (
            join,
            first,
            self.front(
                Shape {
                    open_end: !keeps,
                    ..shape
                },
                s,
                d,
            ),
        )
    }

    /// How the schedule behind the front's point at `memory` begins.
    fn choice(&self, shape: Shape, s: usize, t: usize, memory: u64) -> Choice {
        let best = self
            .front(shape, s, t)
            .extra_within(memory)
            .expect("the interval fits");
        let reaches = |join: Join, first: &Front, second: &Front| {
            let first = first.extra_within(memory.checked_sub(join.held)?)?;
            let extra = first + second.extra_within(memory)? + join.extra;
            (join.floor <= memory && extra <= best).then_some(())
        };
        let inner = self.front(
            Shape {
                frees_start: false,
                ..shape
            },
            s + 1,
            t,
        );
        if reaches(self.save(shape, s, t), inner, &Front::single(0)).is_some() {
            return Choice::Save;
        }
        let splits = (s + 1..=t).flat_map(|at| [(at, true), (at, false)]);
        for (at, keeps) in splits {
            let (join, first, second) = self.split(shape, s, at, t, keeps);
            if reaches(join, first, second).is_some() {
                return Choice::Split { at, keeps };
            }
        }
        unreachable!("a front's point comes from a choice")
    }

    fn emit(&self, shape: Shape, s: usize, t: usize, memory: u64, ops: &mut Vec<Op>) {
        if s == t {
            match shape.open_end {
                false => {}
                true if t == self.costs.layers => ops.push(Op::Loss),
                true => ops.push(Op::Backward(t)),
            }
            return;
        }
        match self.choice(shape, s, t, memory) {
            Choice::Save => {
                ops.push(Op::ForwardSave(s));
                if shape.frees_start {
                    ops.push(Op::Drop(s));
                }
                let inner = Shape {
                    frees_start: false,
                    ..shape
                };
                self.emit(inner, s + 1, t, memory - self.costs.saved(s), ops);
                if !shape.frees_start {
                    ops.push(Op::Backward(s));
                }
            }
            Choice::Split { at, keeps } => {
                ops.push(Op::Forward(s));
                for i in s + 1..at {
                    ops.extend([Op::Forward(i), Op::Drop(i)]);
                }
                let (join, ..) = self.split(shape, s, at, t, keeps);
                let first = Shape {
                    frees_start: !keeps,
                    ..shape
                };
                self.emit(first, at, t, memory - join.held, ops);
                if keeps {
                    ops.push(Op::Drop(at));
                }
                self.emit(
                    Shape {
                        open_end: !keeps,
                        ..shape
                    },
                    s,
                    at,
                    memory,
                    ops,
                );
            }
        }
    }
}

/// The best schedule of the recursion, and what every schedule must spend.
pub(super) struct Best {
    pub sequence: Vec<Op>,
    /// Extra time that no schedule avoids, persistent or not.
    pub bound: u64,
}

/// Fronts longer than this are thinned out; none of the chains seen so far has one.
const MOST_POINTS: usize = 1 << 13;

/// The best schedule within the budget.
///
/// Whatever is computed a third time comes on top of the bound of one moment. So the recursion is
/// tried with hardly any slack above that bound first, which keeps its fronts tiny.
pub(super) fn best(
    costs: &Costs,
    rebuilds: bool,
    deadline: Option<Instant>,
) -> Result<Best, Failure> {
    let bound = bound::one_moment(costs).ok_or_else(|| infeasible(costs, rebuilds))?;
    let mut slack = 0;
    loop {
        let scope = Scope {
            budget: costs.budget,
            rebuilds,
            extra_limit: bound.saturating_add(slack),
            inner_limit: slack,
            most_points: MOST_POINTS,
            deadline,
        };
        let table = Intervals::solve(costs, scope).ok_or(Failure::NoTime)?;
        if let Some(sequence) = table.sequence() {
            return Ok(Best { sequence, bound });
        }
        slack = match slack {
            u64::MAX => return Err(infeasible(costs, rebuilds)),
            0 => (costs.floor() / 256).max(1),
            _ if slack > costs.floor() => u64::MAX,
            _ => slack * 4,
        };
    }
}

/// Why nothing fits: the layer that cannot, or else how much would do.
pub(super) fn infeasible(costs: &Costs, rebuilds: bool) -> Failure {
    let scope = Scope {
        budget: u64::MAX,
        rebuilds,
        extra_limit: u64::MAX,
        inner_limit: u64::MAX,
        most_points: 1,
        deadline: None,
    };
    let table = Intervals::solve(costs, scope).expect("there is no deadline");
    let smallest = table.smallest_budget().expect("some budget suffices");
    let smallest = Bytes::new(smallest);
    let needs = |i: usize| {
        let below = if i == 0 { 0 } else { costs.x[0] };
        below + costs.x[i] + costs.backward_needs(i)
    };
    match (0..costs.layers).max_by_key(|&i| needs(i)) {
        Some(layer) if needs(layer) > costs.budget => Failure::LayerDoesNotFit {
            layer,
            needed: Bytes::new(needs(layer)),
            smallest,
        },
        _ => Failure::Infeasible { smallest },
    }
}

/// Memory of running `s..d` without saving, `x_s` aside, for all `s < d`.
fn run_peaks(costs: &Costs) -> Vec<u64> {
    let side = costs.layers + 1;
    let mut peaks = vec![0; side * side];
    for s in 0..costs.layers {
        let mut peak = 0;
        for i in s..costs.layers {
            let input = if i == s { 0 } else { costs.x[i] };
            peak = peak.max(input + costs.x[i + 1] + costs.transient[i]);
            peaks[s * side + i + 1] = peak;
        }
    }
    peaks
}
