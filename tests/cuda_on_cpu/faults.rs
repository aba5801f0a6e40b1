//! What goes wrong: missing and old libraries, cards that do not serve, memory that is not there,
//! commands that fail while they run. Always one clear line, exit code 4, and nothing half-written.

use std::path::Path;
use std::sync::OnceLock;

use super::is_there;
use super::place::{alias, ebbtide, folder, libraries, stderr, LIBRARIES};

/// A schedule of the tiny model that copies, recomputes and updates on the host.
fn schedule() -> &'static str {
    static PLANNED: OnceLock<String> = OnceLock::new();
    PLANNED.get_or_init(|| plan("s.json", &["--device-memory", "600KiB"]))
}

fn plan(name: &str, more: &[&str]) -> String {
    let path = folder("faults").join(name);
    let path = path.to_str().unwrap().to_owned();
    let what = "plan --model tiny --profile unit --seq 64 --dtype f32 -o";
    let args: Vec<&str> = what.split(' ').chain([path.as_str()]).collect();
    let out = ebbtide(&[&args[..], more].concat(), &[]);
    assert_eq!(out.status.code(), Some(0), "{}", stderr(&out));
    path
}

/// Runs, and holds what is said to some words.
fn fails(environment: &[(&str, &str)], words: &[&str]) {
    fails_with(schedule(), environment, words);
}

fn fails_with(schedule: &str, environment: &[(&str, &str)], words: &[&str]) {
    // Tests run side by side.
    let result = format!("{:?}.json", std::thread::current().id());
    let result = folder("faults").join(result);
    let path = result.to_str().unwrap();
    let args = [
        "run", schedule, "--device", "cuda:0", "--steps", "2", "-o", path,
    ];
    let out = ebbtide(&args, environment);
    let error = stderr(&out);
    assert_eq!(out.status.code(), Some(4), "{environment:?}: {error}");
    let said = error.lines().filter(|line| line.starts_with("error:"));
    assert_eq!(said.count(), 1, "{error}");
    assert!(!error.contains("panicked"), "{error}");
    for word in words {
        assert!(
            error.contains(word),
            "{environment:?}: {word} is not in {error}"
        );
    }
    assert!(out.stdout.is_empty() && !result.exists());
}

#[test]
fn it_runs_where_nothing_fails() {
    if !is_there() {
        return;
    }
    let schedule = schedule();
    let args = [
        "run", schedule, "--device", "cuda:0", "--steps", "2", "--json",
    ];
    let out = ebbtide(&args, &[("EBBTIDE_STANDIN_DELAYS", "7")]);
    assert_eq!(out.status.code(), Some(0), "{}", stderr(&out));
    let text = String::from_utf8_lossy(&out.stdout);
    assert!(text.contains("the stand-in card"), "{text}");
}

#[test]
fn what_is_missing_is_named() {
    if !is_there() {
        return;
    }
    let said = [
        (
            "cuda",
            "the NVIDIA driver (libcuda.so.1) was not found",
            "install an NVIDIA driver",
        ),
        (
            "cublasLt",
            "(libcublasLt.so) was not found",
            "nvidia-cublas",
        ),
        ("nvrtc", "(libnvrtc.so) was not found", "nvidia-cuda-nvrtc"),
    ];
    for (missing, words, hint) in said {
        let place = folder(&format!("without-{missing}"));
        for library in LIBRARIES.into_iter().filter(|&library| library != missing) {
            let name = format!("lib{library}.so");
            std::fs::copy(libraries().join(&name), place.join(&name)).unwrap();
        }
        let path = place.to_str().unwrap();
        fails(&[("EBBTIDE_CUDA_PATH", path)], &[words, hint, path]);
    }
}

#[test]
fn a_library_without_a_function_is_too_old() {
    if !is_there() {
        return;
    }
    let place = folder("hollow");
    alias(&place, "cuda", None);
    let path = place.to_str().unwrap();
    let words = ["the NVIDIA driver (libcuda.so.1) is too old: it has no `cu"];
    fails(&[("EBBTIDE_CUDA_PATH", path)], &words);
}

#[test]
fn cards_that_do_not_serve_are_refused() {
    if !is_there() {
        return;
    }
    fails(
        &[("EBBTIDE_STANDIN_VERSION", "12020")],
        &["for CUDA 12.2; 12.8 or later"],
    );
    fails(
        &[("EBBTIDE_STANDIN_CAPABILITY", "7.5")],
        &["compute capability 7.5", "bf16"],
    );
    fails(&[("EBBTIDE_STANDIN_FAIL", "cuInit:1=100")], &["cuInit"]);
    // Others use it: less is free than the arena and what is beside it need.
    fails(
        &[("EBBTIDE_STANDIN_MEMORY", "400000000")],
        &[
            "no memory for the arena on a card with",
            "free",
            "--device-memory",
        ],
    );
}

#[test]
fn decompositions_are_refused() {
    if !is_there() {
        return;
    }
    let galore = plan("galore.json", &["--method", "galore", "--svd"]);
    fails_with(
        &galore,
        &[],
        &["--svd", "plan without", "cpu device", "instruction"],
    );
}

#[test]
fn every_call_that_fails_ends_the_run_with_its_name() {
    if !is_there() {
        return;
    }
    let out_of_memory = ["no memory for", "--device-memory"];
    fails(
        &[("EBBTIDE_STANDIN_FAIL", "cuMemAlloc_v2:1=2")],
        &out_of_memory,
    );
    fails(
        &[("EBBTIDE_STANDIN_FAIL", "cuMemAlloc_v2:3=2")],
        &out_of_memory,
    );
    let pinned = ["no memory for the pinned host slab"];
    fails(
        &[("EBBTIDE_STANDIN_FAIL", "cuMemHostRegister_v2:1=2")],
        &pinned,
    );
    let cache = folder("no-cache");
    remove(&cache);
    let fresh = ("XDG_CACHE_HOME", cache.to_str().unwrap());
    fails(
        &[("EBBTIDE_STANDIN_FAIL", "compile:3=1"), fresh],
        &["it does not compile"],
    );
    for (fault, words) in [
        (
            "cuLaunchKernel:20=719",
            ["CUDA_ERROR_LAUNCH_FAILED", "instruction"],
        ),
        ("cuMemcpyDtoHAsync_v2:2=719", ["cuMemcpyDtoHAsync", "copy"]),
        ("cuEventRecord:9=719", ["cuEventRecord", "LAUNCH_FAILED"]),
        ("cublasLtMatmul:3=13", ["cublasLtMatmul", "instruction"]),
        (
            "cublasLtMatmulAlgoGetHeuristic:1=13",
            ["no algorithm", "instruction"],
        ),
        // Once it runs: the card is lost, whoever asks next is told.
        (
            "kernel:30=700",
            ["CUDA_ERROR_ILLEGAL_ADDRESS", "device failed"],
        ),
        ("copy:3=719", ["CUDA_ERROR_LAUNCH_FAILED", "device failed"]),
        (
            "product:5=719",
            ["CUDA_ERROR_LAUNCH_FAILED", "device failed"],
        ),
    ] {
        fails(&[("EBBTIDE_STANDIN_FAIL", fault)], &words);
    }
}

#[test]
fn a_spoilt_cache_is_made_again() {
    if !is_there() {
        return;
    }
    let cache = folder("cache-of-its-own");
    let environment = [("XDG_CACHE_HOME", cache.to_str().unwrap())];
    let schedule = schedule();
    let args = ["run", schedule, "--device", "cuda:0", "--steps", "1"];
    let run = || {
        let out = ebbtide(&args, &environment);
        assert_eq!(out.status.code(), Some(0), "{}", stderr(&out));
    };
    run();
    let files = || -> Vec<_> {
        let folder = std::fs::read_dir(cache.join("ebbtide/kernels")).unwrap();
        folder.map(|entry| entry.unwrap().path()).collect()
    };
    let compiled = files();
    assert!(compiled.len() >= 9, "{compiled:?}");
    let (good, spoilt) = (std::fs::read(&compiled[0]).unwrap(), &compiled[0]);
    std::fs::write(spoilt, [0u8; 64]).unwrap();
    run();
    assert_eq!(std::fs::read(spoilt).unwrap(), good);
    assert_eq!(files().len(), compiled.len());
    remove(&cache);
}

fn remove(folder: &Path) {
    std::fs::remove_dir_all(folder).unwrap();
}
