//! The schedule: one instruction list for every stream, and every buffer with its address. Enough
//! to be run by an interpreter that knows nothing of planning.
//!
//! Streams run side by side, each in its own order. An instruction starts when the one before it
//! on its stream has ended and every event it waits for has been signalled; it signals its own
//! event, if it has one, when it ends. Steps follow one another on the same streams: events are
//! new in every step, buffers (apart from persistent ones) too.

use crate::ids::{BufferId, EventId, OpId, Table, ValueId};
use crate::machine::Machine;
use crate::problem::{Budget, Category, Domain};
use crate::units::{Bytes, Nanos, Span};

/// The queues that run side by side.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Stream {
    /// Kernels on the device.
    Compute,
    /// Copies from the device to the host.
    D2h,
    /// Copies from the host to the device.
    H2d,
    /// The optimizer on the host.
    Host,
}

impl Stream {
    /// All streams, in the order of [`Schedule::streams`].
    pub const ALL: [Stream; 4] = [Stream::Compute, Stream::D2h, Stream::H2d, Stream::Host];
    /// The name in tables and files.
    pub const fn name(self) -> &'static str {
        match self {
            Stream::Compute => "compute",
            Stream::D2h => "d2h",
            Stream::H2d => "h2d",
            Stream::Host => "host",
        }
    }
}

/// One instruction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Instruction {
    /// What is done.
    pub action: Action,
    /// The rows it covers.
    pub rows: Span,
    /// The head groups it covers.
    pub groups: Span,
    /// The micro-batch it works for, counted on from pass to pass.
    pub micro_batch: u32,
    /// What it reads and writes. Of an operator one for each value it reads, updates, accumulates
    /// and writes, in this order, then its scratch memory if it needs any; of a host update the
    /// gradients (read), the states and the weights (updated), all head groups of each in turn.
    pub operands: Vec<Operand>,
    /// Events it waits for.
    pub waits: Vec<EventId>,
    /// The event it signals when it ends.
    pub signals: Option<EventId>,
    /// How long it is expected to take, undisturbed. Copies take what their bytes take.
    pub duration: Nanos,
}

/// What an instruction does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Runs an operator of the program for the first time on its range.
    Run(OpId),
    /// Runs it again because its result was not retained.
    Recompute(OpId),
    /// Runs the optimizer of one group of states on the host: the index of the group.
    HostUpdate(u32),
    /// Copies its first operand (read) to its second (written). On the compute stream both are on
    /// the device, and one of them is packed: it packs or unpacks.
    Copy,
    /// Does nothing; begins and ends the step.
    Barrier,
}

/// How an instruction uses a buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Reads it.
    Read,
    /// Writes it from nothing on the instruction's rows.
    Write,
    /// Reads and changes it in place.
    Update,
}

/// A buffer as an instruction uses it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Operand {
    /// Which buffer.
    pub buffer: BufferId,
    /// How it is used.
    pub access: Access,
}

/// In which memory a buffer lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Space {
    /// The arena on the device.
    Device,
    /// The pinned slab on the host.
    Host,
}

/// A range of bytes that holds a part of a value for a part of the step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Buffer {
    /// The value it holds a part of; none for scratch memory.
    pub value: Option<ValueId>,
    /// What its bytes are there for.
    pub category: Category,
    /// In which memory.
    pub space: Space,
    /// Where it starts.
    pub offset: Bytes,
    /// Its size.
    pub bytes: Bytes,
    /// The rows of the value that it holds.
    pub rows: Span,
    /// The head groups of the value that it holds.
    pub groups: Span,
    /// Whether it holds them packed on the device; on the host a value with packed rows always is.
    pub packed: bool,
    /// Whether it holds its content from one training step to the next.
    pub persistent: bool,
    /// Positions on the compute stream between which its bytes are taken.
    pub lifetime: Span,
}

/// The operator that counts a complete gradient for clipping by the global norm.
pub const GRADIENT_NORM: &str = "gradient_norm";

/// What the schedule says of an operator of the program.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ScheduledOp {
    /// What a device knows it by.
    pub name: String,
    /// Its block.
    pub block: Option<u32>,
    /// Over what one run extends.
    pub domain: Domain,
    /// Whether memory bounds it rather than arithmetic: copies beside it slow it by another factor.
    pub memory_bound: bool,
    /// Whether it belongs to the step proper, so that it must run exactly once on every range.
    pub required: bool,
    /// Values that it only reads.
    pub reads: Vec<ValueId>,
    /// Values that it writes from nothing.
    pub writes: Vec<ValueId>,
    /// Values to which it contributes (gradients and sums over head groups).
    pub accumulates: Vec<ValueId>,
    /// Values that it changes in place although others read them (weights, when it is an update).
    pub updates: Vec<ValueId>,
}

/// What the schedule says of a group of model states.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ScheduledGroup {
    /// What a person calls it: `block 3`, `embedding`.
    pub name: String,
    /// The weights.
    pub weights: Vec<ValueId>,
    /// Their gradients.
    pub gradients: Vec<ValueId>,
    /// The optimizer's states, where it has any.
    pub states: Option<ValueId>,
    /// Whether the host updates it: once in every step, by [`Action::HostUpdate`].
    pub on_host: bool,
}

/// What the schedule says of a value of the program.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ScheduledValue {
    /// Name within its block.
    pub name: String,
    /// Its block.
    pub block: Option<u32>,
    /// What its bytes are there for.
    pub category: Category,
    /// Bytes of one row, all head groups together.
    pub row_bytes: u64,
    /// Bytes of one row in host memory, or packed on the device, all head groups together, where
    /// what is saved may be packed: its copies pack and unpack.
    pub packed_row_bytes: Option<u64>,
    /// Bytes that do not depend on rows.
    pub fixed_bytes: Bytes,
    /// Whether buffers hold single head groups of it.
    pub by_groups: bool,
}

/// Everything that is needed to run, simulate and check a training step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Schedule {
    /// Rows of every activation.
    pub tokens: u64,
    /// Head groups of attention.
    pub groups: u64,
    /// Micro-batches of a step.
    pub micro_batches: u32,
    /// How often forward and backward run on each: the first of two passes counts gradients for
    /// clipping, the second updates weights inside backward.
    pub passes: u32,
    /// The operators that instructions name.
    pub ops: Table<OpId, ScheduledOp>,
    /// The values that buffers hold.
    pub values: Table<ValueId, ScheduledValue>,
    /// The groups of model states, which [`Action::HostUpdate`] names by their index.
    pub state_groups: Vec<ScheduledGroup>,
    /// Every buffer.
    pub buffers: Table<BufferId, Buffer>,
    /// Instructions by stream, in the order of [`Stream::ALL`].
    pub streams: [Vec<Instruction>; 4],
    /// How many events there are; their ids are `0..events`.
    pub events: u32,
    /// Size of the arena on the device.
    pub arena_bytes: Bytes,
    /// Size of the pinned slab on the host, the states there included.
    pub host_bytes: Bytes,
    /// What it was planned for.
    pub budget: Budget,
    /// What it was planned on.
    pub machine: Machine,
}

impl Schedule {
    /// The instructions of one stream.
    pub fn stream(&self, stream: Stream) -> &[Instruction] {
        &self.streams[stream as usize]
    }
    /// How often forward and backward run.
    pub const fn rounds(&self) -> u32 {
        self.micro_batches.saturating_mul(self.passes)
    }
    /// Whether it counts gradients for clipping by their global norm.
    pub fn clips(&self) -> bool {
        self.ops.values().any(|op| op.name == GRADIENT_NORM)
    }
}
