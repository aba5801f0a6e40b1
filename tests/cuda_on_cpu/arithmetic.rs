//! `plan --allow …` and `run` of what it writes, on the CPU device and on the stand-in: with scales
//! inside of products and with a kernel behind them.

use std::path::PathBuf;

use serde_json::Value;

use super::is_there;
use super::place::{ebbtide, folder, stderr};

/// A schedule that multiplies or packs so, by a profile on which that is faster.
fn planned(allow: &str) -> String {
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    let unit = std::fs::read_to_string(root.join("profiles/hardware/unit.json")).unwrap();
    let fast = unit.replace("\"fp8\": 1e9", "\"fp8\": 1e11");
    assert_ne!(fast, unit);
    let folder = folder("arithmetic");
    // Tests run side by side.
    let [profile, schedule] = ["profile", "schedule"].map(|what| {
        let thread = std::thread::current().id();
        let path = folder.join(format!("{allow}-{what}-{thread:?}.json"));
        path.to_str().unwrap().to_owned()
    });
    std::fs::write(&profile, fast).unwrap();
    let what = "plan --model tiny --seq 64 --dtype f32 --method sgd --allow";
    let args: Vec<&str> = what
        .split(' ')
        .chain([allow, "--profile", &profile, "-o", &schedule])
        .collect();
    let out = ebbtide(&args, &[]);
    assert_eq!(out.status.code(), Some(0), "{}", stderr(&out));
    let text = std::fs::read_to_string(&schedule).unwrap();
    assert!(
        text.contains(&format!("\"{}\"", allow.trim_end_matches("-storage"))),
        "{allow}"
    );
    schedule
}

/// Losses, and how long a step takes.
fn train(schedule: &str, device: &str, environment: &[(&str, &str)]) -> (Vec<f64>, u64) {
    let args = [
        "run", schedule, "--device", device, "--steps", "3", "--lr", "0.1", "--json",
    ];
    let out = ebbtide(&args, environment);
    assert_eq!(
        out.status.code(),
        Some(0),
        "{environment:?}: {}",
        stderr(&out)
    );
    let ran: Value = serde_json::from_slice(&out.stdout).unwrap();
    let losses = ran["losses"].as_array().unwrap().iter();
    let losses = losses.map(|loss| loss.as_f64().unwrap()).collect();
    (losses, ran["measured"]["step_ns"].as_u64().unwrap())
}

#[test]
fn planned_arithmetic_runs() {
    if !is_there() {
        return;
    }
    let clock = ("EBBTIDE_STANDIN_CLOCK", "virtual");
    let apart = ("EBBTIDE_STANDIN_SCALES", "apart");
    for allow in ["fp8-compute", "int8-compute", "qat-fp8", "qat-int8"] {
        let schedule = planned(allow);
        let (expected, _) = train(&schedule, "cpu", &[]);
        assert!(expected[2] < expected[0], "{allow}: {expected:?}");
        let [inside, behind] = [&[clock][..], &[clock, apart]].map(|environment| {
            let (found, took) = train(&schedule, "cuda:0", environment);
            let mut pairs = found.iter().zip(&expected);
            let far = pairs.find(|(a, b)| (**a - **b).abs() > 1e-3 * **b);
            assert_eq!(far, None, "{allow} {environment:?}");
            took
        });
        // Of FP8 alone a library may take scales; a kernel for them takes time of its own.
        assert_eq!(
            inside < behind,
            allow == "fp8-compute",
            "{allow}: {inside} {behind}"
        );
    }
}

#[test]
fn a_card_without_products_of_fp8_is_refused() {
    if !is_there() {
        return;
    }
    let schedule = planned("fp8-compute");
    let args = ["run", &schedule, "--device", "cuda:0", "--steps", "1"];
    let out = ebbtide(&args, &[("EBBTIDE_STANDIN_CAPABILITY", "8.6")]);
    let error = stderr(&out);
    assert_eq!(out.status.code(), Some(4), "{error}");
    let words = "fp8-compute on a card of compute capability 8.6";
    assert!(
        error.contains(words) && error.contains("int8-compute"),
        "{error}"
    );
}
