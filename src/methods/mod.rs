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

mod low_rank;

use std::fmt;
use std::str::FromStr;

use crate::device::layout::{Layout, WeightValue};
use crate::device::tensors::{Moments, Projection, TensorRule, TensorShape};
use crate::device::UpdateRule;
use crate::error::Error;
use crate::model::{Compressed, ModelConfig, Weight};
use crate::profile::Dtype;

pub use low_rank::{Layers, LowRank, Rank, Told};

/// A training method.
#[derive(Clone, Copy, Debug, PartialEq)]
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
    /// Adam in a space of low rank that the gradient's own directions span.
    Galore(LowRank),
    /// The same, and what the projection leaves of the gradient, scaled likewise.
    Fira(LowRank),
    /// Gradients scaled channel by channel as a low-rank Adam would.
    Apollo(LowRank),
    /// Gradients scaled tensor by tensor as an Adam of rank 1 would.
    ApolloMini(LowRank),
    /// Momentum compressed by a random projection, a factored second moment.
    Flora(LowRank),
    /// Inputs of linear layers compressed by random projections, so that gradients are of low
    /// rank; Adam on these.
    Compact(LowRank),
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
    pub const ALL: [Method; 12] = [
        Method::AdamW,
        Method::AdamWBf16Sr,
        Method::AdamW8bit,
        Method::Sgd,
        Method::Lomo,
        Method::AdaLomo,
        Method::Galore(LowRank::GALORE),
        Method::Fira(LowRank::FIRA),
        Method::Apollo(LowRank::APOLLO),
        Method::ApolloMini(LowRank::APOLLO_MINI),
        Method::Flora(LowRank::FLORA),
        Method::Compact(LowRank::COMPACT),
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
            Method::Galore(_) => "galore",
            Method::Fira(_) => "fira",
            Method::Apollo(_) => "apollo",
            Method::ApolloMini(_) => "apollo-mini",
            Method::Flora(_) => "flora",
            Method::Compact(_) => "compact",
        }
    }
    /// What it does, in a line.
    pub const fn summary(self) -> &'static str {
        match self {
            Method::AdamW => "f32 moments and master weights; gradients kept until the update",
            Method::AdamWBf16Sr => {
                "weights and moments in bf16, rounded stochastically; no masters"
            }
            Method::AdamW8bit => "moments in 8 bits with a scale for every 256; no masters",
            Method::Sgd => "plain gradient descent; gradients kept until the update, no state",
            Method::Lomo => "gradient descent inside backward; no gradients kept, no state",
            Method::AdaLomo => "as lomo, with a factored second moment and normalised updates",
            Method::Galore(_) => "Adam on gradients projected to their leading directions",
            Method::Fira(_) => "as galore, and what its projection leaves, scaled as Adam would",
            Method::Apollo(_) => "gradients scaled channel by channel as a low-rank Adam would",
            Method::ApolloMini(_) => "gradients scaled tensor by tensor as a rank-1 Adam would",
            Method::Flora(_) => "momentum in a random projection, factored second moments",
            Method::Compact(_) => "Adam on gradients made of randomly projected activations",
        }
    }
    /// Whether weights are updated inside backward, as soon as their gradient is complete.
    pub const fn fused(self) -> bool {
        match self.low_rank() {
            Some(low_rank) => low_rank.per_layer,
            None => matches!(self, Method::Lomo | Method::AdaLomo),
        }
    }
    /// The low-rank method that it is.
    pub const fn low_rank(self) -> Option<LowRank> {
        match self {
            Method::Galore(low_rank)
            | Method::Fira(low_rank)
            | Method::Apollo(low_rank)
            | Method::ApolloMini(low_rank)
            | Method::Flora(low_rank)
            | Method::Compact(low_rank) => Some(low_rank),
            _ => None,
        }
    }
    /// The same method with another low-rank part, where it has one.
    fn with_low_rank(self, low_rank: LowRank) -> Method {
        match self {
            Method::Galore(_) => Method::Galore(low_rank),
            Method::Fira(_) => Method::Fira(low_rank),
            Method::Apollo(_) => Method::Apollo(low_rank),
            Method::ApolloMini(_) => Method::ApolloMini(low_rank),
            Method::Flora(_) => Method::Flora(low_rank),
            Method::Compact(_) => Method::Compact(low_rank),
            other => other,
        }
    }
    /// Whether a flag for low-rank methods says something to it.
    fn takes(self, flag: &str) -> bool {
        match flag {
            low_rank::RANK_PART | "--compress" => matches!(self, Method::Compact(_)),
            "--svd" => matches!(self, Method::Galore(_) | Method::Fira(_)),
            "--scale" | "--eight-bit" => {
                self.low_rank().is_some() && !matches!(self, Method::Flora(_))
            }
            _ => self.low_rank().is_some(),
        }
    }
    /// The method as the command line tells it.
    ///
    /// # Errors
    /// What the method cannot be told, or not together.
    pub fn told(self, told: Told) -> Result<Method, Error> {
        if let Some(flag) = told.given().find(|flag| !self.takes(flag)) {
            let takers = Method::ALL.into_iter().filter(|method| method.takes(flag));
            let takers = Vec::from_iter(takers.map(Method::name)).join(", ");
            return Err(Error::bad_input(format!("{flag} says nothing to {self}"))
                .hint(format!("it is for {takers}")));
        }
        let Some(low_rank) = self.low_rank() else {
            return Ok(self);
        };
        Ok(self.with_low_rank(low_rank.with(told)))
    }
    /// The method of a schedule's name and options.
    ///
    /// # Errors
    /// A name of no method; options that are missing, or that the method has not.
    pub fn named(name: &str, options: Option<LowRank>) -> Result<Method, Error> {
        let method: Method = name.parse()?;
        match (method.low_rank(), options) {
            (Some(_), Some(options)) => Ok(method.with_low_rank(options)),
            (None, None) => Ok(method),
            (Some(_), None) => Err(Error::bad_input(format!("{method} lacks method_options"))),
            (None, Some(_)) => Err(Error::bad_input(format!("{method} has no method_options"))),
        }
    }
    /// With all that depends on the model filled in.
    ///
    /// # Errors
    /// A rank that is larger than a matrix.
    pub fn resolved(self, model: &ModelConfig) -> Result<Method, Error> {
        let own = match self {
            Method::Apollo(_) => 256,
            Method::ApolloMini(_) => 1,
            _ => 128,
        };
        match self.low_rank() {
            Some(low_rank) => {
                let inputs = matches!(self, Method::Compact(_));
                Ok(self.with_low_rank(low_rank.resolved(own, model, inputs)?))
            }
            None => Ok(self),
        }
    }
    /// The same where a step is of so many micro-batches.
    #[must_use]
    pub const fn accumulating(self, micro_batches: u32) -> Method {
        match self {
            Method::Flora(low_rank) => Method::Flora(LowRank {
                accumulated: micro_batches > 1,
                ..low_rank
            }),
            other => other,
        }
    }
    /// What is saved of inputs in spaces of low rank, once [`Method::resolved`].
    pub fn compressed(self, model: &ModelConfig) -> Compressed {
        match self {
            Method::Compact(low_rank) => low_rank.compressed(model),
            _ => Compressed::default(),
        }
    }
    /// How it changes weights.
    pub const fn updates(self) -> Updates {
        match self {
            Method::AdamW => Updates::Elements(UpdateRule::AdamW),
            Method::Sgd | Method::Lomo => Updates::Elements(UpdateRule::Sgd),
            _ => Updates::Tensors,
        }
    }
    /// How it changes a tensor, where it changes weights tensor by tensor.
    ///
    /// # Panics
    /// Where it does not.
    pub fn tensor_rule(self, tensor: &Weight) -> TensorRule {
        if let Some(low_rank) = self.low_rank() {
            return self.low_rank_rule(low_rank, tensor);
        }
        match self {
            Method::AdamWBf16Sr => TensorRule::Adam(Moments::AsWeights),
            Method::AdamW8bit => TensorRule::Adam(Moments::EightBit),
            Method::AdaLomo => TensorRule::AdaLomo,
            _ => unreachable!("{self} changes weights element by element"),
        }
    }
    /// Layers' matrices are projected; embedding, head, norms and biases follow AdamW. CompAct's
    /// output projections keep their input, which attention's backward needs anyway.
    fn low_rank_rule(self, low_rank: LowRank, tensor: &Weight) -> TensorRule {
        let moments = match low_rank.eight_bit {
            true => Moments::EightBit,
            false => Moments::F32,
        };
        if !tensor.is_linear() {
            return TensorRule::Adam(moments);
        }
        let rank = low_rank.rank.expect("resolved for a model");
        let projection = Projection {
            rank: rank.of(tensor.columns),
            refresh: low_rank.refresh,
        };
        let scale = low_rank.scale;
        match self {
            Method::Compact(_) => TensorRule::Compact {
                projection: low_rank.layers.has(tensor.part).then_some(projection),
                scale,
                moments,
            },
            Method::Galore(_) => TensorRule::Galore {
                projection,
                scale,
                svd: low_rank.svd,
                moments,
            },
            Method::Fira(_) => TensorRule::Fira {
                projection,
                scale,
                svd: low_rank.svd,
                moments,
            },
            Method::Flora(_) => TensorRule::Flora {
                projection,
                accumulated: low_rank.accumulated,
            },
            _ => TensorRule::Apollo {
                projection,
                scale,
                channels: matches!(self, Method::Apollo(_)),
                moments,
            },
        }
    }
    /// Whether it keeps optimizer states.
    pub const fn keeps_states(self) -> bool {
        !matches!(self, Method::Sgd | Method::Lomo)
    }
    /// Whether its states are numbers one and all, not codes with scales between them.
    pub fn states_are_numbers(self) -> bool {
        let coded = self.low_rank().is_some_and(|low_rank| low_rank.eight_bit);
        !coded && self != Method::AdamW8bit
    }
    /// Bytes of the states of a weight value.
    pub fn state_bytes(self, layout: &Layout<'_>, value: WeightValue) -> u64 {
        match self.updates() {
            Updates::Elements(rule) => layout.elements(value) * rule.state_bytes(layout.dtype),
            Updates::Tensors => {
                let rules = self.tensor_rules(layout, value).into_iter();
                let bytes = rules.map(|(rule, shape)| rule.state_bytes(shape, layout.dtype));
                bytes.sum()
            }
        }
    }
    /// Memory traffic of an update of a weight value in bytes.
    pub fn update_traffic(self, layout: &Layout<'_>, value: WeightValue) -> u64 {
        match self.updates() {
            Updates::Elements(rule) => layout.elements(value) * rule.traffic(layout.dtype),
            Updates::Tensors => {
                let rules = self.tensor_rules(layout, value).into_iter();
                let bytes = rules.map(|(rule, shape)| rule.traffic(shape, layout.dtype));
                bytes.sum()
            }
        }
    }
    /// The rules and shapes by which tensors of a weight value are changed; none where that is
    /// element by element.
    pub fn tensor_rules(
        self,
        layout: &Layout<'_>,
        value: WeightValue,
    ) -> Vec<(TensorRule, TensorShape)> {
        match self.updates() {
            Updates::Elements(_) => Vec::new(),
            Updates::Tensors => {
                let tensors = layout.tensors(value).into_iter();
                let rules = tensors.map(|t| (self.tensor_rule(&t.weight), t.shape()));
                rules.collect()
            }
        }
    }
    /// Whether micro-batches' gradients of a weight value are added up in a space of low rank.
    pub fn accumulates(self, layout: &Layout<'_>, value: WeightValue) -> bool {
        let rules = self.tensor_rules(layout, value);
        rules
            .iter()
            .any(|(rule, _)| rule.accumulated_rank().is_some())
    }
    /// Whether the host can do its update: one that is fused has nothing to send there, and a
    /// projection is a matrix product, which is not the host's work.
    pub const fn on_host(self) -> bool {
        !self.fused() && self.low_rank().is_none()
    }
    /// Refuses what the method cannot be combined with.
    ///
    /// # Errors
    /// The combination with its reason, and what to do instead.
    pub fn check(self, accumulate: u32, dtype: Dtype, clip: bool) -> Result<(), Error> {
        // Per layer, a low-rank method waits for the last micro-batch; LOMO keeps no gradient.
        if matches!(self, Method::Lomo | Method::AdaLomo) && accumulate > 1 {
            return Err(Error::bad_input(format!(
                "{self} updates weights inside backward and cannot accumulate {accumulate} \
                 micro-batches"
            ))
            .hint("use --accumulate 1 with a larger --batch, or --method adamw"));
        }
        if self.fused() && clip && accumulate > 1 {
            return Err(Error::bad_input(format!(
                "--per-layer with --clip would go through all {accumulate} micro-batches twice, \
                 and gradients are kept until the last anyway"
            ))
            .hint("leave out --per-layer, or use --accumulate 1"));
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
