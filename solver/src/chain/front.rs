//! Pareto fronts: what more memory buys.

/// With `memory` bytes, `extra` nanoseconds of recomputation suffice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Point {
    pub memory: u64,
    pub extra: u64,
}

/// Points of rising memory and falling extra time; empty when nothing fits.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Front(Vec<Point>);

impl Front {
    pub fn single(memory: u64) -> Self {
        Self(vec![Point { memory, extra: 0 }])
    }

    /// The non-dominated points of a pool, thinned to `most` by leaving points out: what remains
    /// can be reached.
    pub fn of(pool: &mut Vec<Point>, most: usize) -> Self {
        let best = non_dominated(pool);
        let last = best.len().saturating_sub(1);
        match most {
            _ if best.len() <= most => Self(best),
            1 => Self(vec![best[0]]),
            _ => Self((0..most).map(|i| best[i * last / (most - 1)]).collect()),
        }
    }

    /// The non-dominated points of a pool, thinned to about `most` by merging neighbours into one
    /// that is better than both: a bound.
    pub fn below(pool: &mut Vec<Point>, most: usize) -> Self {
        let best = non_dominated(pool);
        let together = best.len().div_ceil(most).max(1);
        let merge = |group: &[Point]| Point {
            memory: group[0].memory,
            extra: group[group.len() - 1].extra,
        };
        Self(best.chunks(together).map(merge).collect())
    }

    /// The smallest memory of any point.
    pub fn least_memory(&self) -> Option<u64> {
        self.0.first().map(|point| point.memory)
    }

    /// The least extra time within `memory`.
    pub fn extra_within(&self, memory: u64) -> Option<u64> {
        let fitting = self.0.partition_point(|point| point.memory <= memory);
        fitting.checked_sub(1).map(|last| self.0[last].extra)
    }
}

fn non_dominated(pool: &mut Vec<Point>) -> Vec<Point> {
    pool.sort();
    let mut best: Vec<Point> = Vec::new();
    for point in pool.drain(..) {
        if best.last().is_none_or(|last| point.extra < last.extra) {
            best.push(point);
        }
    }
    best
}

/// What a combination adds to the fronts it joins, and where it stops being of interest.
#[derive(Clone, Copy, Debug)]
pub(super) struct Join {
    /// Held while the first part runs.
    pub held: u64,
    /// Needed at some moment whatever the parts do.
    pub floor: u64,
    /// Extra time of the step that joins them.
    pub extra: u64,
    /// Points beyond either limit are of no use.
    pub limit: Point,
}

impl Join {
    /// One part: shifted by what is held.
    pub fn shift(&self, part: &Front, pool: &mut Vec<Point>) {
        self.both(part, &Front::single(0), pool);
    }

    /// Two parts, one after the other within the same memory.
    pub fn both(&self, first: &Front, second: &Front, pool: &mut Vec<Point>) {
        let (Some(a), Some(b)) = (first.0.first(), second.0.first()) else {
            return;
        };
        let mut memory = (a.memory + self.held).max(b.memory).max(self.floor);
        if memory > self.limit.memory || self.extra > self.limit.extra {
            return;
        }
        let (mut i, mut j) = (0, 0);
        loop {
            let next = |points: &[Point], at: usize, held: u64| {
                points
                    .get(at + 1)
                    .map_or(u64::MAX, |point| point.memory + held)
            };
            while next(&first.0, i, self.held) <= memory {
                i += 1;
            }
            while next(&second.0, j, 0) <= memory {
                j += 1;
            }
            let extra = first.0[i].extra + second.0[j].extra + self.extra;
            if extra <= self.limit.extra {
                pool.push(Point { memory, extra });
            }
            memory = next(&first.0, i, self.held).min(next(&second.0, j, 0));
            if memory == u64::MAX {
                return;
            }
            if memory > self.limit.memory {
                return;
            }
        }
    }
}
