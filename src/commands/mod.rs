//! One file per command: read files, call pure functions, write files.

pub mod arena;
pub mod chain;
pub mod check;
pub mod compare;
pub mod export;
pub mod fit;
pub mod list;
pub mod plan;
pub mod profile;
pub mod run;
pub mod setting;
pub mod simulate;

use crate::error::{Error, Result};
use crate::files::read_text;
use crate::format::schedule::{self, ScheduleFile};
use ebbtide_solver::units::Bytes;
use indicatif::{ProgressBar, ProgressStyle};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::Arc;
use std::time::Duration;

/// A schedule of 100 blocks is some ten MiB; more than this is another file.
const LARGEST_SCHEDULE: Bytes = Bytes::gib(1);

/// The schedule in a file.
fn read_schedule(path: &Path) -> Result<ScheduleFile> {
    let text = read_text(path, LARGEST_SCHEDULE, "a schedule")?;
    schedule::read(&text).map_err(|error| error.within(path.display()))
}

/// The same of one that the checker does not refuse.
fn read_sound_schedule(path: &Path) -> Result<ScheduleFile> {
    let file = read_schedule(path)?;
    let violations = ebbtide_solver::check::check(&file.schedule);
    let Some(first) = violations.first() else {
        return Ok(file);
    };
    let path = path.display();
    Err(Error::refused(format!("the checker refuses it: {first}"))
        .hint(format!("`ebbtide check {path}` lists all violations"))
        .within(path))
}

/// A flag that Ctrl-C sets; another one, some time later, ends the process at once (some
/// senders signal a process and its group).
fn interrupts() -> Result<Arc<AtomicBool>> {
    let stop = Arc::new(AtomicBool::new(false));
    #[cfg(unix)]
    {
        use signal_hook::consts::{SIGINT, SIGTERM};
        use signal_hook::flag::{register, register_conditional_default};
        let impatient = Arc::new(AtomicBool::new(false));
        let registered = [SIGINT, SIGTERM].into_iter().try_for_each(|signal| {
            register_conditional_default(signal, Arc::clone(&impatient))?;
            register(signal, Arc::clone(&stop)).map(|_| ())
        });
        registered.map_err(|cause| Error::bad_input(format!("cannot handle signals: {cause}")))?;
        let stopping = Arc::clone(&stop);
        std::thread::spawn(move || {
            while !stopping.load(Ordering::Relaxed) {
                std::thread::sleep(Duration::from_millis(100));
            }
            std::thread::sleep(Duration::from_millis(200));
            impatient.store(true, Ordering::Relaxed);
        });
    }
    Ok(stop)
}

/// How many of so many stages are done, what is going on, and for how long.
fn progress_bar(stages: u64) -> ProgressBar {
    let bar = ProgressBar::new(stages);
    let template = "{bar:24} {pos}/{len}  {msg}  {elapsed}";
    bar.set_style(ProgressStyle::with_template(template).expect("a constant"));
    bar
}
