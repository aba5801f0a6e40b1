//! When attention is cuDNN's and when it is not, as commands tell it: a run says so and goes on,
//! unless a call that was made fails.

use std::sync::OnceLock;

use serde_json::Value;

use super::is_there;
use super::place::{ebbtide, folder, libraries, stderr, CUDNN, LIBRARIES};

/// A schedule in bf16 by a profile with cuDNN's scratch memory.
fn schedule() -> &'static str {
    static PLANNED: OnceLock<String> = OnceLock::new();
    PLANNED.get_or_init(|| planned_by("h100-sxm5-80gb"))
}

fn planned_by(profile: &str) -> String {
    let path = folder("cudnn").join(format!("{profile}.json"));
    let path = path.to_str().unwrap().to_owned();
    let what = "plan --model tiny --seq 64 --dtype bf16 --profile";
    let args: Vec<&str> = what.split(' ').chain([profile, "-o", &path]).collect();
    let out = ebbtide(&args, &[]);
    assert_eq!(out.status.code(), Some(0), "{}", stderr(&out));
    path
}

/// What a run says of its device.
fn notes(schedule: &str, more: &[&str], environment: &[(&str, &str)]) -> Vec<String> {
    let args = ["run", schedule, "--device", "cuda:0", "--steps", "1"];
    let out = ebbtide(&[&args[..], more, &["--json"]].concat(), environment);
    assert_eq!(out.status.code(), Some(0), "{}", stderr(&out));
    let run: Value = serde_json::from_slice(&out.stdout).unwrap();
    let notes = run["device_notes"].as_array().unwrap().iter();
    notes
        .map(|note| note.as_str().unwrap().to_owned())
        .collect()
}

#[test]
fn a_run_says_what_attention_was_computed_by() {
    if !is_there() {
        return;
    }
    let schedule = schedule();
    let by = |by: &str| ["attention", "attention_backward"].map(|what| format!("{what} by {by}"));
    assert_eq!(notes(schedule, &[], &[]), by("cuDNN 9.19.0"));
    let ours = by("ebbtide's kernels (--deterministic)");
    assert_eq!(notes(schedule, &["--deterministic"], &[]), ours);
    let args = ["run", schedule, "--device", "cuda:0", "--steps", "1"];
    let out = ebbtide(&args, &[]);
    let text = String::from_utf8_lossy(&out.stdout);
    assert!(
        text.contains("\nnote: attention_backward by cuDNN 9.19.0\n"),
        "{text}"
    );
}

#[test]
fn without_cudnn_attention_is_ours_and_says_why() {
    if !is_there() {
        return;
    }
    let schedule = schedule();
    let bare = folder("without-cudnn");
    let lone = folder("cudnn-alone");
    for library in LIBRARIES {
        let name = format!("lib{library}.so");
        for place in [&bare, &lone] {
            std::fs::copy(libraries().join(&name), place.join(&name)).unwrap();
        }
    }
    std::fs::copy(libraries().join(CUDNN[0]), lone.join(CUDNN[0])).unwrap();
    let [bare, lone] = [&bare, &lone].map(|place| place.to_str().unwrap());
    for (variable, value, words) in [
        (
            "EBBTIDE_CUDA_PATH",
            bare,
            "cuDNN (libcudnn.so.9) was not found; looked in",
        ),
        (
            "EBBTIDE_CUDA_PATH",
            lone,
            "cuDNN 9.19.0 needs libcublasLt.so.13, which was not found",
        ),
        (
            "EBBTIDE_STANDIN_CUDNN",
            "90800",
            "cuDNN is 9.8.0; 9.10.0 or later is needed",
        ),
        (
            "EBBTIDE_STANDIN_FAIL",
            "cudnnCreate:1=1",
            "cudnnCreate: CUDNN_STATUS_NOT_INITIALIZED (said by the stand-in)",
        ),
        (
            "EBBTIDE_STANDIN_FAIL",
            "engine:1=1",
            "cuDNN 9.19.0 has no plan for it: it proposes no",
        ),
    ] {
        let notes = notes(schedule, &[], &[(variable, value)]);
        let ours = format!("attention by ebbtide's kernels ({words}");
        assert!(notes[0].starts_with(&ours), "{notes:?}");
    }
}

#[test]
fn without_scratch_memory_the_backward_is_ours_and_says_why() {
    if !is_there() {
        return;
    }
    let notes = notes(&planned_by("unit"), &[], &[]);
    assert_eq!(notes[0], "attention by cuDNN 9.19.0");
    let words = "attention_backward by ebbtide's kernels (the schedule plans no scratch memory";
    assert!(notes[1].starts_with(words), "{notes:?}");
}

#[test]
fn a_call_that_fails_ends_the_run() {
    if !is_there() {
        return;
    }
    let schedule = schedule();
    for (fault, words) in [
        (
            "cudnnBackendExecute:2=1",
            "cuDNN 9.19.0: cudnnBackendExecute: CUDNN_STATUS_EXECUTION_FAILED (said by the",
        ),
        ("attention:3=719", "CUDA_ERROR_LAUNCH_FAILED"),
    ] {
        let args = ["run", schedule, "--device", "cuda:0", "--steps", "2"];
        let out = ebbtide(&args, &[("EBBTIDE_STANDIN_FAIL", fault)]);
        let error = stderr(&out);
        assert_eq!(out.status.code(), Some(4), "{fault}: {error}");
        assert!(
            error.contains(words) && !error.contains("panicked"),
            "{error}"
        );
    }
}
