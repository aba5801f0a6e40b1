//! Typed look-ups in a JSON object, with errors that name the field, its value and what would do.
//!
//! A key that is `null` counts as missing, as it mostly does in HF; [`Fields::is_null`] tells the
//! two apart where a family does.

use std::fmt;
use std::ops::RangeInclusive;

use serde_json::error::Category;
use serde_json::{Map, Value};

use crate::error::{Error, Result};

/// The longest value that an error prints in full.
const SHOWN_CHARS: usize = 60;

/// A JSON object and where it stands in its file.
#[derive(Clone, Copy)]
pub(super) struct Fields<'a> {
    map: &'a Map<String, Value>,
    /// The key that holds the object; empty for the whole file.
    path: &'a str,
}

/// The JSON value of a whole file.
///
/// # Errors
/// Text that is not JSON, ends early or is nested too deeply.
pub(super) fn parse(text: &str) -> Result<Value> {
    serde_json::from_str(text).map_err(|cause| match cause.classify() {
        Category::Eof => Error::bad_input(format!("the JSON ends early: {cause}"))
            .hint("the file was cut off; fetch it again"),
        _ if cause.to_string().starts_with("recursion limit") => Error::bad_input(format!(
            "the JSON is nested more than 127 levels deep: {cause}"
        ))
        .hint("a model's config.json has a few levels at most"),
        _ => Error::bad_input(format!("not JSON: {cause}"))
            .hint("NaN, Infinity, comments and trailing commas are not JSON"),
    })
}

impl<'a> Fields<'a> {
    /// The fields of an object; `path` is its key.
    pub(super) fn of(value: &'a Value, path: &'a str) -> Result<Self> {
        match value {
            Value::Object(map) => Ok(Self { map, path }),
            other => {
                let what = if path.is_empty() { "the file" } else { path };
                Err(
                    Error::bad_input(format!("{what} is {}, not an object", shown(other)))
                        .hint("an object looks like {\"model_type\": \"llama\", ...}"),
                )
            }
        }
    }

    /// Every key that is stated, with its value.
    pub(super) fn stated(&self) -> impl Iterator<Item = (&'a String, &'a Value)> {
        self.map.iter().filter(|(_, value)| !value.is_null())
    }

    /// The value of a key that is stated.
    pub(super) fn get(&self, key: &str) -> Option<&'a Value> {
        self.map.get(key).filter(|value| !value.is_null())
    }

    /// Whether the key is there and says `null`.
    pub(super) fn is_null(&self, key: &str) -> bool {
        self.map.get(key).is_some_and(Value::is_null)
    }

    /// The first of these keys that is stated, else the first.
    pub(super) fn either(&self, keys: &[&'a str]) -> &'a str {
        keys.iter()
            .copied()
            .find(|key| self.get(key).is_some())
            .unwrap_or(keys[0])
    }

    /// A whole number in `range`.
    pub(super) fn whole(&self, key: &str, range: RangeInclusive<u64>) -> Result<Option<u64>> {
        self.typed(
            key,
            || format!("a whole number from {} to {}", range.start(), range.end()),
            |v| v.as_u64().filter(|number| range.contains(number)),
        )
    }

    /// A whole number in `range` that must be stated.
    pub(super) fn need_whole(&self, key: &str, range: RangeInclusive<u64>) -> Result<u64> {
        self.need(key, self.whole(key, range)?)
    }

    /// A number of at least `least`.
    pub(super) fn number(&self, key: &str, least: f64) -> Result<Option<f64>> {
        self.typed(
            key,
            || format!("a number of at least {least}"),
            |value| {
                value
                    .as_f64()
                    .filter(|number| number.is_finite() && *number >= least)
            },
        )
    }

    /// A number above zero.
    pub(super) fn positive(&self, key: &str) -> Result<Option<f64>> {
        self.typed(
            key,
            || "a number above 0".into(),
            |value| {
                value
                    .as_f64()
                    .filter(|number| number.is_finite() && *number > 0.0)
            },
        )
    }

    /// `true` or `false`.
    pub(super) fn flag(&self, key: &str) -> Result<Option<bool>> {
        self.typed(key, || "true or false".into(), Value::as_bool)
    }

    /// A string.
    pub(super) fn text(&self, key: &str) -> Result<Option<&'a str>> {
        self.typed(key, || "a string".into(), Value::as_str)
    }

    /// A list of strings.
    pub(super) fn texts(&self, key: &str) -> Result<Option<Vec<&'a str>>> {
        self.typed(
            key,
            || "a list of strings".into(),
            |value| value.as_array()?.iter().map(Value::as_str).collect(),
        )
    }

    /// The fields of an object inside this one.
    pub(super) fn object(&self, key: &'a str) -> Result<Option<Fields<'a>>> {
        self.get(key)
            .map(|value| Fields::of(value, key))
            .transpose()
    }

    /// An error about a key: `key is value, not what`.
    pub(super) fn wrong(&self, key: &str, what: impl fmt::Display) -> Error {
        let value = self.get(key).map_or("missing".into(), shown);
        Error::bad_input(format!("{} is {value}, not {what}", self.name(key)))
    }

    fn typed<T>(
        &self,
        key: &str,
        what: impl Fn() -> String,
        convert: impl Fn(&'a Value) -> Option<T>,
    ) -> Result<Option<T>> {
        self.get(key)
            .map(|v| convert(v).ok_or_else(|| self.wrong(key, what())))
            .transpose()
    }

    /// The value of a key that must be stated.
    pub(super) fn need<T>(&self, key: &str, value: Option<T>) -> Result<T> {
        value.ok_or_else(|| {
            Error::bad_input(format!("{} is missing", self.name(key)))
                .hint("sizes are never guessed; copy it from the model's own config.json")
        })
    }

    fn name(&self, key: &str) -> String {
        if self.path.is_empty() {
            key.into()
        } else {
            format!("{}.{key}", self.path)
        }
    }
}

/// A value as an error prints it.
pub(super) fn shown(value: &Value) -> String {
    let text = value.to_string();
    match text.char_indices().nth(SHOWN_CHARS) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text,
    }
}
