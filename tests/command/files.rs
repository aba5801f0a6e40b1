//! What the command does with files that are not what it expects: devices, pipes, links,
//! directories, byte order marks, one name twice.

use std::fs;
use std::os::unix::fs::{symlink, FileTypeExt};
use std::process::{Command, Stdio};

use super::{ebbtide, json, prints, refuses, told, Scratch, EBBTIDE, TINY, UNIT};

fn plan_into(output: &str) -> [&str; 6] {
    let [model, profile] = ["--model=tiny", "--profile=unit"];
    ["plan", model, profile, "--seq=256", "--output", output]
}

fn refused(args: &[&str], fragment: &str) {
    refuses(args, 2, fragment);
}

#[test]
fn a_pipe_is_written_to_and_stays_a_pipe() {
    let scratch = Scratch::new();
    let pipe = scratch.path("pipe");
    let made = Command::new("mkfifo").arg(&pipe).status();
    if !made.is_ok_and(|status| status.success()) {
        return;
    }
    let mut reader = Command::new("cat")
        .arg(&pipe)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let (code, _, err) = ebbtide(&plan_into(&pipe));
    if code != 0 {
        // Nobody will write: it would wait for ever, and hold what it has inherited.
        reader.kill().unwrap();
    }
    assert_eq!(code, 0, "{err}");
    assert!(fs::symlink_metadata(&pipe).unwrap().file_type().is_fifo());
    let (_, read, _) = told(reader.wait_with_output().unwrap());
    assert_eq!(json(&read)["schema"], "ebbtide/schedule/1");
}

#[test]
fn a_full_device_is_an_error_of_output() {
    let Ok(full) = fs::OpenOptions::new().write(true).open("/dev/full") else {
        return;
    };
    // The device as standard output: a test must never name one as a file to write.
    let mut command = Command::new(EBBTIDE);
    let command = command.args(["list", "models"]).stdout(full);
    let (code, _, err) = told(command.output().unwrap());
    assert_eq!(code, 2, "{err}");
    assert!(err.contains("cannot write to standard output"), "{err}");
}

#[test]
fn a_link_stays_a_link() {
    let scratch = Scratch::new();
    let file = scratch.file("file.json", "old");
    let link = scratch.path("link.json");
    symlink(&file, &link).unwrap();
    prints(&plan_into(&link));
    assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
    assert!(scratch.text("file.json").contains("schedule/1"));
    assert_eq!(scratch.names(), ["file.json", "link.json"]);
}

#[test]
fn where_nothing_can_be_written_nothing_is_planned() {
    let scratch = Scratch::new();
    refused(&plan_into(scratch.0.to_str().unwrap()), "it is a directory");
    refused(&plan_into(&scratch.path("missing/s.json")), "no directory");
}

#[test]
fn nothing_is_overwritten_by_its_own_result() {
    let scratch = Scratch::new();
    let schedule = scratch.path("s.json");
    prints(&plan_into(&schedule));
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
    assert!(!scratch.has("t.json"));
    let model = scratch.file("m.json", TINY);
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
    let scratch = Scratch::new();
    let empty = scratch.file("empty", "");
    let binary = scratch.file("binary", b"{\"a\": \xff}");
    for command in ["check", "simulate", "chain", "arena"] {
        refused(&[command, &empty], "the file is empty");
        refused(&[command, &binary], "byte 6 is not UTF-8");
        refused(&[command, scratch.0.to_str().unwrap()], "cannot read");
    }
    for (flag, other) in [("--model", "--profile=unit"), ("--profile", "--model=tiny")] {
        let args = |file| ["plan", other, "--seq=256", flag, file];
        refused(&args(&empty), "the file is empty");
        refused(&args(&binary), "byte 6 is not UTF-8");
    }
}

#[test]
fn a_byte_order_mark_is_no_part_of_a_text() {
    let scratch = Scratch::new();
    let mark = |text: &str| format!("\u{feff}{text}");
    let model = scratch.file("m.json", mark(TINY));
    let profile = scratch.file("p.json", mark(UNIT));
    let args = ["plan", "--model", &model, "--profile", &profile, "--seq=1k"];
    prints(&args);
}

#[cfg(target_os = "linux")]
#[test]
fn a_file_that_grows_beyond_its_limit_is_an_error() {
    let scratch = Scratch::new();
    let path = scratch.path("s.json");
    let limited = format!("ulimit -f 4; exec {EBBTIDE} {}", plan_into(&path).join(" "));
    let (code, _, err) = told(Command::new("sh").args(["-c", &limited]).output().unwrap());
    assert!(code == 2 && err.contains("cannot write"), "{err}");
    assert_eq!(scratch.names(), [""; 0]);
}
