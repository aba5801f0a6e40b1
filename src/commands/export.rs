//! `ebbtide export S.json --to SYSTEM`: the settings of another trainer that come nearest to a
//! schedule. The settings go to standard output, what they leave out and cost to standard error.

use std::io::Write;
use std::path::PathBuf;

use super::read_sound_schedule;
use crate::cli::output::print;
use crate::cli::parse;
use crate::error::{Error, Result};
use crate::execute;
use crate::export::{settings, simulated, words, System, Traits};
use crate::lower::Workload;
use crate::methods::Method;
use crate::planning::Request;
use crate::profile;

/// What `ebbtide export` is asked.
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    /// A schedule that `ebbtide plan -o` wrote
    pub schedule: PathBuf,
    /// The system whose settings are wanted
    #[arg(long, value_name = "SYSTEM", value_parser = parse::system())]
    pub to: System,
    /// The profile to simulate the settings on, a file or a name [default: the schedule's, if it is
    /// built in]
    #[arg(long, value_name = "PROFILE")]
    pub profile: Option<String>,
    /// Print one JSON object: settings, what they cannot say, what they cost
    #[arg(long)]
    pub json: bool,
}

/// Simulates what the system can do, and prints the settings of the fastest that fits.
///
/// # Errors
/// `BadInput` for a file that is no schedule, one without its model, or a profile that cannot be
/// found; `Refused` for one with violations; `Infeasible` where nothing that the system can do
/// fits.
pub fn run(args: &Args, out: &mut dyn Write) -> Result<()> {
    let file = read_sound_schedule(&args.schedule)?;
    let name = args.profile.as_deref().unwrap_or(&file.hardware.name);
    let profile = profile::load(name).map_err(|error| match &args.profile {
        Some(_) => error,
        None => error.hint("--profile names the file of the profile it was planned with"),
    })?;
    let model = execute::model(&file)?;
    let method = Method::named(&file.method, file.method_options)?.resolved(&model)?;
    let request = Request {
        model: &model,
        profile: &profile,
        workload: Workload {
            seq: file.workload.seq,
            batch: file.workload.batch,
            accumulate: file.schedule.micro_batches,
            dtype: execute::dtype(&file)?,
            clip: file.schedule.clips(),
        },
        method,
        // No other system packs what travels; products are as fast as they were.
        storage: None,
        arithmetic: file.arithmetic,
        budget: file.schedule.budget,
    };
    let traits = Traits::of(&file);
    let costs = simulated(args.to, &request, &traits)?;
    let best = costs.iter().filter(|cost| cost.step.is_ok());
    let best = best.min_by_key(|cost| cost.step.as_ref().map_or(u64::MAX, |step| step.get()));
    let Some(best) = best else {
        // What needs least comes last.
        let why = costs.last().and_then(|cost| cost.step.as_ref().err());
        return Err(Error::infeasible(format!(
            "nothing that {} can do fits: {}",
            args.to.name(),
            why.map_or("", String::as_str)
        ))
        .hint("ebbtide's own schedule does; `ebbtide run` runs it"));
    };
    let settings = settings(args.to, best, &file, &traits);
    let mut words = words(args.to, best, &costs, &file, &traits);
    if profile.name != file.hardware.name {
        words.push(format!(
            "simulated on {}, but the schedule's step is one of {}",
            profile.name, file.hardware.name
        ));
    }
    if !args.json {
        words.iter().for_each(|line| eprintln!("note: {line}"));
        return print(out, settings);
    }
    let object = serde_json::json!({
        "system": args.to.name(),
        "does": best.does.name(),
        "settings": settings,
        "step_ns": best.step.as_ref().map(|step| step.get()).ok(),
        "planned_step_ns": file.predicted.step.get(),
        "words": words,
    });
    print(out, format!("{object}\n"))
}
