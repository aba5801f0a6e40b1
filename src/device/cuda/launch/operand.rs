//! Arguments from operands, sizes checked; grids and blocks from shapes.

use super::super::super::{Failure, NormShape, Region, Reservation, Result, Rows, Space};
use super::{Argument, BatchFacts, Buffer, Launch, MOST_SHARED_BYTES};
use crate::device::IGNORED_LABEL;
use crate::model::NormKind;
use crate::profile::Dtype;

/// Partial sums over rows: no more parts than this, and no more bytes.
const MOST_PARTS: u64 = 512;
const PARTIAL_BYTES: u64 = 32 << 20;

/// Bytes that a block clears.
const CLEARED: u64 = 16 << 10;

/// Partial sums of squares that one launch leaves, at most.
pub const MOST_SQUARES: u64 = 1024;

/// What operands are checked against.
pub struct Operands<'a> {
    /// Memory, type of elements, tables.
    pub reservation: &'a Reservation,
    batches: &'a [BatchFacts],
}

/// The name of a kernel for the operands' type.
macro_rules! kernel {
    ($operands:expr, $($name:literal),+) => {
        if $operands.reservation.dtype == crate::profile::Dtype::F32 {
            concat!($($name),+, "_f32")
        } else {
            concat!($($name),+, "_bf16")
        }
    };
}
pub(super) use kernel;

impl<'a> Operands<'a> {
    pub fn new(reservation: &'a Reservation, batches: &'a [BatchFacts]) -> Result<Self> {
        if reservation.dtype == Dtype::Fp8 {
            return Err(Failure::refused("operators on elements of fp8"));
        }
        Ok(Operands {
            reservation,
            batches,
        })
    }

    /// Bytes of an element.
    pub fn size(&self) -> u64 {
        self.reservation.dtype.bytes()
    }

    /// Elements of 16 bytes.
    pub fn wide(&self) -> u64 {
        16 / self.size()
    }

    // ---- regions ------------------------------------------------------------------------------

    /// The address of `count` elements.
    pub fn elements(&self, region: Region, count: u64) -> Result<Argument> {
        self.sized(region, count, self.size())
    }

    /// The same, or no address.
    pub fn optional(&self, region: Option<Region>, count: u64) -> Result<Argument> {
        region.map_or(Ok(Argument::Null), |region| self.elements(region, count))
    }

    /// The address of `count` f32.
    pub fn floats(&self, region: Region, count: u64) -> Result<Argument> {
        self.sized(region, count, 4)
    }

    /// The address of a region of bytes.
    pub fn bytes(&self, region: Region) -> Result<Argument> {
        self.sized(region, region.bytes, 1)
    }

    fn sized(&self, region: Region, count: u64, size: u64) -> Result<Argument> {
        if count.checked_mul(size) != Some(region.bytes) {
            return Err(Failure::refused(format!(
                "a region of {} bytes for {count} elements of {size}",
                region.bytes
            )));
        }
        let arena = self.reservation.arena_bytes;
        let end = region.offset_bytes.checked_add(region.bytes);
        if region.space != Space::Device || end.is_none_or(|end| end > arena) {
            return Err(Failure::refused(format!(
                "{} bytes at {} are outside the arena of {arena} bytes",
                region.bytes, region.offset_bytes
            )));
        }
        if region.offset_bytes % size != 0 {
            return Err(Failure::refused(format!(
                "elements of {size} bytes at {}",
                region.offset_bytes
            )));
        }
        Ok(Argument::Region(region))
    }

    // ---- the batch ----------------------------------------------------------------------------

    /// What is known of a micro-batch that has these rows.
    pub fn batch(&self, micro_batch: u32, rows: Rows) -> Result<BatchFacts> {
        let end = rows.first.checked_add(rows.count);
        let facts = self.batches.get(micro_batch as usize);
        facts
            .filter(|facts| end.is_some_and(|end| end <= facts.rows))
            .copied()
            .ok_or_else(|| {
                Failure::refused(format!(
                    "{} rows from {} on of micro-batch {micro_batch} were not loaded",
                    rows.count, rows.first
                ))
            })
    }

    /// Refuses tokens outside a vocabulary.
    pub fn check_tokens(&self, facts: BatchFacts, vocab: u64) -> Result<()> {
        if facts.tokens_end <= vocab {
            return Ok(());
        }
        let token = facts.tokens_end - 1;
        Err(Failure::refused(format!("token {token} of {vocab} tokens")))
    }

    /// Refuses labels outside a vocabulary.
    pub fn check_labels(&self, facts: BatchFacts, vocab: u64) -> Result<()> {
        let wrong = match facts.negative_label {
            Some(label) => label.into(),
            None if facts.labels_end > vocab => facts.labels_end as i64 - 1,
            None => return Ok(()),
        };
        Err(Failure::refused(format!(
            "label {wrong} of {vocab} tokens (ignored: {IGNORED_LABEL})"
        )))
    }

    // ---- partial sums -------------------------------------------------------------------------

    /// How many partial sums of `columns` floats a sum over rows has: a function of shapes alone.
    pub fn parts(&self, rows: u64, columns: u64) -> u64 {
        let room = (PARTIAL_BYTES / (4 * columns.max(1))).max(1);
        rows.min(MOST_PARTS).min(room)
    }

    /// Adds partial sums up: `parts` of `stride` floats in scratch memory, of each the `columns`
    /// from `first` on.
    pub fn combine(
        &self,
        (parts, stride): (u64, u64),
        (first, columns): (u64, u64),
        out: Region,
        add: bool,
    ) -> Result<Launch> {
        launch(
            kernel!(self, "combine"),
            [columns.div_ceil(32), 1, 1],
            256,
            0,
            vec![
                Argument::Own(Buffer::Scratch, 4 * first),
                self.elements(out, columns)?,
                number(parts)?,
                number(columns)?,
                Argument::U64(stride),
                flag(add),
            ],
        )
    }

    // ---- what many operators do ---------------------------------------------------------------

    /// Clears bytes.
    pub fn zero(&self, at: Argument, bytes: u64) -> Result<Launch> {
        let grid = [bytes.div_ceil(CLEARED), 1, 1];
        let arguments = vec![at, Argument::U64(bytes)];
        launch(kernel!(self, "zero"), grid, 256, 0, arguments)
    }

    /// Adds `count` f64 up.
    pub fn sum_doubles(&self, from: Argument, count: u64, out: Argument) -> Result<Launch> {
        let arguments = vec![from, number(count)?, out];
        launch(kernel!(self, "sum_doubles"), [1; 3], 1024, 0, arguments)
    }

    /// Partial sums of the squares of a vector of elements, or of f32 where it is `summed`; and how
    /// many, at most [`MOST_SQUARES`].
    pub fn squares(
        &self,
        (of, summed): (Argument, bool),
        count: u64,
        partials: Argument,
    ) -> Result<(Launch, u64)> {
        let name = match summed {
            true => kernel!(self, "squares_summed"),
            false => kernel!(self, "squares"),
        };
        let wide = if summed { 4 } else { self.wide() };
        let parts = blocks(count.div_ceil(wide), 256, MOST_SQUARES);
        let arguments = vec![of, Argument::U64(count), partials];
        Ok((launch(name, [parts, 1, 1], 256, 0, arguments)?, parts))
    }
}

/// A launch of blocks of `threads` threads.
///
/// # Errors
/// A grid that a device does not have, or more shared memory.
pub fn launch(
    kernel: &'static str,
    grid: [u64; 3],
    threads: u32,
    shared_bytes: u64,
    arguments: Vec<Argument>,
) -> Result<Launch> {
    const MOST: [u64; 3] = [i32::MAX as u64, 65_535, 65_535];
    let fits = grid
        .iter()
        .zip(MOST)
        .all(|(&n, most)| (1..=most).contains(&n));
    if !fits || shared_bytes > MOST_SHARED_BYTES {
        let what = format!("{kernel} on {grid:?} blocks with {shared_bytes} shared bytes");
        return Err(Failure::refused(what));
    }
    Ok(Launch {
        kernel,
        grid: grid.map(|n| n as u32),
        block: [threads, 1, 1],
        shared_bytes: shared_bytes as u32,
        arguments,
    })
}

/// A number as a parameter of 32 bits.
pub fn number(value: u64) -> Result<Argument> {
    let value = u32::try_from(value);
    let value = value.map_err(|_| Failure::refused("a shape of more than 2^32 - 1"))?;
    Ok(Argument::U32(value))
}

/// Yes or no as a parameter.
pub fn flag(value: bool) -> Argument {
    Argument::U32(value.into())
}

/// Threads for a row of `pieces`: whole warps, at most `most`.
pub fn threads(pieces: u64, most: u32) -> u32 {
    (pieces.min(most.into()) as u32)
        .next_multiple_of(32)
        .max(32)
}

/// Blocks for `pieces` at `threads` a block, at most `most`.
pub fn blocks(pieces: u64, threads: u64, most: u64) -> u64 {
    pieces.div_ceil(threads).clamp(1, most)
}

/// ε and kind as parameters.
pub fn norm_arguments(norm: NormShape) -> [Argument; 2] {
    let kind = match norm.kind {
        NormKind::Rms => 0,
        NormKind::RmsPlusOne => 1,
        NormKind::Layer => 2,
    };
    [Argument::F32(norm.epsilon as f32), Argument::U32(kind)]
}
