//! The heuristics in order of cost, until one reaches the lower bound.

use super::best_fit::fit_in_order;
use super::blame::rearrange;
use super::instance::{Instance, Item, Known};
use super::skyline::{drop_in_order, push_down};
use super::sweep::{sweep, sweep_many, Fit, Sweep, Timeline};
use std::cmp::Reverse;

/// Steps over gaps that all sweeps of one call may take together.
const SWEEP_WORK: u64 = 40_000_000;
/// Most items for which O(n²) heuristics are still quick.
const FEW: usize = 4_000;
/// Most items for which some of them are, when they are asked once.
const SOME: usize = 10_000;
/// Most items for which one of them is.
const MANY: usize = 25_000;
/// Orders that are tried one after the other, each blaming what the one before put too high.
const BLAMES: usize = 12;

/// The best placement that the cheap heuristics find, or the first that is no higher than `enough`.
pub(crate) fn quick(instance: &Instance, enough: u64) -> Known {
    let mut best = Best {
        instance,
        known: Known::nothing(instance),
        enough,
    };
    let nested = drop_in_order(instance, &by(instance, nested_key));
    // Whoever asks for no more than enough asks often.
    let most = if enough == 0 { MANY } else { FEW };
    if !best.offer(nested) && !sweeps(instance, &mut best) && instance.items.len() <= most {
        let low = fits(instance, &mut best);
        if !low && enough == 0 && instance.items.len() <= SOME {
            for key in [nested_key, area_key] {
                rearrange(
                    instance,
                    hottest_first(instance, key),
                    &mut best.known,
                    BLAMES,
                );
            }
        }
    }
    best.known
}

/// The same, when `offsets` are already known.
pub(crate) fn from(instance: &Instance, offsets: Vec<u64>) -> Known {
    let mut best = Best {
        instance,
        known: Known::nothing(instance),
        enough: 0,
    };
    if !best.offer(offsets) {
        best.offer(quick(instance, 0).offsets);
    }
    best.known
}

/// The lowest placement so far.
struct Best<'a> {
    instance: &'a Instance,
    known: Known,
    /// A height that is low enough.
    enough: u64,
}

impl Best<'_> {
    /// Keeps the offsets if they are lower, and says whether the best is low enough.
    fn offer(&mut self, offsets: Vec<u64>) -> bool {
        self.known.offer(self.instance, offsets);
        self.known.height <= self.known.lower_bound.max(self.enough)
    }
}

/// Sweeps forwards and backwards, with ever shorter items at the top, then with large ones there.
fn sweeps(instance: &Instance, best: &mut Best) -> bool {
    let mirror = instance.mirrored();
    let timelines = [Timeline::new(instance), Timeline::new(&mirror)];
    let sections = instance.sections as u32;
    let mut work = SWEEP_WORK;
    let shorts = [0, 2, 8, 32, 128].map(|part| sections.checked_div(part).unwrap_or(0));
    let by_length = shorts
        .into_iter()
        .chain([4, 1])
        .map(|short| (short, u64::MAX));
    let by_size = [128, 32].map(|part| (0, instance.lower_bound / part));
    for (short, large) in by_length.chain(by_size) {
        for fit in [Fit::Best, Fit::First] {
            for timeline in &timelines {
                let how = Sweep { fit, short, large };
                let Some(offsets) = sweep(timeline, how, &mut work) else {
                    // Of a million items only this one is quick.
                    return timelines.iter().any(|many| best.offer(sweep_many(many)));
                };
                if best.offer(offsets) {
                    return true;
                }
            }
        }
    }
    let pushed = push_down(instance, &best.known.offsets);
    best.offer(pushed)
}

/// Gap-filling greedy in several orders; of many items, only those that are alive when most is.
fn fits(instance: &Instance, best: &mut Best) -> bool {
    let many = instance.items.len() > SOME;
    let keys = [nested_key, size_key, area_key];
    for &key in if many { &keys[..1] } else { &keys[..] } {
        let order = hottest_first(instance, key);
        let done = if many {
            best.offer(fit_in_order(instance, &order, Fit::Best))
        } else {
            offer_fits(instance, &order, best)
        };
        if done {
            return true;
        }
    }
    instance.items.len() <= FEW
        && [nested_key, size_key, area_key]
            .into_iter()
            .any(|key| offer_fits(instance, &by(instance, key), best))
}

/// The largest key first, but what is alive at the fullest moment before all else, so that no hole
/// is left there.
fn hottest_first(instance: &Instance, key: fn(&Item) -> Key) -> Vec<u32> {
    let live = instance.live();
    let hottest = |item: &Item| live[item.sections()].iter().copied().max();
    let mut order = by(instance, key);
    order.sort_by_cached_key(|&i| Reverse(hottest(&instance.items[i as usize])));
    order
}

fn offer_fits(instance: &Instance, order: &[u32], best: &mut Best) -> bool {
    [Fit::First, Fit::Best]
        .into_iter()
        .any(|fit| best.offer(fit_in_order(instance, order, fit)))
}

type Key = (u64, u64);

/// Longest lifetime first, then largest.
fn nested_key(item: &Item) -> Key {
    (u64::from(item.width()), item.size)
}
/// Largest size × lifetime first.
fn area_key(item: &Item) -> Key {
    (u64::from(item.width()).saturating_mul(item.size), item.size)
}
/// Largest first, then longest.
fn size_key(item: &Item) -> Key {
    (item.size, u64::from(item.width()))
}

/// Item numbers, the largest key first.
fn by(instance: &Instance, key: fn(&Item) -> Key) -> Vec<u32> {
    let mut order: Vec<u32> = (0..instance.items.len() as u32).collect();
    order.sort_by_cached_key(|&index| Reverse(key(&instance.items[index as usize])));
    order
}
