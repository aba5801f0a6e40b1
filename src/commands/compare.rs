//! `ebbtide compare`: strategies over lengths and methods, as tables, figures and one page.
//!
//! What is found goes to `comparison.json` in the output directory after every length and method;
//! all else there is drawn from that file. So a comparison that was killed goes on.

use std::collections::hash_map::DefaultHasher;
use std::hash::{Hash, Hasher};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use indicatif::ProgressBar;
use rayon::prelude::*;

use super::fit::{narrow, Row};
use super::{interrupts, progress_bar, setting};
use crate::cli::output::print;
use crate::cli::parse;
use crate::comparison::{self, Limits};
use crate::error::{Error, Result};
use crate::files::{check_writable, read_text, write_atomically};
use crate::format::comparison::{self as file, ComparisonFile, Focus, Longest, Settings};
use crate::format::run as run_file;
use crate::methods::Method;
use crate::planning::{self, Request};
use crate::report::comparison as report;
use ebbtide_solver::problem::Budget;
use ebbtide_solver::search::Strategy;
use ebbtide_solver::units::{Bytes, Tokens};

/// What `ebbtide compare` is asked.
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    /// Model, machine and limits.
    #[command(flatten)]
    pub setting: setting::Args,
    /// Lengths of a sequence: a range that doubles, such as 4k..1m, or a list, such as 8k,96k
    #[arg(
        long,
        value_name = "TOKENS,…",
        default_value = "4k..1m",
        value_delimiter = ','
    )]
    #[arg(value_parser = parse::lengths, allow_hyphen_values = true)]
    pub seq: Vec<Vec<u64>>,
    /// Training methods, separated by commas
    #[arg(
        long,
        value_name = "A,B",
        default_value = "adamw,sgd,lomo",
        value_delimiter = ','
    )]
    #[arg(value_parser = parse::method())]
    pub method: Vec<Method>,
    /// Strategies, separated by commas
    #[arg(long, value_name = "A,B", value_delimiter = ',', value_parser = parse::strategy())]
    #[arg(default_value = "keep,checkpoint,selective,swap,checkpoint-offload,protrain,memo,ilp")]
    pub strategy: Vec<Strategy>,
    /// Runs to show predicted against measured: files of `ebbtide run -o`, separated by commas
    #[arg(long, value_name = "R.json,…", value_delimiter = ',')]
    pub run: Vec<PathBuf>,
    /// When to stop searching for one plan, such as 500ms or 10s
    #[arg(long, value_name = "TIME", default_value = "1500ms", value_parser = parse::time)]
    #[arg(allow_hyphen_values = true)]
    pub time_limit: Duration,
    /// A plan this close to the bound is good enough, such as 1% or 0.01
    #[arg(long, value_name = "GAP", default_value = "1%", value_parser = parse::gap)]
    #[arg(allow_hyphen_values = true)]
    pub gap: f64,
    /// The directory for all files; made if it is not there
    #[arg(short, long, value_name = "DIR")]
    pub output: PathBuf,
    /// Print one JSON object: what is in comparison.json
    #[arg(long)]
    pub json: bool,
}

/// A comparison is never so large.
const LARGEST: Bytes = Bytes::mib(64);
/// Single plans are shown for a length up to this.
const FOCUS: u64 = 128 << 10;
/// To which part of them longest sequences are told apart.
const PARTS: u64 = 8;
/// Device memories of which steps are compared, in parts of the device's.
const BUDGETS: [(u64, u64); 5] = [(1, 4), (1, 2), (1, 1), (2, 1), (4, 1)];
/// How long `ilp` may look for a plan of one length that no simple strategy has one for.
const PATIENCE: Duration = Duration::from_millis(150);

/// Compares, writes and reports.
///
/// # Errors
/// `BadInput` for what cannot be read, planned or written and for an interruption; `Infeasible`
/// where nothing fits at any length, after all files have been written.
pub fn run(args: &Args, out: &mut dyn Write) -> Result<()> {
    let comparing = Comparing::new(args)?;
    let runs = read_runs(&args.run)?;
    let made = !args.output.exists();
    let done = write(args, &comparing, &runs, out);
    if made && done.is_err() {
        // Where nothing was found that is worth to go on from.
        let _ = std::fs::remove_dir(&args.output);
    }
    done
}

fn write(
    args: &Args,
    comparing: &Comparing<'_>,
    runs: &[run_file::Measured],
    out: &mut dyn Write,
) -> Result<()> {
    let begun = Instant::now();
    let stored = directory(&args.output)?.join("comparison.json");
    let file = go_on(&stored, comparing.fresh())?;
    let file = comparing.all(file, &stored)?;
    let shown = comparing.asked(&file);
    report::write(&shown, runs, &args.output)?;
    if args.json {
        print(out, file::write(&shown))?;
    } else {
        print(out, report::summary(&shown))?;
        let (path, seconds) = (args.output.display(), begun.elapsed().as_secs_f64());
        let cells: usize = shown.groups.iter().map(|group| group.cells.len()).sum();
        let remark = format!("note: {cells} plans in {seconds:.1} s; open {path}/index.html\n");
        print(out, remark)?;
    }
    let fits = |group: &file::Group| group.cells.iter().any(|cell| cell.fits.is_some());
    match shown.groups.iter().any(fits) {
        true => Ok(()),
        false => Err(nothing_fits(&shown)),
    }
}

fn nothing_fits(file: &ComparisonFile) -> Error {
    let shortest = file.groups.iter().min_by_key(|group| group.seq);
    let why = shortest.and_then(|group| group.cells.iter().find_map(|cell| cell.misses.clone()));
    let settings = &file.settings;
    let least = shortest.map_or(String::new(), |group| Tokens::new(group.seq).to_string());
    let message = format!(
        "no strategy fits {} on {} at any of the lengths, the shortest being {least}: {}",
        settings.model,
        settings.profile,
        why.unwrap_or_default()
    );
    Error::infeasible(message).hint(
        "`ebbtide fit` finds the longest sequence; other methods and more memory hold longer ones",
    )
}

fn read_runs(paths: &[PathBuf]) -> Result<Vec<run_file::Measured>> {
    let read = |path: &PathBuf| {
        let text = read_text(path, LARGEST, "a run")?;
        run_file::read(&text).map_err(|error| error.within(path.display()))
    };
    paths.iter().map(read).collect()
}

/// The directory, made if it is not there, into which files can be written.
fn directory(path: &Path) -> Result<&Path> {
    std::fs::create_dir_all(path).map_err(|cause| {
        Error::bad_input(format!("cannot make this directory: {cause}")).within(path.display())
    })?;
    check_writable(&path.join("comparison.json"))?;
    let page = path.join("index.html");
    let foreign = match page.is_dir() {
        true => Some(page),
        false if path.join("comparison.json").exists() => None,
        false => report::would_replace(path).map_err(|cause| {
            Error::bad_input(format!("cannot read this directory: {cause}")).within(path.display())
        })?,
    };
    match foreign {
        None => Ok(path),
        Some(file) => {
            let error =
                Error::bad_input("it is there, but is of no comparison: nothing is overwritten");
            Err(error.within(file.display()).hint("choose another -o"))
        }
    }
}

/// What has been found before, or nothing.
fn go_on(path: &Path, fresh: ComparisonFile) -> Result<ComparisonFile> {
    if !path.exists() {
        return Ok(fresh);
    }
    let text = read_text(path, LARGEST, "a comparison")?;
    let found = file::read(&text).map_err(|error| {
        let error = error.within(path.display());
        error.hint("delete it to begin again, or choose another -o")
    })?;
    match found.settings == fresh.settings {
        true => Ok(found),
        false => Err(Error::bad_input("a comparison of something else")
            .within(path.display())
            .hint("delete it, or choose another -o")),
    }
}

/// A comparison that is to be made.
struct Comparing<'a> {
    args: &'a Args,
    setting: setting::Setting,
    lengths: Vec<u64>,
    limits: Limits,
    stop: std::sync::Arc<AtomicBool>,
}

impl<'a> Comparing<'a> {
    fn new(args: &'a Args) -> Result<Self> {
        let setting = args.setting.read()?;
        let mut lengths = args.seq.concat();
        lengths.sort_unstable();
        lengths.dedup();
        let comparing = Self {
            args,
            setting,
            lengths,
            limits: Limits {
                time: args.time_limit,
                gap: args.gap,
            },
            stop: interrupts()?,
        };
        for &method in &args.method {
            let request = comparing.setting.request(method, comparing.lengths[0]);
            request.check()?;
        }
        for &seq in &comparing.lengths {
            comparing.setting.request(args.method[0], seq).check()?;
        }
        Ok(comparing)
    }

    /// Nothing found yet.
    fn fresh(&self) -> ComparisonFile {
        let setting::Setting {
            model,
            profile,
            dtype,
            budget,
            batch,
            accumulate,
            clip,
            arena_alone: _,
        } = &self.setting;
        let mut all = DefaultHasher::new();
        format!("{model:?}{profile:?}{clip}").hash(&mut all);
        let links = &profile.machine.links;
        let sources = profile.sources.iter();
        let settings = Settings {
            ebbtide_version: env!("CARGO_PKG_VERSION").into(),
            model: model.name.clone(),
            parameters: model.parameters(),
            max_positions: model.max_positions,
            profile: profile.name.clone(),
            device: profile.device.name.clone(),
            sources: sources
                .map(|(s, words)| ((*s).to_owned(), words.clone()))
                .collect(),
            fingerprint: format!("{:016x}", all.finish()),
            batch: *batch,
            accumulate: *accumulate,
            dtype: dtype.to_string(),
            device_bytes: budget.device.get(),
            overhead_bytes: profile.device.overhead.get(),
            host_bytes: budget.host.get(),
            link_bytes_per_s: [links.d2h.rate.get(), links.h2d.rate.get()],
            strategies: self.args.strategy.iter().map(|s| s.name().into()).collect(),
            gap: self.limits.gap,
            time_limit_ms: u64::try_from(self.limits.time.as_millis()).unwrap_or(u64::MAX),
        };
        ComparisonFile {
            schema: file::SCHEMA.into(),
            settings,
            groups: Vec::new(),
            focus: None,
            longest: Vec::new(),
            budgets: Vec::new(),
            timeline: None,
        }
    }

    /// Finds all that is not there yet, and stores it as it comes.
    fn all(&self, mut file: ComparisonFile, stored: &Path) -> Result<ComparisonFile> {
        let known = |method: Method, seq| file.group(method.name(), seq).is_some();
        // The longest take longest, so they come first.
        let lengths = self.lengths.iter().rev();
        let wanted = lengths.flat_map(|&seq| self.args.method.iter().map(move |&m| (m, seq)));
        let wanted: Vec<_> = wanted
            .filter(|&(method, seq)| !known(method, seq))
            .collect();
        // Other lengths may hold longer ones.
        file.longest
            .retain(|row| wanted.iter().all(|(method, _)| row.method != method.name()));
        let extra = self.args.method.len() + BUDGETS.len() + 1;
        let bar = progress_bar((wanted.len() + extra) as u64);
        let file = self.groups(file, &wanted, stored, &bar)?;
        self.single_plans(file, stored, &bar)
    }

    fn groups(
        &self,
        file: ComparisonFile,
        wanted: &[(Method, u64)],
        stored: &Path,
        bar: &ProgressBar,
    ) -> Result<ComparisonFile> {
        let done = Mutex::new(file);
        let one = |&(method, seq): &(Method, u64)| -> Result<()> {
            if self.stop.load(Ordering::Relaxed) {
                return Ok(());
            }
            let request = self.setting.request(method, seq);
            let what = format!("{method} at {}", Tokens::new(seq));
            let group = comparison::group(&request, &self.args.strategy, &self.limits);
            let group = group.map_err(|error| error.within(&what))?;
            bar.set_message(what);
            bar.inc(1);
            let mut file = done.lock().expect("no thread panics with it");
            file.groups.push(group);
            write_atomically(stored, file::write(&file))
        };
        wanted.iter().par_bridge().try_for_each(one)?;
        let mut file = done.into_inner().expect("no thread panics with it");
        self.go_on_later(stored, &file)?;
        let order = |method: &str| Method::ALL.iter().position(|m| m.name() == method);
        file.groups
            .sort_by_key(|group| (order(&group.method), group.seq));
        Ok(file)
    }

    /// The longest sequences, and what is shown of one length.
    fn single_plans(
        &self,
        mut file: ComparisonFile,
        stored: &Path,
        bar: &ProgressBar,
    ) -> Result<ComparisonFile> {
        let known = |rows: &[Longest], m: &Method| rows.iter().any(|row| row.method == m.name());
        let wanted = self.args.method.iter().copied();
        let wanted: Vec<Method> = wanted.filter(|m| !known(&file.longest, m)).collect();
        let longest = wanted.par_iter().with_max_len(1).map(|&method| {
            let rows = self.longest(&file, method);
            bar.inc(1);
            rows
        });
        let longest = longest.collect::<Result<Vec<_>>>()?;
        file.longest.extend(longest.into_iter().flatten());
        write_atomically(stored, file::write(&file))?;
        self.go_on_later(stored, &file)?;
        let focus = self.focus(&file);
        let shown = file.timeline.is_some() || focus.is_none();
        if focus == file.focus && shown {
            bar.finish_and_clear();
            return Ok(file);
        }
        file.focus = focus;
        if let Some(focus) = &file.focus {
            let method: Method = focus.method.parse()?;
            let request = self.setting.request(method, focus.seq);
            // To keep, to offload or to recompute, and the search: what mixes them is the search's.
            let mixed = [Strategy::ProTrain, Strategy::Memo];
            let strategies = self.args.strategy.iter().filter(|s| !mixed.contains(s));
            let strategies: Vec<Strategy> = strategies.copied().collect();
            let variants = planning::variants(&request)?;
            let points = BUDGETS.par_iter().with_max_len(1).map(|&(part, of)| {
                let budget = Budget {
                    device: request.budget.device.scaled(part, of),
                    ..request.budget
                };
                let limits = &self.limits;
                let points = comparison::under_budget(&variants, &strategies, budget, limits);
                bar.inc(1);
                points
            });
            file.budgets = points.collect::<Vec<_>>().concat();
            file.timeline = self.timeline(&request, &file)?;
        }
        write_atomically(stored, file::write(&file))?;
        bar.finish_and_clear();
        Ok(file)
    }

    /// The longest sequences of a method that fit, up to the longest that is compared: the grid
    /// says between which lengths to look.
    fn longest(&self, file: &ComparisonFile, method: Method) -> Result<Vec<Longest>> {
        let row = |&strategy: &Strategy| {
            let cells = file.of_method(method.name());
            let cells = cells.filter_map(|g| Some((g.seq, g.cell(strategy.name())?)));
            let mut row = Row {
                strategy,
                method,
                fits: 0,
                misses: None,
                parts: PARTS,
            };
            for (seq, cell) in cells {
                match &cell.misses {
                    None => row.fits = row.fits.max(seq),
                    Some(why) if row.misses.is_none() => row.misses = Some((seq, why.clone())),
                    Some(_) => {}
                }
            }
            row.misses = row.misses.filter(|(seq, _)| *seq > row.fits);
            row
        };
        let mut rows: Vec<Row> = self.args.strategy.iter().map(row).collect();
        let limit = self.lengths.last().copied().unwrap_or(0);
        narrow(&mut rows, limit, false, |seq, method, strategies| {
            planning::probe(&self.setting.request(method, seq), strategies, PATIENCE)
        })?;
        let longest = rows.iter().map(|row| Longest {
            strategy: row.strategy.name().into(),
            method: method.name().into(),
            max_tokens: row.fits,
            too_long: row.misses.as_ref().map(|(seq, _)| *seq),
            binds: row.binds(limit),
        });
        Ok(longest.collect())
    }

    /// The first method with which anything fits, at the longest length up to [`FOCUS`] that does,
    /// or else the shortest.
    fn focus(&self, file: &ComparisonFile) -> Option<Focus> {
        self.args.method.iter().find_map(|method| {
            let fits = |group: &&file::Group| {
                let cells = group.cells.iter();
                let mut cells = cells.filter(|cell| cell.tiled && cell.fits.is_some());
                self.lengths.contains(&group.seq) && cells.next().is_some()
            };
            let lengths = file.of_method(method.name()).filter(fits).map(|g| g.seq);
            let lengths: Vec<u64> = lengths.collect();
            let upto = lengths.iter().filter(|&&seq| seq <= FOCUS).max();
            Some(Focus {
                method: method.name().into(),
                seq: *upto.or(lengths.iter().min())?,
            })
        })
    }

    /// The fastest strategy's plan for a length, in time.
    fn timeline(
        &self,
        request: &Request<'_>,
        file: &ComparisonFile,
    ) -> Result<Option<file::Timeline>> {
        let Some(group) = file.group(request.method.name(), request.workload.seq) else {
            return Ok(None);
        };
        let step = |s: &&Strategy| group.fit(s.name()).map_or(u64::MAX, |fit| fit.step_ns);
        let Some(&fastest) = self.args.strategy.iter().min_by_key(step) else {
            return Ok(None);
        };
        let options = self.limits.options();
        let planned = planning::plan(request, fastest, &options)?;
        Ok(planned.ok().map(|planned| comparison::timeline(&planned)))
    }

    /// Only what was asked for now: more may be stored.
    fn asked(&self, file: &ComparisonFile) -> ComparisonFile {
        let methods: Vec<&str> = self.args.method.iter().map(|m| m.name()).collect();
        let mut shown = file.clone();
        let asked =
            |g: &file::Group| methods.contains(&g.method.as_str()) && self.lengths.contains(&g.seq);
        shown.groups.retain(asked);
        shown
            .longest
            .retain(|row| methods.contains(&row.method.as_str()));
        shown
    }

    /// Ends here where Ctrl-C was pressed.
    fn go_on_later(&self, stored: &Path, file: &ComparisonFile) -> Result<()> {
        if !self.stop.load(Ordering::Relaxed) {
            return Ok(());
        }
        let done = file.groups.len();
        let message = format!("interrupted with {done} lengths and methods done");
        Err(Error::bad_input(message).hint(format!(
            "the same command goes on from {}",
            stored.display()
        )))
    }
}
