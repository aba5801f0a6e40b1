//! What to call two accesses of one buffer that nothing orders.

use super::super::order::Moment;
use super::super::violation::Fault;
use super::{is_fetch, Now, Replay};
use crate::schedule::{Access, Buffer, Stream};

impl Replay<'_> {
    /// A read that no order ties to the write that was met before it.
    pub(super) fn read_race(
        &self,
        now: Now,
        buffer: &Buffer,
        access: Access,
        writer: Moment,
    ) -> Fault {
        if !self.same_step(now.moment, writer) {
            Fault::RaceAcrossSteps
        } else if access == Access::Update || self.updates(writer, buffer) {
            Fault::UnorderedUpdate
        } else if is_fetch(now, buffer) {
            Fault::FetchBeforeOffload
        } else {
            Fault::MissingEvent
        }
    }

    /// A write that no order ties to an access that was met before it.
    pub(super) fn write_race(
        &self,
        now: Now,
        buffer: &Buffer,
        access: Access,
        other: Moment,
        read: bool,
    ) -> Fault {
        let source = read && self.is_copy(other);
        if !self.same_step(now.moment, other) {
            Fault::RaceAcrossSteps
        } else if access == Access::Update || self.updates(other, buffer) {
            Fault::UnorderedUpdate
        } else if source && other.stream == Stream::H2d as u8 {
            Fault::FetchBeforeOffload
        } else if source {
            Fault::SourceOverwritten
        } else if self.is_copy(now.moment) {
            Fault::LandingInUse
        } else {
            Fault::MissingEvent
        }
    }

    /// Whether the instruction at a moment changes the buffer in place.
    pub(super) fn updates(&self, moment: Moment, buffer: &Buffer) -> bool {
        let place = self.order.place(moment);
        let operands = &self.schedule.stream(place.stream)[place.index].operands;
        operands.iter().any(|operand| {
            operand.access == Access::Update
                && self
                    .schedule
                    .buffers
                    .get(operand.buffer)
                    .is_some_and(|b| std::ptr::eq(b, buffer))
        })
    }
}
