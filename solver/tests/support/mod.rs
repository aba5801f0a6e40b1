//! A tiny complete schedule for the tests of the referee, by hand.
#![allow(dead_code, reason = "each test binary uses its part")]

pub mod faults;
pub mod mutation;
pub mod oracle;
pub mod problems;
pub mod random;

use ebbtide_solver::ids::{BufferId, EventId, Id, OpId, Table, ValueId};
use std::num::NonZeroU64;

use ebbtide_solver::machine::{HostAdam, Link, LinkRates, Links, Machine, Slowdown};
use ebbtide_solver::problem::{Budget, Category, Domain};
use ebbtide_solver::schedule::{
    Access, Action, Buffer, Instruction, Operand, Schedule, ScheduledGroup, ScheduledOp,
    ScheduledValue, Space, Stream,
};
use ebbtide_solver::units::{Bytes, BytesPerSec, Nanos, Span};

pub const EMBED: usize = 0;
pub const PROJ: usize = 1;
pub const ATTENTION: usize = 2;
pub const OUT: usize = 3;
pub const ROTATE: usize = 4;
pub const LOSS: usize = 5;
pub const BACK: usize = 6;
pub const GATHER: usize = 7;
pub const SGD: usize = 8;

const TOKENS: u64 = 8;
const TILE: u64 = 4;
const GROUPS: u64 = 2;
const ALL: Span = Span::new(0, TOKENS);
const BOTH: Span = Span::new(0, GROUPS);

/// An instruction by stream and position.
pub type At = (Stream, usize);

struct Builder {
    schedule: Schedule,
}

impl Builder {
    /// Values that it reads, updates, accumulates and writes.
    fn op(&mut self, name: &str, domain: Domain, uses: [&[ValueId]; 4]) {
        let [reads, updates, accumulates, writes] = uses.map(<[_]>::to_vec);
        self.schedule.ops.push(ScheduledOp {
            name: name.to_string(),
            block: (name == "attention").then_some(0),
            domain,
            memory_bound: false,
            required: true,
            reads,
            writes,
            accumulates,
            updates,
        });
    }
    fn value(&mut self, name: &str, category: Category, row: u64, fixed: u64) -> ValueId {
        self.schedule.values.push(ScheduledValue {
            name: name.to_string(),
            block: None,
            category,
            row_bytes: row,
            packed_row_bytes: None,
            fixed_bytes: Bytes::new(fixed),
            by_groups: matches!(name, "q" | "o"),
        })
    }
    fn buffer(
        &mut self,
        value: Option<ValueId>,
        (space, offset): (Space, u64),
        rows: Span,
        groups: Span,
    ) -> BufferId {
        let (category, bytes) = match value.map(|v| &self.schedule.values[v]) {
            None => (Category::Workspace, 512),
            Some(v) if v.row_bytes == 0 => (v.category, v.fixed_bytes.get()),
            Some(v) => {
                let all = v.row_bytes * rows.len();
                (
                    v.category,
                    if v.by_groups {
                        all * groups.len() / GROUPS
                    } else {
                        all
                    },
                )
            }
        };
        self.schedule.buffers.push(Buffer {
            value,
            category,
            space,
            offset: Bytes::new(offset),
            bytes: Bytes::new(bytes),
            rows,
            groups,
            packed: false,
            persistent: false,
            lifetime: Span::new(0, 1000),
        })
    }
    fn persistent(&mut self, value: ValueId, space: Space, offset: u64) -> BufferId {
        let id = self.buffer(Some(value), (space, offset), ALL, BOTH);
        self.schedule.buffers[id].persistent = true;
        id
    }
    fn push(
        &mut self,
        stream: Stream,
        action: Action,
        (rows, groups, micro_batch): (Span, Span, u32),
        operands: &[(Access, BufferId)],
        after: &[At],
    ) -> At {
        let waits = after.iter().map(|&(s, index)| {
            let events = &mut self.schedule.events;
            *self.schedule.streams[s as usize][index]
                .signals
                .get_or_insert_with(|| {
                    *events += 1;
                    EventId::from_index(*events as usize - 1)
                })
        });
        let waits = waits.collect();
        let operands = operands
            .iter()
            .map(|&(access, buffer)| Operand { buffer, access })
            .collect();
        let duration = Nanos::new(100);
        let list = &mut self.schedule.streams[stream as usize];
        list.push(Instruction {
            action,
            rows,
            groups,
            micro_batch,
            operands,
            waits,
            signals: None,
            duration,
        });
        (stream, list.len() - 1)
    }
}

pub fn op(index: usize) -> OpId {
    OpId::from_index(index)
}

/// A machine with one byte a nanosecond each way.
pub fn unit_machine() -> Machine {
    let rate = BytesPerSec::new(1_000_000_000).expect("not zero");
    let link = Link {
        latency: Nanos::ZERO,
        rate,
    };
    Machine {
        links: Links {
            d2h: link,
            h2d: link,
            both: LinkRates {
                d2h: rate,
                h2d: rate,
            },
        },
        matmul_slowdown: Slowdown::default(),
        elementwise_slowdown: Slowdown::default(),
        packing: None,
        host_adam: HostAdam {
            params_per_s: NonZeroU64::MIN,
            bytes_per_param: Bytes::new(28),
        },
        host_memory: None,
    }
}

/// Two micro-batches of a model with an embedding, two head groups of attention and a loss.
///
/// ```text
/// compute  ▌embed embed │ (proj proj attention) × 2 │ out × 4 │ rotate × 2 │ loss × 2 │
///          │ embed again │ (back back gather) × 2 │ … second micro-batch … │ sgd ▐
/// d2h           x0 ►                                                  dw ►
/// host                                                                    update
/// h2d                                  ► x0b                                     ► w
/// ```
/// Rows 0..4 of `x` travel, rows 4..8 are made again; `w` is updated by the host, `u` on the
/// device.
pub fn tiny() -> Schedule {
    tiny_of(2)
}

/// The same with this many micro-batches.
pub fn tiny_of(micro_batches: u32) -> Schedule {
    use Access::{Read as R, Update as U, Write as W};
    use Category::*;
    use Space::{Device, Host};
    let mut b = Builder {
        schedule: Schedule {
            tokens: TOKENS,
            groups: GROUPS,
            micro_batches,
            passes: 1,
            ops: Table::new(),
            values: Table::new(),
            state_groups: Vec::new(),
            buffers: Table::new(),
            streams: Default::default(),
            events: 0,
            arena_bytes: Bytes::new(8704),
            host_bytes: Bytes::new(3584),
            budget: Budget {
                device: Bytes::new(9216),
                host: Bytes::new(4096),
            },
            machine: unit_machine(),
        },
    };
    let t = b.value("ids", Transients, 128, 0);
    let w = b.value("w", Weights, 0, 512);
    let u = b.value("u", Weights, 0, 512);
    let dw = b.value("dw", Gradients, 0, 512);
    let du = b.value("du", Gradients, 0, 512);
    let adam = b.value("adam", OptimizerStates, 0, 1024);
    let x = b.value("x", Activations, 128, 0);
    let q = b.value("q", Transients, 128, 0);
    let o = b.value("o", Transients, 128, 0);
    let y = b.value("y", Transients, 128, 0);
    let dy = b.value("dy", Transients, 128, 0);

    b.op("embed", Domain::Rows, [&[t, w], &[], &[], &[x]]);
    b.op("proj", Domain::RowsOfGroup, [&[x, u], &[], &[], &[q]]);
    b.op("attention", Domain::Group, [&[q], &[], &[], &[o]]);
    b.op("out", Domain::RowsOfGroup, [&[o], &[], &[y], &[]]);
    b.op("rotate", Domain::Rows, [&[], &[y], &[], &[]]);
    b.op("loss", Domain::Rows, [&[y], &[], &[], &[dy]]);
    b.op("back", Domain::RowsOfGroup, [&[x, dy], &[], &[du], &[]]);
    b.op("gather", Domain::Rows, [&[t, dy], &[], &[dw], &[]]);
    b.op("sgd", Domain::Whole, [&[du], &[u], &[], &[]]);
    let group = |name: &str, weight, gradient, states: Option<ValueId>| ScheduledGroup {
        name: name.into(),
        weights: vec![weight],
        gradients: vec![gradient],
        states,
        on_host: states.is_some(),
    };
    b.schedule.state_groups = vec![
        group("embedding", w, dw, Some(adam)),
        group("head", u, du, None),
    ];
    let run = |index: usize| Action::Run(op(index));

    let ids = b.persistent(t, Device, 0);
    let w_device = b.persistent(w, Device, 1024);
    let u_device = b.persistent(u, Device, 1536);
    let adam_host = b.persistent(adam, Host, 1024);
    let du_device = b.buffer(Some(du), (Device, 2048), ALL, BOTH);
    let dw_device = b.buffer(Some(dw), (Device, 2560), ALL, BOTH);
    let dw_host = b.buffer(Some(dw), (Host, 512), ALL, BOTH);
    let w_host = b.persistent(w, Host, 2048);

    let tiles = [Span::new(0, TILE), Span::new(TILE, TOKENS)];
    let heads = [Span::new(0, 1), Span::new(1, 2)];
    b.push(Stream::Compute, Action::Barrier, (ALL, BOTH, 0), &[], &[]);
    let mut last = (Stream::Compute, 0);
    for m in 0..micro_batches {
        let first = |yes: bool| if m == 0 && yes { W } else { U };
        let x0 = b.buffer(Some(x), (Device, 3072), tiles[0], BOTH);
        let x1 = b.buffer(Some(x), (Device, 3584), tiles[1], BOTH);
        let qs = [4096, 4608].map(|at| (Device, at));
        let qs = [
            b.buffer(Some(q), qs[0], ALL, heads[0]),
            b.buffer(Some(q), qs[1], ALL, heads[1]),
        ];
        let os = [5120, 5632].map(|at| (Device, at));
        let os = [
            b.buffer(Some(o), os[0], ALL, heads[0]),
            b.buffer(Some(o), os[1], ALL, heads[1]),
        ];
        let sum = b.buffer(Some(y), (Device, 6144), ALL, BOTH);
        let d_sum = b.buffer(Some(dy), (Device, 7168), ALL, BOTH);
        let scratch = b.buffer(None, (Device, 8192), ALL, BOTH);
        let x0_host = b.buffer(Some(x), (Host, 0), tiles[0], BOTH);
        let x0_back = b.buffer(Some(x), (Device, 4096), tiles[0], BOTH);
        let x1_back = b.buffer(Some(x), (Device, 5120), tiles[1], BOTH);
        let compute = |b: &mut Builder, action, rows, groups, operands: &[_], after: &[At]| {
            b.push(Stream::Compute, action, (rows, groups, m), operands, after)
        };

        let embed = [(R, ids), (R, w_device), (W, x0)];
        let made = compute(&mut b, run(EMBED), tiles[0], BOTH, &embed, &[]);
        let embed = [(R, ids), (R, w_device), (W, x1)];
        compute(&mut b, run(EMBED), tiles[1], BOTH, &embed, &[]);
        let copy = [(R, x0), (W, x0_host)];
        let sent = b.push(
            Stream::D2h,
            Action::Copy,
            (tiles[0], BOTH, m),
            &copy,
            &[made],
        );
        let mut free = made;
        for (g, head) in heads.into_iter().enumerate() {
            for (tile, from) in tiles.into_iter().zip([x0, x1]) {
                let proj = [(R, from), (R, u_device), (W, qs[g])];
                compute(&mut b, run(PROJ), tile, head, &proj, &[]);
            }
            let attend = [(R, qs[g]), (W, os[g])];
            let at = compute(&mut b, run(ATTENTION), ALL, head, &attend, &[]);
            free = if g == 0 { at } else { free };
        }
        for tile in tiles {
            for g in 0..2 {
                let out = [(R, os[g]), (if g == 0 { W } else { U }, sum)];
                compute(&mut b, run(OUT), tile, heads[g], &out, &[]);
            }
        }
        for tile in tiles {
            compute(&mut b, run(ROTATE), tile, BOTH, &[(U, sum)], &[]);
        }
        for tile in tiles {
            let loss = [(R, sum), (W, d_sum), (W, scratch)];
            compute(&mut b, run(LOSS), tile, BOTH, &loss, &[]);
        }
        let copy = [(R, x0_host), (W, x0_back)];
        let back = b.push(
            Stream::H2d,
            Action::Copy,
            (tiles[0], BOTH, m),
            &copy,
            &[sent, free],
        );
        let again = [(R, ids), (R, w_device), (W, x1_back)];
        compute(
            &mut b,
            Action::Recompute(op(EMBED)),
            tiles[1],
            BOTH,
            &again,
            &[],
        );
        for (i, from) in [x0_back, x1_back].into_iter().enumerate() {
            for (g, head) in heads.into_iter().enumerate() {
                let after = if (i, g) == (0, 0) { vec![back] } else { vec![] };
                let operands = [(R, from), (R, d_sum), (first(i + g == 0), du_device)];
                compute(&mut b, run(BACK), tiles[i], head, &operands, &after);
            }
            let gather = [(R, ids), (R, d_sum), (first(i == 0), dw_device)];
            last = compute(&mut b, run(GATHER), tiles[i], BOTH, &gather, &[]);
        }
    }
    let end = (ALL, BOTH, micro_batches - 1);
    b.push(
        Stream::Compute,
        run(SGD),
        end,
        &[(R, du_device), (U, u_device)],
        &[],
    );
    let sent = b.push(
        Stream::D2h,
        Action::Copy,
        end,
        &[(R, dw_device), (W, dw_host)],
        &[last],
    );
    let update = [(R, dw_host), (U, adam_host), (U, w_host)];
    let update = b.push(Stream::Host, Action::HostUpdate(0), end, &update, &[sent]);
    let back = b.push(
        Stream::H2d,
        Action::Copy,
        end,
        &[(R, w_host), (W, w_device)],
        &[update],
    );
    b.push(Stream::Compute, Action::Barrier, end, &[], &[back]);
    let length = b.schedule.streams[0].len() as u64;
    for buffer in b.schedule.buffers.values_mut() {
        buffer.lifetime = Span::new(0, length);
    }
    b.schedule
}

/// The positions on the compute stream of the runs of an operator.
pub fn runs(schedule: &Schedule, index: usize) -> Vec<usize> {
    let list = schedule.stream(Stream::Compute).iter().enumerate();
    list.filter(|(_, i)| i.action == Action::Run(op(index)))
        .map(|(at, _)| at)
        .collect()
}
