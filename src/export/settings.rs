//! The settings themselves. Keys are those of TRL 1.16 (`SFTConfig`), axolotl, DeepSpeed 0.19,
//! Megatron-LM core 0.16, torchtitan 0.3 and JAX 0.10; `reports/export` holds what the packages say
//! of them.

use serde_json::json;

use super::{becomes, Cost, Does, System, Traits, KEPT, RECOMPUTED, SWAPPED};
use crate::format::schedule::ScheduleFile;
use ebbtide_solver::plan::Placement;

/// What to write into the system's settings: flags, YAML, JSON or Python.
pub fn settings(system: System, cost: &Cost, file: &ScheduleFile, traits: &Traits) -> String {
    match system {
        System::Trl => trl(cost, file),
        System::Axolotl => axolotl(cost, file),
        System::DeepSpeed => deepspeed(cost, file),
        System::Megatron => megatron(cost, file, traits),
        System::Torchtitan => torchtitan(cost, file),
        System::Jax => jax(cost.does, traits),
    }
}

fn bf16(file: &ScheduleFile) -> bool {
    file.workload.dtype == "bf16"
}

/// Sequences of a step.
fn sequences(file: &ScheduleFile) -> u64 {
    file.workload.batch * u64::from(file.schedule.micro_batches)
}

/// Flags of `trl sft`.
fn trl(cost: &Cost, file: &ScheduleFile) -> String {
    let does = cost.does;
    let mut flags = vec![
        format!("--max_length {}", file.workload.seq),
        format!("--per_device_train_batch_size {}", file.workload.batch),
        format!(
            "--gradient_accumulation_steps {}",
            file.schedule.micro_batches
        ),
        format!("--bf16 {}", bf16(file)),
    ];
    if let Some(optimizer) = optimizer(file) {
        flags.push(format!("--optim {optimizer}"));
    }
    if does == Does::Keep {
        flags.push("--gradient_checkpointing false".into());
    } else {
        flags.push("--gradient_checkpointing true".into());
        flags.push("--gradient_checkpointing_kwargs '{\"use_reentrant\": false}'".into());
    }
    if does == Does::CheckpointOffload {
        flags.push("--activation_offloading true".into());
    }
    if cost.states != Placement::Resident {
        flags.push("--deepspeed ds_config.json".into());
    }
    flags.join(" \\\n") + "\n"
}

/// The optimizer's name in HF trainers; nothing where they have none, or where it needs more than a
/// name.
pub(super) fn optimizer(file: &ScheduleFile) -> Option<&'static str> {
    Some(match file.method.as_str() {
        "adamw" => "adamw_torch_fused",
        "adamw8bit" => "adamw_bnb_8bit",
        "sgd" => "sgd",
        "lomo" => "lomo",
        "adalomo" => "adalomo",
        _ => return None,
    })
}

/// Whether a method has states that can live on the host.
fn has_states(file: &ScheduleFile) -> bool {
    !matches!(file.method.as_str(), "sgd" | "lomo")
}

fn axolotl(cost: &Cost, file: &ScheduleFile) -> String {
    let deepspeed = match cost.states {
        Placement::Resident => "",
        _ => "deepspeed: ds_config.json\n",
    };
    let checkpointing = match cost.does {
        Does::Keep => "gradient_checkpointing: false\n",
        Does::CheckpointOffload => "gradient_checkpointing: offload\n",
        _ => {
            "gradient_checkpointing: true\n\
             gradient_checkpointing_kwargs:\n  use_reentrant: false\n"
        }
    };
    let optimizer = optimizer(file).map_or(String::new(), |name| format!("optimizer: {name}\n"));
    format!(
        "sequence_len: {}\nmicro_batch_size: {}\ngradient_accumulation_steps: {}\nbf16: {}\n\
         {optimizer}{deepspeed}{checkpointing}",
        file.workload.seq,
        file.workload.batch,
        file.schedule.micro_batches,
        bf16(file),
    )
}

fn deepspeed(cost: &Cost, file: &ScheduleFile) -> String {
    let cpu = json!({"device": "cpu", "pin_memory": true});
    let mut zero = match cost.states {
        Placement::Resident => json!({"stage": 0}),
        Placement::HostOptimizer => json!({"stage": 2}),
        Placement::Streamed => json!({"stage": 3, "offload_param": cpu}),
    };
    if cost.states != Placement::Resident && has_states(file) {
        zero["offload_optimizer"] = cpu;
    }
    let config = json!({
        "train_micro_batch_size_per_gpu": file.workload.batch,
        "gradient_accumulation_steps": file.schedule.micro_batches,
        "bf16": {"enabled": bf16(file)},
        "zero_optimization": zero,
        "activation_checkpointing": {
            "partition_activations": false,
            "cpu_checkpointing": cost.does == Does::CheckpointOffload,
            "contiguous_memory_optimization": false,
        },
    });
    serde_json::to_string_pretty(&config).expect("string keys") + "\n"
}

fn megatron(cost: &Cost, file: &ScheduleFile, traits: &Traits) -> String {
    let mut flags = vec![
        format!("--seq-length {}", file.workload.seq),
        format!("--micro-batch-size {}", file.workload.batch),
        format!("--global-batch-size {}", sequences(file)),
    ];
    if bf16(file) {
        flags.push("--bf16".into());
    }
    if cost.does == Does::Checkpoint {
        flags.push("--recompute-granularity full".into());
        flags.push("--recompute-method uniform".into());
        flags.push("--recompute-num-layers 1".into());
    }
    if cost.does == Does::ByName {
        const RECOMPUTES: [(&str, &str); 3] =
            [("n1", "layernorm"), ("o", "core_attn"), ("gate_up", "mlp")];
        const OFFLOADS: [(&str, &str); 4] = [
            ("x", "attn_norm"),
            ("qkv", "core_attn"),
            ("o", "attn_proj"),
            ("x2", "mlp_norm"),
        ];
        let modules = |all: &[(&str, &'static str)], which: usize| {
            let is = |tensor: &str| becomes(System::Megatron, cost.does, tensor, traits) == which;
            let modules = all.iter().filter(|(tensor, _)| is(tensor));
            Vec::from_iter(modules.map(|(_, module)| *module)).join(" ")
        };
        let recomputed = modules(&RECOMPUTES, RECOMPUTED);
        if !recomputed.is_empty() {
            flags.push("--recompute-granularity selective".into());
            flags.push(format!("--recompute-modules {recomputed}"));
        }
        let offloaded = modules(&OFFLOADS, SWAPPED);
        if !offloaded.is_empty() {
            flags.push("--fine-grained-activation-offloading".into());
            flags.push(format!("--offload-modules {offloaded}"));
        }
    }
    if cost.states == Placement::HostOptimizer {
        flags.push("--optimizer-cpu-offload".into());
        flags.push("--use-precision-aware-optimizer".into());
    }
    flags.join(" \\\n") + "\n"
}

/// Fields of torchtitan's `Trainer.Config`.
fn torchtitan(cost: &Cost, file: &ScheduleFile) -> String {
    let checkpointing = match cost.does {
        Does::Keep => "None",
        Does::Selective => "SelectiveAC.Config()",
        _ => "FullAC.Config()",
    };
    let on_host = match cost.states {
        Placement::Resident => "False",
        _ => "True",
    };
    let computed = if bf16(file) { "bfloat16" } else { "float32" };
    // AdamW changes masters in f32, which are what torchtitan calls the parameters.
    let stored = match file.method.as_str() {
        "adamw" => "float32",
        _ => computed,
    };
    format!(
        "from torchtitan.config import TrainingConfig\n\
         from torchtitan.distributed.activation_checkpoint import FullAC, SelectiveAC\n\n\
         training = TrainingConfig(\n    local_batch_size={},\n    global_batch_size={},\n    \
         seq_len={},\n    dtype=\"{stored}\",\n    mixed_precision_param=\"{computed}\",\n    \
         enable_cpu_offload={on_host},\n)\nactivation_checkpoint = {checkpointing}\n",
        file.workload.batch,
        sequences(file),
        file.workload.seq
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
            names(KEPT),
            names(SWAPPED)
        ),
        _ => "jax.checkpoint_policies.nothing_saveable".to_owned(),
    };
    format!(
        "# Name tensors in each block by jax.ad_checkpoint.checkpoint_name(value, \"qkv\") and so \
         on;\n# wrap the block: block = jax.checkpoint(block, policy=policy)\nimport jax\n\n\
         policy = {policy}\n"
    )
}
