//! Operands: which buffer holds a part of a value now, and what is done where none does.
//!
//! A swapped piece lands in a buffer of its own, a packed one is unpacked into one, a streamed
//! weight is fetched, everything else is made again by its producer, whose operands are made
//! available in the same way.

use super::super::draft::{Arrival, Departure, DraftBuffer, HostBuffer};
use super::super::pieces::{all_groups, intersect, pieces_of, Stored};
use super::{Expander, Far, Instance};
use crate::ids::{Id, TensorId, ValueId};
use crate::problem::{Category, Domain, Phase, Split, Value};
use crate::schedule::Access;
use crate::units::{Bytes, Span};

impl Expander<'_> {
    /// The part of a value that a run over `rows` and `groups` uses.
    fn part(&self, value: ValueId, rows: Span, groups: Span) -> (Span, Span) {
        let Value {
            split, row_bytes, ..
        } = self.problem.values[value];
        let rows = if row_bytes == 0 {
            self.problem.all_rows()
        } else {
            rows
        };
        let groups = if split == Split::Groups {
            groups
        } else {
            all_groups(self.problem)
        };
        (rows, groups)
    }

    fn find(&self, value: ValueId, rows: Span, groups: Span) -> Option<usize> {
        self.live[value]
            .iter()
            .rposition(|i| i.rows.contains(rows) && i.groups.contains(groups))
    }

    /// The buffer that holds this part of a value, made available if it is not there.
    pub(super) fn ensure(&mut self, value: ValueId, rows: Span, groups: Span) -> usize {
        let (rows, groups) = self.part(value, rows, groups);
        if self.problem.values[value].category == Category::Weights {
            return self.weight(value);
        }
        for attempt in 0..2 {
            if let Some(at) = self.find(value, rows, groups) {
                let instance = &self.live[value][at];
                if instance.holds(rows) {
                    return instance.buffer;
                }
            }
            if attempt == 0 {
                self.make_available(value, rows, groups);
            }
        }
        panic!(
            "the program reads {} before it is written (step {})",
            self.problem.value_name(value),
            self.problem.program[self.step].name
        );
    }

    fn make_available(&mut self, value: ValueId, rows: Span, groups: Span) {
        let Some(tensor) = self.problem.values[value].tensor else {
            return;
        };
        if self.phase == Phase::Backward {
            let stored = self.stored[tensor]
                .iter()
                .find(|(r, g, _)| r.contains(rows) && g.contains(groups))
                .copied();
            if let Some((rows, groups, far)) = stored {
                self.land(value, rows, groups, far);
                self.pass(tensor);
                return;
            }
        }
        let producer = self.problem.tensors[tensor].producer;
        let op = &self.problem.ops[producer];
        let tile = self.problem.program[self.step].tile.get();
        let tiles = self.grid(op.block, tile);
        let split = self.problem.values[value].split;
        let group = (split == Split::Groups && groups.len() == 1).then_some(groups.start);
        // A block input is made as a whole, so that a segment is made block by block and what one
        // block needs of the host is there for that block only.
        let wanted = if split == Split::Whole {
            self.problem.all_rows()
        } else {
            rows
        };
        let outer = std::mem::replace(&mut self.recomputing, true);
        match op.domain {
            Domain::Rows | Domain::RowsOfGroup => {
                for tile in tiles.iter().filter_map(|t| intersect(*t, wanted)) {
                    let missing = match self.find(value, tile, groups) {
                        Some(at) => self.live[value][at].missing(tile),
                        None => vec![tile],
                    };
                    for rows in missing {
                        self.run_op(producer, &tiles, Some(rows), group);
                    }
                }
            }
            Domain::Group | Domain::Whole => self.run_op(producer, &tiles, None, group),
        }
        self.recomputing = outer;
        if split == Split::Whole {
            self.drop_passed(op.block);
        }
    }

    /// What landed for a block only to make its output again, and what was made for it unless that
    /// is held; it lands or is made anew when it is due itself.
    fn drop_passed(&mut self, block: Option<u32>) {
        let ahead = block.is_some_and(|block| block < self.plan.hold.ahead);
        for tensor in self.problem.tensors.values() {
            let value = &self.problem.values[tensor.value];
            if value.block == block && value.split != Split::Whole {
                let held = ahead && self.is_held(tensor);
                let stays = |i: &Instance| !i.landed && (held || !i.recomputed);
                self.live[tensor.value].retain(stays);
            }
        }
    }

    /// Notes what goes with the end of the step, if it is there for something else.
    fn pass(&mut self, tensor: TensorId) {
        if self.recomputing && self.passing.last() != Some(&tensor) {
            self.passing.push(tensor);
        }
    }

    fn land(&mut self, value: ValueId, rows: Span, groups: Span, far: Far) {
        let buffer = self.buffer(Some(value), rows, groups, false);
        match far {
            Far::Host(departure) => self.draft.arrivals.push(Arrival {
                buffer,
                host: self.draft.departures[departure].host,
                departure: Some(departure),
            }),
            Far::Packed(packed) => self.packing(value, packed, buffer),
        }
        let landed = Instance::full(buffer, rows, groups, self.step);
        self.live[value].push(Instance {
            landed: self.recomputing,
            ..landed
        });
    }

    /// Resident weights are there; streamed ones land anew when their last use is too long ago.
    fn weight(&mut self, value: ValueId) -> usize {
        let step = self.step;
        let gap = self.plan.weight_gap as usize;
        if let Some(instance) = self.live[value].last_mut() {
            let streamed = self.host_weight[value].is_some()
                && !self.draft.buffers[instance.buffer].persistent;
            if !streamed || step.index().abs_diff(instance.last_step.index()) <= gap {
                instance.last_step = step;
                return instance.buffer;
            }
        }
        let host = self.host_weight[value].expect("weights are resident or on the host");
        let (rows, groups) = (self.problem.all_rows(), all_groups(self.problem));
        let buffer = self.buffer(Some(value), rows, groups, false);
        self.draft.arrivals.push(Arrival {
            buffer,
            host,
            departure: None,
        });
        self.live[value] = vec![Instance::full(buffer, rows, groups, step)];
        buffer
    }

    /// The buffer that a run writes, and whether it writes anew or adds.
    pub(super) fn write(
        &mut self,
        value: ValueId,
        rows: Span,
        groups: Span,
        fresh: bool,
    ) -> (usize, Access) {
        let (rows, groups) = self.part(value, rows, groups);
        if let Some(at) = self.find(value, rows, groups) {
            let instance = &mut self.live[value][at];
            let added = instance.holds(rows);
            if !added {
                instance.write(rows);
            }
            let access = if added && !fresh {
                Access::Update
            } else {
                Access::Write
            };
            return (instance.buffer, access);
        }
        let (extent, all, stored) = self.extent(value, rows, groups);
        let buffer = self.buffer(Some(value), extent, all, false);
        let instance = Instance {
            written: if rows == extent {
                Vec::new()
            } else {
                vec![rows]
            },
            recomputed: self.recomputing,
            ..Instance::full(buffer, extent, all, self.step)
        };
        let tensor = self.problem.values[value].tensor;
        let far = match stored {
            Stored::Kept => None,
            Stored::Packed => Some(Far::Packed(self.packed_buffer(
                value,
                (extent, all),
                buffer,
            ))),
            Stored::Swapped => Some(Far::Host(self.depart(value, &instance))),
        };
        if let Some(tensor) = tensor {
            self.stored[tensor].extend(far.map(|far| (extent, all, far)));
            self.pass(tensor);
        }
        self.live[value].push(instance);
        (buffer, Access::Write)
    }

    /// How much a new buffer holds, and how that is stored until backward.
    fn extent(&self, value: ValueId, rows: Span, groups: Span) -> (Span, Span, Stored) {
        let v = &self.problem.values[value];
        let planned = match v.tensor {
            Some(tensor) if self.phase == Phase::Forward => {
                let pieces = self.problem.tensors[tensor].pieces;
                pieces_of(self.problem, tensor, self.plan.fates[tensor], pieces)
                    .into_iter()
                    .find(|(r, g, _)| r.contains(rows) && g.contains(groups))
            }
            _ => None,
        };
        match (planned, v.split) {
            (Some(piece), _) => piece,
            (None, Split::Whole | Split::Groups) => (self.problem.all_rows(), groups, Stored::Kept),
            (None, Split::Rows) => (rows, groups, Stored::Kept),
        }
    }

    pub(super) fn depart(&mut self, value: ValueId, instance: &Instance) -> usize {
        let host = match self.host_weight[value] {
            Some(host) => host,
            None => self.host_buffer(value, instance.rows, instance.groups, false),
        };
        self.draft.departures.push(Departure {
            buffer: instance.buffer,
            host,
        });
        self.draft.departures.len() - 1
    }

    pub(super) fn host_buffer(
        &mut self,
        value: ValueId,
        rows: Span,
        groups: Span,
        persistent: bool,
    ) -> usize {
        let bytes = self.packed_bytes(value, rows, groups);
        self.draft.host_buffers.push(HostBuffer {
            value,
            rows,
            groups,
            bytes,
            persistent,
        });
        self.draft.host_buffers.len() - 1
    }

    pub(super) fn packed_bytes(&self, value: ValueId, rows: Span, groups: Span) -> Bytes {
        let of_groups = u64::from(self.problem.groups);
        self.problem.values[value].host_bytes(rows.len(), groups.len(), of_groups)
    }

    fn bytes(&self, value: ValueId, rows: Span, groups: Span) -> Bytes {
        let of_groups = u64::from(self.problem.groups);
        self.problem.values[value].bytes(rows.len(), groups.len(), of_groups)
    }

    pub(super) fn buffer(
        &mut self,
        value: Option<ValueId>,
        rows: Span,
        groups: Span,
        persistent: bool,
    ) -> usize {
        self.draft.buffers.push(DraftBuffer {
            value,
            category: value.map_or(Category::Workspace, |v| self.problem.values[v].category),
            rows,
            groups,
            bytes: value.map_or(Bytes::ZERO, |v| self.bytes(v, rows, groups)),
            packed: false,
            persistent,
            first: usize::MAX,
            last: 0,
            last_write: 0,
        });
        self.draft.buffers.len() - 1
    }
}
