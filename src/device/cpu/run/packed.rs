//! Copies that pack what goes to the host and unpack what comes back.

use super::super::ops::packed::{pack, unpack};
use super::{Outcome, Runner};
use crate::device::packed::{Packing, GROUP};
use crate::device::{Region, Space};
use crate::profile::Dtype;

impl Runner<'_> {
    /// Copies a piece from device to host or back; sizes were checked when it was queued.
    pub fn pack(&self, from: Region, to: Region, packing: Packing) -> Outcome {
        let Packing {
            storage,
            rows,
            width,
            extras,
        } = packing;
        let elements = rows * width;
        let (here, there) = match from.space {
            Space::Device => (from, to),
            Space::Host => (to, from),
        };
        let plain = elements * self.dtype().bytes();
        let values = here.part(0, plain);
        let scales = there.part(elements, 4 * rows * width.div_ceil(GROUP));
        let codes = there.part(0, elements);
        let memory = self.state.memory(Space::Host);
        let mut bytes = vec![0; elements as usize];
        match from.space {
            Space::Device => {
                let values = self.load(values, elements)?;
                let mut groups = self.scratch.take((scales.bytes / 4) as usize);
                pack(storage, &values, width as usize, &mut bytes, &mut groups);
                memory.write(codes.offset_bytes, &bytes);
                self.store_as(scales, &groups, Dtype::F32)?;
            }
            Space::Host => {
                memory.read(codes.offset_bytes, &mut bytes);
                let groups = self.words(scales)?;
                let mut unpacked = self.scratch.take(elements as usize);
                unpack(storage, &bytes, &groups, width as usize, &mut unpacked);
                self.store(values, &unpacked)?;
            }
        }
        let behind = 4 * rows * extras;
        if behind == 0 {
            return Ok(());
        }
        let (here, there) = (
            here.part(plain, behind),
            there.part(elements + scales.bytes, behind),
        );
        let (from, to) = match from.space {
            Space::Device => (here, there),
            Space::Host => (there, here),
        };
        let (source, target) = (self.state.memory(from.space), self.state.memory(to.space));
        target.copy_from(to.offset_bytes, source, from.offset_bytes, behind);
        Ok(())
    }
}
