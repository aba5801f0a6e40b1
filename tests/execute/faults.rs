//! What fails while a schedule runs ends with one clear error that names the place.

use std::path::Path;

use ebbtide::device::cpu::{CpuOptions, Faults};
use ebbtide::device::Stream;
use ebbtide::error::{Error, Kind};
use ebbtide::format::schedule::ScheduleFile;
use ebbtide::methods::Method;
use ebbtide::model::{self, ModelConfig};
use ebbtide::training::checkpoint::Checkpoint;
use ebbtide::training::initial;

use super::models::model;
use super::plans::{file_of, mixed, problem, Cut};
use super::runs::{batches, optimizer, run, session};

fn file() -> (ModelConfig, ScheduleFile) {
    let model = model("gqa");
    let cut = Cut::new(Method::AdamW, 2);
    let file = file_of(&model, &cut, mixed(&problem(&model, &cut)));
    (model, file)
}

fn failure(options: CpuOptions) -> Error {
    let (model, file) = file();
    match run(&file, &model, options, 1) {
        Err(error) => error,
        Ok(_) => panic!("nothing failed"),
    }
}

#[test]
fn memory_that_is_not_there() {
    let (_, file) = file();
    let arena = file.schedule.arena_bytes.get();
    let error = failure(CpuOptions {
        device_memory: Some(arena - 1),
        ..CpuOptions::default()
    });
    assert_eq!(error.kind, Kind::NoDevice);
    assert!(error.message.contains(&format!("{arena} bytes")), "{error}");
    let error = failure(CpuOptions {
        host_memory: Some(1 << 10),
        ..CpuOptions::default()
    });
    assert_eq!(error.kind, Kind::NoDevice);
    assert!(error.message.contains("no memory"), "{error}");
}

#[test]
fn a_copy_that_fails_is_named() {
    for stream in [Stream::D2h, Stream::H2d] {
        let error = failure(CpuOptions {
            faults: Faults {
                copy: Some((stream, 3)),
                ..Faults::default()
            },
            ..CpuOptions::default()
        });
        assert_eq!(error.kind, Kind::NoDevice);
        let place = format!("(instruction 3 of stream {})", stream.name());
        assert!(error.message.contains(&place), "{error}");
        let way = if stream == Stream::D2h {
            "swap out "
        } else {
            "swap in "
        };
        assert!(error.message.starts_with(way), "{error}");
    }
}

#[test]
fn a_worker_that_panics_is_named_and_nothing_hangs() {
    for (stream, at, what) in [
        (Stream::Compute, 17, "of block 0"),
        (Stream::Host, 0, "update"),
        (Stream::H2d, 0, "swap in"),
    ] {
        let error = failure(CpuOptions {
            faults: Faults {
                panic: Some((stream, at)),
                ..Faults::default()
            },
            ..CpuOptions::default()
        });
        assert_eq!(error.kind, Kind::NoDevice);
        assert!(error.message.contains("panicked"), "{error}");
        assert!(error.message.contains(what), "{error}");
    }
}

#[test]
fn a_loss_that_is_no_number() {
    let (model, file) = file();
    let mut session = session(&file, &model, CpuOptions::default(), 1).unwrap();
    let poisoned = |place: ebbtide::training::Place| {
        let mut values = initial::values(&model, place, 1)?;
        if place.block == Some(1) {
            values[0] = f32::NAN;
        }
        Ok(values)
    };
    session.load(poisoned).unwrap();
    let error = session
        .step(0, &batches(&file, &model, 0, 1), &optimizer())
        .unwrap_err();
    assert_eq!(error.kind, Kind::BadInput);
    assert!(
        error.message.contains("the loss of step 1 is NaN"),
        "{error}"
    );
}

#[test]
fn batches_that_cannot_be_trained_on() {
    let (model, file) = file();
    let mut session = session(&file, &model, CpuOptions::default(), 1).unwrap();
    let good = batches(&file, &model, 0, 1);
    let mut unlabelled = good.clone();
    for batch in &mut unlabelled {
        batch.labels.fill(ebbtide::training::tokens::IGNORED);
    }
    let error = session.step(0, &unlabelled, &optimizer()).unwrap_err();
    assert!(error.message.contains("all labels are ignored"), "{error}");
    assert!(session.step(0, &good[..1], &optimizer()).is_err());
    let mut beyond = good.clone();
    beyond[0].ids[3] = 53;
    let error = session.step(0, &beyond, &optimizer()).unwrap_err();
    assert!(error.message.contains("53"), "{error}");
}

#[test]
fn weights_that_are_truncated_or_of_another_model() {
    let of = |name: &str| {
        Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("tests/data/hf")
            .join(name)
    };
    let llama = model::load(of("llama").to_str().unwrap()).unwrap();
    let whole = std::fs::read(of("llama").join("model.safetensors")).unwrap();
    let name = format!("ebbtide-truncated-{}.safetensors", std::process::id());
    let path = std::env::temp_dir().join(name);
    for length in [0, 5, 100, 3000, whole.len() - 1] {
        std::fs::write(&path, &whole[..length]).unwrap();
        let error = Checkpoint::open(&path, &llama).unwrap_err();
        assert_eq!(error.kind, Kind::BadInput);
        assert!(error.message.contains("truncated"), "{length}: {error}");
    }
    std::fs::write(&path, vec![b'x'; 1000]).unwrap();
    assert!(Checkpoint::open(&path, &llama).is_err());
    std::fs::remove_file(&path).unwrap();
    let error = Checkpoint::open(&of("qwen2"), &llama).unwrap_err();
    assert!(error.message.contains("shape"), "{error}");
    let error = Checkpoint::open(&of("gpt2"), &llama).unwrap_err();
    assert!(error.message.contains("is missing"), "{error}");
}

#[test]
fn schedules_of_another_model_or_without_one() {
    let (_, mut file) = file();
    let other = model("mha");
    let device = || Box::new(ebbtide::device::cpu::CpuDevice::new(CpuOptions::default()));
    let begin = |file: &ScheduleFile, model: &ModelConfig| {
        let begun = ebbtide::execute::Session::begin(file, model, device(), false);
        begun.err().expect("cannot begin")
    };
    let error = begin(&file, &other);
    assert!(error.message.contains("the model's has"), "{error}");
    file.model.config = None;
    let error = ebbtide::execute::model(&file).unwrap_err();
    assert!(error.message.contains("model.config"), "{error}");
    for method in ["", "adamw2"] {
        file.method = method.into();
        assert!(begin(&file, &model("gqa"))
            .message
            .contains("unknown method"));
    }
}
