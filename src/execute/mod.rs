//! The interpreter: runs a [`Schedule`] step after step on any [`Device`].
//!
//! ```text
//! Schedule, ModelConfig ─ program ─ bind ─ queue ─► Vec<Command> ─┐
//! weights, batches ─────────────────────────────────────────────┴─ Session ─ Device ─► losses,
//!                                                                   weights, states, Timing
//! ```
//! All instructions are bound once, before the first step; a step only queues commands. What is
//! wrong with a schedule shows when the session begins, or as a failure of the device. Nothing here
//! knows of planning, and nothing asks the checker: whoever runs a schedule does that first.
//!
//! [`Schedule`]: ebbtide_solver::schedule::Schedule

mod bind;
mod operands;
mod program;
mod queue;
pub mod timing;
mod update;

use std::collections::BTreeMap;

use ebbtide_solver::ids::ValueId;

pub use program::{dtype, model, Program};
pub use queue::{queue, Command, Queue};

use crate::device::layout::WeightValue;
use crate::device::{
    ArenaUse, Device, Failure, Region, Reservation, RotaryTable, StepParameters, StepResult,
    Stream, TraceEntry, UpdateRule,
};
use crate::error::{Error, Result};
use crate::format::profile::AlgorithmsSection;
use crate::format::schedule::ScheduleFile;
use crate::memory;
use crate::methods::Updates;
use crate::model::ModelConfig;
use crate::profile::Dtype;
use crate::training::elements::{check_finite, decode, encode, stored, DIVERGED};
use crate::training::tokens::Batch;
use crate::training::Place;

/// Bytes of states that are written at a time.
const WRITTEN_AT_ONCE: usize = 64 << 20;

/// A schedule on a device.
pub struct Session<'a> {
    program: Program<'a>,
    queue: Queue,
    device: Box<dyn Device>,
    /// Whether the device was told what its steps run.
    prepared: bool,
}

/// What the optimizer is told apart from data.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Optimizer {
    /// The learning rate of this step.
    pub learning_rate: f64,
    /// Adam's decay of the first moment.
    pub beta1: f64,
    /// Adam's decay of the second moment.
    pub beta2: f64,
    /// What Adam adds to the root of the second moment.
    pub epsilon: f64,
    /// Weight decay.
    pub weight_decay: f64,
    /// The largest global norm of the gradients.
    pub clip: Option<f64>,
    /// The largest magnitude of their elements.
    pub clip_value: Option<f64>,
}

impl Default for Optimizer {
    /// PyTorch's defaults, without decay and clipping.
    fn default() -> Self {
        Self {
            learning_rate: 1e-3,
            beta1: 0.9,
            beta2: 0.999,
            epsilon: 1e-8,
            weight_decay: 0.0,
            clip: None,
            clip_value: None,
        }
    }
}

impl<'a> Session<'a> {
    /// Binds a schedule and reserves the device's memory.
    ///
    /// # Errors
    /// A schedule that is not of this model or cannot be bound; memory that the device lacks.
    pub fn begin(
        file: &'a ScheduleFile,
        model: &'a ModelConfig,
        mut device: Box<dyn Device>,
        clip: bool,
    ) -> Result<Self> {
        let program = Program::new(file, model)?;
        let queue = queue(&program, clip)?;
        let schedule = program.schedule;
        device.compute_in(file.arithmetic).map_err(plain)?;
        let table = RotaryTable::new(&model.positions, model.head_dim, program.sequence);
        device
            .reserve(Reservation {
                dtype: program.layout.dtype,
                arena_bytes: schedule.arena_bytes.get(),
                slab_bytes: schedule.host_bytes.get(),
                events: schedule.events,
                rows: schedule.tokens,
                micro_batches: schedule.micro_batches,
                loss_slots: queue.loss_slots,
                norm_slots: queue.norm_slots,
                carry_elements: program.carry_elements,
                rotary: table,
            })
            .map_err(plain)?;
        for &region in &queue.persistent {
            device.hold(region).map_err(plain)?;
        }
        Ok(Self {
            program,
            queue,
            device,
            prepared: false,
        })
    }

    /// Writes all weights and the states that begin a run: moments 0, masters the weights. `read`
    /// gives a weight's values.
    ///
    /// # Errors
    /// Every error of `read` and of the device.
    pub fn load(&mut self, mut read: impl FnMut(Place) -> Result<Vec<f32>>) -> Result<()> {
        let schedule = self.program.schedule;
        let dtype = self.program.layout.dtype;
        for group in &schedule.state_groups {
            let mut masters = Vec::new();
            for &weight in &group.weights {
                let mut values = Vec::new();
                for place in self.places(weight)? {
                    let part = read(place)?;
                    if part.len() as u64 != place.weight.elements() {
                        let name = place.weight.part.name();
                        return Err(Error::bad_input(format!(
                            "{name} has {} elements, not {}",
                            part.len(),
                            place.weight.elements()
                        )));
                    }
                    values.extend(part);
                }
                let bytes = encode(dtype, &values);
                for (_, home) in self.program.homes(weight) {
                    self.device
                        .write(self.program.region(home), &bytes)
                        .map_err(plain)?;
                }
                masters.extend(values);
            }
            let Some(states) = group.states else { continue };
            let elements = Updates::Elements(UpdateRule::AdamW);
            if (self.program.method.updates(), dtype) != (elements, Dtype::Bf16) {
                masters.clear();
            }
            // A master begins as what the weight is, rounded as that is.
            let masters = decode(stored(dtype), &encode(dtype, &masters));
            self.write_states(states, &masters)?;
        }
        Ok(())
    }

    /// Writes states that begin with some values, and zeros behind them.
    fn write_states(&mut self, states: ValueId, values: &[f32]) -> Result<()> {
        for (_, home) in self.program.homes(states) {
            let region = self.program.region(home);
            let mut at = 0;
            let mut write = |piece: &[u8]| {
                let part = region.part(at, piece.len() as u64);
                at += part.bytes;
                self.device.write(part, piece).map_err(plain)?;
                Ok::<u64, Error>(region.bytes.saturating_sub(at))
            };
            let mut left = region.bytes;
            for values in values.chunks(WRITTEN_AT_ONCE / 4) {
                left = write(&encode(Dtype::F32, values))?;
            }
            let zeros = vec![0; left.min(WRITTEN_AT_ONCE as u64) as usize];
            while left > 0 {
                left = write(&zeros[..zeros.len().min(left as usize)])?;
            }
        }
        Ok(())
    }

    /// Writes the optimizer's states of every group, as [`Session::states`] gave them.
    ///
    /// # Errors
    /// Groups that are missing, of another size or not of numbers, and every error of the device.
    pub fn restore(&mut self, saved: &BTreeMap<String, Vec<f32>>) -> Result<()> {
        for group in &self.program.schedule.state_groups {
            let Some(states) = group.states else { continue };
            let expected = self.program.state_bytes(group)? / 4;
            match saved.get(&group.name) {
                Some(values) if values.len() as u64 == expected => {
                    self.check_states(&group.name, values)?;
                    self.write_states(states, values)?;
                }
                Some(values) => {
                    return Err(Error::bad_input(format!(
                        "the saved states of {} have {} elements, not {expected}",
                        group.name,
                        values.len()
                    )))
                }
                None => {
                    return Err(Error::bad_input(format!(
                        "no states of {} were saved",
                        group.name
                    )))
                }
            }
        }
        Ok(())
    }

    /// Runs one optimizer step on its micro-batches; the first step is 0.
    ///
    /// # Errors
    /// Batches of another size, without labels, or with ids that the model does not have; every
    /// failure of the device; a loss that is not a number.
    pub fn step(&mut self, step: u64, batches: &[Batch], with: &Optimizer) -> Result<StepResult> {
        let result = self.attempt(step, batches, with)?;
        if result.loss.is_finite() {
            return Ok(result);
        }
        Err(
            Error::bad_input(format!("the loss of step {} is {}", step + 1, result.loss)).hint(
                "a lower --lr, --clip, or weights without NaN; what was saved before is untouched",
            ),
        )
    }

    /// The same, whatever the loss.
    ///
    /// # Errors
    /// As [`Session::step`], but for the loss.
    pub fn attempt(
        &mut self,
        step: u64,
        batches: &[Batch],
        with: &Optimizer,
    ) -> Result<StepResult> {
        let schedule = self.program.schedule;
        if batches.len() as u64 != u64::from(schedule.micro_batches) {
            return Err(Error::bad_input(
                "as many batches as micro-batches are needed",
            ));
        }
        let counted: u64 = batches.iter().map(Batch::counted).sum();
        if counted == 0 {
            return Err(Error::bad_input(format!(
                "step {} has no token to learn from: all labels are ignored",
                step + 1
            )));
        }
        for (micro_batch, batch) in (0..).zip(batches) {
            self.device
                .load_batch(micro_batch, &batch.ids, &batch.labels)
                .map_err(plain)?;
        }
        let parameters = StepParameters {
            step: step + 1,
            learning_rate: with.learning_rate,
            beta1: with.beta1,
            beta2: with.beta2,
            epsilon: with.epsilon,
            weight_decay: with.weight_decay,
            loss_scale: 1.0 / counted as f64,
            clip: with.clip,
            clip_value: with.clip_value,
        };
        if !std::mem::replace(&mut self.prepared, true) {
            for command in &self.queue.commands {
                match command {
                    Command::Launch(stream, _, operator) if *stream != Stream::Host => {
                        self.device.prepare(operator, &parameters);
                    }
                    _ => {}
                }
            }
        }
        self.device.begin_step(&parameters).map_err(plain)?;
        let queued = self.queue_step();
        // The step ends even where a command could not be queued.
        let finished = self.device.finish();
        let ended = queued.and(finished);
        ended.map_err(|failure| self.told(failure))
    }

    /// A failure with what the schedule calls its instruction.
    fn told(&self, failure: Failure) -> Error {
        let schedule = self.program.schedule;
        let place = failure.place;
        let instruction = place.and_then(|place| {
            let stream = schedule.stream(place.stream);
            stream.get(place.instruction as usize)
        });
        let error = failure.told();
        match instruction {
            Some(instruction) => error.within(memory::doing(schedule, instruction)),
            None => error,
        }
    }

    fn queue_step(&mut self) -> crate::device::Result<()> {
        let device = self.device.as_mut();
        for command in &self.queue.commands {
            match command {
                Command::Launch(stream, at, operator) => device.launch(*stream, *at, operator),
                Command::Copy(stream, at, from, to) => device.copy(*stream, *at, *from, *to),
                Command::Packed(stream, at, regions, packing) => {
                    device.copy_packed(*stream, *at, *regions, *packing)
                }
                Command::Record(stream, event) => device.record(*stream, *event),
                Command::Wait(stream, event) => device.wait(*stream, *event),
                Command::Hold(region) => device.hold(*region),
                Command::Release(region, poison) => device.release(*region, *poison),
            }?;
        }
        Ok(())
    }

    /// The values of a weight.
    ///
    /// # Errors
    /// Every failure of the device.
    pub fn weight(&mut self, place: Place) -> Result<Vec<f32>> {
        for group in &self.program.schedule.state_groups {
            for &weight in &group.weights {
                let mut first = 0;
                for other in self.places(weight)? {
                    let elements = other.weight.elements();
                    if other == place {
                        let width = self.program.layout.dtype.bytes();
                        let home = self.program.home(weight);
                        let home = home.ok_or_else(|| Error::bad_input("a weight has no home"))?;
                        return self.values(home.part(first * width, elements * width));
                    }
                    first += elements;
                }
            }
        }
        Err(Error::bad_input(format!(
            "the schedule has no {}",
            place.weight.part.name()
        )))
    }

    /// The elements of the schedule's type in a region.
    fn values(&mut self, region: Region) -> Result<Vec<f32>> {
        let bytes = self.bytes(region)?;
        Ok(decode(stored(self.program.layout.dtype), &bytes))
    }

    fn bytes(&mut self, region: Region) -> Result<Vec<u8>> {
        let length = usize::try_from(region.bytes)
            .map_err(|_| Error::bad_input("a region is larger than this machine's memory"))?;
        let mut bytes = vec![0; length];
        self.device.read(region, &mut bytes).map_err(plain)?;
        Ok(bytes)
    }

    /// The optimizer's states by the name of their group: f32 planes, or whatever a method keeps
    /// in words of 32 bits, bit by bit.
    ///
    /// # Errors
    /// States that are no numbers, and every failure of the device.
    pub fn states(&mut self) -> Result<BTreeMap<String, Vec<f32>>> {
        let mut all = BTreeMap::new();
        for group in &self.program.schedule.state_groups {
            let Some(home) = group.states.and_then(|s| self.program.home(s)) else {
                continue;
            };
            let bytes = self.bytes(home)?;
            let values = decode(stored(Dtype::F32), &bytes);
            let checked = self.check_states(&group.name, &values);
            checked.map_err(|error| error.hint(DIVERGED))?;
            all.insert(group.name.clone(), values);
        }
        Ok(all)
    }

    /// Refuses states that are no numbers where they should be.
    fn check_states(&self, group: &str, values: &[f32]) -> Result<()> {
        match self.program.method.states_are_numbers() {
            true => check_finite(&format!("states of {group}"), values),
            false => Ok(()),
        }
    }

    /// The weights that make a value, in order.
    fn places(&self, weight: ValueId) -> Result<Vec<Place>> {
        let value = self.program.schedule.values.get(weight);
        let value = value.ok_or_else(|| Error::bad_input("a state group names no value"))?;
        let kind: WeightValue = self.program.weight_value(value)?;
        let parts = self.program.layout.parts(kind).into_iter();
        Ok(parts
            .map(|placed| Place {
                block: value.block,
                weight: placed.weight,
            })
            .collect())
    }

    /// When the instructions of the last step ran.
    pub fn trace(&self) -> &[TraceEntry] {
        self.device.trace()
    }

    /// What the arena was asked to hold so far.
    pub fn arena_use(&self) -> ArenaUse {
        self.device.arena_use()
    }

    /// The fastest algorithms of matrix products, where the device has timed some.
    pub fn algorithms(&self) -> Option<AlgorithmsSection> {
        self.device.algorithms()
    }

    /// What the device is called.
    pub fn device_name(&self) -> String {
        self.device.name()
    }

    /// What the device says of how it computed ([`Device::notes`]).
    pub fn device_notes(&self) -> Vec<String> {
        self.device.notes()
    }
}

/// A failure of no instruction.
fn plain(failure: Failure) -> Error {
    failure.told()
}
