//! Models from HF config files: published parameter counts, family defaults, refusals.

use ebbtide::error::Kind;
use ebbtide::model::{
    load, shipped, Activation, Family, ModelConfig, NormKind, Part, Positions, RopeScaling,
    StoredDtype,
};

/// The smallest Llama: what a test adds or changes is all that it is about.
const LLAMA: &str = r#""model_type": "llama", "num_hidden_layers": 2, "hidden_size": 8,
    "num_attention_heads": 2, "intermediate_size": 16, "vocab_size": 10,
    "max_position_embeddings": 32"#;

/// The smallest Llama with its keys overridden or added to (in JSON the last key counts).
fn read(more: &str) -> ebbtide::error::Result<ModelConfig> {
    let comma = if more.is_empty() { "" } else { "," };
    ModelConfig::read("test", &format!("{{{LLAMA}{comma} {more}}}"))
}

fn model(more: &str) -> ModelConfig {
    read(more).unwrap_or_else(|error| panic!("{more}: {error}"))
}

fn part_elements(config: &ModelConfig, part: Part) -> Option<u64> {
    let all = config
        .block_weights()
        .into_iter()
        .chain(config.outer_weights());
    all.filter(|weight| weight.part == part)
        .map(|weight| weight.elements())
        .next()
}

#[test]
fn parameter_counts_are_the_published_ones() {
    for (name, count) in [
        ("llama-2-7b", 6_738_415_616),
        ("llama-2-13b", 13_015_864_320),
        ("llama-3.1-8b", 8_030_261_248),
        ("llama-3.1-70b", 70_553_706_496),
        ("llama-3.2-1b", 1_235_814_400),
        ("llama-3.2-3b", 3_212_749_824),
        ("qwen2.5-7b", 7_615_616_512),
        ("qwen2.5-32b", 32_763_876_352),
        ("qwen3-8b", 8_190_735_360),
        ("mistral-7b-v0.1", 7_241_732_096),
        ("mistral-7b-v0.3", 7_248_023_552),
        ("gpt2", 124_439_808),
        ("gpt2-xl", 1_557_611_200),
        ("gemma-2b", 2_506_172_416),
        ("gemma-7b", 8_537_680_896),
    ] {
        assert_eq!(load(name).unwrap().parameters(), count, "{name}");
    }
}

#[test]
fn every_file_in_profiles_models_is_shipped_under_its_name() {
    let directory = concat!(env!("CARGO_MANIFEST_DIR"), "/profiles/models");
    let mut files: Vec<String> = std::fs::read_dir(directory)
        .unwrap()
        .map(|entry| {
            entry
                .unwrap()
                .path()
                .file_stem()
                .unwrap()
                .to_str()
                .unwrap()
                .to_owned()
        })
        .collect();
    files.sort();
    assert_eq!(files, shipped().collect::<Vec<_>>());
    for name in files {
        let config = load(&name).unwrap();
        assert_eq!(config.name, name);
        let path = format!("{directory}/{name}.json");
        assert_eq!(load(&path).unwrap(), config);
    }
}

#[test]
fn a_block_of_the_tiny_model_is_counted_by_hand() {
    let tiny = load("tiny").unwrap();
    let counts: Vec<_> = tiny
        .block_weights()
        .iter()
        .map(|w| (w.part.name(), w.rows, w.columns))
        .collect();
    assert_eq!(
        counts,
        [
            ("attn_norm", 64, 1),
            ("qkv", 128, 64), // 4 heads + 2 × 2 kv heads, 16 wide
            ("o", 64, 64),
            ("mlp_norm", 64, 1),
            ("gate_up", 352, 64),
            ("down", 64, 176),
        ]
    );
    assert_eq!(tiny.block_parameters(), 46_208);
    assert_eq!(tiny.parameters(), 4 * 46_208 + 256 * 64 + 64 + 256 * 64);
    assert_eq!(tiny.stored_dtype, Some(StoredDtype::F32));
}

#[test]
fn gpt2_has_biases_everywhere_and_a_table_of_positions() {
    let gpt2 = load("gpt2").unwrap();
    let names: Vec<_> = gpt2.block_weights().iter().map(|w| w.part.name()).collect();
    assert_eq!(
        names.join(" "),
        "attn_norm attn_norm_bias qkv qkv_bias o o_bias mlp_norm mlp_norm_bias up up_bias down \
         down_bias"
    );
    let names: Vec<_> = gpt2.outer_weights().iter().map(|w| w.part.name()).collect();
    assert_eq!(
        names.join(" "),
        "embedding position_embedding final_norm final_norm_bias"
    );
    assert_eq!(gpt2.positions, Positions::Learned { positions: 1024 });
    assert_eq!((gpt2.norm, gpt2.norm_eps), (NormKind::Layer, 1e-5));
    assert_eq!(
        (gpt2.intermediate, gpt2.activation),
        (3072, Activation::GeluTanh)
    );
    assert!(gpt2
        .notes
        .iter()
        .any(|note| note.contains("attn_pdrop 0.1 is left out")));
}

#[test]
fn gemma_has_wide_heads_scaled_embeddings_and_a_tied_head() {
    let gemma = load("gemma-7b").unwrap();
    assert_eq!(
        (gemma.hidden, gemma.query_width(), gemma.kv_width()),
        (3072, 4096, 4096)
    );
    assert_eq!(gemma.norm, NormKind::RmsPlusOne);
    assert_eq!(gemma.embedding_scale, Some(3072f64.sqrt()));
    assert!(gemma.tied && gemma.gated);
    assert_eq!(gemma.activation, Activation::GeluTanh);
}

#[test]
fn missing_keys_mean_what_the_family_makes_of_them() {
    let llama = model("");
    assert_eq!(
        (llama.family, llama.kv_heads, llama.head_dim),
        (Family::Llama, 2, 4)
    );
    assert!(!llama.tied && !llama.qkv_bias && !llama.o_bias && !llama.mlp_bias);
    assert_eq!((llama.norm_eps, llama.activation), (1e-6, Activation::Silu));
    assert_eq!(
        llama.positions,
        Positions::Rope {
            theta: 10_000.0,
            scaling: None
        }
    );
    assert_eq!(llama.windows, [None, None]);

    let qwen2 = model(r#""model_type": "qwen2", "num_key_value_heads": 1"#);
    assert!(qwen2.qkv_bias && !qwen2.o_bias && !qwen2.tied);
    assert_eq!(qwen2.windows, [None, None]);

    let qwen3 = model(r#""model_type": "qwen3", "num_key_value_heads": null"#);
    assert!(qwen3.qk_norm && !qwen3.qkv_bias);
    assert_eq!((qwen3.kv_heads, qwen3.head_dim), (2, 128));

    let gemma = model(r#""model_type": "gemma", "num_key_value_heads": 1"#);
    assert!(gemma.tied);
    assert_eq!(gemma.head_dim, 256);

    let mistral = model(r#""model_type": "mistral", "num_key_value_heads": 1"#);
    assert_eq!(
        (0..2)
            .map(|layer| mistral.window(layer))
            .collect::<Vec<_>>(),
        [Some(4096); 2]
    );

    let by_architecture = ModelConfig::read(
        "test",
        r#"{"architectures": ["GPT2LMHeadModel"], "n_layer": 1, "n_embd": 8, "n_head": 2,
            "n_positions": 4, "vocab_size": 10}"#,
    )
    .unwrap();
    assert_eq!(by_architecture.family, Family::Gpt2);
    assert!(by_architecture.tied);
}

#[test]
fn bias_flags_reach_the_projections_that_the_family_gives_them() {
    let llama = model(r#""attention_bias": true, "mlp_bias": true"#);
    assert_eq!(part_elements(&llama, Part::QkvBias), Some(24));
    assert_eq!(part_elements(&llama, Part::OBias), Some(8));
    assert_eq!(part_elements(&llama, Part::GateUpBias), Some(32));
    assert_eq!(part_elements(&llama, Part::DownBias), Some(8));

    let qwen2 = load("qwen2.5-7b").unwrap();
    assert_eq!(part_elements(&qwen2, Part::QkvBias), Some(3584 + 2 * 512));
    assert_eq!(part_elements(&qwen2, Part::OBias), None);

    let qwen3 = load("qwen3-8b").unwrap();
    assert_eq!(part_elements(&qwen3, Part::QNorm), Some(128));
    assert_eq!(part_elements(&qwen3, Part::KNorm), Some(128));
}

#[test]
fn a_tied_head_is_counted_once() {
    assert_eq!(
        model("").parameters() - model(r#""tie_word_embeddings": true"#).parameters(),
        80
    );
}

#[test]
fn windows_follow_the_family_and_the_layer_types() {
    let qwen = r#""model_type": "qwen2", "num_key_value_heads": 1, "use_sliding_window": true,
        "sliding_window": 7"#;
    assert_eq!(
        model(&format!(r#"{qwen}, "max_window_layers": 1"#)).windows,
        [None, Some(7)]
    );
    assert_eq!(model(qwen).windows, [None, None]); // from layer 28 on
    let types = r#""layer_types": ["sliding_attention", "full_attention"]"#;
    assert_eq!(model(&format!("{qwen}, {types}")).windows, [Some(7), None]);

    assert_eq!(load("mistral-7b-v0.1").unwrap().windows, [Some(4096); 32]);
    assert_eq!(load("mistral-7b-v0.3").unwrap().windows, [None; 32]);
}

#[test]
fn rope_scalings_are_kept_as_data() {
    let Positions::Rope { theta, scaling } = load("llama-3.2-1b").unwrap().positions else {
        panic!("llama has RoPE")
    };
    assert_eq!(theta, 500_000.0);
    let llama3 = RopeScaling::Llama3 {
        factor: 32.0,
        low_freq_factor: 1.0,
        high_freq_factor: 4.0,
        original_positions: 8192,
    };
    assert_eq!(scaling, Some(llama3));

    let scaling = |text: &str| match model(text).positions {
        Positions::Rope { theta, scaling } => (theta, scaling),
        Positions::Learned { .. } => panic!("llama has RoPE"),
    };
    assert_eq!(
        scaling(r#""rope_scaling": {"type": "linear", "factor": 4}"#),
        (10_000.0, Some(RopeScaling::Linear { factor: 4.0 }))
    );
    let yarn = |original_positions, attention_factor| RopeScaling::Yarn {
        factor: 4.0,
        beta_fast: 32.0,
        beta_slow: 1.0,
        original_positions,
        attention_factor,
        truncate: true,
    };
    assert_eq!(
        scaling(r#""rope_scaling": {"rope_type": "yarn", "factor": 4.0}"#).1,
        Some(yarn(32, 0.1 * 4f64.ln() + 1.0))
    );
    assert_eq!(
        scaling(
            r#""rope_parameters": {"rope_type": "yarn", "factor": 4.0, "rope_theta": 5e5,
                "original_max_position_embeddings": 8, "mscale": 1.0, "mscale_all_dim": 1.0}"#
        ),
        (5e5, Some(yarn(8, 1.0)))
    );
}

#[test]
fn a_language_model_inside_a_multimodal_one_is_read_and_said_so() {
    let text = format!(
        r#"{{"model_type": "llava", "architectures": ["LlavaForConditionalGeneration"],
            "vision_config": {{"hidden_size": 1024}}, "tie_word_embeddings": true,
            "text_config": {{{LLAMA}}}}}"#
    );
    let config = ModelConfig::read("llava", &text).unwrap();
    assert_eq!(config.family, Family::Llama);
    assert!(config.tied);
    assert!(config
        .notes
        .iter()
        .any(|note| note.contains("only text_config")));
}

/// Keys added to the smallest Llama, and below them what the error says.
const REFUSED: &str = r#"
"num_hidden_layers": 0
  => num_hidden_layers is 0, not a whole number from 1 to 10000
"num_hidden_layers": 10001
  => num_hidden_layers is 10001
"num_hidden_layers": null
  => num_hidden_layers is missing
"num_attention_heads": 0
  => num_attention_heads is 0
"num_attention_heads": 3
  => num_attention_heads is 3, not a divisor of the hidden
"num_attention_heads": 8
  => head_dim is 1, not even
"num_key_value_heads": 3
  => num_key_value_heads is 3, not a divisor of
"num_attention_heads": 65536, "head_dim": 16384
  => are wider than 4194304
"hidden_size": -8
  => hidden_size is -8, not a whole number
"hidden_size": 8.5
  => hidden_size is 8.5, not a whole number
"hidden_size": "8"
  => hidden_size is "8", not a whole number
"hidden_size": 1048578
  => hidden_size is 1048578, not a whole number from 1 to 1048576
"vocab_size": 99999999999999999999999
  => vocab_size is 1e+23
"intermediate_size": true
  => intermediate_size is true
"hidden_size": 1048576, "num_hidden_layers": 10000, "intermediate_size": 16777216
  => parameters, more than 17592186044416
"rms_norm_eps": 0
  => rms_norm_eps is 0, not a number above 0
"rope_theta": -1
  => rope_theta is -1, not a number of at least 1
"attention_bias": "no"
  => attention_bias is "no", not true or false
"hidden_act": "relu2"
  => hidden_act is "relu2", not one of silu
"torch_dtype": "int4"
  => torch_dtype is "int4", not one of float32

"rope_scaling": {"type": "dynamic", "factor": 2.0}
  => rope_scaling.type is "dynamic"
"rope_scaling": {"type": "linear"}
  => rope_scaling.factor is missing
"rope_scaling": {"type": "linear", "factor": 0.5}
  => rope_scaling.factor is 0.5
"rope_scaling": {"type": "yarn", "factor": 2, "attn_factor": 1}
  => attn_factor is 1, not
"rope_scaling": [1]
  => rope_scaling is [1], not an object
"rope_scaling": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 4.0,
    "high_freq_factor": 4.0, "original_max_position_embeddings": 8}
  => high_freq_factor is 4.0, not more than low_freq_factor 4
"rope_scaling": {"type": "default"}, "rope_parameters": {}
  => both rope_scaling and
"rope_theta": 2, "rope_parameters": {"rope_theta": 3}
  => rope_parameters.rope_theta is 3
"rope_parameters": {"full_attention": {}}
  => rope_parameters.full_attention is {}
"sliding_window": 4096
  => sliding_window is 4096, not null
"layer_types": ["full_attention"]
  => layer_types names 1 layers, but the model has 2
"layer_types": ["full_attention", "linear_attention"]
  => [1] is "linear_attention"
"model_type": "qwen2", "num_key_value_heads": 1, "layer_types": ["sliding_attention",
    "full_attention"]
  => layer_types[0] is sliding_attention, but no sliding window
"model_type": "mistral", "num_key_value_heads": 1, "sliding_window": 4,
    "layer_types": ["sliding_attention", "full_attention"]
  => which mistral does not read

"model_type": "rwkv"
  => served are llama, mistral, qwen2, qwen3, gemma, gpt2
"model_type": null
  => a config without model_type is not served
"model_type": null, "architectures": ["FooForCausalLM"]
  => ["FooForCausalLM"] is not
"architectures": ["LlamaForSequenceClassification"]
  => not ["LlamaForCausalLM"]
"model_type": "gemma3_text"
  => four norms in a block
"model_type": "qwen2"
  => num_key_value_heads is missing
"model_type": "qwen2", "num_key_value_heads": 1, "attention_bias": false
  => attention_bias is false, not true
"model_type": "mistral", "num_key_value_heads": 1, "attention_bias": true
  => attention_bias is true, not false
"model_type": "gpt2", "n_positions": 4, "num_key_value_heads": 1
  => gpt2 has no key and value heads

"num_local_experts": 8
  => mixture of experts (num_local_experts = 8)
"num_experts": 64
  => mixture of experts (num_experts = 64)
"n_routed_experts": 256, "num_experts_per_tok": 8, "kv_lora_rank": 512
  => mixture of experts (n_routed_experts = 256, num_experts_per_tok = 8), multi-head
"ssm_cfg": {"layer": "Mamba2"}
  => state-space, convolution or linear-attention layers
"hybrid_override_pattern": "M*M-"
  => hybrid_override_pattern = "M*M-"
"is_encoder_decoder": true
  => an encoder with a decoder
"quantization_config": {"bits": 4}
  => quantised weights (quantization_config
"final_logit_softcapping": 30.0
  => logit softcapping
"partial_rotary_factor": 0.5
  => RoPE on part of a head
"vision_config": {}
  => vision_config is stated, but no text_config
"text_config": []
  => text_config is [], not an object
"scale_attn_weights": false
  => unscaled attention is not modelled
"auto_map": {"AutoModel": "x.Y"}
  => a model defined by its own code
"#;

#[test]
fn what_is_wrong_or_not_modelled_is_refused_by_name() {
    let mut more = String::new();
    for line in REFUSED.lines() {
        let Some(says) = line.strip_prefix("  => ") else {
            more += line;
            continue;
        };
        let error = read(&more).expect_err(&more);
        assert_eq!(error.kind, Kind::BadInput);
        assert!(
            error.to_string().contains(says),
            "{more}\nsays: {error}\nnot: {says}"
        );
        more.clear();
    }
    assert!(more.is_empty(), "the table ends with what an error says");
}

#[test]
fn keys_that_ask_for_nothing_are_not_refused() {
    model(
        r#""num_experts": 0, "quantization_config": null, "is_encoder_decoder": false,
            "pruned_heads": {}, "partial_rotary_factor": 1.0, "rope_scaling": {},
            "sliding_window": null, "attn_logit_softcapping": null"#,
    );
}

#[test]
fn no_value_of_any_key_panics() {
    let odd = [
        "null",
        "true",
        "-1",
        "0",
        "1",
        "1.5",
        "18446744073709551615",
        "1e308",
        "\"x\"",
        "[]",
    ];
    let deeper = ["{}", "[1]", "[\"x\"]", "{\"type\": 1}"];
    for name in shipped() {
        let path = format!("{}/profiles/models/{name}.json", env!("CARGO_MANIFEST_DIR"));
        let text = std::fs::read_to_string(path).unwrap();
        let keys = text
            .lines()
            .filter_map(|line| line.trim().strip_prefix('"')?.split('"').next());
        for key in keys {
            for value in odd.iter().chain(&deeper) {
                let changed = format!("{},\n\"{key}\": {value}}}", &text[..text.len() - 3]);
                if let Ok(config) = ModelConfig::read(name, &changed) {
                    assert!(
                        (1..=1 << 44).contains(&config.parameters()),
                        "{key}: {value}"
                    );
                }
            }
        }
        for end in 0..text.len() - 2 {
            assert!(
                ModelConfig::read(name, &text[..end]).is_err(),
                "{name} cut at {end}"
            );
        }
    }
}

#[test]
fn text_that_is_no_model_is_refused_clearly() {
    let deep = format!("{}{}", "[".repeat(100_000), "]".repeat(100_000));
    for (text, says) in [
        ("", "the JSON ends early"),
        (r#"{"model_type": "lla"#, "the JSON ends early"),
        (
            r#"{"hidden_size": NaN}"#,
            "not JSON: expected value at line 1 column 17",
        ),
        (r#"{"hidden_size": 1e999}"#, "number out of range"),
        ("[]", "the file is [], not an object"),
        ("llama", "not JSON"),
        (deep.as_str(), "nested more than 127 levels deep"),
    ] {
        let error = ModelConfig::read("test", text).unwrap_err();
        assert!(
            error.to_string().contains(says),
            "says: {error}\nnot: {says}"
        );
    }
}

#[test]
fn errors_name_the_file_and_unknown_names_their_neighbours() {
    let directory = std::env::temp_dir().join(format!("ebbtide-model-{}", std::process::id()));
    std::fs::create_dir_all(&directory).unwrap();
    let at = directory.to_str().unwrap();
    let says = |spec: &str| load(spec).unwrap_err().to_string();
    assert!(says(at).contains("holds no config.json"));

    let path = directory.join("config.json");
    std::fs::write(&path, "{").unwrap();
    assert!(says(at).starts_with(&format!("{}: the JSON ends early", path.display())));
    std::fs::write(&path, [0xff, 0xfe]).unwrap();
    assert!(says(at).starts_with(path.to_str().unwrap()));
    std::fs::write(&path, format!("{{{LLAMA}}}")).unwrap();
    assert_eq!(
        load(at).unwrap().name,
        directory.file_name().unwrap().to_str().unwrap()
    );
    std::fs::remove_dir_all(&directory).unwrap();

    assert!(says("meta-llama/Llama-3.1-8B-x").contains("did you mean"));
    assert!(says("lama-2-7b").contains("did you mean llama-2-7b"));
    assert!(says("").contains("shipped models are gemma-2b"));
    assert!(says("nothing-like-it").contains("is no file, no directory and no shipped model"));
}
