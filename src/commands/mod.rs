//! One file per command: read files, call pure functions, write files.

pub mod arena;
pub mod chain;
pub mod check;
pub mod fit;
pub mod list;
pub mod plan;
pub mod profile;
pub mod run;
pub mod setting;
pub mod simulate;

use crate::error::{Error, Result};
use crate::format::schedule::{self, ScheduleFile};
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;
use std::sync::Arc;

/// Writes beside the file first, so that it is whole or not there.
fn write_atomically(path: &Path, content: impl AsRef<[u8]>) -> Result<()> {
    let mut beside = path.as_os_str().to_owned();
    beside.push(format!(".{}.tmp", std::process::id()));
    let beside = PathBuf::from(beside);
    let written = std::fs::write(&beside, content).and_then(|()| std::fs::rename(&beside, path));
    written.map_err(|cause| {
        // The first failure is the one to report.
        let _ = std::fs::remove_file(&beside);
        Error::bad_input(format!("cannot write: {cause}")).within(path.display())
    })
}

/// The schedule in a file.
fn read_schedule(path: &Path) -> Result<ScheduleFile> {
    let text = std::fs::read_to_string(path)
        .map_err(|cause| Error::bad_input(format!("cannot read: {cause}")));
    text.and_then(|text| schedule::read(&text))
        .map_err(|error| error.within(path.display()))
}

/// A flag that Ctrl-C sets; a second Ctrl-C ends the process at once. A file that grows beyond its
/// limit is an error to report, not a signal to die of.
fn interrupts() -> Result<Arc<AtomicBool>> {
    let stop = Arc::new(AtomicBool::new(false));
    #[cfg(unix)]
    {
        use signal_hook::consts::{SIGINT, SIGTERM, SIGXFSZ};
        use signal_hook::flag::{register, register_conditional_default};
        let registered = [SIGINT, SIGTERM].into_iter().try_for_each(|signal| {
            // In this order: the first signal only sets the flag.
            register_conditional_default(signal, Arc::clone(&stop))?;
            register(signal, Arc::clone(&stop)).map(|_| ())
        });
        let ignored = Arc::new(AtomicBool::new(false));
        let registered = registered.and(register(SIGXFSZ, ignored).map(|_| ()));
        registered.map_err(|cause| Error::bad_input(format!("cannot handle signals: {cause}")))?;
    }
    Ok(stop)
}
