//! `ebbtide run` as a person calls it.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use serde_json::Value;

const EBBTIDE: &str = env!("CARGO_BIN_EXE_ebbtide");

/// A directory of its own for each test, gone when it ends.
struct Place(PathBuf);

impl Place {
    fn new(name: &str) -> Self {
        let name = format!("ebbtide-run-{}-{name}", std::process::id());
        let path = std::env::temp_dir().join(name);
        std::fs::create_dir(&path).unwrap();
        Self(path)
    }
    fn at(&self, name: &str) -> String {
        self.0.join(name).to_str().unwrap().to_owned()
    }
    fn bytes(&self, name: &str) -> Vec<u8> {
        std::fs::read(self.0.join(name)).unwrap_or_else(|e| panic!("{name}: {e}"))
    }
    /// Plans a model; swaps, recomputes and updates on the host to stay within the memory.
    fn plan(&self, model: &str, more: &[&str]) -> String {
        let schedule = self.at("s.json");
        let model = ["plan", "--model", model, "--profile", "unit"];
        let out = ebbtide(&[&model[..], more, &["-o", &schedule]].concat());
        assert_eq!(code(&out), 0, "{}", stderr(&out));
        schedule
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
fn code(out: &Output) -> i32 {
    out.status.code().expect("ended by itself")
}
fn stderr(out: &Output) -> String {
    String::from_utf8_lossy(&out.stderr).into_owned()
}
/// Ctrl-C.
fn interrupt(child: &Child) {
    let id = child.id().to_string();
    let killed = Command::new("kill").args(["-INT", &id]).status();
    assert!(killed.unwrap().success());
}
fn run(schedule: &str, more: &[&str]) -> Output {
    ebbtide(&[&["run", schedule], more].concat())
}
/// What a run that ends well prints with `--json`.
fn report(schedule: &str, more: &[&str]) -> Value {
    let out = run(schedule, &[more, &["--json"]].concat());
    assert_eq!(code(&out), 0, "{more:?}: {}", stderr(&out));
    serde_json::from_slice(&out.stdout).unwrap()
}
fn data(name: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/data")
        .join(name);
    path.to_str().unwrap().to_owned()
}

const LEAN: &[&str] = &["--seq", "48", "--batch", "2", "--device-memory", "3MiB"];

#[test]
fn the_loss_of_a_repeated_batch_falls_and_the_report_is_valid() {
    let place = Place::new("report");
    let schedule = place.plan("tiny", LEAN);
    let file = place.at("r.json");
    let report = report(&schedule, &["--steps", "12", "--lr", "3e-3", "-o", &file]);
    let schema = include_str!("../../schemas/run.schema.json");
    let schema = serde_json::from_str(schema).unwrap();
    let validator = jsonschema::draft202012::new(&schema).unwrap();
    let errors: Vec<String> = validator
        .iter_errors(&report)
        .map(|e| e.to_string())
        .collect();
    assert_eq!(errors, [""; 0]);
    assert_eq!(
        serde_json::from_slice::<Value>(&place.bytes("r.json")).unwrap(),
        report
    );
    let losses: Vec<f64> = report["losses"]
        .as_array()
        .unwrap()
        .iter()
        .map(|l| l.as_f64().unwrap())
        .collect();
    assert_eq!(losses.len(), 12);
    assert!(losses[11] < losses[0] - 0.5, "{losses:?}");
    assert_eq!(report["loss"], losses[11]);
    let (predicted, measured) = (&report["predicted"], &report["measured"]);
    for key in [
        "arena_bytes",
        "peak_live_bytes",
        "d2h_bytes",
        "h2d_bytes",
        "host_bytes",
    ] {
        assert_eq!(predicted[key], measured[key], "{key}");
    }
    assert!(measured["step_ns"].as_u64().unwrap() > 0);
    let keys = |v: &Value| v.as_object().unwrap().keys().cloned().collect::<Vec<_>>();
    assert_eq!(keys(predicted), keys(measured));
    let table = run(&schedule, &["--steps", "2"]);
    let table = String::from_utf8(table.stdout).unwrap();
    for part in [
        "predicted",
        "measured",
        "d2h",
        "block 3",
        "attention_backward",
        "peak alive",
    ] {
        assert!(table.contains(part), "{part} is not in\n{table}");
    }
}

/// A run that stopped and was resumed leaves the same bytes as one that did not.
#[test]
fn a_resumed_run_is_the_same_bit_by_bit() {
    for (dtype, method) in [
        ("f32", "adamw"),
        ("bf16", "adamw"),
        ("f32", "lomo"),
        ("bf16", "adamw-bf16-sr"),
        ("bf16", "adamw8bit"),
        ("f32", "adalomo"),
        ("bf16", "galore"),
        ("f32", "apollo"),
        ("bf16", "flora"),
        ("bf16", "compact"),
    ] {
        let place = Place::new(&format!("resume-{dtype}-{method}"));
        // States that stay on the device take more of it, and so does their scratch memory.
        let memory = match method {
            "adamw" | "lomo" => "3MiB",
            _ => "16MiB",
        };
        let size = ["--seq", "48", "--batch", "2", "--device-memory", memory];
        let plan = [&size[..], &["--dtype", dtype, "--method", method]].concat();
        let schedule = place.plan("tiny", &plan);
        let ids: Vec<u8> = (0..5000u32).map(|i| (i * i % 251) as u8).collect();
        let tokens: Vec<u8> = ids.iter().flat_map(|&id| [id, 0]).collect();
        std::fs::write(place.at("t.u16"), tokens).unwrap();
        let tokens = place.at("t.u16");
        let [half, whole, resumed] = ["half", "whole", "resumed"].map(|name| place.at(name));
        let with = ["--tokens", &tokens, "--seed", "5", "--warmup", "2"];
        let with = |more: &[&str]| report(&schedule, &[&with[..], more].concat());
        with(&["--steps", "3", "--save", &half]);
        let b = with(&["--steps", "6", "--save", &whole]);
        let a = with(&["--steps", "6", "--resume", &half, "--save", &resumed]);
        assert_eq!(a["losses"], b["losses"], "{dtype} {method}");
        for file in [
            "model.safetensors",
            "optimizer.safetensors",
            "config.json",
            "training.json",
        ] {
            let [a, b] = ["resumed", "whole"].map(|run| place.bytes(&format!("{run}/{file}")));
            assert!(a == b, "{dtype} {method}: {file} differs");
        }
        let out = run(&schedule, &["--steps", "6", "--resume", &whole]);
        assert_eq!(code(&out), 2);
        assert!(
            stderr(&out).contains("has done 6 steps of 6"),
            "{}",
            stderr(&out)
        );
        let out = run(
            &schedule,
            &["--steps", "9", "--resume", &whole, "--seed", "6"],
        );
        assert!(stderr(&out).contains("seed 5"), "{}", stderr(&out));
    }
}

#[test]
fn weights_and_tokens_come_from_files() {
    let place = Place::new("files");
    let llama = data("hf/llama");
    let schedule = place.plan(&llama, &["--seq", "16", "--batch", "2"]);
    let lines = "[1, 2, 3, 4, 5, 6, 7, 8]\n{\"input_ids\": [9, 9], \"labels\": [-100, 9]}\n";
    std::fs::write(place.at("t.jsonl"), lines.repeat(10)).unwrap();
    let weights = ["--weights", &llama, "--steps", "2", "--lr", "1e-3"];
    let saved = place.at("saved");
    let jsonl = place.at("t.jsonl");
    let first = report(
        &schedule,
        &[&weights[..], &["--tokens", &jsonl, "--save", &saved]].concat(),
    );
    assert!(first["losses"][0].as_f64().unwrap() > 1.0);
    // What was saved is a checkpoint like any other.
    let again = report(&schedule, &["--weights", &saved, "--steps", "1"]);
    assert_eq!(again["steps"], 1);

    let vocabulary: String = (0..100).map(|i| format!("\"w{i}\": {i}, ")).collect();
    let tokenizer = format!(
        r#"{{"version": "1.0", "pre_tokenizer": {{"type": "Whitespace"}},
        "model": {{"type": "WordLevel", "unk_token": "?", "vocab": {{{vocabulary} "?": 100}}}}}}"#
    );
    std::fs::write(place.at("tokenizer.json"), tokenizer).unwrap();
    let text: String = (0..200).map(|i| format!("w{} ", i * 7 % 100)).collect();
    std::fs::write(place.at("text.txt"), text).unwrap();
    std::fs::write(place.at("odd.bin"), [0; 7]).unwrap();
    let odd = place.at("odd.bin");
    let (text, tokenizer) = (place.at("text.txt"), place.at("tokenizer.json"));
    let by_text = ["--tokens", &text, "--tokenizer", &tokenizer];
    report(&schedule, &[&weights[..], &by_text].concat());

    let out = run(&schedule, &["--device", "cuda:0"]);
    assert_eq!(code(&out), 4, "{}", stderr(&out));
    std::fs::write(place.at("none.u16"), []).unwrap();
    let (none, empty) = (place.at("none.u16"), place.at("empty"));
    std::fs::create_dir(&empty).unwrap();
    for (args, says) in [
        (vec!["--tokens", &text], "cannot tell from .txt"),
        (
            vec!["--tokens", &odd, "--token-type", "u32"],
            "whole number of ids",
        ),
        (vec!["--tokens", &text, "--token-type", "u16"], "vocabulary"),
        (
            vec!["--tokens", "/nowhere.u16"],
            "/nowhere.u16: cannot read",
        ),
        (vec!["--tokens", &none], "holds 0 tokens"),
        (vec!["--device", "gpu"], "the name of no device"),
        (vec!["--lr=-1"], "no number from 0 on"),
        (vec!["--betas", "0.9,1"], "no pair of numbers"),
        (vec!["--steps", "0"], "`0` is no whole number from 1"),
        (vec!["--warmup-above-zero"], "--warmup"),
        (vec!["--weights", "/nowhere"], "/nowhere: cannot read"),
        (vec!["--weights", &empty], "holds neither model.safetensors"),
        (vec!["--resume", &llama], "training.json: cannot read"),
        (vec!["--save", &llama], "--save"),
        (vec!["--save", "/nowhere/at/all"], "does not exist"),
    ] {
        let out = run(&schedule, &args);
        let said = stderr(&out);
        assert_eq!(code(&out), 2, "{args:?}: {said}");
        assert!(
            said.starts_with("error: ") && said.contains(says),
            "{args:?}: {said}"
        );
    }
}

/// The same ids, however they are stored.
#[test]
fn every_kind_of_token_file_gives_the_same_steps() {
    let place = Place::new("kinds");
    let schedule = place.plan("tiny", LEAN);
    let ids: Vec<u32> = (0..400u32).map(|i| i * i % 251).collect();
    let u16s: Vec<u8> = ids
        .iter()
        .flat_map(|&id| (id as u16).to_le_bytes())
        .collect();
    let u32s: Vec<u8> = ids.iter().flat_map(|&id| id.to_le_bytes()).collect();
    let words: Vec<String> = ids.iter().map(|id| format!("w{id}")).collect();
    let vocabulary: Vec<String> = (0..251).map(|i| format!("\"w{i}\": {i}")).collect();
    let tokenizer = format!(
        r#"{{"version": "1.0", "pre_tokenizer": {{"type": "Whitespace"}},
        "model": {{"type": "WordLevel", "unk_token": "w0", "vocab": {{{}}}}}}}"#,
        vocabulary.join(", ")
    );
    let lines = format!("{:?}\n{:?}\n", &ids[..100], &ids[100..]);
    for (name, content) in [
        ("ids.u16", u16s.clone()),
        ("ids.bin", u16s),
        ("ids.u32", u32s),
        ("ids.jsonl", lines.into_bytes()),
        ("ids.txt", words.join(" ").into_bytes()),
        ("tokenizer.json", tokenizer.into_bytes()),
    ] {
        std::fs::write(place.at(name), content).unwrap();
    }
    let tokenizer = place.at("tokenizer.json");
    let losses = |name: &str, more: &[&str]| {
        let path = place.at(name);
        let with = ["--tokens", &path, "--steps", "3"];
        report(&schedule, &[&with[..], more].concat())["losses"].clone()
    };
    let expected = losses("ids.u16", &[]);
    assert_ne!(expected[0], expected[1]);
    assert_eq!(losses("ids.u32", &[]), expected);
    assert_eq!(losses("ids.bin", &["--token-type", "u16"]), expected);
    assert_eq!(losses("ids.jsonl", &[]), expected);
    assert_eq!(losses("ids.txt", &["--tokenizer", &tokenizer]), expected);
}

/// A saved run that was changed or cut off afterwards.
#[test]
fn a_broken_save_is_not_resumed() {
    let place = Place::new("broken");
    let schedule = place.plan("tiny", LEAN);
    let saved = place.at("saved");
    report(&schedule, &["--steps", "2", "--save", &saved]);
    let path = format!("{saved}/training.json");
    let good = std::fs::read_to_string(&path).unwrap();
    let resume = || run(&schedule, &["--steps", "4", "--resume", &saved]);
    let huge = u64::MAX.to_string();
    for (from, to, says) in [
        (
            "\"step\": 2",
            "\"step\": 3",
            "step is 3, but there are 2 losses",
        ),
        (
            "\"sequences\": 4",
            &format!("\"sequences\": {huge}"),
            "sequences is",
        ),
        (
            "\"losses\": [",
            "\"losses\": [1e999,",
            "number out of range",
        ),
        ("\"adamw\"", "\"sgd\"", "method sgd"),
        ("}\n", "", "cut off at line"),
    ] {
        assert!(good.contains(from), "{from} is not in {good}");
        std::fs::write(&path, good.replacen(from, to, 1)).unwrap();
        let out = resume();
        let said = stderr(&out);
        assert!(
            code(&out) == 2 && said.contains(says),
            "{from} → {to}: {said}"
        );
    }
    std::fs::write(&path, good).unwrap();
    let states = format!("{saved}/optimizer.safetensors");
    let whole = std::fs::read(&states).unwrap();
    std::fs::write(&states, &whole[..whole.len() - 4]).unwrap();
    let said = stderr(&resume());
    assert!(
        said.contains("optimizer.safetensors: not safetensors, or truncated"),
        "{said}"
    );
    let mut broken = whole.clone();
    let last = broken.len() - 4..;
    broken[last].copy_from_slice(&f32::NAN.to_le_bytes());
    std::fs::write(&states, broken).unwrap();
    let said = stderr(&resume());
    assert!(
        said.contains("states of ") && said.contains("is NaN"),
        "{said}"
    );
    std::fs::write(&states, whole).unwrap();
    let weights = format!("{saved}/model.safetensors");
    let whole = std::fs::read(&weights).unwrap();
    std::fs::write(&weights, [&whole[..], &[0; 8]].concat()).unwrap();
    let said = stderr(&resume());
    assert!(said.contains("of which its header knows"), "{said}");
    std::fs::write(&weights, whole).unwrap();
    assert_eq!(code(&resume()), 0);
}

/// What could not be loaded again.
#[test]
fn weights_that_are_no_numbers_are_not_saved() {
    let place = Place::new("diverged");
    for (method, says) in [("sgd", "weight: element"), ("adamw", "element")] {
        let tiny = ["--method", method];
        let schedule = place.plan("tiny", &[LEAN, &tiny[..]].concat());
        let saved = place.at(method);
        let out = run(
            &schedule,
            &["--steps", "1", "--lr", "1e39", "--save", &saved],
        );
        let said = stderr(&out);
        assert!(code(&out) == 2 && said.contains(says), "{said}");
        assert!(said.contains("nothing was saved"), "{said}");
        assert!(!Path::new(&saved).exists(), "half a directory");
    }
}

/// Where weights are being loaded: it says so, and ends with the contract's code.
#[cfg(target_os = "linux")]
#[test]
fn a_run_is_interrupted_before_its_first_step() {
    let place = Place::new("early");
    let schedule = place.plan("tiny", LEAN);
    let tokens = place.at("ids.u16");
    let made = Command::new("mkfifo").arg(&tokens).status();
    assert!(made.unwrap().success());
    let mut child = Command::new(EBBTIDE);
    let child = child.args(["run", &schedule, "--tokens", &tokens]);
    let child = child.stderr(Stdio::piped()).spawn().unwrap();
    // Opens once the run wants to read.
    let mut pipe = std::fs::OpenOptions::new()
        .write(true)
        .open(&tokens)
        .unwrap();
    interrupt(&child);
    pipe.write_all(&[0; 4096]).unwrap();
    drop(pipe);
    let out = child.wait_with_output().unwrap();
    let said = stderr(&out);
    assert!(
        code(&out) == 2 && said.contains("interrupted before the first step"),
        "{said}"
    );
}

/// Before a step is run for it.
#[test]
fn a_place_that_cannot_be_written_is_told_at_once() {
    let place = Place::new("places");
    let schedule = place.plan("tiny", LEAN);
    let plan = place.bytes("s.json");
    let (directory, nowhere) = (place.at(""), place.at("nowhere/r.json"));
    for (output, says) in [
        (&schedule, "the schedule and -o are the same file"),
        (&directory, "it is a directory"),
        (&nowhere, "cannot write"),
    ] {
        let out = run(&schedule, &["--steps", "1000000", "-o", output]);
        assert!(
            code(&out) == 2 && stderr(&out).contains(says),
            "{}",
            stderr(&out)
        );
    }
    assert_eq!(place.bytes("s.json"), plan);
    // Nobody makes directories there, root included.
    #[cfg(target_os = "linux")]
    {
        let out = run(&schedule, &["--steps", "1000000", "--save", "/proc/saved"]);
        let said = stderr(&out);
        assert!(code(&out) == 2 && said.contains("cannot write"), "{said}");
    }
    // The report may lie in the directory that is saved.
    let (saved, inside) = (place.at("saved"), place.at("saved/r.json"));
    report(
        &schedule,
        &["--steps", "1", "--save", &saved, "-o", &inside],
    );
    place.bytes("saved/r.json");
}

#[test]
fn weights_that_are_no_numbers_are_named() {
    let place = Place::new("nan");
    let llama = data("hf/llama");
    let schedule = place.plan(&llama, &["--seq", "16"]);
    let mut bytes = std::fs::read(format!("{llama}/model.safetensors")).unwrap();
    let end = bytes.len();
    bytes[end - 4..].copy_from_slice(&f32::NAN.to_le_bytes());
    std::fs::write(place.at("model.safetensors"), bytes).unwrap();
    let out = run(&schedule, &["--weights", &place.at("")]);
    let said = stderr(&out);
    assert_eq!(code(&out), 2, "{said}");
    assert!(
        said.contains("element") && said.contains("is NaN"),
        "{said}"
    );
}

/// Weights that fit in shape, but whose config says that another model is to be computed.
#[test]
fn the_config_of_another_model_is_remarked_on() {
    let place = Place::new("other");
    let llama = data("hf/llama");
    let schedule = place.plan(&llama, &["--seq", "16"]);
    let remark = "describes another model";
    let told = |weights: &str| {
        let out = run(&schedule, &["--steps", "1", "--weights", weights]);
        assert_eq!(code(&out), 0, "{}", stderr(&out));
        String::from_utf8(out.stdout).unwrap().contains(remark)
    };
    assert!(!told(&llama));
    let config = std::fs::read_to_string(format!("{llama}/config.json")).unwrap();
    let other = config.replace("1e-05", "1e-06");
    assert_ne!(config, other);
    std::fs::write(place.at("config.json"), other).unwrap();
    let weights = format!("{llama}/model.safetensors");
    std::fs::copy(weights, place.at("model.safetensors")).unwrap();
    assert!(told(&place.at("")));
}

#[test]
fn what_the_checker_refuses_is_not_run() {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/refused");
    let mut refused = 0;
    for entry in std::fs::read_dir(corpus).unwrap() {
        let path = entry.unwrap().path();
        if path.to_str().unwrap().ends_with("base.good.json") {
            continue;
        }
        let out = run(path.to_str().unwrap(), &[]);
        assert_eq!(code(&out), 5, "{}: {}", path.display(), stderr(&out));
        refused += 1;
    }
    assert!(refused > 40, "{refused}");
}

#[test]
fn clipping_is_done_or_refused_with_the_reason() {
    let place = Place::new("clip");
    let schedule = place.plan("tiny", &["--seq", "32", "--clip"]);
    let clipped = report(&schedule, &["--steps", "3", "--clip", "0.1"]);
    let norms = clipped["gradient_norms"].as_array().unwrap();
    assert!(
        norms.len() == 3 && norms[0].as_f64().unwrap() > 0.1,
        "{norms:?}"
    );
    let plain = report(&schedule, &["--steps", "3"]);
    assert_eq!(clipped["losses"][0], plain["losses"][0]);
    assert_ne!(clipped["losses"][2], plain["losses"][2]);
    let told = |flags: &[&str]| place.plan("tiny", &[&["--seq", "32"], flags].concat());
    for method in ["lomo", "adamw"] {
        let out = run(&told(&["--method", method]), &["--clip", "0.1"]);
        assert_eq!(code(&out), 2);
        let said = stderr(&out);
        assert!(said.contains("plan again with --clip"), "{said}");
    }
    // Two passes of descent inside backward are one whose updates wait.
    let clip = ["--steps", "3", "--clip", "0.1", "--lr", "0.5"];
    let [one, two] = ["sgd", "lomo"].map(|m| report(&told(&["--method", m, "--clip"]), &clip));
    for what in ["losses", "gradient_norms"] {
        let [one, two] = [&one, &two].map(|run| run[what].as_array().unwrap());
        for (one, two) in one.iter().zip(two) {
            let (one, two) = (one.as_f64().unwrap(), two.as_f64().unwrap());
            assert!((one - two).abs() < 1e-5 * one, "{what}: {one} {two}");
        }
        assert_eq!((one.len(), two.len()), (3, 3));
    }
}

#[test]
fn a_run_that_diverges_saves_nothing() {
    let place = Place::new("diverges");
    let schedule = place.plan("tiny", LEAN);
    let saved = place.at("saved");
    let out = run(&schedule, &["--lr", "1e39", "--save", &saved]);
    assert_eq!(code(&out), 2);
    let said = stderr(&out);
    assert!(
        said.contains("the loss of step") && said.contains("--lr"),
        "{said}"
    );
    assert!(!Path::new(&saved).exists());
}

/// A disk that fills up while weights are saved.
#[cfg(unix)]
#[test]
fn a_full_disk_leaves_nothing_under_the_final_name() {
    let place = Place::new("disk");
    let schedule = place.plan("tiny", LEAN);
    let saved = place.at("saved");
    // In blocks of 512 bytes: less than the weights need.
    let limited = format!("ulimit -f 200; exec {EBBTIDE} run {schedule} --steps 1 --save {saved}");
    let out = Command::new("sh").args(["-c", &limited]).output().unwrap();
    assert_eq!(code(&out), 2, "{}", stderr(&out));
    assert!(stderr(&out).contains("cannot write"), "{}", stderr(&out));
    let left: Vec<String> = std::fs::read_dir(&place.0)
        .unwrap()
        .map(|e| e.unwrap().file_name().into_string().unwrap())
        .collect();
    assert_eq!(left, ["s.json"]);
}

/// Ctrl-C ends the run after its step, saved and reported; however long its first step takes.
#[cfg(target_os = "linux")]
#[test]
fn an_interrupt_ends_cleanly() {
    let place = Place::new("interrupt");
    let schedule = place.plan("tiny", LEAN);
    let saved = place.at("saved");
    let after = |wait: Duration| {
        let mut child = Command::new(EBBTIDE);
        let steps = ["run", &schedule, "--steps", "1000000", "--json"];
        child.args(steps).args(["--save", &saved]);
        child.stdout(Stdio::piped()).stderr(Stdio::piped());
        let child = child.spawn().unwrap();
        // It is ready for the signal once it catches it.
        let catches = || {
            let status = std::fs::read_to_string(format!("/proc/{}/status", child.id())).unwrap();
            let mask = status.lines().find_map(|line| line.strip_prefix("SigCgt:"));
            u64::from_str_radix(mask.expect("Linux").trim(), 16).unwrap() & (1 << (2 - 1)) != 0
        };
        while !catches() {
            std::thread::sleep(Duration::from_millis(10));
        }
        std::thread::sleep(wait);
        interrupt(&child);
        let out = child.wait_with_output().unwrap();
        assert_eq!(code(&out), 2, "{}", stderr(&out));
        out
    };
    let waits = (0..8).map(|doubled| Duration::from_millis(200 << doubled));
    let early = |out: &Output| stderr(out).contains("before the first step");
    let out = waits.map(after).find(|out| !early(out)).unwrap();
    let report: Value = serde_json::from_slice(&out.stdout).unwrap();
    let done = report["steps"].as_u64().unwrap();
    assert!(done < 1_000_000);
    let progress: Value = serde_json::from_slice(&place.bytes("saved/training.json")).unwrap();
    assert_eq!(progress["step"], done);
}
