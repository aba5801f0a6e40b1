//! The compute stream of a plan before its copies have a place and its buffers an address.
//!
//! Made by [`super::expand()`], read by the placing of copies and by what writes instructions.
//! Instructions, buffers and copies name each other by their index.

use std::ops::Range;

use crate::ids::{OpId, StepId, ValueId};
use crate::problem::Category;
use crate::schedule::{Access, Action};
use crate::units::{Bytes, Nanos, Span};

/// The compute stream with its buffers, before copies and addresses.
#[derive(Debug, Default)]
pub struct Draft {
    /// In execution order; the index is the position.
    pub instructions: Vec<DraftInstruction>,
    /// Operands of all instructions.
    pub(super) operands: Vec<(usize, Access)>,
    /// All device buffers.
    pub buffers: Vec<DraftBuffer>,
    /// All host buffers.
    pub host_buffers: Vec<HostBuffer>,
    /// Copies to the host.
    pub departures: Vec<Departure>,
    /// Copies from the host into buffers that are used from `before` on.
    pub arrivals: Vec<Arrival>,
    /// Updates on the host.
    pub host_updates: Vec<DraftHostUpdate>,
}

/// An instruction on the compute stream.
#[derive(Debug)]
pub struct DraftInstruction {
    /// Which operator; where this packs or unpacks a tensor, the one that makes it.
    pub op: OpId,
    /// Whether that runs, or runs again because its result was not retained, or is a copy of it
    /// packed or unpacked.
    pub action: Action,
    /// The step in which it runs.
    pub step: StepId,
    /// The micro-batch it works for.
    pub micro_batch: u32,
    /// The rows it covers.
    pub rows: Span,
    /// The head groups it covers.
    pub groups: Span,
    /// Where its operands are.
    pub(super) operands: Range<usize>,
    /// How long it takes, undisturbed.
    pub duration: Nanos,
}

impl Draft {
    /// Bytes that a copy to the host moves.
    pub fn departing(&self, departure: &Departure) -> Bytes {
        self.host_buffers[departure.host].bytes
    }

    /// Bytes that a copy from the host moves.
    pub fn arriving(&self, arrival: &Arrival) -> Bytes {
        self.host_buffers[arrival.host].bytes
    }

    /// The buffers that an instruction uses, by their index, and how.
    pub fn operands(&self, instruction: &DraftInstruction) -> &[(usize, Access)] {
        &self.operands[instruction.operands.clone()]
    }
}

/// A range of device memory with the positions between which compute uses it.
#[derive(Debug)]
pub struct DraftBuffer {
    pub value: Option<ValueId>,
    pub category: Category,
    pub rows: Span,
    pub groups: Span,
    pub bytes: Bytes,
    pub packed: bool,
    pub persistent: bool,
    /// Position of the first access.
    pub first: usize,
    /// Position of the last access.
    pub last: usize,
    /// Position of the last access that writes.
    pub last_write: usize,
}

/// A range of host memory.
#[derive(Debug)]
pub struct HostBuffer {
    pub value: ValueId,
    pub rows: Span,
    pub groups: Span,
    pub bytes: Bytes,
    pub persistent: bool,
}

/// A copy to the host, possible once its buffer has been written for the last time.
#[derive(Debug, Clone, Copy)]
pub struct Departure {
    pub buffer: usize,
    pub host: usize,
}

/// A copy from the host into a buffer of its own.
#[derive(Debug, Clone, Copy)]
pub struct Arrival {
    pub buffer: usize,
    pub host: usize,
    /// The departure that fills the host buffer in this step, if one does.
    pub departure: Option<usize>,
}

/// The optimizer's work for one group on the host.
#[derive(Debug)]
pub struct DraftHostUpdate {
    pub group: usize,
    /// The departures of its gradients.
    pub gradients: Vec<usize>,
    /// Host buffer of the optimizer's states, if it has any.
    pub states: Option<usize>,
    /// Host buffers of the weights, with the resident weight that each is copied back to.
    pub weights: Vec<(usize, Option<usize>)>,
}
