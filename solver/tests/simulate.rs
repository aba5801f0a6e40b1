//! The simulator on unit hardware: every timeline is drawn and is mental arithmetic.

use std::num::NonZeroU64;

use ebbtide_solver::ids::{EventId, Id, OpId, Table};
use ebbtide_solver::machine::{HostAdam, Link, LinkRates, Links, Machine, Slowdown};
use ebbtide_solver::problem::{Budget, Category, Domain};
use ebbtide_solver::schedule::Stream::{self, Compute, D2h, H2d, Host};
use ebbtide_solver::schedule::{
    Access, Action, Buffer, Instruction, Operand, Schedule, ScheduledOp, Space,
};
use ebbtide_solver::simulate::{simulate, try_simulate, Stuck};
use ebbtide_solver::units::{Bytes, BytesPerSec, Nanos, Span};

fn rate(per_ns_percent: u64) -> BytesPerSec {
    BytesPerSec::new(per_ns_percent * 10_000_000).expect("positive")
}

/// 1 byte/ns each way; so much of it beside the other direction. No slowdown.
fn machine(beside_percent: u64) -> Machine {
    let link = Link {
        latency: Nanos::ZERO,
        rate: rate(100),
    };
    let both = LinkRates {
        d2h: rate(beside_percent),
        h2d: rate(beside_percent),
    };
    Machine {
        links: Links::new(link, link, both),
        matmul_slowdown: Slowdown::default(),
        elementwise_slowdown: Slowdown::default(),
        packing: None,
        host_adam: HostAdam {
            params_per_s: NonZeroU64::new(1_000_000_000).expect("positive"),
            bytes_per_param: Bytes::new(2),
        },
        host_memory: None,
    }
}

/// Instructions by stream: durations, the events that each waits for, the event that it signals.
struct Sketch(Schedule);

impl Sketch {
    fn on(machine: Machine) -> Self {
        let op = |memory_bound| ScheduledOp {
            name: String::new(),
            block: None,
            domain: Domain::Whole,
            memory_bound,
            required: true,
            reads: Vec::new(),
            writes: Vec::new(),
            accumulates: Vec::new(),
            updates: Vec::new(),
        };
        let all = Bytes::new(1 << 40);
        Self(Schedule {
            tokens: 1,
            groups: 1,
            micro_batches: 1,
            passes: 1,
            ops: [op(false), op(true)].into_iter().collect(),
            values: Table::new(),
            state_groups: Vec::new(),
            buffers: Table::new(),
            streams: Default::default(),
            events: 10,
            arena_bytes: Bytes::ZERO,
            host_bytes: Bytes::ZERO,
            budget: Budget {
                device: all,
                host: all,
            },
            machine,
        })
    }
    fn add(
        mut self,
        stream: Stream,
        action: Action,
        ns: u64,
        waits: &[usize],
        signals: usize,
    ) -> Self {
        self.0.streams[stream as usize].push(Instruction {
            action,
            rows: Span::new(0, 1),
            groups: Span::new(0, 1),
            micro_batch: 0,
            operands: Vec::new(),
            waits: waits.iter().map(|&e| EventId::from_index(e)).collect(),
            signals: (signals < 10).then(|| EventId::from_index(signals)),
            duration: Nanos::new(ns),
        });
        self
    }
    fn run(self, ns: u64, waits: &[usize], signals: usize) -> Self {
        self.add(
            Compute,
            Action::Run(OpId::from_index(0)),
            ns,
            waits,
            signals,
        )
    }
    fn elementwise(self, ns: u64) -> Self {
        self.add(Compute, Action::Run(OpId::from_index(1)), ns, &[], NONE)
    }
    fn copy(self, stream: Stream, ns: u64, waits: &[usize], signals: usize) -> Self {
        self.add(stream, Action::Copy, ns, waits, signals)
    }
    /// A copy that packs 30 bytes into 10.
    fn packing(mut self, stream: Stream, ns: u64) -> Self {
        let side = |bytes: u64| Buffer {
            value: None,
            category: Category::Activations,
            space: Space::Device,
            offset: Bytes::ZERO,
            bytes: Bytes::new(bytes),
            rows: Span::new(0, 1),
            groups: Span::new(0, 1),
            packed: false,
            persistent: false,
            lifetime: Span::new(0, 1),
        };
        let sides = [(side(30), Access::Read), (side(10), Access::Write)];
        let operands = sides.map(|(buffer, access)| Operand {
            buffer: self.0.buffers.push(buffer),
            access,
        });
        self = self.copy(stream, ns, &[], NONE);
        let copy = self.0.streams[stream as usize].last_mut();
        copy.expect("just added").operands = operands.to_vec();
        self
    }
    fn step(&self) -> u64 {
        simulate(&self.0).step.get()
    }
}

/// No event.
const NONE: usize = 10;

#[test]
fn operators_follow_one_another() {
    // compute |aaa|bbbb|ccccc|
    //         0   3    7     12
    let sketch = Sketch::on(machine(100))
        .run(3, &[], NONE)
        .run(4, &[], NONE)
        .run(5, &[], NONE);
    assert_eq!(sketch.step(), 12);
}

fn swap_beside(b: u64) -> Sketch {
    Sketch::on(machine(100))
        .run(10, &[], 0)
        .run(b, &[], NONE)
        .run(10, &[2], NONE)
        .copy(D2h, 8, &[0], 1)
        .copy(H2d, 8, &[1], 2)
}

#[test]
fn a_swap_hides_behind_compute() {
    // compute |a 10 |b 20          |c 10 |
    // d2h           |8   |
    // h2d                |8   |
    //         0     10   18   26   30    40
    assert_eq!(swap_beside(20).step(), 40);
}

#[test]
fn a_swap_that_comes_late_stalls_compute() {
    // compute |a 10 |b 5|.. 11 ...|c 10 |
    // d2h           |8   |
    // h2d                |8       |
    //         0     10 15 18      26    36
    let timeline = simulate(&swap_beside(5).0);
    assert_eq!(timeline.step.get(), 36);
    assert_eq!(timeline.stall.get(), 11);
}

#[test]
fn both_directions_share_the_polygon() {
    // 0.8 bytes/ns each while both are busy, 1 alone.
    // d2h |40 bytes at 0.8   |
    // h2d |40 bytes at 0.8   |60 bytes at 1     |
    //     0                  50                 110
    let sketch = Sketch::on(machine(80))
        .copy(D2h, 40, &[], NONE)
        .copy(H2d, 100, &[], NONE);
    assert_eq!(sketch.step(), 110);
}

#[test]
fn copies_that_only_take_turns_are_as_fast_as_turns() {
    // Measured slower together than by turns, 0.3 each: by turns is what the polygon allows.
    // d2h |50 bytes at 0.5      |
    // h2d |50 bytes at 0.5      |
    //     0                    100
    let sketch = Sketch::on(machine(30))
        .copy(D2h, 50, &[], NONE)
        .copy(H2d, 50, &[], NONE);
    assert_eq!(sketch.step(), 100);
}

#[test]
fn copies_slow_compute_beside_them() {
    // A matrix product takes twice as long beside a copy to the host, an element-wise one does not.
    // compute |25 of 100 done|75              |
    // d2h     |50            |
    //         0              50               125
    let slow = Machine {
        matmul_slowdown: Slowdown {
            d2h_ppm: 1_000_000,
            h2d_ppm: 0,
            both_ppm: 1_000_000,
        },
        ..machine(100)
    };
    let sketch = Sketch::on(slow)
        .run(100, &[], NONE)
        .copy(D2h, 50, &[], NONE);
    assert_eq!(sketch.step(), 125);
    assert_eq!(simulate(&sketch.0).slowed.get(), 25);
    let sketch = Sketch::on(slow).elementwise(100).copy(D2h, 50, &[], NONE);
    assert_eq!(sketch.step(), 100);
}

/// 1 byte/ns is packed.
fn packs() -> Machine {
    let packing = Link {
        latency: Nanos::ZERO,
        rate: rate(100),
    };
    Machine {
        packing: Some(packing),
        ..machine(100)
    }
}

#[test]
fn packing_within_a_copy_is_taken_from_compute() {
    // Packing 30 bytes into 10 takes 40 ns of the device, here within a copy of 50.
    // compute |10 of 100 done|90              |
    // d2h     |50            |
    //         0              50               140
    let sketch = || Sketch::on(packs()).run(100, &[], NONE);
    let one = sketch().packing(D2h, 50);
    assert_eq!(one.step(), 140);
    assert_eq!(simulate(&one.0).slowed.get(), 40);
    // Two of them want 80 ns of 50, so they share the device and compute waits.
    // compute |                        |100           |
    // both    |80                      |
    //         0                        80             180
    let two = sketch().packing(D2h, 50).packing(H2d, 50);
    assert_eq!(two.step(), 180);
}

#[test]
fn packing_on_the_compute_stream_is_a_part_of_its_own() {
    // compute |10|pack 40|10|
    //         0          50 60
    let sketch = Sketch::on(packs()).run(10, &[], NONE);
    let timeline = simulate(&sketch.packing(Compute, 40).run(10, &[], NONE).0);
    assert_eq!(timeline.step.get(), 60);
    assert_eq!((timeline.compute.get(), timeline.packing.get()), (20, 40));
    assert_eq!((timeline.slowed.get(), timeline.stall.get()), (0, 0));
}

fn host_optimizer(machine: Machine) -> Sketch {
    let barrier = Action::Barrier;
    Sketch::on(machine)
        .run(10, &[], NONE)
        .run(10, &[], 0)
        .add(Compute, barrier, 0, &[3], NONE)
        .copy(D2h, 5, &[0], 1)
        .add(Host, Action::HostUpdate(0), 7, &[1], 2)
        .copy(H2d, 5, &[2], 3)
}

#[test]
fn the_host_optimizer_is_a_tail() {
    // compute |forward 10|backward 10|                      |end
    // d2h                            |gradient 5|
    // host                                      |update 7|
    // h2d                                                |weights 5|
    //         0          10          20         25       32        37
    let timeline = simulate(&host_optimizer(machine(100)).0);
    assert_eq!(timeline.step.get(), 37);
    assert_eq!((timeline.stall.get(), timeline.tail.get()), (0, 17));
}

#[test]
fn copies_take_host_memory_from_the_optimizer() {
    // Memory moves 2 bytes/ns; the optimizer wants all of it, a copy takes one.
    // d2h  |100          |
    // host |50 of 100    |50     |
    //      0            100     150
    let narrow = Machine {
        host_memory: Some(rate(200)),
        ..machine(100)
    };
    let sketch = Sketch::on(narrow).copy(D2h, 100, &[], NONE).add(
        Host,
        Action::HostUpdate(0),
        100,
        &[],
        NONE,
    );
    assert_eq!(sketch.step(), 150);
}

#[test]
fn streams_that_wait_for_one_another_are_reported() {
    // compute |a 5|waits for the copy
    // d2h     |waits for b
    let sketch = Sketch::on(machine(100))
        .run(5, &[], NONE)
        .run(5, &[1], 0)
        .copy(D2h, 5, &[0], 1);
    assert_eq!(
        try_simulate(&sketch.0),
        Err(Stuck::Deadlock {
            stream: Compute,
            index: 1
        })
    );
    let sketch = Sketch::on(machine(100)).copy(H2d, 5, &[7], NONE);
    assert_eq!(
        try_simulate(&sketch.0),
        Err(Stuck::Deadlock {
            stream: H2d,
            index: 0
        })
    );
}

#[test]
fn time_beyond_64_bits_is_an_error() {
    let sketch = Sketch::on(machine(100))
        .run(u64::MAX, &[], NONE)
        .run(1, &[], NONE);
    assert_eq!(try_simulate(&sketch.0), Err(Stuck::Overflow));
}
