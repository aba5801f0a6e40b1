//! Copies that pack what goes to the host and unpack what comes back, in parts that fit a stage.

use super::super::super::packed::{Packing, Storage, GROUP};
use super::super::super::{Failure, Region, Reservation, Result, Space};
use super::operand::{kernel, launch, number, Operands};
use super::{Argument, Buffer, Launch, MOST_SHARED_BYTES};

/// Bytes of one of the stages that packed rows pass in the device's own memory: long enough for a
/// copy to be much longer than a launch.
pub const STAGE_BYTES: u64 = 8 << 20;

/// Warps of a block.
const WARPS: u64 = 8;

/// Rows of a packed copy that pass a stage at once.
#[derive(Clone, Debug, PartialEq)]
pub struct Part {
    /// Which stage.
    pub stage: Buffer,
    /// What packs from the arena into the stage, or unpacks from the stage.
    pub launch: Launch,
    /// What is copied between stage and slab: where in the stage, and where in the slab.
    pub copies: [(u64, Region); 2],
}

/// From where to where.
type Copy = (Region, Region);

/// The parts of a packed copy, of which two stages take turns, and what is copied as it is: the f32
/// behind the rows.
///
/// # Errors
/// Regions of other sizes, or outside their memories, and rows longer than a stage.
pub fn parts(
    reservation: &Reservation,
    (from, to): Copy,
    packing: Packing,
) -> Result<(Vec<Part>, Option<Copy>)> {
    let operands = Operands::new(reservation, &[], MOST_SHARED_BYTES)?;
    let Packing {
        storage,
        rows,
        width,
        extras,
    } = packing;
    let (here, there) = match from.space {
        Space::Device => (from, to),
        Space::Host => (to, from),
    };
    let (groups, size) = (width.div_ceil(GROUP), operands.size());
    let row = width * size + 4 * extras;
    let sizes = [rows * row, rows * Storage::row_bytes(width, extras)];
    if (here.space, there.space) != (Space::Device, Space::Host)
        || [here.bytes, there.bytes] != sizes
    {
        return Err(Failure::refused(format!(
            "a copy of {} bytes to {} that packs {rows} rows of {width} elements",
            from.bytes, to.bytes
        )));
    }
    let at_once = STAGE_BYTES.saturating_sub(16) / Storage::row_bytes(width, 0).max(1);
    if at_once == 0 {
        return Err(Failure::refused(format!("packed rows of {width} elements")));
    }
    let part = |(first, turn): (u64, u32)| {
        let rows = at_once.min(rows - first);
        let (codes, scales) = (rows * width, rows * groups);
        let behind_codes = codes.next_multiple_of(16);
        let stage = Buffer::Stage(turn % 2 + if from.space == Space::Device { 0 } else { 2 });
        let values = here.part(first * width * size, codes * size);
        let values = operands.elements(values, codes)?;
        let staged = [Argument::Own(stage, 0), Argument::Own(stage, behind_codes)];
        let (name, mut arguments) = match from.space {
            Space::Device => (
                kernel!(operands, "pack"),
                vec![values, staged[0], staged[1]],
            ),
            Space::Host => (
                kernel!(operands, "unpack"),
                vec![staged[0], staged[1], values],
            ),
        };
        arguments.extend([Argument::U64(scales), number(width)?, format(storage)]);
        let behind = packing.rows * width;
        Ok(Part {
            stage,
            launch: launch(name, [scales.div_ceil(WARPS), 1, 1], 256, 0, arguments)?,
            copies: [
                (0, there.part(first * width, codes)),
                (
                    behind_codes,
                    there.part(behind + 4 * first * groups, 4 * scales),
                ),
            ],
        })
    };
    let firsts = (0..rows).step_by(usize::try_from(at_once).unwrap_or(usize::MAX));
    let parts = firsts.zip(0..).filter(|_| width > 0).map(part);
    let extras = 4 * rows * extras;
    let behind = (extras > 0).then(|| {
        let at = |region: Region| region.part(region.bytes - extras, extras);
        (at(from), at(to))
    });
    Ok((parts.collect::<Result<_>>()?, behind))
}

/// What packs or unpacks within the arena, and what is copied as it is: the f32 behind the rows.
///
/// # Errors
/// Regions of other sizes, or outside the arena.
pub fn within(
    reservation: &Reservation,
    (from, to): Copy,
    packing: Packing,
) -> Result<(Launch, Option<Copy>)> {
    let operands = Operands::new(reservation, &[], MOST_SHARED_BYTES)?;
    let Packing {
        storage,
        rows,
        width,
        extras,
    } = packing;
    let unpacks = packing.unpacks(from, to);
    let (plain, packed) = if unpacks { (to, from) } else { (from, to) };
    let (codes, scales) = (rows * width, rows * width.div_ceil(GROUP));
    let (values, behind) = (codes * operands.size(), 4 * rows * extras);
    if [plain.bytes, packed.bytes] != [values + behind, packing.packed_bytes()] {
        return Err(Failure::refused(format!(
            "a copy of {} bytes to {} that packs {rows} rows of {width} elements",
            from.bytes, to.bytes
        )));
    }
    let values = operands.elements(plain.part(0, values), codes)?;
    let packed = [
        operands.bytes(packed.part(0, codes))?,
        operands.floats(packed.part(codes, 4 * scales), scales)?,
    ];
    let (name, mut arguments) = match unpacks {
        false => (
            kernel!(operands, "pack"),
            vec![values, packed[0], packed[1]],
        ),
        true => (
            kernel!(operands, "unpack"),
            vec![packed[0], packed[1], values],
        ),
    };
    arguments.extend([Argument::U64(scales), number(width)?, format(storage)]);
    let launch = launch(name, [scales.div_ceil(WARPS), 1, 1], 256, 0, arguments)?;
    let at = |region: Region| region.part(region.bytes - behind, behind);
    Ok((launch, (behind > 0).then(|| (at(from), at(to)))))
}

/// A format as the kernels know it.
pub fn format(storage: Storage) -> Argument {
    Argument::U32(match storage {
        Storage::Fp8 => 0,
        Storage::Int8 => 1,
    })
}
