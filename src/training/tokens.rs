//! What a run trains on: sequences of token ids, and the label of each token.
//!
//! A file is one long stream that is cut into whole sequences, taken in order and from the start
//! again at its end; a rest shorter than a sequence is not used. Labels are the tokens shifted by
//! one within each sequence, so a sequence's last token has none, as in HF's causal language
//! models.

use std::path::Path;

use ebbtide_solver::units::Bytes;

use super::random::Random;
use crate::error::{Error, Result};
use crate::files::read_bytes;

/// Ids are kept in memory, as 4 bytes each: no more than 4 G of them.
const LARGEST: Bytes = Bytes::gib(8);

/// The label that is left out of the loss (HF's ignore index).
pub const IGNORED: i32 = -100;

/// The token ids of a micro-batch and what each should predict, row by row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Batch {
    /// Token ids.
    pub ids: Vec<u32>,
    /// The token that follows each, or [`IGNORED`].
    pub labels: Vec<i32>,
}

impl Batch {
    /// How many labels count.
    pub fn counted(&self) -> u64 {
        self.labels.iter().filter(|&&l| l != IGNORED).count() as u64
    }
}

/// Where batches come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Tokens {
    /// One batch of random ids, the same in every step, so that its loss must fall.
    Synthetic {
        /// Ids are below it.
        vocab: u64,
        /// Which ids.
        seed: u64,
    },
    /// A stream of ids.
    Stream {
        /// The ids.
        ids: Vec<u32>,
        /// For each id itself, not for the one after it, whether it is left out of the loss;
        /// empty: none is.
        ignored: Vec<bool>,
    },
}

/// How ids lie in a binary file, little-endian.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IdType {
    /// 2 bytes.
    U16,
    /// 4 bytes.
    U32,
}

impl Tokens {
    /// What they are, in words that other tokens do not share.
    pub fn described(&self) -> String {
        let Tokens::Stream { ids, ignored } = self else {
            return "one synthetic batch".into();
        };
        // FNV-1a (Fowler, Noll and Vo), which no version of a library changes.
        let labels = ignored.iter().map(|&ignored| u32::from(ignored));
        let words = ids.iter().copied().chain(labels);
        let hash = words.fold(0xCBF2_9CE4_8422_2325u64, |hash, word| {
            (hash ^ u64::from(word)).wrapping_mul(0x0100_0000_01B3)
        });
        format!("{} tokens ({hash:016x})", ids.len())
    }

    /// Makes sure that there is a sequence and that all ids are the model's.
    ///
    /// # Errors
    /// Fewer ids than a sequence, or an id that is not below `vocab`.
    pub fn check(&self, seq: u64, vocab: u64) -> Result<()> {
        let Tokens::Stream { ids, .. } = self else {
            return Ok(());
        };
        if (ids.len() as u64) < seq {
            return Err(Error::bad_input(format!(
                "holds {} tokens, fewer than one sequence of {seq}",
                ids.len()
            )));
        }
        match ids.iter().position(|&id| u64::from(id) >= vocab) {
            Some(at) => Err(Error::bad_input(format!(
                "token {at} is {}, the model's vocabulary ends at {}",
                ids[at],
                vocab - 1
            ))
            .hint("is it tokenised for this model, and of this type (--token-type)?")),
            None => Ok(()),
        }
    }

    /// The micro-batch of `batch` sequences that begins with the run's `first`-th sequence.
    ///
    /// # Panics
    /// When [`Tokens::check`] refuses them.
    pub fn batch(&self, first: u64, batch: u64, seq: u64) -> Batch {
        let (mut ids, mut labels) = (Vec::new(), Vec::new());
        for nth in first..first + batch {
            match self {
                Tokens::Synthetic { vocab, seed } => {
                    let mut random = Random::stream(*seed, nth);
                    let random_id = |_| u32::try_from(random.below(*vocab)).expect("below 2^26");
                    let sequence: Vec<u32> = (0..seq).map(random_id).collect();
                    push(&mut ids, &mut labels, &sequence, &[]);
                }
                Tokens::Stream { ids: all, ignored } => {
                    let sequences = all.len() as u64 / seq;
                    let from = ((nth % sequences) * seq) as usize;
                    let range = from..from + seq as usize;
                    let ignored = ignored.get(range.clone()).unwrap_or(&[]);
                    push(&mut ids, &mut labels, &all[range], ignored);
                }
            }
        }
        Batch { ids, labels }
    }

    /// The first sequence of a step's micro-batches: a synthetic batch is the same in every step.
    pub fn first_sequence(&self, consumed: u64) -> u64 {
        match self {
            Tokens::Synthetic { .. } => 0,
            Tokens::Stream { .. } => consumed,
        }
    }
}

fn push(ids: &mut Vec<u32>, labels: &mut Vec<i32>, sequence: &[u32], ignored: &[bool]) {
    ids.extend(sequence);
    let label = |at: usize| match sequence.get(at) {
        Some(&id) if !ignored.get(at).copied().unwrap_or(false) => {
            i32::try_from(id).expect("a vocabulary has at most 2^26 tokens")
        }
        _ => IGNORED,
    };
    labels.extend((1..=sequence.len()).map(label));
}

/// Reads ids from a file: `.jsonl`, or binary of the given type or that of its extension.
///
/// # Errors
/// What cannot be read, is not of this format, or is cut off.
pub fn read(path: &Path, id_type: Option<IdType>) -> Result<Tokens> {
    let extension = path.extension().and_then(|e| e.to_str()).unwrap_or("");
    let of: fn(&[u8]) -> Result<Tokens> = match (id_type, extension) {
        (None, "jsonl") => lines,
        (Some(IdType::U16), _) | (None, "u16") => {
            |bytes| binary::<2>(bytes, |b| u32::from(u16::from_le_bytes(b)))
        }
        (Some(IdType::U32), _) | (None, "u32") => |bytes| binary::<4>(bytes, u32::from_le_bytes),
        (None, _) => {
            return Err(Error::bad_input(match extension {
                "" => "cannot tell from its name how its tokens are stored".to_owned(),
                _ => format!("cannot tell from .{extension} how its tokens are stored"),
            })
            .hint(
                "name it .u16, .u32 or .jsonl, or add --token-type u16 or u32; text needs \
                 --tokenizer",
            ))
        }
    };
    of(&read_bytes(path, LARGEST, "tokens to train on at a time")?)
}

fn binary<const N: usize>(bytes: &[u8], id: fn([u8; N]) -> u32) -> Result<Tokens> {
    if bytes.len() % N != 0 {
        return Err(Error::bad_input(format!(
            "{} bytes are no whole number of ids of {N} bytes",
            bytes.len()
        )));
    }
    let ids = bytes.chunks_exact(N);
    Ok(Tokens::Stream {
        ids: ids
            .map(|b| id(b.try_into().expect("of this length")))
            .collect(),
        ignored: Vec::new(),
    })
}

/// Each line `[id, …]`, or `{"input_ids": [id, …], "labels": [id or -100, …]}` with labels as HF
/// has them: each token's own.
fn lines(bytes: &[u8]) -> Result<Tokens> {
    let text = std::str::from_utf8(bytes).map_err(|_| Error::bad_input("is not UTF-8 text"))?;
    let (mut ids, mut ignored) = (Vec::new(), Vec::new());
    for (at, line) in text
        .lines()
        .enumerate()
        .filter(|(_, l)| !l.trim().is_empty())
    {
        line_of(line, &mut ids, &mut ignored)
            .map_err(|error| error.within(format!("line {}", at + 1)))?;
    }
    if !ignored.contains(&true) {
        ignored.clear();
    }
    Ok(Tokens::Stream { ids, ignored })
}

fn line_of(line: &str, ids: &mut Vec<u32>, ignored: &mut Vec<bool>) -> Result<()> {
    use serde_json::Value;
    let value: Value = serde_json::from_str(line)
        .map_err(|cause| Error::bad_input(format!("not JSON: {cause}")))?;
    let list = |value: &Value| value.as_array().cloned();
    let (tokens, labels) = match &value {
        Value::Object(fields) => (
            fields.get("input_ids").and_then(list),
            fields.get("labels").map(|l| list(l).ok_or(())),
        ),
        other => (list(other), None),
    };
    let tokens = tokens
        .ok_or_else(|| Error::bad_input("neither a list of ids nor an object with `input_ids`"))?;
    for token in &tokens {
        let id = token.as_u64().and_then(|id| u32::try_from(id).ok());
        ids.push(id.ok_or_else(|| Error::bad_input(format!("{token} is no token id")))?);
    }
    let Some(labels) = labels else {
        ignored.resize(ids.len(), false);
        return Ok(());
    };
    let labels = labels.map_err(|()| Error::bad_input("`labels` is not a list"))?;
    if labels.len() != tokens.len() {
        return Err(Error::bad_input(format!(
            "{} labels for {} tokens",
            labels.len(),
            tokens.len()
        )));
    }
    for (label, token) in labels.iter().zip(&tokens) {
        ignored.push(match label.as_i64() {
            Some(-100) => true,
            Some(_) if label == token => false,
            _ => {
                return Err(Error::bad_input(format!(
                    "label {label} is neither -100 nor the token's own id {token}"
                )))
            }
        });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stream(ids: Vec<u32>, ignored: Vec<bool>) -> Tokens {
        Tokens::Stream { ids, ignored }
    }

    #[test]
    fn labels_are_the_next_tokens_of_the_same_sequence() {
        let tokens = stream((0..7).collect(), vec![]);
        let batch = tokens.batch(0, 2, 3);
        assert_eq!(batch.ids, [0, 1, 2, 3, 4, 5]);
        assert_eq!(batch.labels, [1, 2, IGNORED, 4, 5, IGNORED]);
        assert_eq!(batch.counted(), 4);
        // Two whole sequences: the third is the first again.
        assert_eq!(tokens.batch(2, 1, 3), tokens.batch(0, 1, 3));
    }

    #[test]
    fn ignored_tokens_are_not_labels() {
        let file = br#"[1, 2]
            {"input_ids": [3, 4], "labels": [-100, 4]}"#;
        let tokens = lines(file).unwrap();
        assert_eq!(tokens.batch(0, 1, 4).labels, [2, IGNORED, 4, IGNORED]);
    }

    #[test]
    fn files_that_are_no_tokens_are_refused() {
        for (line, says) in [
            ("{}", "neither a list"),
            ("[1.5]", "no token id"),
            ("[-1]", "no token id"),
            (r#"{"input_ids": [1], "labels": []}"#, "0 labels for 1"),
            (r#"{"input_ids": [1], "labels": [2]}"#, "neither -100"),
            ("[1", "not JSON"),
        ] {
            let error = lines(line.as_bytes()).unwrap_err().to_string();
            assert!(
                error.contains("line 1") && error.contains(says),
                "{line}: {error}"
            );
        }
        assert!(binary::<4>(&[0; 6], u32::from_le_bytes).is_err());
        let error = stream(vec![1, 9, 2], vec![]).check(2, 9).unwrap_err();
        assert!(error.message.contains("token 1 is 9"), "{error}");
        assert!(stream(vec![1], vec![]).check(2, 9).is_err());
    }
}
