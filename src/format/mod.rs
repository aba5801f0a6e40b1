//! The JSON on disk. Only types in here are serialised; each file converts to and from plain
//! values, and says in `schema` which version of which format it is.
//!
//! Reading refuses rather than guesses: an unknown field, another version or a number out of
//! range ends with one error that names the place in the file.

pub mod chain;
pub mod comparison;
pub mod measured;
pub mod number;
pub mod pickle;
pub mod profile;
pub mod run;
pub mod schedule;
pub mod snapshot;
pub mod trace;
pub mod training;

use crate::error::{Error, Result};
use serde::de::DeserializeOwned;
use serde::Deserialize;

/// The value in `text`, which must say that it is of `schema`.
///
/// # Errors
/// Text that is no JSON or ends early, another schema, or a field that is missing, unknown or out
/// of range, named by its path.
pub fn read_json<T: DeserializeOwned>(text: &str, schema: &str) -> Result<T> {
    /// The version, read before everything else so that another version is told as such.
    #[derive(Deserialize)]
    struct Header {
        schema: Option<String>,
    }
    let refuse = |error: serde_path_to_error::Error<serde_json::Error>| {
        let path = error.path().to_string();
        // Without a place where the text ends too early.
        let place = if path == "." || path == "?" {
            String::new()
        } else {
            format!("{path}: ")
        };
        if error.inner().is_eof() {
            return Error::bad_input(cut_off(error.inner()));
        }
        Error::bad_input(format!("{place}{}", in_words(error.inner())))
    };
    let header: Header = decode(text).map_err(refuse)?;
    match header.schema.as_deref() {
        Some(found) if found == schema => decode(text).map_err(refuse),
        Some(found) => Err(Error::bad_input(format!("schema is `{found}`"))
            .hint(format!("this version reads `{schema}`"))),
        None => Err(
            Error::bad_input("the field `schema` is missing").hint(format!(
                "a file of this kind begins with `\"schema\": \"{schema}\"`"
            )),
        ),
    }
}

/// What to say of a JSON text that ends before it is complete.
fn cut_off(error: &serde_json::Error) -> String {
    format!("cut off at line {}", error.line())
}

/// What serde says of a value, without this program's or this language's names of types.
fn in_words(error: &serde_json::Error) -> String {
    const WORDS: [(&str, &str); 5] = [
        ("expected u64", "expected a whole number"),
        ("expected u32", "expected a whole number"),
        ("expected f64", "expected a number"),
        ("expected a sequence", "expected a list"),
        ("expected a map", "expected an object"),
    ];
    let said = WORDS.iter().fold(error.to_string(), |said, (name, words)| {
        said.replace(name, words)
    });
    let Some((before, after)) = said.split_once("expected struct ") else {
        return said;
    };
    let name = after.find(|c: char| !c.is_alphanumeric());
    format!(
        "{before}expected an object{}",
        name.map_or("", |end| &after[end..])
    )
}

/// Decodes all of `text`; what follows the value is an error too.
fn decode<T: DeserializeOwned>(
    text: &str,
) -> std::result::Result<T, serde_path_to_error::Error<serde_json::Error>> {
    let mut reader = serde_json::Deserializer::from_str(text);
    let mut track = serde_path_to_error::Track::new();
    let value = T::deserialize(serde_path_to_error::Deserializer::new(
        &mut reader,
        &mut track,
    ))
    .map_err(|error| serde_path_to_error::Error::new(track.path(), error))?;
    let root = serde_path_to_error::Track::new().path();
    reader
        .end()
        .map_err(|error| serde_path_to_error::Error::new(root, error))?;
    Ok(value)
}
