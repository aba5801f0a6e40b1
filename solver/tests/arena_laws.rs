//! Laws of the arena: what holds for every instance, on random ones. A failure names its seed.

use ebbtide_solver::arena::bilevel::{flatten, place_in_two_levels, Phase};
use ebbtide_solver::arena::generate::{
    churn, cut_rectangle, training_step, Cut, Random, Rectangle,
};
use ebbtide_solver::arena::{
    lower_bound, place, place_quick, validate, Options, Placement, Request, Rules, Status,
    DEFAULT_ALIGNMENT,
};
use ebbtide_solver::units::Bytes;

const ONE: Bytes = Bytes::new(1);

fn random_requests(random: &mut Random, count: u64, positions: u64, sizes: u64) -> Vec<Request> {
    let mut requests = Vec::new();
    for _ in 0..count {
        let (a, b) = (random.below(positions), random.below(positions));
        requests.push(Request::new(
            a.min(b),
            a.max(b) + 1,
            Bytes::new(random.below(sizes)),
        ));
    }
    requests
}

fn check_laws(requests: &[Request], alignment: Bytes, placement: &Placement, what: &str) {
    assert_eq!(validate(requests, alignment, placement), [], "{what}");
    assert!(placement.height >= placement.lower_bound, "{what}");
    assert!(
        placement.lower_bound >= lower_bound(requests, alignment),
        "{what}"
    );
    let optimal = placement.height == placement.lower_bound;
    assert_eq!(optimal, placement.status == Status::Optimal, "{what}");
    let empty = |r: &Request| r.size.is_zero() || r.start >= r.end;
    for (request, offset) in requests.iter().zip(&placement.offsets) {
        assert!(!empty(request) || offset.is_zero(), "{what}");
    }
}

/// The least height: drops the requests onto each other in every order in which the offsets never
/// decrease. Any placement pushed down is one of these. Looks only below `attained`, and no further
/// once at the live bytes.
fn least_height(requests: &[Request], attained: Bytes) -> u64 {
    struct State<'a> {
        requests: &'a [Request],
        /// Requests placed, with their offsets.
        placed: Vec<(usize, u64)>,
        best: u64,
        live: u64,
    }
    fn extend(state: &mut State, height: u64) {
        if state.placed.len() == state.requests.len() {
            state.best = height;
        }
        for (next, request) in state.requests.iter().enumerate() {
            if state.placed.iter().any(|&(index, _)| index == next) {
                continue;
            }
            let meets = |other: &Request| request.start < other.end && other.start < request.end;
            let ends = state
                .placed
                .iter()
                .map(|&(i, offset)| (&state.requests[i], offset));
            let under = ends.filter(|(other, _)| meets(other));
            let offset = under
                .map(|(other, o)| o + other.size.get())
                .max()
                .unwrap_or(0);
            let last = state.placed.last().map_or(0, |&(_, offset)| offset);
            let higher = height.max(offset + request.size.get());
            if offset >= last && higher < state.best && state.best > state.live {
                state.placed.push((next, offset));
                extend(state, higher);
                state.placed.pop();
            }
        }
    }
    let live = lower_bound(requests, ONE).get();
    let mut state = State {
        requests,
        placed: Vec::new(),
        best: attained.get(),
        live,
    };
    extend(&mut state, 0);
    state.best
}

#[test]
fn a_switch_never_changes_the_optimum() {
    // Only where the heuristics miss the bound does the exact search decide anything.
    let (mut searched, mut above_live) = (0, 0);
    for seed in 0..600 {
        let requests = churn(16, 6, seed);
        let quick = place_quick(&requests, ONE, Bytes::ZERO);
        if quick.status == Status::Optimal || requests.len() > 12 {
            continue;
        }
        searched += 1;
        let least = least_height(&requests, quick.height);
        above_live += u32::from(least > lower_bound(&requests, ONE).get());
        for bits in 0..32u32 {
            let on = |bit: u32| bits >> bit & 1 == 1;
            let rules = Rules {
                decompose: on(0),
                nogoods: on(1),
                twins: on(2),
                holes: on(3),
                supports: on(4),
            };
            let options = Options {
                alignment: ONE,
                rules,
                ..Options::default()
            };
            let placement = place(&requests, &options);
            check_laws(
                &requests,
                ONE,
                &placement,
                &format!("seed {seed}, {rules:?}"),
            );
            assert_eq!(placement.height.get(), least, "seed {seed}, {rules:?}");
            assert_eq!(placement.status, Status::Optimal, "seed {seed}, {rules:?}");
            let capacity = Some(Bytes::new(least - 1));
            let placement = place(
                &requests,
                &Options {
                    capacity,
                    ..options
                },
            );
            assert_eq!(
                placement.status,
                Status::Infeasible,
                "seed {seed}, {rules:?}"
            );
        }
    }
    println!("{searched} searched, {above_live} of them need more than the live bytes");
    assert!(
        above_live >= 3,
        "{above_live} of {searched} need more than the live bytes"
    );
}

#[test]
fn every_placement_is_valid_and_not_below_its_bound() {
    for seed in 0..40 {
        let mut random = Random::new(seed);
        let count = 1 + random.below(120);
        let requests = random_requests(&mut random, count, 40, 5000);
        for alignment in [ONE, DEFAULT_ALIGNMENT, Bytes::new(96)] {
            let what = format!("seed {seed}, alignment {alignment}");
            let quick = place_quick(&requests, alignment, Bytes::ZERO);
            check_laws(&requests, alignment, &quick, &what);
            let options = Options {
                alignment,
                nodes: 3_000,
                ..Options::default()
            };
            let placement = place(&requests, &options);
            check_laws(&requests, alignment, &placement, &what);
            assert!(placement.height <= quick.height, "{what}");
            let twice = place(&requests, &options);
            assert_eq!(
                placement, twice,
                "without a deadline, the same twice: {what}"
            );
        }
    }
}

#[test]
fn the_exact_search_refits_cut_rectangles() {
    for cut in Cut::ALL {
        for seed in 0..5 {
            let rectangle = Rectangle {
                time: 30,
                capacity: 900,
                pieces: 60,
                shrunk_percent: 0,
                cut,
            };
            let requests = cut_rectangle(&rectangle, seed);
            let placement = place(
                &requests,
                &Options {
                    alignment: ONE,
                    ..Options::default()
                },
            );
            check_laws(&requests, ONE, &placement, &format!("{cut:?}, seed {seed}"));
            assert_eq!(placement.height.get(), 900, "{cut:?}, seed {seed}");
        }
    }
}

#[test]
fn a_second_thread_finds_the_same_height() {
    let rectangle = Rectangle {
        time: 50,
        capacity: 4096,
        pieces: 80,
        shrunk_percent: 0,
        cut: Cut::Pinwheel,
    };
    let requests = cut_rectangle(&rectangle, 5);
    for threads in [1, 2, 3] {
        let options = Options {
            alignment: ONE,
            threads,
            ..Options::default()
        };
        assert_eq!(
            place(&requests, &options).status,
            Status::Optimal,
            "{threads} threads"
        );
    }
}

#[test]
fn a_training_step_comes_within_a_percent_of_its_live_bytes() {
    for seed in 0..5 {
        let requests = training_step(32, 60, seed);
        let placement = place_quick(&requests, DEFAULT_ALIGNMENT, Bytes::ZERO);
        check_laws(
            &requests,
            DEFAULT_ALIGNMENT,
            &placement,
            &format!("seed {seed}"),
        );
        let (height, bound) = (placement.height.get(), placement.lower_bound.get());
        assert!(
            height <= bound + bound / 100,
            "seed {seed}: {height} above {bound}"
        );
    }
}

#[test]
fn two_levels_are_valid_and_never_below_one() {
    for seed in 0..20 {
        let mut random = Random::new(seed);
        let phase = |random: &mut Random, first: u64| Phase {
            requests: random_requests(random, 8, 10, 50),
            begins: (0..6).map(|layer| 10 * (first + layer)).collect(),
        };
        let phases = [phase(&mut random, 0), phase(&mut random, 6)];
        let others = random_requests(&mut random, 5, 120, 50);
        let options = Options {
            alignment: ONE,
            nodes: 20_000,
            ..Options::default()
        };
        let placement = place_in_two_levels(&phases, &others, &options);
        let all = flatten(&phases, &others);
        check_laws(&all, ONE, &placement, &format!("seed {seed}"));
    }
}

#[test]
fn nothing_needs_nothing() {
    for requests in [
        vec![],
        vec![Request::new(3, 5, Bytes::ZERO), Request::new(4, 4, ONE)],
    ] {
        let placement = place(&requests, &Options::default());
        check_laws(&requests, DEFAULT_ALIGNMENT, &placement, "empty");
        assert_eq!(
            (placement.height, placement.status),
            (Bytes::ZERO, Status::Optimal)
        );
    }
}
