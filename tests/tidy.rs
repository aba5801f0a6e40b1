//! Rules of the house that matter.

use std::fs;
use std::path::{Path, PathBuf};

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Every Rust file: its path from the root and its text.
fn sources() -> Vec<(String, String)> {
    fn collect(directory: &Path, found: &mut Vec<PathBuf>) {
        for entry in fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                collect(&path, found);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                found.push(path);
            }
        }
    }
    let mut found = Vec::new();
    for directory in ["src", "solver", "tests", "benches", "examples"] {
        let directory = root().join(directory);
        if directory.is_dir() {
            collect(&directory, &mut found);
        }
    }
    assert!(found.len() > 50, "only {} files", found.len());
    let named = |path: PathBuf| {
        let name = path
            .strip_prefix(root())
            .unwrap()
            .to_str()
            .unwrap()
            .to_owned();
        (name, fs::read_to_string(path).unwrap())
    };
    found.into_iter().map(named).collect()
}

/// Every line of the program proper, tests left out: file, number, text without its comment.
fn lines() -> Vec<(String, usize, String)> {
    let mut lines = Vec::new();
    for (file, text) in sources() {
        if !file.starts_with("src/") && !file.starts_with("solver/src/") {
            continue;
        }
        let program = text.split("#[cfg(test)]").next().unwrap();
        for (number, line) in program.lines().enumerate() {
            let code = line.split("//").next().unwrap();
            lines.push((file.clone(), number + 1, code.to_owned()));
        }
    }
    lines
}

fn assert_none(rule: &str, offenders: Vec<String>) {
    assert!(offenders.is_empty(), "{rule}:\n{}", offenders.join("\n"));
}

/// Lines of the program that a rule forbids.
fn forbid(rule: &str, forbidden: impl Fn(&str, &str) -> bool) {
    let lines = lines().into_iter();
    let offenders = lines.filter(|(file, _, line)| forbidden(file, line));
    let named = offenders.map(|(file, number, line)| format!("{file}:{number}: {}", line.trim()));
    assert_none(rule, named.collect());
}

#[test]
fn no_file_is_long_and_no_line_is_wide() {
    let mut offenders = Vec::new();
    for (file, text) in sources() {
        if text.lines().count() >= 800 {
            offenders.push(format!("{file} has {} lines", text.lines().count()));
        }
        for (number, line) in text.lines().enumerate() {
            if line.chars().count() > 100 {
                offenders.push(format!("{file}:{} is wider than 100", number + 1));
            }
        }
    }
    assert_none(
        "files under 800 lines, lines up to 100 characters",
        offenders,
    );
}

#[test]
fn nothing_is_called_utils() {
    let names = sources().into_iter().map(|(file, _)| file);
    let offenders = names.filter(|file| {
        let stems = ["utils", "util", "helpers", "misc", "common"];
        file.split(['/', '.']).any(|part| stems.contains(&part))
    });
    assert_none("a module says what it is for", offenders.collect());
}

#[test]
fn unsafe_is_in_the_cuda_device_only() {
    forbid("no unsafe outside src/device/cuda", |file, line| {
        let word = line
            .split(|c: char| !c.is_alphanumeric() && c != '_')
            .any(|w| w == "unsafe");
        word && !file.starts_with("src/device/cuda")
    });
    let solver = fs::read_to_string(root().join("solver/src/lib.rs")).unwrap();
    assert!(solver.contains("#![forbid(unsafe_code)]"));
}

#[test]
fn the_referee_shares_no_code_with_whom_it_judges() {
    const MAY: [&str; 6] = ["units", "ids", "schedule", "problem", "machine", "plan"];
    forbid("check imports only nouns", |file, line| {
        let referee = file == "solver/src/check.rs" || file.starts_with("solver/src/check/");
        let imported = line.split("crate::").skip(1).map(|rest| {
            let end = rest.find(|c: char| !c.is_alphanumeric() && c != '_');
            &rest[..end.unwrap_or(rest.len())]
        });
        referee && imported.into_iter().any(|module| !MAY.contains(&module))
    });
}

#[test]
fn only_the_formats_are_serialised() {
    forbid("serde only under src/format", |file, line| {
        let derives = line.contains("serde::") || line.contains("Serialize");
        derives && !file.starts_with("src/format")
    });
}

#[test]
fn nothing_unwraps() {
    forbid("no unwrap outside tests", |_, line| {
        line.contains(".unwrap()")
    });
}

#[test]
fn the_solver_is_pure() {
    forbid(
        "no files, environment or processes in the solver",
        |file, line| {
            let impure = [
                "std::fs",
                "std::io",
                "std::env",
                "std::process",
                "println!",
                "eprintln!",
            ];
            file.starts_with("solver/") && impure.iter().any(|what| line.contains(what))
        },
    );
}

#[test]
fn every_path_in_the_readme_exists() {
    let readme = fs::read_to_string(root().join("README.md")).unwrap();
    let quoted = readme.split('`').skip(1).step_by(2);
    let paths: Vec<&str> = quoted
        .filter(|text| text.contains('/') && !text.contains([' ', '*', '\n', ':']))
        .collect();
    assert!(paths.len() > 5, "{paths:?}");
    let missing = paths.into_iter().filter(|path| !root().join(path).exists());
    assert_none(
        "paths in README.md exist",
        missing.map(String::from).collect(),
    );
}
