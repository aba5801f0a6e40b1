//! Training methods: what each costs and forbids. The planner reads these facts; it knows no
//! method by name.
//!
//! Sources: AdamW, Loshchilov and Hutter 2019; LOMO, Lv et al. 2024 (arXiv 2306.09782), which
//! updates every weight inside backward and so keeps neither gradients nor states.

use std::fmt;
use std::str::FromStr;

use crate::error::Error;
use crate::profile::Dtype;

/// A training method.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Method {
    /// AdamW with f32 moments, and an f32 master copy of bf16 weights.
    AdamW,
    /// Gradient descent at the end of the step; gradients are kept until then, no state is.
    Sgd,
    /// Gradient descent fused into backward; neither gradients nor states are kept.
    Lomo,
}

impl Method {
    /// All methods.
    pub const ALL: [Method; 3] = [Method::AdamW, Method::Sgd, Method::Lomo];

    /// The name in flags and files.
    pub const fn name(self) -> &'static str {
        match self {
            Method::AdamW => "adamw",
            Method::Sgd => "sgd",
            Method::Lomo => "lomo",
        }
    }
    /// What it does, in a line.
    pub const fn summary(self) -> &'static str {
        match self {
            Method::AdamW => "f32 moments and master weights; gradients kept until the update",
            Method::Sgd => "plain gradient descent; gradients kept until the update, no state",
            Method::Lomo => "gradient descent inside backward; no gradients kept, no state",
        }
    }
    /// Whether weights are updated inside backward, as soon as their gradient is complete.
    pub const fn fused(self) -> bool {
        matches!(self, Method::Lomo)
    }
    /// Bytes of optimizer state for a parameter whose weight is of `dtype`.
    pub const fn state_bytes(self, dtype: Dtype) -> u64 {
        match (self, dtype) {
            (Method::AdamW, Dtype::F32) => 8,
            (Method::AdamW, _) => 12,
            (Method::Sgd | Method::Lomo, _) => 0,
        }
    }
    /// Memory traffic of an update in bytes for a parameter: gradient and weight read, weight
    /// written, states read and written.
    pub const fn update_traffic(self, dtype: Dtype) -> u64 {
        3 * dtype.bytes() + 2 * self.state_bytes(dtype)
    }
    /// Whether the host can do its update: one that is fused has nothing to send there.
    pub const fn on_host(self) -> bool {
        !self.fused()
    }
    /// Refuses what the method cannot be combined with.
    pub fn check(self, accumulate: u32) -> Result<(), Error> {
        if self.fused() && accumulate > 1 {
            return Err(Error::bad_input(format!(
                "{self} updates weights inside backward and cannot accumulate {accumulate} \
                 micro-batches"
            ))
            .hint("use --accumulate 1 with a larger --batch, or --method adamw"));
        }
        Ok(())
    }
}

impl fmt::Display for Method {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for Method {
    type Err = Error;
    fn from_str(text: &str) -> Result<Self, Error> {
        Method::ALL
            .into_iter()
            .find(|m| m.name() == text)
            .ok_or_else(|| {
                let names = Method::ALL.map(Method::name).join(", ");
                Error::bad_input(format!("unknown method `{text}`")).hint(format!("one of {names}"))
            })
    }
}
