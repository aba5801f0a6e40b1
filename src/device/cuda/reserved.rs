//! What a device has from its reservation on, and how commands are queued on it.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::ffi::c_void;
use std::sync::{Arc, Mutex};

use ebbtide_solver::units::Bytes;

use super::clock::Clock;
use super::compile::Kernels;
use super::cudnn::Cudnn;
use super::driver::{Allocation, Context, Mark, Queue};
use super::host::{self, lock, Host, Work};
use super::launch::{self, Argument, BatchFacts, Buffer, FusedCall, Launch, Task};
use super::multiply::{Addresses, Multiplier, WORKSPACE_BYTES};
use super::own::Own;
use super::packing::Packer;
use super::products::{Numbers, Product};
use super::slab::Slab;
use super::work::Setting;
use super::CudaOptions;
use crate::device::arithmetic::Arithmetic;
use crate::device::cpu::update::host_threads;
use crate::device::packed::Packing;
use crate::device::{
    Cause, Event, Failure, Operator, Place, Region, Reservation, Result, RotaryTable, Space,
    StepParameters, StepResult, Stream, TraceEntry,
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

    /// The fastest algorithms of matrix products.
    pub fn algorithms(&self) -> AlgorithmsSection {
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

    /// Queues an operator on the card.
    pub fn launch(&mut self, place: Place, operator: &Operator) -> Result<()> {
        let clears = matches!(operator, Operator::Zero { .. });
        if place.stream != Stream::Compute && !clears {
            return Err(Failure::refused("an operator on a stream of copies"));
        }
        if let Some(calls) = self.fused(operator)? {
            return self.attend(place, &calls);
        }
        let step = self.begun()?;
        let serves = |product: &Product| self.multiplier.serves(product, self.addresses(product)?);
        let setting = Setting {
            reservation: &self.reservation,
            batches: &self.batches,
            step: &step,
            arithmetic: self.arithmetic,
            shared_bytes: self.kernels.shared_bytes.into(),
            serves: &serves,
        };
        let tasks = setting.work(operator)?;
        let ready = tasks.iter().map(|task| {
            Ok(match task {
                Task::Launch(launch) => Ready::Kernel(launch, self.values(&launch.arguments)?),
                Task::Multiply(product) => Ready::Product(product, self.addresses(product)?),
            })
        });
        let ready: Vec<Ready> = ready.collect::<Result<_>>()?;
        self.timed(place, |reserved| {
            let queue = reserved.queue(place.stream);
            ready.iter().try_for_each(|ready| match ready {
                Ready::Kernel(launch, values) => reserved.run(queue, launch, values),
                // SAFETY: the operands lie in the arena or in own buffers, which live until the
                // streams are through; only the compute stream multiplies.
                Ready::Product(product, addresses) => unsafe {
                    let (multiplier, workspace) = (&reserved.multiplier, &reserved.workspace);
                    multiplier.multiply(queue, product, *addresses, workspace)
                },
            })
        })
    }

    /// Where a product's operands lie.
    fn addresses(&self, product: &Product) -> Result<Addresses> {
        let optional = |at: Option<Argument>| at.map(|at| self.located(at)).transpose();
        Ok(Addresses {
            a: self.located(product.a.at)?,
            b: self.located(product.b.at)?,
            added: optional(product.added)?,
            bias: optional(product.bias)?,
            out: self.located(product.out)?,
            scales: match product.numbers {
                Numbers::Scaled([a, b]) => Some([self.address(a)?, self.address(b)?]),
                _ => None,
            },
        })
    }

    /// The calls of an attention that cuDNN serves, with their plans made; which it does is noted.
    fn fused(&self, operator: &Operator) -> Result<Option<Vec<FusedCall>>> {
        use Operator::{Attention, AttentionBackward};
        if !matches!(operator, Attention { .. } | AttentionBackward { .. }) {
            return Ok(None);
        }
        let served = match &self.cudnn {
            Err(why) => Err(why.clone()),
            Ok(cudnn) => launch::fused_calls(operator, &self.reservation)?.and_then(|calls| {
                let prepared = calls.iter().try_for_each(|call| {
                    cudnn.prepare((call.direction, call.shape), call.workspace.1)
                });
                prepared.map(|()| (cudnn.name(), calls))
            }),
        };
        let by = match &served {
            Ok((cudnn, _)) => cudnn.clone(),
            Err(why) => format!("ebbtide's kernels ({why})"),
        };
        let mut notes = self.notes.borrow_mut();
        notes.insert(format!("{} by {by}", operator.name()));
        Ok(served.ok().map(|(_, calls)| calls))
    }

    /// Queues an attention that cuDNN serves.
    fn attend(&mut self, place: Place, calls: &[FusedCall]) -> Result<()> {
        self.timed(place, |reserved| {
            let cudnn = reserved.cudnn.as_ref();
            let cudnn = cudnn.map_err(|why| Failure::refused(why.clone()))?;
            for call in calls {
                let tensors = call
                    .tensors
                    .iter()
                    .map(|(id, at)| Ok((*id, reserved.located(*at)?)));
                let tensors: Vec<(i64, u64)> = tensors.collect::<Result<_>>()?;
                let workspace = reserved.located(call.workspace.0)?;
                let queue = reserved.queue(place.stream);
                let run = |launch: &Option<Launch>| {
                    launch
                        .iter()
                        .try_for_each(|l| reserved.run(queue, l, &reserved.values(&l.arguments)?))
                };
                run(&call.before)?;
                // SAFETY: regions were compared with the shape that they are tensors of, and with
                // the arena; that and own buffers live until the streams are through.
                unsafe { cudnn.attend((call.direction, call.shape), tensors, workspace) }?;
                run(&call.after)?;
            }
            Ok(())
        })
    }

    /// Queues a launch with its arguments.
    fn run(&self, queue: &Queue, launch: &Launch, values: &[Value]) -> Result<()> {
        let mut pointers: Vec<*mut c_void> = values.iter().map(Value::pointer).collect();
        // SAFETY: values have the types that the table of kernels gives; addresses are of regions
        // within the arena or of own buffers, which live until the streams are through, and
        // launches are functions of their sizes.
        unsafe { self.kernels.launch(queue, launch, &mut pointers) }
    }

    /// Arguments as kernels take them.
    fn values(&self, arguments: &[Argument]) -> Result<Vec<Value>> {
        let value = |&argument: &Argument| {
            Ok(match argument {
                Argument::Region(_) | Argument::Own(..) => Value::Long(self.located(argument)?),
                Argument::Null => Value::Long(0),
                Argument::U32(number) => Value::Short(number),
                Argument::U64(number) => Value::Long(number),
                Argument::F32(number) => Value::Short(number.to_bits()),
                Argument::F64(number) => Value::Long(number.to_bits()),
            })
        };
        arguments.iter().map(value).collect()
    }

    /// The address that an argument is.
    fn located(&self, argument: Argument) -> Result<u64> {
        match argument {
            Argument::Region(region) => self.address(region),
            Argument::Own(buffer, offset) => self.own.address(buffer, offset),
            other => Err(Failure::refused(format!("{other:?} is no address"))),
        }
    }

    /// The parameters of the step that has begun.
    fn begun(&self) -> Result<StepParameters> {
        let parameters = self.parameters;
        parameters.ok_or_else(|| Failure::refused("no step has begun"))
    }

    /// Queues an operator on the host's threads.
    pub fn launch_on_host(&mut self, place: Place, operator: &Operator) -> Result<()> {
        let parameters = self.begun()?;
        let work = Work::new(&self.host, place, operator, &parameters)?;
        let given = Arc::as_ptr(&work);
        self.work.push(work);
        let updates = matches!(
            operator,
            Operator::Update { .. } | Operator::TensorUpdate { .. }
        );
        let clips = parameters.clip.is_some() && updates;
        self.timed(place, |reserved| {
            let queue = reserved.queue(place.stream);
            if clips {
                let from = reserved.own.address(Buffer::Squares, 0)?;
                let bytes = reserved.host.norm_slots * 8;
                let to = reserved.host.squares.address(0, bytes);
                // SAFETY: both are as long; nobody but updates on this stream reads the target.
                unsafe { queue.copy_out(from, to, bytes) }?;
            }
            // SAFETY: the work is kept until the streams are through; it calls nothing of the
            // driver and catches its panics.
            unsafe { queue.call(host::run, given.cast_mut().cast()) }
        })
    }

    /// Queues a copy.
    pub fn copy(&mut self, place: Place, from: Region, to: Region) -> Result<()> {
        self.check(from)?;
        self.check(to)?;
        if (from.space, to.space) == (Space::Host, Space::Host) {
            return Err(Failure::refused("a copy within the host's memory"));
        }
        if from.bytes == 0 {
            return Ok(());
        }
        self.timed(place, |reserved| {
            let queue = reserved.queue(place.stream);
            let (base, bytes, slab) = (reserved.arena.address, from.bytes, &reserved.host.slab);
            let there = |region: Region| base + region.offset_bytes;
            let here = |region: Region| slab.address(region.offset_bytes, bytes);
            // SAFETY: both regions lie in their memories, which live until the streams are
            // through.
            unsafe {
                match (from.space, to.space) {
                    (Space::Device, Space::Host) => queue.copy_out(there(from), here(to), bytes),
                    (Space::Host, _) => queue.copy_in(here(from), there(to), bytes),
                    (Space::Device, _) => queue.copy_within(there(from), there(to), bytes),
                }
            }
        })
    }

    /// Queues a copy that packs or unpacks.
    pub fn copy_packed(
        &mut self,
        place: Place,
        (from, to): (Region, Region),
        packing: Packing,
    ) -> Result<()> {
        self.check(from)?;
        self.check(to)?;
        if (from.space, to.space) == (Space::Device, Space::Device) {
            return self.pack_within(place, (from, to), packing);
        }
        let to_host = from.space == Space::Device;
        let expected = if to_host { Stream::D2h } else { Stream::H2d };
        if place.stream != expected {
            return Err(Failure::refused(
                "a packed copy on another stream than its own",
            ));
        }
        let (parts, behind) = launch::packed::parts(&self.reservation, (from, to), packing)?;
        let ready = parts.iter().map(|part| {
            let stage = self.own.address(part.stage, 0)?;
            Ok((stage, self.values(&part.launch.arguments)?))
        });
        let ready: Vec<(u64, Vec<Value>)> = ready.collect::<Result<_>>()?;
        self.timed(place, |reserved| {
            let copies = reserved.queue(place.stream);
            let slab = |region: Region| {
                reserved
                    .host
                    .slab
                    .address(region.offset_bytes, region.bytes)
            };
            // SAFETY: both ends lie in their memories, which live until the streams are through,
            // and what is in a stage is no longer than one.
            let copy = |queue: &Queue, there: u64, here: Region| unsafe {
                match to_host {
                    true => queue.copy_out(there, slab(here), here.bytes),
                    false => queue.copy_in(slab(here), there, here.bytes),
                }
            };
            let kernel =
                |queue: &Queue, at: usize| reserved.run(queue, &parts[at].launch, &ready[at].1);
            let staged = |queue: &Queue, at: usize| {
                let mut copies = parts[at].copies.iter();
                copies.try_for_each(|&(offset, here)| copy(queue, ready[at].0 + offset, here))
            };
            let packer = &reserved.packers[usize::from(!to_host)];
            packer.queue(copies, to_host, parts.len(), (&kernel, &staged))?;
            let Some((from, to)) = behind else {
                return Ok(());
            };
            let (there, here) = if to_host { (from, to) } else { (to, from) };
            copy(copies, reserved.address(there)?, here)
        })
    }

    /// Queues a copy that packs or unpacks within the arena.
    fn pack_within(
        &mut self,
        place: Place,
        ends: (Region, Region),
        packing: Packing,
    ) -> Result<()> {
        let (launch, behind) = launch::packed::within(&self.reservation, ends, packing)?;
        let values = self.values(&launch.arguments)?;
        self.timed(place, |reserved| {
            let queue = reserved.queue(place.stream);
            reserved.run(queue, &launch, &values)?;
            let Some((from, to)) = behind else {
                return Ok(());
            };
            let (from, to, bytes) = (reserved.address(from)?, reserved.address(to)?, to.bytes);
            // SAFETY: both regions lie in the arena, which lives until the streams are through.
            unsafe { queue.copy_within(from, to, bytes) }
        })
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

/// Work whose addresses are known.
enum Ready<'a> {
    Kernel(&'a Launch, Vec<Value>),
    Product(&'a Product, Addresses),
}

/// A kernel's parameter.
enum Value {
    Short(u32),
    Long(u64),
}

impl Value {
    fn pointer(&self) -> *mut c_void {
        match self {
            Value::Short(value) => (&raw const *value).cast_mut().cast(),
            Value::Long(value) => (&raw const *value).cast_mut().cast(),
        }
    }
}
