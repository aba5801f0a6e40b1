//! The CPU device as a whole: a training step against the model written down plainly, and streams
//! that race, fail and are slow.

mod compress;
mod reference;
mod step;
mod streams;

use ebbtide::device::layout::{Layout, WeightValue};
use ebbtide::model::{Compressed, ModelConfig};
use ebbtide::profile::Dtype;

use reference::{Batch, Weights};
use step::{run, Cut, Outcome};

/// Two small blocks of a family, with what is particular to it.
fn config(family: &str, particular: &str) -> ModelConfig {
    let text = match family {
        "gpt2" => r#"{"model_type": "gpt2", "n_layer": 2, "n_embd": 6, "n_head": 2,
            "vocab_size": 11, "n_positions": 16, "activation_function": "gelu_new"}"#
            .to_owned(),
        _ => format!(
            r#"{{"model_type": "{family}", "num_hidden_layers": 2, "hidden_size": 6,
            "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 4,
            "intermediate_size": 5, "vocab_size": 11, "max_position_embeddings": 64,
            "rms_norm_eps": 1e-5, {particular}}}"#
        ),
    };
    ModelConfig::read(family, &text).unwrap()
}

/// Numbers between −1 and 1 (splitmix64, Steele et al. 2014).
fn noise(seed: u64) -> impl FnMut() -> f64 {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15);
    move || {
        state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = state;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        ((z ^ (z >> 31)) >> 11) as f64 / (1u64 << 52) as f64 - 1.0
    }
}

/// Weights that f32 and bf16 hold exactly, so that rounding them is no part of a difference.
fn weights(config: &ModelConfig) -> Weights {
    let mut next = noise(3);
    let mut weights = Weights::new();
    let blocks = (0..config.layers).map(Some);
    for block in blocks.chain([None]) {
        let of = match block {
            Some(_) => config.block_weights(),
            None => config.outer_weights(),
        };
        for weight in of {
            let middle = if weight.part.name().ends_with("norm") {
                0.75
            } else {
                0.0
            };
            let values = (0..weight.elements()).map(|_| middle + (64.0 * next()).round() / 128.0);
            weights.insert((block, weight.part), values.collect());
        }
    }
    weights
}

/// Two sequences of five tokens, one label in four ignored.
fn batch(config: &ModelConfig) -> Batch {
    let mut next = noise(4);
    let mut token = || (next().abs() * config.vocab as f64) as u32;
    Batch {
        tokens: (0..10).map(|_| token()).collect(),
        labels: (0..10)
            .map(|i| if i % 4 == 3 { -100 } else { token() as i32 })
            .collect(),
        sequence: 5,
    }
}

const FAMILIES: [(&str, &str); 6] = [
    (
        "llama",
        r#""attention_bias": true, "mlp_bias": true, "rope_scaling": {"rope_type": "llama3",
      "factor": 8, "low_freq_factor": 1, "high_freq_factor": 4,
      "original_max_position_embeddings": 16}"#,
    ),
    ("mistral", r#""sliding_window": 3"#),
    ("qwen2", r#""tie_word_embeddings": true"#),
    (
        "qwen3",
        r#""rope_scaling": {"rope_type": "yarn", "factor": 4,
      "original_max_position_embeddings": 16}"#,
    ),
    ("gemma", r#""hidden_activation": "gelu_pytorch_tanh""#),
    ("gpt2", ""),
];

const WHOLE: Cut = Cut {
    groups: 1,
    tile: 10,
    dtype: Dtype::F32,
};

fn of_family(family: &str, particular: &str, cut: Cut, by_group: bool) -> Outcome {
    let config = config(family, particular);
    run(&config, &weights(&config), &batch(&config), cut, by_group)
}

/// The largest difference of two gradients, relative to the largest element of the second.
fn difference(a: &[f32], b: &[f32]) -> f64 {
    assert_eq!(a.len(), b.len());
    let size = b.iter().fold(0.0f32, |most, b| most.max(b.abs()));
    let pairs = a.iter().zip(b);
    let off = pairs.fold(0.0f32, |most, (a, b)| {
        // A NaN must not pass as the smaller.
        let off = (a - b).abs();
        if off <= most {
            most
        } else {
            off
        }
    });
    f64::from(off / size)
}

#[test]
fn a_step_has_the_loss_and_the_gradients_of_the_plain_model() {
    for (family, particular) in FAMILIES {
        let config = config(family, particular);
        let (weights, batch) = (weights(&config), batch(&config));
        let outcome = run(&config, &weights, &batch, WHOLE, false);
        let loss = reference::loss(&config, &weights, &batch);
        assert!((outcome.loss - loss).abs() < 2e-6 * loss, "{family}");
        let mut squares = 0.0;
        for (&(block, value), gradient) in &outcome.gradients {
            let exact = slopes(&config, &weights, &batch, block, value);
            let off = difference(gradient, &exact);
            assert!(
                off < 2e-5,
                "{family} {value} of {block:?} is off by {off:e}"
            );
            squares += exact.iter().map(|&g| f64::from(g).powi(2)).sum::<f64>();
        }
        assert!(
            (outcome.norm / squares.sqrt() - 1.0).abs() < 1e-5,
            "{family}"
        );
    }
}

/// Central differences by every element of a value, in the order of its parts.
fn slopes(
    config: &ModelConfig,
    weights: &Weights,
    batch: &Batch,
    block: Option<u64>,
    value: &str,
) -> Vec<f32> {
    const STEP: f64 = 1e-5;
    let value = WeightValue::of(&format!("{value}.weight")).unwrap();
    let layout = Layout {
        model: config,
        dtype: Dtype::F32,
        groups: 1,
        compressed: Compressed::default(),
    };
    let mut slopes = Vec::new();
    let mut moved = weights.clone();
    for placed in layout.parts(value) {
        let name = (block, placed.weight.part);
        for (i, &at) in weights[&name].iter().enumerate() {
            let mut loss = |x: f64| {
                moved.get_mut(&name).unwrap()[i] = x;
                reference::loss(config, &moved, batch)
            };
            let slope = (loss(at + STEP) - loss(at - STEP)) / (2.0 * STEP);
            loss(at);
            slopes.push(slope as f32);
        }
    }
    slopes
}

#[test]
fn groups_and_tiles_change_the_order_of_sums_only() {
    for (family, particular) in FAMILIES {
        let whole = of_family(family, particular, WHOLE, false);
        for (groups, tile) in [(1, 3), (2, 10), (2, 4)] {
            let cut = Cut {
                groups,
                tile,
                dtype: Dtype::F32,
            };
            let cut_up = of_family(family, particular, cut, false);
            assert!((cut_up.loss - whole.loss).abs() < 1e-6 * whole.loss);
            for (name, gradient) in &cut_up.gradients {
                let off = difference(gradient, &whole.gradients[name]);
                assert!(off < 1e-5, "{family} {name:?} {cut:?} is off by {off:e}");
            }
            // Group by group, with what is shared carried along, or all at once: the same bits.
            assert_eq!(cut_up, of_family(family, particular, cut, true));
        }
    }
}

#[test]
fn bf16_is_near() {
    for (family, particular) in FAMILIES {
        let whole = of_family(family, particular, WHOLE, false);
        let cut = Cut {
            groups: 2,
            tile: 3,
            dtype: Dtype::Bf16,
        };
        let near = of_family(family, particular, cut, true);
        assert!((near.loss / whole.loss - 1.0).abs() < 0.02, "{family}");
        assert!((near.norm / whole.norm - 1.0).abs() < 0.05, "{family}");
        for (name, gradient) in &near.gradients {
            let off = difference(gradient, &whole.gradients[name]);
            assert!(off < 0.1, "{family} {name:?} is off by {off:e}");
        }
        assert_eq!(near, of_family(family, particular, cut, false));
    }
}
