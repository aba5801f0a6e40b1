//! All that a run needs to go on as if it had not stopped: besides the weights, the optimizer's
//! states and how far it is.
//!
//! In the directory of the weights lie `optimizer.safetensors`, one f32 vector for each group of
//! weights as the executor holds it, and `training.json` ([`crate::format::training`]).

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;

use safetensors::tensor::{Dtype as Stored, Metadata, SafeTensors, TensorInfo};

use super::checkpoint::{close, write_header};
use super::directory::Unfinished;
use crate::error::{Error, Result};
use crate::format::training::{self, Progress};

/// The file of the states.
const STATES: &str = "optimizer.safetensors";
/// The file that says how far the run is.
const PROGRESS: &str = "training.json";

/// What is read back beside the weights.
#[derive(Clone, Debug, PartialEq)]
pub struct Saved {
    /// How far the run is, and of what.
    pub progress: Progress,
    /// The optimizer's states by the name of the group of weights.
    pub states: BTreeMap<String, Vec<f32>>,
}

/// Writes both files.
///
/// # Errors
/// What cannot be written.
pub fn write(directory: &Unfinished, saved: &Saved) -> Result<()> {
    let failed = |cause: std::io::Error| directory.failure(&cause);
    let progress = training::write(&saved.progress);
    std::fs::write(directory.file(PROGRESS), progress).map_err(failed)?;
    let mut offset = 0;
    let tensors = saved.states.iter().map(|(name, values)| {
        let data_offsets = (offset, offset + 4 * values.len());
        offset = data_offsets.1;
        let info = TensorInfo {
            dtype: Stored::F32,
            shape: vec![values.len()],
            data_offsets,
        };
        (name.clone(), info)
    });
    let metadata = Metadata::new(None, tensors.collect())
        .map_err(|cause| Error::bad_input(format!("the states cannot be written: {cause}")))?;
    let file = File::create(directory.file(STATES)).map_err(failed)?;
    let mut out = BufWriter::new(file);
    write_header(&mut out, &metadata).map_err(failed)?;
    for value in saved.states.values().flatten() {
        out.write_all(&value.to_le_bytes()).map_err(failed)?;
    }
    close(out).map_err(failed)
}

/// Reads both files.
///
/// # Errors
/// Files that are missing, truncated or of another format.
pub fn read(directory: &Path) -> Result<Saved> {
    let open = |name: &str| {
        let path = directory.join(name);
        let read = std::fs::read(&path).map_err(|cause| {
            Error::bad_input(format!("cannot read: {cause}"))
                .hint("resume from a directory that `ebbtide run --save` wrote")
        });
        (path, read)
    };
    let (path, progress) = open(PROGRESS);
    let text = progress
        .and_then(|bytes| {
            String::from_utf8(bytes).map_err(|_| Error::bad_input("is not UTF-8 text"))
        })
        .and_then(|text| training::read(&text));
    let progress = text.map_err(|error| error.within(path.display()))?;
    let (path, bytes) = open(STATES);
    let states = bytes.and_then(|bytes| {
        let file = SafeTensors::deserialize(&bytes)
            .map_err(|cause| Error::bad_input(format!("not safetensors, or truncated: {cause}")))?;
        let values = |(name, view): (String, safetensors::tensor::TensorView)| {
            if view.dtype() != Stored::F32 {
                let found = view.dtype();
                return Err(Error::bad_input(format!(
                    "{name} is of type {found}, not F32"
                )));
            }
            if let shape @ ([] | [_, _, ..]) = view.shape() {
                return Err(Error::bad_input(format!(
                    "{name} has shape {shape:?}, states are vectors"
                )));
            }
            let chunks = view.data().chunks_exact(4);
            let values = chunks.map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]));
            Ok((name, values.collect()))
        };
        file.tensors().into_iter().map(values).collect()
    });
    Ok(Saved {
        progress,
        states: states.map_err(|error| error.within(path.display()))?,
    })
}
