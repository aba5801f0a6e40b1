//! Tiny models, each with something that the others have not.

use ebbtide::model::ModelConfig;

const LLAMA: &str = r#""model_type": "llama", "num_hidden_layers": 3, "hidden_size": 24,
    "num_attention_heads": 4, "num_key_value_heads": 4, "intermediate_size": 40, "vocab_size": 53,
    "max_position_embeddings": 64"#;
const GPT2: &str = r#""model_type": "gpt2", "n_layer": 3, "n_embd": 24, "n_head": 4,
    "n_positions": 32, "vocab_size": 53"#;

/// What tests call each, and what its config says beside or instead of the smallest.
const MODELS: [(&str, &str, &str); 7] = [
    ("mha", LLAMA, ""),
    ("gqa", LLAMA, r#""num_key_value_heads": 2, "head_dim": 8"#),
    ("tied", LLAMA, r#""tie_word_embeddings": true"#),
    (
        "bias",
        LLAMA,
        r#""model_type": "qwen2", "num_key_value_heads": 2"#,
    ),
    (
        "qk-norm",
        LLAMA,
        r#""model_type": "qwen3", "num_key_value_heads": 2, "head_dim": 8,
        "attention_bias": true"#,
    ),
    (
        "window",
        LLAMA,
        r#""model_type": "mistral", "num_key_value_heads": 2, "sliding_window": 7"#,
    ),
    ("gpt2", GPT2, ""),
];

/// The names of all.
pub fn names() -> impl Iterator<Item = &'static str> {
    MODELS.iter().map(|m| m.0)
}

/// A model by its name.
pub fn model(name: &str) -> ModelConfig {
    let (_, base, more) = MODELS.iter().find(|m| m.0 == name).expect("a model's name");
    let comma = if more.is_empty() { "" } else { "," };
    ModelConfig::read(name, &format!("{{{base}{comma}{more}}}")).expect("can be read")
}
