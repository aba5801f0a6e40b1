//! ebbtide: what fits, how fast, with which plan.

pub mod commands;
pub mod error;
pub mod format;
pub mod lower;
pub mod methods;
pub mod model;
pub mod profile;
