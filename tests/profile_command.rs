//! `ebbtide profile` as a person calls it: what it writes, what it goes on from, what it refuses.

use std::path::PathBuf;
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use serde_json::Value;

const EBBTIDE: &str = env!("CARGO_BIN_EXE_ebbtide");

/// A directory of its own for each test, gone when it ends.
struct Place(PathBuf);

impl Place {
    fn new(name: &str) -> Self {
        let name = format!("ebbtide-profile-{}-{name}", std::process::id());
        let path = std::env::temp_dir().join(name);
        std::fs::create_dir(&path).unwrap();
        Self(path)
    }
    fn at(&self, name: &str) -> String {
        self.0.join(name).to_str().unwrap().to_owned()
    }
    fn json(&self, name: &str) -> Option<Value> {
        let text = std::fs::read_to_string(self.0.join(name)).ok()?;
        Some(serde_json::from_str(&text).unwrap())
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn ebbtide(args: &[&str]) -> Output {
    Command::new(EBBTIDE).args(args).output().unwrap()
}

fn succeeds(args: &[&str]) -> Output {
    let out = ebbtide(args);
    assert_eq!(out.status.code(), Some(0), "{args:?}: {}", stderr(&out));
    out
}

fn stderr(out: &Output) -> String {
    String::from_utf8_lossy(&out.stderr).into_owned()
}

/// What is measured in these tests.
const TINY: [&str; 7] = [
    "profile", "--model", "tiny", "--seq", "32,64", "--link", "500MB/s",
];

/// From an interruption on to a profile that plans and runs.
#[cfg(target_os = "linux")]
#[test]
fn an_interrupted_measurement_goes_on_and_serves_plan_and_run() {
    let place = Place::new("whole");
    let (file, schedule) = (place.at("p.json"), place.at("s.json"));
    let profile = [&TINY[..], &["-o", &file]].concat();

    let mut child = Command::new(EBBTIDE);
    let child = child.args(&profile).stderr(Stdio::piped()).spawn().unwrap();
    let begun = || Some(place.json("p.json.partial")?["calibration"].is_object());
    while begun() != Some(true) {
        std::thread::sleep(Duration::from_millis(10));
    }
    let id = child.id().to_string();
    let killed = Command::new("kill").args(["-INT", &id]).status();
    assert!(killed.unwrap().success());
    let out = child.wait_with_output().unwrap();
    assert_eq!(out.status.code(), Some(2), "{}", stderr(&out));
    for words in ["interrupted after", "goes on from", "p.json.partial"] {
        assert!(stderr(&out).contains(words), "{}", stderr(&out));
    }
    assert!(place.json("p.json").is_none(), "half a profile");

    // What is there is not measured again: this number would not come twice.
    let mut partial = place.json("p.json.partial").unwrap();
    partial["calibration"]["launch_ns"] = 1234.into();
    std::fs::write(place.at("p.json.partial"), partial.to_string()).unwrap();
    let table = String::from_utf8(succeeds(&profile).stdout).unwrap();
    assert!(table.contains("block of tokens"), "{table}");
    assert!(place.json("p.json.partial").is_none(), "left behind");
    let measured = place.json("p.json").unwrap();
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
    succeeds(&plan);
    let run = succeeds(&[
        "run", &schedule, "--link", "500MB/s", "--steps", "3", "--json",
    ]);
    let run: Value = serde_json::from_slice(&run.stdout).unwrap();
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
    let place = Place::new("refused");
    let file = place.at("p.json");
    let missing = place.at("no/such/p.json");
    let directory = place.0.to_str().unwrap().to_owned();
    let foreign = place.at("foreign.json");
    let other = r#"{"schema":"ebbtide/measured/1","settings":{"ebbtide_version":"0","model":"m",
        "config":{},"device":"cpu","dtype":"f32","link_bytes_per_s":null,"deterministic":false,
        "tokens":[1]},
        "calibration":null,"links":null,"slowdown":null,"host":null,"steps":[]}"#;
    std::fs::write(place.at("foreign.json.partial"), other).unwrap();
    let broken = place.at("broken.json");
    std::fs::write(place.at("broken.json.partial"), "{").unwrap();
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
        let out = ebbtide(&args);
        let error = stderr(&out);
        assert_eq!(out.status.code(), Some(code), "{args:?}: {error}");
        assert!(error.contains(words), "{args:?}: {error}");
        assert_eq!(error.matches("error:").count(), 1, "{args:?}: {error}");
        assert_eq!(out.stdout, b"", "{args:?}");
    }
    assert!(place.json("p.json").is_none() && place.json("p.json.partial").is_none());
}
