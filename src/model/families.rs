//! The model families that are served, and what each takes for granted.
//!
//! Facts are those of the `configuration_*` and `modeling_*` files of HF transformers: which keys
//! a family reads, which it ignores, and what a missing one means. A key that the family ignores
//! but that asks for something else than the family does is an error, never dropped.

use super::fields::Fields;
use crate::error::{Error, Result};

/// A family of models, named as HF's `model_type`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Family {
    /// Llama 1 to 3 and models published in its form.
    Llama,
    /// Mistral 7B and successors: every layer may have a sliding window.
    Mistral,
    /// Qwen 1.5 to 2.5: QKV bias.
    Qwen2,
    /// Qwen 3: norms on q and k.
    Qwen3,
    /// The first Gemma: `1 + w` norms, scaled embeddings, GeGLU.
    Gemma,
    /// GPT-2: learned positions, LayerNorm, plain MLP, biases everywhere.
    Gpt2,
}

/// How a norm computes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NormKind {
    /// `w · x / rms(x)` (Zhang and Sennrich 2019).
    Rms,
    /// `(1 + w) · x / rms(x)`, Gemma's.
    RmsPlusOne,
    /// `w · (x - mean) / deviation + b` (Ba et al. 2016).
    Layer,
}

/// The MLP's non-linearity.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activation {
    /// `x · sigmoid(x)`; gated it is SwiGLU.
    Silu,
    /// GELU by the error function.
    Gelu,
    /// GELU by its tanh approximation; gated it is Gemma's GeGLU.
    GeluTanh,
}

/// Where a family's bias flags come from.
#[derive(Clone, Copy)]
pub(super) enum Bias {
    /// The config's key decides, false when missing.
    Key,
    /// The family has it (or not), whatever the key says.
    Fixed(bool),
}

/// Which layers a family gives a sliding window.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum Windowed {
    /// None.
    Never,
    /// All, when `sliding_window` is not null (missing: 4096).
    Always,
    /// With `use_sliding_window`, those from `max_window_layers` on, or those in `layer_types`.
    Late,
}

/// The keys under which a family states its sizes, the first being the usual one.
pub(super) struct Keys {
    pub layers: &'static [&'static str],
    pub hidden: &'static [&'static str],
    pub heads: &'static [&'static str],
    pub intermediate: &'static [&'static str],
    pub positions: &'static [&'static str],
    pub activation: &'static [&'static str],
    pub norm_eps: &'static [&'static str],
}

/// What a family takes for granted.
pub(super) struct Traits {
    pub family: Family,
    pub model_type: &'static str,
    pub architecture: &'static str,
    pub keys: &'static Keys,
    pub norm: NormKind,
    pub norm_eps: f64,
    pub activation: Activation,
    pub gated: bool,
    /// Key and value heads may be missing (then as many as heads).
    pub kv_heads_optional: bool,
    /// When `head_dim` is missing; none: hidden / heads.
    pub head_dim: Option<u64>,
    /// Bias of q, k and v; the key is `attention_bias`.
    pub qkv_bias: Bias,
    /// Bias of the attention output; none: as q, k and v.
    pub o_bias: Option<bool>,
    pub mlp_bias: Bias,
    pub qk_norm: bool,
    pub scaled_embedding: bool,
    /// When `tie_word_embeddings` is missing.
    pub tied: bool,
    pub learned_positions: bool,
    pub windowed: Windowed,
}

const USUAL_KEYS: Keys = Keys {
    layers: &["num_hidden_layers"],
    hidden: &["hidden_size"],
    heads: &["num_attention_heads"],
    intermediate: &["intermediate_size"],
    positions: &["max_position_embeddings"],
    activation: &["hidden_act"],
    norm_eps: &["rms_norm_eps"],
};
const LLAMA: Traits = Traits {
    family: Family::Llama,
    model_type: "llama",
    architecture: "LlamaForCausalLM",
    keys: &USUAL_KEYS,
    norm: NormKind::Rms,
    norm_eps: 1e-6,
    activation: Activation::Silu,
    gated: true,
    kv_heads_optional: true,
    head_dim: None,
    qkv_bias: Bias::Key,
    o_bias: None,
    mlp_bias: Bias::Key,
    qk_norm: false,
    scaled_embedding: false,
    tied: false,
    learned_positions: false,
    windowed: Windowed::Never,
};
const MISTRAL: Traits = Traits {
    family: Family::Mistral,
    model_type: "mistral",
    architecture: "MistralForCausalLM",
    kv_heads_optional: false,
    qkv_bias: Bias::Fixed(false),
    mlp_bias: Bias::Fixed(false),
    windowed: Windowed::Always,
    ..LLAMA
};
const QWEN2: Traits = Traits {
    family: Family::Qwen2,
    model_type: "qwen2",
    architecture: "Qwen2ForCausalLM",
    kv_heads_optional: false,
    qkv_bias: Bias::Fixed(true),
    o_bias: Some(false),
    mlp_bias: Bias::Fixed(false),
    windowed: Windowed::Late,
    ..LLAMA
};
const QWEN3: Traits = Traits {
    family: Family::Qwen3,
    model_type: "qwen3",
    architecture: "Qwen3ForCausalLM",
    head_dim: Some(128),
    qkv_bias: Bias::Key,
    o_bias: None,
    qk_norm: true,
    ..QWEN2
};
const GEMMA: Traits = Traits {
    family: Family::Gemma,
    model_type: "gemma",
    architecture: "GemmaForCausalLM",
    keys: &Keys {
        activation: &["hidden_activation", "hidden_act"],
        ..USUAL_KEYS
    },
    norm: NormKind::RmsPlusOne,
    activation: Activation::GeluTanh,
    kv_heads_optional: false,
    head_dim: Some(256),
    mlp_bias: Bias::Fixed(false),
    scaled_embedding: true,
    tied: true,
    ..LLAMA
};
const GPT2: Traits = Traits {
    family: Family::Gpt2,
    model_type: "gpt2",
    architecture: "GPT2LMHeadModel",
    keys: &Keys {
        layers: &["n_layer", "num_hidden_layers"],
        hidden: &["n_embd", "hidden_size"],
        heads: &["n_head", "num_attention_heads"],
        intermediate: &["n_inner"],
        positions: &["n_positions", "max_position_embeddings"],
        activation: &["activation_function"],
        norm_eps: &["layer_norm_epsilon"],
    },
    norm: NormKind::Layer,
    norm_eps: 1e-5,
    activation: Activation::GeluTanh,
    gated: false,
    qkv_bias: Bias::Fixed(true),
    mlp_bias: Bias::Fixed(true),
    tied: true,
    learned_positions: true,
    ..LLAMA
};
static FAMILIES: [Traits; 6] = [LLAMA, MISTRAL, QWEN2, QWEN3, GEMMA, GPT2];

impl Family {
    /// HF's `model_type`.
    pub fn model_type(self) -> &'static str {
        FAMILIES
            .iter()
            .find(|traits| traits.family == self)
            .expect("a row for each")
            .model_type
    }
}

/// The family of a config, by `model_type`, else by `architectures`.
///
/// # Errors
/// A family that is not served, a model without a language-model head, or two families at once.
pub(super) fn family_of(fields: Fields) -> Result<&'static Traits> {
    let architectures = fields.texts("architectures")?.unwrap_or_default();
    let model_type = fields.text("model_type")?;
    let found = FAMILIES.iter().find(|traits| match model_type {
        Some(name) => traits.model_type == name,
        None => architectures.contains(&traits.architecture),
    });
    let Some(traits) = found else {
        return Err(not_served(model_type, &architectures));
    };
    if architectures.is_empty() || architectures.contains(&traits.architecture) {
        return Ok(traits);
    }
    Err(fields.wrong(
        "architectures",
        format!(
            "[\"{}\"], the causal language model of {}",
            traits.architecture, traits.model_type
        ),
    ))
}

fn not_served(model_type: Option<&str>, architectures: &[&str]) -> Error {
    let served = FAMILIES
        .each_ref()
        .map(|traits| traits.model_type)
        .join(", ");
    let asked = match model_type {
        Some(name) => format!("model_type \"{name}\""),
        None if architectures.is_empty() => "a config without model_type".into(),
        None => format!("architectures {architectures:?}"),
    };
    let hint = match model_type {
        Some(name) if name.starts_with("gemma") => {
            "gemma 2 and later have four norms in a block, which is not modelled"
        }
        _ => "dense decoder-only models in the form of these are planned",
    };
    Error::bad_input(format!("{asked} is not served; served are {served}")).hint(hint)
}
