//! Heuristic family: allocate and free in order of time, from an address-ordered list of gaps.
//!
//! This is what a run-time allocator does, but it knows how long each item will live: the
//! long-lived ones grow from the bottom up and the short-lived ones from the lower bound down, so
//! that transients do not leave holes in a stack of activations. Or the large ones do, where small
//! pieces of many lifetimes would leave no hole that is large enough.

use super::instance::{Instance, Item};
use std::collections::{BTreeMap, BTreeSet};

/// Which gap an item gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fit {
    /// The lowest that is large enough.
    First,
    /// The smallest that is large enough, the lowest of these.
    Best,
}

/// How one sweep goes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sweep {
    pub fit: Fit,
    /// Items that cover at most this many sections grow downwards from the lower bound.
    pub short: u32,
    /// So do items of at least this size that are not alive for long.
    pub large: u64,
}

/// What covers more than this part of the sections is alive for long.
const PASSING: u32 = 8;

/// An instance with its items in the orders in which a sweep meets them.
pub(crate) struct Timeline<'a> {
    instance: &'a Instance,
    begins: Vec<u32>,
    ends: Vec<u32>,
}

impl<'a> Timeline<'a> {
    pub fn new(instance: &'a Instance) -> Self {
        let begins = by_section(instance, |item| item.lo);
        let ends = by_section(instance, |item| item.hi);
        Self {
            instance,
            begins,
            ends,
        }
    }
}

/// Offsets after one sweep; nothing when it would take more than `work` steps.
pub(crate) fn sweep(timeline: &Timeline, how: Sweep, work: &mut u64) -> Option<Vec<u64>> {
    let items = &timeline.instance.items;
    let ceiling = timeline.instance.lower_bound;
    let passing = timeline.instance.sections as u32 / PASSING;
    let mut offsets = vec![0; items.len()];
    let mut gaps = vec![(0, u64::MAX)];
    let mut ends = timeline.ends.iter().peekable();
    for &index in &timeline.begins {
        let item = &items[index as usize];
        while let Some(&ended) = ends.next_if(|&&other| items[other as usize].hi <= item.lo) {
            let start = offsets[ended as usize];
            release(&mut gaps, start, start + items[ended as usize].size);
        }
        *work = work.checked_sub(1 + gaps.len() as u64)?;
        let large = item.size >= how.large && item.width() <= passing;
        let top_down = large || item.width() <= how.short;
        let under = if top_down {
            highest(&gaps, item.size, ceiling)
        } else {
            None
        };
        let (gap, offset) = under.unwrap_or_else(|| lowest(&gaps, item.size, how.fit));
        offsets[index as usize] = offset;
        take(&mut gaps, gap, offset, offset + item.size);
    }
    Some(offsets)
}

/// Offsets after a sweep with the best fit, in O(log gaps) for each item: for what is too many for
/// [`sweep`].
pub(crate) fn sweep_many(timeline: &Timeline) -> Vec<u64> {
    let items = &timeline.instance.items;
    let mut offsets = vec![0; items.len()];
    // Ends by start, and (size, start) of the same gaps.
    let mut gaps = BTreeMap::from([(0, u64::MAX)]);
    let mut sizes = BTreeSet::from([(u64::MAX, 0)]);
    let mut ends = timeline.ends.iter().peekable();
    for &index in &timeline.begins {
        let item = &items[index as usize];
        while let Some(&ended) = ends.next_if(|&&other| items[other as usize].hi <= item.lo) {
            let mut start = offsets[ended as usize];
            let mut end = start + items[ended as usize].size;
            let below = gaps
                .range(..start)
                .next_back()
                .map(|(&start, &end)| (start, end));
            if let Some((joined, _)) = below.filter(|&(_, top)| top == start) {
                sizes.remove(&(start - joined, joined));
                start = joined;
            }
            if let Some(joined) = gaps.remove(&end) {
                sizes.remove(&(joined - end, end));
                end = joined;
            }
            gaps.insert(start, end);
            sizes.insert((end - start, start));
        }
        let fitting = sizes.range((item.size, 0)..).next().copied();
        let (size, start) = fitting.expect("the last gap has no end");
        sizes.remove(&(size, start));
        gaps.remove(&start);
        offsets[index as usize] = start;
        if size > item.size {
            gaps.insert(start + item.size, start + size);
            sizes.insert((size - item.size, start + item.size));
        }
    }
    offsets
}

/// Item numbers by section, the widest first within one, then the largest.
fn by_section(instance: &Instance, section: fn(&Item) -> u32) -> Vec<u32> {
    let mut order: Vec<u32> = (0..instance.items.len() as u32).collect();
    order.sort_unstable_by_key(|&index| {
        let item = &instance.items[index as usize];
        (
            section(item),
            u32::MAX - item.width(),
            u64::MAX - item.size,
            index,
        )
    });
    order
}

/// The gap and offset for an item that grows from the bottom up; the last gap has no end.
fn lowest(gaps: &[(u64, u64)], size: u64, fit: Fit) -> (usize, u64) {
    let mut fitting = gaps
        .iter()
        .enumerate()
        .filter(|(_, &(start, end))| end - start >= size);
    let found = match fit {
        Fit::First => fitting.next(),
        Fit::Best => fitting.min_by_key(|(_, &(start, end))| end - start),
    };
    let (gap, &(start, _)) = found.expect("the last gap has no end");
    (gap, start)
}

/// The gap and offset closest below `ceiling`, if there is room below it.
fn highest(gaps: &[(u64, u64)], size: u64, ceiling: u64) -> Option<(usize, u64)> {
    gaps.iter()
        .enumerate()
        .rev()
        .find_map(|(gap, &(start, end))| {
            let top = end.min(ceiling);
            (top >= start.saturating_add(size)).then(|| (gap, top - size))
        })
}

fn take(gaps: &mut Vec<(u64, u64)>, gap: usize, start: u64, end: u64) {
    let (gap_start, gap_end) = gaps[gap];
    match (gap_start < start, end < gap_end) {
        (false, false) => drop(gaps.remove(gap)),
        (false, true) => gaps[gap].0 = end,
        (true, false) => gaps[gap].1 = start,
        (true, true) => {
            gaps[gap].1 = start;
            gaps.insert(gap + 1, (end, gap_end));
        }
    }
}

fn release(gaps: &mut Vec<(u64, u64)>, start: u64, end: u64) {
    let next = gaps.partition_point(|gap| gap.0 < start);
    let joins_below = next > 0 && gaps[next - 1].1 == start;
    let joins_above = next < gaps.len() && gaps[next].0 == end;
    match (joins_below, joins_above) {
        (true, true) => {
            gaps[next - 1].1 = gaps[next].1;
            gaps.remove(next);
        }
        (true, false) => gaps[next - 1].1 = end,
        (false, true) => gaps[next].0 = start,
        (false, false) => gaps.insert(next, (start, end)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arena::generate::churn;
    use crate::units::Bytes;

    #[test]
    fn both_best_fits_agree() {
        for seed in 0..50 {
            let instance = Instance::new(&churn(1000, 200, seed), Bytes::new(1));
            for instance in [instance.mirrored(), instance] {
                let timeline = Timeline::new(&instance);
                let how = Sweep {
                    fit: Fit::Best,
                    short: 0,
                    large: u64::MAX,
                };
                let mut work = u64::MAX;
                let slow = sweep(&timeline, how, &mut work);
                assert_eq!(slow, Some(sweep_many(&timeline)), "seed {seed}");
            }
        }
    }
}
