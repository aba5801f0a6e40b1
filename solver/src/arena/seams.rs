//! Heuristic for arenas that are full: undo the cuts that made them.
//!
//! Where an arena is full on both sides of a boundary between sections, what ends there leaves
//! exactly the bytes that what begins there takes. Sizes that agree tell which takes which: a
//! *seam* is a smallest set of ends and beginnings of one sum, and is taken to be one straight cut.
//! Seams as nodes and items as edges, an item's size being its current, are an electrical
//! network (Brooks, Smith, Stone and Tutte 1940: a rectangle cut into rectangles), and it shrinks:
//!
//! ```text
//! series     ─●─          one seam, one end, one beginning: the same offset
//! parallel   ●══●         between the same seams: one above the other
//! bridge     ●─●─●        five between two seams that no straight cut parts: a pinwheel
//!             ╲│╱
//! ```
//!
//! What is left is a smaller instance, and any placement of it is one of the whole, of the same
//! height. That sizes agree proves nothing, so a failure says nothing, and
//! another seed may fare better.

use super::generate::Random;
use super::instance::{Instance, Item};

/// What stands for some items of the whole: between two seams, of one size, over some sections.
#[derive(Clone, Copy)]
struct Block {
    from: u32,
    to: u32,
    lo: u32,
    hi: u32,
    size: u64,
    kind: Kind,
}

/// What a block is made of; blocks are named by their place in the list.
#[derive(Clone, Copy)]
enum Kind {
    /// An item of the instance.
    Item(u32),
    /// The second begins where the first ends.
    Series(u32, u32),
    /// The second lies on the first.
    Parallel(u32, u32),
    /// A pinwheel, in the order lower left, upper left, middle, lower right, upper right.
    Bridge([u32; 5]),
}

/// A smaller instance, and how to get back.
pub(crate) struct Shrunk {
    pub instance: Instance,
    blocks: Vec<Block>,
    /// By item of the smaller instance: its block.
    kept: Vec<u32>,
}

impl Shrunk {
    /// Offsets of the whole instance's items from those of the smaller one.
    pub fn expand(&self, offsets: &[u64]) -> Vec<u64> {
        let mut whole = vec![0; self.blocks.len()];
        let mut items = 0;
        let kept = self.kept.iter().copied();
        let mut open: Vec<(u32, u64)> = kept.zip(offsets.iter().copied()).collect();
        while let Some((block, at)) = open.pop() {
            let size = |i: u32| self.blocks[i as usize].size;
            match self.blocks[block as usize].kind {
                Kind::Item(item) => {
                    whole[item as usize] = at;
                    items += 1;
                }
                Kind::Series(first, second) => open.extend([(first, at), (second, at)]),
                Kind::Parallel(below, above) => {
                    open.extend([(below, at), (above, at + size(below))])
                }
                Kind::Bridge([lower, upper, middle, lower_right, upper_right]) => {
                    let low = at + size(lower);
                    open.extend([(lower, at), (upper, low), (middle, low)]);
                    open.extend([(lower_right, at), (upper_right, low + size(middle))]);
                }
            }
        }
        whole.truncate(items);
        whole
    }
}

/// How many meanings of small there are, each four times the one before.
const DARINGS: u32 = 4;

/// The instance with the cuts undone that its sizes tell.
///
/// Among many sizes some sums agree by chance. A seam is looked for where the number of sums that
/// are compared, over that of sums possible, is small; seeds differ in what is small, and in which
/// of equal sums come first.
pub(crate) fn shrink(instance: &Instance, seed: u64) -> Shrunk {
    let mut network = Network::new(instance);
    let (mut dared, daring) = (0, seed as u32 % DARINGS);
    let mut random = Random::new(seed);
    let mut kept = network.kept();
    while dared <= daring {
        let chance = instance.lower_bound >> (6u32.saturating_sub(2 * dared));
        random.shuffle(&mut kept);
        network.find_seams(&kept, instance.sections, chance);
        network.shrink();
        let fewer = network.kept();
        // With fewer items there are fewer sums to agree by chance.
        dared = if fewer.len() < kept.len() {
            0
        } else {
            dared + 1
        };
        kept = fewer;
    }
    let item = |&request: &u32| {
        let Block { lo, hi, size, .. } = network.blocks[request as usize];
        Item {
            lo,
            hi,
            size,
            request,
        }
    };
    let instance = Instance {
        items: kept.iter().map(item).collect(),
        ..*instance
    };
    Shrunk {
        instance,
        blocks: network.blocks,
        kept,
    }
}

/// The blocks that end at a seam, and those that begin there.
type Seam = (Vec<u32>, Vec<u32>);

struct Network {
    blocks: Vec<Block>,
    seams: Vec<Seam>,
}

impl Network {
    /// One block for each item, all between two seams.
    fn new(instance: &Instance) -> Self {
        let block = |(i, item): (u32, &Item)| Block {
            from: 0,
            to: 0,
            lo: item.lo,
            hi: item.hi,
            size: item.size,
            kind: Kind::Item(i),
        };
        Self {
            blocks: (0..).zip(&instance.items).map(block).collect(),
            seams: vec![(Vec::new(), (0..instance.items.len() as u32).collect())],
        }
    }

    /// The blocks that are part of no other.
    fn kept(&self) -> Vec<u32> {
        self.seams
            .iter()
            .flat_map(|(_, begins)| begins.iter().copied())
            .collect()
    }

    /// Finds the seams between the blocks `kept` anew.
    fn find_seams(&mut self, kept: &[u32], sections: usize, chance: u64) {
        let mut boundaries: Vec<Seam> = vec![Seam::default(); sections + 1];
        for &i in kept {
            let Block { lo, hi, .. } = self.block(i);
            boundaries[hi as usize].0.push(i);
            boundaries[lo as usize].1.push(i);
        }
        self.seams.clear();
        for (ends, begins) in boundaries {
            if ends.is_empty() || begins.is_empty() {
                // The beginning or the end of all time.
                self.seams.push((ends, begins));
            } else {
                self.part(ends, begins, chance);
            }
        }
        for (seam, (ends, begins)) in (0..).zip(&self.seams) {
            ends.iter().for_each(|&i| self.blocks[i as usize].to = seam);
            begins
                .iter()
                .for_each(|&i| self.blocks[i as usize].from = seam);
        }
    }

    /// Makes blocks of blocks until no rule applies.
    fn shrink(&mut self) {
        let mut open: Vec<u32> = (0..self.seams.len() as u32).collect();
        while let Some(seam) = open.pop() {
            if let Some([from, to]) = self.shrink_at(seam) {
                open.extend([seam, from, to]);
            }
        }
    }

    fn block(&self, i: u32) -> Block {
        self.blocks[i as usize]
    }

    /// Makes one block of several around `seam` if a rule says so, and says between which seams.
    fn shrink_at(&mut self, seam: u32) -> Option<[u32; 2]> {
        let found = self
            .series(seam)
            .or_else(|| self.parallel(seam))
            .or_else(|| self.bridge(seam));
        let (parts, whole) = found?;
        for &i in &parts {
            let Block { from, to, .. } = self.block(i);
            self.seams[to as usize].0.retain(|&other| other != i);
            self.seams[from as usize].1.retain(|&other| other != i);
        }
        let new = self.blocks.len() as u32;
        self.seams[whole.to as usize].0.push(new);
        self.seams[whole.from as usize].1.push(new);
        self.blocks.push(whole);
        Some([whole.from, whole.to])
    }

    fn series(&self, seam: u32) -> Option<(Vec<u32>, Block)> {
        let (ends, begins) = &self.seams[seam as usize];
        let (&[first], &[second]) = (&ends[..], &begins[..]) else {
            return None;
        };
        let (left, right) = (self.block(first), self.block(second));
        let whole = Block {
            to: right.to,
            hi: right.hi,
            kind: Kind::Series(first, second),
            ..left
        };
        Some((vec![first, second], whole))
    }

    fn parallel(&self, seam: u32) -> Option<(Vec<u32>, Block)> {
        let begins = &self.seams[seam as usize].1;
        let same = |i: u32, j: u32| self.block(i).to == self.block(j).to;
        let mut pairs = (1..begins.len()).flat_map(|j| (0..j).map(move |i| (begins[i], begins[j])));
        let (below, above) = pairs.find(|&(i, j)| same(i, j))?;
        let whole = Block {
            size: self.block(below).size + self.block(above).size,
            kind: Kind::Parallel(below, above),
            ..self.block(below)
        };
        Some((vec![below, above], whole))
    }

    /// A pinwheel whose upper left piece ends at `seam`.
    fn bridge(&self, seam: u32) -> Option<(Vec<u32>, Block)> {
        let (ends, begins) = &self.seams[seam as usize];
        let (&[upper], &[one, other]) = (&ends[..], &begins[..]) else {
            return None;
        };
        [(one, other), (other, one)]
            .into_iter()
            .find_map(|(middle, upper_right)| {
                let (ends, begins) = &self.seams[self.block(middle).to as usize];
                let (&[a, b], &[lower_right]) = (&ends[..], &begins[..]) else {
                    return None;
                };
                let lower = if a == middle { b } else { a };
                let (from, to) = (self.block(upper).from, self.block(upper_right).to);
                if self.block(lower).from != from || self.block(lower_right).to != to {
                    return None;
                }
                let parts = [lower, upper, middle, lower_right, upper_right];
                let whole = Block {
                    from,
                    to,
                    lo: self.block(upper).lo,
                    hi: self.block(upper_right).hi,
                    size: self.block(upper).size + self.block(lower).size,
                    kind: Kind::Bridge(parts),
                };
                Some((parts.to_vec(), whole))
            })
    }
}

/// Most items at one seam.
const MOST_AT_A_SEAM: usize = 7;
/// Most subsets of one size that are looked at.
const MOST_SUBSETS: u64 = 3_000;

impl Network {
    /// Parts what ends and what begins at one boundary into seams, the smallest first.
    fn part(&mut self, mut ends: Vec<u32>, mut begins: Vec<u32>, chance: u64) {
        for together in 2..=MOST_AT_A_SEAM {
            for ending in 1..together {
                let counts = [ending, together - ending];
                while let Some(seam) = self.equal([&ends, &begins], counts, chance) {
                    ends.retain(|i| !seam.0.contains(i));
                    begins.retain(|i| !seam.1.contains(i));
                    self.seams.push(seam);
                }
            }
        }
        if self.sum(&ends) == self.sum(&begins) {
            self.seams.push((ends, begins));
            return;
        }
        // What has no partner has a seam of its own.
        let ends = ends.into_iter().map(|i| (vec![i], Vec::new()));
        let begins = begins.into_iter().map(|i| (Vec::new(), vec![i]));
        self.seams.extend(ends.chain(begins));
    }

    fn sum(&self, list: &[u32]) -> u64 {
        list.iter().map(|&i| self.block(i).size).sum()
    }

    /// So many of the one list and so many of the other that have the same sum.
    fn equal(&self, lists: [&[u32]; 2], counts: [usize; 2], chance: u64) -> Option<Seam> {
        let ways = [0, 1].map(|side| choices(lists[side].len(), counts[side]));
        if ways[0].saturating_mul(ways[1]) > chance || ways[0].max(ways[1]) > MOST_SUBSETS {
            return None;
        }
        let [left, right] = [0, 1].map(|side| subsets(lists[side], counts[side]));
        let mut by_sum: Vec<_> = left
            .iter()
            .map(|subset| (self.sum(subset), subset))
            .collect();
        by_sum.sort_unstable();
        right.into_iter().find_map(|subset| {
            let sum = self.sum(&subset);
            let &(found, other) = by_sum.get(by_sum.partition_point(|(other, _)| *other < sum))?;
            (found == sum).then(|| (other.clone(), subset))
        })
    }
}

/// How many subsets of `count` there are among `of`, for small counts.
fn choices(of: usize, count: usize) -> u64 {
    let of = of as u64;
    (0..count as u64).fold(1, |ways: u64, i| {
        ways.saturating_mul(of.saturating_sub(i)) / (i + 1)
    })
}

fn subsets(list: &[u32], count: usize) -> Vec<Vec<u32>> {
    if count == 0 {
        return vec![Vec::new()];
    }
    let mut all = Vec::new();
    for (at, &first) in list.iter().enumerate() {
        for mut rest in subsets(&list[at + 1..], count - 1) {
            rest.push(first);
            all.push(rest);
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arena::Request;
    use crate::units::Bytes;

    fn instance(requests: &[(u64, u64, u64)]) -> Instance {
        let request = |&(start, end, size)| Request::new(start, end, Bytes::new(size));
        let requests: Vec<_> = requests.iter().map(request).collect();
        Instance::new(&requests, Bytes::new(1))
    }

    /// ```text
    ///   ┌─────┬──────────┐ 100
    ///   │  d  │    c     │
    ///   │     ├─────┬────┤ 70
    ///   │     │  e  │    │
    ///   ├─────┴─────┤  b │ 31
    ///   │     a     │    │
    ///   └───────────┴────┘ 0
    ///   0     1     2    3
    /// ```
    #[test]
    fn a_pinwheel_becomes_one_block() {
        let (a, b, c) = ((0, 2, 31), (2, 3, 70), (1, 3, 30));
        let (d, e) = ((0, 1, 69), (1, 2, 39));
        let whole = instance(&[a, b, c, d, e]);
        let shrunk = shrink(&whole, 3);
        assert_eq!(shrunk.instance.items.len(), 1);
        assert_eq!(shrunk.expand(&[0]), [0, 0, 70, 31, 31]);
        assert_eq!(whole.height(&shrunk.expand(&[0])), 100);
    }

    #[test]
    fn what_does_not_fit_together_is_left_alone() {
        let whole = instance(&[(0, 2, 31), (1, 3, 40), (2, 4, 17)]);
        for seed in 0..8 {
            let shrunk = shrink(&whole, seed);
            assert_eq!(shrunk.instance.items.len(), 3);
            assert_eq!(shrunk.kept.len(), 3);
        }
    }
}
