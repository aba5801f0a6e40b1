//! The settings themselves. Keys are those of TRL 0.24 (`SFTConfig`), axolotl 0.12, DeepSpeed 0.17,
//! Megatron-LM core 0.15, torchtitan 0.2 and JAX 0.7; `reports/export` holds what the packages
//! themselves say of them.

use serde_json::json;

use super::{Does, System, Traits};
use crate::format::schedule::ScheduleFile;

/// What to write into the system's settings: a command line, YAML, JSON, TOML or Python.
pub fn settings(system: System, does: Does, file: &ScheduleFile, traits: &Traits) -> String {
    match system {
        System::Trl => trl(does, file),
        System::Axolotl => axolotl(does, file),
        System::DeepSpeed => deepspeed(does, file, traits),
        System::Megatron => megatron(does, file, traits),
        System::Torchtitan => torchtitan(does, file, traits),
        System::Jax => jax(does, traits),
    }
}

fn bf16(file: &ScheduleFile) -> bool {
    file.workload.dtype == "bf16"
}

/// Flags of `trl sft`.
fn trl(does: Does, file: &ScheduleFile) -> String {
    let mut flags = vec![
        format!("--max_length {}", file.workload.seq),
        format!("--per_device_train_batch_size {}", file.workload.batch),
        format!(
            "--gradient_accumulation_steps {}",
            file.schedule.micro_batches
        ),
        format!("--bf16 {}", bf16(file)),
    ];
    flags.push(format!("--optim {}", optimizer(file)));
    if does == Does::Keep {
        flags.push("--gradient_checkpointing false".into());
    } else {
        flags.push("--gradient_checkpointing true".into());
        flags.push("--gradient_checkpointing_kwargs '{\"use_reentrant\": false}'".into());
    }
    if does == Does::CheckpointOffload {
        flags.push("--activation_offloading true".into());
    }
    flags.join(" \\\n") + "\n"
}

/// The optimizer's name in HF trainers.
fn optimizer(file: &ScheduleFile) -> &'static str {
    match file.method.as_str() {
        "sgd" => "sgd",
        "lomo" => "lomo",
        _ => "adamw_torch_fused",
    }
}

fn axolotl(does: Does, file: &ScheduleFile) -> String {
    let checkpointing = match does {
        Does::Keep => "gradient_checkpointing: false\n",
        Does::CheckpointOffload => "gradient_checkpointing: offload\n",
        _ => {
            "gradient_checkpointing: true\n\
             gradient_checkpointing_kwargs:\n  use_reentrant: false\n"
        }
    };
    format!(
        "sequence_len: {}\nmicro_batch_size: {}\ngradient_accumulation_steps: {}\nbf16: {}\n\
         optimizer: {}\n{checkpointing}",
        file.workload.seq,
        file.workload.batch,
        file.schedule.micro_batches,
        bf16(file),
        optimizer(file)
    )
}

fn deepspeed(does: Does, file: &ScheduleFile, traits: &Traits) -> String {
    let [_, updated, streamed] = traits.states;
    let mut zero = json!({"stage": 0});
    if streamed > 0.0 {
        zero = json!({
            "stage": 3,
            "offload_param": {"device": "cpu", "pin_memory": true},
        });
    } else if updated > 0.0 {
        zero = json!({"stage": 2});
    }
    if (updated > 0.0 || streamed > 0.0) && file.method == "adamw" {
        zero["offload_optimizer"] = json!({"device": "cpu", "pin_memory": true});
    }
    let config = json!({
        "train_micro_batch_size_per_gpu": file.workload.batch,
        "gradient_accumulation_steps": file.schedule.micro_batches,
        "bf16": {"enabled": bf16(file)},
        "zero_optimization": zero,
        "activation_checkpointing": {
            "partition_activations": false,
            "cpu_checkpointing": does == Does::CheckpointOffload,
            "contiguous_memory_optimization": false,
        },
    });
    serde_json::to_string_pretty(&config).expect("string keys") + "\n"
}

fn megatron(does: Does, file: &ScheduleFile, traits: &Traits) -> String {
    let mut flags = vec![
        format!("--seq-length {}", file.workload.seq),
        format!("--micro-batch-size {}", file.workload.batch),
    ];
    if bf16(file) {
        flags.push("--bf16".into());
    }
    match does {
        Does::Keep | Does::ByName => {}
        Does::Selective => {
            flags.push("--recompute-granularity selective".into());
            flags.push("--recompute-modules core_attn layernorm".into());
        }
        Does::Checkpoint | Does::CheckpointOffload => {
            flags.push("--recompute-granularity full".into());
            flags.push("--recompute-method uniform".into());
            flags.push("--recompute-num-layers 1".into());
        }
    }
    if does == Does::CheckpointOffload {
        flags.push("--cpu-offloading-num-layers".into());
        let layers = file.model.layers.saturating_sub(1);
        if let Some(last) = flags.last_mut() {
            *last = format!("{last} {layers}");
        }
    } else if offloaded(traits).next().is_some() {
        let modules = Vec::from_iter(offloaded(traits));
        flags.push(format!(
            "--fine-grained-activation-offloading --offload-modules {}",
            modules.join(" ")
        ));
    }
    if traits.states[1] + traits.states[2] > 0.0 && file.method == "adamw" {
        let part = traits.states[1] + traits.states[2];
        flags.push("--optimizer-cpu-offload --use-precision-aware-optimizer".into());
        flags.push(format!("--optimizer-offload-fraction {part:.2}"));
    }
    flags.join(" \\\n") + "\n"
}

/// Megatron's names of modules whose inputs mostly travel in the schedule.
fn offloaded(traits: &Traits) -> impl Iterator<Item = &'static str> + '_ {
    const MODULES: [(&str, &str); 4] = [
        ("x", "attn_norm"),
        ("qkv", "core_attn"),
        ("o", "attn_proj"),
        ("x2", "mlp_norm"),
    ];
    let travels = MODULES
        .into_iter()
        .filter(|(tensor, _)| traits.mostly(tensor) == 1);
    travels.map(|(_, module)| module)
}

fn torchtitan(does: Does, file: &ScheduleFile, traits: &Traits) -> String {
    let mode = match does {
        Does::Keep => "none",
        Does::Selective => "selective",
        _ => "full",
    };
    let on_host = traits.states[1] + traits.states[2] > 0.0;
    let selective = match does {
        Does::Selective => "selective_ac_option = \"op\"\n",
        _ => "",
    };
    format!(
        "[training]\nseq_len = {}\nlocal_batch_size = {}\nenable_cpu_offload = {on_host}\n\n\
         [activation_checkpoint]\nmode = \"{mode}\"\n{selective}",
        file.workload.seq, file.workload.batch
    )
}

/// A policy for `jax.checkpoint`, and the names that the model has to give its tensors by
/// `jax.ad_checkpoint.checkpoint_name`.
fn jax(does: Does, traits: &Traits) -> String {
    let names = |which: usize| {
        let kinds = traits.tensors.iter().map(|(name, _)| name);
        let kinds = kinds.filter(|name| traits.mostly(name) == which);
        Vec::from_iter(kinds.map(|name| format!("\"{name}\""))).join(", ")
    };
    let policy = match does {
        Does::Keep => "jax.checkpoint_policies.everything_saveable".to_owned(),
        Does::ByName => format!(
            "jax.checkpoint_policies.save_and_offload_only_these_names(\n    \
             names_which_can_be_saved=[{}],\n    names_which_can_be_offloaded=[{}],\n    \
             offload_src=\"device\",\n    offload_dst=\"pinned_host\",\n)",
            names(0),
            names(1)
        ),
        _ => "jax.checkpoint_policies.nothing_saveable".to_owned(),
    };
    format!(
        "# Name tensors in each block by jax.ad_checkpoint.checkpoint_name(value, \"qkv\") and so \
         on;\n# wrap the block: block = jax.checkpoint(block, policy=policy)\nimport jax\n\n\
         policy = {policy}\n"
    )
}
