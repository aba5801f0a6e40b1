//! The library's parts: models, graphs and profiles, the referee, the schedule file.

#[path = "../support/mod.rs"]
mod support;

mod arena;
mod graph;
mod model;
mod mutation;
mod profile;
mod refused;
mod schedule;
