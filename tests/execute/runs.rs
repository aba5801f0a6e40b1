//! Runs of a schedule file on the CPU device, and what they leave.
#![allow(dead_code, reason = "each test binary uses its part")]

use std::collections::BTreeMap;

use ebbtide::device::cpu::{CpuDevice, CpuOptions};
use ebbtide::device::{ArenaUse, Device};
use ebbtide::error::Result;
use ebbtide::execute::{Optimizer, Session};
use ebbtide::format::schedule::ScheduleFile;
use ebbtide::model::ModelConfig;
use ebbtide::training::tokens::{Batch, Tokens};
use ebbtide::training::{initial, places};

/// All that training leaves, bit by bit.
#[derive(Clone, PartialEq)]
pub struct Outcome {
    pub losses: Vec<u64>,
    pub weights: Vec<(String, Vec<u32>)>,
    pub states: BTreeMap<String, Vec<u32>>,
}

impl Outcome {
    /// The first difference from another.
    pub fn difference(&self, other: &Outcome) -> Option<String> {
        for (step, (a, b)) in self.losses.iter().zip(&other.losses).enumerate() {
            if a != b {
                let (a, b) = (f64::from_bits(*a), f64::from_bits(*b));
                return Some(format!("loss {step}: {a} instead of {b}"));
            }
        }
        for ((name, a), (_, b)) in self.weights.iter().zip(&other.weights) {
            if let Some(at) = (0..a.len()).find(|&i| a[i] != b[i]) {
                let (a, b) = (f32::from_bits(a[at]), f32::from_bits(b[at]));
                return Some(format!("{name}[{at}]: {a} instead of {b}"));
            }
        }
        (self != other).then(|| "optimizer states".to_owned())
    }
}

pub const STEPS: u64 = 2;

/// Batches of random tokens; in each sequence some labels are ignored.
pub fn batches(file: &ScheduleFile, model: &ModelConfig, step: u64, seed: u64) -> Vec<Batch> {
    let tokens = Tokens::Synthetic {
        vocab: model.vocab,
        seed,
    };
    let workload = &file.workload;
    (0..u64::from(file.schedule.micro_batches))
        .map(|m| {
            let first = (step * 8 + m) * workload.batch;
            let mut batch = tokens.batch(first, workload.batch, workload.seq);
            let ignored = batch.labels.iter_mut().skip(m as usize).step_by(5);
            ignored.for_each(|label| *label = ebbtide::training::tokens::IGNORED);
            batch
        })
        .collect()
}

/// How a test trains.
pub fn optimizer() -> Optimizer {
    Optimizer {
        learning_rate: 0.01,
        weight_decay: 0.1,
        ..Optimizer::default()
    }
}

/// A session with seeded weights.
pub fn session<'a>(
    file: &'a ScheduleFile,
    model: &'a ModelConfig,
    options: CpuOptions,
    seed: u64,
) -> Result<Session<'a>> {
    let device = Box::new(CpuDevice::new(options));
    session_on(device, file, model, seed, &optimizer())
}

/// The same on any device.
pub fn session_on<'a>(
    device: Box<dyn Device>,
    file: &'a ScheduleFile,
    model: &'a ModelConfig,
    seed: u64,
    with: &Optimizer,
) -> Result<Session<'a>> {
    let mut session = Session::begin(file, model, device, with.clip.is_some())?;
    session.load(|place| initial::values(model, place, seed))?;
    Ok(session)
}

/// Two steps from a seed, and what the arena held. A loss that is not a number is no error here.
pub fn run(
    file: &ScheduleFile,
    model: &ModelConfig,
    options: CpuOptions,
    seed: u64,
) -> Result<(Outcome, ArenaUse)> {
    let (outcome, used, _) = run_with(file, model, options, seed, &optimizer())?;
    Ok((outcome, used))
}

/// The same with another optimizer; the norm of the gradients of each step where it clips.
pub fn run_with(
    file: &ScheduleFile,
    model: &ModelConfig,
    options: CpuOptions,
    seed: u64,
    with: &Optimizer,
) -> Result<(Outcome, ArenaUse, Vec<f64>)> {
    let device = Box::new(CpuDevice::new(options));
    let mut session = session_on(device, file, model, seed, with)?;
    let (mut losses, mut norms) = (Vec::new(), Vec::new());
    for step in 0..STEPS {
        let batches = batches(file, model, step, seed);
        let result = session.attempt(step, &batches, with)?;
        losses.push(result.loss.to_bits());
        norms.extend(result.gradient_norm);
    }
    let outcome = outcome(&mut session, model, losses)?;
    Ok((outcome, session.arena_use(), norms))
}

/// All weights after one step.
pub fn first_step(
    file: &ScheduleFile,
    model: &ModelConfig,
    seed: u64,
    with: &Optimizer,
) -> Result<Vec<f32>> {
    let device = Box::new(CpuDevice::new(CpuOptions::default()));
    let mut session = session_on(device, file, model, seed, with)?;
    session.step(0, &batches(file, model, 0, seed), with)?;
    let each = places(model).map(|place| session.weight(place));
    Ok(each.collect::<Result<Vec<_>>>()?.concat())
}

/// What a session holds now.
pub fn outcome(
    session: &mut Session<'_>,
    model: &ModelConfig,
    losses: Vec<u64>,
) -> Result<Outcome> {
    let bits = |values: Vec<f32>| values.into_iter().map(f32::to_bits).collect::<Vec<u32>>();
    let mut weights = Vec::new();
    for place in places(model) {
        let name = format!("{} of block {:?}", place.weight.part.name(), place.block);
        weights.push((name, bits(session.weight(place)?)));
    }
    let states = session.states()?.into_iter();
    Ok(Outcome {
        losses,
        weights,
        states: states.map(|(name, values)| (name, bits(values))).collect(),
    })
}
