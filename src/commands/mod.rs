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
