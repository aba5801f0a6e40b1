//! A GPU of NVIDIA's as a device.
//!
//! In: commands. Out: numbers, and a trace by the card's own clock. Matrix products are cuBLASLt's
//! (`products`, `multiply`), attention is cuDNN's where that is there and serves it ([`cudnn`]),
//! everything else are the kernels of `kernels/`, which NVRTC compiles for the card that is there
//! ([`launch`], `compile`). Nothing is linked: `library` finds driver and libraries at run time,
//! and says what is missing.
//!
//! ```text
//! reserve   arena, own buffers ─ one allocation each · slab ─ pinned · kernels · events
//! launch ─► products, launches, cuDNN ─► compute stream   host operator ─► host stream ─► threads
//! copy   ─► its stream                                record, wait  ─► events of the driver
//! finish    waits, reads losses and the trace
//! ```
//! Nothing is allocated and nothing is waited for between `begin_step` and `finish`, but for timed
//! events, which the first step makes; algorithms and cuDNN's plans are there before it, where
//! `prepare` was called, and where algorithms are timed their first products wait. The streams
//! of compute, copies and the host are the driver's; on the host's, the driver calls the optimizer
//! (`host`).
//!
//! All `unsafe` of the program is in this folder. A region is compared with its memory before its
//! address is taken; that regions of commands which run at the same time are apart is what the
//! checker proves of a schedule.

mod clock;
mod compile;
pub mod cudnn;
mod driver;
mod host;
pub mod launch;
mod library;
mod multiply;
mod own;
mod packing;
mod products;
mod reserved;
mod slab;
mod work;

use std::collections::BTreeMap;

use ebbtide_solver::units::Bytes;

use driver::Context;
use launch::BatchFacts;
use multiply::{Algorithm, Multiplier};
use reserved::Reserved;

use super::arithmetic::Arithmetic;
use super::held::{in_arena, same_size, Held};
use super::packed::Packing;
use super::{
    ArenaUse, Device, Event, Failure, Operator, Place, Region, Reservation, Result, Space,
    StepParameters, StepResult, Stream, TraceEntry,
};
use crate::format::profile::AlgorithmsSection;
use crate::profile::Dtype;

/// The first compute capability with products of FP8.
const FP8: (u32, u32) = (8, 9);

/// How a CUDA device behaves.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CudaOptions {
    /// Threads of the host's optimizer; 0: one for each processor.
    pub host_threads: usize,
    /// Whether released buffers are filled with NaNs; for tests, it takes the card's time.
    pub poison: bool,
    /// Whether every run gives the same bits: attention is not cuDNN's then, whose backward sums
    /// dQ in no fixed order.
    pub deterministic: bool,
    /// Whether the algorithms of matrix products are timed at the first of each; waits, and
    /// products that add are then added more than once.
    pub times_algorithms: bool,
}

/// A card as a device.
pub struct CudaDevice {
    options: CudaOptions,
    arithmetic: Arithmetic,
    given: BTreeMap<String, Algorithm>,
    name: String,
    arena: Held,
    trace: Vec<TraceEntry>,
    reserved: Option<Reserved>,
    context: Context,
}

/// What a card says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CardFacts {
    /// Its name.
    pub name: String,
    /// Its memory.
    pub memory: Bytes,
    /// What nobody uses now.
    pub free: Bytes,
    /// Whether cuDNN is there for its attention.
    pub has_cudnn: bool,
}

/// What a card says of itself; also whether there is one, and all that is needed to use it.
///
/// # Errors
/// `NoDevice` with what is missing: driver, library, card, bf16.
pub fn facts(number: u32) -> crate::error::Result<CardFacts> {
    library::probe()?;
    let told = |failure: Failure| failure.told();
    let context = Context::open(number).map_err(told)?;
    let memory = context.memory().map_err(told)?;
    Ok(CardFacts {
        name: context.name().map_err(told)?,
        memory: Bytes::new(memory.total),
        free: Bytes::new(memory.free),
        has_cudnn: cudnn::version().is_ok(),
    })
}

impl CudaDevice {
    /// A card by its number, that has reserved nothing yet.
    ///
    /// # Errors
    /// As [`facts`].
    pub fn open(number: u32, options: CudaOptions) -> crate::error::Result<CudaDevice> {
        library::probe()?;
        let context = Context::open(number).map_err(|failure| failure.told())?;
        let name = context.name().map_err(|failure| failure.told())?;
        Ok(CudaDevice {
            options,
            arithmetic: Arithmetic::Plain,
            given: BTreeMap::new(),
            name,
            arena: Held::default(),
            trace: Vec::new(),
            reserved: None,
            context,
        })
    }

    fn reserved(&mut self) -> Result<&mut Reserved> {
        let reserved = self.reserved.as_mut();
        reserved.ok_or_else(|| Failure::refused("nothing was reserved"))
    }

    /// What was reserved, when no stream works and nothing has failed.
    fn quiet(&mut self) -> Result<&mut Reserved> {
        // Of a lost card every call says so; what was said first says why.
        let entered = self.context.enter();
        let reserved = self.reserved()?;
        reserved.settle()?;
        entered.map(|()| reserved)
    }
}

impl Device for CudaDevice {
    fn name(&self) -> String {
        self.name.clone()
    }

    fn compute_in(&mut self, arithmetic: Arithmetic) -> Result<()> {
        let (major, minor) = self.context.capability()?;
        if arithmetic == Arithmetic::Fp8 && (major, minor) < FP8 {
            return Err(Failure::refused(format!(
                "{arithmetic} on a card of compute capability {major}.{minor}: the first that \
                 multiplies FP8 is 8.9; this one multiplies integers, by --allow int8-compute"
            )));
        }
        self.arithmetic = arithmetic;
        Ok(())
    }

    fn use_algorithms(&mut self, timed: &AlgorithmsSection) -> Result<()> {
        let library = multiply::library();
        if timed.library != library {
            return Err(Failure::refused(format!(
                "algorithms of {}; this is {library}",
                timed.library
            )));
        }
        let given = timed.fastest.iter().map(|(product, timed)| {
            let algorithm = multiply::algorithm(&timed.algorithm);
            let algorithm = algorithm.ok_or_else(|| {
                Failure::refused(format!("`{}` is no algorithm", timed.algorithm))
            })?;
            Ok((product.clone(), algorithm))
        });
        self.given = given.collect::<Result<_>>()?;
        Ok(())
    }

    fn algorithms(&self) -> Option<AlgorithmsSection> {
        self.reserved.as_ref()?.algorithms()
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
        self.context.enter()?;
        let times = self.options.times_algorithms;
        let multiplier = Multiplier::new(self.given.clone(), times)?;
        let how = (multiplier, self.arithmetic);
        let reserved = Reserved::new(&self.context, reservation, self.options, how)?;
        self.reserved = Some(reserved);
        Ok(())
    }

    fn write(&mut self, region: Region, bytes: &[u8]) -> Result<()> {
        let reserved = self.quiet()?;
        same_size(region.bytes, bytes.len() as u64)?;
        reserved.check(region)?;
        match region.space {
            Space::Device => reserved.arena.write(region.offset_bytes, bytes),
            Space::Host => {
                // SAFETY: no stream works.
                unsafe { reserved.host.slab.write(region.offset_bytes, bytes) };
                Ok(())
            }
        }
    }

    fn read(&mut self, region: Region, bytes: &mut [u8]) -> Result<()> {
        let reserved = self.quiet()?;
        same_size(region.bytes, bytes.len() as u64)?;
        reserved.check(region)?;
        match region.space {
            Space::Device => reserved.arena.read(region.offset_bytes, bytes),
            Space::Host => {
                // SAFETY: no stream works.
                unsafe { reserved.host.slab.read(region.offset_bytes, bytes) };
                Ok(())
            }
        }
    }

    fn load_batch(&mut self, micro_batch: u32, tokens: &[u32], labels: &[i32]) -> Result<()> {
        let reserved = self.quiet()?;
        let rows = reserved.reservation.rows;
        same_size(rows, tokens.len() as u64)?;
        same_size(rows, labels.len() as u64)?;
        let count = reserved.batches.len();
        let Some(facts) = reserved.batches.get_mut(micro_batch as usize) else {
            return Err(Failure::refused(format!(
                "micro-batch {micro_batch} of {count}"
            )));
        };
        *facts = BatchFacts::new(tokens, labels);
        reserved.load(micro_batch, tokens, labels)
    }

    fn prepare(&mut self, operator: &Operator, parameters: &StepParameters) {
        if let Some(reserved) = &self.reserved {
            // The launch says what failed.
            let _ = reserved.prepare(operator, parameters);
        }
    }

    fn begin_step(&mut self, parameters: &StepParameters) -> Result<()> {
        self.quiet()?.begin(parameters)
    }

    fn launch(&mut self, stream: Stream, instruction: u32, operator: &Operator) -> Result<()> {
        let place = Place {
            stream,
            instruction,
            operator: operator.name(),
        };
        let reserved = self.reserved()?;
        let launched = match stream {
            Stream::Host => reserved.launch_on_host(place, operator),
            _ => reserved.launch(place, operator),
        };
        launched.map_err(|failure| failure.at(place))
    }

    fn copy(&mut self, stream: Stream, instruction: u32, from: Region, to: Region) -> Result<()> {
        same_size(from.bytes, to.bytes)?;
        let place = Place {
            stream,
            instruction,
            operator: "copy",
        };
        let copied = self.reserved()?.copy(place, from, to);
        copied.map_err(|failure| failure.at(place))
    }

    fn copy_packed(
        &mut self,
        stream: Stream,
        instruction: u32,
        regions: (Region, Region),
        packing: Packing,
    ) -> Result<()> {
        let place = Place {
            stream,
            instruction,
            operator: "packed copy",
        };
        let copied = self.reserved()?.copy_packed(place, regions, packing);
        copied.map_err(|failure| failure.at(place))
    }

    fn record(&mut self, stream: Stream, event: Event) -> Result<()> {
        self.reserved()?.record(stream, event)
    }

    fn wait(&mut self, stream: Stream, event: Event) -> Result<()> {
        self.reserved()?.wait(stream, event)
    }

    fn hold(&mut self, region: Region) -> Result<()> {
        in_arena(region)?;
        self.reserved()?.check(region)?;
        self.arena.hold(region);
        Ok(())
    }

    fn release(&mut self, region: Region, poison: bool) -> Result<()> {
        in_arena(region)?;
        let poison = poison && self.options.poison;
        let reserved = self.reserved()?;
        reserved.check(region)?;
        if poison {
            reserved.poison(region)?;
        }
        self.arena.release(region)
    }

    fn finish(&mut self) -> Result<StepResult> {
        self.trace.clear();
        let reserved = self.quiet()?;
        let result = reserved.result()?;
        self.trace = reserved.trace()?;
        Ok(result)
    }

    fn trace(&self) -> &[TraceEntry] {
        &self.trace
    }

    fn notes(&self) -> Vec<String> {
        let reserved = self.reserved.as_ref();
        reserved.map_or_else(Vec::new, Reserved::notes)
    }

    fn arena_use(&self) -> ArenaUse {
        self.arena.most()
    }
}

impl Drop for CudaDevice {
    fn drop(&mut self) {
        // What is queued may use what is about to be given back. A device that is lost has nothing
        // to wait for.
        let _ = self.context.enter();
        let _ = self.context.synchronize();
    }
}
