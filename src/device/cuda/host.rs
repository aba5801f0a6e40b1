//! The optimizer on the host's threads, in the order of a stream.
//!
//! The host is a stream of the driver's like the others: between its waits and its signals, the
//! driver calls [`run`], which works on the pinned slab and calls nothing of the driver. So events
//! order updates and copies, and no thread of this program waits for another inside a step.
//!
//! The arithmetic and its cuts are the CPU device's ([`crate::device::cpu::update`]), element by
//! element; neither threads nor cuts change a bit.

mod tensors;

use std::ffi::c_void;
use std::panic::{catch_unwind, AssertUnwindSafe};
use std::sync::{Arc, Mutex, PoisonError};

use rayon::prelude::*;

use super::slab::Slab;
use crate::device::cpu::ops::linear::add;
use crate::device::cpu::ops::update::Constants;
use crate::device::cpu::update::{blocks, change, tasks, Task, ELEMENTS, OPERANDS, TASK};
use crate::device::operator::{UpdateRule, UpdateSlice};
use crate::device::{Cause, Failure, Operator, Place, Region, Result, Space, StepParameters};
use crate::profile::Dtype;

/// What all work on the host shares.
pub(super) struct Host {
    pub slab: Arc<Slab>,
    pub slab_bytes: u64,
    pub dtype: Dtype,
    /// The optimizer's threads.
    pub threads: rayon::ThreadPool,
    /// Pinned too: what the card has found of the gradients' norm, before an update that clips.
    pub squares: Arc<Slab>,
    pub norm_slots: u64,
    /// Gradients carried from run to run.
    pub carry: Mutex<Vec<f32>>,
    /// The first failure.
    pub failure: Mutex<Option<Failure>>,
}

/// Work that is queued, alive until the step has ended.
pub(super) struct Work {
    host: Arc<Host>,
    place: Place,
    operator: Operator,
    parameters: StepParameters,
}

impl Work {
    /// Work for an operator, once it has been found to fit the slab.
    ///
    /// # Errors
    /// Operators that do not run on the host, or whose operands are elsewhere.
    pub fn new(
        host: &Arc<Host>,
        place: Place,
        operator: &Operator,
        parameters: &StepParameters,
    ) -> Result<Arc<Work>> {
        match operator {
            Operator::Zero { region } => host.check(*region, 1)?,
            Operator::Update { rule, slices } => {
                slices
                    .iter()
                    .try_for_each(|slice| host.check_slice(*rule, slice))?;
            }
            Operator::TensorUpdate { tensors, .. } => {
                tensors
                    .iter()
                    .try_for_each(|tensor| host.check_tensor(tensor))?;
            }
            other => {
                let name = other.name();
                return Err(Failure::refused(format!("{name} does not run on the host")));
            }
        }
        Ok(Arc::new(Work {
            host: Arc::clone(host),
            place,
            operator: operator.clone(),
            parameters: *parameters,
        }))
    }

    fn run(&self) {
        let host = &self.host;
        match &self.operator {
            Operator::Zero { region } => {
                let to = host.slab.address(region.offset_bytes, region.bytes);
                // SAFETY: inside the slab; the schedule orders all other uses of the range by
                // events, before or behind this call.
                unsafe { to.write_bytes(0, region.bytes as usize) };
            }
            Operator::Update { rule, slices } => {
                let constants = Constants::new(&self.parameters, self.clip());
                for slice in slices {
                    self.update(*rule, slice, &constants);
                }
            }
            Operator::TensorUpdate { tensors, .. } => {
                let constants = Constants::new(&self.parameters, self.clip());
                let tensors = tensors.iter();
                tensors.for_each(|tensor| self.tensor(tensor, &constants));
            }
            _ => unreachable!("refused before"),
        }
    }

    /// What gradients are multiplied with.
    fn clip(&self) -> f64 {
        self.parameters.clip_factor(|| {
            let mut bytes = vec![0; self.host.norm_slots as usize * size_of::<f64>()];
            // SAFETY: the copy that brought them was queued before this call.
            unsafe { self.host.squares.read(0, &mut bytes) };
            let squares = bytes
                .chunks_exact(8)
                .map(|b| f64::from_le_bytes(b.try_into().expect("8")));
            squares.sum::<f64>().sqrt()
        })
    }

    fn update(&self, rule: UpdateRule, slice: &UpdateSlice, constants: &Constants) {
        let panel = slice.weight;
        let tasks: Vec<_> = tasks(panel.rows, panel.columns).collect();
        let mut held = slice.carry.map(|_| lock(&self.host.carry));
        // What is carried is small: one thread goes through it.
        if let (Some(carry), Some(carried)) = (slice.carry, held.as_deref_mut()) {
            let first = carry.offset as usize;
            let elements = (panel.rows * panel.columns) as usize;
            let carried = &mut carried[first..first + elements];
            for task in tasks {
                self.carried((rule, constants), slice, task, carried);
            }
            return;
        }
        let together = (TASK / panel.columns.clamp(1, TASK)) as usize;
        self.host.threads.install(|| {
            let tasks = tasks.par_iter().with_min_len(together);
            tasks.for_each(|&(row, start, end)| {
                for (at, count) in blocks(start, end) {
                    let mut block = [0.0; ELEMENTS];
                    let g = &mut block[..count];
                    self.gradients(slice, row * panel.columns + at, g, false);
                    self.apply((rule, constants), slice, row * panel.stride + at, g);
                }
            });
        });
    }

    /// An update of shared gradients: carried on, or applied once they are whole.
    fn carried(
        &self,
        rule: (UpdateRule, &Constants),
        slice: &UpdateSlice,
        (row, start, end): Task,
        carried: &mut [f32],
    ) {
        let (panel, carry) = (slice.weight, slice.carry.expect("it carries"));
        for (at, count) in blocks(start, end) {
            let place = row * panel.columns + at;
            let sums = &mut carried[place as usize..][..count];
            self.gradients(slice, place, sums, !carry.first);
            if carry.last {
                self.apply(rule, slice, row * panel.stride + at, sums);
            }
        }
    }

    /// Elements of a gradient: its copies added up in order, to what is there if it has begun.
    fn gradients(&self, slice: &UpdateSlice, at: u64, out: &mut [f32], mut begun: bool) {
        for &copy in &slice.gradients {
            let mut block = [0.0; ELEMENTS];
            let values = &mut block[..out.len()];
            self.load(copy, at, self.host.dtype, values);
            match begun {
                true => add(out, values),
                false => out.copy_from_slice(values),
            }
            begun = true;
        }
    }

    /// Changes weights and states from an element on.
    fn apply(
        &self,
        (rule, constants): (UpdateRule, &Constants),
        slice: &UpdateSlice,
        at: u64,
        g: &[f32],
    ) {
        let size = self.host.dtype.bytes();
        let part = |region, size| self.bytes(region, at * size, g.len() as u64 * size);
        let mut parts: [&mut [u8]; OPERANDS] = Default::default();
        parts[0] = part(slice.weight.region, size);
        for (to, &state) in parts[1..].iter_mut().zip(&slice.states) {
            *to = part(state, 4);
        }
        change(rule, self.host.dtype, constants, parts, g);
    }
}

/// What the driver calls in the host stream's order; `given` is a [`Work`].
///
/// # Safety
/// `given` is alive.
pub(super) unsafe extern "C" fn run(given: *mut c_void) {
    let work = &*given.cast::<Work>();
    if lock(&work.host.failure).is_some() {
        return;
    }
    if catch_unwind(AssertUnwindSafe(|| work.run())).is_err() {
        let cause = Cause::Panicked("the optimizer on the host".to_owned());
        let failure = Failure::new(cause).at(work.place);
        lock(&work.host.failure).get_or_insert(failure);
    }
}

pub(super) fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Host {
    /// Refuses a region outside the slab, or whose elements are not aligned.
    fn check(&self, region: Region, size: u64) -> Result<()> {
        let end = region.offset_bytes.checked_add(region.bytes);
        let inside = region.space == Space::Host && end.is_some_and(|end| end <= self.slab_bytes);
        match inside && region.offset_bytes % size == 0 {
            true => Ok(()),
            false => Err(Failure::refused(format!(
                "an operand on the host at {} of {} bytes",
                region.offset_bytes, self.slab_bytes
            ))),
        }
    }

    fn check_slice(&self, rule: UpdateRule, slice: &UpdateSlice) -> Result<()> {
        let (panel, size) = (slice.weight, self.dtype.bytes());
        let elements = panel.rows * panel.columns;
        let carried = slice.carry.map_or(0, |carry| carry.offset + elements);
        let fits = slice.fits(rule, self.dtype) && carried <= lock(&self.carry).len() as u64;
        if !fits {
            return Err(Failure::refused(format!(
                "an update of {elements} parameters whose operands have other sizes"
            )));
        }
        self.check(panel.region, size)?;
        let gradients = slice.gradients.iter();
        gradients.copied().try_for_each(|g| self.check(g, size))?;
        slice
            .states
            .iter()
            .try_for_each(|&state| self.check(state, 4))
    }
}
