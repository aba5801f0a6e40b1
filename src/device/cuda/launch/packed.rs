//! Copies that pack what goes to the host and unpack what comes back, in parts that fit a stage;
//! and those that do so within the arena, at once.

use super::super::super::packed::{Packing, Storage, GROUP};
use super::super::super::{Failure, Region, Reservation, Result, Space};
use super::operand::{kernel, launch, number, Operands};
use super::{Argument, Buffer, Launch};

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
    let operands = Operands::new(reservation, &[])?;
    let Packing { rows, width, .. } = packing;
    let (here, there) = check(&operands, (from, to), packing)?;
    if (here.space, there.space) != (Space::Device, Space::Host) {
        return Err(Failure::refused("a packed copy between other memories"));
    }
    let (groups, size) = (width.div_ceil(GROUP), operands.size());
    let at_once = STAGE_BYTES.saturating_sub(16) / Storage::row_bytes(width, 0).max(1);
    if at_once == 0 {
        return Err(Failure::refused(format!("packed rows of {width} elements")));
    }
    let part = |(first, turn): (u64, u32)| {
        let rows = at_once.min(rows - first);
        let (codes, scales) = (rows * width, rows * groups);
        let behind_codes = codes.next_multiple_of(16);
        let stage = Buffer::Stage(turn % 2 + if packing.unpacks { 2 } else { 0 });
        let values = here.part(first * width * size, codes * size);
        let values = operands.elements(values, codes)?;
        let staged = [Argument::Own(stage, 0), Argument::Own(stage, behind_codes)];
        let behind = packing.rows * width;
        Ok(Part {
            stage,
            launch: kernel_of(&operands, packing, values, staged, scales)?,
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
    Ok((parts.collect::<Result<_>>()?, packing.extras(from, to)))
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
    let operands = Operands::new(reservation, &[])?;
    let (plain, packed) = check(&operands, (from, to), packing)?;
    let Packing { rows, width, .. } = packing;
    let (codes, scales) = (rows * width, rows * width.div_ceil(GROUP));
    let values = operands.elements(plain.part(0, codes * operands.size()), codes)?;
    let packed = [
        operands.bytes(packed.part(0, codes))?,
        operands.floats(packed.part(codes, 4 * scales), scales)?,
    ];
    let launch = kernel_of(&operands, packing, values, packed, scales)?;
    Ok((launch, packing.extras(from, to)))
}

/// The plain and the packed side of a copy, both as large as they should be.
fn check(operands: &Operands, (from, to): Copy, packing: Packing) -> Result<Copy> {
    let (plain, packed) = packing.sides(from, to);
    let sizes = [packing.plain_bytes(operands.size()), packing.packed_bytes()];
    if [plain.bytes, packed.bytes] != sizes {
        return Err(Failure::refused(format!(
            "a copy of {} bytes to {} that packs {} rows of {} elements",
            from.bytes, to.bytes, packing.rows, packing.width
        )));
    }
    Ok((plain, packed))
}

/// What packs or unpacks so many groups: values on one side, codes and scales on the other.
fn kernel_of(
    operands: &Operands,
    packing: Packing,
    values: Argument,
    [codes, scales]: [Argument; 2],
    groups: u64,
) -> Result<Launch> {
    let (name, mut arguments) = match packing.unpacks {
        false => (kernel!(operands, "pack"), vec![values, codes, scales]),
        true => (kernel!(operands, "unpack"), vec![codes, scales, values]),
    };
    let format = format(packing.storage);
    arguments.extend([Argument::U64(groups), number(packing.width)?, format]);
    launch(name, [groups.div_ceil(WARPS), 1, 1], 256, 0, arguments)
}

/// A format as the kernels know it.
pub fn format(storage: Storage) -> Argument {
    Argument::U32(match storage {
        Storage::Fp8 => 0,
        Storage::Int8 => 1,
    })
}
