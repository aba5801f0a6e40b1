//! The optimizer over memory: on the stream's thread, or on the host's threads.
//!
//! One pass: a block of gradients, weights and states goes from memory to stack arrays, is changed
//! there in vectors, and goes back. Blocks are so short that the processor, which looks some
//! hundred instructions ahead, fetches one while it computes another, and so long that it need not
//! wait for words that are still on their way to the stack: a quarter and eight times as long take
//! nearly twice as long (`benches/optimizer.rs`, `reports/host-optimizer`). Neither blocks nor
//! partial sums depend on the number of threads: host and device give the same bits.

use rayon::prelude::*;

use super::memory::Memory;
use super::ops::update::{adamw, add_squares, sgd, Constants};
use super::run::Outcome;
use super::state::State;
use crate::device::operator::{UpdateRule, UpdateSlice};
use crate::device::{Cause, Region};
use crate::profile::Dtype;

/// Elements of a block.
const ELEMENTS: usize = 256;

/// Words of a block of f32.
const WORDS: usize = ELEMENTS / 2;

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
                sum = add_squares(sum, &block[..count]);
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
        let dtype = self.state.reservation.dtype;
        let panel = self.slice.weight;
        let master = dtype != Dtype::F32 && self.rule == UpdateRule::AdamW;
        let memory = self.state.memory(panel.region.space);
        let states: Vec<(&Memory, u64)> = self
            .slice
            .states
            .iter()
            .map(|region| (self.state.memory(region.space), region.offset_bytes))
            .collect();
        let mut planes = [[0u64; WORDS]; 3];
        let (mut w, mut g) = ([0u64; WORDS], [0u64; WORDS]);
        for (at, count) in blocks(start, end) {
            let [w, g] = [&mut w, &mut g].map(|words| {
                let floats: &mut [f32] = bytemuck::cast_slice_mut(words);
                &mut floats[..count]
            });
            let dense = row * panel.columns + at;
            add_up(
                self.state,
                &self.slice.gradients,
                self.slice.carry,
                dense,
                g,
            );
            if self.slice.carry.is_some_and(|carry| !carry.last) {
                continue;
            }
            let element = row * panel.stride + at;
            let weight_at = panel.region.offset_bytes + element * dtype.bytes();
            let half = count.div_ceil(2);
            for ((memory, offset), plane) in states.iter().zip(&mut planes) {
                memory.read(offset + element * 4, &mut plane[..half]);
            }
            if !master {
                memory.load(weight_at, dtype, w);
            }
            let [a, b, c] = planes.each_mut().map(|plane| {
                let floats: &mut [f32] = bytemuck::cast_slice_mut(plane);
                &mut floats[..count]
            });
            let changed = match (self.rule, master) {
                (UpdateRule::Sgd, _) => {
                    sgd(&self.constants, w, g);
                    w
                }
                (UpdateRule::AdamW, false) => {
                    adamw(&self.constants, w, a, b, g);
                    w
                }
                (UpdateRule::AdamW, true) => {
                    adamw(&self.constants, a, b, c, g);
                    a
                }
            };
            memory.store(weight_at, dtype, changed);
            for ((memory, offset), plane) in states.iter().zip(&planes) {
                memory.write(offset + element * 4, plane, 4 * count);
            }
        }
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
    let sized = |region: &Region, bytes: u64| region.bytes == bytes;
    let fits = elements > 0
        && sized(&panel.region, span * dtype.bytes())
        && !slice.gradients.is_empty()
        && slice
            .gradients
            .iter()
            .all(|g| sized(g, elements * dtype.bytes()))
        && slice.states.len() as u64 == rule.planes(dtype)
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
