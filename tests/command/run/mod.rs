//! `ebbtide run` as a person calls it.

use std::fs;

use serde_json::Value;

use super::{json, prints, refuses, Scratch};

mod refused;

/// Plans a model; swaps, recomputes and updates on the host to stay within the memory.
fn plan(scratch: &Scratch, model: &str, more: &[&str]) -> String {
    let schedule = scratch.path("s.json");
    let model = ["plan", "--model", model, "--profile", "unit"];
    prints(&[&model[..], more, &["-o", &schedule]].concat());
    schedule
}

/// What a run that ends well prints with `--json`.
fn report(schedule: &str, more: &[&str]) -> Value {
    json(&prints(&[&["run", schedule], more, &["--json"]].concat()))
}

/// Refused as bad input, whose message has these words.
fn fails(schedule: &str, more: &[&str], words: &str) {
    refuses(&[&["run", schedule], more].concat(), 2, words);
}

fn data(name: &str) -> String {
    format!("{}/tests/data/{name}", env!("CARGO_MANIFEST_DIR"))
}

const LEAN: &[&str] = &["--seq", "48", "--batch", "2", "--device-memory", "3MiB"];

#[test]
fn the_loss_of_a_repeated_batch_falls_and_the_report_is_valid() {
    let scratch = Scratch::new();
    let schedule = plan(&scratch, "tiny", LEAN);
    let file = scratch.path("r.json");
    let report = report(&schedule, &["--steps", "12", "--lr", "3e-3", "-o", &file]);
    let schema = json(include_str!("../../../schemas/run.schema.json"));
    let validator = jsonschema::draft202012::new(&schema).unwrap();
    let errors: Vec<String> = validator
        .iter_errors(&report)
        .map(|e| e.to_string())
        .collect();
    assert_eq!(errors, [""; 0]);
    assert_eq!(scratch.json("r.json"), report);
    let losses = report["losses"].as_array().unwrap().iter();
    let losses: Vec<f64> = losses.map(|l| l.as_f64().unwrap()).collect();
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
    let table = prints(&["run", &schedule, "--steps", "2"]);
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
        let scratch = Scratch::new();
        // States that stay on the device take more of it, and so does their scratch memory.
        let memory = match method {
            "adamw" | "lomo" => "3MiB",
            _ => "16MiB",
        };
        let size = ["--seq", "48", "--batch", "2", "--device-memory", memory];
        let options = [&size[..], &["--dtype", dtype, "--method", method]].concat();
        let schedule = plan(&scratch, "tiny", &options);
        let ids = (0..5000u32).map(|i| (i * i % 251) as u8);
        let tokens = scratch.file("t.u16", ids.flat_map(|id| [id, 0]).collect::<Vec<u8>>());
        let [half, whole, resumed] = ["half", "whole", "resumed"].map(|name| scratch.path(name));
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
            let [a, b] = [&resumed, &whole].map(|run| fs::read(format!("{run}/{file}")).unwrap());
            assert!(a == b, "{dtype} {method}: {file} differs");
        }
        let resume = ["--resume", &whole, "--steps"];
        let resume = |more: &[&str], words| fails(&schedule, &[&resume, more].concat(), words);
        resume(&["6"], "has done 6 steps of 6");
        resume(&["9", "--seed", "6"], "seed 5");
        let other = prints(&["run", &schedule, "--resume", &half, "--steps", "4"]);
        assert!(
            other.contains("the saved run trained on 5000 tokens ("),
            "{other}"
        );
    }
}

#[test]
fn weights_and_tokens_come_from_files() {
    let scratch = Scratch::new();
    let llama = data("hf/llama");
    let schedule = plan(&scratch, &llama, &["--seq", "16", "--batch", "2"]);
    let lines = "[1, 2, 3, 4, 5, 6, 7, 8]\n{\"input_ids\": [9, 9], \"labels\": [-100, 9]}\n";
    let jsonl = scratch.file("t.jsonl", lines.repeat(10));
    let weights = ["--weights", &llama, "--steps", "2", "--lr", "1e-3"];
    let saved = scratch.path("saved");
    let save = ["--tokens", &jsonl, "--save", &saved];
    let first = report(&schedule, &[&weights[..], &save].concat());
    assert!(first["losses"][0].as_f64().unwrap() > 1.0);
    // What was saved is a checkpoint like any other.
    let again = report(&schedule, &["--weights", &saved, "--steps", "1"]);
    assert_eq!(again["steps"], 1);

    let tokenizer = scratch.file("tokenizer.json", tokenizer(100));
    let text: String = (0..200).map(|i| format!("w{} ", i * 7 % 100)).collect();
    let text = scratch.file("text.txt", text);
    let by_text = ["--tokens", &text, "--tokenizer", &tokenizer];
    report(&schedule, &[&weights[..], &by_text].concat());

    refuses(&["run", &schedule, "--device", "cuda:0"], 4, "");
    let odd = scratch.file("odd.bin", [0; 7]);
    let none = scratch.file("none.u16", []);
    let empty = scratch.path("empty");
    fs::create_dir(&empty).unwrap();
    for (args, words) in [
        (&["--tokens", &text][..], "cannot tell from .txt"),
        (
            &["--tokens", &odd, "--token-type", "u32"],
            "whole number of ids",
        ),
        (&["--tokens", &text, "--token-type", "u16"], "vocabulary"),
        (&["--tokens", "/nowhere.u16"], "/nowhere.u16: cannot read"),
        (&["--tokens", &none], "holds 0 tokens"),
        (&["--device", "gpu"], "the name of no device"),
        (&["--lr=-1"], "no number from 0 on"),
        (&["--betas", "0.9,1"], "no pair of numbers"),
        (&["--steps", "0"], "`0` is no whole number from 1"),
        (&["--warmup-above-zero"], "--warmup"),
        (&["--weights", "/nowhere"], "/nowhere: cannot read"),
        (&["--weights", &empty], "holds neither model.safetensors"),
        (&["--resume", &llama], "training.json: cannot read"),
        (&["--save", &llama], "--save"),
        (&["--save", "/nowhere/at/all"], "does not exist"),
    ] {
        fails(&schedule, args, words);
    }
}

/// The same ids, however they are stored.
#[test]
fn every_kind_of_token_file_gives_the_same_steps() {
    let scratch = Scratch::new();
    let schedule = plan(&scratch, "tiny", LEAN);
    let ids: Vec<u32> = (0..400u32).map(|i| i * i % 251).collect();
    let u16s = ids.iter().flat_map(|&id| (id as u16).to_le_bytes());
    let u16s: Vec<u8> = u16s.collect();
    let u32s = ids.iter().flat_map(|&id| id.to_le_bytes()).collect();
    let words: Vec<String> = ids.iter().map(|id| format!("w{id}")).collect();
    let lines = format!("{:?}\n{:?}\n", &ids[..100], &ids[100..]);
    let tokenizer = scratch.file("tokenizer.json", tokenizer(251));
    let losses = |name: &str, content: Vec<u8>, more: &[&str]| {
        let with = ["--tokens", &scratch.file(name, content), "--steps", "3"];
        report(&schedule, &[&with[..], more].concat())["losses"].clone()
    };
    let expected = losses("ids.u16", u16s.clone(), &[]);
    assert_ne!(expected[0], expected[1]);
    for (name, content, more) in [
        ("ids.u32", u32s, &[][..]),
        ("ids.bin", u16s, &["--token-type", "u16"]),
        ("ids.jsonl", lines.into_bytes(), &[]),
        (
            "ids.txt",
            words.join(" ").into_bytes(),
            &["--tokenizer", &tokenizer],
        ),
    ] {
        assert_eq!(losses(name, content, more), expected, "{name}");
    }
}

/// A tokenizer of so many words, w0 and on.
fn tokenizer(words: u32) -> String {
    let vocabulary = (0..words).map(|i| format!("\"w{i}\": {i}"));
    let vocabulary = vocabulary.collect::<Vec<_>>().join(", ");
    format!(
        r#"{{"version": "1.0", "pre_tokenizer": {{"type": "Whitespace"}},
        "model": {{"type": "WordLevel", "unk_token": "w0", "vocab": {{{vocabulary}}}}}}}"#
    )
}

/// Weights that fit in shape, but whose config says that another model is to be computed.
#[test]
fn the_config_of_another_model_is_remarked_on() {
    let scratch = Scratch::new();
    let llama = data("hf/llama");
    let schedule = plan(&scratch, &llama, &["--seq", "16"]);
    let told = |weights: &str| {
        let table = prints(&["run", &schedule, "--steps", "1", "--weights", weights]);
        table.contains("describes another model")
    };
    assert!(!told(&llama));
    let config = fs::read_to_string(format!("{llama}/config.json")).unwrap();
    let other = config.replace("1e-05", "1e-06");
    assert_ne!(config, other);
    scratch.file("config.json", other);
    let weights = format!("{llama}/model.safetensors");
    fs::copy(weights, scratch.path("model.safetensors")).unwrap();
    assert!(told(&scratch.path("")));
}

#[test]
fn clipping_is_done_or_refused_with_the_reason() {
    let scratch = Scratch::new();
    let schedule = plan(&scratch, "tiny", &["--seq", "32", "--clip"]);
    let clipped = report(&schedule, &["--steps", "3", "--clip", "0.1"]);
    let norms = clipped["gradient_norms"].as_array().unwrap();
    assert!(
        norms.len() == 3 && norms[0].as_f64().unwrap() > 0.1,
        "{norms:?}"
    );
    let plain = report(&schedule, &["--steps", "3"]);
    assert_eq!(clipped["losses"][0], plain["losses"][0]);
    assert_ne!(clipped["losses"][2], plain["losses"][2]);
    let told = |flags: &[&str]| plan(&scratch, "tiny", &[&["--seq", "32"], flags].concat());
    for method in ["lomo", "adamw"] {
        let schedule = told(&["--method", method]);
        fails(&schedule, &["--clip", "0.1"], "plan again with --clip");
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
