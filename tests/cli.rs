//! The command itself: what it prints, writes and refuses, and its exit codes.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Output;

use assert_cmd::Command;
use serde_json::Value;

/// A directory that is gone when the test is over.
struct Scratch(PathBuf);

impl Scratch {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("ebbtide-cli-{}-{name}", std::process::id()));
        fs::create_dir_all(&path).unwrap();
        Self(path)
    }
    fn file(&self, name: &str, text: &str) -> String {
        fs::write(self.0.join(name), text).unwrap();
        self.path(name)
    }
    fn path(&self, name: &str) -> String {
        self.0.join(name).to_str().unwrap().to_owned()
    }
    /// The names of everything in it.
    fn names(&self) -> Vec<String> {
        let entries = fs::read_dir(&self.0).unwrap();
        let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        let mut names: Vec<String> = names.collect();
        names.sort();
        names
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn ebbtide(args: &[&str]) -> Output {
    let mut command = Command::cargo_bin("ebbtide").unwrap();
    command.args(args).output().unwrap()
}

/// Standard output of a command that must succeed.
fn prints(args: &[&str]) -> String {
    let output = ebbtide(args);
    let (out, err) = texts(&output);
    assert_eq!(output.status.code(), Some(0), "{args:?}: {out}{err}");
    assert_eq!(err, "", "{args:?}");
    out
}

/// Refused with an exit code, one error on standard error and nothing on standard output.
fn refuses(args: &[&str], code: i32, fragment: &str) {
    let output = ebbtide(args);
    let (out, err) = texts(&output);
    assert_eq!(output.status.code(), Some(code), "{args:?}: {out}{err}");
    assert!(
        err.contains(fragment),
        "{args:?}: {fragment} is not in {err}"
    );
    assert_eq!(err.matches("error:").count(), 1, "{args:?}: {err}");
    assert_eq!(out, "", "{args:?}");
}

fn texts(output: &Output) -> (String, String) {
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    (text(&output.stdout), text(&output.stderr))
}

fn data(path: &str) -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(path)).unwrap()
}

const TINY: [&str; 7] = [
    "plan",
    "--model",
    "tiny",
    "--profile",
    "unit",
    "--seq",
    "1k",
];

fn tiny<'a>(more: &[&'a str]) -> Vec<&'a str> {
    [&TINY[..], more].concat()
}

// ---- happy paths --------------------------------------------------------------------------------

#[test]
fn a_plan_is_written_checked_and_simulated() {
    let scratch = Scratch::new("happy");
    let path = scratch.path("schedule.json");
    let table = prints(&tiny(&["-o", &path]));
    assert!(table.contains("0 violations"), "{table}");
    assert!(table.contains("1.000 × the floor"), "{table}");
    assert_eq!(scratch.names(), ["schedule.json"]);

    let file: Value = serde_json::from_str(&fs::read_to_string(&path).unwrap()).unwrap();
    let schema: Value = serde_json::from_str(&data("schemas/schedule.schema.json")).unwrap();
    let errors: Vec<String> = jsonschema::validator_for(&schema)
        .unwrap()
        .iter_errors(&file)
        .map(|error| error.to_string())
        .collect();
    assert!(errors.is_empty(), "{errors:?}");

    let verdict = prints(&["check", &path]);
    assert!(verdict.starts_with("0 violations"), "{verdict}");
    let timeline: Value = serde_json::from_str(&prints(&["simulate", &path, "--json"])).unwrap();
    assert_eq!(timeline["step_ns"], file["predicted"]["step_ns"]);
    assert_eq!(
        timeline["peak"]["live_bytes"],
        file["predicted"]["peak_live_bytes"]
    );
    assert!(prints(&["simulate", &path]).contains("peak of"));
}

#[test]
fn json_is_the_file_without_its_long_lists() {
    let scratch = Scratch::new("json");
    let path = scratch.path("schedule.json");
    let printed: Value = serde_json::from_str(&prints(&tiny(&["-o", &path, "--json"]))).unwrap();
    let mut file: Value = serde_json::from_str(&fs::read_to_string(&path).unwrap()).unwrap();
    for list in ["operators", "values", "buffers", "streams"] {
        assert!(
            file.as_object_mut().unwrap().remove(list).is_some(),
            "{list}"
        );
    }
    assert_eq!(printed, file);
    let predicted = &printed["predicted"];
    for key in [
        "step_ns",
        "floor_ns",
        "recompute_ns",
        "stall_ns",
        "optimizer_tail_ns",
        "tokens_per_s",
        "mfu",
        "hfu",
        "peak_live_bytes",
        "arena_bytes",
        "device_bytes",
        "host_bytes",
        "d2h_bytes",
        "h2d_bytes",
    ] {
        assert!(predicted[key].is_number(), "{key}");
    }
    assert_eq!(predicted["step_ns"], predicted["floor_ns"]);
}

#[test]
fn flops_of_a_step_are_those_of_the_formula() {
    // tiny: d 64, q 64, k and v 32 each, f 176, 4 blocks, vocabulary 256; 1 FLOP is 1 ns.
    let plan: Value = serde_json::from_str(&prints(&tiny(&["--json"]))).unwrap();
    let (t, block) = (1024u64, 64 * 128 + 64 * 64 + 3 * 64 * 176);
    let products = 6 * t * (4 * block + 64 * 256);
    let attention = 2 * t * t * 64 * 4;
    let step = plan["predicted"]["step_ns"].as_u64().unwrap();
    assert_eq!(step, products + attention + attention / 2 * 5);
    let mfu = (products + 3 * attention) as f64 / step as f64;
    assert!(
        (plan["predicted"]["mfu"].as_f64().unwrap() - mfu).abs() < 1e-9,
        "{mfu}"
    );
}

#[test]
fn a_short_budget_saves_and_says_how() {
    let plan = prints(&tiny(&[
        "--device-memory",
        "8MiB",
        "--strategy",
        "swap",
        "--json",
    ]));
    let plan: Value = serde_json::from_str(&plan).unwrap();
    assert!(plan["predicted"]["arena_bytes"].as_u64().unwrap() <= 8 << 20);
    assert!(plan["predicted"]["h2d_bytes"].as_u64().unwrap() > 0);
    assert_eq!(plan["strategy"], "swap");
}

#[test]
fn a_real_model_is_planned_with_a_proof() {
    let args = [
        "plan",
        "--model",
        "llama-3.1-8b",
        "--profile",
        "h100-sxm5-80gb",
        "--seq",
        "32k",
        "--method",
        "lomo",
        "--device-memory",
        "40GiB",
        "--json",
    ];
    let plan: Value = serde_json::from_str(&prints(&args)).unwrap();
    assert_eq!(plan["model"]["parameters"], 8_030_261_248u64);
    let (predicted, solver) = (&plan["predicted"], &plan["solver"]);
    assert!(predicted["arena_bytes"].as_u64().unwrap() <= 40 << 30);
    assert!(solver["bound_ns"].as_u64() <= predicted["step_ns"].as_u64());
    assert!(solver["gap"].as_f64().unwrap() < 0.05, "{solver}");
}

#[test]
fn the_longest_sequence_fits_and_the_next_does_not() {
    let args = [
        "fit",
        "--model",
        "tiny",
        "--profile",
        "unit",
        "--device-memory",
        "16MiB",
        "--strategy",
        "keep,checkpoint",
        "--method",
        "sgd",
        "--json",
    ];
    let report: Value = serde_json::from_str(&prints(&args)).unwrap();
    let rows = report["rows"].as_array().unwrap();
    assert_eq!(rows.len(), 2);
    assert!(rows[0]["max_tokens"].as_u64() < rows[1]["max_tokens"].as_u64());
    for row in rows {
        assert!(
            row["binds"].as_str().unwrap().starts_with("device memory"),
            "{row}"
        );
        let longest = row["max_tokens"].as_u64().unwrap();
        let plan_at = |seq: u64| {
            let (seq, strategy) = (seq.to_string(), row["strategy"].as_str().unwrap());
            let args = [
                "plan",
                "--model",
                "tiny",
                "--profile",
                "unit",
                "--device-memory",
                "16MiB",
                "--method",
                "sgd",
                "--seq",
                &seq,
                "--strategy",
                strategy,
            ];
            ebbtide(&args).status.code()
        };
        assert_eq!(plan_at(longest), Some(0), "{row}");
        assert_eq!(plan_at(longest + 1024), Some(3), "{row}");
    }
}

#[test]
fn where_nothing_fits_there_is_no_longest_sequence() {
    let args = [
        "fit",
        "--model",
        "tiny",
        "--profile",
        "unit",
        "--device-memory",
        "1KiB",
        "--method",
        "lomo",
        "--strategy",
        "keep,ilp",
    ];
    let output = ebbtide(&args);
    let (out, err) = texts(&output);
    assert_eq!(output.status.code(), Some(3), "{out}{err}");
    assert_eq!(out.matches("none").count(), 2, "{out}");
    assert!(err.contains("no strategy fits tiny"), "{err}");
}

#[test]
fn everything_built_in_is_listed() {
    assert!(prints(&["list", "models"]).contains("8,030,261,248"));
    assert!(prints(&["list", "profiles"]).contains("h100-sxm5-80gb"));
    assert!(prints(&["list", "strategies"]).contains("checkpoint-offload"));
    assert!(prints(&["list", "methods"]).contains("lomo"));
}

#[test]
fn help_ends_with_examples_and_completions_know_the_commands() {
    for command in [
        "plan",
        "fit",
        "simulate",
        "check",
        "list",
        "arena",
        "completions",
    ] {
        let help = prints(&[command, "--help"]);
        let (_, examples) = help.split_once("Examples:").unwrap();
        assert!(
            examples.contains(&format!("ebbtide {command}")),
            "{command}"
        );
    }
    let script = prints(&["completions", "bash"]);
    assert!(script.contains("--device-memory") && script.contains("simulate"));
}

// ---- bad input ----------------------------------------------------------------------------------

#[test]
fn bad_flags_are_refused() {
    for (more, fragment) in [
        (
            &["--device-memory", "72"][..],
            "has no unit; valid units are KiB",
        ),
        (&["--device-memory", "-1GiB"], "negative"),
        (&["--host-memory", "1GIB"], "no unit of size"),
        (&["--time-limit", "10"], "no length of time"),
        (&["--gap", "-1"], "`-1` is no gap"),
        (&["--time-limit", "-1s"], "`-1s` is no length of time"),
        (&["--strategy", "exhaustive"], "at most 1000000 plans"),
        (&["--gap", "nan"], "no gap"),
        (&["--batch", "0"], "`0` is no whole number from 1"),
        (&["--strategy", "magic"], "possible values: keep"),
        (&["--method", "adam"], "possible values: adamw"),
        (
            &["--method", "lomo", "--accumulate", "2"],
            "cannot accumulate",
        ),
    ] {
        refuses(&tiny(more), 2, fragment);
    }
    for (seq, fragment) in [
        ("0", "must be at least 1"),
        ("1000000000000000000", "more than 16m tokens"),
        ("100000000000000000000", "no number of tokens"),
        ("1.5k", "no number of tokens"),
        ("-4", "`-4` is no number of tokens"),
    ] {
        let args = ["plan", "--model", "tiny", "--profile", "unit", "--seq", seq];
        refuses(&args, 2, fragment);
    }
    let args = [
        "plan",
        "--model",
        "gpt2",
        "--profile",
        "unit",
        "--seq",
        "2k",
    ];
    refuses(&args, 2, "learned positions");
}

#[test]
fn bad_models_are_refused() {
    let scratch = Scratch::new("models");
    let config = data("profiles/models/tiny.json");
    let deep = "[".repeat(100_000);
    let cases = [
        (
            "no-such-model".to_owned(),
            "no file, no directory and no shipped model",
        ),
        (scratch.file("cut.json", &config[..config.len() / 2]), "EOF"),
        (
            scratch.file("moe.json", &config.replace("\"llama\"", "\"mixtral\"")),
            "mixtral",
        ),
        (
            scratch.file(
                "empty.json",
                &config.replace("_layers\": 4", "_layers\": 0"),
            ),
            "num_hidden_layers",
        ),
        (scratch.file("deep.json", &deep), "recursion limit"),
    ];
    for (model, fragment) in &cases {
        let args = ["plan", "--model", model, "--profile", "unit", "--seq", "1k"];
        refuses(&args, 2, fragment);
    }
}

#[test]
fn bad_profiles_are_refused() {
    let scratch = Scratch::new("profiles");
    let profile = data("profiles/hardware/unit.json");
    let cases = [
        (
            "no-such-profile".to_owned(),
            "no file and no shipped hardware profile",
        ),
        (
            scratch.file("cut.json", &profile[..profile.len() / 2]),
            "cut off at line",
        ),
        (
            scratch.file("nan.json", &profile.replacen("1e9", "NaN", 1)),
            "device: expected value",
        ),
        (
            scratch.file("negative.json", &profile.replacen("1099511627776", "-1", 1)),
            "memory_bytes",
        ),
        (
            scratch.file("next.json", &profile.replace("profile/1", "profile/2")),
            "ebbtide/profile/2",
        ),
        (
            scratch.file("deep.json", &"{\"a\":".repeat(100_000)),
            "cut off",
        ),
    ];
    for (profile, fragment) in &cases {
        let args = [
            "plan",
            "--model",
            "tiny",
            "--profile",
            profile,
            "--seq",
            "1k",
        ];
        refuses(&args, 2, fragment);
    }
}

#[test]
fn bad_schedules_are_refused() {
    let scratch = Scratch::new("schedules");
    let path = scratch.path("good.json");
    prints(&tiny(&["-o", &path]));
    let good = fs::read_to_string(&path).unwrap();
    let cases = [
        (scratch.path("missing.json"), "cannot read"),
        (scratch.file("cut.json", &good[..good.len() / 2]), "cut off"),
        (
            scratch.file("next.json", &good.replace("schedule/1", "schedule/2")),
            "this ebbtide reads ebbtide/schedule/1",
        ),
        (
            scratch.file("other.json", "{\"schema\": \"other\"}"),
            "not a schedule",
        ),
        (
            scratch.file("deep.json", &"{\"a\":".repeat(100_000)),
            "cut off",
        ),
        (scratch.file("latin1.json", "{}"), "no \"schema\""),
        (
            scratch.file(
                "model.json",
                &good.replacen("\"model\":{", "\"model\":7,\"x\":{", 1),
            ),
            "at model: invalid type: integer `7`, expected an object at line",
        ),
        (
            scratch.file(
                "float.json",
                &good.replacen("\"seq\":1024", "\"seq\":1.5", 1),
            ),
            "workload.seq: invalid type: floating point `1.5`, expected a whole number",
        ),
        (
            scratch.file(
                "tokens.json",
                &good.replacen("\"seq\":1024", "\"seq\":512", 1),
            ),
            "workload.tokens is 1024, not seq 512 × batch 1",
        ),
        (
            scratch.file(
                "parts.json",
                &good.replacen("\"keep_tokens\":1024", "\"keep_tokens\":1023", 1),
            ),
            "is of 1023 tokens, must be of 1024",
        ),
        (
            scratch.file(
                "packed.json",
                &good.replacen(
                    "\"keep_tokens\":1024",
                    "\"keep_tokens\":1024,\"packed_tokens\":1025",
                    1,
                ),
            ),
            "keeps 1025 tokens packed, but 1024 in all",
        ),
        (
            scratch.file(
                "twice.json",
                &good.replacen("\"method\":", "\"method\":\"sgd\",\n\"method\":", 1),
            ),
            "duplicate field `method`",
        ),
    ];
    for command in ["check", "simulate"] {
        for (path, fragment) in &cases {
            refuses(&[command, path], 2, fragment);
        }
    }
}

#[test]
fn a_schedule_with_a_violation_is_refused() {
    let scratch = Scratch::new("violation");
    let path = scratch.path("good.json");
    prints(&tiny(&["--device-memory", "1TiB", "-o", &path]));
    let good = fs::read_to_string(&path).unwrap();
    let bad = good.replacen("\"device_bytes\":1099511627776", "\"device_bytes\":1024", 1);
    assert_ne!(good, bad);
    let bad = scratch.file("bad.json", &bad);
    let output = ebbtide(&["check", &bad]);
    let (out, err) = texts(&output);
    assert_eq!(output.status.code(), Some(5), "{out}{err}");
    assert!(out.contains("over-device-budget: "), "{out}");
    assert!(out.contains("1 violation: 1 over-device-budget"), "{out}");
    refuses(&["simulate", &bad], 5, "the checker refuses it");
}

#[test]
fn what_does_not_fit_is_an_answer() {
    let scratch = Scratch::new("infeasible");
    let path = scratch.path("schedule.json");
    refuses(
        &tiny(&["--device-memory", "1MiB", "-o", &path]),
        3,
        "does not fit",
    );
    let output = ebbtide(&tiny(&["--device-memory", "1MiB"]));
    let (_, err) = texts(&output);
    let (_, way) = err
        .split_once("hint: it fits with --device-memory ")
        .expect(&err);
    let enough = way.split([',', '\n']).next().unwrap();
    prints(&tiny(&["--device-memory", enough]));
    refuses(
        &tiny(&[
            "--strategy",
            "swap",
            "--device-memory",
            "8MiB",
            "--host-memory",
            "1MiB",
        ]),
        3,
        "host memory",
    );
    assert!(scratch.names().is_empty());
}

#[test]
fn nothing_is_left_behind_by_a_failed_write() {
    let scratch = Scratch::new("unwritable");
    let inside = scratch.path("no/such/directory.json");
    refuses(&tiny(&["-o", &inside]), 2, "cannot write");
    fs::create_dir(scratch.0.join("taken")).unwrap();
    refuses(&tiny(&["-o", &scratch.path("taken")]), 2, "cannot write");
    assert_eq!(scratch.names(), ["taken"]);
}

#[test]
#[cfg(unix)]
fn a_reader_that_leaves_early_is_no_error() {
    use std::process::{Command, Stdio};
    let binary = assert_cmd::cargo::cargo_bin("ebbtide");
    let mut child = Command::new(binary)
        .args(["completions", "bash"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(0));
    assert_eq!(String::from_utf8(output.stderr).unwrap(), "");
}

#[test]
fn every_way_out_of_a_short_memory_is_one() {
    // AdamW's states of 8 billion parameters are more than this host has: more host, or none.
    let args = [
        "plan",
        "--model",
        "llama-3.1-8b",
        "--profile",
        "rtx-4090-24gb",
        "--seq",
        "4k",
        "--strategy",
        "checkpoint-offload",
    ];
    let (_, err) = texts(&ebbtide(&args));
    let (_, ways) = err
        .trim_end()
        .split_once("hint: it fits with ")
        .expect(&err);
    let ways: Vec<&str> = ways.split(", or ").collect();
    for flag in ["--device-memory", "--host-memory", "--method"] {
        assert!(
            ways.iter().any(|way| way.starts_with(flag)),
            "{flag}: {err}"
        );
    }
    for way in ways {
        let way: Vec<&str> = way.split(' ').collect();
        let output = ebbtide(&[&args[..], &way].concat());
        assert_eq!(output.status.code(), Some(0), "{way:?}");
    }
}

#[test]
fn warnings_do_not_mix_with_json() {
    let output = ebbtide(&tiny(&["--json", "--host-memory", "2TiB", "--batch", "2"]));
    let (out, err) = texts(&output);
    let plan: Value = serde_json::from_str(&out).unwrap();
    assert_eq!(plan["budget"]["host_bytes"], 2u64 << 40);
    assert_eq!(
        err,
        "warning: --host-memory 2.0 TiB is more than the 1.0 TiB of the host in unit\n"
    );
    let table = prints(&tiny(&["--host-memory", "2TiB"]));
    assert!(table.contains("\nwarning        --host-memory"), "{table}");
}
