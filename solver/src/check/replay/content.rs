//! What a buffer holds: which contributions, of which micro-batch, after which optimizer update.
//!
//! Every contribution adds a hash of its operator (and head group) to the cell's sum, so that two
//! cells with equal sums have had the same contributions, whatever their order. A change in place
//! that is no contribution (a rotation) does not commute, so it hashes the sum before it. The sums
//! of what is read must agree between the tiles of a step, and between a value and its
//! recomputation.

use std::collections::HashSet;

use super::super::cells::{Content, Written};
use super::super::form::value_of;
use super::super::violation::Fault;
use super::{adds, Now, Replay, Version};
use crate::ids::{BufferId, Id, OpId, ValueId};
use crate::problem::{Category, Domain};
use crate::schedule::{Access, Action, Buffer, ScheduledOp};

/// What an operator adds for one group.
fn hash(op: OpId, group: u64) -> u64 {
    spread((op.index() as u64 + 1) << 16 ^ (group + 1))
}

/// Spreads a number over 64 bits (the finaliser of splitmix64).
fn spread(mut x: u64) -> u64 {
    x = (x ^ x >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ x >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ x >> 31
}

impl Replay<'_> {
    /// What a cell holds once the instruction has written it.
    pub(super) fn content_after(
        &self,
        now: Now,
        buffer: &Buffer,
        access: Access,
        old: Content,
    ) -> Content {
        let mut new = match access {
            Access::Update => old,
            _ => Content {
                step: now.step,
                micro_batch: Some(now.instruction.micro_batch),
                ..Content::default()
            },
        };
        let value = value_of(self.schedule, buffer);
        if let Some((op, entry)) = now.op {
            let adds = adds(self.schedule, now, buffer);
            new.remade |= matches!(now.instruction.action, Action::Recompute(_));
            if adds || access == Access::Update {
                let grouped = matches!(entry.domain, Domain::RowsOfGroup | Domain::Group)
                    && value.is_some_and(|(_, value)| !value.by_groups);
                let groups = now.instruction.groups;
                let last = groups.end.min(self.schedule.groups);
                let part = match grouped {
                    true => (groups.start..last)
                        .fold(0u64, |sum, group| sum.wrapping_add(hash(op, group))),
                    false => hash(op, u64::MAX - 1),
                };
                new.sum = match adds {
                    true => new.sum.wrapping_add(part),
                    false => spread(new.sum ^ part),
                };
            } else {
                new.base = op.index() as u32 + 1;
            }
            if adds {
                new.contributed = Some(now.moment);
            }
        }
        let updater = match now.op {
            Some((_, op)) => value.is_some_and(|(value, _)| op.updates.contains(&value)),
            None => matches!(now.instruction.action, Action::HostUpdate(_)),
        };
        if updater {
            new.updated = Some(now.moment);
        }
        new
    }

    /// A sum is initialised once, added to before it is used, and not written over.
    pub(super) fn check_sum(
        &mut self,
        now: Now,
        id: BufferId,
        buffer: &Buffer,
        access: Access,
        written: Written,
        old: &Content,
    ) {
        let Some((value, entry)) = value_of(self.schedule, buffer) else {
            return;
        };
        if !self.accumulated[value.index()] {
            return;
        }
        let adds = adds(self.schedule, now, buffer);
        let is_gradient = entry.category == Category::Gradients;
        let here = old.step == now.step && matches!(written, Written::At(_));
        if access == Access::Write {
            let reused = !is_gradient && old.micro_batch != Some(now.instruction.micro_batch);
            let unread = is_gradient && old.contributed.is_some() && old.consumed.is_none();
            if (here && !reused) || unread {
                let other = old.contributed;
                self.report(Fault::ContributionLost, now.moment, id, other);
            }
        } else if is_gradient && adds {
            if !here && matches!(written, Written::At(_) | Written::Before) {
                self.report(Fault::ContributionUninitialised, now.moment, id, None);
            }
            if old.consumed.is_some() {
                self.report(Fault::GradientUsedEarly, now.moment, id, old.consumed);
            }
        }
    }

    /// Whether what an instruction reads is of the right update, micro-batch and version.
    pub(super) fn check_content(
        &mut self,
        now: Now,
        id: BufferId,
        buffer: &Buffer,
        access: Access,
        content: &Content,
    ) {
        let Some((op, entry)) = now.op else { return };
        let Some((value, value_entry)) = value_of(self.schedule, buffer) else {
            return;
        };
        if self.trained[value.index()] && !self.is_optimizer(entry) {
            match content
                .updated
                .map(|update| (update, self.order.place(update).step))
            {
                Some((update, step)) if step == now.step => {
                    self.report(Fault::WeightsUpdatedEarly, now.moment, id, Some(update));
                }
                None if now.step == 2 => self.report(Fault::StaleWeights, now.moment, id, None),
                _ => {}
            }
        }
        if buffer.persistent || value_entry.row_bytes == 0 {
            return;
        }
        let passing = matches!(
            value_entry.category,
            Category::Activations | Category::Transients
        );
        let foreign = content
            .micro_batch
            .is_some_and(|mb| mb != now.instruction.micro_batch);
        if passing && foreign {
            self.report(Fault::StaleMicroBatch, now.moment, id, None);
        }
        let changes = entry.accumulates.contains(&value) || entry.updates.contains(&value);
        if access == Access::Read && !changes {
            self.check_version(
                now,
                op,
                id,
                (value, content.base, content.sum),
                content.remade,
            );
        }
    }

    /// Whether an operator changes weights, so that it may read what has just been updated.
    pub(super) fn is_optimizer(&self, op: &ScheduledOp) -> bool {
        let values = &self.schedule.values;
        let mut updated = op.updates.iter().filter_map(|&value| values.get(value));
        updated.any(|value| value.category == Category::Weights)
    }

    /// An operator reads the same version of a value in all its runs; a version made again must
    /// be one that was read before it was thrown away.
    pub(super) fn check_version(
        &mut self,
        now: Now,
        op: OpId,
        id: BufferId,
        version: Version,
        remade: bool,
    ) {
        let seen = &mut self.seen[op.index()];
        if seen.contains(&(version, remade)) {
            return;
        }
        let (value, base, _) = version;
        let differs = seen
            .iter()
            .any(|&(v, _)| (v.0, v.1) == (value, base) && v != version);
        seen.push((version, remade));
        if differs {
            self.report(Fault::WrongVersion, now.moment, id, None);
        }
        match remade {
            true => self.remade.push((version, now.moment, id)),
            false => {
                self.first_hand.insert(version);
            }
        }
    }

    /// Versions that recomputation made are versions that were there before.
    pub(super) fn check_remade(&mut self) {
        for (version, at, id) in std::mem::take(&mut self.remade) {
            if self.first_hand.contains(&version) {
                continue;
            }
            let (value, base, _) = version;
            let same_base = |&&(v, b, _): &&Version| (v, b) == (value, base);
            let read = self.first_hand.iter().any(|v| same_base(&v));
            if read
                || self
                    .final_versions(value, base)
                    .is_some_and(|all| !all.contains(&version))
            {
                self.report(Fault::WrongVersion, at, id, None);
            }
        }
    }

    /// What the buffers of a value that were written at first hand hold in the end; nothing if
    /// there is none.
    pub(super) fn final_versions(&self, value: ValueId, base: u32) -> Option<HashSet<Version>> {
        let buffers = self
            .schedule
            .buffers
            .iter()
            .filter(|(_, b)| b.value == Some(value));
        let cells = buffers.flat_map(|(id, _)| self.lives[id.index()].cells.all());
        let written = cells.filter(|c| c.written != Written::Never && !c.content.remade);
        let versions: HashSet<Version> = written
            .filter(|cell| cell.content.base == base)
            .map(|cell| (value, base, cell.content.sum))
            .collect();
        (!versions.is_empty()).then_some(versions)
    }

    /// Gradients that arrive somewhere and go nowhere.
    pub(super) fn check_unread(&mut self) {
        for (id, buffer) in self.schedule.buffers.iter().filter(|(_, b)| !b.persistent) {
            let Some((_, value)) = value_of(self.schedule, buffer) else {
                continue;
            };
            let cells = self.lives[id.index()].cells.all();
            let unread = cells.iter().find(|c| c.content.consumed.is_none());
            let contributed = unread.and_then(|cell| cell.content.contributed);
            if let (Category::Gradients, Some(at)) = (value.category, contributed) {
                self.report(Fault::ContributionUnread, at, id, None);
            }
        }
    }
}
