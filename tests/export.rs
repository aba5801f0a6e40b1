//! `ebbtide export`: settings that other programs can read, what they cost, and what is refused.

use std::path::PathBuf;

use assert_cmd::Command;
use serde_json::Value;

struct Scratch(PathBuf);

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// A schedule of the tiny model, planned with these flags.
fn schedule(name: &str, flags: &[&str]) -> (Scratch, String) {
    let name = format!("ebbtide-export-{}-{name}", std::process::id());
    let scratch = Scratch(std::env::temp_dir().join(name));
    std::fs::create_dir_all(&scratch.0).unwrap();
    let path = scratch.0.join("s.json").to_str().unwrap().to_owned();
    let mut plan = Command::cargo_bin("ebbtide").unwrap();
    plan.args(["plan", "--model", "tiny", "--profile", "unit", "-o", &path]);
    plan.args(flags).assert().success();
    (scratch, path)
}

/// Exit code, standard output and standard error.
fn export(path: &str, more: &[&str]) -> (Option<i32>, String, String) {
    let mut command = Command::cargo_bin("ebbtide").unwrap();
    let output = command.args(["export", path]).args(more).output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    let (out, err) = (text(output.stdout), text(output.stderr));
    (output.status.code(), out, err)
}

fn json(path: &str, system: &str) -> Value {
    let (code, out, err) = export(path, &["--to", system, "--json"]);
    assert_eq!(code, Some(0), "{system}: {err}");
    serde_json::from_str(&out).unwrap()
}

#[test]
fn where_all_fits_every_system_keeps_all_and_costs_as_much() {
    let (_scratch, path) = schedule("fits", &["--seq", "1k"]);
    for system in [
        "trl",
        "axolotl",
        "deepspeed",
        "megatron",
        "torchtitan",
        "jax",
    ] {
        let found = json(&path, system);
        assert_eq!(found["does"], "keep everything", "{system}");
        // Without tiles there are fewer launches, and on the unit machine they are free.
        assert_eq!(found["step_ns"], found["planned_step_ns"], "{system}");
        let (code, out, err) = export(&path, &["--to", system]);
        assert_eq!(code, Some(0));
        assert_eq!(found["settings"], out.as_str());
        assert!(err.lines().all(|line| line.starts_with("note: ")), "{err}");
    }
    let settings = json(&path, "deepspeed")["settings"].clone();
    let config: Value = serde_json::from_str(settings.as_str().unwrap()).unwrap();
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
    let (_scratch, path) = schedule("tight", &tight);
    let found = json(&path, "trl");
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
    let words = json(&path, "megatron")["words"].to_string();
    assert!(words.contains("name no optimizer"), "{words}");
}

#[test]
fn what_cannot_be_exported_is_refused() {
    let (scratch, path) = schedule("refused", &["--seq", "8k", "--device-memory", "24MiB"]);
    let (code, out, err) = export(&path, &["--to", "jax"]);
    assert_eq!((code, out.as_str()), (Some(3), ""), "{err}");
    assert!(err.contains("nothing that jax can do fits"), "{err}");
    let (code, _, err) = export(&path, &["--to", "nobody"]);
    assert_eq!(code, Some(2), "{err}");
    let (code, _, err) = export(&path, &["--to", "trl", "--profile", "none"]);
    assert_eq!(code, Some(2), "{err}");
    let missing = scratch.0.join("none.json");
    let (code, _, err) = export(missing.to_str().unwrap(), &["--to", "trl"]);
    assert_eq!(code, Some(2), "{err}");
}
