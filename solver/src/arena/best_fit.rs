//! Heuristic family: take the items in some order of importance, each into a gap that is free for
//! its whole lifetime.
//!
//! Unlike the skyline it fills holes, and unlike the sweep it looks at all of time at once; the
//! price is one look at every item placed before, so O(n²).

use super::instance::Instance;
use super::sweep::Fit;

/// Offsets after placing the items in `order`, each in the lowest or the tightest gap.
pub(crate) fn fit_in_order(instance: &Instance, order: &[u32], fit: Fit) -> Vec<u64> {
    let mut offsets = vec![0; instance.items.len()];
    // (offset, end, lo, hi) of what is placed, by offset.
    let mut placed: Vec<(u64, u64, u32, u32)> = Vec::with_capacity(order.len());
    for &index in order {
        let item = &instance.items[index as usize];
        let (mut floor, mut chosen, mut tightest) = (0, None, u64::MAX);
        for &(start, end, lo, hi) in &placed {
            if hi <= item.lo || item.hi <= lo {
                continue;
            }
            if start >= floor + item.size && start - floor < tightest {
                (chosen, tightest) = (Some(floor), start - floor);
                if fit == Fit::First || tightest == item.size {
                    break;
                }
            }
            floor = floor.max(end);
        }
        let offset = chosen.unwrap_or(floor);
        offsets[index as usize] = offset;
        let at = placed.partition_point(|other| other.0 <= offset);
        placed.insert(at, (offset, offset + item.size, item.lo, item.hi));
    }
    offsets
}
