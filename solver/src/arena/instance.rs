//! Requests in, the same problem in its smallest form out.
//!
//! Lifetimes matter only through who meets whom. Intervals form an interval graph, and its maximal
//! cliques, in order of time, say it all: a *section* is one such clique, and an item covers the
//! consecutive sections `lo..hi`. Sizes are rounded up to the alignment and divided by their
//! greatest common divisor, so that every offset of a pushed-down placement is a whole number.

use super::Request;
use crate::units::Bytes;

/// A request that occupies something: sections `lo..hi`, `size` units, request number `request`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Item {
    pub lo: u32,
    pub hi: u32,
    pub size: u64,
    pub request: u32,
}

impl Item {
    /// The sections it covers.
    pub fn sections(&self) -> std::ops::Range<usize> {
        self.lo as usize..self.hi as usize
    }
    /// How many sections it covers.
    pub fn width(&self) -> u32 {
        self.hi - self.lo
    }
    /// Whether both are ever alive at once.
    pub fn meets(&self, other: &Item) -> bool {
        self.lo < other.hi && other.lo < self.hi
    }
}

/// The items of a problem, how many sections they cover, and what one unit of size is.
#[derive(Clone, Debug)]
pub(crate) struct Instance {
    pub items: Vec<Item>,
    pub sections: usize,
    pub unit: u64,
    /// Most units alive at once.
    pub lower_bound: u64,
}

impl Instance {
    /// The smallest form of `requests`; those of no size or no lifetime are left out.
    ///
    /// # Panics
    /// When there are 2³² requests or their sizes sum to 2⁶³ or more.
    pub fn new(requests: &[Request], alignment: Bytes) -> Self {
        let rounded = |r: &Request| {
            if alignment.is_zero() {
                r.size.get()
            } else {
                r.size.align_up(alignment).get()
            }
        };
        let mut items = Vec::with_capacity(requests.len());
        let (mut unit, mut total) = (0, 0u128);
        for (index, request) in requests.iter().enumerate() {
            if request.size.is_zero() || request.start >= request.end {
                continue;
            }
            let size = rounded(request);
            unit = gcd(size, unit);
            total += u128::from(size);
            let request = u32::try_from(index).expect("fewer than 2^32 requests");
            items.push(Item {
                lo: 0,
                hi: 0,
                size,
                request,
            });
        }
        assert!(
            total < 1 << 63,
            "the sizes of all requests sum to 2^63 bytes or more"
        );
        items.iter_mut().for_each(|item| item.size /= unit);
        let sections = cover_sections(&mut items, requests);
        let mut instance = Self {
            items,
            sections,
            unit: unit.max(1),
            lower_bound: 0,
        };
        instance.lower_bound = instance.live().into_iter().max().unwrap_or(0);
        instance
    }

    /// Units alive in each section.
    pub fn live(&self) -> Vec<u64> {
        let mut change = vec![0i64; self.sections + 1];
        for item in &self.items {
            change[item.lo as usize] += item.size as i64;
            change[item.hi as usize] -= item.size as i64;
        }
        let mut sum = 0;
        let running = change.iter().take(self.sections).map(|c| {
            sum += c;
            sum as u64
        });
        running.collect()
    }

    /// The height of a placement of the items.
    pub fn height(&self, offsets: &[u64]) -> u64 {
        self.items
            .iter()
            .zip(offsets)
            .map(|(item, offset)| offset + item.size)
            .max()
            .unwrap_or(0)
    }

    /// The stretches of time that no item connects, each with the numbers of its items here.
    pub fn parts(&self) -> Vec<(Instance, Vec<u32>)> {
        let mut order: Vec<u32> = (0..self.items.len() as u32).collect();
        order.sort_unstable_by_key(|&i| (self.items[i as usize].lo, i));
        let mut parts: Vec<(Instance, Vec<u32>)> = Vec::new();
        let (mut first, mut end) = (0, 0);
        for i in order {
            let item = self.items[i as usize];
            if item.lo >= end {
                let empty = Self {
                    items: Vec::new(),
                    sections: 0,
                    unit: self.unit,
                    lower_bound: 0,
                };
                parts.push((empty, Vec::new()));
                first = item.lo;
            }
            end = end.max(item.hi);
            let Some((part, numbers)) = parts.last_mut() else {
                continue;
            };
            part.items.push(Item {
                lo: item.lo - first,
                hi: item.hi - first,
                ..item
            });
            part.sections = (end - first) as usize;
            numbers.push(i);
        }
        for (part, _) in &mut parts {
            part.lower_bound = part.live().into_iter().max().unwrap_or(0);
        }
        parts
    }

    /// The same problem with time running backwards; items keep their numbers.
    pub fn mirrored(&self) -> Self {
        let last = self.sections as u32;
        let mut mirror = self.clone();
        for item in &mut mirror.items {
            (item.lo, item.hi) = (last - item.hi, last - item.lo);
        }
        mirror
    }
}

/// Gives every item its sections and says how many there are: one for each maximal clique, which
/// ends where a lifetime ends after another has begun.
fn cover_sections(items: &mut [Item], requests: &[Request]) -> usize {
    // (position, begins, item): at one position lifetimes end before others begin.
    let mut events = Vec::with_capacity(2 * items.len());
    for (index, item) in items.iter().enumerate() {
        let request = &requests[item.request as usize];
        events.push((request.start, true, index as u32));
        events.push((request.end, false, index as u32));
    }
    events.sort_unstable();
    let (mut section, mut grown) = (0, false);
    for (_, begins, index) in events {
        let item = &mut items[index as usize];
        if begins {
            item.lo = section;
        } else {
            section += u32::from(grown);
            item.hi = section;
        }
        grown = begins;
    }
    section as usize
}

fn gcd(a: u64, b: u64) -> u64 {
    if b == 0 {
        a
    } else {
        gcd(b, a % b)
    }
}

/// What is known of an instance: offsets of some height, and what no placement is lower than.
#[derive(Clone, Debug)]
pub(crate) struct Known {
    pub offsets: Vec<u64>,
    pub height: u64,
    pub lower_bound: u64,
}

impl Known {
    /// That there is no placement yet.
    pub fn nothing(instance: &Instance) -> Self {
        Self {
            offsets: Vec::new(),
            height: u64::MAX,
            lower_bound: instance.lower_bound,
        }
    }

    /// Keeps the offsets if they are lower.
    pub fn offer(&mut self, instance: &Instance, offsets: Vec<u64>) {
        let height = instance.height(&offsets);
        if height < self.height {
            (self.offsets, self.height) = (offsets, height);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sections_are_the_maximal_cliques() {
        // 0 ---      1 begins where 0 ends; 2 covers both; 3 lies inside 2 alone.
        // 1    ---
        // 2 ----------
        // 3          --
        let spans = [(0, 3), (3, 6), (0, 10), (8, 10)];
        let requests: Vec<_> = spans
            .iter()
            .map(|&(s, e)| Request::new(s, e, Bytes::new(4)))
            .collect();
        let instance = Instance::new(&requests, Bytes::new(1));
        let ranges: Vec<_> = instance
            .items
            .iter()
            .map(|item| (item.lo, item.hi))
            .collect();
        assert_eq!(ranges, [(0, 1), (1, 2), (0, 3), (2, 3)]);
        assert_eq!(
            (instance.unit, instance.lower_bound, instance.sections),
            (4, 2, 3)
        );
    }
}
