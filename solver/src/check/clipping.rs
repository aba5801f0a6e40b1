//! Clipping by the global norm: where gradients are counted, no weight changes before all are.
//!
//! That each is counted once, and in the first of two passes, is for `coverage` to see.

use super::form::operator;
use super::order::{Moment, Order};
use super::violation::{Fault, Findings};
use crate::problem::Category;
use crate::schedule::{Action, Instruction, Schedule, Stream, GRADIENT_NORM};

pub(super) fn check_counted(schedule: &Schedule, order: &Order, findings: &mut Findings) {
    let is_norm = |i: &Instruction| {
        operator(schedule, i.action).is_some_and(|(_, op)| op.name == GRADIENT_NORM)
    };
    // What comes after the last of a stream comes after all of it.
    let last = |stream: Stream| {
        let index = schedule.stream(stream).iter().rposition(is_norm)?;
        Some(order.moment(0, stream, index))
    };
    let last: Vec<Moment> = Stream::ALL.into_iter().filter_map(last).collect();
    if last.is_empty() {
        return;
    }
    for stream in Stream::ALL {
        let all = schedule.stream(stream).iter().enumerate();
        for (index, _) in all.filter(|(_, i)| changes_weights(schedule, i)) {
            let update = order.moment(0, stream, index);
            let clock = order.clock(update);
            if let Some(&norm) = last.iter().find(|norm| !norm.before(clock)) {
                let (at, other) = (order.place(update), order.place(norm));
                findings.add(Fault::UpdatedBeforeCounted, Some(at), None, Some(other));
            }
        }
    }
}

fn changes_weights(schedule: &Schedule, instruction: &Instruction) -> bool {
    let Some((_, op)) = operator(schedule, instruction.action) else {
        return matches!(instruction.action, Action::HostUpdate(_));
    };
    let mut updated = op.updates.iter().filter_map(|&v| schedule.values.get(v));
    updated.any(|value| value.category == Category::Weights)
}
