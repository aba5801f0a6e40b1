//! How operators and copies are queued on what was reserved.

use std::ffi::c_void;
use std::sync::Arc;

use super::super::driver::Queue;
use super::super::host::{self, Work};
use super::super::launch::{self, Argument, Buffer, FusedCall, Launch, Task};
use super::super::multiply::Addresses;
use super::super::products::{Numbers, Product};
use super::super::work::Setting;
use super::Reserved;
use crate::device::packed::Packing;
use crate::device::{Failure, Operator, Place, Region, Result, Space, StepParameters, Stream};

impl Reserved {
    /// Has the libraries choose how an operator is computed.
    pub fn prepare(&self, operator: &Operator, step: &StepParameters) -> Result<()> {
        if self.fused(operator)?.is_some() {
            return Ok(());
        }
        for task in self.tasks(operator, step)? {
            if let Task::Multiply(product) = task {
                self.multiplier
                    .serves(&product, self.addresses(&product)?)?;
            }
        }
        Ok(())
    }

    /// What runs an operator that cuDNN does not.
    fn tasks(&self, operator: &Operator, step: &StepParameters) -> Result<Vec<Task>> {
        let serves = |product: &Product| self.multiplier.serves(product, self.addresses(product)?);
        let setting = Setting {
            reservation: &self.reservation,
            batches: &self.batches,
            step,
            arithmetic: self.arithmetic,
            shared_bytes: self.kernels.shared_bytes.into(),
            serves: &serves,
        };
        setting.work(operator)
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
        let tasks = self.tasks(operator, &self.begun()?)?;
        self.timed(place, |reserved| {
            let queue = reserved.queue(place.stream);
            tasks.iter().try_for_each(|task| match task {
                Task::Launch(launch) => reserved.run(queue, launch),
                Task::Multiply(product) => {
                    let addresses = reserved.addresses(product)?;
                    let (multiplier, workspace) = (&reserved.multiplier, &reserved.workspace);
                    // SAFETY: the operands lie in the arena or in own buffers, which live until
                    // the streams are through; only the compute stream multiplies.
                    unsafe { multiplier.multiply(queue, product, addresses, workspace) }
                }
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
                    let mut launch = launch.iter();
                    launch.try_for_each(|launch| reserved.run(queue, launch))
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

    /// Queues a launch.
    fn run(&self, queue: &Queue, launch: &Launch) -> Result<()> {
        let values = self.values(&launch.arguments)?;
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
            reserved.transfer(reserved.queue(place.stream), from, to)
        })
    }

    /// Queues a copy of a region to one as large.
    fn transfer(&self, queue: &Queue, from: Region, to: Region) -> Result<()> {
        let (base, bytes, slab) = (self.arena.address, from.bytes, &self.host.slab);
        let there = |region: Region| base + region.offset_bytes;
        let here = |region: Region| slab.address(region.offset_bytes, bytes);
        // SAFETY: both regions were compared with their memories, which live until the streams are
        // through.
        unsafe {
            match (from.space, to.space) {
                (Space::Device, Space::Host) => queue.copy_out(there(from), here(to), bytes),
                (Space::Host, _) => queue.copy_in(here(from), there(to), bytes),
                (Space::Device, _) => queue.copy_within(there(from), there(to), bytes),
            }
        }
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
        let stages = parts.iter().map(|part| self.own.address(part.stage, 0));
        let stages: Vec<u64> = stages.collect::<Result<_>>()?;
        self.timed(place, |reserved| {
            let copies = reserved.queue(place.stream);
            let slab = &reserved.host.slab;
            let kernel = |queue: &Queue, at: usize| reserved.run(queue, &parts[at].launch);
            let staged = |queue: &Queue, at: usize| {
                let mut copies = parts[at].copies.iter();
                copies.try_for_each(|&(offset, region)| {
                    let (there, bytes) = (stages[at] + offset, region.bytes);
                    let here = slab.address(region.offset_bytes, bytes);
                    // SAFETY: what is in a stage is no longer than one; the region lies in the
                    // slab; both live until the streams are through.
                    unsafe {
                        match to_host {
                            true => queue.copy_out(there, here, bytes),
                            false => queue.copy_in(here, there, bytes),
                        }
                    }
                })
            };
            let packer = &reserved.packers[usize::from(!to_host)];
            packer.queue(copies, to_host, parts.len(), (&kernel, &staged))?;
            behind.map_or(Ok(()), |(from, to)| reserved.transfer(copies, from, to))
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
        if place.stream != Stream::Compute {
            return Err(Failure::refused(
                "packing within the arena on another stream than compute",
            ));
        }
        self.timed(place, |reserved| {
            let queue = reserved.queue(place.stream);
            reserved.run(queue, &launch)?;
            behind.map_or(Ok(()), |(from, to)| reserved.transfer(queue, from, to))
        })
    }
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
