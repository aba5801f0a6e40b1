//! How long the arena takes: `cargo bench -p ebbtide-solver`.
#![allow(missing_docs, reason = "a program, not a library")]

use divan::Bencher;
use ebbtide_solver::arena::generate::{cut_rectangle, training_step, Cut, Rectangle};
use ebbtide_solver::arena::{place, place_quick, Options, DEFAULT_ALIGNMENT};
use ebbtide_solver::units::Bytes;

fn main() {
    divan::main();
}

/// The heuristics on a training step of blocks × requests for each block.
#[divan::bench(args = [(32, 100), (80, 160), (80, 400)])]
fn quick_on_a_training_step(bencher: Bencher, (blocks, per_block): (u64, u64)) {
    let requests = training_step(blocks, per_block, 1);
    bencher.bench(|| place_quick(&requests, DEFAULT_ALIGNMENT, Bytes::ZERO));
}

/// The exact search on a rectangle cut into pieces.
#[divan::bench(args = Cut::ALL)]
fn exact_on_a_cut_rectangle(bencher: Bencher, cut: Cut) {
    let rectangle = Rectangle {
        time: 70,
        capacity: 1 << 20,
        pieces: 120,
        shrunk_percent: 0,
        cut,
    };
    let requests = cut_rectangle(&rectangle, 1);
    let options = Options {
        alignment: Bytes::new(1),
        ..Options::default()
    };
    bencher.bench(|| place(&requests, &options));
}
