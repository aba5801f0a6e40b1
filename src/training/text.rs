//! Plain text to token ids, by HF's own tokenizers.

use std::path::Path;

use super::tokens::Tokens;
use crate::error::{Error, Result};

/// Tokenises a text file with a `tokenizer.json`; no special tokens are added.
///
/// # Errors
/// Files that cannot be read or are not text and a tokenizer.
pub fn read(text: &Path, tokenizer: &Path) -> Result<Tokens> {
    let tokenizer_of = tokenizers::Tokenizer::from_file(tokenizer)
        .map_err(|cause| Error::bad_input(format!("no tokenizer: {cause}")));
    let tokenizer = tokenizer_of.map_err(|error| error.within(tokenizer.display()))?;
    let content = std::fs::read_to_string(text).map_err(|cause| {
        Error::bad_input(format!("cannot read as text: {cause}")).within(text.display())
    })?;
    let encoding = tokenizer.encode_fast(content, false).map_err(|cause| {
        Error::bad_input(format!("cannot be tokenised: {cause}")).within(text.display())
    })?;
    Ok(Tokens::Stream {
        ids: encoding.get_ids().to_vec(),
        ignored: Vec::new(),
    })
}
