//! One step of the search: which section, which items on its floor, and what follows from each.

use super::{Choose, First, Outcome, Search};
use std::cmp::Reverse;
use std::ops::Range;

impl Search<'_> {
    /// The section, at a local minimum of the floor, where to go on.
    pub(super) fn choose(&mut self, items: &[u32], sections: Range<usize>) -> usize {
        self.mark_minima(sections.clone());
        self.count[sections.clone()].fill(0);
        for &i in items {
            if self.may_lie_on_floor(i) {
                self.count[self.items[i as usize].sections()]
                    .iter_mut()
                    .for_each(|n| *n += 1);
            }
        }
        let score = |s: &usize| {
            let slack = self.capacity - self.end[*s];
            let ways = self.count[*s] + u32::from(slack > 0);
            let score = match self.style.choose {
                _ if ways <= 1 => 0.0,
                Choose::FewestWeighted => f64::from(ways) / self.weight[*s],
                Choose::Fewest => f64::from(ways),
                Choose::Leftmost => 1.0 + *s as f64,
                Choose::TightestWeighted => slack as f64 / self.weight[*s],
            };
            (score, slack, self.floor[*s])
        };
        let minima = sections.clone().filter(|&s| self.minimum[s] > 0);
        let best = minima
            .map(|s| (score(&s), s))
            .reduce(|a, b| if b.0 < a.0 { b } else { a });
        best.map_or(sections.start, |(_, section)| section)
    }

    fn mark_minima(&mut self, sections: Range<usize>) {
        let mut start = sections.start;
        while start < sections.end {
            let level = self.floor[start];
            let rest = &self.floor[start..sections.end];
            let end = start + rest.iter().position(|&f| f != level).unwrap_or(rest.len());
            let walled = (start == sections.start || self.floor[start - 1] > level)
                && (end == sections.end || self.floor[end] > level);
            self.minimum[start..end].fill(if walled { end as u32 } else { 0 });
            start = end;
        }
    }

    /// Whether the item fits onto a local minimum of the floor without waste.
    fn may_lie_on_floor(&self, i: u32) -> bool {
        let item = &self.items[i as usize];
        let lo = item.lo as usize;
        self.lowest[i as usize] == self.floor[lo] && item.hi <= self.minimum[lo]
    }

    /// Tries every item that may lie on the floor of `section`, then none.
    pub(super) fn branch(
        &mut self,
        items: &[u32],
        section: usize,
        sections: Range<usize>,
    ) -> Outcome {
        let level = self.floor[section];
        let candidates = self.candidates(items, section);
        let saved = self.save(items, sections.clone());
        for i in candidates {
            if self.rules.holes && self.buries_room(items, i, level) {
                continue;
            }
            let rest: Vec<u32> = items.iter().copied().filter(|&other| other != i).collect();
            self.put(i, level, &rest);
            let outcome = self.solve(&rest);
            if outcome != Outcome::Failed {
                return outcome;
            }
            self.restore(items, sections.clone(), &saved);
        }
        if self.raise(items, section, level) {
            self.solve(items)
        } else {
            Outcome::Failed
        }
    }

    /// The items over `section` that may lie on its floor, in the order of the style.
    fn candidates(&self, items: &[u32], section: usize) -> Vec<u32> {
        let over = |i: u32| self.items[i as usize].sections().contains(&section);
        let mut candidates: Vec<u32> = items
            .iter()
            .copied()
            .filter(|&i| over(i) && self.may_lie_on_floor(i))
            .collect();
        candidates.sort_by_cached_key(|&i| (Reverse(self.value(i)), i));
        if self.rules.twins {
            let shape = |i: u32| {
                let item = &self.items[i as usize];
                (item.lo, item.hi, item.size)
            };
            let mut seen = Vec::with_capacity(candidates.len());
            candidates.retain(|&i| {
                let new = !seen.contains(&shape(i));
                seen.push(shape(i));
                new
            });
        }
        candidates
    }

    fn value(&self, i: u32) -> (u128, u64) {
        let item = &self.items[i as usize];
        let (width, size) = (u128::from(item.width()), u128::from(item.size));
        let noise = self.noise[i as usize];
        let (value, tie) = match self.style.first {
            First::Widest => (width, item.size),
            First::LargestArea => (width * size, u64::from(item.width())),
            First::Largest => (size, u64::from(item.width())),
        };
        // Within a factor of three, for a seed.
        let jitter = if self.style.seed == 0 {
            1024
        } else {
            512 + noise % 1024
        };
        (value * u128::from(jitter), tie)
    }

    /// Places item `i` at `level`; `rest` is what remains unplaced.
    fn put(&mut self, i: u32, level: u64, rest: &[u32]) {
        let item = self.items[i as usize];
        let end = level + item.size;
        self.offsets[i as usize] = level;
        self.top[item.sections()].fill(end);
        for &other in rest {
            if self.items[other as usize].meets(&item) {
                let lowest = &mut self.lowest[other as usize];
                *lowest = end.max(*lowest);
            }
        }
    }

    /// Nothing lies on the floor of `section`: whatever lay there at the earliest must rest on an
    /// item that does not cover the section. False when one has nothing to rest on.
    fn raise(&mut self, items: &[u32], section: usize, level: u64) -> bool {
        let covers = |i: u32| self.items[i as usize].sections().contains(&section);
        let end = |i: u32| self.lowest[i as usize] + self.items[i as usize].size;
        let mut raised = Vec::new();
        for &i in items
            .iter()
            .filter(|&&i| covers(i) && self.lowest[i as usize] == level)
        {
            let meets = |other: u32| self.items[other as usize].meets(&self.items[i as usize]);
            let others = items
                .iter()
                .copied()
                .filter(|&other| !covers(other) && meets(other));
            match others.map(end).min() {
                _ if !self.rules.supports => raised.push((i, level + 1)),
                Some(support) => raised.push((i, support)),
                None => return false,
            }
        }
        for (i, support) in raised {
            self.lowest[i as usize] = support;
        }
        true
    }

    /// Whether item `i` at `level` would lie over a hole into which an unplaced item fits.
    fn buries_room(&self, items: &[u32], i: u32, level: u64) -> bool {
        let item = &self.items[i as usize];
        if self.top[item.sections()].iter().all(|&top| top == level) {
            return false;
        }
        items.iter().filter(|&&other| other != i).any(|&other| {
            let small = &self.items[other as usize];
            item.lo <= small.lo
                && small.hi <= item.hi
                && self.top[small.sections()]
                    .iter()
                    .all(|top| top + small.size <= level)
        })
    }

    fn save(&self, items: &[u32], sections: Range<usize>) -> Vec<u64> {
        let mut saved = Vec::with_capacity(items.len() + sections.len());
        saved.extend(items.iter().map(|&i| self.lowest[i as usize]));
        saved.extend_from_slice(&self.top[sections]);
        saved
    }

    fn restore(&mut self, items: &[u32], sections: Range<usize>, saved: &[u64]) {
        for (&i, &lowest) in items.iter().zip(saved) {
            self.lowest[i as usize] = lowest;
        }
        self.top[sections].copy_from_slice(&saved[items.len()..]);
    }
}
