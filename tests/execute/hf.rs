//! What HF transformers computes from the same files (`tests/data/hf/README.md`), with head groups,
//! tiles and copies in between.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use ebbtide::execute::{Optimizer, Session};
use ebbtide::format::schedule::ScheduleFile;
use ebbtide::lower::Workload;
use ebbtide::methods::Method;
use ebbtide::model::{self, ModelConfig};
use ebbtide::profile::Dtype;
use ebbtide::training::checkpoint::{write, Checkpoint};
use ebbtide::training::directory::Unfinished;
use ebbtide::training::tokens::{Batch, IGNORED};
use safetensors::SafeTensors;
use serde_json::Value;

use super::plans::{file_of, mixed, problem, Cut};

const FAMILIES: [&str; 7] = [
    "llama",
    "llama_yarn",
    "mistral",
    "qwen2",
    "qwen3",
    "gemma",
    "gpt2",
];
const TOLERANCE: f64 = 1e-4;
const SEQ: u64 = 48;

/// Those of some cases that the nth family is held to: all, or one in turns where a device is slow.
fn met<T: Clone>(nth: usize, cases: &[T]) -> Vec<T> {
    match super::every_case() {
        true => cases.to_vec(),
        false => vec![cases[nth % cases.len()].clone()],
    }
}

struct Family {
    name: &'static str,
    path: PathBuf,
    model: ModelConfig,
    ids: Vec<Vec<u32>>,
    expected: Value,
}

fn json(path: &Path) -> Value {
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

fn family(name: &'static str) -> Family {
    // Tests run where the repository is, also those that were built elsewhere.
    let path = Path::new("tests/data/hf").join(name);
    let steps = &json(&path.join("tokens.json"))["input_ids"];
    let ids = steps.as_array().unwrap().iter().map(|step| {
        let sequences = step.as_array().unwrap().iter();
        let flat = sequences.flat_map(|s| s.as_array().unwrap());
        flat.map(|id| id.as_u64().unwrap() as u32).collect()
    });
    Family {
        name,
        model: model::load(path.to_str().unwrap()).unwrap(),
        ids: ids.collect(),
        expected: json(&path.join("expected.json")),
        path,
    }
}

impl Family {
    fn cut(&self, method: Method, accumulate: u32) -> Cut {
        let groups = if self.model.kv_heads % 2 == 0 { 2 } else { 1 };
        Cut {
            workload: Workload {
                seq: SEQ,
                batch: 2,
                accumulate,
                dtype: Dtype::F32,
                clip: false,
            },
            tile: 32,
            head_tile: 40,
            granule: 16,
            ..Cut::new(method, groups)
        }
    }

    fn mixed(&self, method: Method, accumulate: u32) -> ScheduleFile {
        let cut = self.cut(method, accumulate);
        file_of(&self.model, &cut, mixed(&problem(&self.model, &cut)))
    }

    /// The batch of a step; labels are the ids, or as given, shifted within each sequence.
    fn batch(&self, step: usize, labels: Option<&Value>) -> Batch {
        let ids = self.ids[step].clone();
        let own: Vec<i32> = match labels {
            None => ids.iter().map(|&id| id as i32).collect(),
            Some(labels) => {
                let sequences = labels.as_array().unwrap().iter();
                let flat = sequences.flat_map(|s| match s {
                    Value::Array(labels) => labels.clone(),
                    label => vec![label.clone()],
                });
                flat.map(|label| label.as_i64().unwrap() as i32).collect()
            }
        };
        let label = |at: usize| match (at + 1) % SEQ as usize {
            0 => IGNORED,
            _ => own[at + 1],
        };
        Batch {
            labels: (0..ids.len()).map(label).collect(),
            ids,
        }
    }

    fn session<'a>(&'a self, file: &'a ScheduleFile, clip: bool) -> Session<'a> {
        let mut session = Session::begin(file, &self.model, super::device(), clip).unwrap();
        let checkpoint = Checkpoint::open(&self.path, &self.model).unwrap();
        assert_eq!(checkpoint.unused(), [""; 0]);
        session.load(|place| checkpoint.read(place)).unwrap();
        session
    }

    /// The weights of a session by HF's names, in HF's layout, through a saved checkpoint.
    fn weights(&self, session: &mut Session<'_>, what: &str) -> BTreeMap<String, Vec<f32>> {
        let name = format!("ebbtide-hf-{}-{}-{what}", std::process::id(), self.name);
        let path = std::env::temp_dir().join(name);
        let directory = Unfinished::begin(&path).unwrap();
        write(&directory, &self.model, Dtype::F32, |place| {
            session.weight(place)
        })
        .unwrap();
        directory.finish().unwrap();
        let bytes = std::fs::read(path.join("model.safetensors")).unwrap();
        let saved = model::load(path.to_str().unwrap()).unwrap();
        assert_eq!(saved.parameters(), self.model.parameters());
        std::fs::remove_dir_all(&path).unwrap();
        tensors(&bytes)
    }

    /// Gradients by HF's names: a step of SGD so long that the weights themselves do not count.
    fn gradients(&self, batches: &[Batch]) -> (f64, BTreeMap<String, Vec<f32>>) {
        let file = self.mixed(Method::Sgd, batches.len() as u32);
        let mut session = self.session(&file, false);
        let before = self.weights(&mut session, "before");
        let rate = (1u64 << 24) as f64;
        let with = Optimizer {
            learning_rate: rate,
            ..Optimizer::default()
        };
        let loss = session.step(0, batches, &with).unwrap().loss;
        let after = self.weights(&mut session, "after");
        let difference = |name: &String, after: &Vec<f32>| {
            let both = before[name].iter().zip(after);
            let each = both.map(|(b, a)| ((f64::from(*b) - f64::from(*a)) / rate) as f32);
            each.collect()
        };
        let each = after
            .iter()
            .map(|(name, a)| (name.clone(), difference(name, a)));
        (loss, each.collect())
    }
}

fn tensors(bytes: &[u8]) -> BTreeMap<String, Vec<f32>> {
    let file = SafeTensors::deserialize(bytes).unwrap();
    let values = |data: &[u8]| {
        let words = data.chunks_exact(4);
        words
            .map(|w| f32::from_le_bytes(w.try_into().unwrap()))
            .collect()
    };
    let all = file.tensors().into_iter();
    all.map(|(name, view)| (name, values(view.data())))
        .collect()
}

fn assert_close(what: &str, found: f64, expected: f64, tolerance: f64) {
    assert!(
        (found - expected).abs() <= tolerance,
        "{what}: {found}, expected {expected} (± {tolerance:.1e})"
    );
}

/// Holds tensors to their rows in a table of `expected.json`.
fn assert_rows(what: &str, found: &BTreeMap<String, Vec<f32>>, table: &Value) {
    let table = table.as_object().unwrap();
    let names: Vec<&String> = found.keys().collect();
    assert_eq!(names.len(), table.len(), "{what}: {names:?}");
    for (name, row) in table {
        let values = &found[name];
        let what = format!("{what} {name}");
        // How far HF's own f32 is from its f64.
        let noise = row["f32_error"].as_f64().unwrap();
        for entry in row["entries"].as_array().unwrap() {
            let at = entry[0].as_u64().unwrap() as usize;
            let expected = entry[1].as_f64().unwrap();
            let found = f64::from(values[at]);
            assert_close(
                &format!("{what}[{at}]"),
                found,
                expected,
                TOLERANCE * expected.abs() + noise,
            );
        }
        let left_out = row.get("left_out").map_or(0..0, |range| {
            range[0].as_u64().unwrap() as usize..range[1].as_u64().unwrap() as usize
        });
        let counted = || {
            let all = values.iter().enumerate();
            let counted = all.filter(|(at, _)| !left_out.contains(at));
            counted.map(|(_, v)| f64::from(*v))
        };
        let norm = row["norm"].as_f64().unwrap();
        let found = counted().map(|v| v * v).sum::<f64>().sqrt();
        assert_close(&format!("{what}: norm"), found, norm, TOLERANCE * norm);
        let slack = TOLERANCE * norm * (values.len() as f64).sqrt();
        let sum = row["sum"].as_f64().unwrap();
        assert_close(&format!("{what}: sum"), counted().sum(), sum, slack);
    }
}

fn assert_loss(what: &str, found: f64, expected: &Value) {
    let expected = expected.as_f64().unwrap();
    assert_close(what, found, expected, 1e-6 * expected);
}

#[test]
fn losses_and_gradients_are_those_of_hf() {
    if !super::is_there() {
        return;
    }
    for (nth, name) in FAMILIES.into_iter().enumerate() {
        let family = family(name);
        let expected = &family.expected;
        assert_eq!(expected["parameters"], family.model.parameters());
        let ignored = &expected["ignored_labels"];
        let cases = [
            ("step", vec![family.batch(0, None)]),
            (
                "ignored_labels",
                vec![family.batch(0, Some(&ignored["labels"]))],
            ),
            (
                "accumulated",
                vec![family.batch(0, None), family.batch(1, None)],
            ),
        ];
        for (case, batches) in met(nth, &cases) {
            let (loss, gradients) = family.gradients(&batches);
            let what = format!("{name} {case}");
            assert_loss(&what, loss, &expected[case]["loss"]);
            assert_rows(&what, &gradients, &expected[case]["gradients"]);
        }
    }
}

/// Two steps of an optimizer on a schedule, then the loss of the second batch.
fn two_steps(family: &Family, file: &ScheduleFile, with: &Optimizer, expected: &Value) {
    let what = format!("{} {}", family.name, file.method);
    let mut session = family.session(file, with.clip.is_some());
    for step in 0..2 {
        let batch = family.batch(step, None);
        let result = session.step(step as u64, &[batch], with).unwrap();
        let of = format!("{what} step {step}");
        assert_loss(&of, result.loss, &expected["losses"][step]);
        if let Some(norm) = result.gradient_norm {
            let hf = expected["gradient_norms"][step].as_f64().unwrap();
            assert_close(&of, norm, hf, TOLERANCE * hf);
        }
    }
    let weights = family.weights(&mut session, &file.method);
    assert_rows(&what, &weights, &expected["weights"]);
    let last = session.step(2, &[family.batch(1, None)], with).unwrap();
    assert_loss(&what, last.loss, &expected["losses"][2]);
}

fn hyper(expected: &Value) -> Optimizer {
    let hyper = &expected["hyper"];
    let number = |key: &str, or: f64| hyper.get(key).map_or(or, |v| v.as_f64().unwrap());
    let beta = |at: usize, or: f64| {
        hyper
            .get("betas")
            .map_or(or, |betas| betas[at].as_f64().unwrap())
    };
    Optimizer {
        learning_rate: number("lr", 0.0),
        beta1: beta(0, 0.9),
        beta2: beta(1, 0.999),
        epsilon: number("eps", 1e-8),
        weight_decay: number("weight_decay", 0.0),
        clip: expected.get("max_norm").map(|norm| norm.as_f64().unwrap()),
        clip_value: None,
    }
}

#[test]
fn two_steps_of_every_method_are_those_of_hf() {
    if !super::is_there() {
        return;
    }
    const METHODS: [(Method, &str); 3] = [
        (Method::AdamW, "adamw"),
        (Method::Sgd, "sgd"),
        (Method::Lomo, "sgd"),
    ];
    for (nth, name) in FAMILIES.into_iter().enumerate() {
        let family = family(name);
        for (method, key) in met(nth, &METHODS) {
            let expected = &family.expected[key];
            let file = family.mixed(method, 1);
            two_steps(&family, &file, &hyper(expected), expected);
        }
    }
}

#[test]
fn clipped_steps_are_those_of_hf() {
    if !super::is_there() {
        return;
    }
    // What is clipped does not depend on where a gradient is from.
    let every = if super::every_case() { 1 } else { 3 };
    for name in FAMILIES.into_iter().step_by(every) {
        let family = family(name);
        let mut cut = family.cut(Method::AdamW, 1);
        cut.workload.clip = true;
        let schedule = mixed(&problem(&family.model, &cut));
        assert!(schedule.state_groups.iter().any(|group| group.on_host));
        let file = file_of(&family.model, &cut, schedule);
        let expected = &family.expected["adamw_clipped"];
        two_steps(&family, &file, &hyper(expected), expected);
    }
}
