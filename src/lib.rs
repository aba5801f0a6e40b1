//! ebbtide: what fits, how fast, with which plan.

pub mod error;
pub mod format;
