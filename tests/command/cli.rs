//! What the command prints and writes where all is well.

use super::{ebbtide, json, prints, tiny, Scratch};

#[test]
fn a_plan_is_written_checked_and_simulated() {
    let scratch = Scratch::new();
    let path = scratch.path("schedule.json");
    let table = prints(&tiny(&["-o", &path]));
    assert!(table.contains("0 violations"), "{table}");
    assert!(table.contains("1.000 × the floor"), "{table}");
    assert_eq!(scratch.names(), ["schedule.json"]);

    let file = scratch.json("schedule.json");
    let schema = json(include_str!("../../schemas/schedule.schema.json"));
    let errors: Vec<String> = jsonschema::validator_for(&schema)
        .unwrap()
        .iter_errors(&file)
        .map(|error| error.to_string())
        .collect();
    assert!(errors.is_empty(), "{errors:?}");

    let verdict = prints(&["check", &path]);
    assert!(verdict.starts_with("0 violations"), "{verdict}");
    let timeline = json(&prints(&["simulate", &path, "--json"]));
    assert_eq!(timeline["step_ns"], file["predicted"]["step_ns"]);
    assert_eq!(
        timeline["peak"]["live_bytes"],
        file["predicted"]["peak_live_bytes"]
    );
    assert!(prints(&["simulate", &path]).contains("peak of"));
}

#[test]
fn json_is_the_file_without_its_long_lists() {
    let scratch = Scratch::new();
    let path = scratch.path("schedule.json");
    let printed = json(&prints(&tiny(&["-o", &path, "--json"])));
    let mut file = scratch.json("schedule.json");
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
    let plan = json(&prints(&tiny(&["--json"])));
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
    let plan = json(&plan);
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
    let plan = json(&prints(&args));
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
    let report = json(&prints(&args));
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
            ebbtide(&args).0
        };
        assert_eq!(plan_at(longest), 0, "{row}");
        assert_eq!(plan_at(longest + 1024), 3, "{row}");
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
    let (code, out, err) = ebbtide(&args);
    assert_eq!(code, 3, "{out}{err}");
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

#[test]
#[cfg(unix)]
fn a_reader_that_leaves_early_is_no_error() {
    use super::{told, EBBTIDE};
    use std::process::{Command, Stdio};
    let mut child = Command::new(EBBTIDE)
        .args(["completions", "bash"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let (code, _, err) = told(child.wait_with_output().unwrap());
    assert_eq!((code, err.as_str()), (0, ""));
}

#[test]
fn warnings_do_not_mix_with_json() {
    let (_, out, err) = ebbtide(&tiny(&["--json", "--host-memory", "2TiB", "--batch", "2"]));
    let plan = json(&out);
    assert_eq!(plan["budget"]["host_bytes"], 2u64 << 40);
    assert_eq!(
        err,
        "warning: --host-memory 2.0 TiB is more than the 1.0 TiB of the host in unit\n"
    );
    let table = prints(&tiny(&["--host-memory", "2TiB"]));
    assert!(table.contains("\nwarning        --host-memory"), "{table}");
}
