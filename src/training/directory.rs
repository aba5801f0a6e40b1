//! Directories that are whole or not there: everything is written beside the final name, then
//! renamed.

use std::fs;
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};

/// A directory that is being written.
#[derive(Debug)]
pub struct Unfinished {
    beside: PathBuf,
    path: PathBuf,
    finished: bool,
}

/// Refuses a place where a directory cannot be put.
fn check_free(path: &Path) -> Result<()> {
    let wrong = |what: &str| Error::bad_input(what).within(path.display());
    if path.is_dir() {
        let taken = fs::read_dir(path).map_or(true, |mut entries| entries.next().is_some());
        return match taken {
            true => Err(wrong("the directory is not empty")
                .hint("name one that is not there: nothing is overwritten")),
            false => Ok(()),
        };
    }
    if path.exists() {
        return Err(wrong("is a file, not a directory"));
    }
    match parent(path).is_dir() {
        true => Ok(()),
        false => Err(wrong("the directory around it does not exist")),
    }
}

fn parent(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

impl Unfinished {
    /// Begins a directory.
    ///
    /// # Errors
    /// What is there and not an empty directory; a parent that is no directory, or in which nothing
    /// can be made.
    pub fn begin(path: &Path) -> Result<Self> {
        check_free(path)?;
        let mut beside = path.as_os_str().to_owned();
        beside.push(format!(".{}.tmp", std::process::id()));
        let beside = PathBuf::from(beside);
        fs::create_dir(&beside).map_err(|cause| cannot_write(path, &cause))?;
        Ok(Self {
            beside,
            path: path.to_owned(),
            finished: false,
        })
    }
    /// Where a file of it is written.
    pub fn file(&self, name: &str) -> PathBuf {
        self.beside.join(name)
    }
    /// What to say when one of its files cannot be written.
    pub fn failure(&self, cause: &std::io::Error) -> Error {
        cannot_write(&self.path, cause)
    }
    /// Gives it its final name.
    ///
    /// # Errors
    /// When it cannot be renamed.
    pub fn finish(mut self) -> Result<()> {
        let renamed = fs::rename(&self.beside, &self.path);
        renamed.map_err(|cause| cannot_write(&self.path, &cause))?;
        self.finished = true;
        Ok(())
    }
}

impl Drop for Unfinished {
    fn drop(&mut self) {
        if !self.finished {
            // The failure that led here is the one to report.
            let _ = fs::remove_dir_all(&self.beside);
        }
    }
}

fn cannot_write(path: &Path, cause: &std::io::Error) -> Error {
    Error::bad_input(format!("cannot write: {cause}"))
        .within(path.display())
        .hint("nothing was left under this name")
}
