//! Runs that are refused, that fail and that are interrupted: what is said, and what is left.

use std::fs;
use std::process::{Command, Stdio};

use super::*;
use crate::{told, EBBTIDE};

/// A saved run that was changed or cut off afterwards.
#[test]
fn a_broken_save_is_not_resumed() {
    let scratch = Scratch::new();
    let schedule = plan(&scratch, "tiny", LEAN);
    let saved = scratch.path("saved");
    report(&schedule, &["--steps", "2", "--save", &saved]);
    let resume = ["--steps", "4", "--resume", &saved];
    let good = scratch.text("saved/training.json");
    let huge = format!("\"sequences\": {}", u64::MAX);
    for (from, to, words) in [
        (
            "\"step\": 2",
            "\"step\": 3",
            "step is 3, but there are 2 losses",
        ),
        ("\"sequences\": 4", &huge, "sequences is"),
        (
            "\"losses\": [",
            "\"losses\": [1e999,",
            "number out of range",
        ),
        ("\"adamw\"", "\"sgd\"", "method sgd"),
        ("}\n", "", "cut off at line"),
    ] {
        assert!(good.contains(from), "{from} is not in {good}");
        scratch.file("saved/training.json", good.replacen(from, to, 1));
        fails(&schedule, &resume, words);
    }
    scratch.file("saved/training.json", good);
    let states = fs::read(scratch.path("saved/optimizer.safetensors")).unwrap();
    let weights = fs::read(scratch.path("saved/model.safetensors")).unwrap();
    let (cut, _) = states.split_last_chunk::<4>().unwrap();
    let nan = [cut, &f32::NAN.to_le_bytes()].concat();
    let longer = [&weights[..], &[0; 8]].concat();
    for (name, whole, broken, words) in [
        (
            "optimizer",
            &states,
            cut.to_vec(),
            "optimizer.safetensors: not safetensors, or truncated",
        ),
        ("optimizer", &states, nan, "is NaN"),
        ("model", &weights, longer, "of which its header knows"),
    ] {
        let name = format!("saved/{name}.safetensors");
        scratch.file(&name, broken);
        fails(&schedule, &resume, words);
        scratch.file(&name, whole);
    }
    report(&schedule, &resume);
}

/// What could not be loaded again.
#[test]
fn weights_that_are_no_numbers_are_not_saved() {
    let scratch = Scratch::new();
    for (method, words) in [("sgd", "weight: element"), ("adamw", "element")] {
        let schedule = plan(&scratch, "tiny", &[LEAN, &["--method", method]].concat());
        let save = ["--lr", "1e39", "--save", &scratch.path("saved")];
        fails(&schedule, &[&["--steps", "1"], &save[..]].concat(), words);
        assert_eq!(scratch.names(), ["s.json"]);
        // In another step its loss says so.
        fails(&schedule, &save, "the loss of step");
        assert_eq!(scratch.names(), ["s.json"]);
    }
}

/// Before a step is run for it.
#[test]
fn a_place_that_cannot_be_written_is_told_at_once() {
    let scratch = Scratch::new();
    let schedule = plan(&scratch, "tiny", LEAN);
    let before = scratch.text("s.json");
    let (directory, nowhere) = (scratch.path(""), scratch.path("nowhere/r.json"));
    for (output, words) in [
        (&schedule, "the schedule and -o are the same file"),
        (&directory, "it is a directory"),
        (&nowhere, "cannot write"),
    ] {
        fails(&schedule, &["--steps", "1000000", "-o", output], words);
    }
    // Nor are what it reads.
    let tokens = scratch.file("t.u16", [0; 400]);
    let save = scratch.path("before");
    report(&schedule, &["--steps", "1", "--save", &save]);
    let inside = format!("{save}/training.json");
    for (input, path, output) in [
        ("--tokens", &tokens, &tokens),
        ("--weights", &save, &inside),
        ("--resume", &save, &inside),
    ] {
        let flags = [input, path, "--steps", "2", "-o", output];
        fails(&schedule, &flags, input);
    }
    assert_eq!(fs::read(tokens).unwrap(), [0; 400]);
    assert_eq!(scratch.text("s.json"), before);
    // Nobody makes directories there, root included.
    #[cfg(target_os = "linux")]
    {
        let save = ["--steps", "1000000", "--save", "/proc/saved"];
        fails(&schedule, &save, "cannot write");
    }
    // The report may lie in the directory that is saved.
    let (saved, inside) = (scratch.path("saved"), scratch.path("saved/r.json"));
    report(
        &schedule,
        &["--steps", "1", "--save", &saved, "-o", &inside],
    );
    scratch.json("saved/r.json");
}

#[test]
fn weights_that_are_no_numbers_are_named() {
    let scratch = Scratch::new();
    let llama = data("hf/llama");
    let schedule = plan(&scratch, &llama, &["--seq", "16"]);
    let mut bytes = fs::read(format!("{llama}/model.safetensors")).unwrap();
    let end = bytes.len();
    bytes[end - 4..].copy_from_slice(&f32::NAN.to_le_bytes());
    let weights = scratch.file("model.safetensors", bytes);
    fails(&schedule, &["--weights", &weights], " is NaN");
}

#[test]
fn what_the_checker_refuses_is_not_run() {
    let corpus = format!("{}/tests/refused", env!("CARGO_MANIFEST_DIR"));
    let mut refused = 0;
    for entry in fs::read_dir(corpus).unwrap() {
        let path = entry.unwrap().path();
        let path = path.to_str().unwrap();
        if !path.ends_with("base.good.json") {
            refuses(&["run", path], 5, "the checker refuses it");
            refused += 1;
        }
    }
    assert!(refused > 40, "{refused}");
}

/// Before they are reserved or added up.
#[test]
fn sizes_that_no_machine_has_are_told() {
    let scratch = Scratch::new();
    plan(&scratch, "tiny", LEAN);
    let fails_with = |change: fn(&mut Value)| {
        let mut file = scratch.json("s.json");
        change(&mut file);
        let broken = scratch.file("broken.json", file.to_string());
        fails(&broken, &[], "more than");
    };
    fails_with(|file| file["hardware"]["overhead_bytes"] = u64::MAX.into());
    fails_with(|file| file["events"] = u32::MAX.into());
}

/// A disk that fills up while weights are saved.
#[cfg(unix)]
#[test]
fn a_full_disk_leaves_nothing_under_the_final_name() {
    let scratch = Scratch::new();
    let schedule = plan(&scratch, "tiny", LEAN);
    let saved = scratch.path("saved");
    // In blocks of 512 bytes: less than the weights need.
    let limited = format!("ulimit -f 200; exec {EBBTIDE} run {schedule} --steps 1 --save {saved}");
    let (code, _, err) = told(Command::new("sh").args(["-c", &limited]).output().unwrap());
    assert!(code == 2 && err.contains("cannot write"), "{err}");
    assert_eq!(scratch.names(), ["s.json"]);
}

#[cfg(target_os = "linux")]
mod interrupted {
    use std::io::Write;
    use std::thread::sleep;
    use std::time::Duration;

    use super::*;
    use crate::interrupt;

    /// Where weights are being loaded: it says so, and ends with the contract's code.
    #[test]
    fn a_run_is_interrupted_before_its_first_step() {
        let scratch = Scratch::new();
        let schedule = plan(&scratch, "tiny", LEAN);
        let tokens = scratch.path("ids.u16");
        let made = Command::new("mkfifo").arg(&tokens).status();
        assert!(made.unwrap().success());
        let mut child = Command::new(EBBTIDE);
        child.args(["run", &schedule, "--tokens", &tokens]);
        let child = child.stderr(Stdio::piped()).spawn().unwrap();
        // Opens once the run wants to read.
        let mut pipe = fs::OpenOptions::new().write(true).open(&tokens).unwrap();
        interrupt(&child);
        pipe.write_all(&[0; 4096]).unwrap();
        drop(pipe);
        let (code, _, err) = told(child.wait_with_output().unwrap());
        let words = "interrupted before the first step";
        assert!(code == 2 && err.contains(words), "{err}");
    }

    /// Ctrl-C ends the run after its step, saved and reported; however long its first step takes.
    #[test]
    fn an_interrupt_ends_cleanly() {
        let scratch = Scratch::new();
        let schedule = plan(&scratch, "tiny", LEAN);
        let saved = scratch.path("saved");
        let after = |wait: Duration| {
            let mut child = Command::new(EBBTIDE);
            let steps = ["run", &schedule, "--steps", "1000000", "--json"];
            child.args(steps).args(["--save", &saved]);
            child.stdout(Stdio::piped()).stderr(Stdio::piped());
            let child = child.spawn().unwrap();
            // It is ready for the signal once it catches it.
            let catches = || {
                let status = fs::read_to_string(format!("/proc/{}/status", child.id())).unwrap();
                let mask = status.lines().find_map(|line| line.strip_prefix("SigCgt:"));
                u64::from_str_radix(mask.expect("Linux").trim(), 16).unwrap() & (1 << (2 - 1)) != 0
            };
            while !catches() {
                sleep(Duration::from_millis(10));
            }
            sleep(wait);
            interrupt(&child);
            let (code, out, err) = told(child.wait_with_output().unwrap());
            assert_eq!(code, 2, "{err}");
            (!err.contains("before the first step")).then_some(out)
        };
        let mut waits = (0..8).map(|doubled| Duration::from_millis(200 << doubled));
        let report = json(&waits.find_map(after).unwrap());
        let done = report["steps"].as_u64().unwrap();
        assert!(done < 1_000_000);
        assert_eq!(scratch.json("saved/training.json")["step"], done);
    }
}
