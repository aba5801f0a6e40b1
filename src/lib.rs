//! ebbtide: what fits, how fast, with which plan.

pub mod commands;
pub mod error;
pub mod format;
