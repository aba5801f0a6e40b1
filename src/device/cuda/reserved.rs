//! What a device has from its reservation on: memories, streams, events, kernels.

mod commands;

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};

use ebbtide_solver::units::Bytes;

use super::clock::Clock;
use super::compile::Kernels;
use super::cudnn::Cudnn;
use super::driver::{Allocation, Context, Mark, Queue};
use super::host::{lock, Host, Work};
use super::launch::{self, BatchFacts, Buffer};
use super::multiply::{Multiplier, WORKSPACE_BYTES};
use super::own::Own;
use super::packing::Packer;
use super::slab::Slab;
use super::CudaOptions;
use crate::device::arithmetic::Arithmetic;
use crate::device::cpu::update::host_threads;
use crate::device::{
    Cause, Event, Failure, Place, Region, Reservation, Result, RotaryTable, Space, StepParameters,
    StepResult, Stream, TraceEntry,
};
use crate::format::profile::AlgorithmsSection;
use crate::profile::Dtype;

/// What unwritten memory is full of: a NaN in every type.
const POISON: u8 = 0xFF;

/// Memories, streams, events, kernels.
pub(super) struct Reserved {
    pub reservation: Reservation,
    pub arena: Allocation,
    pub host: Arc<Host>,
    /// What is known of each micro-batch.
    pub batches: Vec<BatchFacts>,
    own: Own,
    workspace: Allocation,
    /// Attention by cuDNN, or why not. It is dropped before its stream.
    cudnn: std::result::Result<Cudnn, String>,
    queues: Vec<Queue>,
    /// For copies to the host and for those back.
    packers: [Packer; 2],
    events: Vec<Signal>,
    kernels: Kernels,
    multiplier: Multiplier,
    /// What attention was computed by.
    notes: RefCell<BTreeSet<String>>,
    arithmetic: Arithmetic,
    clock: Clock,
    parameters: Option<StepParameters>,
    /// Work on the host that the driver may still call.
    work: Vec<Arc<Work>>,
    /// The first failure, which stays.
    failure: Option<Failure>,
}

struct Signal {
    mark: Mark,
    /// Whether it was recorded in this step.
    recorded: bool,
}

impl Reserved {
    /// Allocates everything.
    pub fn new(
        context: &Context,
        mut reservation: Reservation,
        options: CudaOptions,
        (multiplier, arithmetic): (Multiplier, Arithmetic),
    ) -> Result<Reserved> {
        let queues = Stream::ALL.map(|_| Queue::new());
        let queues: Vec<Queue> = queues.into_iter().collect::<Result<_>>()?;
        let cudnn = match (options.deterministic, reservation.dtype) {
            (true, _) => Err("--deterministic".into()),
            (_, Dtype::Bf16) => Cudnn::new(&queues[Stream::Compute as usize]),
            (_, dtype) => Err(format!("cuDNN is not asked for {dtype}")),
        };
        let kernels = Kernels::new(context, reservation.dtype)?;
        let beside = Own::bytes(&reservation) + WORKSPACE_BYTES;
        let memory = context.memory()?;
        let bytes = reservation.arena_bytes;
        let needed = bytes.checked_add(beside);
        if needed.is_none_or(|needed| needed > memory.free) {
            let [free, total, beside] = [memory.free, memory.total, beside].map(Bytes::new);
            let what =
                format!("the arena on a card with {free} of {total} free and {beside} beside it");
            return Err(Failure::new(Cause::OutOfMemory { what, bytes }));
        }
        let arena = Allocation::new("the arena", bytes)?;
        let workspace = Allocation::new("matrix products", WORKSPACE_BYTES)?;
        let own = Own::new(&reservation)?;
        let table = reservation.rotary.take();
        if let Some(RotaryTable { cos, sin, .. }) = &table {
            own.write(Buffer::Cos, bytemuck::cast_slice(cos))?;
            own.write(Buffer::Sin, bytemuck::cast_slice(sin))?;
        }
        own.write(Buffer::Maps, bytemuck::cast_slice(&launch::maps()))?;
        // Launches look at its shape only: a million positions are half a GiB of numbers.
        reservation.rotary = table.map(|table| RotaryTable {
            cos: Vec::new(),
            sin: Vec::new(),
            ..table
        });
        let threads = host_threads(options.host_threads)?;
        let events = (0..reservation.events).map(|_| {
            Ok(Signal {
                mark: Mark::new(false)?,
                recorded: false,
            })
        });
        let made = Reserved {
            host: Arc::new(Host {
                slab: Slab::new(reservation.slab_bytes)?,
                slab_bytes: reservation.slab_bytes,
                squares: Slab::new(u64::from(reservation.norm_slots) * 8)?,
                norm_slots: u64::from(reservation.norm_slots),
                dtype: reservation.dtype,
                threads,
                carry: Mutex::new(vec![0.0; reservation.carry_elements as usize]),
                failure: Mutex::default(),
            }),
            batches: vec![BatchFacts::default(); reservation.micro_batches as usize],
            cudnn,
            queues,
            packers: [Packer::new(context)?, Packer::new(context)?],
            notes: RefCell::default(),
            events: events.collect::<Result<_>>()?,
            clock: Clock::default(),
            parameters: None,
            work: Vec::new(),
            failure: None,
            arena,
            own,
            workspace,
            kernels,
            multiplier,
            arithmetic,
            reservation,
        };
        let whole = Region {
            space: Space::Device,
            offset_bytes: 0,
            bytes,
        };
        made.fill(Stream::Compute, whole, POISON)?;
        context.synchronize()?;
        Ok(made)
    }

    /// The fastest algorithms of matrix products, where they are timed.
    pub fn algorithms(&self) -> Option<AlgorithmsSection> {
        self.multiplier.timed()
    }

    fn queue(&self, stream: Stream) -> &Queue {
        &self.queues[stream as usize]
    }

    /// Refuses a region outside its memory.
    pub fn check(&self, region: Region) -> Result<()> {
        self.reservation.check(region)
    }

    /// The address of a region of the arena.
    fn address(&self, region: Region) -> Result<u64> {
        self.check(region)?;
        match region.space {
            Space::Device => Ok(self.arena.address + region.offset_bytes),
            Space::Host => Err(Failure::refused("an operand that is not on the device")),
        }
    }

    // ---- a step -------------------------------------------------------------------------------

    /// Puts a micro-batch on the card.
    pub fn load(&mut self, micro_batch: u32, tokens: &[u32], labels: &[i32]) -> Result<()> {
        let (order, place) = launch::batch::token_order(tokens);
        let own = &self.own;
        own.write(Buffer::Tokens(micro_batch), bytemuck::cast_slice(tokens))?;
        own.write(Buffer::Labels(micro_batch), bytemuck::cast_slice(labels))?;
        own.write(Buffer::Order(micro_batch), bytemuck::cast_slice(&order))?;
        own.write(Buffer::Place(micro_batch), bytemuck::cast_slice(&place))
    }

    /// Begins a step.
    pub fn begin(&mut self, parameters: &StepParameters) -> Result<()> {
        self.work.clear();
        self.events
            .iter_mut()
            .for_each(|event| event.recorded = false);
        self.parameters = Some(*parameters);
        let constants = launch::constants(parameters);
        let zeros = |slots: u32| vec![0u8; slots as usize * size_of::<f64>()];
        let started = (self.own)
            .write(Buffer::Losses, &zeros(self.reservation.loss_slots))
            .and_then(|()| {
                self.own
                    .write(Buffer::Squares, &zeros(self.reservation.norm_slots))
            })
            .and_then(|()| self.own.write(Buffer::Constants, &constants))
            .and_then(|()| self.clock.begin(&self.queues));
        self.kept(started)
    }

    /// The parameters of the step that has begun.
    fn begun(&self) -> Result<StepParameters> {
        let parameters = self.parameters;
        parameters.ok_or_else(|| Failure::refused("no step has begun"))
    }

    /// Queues work between two marks of the clock, unless something has failed before.
    fn timed(&mut self, place: Place, work: impl FnOnce(&Self) -> Result<()>) -> Result<()> {
        if self.failure.is_some() {
            return Ok(());
        }
        let Place {
            stream,
            instruction,
            ..
        } = place;
        let queue = &self.queues[stream as usize];
        let queued = self.clock.before(stream, queue).and_then(|start| {
            work(self)?;
            Ok(start)
        });
        let queued = queued.and_then(|start| {
            let queue = &self.queues[stream as usize];
            self.clock.after(stream, queue, instruction, start)
        });
        self.kept(queued.map_err(|failure| failure.at(place)))
    }

    /// Keeps a failure for the end of the step; a command that cannot be is refused at once.
    fn kept(&mut self, queued: Result<()>) -> Result<()> {
        match queued {
            Err(failure) if !matches!(failure.cause, Cause::Refused(_)) => {
                self.failure.get_or_insert(failure);
                Ok(())
            }
            other => other,
        }
    }

    /// Queues a signal.
    pub fn record(&mut self, stream: Stream, event: Event) -> Result<()> {
        let Some(signal) = self.events.get_mut(event as usize) else {
            return Err(Failure::refused(format!("event {event} was not reserved")));
        };
        signal.recorded = true;
        if self.failure.is_some() {
            return Ok(());
        }
        let recorded = signal.mark.record(&self.queues[stream as usize]);
        self.kept(recorded)
    }

    /// Queues a wait.
    pub fn wait(&mut self, stream: Stream, event: Event) -> Result<()> {
        let signal = self.events.get(event as usize);
        let Some(signal) = signal.filter(|signal| signal.recorded) else {
            return Err(Failure::refused(format!(
                "a wait of stream {} for event {event}, which was not recorded yet",
                stream.name()
            )));
        };
        if self.failure.is_some() {
            return Ok(());
        }
        let waits = self.queue(stream).wait(&signal.mark);
        self.clock.interrupted(stream);
        self.kept(waits)
    }

    /// Fills a region with NaNs on the compute stream.
    pub fn poison(&mut self, region: Region) -> Result<()> {
        if self.failure.is_some() {
            return Ok(());
        }
        self.clock.interrupted(Stream::Compute);
        let filled = self.fill(Stream::Compute, region, POISON);
        self.kept(filled)
    }

    fn fill(&self, stream: Stream, region: Region, byte: u8) -> Result<()> {
        if region.bytes == 0 {
            return Ok(());
        }
        let address = self.address(region)?;
        // SAFETY: the region lies in the arena, which lives until the streams are through.
        unsafe { self.queue(stream).fill(address, region.bytes, byte) }
    }

    // ---- its end ------------------------------------------------------------------------------

    /// Waits for everything queued.
    ///
    /// # Errors
    /// The first failure ever.
    pub fn settle(&mut self) -> Result<()> {
        for queue in &self.queues {
            if let Err(failure) = queue.synchronize() {
                self.failure.get_or_insert(failure);
            }
        }
        if let Some(failure) = &*lock(&self.host.failure) {
            self.failure.get_or_insert(failure.clone());
        }
        self.failure.clone().map_or(Ok(()), Err)
    }

    /// What the step gives back, once it has ended.
    pub fn result(&self) -> Result<StepResult> {
        let parameters = self.begun()?;
        let sum = |buffer, slots: u32| -> Result<f64> {
            let mut values = vec![0f64; slots as usize];
            self.own
                .read(buffer, bytemuck::cast_slice_mut(&mut values))?;
            Ok(values.into_iter().sum())
        };
        let loss = sum(Buffer::Losses, self.reservation.loss_slots)?;
        let slots = self.reservation.norm_slots;
        let norm = (slots > 0)
            .then(|| sum(Buffer::Squares, slots))
            .transpose()?;
        Ok(StepResult {
            loss: loss * parameters.loss_scale,
            gradient_norm: norm.map(f64::sqrt),
        })
    }

    /// What attention was computed by, for a person.
    pub fn notes(&self) -> Vec<String> {
        self.notes.borrow().iter().cloned().collect()
    }

    /// The trace of the step that has ended.
    pub fn trace(&self) -> Result<Vec<TraceEntry>> {
        self.clock.trace()
    }
}
