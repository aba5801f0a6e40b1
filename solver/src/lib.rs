//! The pure core of ebbtide: no files, no GPU, no clock but for time limits, no randomness.
//!
//! ```text
//! Problem ─ search ─► Plan ─ build + arena ─► Schedule ─┬─ check    ─► violations
//!    │                                                  └─ simulate ─► Timeline
//!    └──── relaxation, weak duality ─► a bound that no plan beats
//! ```
//! Every arrow is a function from plain values to a plain value. [`check`] and [`simulate`] read
//! the same schedule and nothing of each other or of the search, so that each can accuse the other.
//!
//! | word | what it is |
//! |---|---|
//! | *value* | a tensor of the step, split by token rows, head groups or not at all ([`problem`]) |
//! | *tensor* | a value that a plan decides about: it is wanted again in backward |
//! | *piece* | the part of a tensor that is decided as one: a granule of rows, or a head group |
//! | *fate* | how many pieces are kept, swapped and made again ([`plan`]) |
//! | *group* | model states placed together: weights, gradients, optimizer states of a block |
//! | *variant* | the same step with operators cut otherwise: tiles, head groups |
//! | *position* | an instruction's place on the compute stream: the clock of all lifetimes |
//! | *arena* | the one allocation on the device in which every buffer has its offset |
//! | *floor* | the step with everything resident: no recomputation, no stall |
//!
//! What always holds: all quantities are integers with a unit ([`units`]); every plan that is
//! returned was built, checked for memory and simulated; its arena is never lower than its live
//! bytes nor higher than the budget; the bound is never above the step of any plan of any strategy;
//! the same problem gives the same plan, unless a time limit cuts the search short.
//!
//! To read it: [`problem`], [`plan`], [`build`], [`schedule`], then [`search`]. [`chain`] solves
//! the classical rematerialisation problem on chains and stands apart.
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
