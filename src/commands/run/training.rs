//! The steps of a run, and what they amount to.

use std::sync::atomic::{AtomicBool, Ordering};

use ebbtide_solver::schedule::Stream;
use ebbtide_solver::simulate::{copied_bytes, try_simulate};
use ebbtide_solver::units::{Bytes, Nanos};

use super::{progress, Args};
use crate::error::{Error, Result};
use crate::execute::timing::{measured, median, simulated, timing, Timing};
use crate::execute::{Optimizer, Session};
use crate::format::run::{Kind, Part, RunFile};
use crate::format::schedule::{Predicted, ScheduleFile};
use crate::format::training::Progress;
use crate::training::learning_rate::LearningRate;
use crate::training::tokens::{Batch, Tokens};

/// A run between its steps.
pub(super) struct Training<'a> {
    pub(super) args: &'a Args,
    pub(super) schedule: &'a ScheduleFile,
    pub(super) tokens: &'a Tokens,
    pub(super) progress: Progress,
    pub(super) timings: Vec<Timing>,
    pub(super) gradient_norms: Vec<f64>,
}

impl Training<'_> {
    /// Runs the steps that are left; says whether it was interrupted.
    pub(super) fn steps(&mut self, session: &mut Session<'_>, stop: &AtomicBool) -> Result<bool> {
        let rate = LearningRate {
            peak: self.args.lr,
            shape: self.args.shape,
            warmup: self.args.warmup,
            above_zero: self.args.warmup_above_zero,
            total: self.args.steps,
        };
        let schedule = &self.schedule.schedule;
        let bar = progress::Bar::begin(self.args.steps, self.progress.step);
        while self.progress.step < self.args.steps {
            if stop.load(Ordering::Relaxed) {
                return Ok(true);
            }
            let step = self.progress.step;
            let optimizer = Optimizer {
                learning_rate: rate.at(step),
                beta1: self.args.betas.0,
                beta2: self.args.betas.1,
                epsilon: self.args.eps,
                weight_decay: self.args.weight_decay,
                clip: self.args.clip,
                clip_value: self.args.clip_value,
            };
            let batches = self.batches();
            let result = session.step(step, &batches, &optimizer)?;
            let took = timing(schedule, &measured(schedule, session.trace()));
            bar.step(&result, self.tokens_per_s(took.step), session.arena_use());
            self.timings.push(took);
            self.gradient_norms.extend(result.gradient_norm);
            self.progress.losses.push(result.loss);
            self.progress.step += 1;
            self.progress.sequences += self.sequences();
        }
        Ok(false)
    }

    /// Sequences of a step.
    fn sequences(&self) -> u64 {
        self.schedule.workload.batch * u64::from(self.schedule.schedule.micro_batches)
    }

    fn batches(&self) -> Vec<Batch> {
        let workload = &self.schedule.workload;
        let first = self.tokens.first_sequence(self.progress.sequences);
        let micro_batches = u64::from(self.schedule.schedule.micro_batches);
        (0..micro_batches)
            .map(|m| {
                let first = first + m * workload.batch;
                self.tokens.batch(first, workload.batch, workload.seq)
            })
            .collect()
    }

    fn tokens_per_s(&self, step: Nanos) -> f64 {
        let tokens = self.sequences() * self.schedule.workload.seq;
        tokens as f64 / (step.get().max(1) as f64 / 1e9)
    }

    /// Predicted against measured.
    pub(super) fn file(&self, session: &Session<'_>) -> Result<RunFile> {
        let (plan, schedule) = (&self.schedule.predicted, &self.schedule.schedule);
        let timeline =
            try_simulate(schedule).map_err(|stuck| Error::bad_input(stuck.to_string()))?;
        let expected = timing(schedule, &simulated(&timeline));
        let measured = median(self.timings.clone()).unwrap_or_default();
        let used = session.arena_use();
        // The same FLOPs by another time.
        let slower = plan.step.get() as f64 / measured.step.get().max(1) as f64;
        Ok(RunFile {
            ebbtide_version: env!("CARGO_PKG_VERSION").into(),
            model: self.schedule.model.name.clone(),
            method: self.schedule.method.clone(),
            strategy: self.schedule.strategy.clone(),
            hardware: self.schedule.hardware.name.clone(),
            device: session.device_name(),
            device_notes: session.device_notes(),
            steps: self.progress.step,
            predicted: plan.clone(),
            measured: Predicted {
                step: measured.step,
                floor: measured.compute,
                recompute: measured.recompute,
                packing: measured.packing,
                stall: measured.stall,
                optimizer_tail: measured.tail,
                tokens_per_s: self.tokens_per_s(measured.step),
                mfu: plan.mfu * slower,
                hfu: plan.hfu * slower,
                peak_live: Bytes::new(used.peak_live_bytes),
                arena: Bytes::new(used.high_water_bytes),
                device: Bytes::new(used.high_water_bytes) + self.schedule.hardware.overhead,
                host: schedule.host_bytes,
                d2h: copied_bytes(schedule, Stream::D2h),
                h2d: copied_bytes(schedule, Stream::H2d),
            },
            losses: self.progress.losses.clone(),
            gradient_norms: self.gradient_norms.clone(),
            parts: parts(&expected, &measured),
        })
    }
}

fn parts(expected: &Timing, measured: &Timing) -> Vec<Part> {
    let part = |kind: Kind, name: &str, predicted: Nanos, measured: Nanos| Part {
        kind,
        name: name.to_owned(),
        predicted,
        measured,
    };
    let totals = |t: &Timing| {
        let Timing {
            step,
            compute,
            recompute,
            packing,
            stall,
            tail,
            ..
        } = *t;
        [step, compute, recompute, packing, stall, tail]
    };
    let names = [
        "step",
        "compute",
        "recompute",
        "packing",
        "stall",
        "optimizer tail",
    ];
    let both = totals(expected).into_iter().zip(totals(measured));
    let mut parts: Vec<Part> = (names.into_iter().zip(both))
        .map(|(name, (predicted, measured))| part(Kind::Total, name, predicted, measured))
        .collect();
    parts.extend(Stream::ALL.map(|stream| {
        let of = |t: &Timing| t.busy[stream as usize];
        part(Kind::Stream, stream.name(), of(expected), of(measured))
    }));
    for (block, &predicted) in &expected.blocks {
        let took = measured.blocks.get(block).copied().unwrap_or_default();
        let name = block.map_or("outside".into(), |block| format!("block {block}"));
        parts.push(part(Kind::Block, &name, predicted, took));
    }
    for (name, &predicted) in &expected.operators {
        let took = measured.operators.get(name).copied().unwrap_or_default();
        parts.push(part(Kind::Operator, name, predicted, took));
    }
    parts
}
