//! The referee's refusals, from files: each is the good schedule with one change, and is named
//! after the fault that this brings about. `UPDATE_REFUSED=1` writes them anew.

use std::fs;
use std::path::{Path, PathBuf};

use ebbtide::format::schedule::{read, write};
use ebbtide_solver::check::{check, Fault, Violation};

use super::support::tiny::faults::{Change, CHANGES};
use super::support::tiny_file;

const GOOD: &str = "base.good.json";

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/refused")
}

fn violations(name: &str) -> Vec<Violation> {
    let path = folder().join(name);
    let text = fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    check(
        &read(&text)
            .unwrap_or_else(|e| panic!("{name}: {e}"))
            .schedule,
    )
}

/// The files are what the changes make of the good schedule.
#[test]
fn the_files_are_the_changes() {
    let good = ("base.good", (|_| {}) as Change);
    for (name, change) in CHANGES.iter().copied().chain([good]) {
        let mut file = tiny_file();
        change(&mut file.schedule);
        let path = folder().join(format!("{name}.json"));
        if std::env::var_os("UPDATE_REFUSED").is_some() {
            fs::write(&path, write(&file)).unwrap();
        }
        let text = fs::read_to_string(&path).unwrap_or_default();
        assert!(
            text == write(&file),
            "{name} is out of date: set UPDATE_REFUSED=1"
        );
    }
}

#[test]
fn the_good_schedule_has_no_violation() {
    assert_eq!(violations(GOOD), []);
}

#[test]
fn every_file_is_refused_for_what_it_is_named_after() {
    let mut names = Vec::new();
    for entry in fs::read_dir(folder()).unwrap() {
        let file = entry.unwrap().file_name().into_string().unwrap();
        let Some(name) = file.strip_suffix(".json").filter(|_| file != GOOD) else {
            continue;
        };
        let found = violations(&file);
        let lines: Vec<String> = found.iter().map(ToString::to_string).collect();
        assert!(
            found.iter().any(|v| v.fault.name() == name),
            "{file}: not among\n{}",
            lines.join("\n")
        );
        names.push(name.to_string());
    }
    names.sort_unstable();
    let mut known = Fault::NAMES.to_vec();
    known.sort_unstable();
    assert_eq!(names, known, "one file for every fault");
}
