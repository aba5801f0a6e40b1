//! Attention and its backward as single operators: by cuDNN with scratch memory for all heads, for
//! some and for none, and by our own kernels, against the CPU device.

use std::ops::Range;

use ebbtide::device::cpu::{CpuDevice, CpuOptions};
use ebbtide::device::{
    AttentionShape, Device, HeadShape, Operator, Region, Reservation, Space, StepParameters, Stream,
};
use ebbtide::profile::{Dtype, FusedShape};
use ebbtide::training::elements::{decode, stored};

use super::support::tiny::random::Random;
use super::{card, has_cudnn, is_there};

/// Operands and results, one behind the other in an arena.
pub struct Place {
    shape: AttentionShape,
    used: u64,
    pub regions: Vec<Region>,
}

pub const QKV: usize = 0;
pub const D_O: usize = 1;
const O: usize = 2;
const LSE: usize = 3;
const D_QKV: usize = 4;

impl Place {
    pub fn new(shape: AttentionShape) -> Place {
        let mut place = Place {
            shape,
            used: 0,
            regions: Vec::new(),
        };
        let (rows, heads) = (shape.sequences * shape.sequence, shape.heads);
        let (qkv, o) = (2 * rows * heads.qkv_width(), 2 * rows * heads.query_width());
        for bytes in [qkv, o, o, 4 * rows * heads.heads, qkv] {
            let region = place.take(bytes);
            place.regions.push(region);
        }
        place
    }

    pub fn take(&mut self, bytes: u64) -> Region {
        let offset_bytes = self.used;
        self.used += bytes.next_multiple_of(512);
        Region {
            space: Space::Device,
            offset_bytes,
            bytes,
        }
    }

    /// Has a device reserve the memory that was taken.
    pub fn reserve(&self, device: &mut dyn Device) {
        let reservation = Reservation {
            dtype: Dtype::Bf16,
            arena_bytes: self.used,
            slab_bytes: 0,
            events: 0,
            rows: self.shape.sequences * self.shape.sequence,
            micro_batches: 1,
            loss_slots: 0,
            norm_slots: 0,
            carry_elements: 0,
            rotary: None,
        };
        device.reserve(reservation).unwrap();
    }

    /// Runs the forward, then the backward.
    pub fn attend(&self, device: &mut dyn Device, workspace: Option<Region>) {
        let shape = self.shape;
        device.begin_step(&StepParameters::STILL).unwrap();
        let [qkv, d_o, o, lse, d_qkv] = self.regions[..] else {
            unreachable!("five regions")
        };
        let forward = Operator::Attention {
            shape,
            qkv,
            o,
            lse,
            workspace: None,
        };
        let backward = Operator::AttentionBackward {
            shape,
            qkv,
            o,
            lse,
            d_o,
            d_qkv,
            workspace,
        };
        device.launch(Stream::Compute, 0, &forward).unwrap();
        device.launch(Stream::Compute, 1, &backward).unwrap();
        device.finish().unwrap();
    }

    /// Some rows of o, lse and dqkv as numbers.
    pub fn results(&self, device: &mut dyn Device, rows: Range<u64>) -> Vec<Vec<f32>> {
        let all = self.shape.sequences * self.shape.sequence;
        let results = [(O, Dtype::Bf16), (LSE, Dtype::F32), (D_QKV, Dtype::Bf16)];
        let numbers = results.map(|(result, dtype)| {
            let region = self.regions[result];
            let row = region.bytes / all;
            let part = region.part(rows.start * row, (rows.end - rows.start) * row);
            let mut bytes = vec![0; part.bytes as usize];
            device.read(part, &mut bytes).unwrap();
            decode(stored(dtype), &bytes)
        });
        numbers.into()
    }

    /// o, lse and dqkv as numbers, and what the device says of how it computed them.
    fn run(
        mut self,
        mut device: Box<dyn Device>,
        scratch: Option<u64>,
    ) -> (Vec<Vec<f32>>, Vec<String>) {
        let workspace = scratch.map(|bytes| self.take(bytes));
        self.reserve(device.as_mut());
        let mut random = Random::new(7);
        for operand in [QKV, D_O] {
            let region = self.regions[operand];
            let number = |_| {
                let part = random.below(4001) as f32 / 1000.0 - 2.0;
                half::bf16::from_f32(part).to_le_bytes()
            };
            let bytes: Vec<u8> = (0..region.bytes / 2).flat_map(number).collect();
            device.write(region, &bytes).unwrap();
        }
        self.attend(device.as_mut(), workspace);
        let all = self.shape.sequences * self.shape.sequence;
        (self.results(device.as_mut(), 0..all), device.notes())
    }
}

/// Holds results to the CPU device's, relative to the largest: probabilities and their gradients
/// are rounded to bf16 on the way.
pub fn assert_near(what: &str, found: &[Vec<f32>], expected: &[Vec<f32>]) {
    for (name, found, expected, tolerance) in [
        ("o", &found[0], &expected[0], 2e-2),
        ("lse", &found[1], &expected[1], 1e-5),
        ("dqkv", &found[2], &expected[2], 2e-2),
    ] {
        let largest = expected.iter().fold(0.0f32, |most, x| most.max(x.abs()));
        for (at, (a, b)) in found.iter().zip(expected).enumerate() {
            let near = (a - b).abs() <= tolerance * largest;
            assert!(near, "{what}: {name}[{at}] is {a}, expected {b}");
        }
    }
}

pub fn shape(
    heads: u64,
    kv_heads: u64,
    head_dim: u64,
    sequences: u64,
    sequence: u64,
) -> AttentionShape {
    AttentionShape {
        heads: HeadShape {
            heads,
            kv_heads,
            head_dim,
        },
        sequences,
        sequence,
        window: None,
    }
}

#[test]
fn attention_by_cudnn_and_by_ours() {
    if !is_there() {
        return;
    }
    let mut ragged = false;
    for shape in [
        // Two heads at once leave one over.
        shape(3, 3, 8, 2, 37),
        shape(4, 2, 16, 1, 33),
        shape(3, 1, 24, 2, 1),
        // Of several tiles, as large models have them.
        shape(2, 1, 64, 1, 200),
        shape(2, 2, 128, 1, 150),
    ] {
        let heads = shape.heads;
        let processor = Box::new(CpuDevice::new(CpuOptions::default()));
        let (expected, _) = Place::new(shape).run(processor, None);
        let (own, notes) = Place::new(shape).run(card(true), None);
        let what = format!("{shape:?}");
        assert_near(&format!("{what} by our kernels"), &own, &expected);
        let ours = ["attention", "attention_backward"]
            .map(|name| format!("{name} by ebbtide's kernels (--deterministic)"));
        assert_eq!(notes, ours);
        if !has_cudnn() {
            continue;
        }
        let sizes = FusedShape {
            rows: shape.sequences * shape.sequence,
            heads: heads.heads,
            kv_heads: heads.kv_heads,
            head_dim: heads.head_dim,
        };
        // All heads at once, all but one, and one after the other.
        for at_once in [heads.kv_heads, heads.kv_heads - 1, 1] {
            ragged |= at_once > 0 && heads.kv_heads % at_once > 0;
            let bytes = sizes.part(at_once).backward_bytes() as u64;
            if at_once == 0 {
                continue;
            }
            let (found, notes) = Place::new(shape).run(card(false), Some(bytes));
            let what = format!("{what} with {at_once} heads at once");
            assert_near(&what, &found, &expected);
            let cudnn = |note: &String| note.contains(" by cuDNN 9");
            assert!(notes.len() == 2 && notes.iter().all(cudnn), "{notes:?}");
        }
        // Too little for one head, and nothing: the backward is ours, and says so.
        let little = sizes.part(1).backward_bytes() as u64 - 1;
        for (scratch, words) in [
            (Some(little), "too short"),
            (None, "plans no scratch memory"),
        ] {
            let (found, notes) = Place::new(shape).run(card(false), scratch);
            assert_near(&what, &found, &expected);
            assert!(notes[0].contains("attention by cuDNN 9"), "{notes:?}");
            let ours = "attention_backward by ebbtide's kernels";
            assert!(
                notes[1].contains(ours) && notes[1].contains(words),
                "{notes:?}"
            );
        }
    }
    assert!(
        ragged || !has_cudnn(),
        "the last call has as many heads as the others"
    );
}

#[test]
fn what_cudnn_is_not_asked_for_is_ours() {
    if !is_there() || !has_cudnn() {
        return;
    }
    let window = AttentionShape {
        window: Some(5),
        ..shape(2, 2, 16, 1, 20)
    };
    for (shape, words) in [
        (shape(2, 1, 20, 1, 20), "heads of 20"),
        (shape(1, 1, 136, 1, 20), "heads of 136"),
        (window, "a window of 5 tokens"),
    ] {
        let processor = Box::new(CpuDevice::new(CpuOptions::default()));
        let (expected, _) = Place::new(shape).run(processor, None);
        let (found, notes) = Place::new(shape).run(card(false), Some(1 << 20));
        assert_near(words, &found, &expected);
        assert_eq!(notes.len(), 2, "{notes:?}");
        assert!(notes.iter().all(|note| note.contains(words)), "{notes:?}");
    }
    // A window that hides nothing is none.
    let whole = AttentionShape {
        window: Some(20),
        ..window
    };
    let (_, notes) = Place::new(whole).run(card(false), Some(1 << 20));
    assert_eq!(notes.len(), 2, "{notes:?}");
    assert!(
        notes.iter().all(|note| note.contains("by cuDNN")),
        "{notes:?}"
    );
}
