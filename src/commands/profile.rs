//! `ebbtide profile`: measure a device and write its profile.
//!
//! Each finished stage goes to a file beside the output, which the same command goes on from after
//! an interruption; it is gone once the profile is written.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::time::Instant;

use super::{interrupts, progress_bar};
use crate::cli::output::print;
use crate::cli::parse;
use crate::device::Target;
use crate::error::{Error, Result};
use crate::files::{check_distinct, check_writable, read_text, write_atomically};
use crate::format::measured::{self, MeasuredFile};
use crate::format::profile as file;
use crate::model;
use crate::profile::measure::{assemble, Request};
use crate::profile::{build, Dtype};
use crate::report;
use ebbtide_solver::units::{Bytes, BytesPerSec};

/// What `ebbtide profile` is asked.
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    /// Whose operators: an HF config.json, a directory with one, or a name from `ebbtide list
    /// models`
    #[arg(long, value_name = "MODEL")]
    pub model: String,
    /// What to measure: cpu, cuda:0, …
    #[arg(long, value_name = "DEVICE", default_value = "cpu")]
    pub device: String,
    /// Numbers of tokens to measure at, such as 4k,16k [default: 128,256,512,1k of the cpu,
    /// 4k,16k,64k of a GPU]
    #[arg(long, value_name = "TOKENS,…", value_delimiter = ',', value_parser = parse::tokens)]
    pub seq: Vec<u64>,
    /// Type of weights and activations [default: f32 of the cpu, bf16 of a GPU]
    #[arg(long, value_name = "TYPE", value_parser = parse::dtype())]
    pub dtype: Option<Dtype>,
    /// Speed of copies in each direction on the cpu device, such as 2GB/s; run with the same
    /// [default: that of memory]
    #[arg(long, value_name = "RATE", value_parser = parse::rate)]
    pub link: Option<BytesPerSec>,
    /// Measure what gives the same bits in every run: without cuDNN's attention, as run with the
    /// same
    #[arg(long)]
    pub deterministic: bool,
    /// Write the profile to this file
    #[arg(short, long, value_name = "FILE")]
    pub output: PathBuf,
}

/// Measures, writes and reports.
///
/// # Errors
/// `NoDevice` for a device that is not there or fails, `BadInput` for everything that cannot be
/// read, measured or written, and for an interruption.
pub fn run(args: &Args, out: &mut dyn Write) -> Result<()> {
    let target = Target::named(&args.device, args.link, args.deterministic)?;
    let model = model::load(&args.model)?;
    let facts = target.facts()?;
    let (lengths, dtype): (&[u64], _) = match target {
        Target::Cpu(_) => (&[128, 256, 512, 1024], Dtype::F32),
        Target::Cuda { .. } => (&[4 << 10, 16 << 10, 64 << 10], Dtype::Bf16),
    };
    let mut tokens = match args.seq.is_empty() {
        true => lengths.to_vec(),
        false => args.seq.clone(),
    };
    tokens.sort_unstable();
    tokens.dedup();
    let request = Request {
        target,
        workspace: facts.workspace,
        model: &model,
        dtype: args.dtype.unwrap_or(dtype),
        tokens,
        memory: facts.usable,
        link: args.link,
        deterministic: args.deterministic,
    };
    // What cannot be done or written is better known now than after minutes.
    let stages = request.stages().map_err(|error| error.within("--seq"))?;
    stages.iter().try_for_each(|&stage| request.check(stage))?;
    check_writable(&args.output)?;
    check_distinct(&[("--model", Path::new(&args.model)), ("-o", &args.output)])?;
    let partial = beside(&args.output);
    let mut measured = go_on(&partial, request.begin(&args.device))?;
    write_atomically(&partial, measured::write(&measured))?;
    let stop = interrupts()?;
    let begun = Instant::now();
    let bar = progress_bar(stages.len() as u64);
    for (at, &stage) in stages.iter().enumerate() {
        if request.done(stage, &measured) {
            bar.inc(1);
            continue;
        }
        bar.set_message(stage.to_string());
        request.measure(stage, &mut measured)?;
        write_atomically(&partial, measured::write(&measured))?;
        bar.inc(1);
        if stop.load(Ordering::Relaxed) && at + 1 < stages.len() {
            let done = at + 1;
            let message = format!("interrupted after {done} of {} measurements", stages.len());
            return Err(Error::bad_input(message).hint(format!(
                "the same command goes on from {}",
                partial.display()
            )));
        }
    }
    bar.finish_and_clear();
    let profile = assemble(&request, &measured, &facts)?;
    // A file that cannot be read again is a bug to see here.
    let fitted = build(profile.clone()).map_err(|error| error.within("the measured profile"))?;
    write_atomically(&args.output, file::write(&profile))?;
    std::fs::remove_file(&partial).map_err(|cause| {
        Error::bad_input(format!("cannot remove: {cause}")).within(partial.display())
    })?;
    let seconds = begun.elapsed().as_secs_f64();
    let path = args.output.display();
    let remark = format!("profile in {path}, measured in {seconds:.1} s");
    print(out, report::profile::table(&profile, &fitted, &[remark]))
}

/// The file of what has been measured so far.
fn beside(output: &Path) -> PathBuf {
    let mut name = output.as_os_str().to_owned();
    name.push(".partial");
    PathBuf::from(name)
}

/// What has been measured before, or nothing.
fn go_on(path: &Path, fresh: MeasuredFile) -> Result<MeasuredFile> {
    if !path.exists() {
        return Ok(fresh);
    }
    let text = read_text(path, Bytes::mib(16), "a measurement")?;
    let found = measured::read(&text).map_err(|error| error.within(path.display()))?;
    match found.settings == fresh.settings {
        true => Ok(found),
        false => Err(
            Error::bad_input("an unfinished measurement of something else")
                .within(path.display())
                .hint("finish it with its own flags, delete it, or choose another -o"),
        ),
    }
}
