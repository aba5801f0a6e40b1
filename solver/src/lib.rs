//! The pure core of ebbtide: no files, no GPU, no clock, no randomness.
#![forbid(unsafe_code)]

pub mod ids;
pub mod machine;
pub mod units;
