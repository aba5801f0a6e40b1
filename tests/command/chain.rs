//! The chain benchmark: never slower than what other solvers reached, proved optimal, and fast.

use ebbtide::commands::chain::{run, Args, Strategy};
use ebbtide::error::Kind;
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::time::Duration;

fn data() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/chain")
}

fn args(problem: PathBuf, strategy: Strategy) -> Args {
    Args {
        problem,
        strategy,
        json: true,
        time_limit: Duration::from_secs(60),
    }
}

/// The printed JSON, or the kind of failure.
fn solve(problem: PathBuf, strategy: Strategy) -> Result<Value, Kind> {
    let mut out = Vec::new();
    run(&args(problem, strategy), &mut out).map_err(|error| error.kind)?;
    Ok(serde_json::from_slice(&out).expect("one JSON object"))
}

#[test]
fn every_row_is_optimal_and_no_slower_than_rotor() {
    let rows = std::fs::read_to_string(data().join("results.csv")).unwrap();
    let mut seen = 0;
    for row in rows.lines().skip(1) {
        let cells: Vec<&str> = row.split(',').collect();
        let percent = (cells[1].parse::<f64>().unwrap() * 100.0).round();
        let name = format!("{}_{percent}.json", cells[0]);
        let floor: f64 = cells[2].parse().unwrap();
        let ilp = match solve(data().join(&name), Strategy::Ilp) {
            Ok(ilp) => ilp,
            Err(kind) => {
                assert_eq!(kind, Kind::Infeasible, "{name}");
                assert_eq!(cells[6], "infeasible", "{name}");
                continue;
            }
        };
        let rotor = solve(data().join(&name), Strategy::Rotor).unwrap();
        let makespan = |solution: &Value| solution["makespan_ms"].as_f64().unwrap();
        assert!(makespan(&ilp) <= makespan(&rotor), "{name}");
        if let Ok(published) = cells[3].parse::<f64>() {
            assert!(makespan(&rotor) <= published, "{name}: {rotor}");
        }
        if let Ok(overhead) = cells[5].parse::<f64>() {
            // The published overhead is rounded to a tenth of a percent.
            assert!(
                makespan(&ilp) <= floor * (1.0 + (overhead + 0.05) / 100.0),
                "{name}"
            );
        }
        assert_eq!(ilp["status"], "optimal", "{name}");
        assert_eq!(ilp["bound_ms"], ilp["makespan_ms"], "{name}");
        seen += 1;
    }
    assert_eq!(seen, 55, "rows with a schedule");
}

#[test]
fn golden_cases_on_which_three_solvers_agree() {
    for (name, makespan) in [
        ("homog4_80", 1560.0),
        ("homog4_60", 1680.0),
        ("homog4_40", 1800.0),
        ("homog6_60", 2520.0),
        ("homog6_40", 2640.0),
    ] {
        let problem = data().join(format!("{name}.json"));
        for strategy in [Strategy::Ilp, Strategy::Rotor, Strategy::Exhaustive] {
            let solution = solve(problem.clone(), strategy).unwrap();
            assert_eq!(solution["makespan_ms"], makespan, "{name} {strategy:?}");
        }
    }
}

#[test]
fn a_refusal_names_the_layer_and_the_budget_that_would_do() {
    let error = run(
        &args(data().join("homog2_40.json"), Strategy::Ilp),
        &mut Vec::new(),
    );
    let text = error.expect_err("nothing fits").to_string();
    assert!(
        text.contains("the backward of layer 1 needs 4.8 GiB"),
        "{text}"
    );
    assert!(
        text.contains("hint: ilp has a schedule for `budget_bytes` 5100273664"),
        "{text}"
    );
}
