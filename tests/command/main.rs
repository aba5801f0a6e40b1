//! The command itself: what it prints, writes and refuses, and its exit codes.

mod bad_input;
mod chain;
mod cli;
mod compare;
mod export;
#[cfg(unix)]
mod files;
mod profile;
mod run;
mod tuning;
mod viewers;

use std::fs;
use std::path::PathBuf;
use std::process::{Command, Output};
use std::sync::atomic::{AtomicU32, Ordering};

use serde_json::Value;

const EBBTIDE: &str = env!("CARGO_BIN_EXE_ebbtide");

/// The config file of the tiny model.
const TINY: &str = include_str!("../../profiles/models/tiny.json");
/// The profile of the unit machine.
const UNIT: &str = include_str!("../../profiles/hardware/unit.json");

/// A directory of its own for each test, gone when the test is over.
struct Scratch(PathBuf);

impl Scratch {
    fn new() -> Self {
        static MADE: AtomicU32 = AtomicU32::new(0);
        let number = MADE.fetch_add(1, Ordering::Relaxed);
        let name = format!("ebbtide-command-{}-{number}", std::process::id());
        let path = std::env::temp_dir().join(name);
        fs::create_dir(&path).unwrap();
        Self(path)
    }
    fn path(&self, name: &str) -> String {
        self.0.join(name).to_str().unwrap().to_owned()
    }
    /// Writes a file and says where.
    fn file(&self, name: &str, bytes: impl AsRef<[u8]>) -> String {
        fs::write(self.0.join(name), bytes).unwrap();
        self.path(name)
    }
    fn has(&self, name: &str) -> bool {
        fs::exists(self.0.join(name)).unwrap()
    }
    fn text(&self, name: &str) -> String {
        fs::read_to_string(self.0.join(name)).unwrap()
    }
    fn json(&self, name: &str) -> Value {
        json(&self.text(name))
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

/// The exit code (-1 after a signal), standard output and standard error of the command.
fn ebbtide(args: &[&str]) -> (i32, String, String) {
    told(Command::new(EBBTIDE).args(args).output().unwrap())
}

/// The same of one that was started by other means.
fn told(output: Output) -> (i32, String, String) {
    let text = |bytes| String::from_utf8(bytes).unwrap();
    let code = output.status.code().unwrap_or(-1);
    (code, text(output.stdout), text(output.stderr))
}

/// Ctrl-C.
#[cfg(target_os = "linux")]
fn interrupt(child: &std::process::Child) {
    let id = child.id().to_string();
    let killed = Command::new("kill").args(["-INT", &id]).status();
    assert!(killed.unwrap().success());
}

/// Standard output of a command that must succeed and say nothing else.
fn prints(args: &[&str]) -> String {
    let (code, out, err) = ebbtide(args);
    assert_eq!(code, 0, "{args:?}: {out}{err}");
    assert_eq!(err, "", "{args:?}");
    out
}

/// Refused with an exit code, one error on standard error and nothing on standard output.
fn refuses(args: &[&str], expected: i32, fragment: &str) {
    let (code, out, err) = ebbtide(args);
    assert_eq!(code, expected, "{args:?}: {out}{err}");
    assert!(
        err.contains(fragment),
        "{args:?}: {fragment} is not in {err}"
    );
    assert_eq!(err.matches("error:").count(), 1, "{args:?}: {err}");
    assert_eq!(out, "", "{args:?}");
}

fn json(text: &str) -> Value {
    serde_json::from_str(text).unwrap()
}

/// Plans 1k tokens of the tiny model on the unit machine.
fn tiny<'a>(more: &[&'a str]) -> Vec<&'a str> {
    let plan = ["plan", "--model=tiny", "--profile=unit", "--seq=1k"];
    [&plan[..], more].concat()
}
