//! A device without numbers: a virtual clock and a log.
//!
//! In: the same commands as any device, and how long each takes. Out: a trace as if they had run,
//! and a log of what was asked, in the order of asking. Memory holds nothing: reads give zeros, the
//! loss is 0. It shows what an executor does, in microseconds.
//!
//! A stream's clock stands at the end of its last command; an event holds the time at which it was
//! recorded; a wait moves the stream's clock on to it. That is all there is to a schedule's time
//! when copies do not slow each other.

use super::arithmetic::Arithmetic;
use super::held::{in_arena, Held};
use super::packed::Packing;
use super::{
    ArenaUse, Device, Event, Failure, Operator, Region, Reservation, Result, StepParameters,
    StepResult, Stream, TraceEntry,
};

/// What was asked of the device.
#[derive(Clone, Debug, PartialEq)]
pub enum Entry {
    /// A step began.
    Begin,
    /// An operator.
    Launch(Stream, u32, Box<Operator>),
    /// A copy: from, to.
    Copy(Stream, u32, Region, Region),
    /// An event was recorded.
    Record(Stream, Event),
    /// An event was waited for.
    Wait(Stream, Event),
    /// A buffer was held.
    Hold(Region),
    /// A buffer was released.
    Release(Region),
    /// The step ended.
    Finish,
}

/// Nanoseconds that a command takes: an operator's or, without one, a copy's.
pub type Clock = Box<dyn Fn(Stream, u32, Option<&Operator>) -> u64>;

/// The device.
pub struct NullDevice {
    clock: Clock,
    log: Vec<Entry>,
    /// When each stream is through.
    now: [u64; Stream::ALL.len()],
    /// When each event was signalled in this step.
    events: Vec<Option<u64>>,
    running: Vec<TraceEntry>,
    trace: Vec<TraceEntry>,
    arena: Held,
    clips: bool,
}

impl NullDevice {
    /// A device whose commands take what `clock` says.
    pub fn new(clock: Clock) -> NullDevice {
        NullDevice {
            clock,
            log: Vec::new(),
            now: Default::default(),
            events: Vec::new(),
            running: Vec::new(),
            trace: Vec::new(),
            arena: Held::default(),
            clips: false,
        }
    }

    /// Everything asked so far.
    pub fn log(&self) -> &[Entry] {
        &self.log
    }

    fn run(&mut self, stream: Stream, instruction: u32, operator: Option<&Operator>) {
        let start_ns = self.now[stream as usize];
        let end_ns = start_ns + (self.clock)(stream, instruction, operator);
        self.now[stream as usize] = end_ns;
        self.running.push(TraceEntry {
            stream,
            instruction,
            start_ns,
            end_ns,
        });
    }

    fn event(&mut self, event: Event) -> Result<&mut Option<u64>> {
        let place = self.events.get_mut(event as usize);
        place.ok_or_else(|| Failure::refused(format!("event {event} was not reserved")))
    }
}

impl Device for NullDevice {
    fn name(&self) -> String {
        "null".to_owned()
    }

    fn reserve(&mut self, reservation: Reservation) -> Result<()> {
        self.events = vec![None; reservation.events as usize];
        self.clips = reservation.norm_slots > 0;
        Ok(())
    }

    fn write(&mut self, _: Region, _: &[u8]) -> Result<()> {
        Ok(())
    }

    fn read(&mut self, _: Region, bytes: &mut [u8]) -> Result<()> {
        bytes.fill(0);
        Ok(())
    }

    fn load_batch(&mut self, _: u32, _: &[u32], _: &[i32]) -> Result<()> {
        Ok(())
    }

    fn begin_step(&mut self, _: &StepParameters) -> Result<()> {
        self.now = Default::default();
        self.events.fill(None);
        self.running.clear();
        self.log.push(Entry::Begin);
        Ok(())
    }

    fn launch(&mut self, stream: Stream, instruction: u32, operator: &Operator) -> Result<()> {
        self.run(stream, instruction, Some(operator));
        let operator = Box::new(operator.clone());
        self.log.push(Entry::Launch(stream, instruction, operator));
        Ok(())
    }

    fn copy(&mut self, stream: Stream, instruction: u32, from: Region, to: Region) -> Result<()> {
        self.run(stream, instruction, None);
        self.log.push(Entry::Copy(stream, instruction, from, to));
        Ok(())
    }

    fn compute_in(&mut self, _: Arithmetic) -> Result<()> {
        Ok(())
    }

    fn copy_packed(
        &mut self,
        stream: Stream,
        instruction: u32,
        (from, to): (Region, Region),
        _: Packing,
    ) -> Result<()> {
        self.copy(stream, instruction, from, to)
    }

    fn record(&mut self, stream: Stream, event: Event) -> Result<()> {
        let now = self.now[stream as usize];
        *self.event(event)? = Some(now);
        self.log.push(Entry::Record(stream, event));
        Ok(())
    }

    fn wait(&mut self, stream: Stream, event: Event) -> Result<()> {
        let Some(signalled) = *self.event(event)? else {
            return Err(Failure::refused(format!(
                "a wait of stream {} for event {event}, which was not recorded yet",
                stream.name()
            )));
        };
        let now = &mut self.now[stream as usize];
        *now = signalled.max(*now);
        self.log.push(Entry::Wait(stream, event));
        Ok(())
    }

    fn hold(&mut self, region: Region) -> Result<()> {
        in_arena(region)?;
        self.arena.hold(region);
        self.log.push(Entry::Hold(region));
        Ok(())
    }

    fn release(&mut self, region: Region, _poison: bool) -> Result<()> {
        in_arena(region)?;
        self.arena.release(region)?;
        self.log.push(Entry::Release(region));
        Ok(())
    }

    fn finish(&mut self) -> Result<StepResult> {
        self.trace = std::mem::take(&mut self.running);
        // Within a stream the order is that of asking.
        self.trace.sort_by_key(|entry| entry.stream);
        self.log.push(Entry::Finish);
        Ok(StepResult {
            loss: 0.0,
            gradient_norm: self.clips.then_some(0.0),
        })
    }

    fn trace(&self) -> &[TraceEntry] {
        &self.trace
    }

    fn arena_use(&self) -> ArenaUse {
        self.arena.most()
    }
}

#[cfg(test)]
mod tests {
    use super::super::Space;
    use super::*;

    /// ```text
    /// compute  [0: 10][1: 10]      [2: 10]
    /// d2h             [0: 25            ]     waits for 0, is waited for by 2
    /// ```
    #[test]
    fn waits_move_the_clock() {
        let took = |stream, _, _: Option<&Operator>| match stream {
            Stream::D2h => 25,
            _ => 10,
        };
        let mut device = NullDevice::new(Box::new(took));
        let region = Region {
            space: Space::Device,
            offset_bytes: 0,
            bytes: 8,
        };
        device.reserve(reservation()).unwrap();
        device.begin_step(&StepParameters::STILL).unwrap();
        let zero = Operator::Zero { region };
        device.launch(Stream::Compute, 0, &zero).unwrap();
        device.record(Stream::Compute, 0).unwrap();
        device.launch(Stream::Compute, 1, &zero).unwrap();
        device.wait(Stream::D2h, 0).unwrap();
        device.copy(Stream::D2h, 0, region, region).unwrap();
        device.record(Stream::D2h, 1).unwrap();
        device.wait(Stream::Compute, 1).unwrap();
        device.launch(Stream::Compute, 2, &zero).unwrap();
        device.finish().unwrap();
        let times = |e: &TraceEntry| (e.stream, e.instruction, e.start_ns, e.end_ns);
        let trace: Vec<_> = device.trace().iter().map(times).collect();
        assert_eq!(
            trace,
            [
                (Stream::Compute, 0, 0, 10),
                (Stream::Compute, 1, 10, 20),
                (Stream::Compute, 2, 35, 45),
                (Stream::D2h, 0, 10, 35),
            ]
        );
        assert_eq!(device.log().len(), 10);
        assert_eq!(device.log()[6], Entry::Record(Stream::D2h, 1));
        device.begin_step(&StepParameters::STILL).unwrap();
        assert!(device.wait(Stream::Compute, 1).is_err());
        assert!(device.record(Stream::Compute, 2).is_err());
    }

    fn reservation() -> Reservation {
        Reservation {
            dtype: crate::profile::Dtype::F32,
            arena_bytes: 8,
            slab_bytes: 0,
            events: 2,
            rows: 0,
            micro_batches: 1,
            loss_slots: 0,
            norm_slots: 0,
            carry_elements: 0,
            rotary: None,
        }
    }
}
