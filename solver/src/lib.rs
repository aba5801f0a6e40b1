//! The pure core of ebbtide: no files, no GPU, no clock, no randomness.
#![forbid(unsafe_code)]

pub mod arena;
pub mod build;
pub mod chain;
pub mod check;
pub mod ids;
pub mod machine;
pub mod plan;
pub mod problem;
pub mod schedule;
pub mod search;
pub mod simulate;
pub mod units;
