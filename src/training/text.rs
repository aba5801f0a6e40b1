//! Plain text to token ids, by HF's own tokenizers.

use std::path::Path;

use ebbtide_solver::units::Bytes;

use super::tokens::Tokens;
use crate::error::{Error, Result};
use crate::files::read_text;

/// Tokenizers of 256 thousand words are some 30 MiB.
const LARGEST_TOKENIZER: Bytes = Bytes::gib(1);
/// Its ids take as much again; more is tokenised before.
const LARGEST_TEXT: Bytes = Bytes::gib(4);

/// Tokenises a text file with a `tokenizer.json`; no special tokens are added.
///
/// # Errors
/// Files that cannot be read or are not text and a tokenizer.
pub fn read(text: &Path, tokenizer: &Path) -> Result<Tokens> {
    let extension = text.extension().and_then(|e| e.to_str());
    if let Some(ids @ ("u16" | "u32" | "jsonl")) = extension {
        return Err(
            Error::bad_input(format!("a .{ids} file holds ids, not text"))
                .within(text.display())
                .hint("leave --tokenizer out, or name a text .txt"),
        );
    }
    let written = read_text(tokenizer, LARGEST_TOKENIZER, "a tokenizer")?;
    let tokenizer_of = tokenizers::Tokenizer::from_bytes(written)
        .map_err(|cause| Error::bad_input(format!("no tokenizer: {cause}")));
    let tokenizer = tokenizer_of.map_err(|error| error.within(tokenizer.display()))?;
    let content = read_text(text, LARGEST_TEXT, "a text to train on")?;
    let encoding = tokenizer.encode_fast(content, false).map_err(|cause| {
        Error::bad_input(format!("cannot be tokenised: {cause}")).within(text.display())
    })?;
    Ok(Tokens::Stream {
        ids: encoding.get_ids().to_vec(),
        ignored: Vec::new(),
    })
}
