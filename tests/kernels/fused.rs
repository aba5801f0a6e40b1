//! Calls of cuDNN as they are planned, and lse's way into its order and back.

use ebbtide::device::cuda::cudnn::graph;
use ebbtide::device::cuda::launch::{fused_calls, Argument, FusedCall, Launch, SCRATCH_BYTES};
use ebbtide::device::{AttentionShape, HeadShape, Operator, Region, Reservation, Space};
use ebbtide::profile::{Dtype, FusedShape};

use crate::library;
use crate::request::Request;

/// Where lse lies in scratch memory.
const STATISTICS: u64 = 1 << 20;
const SPACING: u64 = 1 << 36;

fn reservation() -> Reservation {
    Reservation {
        dtype: Dtype::Bf16,
        arena_bytes: 16 * SPACING,
        slab_bytes: 0,
        events: 0,
        rows: 8,
        micro_batches: 1,
        loss_slots: 0,
        norm_slots: 0,
        carry_elements: 0,
        rotary: None,
    }
}

fn region(number: u64, bytes: u64) -> Region {
    Region {
        space: Space::Device,
        offset_bytes: number * SPACING,
        bytes,
    }
}

const LSE: u64 = 2;

fn shape([heads, kv_heads, head_dim]: [u64; 3], sequences: u64, sequence: u64) -> AttentionShape {
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

/// The calls of forward and backward, each region in its own part of the arena.
fn calls(shape: AttentionShape, workspace: u64) -> [Vec<FusedCall>; 2] {
    let (rows, heads) = (shape.sequences * shape.sequence, shape.heads);
    let [qkv, d_qkv] = [0, 4].map(|n| region(n, 2 * rows * heads.qkv_width()));
    let [o, d_o] = [1, 3].map(|n| region(n, 2 * rows * heads.query_width()));
    let lse = region(LSE, 4 * rows * heads.heads);
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
        workspace: Some(region(5, workspace)),
    };
    [forward, backward].map(|operator| {
        let calls = fused_calls(&operator, &reservation()).unwrap();
        calls.unwrap_or_else(|why| panic!("{shape:?}: {why}"))
    })
}

fn whole(shape: AttentionShape) -> FusedShape {
    FusedShape {
        rows: shape.sequences * shape.sequence,
        heads: shape.heads.heads,
        kv_heads: shape.heads.kv_heads,
        head_dim: shape.heads.head_dim,
    }
}

fn place(call: &FusedCall, id: i64) -> u64 {
    let tensor = call.tensors.iter().find(|tensor| tensor.0 == id).unwrap();
    match tensor.1 {
        Argument::Region(region) => region.offset_bytes,
        Argument::Own(_, offset) => offset,
        _ => panic!("{id} has no address"),
    }
}

#[test]
fn every_head_is_in_one_call() {
    let shape = shape([12, 6, 64], 2, 100);
    let heads = shape.heads;
    for at_once in [1, 2, 4, 5, 6] {
        let bytes = whole(shape).part(at_once).backward_bytes() as u64;
        let [forward, backward] = calls(shape, bytes);
        assert_eq!(forward.len(), 1);
        assert_eq!(backward.len() as u64, heads.kv_heads.div_ceil(at_once));
        let mut next = 0;
        for call in &backward {
            let (count, queries) = (call.shape.kv_heads as u64, call.shape.heads as u64);
            assert_eq!(queries, 2 * count);
            assert!(count <= at_once);
            let head = |head: u64| 2 * head * heads.head_dim;
            let keys = head(heads.heads + next);
            let values = head(heads.heads + heads.kv_heads + next);
            for (id, of, offset) in [
                (graph::Q, 0, head(2 * next)),
                (graph::K, 0, keys),
                (graph::V, 0, values),
                (graph::O, 1, head(2 * next)),
                (graph::D_O, 3, head(2 * next)),
                (graph::D_Q, 4, head(2 * next)),
                (graph::D_K, 4, keys),
                (graph::D_V, 4, values),
            ] {
                assert_eq!(
                    place(call, id),
                    of * SPACING + offset,
                    "{id} of head {next}"
                );
            }
            // Workspace, accumulator and sums one behind the other, within what is planned.
            let sizes = whole(shape).part(count);
            let accumulator = place(call, graph::ACCUMULATOR) - 5 * SPACING;
            let sums = place(call, graph::ROW_SUMS) - 5 * SPACING;
            assert_eq!(u128::from(accumulator), sizes.backward_plan_bytes());
            assert_eq!(call.workspace.1, accumulator);
            assert_eq!(u128::from(sums - accumulator), sizes.accumulator_bytes());
            assert!(u128::from(sums) + sizes.row_sum_bytes() <= bytes.into());
            assert!(accumulator % 16 == 0 && sums % 16 == 0);
            next += count;
        }
        assert_eq!(next, heads.kv_heads);
    }
}

/// A million tokens of 32 heads are 128 MiB of lse.
#[test]
fn lse_stays_within_scratch_memory() {
    let shape = shape([32, 8, 128], 1, 1 << 20);
    let [forward, backward] = calls(shape, u64::from(u32::MAX) * 16);
    assert!(forward.len() > 1);
    for call in forward.iter().chain(&backward) {
        let bytes = (4 * call.shape.heads as u64) << 20;
        assert!(place(call, graph::STATISTICS) + bytes <= SCRATCH_BYTES);
    }
}

/// Runs a launch on lse and scratch memory.
fn turned(launch: &Launch, lse: &[f32], scratch: &[f32]) -> Option<[Vec<f32>; 2]> {
    let built = library::build(true)?;
    let mut request = Request::new();
    request.number(2);
    for values in [lse, scratch] {
        let bytes: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        request.buffer(bytes.len() as u64, 0, &bytes);
    }
    request.number(1);
    request.launch(launch, |argument| match argument {
        Argument::Region(region) => (0, 0, region.offset_bytes - LSE * SPACING),
        Argument::Own(_, offset) => (0, 1, offset - STATISTICS),
        Argument::U32(value) => (2, 0, value.into()),
        Argument::U64(value) => (3, 0, value),
        other => panic!("{other:?}"),
    });
    let bytes = request
        .output(&built.run)
        .unwrap_or_else(|told| panic!("{told}"));
    let number = |b: &[u8]| f32::from_le_bytes(b.try_into().unwrap());
    let mut values: Vec<f32> = bytes.chunks_exact(4).map(number).collect();
    let scratch = values.split_off(lse.len());
    Some([values, scratch])
}

#[test]
fn lse_goes_into_cudnns_order_and_back() {
    for shape in [
        shape([4, 2, 8], 2, 37),
        shape([70, 35, 8], 1, 33),
        shape([1, 1, 8], 3, 1),
        shape([6, 3, 8], 2, 64),
    ] {
        let (heads, kv_heads) = (shape.heads.heads, shape.heads.kv_heads);
        let bytes = whole(shape).part(kv_heads.div_ceil(2)).backward_bytes() as u64;
        let [forward, backward] = calls(shape, bytes);
        let lse: Vec<f32> = (0..whole(shape).rows * heads).map(|n| n as f32).collect();
        let mut first = 0;
        for call in &backward {
            let of_call = call.shape.heads as u64;
            let nothing = vec![-1.0; (whole(shape).rows * of_call) as usize];
            let launch = call.before.as_ref().unwrap();
            let Some([same, by_head]) = turned(launch, &lse, &nothing) else {
                return;
            };
            assert_eq!(same, lse);
            for (at, &found) in by_head.iter().enumerate() {
                let (rest, token) = (at as u64 / shape.sequence, at as u64 % shape.sequence);
                let (sequence, head) = (rest / of_call, rest % of_call);
                let row = sequence * shape.sequence + token;
                assert_eq!(
                    found,
                    lse[(row * heads + first + head) as usize],
                    "{shape:?} {at}"
                );
            }
            first += of_call;
        }
        // The forward's one call brings all of it back.
        let by_head = (0..lse.len() as u64).map(|at| {
            let (rest, token) = (at / shape.sequence, at % shape.sequence);
            let row = rest / heads * shape.sequence + token;
            lse[(row * heads + rest % heads) as usize]
        });
        let by_head: Vec<f32> = by_head.collect();
        let launch = forward[0].after.as_ref().unwrap();
        let Some([back, _]) = turned(launch, &vec![-1.0; lse.len()], &by_head) else {
            return;
        };
        assert_eq!(back, lse, "{shape:?}");
    }
}
