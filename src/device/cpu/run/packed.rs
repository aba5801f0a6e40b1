//! Copies that pack what goes to the host, unpack what comes back, or do so within the arena.

use super::super::ops::packed::{pack, unpack};
use super::{Outcome, Runner};
use crate::device::packed::{Packing, GROUP};
use crate::device::Region;
use crate::profile::Dtype;

impl Runner<'_> {
    /// Copies a piece to its packed side or back; sizes were checked when it was queued.
    pub fn pack(&self, from: Region, to: Region, packing: Packing) -> Outcome {
        let (storage, width) = (packing.storage, packing.width as usize);
        let elements = packing.rows * packing.width;
        let (here, there) = packing.sides(from, to);
        let values = here.part(0, elements * self.dtype().bytes());
        let scales = there.part(elements, 4 * packing.rows * packing.width.div_ceil(GROUP));
        let codes = there.part(0, elements);
        let memory = self.state.memory(there.space);
        let mut bytes = vec![0; elements as usize];
        match packing.unpacks {
            false => {
                let values = self.load(values, elements)?;
                let mut groups = self.scratch.take((scales.bytes / 4) as usize);
                pack(storage, &values, width, &mut bytes, &mut groups);
                memory.write(codes.offset_bytes, &bytes);
                self.store_as(scales, &groups, Dtype::F32)?;
            }
            true => {
                memory.read(codes.offset_bytes, &mut bytes);
                let groups = self.words(scales)?;
                let mut unpacked = self.scratch.take(elements as usize);
                unpack(storage, &bytes, &groups, width, &mut unpacked);
                self.store(values, &unpacked)?;
            }
        }
        let Some((from, to)) = packing.extras(from, to) else {
            return Ok(());
        };
        let (source, target) = (self.state.memory(from.space), self.state.memory(to.space));
        target.copy_from(to.offset_bytes, source, from.offset_bytes, to.bytes);
        Ok(())
    }
}
