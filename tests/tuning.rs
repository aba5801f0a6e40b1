//! `ebbtide plan --method auto`: what it tries, what it takes, what it refuses.

use std::time::{Duration, Instant};

use assert_cmd::Command;
use ebbtide::lower::Workload;
use ebbtide::methods::Method;
use ebbtide::model;
use ebbtide::planning::Request;
use ebbtide::profile::{self, Dtype};
use ebbtide::tuning::{cuts, tune, Outcome};
use ebbtide_solver::problem::Budget;
use ebbtide_solver::search::{Options, Strategy};
use ebbtide_solver::units::Bytes;

fn plan(flags: &[&str]) -> Command {
    let mut command = Command::cargo_bin("ebbtide").unwrap();
    command.args([
        "plan",
        "--model",
        "tiny",
        "--profile",
        "unit",
        "--seq",
        "256",
    ]);
    command.args(flags);
    command
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
        budget: Budget {
            device: Bytes::mib(3),
            host: Bytes::mib(64),
        },
    };
    let options = Options {
        deadline: Some(Instant::now() + Duration::from_secs(60)),
        ..Options::default()
    };
    let allowed = tune(
        &request,
        &[Method::AdamW, Method::Lomo],
        Strategy::Ilp,
        &options,
    );
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
    let only = tune(&request, &[Method::AdamW], Strategy::Ilp, &options);
    assert!(only.iter().all(|c| c.method == Method::AdamW));
}

#[test]
fn the_table_names_the_choice_and_what_it_changes() {
    let mut flags = vec!["--method", "auto", "--allow", "sgd,lomo", "--batch", "2"];
    flags.extend(["--device-memory", "3MiB"]);
    let done = plan(&flags).assert().success();
    let text = String::from_utf8_lossy(&done.get_output().stdout).into_owned();
    assert_eq!(text.matches(" chosen").count(), 1, "{text}");
    assert!(text.contains("trains otherwise than adamw"), "{text}");
    assert!(text.contains("cannot accumulate 2"), "{text}");
    let alone = plan(&["--method", "auto"]).assert().success();
    let text = String::from_utf8_lossy(&alone.get_output().stdout).into_owned();
    assert!(text.contains("adamw changes no result"), "{text}");
    assert!(!text.contains("lomo"), "{text}");
}

#[test]
fn json_is_the_chosen_plans_alone() {
    let flags = ["--method", "auto", "--allow", "apollo", "--json"];
    let done = plan(&flags).assert().success();
    let json: serde_json::Value = serde_json::from_slice(&done.get_output().stdout).unwrap();
    assert!(["adamw", "apollo"].contains(&json["method"].as_str().unwrap()));
}

#[test]
fn what_leaves_no_choice_is_refused() {
    let refused: [(&[&str], &str); 4] = [
        (&["--method", "adamw", "--allow", "sgd"], "leaves no choice"),
        (
            &["--method", "auto", "--rank", "4"],
            "--rank is for one method",
        ),
        (
            &["--method", "auto", "--allow", "fp8-storage"],
            "invalid value",
        ),
        (&["--method", "compact"], "invalid value"),
    ];
    for (flags, why) in refused {
        let done = plan(flags).assert().code(2);
        let text = String::from_utf8_lossy(&done.get_output().stderr).into_owned();
        assert!(text.contains(why), "{flags:?}: {text}");
    }
}
