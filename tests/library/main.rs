//! The library's parts: models, graphs and profiles, the referee, and the files that are written.

#[path = "../support/mod.rs"]
mod support;

mod arena;
mod graph;
mod model;
mod mutation;
mod profile;
mod refused;
mod schedule;
mod viewers;
