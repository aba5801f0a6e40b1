//! HF checkpoints: `model.safetensors`, in one file or sharded with an index, read and written.
//!
//! In: a directory and the model that it should hold. Out: the f32 values of one [`Place`] at a
//! time, so that a model larger than memory can be read through. Headers and sizes of all files are
//! checked when a checkpoint is opened, before anything is computed with it.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{BufWriter, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use safetensors::tensor::{Dtype as Stored, Metadata, TensorInfo};
use serde_json::Value;

use super::directory::Unfinished;
use super::elements::{check_finite, decode, encode, stored, DIVERGED};
use super::{names, places, Place};
use crate::error::{Error, Result};
use crate::model::{Family, ModelConfig};
use crate::profile::Dtype;

/// The usual file.
const SINGLE: &str = "model.safetensors";
/// What lists the files of a sharded checkpoint.
const INDEX: &str = "model.safetensors.index.json";
/// Headers are a few MiB at most; safetensors itself stops at 100 MB.
const MAX_HEADER: u64 = 100_000_000;

/// One tensor in one file.
#[derive(Clone, Debug)]
struct Entry {
    file: usize,
    offset: u64,
    info: TensorInfo,
}

/// A checkpoint whose headers have been read.
#[derive(Debug)]
pub struct Checkpoint {
    model: ModelConfig,
    paths: Vec<PathBuf>,
    entries: BTreeMap<String, Entry>,
}

impl Checkpoint {
    /// Reads the headers in a directory, or of one file, and makes sure that every weight of the
    /// model is there in its shape.
    ///
    /// # Errors
    /// Files that are missing, truncated or not safetensors; weights that are missing, of another
    /// shape or of a type that is not f32, f16 or bf16.
    pub fn open(path: &Path, model: &ModelConfig) -> Result<Self> {
        let paths = files(path)?;
        let mut entries = BTreeMap::new();
        for (file, path) in paths.iter().enumerate() {
            for (name, offset, info) in header(path).map_err(|e| e.within(path.display()))? {
                entries.insert(name, Entry { file, offset, info });
            }
        }
        let checkpoint = Self {
            model: model.clone(),
            paths,
            entries,
        };
        for place in places(model) {
            checkpoint
                .check(place)
                .map_err(|error| error.within(path.display()))?;
        }
        Ok(checkpoint)
    }

    /// The tensors of the files that are no weight of the model.
    pub fn unused(&self) -> Vec<&str> {
        let mut used = BTreeSet::new();
        for place in places(&self.model) {
            for stored in names::stored(&self.model, place) {
                used.extend(self.find(&stored.name).map(|(name, _)| name.to_owned()));
            }
        }
        let unused = self.entries.keys().filter(|name| !used.contains(*name));
        unused.map(String::as_str).collect()
    }

    /// A tensor by its name, or by what a bare model calls it.
    fn find(&self, name: &str) -> Option<(&str, &Entry)> {
        let bare = name.strip_prefix(names::prefix(self.model.family));
        let found = [Some(name), bare].into_iter().flatten();
        found
            .filter_map(|name| self.entries.get_key_value(name))
            .map(|(name, entry)| (name.as_str(), entry))
            .next()
    }

    fn check(&self, place: Place) -> Result<()> {
        for stored in names::stored(&self.model, place) {
            let Some((name, entry)) = self.find(&stored.name) else {
                return Err(
                    Error::bad_input(format!("the weight {} is missing", stored.name))
                        .hint(format!("the files hold {}", self.some_names())),
                );
            };
            let shape = shape(place, &stored);
            if entry.info.shape != shape {
                return Err(Error::bad_input(format!(
                    "{name} has shape {:?}, the model asks for {shape:?}",
                    entry.info.shape
                )));
            }
            if !matches!(entry.info.dtype, Stored::F32 | Stored::F16 | Stored::BF16) {
                return Err(Error::bad_input(format!(
                    "{name} is of type {}, not F32, F16 or BF16",
                    entry.info.dtype
                )));
            }
        }
        Ok(())
    }

    fn some_names(&self) -> String {
        const SHOWN: usize = 3;
        let shown: Vec<&str> = self
            .entries
            .keys()
            .take(SHOWN)
            .map(String::as_str)
            .collect();
        match self.entries.len() {
            n if n > SHOWN => format!("{}, … ({n} in all)", shown.join(", ")),
            0 => "no tensors".into(),
            _ => shown.join(", "),
        }
    }

    /// The values of a weight, row by row.
    ///
    /// # Errors
    /// A file that cannot be read any more; values that are no numbers.
    pub fn read(&self, place: Place) -> Result<Vec<f32>> {
        let mut values = Vec::new();
        for stored in names::stored(&self.model, place) {
            let (_, entry) = self.find(&stored.name).expect("checked when opened");
            let path = &self.paths[entry.file];
            let bytes = read_bytes(path, entry)
                .map_err(|cause| cannot_read(&cause).within(path.display()))?;
            let read = decode(entry.info.dtype, &bytes);
            check_finite(&stored.name, &read).map_err(|error| {
                error
                    .hint("the weights are broken: fetch them again, or take an earlier save")
                    .within(path.display())
            })?;
            match stored.transposed {
                true => values.extend(transpose(&read, place.weight.columns as usize)),
                false => values.extend(read),
            }
        }
        Ok(values)
    }
}

/// The shape in the file.
fn shape(place: Place, stored: &names::Stored) -> Vec<usize> {
    let size = |n: u64| usize::try_from(n).unwrap_or(usize::MAX);
    let (rows, columns) = (size(stored.rows), size(place.weight.columns));
    match (place.weight.is_matrix(), stored.transposed) {
        (false, _) => vec![rows],
        (true, false) => vec![rows, columns],
        (true, true) => vec![columns, rows],
    }
}

/// `[rows × columns]` from `[columns × rows]`, given the number of rows of what is there.
fn transpose(values: &[f32], rows: usize) -> Vec<f32> {
    let columns = values.len() / rows.max(1);
    let mut turned = Vec::with_capacity(values.len());
    for column in 0..columns {
        turned.extend((0..rows).map(|row| values[row * columns + column]));
    }
    turned
}

fn cannot_read(cause: &std::io::Error) -> Error {
    Error::bad_input(format!("cannot read: {cause}"))
}

/// The files of a checkpoint.
fn files(path: &Path) -> Result<Vec<PathBuf>> {
    let there = std::fs::metadata(path);
    let there = there.map_err(|cause| cannot_read(&cause).within(path.display()))?;
    if there.is_file() {
        return Ok(vec![path.to_owned()]);
    }
    let single = path.join(SINGLE);
    if single.is_file() {
        return Ok(vec![single]);
    }
    let index = path.join(INDEX);
    if !index.is_file() {
        return Err(
            Error::bad_input(format!("holds neither {SINGLE} nor {INDEX}"))
                .hint("name a directory as saved by save_pretrained; other formats are not read")
                .within(path.display()),
        );
    }
    let shards = read_index(&index).map_err(|error| error.within(index.display()))?;
    Ok(shards.into_iter().map(|shard| path.join(shard)).collect())
}

/// The file names in an index, each once.
fn read_index(path: &Path) -> Result<BTreeSet<String>> {
    let text = std::fs::read_to_string(path).map_err(|cause| cannot_read(&cause))?;
    let index: Value = serde_json::from_str(&text)
        .map_err(|cause| Error::bad_input(format!("not JSON: {cause}")))?;
    let map = index.get("weight_map").and_then(Value::as_object);
    let map = map.ok_or_else(|| Error::bad_input("has no object `weight_map`"))?;
    let name = |value: &Value| {
        // A name only: an index must not lead out of its directory.
        let name = value.as_str().filter(|n| !n.contains(['/', '\\']));
        name.map(str::to_owned)
            .ok_or_else(|| Error::bad_input(format!("{value} in weight_map is no file name")))
    };
    map.values().map(name).collect()
}

/// Name, place in the file and shape of every tensor.
fn header(path: &Path) -> Result<Vec<(String, u64, TensorInfo)>> {
    let mut file = File::open(path).map_err(|cause| cannot_read(&cause))?;
    let length = file.metadata().map_err(|cause| cannot_read(&cause))?.len();
    let truncated = |needed: u64| {
        Error::bad_input(format!("truncated: {length} bytes, {needed} are needed"))
            .hint("fetch the file again")
    };
    let mut size = [0; 8];
    if length < 8 {
        return Err(truncated(8));
    }
    file.read_exact(&mut size)
        .map_err(|cause| cannot_read(&cause))?;
    let size = u64::from_le_bytes(size);
    if size > MAX_HEADER {
        return Err(Error::bad_input(
            "not safetensors: its header would be too long",
        ));
    }
    if length < 8 + size {
        return Err(truncated(8 + size));
    }
    let mut text = vec![0; usize::try_from(size).expect("bounded")];
    file.read_exact(&mut text)
        .map_err(|cause| cannot_read(&cause))?;
    let metadata: Metadata = serde_json::from_slice(&text)
        .map_err(|cause| Error::bad_input(format!("not safetensors: {cause}")))?;
    let needed = 8 + size + metadata.data_len() as u64;
    if length < needed {
        return Err(truncated(needed));
    }
    if length > needed {
        return Err(Error::bad_input(format!(
            "{length} bytes, of which its header knows {needed}"
        ))
        .hint("fetch the file again"));
    }
    let tensors = metadata.tensors().into_iter();
    let entry = |(name, info): (String, &TensorInfo)| {
        (name, 8 + size + info.data_offsets.0 as u64, info.clone())
    };
    Ok(tensors.map(entry).collect())
}

fn read_bytes(path: &Path, entry: &Entry) -> std::io::Result<Vec<u8>> {
    let mut file = File::open(path)?;
    file.seek(SeekFrom::Start(entry.offset))?;
    let mut bytes = vec![0; entry.info.data_offsets.1 - entry.info.data_offsets.0];
    file.read_exact(&mut bytes)?;
    Ok(bytes)
}

/// Writes `config.json` and `model.safetensors` as HF loads them; `read` gives each weight.
///
/// # Errors
/// What cannot be written or would not be read back, values that are no numbers among it, and every
/// error of `read`.
pub fn write(
    directory: &Unfinished,
    model: &ModelConfig,
    dtype: Dtype,
    mut read: impl FnMut(Place) -> Result<Vec<f32>>,
) -> Result<()> {
    let stored_as = stored(dtype);
    let width = stored_as.bitsize() / 8;
    let (mut tensors, mut offset) = (Vec::new(), 0);
    for place in places(model) {
        for stored in names::stored(model, place) {
            let shape = shape(place, &stored);
            let end = offset + shape.iter().product::<usize>() * width;
            let data_offsets = (offset, end);
            let info = TensorInfo {
                dtype: stored_as,
                shape,
                data_offsets,
            };
            tensors.push((stored.name, info));
            offset = end;
        }
    }
    let format = [("format".to_owned(), "pt".to_owned())];
    let metadata = Metadata::new(Some(format.into()), tensors)
        .map_err(|cause| Error::bad_input(format!("the weights cannot be written: {cause}")))?;
    let failed = |cause: std::io::Error| directory.failure(&cause);
    let config = serde_json::to_string_pretty(&config(model, dtype)).expect("plain JSON");
    std::fs::write(directory.file("config.json"), config + "\n").map_err(failed)?;
    let file = File::create(directory.file(SINGLE)).map_err(failed)?;
    let mut out = BufWriter::new(file);
    write_header(&mut out, &metadata).map_err(failed)?;
    for place in places(model) {
        let values = read(place)?;
        let columns = place.weight.columns as usize;
        let mut first = 0;
        for stored in names::stored(model, place) {
            let end = first + stored.rows as usize * columns;
            let rows = &values[first..end];
            check_finite(&stored.name, rows).map_err(|error| error.hint(DIVERGED))?;
            let bytes = match stored.transposed {
                true => encode(dtype, &transpose(rows, stored.rows as usize)),
                false => encode(dtype, rows),
            };
            out.write_all(&bytes).map_err(failed)?;
            first = end;
        }
    }
    close(out).map_err(failed)
}

/// The length and text of a safetensors header, padded to 8 bytes.
pub(super) fn write_header(out: &mut impl Write, metadata: &Metadata) -> std::io::Result<()> {
    let mut header = serde_json::to_vec(metadata)?;
    header.resize(header.len().next_multiple_of(8), b' ');
    out.write_all(&(header.len() as u64).to_le_bytes())?;
    out.write_all(&header)
}

/// Makes sure that all of it is on the disk.
pub(super) fn close(out: BufWriter<File>) -> std::io::Result<()> {
    out.into_inner()?.sync_all()
}

/// The config of what is written: the language model's own, in the type of its weights.
fn config(model: &ModelConfig, dtype: Dtype) -> Value {
    let whole = &model.source;
    let mut config = whole.get("text_config").unwrap_or(whole).clone();
    if let Value::Object(fields) = &mut config {
        let name = if dtype == Dtype::Bf16 {
            "bfloat16"
        } else {
            "float32"
        };
        let key = if fields.contains_key("dtype") {
            "dtype"
        } else {
            "torch_dtype"
        };
        fields.insert(key.into(), name.into());
        fields.insert("tie_word_embeddings".into(), model.tied.into());
        let family = model.family;
        fields
            .entry("model_type")
            .or_insert_with(|| family.model_type().into());
        fields
            .entry("architectures")
            .or_insert_with(|| serde_json::json!([architecture(family)]));
    }
    config
}

fn architecture(family: Family) -> &'static str {
    match family {
        Family::Llama => "LlamaForCausalLM",
        Family::Mistral => "MistralForCausalLM",
        Family::Qwen2 => "Qwen2ForCausalLM",
        Family::Qwen3 => "Qwen3ForCausalLM",
        Family::Gemma => "GemmaForCausalLM",
        Family::Gpt2 => "GPT2LMHeadModel",
    }
}
