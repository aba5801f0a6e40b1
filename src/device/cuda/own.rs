//! The device's own memory beside the arena: batches, tables, partial results, scratch.
//!
//! One allocation; where each buffer lies in it is a function of the reservation.

use super::driver::Allocation;
use super::launch::packed::STAGE_BYTES;
use super::launch::{Buffer, CONSTANTS_BYTES, MAPS_BYTES, SCRATCH_BYTES};
use crate::device::{Failure, Reservation, Result};

/// All buffers start at multiples of this.
const ALIGNMENT: u64 = 256;

/// The memory and what lies where in it.
pub(super) struct Own {
    memory: Allocation,
    places: Vec<(Buffer, u64, u64)>,
}

impl Own {
    /// Allocates.
    pub fn new(reservation: &Reservation) -> Result<Own> {
        Ok(Own {
            memory: Allocation::new("batches, tables and scratch", Own::bytes(reservation))?,
            places: places(reservation),
        })
    }

    /// Bytes of all buffers.
    pub fn bytes(reservation: &Reservation) -> u64 {
        let last = places(reservation).last().copied();
        last.map_or(0, |(_, offset, bytes)| offset + bytes)
    }

    fn place(&self, buffer: Buffer) -> Result<(u64, u64)> {
        let found = self.places.iter().find(|place| place.0 == buffer);
        let found = found.map(|&(_, offset, bytes)| (offset, bytes));
        found.ok_or_else(|| Failure::refused(format!("{buffer:?} was not reserved")))
    }

    /// The address of a place in a buffer.
    pub fn address(&self, buffer: Buffer, within: u64) -> Result<u64> {
        let (offset, bytes) = self.place(buffer)?;
        match within < bytes {
            true => Ok(self.memory.address + offset + within),
            false => Err(Failure::refused(format!(
                "byte {within} of {bytes} of {buffer:?}"
            ))),
        }
    }

    /// Writes a whole buffer and waits.
    pub fn write(&self, buffer: Buffer, content: &[u8]) -> Result<()> {
        if content.is_empty() {
            return Ok(());
        }
        self.memory.write(self.place(buffer)?.0, content)
    }

    /// Reads a buffer and waits.
    pub fn read(&self, buffer: Buffer, content: &mut [u8]) -> Result<()> {
        if content.is_empty() {
            return Ok(());
        }
        self.memory.read(self.place(buffer)?.0, content)
    }
}

/// Every buffer that has any bytes, its offset and its bytes, one behind the other.
fn places(reservation: &Reservation) -> Vec<(Buffer, u64, u64)> {
    let rows = reservation.rows * 4;
    let table = reservation.rotary.as_ref();
    let table = table.map_or(0, |table| table.positions * table.half * 4);
    let batches = (0..reservation.micro_batches).flat_map(|m| {
        [
            (Buffer::Tokens(m), rows),
            (Buffer::Labels(m), rows),
            (Buffer::Order(m), rows),
            (Buffer::Place(m), rows),
        ]
    });
    let others = [
        (Buffer::Cos, table),
        (Buffer::Sin, table),
        (Buffer::Carry, reservation.carry_elements * 4),
        (Buffer::Losses, u64::from(reservation.loss_slots) * 8),
        (Buffer::Squares, u64::from(reservation.norm_slots) * 8),
        (Buffer::Constants, CONSTANTS_BYTES as u64),
        (Buffer::Maps, MAPS_BYTES),
        (Buffer::Scratch, SCRATCH_BYTES),
    ];
    let stages = (0..4).map(|stage| (Buffer::Stage(stage), STAGE_BYTES));
    let mut next = 0;
    let all = batches.chain(stages).chain(others);
    let sized = all.filter(|&(_, bytes)| bytes > 0);
    sized
        .map(|(buffer, bytes)| {
            let offset = next;
            next = (offset + bytes).next_multiple_of(ALIGNMENT);
            (buffer, offset, bytes)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::RotaryTable;
    use crate::lower::Workload;
    use crate::profile::Dtype;

    #[test]
    fn buffers_lie_one_behind_the_other() {
        let reservation = Reservation {
            dtype: Dtype::Bf16,
            arena_bytes: 0,
            slab_bytes: 0,
            events: 0,
            rows: 100,
            micro_batches: 2,
            loss_slots: 3,
            norm_slots: 0,
            carry_elements: 0,
            rotary: Some(RotaryTable {
                half: 4,
                positions: 50,
                cos: Vec::new(),
                sin: Vec::new(),
            }),
        };
        let places = places(&reservation);
        let place = |buffer| places.iter().find(|place| place.0 == buffer).copied();
        assert_eq!(place(Buffer::Tokens(0)), Some((Buffer::Tokens(0), 0, 400)));
        assert_eq!(
            place(Buffer::Place(1)),
            Some((Buffer::Place(1), 7 * 512, 400))
        );
        let stages = 4 * STAGE_BYTES;
        let sin = (Buffer::Sin, stages + 8 * 512 + 1024, 800);
        assert_eq!(place(Buffer::Sin), Some(sin));
        let losses = (Buffer::Losses, stages + 12 * 512, 24);
        assert_eq!(place(Buffer::Losses), Some(losses));
        assert_eq!(place(Buffer::Squares), None);
        for pair in places.windows(2) {
            assert!(pair[0].1 + pair[0].2 <= pair[1].1 && pair[1].1 % ALIGNMENT == 0);
        }
        let scratch = place(Buffer::Scratch).unwrap();
        assert_eq!(Own::bytes(&reservation), scratch.1 + SCRATCH_BYTES);
    }

    /// Plans leave room for what grows with the length, as much as is taken.
    #[test]
    fn what_grows_with_the_length_is_planned() {
        let model = crate::model::load("llama-3.1-8b").unwrap();
        let of = |seq: u64| {
            let workload = Workload {
                seq,
                batch: 2,
                accumulate: 3,
                dtype: Dtype::Bf16,
                clip: false,
            };
            let reservation = Reservation {
                dtype: Dtype::Bf16,
                arena_bytes: 0,
                slab_bytes: 0,
                events: 0,
                rows: 2 * seq,
                micro_batches: 3,
                loss_slots: 3,
                norm_slots: 0,
                carry_elements: 0,
                rotary: Some(RotaryTable {
                    half: model.head_dim / 2,
                    positions: seq,
                    cos: Vec::new(),
                    sin: Vec::new(),
                }),
            };
            (
                Own::bytes(&reservation),
                workload.beside_arena(&model).get(),
            )
        };
        let (short, long) = (of(4096), of(1 << 20));
        assert_eq!(long.0 - short.0, long.1 - short.1);
        assert!(long.1 > 512 << 20, "{} bytes", long.1);
    }
}
