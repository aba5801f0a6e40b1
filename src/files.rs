//! Whole files: a text with a limit on the way in, everything or nothing on the way out.
//!
//! Deliberately ignorant of what is in them; errors name the file.

use crate::error::{Error, Result};
use ebbtide_solver::units::Bytes;
use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};
#[cfg(unix)]
use std::sync::{atomic::AtomicBool, Arc};

/// The text of a file that is no longer than `most`, which `what` (`a profile`) never is. A byte
/// order mark, which editors on Windows leave, is not part of it.
///
/// # Errors
/// Bad input: a file that cannot be read, is empty, is longer or is not UTF-8, said of the file.
pub fn read_text(path: &Path, most: Bytes, what: &str) -> Result<String> {
    let refuse = |why: String| Err(Error::bad_input(why).within(path.display()));
    let bytes = read_bytes(path, most, what).map_err(|error| error.within(path.display()))?;
    let text = match String::from_utf8(bytes) {
        Ok(text) => text,
        Err(error) => {
            let at = error.utf8_error().valid_up_to();
            return refuse(format!("not a text: byte {at} is not UTF-8"));
        }
    };
    match text.strip_prefix('\u{feff}').unwrap_or(&text) {
        "" => refuse(format!("the file is empty, not {what}")),
        rest if rest.len() < text.len() => Ok(rest.to_owned()),
        _ => Ok(text),
    }
}

/// The bytes of a file that is no longer than `most`, which `what` never is.
///
/// # Errors
/// Bad input: a file that cannot be read or is longer.
pub fn read_bytes(path: &Path, most: Bytes, what: &str) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let read = File::open(path).and_then(|f| f.take(most.get() + 1).read_to_end(&mut bytes));
    read.map_err(|cause| Error::bad_input(format!("cannot read: {cause}")))?;
    match bytes.len() as u64 > most.get() {
        false => Ok(bytes),
        true => Err(Error::bad_input(format!(
            "more than {most}, too long for {what}"
        ))),
    }
}

/// Refuses what [`write_atomically`] could only refuse when all the work is done.
///
/// # Errors
/// Bad input: a directory, or a file in a directory that is not there or takes no files.
pub fn check_writable(path: &Path) -> Result<()> {
    if path.is_dir() {
        return Err(refused(path, "it is a directory"));
    }
    match path.parent() {
        Some(parent) if parent != Path::new("") && !parent.is_dir() => {
            return Err(refused(path, format!("no directory {}", parent.display())));
        }
        _ if is_special(path) => return Ok(()),
        _ => {}
    }
    let beside = beside(&resolved(path));
    let made = File::create(&beside);
    let _ = fs::remove_file(&beside);
    made.map(drop).map_err(|cause| refused(path, cause))
}

/// Refuses two names for one file among `(what, path)`, where one would overwrite the other, and
/// what is a file already in a directory that was named before.
///
/// # Errors
/// Bad input that names both.
pub fn check_distinct(files: &[(&str, &Path)]) -> Result<()> {
    for (i, (what, path)) in files.iter().enumerate() {
        let place = resolved(path);
        for (other, named) in &files[..i] {
            let named = resolved(named);
            let message = if named == place {
                format!("{other} and {what} are the same file")
            } else if place.is_file() && named.is_dir() && place.parent() == Some(&named) {
                format!("{what} is a file of {other}")
            } else {
                continue;
            };
            return Err(Error::bad_input(message).within(path.display()));
        }
    }
    Ok(())
}

/// Writes beside the file first, so that it is whole or not there. A link stays a link. A device
/// or a pipe (`/dev/stdout`) holds nothing that could be half written: it is written to, for
/// putting a file in its place would destroy it.
///
/// # Errors
/// Bad input: what cannot be written, said of the file.
pub fn write_atomically(path: &Path, content: impl AsRef<[u8]>) -> Result<()> {
    if is_special(path) {
        return fs::write(path, content).map_err(|cause| refused(path, cause));
    }
    let target = resolved(path);
    let beside = beside(&target);
    let written = fs::write(&beside, content).and_then(|()| fs::rename(&beside, &target));
    written.map_err(|cause| {
        // The first failure is the one to report.
        let _ = fs::remove_file(&beside);
        refused(path, cause)
    })
}

/// Makes a file that grows beyond its limit (`ulimit -f`) an error to report, not a signal to die
/// of.
pub fn report_limits() {
    #[cfg(unix)]
    {
        let ignored = Arc::new(AtomicBool::new(false));
        // Where it cannot be, the process dies as it would have.
        let _ = signal_hook::flag::register(signal_hook::consts::SIGXFSZ, ignored);
    }
}

fn refused(path: &Path, why: impl std::fmt::Display) -> Error {
    Error::bad_input(format!("cannot write: {why}")).within(path.display())
}

/// Whether this is neither a file nor a directory, but there.
fn is_special(path: &Path) -> bool {
    fs::metadata(path).is_ok_and(|there| !there.is_file() && !there.is_dir())
}

/// The name of a file until it is whole.
fn beside(target: &Path) -> PathBuf {
    let mut beside = target.as_os_str().to_owned();
    beside.push(format!(".{}.tmp", std::process::id()));
    PathBuf::from(beside)
}

/// The file that a path leads to, through links; a file that is not there yet by its directory.
fn resolved(path: &Path) -> PathBuf {
    let through = |path: &Path| fs::canonicalize(path).ok();
    let by_directory = || {
        let parent = match path.parent()? {
            empty if empty == Path::new("") => Path::new("."),
            parent => parent,
        };
        Some(through(parent)?.join(path.file_name()?))
    };
    through(path)
        .or_else(by_directory)
        .unwrap_or_else(|| path.to_owned())
}
