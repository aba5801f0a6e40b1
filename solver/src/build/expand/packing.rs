//! What stays on the device packed: packed behind its last use in forward, unpacked before its
//! first use in backward, on the compute stream.
//!
//! When a piece is written nobody knows yet which of forward's uses is its last. So forward is
//! expanded as if nothing were packed, and the packing is put between its instructions at its end.

use super::Expander;
use crate::ids::ValueId;
use crate::schedule::{Access, Action};
use crate::units::Span;

impl Expander<'_> {
    /// A buffer for what another holds, packed; filled at the end of forward.
    pub(super) fn packed_buffer(
        &mut self,
        value: ValueId,
        (rows, groups): (Span, Span),
        plain: usize,
    ) -> usize {
        let packed = self.buffer(Some(value), rows, groups, false);
        self.draft.buffers[packed].packed = true;
        self.draft.buffers[packed].bytes = self.packed_bytes(value, rows, groups);
        self.packed.push((value, plain, packed));
        packed
    }

    /// Packs every piece that is to stay so, each behind its last use so far.
    pub(super) fn pack(&mut self) {
        let pieces = std::mem::take(&mut self.packed).into_iter();
        let mut behind: Vec<_> = pieces
            .map(|(value, plain, packed)| (self.draft.buffers[plain].last, value, plain, packed))
            .collect();
        if behind.is_empty() {
            return;
        }
        behind.sort_unstable();
        let earlier = |position: usize| behind.partition_point(|&(last, ..)| last < position);
        for buffer in &mut self.draft.buffers {
            if buffer.first != usize::MAX {
                for position in [&mut buffer.first, &mut buffer.last, &mut buffer.last_write] {
                    *position += earlier(*position);
                }
            }
        }
        let mut behind = behind.into_iter().peekable();
        let (now, expanded) = (self.step, std::mem::take(&mut self.draft.instructions));
        for (position, instruction) in expanded.into_iter().enumerate() {
            self.step = instruction.step;
            self.draft.instructions.push(instruction);
            while let Some((_, value, plain, packed)) = behind.next_if(|p| p.0 == position) {
                self.packing(value, plain, packed);
            }
        }
        self.step = now;
    }

    /// Packs or unpacks what one buffer holds of a tensor into another.
    pub(super) fn packing(&mut self, value: ValueId, from: usize, to: usize) {
        let [source, target] = [from, to].map(|buffer| &self.draft.buffers[buffer]);
        let (rows, groups) = (source.rows, source.groups);
        let machine = &self.problem.machine;
        let duration = machine.packing_time(source.bytes, target.bytes);
        let tensor = self.problem.values[value].tensor;
        let producer = self.problem.tensors[tensor.expect("only tensors are packed")].producer;
        let base = self.stack.len();
        self.stack
            .extend([(from, Access::Read), (to, Access::Write)]);
        self.push((Action::Copy, producer), (rows, groups), base, duration);
    }
}
