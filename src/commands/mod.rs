//! One file per command: read files, call pure functions, write the answer.

pub mod chain;
