//! What the stream threads of a CPU device share.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError, RwLock};
use std::time::Instant;

use super::memory::Memory;
use super::options::CpuOptions;
use crate::device::{Cause, Failure, Region, Reservation, Space, StepParameters};

/// A micro-batch's token ids and labels.
#[derive(Clone, Debug, Default)]
pub struct Batch {
    /// One id for every row.
    pub tokens: Vec<u32>,
    /// One label for every row.
    pub labels: Vec<i32>,
}

/// The step that runs.
#[derive(Clone, Copy, Debug)]
pub struct Step {
    /// What it was told.
    pub parameters: StepParameters,
    /// When it began.
    pub began: Instant,
}

/// Memories, batches and small results.
pub struct State {
    /// What was asked for.
    pub reservation: Reservation,
    /// How the device behaves.
    pub options: CpuOptions,
    /// The arena.
    pub arena: Memory,
    /// The host's slab.
    pub slab: Memory,
    /// f32 gradients that are carried between runs of an update.
    pub carry: Memory,
    /// By micro-batch; only written between steps.
    pub batches: Vec<RwLock<Batch>>,
    /// Only written between steps.
    pub step: RwLock<Step>,
    /// Threads of the host's optimizer.
    pub host_threads: rayon::ThreadPool,
    losses: Vec<AtomicU64>,
    norms: Vec<AtomicU64>,
    spoilt: AtomicBool,
    failure: Mutex<Option<Failure>>,
}

impl State {
    /// Allocates everything; the optimizer has these threads.
    pub fn new(
        reservation: Reservation,
        options: CpuOptions,
        host_threads: rayon::ThreadPool,
    ) -> Result<State, Failure> {
        let out_of_memory = |what: &str, bytes| {
            let what = what.to_owned();
            Failure::new(Cause::OutOfMemory { what, bytes })
        };
        let memory = |what, bytes: u64, limit: Option<u64>| {
            let allowed = limit.is_none_or(|limit| bytes <= limit);
            let memory = if allowed { Memory::new(bytes) } else { None };
            memory.ok_or_else(|| out_of_memory(what, bytes))
        };
        let zeros = |count: u32| (0..count).map(|_| AtomicU64::new(0)).collect();
        Ok(State {
            arena: memory("the arena", reservation.arena_bytes, options.device_memory)?,
            slab: memory("the host slab", reservation.slab_bytes, options.host_memory)?,
            carry: memory("carried gradients", reservation.carry_elements * 4, None)?,
            batches: (0..reservation.micro_batches)
                .map(|_| RwLock::default())
                .collect(),
            step: RwLock::new(Step {
                parameters: StepParameters::STILL,
                began: Instant::now(),
            }),
            host_threads,
            losses: zeros(reservation.loss_slots),
            norms: zeros(reservation.norm_slots),
            spoilt: AtomicBool::new(false),
            failure: Mutex::new(None),
            reservation,
            options,
        })
    }

    /// One of the two memories.
    pub fn memory(&self, space: Space) -> &Memory {
        match space {
            Space::Device => &self.arena,
            Space::Host => &self.slab,
        }
    }

    /// Refuses a region outside its memory.
    pub fn check(&self, region: Region) -> Result<(), Failure> {
        self.reservation.check(region)
    }

    /// The step's parameters and beginning.
    pub fn step(&self) -> Step {
        *self.step.read().unwrap_or_else(PoisonError::into_inner)
    }

    // ---- small results ------------------------------------------------------------------------

    /// Writes a partial loss.
    pub fn set_loss(&self, slot: u32, loss: f64) -> Result<(), Cause> {
        set(&self.losses, slot, loss, "loss")
    }

    /// Writes a partial sum of squares.
    pub fn set_squares(&self, slot: u32, squares: f64) -> Result<(), Cause> {
        set(&self.norms, slot, squares, "norm")
    }

    /// The sum of all losses, in order.
    pub fn loss(&self) -> f64 {
        sum(&self.losses)
    }

    /// The gradients' global norm.
    pub fn gradient_norm(&self) -> f64 {
        sum(&self.norms).sqrt()
    }

    /// Before a step: no losses, no norms.
    pub fn clear_slots(&self) {
        for slot in self.losses.iter().chain(&self.norms) {
            slot.store(0, Ordering::Relaxed);
        }
    }

    // ---- failure ------------------------------------------------------------------------------

    /// Whether something failed; commands are dropped from then on.
    pub fn is_spoilt(&self) -> bool {
        self.spoilt.load(Ordering::Acquire)
    }

    /// Keeps the first failure.
    pub fn spoil(&self, failure: Failure) {
        self.lock_failure().get_or_insert(failure);
        self.spoilt.store(true, Ordering::Release);
    }

    /// The first failure, which stays: a spoilt device stays spoilt.
    pub fn failure(&self) -> Option<Failure> {
        self.lock_failure().clone()
    }

    fn lock_failure(&self) -> MutexGuard<'_, Option<Failure>> {
        self.failure.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn set(slots: &[AtomicU64], slot: u32, value: f64, what: &str) -> Result<(), Cause> {
    let place = slots.get(slot as usize).ok_or_else(|| {
        Cause::Refused(format!(
            "{what} slot {slot} of {} that were reserved",
            slots.len()
        ))
    })?;
    place.store(value.to_bits(), Ordering::Relaxed);
    Ok(())
}

fn sum(slots: &[AtomicU64]) -> f64 {
    let values = slots
        .iter()
        .map(|s| f64::from_bits(s.load(Ordering::Relaxed)));
    values.sum()
}
