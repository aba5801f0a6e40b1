//! The pure core of ebbtide: no files, no GPU, no clock, no randomness.
#![forbid(unsafe_code)]

pub mod chain;
pub mod ids;
pub mod units;
