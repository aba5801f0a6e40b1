//! `ebbtide simulate S.json`: what a schedule takes, on which stream, in which memory; and the same
//! as files for viewers.

use super::read_sound_schedule;
use crate::cli::output::print;
use crate::error::{Error, Result};
use crate::files::{check_distinct, check_writable, write_atomically};
use crate::format::{snapshot, trace};
use crate::memory;
use crate::report;
use ebbtide_solver::schedule::Stream;
use ebbtide_solver::simulate::{copied_bytes, try_simulate};
use std::io::Write;
use std::path::PathBuf;

/// What `ebbtide simulate` is asked.
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    /// A schedule that `ebbtide plan -o` wrote
    pub schedule: PathBuf,
    /// Print one JSON object
    #[arg(long)]
    pub json: bool,
    /// Write a Chrome trace to this file: streams, memory and swaps over time, for ui.perfetto.dev
    #[arg(long, value_name = "FILE")]
    pub trace: Option<PathBuf>,
    /// Write a PyTorch memory snapshot (pickle) to this file, for pytorch.org/memory_viz
    #[arg(long, value_name = "FILE")]
    pub memory_snapshot: Option<PathBuf>,
}

/// Simulates, writes and reports. What the checker refuses is not simulated: its times mean
/// nothing.
///
/// # Errors
/// `BadInput` for a file that is no schedule, one that takes longer than 64 bits of nanoseconds, or
/// a file that cannot be written;
/// `Refused` for one with violations.
pub fn run(args: &Args, out: &mut dyn Write) -> Result<()> {
    let mut files = vec![("the schedule", args.schedule.as_path())];
    for (what, path) in [
        ("--trace", &args.trace),
        ("--memory-snapshot", &args.memory_snapshot),
    ] {
        if let Some(path) = path {
            check_writable(path)?;
            files.push((what, path));
        }
    }
    check_distinct(&files)?;
    let file = read_sound_schedule(&args.schedule)?;
    let timeline = try_simulate(&file.schedule)
        .map_err(|stuck| Error::bad_input(stuck.to_string()).within(args.schedule.display()))?;
    if let Some(path) = &args.trace {
        write_atomically(path, trace::write(&file, &timeline))?;
    }
    if let Some(path) = &args.memory_snapshot {
        write_atomically(path, snapshot::write(&file.schedule, &timeline))?;
    }
    if !args.json {
        let mut text = report::timeline::table(&file, &timeline);
        let written = [
            ("trace", &args.trace, "ui.perfetto.dev"),
            ("snapshot", &args.memory_snapshot, "pytorch.org/memory_viz"),
        ];
        let written = written.into_iter().filter_map(|(what, path, viewer)| {
            Some(format!(
                "{what} in {}, for {viewer}",
                path.as_ref()?.display()
            ))
        });
        for (i, line) in written.enumerate() {
            text += if i == 0 { "\n" } else { "" };
            text += &(line + "\n");
        }
        return print(out, text);
    }
    let peak = memory::peak(&file.schedule);
    let streams = Stream::ALL.map(|stream| {
        let entry = serde_json::json!({
            "instructions": file.schedule.stream(stream).len(),
            "busy_ns": timeline.busy[stream as usize].get(),
        });
        (stream.name().to_owned(), entry)
    });
    let categories = |parts: [(ebbtide_solver::problem::Category, _); 6]| {
        let entries = parts.map(|(category, bytes): (_, ebbtide_solver::units::Bytes)| {
            (category.name().to_owned(), bytes.get().into())
        });
        serde_json::Map::from_iter(entries)
    };
    let report = serde_json::json!({
        "step_ns": timeline.step.get(),
        "compute_ns": timeline.compute.get(),
        "recompute_ns": timeline.recompute.get(),
        "packing_ns": timeline.packing.get(),
        "slowed_ns": timeline.slowed.get(),
        "stall_ns": timeline.stall.get(),
        "optimizer_tail_ns": timeline.tail.get(),
        "d2h_bytes": copied_bytes(&file.schedule, Stream::D2h).get(),
        "h2d_bytes": copied_bytes(&file.schedule, Stream::H2d).get(),
        "streams": serde_json::Map::from_iter(streams),
        "peak": {
            "live_bytes": peak.bytes.get(),
            "position": peak.position,
            "operator": memory::running(&file.schedule, peak.position),
            "device_bytes": categories(peak.by_category),
        },
        "host_bytes": categories(memory::host(&file.schedule)),
    });
    print(out, format!("{report}\n"))
}
