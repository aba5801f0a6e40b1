//! Heuristic family: allocate and free in order of time, from an address-ordered list of gaps.
//!
//! This is what a run-time allocator does, but it knows how long each item will live: the
//! long-lived ones grow from the bottom up and the short-lived ones from the lower bound down, so
//! that transients do not leave holes in a stack of activations.

use super::instance::Instance;

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
}

/// Offsets after one sweep; nothing when it would take more than `work` steps over gaps.
pub(crate) fn sweep(instance: &Instance, how: Sweep, work: &mut u64) -> Option<Vec<u64>> {
    let items = &instance.items;
    let begins = by_section(instance, |item| item.0);
    let ends = by_section(instance, |item| item.1);
    let (mut next, mut done) = (0, 0);
    let mut offsets = vec![0; items.len()];
    let mut gaps = vec![(0, u64::MAX)];
    for section in 0..instance.sections as u32 {
        while done < ends.len() && items[ends[done] as usize].hi <= section {
            let index = ends[done] as usize;
            release(
                &mut gaps,
                offsets[index],
                offsets[index] + items[index].size,
            );
            done += 1;
        }
        while next < begins.len() && items[begins[next] as usize].lo == section {
            let index = begins[next] as usize;
            let item = &items[index];
            *work = work.checked_sub(gaps.len() as u64)?;
            let top_down = item.width() <= how.short;
            let chosen = if top_down {
                highest(&gaps, item.size, instance.lower_bound)
            } else {
                None
            };
            let (gap, offset) = chosen.unwrap_or_else(|| lowest(&gaps, item.size, how.fit));
            offsets[index] = offset;
            take(&mut gaps, gap, offset, offset + item.size);
            next += 1;
        }
    }
    Some(offsets)
}

/// Item numbers by section, the widest first within one, then the largest.
fn by_section(instance: &Instance, section: impl Fn((u32, u32)) -> u32) -> Vec<u32> {
    let mut order: Vec<u32> = (0..instance.items.len() as u32).collect();
    order.sort_unstable_by_key(|&index| {
        let item = &instance.items[index as usize];
        (
            section((item.lo, item.hi)),
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
