//! Models: an HF `config.json` in, a [`ModelConfig`] out.
//!
//! ```text
//! text ─► fields ─► refused? ─► family ─► ModelConfig ─► weights, parameters
//! ```
//! A [`ModelConfig`] is plain data that says everything about a dense decoder-only transformer
//! that a step costs and computes. What is not modelled is refused by name, because a plan for a
//! model that is nearly the user's is worse than none; what a config asks for and a step leaves
//! out without changing its cost (dropout) is said in [`ModelConfig::notes`].
//!
//! Nothing here knows of tokens, bytes, devices or training methods.

mod compressed;
mod config;
mod families;
mod fields;
pub mod graph;
mod positions;
mod refused;
mod shipped;
mod step;
mod weights;
mod windows;

pub use compressed::Compressed;
pub use config::{ModelConfig, StoredDtype};
pub use families::{Activation, Family, NormKind};
pub use positions::{Positions, RopeScaling};
pub use shipped::{load, shipped};
pub use step::{compressed_step_graph, step_graph};
pub use weights::{Part, Weight};
