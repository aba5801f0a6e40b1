//! Where a model comes from: a file, a directory, or a name that is built into the binary.

use std::fs;
use std::path::Path;

use ebbtide_solver::units::Bytes;

use super::config::ModelConfig;
use crate::error::{Error, Result};
use crate::files::read_text;

/// A config.json is a few KiB; more than this is another file.
const LARGEST: Bytes = Bytes::mib(16);

/// Declares the built-in models from `profiles/models`.
macro_rules! shipped_models {
    ($($name:literal),* $(,)?) => {
        &[$(($name, include_str!(concat!("../../profiles/models/", $name, ".json")))),*]
    };
}

const SHIPPED: &[(&str, &str)] = shipped_models![
    "gemma-2b",
    "gemma-7b",
    "gpt2",
    "gpt2-xl",
    "llama-2-13b",
    "llama-2-7b",
    "llama-3.1-70b",
    "llama-3.1-8b",
    "llama-3.2-1b",
    "llama-3.2-3b",
    "mistral-7b-v0.1",
    "mistral-7b-v0.3",
    "qwen2.5-32b",
    "qwen2.5-7b",
    "qwen3-8b",
    "tiny",
    "tiny-llama-10m",
];

/// The names that [`load`] knows without a file, sorted.
pub fn shipped() -> impl Iterator<Item = &'static str> {
    SHIPPED.iter().map(|&(name, _)| name)
}

/// The model that `spec` names: a path to a `config.json`, a directory that holds one, or a name
/// in `profiles/models`. What exists on disk comes before a name.
///
/// # Errors
/// A name that is neither, a file that cannot be read, and every error of [`ModelConfig::read`],
/// said of the file.
pub fn load(spec: &str) -> Result<ModelConfig> {
    let path = Path::new(spec);
    if path.exists() && !path.is_dir() {
        return read_file(path);
    }
    let inside = path.join("config.json");
    if !spec.is_empty() && inside.is_file() {
        return read_file(&inside);
    }
    if let Some((name, text)) = SHIPPED.iter().find(|(name, _)| *name == spec) {
        return ModelConfig::read(*name, text).map_err(|error| error.within(name));
    }
    if path.is_dir() {
        return Err(
            Error::bad_input(format!("{spec}: the directory holds no config.json"))
                .hint("name a directory as saved by save_pretrained"),
        );
    }
    Err(unknown(spec))
}

fn read_file(path: &Path) -> Result<ModelConfig> {
    let text = read_text(path, LARGEST, "a config.json")?;
    ModelConfig::read(name_of(path), &text).map_err(|error| error.within(path.display()))
}

/// What to call the model in a file: its directory for a `config.json`, else the file.
fn name_of(path: &Path) -> String {
    let named = match path.file_name() {
        Some(name) if name == "config.json" => {
            let full = fs::canonicalize(path).unwrap_or_else(|_| path.into());
            full.parent()
                .and_then(|parent| parent.file_name())
                .map(|name| name.to_owned())
        }
        _ => path.file_stem().map(|name| name.to_owned()),
    };
    named.map_or_else(
        || "model".into(),
        |name| name.to_string_lossy().into_owned(),
    )
}

fn unknown(spec: &str) -> Error {
    let asked = spec.rsplit('/').next().unwrap_or(spec).to_lowercase();
    let near = shipped()
        .min_by_key(|name| distance(name, &asked))
        .filter(|name| distance(name, &asked) <= asked.len().div_ceil(4));
    let names: Vec<&str> = shipped().collect();
    let known = format!("shipped models are {}", names.join(", "));
    let hint = near.map_or(known.clone(), |near| {
        format!("did you mean {near}? {known}")
    });
    Error::bad_input(format!(
        "\"{spec}\" is no file, no directory and no shipped model"
    ))
    .hint(hint)
}

/// How many insertions, deletions and replacements lead from `a` to `b` (Levenshtein).
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.iter().enumerate() {
            let replaced = diagonal + usize::from(x != *y);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[b.len()]
}
