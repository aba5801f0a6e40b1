//! A schedule's buffers and values as a device sees them: regions, widths, weights.
//!
//! In: a [`Schedule`], the model that it trains, its workload. Out: a [`Program`], in which every
//! weight value is known as one of [`WeightValue`] and every buffer as a [`Region`]. What the
//! schedule says of sizes is compared with what the model asks for, so that a schedule of another
//! model ends with an error here and not with wrong numbers later.

use std::collections::BTreeMap;

use ebbtide_solver::build::ALIGNMENT;
use ebbtide_solver::ids::{BufferId, Id, ValueId};
use ebbtide_solver::problem::Category;
use ebbtide_solver::schedule::{Buffer, Schedule, ScheduledGroup, ScheduledValue, Space};

use crate::device::layout::{is_accumulated, Layout, States, WeightValue};
use crate::device::packed::{Packing, Storage};
use crate::device::Region;
use crate::error::{Error, Result};
use crate::format::schedule::ScheduleFile;
use crate::methods::Method;
use crate::model::ModelConfig;
use crate::profile::Dtype;

/// A schedule with all that binding its instructions needs.
#[derive(Debug)]
pub struct Program<'a> {
    /// The schedule.
    pub schedule: &'a Schedule,
    /// How values lie in buffers.
    pub layout: Layout<'a>,
    /// Tokens of a sequence.
    pub sequence: u64,
    /// How it is trained.
    pub method: Method,
    /// How activations are packed, where they are.
    pub storage: Option<Storage>,
    /// Where in the device's memory the carries of a weight start.
    carries: BTreeMap<ValueId, u64>,
    /// f32 elements of all carries.
    pub carry_elements: u64,
}

/// Of a projected input: the weight that reads it, and the input's name.
pub fn projected(name: &str) -> Option<(WeightValue, &str)> {
    let input = name.strip_suffix(".projected")?;
    let weight = match input {
        "n1" => WeightValue::Qkv,
        "n2" => WeightValue::GateUp,
        "h" => WeightValue::Down,
        _ => return None,
    };
    Some((weight, input))
}

/// A weight value in its group of states.
#[derive(Clone, Copy, Debug)]
pub struct Member<'a> {
    /// The group.
    pub group: &'a ScheduledGroup,
    /// Parameters of the group before it.
    pub first: u64,
    /// Bytes of states of the group before it, where weights are updated tensor by tensor.
    pub first_state_byte: u64,
    /// Parameters of the group.
    pub parameters: u64,
}

/// The model of a schedule file.
///
/// # Errors
/// A file without its config, or with one that cannot be read.
pub fn model(file: &ScheduleFile) -> Result<ModelConfig> {
    let Some(config) = &file.model.config else {
        return Err(
            Error::bad_input("the schedule has no model.config to compute by")
                .hint("plan again with this version of ebbtide"),
        );
    };
    let json = serde_json::Value::Object(config.clone());
    ModelConfig::of_json(&file.model.name, json).map_err(|error| error.within("model.config"))
}

/// The type that a schedule file asks for.
///
/// # Errors
/// One that is not computed in.
pub fn dtype(file: &ScheduleFile) -> Result<Dtype> {
    let known = [Dtype::F32, Dtype::Bf16];
    let found = known
        .into_iter()
        .find(|d| d.to_string() == file.workload.dtype);
    found.ok_or_else(|| {
        Error::bad_input(format!("workload.dtype is {:?}", file.workload.dtype))
            .hint("f32 and bf16 are run")
    })
}

/// No machine has more.
const MOST_BYTES: u64 = 1 << 60;

/// Refuses numbers that the checker does not know and that would be reserved or added up.
fn check_sizes(file: &ScheduleFile) -> Result<()> {
    let schedule = &file.schedule;
    let instructions: usize = schedule.streams.iter().map(Vec::len).sum();
    let overhead = file.hardware.overhead.get();
    for (what, found, most) in [
        ("events", schedule.events.into(), instructions as u64),
        ("hardware.overhead_bytes", overhead, MOST_BYTES),
    ] {
        if found > most {
            return Err(Error::bad_input(format!(
                "{what} is {found}, more than {most}"
            )));
        }
    }
    Ok(())
}

impl<'a> Program<'a> {
    /// Reads what a schedule file says of its workload.
    ///
    /// # Errors
    /// A method or type that is not run, or sizes that are not the model's.
    pub fn new(file: &'a ScheduleFile, model: &'a ModelConfig) -> Result<Self> {
        let schedule = &file.schedule;
        let method = Method::named(&file.method, file.method_options)?.resolved(model)?;
        let method = method.accumulating(schedule.micro_batches);
        let workload = &file.workload;
        let rows = workload.seq.checked_mul(workload.batch);
        if workload.seq == 0 || workload.batch == 0 || rows != Some(schedule.tokens) {
            return Err(Error::bad_input(format!(
                "workload has {} sequences of {} tokens, but {} rows",
                workload.batch, workload.seq, schedule.tokens
            )));
        }
        let groups = schedule.groups;
        if groups == 0 || model.kv_heads % groups != 0 {
            return Err(Error::bad_input(format!(
                "{groups} head groups do not divide {} key/value heads",
                model.kv_heads
            )));
        }
        if schedule.micro_batches == 0 {
            return Err(Error::bad_input("workload.accumulate is 0"));
        }
        if !matches!(schedule.passes, 1 | 2) {
            let passes = schedule.passes;
            return Err(Error::bad_input(format!(
                "workload.passes is {passes}, must be 1 or 2"
            )));
        }
        check_sizes(file)?;
        let layout = Layout {
            model,
            dtype: dtype(file)?,
            groups,
            compressed: method.compressed(model),
        };
        let mut program = Self {
            schedule,
            layout,
            sequence: workload.seq,
            method,
            storage: file.storage,
            carries: BTreeMap::new(),
            carry_elements: 0,
        };
        program.check_sizes()?;
        Ok(program)
    }

    /// Compares every value's size with the model's, and gives carries their places.
    fn check_sizes(&mut self) -> Result<()> {
        for (id, value) in self.schedule.values.iter() {
            let width = self.layout.dtype.bytes();
            let (row, fixed) = match value.category {
                Category::Weights => {
                    let weight = self.weight_value(value)?;
                    let carry = self.layout.carry_elements(weight);
                    self.carries.insert(id, self.carry_elements);
                    self.carry_elements += carry;
                    (0, self.layout.elements(weight) * width)
                }
                Category::Gradients => (0, self.gradient_elements(value)? * width),
                Category::OptimizerStates => {
                    let group = self.schedule.state_groups.iter();
                    let group = group.into_iter().find(|g| g.states == Some(id));
                    let group = group.ok_or_else(|| {
                        Error::bad_input(format!("{} belong to no weights", value.name))
                    })?;
                    (0, self.state_bytes(group)?)
                }
                _ => {
                    let (elements, extras) = self.row(value)?;
                    let groups = if value.by_groups {
                        self.layout.groups
                    } else {
                        1
                    };
                    (groups * (elements * width + extras * 4), 0)
                }
            };
            self.check_packed(value)?;
            if (value.row_bytes, value.fixed_bytes.get()) != (row, fixed) {
                return Err(Error::bad_input(format!(
                    "{} has {} bytes a row and {} in all, the model's has {row} and {fixed}",
                    value.name,
                    value.row_bytes,
                    value.fixed_bytes.get()
                ))
                .hint("the schedule and its model.config do not belong together"));
            }
        }
        Ok(())
    }

    /// Compares the packed size of a value with the storage's.
    fn check_packed(&self, value: &ScheduledValue) -> Result<()> {
        let Some(found) = value.packed_row_bytes else {
            return Ok(());
        };
        let of = self
            .storage
            .filter(|_| value.category == Category::Activations);
        let pieces = if value.by_groups {
            self.layout.groups
        } else {
            1
        };
        let (elements, extras) = match of {
            Some(_) => self.row(value)?,
            None => (0, 0),
        };
        let row = Storage::row_bytes(elements, extras) * pieces;
        if of.is_some() && found == row {
            return Ok(());
        }
        Err(Error::bad_input(format!(
            "{} has packed rows of {found} bytes, which its storage has not",
            value.name
        )))
    }

    /// How copies of a buffer pack, if they do.
    ///
    /// # Errors
    /// Rows that no buffer can have.
    pub fn packing(&self, buffer: &Buffer) -> Result<Option<Packing>> {
        let value = buffer.value.and_then(|id| self.schedule.values.get(id));
        let Some(value) = value.filter(|v| v.packed_row_bytes.is_some()) else {
            return Ok(None);
        };
        let storage = self.storage.ok_or_else(|| {
            Error::bad_input(format!("{} is packed, but no storage is named", value.name))
        })?;
        let (width, extras) = self.row(value)?;
        if value.by_groups && buffer.groups.len() != 1 {
            return Err(Error::bad_input("a packed buffer of several head groups"));
        }
        let rows = buffer.rows.end.checked_sub(buffer.rows.start);
        let rows = rows.ok_or_else(|| Error::bad_input("a buffer has fewer rows than none"))?;
        Ok(Some(Packing {
            storage,
            rows,
            width,
            extras,
            unpacks: buffer.packed || buffer.space == Space::Host,
        }))
    }

    /// Which weight a value is, or is the gradient of.
    ///
    /// # Errors
    /// A name that no weight has.
    pub fn weight_value(&self, value: &ScheduledValue) -> Result<WeightValue> {
        WeightValue::of(&value.name).ok_or_else(|| {
            Error::bad_input(format!("no weight of a model is called {}", value.name))
        })
    }

    fn gradient_elements(&self, value: &ScheduledValue) -> Result<u64> {
        let weight = self.weight_value(value)?;
        if !is_accumulated(&value.name) {
            return Ok(self.layout.gradient_elements(weight));
        }
        let rules = self.method.tensor_rules(&self.layout, weight).into_iter();
        Ok(rules
            .map(|(r, shape)| r.gradient_shape(shape).elements())
            .sum())
    }

    /// Elements of a row of an activation (of one head group, where it lies by groups), and f32
    /// extras.
    ///
    /// # Errors
    /// A name that no activation has.
    pub fn row(&self, value: &ScheduledValue) -> Result<(u64, u64)> {
        let model = self.layout.model;
        let heads = self.layout.heads();
        let up = if model.gated { 2 } else { 1 } * model.intermediate;
        if let Some((weight, _)) = projected(&value.name) {
            return match self.rank(weight) {
                Some(rank) => Ok((rank, 0)),
                None => Err(Error::bad_input(format!(
                    "{} does not project what {} reads",
                    self.method,
                    weight.name()
                ))),
            };
        }
        Ok(match value.name.as_str() {
            "x" | "n1" | "x2" | "n2" | "final_x" | "final_n" => (model.hidden, 0),
            "n1.gradient" | "n2.gradient" | "final_n.gradient" => (model.hidden, 0),
            "residual.gradient" => (model.hidden, 0),
            "qkv" if model.qk_norm => (heads.qkv_width(), heads.heads + heads.kv_heads),
            "qkv" | "qkv.gradient" => (heads.qkv_width(), 0),
            "o" => (heads.query_width(), heads.heads),
            "o.gradient" => (heads.query_width(), 0),
            "gate_up" | "gate_up.gradient" => (up, 0),
            "h" | "h.gradient" => (model.intermediate, 0),
            "logits" => (model.vocab, 0),
            name => {
                return Err(Error::bad_input(format!(
                    "no activation of a model is called {name}"
                )))
            }
        })
    }

    /// The rank of what is saved for a weight's gradient, where that is not the input.
    pub fn rank(&self, weight: WeightValue) -> Option<u64> {
        let matrix = self.layout.parts(weight).first()?.weight;
        self.layout.compressed.rank(matrix.part)
    }

    /// A buffer by its id.
    ///
    /// # Errors
    /// An id that no buffer has.
    pub fn buffer(&self, id: BufferId) -> Result<&'a Buffer> {
        let buffer = self.schedule.buffers.get(id);
        buffer.ok_or_else(|| Error::bad_input(format!("there is no buffer {}", id.index())))
    }

    /// The value that a buffer holds.
    ///
    /// # Errors
    /// Scratch memory, or an id that no value has.
    pub fn value(&self, buffer: &Buffer) -> Result<&'a ScheduledValue> {
        let value = buffer.value.and_then(|id| self.schedule.values.get(id));
        value.ok_or_else(|| Error::bad_input("an operand holds no value"))
    }

    /// A buffer's bytes.
    pub fn region(&self, buffer: &Buffer) -> Region {
        Region {
            space: buffer.space,
            offset_bytes: buffer.offset.get(),
            bytes: buffer.bytes.get(),
        }
    }

    /// A buffer's bytes as the arena counts them.
    pub fn placed(&self, buffer: &Buffer) -> Region {
        Region {
            bytes: buffer.bytes.align_up(ALIGNMENT).get(),
            ..self.region(buffer)
        }
    }

    /// Parameters of a group of states.
    ///
    /// # Errors
    /// Weights that are none of a model's.
    pub fn parameters(&self, group: &ScheduledGroup) -> Result<u64> {
        let each = group.weights.iter().map(|&w| self.parameters_of(w));
        each.sum()
    }

    fn parameters_of(&self, weight: ValueId) -> Result<u64> {
        Ok(self.layout.elements(self.named(weight)?))
    }

    /// Which weight a state group names.
    fn named(&self, weight: ValueId) -> Result<WeightValue> {
        let value = self.schedule.values.get(weight);
        let value = value.ok_or_else(|| Error::bad_input("a state group names no value"))?;
        self.weight_value(value)
    }

    /// Bytes of the states of a group.
    ///
    /// # Errors
    /// Weights that are none of a model's.
    pub fn state_bytes(&self, group: &ScheduledGroup) -> Result<u64> {
        let each = group.weights.iter().map(|&w| self.state_bytes_of(w));
        each.sum()
    }

    /// Bytes of the states of a weight.
    ///
    /// # Errors
    /// A weight that is none of a model's.
    pub fn state_bytes_of(&self, weight: ValueId) -> Result<u64> {
        let value = self.named(weight)?;
        Ok(self.method.state_bytes(&self.layout, value))
    }

    /// The group of states that a weight belongs to.
    ///
    /// # Errors
    /// A weight of no group.
    pub fn member(&self, weight: ValueId) -> Result<Member<'a>> {
        let mut groups = self.schedule.state_groups.iter();
        let group = groups
            .find(|g| g.weights.contains(&weight))
            .ok_or_else(|| Error::bad_input("an update changes a weight of no state group"))?;
        let before = group.weights.iter().take_while(|&&w| w != weight);
        let bytes = before.clone().map(|&w| self.state_bytes_of(w));
        Ok(Member {
            group,
            first_state_byte: bytes.sum::<Result<u64>>()?,
            first: before
                .map(|&w| self.parameters_of(w))
                .sum::<Result<u64>>()?,
            parameters: self.parameters(group)?,
        })
    }

    /// A weight's part of its group's states.
    pub fn states(&self, member: Member<'_>, region: Region) -> States {
        States {
            region,
            parameters: member.parameters,
            first: member.first,
        }
    }

    /// Where the carries of a weight start.
    pub fn carry(&self, weight: ValueId) -> u64 {
        self.carries.get(&weight).copied().unwrap_or(0)
    }

    /// The persistent buffers of a value.
    pub fn homes(&self, value: ValueId) -> impl Iterator<Item = (BufferId, &'a Buffer)> {
        let buffers = self.schedule.buffers.iter();
        buffers.filter(move |(_, b)| b.persistent && b.value == Some(value))
    }

    /// Where the current content of a value lies between steps: on the host, if it has a place
    /// there, since what is updated on the device is sent there.
    pub fn home(&self, value: ValueId) -> Option<Region> {
        let homes: Vec<&Buffer> = self.homes(value).map(|(_, buffer)| buffer).collect();
        let on_host = homes.iter().find(|b| b.space == Space::Host);
        on_host.or(homes.first()).map(|b| self.region(b))
    }
}
