//! Training methods: what each costs and forbids. The planner reads these facts; it knows no
//! method by name.
//!
//! Sources: AdamW, Loshchilov and Hutter 2019; its moments in 8 bits, Dettmers et al. 2022 (arXiv
//! 2110.02861); LOMO, Lv et al. 2024 (arXiv 2306.09782), which updates every weight inside backward
//! and so keeps neither gradients nor states; AdaLomo, Lv et al. 2023 (arXiv 2310.10195), which
//! does so with a factored second moment.
//!
//! Some methods change weights element by element ([`UpdateRule`]): a part of a tensor, such as one
//! head group's, is updated as well as the whole. The others look at tensors as wholes
//! ([`TensorRule`]), so that the gradient of a tensor is kept together until its update.

use std::fmt;
use std::str::FromStr;

use crate::device::layout::{Layout, WeightValue};
use crate::device::tensors::{Moments, TensorRule};
use crate::device::UpdateRule;
use crate::error::Error;
use crate::model::Weight;
use crate::profile::Dtype;

/// A training method.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Method {
    /// AdamW with f32 moments, and an f32 master copy of bf16 weights.
    AdamW,
    /// AdamW in bf16 throughout: moments and weights without master copies, all rounded
    /// stochastically.
    AdamWBf16Sr,
    /// AdamW with moments in 8 bits, and without master copies of bf16 weights.
    AdamW8bit,
    /// Gradient descent at the end of the step; gradients are kept until then, no state is.
    Sgd,
    /// Gradient descent fused into backward; neither gradients nor states are kept.
    Lomo,
    /// LOMO with a factored second moment and updates normalised tensor by tensor.
    AdaLomo,
}

/// How a method changes weights.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Updates {
    /// Element by element.
    Elements(UpdateRule),
    /// Tensor by tensor, each by [`Method::tensor_rule`].
    Tensors,
}

impl Method {
    /// All methods.
    pub const ALL: [Method; 6] = [
        Method::AdamW,
        Method::AdamWBf16Sr,
        Method::AdamW8bit,
        Method::Sgd,
        Method::Lomo,
        Method::AdaLomo,
    ];

    /// The name in flags and files.
    pub const fn name(self) -> &'static str {
        match self {
            Method::AdamW => "adamw",
            Method::AdamWBf16Sr => "adamw-bf16-sr",
            Method::AdamW8bit => "adamw8bit",
            Method::Sgd => "sgd",
            Method::Lomo => "lomo",
            Method::AdaLomo => "adalomo",
        }
    }
    /// What it does, in a line.
    pub const fn summary(self) -> &'static str {
        match self {
            Method::AdamW => "f32 moments and master weights; gradients kept until the update",
            Method::AdamWBf16Sr => "weights and moments in bf16, rounded stochastically; no masters",
            Method::AdamW8bit => "moments in 8 bits with a scale for every 256; no masters",
            Method::Sgd => "plain gradient descent; gradients kept until the update, no state",
            Method::Lomo => "gradient descent inside backward; no gradients kept, no state",
            Method::AdaLomo => "as lomo, with a factored second moment and normalised updates",
        }
    }
    /// Whether weights are updated inside backward, as soon as their gradient is complete.
    pub const fn fused(self) -> bool {
        matches!(self, Method::Lomo | Method::AdaLomo)
    }
    /// How it changes weights.
    pub const fn updates(self) -> Updates {
        match self {
            Method::AdamW => Updates::Elements(UpdateRule::AdamW),
            Method::Sgd | Method::Lomo => Updates::Elements(UpdateRule::Sgd),
            Method::AdamWBf16Sr | Method::AdamW8bit | Method::AdaLomo => Updates::Tensors,
        }
    }
    /// How it changes a tensor, where it changes weights tensor by tensor.
    ///
    /// # Panics
    /// Where it does not.
    pub fn tensor_rule(self, _tensor: &Weight) -> TensorRule {
        match self {
            Method::AdamWBf16Sr => TensorRule::Adam(Moments::AsWeights),
            Method::AdamW8bit => TensorRule::Adam(Moments::EightBit),
            Method::AdaLomo => TensorRule::AdaLomo,
            Method::AdamW | Method::Sgd | Method::Lomo => {
                unreachable!("{self} changes weights element by element")
            }
        }
    }
    /// Whether it keeps optimizer states.
    pub const fn keeps_states(self) -> bool {
        !matches!(self, Method::Sgd | Method::Lomo)
    }
    /// Bytes of the states of a weight value.
    pub fn state_bytes(self, layout: &Layout<'_>, value: WeightValue) -> u64 {
        match self.updates() {
            Updates::Elements(rule) => layout.elements(value) * rule.state_bytes(layout.dtype),
            Updates::Tensors => {
                let tensors = layout.tensors(value).into_iter();
                let bytes = tensors.map(|tensor| {
                    let rule = self.tensor_rule(&tensor.weight);
                    rule.state_bytes(tensor.shape(), layout.dtype)
                });
                bytes.sum()
            }
        }
    }
    /// Memory traffic of an update of a weight value in bytes.
    pub fn update_traffic(self, layout: &Layout<'_>, value: WeightValue) -> u64 {
        match self.updates() {
            Updates::Elements(rule) => layout.elements(value) * rule.traffic(layout.dtype),
            Updates::Tensors => {
                let tensors = layout.tensors(value).into_iter();
                let bytes = tensors.map(|tensor| {
                    let rule = self.tensor_rule(&tensor.weight);
                    rule.traffic(tensor.shape(), layout.dtype)
                });
                bytes.sum()
            }
        }
    }
    /// Whether the host can do its update: one that is fused has nothing to send there.
    pub const fn on_host(self) -> bool {
        !self.fused()
    }
    /// Refuses what the method cannot be combined with.
    ///
    /// # Errors
    /// The combination with its reason, and what to do instead.
    pub fn check(self, accumulate: u32, dtype: Dtype) -> Result<(), Error> {
        if self.fused() && accumulate > 1 {
            return Err(Error::bad_input(format!(
                "{self} updates weights inside backward and cannot accumulate {accumulate} \
                 micro-batches"
            ))
            .hint("use --accumulate 1 with a larger --batch, or --method adamw"));
        }
        if self == Method::AdamWBf16Sr && dtype != Dtype::Bf16 {
            return Err(Error::bad_input(format!(
                "{self} rounds to bf16, but the step is computed in {dtype}"
            ))
            .hint("use --dtype bf16, or --method adamw"));
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
