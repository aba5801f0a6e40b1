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

use crate::error::Result;
use crate::files::read_text;
use crate::format::schedule::{self, ScheduleFile};
use ebbtide_solver::units::Bytes;
use std::path::Path;

/// A schedule of 100 blocks is some ten MiB; more than this is another file.
const LARGEST_SCHEDULE: Bytes = Bytes::gib(1);

/// The schedule in a file.
fn read_schedule(path: &Path) -> Result<ScheduleFile> {
    let text = read_text(path, LARGEST_SCHEDULE, "a schedule")?;
    schedule::read(&text).map_err(|error| error.within(path.display()))
}
