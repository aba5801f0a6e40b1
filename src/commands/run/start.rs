//! Where a run begins: how far it is, what it reads, and what the session holds before its first
//! step.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use indicatif::ProgressFinish;

use super::Args;
use crate::commands::progress_bar;
use crate::error::{Error, Result};
use crate::execute::Session;
use crate::format::schedule::ScheduleFile;
use crate::format::training::Progress;
use crate::methods::{Layers, LowRank};
use crate::model::ModelConfig;
use crate::report;
use crate::training::checkpoint::Checkpoint;
use crate::training::resume::Saved;
use crate::training::tokens::{self, Tokens};
use crate::training::{initial, places, text};

/// Where the run stands before its first step.
pub(super) fn begin(
    args: &Args,
    schedule: &ScheduleFile,
    resumed: Option<&Saved>,
) -> Result<Progress> {
    let Some(saved) = resumed else {
        return Ok(Progress {
            step: 0,
            sequences: 0,
            seed: args.seed.unwrap_or(0),
            method: method(schedule),
            dtype: schedule.workload.dtype.clone(),
            data: None,
            losses: Vec::new(),
        });
    };
    let progress = &saved.progress;
    let differs = |what: &str, was: &str, is: &str| {
        Err(
            Error::bad_input(format!("the saved run has {what} {was}, this one {is}"))
                .within("--resume"),
        )
    };
    if progress.method != method(schedule) {
        return differs("method", &progress.method, &method(schedule));
    }
    if progress.dtype != schedule.workload.dtype {
        return differs("type", &progress.dtype, &schedule.workload.dtype);
    }
    if let Some(seed) = args.seed.filter(|&seed| seed != progress.seed) {
        return differs("seed", &progress.seed.to_string(), &seed.to_string());
    }
    if progress.step >= args.steps {
        return Err(Error::bad_input(format!(
            "the saved run has done {} steps of {}",
            progress.step, args.steps
        ))
        .hint("--steps counts from the beginning of the first run"));
    }
    Ok(progress.clone())
}

/// The method with its options, which a resumed run must share: its states depend on them.
fn method(schedule: &ScheduleFile) -> String {
    match schedule.method_options {
        None => schedule.method.clone(),
        Some(LowRank {
            rank,
            refresh,
            scale,
            per_layer: _,
            svd,
            eight_bit,
            layers,
            accumulated: _,
        }) => format!(
            "{} of rank {}, refresh {refresh}, scale {scale}{}{}{}",
            schedule.method,
            rank.map_or_else(String::new, |rank| rank.to_string()),
            if svd { ", svd" } else { "" },
            if eight_bit { ", 8 bits" } else { "" },
            match layers {
                Layers::ALL => String::new(),
                some => format!(", {} compressed", some.names().join(" and ")),
            },
        ),
    }
}

/// What it trains on.
pub(super) fn read_tokens(
    args: &Args,
    schedule: &ScheduleFile,
    model: &ModelConfig,
    seed: u64,
) -> Result<Tokens> {
    let Some(path) = &args.tokens else {
        let vocab = model.vocab;
        return Ok(Tokens::Synthetic { vocab, seed });
    };
    let tokens = match &args.tokenizer {
        Some(tokenizer) => text::read(path, tokenizer)?,
        None => tokens::read(path, args.token_type).map_err(|e| e.within(path.display()))?,
    };
    let checked = tokens.check(schedule.workload.seq, model.vocab);
    checked.map_err(|error| error.within(path.display()))?;
    Ok(tokens)
}

/// Fills the session with weights and states; says what a person should know.
pub(super) fn load(
    args: &Args,
    model: &ModelConfig,
    schedule: &ScheduleFile,
    resumed: Option<Saved>,
    seed: u64,
    session: &mut Session<'_>,
    stop: &AtomicBool,
) -> Result<Vec<String>> {
    let mut remarks = model.notes.clone();
    let device = session.device_name();
    if device != schedule.hardware.name {
        remarks.push(format!(
            "planned for {}, run on {device}: times are of different machines",
            schedule.hardware.name
        ));
    }
    let directory = args.resume.as_deref().or(args.weights.as_deref());
    let bar = progress_bar(places(model).count() as u64).with_message("weights");
    let bar = bar.with_finish(ProgressFinish::AndClear);
    let next = || {
        bar.inc(1);
        match stop.load(Ordering::Relaxed) {
            true => Err(Error::bad_input("interrupted before the first step")),
            false => Ok(()),
        }
    };
    let Some(directory) = directory else {
        session.load(|place| {
            next()?;
            initial::values(model, place, seed)
        })?;
        return Ok(remarks);
    };
    let checkpoint = Checkpoint::open(directory, model)?;
    if let Some(other) = config_of_another(directory, model) {
        remarks.push(other);
    }
    let unused = checkpoint.unused();
    if let Some(first) = unused.first() {
        remarks.push(format!(
            "{} of {} are no weights of the model and were left out, such as {first}",
            report::count(unused.len(), "tensor"),
            directory.display()
        ));
    }
    session.load(|place| {
        next()?;
        checkpoint.read(place)
    })?;
    if let Some(saved) = resumed {
        let restored = session.restore(&saved.states);
        restored.map_err(|error| error.within(directory.display()))?;
    }
    Ok(remarks)
}

/// A remark where the config beside the weights makes another model of them than the schedule's.
fn config_of_another(directory: &Path, model: &ModelConfig) -> Option<String> {
    let path = directory.join("config.json");
    let text = std::fs::read_to_string(&path).ok()?;
    let beside = ModelConfig::read(&model.name, &text).ok();
    // What does not change what is computed.
    let beside = beside.map(|beside| ModelConfig {
        max_positions: model.max_positions,
        stored_dtype: model.stored_dtype,
        notes: model.notes.clone(),
        source: model.source.clone(),
        ..beside
    });
    (beside.as_ref() != Some(model)).then(|| {
        format!(
            "warning: {} describes another model; the schedule's config was used",
            path.display()
        )
    })
}
