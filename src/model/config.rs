//! A model's shape and arithmetic, read from the text of its HF `config.json`.
//!
//! Sizes must be stated; flags and constants that HF fills in when missing get the family's own
//! value (see `families.rs`). The limits on sizes are far above any model and keep every byte
//! count of weights, gradients and optimizer states within 64 bits. They do not bound FLOPs of a
//! step, which also grow with tokens: count those in 128 bits.

use serde_json::Value;

use super::families::{family_of, Activation, Bias, Family, NormKind, Traits};
use super::fields::{parse, Fields};
use super::positions::{read_rope, Positions, MAX_POSITIONS};
use super::refused::refuse_unmodelled;
use super::windows::{read_windows, MAX_LAYERS};
use crate::error::{Error, Result};

const MAX_HIDDEN: u64 = 1 << 20;
const MAX_HEADS: u64 = 1 << 16;
const MAX_HEAD_DIM: u64 = 1 << 14;
/// The widest q; k and v are no wider.
const MAX_QUERY_WIDTH: u64 = 1 << 22;
const MAX_INTERMEDIATE: u64 = 1 << 24;
const MAX_VOCAB: u64 = 1 << 26;
/// About 17 trillion.
const MAX_PARAMETERS: u64 = 1 << 44;
const DROPOUT_KEYS: [&str; 6] = [
    "attention_dropout",
    "hidden_dropout",
    "resid_pdrop",
    "embd_pdrop",
    "attn_pdrop",
    "residual_dropout",
];

/// The type in which the published weights are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StoredDtype {
    /// 4 bytes.
    F32,
    /// 2 bytes, 5 of exponent.
    F16,
    /// 2 bytes, 8 of exponent.
    Bf16,
}

/// A dense decoder-only transformer: pre-norm blocks of attention and MLP.
///
/// With `x` [tokens × hidden], a block is `x += o(attention(qkv(norm(x))))`, then
/// `x += down(act(gate(norm(x))) · up(norm(x)))`, or `x += down(act(up(norm(x))))` where not gated.
/// Attention is causal and scales scores by `1 / sqrt(head_dim)`.
#[derive(Clone, Debug, PartialEq)]
pub struct ModelConfig {
    /// What reports call the model.
    pub name: String,
    /// Its family.
    pub family: Family,
    /// Blocks.
    pub layers: u64,
    /// Width of the residual stream.
    pub hidden: u64,
    /// Query heads.
    pub heads: u64,
    /// Key heads, and as many value heads; divides `heads`.
    pub kv_heads: u64,
    /// Width of a head; `heads × head_dim` need not be `hidden`.
    pub head_dim: u64,
    /// Width of the MLP's inside, of the gate and of the up half each where gated.
    pub intermediate: u64,
    /// Rows of the embedding and of the LM head.
    pub vocab: u64,
    /// What every norm computes, q and k norms included.
    pub norm: NormKind,
    /// What a norm adds under its root.
    pub norm_eps: f64,
    /// The MLP's non-linearity.
    pub activation: Activation,
    /// Whether the MLP has a gate beside its up projection.
    pub gated: bool,
    /// Whether q, k and v have a bias.
    pub qkv_bias: bool,
    /// Whether the attention output has a bias.
    pub o_bias: bool,
    /// Whether every projection of the MLP has a bias.
    pub mlp_bias: bool,
    /// Whether q and k are normed per head, before RoPE.
    pub qk_norm: bool,
    /// Whether the LM head is the embedding.
    pub tied: bool,
    /// What the embedding is multiplied with on its way into block 0 (Gemma: `sqrt(hidden)`,
    /// which HF rounds to the weights' type).
    pub embedding_scale: Option<f64>,
    /// How the order of tokens enters.
    pub positions: Positions,
    /// The longest sequence that the model was made for.
    pub max_positions: u64,
    /// Sliding window of each layer in tokens, the token itself included; none: all before it.
    pub windows: Vec<Option<u64>>,
    /// The type of the published weights, where stated.
    pub stored_dtype: Option<StoredDtype>,
    /// What the config says and a step leaves out or reads otherwise, for people.
    pub notes: Vec<String>,
    /// The JSON object that it was read from: whoever keeps it can read the model again.
    pub source: Value,
}

impl ModelConfig {
    /// Reads the text of a `config.json`; `name` is what reports will call the model.
    ///
    /// # Errors
    /// Text that is not a JSON object, a model that is not served or asks for something that is
    /// not modelled, and sizes that are missing, contradict each other or are out of range.
    pub fn read(name: impl Into<String>, text: &str) -> Result<Self> {
        Self::of_json(name, parse(text)?)
    }

    /// The same from JSON that has been parsed.
    ///
    /// # Errors
    /// As [`ModelConfig::read`], but for text that is not JSON.
    pub fn of_json(name: impl Into<String>, source: Value) -> Result<Self> {
        let mut config = Self::of_file(Fields::of(&source, "")?)?;
        config.name = name.into();
        config.source = source;
        Ok(config)
    }

    fn of_file(file: Fields) -> Result<Self> {
        refuse_unmodelled(file)?;
        let text_model = file.object("text_config")?;
        let fields = text_model.unwrap_or(file);
        let mut config = match text_model {
            Some(fields) => refuse_unmodelled(fields).and_then(|()| read_fields(fields))?,
            None => {
                refuse_other_inputs(file)?;
                read_fields(file)?
            }
        };
        config.tied = read_tied(file, fields)?.unwrap_or(config.tied);
        if text_model.is_some() {
            config
                .notes
                .push("only text_config, the language model, is counted".into());
        }
        match config.parameters() {
            1..=MAX_PARAMETERS => Ok(config),
            count => Err(Error::bad_input(format!(
                "the model has {count} parameters, more than {MAX_PARAMETERS}"
            ))),
        }
    }

    /// Width of q: `heads × head_dim`.
    pub fn query_width(&self) -> u64 {
        self.heads * self.head_dim
    }

    /// Width of k, and of v: `kv_heads × head_dim`.
    pub fn kv_width(&self) -> u64 {
        self.kv_heads * self.head_dim
    }

    /// The sliding window of a layer in tokens, the token itself included; none: all before it.
    ///
    /// # Panics
    /// When the model has no such layer.
    pub fn window(&self, layer: usize) -> Option<u64> {
        self.windows[layer]
    }
}

/// The model that these fields state, but for its name, its source and a `tie_word_embeddings`
/// outside them.
fn read_fields(fields: Fields) -> Result<ModelConfig> {
    let traits = family_of(fields)?;
    let keys = traits.keys;
    if fields.flag("scale_attn_weights")? == Some(false) {
        return Err(fields.wrong(
            "scale_attn_weights",
            "true: unscaled attention is not modelled",
        ));
    }
    let mut notes = dropout_notes(fields)?;
    let layers = fields.need_whole(fields.either(keys.layers), 1..=MAX_LAYERS)?;
    let hidden = fields.need_whole(fields.either(keys.hidden), 1..=MAX_HIDDEN)?;
    let (heads, kv_heads, head_dim) = read_heads(fields, traits, hidden)?;
    let inner_key = fields.either(keys.intermediate);
    let intermediate = match fields.whole(inner_key, 1..=MAX_INTERMEDIATE)? {
        None if traits.family == Family::Gpt2 => 4 * hidden,
        stated => fields.need(inner_key, stated)?,
    };
    let max_positions = fields.need_whole(fields.either(keys.positions), 1..=MAX_POSITIONS)?;
    let positions = if traits.learned_positions {
        Positions::Learned {
            positions: max_positions,
        }
    } else {
        read_rope(fields, max_positions)?
    };
    let qkv_bias = read_bias(fields, "attention_bias", traits.qkv_bias, traits)?;
    Ok(ModelConfig {
        name: String::new(),
        family: traits.family,
        layers,
        hidden,
        heads,
        kv_heads,
        head_dim,
        intermediate,
        vocab: fields.need_whole("vocab_size", 1..=MAX_VOCAB)?,
        norm: traits.norm,
        norm_eps: fields
            .positive(fields.either(keys.norm_eps))?
            .unwrap_or(traits.norm_eps),
        activation: read_activation(fields, traits, &mut notes)?,
        gated: traits.gated,
        qkv_bias,
        o_bias: traits.o_bias.unwrap_or(qkv_bias),
        mlp_bias: read_bias(fields, "mlp_bias", traits.mlp_bias, traits)?,
        qk_norm: traits.qk_norm,
        tied: traits.tied,
        embedding_scale: traits.scaled_embedding.then_some((hidden as f64).sqrt()),
        positions,
        max_positions,
        windows: read_windows(fields, traits, layers)?,
        stored_dtype: read_dtype(fields)?,
        notes,
        source: Value::Null,
    })
}

/// Heads, key and value heads, width of a head.
fn read_heads(fields: Fields, traits: &Traits, hidden: u64) -> Result<(u64, u64, u64)> {
    let heads_key = fields.either(traits.keys.heads);
    let heads = fields.need_whole(heads_key, 1..=MAX_HEADS)?;
    let kv_key = "num_key_value_heads";
    let kv_heads = match fields.whole(kv_key, 1..=MAX_HEADS)? {
        None if traits.kv_heads_optional || fields.is_null(kv_key) => heads,
        stated => fields.need(kv_key, stated)?,
    };
    if heads % kv_heads != 0 {
        return Err(fields.wrong(kv_key, format!("a divisor of {heads_key} {heads}")));
    }
    let head_dim = match fields
        .whole("head_dim", 1..=MAX_HEAD_DIM)?
        .or(traits.head_dim)
    {
        Some(width) => width,
        None if hidden % heads == 0 => hidden / heads,
        None => {
            return Err(fields
                .wrong(heads_key, format!("a divisor of the hidden size {hidden}"))
                .hint("or state head_dim"))
        }
    };
    if !traits.learned_positions && head_dim % 2 != 0 {
        return Err(
            Error::bad_input(format!("head_dim is {head_dim}, not even"))
                .hint("RoPE turns pairs of a head's elements"),
        );
    }
    if traits.family == Family::Gpt2 && (kv_heads, head_dim * heads) != (heads, hidden) {
        return Err(
            Error::bad_input("gpt2 has no key and value heads and no head_dim of its own")
                .hint("remove num_key_value_heads and head_dim"),
        );
    }
    if heads * head_dim > MAX_QUERY_WIDTH {
        return Err(Error::bad_input(format!(
            "{heads} heads of {head_dim} are wider than {MAX_QUERY_WIDTH}"
        )));
    }
    Ok((heads, kv_heads, head_dim))
}

/// Whether a projection has a bias.
fn read_bias(fields: Fields, key: &str, bias: Bias, traits: &Traits) -> Result<bool> {
    match (bias, fields.flag(key)?) {
        (Bias::Key, stated) => Ok(stated.unwrap_or(false)),
        (Bias::Fixed(has), Some(stated)) if stated != has => Err(fields
            .wrong(key, has)
            .hint(format!("{} does not read this key", traits.model_type))),
        (Bias::Fixed(has), _) => Ok(has),
    }
}

fn read_activation(fields: Fields, traits: &Traits, notes: &mut Vec<String>) -> Result<Activation> {
    let key = fields.either(traits.keys.activation);
    Ok(match fields.text(key)? {
        None => traits.activation,
        Some("silu" | "swish") => Activation::Silu,
        Some("gelu") if traits.family == Family::Gemma && key == "hidden_act" => {
            notes.push(
                "hidden_act \"gelu\" is read as tanh GELU, which Gemma was trained with".into(),
            );
            Activation::GeluTanh
        }
        Some("gelu") => Activation::Gelu,
        Some("gelu_new" | "gelu_pytorch_tanh") => Activation::GeluTanh,
        Some(_) => return Err(fields.wrong(key, "one of silu, gelu, gelu_new, gelu_pytorch_tanh")),
    })
}

/// `tie_word_embeddings`, of the language model or of the whole file around it.
fn read_tied(file: Fields, fields: Fields) -> Result<Option<bool>> {
    let key = "tie_word_embeddings";
    match (fields.flag(key)?, file.flag(key)?) {
        (Some(inner), Some(outer)) if inner != outer => {
            Err(fields.wrong(key, format!("{outer} as outside")))
        }
        (inner, outer) => Ok(inner.or(outer)),
    }
}

fn read_dtype(fields: Fields) -> Result<Option<StoredDtype>> {
    let key = fields.either(&["dtype", "torch_dtype"]);
    Ok(Some(match fields.text(key)? {
        None => return Ok(None),
        Some("float32") => StoredDtype::F32,
        Some("float16") => StoredDtype::F16,
        Some("bfloat16") => StoredDtype::Bf16,
        Some(_) => return Err(fields.wrong(key, "one of float32, float16, bfloat16")),
    }))
}

fn dropout_notes(fields: Fields) -> Result<Vec<String>> {
    let mut notes = Vec::new();
    for key in DROPOUT_KEYS {
        if let Some(rate) = fields.number(key, 0.0)?.filter(|&rate| rate != 0.0) {
            notes.push(format!(
                "{key} {rate} is left out: steps run without dropout"
            ));
        }
    }
    Ok(notes)
}

/// Refuses a model of images or sound that names no language model of its own.
fn refuse_other_inputs(file: Fields) -> Result<()> {
    for key in ["vision_config", "audio_config", "thinker_config"] {
        if file.get(key).is_some() {
            return Err(
                Error::bad_input(format!("{key} is stated, but no text_config"))
                    .hint("of a multimodal model only a language model in text_config is planned"),
            );
        }
    }
    Ok(())
}
