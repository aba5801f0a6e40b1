//! `ebbtide arena INSTANCE.csv`: offsets for the requests of a CSV file.
//!
//! In goes the format of google/minimalloc, out comes a table, JSON, or the same CSV with an
//! `offset` column.

mod csv;

use crate::cli::output::print;
use crate::cli::parse;
use crate::error::{Error, Result};
use crate::files::{check_distinct, check_writable, read_text, write_atomically};
use csv::Instance;
use ebbtide_solver::arena::{place, Options, Placement, Status};
use ebbtide_solver::units::Bytes;
use std::fmt::Write as _;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant as Clock};

/// Published instances are some hundred KiB.
const LARGEST_INSTANCE: Bytes = Bytes::gib(1);

/// What `ebbtide arena` is asked.
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    /// CSV file with the columns id, lower, upper and size; alive at lower <= t < upper
    pub instance: PathBuf,
    /// Bytes that are enough: stop there; fail if they are not (default: as low as possible)
    #[arg(long, value_name = "BYTES", value_parser = parse::within::<u64, 0, { u64::MAX }>)]
    #[arg(allow_hyphen_values = true)]
    pub capacity: Option<u64>,
    /// When to stop searching, such as 500ms, 60s or 2m
    #[arg(long, value_name = "TIME", default_value = "60s", value_parser = parse::time)]
    #[arg(allow_hyphen_values = true)]
    pub time_limit: Duration,
    /// Offsets are multiples of this many bytes, and a buffer takes a multiple of them
    #[arg(long, value_name = "BYTES", default_value_t = 1)]
    #[arg(value_parser = parse::within::<u64, 1, { 1 << 40 }>, allow_hyphen_values = true)]
    pub alignment: u64,
    /// Searches side by side
    #[arg(long, value_name = "N", default_value_t = 2)]
    #[arg(value_parser = parse::within::<u16, 1, 64>, allow_hyphen_values = true)]
    pub threads: u16,
    /// Print one JSON object
    #[arg(long)]
    pub json: bool,
    /// Write the instance with an offset column to this CSV file
    #[arg(short, long, value_name = "FILE")]
    pub output: Option<PathBuf>,
}

/// Places the requests of a file and reports where they lie.
///
/// # Errors
/// `BadInput` for a file that cannot be read, understood or written; `Infeasible` for a capacity
/// that is not attained, saying whether that is proved.
pub fn run(args: &Args, out: &mut dyn Write) -> Result<()> {
    let name = args.instance.display();
    if let Some(path) = &args.output {
        check_writable(path)?;
        check_distinct(&[("the instance", &args.instance), ("--output", path)])?;
    }
    let text = read_text(&args.instance, LARGEST_INSTANCE, "an instance")?;
    let instance = csv::parse(&text).map_err(|error| error.within(&name))?;
    instance
        .check_sum(args.alignment)
        .map_err(|error| error.within(&name))?;
    if let Some(capacity) = args.capacity {
        instance
            .check_sizes(capacity)
            .map_err(|error| error.within(&name))?;
    }
    let begun = Clock::now();
    let options = Options {
        alignment: Bytes::new(args.alignment),
        capacity: args.capacity.map(Bytes::new),
        deadline: begun.checked_add(args.time_limit),
        nodes: u64::MAX,
        threads: args.threads.into(),
        ..Options::default()
    };
    let placement = place(&instance.requests, &options);
    let spent = begun.elapsed();
    if let Some(capacity) = args.capacity {
        check_capacity(&placement, capacity, spent).map_err(|error| error.within(&name))?;
    }
    if let Some(path) = &args.output {
        write_atomically(path, csv::with_offsets(&instance, &placement.offsets))?;
    }
    let report = if args.json {
        to_json(&instance, &placement, spent)
    } else {
        to_table(&instance, &placement, spent, args.output.as_deref())
    };
    print(out, report)
}

fn check_capacity(placement: &Placement, capacity: u64, spent: Duration) -> Result<()> {
    if placement.height.get() <= capacity {
        return Ok(());
    }
    let (height, bound) = (placement.height.get(), placement.lower_bound.get());
    let message = if placement.status == Status::Infeasible {
        format!("nothing fits into {capacity} bytes: proved, at least {bound} are needed")
    } else {
        let seconds = spent.as_secs_f64();
        format!("no placement in {capacity} bytes was found in {seconds:.1} s; none is excluded")
    };
    let hint = format!("--capacity {height} is attainable; without it, the least is searched for");
    Err(Error::infeasible(message).hint(hint))
}

fn status_name(status: Status) -> &'static str {
    match status {
        Status::Optimal => "optimal",
        Status::Gap => "gap",
        Status::TimedOut => "time_limit",
        Status::Infeasible => "infeasible",
    }
}

fn to_json(instance: &Instance, placement: &Placement, spent: Duration) -> String {
    let offsets = instance.ids.iter().zip(&placement.offsets);
    let offsets: serde_json::Map<_, _> = offsets
        .map(|(id, offset)| ((*id).to_owned(), offset.get().into()))
        .collect();
    let report = serde_json::json!({
        "height": placement.height.get(),
        "lower_bound": placement.lower_bound.get(),
        "status": status_name(placement.status),
        "solve_s": spent.as_secs_f64(),
        "offsets": offsets,
    });
    format!("{report}\n")
}

fn to_table(
    instance: &Instance,
    placement: &Placement,
    spent: Duration,
    written: Option<&Path>,
) -> String {
    let mut table = String::new();
    let rows = [
        ("requests", instance.requests.len().to_string()),
        (
            "lower bound",
            format!("{} bytes", placement.lower_bound.get()),
        ),
        ("height", format!("{} bytes", placement.height.get())),
        ("status", status_name(placement.status).to_owned()),
        ("solved in", format!("{:.3} s", spent.as_secs_f64())),
    ];
    for (what, value) in rows {
        // Writing to a string cannot fail.
        let _ = writeln!(table, "{what:<12} {value}");
    }
    if let Some(path) = written {
        let _ = writeln!(table, "{:<12} {}", "offsets in", path.display());
        return table;
    }
    let widest = instance
        .ids
        .iter()
        .map(|id| id.chars().count())
        .max()
        .unwrap_or(0)
        .max(2);
    let _ = writeln!(table, "\n{:<widest$} {:>20}", "id", "offset");
    for (id, offset) in instance.ids.iter().zip(&placement.offsets) {
        let _ = writeln!(table, "{id:<widest$} {:>20}", offset.get());
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Kind;

    struct Scratch(PathBuf);
    impl Scratch {
        fn new(name: &str) -> Self {
            let path = std::env::temp_dir().join(format!("ebbtide-{}-{name}", std::process::id()));
            std::fs::create_dir_all(&path).unwrap();
            Self(path)
        }
    }
    impl Drop for Scratch {
        fn drop(&mut self) {
            let _ = std::fs::remove_dir_all(&self.0);
        }
    }

    fn args(instance: PathBuf, capacity: Option<u64>) -> Args {
        let time_limit = Duration::from_secs(20);
        Args {
            instance,
            capacity,
            time_limit,
            alignment: 1,
            threads: 1,
            json: true,
            output: None,
        }
    }

    fn run_on(name: &str, text: &str, capacity: Option<u64>) -> Result<serde_json::Value> {
        let scratch = Scratch::new(name);
        let instance = scratch.0.join("in.csv");
        std::fs::write(&instance, text).unwrap();
        let mut out = Vec::new();
        run(&args(instance, capacity), &mut out)?;
        Ok(serde_json::from_slice(&out).unwrap())
    }

    const FIVE: &str = "id,lower,upper,size\na,0,3,4\nb,3,9,4\nc,0,9,4\nd,9,21,4\ne,0,21,4\n";

    #[test]
    fn five_requests_of_four_bytes_need_twelve() {
        let report = run_on("five", FIVE, None).unwrap();
        assert_eq!(report["height"], 12);
        assert_eq!(report["lower_bound"], 12);
        assert_eq!(report["status"], "optimal");
        assert_eq!(report["offsets"].as_object().unwrap().len(), 5);
    }

    #[test]
    fn a_capacity_below_the_bound_is_proved_infeasible() {
        let error = run_on("eleven", FIVE, Some(11)).unwrap_err();
        assert_eq!(error.kind, Kind::Infeasible);
        assert!(
            error.message.ends_with("proved, at least 12 are needed"),
            "{error}"
        );
        let error = run_on("three", FIVE, Some(3)).unwrap_err();
        assert_eq!(error.kind, Kind::Infeasible);
        assert!(error.message.contains("request a"), "{error}");
    }

    #[test]
    fn the_output_is_the_input_with_offsets() {
        let scratch = Scratch::new("output");
        let instance = scratch.0.join("in.csv");
        std::fs::write(&instance, FIVE).unwrap();
        let output = scratch.0.join("out.csv");
        let args = Args {
            output: Some(output.clone()),
            ..args(instance, Some(12))
        };
        run(&args, &mut Vec::new()).unwrap();
        let written = std::fs::read_to_string(&output).unwrap();
        assert!(
            written.starts_with("id,lower,upper,size,offset\na,0,3,4,"),
            "{written}"
        );
        assert_eq!(csv::parse(&written).unwrap().requests.len(), 5);
        assert_eq!(std::fs::read_dir(&scratch.0).unwrap().count(), 2);
    }

    #[test]
    fn a_million_lines_are_placed_and_a_mistake_in_the_last_is_named() {
        let mut text = String::new();
        for i in 0..1_000_000u64 {
            writeln!(text, "r{i},{i},{},{}", i + 1 + i % 7, 1 + i % 5).unwrap();
        }
        let instance = csv::parse(&text).unwrap();
        let placement = place(&instance.requests, &Options::default());
        let bound = placement.lower_bound.get();
        let height = placement.height.get();
        assert!(height <= bound + bound / 10, "{height} above {bound}");
        text += "r0,0,1,4\n";
        let error = csv::parse(&text).unwrap_err();
        assert_eq!(error.message, "line 1000001: id `r0` is on line 1 already");
    }

    #[test]
    fn a_published_instance_fits_into_its_capacity() {
        let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/minimalloc/A.csv");
        let mut out = Vec::new();
        run(&args(file, Some(1_048_576)), &mut out).unwrap();
        let report: serde_json::Value = serde_json::from_slice(&out).unwrap();
        assert_eq!(report["height"], 1_048_576);
        assert_eq!(report["status"], "optimal");
    }
}
