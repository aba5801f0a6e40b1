//! Exact search: decide capacity after capacity, from both ends, until bound and height meet.
//!
//! A decision ([`search`]) either fits, or never fits, or runs out of nodes; its runs restart in
//! changing styles with growing limits, since what one order cannot see another often finds at
//! once. The decision at the lower bound comes first, because there every section without slack
//! prunes hardest and a success is a proof; where that gives no answer, looser capacities bring the
//! height down. Before all of them, the cuts of a full arena are undone ([`seams`]).
//!
//! Ideas taken up: canonical placements, sections, decomposition and dominance from M. Moffitt,
//! "MiniMalloc" (ASPLOS 2023); one-machine bounds (Carlier 1982); failure weights (Boussemart et
//! al. 2004) with restarts. Branching at the local minima of the floor is our own.

mod nogoods;
mod search;

use super::instance::{Instance, Known};
use super::{heuristics, seams, Options};
use search::{Answer, Choose, First, Limits, Search, Style, STACK_BYTES};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::Mutex;
use std::time::Instant as Clock;

/// Which pruning rules are on. None changes the optimum.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rules {
    /// Stretches of time that no unplaced item connects are solved one by one.
    pub decompose: bool,
    /// A state that failed once fails at once when it is met again.
    pub nogoods: bool,
    /// Of items with the same lifetime and size, only one is tried.
    pub twins: bool,
    /// No item is placed over a hole into which an unplaced item fits.
    pub holes: bool,
    /// An item that does not lie on the floor must rest on another item's end.
    pub supports: bool,
}

impl Rules {
    /// All rules on.
    pub const ALL: Self = Self {
        decompose: true,
        nogoods: true,
        twins: true,
        holes: true,
        supports: true,
    };
}

impl Default for Rules {
    fn default() -> Self {
        Self::ALL
    }
}

/// The styles that runs cycle through.
const STYLES: [(First, Choose); 6] = [
    (First::Largest, Choose::Fewest),
    (First::Widest, Choose::FewestWeighted),
    (First::LargestArea, Choose::Fewest),
    (First::Widest, Choose::TightestWeighted),
    (First::Widest, Choose::Fewest),
    (First::Widest, Choose::Leftmost),
];
/// Nodes of the first run in each style.
const FIRST_RUN: u64 = 1_000;
/// Nodes of the first decision.
const FIRST_DECISION: u64 = 100_000;

/// Parts with more items are left as the heuristics placed them.
const MOST_ITEMS: usize = 5_000;

/// Brings `known` closer to its optimum, part by part; a height of `goal` or less is low enough.
pub(crate) fn improve(instance: &Instance, known: Known, goal: u64, options: &Options) -> Known {
    let mut best = known;
    let mut parts: Vec<_> = instance
        .parts()
        .into_iter()
        .map(|(part, numbers)| {
            let inherited = numbers.iter().map(|&i| best.offsets[i as usize]).collect();
            let known = heuristics::from(&part, inherited);
            (part, numbers, known)
        })
        .collect();
    // The highest first: once it is done, the others need be no lower than it.
    parts.sort_by_key(|(_, _, known)| std::cmp::Reverse(known.height));
    let mut enough = goal.max(best.lower_bound);
    best.height = 0;
    for (part, numbers, known) in parts {
        let improved = if part.items.len() <= MOST_ITEMS {
            improve_part(&part, known, enough, options)
        } else {
            known
        };
        for (&i, offset) in numbers.iter().zip(improved.offsets) {
            best.offsets[i as usize] = offset;
        }
        best.height = best.height.max(improved.height);
        best.lower_bound = best.lower_bound.max(improved.lower_bound);
        enough = enough.max(improved.height);
    }
    best
}

/// How often cuts are undone in one round, each time a little differently.
const UNDOINGS: u64 = 24;

/// Undoes the cuts of a full arena, and keeps the lowest placement to which that leads.
fn undo_cuts(part: &Instance, known: &mut Known, enough: u64, effort: Effort, options: &Options) {
    let late = || {
        options
            .deadline
            .is_some_and(|deadline| Clock::now() >= deadline)
    };
    let first = u64::from(effort.round) * UNDOINGS;
    for seed in first..first + UNDOINGS {
        if late() || known.height <= enough {
            return;
        }
        let shrunk = seams::shrink(part, seed);
        // Where hardly any sizes agree there are no cuts to be undone.
        if 10 * shrunk.instance.items.len() > 9 * part.items.len() {
            continue;
        }
        let quick = heuristics::quick(&shrunk.instance, enough);
        known.offer(part, shrunk.expand(&quick.offsets));
        if quick.height <= enough {
            return;
        }
        let answer = decide(&shrunk.instance, enough, 0, effort.nodes, options);
        if let Answer::Fits(offsets) = answer {
            known.offer(part, shrunk.expand(&offsets));
        }
    }
}

/// How hard to try.
#[derive(Clone, Copy)]
struct Effort {
    round: u32,
    nodes: u64,
}

/// Decides the least capacity of use, then by ever smaller steps down from the height known, with
/// growing effort.
fn improve_part(part: &Instance, mut known: Known, enough: u64, options: &Options) -> Known {
    let asked = options.capacity.map(|capacity| capacity.get() / part.unit);
    let (mut round, mut left) = (0u32, options.nodes);
    let first = FIRST_DECISION.min(24 * part.items.len() as u64);
    loop {
        let least = known.lower_bound.max(enough);
        let effort = Effort {
            round,
            nodes: first.min(left),
        };
        if left > 0 {
            undo_cuts(part, &mut known, least, effort, options);
        }
        // Asked for a capacity, nothing looser helps.
        let eighths: &[u64] = if asked.is_some() { &[0] } else { &[0, 4, 6, 7] };
        let mut next = 0;
        while let Some(eighth) = eighths.get(next) {
            let least = known.lower_bound.max(enough);
            let late = options
                .deadline
                .is_some_and(|deadline| Clock::now() >= deadline);
            let hopeless = asked.is_some_and(|capacity| known.lower_bound > capacity);
            if known.height <= least || left == 0 || late || hopeless {
                return known;
            }
            let capacity = least + (known.height - 1 - least) * eighth / 8;
            let nodes = left.min(first << (2 * round).min(40));
            left -= nodes;
            match decide(part, capacity, round, nodes, options) {
                Answer::Fits(offsets) => {
                    known.offer(part, offsets);
                    // Halfway down again.
                    next = 1;
                }
                Answer::Never => known.lower_bound = known.lower_bound.max(capacity + 1),
                Answer::Unknown => next += 1,
            }
        }
        round += 1;
    }
}

/// Whether a placement of at most `capacity` exists, searched with `nodes` nodes in each thread.
fn decide(instance: &Instance, capacity: u64, round: u32, nodes: u64, options: &Options) -> Answer {
    if capacity < instance.lower_bound {
        return Answer::Never;
    }
    let stop = AtomicBool::new(false);
    let limits = Limits {
        deadline: options.deadline,
        stop: &stop,
    };
    let found = Mutex::new(Answer::Unknown);
    let worker = |thread: usize| {
        let mut search = Search::new(instance, capacity, options.rules, limits);
        let answer = restarts(&mut search, thread, round, nodes);
        if answer != Answer::Unknown && !stop.swap(true, Ordering::Relaxed) {
            *found.lock().expect("no search panics with the lock held") = answer;
        }
    };
    std::thread::scope(|scope| {
        for thread in 0..options.threads.max(1) {
            // Without a thread there is no answer, which is safe.
            let builder = std::thread::Builder::new().stack_size(STACK_BYTES);
            drop(builder.spawn_scoped(scope, move || worker(thread)));
        }
    });
    found
        .into_inner()
        .expect("no search panics with the lock held")
}

/// Runs in changing styles, each cycle a little longer, until one answers.
fn restarts(search: &mut Search, thread: usize, round: u32, nodes: u64) -> Answer {
    let mut left = nodes;
    let mut limit = FIRST_RUN;
    for cycle in 0.. {
        // Seed zero perturbs nothing.
        let seed = u64::from(round) << 40 | (thread as u64) << 32 | cycle;
        for style in 0..STYLES.len() {
            let (first, choose) = STYLES[(style + thread) % STYLES.len()];
            let run_nodes = limit.min(left);
            let answer = search.run(
                Style {
                    first,
                    choose,
                    seed,
                },
                run_nodes,
            );
            left -= run_nodes;
            if answer != Answer::Unknown || left == 0 || search.must_stop() {
                return answer;
            }
        }
        limit += limit / 4;
    }
    Answer::Unknown
}
