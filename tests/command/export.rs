//! `ebbtide export`: settings that other programs can read, what they cost, and what is refused.

use serde_json::Value;

use super::{ebbtide, json, prints, refuses, Scratch};

/// A schedule of the tiny model, planned with these flags.
fn schedule(flags: &[&str]) -> (Scratch, String) {
    let scratch = Scratch::new();
    let path = scratch.path("s.json");
    let plan = ["plan", "--model", "tiny", "--profile", "unit", "-o", &path];
    prints(&[&plan[..], flags].concat());
    (scratch, path)
}

/// What an export prints as JSON, whatever the notes beside it.
fn exported(path: &str, system: &str) -> Value {
    let (code, out, err) = ebbtide(&["export", path, "--to", system, "--json"]);
    assert_eq!(code, 0, "{system}: {err}");
    json(&out)
}

#[test]
fn where_all_fits_every_system_keeps_all_and_costs_as_much() {
    let (_scratch, path) = schedule(&["--seq", "1k"]);
    for system in [
        "trl",
        "axolotl",
        "deepspeed",
        "megatron",
        "torchtitan",
        "jax",
    ] {
        let found = exported(&path, system);
        assert_eq!(found["does"], "keep everything", "{system}");
        // Without tiles there are fewer launches, and on the unit machine they are free.
        assert_eq!(found["step_ns"], found["planned_step_ns"], "{system}");
        let (code, out, err) = ebbtide(&["export", &path, "--to", system]);
        assert_eq!(code, 0);
        assert_eq!(found["settings"], out.as_str());
        assert!(err.lines().all(|line| line.starts_with("note: ")), "{err}");
    }
    let settings = exported(&path, "deepspeed")["settings"].clone();
    let config = json(settings.as_str().unwrap());
    assert_eq!(config["zero_optimization"]["stage"], 0);
    assert_eq!(config["train_micro_batch_size_per_gpu"], 1);
}

#[test]
fn where_memory_is_short_the_settings_say_how_it_is_saved() {
    let tight = [
        "--seq",
        "4k",
        "--method",
        "lomo",
        "--device-memory",
        "30MiB",
    ];
    let (_scratch, path) = schedule(&tight);
    let found = exported(&path, "trl");
    let settings = found["settings"].as_str().unwrap();
    assert!(
        settings.contains("--gradient_checkpointing true"),
        "{settings}"
    );
    let steps = ["step_ns", "planned_step_ns"].map(|key| found[key].as_u64().unwrap());
    assert!(steps[0] > steps[1], "{steps:?}");
    assert!(settings.contains("--optim lomo"), "{settings}");
    let words = found["words"].to_string();
    assert!(words.contains("does not fit: keep everything"), "{words}");
    assert!(!words.contains("name no optimizer"), "{words}");
    let words = exported(&path, "megatron")["words"].to_string();
    assert!(words.contains("name no optimizer"), "{words}");
}

#[test]
fn what_cannot_be_exported_is_refused() {
    let (scratch, path) = schedule(&["--seq", "8k", "--device-memory", "24MiB"]);
    let refused = |path: &str, more: &[&str], code, fragment| {
        refuses(&[&["export", path][..], more].concat(), code, fragment);
    };
    refused(&path, &["--to", "jax"], 3, "nothing that jax can do fits");
    refused(&path, &["--to", "nobody"], 2, "nobody");
    refused(&path, &["--to", "trl", "--profile", "none"], 2, "none");
    refused(&scratch.path("none.json"), &["--to", "trl"], 2, "none.json");
    let mut file = scratch.json("s.json");
    file["streams"]["compute"].as_array_mut().unwrap().pop();
    let short = scratch.file("short.json", file.to_string());
    refused(&short, &["--to", "trl"], 5, "the checker refuses it");
}
