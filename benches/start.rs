//! What a run does before its first step: random weights drawn and rounded to bf16, a matrix of
//! 4096 × 4096 at a time. `cargo bench --bench start`.

use divan::counter::ItemsCount;
use divan::Bencher;
use ebbtide::model::{ModelConfig, Part};
use ebbtide::profile::Dtype;
use ebbtide::training::{elements, initial, Place};

fn main() {
    divan::main();
}

const WIDTH: u64 = 4096;

fn drawn() -> Vec<f32> {
    let text = include_str!("../profiles/models/llama-2-7b.json");
    let model = ModelConfig::read("llama-2-7b", text).expect("the shipped file");
    let weight = model
        .block_weights()
        .into_iter()
        .find(|weight| weight.part == Part::O);
    let place = Place {
        block: Some(0),
        weight: weight.expect("a part of every block"),
    };
    initial::values(&model, place, 0).expect("a deviation")
}

#[divan::bench(sample_count = 10)]
fn draw(bencher: Bencher) {
    bencher
        .counter(ItemsCount::new(WIDTH * WIDTH))
        .bench_local(drawn);
}

#[divan::bench(args = [Dtype::Bf16, Dtype::F32], sample_count = 10)]
fn encode(bencher: Bencher, dtype: Dtype) {
    let values = drawn();
    bencher
        .counter(ItemsCount::new(WIDTH * WIDTH))
        .bench_local(|| elements::encode(dtype, &values));
}
