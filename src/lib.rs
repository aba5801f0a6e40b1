//! ebbtide: what fits, how fast, with which plan.

pub mod cli;
pub mod commands;
pub mod comparison;
pub mod device;
pub mod error;
pub mod execute;
pub mod export;
pub mod files;
pub mod format;
pub mod lower;
pub mod memory;
pub mod methods;
pub mod model;
pub mod planning;
pub mod profile;
pub mod report;
pub mod training;
pub mod tuning;
