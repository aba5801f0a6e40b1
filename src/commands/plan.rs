//! `ebbtide plan`: the fastest step that fits, with its proof, as a schedule file.

use super::setting;
use crate::cli::output::print;
use crate::cli::parse::{self, Allowed, Choice};
use crate::device::arithmetic::Arithmetic;
use crate::error::{Error, Result};
use crate::files::{check_distinct, check_writable, write_atomically};
use crate::format::schedule;
use crate::methods::Method;
use crate::model::Positions;
use crate::planning::{self, Planned, Request};
use crate::report;
use crate::tuning::{tune, Freedom, Outcome};
use ebbtide_solver::build::Infeasible;
use ebbtide_solver::check;
use ebbtide_solver::search::{Options, Strategy};
use ebbtide_solver::units::Tokens;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// How long to look for what would make an infeasible request fit.
const LOOK_FOR: Duration = Duration::from_millis(1500);

/// What `ebbtide plan` is asked.
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    /// Model, machine and limits.
    #[command(flatten)]
    pub setting: setting::Args,
    /// Tokens of a sequence, such as 4096, 128k or 1m
    #[arg(long, value_name = "TOKENS", value_parser = parse::tokens, allow_hyphen_values = true)]
    pub seq: u64,
    /// Training method; `auto` takes whichever of adamw and --allow is fastest, in whichever
    /// micro-batches
    #[arg(long, value_name = "METHOD", default_value = "adamw")]
    #[arg(value_parser = parse::method_or_auto())]
    pub method: Choice,
    /// What may be used though it changes what is learnt, separated by commas: storages of what
    /// is saved for backward, on the device and on the host, products in 8 bits, and methods that
    /// --method auto may choose besides adamw; qat-fp8 and qat-int8 are used
    #[arg(long, value_name = "LIST", value_delimiter = ',', value_parser = parse::allowed())]
    pub allow: Vec<Allowed>,
    /// How a low-rank method is run.
    #[command(flatten)]
    pub low_rank: setting::LowRankArgs,
    /// How the plan is found
    #[arg(long, value_name = "NAME", default_value = "ilp", value_parser = parse::strategy())]
    pub strategy: Strategy,
    /// When to stop searching, such as 500ms, 10s or 2m
    #[arg(long, value_name = "TIME", default_value = "10s", value_parser = parse::time)]
    #[arg(allow_hyphen_values = true)]
    pub time_limit: Duration,
    /// A plan this close to the bound is good enough, such as 0.5% or 0.005
    #[arg(long, value_name = "GAP", default_value = "0.5%", value_parser = parse::gap)]
    #[arg(allow_hyphen_values = true)]
    pub gap: f64,
    /// Write the schedule to this file
    #[arg(short, long, value_name = "FILE")]
    pub output: Option<PathBuf>,
    /// Print one JSON object: the schedule file without operators, values, buffers and streams
    #[arg(long)]
    pub json: bool,
}

/// Plans, checks, writes and reports.
///
/// # Errors
/// `BadInput` for what cannot be read or planned, `Infeasible` where nothing fits, `Refused` if the
/// checker finds violations in the plan, which is then not written.
pub fn run(args: &Args, out: &mut dyn Write) -> Result<()> {
    let setting = args.setting.read()?;
    if let Some(path) = &args.output {
        check_writable(path)?;
        let (model, profile) = (&args.setting.model, &args.setting.profile);
        check_distinct(&[("--model", Path::new(model)), ("--output", path)])?;
        check_distinct(&[("--profile", Path::new(profile)), ("--output", path)])?;
    }
    let request = setting.request(method(args)?, args.seq);
    let options = Options {
        deadline: Instant::now().checked_add(args.time_limit),
        gap: args.gap,
        ..Options::default()
    };
    let freedom = freedom(args, request.method)?;
    let request = Request {
        arithmetic: freedom.arithmetics[0],
        ..request
    };
    let choice = freedom.cuts || !freedom.storages.is_empty() || freedom.arithmetics.len() > 1;
    let (request, planned) = match choice {
        false => (request, planning::plan(&request, args.strategy, &options)?),
        true => fastest(args, request, (&freedom, &options), out)?,
    };
    let planned = planned.map_err(|infeasible| {
        if options.expired() {
            return report::infeasible::late(&describe(&request), &infeasible, args.time_limit);
        }
        let ways_out = planning::would_fit(&request, args.strategy, Instant::now() + LOOK_FOR);
        report::infeasible::error(&describe(&request), &infeasible, &ways_out)
    })?;
    let violations = check::check(&planned.file.schedule);
    if !violations.is_empty() {
        print(out, report::violations(&violations))?;
        return Err(
            Error::refused("the plan does not pass the checker and was not written")
                .hint("this is a bug of ebbtide; please report it with the command"),
        );
    }
    if let Some(path) = &args.output {
        write_atomically(path, schedule::write(&planned.file))?;
    }
    let mut remarks = warnings(&request);
    if args.json {
        // Standard output holds the object alone.
        for (kind, words) in &remarks {
            eprintln!("{kind}: {words}");
        }
        return print(out, schedule::write_summary(&planned.file));
    }
    let notes = setting.model.notes.iter().cloned();
    let written = args.output.iter();
    let written = written.map(|path| format!("schedule in {}", path.display()));
    remarks.extend(notes.chain(written).map(|words| ("note", words)));
    let sensitivity = planning::sensitivity(&planned.file.schedule);
    print(out, report::plan::table(&planned, &sensitivity, &remarks))
}

/// The method that was asked for; adamw where it is to be chosen.
fn method(args: &Args) -> Result<Method> {
    let told = args.low_rank.told();
    let methods = args.allow.iter().any(|a| matches!(a, Allowed::Method(_)));
    match args.method {
        Choice::One(method) if !methods => method.told(told),
        Choice::One(method) => Err(Error::bad_input(format!(
            "--allow says which methods may be chosen, but --method {method} leaves no choice"
        ))
        .hint("--method auto")),
        Choice::Auto => match told.given().next() {
            None => Ok(Method::AdamW),
            Some(flag) => Err(Error::bad_input(format!(
                "{flag} is for one method, but --method auto chooses among several"
            ))
            .hint("name the method; auto runs each by its defaults")),
        },
    }
}

/// What may be chosen, beside the method that was asked for. Training that is aware of rounding is
/// no faster: whoever names it wants it.
fn freedom(args: &Args, method: Method) -> Result<Freedom> {
    let mut freedom = Freedom {
        methods: vec![method],
        storages: Vec::new(),
        arithmetics: vec![Arithmetic::Plain],
        cuts: args.method == Choice::Auto,
    };
    for &allowed in &args.allow {
        match allowed {
            Allowed::Method(method) if !freedom.methods.contains(&method) => {
                freedom.methods.push(method);
            }
            Allowed::Storage(storage) if !freedom.storages.contains(&storage) => {
                freedom.storages.push(storage);
            }
            Allowed::Arithmetic(arithmetic) if !freedom.arithmetics.contains(&arithmetic) => {
                freedom.arithmetics.push(arithmetic);
            }
            _ => {}
        }
    }
    if let Some(&aware) = freedom.arithmetics.iter().find(|a| a.is_aware()) {
        if freedom.arithmetics.len() > 2 {
            return Err(Error::bad_input(format!(
                "--allow {aware} rounds weights its own way and goes with no other arithmetic"
            )));
        }
        freedom.arithmetics = vec![aware];
    }
    Ok(freedom)
}

/// Chooses among what is allowed, and prints what was tried.
fn fastest<'a>(
    args: &Args,
    request: Request<'a>,
    (freedom, options): (&Freedom, &Options),
    out: &mut dyn Write,
) -> Result<(Request<'a>, std::result::Result<Planned, Infeasible>)> {
    let candidates = tune(&request, freedom, args.strategy, options);
    let tried = report::tuning::table(&candidates);
    match args.json {
        true => eprint!("{tried}"),
        false => print(out, tried)?,
    }
    let first = candidates.into_iter().next().expect("something was tried");
    let request = Request {
        method: first.method,
        workload: first.workload,
        storage: first.storage,
        arithmetic: first.arithmetic,
        ..request
    };
    match first.outcome {
        Outcome::Planned(planned) => Ok((request, Ok(*planned))),
        Outcome::Infeasible(miss) => Ok((request, Err(*miss))),
        Outcome::Refused(error) => Err(error),
    }
}

/// `llama-2-7b at 128k tokens with lomo`.
fn describe(request: &Request<'_>) -> String {
    let Request {
        model,
        workload,
        method,
        ..
    } = request;
    let batch = match workload.batch {
        1 => String::new(),
        batch => format!(" × {batch} sequences"),
    };
    let seq = Tokens::new(workload.seq);
    format!("{} at {seq} tokens{batch} with {method}", model.name)
}

/// What a person should know who runs the plan.
fn warnings(request: &Request<'_>) -> Vec<(&'static str, String)> {
    let mut remarks = Vec::new();
    let (model, profile) = (request.model, request.profile);
    let seq = request.workload.seq;
    if matches!(model.positions, Positions::Rope { .. }) && seq > model.max_positions {
        remarks.push(format!(
            "{} was made for {} tokens; {} are beyond max_position_embeddings",
            model.name,
            Tokens::new(model.max_positions),
            Tokens::new(seq)
        ));
    }
    let usable = request.left_for_arena();
    let shown = request.budget.device.to_string();
    if request.budget.device > usable && shown != usable.to_string() {
        remarks.push(format!(
            "--device-memory {shown} is more than the {usable} that {} has to give",
            profile.device.name
        ));
    }
    let memory = profile.host.memory;
    if request.budget.host > memory {
        remarks.push(format!(
            "--host-memory {} is more than the {memory} of the host in {}",
            request.budget.host, profile.name
        ));
    }
    Vec::from_iter(remarks.into_iter().map(|words| ("warning", words)))
}
