//! What a config may ask for and this planner does not model, by the keys that ask for it.
//!
//! A key that says nothing (`null`, `false`, `0`, empty) asks for nothing. Keys that no rule here
//! names are taken for metadata: the list is what published families use, not a proof.

use serde_json::Value;

use super::fields::{shown, Fields};
use crate::error::{Error, Result};

/// A feature that is not modelled and the keys that ask for it.
struct Feature {
    name: &'static str,
    keys: &'static [&'static str],
    /// A value with which the key changes nothing.
    neutral: Option<f64>,
}

const fn feature(name: &'static str, keys: &'static [&'static str]) -> Feature {
    Feature {
        name,
        keys,
        neutral: None,
    }
}
const fn multiplier(name: &'static str, keys: &'static [&'static str]) -> Feature {
    Feature {
        name,
        keys,
        neutral: Some(1.0),
    }
}

const FEATURES: &[Feature] = &[
    feature(
        "mixture of experts",
        &[
            "num_local_experts",
            "num_experts",
            "n_routed_experts",
            "moe_num_experts",
            "num_experts_per_tok",
            "moe_intermediate_size",
        ],
    ),
    feature(
        "multi-head latent attention",
        &["kv_lora_rank", "q_lora_rank"],
    ),
    feature(
        "state-space, convolution or linear-attention layers",
        &[
            "ssm_cfg",
            "state_size",
            "ssm_state_size",
            "mamba_d_state",
            "attn_layer_period",
            "layers_block_type",
            "hybrid_override_pattern",
            "linear_num_key_heads",
            "full_attention_interval",
            "conv_L_cache",
        ],
    ),
    feature(
        "an encoder with a decoder",
        &["is_encoder_decoder", "num_decoder_layers"],
    ),
    feature(
        "cross attention",
        &["add_cross_attention", "cross_attention_layers"],
    ),
    feature(
        "quantised weights",
        &["quantization_config", "compression_config"],
    ),
    feature(
        "logit softcapping",
        &["attn_logit_softcapping", "final_logit_softcapping"],
    ),
    feature("a scale of attention's own", &["query_pre_attn_scalar"]),
    multiplier(
        "multipliers of attention, residuals, embeddings or logits",
        &[
            "attention_multiplier",
            "residual_multiplier",
            "embedding_multiplier",
            "logits_scaling",
            "logit_scale",
            "scale_emb",
            "scale_depth",
        ],
    ),
    multiplier(
        "RoPE on part of a head",
        &["partial_rotary_factor", "rotary_pct"],
    ),
    feature("multimodal RoPE", &["use_mrope"]),
    feature("layers with a RoPE of their own", &["rope_local_base_freq"]),
    feature(
        "layers without positions",
        &["no_rope_layers", "no_rope_layer_interval"],
    ),
    feature("ALiBi positions", &["alibi", "use_alibi"]),
    feature("clipped q, k and v", &["clip_qkv"]),
    feature("attention in chunks", &["attention_chunk_size"]),
    feature(
        "attention to later tokens",
        &["use_bidirectional_attention"],
    ),
    feature(
        "attention scaled by layer",
        &["scale_attn_by_inverse_layer_idx"],
    ),
    feature("attention in fp32", &["reorder_and_upcast_attn"]),
    feature(
        "attention and MLP in parallel",
        &["parallel_attn", "use_parallel_residual"],
    ),
    feature("several predicted tokens", &["num_nextn_predict_layers"]),
    feature(
        "layers that share keys and values",
        &["num_kv_shared_layers"],
    ),
    feature(
        "blocks of different shapes",
        &["block_configs", "pruned_heads"],
    ),
    feature("a model defined by its own code", &["auto_map"]),
];

/// Refuses everything in the config that is not modelled, all of it in one error.
pub(super) fn refuse_unmodelled(fields: Fields) -> Result<()> {
    let mut found = Vec::new();
    for feature in FEATURES {
        let asked: Vec<String> = (feature.keys.iter())
            .filter_map(|key| Some((key, fields.get(key).filter(|v| feature.is_asked_for(v))?)))
            .map(|(key, value)| format!("{key} = {}", shown(value)))
            .collect();
        if !asked.is_empty() {
            found.push(format!("{} ({})", feature.name, asked.join(", ")));
        }
    }
    if found.is_empty() {
        return Ok(());
    }
    Err(
        Error::bad_input(format!("not modelled: {}", found.join(", ")))
            .hint("dense decoder-only models with unquantised weights are planned"),
    )
}

impl Feature {
    fn is_asked_for(&self, value: &Value) -> bool {
        match value {
            Value::Null => false,
            Value::Bool(flag) => *flag,
            Value::Number(number) => {
                number.as_f64() != Some(0.0) && number.as_f64() != self.neutral.or(Some(0.0))
            }
            Value::String(text) => !text.is_empty(),
            Value::Array(list) => !list.is_empty(),
            Value::Object(map) => !map.is_empty(),
        }
    }
}
