//! Small random problems of the solver's vocabulary, shaped like those that a model is lowered to.
//!
//! ```text
//! embed │ x ─ norm ─ n1 ─ project ─ qkv ─ attend ─ o ─ out ─ x2 ─ up ─ h ─ down ─ next x │ … │
//! head
//! ```
//! A block has attention, an MLP or both; what a block lacks, its neighbours read past. Backward
//! changes one residual gradient in place, block by block. Sizes, times, tiles, links, budgets,
//! head groups, micro-batches and methods (fused, clipped, with or without states, on the host) are
//! random. In half of the problems what is saved may be packed.

mod drawing;

use super::random::Random;
use drawing::draw;
use ebbtide_solver::build::build;
use ebbtide_solver::ids::Id;
use ebbtide_solver::machine::{HostAdam, Link, LinkRates, Links, Machine, Slowdown};
use ebbtide_solver::plan::{Fate, Hold, Placement, Plan};
use ebbtide_solver::problem::{Budget, Problem};
use ebbtide_solver::search::exhaustive;
use ebbtide_solver::units::{Bytes, BytesPerSec, Nanos};
use std::num::NonZeroU64;

/// How a random problem is drawn.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    /// Most plans that it may have; none for any number.
    pub most_plans: Option<u64>,
    /// Most blocks.
    pub most_blocks: usize,
    /// 1 byte/ns each way without latency or contention.
    pub unit_machine: bool,
}

/// The problem of a seed; draws again until it has few enough plans.
pub fn random_problem(seed: u64, shape: Shape) -> Problem {
    let (mut random, mut packing) = (Random::new(seed), Random::new(!seed));
    loop {
        let mut problem = draw(&mut random, shape);
        pack(&mut problem, &mut packing);
        let few = |most| exhaustive::count(&problem).is_some_and(|plans| plans <= most);
        if shape.most_plans.is_none_or(few) {
            return with_budget(problem, &mut random);
        }
    }
}

/// Any plan of a problem.
pub fn random_plan(problem: &Problem, random: &mut Random) -> Plan {
    let mut plan = Plan::keep_all(problem);
    let bias = random.below(4);
    for (fate, (id, tensor)) in plan.fates.values_mut().zip(problem.tensors.iter()) {
        let pieces = tensor.pieces as usize;
        let (a, b) = (random.below(pieces + 1), random.below(pieces + 1));
        let (low, high) = (a.min(b) as u32, a.max(b) as u32);
        *fate = match (bias, random.below(3)) {
            (0, _) | (_, 0) => Fate {
                keep: low,
                swap: high - low,
                ..Fate::RECOMPUTED
            },
            (1, _) => Fate::RECOMPUTED,
            (2, _) => Fate::swapped(tensor.pieces),
            _ => Fate::kept(tensor.pieces),
        };
        if problem.packs(id) {
            fate.pack = random.below(fate.keep as usize + 1) as u32;
            fate.keep -= fate.pack;
        }
    }
    let alike = random.below(2) == 0;
    let first = random.below(3);
    for (placement, group) in plan.placements.iter_mut().zip(&problem.states) {
        let which = if alike { first } else { random.below(3) };
        *placement = match which {
            0 => Placement::Resident,
            1 if group.host.is_some() => Placement::HostOptimizer,
            _ => Placement::Streamed,
        };
    }
    plan.hold = random.pick(&Hold::CHOICES);
    if random.below(2) == 0 {
        plan.hold.ahead = random.below(problem.blocks() as usize + 1) as u32;
    }
    plan.weight_gap = random.below(5) as u32;
    plan
}

/// A number between two powers of ten, every order of magnitude as likely.
fn log_uniform(random: &mut Random, low: u64, high: u64) -> u64 {
    let share = random.below(1 << 20) as f64 / f64::from(1 << 20);
    (low as f64 * (high as f64 / low as f64).powf(share)) as u64
}

/// Lets most saved values be packed, some to more than they are, at some rate or in no time.
fn pack(problem: &mut Problem, random: &mut Random) {
    if random.below(2) == 0 {
        return;
    }
    let share = 20 + random.below(60) as u64;
    for tensor in problem.tensors.values() {
        let value = &mut problem.values[tensor.value];
        let share = random.pick(&[None, Some(share), Some(share), Some(share), Some(110)]);
        // Head groups are of equal sizes.
        value.packed_row_bytes = share.map(|share| value.row_bytes * share / 100 / 2 * 2);
    }
    problem.machine.packing = random.pick(&[true, true, false]).then(|| Link {
        latency: Nanos::new(random.pick(&[0, 3_000])),
        rate: BytesPerSec::new(log_uniform(random, 1 << 29, 1 << 38)).expect("positive"),
    });
}

fn machine(random: &mut Random, unit: bool) -> Machine {
    let rate = |value: u64| BytesPerSec::new(value).expect("positive");
    let mut link = |low, high| Link {
        latency: Nanos::new(if unit { 0 } else { random.pick(&[0, 10_000]) }),
        rate: rate(if unit {
            1_000_000_000
        } else {
            log_uniform(random, low, high)
        }),
    };
    let (d2h, h2d) = (link(1 << 30, 1 << 36), link(1 << 30, 1 << 36));
    let mut beside = |link: Link| {
        let percent = if unit {
            100
        } else {
            30 + random.below(71) as u64
        };
        rate((link.rate.get() / 100 * percent).max(1))
    };
    let both = LinkRates {
        d2h: beside(d2h),
        h2d: beside(h2d),
    };
    let mut slowdown = || match unit || random.below(2) == 0 {
        true => Slowdown::default(),
        false => {
            let (a, b) = (random.below(50_000) as u32, random.below(50_000) as u32);
            Slowdown {
                d2h_ppm: a,
                h2d_ppm: b,
                both_ppm: a.max(b) + random.below(30_000) as u32,
            }
        }
    };
    Machine {
        links: Links::new(d2h, h2d, both),
        matmul_slowdown: slowdown(),
        elementwise_slowdown: slowdown(),
        packing: None,
        host_adam: HostAdam {
            params_per_s: NonZeroU64::new(1_000_000_000).expect("positive"),
            bytes_per_param: Bytes::new(28),
        },
        host_memory: (!unit && random.below(2) == 0).then(|| rate(100_000_000_000)),
    }
}

/// Between what the leanest plan needs, or a little less, and what everything needs.
fn with_budget(mut problem: Problem, random: &mut Random) -> Problem {
    let all = Bytes::new(1 << 50);
    problem.budget = Budget {
        device: all,
        host: all,
    };
    let mut lean = Plan::keep_all(&problem);
    lean.hold = Hold::NONE;
    lean.placements.fill(Placement::Streamed);
    lean.fates.values_mut().for_each(|f| *f = Fate::RECOMPUTED);
    let peak = |plan: &Plan| build(&problem, plan).map_or(0, |b| b.peak.get());
    let (low, high) = (peak(&lean), peak(&Plan::keep_all(&problem)));
    // Retirements at the end keep the lean plan's copies alive; start below it.
    let low = low.min(high) * 9 / 10;
    let device = low + random.next() % (high - low + high / 20 + 1);
    let swapped: u64 = (0..problem.tensors.len())
        .map(|t| problem.tensor_bytes(Id::from_index(t)).get())
        .sum();
    let states: u64 = problem
        .states
        .iter()
        .map(|g| {
            g.weights
                .iter()
                .map(|&w| problem.value_bytes(w).get() * 5)
                .sum::<u64>()
        })
        .sum();
    let host = random.next() % (swapped * 2 + states * 2 + 1);
    problem.budget = Budget {
        device: Bytes::new(device),
        host: Bytes::new(host),
    };
    problem
}
