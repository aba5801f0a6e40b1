//! Steps of real sizes: every launch, product, graph and copy is made by the real device code and
//! looked at as on a card of 80 GiB, but nothing is computed. What does not fit into 32 bits, a
//! grid or a library's integers shows here.

use std::env;

use ebbtide::device::cuda::{CudaDevice, CudaOptions};
use ebbtide::execute::{self, Optimizer, Session};
use ebbtide::format::schedule;
use ebbtide::training::tokens::Tokens;
use serde_json::Value;

use super::is_there;
use super::place::{ebbtide, folder, started, stderr};

/// The schedule that is queued, in a process of its own, where the stand-in is idle; and whether by
/// our own attention.
const QUEUED: &str = "EBBTIDE_TEST_QUEUED";
const DETERMINISTIC: &str = "EBBTIDE_TEST_DETERMINISTIC";

/// A shipped model with as few blocks as show the first, the last and one between.
fn few_blocks(name: &str) -> String {
    let shipped = format!("{}/profiles/models/{name}.json", env!("CARGO_MANIFEST_DIR"));
    let text = std::fs::read_to_string(shipped).unwrap();
    let mut config: Value = serde_json::from_str(&text).unwrap();
    config["num_hidden_layers"] = 3.into();
    let path = folder("large").join(format!("{name}.json"));
    std::fs::write(&path, config.to_string()).unwrap();
    path.to_str().unwrap().to_owned()
}

#[test]
fn steps_of_a_million_tokens_are_queued_whole() {
    if !is_there() {
        return;
    }
    for (name, plan, deterministic) in [
        ("llama-2-7b", "1m --method lomo", false),
        ("llama-2-7b", "1m --method lomo", true),
        ("llama-3.1-8b", "512k --method adamw", false),
        (
            "llama-3.1-8b",
            "256k --method lomo --allow fp8-compute",
            false,
        ),
        ("llama-3.1-70b", "128k --method galore --per-layer", false),
    ] {
        let model = few_blocks(name);
        let schedule = folder("large").join(format!("{name}.schedule.json"));
        let schedule = schedule.to_str().unwrap();
        let what = "--profile h100-sxm5-80gb --device-memory 72GiB --host-memory 3GiB";
        let args = format!("plan --model {model} {what} -o {schedule} --seq {plan}");
        let out = ebbtide(&args.split(' ').collect::<Vec<_>>(), &[]);
        assert_eq!(out.status.code(), Some(0), "{args}: {}", stderr(&out));
        let memory = (80u64 << 30).to_string();
        let mut environment = vec![
            (QUEUED, schedule),
            ("EBBTIDE_STANDIN_IDLE", "1"),
            ("EBBTIDE_STANDIN_MEMORY", &memory),
        ];
        environment.extend(deterministic.then_some((DETERMINISTIC, "1")));
        let args = ["--exact", "large::a_schedule_is_queued", "--nocapture"];
        let out = started(&env::current_exe().unwrap(), &args, &environment);
        let said = String::from_utf8_lossy(&out.stdout);
        assert!(out.status.success(), "{plan}: {said}{}", stderr(&out));
        let by = if deterministic {
            "by ebbtide"
        } else {
            "by cuDNN"
        };
        assert_eq!(said.matches(by).count(), 2, "{plan}: {said}");
    }
}

/// Only where the test above has it run.
#[test]
fn a_schedule_is_queued() {
    let Some(path) = env::var_os(QUEUED) else {
        return;
    };
    let file = schedule::read(&std::fs::read_to_string(path).unwrap()).unwrap();
    let model = execute::model(&file).unwrap();
    let options = CudaOptions {
        deterministic: env::var_os(DETERMINISTIC).is_some(),
        ..CudaOptions::default()
    };
    let device = Box::new(CudaDevice::open(0, options).unwrap());
    let mut session = Session::begin(&file, &model, device, false).unwrap();
    let workload = &file.workload;
    let tokens = Tokens::Synthetic {
        vocab: model.vocab,
        seed: 0,
    };
    let batch = tokens.batch(0, workload.batch, workload.seq);
    session.step(0, &[batch], &Optimizer::default()).unwrap();
    let copied = session.arena_use();
    assert_eq!(copied.high_water_bytes, file.schedule.arena_bytes.get());
    println!("{:?}", session.device_notes());
}
