//! What the command does with files that are not what it expects: devices, pipes, links,
//! directories, byte order marks, one name twice.

#![cfg(unix)]

use std::fs;
use std::os::unix::fs::{symlink, FileTypeExt};
use std::path::PathBuf;
use std::process::Stdio;

use assert_cmd::Command;

/// A directory that is gone when the test is over.
struct Scratch(PathBuf);

impl Scratch {
    fn new(name: &str) -> Self {
        let path =
            std::env::temp_dir().join(format!("ebbtide-files-{}-{name}", std::process::id()));
        fs::create_dir_all(&path).unwrap();
        Self(path)
    }
    fn path(&self, name: &str) -> String {
        self.0.join(name).to_str().unwrap().to_owned()
    }
    fn file(&self, name: &str, bytes: impl AsRef<[u8]>) -> String {
        fs::write(self.0.join(name), bytes).unwrap();
        self.path(name)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// The exit code, standard output and standard error of a command.
fn ebbtide(args: &[&str]) -> (Option<i32>, String, String) {
    let mut command = Command::cargo_bin("ebbtide").unwrap();
    let output = command.args(args).output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (
        output.status.code(),
        text(output.stdout),
        text(output.stderr),
    )
}

const TINY: &str = "--model=tiny";

fn plan_into(output: &str) -> (Option<i32>, String, String) {
    ebbtide(&[
        "plan",
        TINY,
        "--profile=unit",
        "--seq=256",
        "--output",
        output,
    ])
}

fn refused(args: &[&str], fragment: &str) {
    let (code, out, err) = ebbtide(args);
    assert_eq!(code, Some(2), "{args:?}: {err}");
    assert_eq!(out, "", "{args:?}");
    assert!(err.contains(fragment), "{args:?}: {err}");
}

#[test]
fn a_pipe_is_written_to_and_stays_a_pipe() {
    let scratch = Scratch::new("pipe");
    let pipe = scratch.path("pipe");
    let made = std::process::Command::new("mkfifo").arg(&pipe).status();
    if !made.is_ok_and(|status| status.success()) {
        return;
    }
    let mut reader = std::process::Command::new("cat")
        .arg(&pipe)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let (code, _, err) = plan_into(&pipe);
    if code != Some(0) {
        // Nobody will write: it would wait for ever, and hold what it has inherited.
        reader.kill().unwrap();
    }
    assert_eq!(code, Some(0), "{err}");
    assert!(fs::symlink_metadata(&pipe).unwrap().file_type().is_fifo());
    let read = reader.wait_with_output().unwrap().stdout;
    let file: serde_json::Value = serde_json::from_slice(&read).unwrap();
    assert_eq!(file["schema"], "ebbtide/schedule/1");
}

#[test]
fn a_full_device_is_an_error_of_output() {
    let Ok(full) = fs::OpenOptions::new().write(true).open("/dev/full") else {
        return;
    };
    // The device as standard output: a test must never name one as a file to write.
    let command = assert_cmd::cargo::cargo_bin("ebbtide");
    let output = std::process::Command::new(command)
        .args(["list", "models"])
        .stdout(full)
        .output()
        .unwrap();
    let err = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(2), "{err}");
    assert!(err.contains("cannot write to standard output"), "{err}");
}

#[test]
fn a_link_stays_a_link() {
    let scratch = Scratch::new("link");
    let file = scratch.file("file.json", "old");
    let link = scratch.path("link.json");
    symlink(&file, &link).unwrap();
    let (code, _, err) = plan_into(&link);
    assert_eq!(code, Some(0), "{err}");
    assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
    assert!(fs::read_to_string(&file).unwrap().contains("schedule/1"));
    assert_eq!(fs::read_dir(&scratch.0).unwrap().count(), 2);
}

#[test]
fn where_nothing_can_be_written_nothing_is_planned() {
    let scratch = Scratch::new("nowhere");
    let plan = |output: &str, fragment: &str| {
        let args = ["plan", TINY, "--profile=unit", "--seq=256", "-o", output];
        refused(&args, fragment);
    };
    plan(scratch.0.to_str().unwrap(), "it is a directory");
    plan(&scratch.path("missing/s.json"), "no directory");
}

#[test]
fn nothing_is_overwritten_by_its_own_result() {
    let scratch = Scratch::new("same");
    let schedule = scratch.path("s.json");
    let (code, _, err) = plan_into(&schedule);
    assert_eq!(code, Some(0), "{err}");
    let before = fs::read(&schedule).unwrap();
    let (again, other) = (scratch.path("./s.json"), scratch.path("t.json"));
    refused(
        &["simulate", &schedule, "--trace", &again],
        "the schedule and --trace are the same file",
    );
    refused(
        &[
            "simulate",
            &schedule,
            "--trace",
            &other,
            "--memory-snapshot",
            &other,
        ],
        "--trace and --memory-snapshot are the same file",
    );
    assert_eq!(fs::read(&schedule).unwrap(), before);
    assert!(!fs::exists(&other).unwrap());
    let model = scratch.file("m.json", include_str!("../profiles/models/tiny.json"));
    refused(
        &[
            "plan",
            "--model",
            &model,
            "--profile=unit",
            "--seq=256",
            "-o",
            &model,
        ],
        "--model and --output are the same file",
    );
    let requests = scratch.file("a.csv", "id,lower,upper,size\na,0,2,3\n");
    refused(
        &["arena", &requests, "-o", &requests],
        "the instance and --output are the same file",
    );
}

#[test]
fn what_is_no_text_is_said_to_be_none() {
    let scratch = Scratch::new("text");
    let empty = scratch.file("empty", "");
    let binary = scratch.file("binary", b"{\"a\": \xff}");
    for command in ["check", "simulate", "chain", "arena"] {
        refused(&[command, &empty], "the file is empty");
        refused(&[command, &binary], "byte 6 is not UTF-8");
        refused(&[command, scratch.0.to_str().unwrap()], "cannot read");
    }
    for (flag, other) in [("--model", "--profile=unit"), ("--profile", TINY)] {
        let args = |file| ["plan", other, "--seq=256", flag, file];
        refused(&args(&empty), "the file is empty");
        refused(&args(&binary), "byte 6 is not UTF-8");
    }
}

#[test]
fn a_byte_order_mark_is_no_part_of_a_text() {
    let scratch = Scratch::new("mark");
    let mark = |text: &str| format!("\u{feff}{text}");
    let model = scratch.file("m.json", mark(include_str!("../profiles/models/tiny.json")));
    let profile = scratch.file(
        "p.json",
        mark(include_str!("../profiles/hardware/unit.json")),
    );
    let args = ["plan", "--model", &model, "--profile", &profile, "--seq=1k"];
    let (code, _, err) = ebbtide(&args);
    assert_eq!(code, Some(0), "{err}");
}
