//! The JSON on disk and on stdout; only these types are serialised.

pub mod chain;
