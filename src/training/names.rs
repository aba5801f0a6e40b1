//! How HF's files name and lay out each weight: which tensors, in which order, make one of ours.
//!
//! Source: the modules of `modeling_llama.py`, `modeling_mistral.py`, `modeling_qwen2.py`,
//! `modeling_qwen3.py`, `modeling_gemma.py` and `modeling_gpt2.py` of HF transformers. GPT-2's
//! `Conv1D` holds matrices as [in × out], the transpose of everyone else's `Linear`.

use super::Place;
use crate::model::{Family, ModelConfig, Part};

/// A tensor of a file that makes some rows of a weight.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stored {
    /// Its name in the file.
    pub name: String,
    /// How many rows it makes, after those of the tensors before it.
    pub rows: u64,
    /// Whether the file holds the transpose.
    pub transposed: bool,
}

/// What HF puts before every name but the head's; files of bare models leave it out.
pub fn prefix(family: Family) -> &'static str {
    match family {
        Family::Gpt2 => "transformer.",
        _ => "model.",
    }
}

/// The tensors that make a weight, in order.
pub fn stored(model: &ModelConfig, place: Place) -> Vec<Stored> {
    match model.family {
        Family::Gpt2 => vec![Stored {
            name: gpt2_name(place),
            rows: place.weight.rows,
            transposed: place.block.is_some() && place.weight.is_matrix(),
        }],
        _ => {
            let (q, kv, inner) = (model.query_width(), model.kv_width(), model.intermediate);
            let attention = [("q_proj", q), ("k_proj", kv), ("v_proj", kv)];
            let mlp = [("gate_proj", inner), ("up_proj", inner)];
            let inside = match place.block {
                Some(block) => format!("model.layers.{block}."),
                None => String::new(),
            };
            let several = |within: &str, modules: &[(&str, u64)], kind: &str| {
                let each = modules.iter().map(|&(module, rows)| Stored {
                    name: format!("{inside}{within}.{module}.{kind}"),
                    rows,
                    transposed: false,
                });
                each.collect()
            };
            match place.weight.part {
                Part::Qkv => several("self_attn", &attention, "weight"),
                Part::QkvBias => several("self_attn", &attention, "bias"),
                Part::GateUp => several("mlp", &mlp, "weight"),
                Part::GateUpBias => several("mlp", &mlp, "bias"),
                part => vec![Stored {
                    name: format!("{inside}{}", llama_name(part)),
                    rows: place.weight.rows,
                    transposed: false,
                }],
            }
        }
    }
}

fn llama_name(part: Part) -> &'static str {
    match part {
        Part::AttnNorm => "input_layernorm.weight",
        Part::AttnNormBias => "input_layernorm.bias",
        Part::QNorm => "self_attn.q_norm.weight",
        Part::KNorm => "self_attn.k_norm.weight",
        Part::O => "self_attn.o_proj.weight",
        Part::OBias => "self_attn.o_proj.bias",
        Part::MlpNorm => "post_attention_layernorm.weight",
        Part::MlpNormBias => "post_attention_layernorm.bias",
        Part::Up => "mlp.up_proj.weight",
        Part::UpBias => "mlp.up_proj.bias",
        Part::Down => "mlp.down_proj.weight",
        Part::DownBias => "mlp.down_proj.bias",
        Part::Embedding => "model.embed_tokens.weight",
        Part::PositionEmbedding => "model.embed_positions.weight",
        Part::FinalNorm => "model.norm.weight",
        Part::FinalNormBias => "model.norm.bias",
        Part::LmHead => "lm_head.weight",
        Part::Qkv | Part::QkvBias | Part::GateUp | Part::GateUpBias => {
            unreachable!("made of several tensors")
        }
    }
}

fn gpt2_name(place: Place) -> String {
    let name = match place.weight.part {
        Part::AttnNorm => "ln_1.weight",
        Part::AttnNormBias => "ln_1.bias",
        Part::Qkv => "attn.c_attn.weight",
        Part::QkvBias => "attn.c_attn.bias",
        Part::O => "attn.c_proj.weight",
        Part::OBias => "attn.c_proj.bias",
        Part::MlpNorm => "ln_2.weight",
        Part::MlpNormBias => "ln_2.bias",
        Part::Up | Part::GateUp => "mlp.c_fc.weight",
        Part::UpBias | Part::GateUpBias => "mlp.c_fc.bias",
        Part::Down => "mlp.c_proj.weight",
        Part::DownBias => "mlp.c_proj.bias",
        Part::QNorm => "attn.q_norm.weight",
        Part::KNorm => "attn.k_norm.weight",
        Part::Embedding => "transformer.wte.weight",
        Part::PositionEmbedding => "transformer.wpe.weight",
        Part::FinalNorm => "transformer.ln_f.weight",
        Part::FinalNormBias => "transformer.ln_f.bias",
        Part::LmHead => "lm_head.weight",
    };
    match place.block {
        Some(block) => format!("transformer.h.{block}.{name}"),
        None => name.to_owned(),
    }
}
