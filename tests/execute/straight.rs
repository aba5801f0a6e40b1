//! The same step without a plan: every operator of a schedule once, in order, on buffers that hold
//! whole values side by side. What a plan keeps, moves, frees and makes again must not change a
//! bit.
#![allow(dead_code, reason = "each test binary uses its part")]

use std::collections::BTreeMap;

use ebbtide_solver::build::ALIGNMENT;
use ebbtide_solver::ids::{BufferId, ValueId};
use ebbtide_solver::problem::{Category, Domain};
use ebbtide_solver::schedule::{
    Access, Action, Buffer, Instruction, Operand, Schedule, Space, Stream,
};
use ebbtide_solver::units::{Bytes, Nanos, Span};

/// The straight schedule of a planned one: same tiles, same head groups, nothing else of the plan.
pub fn straight(planned: &Schedule) -> Schedule {
    let mut straight = Schedule {
        buffers: Default::default(),
        streams: Default::default(),
        events: 0,
        arena_bytes: Bytes::ZERO,
        host_bytes: Bytes::ZERO,
        ..planned.clone()
    };
    let mut whole = Whole {
        planned,
        places: BTreeMap::new(),
    };
    for instruction in planned.stream(Stream::Compute) {
        if matches!(instruction.action, Action::Recompute(_)) {
            continue;
        }
        let operands = instruction.operands.iter().map(|operand| Operand {
            buffer: whole.of(&mut straight, &planned.buffers[operand.buffer]),
            access: operand.access,
        });
        let operands = operands.collect();
        straight.streams[0].push(Instruction {
            operands,
            waits: Vec::new(),
            signals: None,
            ..instruction.clone()
        });
    }
    let end = straight.streams[0].pop().expect("a barrier ends it");
    for group in planned.state_groups.iter().filter(|g| g.on_host) {
        for (&weight, &gradient) in group.weights.iter().zip(&group.gradients) {
            whole.update(&mut straight, (weight, gradient, group.states));
        }
    }
    straight.streams[0].push(end);
    let length = straight.streams[0].len() as u64;
    for buffer in straight.buffers.values_mut() {
        buffer.lifetime = Span::new(0, length);
    }
    straight
        .state_groups
        .iter_mut()
        .for_each(|g| g.on_host = false);
    straight.budget.device = straight.arena_bytes;
    straight
}

/// What runs of straight schedules left: plans of one cut have much the same straight one.
pub struct Kept<T>(Vec<(Schedule, T)>);

impl<T> Kept<T> {
    /// None yet.
    pub fn new() -> Self {
        Self(Vec::new())
    }

    /// What the straight schedule of a planned one left; it is run where none like it was.
    pub fn of(&mut self, planned: &Schedule, run: impl FnOnce(&Schedule) -> T) -> &T {
        let straight = straight(planned);
        let known = self.0.iter().position(|(known, _)| *known == straight);
        let known = known.unwrap_or_else(|| {
            let left = run(&straight);
            self.0.push((straight, left));
            self.0.len() - 1
        });
        &self.0[known].1
    }
}

struct Whole<'a> {
    planned: &'a Schedule,
    /// The buffer of a value's head groups.
    places: BTreeMap<(Option<ValueId>, Span), BufferId>,
}

impl Whole<'_> {
    /// The whole buffer of what a buffer holds a part of; scratch memory is a buffer of its own.
    fn of(&mut self, straight: &mut Schedule, part: &Buffer) -> BufferId {
        let Some(value) = part.value else {
            return push(straight, part.clone());
        };
        self.value(straight, value, part.groups)
    }

    fn value(&mut self, straight: &mut Schedule, value: ValueId, groups: Span) -> BufferId {
        if let Some(&buffer) = self.places.get(&(Some(value), groups)) {
            return buffer;
        }
        let planned = self.planned;
        let v = &planned.values[value];
        let all = v.row_bytes * planned.tokens + v.fixed_bytes.get();
        let share = if v.by_groups { planned.groups } else { 1 };
        let persistent = matches!(v.category, Category::Weights | Category::OptimizerStates);
        let buffer = Buffer {
            value: Some(value),
            category: v.category,
            space: Space::Device,
            offset: Bytes::ZERO,
            bytes: Bytes::new(all / share),
            rows: Span::new(0, planned.tokens),
            groups,
            packed: false,
            persistent,
            lifetime: Span::new(0, 0),
        };
        let id = push(straight, buffer);
        self.places.insert((Some(value), groups), id);
        id
    }

    /// The update of one weight on the device.
    fn update(
        &mut self,
        straight: &mut Schedule,
        (weight, gradient, states): (ValueId, ValueId, Option<ValueId>),
    ) {
        let planned = self.planned;
        let mut ops = planned.ops.iter();
        let updates = ops.find(|(_, op)| op.updates.first() == Some(&weight));
        let (id, op) = updates.expect("every weight has an update");
        let all = Span::new(0, planned.groups);
        let runs: Vec<Span> = match op.domain {
            Domain::Group => (0..planned.groups).map(|g| Span::new(g, g + 1)).collect(),
            _ => vec![all],
        };
        for groups in runs {
            let gradient = self.value(straight, gradient, groups);
            let mut operands = vec![Operand {
                buffer: gradient,
                access: Access::Read,
            }];
            for value in [Some(weight), states].into_iter().flatten() {
                operands.push(Operand {
                    buffer: self.value(straight, value, all),
                    access: Access::Update,
                });
            }
            straight.streams[0].push(Instruction {
                action: Action::Run(id),
                rows: Span::new(0, planned.tokens),
                groups,
                micro_batch: planned.micro_batches - 1,
                operands,
                waits: Vec::new(),
                signals: None,
                duration: Nanos::ZERO,
            });
        }
    }
}

/// Puts a buffer behind all others.
fn push(straight: &mut Schedule, mut buffer: Buffer) -> BufferId {
    buffer.offset = straight.arena_bytes;
    straight.arena_bytes += buffer.bytes.align_up(ALIGNMENT);
    straight.buffers.push(buffer)
}
