//! Laws of the chain strategies on random small chains, against the exhaustive oracle.

use ebbtide_solver::chain::{
    exhaustive, greedy, ilp, replay, rotor, Chain, Failure, Layer, Solution, Status,
};
use ebbtide_solver::units::{Bytes, Nanos};

/// SplitMix64 (Steele, Lea, Flood 2014).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
    fn within(&mut self, low: u64, high: u64) -> u64 {
        low + self.next() % (high - low + 1)
    }
}

/// A chain of 2 to 6 layers; every other seed has outputs as large as internals, every third
/// transients of any size.
fn random_chain(seed: u64) -> Chain {
    let mut random = Random(seed);
    let largest_out = if seed % 2 == 0 { 6 } else { 20 };
    let layer = |random: &mut Random| {
        let internal = random.within(0, 20);
        let transient = if seed % 3 == 0 {
            random.within(0, 40)
        } else {
            internal
        };
        Layer {
            forward: Nanos::new(random.within(0, 20)),
            backward: Nanos::new(random.within(0, 20)),
            internal_bytes: Bytes::new(internal),
            out_bytes: Bytes::new(random.within(0, largest_out)),
            nograd_tmp_bytes: Bytes::new(transient),
        }
    };
    let count = random.within(2, 6);
    let layers: Vec<Layer> = (0..count).map(|_| layer(&mut random)).collect();
    let held: Bytes = layers
        .iter()
        .map(|layer| layer.internal_bytes + layer.out_bytes)
        .sum();
    let budget = Bytes::new(random.within(held.get() / 4, held.get() * 5 / 4));
    Chain {
        input_bytes: Bytes::new(random.within(0, 6)),
        layers,
        budget,
    }
}

/// What every solution must be, whatever found it.
fn check(seed: u64, chain: &Chain, solution: &Solution) {
    let replayed = replay(chain, &solution.sequence).expect("legal");
    assert_eq!(replayed.makespan, solution.makespan, "seed {seed}");
    assert_eq!(replayed.peak, solution.peak, "seed {seed}");
    assert!(solution.peak <= chain.budget, "seed {seed}");
    assert!(solution.bound <= solution.makespan, "seed {seed}");
    let proved = solution.bound == solution.makespan;
    assert_eq!(solution.status == Status::Optimal, proved, "seed {seed}");
}

#[test]
fn no_strategy_beats_the_oracle_and_no_bound_exceeds_it() {
    let (mut feasible, mut infeasible) = (0, 0);
    for seed in 0..600 {
        let chain = random_chain(seed);
        let others = [
            ilp::solve(&chain, None),
            rotor::solve(&chain, None),
            greedy::solve(&chain),
        ];
        let Ok(oracle) = exhaustive::solve(&chain, None) else {
            assert!(
                others.iter().all(Result::is_err),
                "seed {seed}: the oracle missed a schedule"
            );
            infeasible += 1;
            continue;
        };
        feasible += 1;
        check(seed, &chain, &oracle);
        for solution in others.iter().flatten() {
            check(seed, &chain, solution);
            assert!(solution.makespan >= oracle.makespan, "seed {seed}");
            assert!(solution.bound <= oracle.makespan, "seed {seed}");
        }
        let ilp = others[0]
            .as_ref()
            .unwrap_or_else(|error| panic!("seed {seed}: {error}"));
        assert_eq!(
            ilp.makespan, oracle.makespan,
            "seed {seed}: short chains are solved exactly"
        );
    }
    println!("{feasible} feasible, {infeasible} infeasible");
    assert!(
        feasible > 200 && infeasible > 50,
        "{feasible} feasible, {infeasible} infeasible"
    );
}

#[test]
fn more_budget_is_never_slower() {
    for seed in 0..200 {
        let mut chain = random_chain(seed);
        for solve in [ilp::solve, rotor::solve] {
            let mut before: Option<Solution> = None;
            for budget in (10..200).step_by(19) {
                chain.budget = Bytes::new(budget);
                let solution = solve(&chain, None).ok();
                if let Some(before) = before {
                    let now = solution.as_ref().expect("what fitted still fits");
                    assert!(
                        now.makespan <= before.makespan,
                        "seed {seed} budget {budget}"
                    );
                    assert!(now.bound <= before.bound, "seed {seed} budget {budget}");
                }
                before = solution;
            }
        }
    }
}

#[test]
fn the_budget_named_by_a_refusal_would_do() {
    for seed in 0..200 {
        let mut chain = random_chain(seed);
        chain.budget = Bytes::new(chain.budget.get() / 3);
        for solve in [ilp::solve, rotor::solve, |chain: &Chain, _| {
            greedy::solve(chain)
        }] {
            let smallest = match solve(&chain, None) {
                Ok(_) => continue,
                Err(Failure::LayerDoesNotFit {
                    needed, smallest, ..
                }) => {
                    assert!(needed <= smallest, "seed {seed}");
                    smallest
                }
                Err(Failure::Infeasible { smallest }) => smallest,
                Err(other) => panic!("seed {seed}: {other}"),
            };
            assert!(smallest > chain.budget, "seed {seed}");
            let enough = Chain {
                budget: smallest,
                ..chain.clone()
            };
            assert!(solve(&enough, None).is_ok(), "seed {seed}: {smallest}");
        }
    }
}

#[test]
fn chains_that_cannot_be_used_are_refused() {
    let chain = random_chain(1);
    let none = Chain {
        layers: Vec::new(),
        ..chain.clone()
    };
    assert_eq!(ilp::solve(&none, None), Err(Failure::Empty));
    let mut huge = chain.clone();
    huge.layers[1].internal_bytes = Bytes::MAX;
    assert_eq!(rotor::solve(&huge, None), Err(Failure::TooLarge("sizes")));
    let mut slow = chain.clone();
    slow.layers[0].forward = Nanos::MAX;
    assert_eq!(greedy::solve(&slow), Err(Failure::TooLarge("times")));
    let long = Chain {
        layers: vec![Layer::default(); 13],
        ..chain.clone()
    };
    let refused = Err(Failure::TooManyLayers {
        layers: 13,
        limit: 12,
    });
    assert_eq!(exhaustive::solve(&long, None), refused);
    let long = Chain {
        layers: vec![Layer::default(); 1025],
        ..chain
    };
    let refused = Err(Failure::TooManyLayers {
        layers: 1025,
        limit: 1024,
    });
    assert_eq!(ilp::solve(&long, None), refused);
}
