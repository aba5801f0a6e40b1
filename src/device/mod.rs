//! Devices: what runs the operators of a training step.
//!
//! In: one reservation of memory, then for each step a stream of commands (operators, copies,
//! events) on four queues. Out: bytes read back, the loss, and a trace of when what ran. A device
//! knows neither schedules nor planning: an [`Operator`] carries every shape, a [`Region`] every
//! address. Three devices stand behind one trait: [`cpu`] computes for real on threads, [`cuda`] on
//! an NVIDIA GPU, [`null`] keeps a virtual clock and a log.
//!
//! ```text
//! reserve ─ write weights ─┬─ load_batch ─ begin_step ─ launch, copy, record, wait … ─ finish ─┐
//!                          └───────────────────────────── next step ───────────────────────────┘
//! ```
//! Everything between `begin_step` and `finish` only queues: no call waits for the device, nothing
//! is allocated there, and no number comes back to the host before `finish`. That is what a GPU
//! needs, so it is the contract of all.

pub mod arithmetic;
pub mod cpu;
pub mod cuda;
mod failure;
mod held;
pub mod layout;
pub mod null;
mod operator;
pub mod packed;
mod rotary;
mod target;
pub mod tensors;

pub use ebbtide_solver::schedule::{Space, Stream};
pub use failure::{Cause, Failure, Place};
pub use operator::{
    AttentionShape, Carry, HeadNorms, HeadNormsBackward, HeadShape, NormShape, Operator, Panel,
    Rows, UpdateRule, UpdateSlice,
};
pub use rotary::RotaryTable;
pub use target::{Facts, Target};

use crate::format::profile::AlgorithmsSection;
use crate::profile::Dtype;
use arithmetic::Arithmetic;
use packed::Packing;

/// The result of a device's call.
pub type Result<T> = std::result::Result<T, Failure>;

/// Bytes in one of the two memories.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Region {
    /// The arena on the device or the pinned slab on the host.
    pub space: Space,
    /// Where it starts in that memory.
    pub offset_bytes: u64,
    /// How long it is.
    pub bytes: u64,
}

impl Region {
    /// The part of `bytes` bytes that starts `offset_bytes` into this one.
    ///
    /// # Panics
    /// When it is not inside.
    pub fn part(self, offset_bytes: u64, bytes: u64) -> Region {
        assert!(
            offset_bytes + bytes <= self.bytes,
            "{bytes} bytes at {offset_bytes} are not inside {} bytes",
            self.bytes
        );
        Region {
            space: self.space,
            offset_bytes: self.offset_bytes + offset_bytes,
            bytes,
        }
    }
    /// The first byte behind it.
    pub fn end(self) -> u64 {
        self.offset_bytes + self.bytes
    }
}

/// An event, numbered from 0 below [`Reservation::events`].
pub type Event = u32;

/// Everything that a device allocates, once, before the first step.
#[derive(Clone, Debug)]
pub struct Reservation {
    /// The type of weights, activations and gradients. Softmax statistics, inverse deviations and
    /// optimizer states are f32 whatever it is.
    pub dtype: Dtype,
    /// Size of the arena.
    pub arena_bytes: u64,
    /// Size of the pinned slab on the host.
    pub slab_bytes: u64,
    /// How many events commands name.
    pub events: u32,
    /// Rows of a micro-batch: sequences × length.
    pub rows: u64,
    /// Micro-batches of a step.
    pub micro_batches: u32,
    /// Partial losses that [`Operator::CrossEntropy`] writes.
    pub loss_slots: u32,
    /// Partial sums of squares that [`Operator::GradientNorm`] writes; 0: gradients are not
    /// clipped.
    pub norm_slots: u32,
    /// f32 elements that [`Carry`]s hold between the runs of one update.
    pub carry_elements: u64,
    /// The rotation of every position, where the model has RoPE.
    pub rotary: Option<RotaryTable>,
}

impl Reservation {
    /// Refuses a region outside its memory.
    fn check(&self, region: Region) -> Result<()> {
        let (size, space) = match region.space {
            Space::Device => (self.arena_bytes, "arena"),
            Space::Host => (self.slab_bytes, "host slab"),
        };
        let end = region.offset_bytes.checked_add(region.bytes);
        match end.is_some_and(|end| end <= size) {
            true => Ok(()),
            false => Err(Failure::refused(format!(
                "{} bytes at {} are outside the {space} of {size} bytes",
                region.bytes, region.offset_bytes
            ))),
        }
    }
}

/// What a training step is told beside the data.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct StepParameters {
    /// The optimizer step, from 1: Adam's bias correction.
    pub step: u64,
    /// η.
    pub learning_rate: f64,
    /// Adam's decay of the first moment.
    pub beta1: f64,
    /// Adam's decay of the second moment.
    pub beta2: f64,
    /// What Adam adds to the root of the second moment.
    pub epsilon: f64,
    /// λ: AdamW's decoupled decay; of [`UpdateRule::Sgd`] an L2 term.
    pub weight_decay: f64,
    /// What every token's loss counts: 1 / labels that are not ignored, in all micro-batches.
    pub loss_scale: f64,
    /// The largest global norm of the gradients; above it all are scaled down to it. Needs
    /// [`Operator::GradientNorm`] before the first update.
    pub clip: Option<f64>,
    /// The largest magnitude of an element of a gradient: what is larger becomes that, before it is
    /// scaled down by the norm of what it was (Lv et al. 2024, section 3.3.1).
    pub clip_value: Option<f64>,
}

impl StepParameters {
    /// Those of a first step that leaves weights as they are: no learning rate, and otherwise what
    /// PyTorch's AdamW begins with, but for its decay.
    pub const STILL: Self = Self {
        step: 1,
        learning_rate: 0.0,
        beta1: 0.9,
        beta2: 0.999,
        epsilon: 1e-8,
        weight_decay: 0.0,
        loss_scale: 1.0,
        clip: None,
        clip_value: None,
    };

    /// What gradients are multiplied with; `norm` is their global one, asked for where they are
    /// clipped.
    pub(crate) fn clip_factor(&self, norm: impl FnOnce() -> f64) -> f64 {
        self.clip
            .map_or(1.0, |limit| (limit / (norm() + 1e-6)).min(1.0))
    }
}

/// What a step gives back.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct StepResult {
    /// Sum of the losses of all slots, in order, times the loss scale: the mean loss of a token.
    pub loss: f64,
    /// Global norm of the gradients before clipping, where it was asked for.
    pub gradient_norm: Option<f64>,
}

/// When an operator or a copy ran.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TraceEntry {
    /// On which stream.
    pub stream: Stream,
    /// The number that the caller gave it.
    pub instruction: u32,
    /// Nanoseconds from `begin_step`.
    pub start_ns: u64,
    /// Nanoseconds from `begin_step`.
    pub end_ns: u64,
}

/// What the arena was asked to hold.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ArenaUse {
    /// The most bytes held at once.
    pub peak_live_bytes: u64,
    /// The end of the highest region ever held.
    pub high_water_bytes: u64,
}

/// The most tokens a label can be: this one is left out of the loss.
pub const IGNORED_LABEL: i32 = -100;

/// A device.
///
/// Streams run side by side, each in the order of its commands. A failure on a stream (an operator
/// that panics, a copy that fails) does not show at the call that queued the command: the device is
/// spoilt from then on, later commands are dropped, and the next [`Device::finish`], read or write
/// returns the first failure. `Err` of a queueing call means that the command itself cannot be: an
/// address outside the memory, an operator that the device does not have.
pub trait Device {
    /// What reports call it.
    fn name(&self) -> String;

    /// Says how linear layers multiply, before anything else. A device that cannot do this refuses
    /// it.
    fn compute_in(&mut self, arithmetic: Arithmetic) -> Result<()> {
        match arithmetic {
            Arithmetic::Plain => Ok(()),
            other => Err(Failure::refused(format!("linear layers by {other}"))),
        }
    }

    /// Gives it algorithms of matrix products that were timed before, before anything else; those
    /// of another library than its own are refused.
    fn use_algorithms(&mut self, _: &AlgorithmsSection) -> Result<()> {
        Ok(())
    }

    /// The fastest algorithms of matrix products, where it was opened to time them.
    fn algorithms(&self) -> Option<AlgorithmsSection> {
        None
    }

    /// Allocates everything; called once, before anything else.
    ///
    /// # Errors
    /// Memory that is not there, a dtype that the device does not compute in.
    fn reserve(&mut self, reservation: Reservation) -> Result<()>;

    /// Writes a region from little-endian bytes, between steps. Waits.
    fn write(&mut self, region: Region, bytes: &[u8]) -> Result<()>;

    /// Reads a region, between steps. Waits.
    fn read(&mut self, region: Region, bytes: &mut [u8]) -> Result<()>;

    /// Sets a micro-batch's token ids and labels, one each for every row, between steps. The labels
    /// are shifted already: `labels[r]` is what row `r` should predict, [`IGNORED_LABEL`] nothing.
    fn load_batch(&mut self, micro_batch: u32, tokens: &[u32], labels: &[i32]) -> Result<()>;

    /// Chooses how an operator of a step with these parameters is computed, before the step begins,
    /// so that the step need not wait for libraries. What fails here fails at the launch again.
    fn prepare(&mut self, operator: &Operator, parameters: &StepParameters) {
        let _ = (operator, parameters);
    }

    /// Begins a step; the one before has been finished.
    fn begin_step(&mut self, parameters: &StepParameters) -> Result<()>;

    /// Queues an operator. `instruction` names it in the trace and in errors. On
    /// [`Stream::Host`] only updates, [`Operator::GradientNorm`] and
    /// [`Operator::Zero`] run, on host regions.
    fn launch(&mut self, stream: Stream, instruction: u32, operator: &Operator) -> Result<()>;

    /// Queues a copy between two regions of the same size.
    fn copy(&mut self, stream: Stream, instruction: u32, from: Region, to: Region) -> Result<()>;

    /// Queues a copy that packs what goes to the host, or unpacks what comes from there; on
    /// [`Stream::Compute`] one that packs or unpacks within the arena, as `packing`
    /// says. A device that cannot do this refuses it.
    fn copy_packed(
        &mut self,
        stream: Stream,
        instruction: u32,
        (from, to): (Region, Region),
        packing: Packing,
    ) -> Result<()> {
        let _ = (stream, instruction, from, to);
        let storage = packing.storage;
        Err(Failure::refused(format!("a copy that packs in {storage}")))
    }

    /// Queues the signal of an event: it is set when everything before it on the stream has ended.
    fn record(&mut self, stream: Stream, event: Event) -> Result<()>;

    /// Queues a wait for the last `record` of an event that was queued before this call.
    ///
    /// # Errors
    /// An event that was not recorded since `begin_step`: a GPU would not wait at all. Commands are
    /// to be queued in an order in which every signal precedes its waits.
    fn wait(&mut self, stream: Stream, event: Event) -> Result<()>;

    /// Says that a buffer of the arena is used from here on, in the compute stream's order; counts
    /// [`ArenaUse`]. Persistent buffers are held once, before the first step.
    fn hold(&mut self, region: Region) -> Result<()>;

    /// Says that a buffer is not used any more by what is queued on the compute stream after this.
    /// With `poison` a checking device fills it with NaNs there.
    fn release(&mut self, region: Region, poison: bool) -> Result<()>;

    /// Waits for everything queued and ends the step.
    ///
    /// # Errors
    /// The first failure since `begin_step`.
    fn finish(&mut self) -> Result<StepResult>;

    /// The trace of the last finished step, by stream and in order.
    fn trace(&self) -> &[TraceEntry];

    /// What a person should know of how operators were computed so far, a line each.
    fn notes(&self) -> Vec<String> {
        Vec::new()
    }

    /// What the arena was asked to hold so far.
    fn arena_use(&self) -> ArenaUse;
}
