//! Heuristic family: drop the items in some order onto a skyline, like bricks.
//!
//! An item comes to rest on the highest point of the skyline over its lifetime; what is below stays
//! empty. One drop costs O(log sections). Dropping the longest first is optimal when lifetimes nest
//! (a stack), and dropping in the order of a placement's offsets never makes that placement higher.

use super::instance::Instance;

/// Offsets after dropping the items in `order`.
pub(crate) fn drop_in_order(instance: &Instance, order: &[u32]) -> Vec<u64> {
    let mut skyline = MaxTree::new(instance.sections);
    let mut offsets = vec![0; instance.items.len()];
    for &index in order {
        let item = &instance.items[index as usize];
        let offset = skyline.max(item.sections());
        offsets[index as usize] = offset;
        skyline.raise(item.sections(), offset + item.size);
    }
    offsets
}

/// Pushes every item of a placement down as far as the order of offsets allows.
pub(crate) fn push_down(instance: &Instance, offsets: &[u64]) -> Vec<u64> {
    let mut order: Vec<u32> = (0..instance.items.len() as u32).collect();
    order.sort_unstable_by_key(|&index| (offsets[index as usize], index));
    drop_in_order(instance, &order)
}

/// Maximum over a range, and raising a range to a value, each in O(log n).
struct MaxTree {
    leaves: usize,
    /// Highest value below a node, its own and its descendants' raises included.
    highest: Vec<u64>,
    /// Value to which all of a node has been raised; says nothing of its descendants.
    raised: Vec<u64>,
}

impl MaxTree {
    fn new(len: usize) -> Self {
        let leaves = len.next_power_of_two();
        Self {
            leaves,
            highest: vec![0; 2 * leaves],
            raised: vec![0; 2 * leaves],
        }
    }

    fn max(&self, range: std::ops::Range<usize>) -> u64 {
        let (mut lo, mut hi) = (range.start + self.leaves, range.end + self.leaves);
        let mut highest = self.above(lo).max(self.above(hi - 1));
        while lo < hi {
            if lo & 1 == 1 {
                highest = highest.max(self.highest[lo]);
                lo += 1;
            }
            if hi & 1 == 1 {
                hi -= 1;
                highest = highest.max(self.highest[hi]);
            }
            (lo, hi) = (lo / 2, hi / 2);
        }
        highest
    }

    /// The highest raise of a whole ancestor of `leaf`.
    fn above(&self, leaf: usize) -> u64 {
        let mut node = leaf / 2;
        let mut highest = 0;
        while node > 0 {
            highest = highest.max(self.raised[node]);
            node /= 2;
        }
        highest
    }

    fn raise(&mut self, range: std::ops::Range<usize>, value: u64) {
        let (first, last) = (range.start + self.leaves, range.end + self.leaves - 1);
        let (mut lo, mut hi) = (first, last + 1);
        while lo < hi {
            if lo & 1 == 1 {
                self.raise_node(lo, value);
                lo += 1;
            }
            if hi & 1 == 1 {
                hi -= 1;
                self.raise_node(hi, value);
            }
            (lo, hi) = (lo / 2, hi / 2);
        }
        for mut node in [first / 2, last / 2] {
            while node > 0 {
                self.highest[node] = self.highest[node].max(value);
                node /= 2;
            }
        }
    }

    fn raise_node(&mut self, node: usize, value: u64) {
        self.highest[node] = self.highest[node].max(value);
        self.raised[node] = self.raised[node].max(value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tree_agrees_with_an_array() {
        let mut array = [0u64; 13];
        let mut tree = MaxTree::new(13);
        let mut state = 1u64;
        for step in 1..2000u64 {
            state = state
                .wrapping_mul(6364136223846793005)
                .wrapping_add(1442695040888963407);
            let (a, b) = ((state >> 33) as usize % 13, (state >> 45) as usize % 13);
            let range = a.min(b)..a.max(b) + 1;
            if step % 3 == 0 {
                let value = state >> 50;
                tree.raise(range.clone(), value);
                array[range].iter_mut().for_each(|x| *x = value.max(*x));
            } else {
                assert_eq!(tree.max(range.clone()), *array[range].iter().max().unwrap());
            }
        }
    }
}
