//! One decision: is there a placement within `capacity`? Depth first, with restarts.
//!
//! The *floor* of a section is where the next item over it lies at the earliest. Where the floor
//! has a local minimum, the next item over a section either lies on the floor, and then inside the
//! minimum, so that nothing is wasted under it; or it lies higher, and then it rests on something
//! else. That is the branching: complete, without double counting of placements, and a section
//! with no slack has no second half. The section with the fewest ways to go on is taken first.
//!
//! ```text
//!            ┌────┐
//!  ┌──┐      │    │     section s: one of the unplaced items inside the minimum and
//!  │  │    s │    │     over s lies here, or all of them lie on a neighbour or on an
//!  │  └──────┘    │     item that does not cover s
//! ```
//!
//! Which placements count: only those where every item rests on the ground or on another (any
//! placement can be pushed down to one), and among these only those with the least sum of offsets.

mod branch;

use super::super::generate::Random;
use super::super::instance::{Instance, Item};
use super::nogoods::Nogoods;
use super::Rules;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant as Clock;

/// What a search came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    /// Offsets within the capacity.
    Fits(Vec<u64>),
    /// There is no placement within the capacity.
    Never,
    /// Out of nodes, out of time or told to stop.
    Unknown,
}

/// Which items are tried first in a section.
#[derive(Clone, Copy, Debug)]
pub(crate) enum First {
    Widest,
    LargestArea,
    Largest,
}

/// Which section is taken first.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Choose {
    /// Fewest ways to go on, over how often it was where a state failed.
    FewestWeighted,
    /// Fewest ways to go on.
    Fewest,
    /// The earliest in time.
    Leftmost,
    /// Least slack, over how often it was where a state failed.
    TightestWeighted,
}

/// How one run goes; changes what is found first, never what is true.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Style {
    pub first: First,
    pub choose: Choose,
    /// Perturbs the order of items; zero does not.
    pub seed: u64,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Outcome {
    Solved,
    Failed,
    Stopped,
}

/// When a search stops without an answer.
#[derive(Clone, Copy)]
pub(crate) struct Limits<'a> {
    pub deadline: Option<Clock>,
    /// Set by another search that has the answer.
    pub stop: &'a AtomicBool,
}

/// Calls of `solve_part` between two looks at the clock.
const NODES_PER_LOOK: u64 = 64;
/// Deepest recursion; with it `STACK_BYTES` suffice.
const MAX_DEPTH: u32 = 60_000;
/// Stack of a thread that searches.
pub(crate) const STACK_BYTES: usize = 256 << 20;

/// Everything a search reads and changes.
pub(crate) struct Search<'a> {
    items: &'a [Item],
    capacity: u64,
    rules: Rules,
    limits: Limits<'a>,
    style: Style,
    nodes_left: u64,
    depth: u32,
    /// By item: no unplaced item lies below this.
    lowest: Vec<u64>,
    /// By item: where it lies, once placed.
    offsets: Vec<u64>,
    /// By item: random bits of this run.
    noise: Vec<u64>,
    /// By section: the least `lowest` of the unplaced items over it.
    floor: Vec<u64>,
    /// By section: where the unplaced items over it end at the earliest, by themselves.
    end: Vec<u64>,
    /// By section: where the placed items over it end.
    top: Vec<u64>,
    /// By section: how often a state failed there, recent failures counting more.
    weight: Vec<f64>,
    blame: f64,
    /// By section, scratch: end of its plateau if that is a local minimum of the floor, else 0.
    minimum: Vec<u32>,
    /// By section, scratch.
    count: Vec<u32>,
    nogoods: Nogoods,
}

impl<'a> Search<'a> {
    pub fn new(instance: &'a Instance, capacity: u64, rules: Rules, limits: Limits<'a>) -> Self {
        let (items, sections) = (instance.items.len(), instance.sections);
        Self {
            items: &instance.items,
            capacity,
            rules,
            limits,
            style: Style {
                first: First::Largest,
                choose: Choose::Fewest,
                seed: 0,
            },
            nodes_left: 0,
            depth: 0,
            lowest: vec![0; items],
            offsets: vec![0; items],
            noise: vec![0; items],
            floor: vec![0; sections],
            end: vec![0; sections],
            top: vec![0; sections],
            weight: vec![1.0; sections],
            blame: 1.0,
            minimum: vec![0; sections],
            count: vec![0; sections],
            nogoods: Nogoods::new(),
        }
    }

    /// Searches from the start with at most `nodes` nodes; keeps the nogoods and weights that
    /// earlier runs learnt.
    pub fn run(&mut self, style: Style, nodes: u64) -> Answer {
        let mut random = Random::new(style.seed);
        self.noise.fill_with(|| random.bits());
        (self.style, self.nodes_left, self.depth) = (style, nodes, 0);
        self.lowest.fill(0);
        self.top.fill(0);
        let all: Vec<u32> = (0..self.items.len() as u32).collect();
        match self.solve(&all) {
            Outcome::Solved => Answer::Fits(self.offsets.clone()),
            Outcome::Failed => Answer::Never,
            Outcome::Stopped => Answer::Unknown,
        }
    }

    /// Whether the deadline has passed or another search has the answer.
    pub fn must_stop(&self) -> bool {
        self.limits.stop.load(Ordering::Relaxed)
            || self
                .limits
                .deadline
                .is_some_and(|deadline| Clock::now() >= deadline)
    }

    /// Places `items`, all that is unplaced over their sections, part by part.
    ///
    /// On `Failed`, the state of these sections and items is undefined.
    fn solve(&mut self, items: &[u32]) -> Outcome {
        let mut parts = self.parts(items);
        if !parts.iter_mut().all(|part| self.bound(part)) {
            return Outcome::Failed;
        }
        // A part that fails makes the others pointless: the quickest to answer goes first.
        parts.sort_by_key(Vec::len);
        for part in &parts {
            let outcome = self.solve_part(part);
            if outcome != Outcome::Solved {
                return outcome;
            }
        }
        Outcome::Solved
    }

    /// `items` split where none crosses from one section into the next.
    fn parts(&mut self, items: &[u32]) -> Vec<Vec<u32>> {
        if items.is_empty() || !self.rules.decompose {
            return if items.is_empty() {
                Vec::new()
            } else {
                vec![items.to_vec()]
            };
        }
        let range = self.sections(items);
        // Boundaries crossed: up by one after `lo`, down by one after the last section.
        self.count[range.clone()].fill(0);
        for &i in items {
            let item = &self.items[i as usize];
            let (first, last) = (item.lo as usize, item.hi as usize - 1);
            self.count[first] = self.count[first].wrapping_add(1);
            self.count[last] = self.count[last].wrapping_sub(1);
        }
        let (mut part, mut crossing) = (0, 0u32);
        for count in &mut self.count[range] {
            crossing = crossing.wrapping_add(*count);
            *count = part;
            part += u32::from(crossing == 0);
        }
        if part == 1 {
            return vec![items.to_vec()];
        }
        let mut parts = vec![Vec::new(); part as usize];
        for &i in items {
            parts[self.count[self.items[i as usize].lo as usize] as usize].push(i);
        }
        // A section over which nothing is left makes an empty part.
        parts.retain(|part| !part.is_empty());
        parts
    }

    /// From the first to the last section of `items`.
    fn sections(&self, items: &[u32]) -> std::ops::Range<usize> {
        let lo = items
            .iter()
            .map(|&i| self.items[i as usize].lo)
            .min()
            .unwrap_or(0);
        let hi = items
            .iter()
            .map(|&i| self.items[i as usize].hi)
            .max()
            .unwrap_or(0);
        lo as usize..hi as usize
    }

    /// Sets `floor` and `end` over the sections of `items`; false when an end is too high.
    ///
    /// In one section the items follow each other, each from its `lowest` at the earliest: one
    /// machine with release dates, whose least end comes from taking them in order of release.
    fn bound(&mut self, items: &mut [u32]) -> bool {
        let sections = self.sections(items);
        items.sort_by_key(|&i| self.lowest[i as usize]);
        self.end[sections.clone()].fill(0);
        // Where nothing is left to place there is a wall.
        self.floor[sections.clone()].fill(u64::MAX);
        for &i in items.iter() {
            let item = &self.items[i as usize];
            let (lowest, size) = (self.lowest[i as usize], item.size);
            let range = item.sections();
            for (end, floor) in self.end[range.clone()]
                .iter_mut()
                .zip(&mut self.floor[range])
            {
                *floor = lowest.min(*floor);
                // Below the sum of all sizes; wrapping lets the loop be vectorised.
                *end = lowest.max(*end).wrapping_add(size);
            }
        }
        let full = self.end[sections.clone()]
            .iter()
            .position(|&end| end > self.capacity);
        if let Some(section) = full {
            self.blame *= 1.0005;
            self.weight[sections.start + section] += self.blame;
            if self.blame > 1e100 {
                self.weight.iter_mut().for_each(|weight| *weight *= 1e-100);
                self.blame = 1.0;
            }
        }
        full.is_none()
    }

    /// Places the items of one part, for which `bound` has just held.
    fn solve_part(&mut self, items: &[u32]) -> Outcome {
        self.nodes_left = self.nodes_left.saturating_sub(1);
        let look = self.nodes_left % NODES_PER_LOOK == 0;
        if self.nodes_left == 0 || self.depth > MAX_DEPTH || look && self.must_stop() {
            return Outcome::Stopped;
        }
        let sections = self.sections(items);
        let key = self
            .rules
            .nogoods
            .then(|| self.fingerprint(items, sections.clone()));
        if key.is_some_and(|key| self.nogoods.contains(key)) {
            return Outcome::Failed;
        }
        self.depth += 1;
        let section = self.choose(items, sections.clone());
        let outcome = self.branch(items, section, sections);
        self.depth -= 1;
        if let (Outcome::Failed, Some(key)) = (outcome, key) {
            self.nogoods.insert(key);
        }
        outcome
    }

    /// All that the completions of a state depend on.
    fn fingerprint(&self, items: &[u32], sections: std::ops::Range<usize>) -> (u64, u64) {
        let mut key = (0u64, 0u64);
        let mut add = |what: u64, value: u64| {
            let mut mixed = value ^ what.wrapping_mul(0x9e37_79b9_7f4a_7c15);
            mixed = (mixed ^ (mixed >> 29)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            mixed = (mixed ^ (mixed >> 32)).wrapping_mul(0x94d0_49bb_1331_11eb);
            mixed ^= mixed >> 29;
            key = (
                key.0 ^ mixed,
                key.1.wrapping_add(mixed.wrapping_mul(mixed | 1)),
            );
        };
        for &i in items {
            add(u64::from(i), self.lowest[i as usize]);
        }
        if self.rules.holes {
            for section in sections {
                if self.top[section] < self.floor[section] {
                    add(section as u64 | 1 << 40, self.top[section]);
                }
            }
        }
        key
    }
}
