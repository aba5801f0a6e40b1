//! From an operator to launches of kernels: names, grids, blocks, shared memory, arguments.
//!
//! In: an operator, the reservation, and what is known of the micro-batches. Out: launches, to be
//! queued in order on one stream. Everything here is pure; `kernels/README.md` has the table of
//! kernels, their arguments and the buffers beside the arena. Of an operator that is a matrix
//! product, [`launches`] gives what follows it (a product's own bias and residual belong to its
//! epilogue); an update of tensors is both in turns, which [`tasks`] gives. Attention that cuDNN
//! serves is not here, but in [`fused_calls`].

mod attention;
pub mod batch;
mod fused;
mod heads;
mod operand;
pub mod packed;
pub(super) mod rounded;
mod rows;
pub mod sources;
mod tensors;
mod update;

use super::super::{Operator, Region, Reservation, Result};
pub use super::products::{Matrix, Numbers, Product};
pub use batch::BatchFacts;
pub use fused::{fused_calls, FusedCall};
pub(super) use operand::Operands;
pub use tensors::{maps, tasks, MAPS_BYTES};
pub use update::{constants, CONSTANTS_BYTES};

/// Scratch memory that the device keeps beside the arena for what one operator's kernels hand to
/// each other.
pub const SCRATCH_BYTES: u64 = 64 << 20;

/// The most shared memory that a launch asks for: what a block of sm_80 can have.
pub const MOST_SHARED_BYTES: u64 = 163 << 10;

/// A kernel's launch.
#[derive(Clone, Debug, PartialEq)]
pub struct Launch {
    /// The kernel's name, with the suffix of its type.
    pub kernel: &'static str,
    /// Blocks.
    pub grid: [u32; 3],
    /// Threads of a block.
    pub block: [u32; 3],
    /// Dynamic shared memory of a block.
    pub shared_bytes: u32,
    /// The kernel's parameters in order.
    pub arguments: Vec<Argument>,
}

/// A parameter of a kernel.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Argument {
    /// The address of a region of the arena.
    Region(Region),
    /// An address in one of the device's own buffers: bytes from its start.
    Own(Buffer, u64),
    /// No address.
    Null,
    /// A number of 32 bits.
    U32(u32),
    /// A number of 64 bits.
    U64(u64),
    /// A float of 32 bits.
    F32(f32),
    /// A float of 64 bits.
    F64(f64),
}

impl Argument {
    /// The address so many bytes behind this one.
    pub(super) fn behind(self, bytes: u64) -> Argument {
        match self {
            Argument::Region(region) => {
                Argument::Region(region.part(bytes, region.bytes.saturating_sub(bytes)))
            }
            Argument::Own(buffer, offset) => Argument::Own(buffer, offset + bytes),
            other => other,
        }
    }
}

/// Memory of the device beside the arena.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Buffer {
    /// A micro-batch's token ids: u32.
    Tokens(u32),
    /// A micro-batch's labels: i32.
    Labels(u32),
    /// A micro-batch's rows, sorted by token and then by row: u32 ([`batch::token_order`]).
    Order(u32),
    /// Where each row is in that order: u32.
    Place(u32),
    /// Cosines of the rotary table: f32.
    Cos,
    /// Sines of the rotary table: f32.
    Sin,
    /// Gradients carried from run to run of an update: f32.
    Carry,
    /// A loss for each slot: f64.
    Losses,
    /// A sum of squares for each slot: f64.
    Squares,
    /// What the kernels know of the step: [`CONSTANTS_BYTES`], written by [`constants`].
    Constants,
    /// The values of 8-bit moments: [`MAPS_BYTES`], written by [`maps`].
    Maps,
    /// [`SCRATCH_BYTES`] that nothing outlives its operator in.
    Scratch,
    /// [`packed::STAGE_BYTES`] that packed rows pass on their way to the host (0 and 1) and back (2
    /// and 3).
    Stage(u32),
}

/// Work of a stream.
#[derive(Clone, Debug, PartialEq)]
pub enum Task {
    /// A kernel.
    Launch(Launch),
    /// A matrix product.
    Multiply(Product),
}

/// What runs an operator, or what follows its matrix product, on a card whose blocks can have so
/// much shared memory.
///
/// # Errors
/// Shapes that contradict each other, regions that are not in the arena, sizes that the kernels do
/// not serve, tokens or labels outside the vocabulary.
pub fn launches(
    operator: &Operator,
    reservation: &Reservation,
    batches: &[BatchFacts],
    shared_bytes: u64,
) -> Result<Vec<Launch>> {
    let operands = Operands::new(reservation, batches)?;
    match operator {
        Operator::Linear { .. } | Operator::LinearInputGradient { .. } => Ok(Vec::new()),
        Operator::QkvProjection { .. } | Operator::RotaryBackward { .. } => {
            heads::launches(&operands, operator)
        }
        Operator::Attention { .. } | Operator::AttentionBackward { .. } => {
            attention::launches(&operands, operator, shared_bytes)
        }
        Operator::GradientNorm { .. } | Operator::Update { .. } => {
            update::launches(&operands, operator)
        }
        _ => rows::launches(&operands, operator, shared_bytes),
    }
}
