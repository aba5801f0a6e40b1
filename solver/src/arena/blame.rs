//! Heuristic family: what ends too high comes earlier in the next order.
//!
//! Squeaky wheel optimisation (Joslin and Clements 1999): fill gaps in some order, blame the items
//! that stand above the lower bound, move each towards the front by a random stretch, and begin
//! again from there, whether that was lower or not.

use super::best_fit::fit_in_order;
use super::generate::Random;
use super::instance::{Instance, Known};
use super::sweep::Fit;

/// Offers to `known` what so many orders give, the first of them `order`.
pub(crate) fn rearrange(
    instance: &Instance,
    mut order: Vec<u32>,
    known: &mut Known,
    rounds: usize,
) {
    let mut random = Random::new(0);
    for fit in [Fit::First, Fit::Best].into_iter().cycle().take(rounds) {
        let offsets = fit_in_order(instance, &order, fit);
        let places: Vec<u64> = (0..)
            .zip(&order)
            .map(|(place, &i)| {
                let end = offsets[i as usize] + instance.items[i as usize].size;
                let blamed = end > known.lower_bound;
                let earlier = random.below(order.len() as u64);
                u64::saturating_sub(2 * place, if blamed { 1 + earlier } else { 0 })
            })
            .collect();
        let mut next: Vec<(u64, u32)> = places.into_iter().zip(order).collect();
        next.sort_by_key(|&(place, _)| place);
        order = next.into_iter().map(|(_, i)| i).collect();
        known.offer(instance, offsets);
        if known.height == known.lower_bound {
            return;
        }
    }
}
