//! The bytes: who uses a buffer comes after all uses of what lay there before, and never after its
//! own bytes have gone to another.

use super::super::order::Moment;
use super::super::violation::Fault;
use super::{Life, Now, Replay};
use crate::ids::BufferId;
use crate::schedule::{Buffer, Space, Stream};

impl Replay<'_> {
    pub(super) fn take(&mut self, life: usize, buffer: &Buffer, before: &mut Vec<u32>) {
        let owners = match buffer.space {
            Space::Device => &mut self.device,
            Space::Host => &mut self.host,
        };
        let (start, bytes) = (buffer.offset.get(), buffer.bytes.get());
        owners.take(start, start.saturating_add(bytes), life as u32, before);
        self.lives[life].begun = true;
    }

    /// The bytes: who uses a buffer comes after all uses of what lay there before, and never
    /// after its own bytes have gone to another.
    pub(super) fn own(&mut self, now: Now, id: BufferId, buffer: &Buffer) {
        let life = self.life_of(id, buffer, now.step);
        if !self.lives[life].begun {
            let mut before = Vec::new();
            self.take(life, buffer, &mut before);
            for previous in before {
                self.succeed(now, life, id, buffer, previous);
            }
        }
        let Life {
            last,
            after,
            before,
            taken,
            accused,
            ..
        } = &mut self.lives[life];
        last[usize::from(now.moment.stream)] = now.moment.position + 1;
        if *accused {
            return;
        }
        let stream = (0..4u8).find(|&s| after[usize::from(s)] > now.clock[usize::from(s)]);
        if let Some(stream) = stream {
            let s = usize::from(stream);
            let (previous, other) = (
                before[s],
                Moment {
                    stream,
                    position: after[s] - 1,
                },
            );
            *accused = true;
            let with = self.buffer_of(previous);
            let fault = self.shared_bytes(buffer.space, with, other, now.moment);
            self.report(fault, now.moment, id, Some(other));
        } else if let Some((owner, since)) = *taken {
            *accused = true;
            let owner = self.buffer_of(owner);
            let fault = match since.before(now.clock) {
                true => Fault::UseAfterFree { owner },
                false => self.shared_bytes(buffer.space, owner, now.moment, since),
            };
            self.report(fault, now.moment, id, Some(since));
        }
    }

    /// `life` takes bytes of `previous`.
    pub(super) fn succeed(
        &mut self,
        now: Now,
        life: usize,
        id: BufferId,
        buffer: &Buffer,
        previous: u32,
    ) {
        let with = self.buffer_of(previous);
        if self.schedule.buffers[with].persistent {
            if now.step == 1 {
                self.report(overlap(buffer.space, with), now.moment, id, None);
            }
            return;
        }
        self.lives[previous as usize].taken = Some((life as u32, now.moment));
        let last = self.lives[previous as usize].last;
        let Life { after, before, .. } = &mut self.lives[life];
        for stream in 0..4 {
            if last[stream] > after[stream] {
                after[stream] = last[stream];
                before[stream] = previous;
            }
        }
    }

    /// Two buffers share bytes and two of their uses are not ordered: `earlier` was to be the last
    /// use of the one, `later` takes the bytes for the other.
    pub(super) fn shared_bytes(
        &self,
        space: Space,
        with: BufferId,
        earlier: Moment,
        later: Moment,
    ) -> Fault {
        let reads = |moment: Moment| {
            self.is_copy(moment) && (moment.stream == Stream::D2h as u8) == (space == Space::Device)
        };
        if !self.same_step(earlier, later) {
            Fault::RaceAcrossSteps
        } else if earlier == later {
            overlap(space, with)
        } else if reads(earlier) {
            Fault::SourceOverwritten
        } else if self.is_copy(earlier) || self.is_copy(later) && !reads(later) {
            Fault::LandingInUse
        } else {
            overlap(space, with)
        }
    }
}

pub(super) fn overlap(space: Space, with: BufferId) -> Fault {
    match space {
        Space::Device => Fault::ArenaOverlap { with },
        Space::Host => Fault::HostOverlap { with },
    }
}
