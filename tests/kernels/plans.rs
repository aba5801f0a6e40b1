//! Launches as they are planned: what is refused, and what depends on shapes alone.

use std::collections::BTreeSet;

use ebbtide::device::cuda::launch::sources::SOURCES;
use ebbtide::device::cuda::launch::{
    launches, tasks, Argument, BatchFacts, Buffer, Task, MOST_SHARED_BYTES, SCRATCH_BYTES,
};
use ebbtide::device::tensors::{
    GradientBlock, GradientSum, Moments, Projection, TensorRule, TensorShape, TensorUpdate,
};
use ebbtide::device::{
    AttentionShape, HeadShape, NormShape, Operator, Region, Reservation, Rows, Space,
    StepParameters,
};
use ebbtide::model::NormKind;
use ebbtide::profile::Dtype;

fn reservation(dtype: Dtype) -> Reservation {
    Reservation {
        dtype,
        arena_bytes: 1 << 40,
        slab_bytes: 0,
        events: 0,
        rows: 8,
        micro_batches: 1,
        loss_slots: 1,
        norm_slots: 1,
        carry_elements: 0,
        rotary: None,
    }
}

fn region(offset_bytes: u64, bytes: u64) -> Region {
    Region {
        space: Space::Device,
        offset_bytes,
        bytes,
    }
}

fn norm(bytes: u64, offset: u64) -> Operator {
    Operator::Norm {
        norm: NormShape {
            kind: NormKind::Rms,
            width: 4096,
            epsilon: 1e-5,
        },
        rows: 16,
        x: region(offset, bytes),
        scale: region(0, 8192),
        shift: None,
        y: region(offset, bytes),
    }
}

fn refusal(operator: &Operator, reservation: &Reservation, facts: BatchFacts) -> String {
    let failure = launches(operator, reservation, &[facts], MOST_SHARED_BYTES).unwrap_err();
    failure.to_string()
}

#[test]
fn what_cannot_be_is_refused() {
    let bf16 = reservation(Dtype::Bf16);
    let facts = BatchFacts::new(&[1, 2, 3], &[1, 2, 9]);
    let told = |operator: &Operator| refusal(operator, &bf16, facts);
    assert!(launches(&norm(16 * 8192, 0), &bf16, &[], MOST_SHARED_BYTES).is_ok());
    assert!(told(&norm(15 * 8192, 0)).contains("122880 bytes for 65536 elements of 2"));
    assert!(told(&norm(16 * 8192, 1)).contains("elements of 2 bytes at 1"));
    assert!(told(&norm(16 * 8192, 1 << 40)).contains("outside the arena"));
    let mut on_host = region(0, 4);
    on_host.space = Space::Host;
    assert!(told(&Operator::Zero { region: on_host }).contains("outside the arena"));
    let loss = |count, vocab, slot| Operator::CrossEntropy {
        rows: Rows {
            first: 1,
            count,
            sequence: 3,
        },
        micro_batch: 0,
        vocab,
        logits: region(0, 2 * count * vocab),
        slot,
    };
    assert!(launches(&loss(2, 10, 0), &bf16, &[facts], MOST_SHARED_BYTES).is_ok());
    assert!(told(&loss(2, 9, 0)).contains("label 9 of 9 tokens"));
    assert!(told(&loss(3, 10, 0)).contains("were not loaded"));
    assert!(told(&loss(2, 10, 1)).contains("loss slot 1 of 1"));
    let negative = BatchFacts::new(&[0; 3], &[0, -1, -100]);
    assert!(refusal(&loss(2, 10, 0), &bf16, negative).contains("label -1"));
    let fp8 = reservation(Dtype::Fp8);
    assert!(refusal(&norm(16 * 8192, 0), &fp8, facts).contains("fp8"));
}

fn attention(head_dim: u64, sequence: u64, kv_heads: u64, dtype: Dtype) -> (Operator, Operator) {
    let heads = HeadShape {
        heads: 4 * kv_heads,
        kv_heads,
        head_dim,
    };
    let shape = AttentionShape {
        heads,
        sequences: 1,
        sequence,
        window: None,
    };
    let (qkv, o) = (
        region(0, dtype.bytes() * sequence * heads.qkv_width()),
        region(0, dtype.bytes() * sequence * heads.query_width()),
    );
    let lse = region(0, 4 * sequence * heads.heads);
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
        d_o: o,
        d_qkv: qkv,
        workspace: None,
    };
    (forward, backward)
}

#[test]
fn heads_of_all_sizes_fit_the_shared_memory_of_a_block() {
    // Also of a card of compute capability 8.6 or 8.9.
    for (dtype, most) in [Dtype::Bf16, Dtype::F32]
        .into_iter()
        .flat_map(|dtype| [99 << 10, MOST_SHARED_BYTES].map(|most| (dtype, most)))
    {
        let reservation = reservation(dtype);
        for head_dim in [1, 64, 65, 128, 129, 256] {
            let (forward, backward) = attention(head_dim, 4096, 2, dtype);
            for operator in [forward, backward] {
                for launch in launches(&operator, &reservation, &[], most).unwrap() {
                    assert!(u64::from(launch.shared_bytes) <= most, "{launch:?}");
                }
            }
        }
    }
    let bf16 = reservation(Dtype::Bf16);
    let facts = BatchFacts::default();
    let told = refusal(&attention(257, 4096, 2, Dtype::Bf16).0, &bf16, facts);
    assert!(told.contains("heads of 257"), "{told}");
}

/// D of all heads is more than scratch memory holds at a million tokens: the backward takes as
/// many key/value heads at once as fit, and every one of them once.
#[test]
fn long_sequences_are_taken_by_heads() {
    let bf16 = reservation(Dtype::Bf16);
    let sequence = 1 << 20;
    let (_, backward) = attention(128, sequence, 8, Dtype::Bf16);
    let all = launches(&backward, &bf16, &[], MOST_SHARED_BYTES).unwrap();
    let mut heads = Vec::new();
    for launch in all.iter().filter(|launch| launch.kernel.contains("keys")) {
        let [Argument::U32(first), Argument::U32(count)] = launch.arguments[11..13] else {
            panic!("{launch:?}");
        };
        assert!(4 * sequence * 4 * u64::from(count) <= SCRATCH_BYTES);
        assert_eq!(launch.grid[1], count);
        heads.extend(first..first + count);
    }
    assert_eq!(heads, (0..8).collect::<Vec<u32>>());
    let facts = BatchFacts::default();
    let told = refusal(&attention(128, 1 << 23, 1, Dtype::Bf16).1, &bf16, facts);
    assert!(told.contains("8388608 rows at once"), "{told}");
}

#[test]
fn partial_sums_stay_inside_scratch_memory() {
    let bf16 = reservation(Dtype::Bf16);
    for (width, rows) in [(1, 1), (64, 1_000_000), (16_384, 1_000_000), (20_000, 3)] {
        let operator = Operator::NormBackward {
            norm: NormShape {
                kind: NormKind::Layer,
                width,
                epsilon: 1e-5,
            },
            rows,
            x: region(0, 2 * rows * width),
            scale: region(0, 2 * width),
            d_y: region(0, 2 * rows * width),
            d_x: region(0, 2 * rows * width),
            accumulate_x: true,
            d_scale: region(0, 2 * width),
            d_shift: Some(region(0, 2 * width)),
            accumulate_weight: true,
        };
        let all = launches(&operator, &bf16, &[], MOST_SHARED_BYTES).unwrap();
        assert_eq!(all.len(), 3);
        let parts = u64::from(all[0].grid[0]);
        assert!(parts <= rows && parts * 2 * width * 4 <= SCRATCH_BYTES);
        for (plane, sum) in all[1..].iter().enumerate() {
            let of = Argument::Own(Buffer::Scratch, 4 * plane as u64 * width);
            assert_eq!(sum.arguments[0], of);
            assert_eq!(u64::from(sum.grid[0]), width.div_ceil(32));
        }
    }
}

#[test]
fn every_file_of_kernels_is_among_the_sources() {
    let directory = concat!(env!("CARGO_MANIFEST_DIR"), "/kernels");
    let files: BTreeSet<String> = std::fs::read_dir(directory)
        .unwrap()
        .map(|file| file.unwrap().file_name().into_string().unwrap())
        .filter(|name| name.ends_with(".cu"))
        .collect();
    let sources = SOURCES.iter().map(|source| source.file.to_owned());
    assert_eq!(files, sources.collect());
    for source in SOURCES {
        let includes = source.text.matches("#include").count();
        assert_eq!(includes, 1, "{} includes more than the header", source.file);
    }
}

/// A gradient that lies in columns or rows of so many head groups.
fn gradient(all: TensorShape, groups: u64, beside: bool) -> Vec<GradientBlock> {
    let block = |group| {
        let (rows, columns) = match beside {
            true => (all.rows, all.columns / groups),
            false => (all.rows / groups, all.columns),
        };
        GradientBlock {
            region: region(0, 2 * rows * columns),
            row: if beside { 0 } else { group * rows },
            rows,
            column: if beside { group * columns } else { 0 },
            columns,
        }
    };
    (0..groups).map(block).collect()
}

/// A sum of micro-batches' gradients, which lie so.
fn sum(rank: u64, shape: TensorShape, (groups, beside): (u64, bool)) -> Operator {
    let (long, short) = shape.sides();
    Operator::CompressGradient {
        tensors: vec![GradientSum {
            shape,
            gradient: gradient(shape, groups, beside),
            rank: Some(rank),
            sum: region(0, 2 * long * rank),
            key: 1,
        }],
        accumulate: true,
        workspace: Some(region(0, 4 * (long + short) * rank)),
    }
}

/// An update of a tensor whose gradient lies so.
fn update(rule: TensorRule, shape: TensorShape, (groups, beside): (u64, bool)) -> Operator {
    let states = rule.states(shape, Dtype::Bf16).into_iter();
    let tensor = TensorUpdate {
        rule,
        shape,
        weight: region(0, 2 * shape.elements()),
        gradient: gradient(rule.gradient_shape(shape), groups, beside),
        states: states.map(|bytes| region(0, bytes)).collect(),
        key: 1,
        projection_key: 2,
    };
    Operator::TensorUpdate {
        tensors: vec![tensor],
        workspace: Some(region(0, rule.workspace_bytes(shape))),
    }
}

fn step() -> StepParameters {
    StepParameters {
        step: 1,
        learning_rate: 1e-3,
        beta1: 0.9,
        beta2: 0.95,
        epsilon: 1e-8,
        weight_decay: 0.0,
        loss_scale: 1.0,
        clip: None,
        clip_value: Some(1.0),
    }
}

#[test]
fn what_updates_of_tensors_cannot_be_is_refused() {
    let bf16 = reservation(Dtype::Bf16);
    let told = |operator: &Operator| {
        let refused = tasks(operator, &bf16, &step(), SCRATCH_BYTES).unwrap_err();
        refused.to_string()
    };
    let shape = TensorShape {
        rows: 64,
        columns: 48,
    };
    let whole = (1, false);
    let decomposed = TensorRule::Fira {
        projection: Projection {
            rank: 8,
            refresh: 2,
        },
        scale: 0.25,
        svd: true,
        moments: Moments::F32,
    };
    assert!(told(&update(decomposed, shape, whole)).contains("without --svd"));
    let mut other = sum(8, shape, whole);
    let Operator::CompressGradient { tensors, .. } = &mut other else {
        unreachable!("it was made so");
    };
    tensors[0].sum.bytes += 2;
    assert!(told(&other).contains("64 × 48: its sum has another size"));
}

/// Matrices of models of 7 to 70 G parameters, in one piece and by head groups, at the ranks that
/// methods default to: what is handed on stays inside scratch memory.
#[test]
fn updates_of_large_tensors_stay_inside_scratch_memory() {
    let bf16 = reservation(Dtype::Bf16);
    let step = step();
    let matrices = [
        (4096, 4096),
        (11_008, 4096),
        (4096, 11_008),
        (8192, 28_672),
        (28_672, 8192),
    ];
    let moments = Moments::EightBit;
    let mut in_scratch = 0;
    for (rows, columns) in matrices {
        let projection = |rank| Projection { rank, refresh: 200 };
        let rules = [
            TensorRule::Adam(moments),
            TensorRule::AdaLomo,
            TensorRule::Flora {
                projection: projection(128),
                accumulated: false,
            },
            TensorRule::Flora {
                projection: projection(128),
                accumulated: true,
            },
            TensorRule::Fira {
                projection: projection(1024),
                scale: 0.25,
                svd: false,
                moments,
            },
            TensorRule::Galore {
                projection: projection(1024),
                scale: 0.25,
                svd: false,
                moments,
            },
            TensorRule::Apollo {
                projection: projection(256),
                scale: 1.0,
                channels: true,
                moments,
            },
            TensorRule::Compact {
                projection: Some(projection(columns / 4)),
                scale: 0.25,
                moments,
            },
            TensorRule::Compact {
                projection: None,
                scale: 0.25,
                moments,
            },
        ];
        let shape = TensorShape { rows, columns };
        let ways = [(1, false), (4, false), (4, true)];
        let updates = rules
            .into_iter()
            .flat_map(|rule| ways.map(|how| update(rule, shape, how)));
        for operator in updates.chain(ways.map(|how| sum(128, shape, how))) {
            let all = tasks(&operator, &bf16, &step, SCRATCH_BYTES)
                .unwrap_or_else(|f| panic!("{operator:?}: {f}"));
            for task in all {
                let Task::Multiply(product) = task else {
                    continue;
                };
                let [m, n, k] = product.sizes;
                let [of, to] = product.dtypes.map(Dtype::bytes);
                let (a, b) = (product.a, product.b);
                // As it lies, columns first: where it begins, rows, columns, from one to the next.
                let turned = |[rows, columns]: [u64; 2], turned| match turned {
                    true => [columns, rows],
                    false => [rows, columns],
                };
                let mut operands = vec![
                    ("a", a.at, turned([m, k], a.turned), a.stride, of),
                    ("b", b.at, turned([k, n], b.turned), b.stride, of),
                    ("out", product.out, [m, n], product.stride, to),
                ];
                let added = product.added.into_iter();
                operands.extend(added.map(|at| ("added", at, [m, n], product.stride, to)));
                for (name, at, [inner, outer], stride, size) in operands {
                    let what = format!("{name} of {operator:?}");
                    assert!(inner <= stride || outer == 1, "{what}: columns overlap");
                    let bytes = size * ((outer - 1) * stride + inner);
                    match at {
                        Argument::Own(buffer, at) => {
                            assert_eq!(buffer, Buffer::Scratch, "{what}");
                            assert!(at + bytes <= SCRATCH_BYTES, "{what}: {}", at + bytes);
                            in_scratch += 1;
                        }
                        Argument::Region(region) => {
                            assert!(bytes <= region.bytes, "{what}: {bytes} of {region:?}");
                        }
                        _ => panic!("{what} is nowhere"),
                    }
                }
            }
        }
    }
    assert!(in_scratch > 100, "{in_scratch}");
}
