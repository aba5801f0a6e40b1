//! The executor on the CPU device: what a schedule computes, whatever plan it is.

#[path = "../support/mod.rs"]
mod support;

mod characters;
mod clipping;
mod clock;
mod command;
mod faults;
mod hf;
mod identity;
mod models;
mod oracles;
mod plans;
mod refused;
mod runs;
mod straight;
mod weights;
