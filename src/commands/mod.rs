//! One file per command: read files, call pure functions, write files.

pub mod arena;
pub mod chain;
pub mod check;
pub mod fit;
pub mod list;
pub mod plan;
pub mod run;
pub mod setting;
pub mod simulate;

use crate::error::{Error, Result};
use crate::format::schedule::{self, ScheduleFile};
use std::path::{Path, PathBuf};

/// Writes beside the file first, so that it is whole or not there.
fn write_atomically(path: &Path, content: impl AsRef<[u8]>) -> Result<()> {
    let beside = beside(path);
    let written = std::fs::write(&beside, content).and_then(|()| std::fs::rename(&beside, path));
    written.map_err(|cause| {
        // The first failure is the one to report.
        let _ = std::fs::remove_file(&beside);
        Error::bad_input(format!("cannot write: {cause}")).within(path.display())
    })
}

/// Refuses a place where [`write_atomically`] would fail, as far as can be told beforehand.
fn check_writable(path: &Path) -> Result<()> {
    let wrong = |what: String| Err(Error::bad_input(what).within(path.display()));
    if path.is_dir() {
        return wrong("cannot write: it is a directory".into());
    }
    let beside = beside(path);
    let made = std::fs::File::create(&beside);
    let _ = std::fs::remove_file(&beside);
    match made {
        Ok(_) => Ok(()),
        Err(cause) => wrong(format!("cannot write: {cause}")),
    }
}

/// The name of a file until it is whole.
fn beside(path: &Path) -> PathBuf {
    let mut beside = path.as_os_str().to_owned();
    beside.push(format!(".{}.tmp", std::process::id()));
    PathBuf::from(beside)
}

/// The schedule in a file.
fn read_schedule(path: &Path) -> Result<ScheduleFile> {
    let text = std::fs::read_to_string(path)
        .map_err(|cause| Error::bad_input(format!("cannot read: {cause}")));
    text.and_then(|text| schedule::read(&text))
        .map_err(|error| error.within(path.display()))
}
