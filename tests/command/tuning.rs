//! `ebbtide plan --method auto`: what it tries, what it takes, what it refuses.

use std::time::{Duration, Instant};

use ebbtide::device::arithmetic::Arithmetic;
use ebbtide::device::packed::Storage;
use ebbtide::format::schedule::Predicted;
use ebbtide::lower::Workload;
use ebbtide::methods::Method;
use ebbtide::model;
use ebbtide::planning::Request;
use ebbtide::profile::{self, Dtype};
use ebbtide::tuning::{cuts, tune, Freedom, Outcome};
use ebbtide_solver::problem::Budget;
use ebbtide_solver::search::{Options, Strategy};
use ebbtide_solver::units::{Bytes, BytesPerSec};
use serde_json::Value;

use super::{ebbtide, json, prints, refuses};

fn plan<'a>(flags: &[&'a str]) -> Vec<&'a str> {
    let plan = ["plan", "--model=tiny", "--profile=unit", "--seq=256"];
    [&plan[..], flags].concat()
}

/// What a plan prints as JSON, whatever was tried beside it.
fn planned(flags: &[&str]) -> Value {
    let (code, out, err) = ebbtide(&plan(flags));
    assert_eq!(code, 0, "{err}");
    json(&out)
}

#[test]
fn sequences_are_cut_into_equal_micro_batches() {
    let workload = Workload {
        seq: 64,
        batch: 6,
        accumulate: 2,
        dtype: Dtype::F32,
        clip: false,
    };
    let found = cuts(&workload).into_iter().map(|w| (w.batch, w.accumulate));
    let all = [(12, 1), (6, 2), (4, 3), (3, 4), (2, 6), (1, 12)];
    assert_eq!(found.collect::<Vec<_>>(), all);
}

/// With as little memory as this, AdamW's states have to travel and LOMO's, which are none, do not.
#[test]
fn the_fastest_of_what_is_allowed_is_chosen() {
    let model = model::load("tiny").unwrap();
    let profile = profile::load("unit").unwrap();
    let request = Request {
        model: &model,
        profile: &profile,
        workload: Workload {
            seq: 256,
            batch: 2,
            accumulate: 1,
            dtype: Dtype::F32,
            clip: false,
        },
        method: Method::AdamW,
        storage: None,
        arithmetic: Arithmetic::Plain,
        budget: Budget {
            device: Bytes::mib(3),
            host: Bytes::mib(64),
        },
    };
    let options = Options {
        deadline: Some(Instant::now() + Duration::from_secs(60)),
        ..Options::default()
    };
    let free = |methods: &[Method]| Freedom {
        methods: methods.to_vec(),
        storages: Vec::new(),
        arithmetics: vec![Arithmetic::Plain],
        cuts: true,
    };
    let both = free(&[Method::AdamW, Method::Lomo]);
    let allowed = tune(&request, &both, Strategy::Ilp, &options);
    // LOMO accumulates nothing.
    assert_eq!(allowed.len(), 4);
    let refused = |outcome: &Outcome| matches!(outcome, Outcome::Refused(_));
    let last = allowed.last().unwrap();
    assert!(refused(&last.outcome) && last.method == Method::Lomo);
    assert_eq!(allowed[0].method, Method::Lomo);
    let rates: Vec<f64> = allowed.iter().filter_map(|c| c.rate()).collect();
    assert!(
        rates.len() >= 2 && rates.is_sorted_by(|a, b| a >= b),
        "{rates:?}"
    );
    let only = tune(&request, &free(&[Method::AdamW]), Strategy::Ilp, &options);
    assert!(only.iter().all(|c| c.method == Method::AdamW));
}

#[test]
fn the_table_names_the_choice_and_what_it_changes() {
    let mut flags = vec!["--method", "auto", "--allow", "sgd,lomo", "--batch", "2"];
    flags.extend(["--device-memory", "3MiB"]);
    let text = prints(&plan(&flags));
    assert_eq!(text.matches(" chosen").count(), 1, "{text}");
    assert!(text.contains("trains otherwise than adamw"), "{text}");
    assert!(text.contains("cannot accumulate 2"), "{text}");
    let text = prints(&plan(&["--method", "auto"]));
    assert!(text.contains("adamw changes no result"), "{text}");
    assert!(!text.contains("lomo"), "{text}");
}

#[test]
fn json_is_the_chosen_plans_alone() {
    let flags = ["--method", "auto", "--allow", "apollo", "--json"];
    let method = planned(&flags)["method"].clone();
    assert!(["adamw", "apollo"].contains(&method.as_str().unwrap()));
}

#[test]
fn compact_is_told_its_rank_and_its_layers() {
    let flags = [
        "--method",
        "compact",
        "--rank",
        "1/8",
        "--compress",
        "qkv,down",
    ];
    let file = planned(&[&flags[..], &["--json"]].concat());
    let options = &file["method_options"];
    assert_eq!(options["rank_divisor"], 8);
    assert_eq!(options["compress"], serde_json::json!(["qkv", "down"]));
    let decisions = file["decisions"].as_array().unwrap();
    let decided = |name: &str| decisions.iter().any(|d| d["tensor"] == name);
    assert!(decided("n1.projected") && decided("h.projected") && decided("n2"));
    assert!(!decided("n2.projected"));
    let text = prints(&plan(&flags));
    assert!(text.contains("rank 1/8"), "{text}");
}

#[test]
fn aware_training_is_used_where_it_is_named() {
    let aware = planned(&["--allow", "qat-int8", "--json"]);
    assert_eq!(aware["arithmetic"], "qat-int8");
    // On a machine that is no faster in 8 bits, products stay as they are.
    let plain = planned(&["--allow", "fp8-compute", "--json"]);
    assert!(plain["arithmetic"].is_null());
}

#[test]
fn what_leaves_no_choice_is_refused() {
    let refused: [(&[&str], &str); 9] = [
        (
            &["--allow", "qat-int8,fp8-compute"],
            "goes with no other arithmetic",
        ),
        (&["--method", "compact", "--rank", "1/0"], "such as 1/4"),
        (
            &["--method", "compact", "--compress", "up"],
            "layers are qkv, gate_up, down",
        ),
        (
            &["--method", "galore", "--rank", "1/4"],
            "says nothing to galore",
        ),
        (
            &["--method", "galore", "--compress", "qkv"],
            "says nothing to galore",
        ),
        (&["--method", "adamw", "--allow", "sgd"], "leaves no choice"),
        (
            &["--method", "auto", "--rank", "4"],
            "--rank is for one method",
        ),
        (
            &["--method", "auto", "--allow", "fp4-storage"],
            "invalid value",
        ),
        (&["--method", "lora"], "invalid value"),
    ];
    for (flags, why) in refused {
        refuses(&plan(flags), 2, why);
    }
}

/// Over a slow link what is packed travels faster; over a fast one nothing is gained, and nothing
/// is packed.
#[test]
fn packed_storage_is_used_where_it_is_allowed_and_faster() {
    let model = model::load("tiny").unwrap();
    let mut profile = profile::load("unit").unwrap();
    let freedom = Freedom {
        methods: vec![Method::Sgd],
        storages: vec![Storage::Fp8, Storage::Int8],
        arithmetics: vec![Arithmetic::Plain],
        cuts: false,
    };
    let mut chosen = |bytes_per_s: u64| {
        let rate = BytesPerSec::new(bytes_per_s).unwrap();
        let links = &mut profile.machine.links;
        (links.d2h.rate, links.h2d.rate) = (rate, rate);
        (links.both.d2h, links.both.h2d) = (rate, rate);
        let request = Request {
            model: &model,
            profile: &profile,
            workload: Workload {
                seq: 256,
                batch: 1,
                accumulate: 1,
                dtype: Dtype::F32,
                clip: false,
            },
            method: Method::Sgd,
            storage: None,
            arithmetic: Arithmetic::Plain,
            budget: Budget {
                device: Bytes::mib(64),
                host: Bytes::mib(64),
            },
        };
        let found = tune(&request, &freedom, Strategy::Swap, &Options::default());
        assert_eq!(found.len(), 3);
        let plain = found.iter().find(|c| c.storage.is_none()).unwrap();
        let [first, plain] = [&found[0], plain].map(|c| match &c.outcome {
            Outcome::Planned(planned) => planned.file.clone(),
            other => panic!("{other:?}"),
        });
        (first, plain)
    };
    let (packed, plain) = chosen(1_000_000);
    assert!(packed.storage.is_some() && plain.storage.is_none());
    assert!(packed.predicted.step < plain.predicted.step);
    // f32 becomes a byte and 1/32: what is in neither are softmax statistics.
    for way in [
        |p: &Predicted| p.d2h,
        |p: &Predicted| p.h2d,
        |p: &Predicted| p.host,
    ] {
        let (plain, packed) = (way(&plain.predicted).get(), way(&packed.predicted).get());
        assert!(plain > 3 * packed && plain < 4 * packed, "{plain} {packed}");
    }
    let storage = packed.storage.unwrap().to_string();
    for decision in &packed.decisions {
        let expected = if decision.packed_tokens + decision.swap_tokens > 0 {
            &storage
        } else {
            "f32"
        };
        assert_eq!(decision.stored_as, expected);
    }
    let (first, plain) = chosen(1_000_000_000_000);
    assert_eq!(first.storage, None);
    assert_eq!(first.predicted, plain.predicted);
}
