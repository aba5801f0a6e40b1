//! The optimizer over memory: on the stream's thread, or on the host's threads.
//!
//! One pass over memory: weights and states are changed where they are, page by page, in vectors;
//! gradients come through the stack, where their copies are added up. Where somebody else is at a
//! page, or elements are not aligned, weights and states go through the stack as well. Neither
//! values nor partial sums depend on the number of threads: host and device give the same bits.

use rayon::prelude::*;

use super::memory::{decode, encode, Exclusive, Memory};
use super::ops::update::{adamw, add_squares, sgd, Constants};
use super::run::Outcome;
use super::state::State;
use crate::device::operator::{UpdateRule, UpdateSlice};
use crate::device::{Cause, Region};
use crate::profile::Dtype;

/// Elements of a block: so many that locks cost little, few enough for the first-level cache.
const ELEMENTS: usize = 2048;

/// Elements whose squares are added up before they are added to the rest.
const SQUARES: usize = 256;

/// Weight and states, at most: master, `m`, `v`.
const OPERANDS: usize = 4;

/// Elements of what one thread takes at a time.
const TASK: u64 = 1 << 16;

/// Updates the parameters of all slices.
pub fn run(state: &State, rule: UpdateRule, slices: &[UpdateSlice], on_host: bool) -> Outcome {
    let parameters = state.step().parameters;
    let clip = match parameters.clip {
        Some(limit) => (limit / (state.gradient_norm() + 1e-6)).min(1.0),
        None => 1.0,
    };
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
pub fn square(state: &State, gradients: &[Vec<Region>], slot: u32, on_host: bool) -> Outcome {
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
        let carried_on = self.slice.carry.is_some_and(|carry| !carry.last);
        let operands = self.operands();
        let mut gradients = [0.0; ELEMENTS];
        let mut at = start;
        while at < end {
            let element = row * panel.stride + at;
            let runs = operands.iter().map(|operand| operand.run(element));
            let run = runs.fold(ELEMENTS as u64, u64::min).max(1);
            let count = run.min(end - at);
            let g = &mut gradients[..count as usize];
            let slice = self.slice;
            let dense = row * panel.columns + at;
            add_up(self.state, &slice.gradients, slice.carry, dense, g);
            if !carried_on && !self.in_place(&operands, element, g) {
                self.on_stack(&operands, element, g);
            }
            at += count;
        }
    }

    /// The weight and its states.
    fn operands(&self) -> Vec<Operand<'_>> {
        let weight = (self.slice.weight.region, self.state.reservation.dtype);
        let states = self.slice.states.iter().map(|&state| (state, Dtype::F32));
        let operands = [weight].into_iter().chain(states);
        let operands = operands.map(|(region, dtype)| Operand {
            memory: self.state.memory(region.space),
            offset: region.offset_bytes,
            size: dtype.bytes(),
        });
        operands.collect()
    }

    /// Updates from an element on, where nobody else is there; whether it did.
    fn in_place(&self, operands: &[Operand<'_>], element: u64, g: &[f32]) -> bool {
        let mut held = [const { None }; OPERANDS];
        for (held, operand) in held.iter_mut().zip(operands) {
            *held = operand.exclusive(element, g.len() as u64);
            if held.is_none() {
                return false;
            }
        }
        let parts = held
            .each_mut()
            .map(|held| held.as_deref_mut().unwrap_or_default());
        self.update(parts, g);
        true
    }

    /// Updates from an element on, wherever it is.
    fn on_stack(&self, operands: &[Operand<'_>], element: u64, g: &[f32]) {
        // Words, since they have to be aligned.
        let mut stack = [[0u64; ELEMENTS / 2]; OPERANDS];
        let mut parts = stack
            .each_mut()
            .map(|words| bytemuck::cast_slice_mut(words));
        for (part, operand) in parts.iter_mut().zip(operands) {
            let whole: &mut [u8] = std::mem::take(part);
            *part = &mut whole[..g.len() * operand.size as usize];
            operand.memory.read(operand.place(element), part);
        }
        self.update(parts.each_mut().map(|part| &mut **part), g);
        for (part, operand) in parts.iter().zip(operands) {
            operand.memory.write(operand.place(element), part);
        }
    }

    /// Updates a weight by its gradient; its states stand behind it.
    fn update(&self, [weight, a, b, c]: [&mut [u8]; OPERANDS], g: &[f32]) {
        let floats = bytemuck::cast_slice_mut::<u8, f32>;
        let constants = &self.constants;
        match (self.rule, self.state.reservation.dtype) {
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
}

/// Where elements are that an update changes.
struct Operand<'a> {
    memory: &'a Memory,
    offset: u64,
    size: u64,
}

impl<'a> Operand<'a> {
    fn place(&self, element: u64) -> u64 {
        self.offset + element * self.size
    }

    /// How many elements are in one page.
    fn run(&self, element: u64) -> u64 {
        Memory::run(self.place(element)) / self.size
    }

    /// Elements in place; none where they are not aligned or somebody is at them.
    fn exclusive(&self, element: u64, count: u64) -> Option<Exclusive<'a>> {
        let aligned = self.offset % self.size == 0;
        let memory = self.memory;
        aligned.then(|| memory.exclusive(self.place(element), count * self.size))?
    }
}

/// Row, first and last column of what one thread takes.
type Task = (u64, u64, u64);

fn tasks(rows: u64, columns: u64) -> impl Iterator<Item = Task> {
    (0..rows).flat_map(move |row| {
        let starts = (0..columns).step_by(TASK as usize);
        starts.map(move |start| (row, start, (start + TASK).min(columns)))
    })
}

fn blocks(start: u64, end: u64) -> impl Iterator<Item = (u64, usize)> {
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

fn check(state: &State, rule: UpdateRule, slice: &UpdateSlice) -> Outcome {
    let dtype = state.reservation.dtype;
    let panel = slice.weight;
    let elements = panel.rows * panel.columns;
    let span = panel.rows.saturating_sub(1) * panel.stride + panel.columns;
    let planes = match (rule, dtype) {
        (UpdateRule::Sgd, _) => 0,
        (UpdateRule::AdamW, Dtype::F32) => 2,
        (UpdateRule::AdamW, _) => 3,
    };
    let sized = |region: &Region, bytes: u64| region.bytes == bytes;
    let fits = elements > 0
        && sized(&panel.region, span * dtype.bytes())
        && !slice.gradients.is_empty()
        && slice
            .gradients
            .iter()
            .all(|g| sized(g, elements * dtype.bytes()))
        && slice.states.len() == planes
        && slice.states.iter().all(|s| sized(s, span * 4));
    if !fits {
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
