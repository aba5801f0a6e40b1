//! What is refused: bad flags and files, what does not fit, what cannot be written.

use std::fs;

use super::{ebbtide, prints, refuses, tiny, Scratch, TINY, UNIT};

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
    let scratch = Scratch::new();
    let deep = "[".repeat(100_000);
    let cases = [
        (
            "no-such-model".to_owned(),
            "no file, no directory and no shipped model",
        ),
        (scratch.file("cut.json", &TINY[..TINY.len() / 2]), "EOF"),
        (
            scratch.file("moe.json", TINY.replace("\"llama\"", "\"mixtral\"")),
            "mixtral",
        ),
        (
            scratch.file("empty.json", TINY.replace("_layers\": 4", "_layers\": 0")),
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
    let scratch = Scratch::new();
    let cases = [
        (
            "no-such-profile".to_owned(),
            "no file and no shipped hardware profile",
        ),
        (
            scratch.file("cut.json", &UNIT[..UNIT.len() / 2]),
            "cut off at line",
        ),
        (
            scratch.file("nan.json", UNIT.replacen("1e9", "NaN", 1)),
            "device: expected value",
        ),
        (
            scratch.file("negative.json", UNIT.replacen("1099511627776", "-1", 1)),
            "memory_bytes",
        ),
        (
            scratch.file("next.json", UNIT.replace("profile/1", "profile/2")),
            "ebbtide/profile/2",
        ),
        (
            scratch.file("deep.json", "{\"a\":".repeat(100_000)),
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
    let scratch = Scratch::new();
    let path = scratch.path("good.json");
    prints(&tiny(&["-o", &path]));
    let good = scratch.text("good.json");
    let cases = [
        (scratch.path("missing.json"), "cannot read"),
        (scratch.file("cut.json", &good[..good.len() / 2]), "cut off"),
        (
            scratch.file("next.json", good.replace("schedule/1", "schedule/2")),
            "this ebbtide reads ebbtide/schedule/1",
        ),
        (
            scratch.file("other.json", "{\"schema\": \"other\"}"),
            "not a schedule",
        ),
        (
            scratch.file("deep.json", "{\"a\":".repeat(100_000)),
            "cut off",
        ),
        (scratch.file("latin1.json", "{}"), "no \"schema\""),
        (
            scratch.file(
                "model.json",
                good.replacen("\"model\":{", "\"model\":7,\"x\":{", 1),
            ),
            "at model: invalid type: integer `7`, expected an object at line",
        ),
        (
            scratch.file(
                "float.json",
                good.replacen("\"seq\":1024", "\"seq\":1.5", 1),
            ),
            "workload.seq: invalid type: floating point `1.5`, expected a whole number",
        ),
        (
            scratch.file(
                "tokens.json",
                good.replacen("\"seq\":1024", "\"seq\":512", 1),
            ),
            "workload.tokens is 1024, not seq 512 × batch 1",
        ),
        (
            scratch.file(
                "parts.json",
                good.replacen("\"keep_tokens\":1024", "\"keep_tokens\":1023", 1),
            ),
            "is of 1023 tokens, must be of 1024",
        ),
        (
            scratch.file(
                "packed.json",
                good.replacen(
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
                good.replacen("\"method\":", "\"method\":\"sgd\",\n\"method\":", 1),
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
    let scratch = Scratch::new();
    let path = scratch.path("good.json");
    prints(&tiny(&["--device-memory", "1TiB", "-o", &path]));
    let good = scratch.text("good.json");
    let bad = good.replacen("\"device_bytes\":1099511627776", "\"device_bytes\":1024", 1);
    assert_ne!(good, bad);
    let bad = scratch.file("bad.json", &bad);
    let (code, out, err) = ebbtide(&["check", &bad]);
    assert_eq!(code, 5, "{out}{err}");
    assert!(out.contains("over-device-budget: "), "{out}");
    assert!(out.contains("1 violation: 1 over-device-budget"), "{out}");
    refuses(&["simulate", &bad], 5, "the checker refuses it");
}

#[test]
fn what_does_not_fit_is_an_answer() {
    let scratch = Scratch::new();
    let path = scratch.path("schedule.json");
    refuses(
        &tiny(&["--device-memory", "1MiB", "-o", &path]),
        3,
        "does not fit",
    );
    let (_, _, err) = ebbtide(&tiny(&["--device-memory", "1MiB"]));
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

/// Where the time for it is up, nobody knows.
#[test]
fn a_search_that_ends_early_proves_nothing() {
    let short = ["--device-memory=7MiB", "--strategy=checkpoint"];
    let out = prints(&tiny(&short));
    assert!(out.contains("0 violations"), "{out}");
    let early = [&short[..], &["--time-limit=0s"]].concat();
    refuses(
        &tiny(&early),
        3,
        "was found in 0 ns; the nearest miss is one of",
    );
}

#[test]
fn nothing_is_left_behind_by_a_failed_write() {
    let scratch = Scratch::new();
    let inside = scratch.path("no/such/directory.json");
    refuses(&tiny(&["-o", &inside]), 2, "cannot write");
    fs::create_dir(scratch.0.join("taken")).unwrap();
    refuses(&tiny(&["-o", &scratch.path("taken")]), 2, "cannot write");
    assert_eq!(scratch.names(), ["taken"]);
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
    let (_, _, err) = ebbtide(&args);
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
        assert_eq!(ebbtide(&[&args[..], &way].concat()).0, 0, "{way:?}");
    }
}
