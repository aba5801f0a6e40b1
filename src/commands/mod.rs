//! One file per command: read files, call pure functions, write files.

pub mod arena;
