//! Standard output: what a command has to say.

use std::io::Write;

use crate::error::{Error, Result};

/// Writes what a command has to say.
///
/// # Errors
/// When it cannot be written.
pub fn print(out: &mut dyn Write, text: impl AsRef<[u8]>) -> Result<()> {
    out.write_all(text.as_ref()).map_err(unwritable)
}

/// Makes sure that all of it has been written.
///
/// # Errors
/// When it cannot be written.
pub fn flush(out: &mut dyn Write) -> Result<()> {
    out.flush().map_err(unwritable)
}

fn unwritable(cause: std::io::Error) -> Error {
    Error::bad_input(format!("cannot write to standard output: {cause}"))
}
