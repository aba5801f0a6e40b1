//! `ebbtide check S.json`: the referee's verdict on a schedule, whoever wrote it.

use super::read_schedule;
use crate::cli::output::print;
use crate::error::{Error, Result};
use crate::report;
use ebbtide_solver::check;
use std::io::Write;
use std::path::PathBuf;

/// What `ebbtide check` is asked.
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    /// A schedule file
    pub schedule: PathBuf,
    /// Print one JSON object
    #[arg(long)]
    pub json: bool,
}

/// Checks and prints what is wrong.
///
/// # Errors
/// `BadInput` for a file that is no schedule, `Refused` for one with violations.
pub fn run(args: &Args, out: &mut dyn Write) -> Result<()> {
    let file = read_schedule(&args.schedule)?;
    let violations = check::check(&file.schedule);
    if args.json {
        let list = violations
            .iter()
            .map(|v| serde_json::json!({"fault": v.fault.name(), "message": v.to_string()}));
        let report = serde_json::json!({
            "count": violations.len(),
            "violations": Vec::from_iter(list),
        });
        print(out, format!("{report}\n"))?;
    } else if violations.is_empty() {
        print(out, format!("{}\n", report::plan::checked(&file.schedule)))?;
    } else {
        print(out, report::violations(&violations))?;
    }
    if violations.is_empty() {
        return Ok(());
    }
    let count = report::count(violations.len(), "violation");
    Err(Error::refused(count).within(args.schedule.display()))
}
