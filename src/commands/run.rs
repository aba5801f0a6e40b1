//! `ebbtide run S.json`: train by a schedule, and compare what was predicted with what was
//! measured.
//!
//! ```text
//! schedule ─ check ─► Session ◄─ weights (HF directory, seed, or a saved run)
//!                        │    ◄─ batches (tokens, or one synthetic batch)
//!                        ▼
//!            losses, timings ─► table, R.json, --save directory
//! ```

use std::io::Write;
use std::path::{Path, PathBuf};

use ebbtide_solver::units::BytesPerSec;

use super::{interrupts, read_sound_schedule};
use crate::cli::output::print;
use crate::cli::parse;
use crate::device::{Cause, Device, Target};
use crate::error::{Error, Result};
use crate::execute::{self, Session};
use crate::files::{check_distinct, check_writable, write_atomically};
use crate::format::run as file;
use crate::format::schedule::ScheduleFile;
use crate::format::training::Progress;
use crate::model::ModelConfig;
use crate::profile;
use crate::report;
use crate::training::checkpoint;
use crate::training::directory::Unfinished;
use crate::training::learning_rate::Shape;
use crate::training::resume::{self, Saved};
use crate::training::tokens::IdType;

mod progress;
mod start;
mod training;

use start::{begin, load, read_tokens};
use training::Training;

/// What `ebbtide run` is asked.
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    /// A schedule that `ebbtide plan -o` wrote
    pub schedule: PathBuf,
    /// The profile that the schedule was planned with: products on a GPU take the algorithms that
    /// it found fastest [default: the library's first choice]
    #[arg(long, value_name = "FILE")]
    pub profile: Option<PathBuf>,
    /// Where to run it: cpu, cuda:0, …
    #[arg(long, value_name = "DEVICE", default_value = "cpu")]
    pub device: String,
    /// HF safetensors to start from [default: random weights by --seed]
    #[arg(long, value_name = "DIR")]
    pub weights: Option<PathBuf>,
    /// Token ids (.u16, .u32, .jsonl) or, with --tokenizer, text [default: one synthetic batch by
    /// --seed, repeated]
    #[arg(long, value_name = "FILE")]
    pub tokens: Option<PathBuf>,
    /// How ids are stored in a file whose name does not say
    #[arg(long, value_name = "TYPE", value_parser = parse::id_type(), requires = "tokens")]
    pub token_type: Option<IdType>,
    /// A tokenizer.json that makes ids of the text in --tokens
    #[arg(
        long,
        value_name = "FILE",
        requires = "tokens",
        conflicts_with = "token_type"
    )]
    pub tokenizer: Option<PathBuf>,
    /// Optimizer steps in all, those before a resumed run included
    #[arg(long, value_name = "N", default_value_t = 10)]
    #[arg(value_parser = parse::within::<u64, 1, { 1 << 40 }>, allow_hyphen_values = true)]
    pub steps: u64,
    /// Of random weights and synthetic tokens [default: 0, or that of the resumed run]
    #[arg(long, value_name = "K", value_parser = parse::within::<u64, 0, { u64::MAX }>)]
    #[arg(allow_hyphen_values = true)]
    pub seed: Option<u64>,
    /// Highest learning rate
    #[arg(long, value_name = "X", default_value = "1e-3", value_parser = parse::not_negative)]
    #[arg(allow_hyphen_values = true)]
    pub lr: f64,
    /// How the learning rate goes on after the warm-up
    #[arg(long = "schedule", value_name = "SHAPE", default_value = "constant")]
    #[arg(id = "lr_schedule", value_parser = parse::learning_rate())]
    pub shape: Shape,
    /// Steps in which the learning rate rises: 0 in the first, as HF has it
    #[arg(long, value_name = "N", default_value_t = 0)]
    #[arg(value_parser = parse::within::<u64, 0, { 1 << 40 }>, allow_hyphen_values = true)]
    pub warmup: u64,
    /// Warm up a step earlier: X/N in the first step, X in the N-th
    #[arg(long, requires = "warmup")]
    pub warmup_above_zero: bool,
    /// AdamW's decay of the first and of the second moment
    #[arg(long, value_name = "X,X", default_value = "0.9,0.999", value_parser = parse::betas)]
    #[arg(allow_hyphen_values = true)]
    pub betas: (f64, f64),
    /// What AdamW adds to the root of the second moment
    #[arg(long, value_name = "X", default_value = "1e-8", value_parser = parse::positive)]
    #[arg(allow_hyphen_values = true)]
    pub eps: f64,
    /// AdamW's decoupled decay, SGD's L2 term
    #[arg(long, value_name = "X", default_value = "0", value_parser = parse::not_negative)]
    #[arg(allow_hyphen_values = true)]
    pub weight_decay: f64,
    /// Largest global norm of the gradients [default: not clipped]
    #[arg(long, value_name = "X", value_parser = parse::positive, allow_hyphen_values = true)]
    pub clip: Option<f64>,
    /// Largest magnitude of an element of a gradient, which LOMO can hold to as well [default: not
    /// clipped]
    #[arg(long, value_name = "X", value_parser = parse::positive, allow_hyphen_values = true)]
    pub clip_value: Option<f64>,
    /// Speed of copies in each direction on the cpu device, such as 2GB/s [default: that of memory]
    #[arg(long, value_name = "RATE", value_parser = parse::rate, allow_hyphen_values = true)]
    pub link: Option<BytesPerSec>,
    /// The same bits in every run, whatever it costs: a GPU's attention is not cuDNN's then (the
    /// cpu device's are the same anyway)
    #[arg(long)]
    pub deterministic: bool,
    /// Write the weights as HF loads them, and what a resumed run needs, to this new directory
    #[arg(long, value_name = "DIR")]
    pub save: Option<PathBuf>,
    /// Go on from a directory that --save wrote
    #[arg(long, value_name = "DIR", conflicts_with = "weights")]
    pub resume: Option<PathBuf>,
    /// Write predicted and measured to this file
    #[arg(short, long, value_name = "FILE")]
    pub output: Option<PathBuf>,
    /// Print one JSON object
    #[arg(long)]
    pub json: bool,
}

/// Checks, runs, saves and reports.
///
/// # Errors
/// `Refused` for a schedule with violations, `NoDevice` when the device fails, `BadInput` for
/// everything that cannot be read or written, and for a loss that is not a number.
pub fn run(args: &Args, out: &mut dyn Write) -> Result<()> {
    let schedule = read_sound_schedule(&args.schedule)?;
    let named = |error: Error| error.within(args.schedule.display());
    let model = execute::model(&schedule).map_err(named)?;
    check_outputs(args)?;
    let stop = interrupts()?;
    let resumed = args.resume.as_deref().map(resume::read).transpose()?;
    let mut progress = begin(args, &schedule, resumed.as_ref())?;
    let tokens = read_tokens(args, &schedule, &model, progress.seed)?;
    let data = tokens.described();
    let others = progress
        .data
        .replace(data.clone())
        .filter(|was| *was != data);
    let target = Target::named(&args.device, args.link, args.deterministic)?;
    let mut device = target.open()?;
    let heuristic = match (&args.profile, target) {
        (Some(path), Target::Cuda { .. }) => use_profile(path, device.as_mut())?,
        (Some(_), Target::Cpu(_)) => {
            return Err(
                Error::bad_input("the cpu device has no algorithms to choose from")
                    .within("--profile")
                    .hint("it is for a GPU's matrix products"),
            )
        }
        (None, _) => None,
    };
    let mut session =
        Session::begin(&schedule, &model, device, args.clip.is_some()).map_err(named)?;
    let mut remarks = load(
        args,
        &model,
        &schedule,
        resumed,
        progress.seed,
        &mut session,
        &stop,
    )?;
    let mut trained = Training {
        args,
        schedule: &schedule,
        tokens: &tokens,
        progress,
        timings: Vec::new(),
        gradient_norms: Vec::new(),
    };
    if let Some(was) = others {
        remarks.push(format!(
            "the saved run trained on {was}, this one on {data}"
        ));
    }
    let interrupted = trained.steps(&mut session, &stop)?;
    if let Some(directory) = &args.save {
        save(
            directory,
            &model,
            &schedule,
            &mut session,
            &trained.progress,
        )?;
        remarks.push(format!("weights and states in {}", directory.display()));
    }
    let mut file = trained.file(&session)?;
    file.device_notes.extend(heuristic);
    remarks.extend(file.device_notes.iter().cloned());
    if let Some(path) = &args.output {
        write_atomically(path, file::write(&file))?;
        remarks.push(format!("predicted and measured in {}", path.display()));
    }
    match args.json {
        true => print(out, file::write(&file))?,
        false => print(out, report::run::table(&file, &remarks))?,
    }
    match interrupted {
        false => Ok(()),
        true => Err(interrupted_at(args, trained.progress.step)),
    }
}

/// What was done is reported and saved; it is not what was asked for.
fn interrupted_at(args: &Args, step: u64) -> Error {
    let error = Error::bad_input(format!("interrupted after step {step} of {}", args.steps));
    match &args.save {
        Some(directory) => error.hint(format!("--resume {} goes on", directory.display())),
        None => error.hint("with --save a run can go on with --resume"),
    }
}

/// Refuses places where nothing can be written, before anything is computed for them.
fn check_outputs(args: &Args) -> Result<()> {
    if let Some(directory) = &args.save {
        // Made and taken away again: the only way to know that it can be made.
        Unfinished::begin(directory).map_err(|error| error.within("--save"))?;
    }
    let Some(path) = &args.output else {
        return Ok(());
    };
    let mut places = vec![("the schedule", args.schedule.as_path())];
    let inputs = [
        ("--profile", &args.profile),
        ("--weights", &args.weights),
        ("--tokens", &args.tokens),
        ("--tokenizer", &args.tokenizer),
        ("--resume", &args.resume),
    ];
    for (what, input) in inputs {
        places.extend(input.as_deref().map(|input| (what, input)));
    }
    places.push(("-o", path));
    places.extend(args.save.as_deref().map(|saved| ("--save", saved)));
    check_distinct(&places)?;
    // What is saved makes its own directory.
    match args.save.as_deref() {
        Some(saved) if path.parent() == Some(saved) => Ok(()),
        _ => check_writable(path),
    }
}

/// Gives a device the algorithms that a profile found fastest; a remark where it has none for it.
fn use_profile(path: &Path, device: &mut dyn Device) -> Result<Option<String>> {
    let Some(timed) = profile::read(path)?.operators.gemm.algorithms else {
        let path = path.display();
        return Ok(Some(format!(
            "{path} has no algorithms of matrix products; the library's first choices are used"
        )));
    };
    let used = device.use_algorithms(&timed);
    Ok(used.err().map(|failure| {
        let why = match &failure.cause {
            Cause::Refused(what) => what.clone(),
            _ => failure.to_string(),
        };
        format!(
            "{}: {why}; the library's first choices are used",
            path.display()
        )
    }))
}

/// Writes what HF loads and what a resumed run needs, all or nothing.
fn save(
    path: &Path,
    model: &ModelConfig,
    schedule: &ScheduleFile,
    session: &mut Session<'_>,
    progress: &Progress,
) -> Result<()> {
    let directory = Unfinished::begin(path)?;
    let dtype = execute::dtype(schedule)?;
    checkpoint::write(&directory, model, dtype, |place| session.weight(place))?;
    let saved = Saved {
        progress: progress.clone(),
        states: session.states()?,
    };
    resume::write(&directory, &saved)?;
    directory.finish()
}
