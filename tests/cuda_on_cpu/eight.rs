//! Eight bits: what is packed on its way to the host and back, to the bit what the CPU device
//! packs; and products of operands that are rounded, near the CPU device's.

use ebbtide::device::arithmetic::{Arithmetic, Scratch};
use ebbtide::device::packed::{Packing, Storage};
use ebbtide::device::{
    Device, Operator, Panel, Region, Reservation, Space, StepParameters, Stream,
};
use ebbtide::methods::Method;
use ebbtide::profile::Dtype;
use ebbtide::training::elements::{decode, stored};
use ebbtide_solver::plan::{Fate, Plan};
use ebbtide_solver::problem::Problem;
use ebbtide_solver::schedule::Schedule;

use super::models::model;
use super::plans::{file_of, mixed, packed_problem, problem_in, schedule, Cut};
use super::runs::Outcome;
use super::steps::{assert_near, processor, run_file, telling};
use super::straight::straight;
use super::{card, is_there, FP8_SUMS};

const STORAGES: [Storage; 2] = [Storage::Fp8, Storage::Int8];

fn reservation(dtype: Dtype) -> Reservation {
    Reservation {
        dtype,
        arena_bytes: 0,
        slab_bytes: 0,
        events: 2,
        rows: 1,
        micro_batches: 1,
        loss_slots: 0,
        norm_slots: 0,
        carry_elements: 0,
        rotary: None,
    }
}

fn parameters() -> StepParameters {
    StepParameters::STILL
}

/// Elements in memory.
fn bytes(values: impl Iterator<Item = f32>, dtype: Dtype) -> Vec<u8> {
    match dtype {
        Dtype::F32 => values.flat_map(f32::to_le_bytes).collect(),
        _ => values
            .flat_map(|v| half::bf16::from_f32(v).to_le_bytes())
            .collect(),
    }
}

// ---- copies -------------------------------------------------------------------------------------

/// Rows of elements and f32 behind them, askew and not whole.
fn row_values(packing: Packing, dtype: Dtype) -> Vec<u8> {
    let count = packing.rows * packing.width;
    let value = |i: u64| {
        let wave = ((i * i % 10_007) as f32 * 0.37).sin() * (1 + i % 7) as f32;
        match i % 1013 {
            // Between two codes, zeros of both signs, what is not finite, what is not normal.
            5 => 0.5,
            6 => -0.0,
            7 if i % 3 == 0 => f32::NAN,
            8 if i % 5 == 0 => f32::INFINITY,
            9 => 1e-39,
            _ if i / 128 % 5 == 4 => wave * 1e-38,
            _ if i / 128 % 7 == 6 => 0.0,
            _ => wave,
        }
    };
    let mut bytes = bytes((0..count).map(value), dtype);
    let extras = (0..packing.rows * packing.extras).flat_map(|i| (i as f32 * 0.7).to_le_bytes());
    bytes.extend(extras);
    bytes
}

/// What a device packs of some bytes, and what it unpacks of that.
fn there_and_back(
    mut device: Box<dyn Device>,
    (dtype, askew): (Dtype, u64),
    packing: Packing,
) -> [Vec<u8>; 2] {
    let values = row_values(packing, dtype);
    let packed = packing.rows * Storage::row_bytes(packing.width, packing.extras);
    let region = |space, offset_bytes, bytes| Region {
        space,
        offset_bytes,
        bytes,
    };
    let bytes = values.len() as u64;
    let second = (bytes + askew).next_multiple_of(256) + askew;
    let [from, to] = [askew, second].map(|offset| region(Space::Device, offset, bytes));
    let host = region(Space::Host, 3, packed);
    let mut reservation = reservation(dtype);
    (reservation.arena_bytes, reservation.slab_bytes) = (second + bytes, packed + 3);
    device.reserve(reservation).unwrap();
    device.write(from, &values).unwrap();
    device.write(to, &vec![0xFF; values.len()]).unwrap();
    device.begin_step(&parameters()).unwrap();
    device.record(Stream::Compute, 0).unwrap();
    device.wait(Stream::D2h, 0).unwrap();
    device
        .copy_packed(Stream::D2h, 0, (from, host), packing)
        .unwrap();
    device.record(Stream::D2h, 1).unwrap();
    device.wait(Stream::H2d, 1).unwrap();
    let unpacking = Packing {
        unpacks: true,
        ..packing
    };
    device
        .copy_packed(Stream::H2d, 0, (host, to), unpacking)
        .unwrap();
    device.finish().unwrap();
    let mut found = [vec![0; packed as usize], vec![0; values.len()]];
    device.read(host, &mut found[0]).unwrap();
    device.read(to, &mut found[1]).unwrap();
    found
}

/// Which NaN a NaN is does not count.
fn same_values(a: &[u8], b: &[u8], packing: Packing, dtype: Dtype) -> bool {
    let size = dtype.bytes() as usize;
    let plain = (packing.rows * packing.width) as usize * size;
    let is_nan = |bytes: &[u8]| match *bytes {
        [a, b] => half::bf16::from_le_bytes([a, b]).is_nan(),
        [a, b, c, d] => f32::from_le_bytes([a, b, c, d]).is_nan(),
        _ => unreachable!("elements have 2 or 4 bytes"),
    };
    let mut pairs = a[..plain]
        .chunks_exact(size)
        .zip(b[..plain].chunks_exact(size));
    pairs.all(|(a, b)| a == b || is_nan(a) && is_nan(b)) && a[plain..] == b[plain..]
}

#[test]
fn what_is_packed_has_the_processors_bits() {
    if !is_there() {
        return;
    }
    for storage in STORAGES {
        for dtype in [Dtype::F32, Dtype::Bf16] {
            for (rows, width, extras, askew) in [
                (3, 300, 0, 0),
                (5, 128, 2, 4),
                (1, 1, 1, 0),
                (7, 129, 0, 2 * dtype.bytes()),
                // Rows of which two, and not all, are in a stage.
                (5, 3 << 20, 1, 0),
            ] {
                if width > 1 << 20 && (dtype, storage) != (Dtype::Bf16, Storage::Fp8) {
                    continue;
                }
                let packing = Packing {
                    storage,
                    rows,
                    width,
                    extras,
                    unpacks: false,
                };
                let how = (dtype, askew);
                let [host, back] = there_and_back(card(true), how, packing);
                let [expected, expected_back] = there_and_back(processor(), how, packing);
                let what = format!("{packing:?} of {dtype}");
                let differs = (0..host.len()).find(|&i| host[i] != expected[i]);
                assert_eq!(differs, None, "{what}");
                assert!(same_values(&back, &expected_back, packing, dtype), "{what}");
            }
        }
    }
}

/// Everything that can travel does.
fn all(problem: &Problem, fate: fn(u32) -> Fate) -> Schedule {
    let mut plan = Plan::keep_all(problem);
    for (tensor, chosen) in problem.tensors.values().zip(plan.fates.values_mut()) {
        *chosen = fate(tensor.pieces);
    }
    schedule(problem, &plan)
}

/// What stays packed on the device has the bits of what travels packed.
#[test]
fn what_stays_packed_is_what_travels_packed() {
    if !is_there() {
        return;
    }
    for (name, storage) in ["gqa", "gpt2"].into_iter().zip(STORAGES) {
        let model = model(name);
        let mut cut = Cut::new(Method::Lomo, 2);
        cut.workload.dtype = Dtype::Bf16;
        let problem = packed_problem(&model, &cut);
        let (steps, with) = telling(Method::Lomo);
        let [stays, travels] = [Fate::packed, Fate::swapped].map(|fate| {
            let mut file = file_of(&model, &cut, all(&problem, fate));
            file.storage = Some(storage);
            run_file(card(true), (&model, &file), (steps, &with))
        });
        assert_eq!(stays.difference(&travels), None, "{name} {storage}");
    }
}

/// Steps whose activations travel packed: the same bits however long copies take, and near the CPU
/// device's; not nearer than rounding in a code or two allows.
#[test]
fn steps_whose_activations_travel_packed() {
    if !is_there() {
        return;
    }
    let model = model("gqa");
    for (storage, dtype) in STORAGES.into_iter().zip([Dtype::F32, Dtype::Bf16]) {
        let mut cut = Cut::new(Method::AdamW, 2);
        cut.workload.dtype = dtype;
        let planned = all(&packed_problem(&model, &cut), Fate::swapped);
        let mut file = file_of(&model, &cut, planned);
        file.storage = Some(storage);
        let (steps, with) = telling(Method::AdamW);
        let of = |device| run_file(device, (&model, &file), (steps, &with));
        let (found, again, expected) = (of(card(true)), of(card(true)), of(processor()));
        assert_eq!(found.difference(&again), None, "{storage}");
        let tolerance = match dtype {
            Dtype::F32 => (5e-4, 5e-4),
            _ => (2.5e-2, 2.5e-2),
        };
        assert_near(&format!("{storage} {dtype}"), &found, &expected, tolerance);
    }
}

// ---- products -----------------------------------------------------------------------------------

/// A layer, its input's gradient with one more, and what a device makes of them.
fn products(
    mut device: Box<dyn Device>,
    arithmetic: Arithmetic,
    dtype: Dtype,
    [rows, inputs, first, second]: [u64; 4],
) -> [Vec<f32>; 2] {
    let outputs = first + second;
    let size = dtype.bytes();
    let mut end = 0;
    let mut take = |bytes: u64| {
        let region = Region {
            space: Space::Device,
            offset_bytes: end,
            bytes,
        };
        end = region.end().next_multiple_of(256);
        region
    };
    // The weight's blocks lie in wider rows.
    let stride = inputs + 3;
    let mut panel = |rows: u64| Panel {
        region: take(((rows - 1) * stride + inputs) * size),
        rows,
        columns: inputs,
        stride,
    };
    let weight = vec![panel(first), panel(second)];
    let [x, y, d_x] = [rows * inputs, rows * outputs, rows * inputs].map(|n| take(n * size));
    let bias = vec![take(size), take((outputs - 1) * size)];
    let [forward, back] = [(inputs, outputs), (outputs, inputs)]
        .map(|sizes| take(Scratch::new(arithmetic, sizes, dtype).bytes(rows)));
    device.compute_in(arithmetic).unwrap();
    let mut reservation = reservation(dtype);
    reservation.arena_bytes = end;
    device.reserve(reservation).unwrap();
    let regions = weight.iter().map(|panel| panel.region);
    for (at, region) in regions.chain([x, y, d_x]).chain(bias.clone()).enumerate() {
        let value = |i: u64| ((i * 31 + 7 * at as u64) as f32 * 0.61).sin() * (1 + i % 5) as f32;
        device
            .write(region, &bytes((0..region.bytes / size).map(value), dtype))
            .unwrap();
    }
    device.begin_step(&parameters()).unwrap();
    let layer = Operator::Linear {
        rows,
        x,
        weight: weight.clone(),
        bias,
        residual: Some(y),
        y,
        workspace: Some(forward),
    };
    let gradient = Operator::LinearInputGradient {
        rows,
        d_y: y,
        weight,
        d_x,
        accumulate: true,
        workspace: Some(back),
    };
    // The gradient first: its operand is then the same everywhere.
    device.launch(Stream::Compute, 0, &gradient).unwrap();
    device.launch(Stream::Compute, 1, &layer).unwrap();
    device.finish().unwrap();
    [y, d_x].map(|region| {
        let mut found = vec![0; region.bytes as usize];
        device.read(region, &mut found).unwrap();
        decode(stored(dtype), &found)
    })
}

/// Operands are rounded to the same codes, so that only sums differ, in their last bits.
#[test]
fn products_are_those_of_the_processor() {
    if !is_there() {
        return;
    }
    for arithmetic in Arithmetic::ROUNDED {
        for dtype in [Dtype::F32, Dtype::Bf16] {
            for sizes in [
                [5, 40, 16, 24],
                [33, 70, 7, 60],
                [3, 16, 1, 1],
                [2, 9, 130, 200],
            ] {
                let found = products(card(true), arithmetic, dtype, sizes);
                let expected = products(processor(), arithmetic, dtype, sizes);
                let sums = match arithmetic {
                    Arithmetic::Fp8 => 5e-6 + FP8_SUMS,
                    _ => 5e-6,
                };
                for (found, expected) in found.iter().zip(&expected) {
                    let largest = expected.iter().fold(0.0f32, |most, e| most.max(e.abs()));
                    for (i, (a, b)) in found.iter().zip(expected).enumerate() {
                        // Blocks that are multiplied apart are rounded to bf16 in between.
                        let rounding = if dtype == Dtype::Bf16 {
                            largest / 100.0
                        } else {
                            0.0
                        };
                        assert!(
                            (a - b).abs() <= sums * largest + rounding,
                            "{arithmetic} {dtype} {sizes:?}: {a} for {b} at {i}"
                        );
                    }
                }
            }
        }
    }
}

/// Steps in every arithmetic: of a plan and without one the same bits, and near the CPU device's.
/// Sums that differ in their last bits are rounded to another code here and there.
#[test]
fn steps_in_eight_bits() {
    if !is_there() {
        return;
    }
    let models = ["gqa", "gpt2", "qk-norm", "tied"];
    for (name, arithmetic) in models.into_iter().zip(Arithmetic::ROUNDED) {
        let model = model(name);
        for dtype in [Dtype::F32, Dtype::Bf16] {
            let mut cut = Cut::new(Method::AdamW, 2);
            cut.workload.dtype = dtype;
            cut.workload.accumulate = 1;
            let planned = mixed(&problem_in(&model, &cut, arithmetic));
            let (steps, with) = telling(Method::AdamW);
            let of = |device: Box<dyn Device>, schedule: Schedule| -> Outcome {
                let mut file = file_of(&model, &cut, schedule);
                file.arithmetic = arithmetic;
                run_file(device, (&model, &file), (steps, &with))
            };
            let found = of(card(true), planned.clone());
            let what = format!("{name} {arithmetic} {dtype}");
            let plain = of(card(true), straight(&planned));
            assert_eq!(found.difference(&plain), None, "{what}");
            let tolerance = match dtype {
                Dtype::F32 => (1e-2, 1e-2),
                _ => (1e-1, 5e-2),
            };
            assert_near(&what, &found, &of(processor(), planned), tolerance);
        }
    }
}
