//! The reference device: real arithmetic on this machine's processor.
//!
//! In: commands. Out: numbers, and a trace of real time. One thread serves each stream, events are
//! real, the arena and the host's slab are one piece of memory each, at the schedule's offsets,
//! full of NaNs before they are written and after they are released. What a wrong schedule would
//! do on a GPU, it does here: race, read what was freed, overwrite what is needed; never undefined,
//! since all memory is pages behind locks ([`memory`]).
//!
//! Arithmetic is f32. In bf16, operands are decoded and results are rounded once, when they are
//! stored; products and sums in between are f32, as on a GPU.
//!
//! ```text
//! launch ─► queue ─► thread ─► [`run`] ─► load ─► [`ops`] ─► store
//! ```

pub mod machine;
pub mod memory;
pub mod ops;
mod options;
mod run;
mod scratch;
mod state;
pub(super) mod update;
mod worker;

use std::sync::mpsc::{channel, Sender};
use std::sync::{Arc, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Instant;

pub use options::{CpuOptions, Delays, Faults, LinkSpeed, Target};
use state::{Batch, State, Step};
use worker::{serve, Command, Signal};

use super::arithmetic::Arithmetic;
use super::held::{in_arena, same_size, Held};
use super::packed::Packing;
use super::{
    ArenaUse, Cause, Device, Event, Failure, Operator, Region, Reservation, Result, StepParameters,
    StepResult, Stream, TraceEntry,
};
use crate::profile::Dtype;

/// The CPU as a device.
pub struct CpuDevice {
    options: CpuOptions,
    reserved: Option<Reserved>,
    arena: Held,
    trace: Vec<TraceEntry>,
}

/// What there is after `reserve`.
struct Reserved {
    state: Arc<State>,
    queues: Vec<Sender<Command>>,
    threads: Vec<JoinHandle<()>>,
    /// The last signal of every event in this step.
    events: Vec<Option<Arc<Signal>>>,
}

impl CpuDevice {
    /// A device that has reserved nothing yet.
    pub fn new(options: CpuOptions) -> CpuDevice {
        CpuDevice {
            options,
            reserved: None,
            arena: Held::default(),
            trace: Vec::new(),
        }
    }

    fn reserved(&self) -> Result<&Reserved> {
        let reserved = self.reserved.as_ref();
        reserved.ok_or_else(|| Failure::refused("nothing was reserved"))
    }

    fn state(&self) -> Result<&State> {
        Ok(&self.reserved()?.state)
    }

    fn send(&self, stream: Stream, command: Command) -> Result<()> {
        let queue = &self.reserved()?.queues[stream as usize];
        let gone = |_| Failure::new(Cause::Failed(format!("stream {} ended", stream.name())));
        queue.send(command).map_err(gone)
    }

    /// Waits for everything queued; the traces of all streams in order.
    fn drain(&self) -> Result<Vec<TraceEntry>> {
        let mut trace = Vec::new();
        let mut replies = Vec::new();
        for stream in Stream::ALL {
            let (reply, answer) = channel();
            self.send(stream, Command::Finish(reply))?;
            replies.push(answer);
        }
        for answer in replies {
            let gone = |_| Failure::new(Cause::Failed("a stream ended".to_owned()));
            trace.extend(answer.recv().map_err(gone)?);
        }
        Ok(trace)
    }

    /// The state when no stream works and nothing has failed.
    fn quiet(&self) -> Result<&State> {
        // What was traced outside a step is of no interest.
        self.drain()?;
        let state = self.state()?;
        state.failure().map_or(Ok(state), Err)
    }
}

impl Device for CpuDevice {
    fn name(&self) -> String {
        "cpu".to_owned()
    }

    fn compute_in(&mut self, arithmetic: Arithmetic) -> Result<()> {
        self.options.arithmetic = arithmetic;
        Ok(())
    }

    fn reserve(&mut self, reservation: Reservation) -> Result<()> {
        if self.reserved.is_some() {
            return Err(Failure::refused("memory was reserved before"));
        }
        if reservation.dtype == Dtype::Fp8 {
            return Err(Failure::refused(
                "tensors of fp8; bf16 and f32 are computed",
            ));
        }
        let events = vec![None; reservation.events as usize];
        let threads = update::host_threads(self.options.host_threads)?;
        let state = Arc::new(State::new(reservation, self.options, threads)?);
        let (mut queues, mut threads) = (Vec::new(), Vec::new());
        for stream in Stream::ALL {
            let (queue, commands) = channel();
            let shared = Arc::clone(&state);
            let thread = thread::Builder::new()
                .name(stream.name().to_owned())
                .spawn(move || serve(&shared, stream, &commands))
                .map_err(|e| Failure::new(Cause::Failed(format!("no thread: {e}"))))?;
            queues.push(queue);
            threads.push(thread);
        }
        self.reserved = Some(Reserved {
            state,
            queues,
            threads,
            events,
        });
        Ok(())
    }

    fn write(&mut self, region: Region, bytes: &[u8]) -> Result<()> {
        let state = self.quiet()?;
        same_size(region.bytes, bytes.len() as u64)?;
        state.check(region)?;
        let memory = state.memory(region.space);
        memory.write(region.offset_bytes, bytes);
        Ok(())
    }

    fn read(&mut self, region: Region, bytes: &mut [u8]) -> Result<()> {
        let state = self.quiet()?;
        same_size(region.bytes, bytes.len() as u64)?;
        state.check(region)?;
        let memory = state.memory(region.space);
        memory.read(region.offset_bytes, bytes);
        Ok(())
    }

    fn load_batch(&mut self, micro_batch: u32, tokens: &[u32], labels: &[i32]) -> Result<()> {
        let state = self.quiet()?;
        same_size(state.reservation.rows, tokens.len() as u64)?;
        same_size(state.reservation.rows, labels.len() as u64)?;
        let Some(batch) = state.batches.get(micro_batch as usize) else {
            return Err(Failure::refused(format!(
                "micro-batch {micro_batch} of {}",
                state.batches.len()
            )));
        };
        *batch.write().unwrap_or_else(PoisonError::into_inner) = Batch {
            tokens: tokens.to_vec(),
            labels: labels.to_vec(),
        };
        Ok(())
    }

    fn begin_step(&mut self, parameters: &StepParameters) -> Result<()> {
        let state = self.quiet()?;
        state.clear_slots();
        *state.step.write().unwrap_or_else(PoisonError::into_inner) = Step {
            parameters: *parameters,
            began: Instant::now(),
        };
        if let Some(reserved) = &mut self.reserved {
            reserved.events.fill(None);
        }
        Ok(())
    }

    fn launch(&mut self, stream: Stream, instruction: u32, operator: &Operator) -> Result<()> {
        self.send(
            stream,
            Command::Run(instruction, Box::new(operator.clone())),
        )
    }

    fn copy(&mut self, stream: Stream, instruction: u32, from: Region, to: Region) -> Result<()> {
        let state = self.state()?;
        same_size(from.bytes, to.bytes)?;
        state.check(from)?;
        state.check(to)?;
        self.send(stream, Command::Copy(instruction, from, to))
    }

    fn copy_packed(
        &mut self,
        stream: Stream,
        instruction: u32,
        (from, to): (Region, Region),
        packing: Packing,
    ) -> Result<()> {
        let state = self.state()?;
        let (plain, packed) = packing.sides(from, to);
        let size = state.reservation.dtype.bytes();
        same_size(plain.bytes, packing.plain_bytes(size))?;
        same_size(packed.bytes, packing.packed_bytes())?;
        state.check(from)?;
        state.check(to)?;
        self.send(stream, Command::Packed(instruction, from, to, packing))
    }

    fn record(&mut self, stream: Stream, event: Event) -> Result<()> {
        let signal = Arc::new(Signal::default());
        self.send(stream, Command::Record(Arc::clone(&signal)))?;
        let events = self.reserved.as_mut().map(|reserved| &mut reserved.events);
        match events.and_then(|events| events.get_mut(event as usize)) {
            Some(place) => *place = Some(signal),
            None => return Err(Failure::refused(format!("event {event} was not reserved"))),
        }
        Ok(())
    }

    fn wait(&mut self, stream: Stream, event: Event) -> Result<()> {
        let signal = self
            .reserved()?
            .events
            .get(event as usize)
            .cloned()
            .flatten();
        let Some(signal) = signal else {
            return Err(Failure::refused(format!(
                "a wait of stream {} for event {event}, which was not recorded yet",
                stream.name()
            )));
        };
        self.send(stream, Command::Wait(signal))
    }

    fn hold(&mut self, region: Region) -> Result<()> {
        in_arena(region)?;
        self.state()?.check(region)?;
        self.arena.hold(region);
        Ok(())
    }

    fn release(&mut self, region: Region, poison: bool) -> Result<()> {
        in_arena(region)?;
        self.state()?.check(region)?;
        self.arena.release(region)?;
        if poison && self.options.poison {
            self.send(Stream::Compute, Command::Poison(region))?;
        }
        Ok(())
    }

    fn finish(&mut self) -> Result<StepResult> {
        self.trace = self.drain()?;
        let state = self.state()?;
        if let Some(failure) = state.failure() {
            return Err(failure);
        }
        let Step { parameters, .. } = state.step();
        Ok(StepResult {
            loss: state.loss() * parameters.loss_scale,
            gradient_norm: (state.reservation.norm_slots > 0).then(|| state.gradient_norm()),
        })
    }

    fn trace(&self) -> &[TraceEntry] {
        &self.trace
    }

    fn arena_use(&self) -> ArenaUse {
        self.arena.most()
    }
}

impl Drop for CpuDevice {
    fn drop(&mut self) {
        if let Some(reserved) = self.reserved.take() {
            drop(reserved.queues);
            for thread in reserved.threads {
                // A worker catches its panics; one that ended otherwise has nothing to say here.
                let _ = thread.join();
            }
        }
    }
}
