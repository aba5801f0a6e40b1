//! The host's AdamW beside a plain copy of the same bytes, and 8-bit moments, matrix products and
//! attention on one thread. `cargo bench --bench optimizer`.
//!
//! An update of a parameter in bf16 reads gradient, master, `m` and `v` (14 bytes) and writes
//! weight, master, `m` and `v` (14 bytes): a copy of 14 bytes moves as much. In f32 it reads 16
//! and writes 12: 28 again. Both run on as many threads; divan prints bytes read and written a
//! second for each.

use divan::counter::{BytesCount, ItemsCount};
use divan::Bencher;
use ebbtide::device::cpu::ops::attention::Attention;
use ebbtide::device::cpu::ops::linear;
use ebbtide::device::cpu::ops::quantised::{quantise, BLOCK, SIGNED, UNSIGNED};
use ebbtide::device::cpu::ops::rotary::Heads;
use ebbtide::device::cpu::{CpuDevice, CpuOptions};
use ebbtide::device::layout::{Layout, States};
use ebbtide::device::{
    Device, Operator, Region, Reservation, Space, StepParameters, Stream, UpdateRule,
};
use ebbtide::model::{Compressed, ModelConfig};
use ebbtide::profile::Dtype;
use rayon::prelude::*;

fn main() {
    divan::main();
}

/// Large enough that no cache holds them.
const PARAMETERS: u64 = 1 << 25;

const PARAMETERS_OF_STEP: StepParameters = StepParameters {
    learning_rate: 1e-4,
    weight_decay: 0.01,
    ..StepParameters::STILL
};

/// Moments to codes.
#[divan::bench(args = [true, false], sample_count = 20)]
fn eight_bits(bencher: Bencher, signed: bool) {
    let map = if signed { &*SIGNED } else { &*UNSIGNED };
    let value = |i: usize| ((i * i) as f32).sin() * 1e-3;
    let values: Vec<f32> = (0..1 << 20)
        .map(|i| if signed { value(i) } else { value(i).abs() })
        .collect();
    let (mut codes, mut scales) = (vec![0; values.len()], vec![0.0; values.len() / BLOCK]);
    let bencher = bencher.counter(ItemsCount::new(values.len()));
    bencher.bench_local(|| quantise(map, &values, &mut codes, &mut scales));
}

/// Bytes read and written for a parameter, in either type.
const TRAFFIC: u64 = 28;

#[divan::bench(args = ["bf16", "f32"], sample_count = 20)]
fn adamw(bencher: Bencher, dtype: &str) {
    let dtype = if dtype == "f32" {
        Dtype::F32
    } else {
        Dtype::Bf16
    };
    let text = include_str!("../profiles/models/tiny.json");
    let model = ModelConfig::read("tiny", text).expect("the shipped file");
    let layout = Layout {
        model: &model,
        dtype,
        groups: 1,
        compressed: Compressed::default(),
    };
    let mut used = 0;
    let mut place = |bytes: u64| {
        used += bytes;
        Region {
            space: Space::Host,
            offset_bytes: used - bytes,
            bytes,
        }
    };
    let rule = UpdateRule::AdamW;
    let (weight, gradient) = (
        place(PARAMETERS * dtype.bytes()),
        place(PARAMETERS * dtype.bytes()),
    );
    let states = States {
        region: place(PARAMETERS * 4 * layout.planes(rule)),
        parameters: PARAMETERS,
        first: 0,
    };
    let mut device = CpuDevice::new(CpuOptions::default());
    let reservation = Reservation {
        slab_bytes: used,
        ..nothing(dtype)
    };
    device.reserve(reservation).expect("memory");
    device
        .begin_step(&PARAMETERS_OF_STEP)
        .expect("nothing failed");
    // No NaNs: their arithmetic may be slower.
    let whole = Region {
        bytes: used,
        ..weight
    };
    let zero = Operator::Zero { region: whole };
    device
        .launch(Stream::Host, 0, &zero)
        .expect("nothing failed");
    device.finish().expect("nothing failed");
    let slices = layout.update(rule, weight, gradient, Some(states));
    let update = Operator::Update { rule, slices };
    bencher
        .counter(BytesCount::new(PARAMETERS * TRAFFIC))
        .counter(ItemsCount::new(PARAMETERS))
        .bench_local(|| {
            device
                .launch(Stream::Host, 0, &update)
                .expect("nothing failed");
            device.finish().expect("nothing failed")
        });
}

/// Reads half of the bytes that the update moves and writes the other half.
#[divan::bench(sample_count = 20)]
fn copy_of_the_same_bytes(bencher: Bencher) {
    let half = (PARAMETERS * TRAFFIC / 2) as usize;
    let from = vec![1u8; half];
    let mut to = vec![2u8; half];
    const PIECE: usize = 1 << 18;
    bencher.counter(BytesCount::new(2 * half)).bench_local(|| {
        to.par_chunks_mut(PIECE)
            .zip(from.par_chunks(PIECE))
            .for_each(|(to, from)| to.copy_from_slice(from));
    });
}

/// Products of square matrices, in multiply-adds.
#[divan::bench(args = [64, 256, 1024], sample_count = 20)]
fn product(bencher: Bencher, size: usize) {
    let (x, w) = (vec![1f32; size * size], vec![0.5f32; size * size]);
    let mut y = vec![0f32; size * size];
    bencher
        .counter(ItemsCount::new(size.pow(3)))
        .bench_local(|| linear::forward(&x, &w, &mut y, (size, size, size)));
}

/// Causal attention of 4 heads of 64, in multiply-adds of the half that is seen.
#[divan::bench(args = [256, 1024], sample_count = 20)]
fn attention(bencher: Bencher, sequence: usize) {
    let heads = Heads {
        heads: 4,
        kv_heads: 2,
        head_dim: 64,
    };
    let attention = Attention {
        heads,
        sequences: 1,
        sequence,
        window: None,
    };
    let qkv: Vec<f32> = (0..sequence * heads.width())
        .map(|i| (i % 17) as f32 * 0.1 - 0.8)
        .collect();
    let mut o = vec![0f32; sequence * 256];
    let mut lse = vec![0f32; sequence * 4];
    bencher
        .counter(ItemsCount::new(sequence * sequence * 256))
        .bench_local(|| attention.forward(&qkv, &mut o, &mut lse));
}

/// A copy between the arena and the slab on a stream of its own, one thread.
#[divan::bench(sample_count = 20)]
fn copy_between_memories(bencher: Bencher) {
    const BYTES: u64 = 1 << 28;
    let mut device = CpuDevice::new(CpuOptions::default());
    device
        .reserve(Reservation {
            arena_bytes: BYTES,
            slab_bytes: BYTES,
            ..nothing(Dtype::F32)
        })
        .expect("memory");
    let region = |space| Region {
        space,
        offset_bytes: 0,
        bytes: BYTES,
    };
    bencher.counter(BytesCount::new(BYTES)).bench_local(|| {
        device
            .copy(Stream::D2h, 0, region(Space::Device), region(Space::Host))
            .expect("nothing failed");
        device.finish().expect("nothing failed")
    });
}

fn nothing(dtype: Dtype) -> Reservation {
    Reservation {
        dtype,
        arena_bytes: 0,
        slab_bytes: 0,
        events: 0,
        rows: 0,
        micro_batches: 0,
        loss_slots: 0,
        norm_slots: 0,
        carry_elements: 0,
        rotary: None,
    }
}
