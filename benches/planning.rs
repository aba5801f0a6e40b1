//! What planning costs: llama-2-7b at 128K tokens, LOMO, H100, 72 GiB and 110 GiB; and planning
//! against the number of layers. `cargo bench --bench planning`.

use divan::Bencher;
use ebbtide::device::arithmetic::Arithmetic;
use ebbtide::lower::Workload;
use ebbtide::methods::Method;
use ebbtide::model::ModelConfig;
use ebbtide::planning;
use ebbtide::profile::{self, Dtype};
use ebbtide_solver::build::{build, with_addresses};
use ebbtide_solver::check::check;
use ebbtide_solver::problem::{Budget, Problem};
use ebbtide_solver::search::{contexts, solve, Options, Solution, Strategy};
use ebbtide_solver::simulate::simulate;
use ebbtide_solver::units::Bytes;

fn main() {
    divan::main();
}

/// Every tiling of llama-2-7b with so many layers.
fn problems(layers: u64) -> Vec<Problem> {
    let text = include_str!("../profiles/models/llama-2-7b.json");
    let deeper = format!("\"num_hidden_layers\": {layers}");
    let text = text.replace("\"num_hidden_layers\": 32", &deeper);
    let model = ModelConfig::read("llama-2-7b", &text).expect("the shipped file");
    assert_eq!(model.layers, layers);
    let profile = profile::load("h100-sxm5-80gb").expect("shipped");
    let workload = Workload {
        seq: 128 << 10,
        batch: 1,
        accumulate: 1,
        dtype: Dtype::Bf16,
        clip: false,
    };
    let budget = Budget {
        device: Bytes::gib(72),
        host: Bytes::gib(110),
    };
    let request = planning::Request {
        model: &model,
        profile: &profile,
        workload,
        method: Method::Lomo,
        storage: None,
        arithmetic: Arithmetic::Plain,
        budget,
    };
    let variants = planning::variants(&request).expect("can be lowered");
    planning::problems(&variants, budget)
}

fn planned(problems: &[Problem], strategy: Strategy) -> Option<Solution> {
    let options = Options::default();
    solve(&contexts(problems, &options), strategy, &options).ok()
}

/// Some plan that fits, and its problem.
fn memo() -> (Problem, Solution) {
    let mut problems = problems(32);
    let solution = planned(&problems, Strategy::Memo).expect("fits");
    (problems.swap_remove(solution.found.variant), solution)
}

#[divan::bench]
fn lowering(bencher: Bencher) {
    bencher.bench(|| problems(32));
}

/// The cost of the default search against the number of layers.
#[divan::bench(args = [8, 16, 32, 64, 80, 160], sample_count = 3, sample_size = 1)]
fn planning(bencher: Bencher, layers: u64) {
    let problems = problems(layers);
    bencher.bench(|| planned(&problems, Strategy::Ilp));
}

#[divan::bench(sample_count = 10)]
fn building(bencher: Bencher) {
    let (problem, solution) = memo();
    bencher.bench(|| build(&problem, &solution.found.candidate.plan));
}

#[divan::bench(sample_count = 20)]
fn simulation(bencher: Bencher) {
    let (_, solution) = memo();
    bencher.bench(|| simulate(&solution.found.candidate.built.schedule));
}

#[divan::bench(sample_count = 10)]
fn placement(bencher: Bencher) {
    let (problem, solution) = memo();
    let plan = &solution.found.candidate.plan;
    bencher
        .with_inputs(|| build(&problem, plan).expect("fits"))
        .bench_values(with_addresses);
}

#[divan::bench(sample_count = 10)]
fn checking(bencher: Bencher) {
    let (_, solution) = memo();
    let schedule = with_addresses(solution.found.candidate.built);
    bencher.bench(|| check(&schedule));
}
