//! The referee: may this schedule be run?
//!
//! In: a [`Schedule`]. Out: everything that is wrong with it. It shares no code with whatever made
//! the schedule or simulates it, and looks at nothing but the schedule itself: durations do not
//! count, only order does. What holds under happens-before holds for every speed of every stream.
//!
//! - `form`: ids, spans, sizes, capacities, streams; whatever one entry shows by itself.
//! - `uses`: every instruction has the operands that its operator or group of states is said to.
//! - `coverage`: every required operator runs exactly once on every range of every micro-batch.
//! - `order`: stream order and events give each instruction a vector clock; or a deadlock.
//! - `clipping`: no weight changes before every gradient has been counted for the global norm.
//! - `replay`: two steps back to back. Each buffer is cut into cells of rows, and each cell
//!   remembers its last write and the last read of every stream since: two accesses of which one
//!   writes must be ordered (the race detection of FastTrack, Flanagan and Freund 2009). A cell
//!   also remembers what has been added to it, whose micro-batch it is and which update of the
//!   weights it holds. `bytes` gives every byte an owner: who takes it must come after all uses of
//!   the owner before, and the owner before must never come back.
//!
//! A race is found in whatever order the instructions are met, since clocks tell; that order only
//! decides which of the two is called the culprit.
//!
//! What it does not know: which operators the model consists of (it believes the schedule's list
//! and what that says each reads and writes), what they compute, and whether a plan is any good.

mod bytes;
mod cells;
mod clipping;
mod coverage;
mod form;
mod order;
mod replay;
mod uses;
mod violation;

pub use violation::{Fault, Place, Violation};

use crate::schedule::Schedule;
use violation::Findings;

/// Everything that is wrong with a schedule, at most a hundred violations of each kind; nothing if
/// it may be run for any number of steps. Never panics, whatever the schedule holds.
pub fn check(schedule: &Schedule) -> Vec<Violation> {
    let mut findings = Findings::default();
    if form::check_limits(schedule, &mut findings) {
        form::check_form(schedule, &mut findings);
        uses::check_uses(schedule, &mut findings);
        coverage::check_coverage(schedule, &mut findings);
        if let Some(order) = order::order(schedule, &mut findings) {
            clipping::check_counted(schedule, &order, &mut findings);
            replay::replay(schedule, &order, &mut findings);
        }
    }
    findings.into_violations()
}
