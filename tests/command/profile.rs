//! `ebbtide profile` as a person calls it: what it writes, what it goes on from, what it refuses.

use std::process::{Command, Stdio};
use std::time::Duration;

use serde_json::Value;

use super::{json, prints, refuses, told, Scratch, EBBTIDE};

/// What is measured in these tests.
const MEASURED: [&str; 7] = [
    "profile", "--model", "tiny", "--seq", "32,64", "--link", "500MB/s",
];

/// From an interruption on to a profile that plans and runs.
#[cfg(target_os = "linux")]
#[test]
fn an_interrupted_measurement_goes_on_and_serves_plan_and_run() {
    let scratch = Scratch::new();
    let (file, schedule) = (scratch.path("p.json"), scratch.path("s.json"));
    let profile = [&MEASURED[..], &["-o", &file]].concat();

    let mut child = Command::new(EBBTIDE);
    let child = child.args(&profile).stderr(Stdio::piped()).spawn().unwrap();
    let partial = "p.json.partial";
    while !scratch.has(partial) || !scratch.json(partial)["calibration"].is_object() {
        std::thread::sleep(Duration::from_millis(10));
    }
    super::interrupt(&child);
    let (code, _, err) = told(child.wait_with_output().unwrap());
    assert_eq!(code, 2, "{err}");
    for words in ["interrupted after", "goes on from", "p.json.partial"] {
        assert!(err.contains(words), "{err}");
    }
    assert!(!scratch.has("p.json"), "half a profile");

    // What is there is not measured again: this number would not come twice.
    let mut begun = scratch.json(partial);
    begun["calibration"]["launch_ns"] = 1234.into();
    scratch.file(partial, begun.to_string());
    let table = prints(&profile);
    assert!(table.contains("block of tokens"), "{table}");
    assert!(!scratch.has(partial), "left behind");
    let measured = scratch.json("p.json");
    assert_eq!(measured["operators"]["launch"]["ns"], 1234);
    for direction in ["forward", "dgrad", "wgrad"] {
        let samples = measured["operators"]["gemm"]["samples"].as_array().unwrap();
        let tokens = |m: u64| move |s: &&Value| s["m"] == m && s["direction"] == direction;
        assert!(samples.iter().any(|s| tokens(32)(&s)), "{direction}");
        assert!(samples.iter().any(|s| tokens(64)(&s)), "{direction}");
    }
    // A copy that is held to a speed is never faster, but for what the timer adds.
    for sample in measured["links"]["h2d"]["samples"].as_array().unwrap() {
        let number = |key: &str| sample[key].as_u64().unwrap();
        assert!(number("ns") + 5_000 >= number("bytes") * 2, "{sample}");
    }

    let mut plan = vec!["plan", "--model", "tiny", "--profile", &file, "--seq", "64"];
    plan.extend(["--device-memory", "3MiB", "-o", &schedule]);
    prints(&plan);
    let run = prints(&[
        "run", &schedule, "--link", "500MB/s", "--steps", "3", "--json",
    ]);
    let run = json(&run);
    assert_eq!(run["hardware"], run["device"]);
    let named = |kind: &str| {
        let parts = run["parts"].as_array().unwrap().iter();
        parts.filter(|part| part["kind"] == kind).count()
    };
    assert_eq!(named("stream"), 4);
    assert_eq!(named("block"), 5, "four, and what is outside");
}

#[test]
fn what_cannot_be_measured_is_refused_at_once() {
    let scratch = Scratch::new();
    let file = scratch.path("p.json");
    let missing = scratch.path("no/such/p.json");
    let directory = scratch.0.to_str().unwrap().to_owned();
    let foreign = scratch.path("foreign.json");
    let other = r#"{"schema":"ebbtide/measured/1","settings":{"ebbtide_version":"0","model":"m",
        "config":{},"device":"cpu","dtype":"f32","link_bytes_per_s":null,"deterministic":false,
        "tokens":[1]},
        "calibration":null,"links":null,"slowdown":null,"host":null,"steps":[]}"#;
    scratch.file("foreign.json.partial", other);
    let broken = scratch.path("broken.json");
    scratch.file("broken.json.partial", "{");
    let cases: [(&[&str], i32, &str); 13] = [
        (
            &["--device", "cuda:0", "-o", &file],
            4,
            "the NVIDIA driver (libcuda.so.1) was not found",
        ),
        (
            &["--device", "tpu", "-o", &file],
            2,
            "the name of no device",
        ),
        (
            &["--device", "cuda:x", "-o", &file],
            2,
            "the name of no device",
        ),
        (&["--model", "no-such", "-o", &file], 2, "no-such"),
        (&["--link", "1000B/s", "-o", &file], 2, "--link"),
        (&["--seq", "0", "-o", &file], 2, "--seq"),
        (&["--seq", "99999999m", "-o", &file], 2, "--seq"),
        (&["--seq", "16m", "-o", &file], 2, "a shorter --seq"),
        // 4.7 G parameters in blocks and head, 16 bytes each.
        (
            &["--model", "llama-3.1-70b", "--seq", "32k", "-o", &file],
            3,
            "of which the device has",
        ),
        (&["-o", &missing], 2, "no directory"),
        (&["-o", &directory], 2, "it is a directory"),
        (
            &["-o", &foreign],
            2,
            "an unfinished measurement of something else",
        ),
        (&["-o", &broken], 2, "broken.json.partial"),
    ];
    for (more, code, words) in cases {
        let given = |flag: &str| more.contains(&flag);
        let mut args = vec!["profile"];
        for (flag, value) in [("--model", "tiny"), ("--seq", "32")] {
            if !given(flag) {
                args.extend([flag, value]);
            }
        }
        args.extend(more);
        refuses(&args, code, words);
    }
    assert!(!scratch.has("p.json") && !scratch.has("p.json.partial"));
}
