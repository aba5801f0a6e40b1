//! What the referee says: a fault with its place, and one line about it for people.

use std::fmt;

use crate::ids::{BufferId, EventId, Id, OpId, ValueId};
use crate::schedule::Stream;
use crate::units::{Bytes, Span};

/// An instruction in one of the two steps that are replayed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Place {
    /// 1 or 2.
    pub step: u8,
    /// Its stream.
    pub stream: Stream,
    /// Its position on the stream.
    pub index: usize,
}

/// One reason not to run a schedule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// What is wrong.
    pub fault: Fault,
    /// The instruction at which it shows, if it is one's fault.
    pub at: Option<Place>,
    /// The buffer in question, if there is one.
    pub buffer: Option<BufferId>,
    /// The other instruction, where two are at odds.
    pub other: Option<Place>,
}

macro_rules! faults {
    ($($(#[$doc:meta])* $variant:ident $({ $($(#[$fdoc:meta])* $field:ident: $type:ty),* })?
       => $name:literal, $format:literal;)*) => {
        /// What can be wrong with a schedule.
        #[derive(Clone, Debug, PartialEq, Eq)]
        pub enum Fault {
            $($(#[$doc])* $variant $({ $($(#[$fdoc])* $field: $type),* })?,)*
        }
        impl Fault {
            /// The name of every fault, in kebab case.
            pub const NAMES: &'static [&'static str] = &[$($name),*];
            /// The name of the fault, in kebab case.
            pub const fn name(&self) -> &'static str {
                match self { $(Fault::$variant { .. } => $name,)* }
            }
        }
        impl fmt::Display for Fault {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                match self { $(Fault::$variant $({ $($field),* })? => {
                    $($(let $field = Shown($field);)*)?
                    write!(f, $format)
                })* }
            }
        }
    };
}

faults! {
    /// Something is read that nothing has written.
    ReadBeforeWrite {
        /// The rows that are missing.
        rows: Span
    } => "read-before-write", "rows {rows} are read before anything wrote them";
    /// Two accesses, one of which writes, are not ordered.
    MissingEvent => "missing-event", "no event orders the two accesses";
    /// Two accesses in consecutive steps are not ordered.
    RaceAcrossSteps => "race-across-steps", "not ordered with the step before";
    /// A change in place is not ordered with another access.
    UnorderedUpdate => "unordered-update", "changed in place without order to another access";
    /// A buffer is used after its bytes were given to another.
    UseAfterFree {
        /// The buffer that has them.
        owner: BufferId
    } => "use-after-free", "its bytes belong to buffer {owner} by now";
    /// Two buffers in the arena hold the same bytes at the same time.
    ArenaOverlap {
        /// The other buffer.
        with: BufferId
    } => "arena-overlap", "shares arena bytes with buffer {with} while both are in use";
    /// Two buffers in host memory hold the same bytes at the same time.
    HostOverlap {
        /// The other buffer.
        with: BufferId
    } => "host-overlap", "shares host bytes with buffer {with} while both are in use";
    /// The source of a copy changes before the copy has ended.
    SourceOverwritten => "source-overwritten", "a copy's source is overwritten before it ended";
    /// A copy lands where something else is still in use.
    LandingInUse => "landing-in-use", "a copy lands where something is still in use";
    /// A fetch that does not follow the offload of what it fetches.
    FetchBeforeOffload => "fetch-before-offload", "fetched before it was offloaded";
    /// The arena is larger than the budget.
    OverDeviceBudget {
        /// What the schedule takes.
        bytes: Bytes,
        /// What it may take.
        budget: Bytes
    } => "over-device-budget", "arena of {bytes} exceeds the device budget of {budget}";
    /// The slab is larger than the budget.
    OverHostBudget {
        /// What the schedule takes.
        bytes: Bytes,
        /// What it may take.
        budget: Bytes
    } => "over-host-budget", "host slab of {bytes} exceeds the host budget of {budget}";
    /// A buffer ends after the arena or the slab.
    OutOfBounds {
        /// Where arena or slab end.
        limit: Bytes
    } => "out-of-bounds", "ends beyond the {limit} of its memory";
    /// A buffer on the device does not start at a multiple of the alignment.
    Misaligned {
        /// Where it starts.
        offset: Bytes
    } => "misaligned", "starts at byte {offset:?}, not a multiple of 512";
    /// A buffer's bytes are not those of its part of the value.
    WrongSize {
        /// What it has.
        bytes: Bytes,
        /// What it should have.
        expected: Bytes
    } => "wrong-size", "has {bytes:?} bytes where its value needs {expected:?}";
    /// A copy's two sides differ, or it is no copy at all.
    CopyMismatch {
        /// In what.
        what: &'static str
    } => "copy-mismatch", "a copy must have {what}";
    /// An action on a stream that cannot do it.
    WrongStream => "wrong-stream", "this stream cannot do that";
    /// An operand in a memory that the stream cannot reach.
    WrongSpace => "wrong-space", "operand in a memory that the stream cannot reach";
    /// An operand that only a copy can read or write.
    PackedOperand => "packed-operand", "packed on the device, where only a copy can use it";
    /// An operand does not contain what the instruction covers.
    WrongExtent {
        /// The rows that it should contain.
        rows: Span,
        /// The groups that it should contain.
        groups: Span
    } => "wrong-extent", "does not contain rows {rows} of groups {groups}";
    /// Rows, groups, a micro-batch or a count that cannot be.
    BadRange {
        /// Which.
        what: &'static str
    } => "bad-range", "{what} out of range";
    /// An instruction of the compute stream uses a buffer outside its declared lifetime.
    OutsideLifetime {
        /// The lifetime.
        lifetime: Span
    } => "outside-lifetime", "used outside its lifetime {lifetime}";
    /// No such buffer.
    UnknownBuffer => "unknown-buffer", "no such buffer";
    /// No such operator.
    UnknownOp {
        /// The id.
        op: OpId
    } => "unknown-op", "no operator {op}";
    /// No such value.
    UnknownValue {
        /// The id.
        value: ValueId
    } => "unknown-value", "no value {value}";
    /// No such event.
    UnknownEvent {
        /// The id.
        event: EventId
    } => "unknown-event", "no event {event}";
    /// No such group of model states.
    UnknownStateGroup {
        /// Its index.
        group: u32
    } => "unknown-state-group", "no group of states {group}";
    /// An event is waited for that nothing signals.
    NeverSignalled {
        /// The event.
        event: EventId
    } => "never-signalled", "waits for event {event}, which nothing signals";
    /// An event is signalled by two instructions.
    SignalledTwice {
        /// The event.
        event: EventId
    } => "signalled-twice", "signals event {event} again";
    /// Instructions wait for one another.
    Deadlock => "deadlock", "waits for an instruction that waits for it";
    /// A required operator does not run on a range.
    MissingRange {
        /// The operator.
        op: OpId,
        /// The micro-batch.
        micro_batch: u32,
        /// The first rows that are missing.
        rows: Span,
        /// The group they are missing in.
        groups: Span
    } => "missing-range",
        "operator {op} never runs on rows {rows} of groups {groups} of micro-batch {micro_batch}";
    /// A required operator runs twice on a range.
    DoubleRange {
        /// The operator.
        op: OpId,
        /// The micro-batch.
        micro_batch: u32,
        /// The rows that are covered again.
        rows: Span,
        /// The groups.
        groups: Span
    } => "double-range",
        "operator {op} runs again on rows {rows} of groups {groups} of micro-batch {micro_batch}";
    /// A contribution to a sum does not arrive.
    ContributionMissing {
        /// The operator that should contribute.
        op: OpId,
        /// The sum.
        value: ValueId
    } => "contribution-missing", "a contribution of operator {op} to value {value} is missing";
    /// A contribution to a sum arrives twice.
    ContributionTwice {
        /// The operator that contributes.
        op: OpId,
        /// The sum.
        value: ValueId
    } => "contribution-twice", "operator {op} contributes to value {value} twice";
    /// A write from nothing replaces contributions that were there.
    ContributionLost => "contribution-lost", "writes over contributions made before";
    /// A gradient that nobody reads.
    ContributionUnread => "contribution-unread", "holds contributions that nothing ever reads";
    /// The first contribution of a step adds to what the step before left.
    ContributionUninitialised => "contribution-uninitialised",
        "adds to a gradient that this step has not initialised";
    /// A gradient is used before its last contribution.
    GradientUsedEarly => "gradient-used-early", "contributes after the gradient was used";
    /// Weights are updated before their last use in the step.
    WeightsUpdatedEarly => "weights-updated-early", "uses weights that this step already updated";
    /// Weights are updated before every gradient has been counted for the norm that clips them.
    UpdatedBeforeCounted => "updated-before-counted",
        "updates weights before all gradients have been counted for clipping";
    /// Weights are used that lack the update of the step before.
    StaleWeights => "stale-weights", "uses weights without the update of the step before";
    /// An optimizer runs twice on the host for one group.
    HostUpdateTwice {
        /// The group.
        group: u32
    } => "host-update-twice", "the host updates group {group} of states again";
    /// No instruction updates a group that the host is to update.
    HostUpdateMissing {
        /// The group.
        group: u32
    } => "host-update-missing", "the host never updates group {group} of states";
    /// The host updates a group that it is not to update.
    HostUpdateStray {
        /// The group.
        group: u32
    } => "host-update-stray", "the host must not update group {group} of states";
    /// Optimizer states that no instruction of the step changes in place.
    StatesNotUpdated => "states-not-updated", "optimizer states that this step never updates";
    /// What is read was written for another micro-batch.
    StaleMicroBatch => "stale-micro-batch", "uses what was written for another micro-batch";
    /// What is read has had other contributions than elsewhere in the step.
    WrongVersion => "wrong-version", "reads another version of the value than elsewhere";
    /// An operand is missing, or is not what the operator or the group of states has there.
    WrongOperand {
        /// Its position among the operands.
        position: usize,
        /// What must be done.
        access: &'static str,
        /// With which value.
        value: ValueId
    } => "wrong-operand", "operand {position} must {access} value {value}";
    /// More operands than the operator or the group of states has.
    ExtraOperand {
        /// The position of the first that is too many.
        position: usize
    } => "extra-operand", "operand {position} is one too many";
    /// Of two runs of one operator only one has scratch memory.
    OperandsDiffer => "operands-differ", "another run of the operator differs in scratch memory";
    /// A recomputation changes weights, gradients or optimizer states.
    RecomputeChangesState => "recompute-changes-state", "a recomputation changes model states";
}

/// Shows ids and spans the way people write them.
struct Shown<T>(T);
impl fmt::Display for Shown<&Span> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "[{}, {})", self.0.start, self.0.end)
    }
}
impl fmt::Debug for Shown<&Bytes> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0.get())
    }
}
macro_rules! shown {
    ($($type:ty, $value:ident => $shown:expr;)*) => {$(
        impl fmt::Display for Shown<&$type> {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                let $value = self.0;
                write!(f, "{}", $shown)
            }
        }
    )*};
}
shown! {
    Bytes, bytes => bytes;
    u32, number => number;
    usize, number => number;
    &'static str, text => text;
    BufferId, id => id.index();
    OpId, id => id.index();
    ValueId, id => id.index();
    EventId, id => id.index();
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "step {} {}[{}]",
            self.step,
            self.stream.name(),
            self.index
        )
    }
}

impl fmt::Display for Violation {
    /// `use-after-free: step 1 compute[12], buffer 7: its bytes belong to … (with step 1 d2h[3])`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: ", self.fault.name())?;
        if let Some(at) = self.at {
            write!(f, "{at}")?;
        }
        if let Some(buffer) = self.buffer {
            let comma = if self.at.is_some() { ", " } else { "" };
            write!(f, "{comma}buffer {}", buffer.index())?;
        }
        if self.at.is_some() || self.buffer.is_some() {
            f.write_str(": ")?;
        }
        write!(f, "{}", self.fault)?;
        match self.other {
            Some(other) => write!(f, " (with {other})"),
            None => Ok(()),
        }
    }
}

/// What has been found so far, with a limit for each kind of fault: one broken offset can spoil
/// thousands of instructions, and nobody reads that far.
#[derive(Default)]
pub(super) struct Findings {
    found: Vec<Violation>,
}

impl Findings {
    const MOST_OF_A_KIND: usize = 100;

    pub(super) fn add(
        &mut self,
        fault: Fault,
        at: Option<Place>,
        buffer: Option<BufferId>,
        other: Option<Place>,
    ) {
        let name = fault.name();
        let of_a_kind = self.found.iter().filter(|v| v.fault.name() == name).count();
        if of_a_kind < Self::MOST_OF_A_KIND {
            self.found.push(Violation {
                fault,
                at,
                buffer,
                other,
            });
        }
    }
    pub(super) fn into_violations(self) -> Vec<Violation> {
        self.found
    }
}
