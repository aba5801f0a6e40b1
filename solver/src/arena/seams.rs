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
//! height. That sizes agree proves nothing, so a failure says nothing; another seed may tell the
//! seams of equal sums apart.

use super::generate::Random;
use super::instance::{Instance, Item};
use std::collections::HashMap;

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
                Kind::Parallel(below, above) => open.extend([(below, at), (above, at + size(below))]),
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

/// The instance with the cuts undone that its sizes tell; seeds differ in which come first.
pub(crate) fn shrink(instance: &Instance, seed: u64) -> Shrunk {
    let mut network = Network::new(instance, seed);
    let mut open: Vec<u32> = (0..network.seams.len() as u32).collect();
    while let Some(seam) = open.pop() {
        if let Some([from, to]) = network.shrink_at(seam) {
            open.extend([seam, from, to]);
        }
    }
    let Network { blocks, seams } = network;
    let kept: Vec<u32> = seams.into_iter().flat_map(|(_, begins)| begins).collect();
    let item = |&request: &u32| {
        let Block { lo, hi, size, .. } = blocks[request as usize];
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
        blocks,
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
    /// One block for each item, between its seams.
    fn new(instance: &Instance, seed: u64) -> Self {
        let mut random = Random::new(seed);
        let mut boundaries: Vec<Seam> = vec![Seam::default(); instance.sections + 1];
        for (i, item) in (0..).zip(&instance.items) {
            boundaries[item.hi as usize].0.push(i);
            boundaries[item.lo as usize].1.push(i);
        }
        let mut seams = Vec::new();
        for (mut ends, mut begins) in boundaries {
            if ends.is_empty() || begins.is_empty() {
                // The beginning or the end of all time.
                seams.push((ends, begins));
                continue;
            }
            random.shuffle(&mut ends);
            random.shuffle(&mut begins);
            let chance = (instance.lower_bound >> 6).saturating_mul(1 << (2 * seed).min(62));
            part(&instance.items, ends, begins, chance, &mut seams);
        }
        let block = |(i, item): (u32, &Item)| Block {
            from: 0,
            to: 0,
            lo: item.lo,
            hi: item.hi,
            size: item.size,
            kind: Kind::Item(i),
        };
        let mut blocks: Vec<Block> = (0..).zip(&instance.items).map(block).collect();
        for (seam, (ends, begins)) in (0..).zip(&seams) {
            ends.iter().for_each(|&i| blocks[i as usize].to = seam);
            begins.iter().for_each(|&i| blocks[i as usize].from = seam);
        }
        Self { blocks, seams }
    }

    fn block(&self, i: u32) -> Block {
        self.blocks[i as usize]
    }

    /// Makes one block of several around `seam` if a rule says so, and says between which seams.
    fn shrink_at(&mut self, seam: u32) -> Option<[u32; 2]> {
        let found = self.series(seam).or_else(|| self.parallel(seam)).or_else(|| self.bridge(seam));
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
        [(one, other), (other, one)].into_iter().find_map(|(middle, upper_right)| {
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

/// Most items at one seam while others may remain.
const MOST_AT_A_SEAM: usize = 7;
/// Most subsets of one size that are looked at.
const MOST_SUBSETS: usize = 20_000;

/// The items that end and begin at one boundary, parted into seams, the smallest first.
fn part(items: &[Item], mut ends: Vec<u32>, mut begins: Vec<u32>, chance: u64, seams: &mut Vec<Seam>) {
    let sum = |list: &[u32]| list.iter().map(|&i| items[i as usize].size).sum::<u64>();
    for together in 2..=MOST_AT_A_SEAM {
        for ending in 1..together {
            while let Some(seam) = equal(&ends, &begins, ending, together - ending, chance, &sum) {
                ends.retain(|i| !seam.0.contains(i));
                begins.retain(|i| !seam.1.contains(i));
                seams.push(seam);
            }
        }
    }
    if sum(&ends) == sum(&begins) {
        seams.push((ends, begins));
    } else {
        // What has no partner has a seam of its own.
        seams.extend(ends.iter().map(|&i| (vec![i], Vec::new())));
        seams.extend(begins.iter().map(|&i| (Vec::new(), vec![i])));
    }
}

/// So many of the ends and so many of the beginnings that have the same sum.
fn equal(
    ends: &[u32],
    begins: &[u32],
    ending: usize,
    beginning: usize,
    chance: u64,
    sum: &impl Fn(&[u32]) -> u64,
) -> Option<Seam> {
    if (choices(ends.len(), ending) as u64).saturating_mul(choices(begins.len(), beginning) as u64) > chance { return None; }
    let subsets = |list: &[u32], count| {
        let few = choices(list.len(), count) <= MOST_SUBSETS;
        few.then(|| subsets(list, count))
    };
    let (left, right) = (subsets(ends, ending)?, subsets(begins, beginning)?);
    let by_sum: HashMap<u64, &Vec<u32>> = left.iter().map(|subset| (sum(subset), subset)).collect();
    right.into_iter().find_map(|subset| {
        let other = by_sum.get(&sum(&subset))?;
        Some(((*other).clone(), subset))
    })
}

/// How many subsets of `count` there are among `of`.
fn choices(of: usize, count: usize) -> usize {
    (0..count).fold(1, |ways, i| ways * of.saturating_sub(i) / (i + 1))
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
