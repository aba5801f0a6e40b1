//! The optimizer over memory: on the stream's thread, or on the host's threads.
//!
//! One pass over memory: weights and states are changed where they are, page by page, in vectors.
//! They go through the stack where gradients have to be added up first, where elements are not
//! aligned, and where somebody else is at a page. Neither values nor partial sums depend on the
//! way, nor on the number of threads: host and device give the same bits.

use rayon::prelude::*;

use super::memory::{decode, encode, Exclusive, Memory};
use super::ops::update::{adamw, add_squares, sgd, Constants};
use super::state::State;
use crate::device::operator::{UpdateRule, UpdateSlice};
use crate::device::{Cause, Failure, Region};
use crate::profile::Dtype;

/// Elements that go through the stack at a time.
pub(in crate::device) const ELEMENTS: usize = 512;

/// Elements whose squares are added up before they are added to the rest.
const SQUARES: usize = 256;

/// Weight, and at most master, `m` and `v`.
pub(in crate::device) const OPERANDS: usize = 4;

/// Elements of what one thread takes at a time.
pub(in crate::device) const TASK: u64 = 1 << 16;

/// The threads of the optimizer on the host.
pub(in crate::device) fn host_threads(count: usize) -> Result<rayon::ThreadPool, Failure> {
    rayon::ThreadPoolBuilder::new()
        .num_threads(count)
        .thread_name(|thread| format!("optimizer-{thread}"))
        .build()
        .map_err(|error| Failure::new(Cause::Failed(format!("no optimizer threads: {error}"))))
}

/// Updates the parameters of all slices.
pub fn run(
    state: &State,
    rule: UpdateRule,
    slices: &[UpdateSlice],
    on_host: bool,
) -> Result<(), Cause> {
    let parameters = state.step().parameters;
    let clip = parameters.clip_factor(|| state.gradient_norm());
    let constants = Constants::new(&parameters, clip);
    for slice in slices {
        check(state, rule, slice)?;
        let update = SliceUpdate {
            state,
            rule,
            slice,
            constants,
        };
        update.run(on_host);
    }
    Ok(())
}

/// Writes the sum of squares of gradients to a slot.
pub fn square(
    state: &State,
    gradients: &[Vec<Region>],
    slot: u32,
    on_host: bool,
) -> Result<(), Cause> {
    let dtype = state.reservation.dtype;
    let mut sum = 0.0;
    for copies in gradients {
        let Some(first) = copies.first() else {
            return Err(Cause::Refused("no gradients".into()));
        };
        if copies.iter().any(|copy| copy.bytes != first.bytes) {
            return Err(Cause::Refused("copies of different sizes".into()));
        }
        for &copy in copies {
            state.check(copy).map_err(|failure| failure.cause)?;
        }
        let elements = first.bytes / dtype.bytes();
        let of_task = |(_, start, end)| {
            let mut block = [0.0; ELEMENTS];
            let mut sum = 0.0;
            for (at, count) in blocks(start, end) {
                add_up(state, copies, None, at, &mut block[..count]);
                sum = block[..count].chunks(SQUARES).fold(sum, add_squares);
            }
            sum
        };
        let tasks: Vec<_> = tasks(1, elements).collect();
        let sums: Vec<f64> = if on_host {
            let parallel = || tasks.par_iter().map(|&task| of_task(task)).collect();
            state.host_threads.install(parallel)
        } else {
            tasks.into_iter().map(of_task).collect()
        };
        sum += sums.into_iter().sum::<f64>();
    }
    state.set_squares(slot, sum)
}

struct SliceUpdate<'a> {
    state: &'a State,
    rule: UpdateRule,
    slice: &'a UpdateSlice,
    constants: Constants,
}

impl SliceUpdate<'_> {
    fn run(&self, on_host: bool) {
        let panel = self.slice.weight;
        let tasks: Vec<_> = tasks(panel.rows, panel.columns).collect();
        if !on_host || tasks.len() == 1 {
            for task in tasks {
                self.task(task);
            }
            return;
        }
        let together = (TASK / panel.columns.clamp(1, TASK)) as usize;
        self.state.host_threads.install(|| {
            let tasks = tasks.par_iter().with_min_len(together);
            tasks.for_each(|&task| self.task(task));
        });
    }

    fn task(&self, (row, start, end): Task) {
        let panel = self.slice.weight;
        let mut at = start;
        while at < end {
            let place = Place {
                dense: row * panel.columns + at,
                strided: row * panel.stride + at,
            };
            let done = self.in_place(place, end - at);
            at += done.unwrap_or_else(|| self.on_stack(place, end - at));
        }
    }

    /// The weight and its states.
    fn operands(&self) -> impl Iterator<Item = Operand<'_>> {
        let slice = self.slice;
        let weight = (slice.weight.region, self.state.reservation.dtype);
        let states = slice.states.iter().map(|&state| (state, Dtype::F32));
        let operands = [weight].into_iter().chain(states);
        operands.map(|(region, dtype)| Operand::new(self.state, region, dtype))
    }

    /// Updates up to `most` elements in place and says how many; none where that cannot be done.
    fn in_place(&self, place: Place, most: u64) -> Option<u64> {
        let dtype = self.state.reservation.dtype;
        let ([gradient], None) = (&self.slice.gradients[..], self.slice.carry) else {
            return None;
        };
        let gradient = Operand::new(self.state, *gradient, dtype);
        let runs = self.operands().map(|operand| operand.run(place.strided));
        let count = runs.fold(most.min(gradient.run(place.dense)), u64::min);
        let gradient = gradient.exclusive(place.dense, count)?;
        let mut held = [const { None }; OPERANDS];
        for (held, operand) in held.iter_mut().zip(self.operands()) {
            *held = Some(operand.exclusive(place.strided, count)?);
        }
        let mut sizes = [dtype.bytes(), 4, 4, 4].into_iter();
        let mut parts = held.each_mut().map(|held| {
            let size = sizes.next().unwrap_or_default() as usize;
            let bytes: &mut [u8] = held.as_deref_mut().unwrap_or_default();
            bytes.chunks_mut(ELEMENTS * size)
        });
        let mut decoded = [0.0; ELEMENTS];
        for gradient in gradient.chunks(ELEMENTS * dtype.bytes() as usize) {
            let g = match dtype {
                Dtype::F32 => bytemuck::cast_slice(gradient),
                _ => {
                    let g = &mut decoded[..gradient.len() / 2];
                    decode(gradient, g);
                    g
                }
            };
            let parts = parts.each_mut().map(|part| part.next().unwrap_or_default());
            self.change(parts, g);
        }
        Some(count)
    }

    /// Updates up to `most` elements wherever they are and says how many.
    fn on_stack(&self, place: Place, most: u64) -> u64 {
        let count = most.min(ELEMENTS as u64);
        let slice = self.slice;
        let mut gradients = [0.0; ELEMENTS];
        let g = &mut gradients[..count as usize];
        add_up(self.state, &slice.gradients, slice.carry, place.dense, g);
        if slice.carry.is_some_and(|carry| !carry.last) {
            return count;
        }
        // Words, since elements have to be aligned.
        let mut stack = [[0u64; ELEMENTS / 2]; OPERANDS];
        let mut parts = stack.each_mut().map(|words| {
            let bytes: &mut [u8] = bytemuck::cast_slice_mut(words);
            bytes
        });
        for (part, operand) in parts.iter_mut().zip(self.operands()) {
            let whole = std::mem::take(part);
            *part = &mut whole[..(count * operand.size) as usize];
            operand.memory.read(operand.offset(place.strided), part);
        }
        self.change(parts.each_mut().map(|part| &mut **part), g);
        for (part, operand) in parts.iter().zip(self.operands()) {
            operand.memory.write(operand.offset(place.strided), part);
        }
        count
    }

    fn change(&self, parts: [&mut [u8]; OPERANDS], g: &[f32]) {
        let dtype = self.state.reservation.dtype;
        change(self.rule, dtype, &self.constants, parts, g);
    }
}

/// Updates a weight by its gradient, up to [`ELEMENTS`] of them; its states stand behind it.
pub(in crate::device) fn change(
    rule: UpdateRule,
    dtype: Dtype,
    constants: &Constants,
    [weight, a, b, c]: [&mut [u8]; OPERANDS],
    g: &[f32],
) {
    let floats = bytemuck::cast_slice_mut::<u8, f32>;
    match (rule, dtype) {
        (UpdateRule::Sgd, Dtype::F32) => sgd(constants, floats(weight), g),
        (UpdateRule::Sgd, _) => {
            let mut decoded = [0.0; ELEMENTS];
            let decoded = &mut decoded[..g.len()];
            decode(weight, decoded);
            sgd(constants, decoded, g);
            encode(decoded, weight);
        }
        (UpdateRule::AdamW, Dtype::F32) => {
            adamw(constants, floats(weight), floats(a), floats(b), g);
        }
        (UpdateRule::AdamW, _) => {
            let master = floats(a);
            adamw(constants, master, floats(b), floats(c), g);
            encode(master, weight);
        }
    }
}

/// An element's number among gradients, and among weights and states, whose rows have a stride.
#[derive(Clone, Copy)]
struct Place {
    dense: u64,
    strided: u64,
}

/// Where the elements of an operand are.
struct Operand<'a> {
    memory: &'a Memory,
    first: u64,
    size: u64,
}

impl<'a> Operand<'a> {
    fn new(state: &'a State, region: Region, dtype: Dtype) -> Self {
        Operand {
            memory: state.memory(region.space),
            first: region.offset_bytes,
            size: dtype.bytes(),
        }
    }

    fn offset(&self, element: u64) -> u64 {
        self.first + element * self.size
    }

    /// How many elements are in one page.
    fn run(&self, element: u64) -> u64 {
        Memory::run(self.offset(element)) / self.size
    }

    /// Elements in place; none where they are not aligned or somebody is at them.
    fn exclusive(&self, element: u64, count: u64) -> Option<Exclusive<'a>> {
        let aligned = self.first % self.size == 0;
        let memory = self.memory;
        aligned.then(|| memory.exclusive(self.offset(element), count * self.size))?
    }
}

/// Row, first and last column of what one thread takes.
pub(in crate::device) type Task = (u64, u64, u64);

pub(in crate::device) fn tasks(rows: u64, columns: u64) -> impl Iterator<Item = Task> {
    (0..rows).flat_map(move |row| {
        let starts = (0..columns).step_by(TASK as usize);
        starts.map(move |start| (row, start, (start + TASK).min(columns)))
    })
}

pub(in crate::device) fn blocks(start: u64, end: u64) -> impl Iterator<Item = (u64, usize)> {
    let starts = (start..end).step_by(ELEMENTS);
    starts.map(move |at| (at, (end - at).min(ELEMENTS as u64) as usize))
}

/// Elements `at ..` of a gradient: its copies added up in order in f32, from what was carried on.
fn add_up(
    state: &State,
    copies: &[Region],
    carry: Option<crate::device::Carry>,
    at: u64,
    out: &mut [f32],
) {
    let dtype = state.reservation.dtype;
    let mut begun = false;
    let carried = carry.map(|carry| (carry, (carry.offset + at) * 4));
    if let Some((_, place)) = carried.filter(|(carry, _)| !carry.first) {
        state.carry.load(place, Dtype::F32, out);
        begun = true;
    }
    for copy in copies {
        let memory = state.memory(copy.space);
        let place = copy.offset_bytes + at * dtype.bytes();
        if begun {
            let mut more = [0.0; ELEMENTS];
            let more = &mut more[..out.len()];
            memory.load(place, dtype, more);
            super::ops::linear::add(out, more);
        } else {
            memory.load(place, dtype, out);
            begun = true;
        }
    }
    if let Some((_, place)) = carried.filter(|(carry, _)| !carry.last) {
        state.carry.store(place, Dtype::F32, out);
    }
}

fn check(state: &State, rule: UpdateRule, slice: &UpdateSlice) -> Result<(), Cause> {
    let dtype = state.reservation.dtype;
    let panel = slice.weight;
    let elements = panel.rows * panel.columns;
    if !slice.fits(rule, dtype) {
        return Err(Cause::Refused(format!(
            "an update of {elements} parameters whose operands have other sizes"
        )));
    }
    if let Some(carry) = slice.carry {
        if (carry.offset + elements) * 4 > state.carry.bytes() {
            return Err(Cause::Refused(format!(
                "carried gradients up to element {} of {}",
                carry.offset + elements,
                state.reservation.carry_elements
            )));
        }
    }
    let regions = slice.gradients.iter().chain(&slice.states);
    for &region in regions.chain([&panel.region]) {
        state.check(region).map_err(|failure| failure.cause)?;
    }
    Ok(())
}
