//! Who owns which bytes of one memory.

use std::collections::BTreeMap;

/// Disjoint byte ranges `[start, end)` with their owners.
#[derive(Default)]
pub(super) struct Owners {
    ranges: BTreeMap<u64, (u64, u32)>,
}

impl Owners {
    /// Gives `[start, end)` to `owner` and says whose it was, in `before`.
    pub(super) fn take(&mut self, start: u64, end: u64, owner: u32, before: &mut Vec<u32>) {
        before.clear();
        if start >= end {
            return;
        }
        let mut at = end;
        while let Some((&first, &(last, previous))) = self.ranges.range(..at).next_back() {
            if last <= start {
                break;
            }
            self.ranges.remove(&first);
            if last > end {
                self.ranges.insert(end, (last, previous));
            }
            if first < start {
                self.ranges.insert(first, (start, previous));
            }
            if !before.contains(&previous) {
                before.push(previous);
            }
            at = first;
            if first <= start {
                break;
            }
        }
        self.ranges.insert(start, (end, owner));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn taking_splits_and_names_every_previous_owner() {
        let mut owners = Owners::default();
        let mut before = Vec::new();
        owners.take(0, 10, 1, &mut before);
        owners.take(10, 20, 2, &mut before);
        assert!(before.is_empty());
        owners.take(5, 15, 3, &mut before);
        before.sort_unstable();
        assert_eq!(before, [1, 2]);
        owners.take(0, 20, 4, &mut before);
        before.sort_unstable();
        assert_eq!(before, [1, 2, 3]);
    }
}
