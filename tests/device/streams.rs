//! Streams, events, memory and failures of the CPU device.

use std::time::{Duration, Instant};

use ebbtide::device::cpu::{CpuDevice, CpuOptions, Delays, Faults, LinkSpeed};
use ebbtide::device::{
    Carry, Cause, Device, Operator, Panel, Region, Reservation, Rows, Space, StepParameters,
    Stream, UpdateRule, UpdateSlice,
};
use ebbtide::profile::Dtype;
use ebbtide_solver::units::{BytesPerSec, Nanos};

const PARAMETERS: StepParameters = StepParameters {
    step: 3,
    learning_rate: 0.01,
    beta2: 0.95,
    weight_decay: 0.1,
    loss_scale: 0.5,
    ..StepParameters::STILL
};

fn reservation(dtype: Dtype) -> Reservation {
    Reservation {
        dtype,
        arena_bytes: 1 << 20,
        slab_bytes: 1 << 20,
        events: 4,
        rows: 4,
        micro_batches: 1,
        loss_slots: 1,
        norm_slots: 1,
        carry_elements: 100,
        rotary: None,
    }
}

fn device(options: CpuOptions) -> CpuDevice {
    let mut device = CpuDevice::new(options);
    device.reserve(reservation(Dtype::F32)).unwrap();
    device
}

fn on(space: Space, offset_bytes: u64, bytes: u64) -> Region {
    Region {
        space,
        offset_bytes,
        bytes,
    }
}

fn arena(offset_bytes: u64, bytes: u64) -> Region {
    on(Space::Device, offset_bytes, bytes)
}

fn slab(offset_bytes: u64, bytes: u64) -> Region {
    on(Space::Host, offset_bytes, bytes)
}

fn floats(device: &mut CpuDevice, region: Region) -> Vec<f32> {
    let mut bytes = vec![0; region.bytes as usize];
    device.read(region, &mut bytes).unwrap();
    let floats = bytes
        .chunks(4)
        .map(|b| f32::from_le_bytes(b.try_into().unwrap()));
    floats.collect()
}

fn write(device: &mut CpuDevice, region: Region, values: &[f32]) {
    let bytes: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
    device.write(region, &bytes).unwrap();
}

fn delayed(seed: u64) -> CpuOptions {
    CpuOptions {
        delays: Some(Delays {
            seed,
            longest: Duration::from_millis(4),
        }),
        ..CpuOptions::default()
    }
}

/// Sends 64 floats to the host, clears them on the device, fetches them again; with or without the
/// clearing waiting for the sending and the fetching for both.
fn there_and_back(seed: u64, wait: bool) -> Vec<f32> {
    let mut device = device(delayed(seed));
    let (here, there) = (arena(0, 256), slab(512, 256));
    write(&mut device, here, &[7.0; 64]);
    device.begin_step(&PARAMETERS).unwrap();
    device.copy(Stream::D2h, 0, here, there).unwrap();
    device.record(Stream::D2h, 0).unwrap();
    if wait {
        device.wait(Stream::Compute, 0).unwrap();
    }
    device
        .launch(Stream::Compute, 0, &Operator::Zero { region: here })
        .unwrap();
    device.record(Stream::Compute, 1).unwrap();
    if wait {
        device.wait(Stream::H2d, 1).unwrap();
    }
    device.copy(Stream::H2d, 0, there, here).unwrap();
    device.finish().unwrap();
    floats(&mut device, here)
}

#[test]
fn events_order_streams_and_a_missing_one_shows() {
    assert!((0..10).all(|seed| there_and_back(seed, true) == [7.0; 64]));
    assert!((0..10).any(|seed| there_and_back(seed, false) != [7.0; 64]));
}

#[test]
fn a_wait_for_what_was_not_recorded_is_refused() {
    let mut device = device(CpuOptions::default());
    device.begin_step(&PARAMETERS).unwrap();
    device.record(Stream::D2h, 0).unwrap();
    device.wait(Stream::Compute, 0).unwrap();
    device.finish().unwrap();
    device.begin_step(&PARAMETERS).unwrap();
    let refused = device.wait(Stream::Compute, 0).unwrap_err();
    assert!(refused.to_string().contains("not recorded"), "{refused}");
    assert!(device.record(Stream::D2h, 4).is_err());
    device.finish().unwrap();
}

#[test]
fn the_trace_names_what_ran_and_links_take_their_time() {
    let link = LinkSpeed {
        latency: Nanos::new(2_000_000),
        rate: BytesPerSec::new(100_000_000).unwrap(),
    };
    let mut device = device(CpuOptions {
        d2h: Some(link),
        ..CpuOptions::default()
    });
    device.begin_step(&PARAMETERS).unwrap();
    device
        .copy(Stream::D2h, 5, arena(0, 1 << 20), slab(0, 1 << 20))
        .unwrap();
    device
        .copy(Stream::H2d, 6, slab(0, 4096), arena(0, 4096))
        .unwrap();
    device.finish().unwrap();
    let trace = device.trace();
    assert_eq!(trace.len(), 2);
    assert_eq!((trace[0].stream, trace[0].instruction), (Stream::D2h, 5));
    assert_eq!((trace[1].stream, trace[1].instruction), (Stream::H2d, 6));
    // 2 ms and 2²⁰ bytes at 100 MB/s; no faster.
    assert!(trace[0].end_ns - trace[0].start_ns >= 12_485_760);
    assert!(trace[1].end_ns >= trace[1].start_ns);
}

#[test]
fn memory_is_nan_until_written_and_after_release() {
    let mut device = device(CpuOptions::default());
    let region = arena(4096, 64);
    assert!(floats(&mut device, region).iter().all(|v| v.is_nan()));
    device.hold(region).unwrap();
    device.hold(arena(0, 1024)).unwrap();
    device.begin_step(&PARAMETERS).unwrap();
    device
        .launch(Stream::Compute, 0, &Operator::Zero { region })
        .unwrap();
    device.release(region, true).unwrap();
    device.hold(arena(8192, 32)).unwrap();
    device.finish().unwrap();
    assert!(floats(&mut device, region).iter().all(|v| v.is_nan()));
    assert_eq!(device.arena_use().peak_live_bytes, 1088);
    assert_eq!(device.arena_use().high_water_bytes, 8224);
    assert!(device.release(arena(0, 1 << 20), true).is_err());
}

/// Queues three clears and an event that everybody waits for; gives the end of the step.
fn fail(options: CpuOptions) -> String {
    let mut device = device(options);
    device.begin_step(&PARAMETERS).unwrap();
    for instruction in 0..3 {
        let region = arena(0, 64);
        let zero = Operator::Zero { region };
        device.launch(Stream::Compute, instruction, &zero).unwrap();
        device
            .copy(Stream::D2h, instruction, region, slab(0, 64))
            .unwrap();
    }
    device.record(Stream::Compute, 0).unwrap();
    device.wait(Stream::D2h, 0).unwrap();
    let failure = device.finish().unwrap_err();
    // Spoilt from here on.
    assert!(device.read(arena(0, 64), &mut [0; 64]).is_err());
    assert_eq!(failure.told().kind.exit_code(), 4);
    failure.to_string()
}

#[test]
fn failures_name_the_instruction_and_nobody_hangs() {
    let options = |faults| CpuOptions {
        faults,
        ..CpuOptions::default()
    };
    let panicked = fail(options(Faults {
        panic: Some((Stream::Compute, 1)),
        copy: None,
    }));
    assert_eq!(
        panicked,
        "zero (instruction 1 of stream compute): a worker panicked: injected"
    );
    let copy = fail(options(Faults {
        panic: None,
        copy: Some((Stream::D2h, 2)),
    }));
    assert_eq!(
        copy,
        "copy (instruction 2 of stream d2h): the device failed: a copy was made to fail"
    );
}

#[test]
fn memory_that_is_not_there_is_an_error() {
    let reserve = |options, arena_bytes, slab_bytes| {
        let reserved = CpuDevice::new(options).reserve(Reservation {
            arena_bytes,
            slab_bytes,
            ..reservation(Dtype::F32)
        });
        reserved.unwrap_err().cause
    };
    let limited = CpuOptions {
        device_memory: Some(1000),
        ..CpuOptions::default()
    };
    let lacking = |what: &str, bytes| {
        let what = what.to_owned();
        Cause::OutOfMemory { what, bytes }
    };
    assert_eq!(reserve(limited, 1001, 0), lacking("the arena", 1001));
    let much = 1 << 62;
    let slab = reserve(CpuOptions::default(), 8, much);
    assert_eq!(slab, lacking("the host slab", much));
}

#[test]
fn what_cannot_be_is_refused() {
    let mut fp8 = CpuDevice::new(CpuOptions::default());
    assert!(fp8.reserve(reservation(Dtype::Fp8)).is_err());
    assert!(fp8.begin_step(&PARAMETERS).is_err());
    let mut device = device(CpuOptions::default());
    assert!(device.reserve(reservation(Dtype::F32)).is_err());
    assert!(device.write(arena(1 << 20, 4), &[0; 4]).is_err());
    assert!(device.write(arena(u64::MAX, 4), &[0; 4]).is_err());
    assert!(device.write(arena(0, 8), &[0; 4]).is_err());
    assert!(device.hold(slab(0, 8)).is_err());
    assert!(device.load_batch(0, &[1, 2, 3], &[1, 2, 3]).is_err());
    assert!(device.load_batch(1, &[1; 4], &[1; 4]).is_err());
    let far = arena(1 << 19, 1 << 20);
    assert!(device.copy(Stream::D2h, 0, far, slab(0, 1 << 20)).is_err());
    assert!(device
        .copy(Stream::D2h, 0, arena(0, 8), slab(0, 16))
        .is_err());
}

/// The failure of one operator.
fn refused(stream: Stream, operator: &Operator) -> String {
    let mut device = device(CpuOptions::default());
    device.load_batch(0, &[1, 2, 3, 9], &[2, 3, 9, -1]).unwrap();
    device.begin_step(&PARAMETERS).unwrap();
    device.launch(stream, 0, operator).unwrap();
    device.finish().unwrap_err().to_string()
}

#[test]
fn operands_that_contradict_each_other_are_refused() {
    let all = Rows {
        first: 0,
        count: 4,
        sequence: 4,
    };
    let cross_entropy = |rows, vocab: u64| Operator::CrossEntropy {
        rows,
        micro_batch: 0,
        vocab,
        logits: arena(0, 4 * 4 * vocab),
        slot: 0,
    };
    let said = refused(Stream::Compute, &cross_entropy(all, 9));
    assert!(said.contains("label 9 of 9"), "{said}");
    let said = refused(Stream::Compute, &cross_entropy(all, 10));
    assert!(said.contains("label -1 of 10"), "{said}");
    let embedding = Operator::Embedding {
        rows: all,
        micro_batch: 0,
        weight: arena(0, 4 * 9 * 2),
        vocab: 9,
        positions: None,
        width: 2,
        scale: None,
        x: arena(512, 4 * 4 * 2),
    };
    let said = refused(Stream::Compute, &embedding);
    assert!(said.contains("vector 9 of a table of 9"), "{said}");
    let said = refused(Stream::Host, &embedding);
    assert!(said.contains("does not run on the host"), "{said}");
    let beyond = Operator::Zero {
        region: arena(1 << 20, 8),
    };
    let said = refused(Stream::Compute, &beyond);
    assert!(said.contains("outside the arena"), "{said}");
}

/// Updates on the device and on the host, from the same bytes: a block of a matrix, a gradient in
/// three copies, or one that arrives in two runs. `first`: where memory begins to be used.
fn updated(dtype: Dtype, space: Space, rule: UpdateRule, split: bool, first: u64) -> Vec<u8> {
    const ROWS: u64 = 37;
    const COLUMNS: u64 = 2500;
    const STRIDE: u64 = 2700;
    let mut device = CpuDevice::new(CpuOptions::default());
    let mut reservation = reservation(dtype);
    (reservation.arena_bytes, reservation.slab_bytes) = (4 << 20, 4 << 20);
    device.reserve(reservation).unwrap();
    let size = dtype.bytes();
    let span = (ROWS - 1) * STRIDE + COLUMNS;
    let mut used = first;
    let mut place = |bytes: u64| {
        used += bytes;
        on(space, used - bytes, bytes)
    };
    let planes = match (rule, dtype) {
        (UpdateRule::Sgd, _) => 0,
        (_, Dtype::F32) => 2,
        _ => 3,
    };
    let matrix = UpdateSlice {
        weight: Panel {
            region: place(span * size),
            rows: ROWS,
            columns: COLUMNS,
            stride: STRIDE,
        },
        gradients: vec![place(ROWS * COLUMNS * size)],
        states: (0..planes).map(|_| place(span * 4)).collect(),
        carry: None,
    };
    let copies: Vec<Region> = (0..3).map(|_| place(33 * size)).collect();
    let vector = UpdateSlice {
        weight: Panel {
            region: place(33 * size),
            rows: 1,
            columns: 33,
            stride: 33,
        },
        gradients: copies.clone(),
        states: (0..planes).map(|_| place(33 * 4)).collect(),
        carry: None,
    };
    let mut next = super::noise(5);
    // Never negative: second moments are among them.
    let bytes = |dtype: Dtype, region: Region, next: &mut dyn FnMut() -> f64| -> Vec<u8> {
        (0..region.bytes / dtype.bytes())
            .flat_map(|_| match dtype {
                Dtype::F32 => (next().abs() as f32).to_le_bytes().to_vec(),
                _ => half::bf16::from_f64(next().abs()).to_le_bytes().to_vec(),
            })
            .collect()
    };
    for slice in [&matrix, &vector] {
        for &region in slice.gradients.iter().chain([&slice.weight.region]) {
            device
                .write(region, &bytes(dtype, region, &mut next))
                .unwrap();
        }
        for &region in &slice.states {
            device
                .write(region, &bytes(Dtype::F32, region, &mut next))
                .unwrap();
        }
    }
    let stream = match space {
        Space::Device => Stream::Compute,
        Space::Host => Stream::Host,
    };
    let gradients = vec![matrix.gradients.clone(), copies.clone()];
    let carried = |first, last, copies: &[Region]| UpdateSlice {
        gradients: copies.to_vec(),
        carry: Some(Carry {
            offset: 7,
            first,
            last,
        }),
        ..vector.clone()
    };
    let runs = match split {
        false => vec![vec![matrix, vector.clone()]],
        true => vec![
            vec![matrix, carried(true, false, &copies[..1])],
            vec![carried(false, true, &copies[1..])],
        ],
    };
    let parameters = StepParameters {
        clip: Some(0.5),
        ..PARAMETERS
    };
    device.begin_step(&parameters).unwrap();
    device
        .launch(stream, 0, &Operator::GradientNorm { gradients, slot: 0 })
        .unwrap();
    for slices in runs {
        device
            .launch(stream, 1, &Operator::Update { rule, slices })
            .unwrap();
    }
    device.finish().unwrap();
    let mut all = vec![0; (used - first) as usize];
    let region = on(space, first, used - first);
    device.read(region, &mut all).unwrap();
    all
}

/// Where elements are aligned they are updated in place, else on the stack; the gradient in copies
/// always is.
#[test]
fn host_and_device_in_place_and_on_the_stack_update_to_the_same_bits() {
    for dtype in [Dtype::F32, Dtype::Bf16] {
        for rule in [UpdateRule::AdamW, UpdateRule::Sgd] {
            let expected = updated(dtype, Space::Device, rule, false, 0);
            for space in [Space::Device, Space::Host] {
                for (split, first) in [(false, 0), (true, 0), (false, 2), (false, 1), (true, 3)] {
                    let found = updated(dtype, space, rule, split, first);
                    let what = format!("{dtype} {rule:?} {space:?} {split} {first}");
                    assert!(found == expected, "{what}");
                }
            }
        }
    }
}

#[test]
fn steps_follow_one_another() {
    let mut device = device(CpuOptions::default());
    for _ in 0..3 {
        let begun = Instant::now();
        device.begin_step(&PARAMETERS).unwrap();
        let region = arena(0, 64);
        device
            .launch(Stream::Compute, 0, &Operator::Zero { region })
            .unwrap();
        let result = device.finish().unwrap();
        assert_eq!((result.loss, result.gradient_norm), (0.0, Some(0.0)));
        assert_eq!(device.trace().len(), 1);
        assert!(u128::from(device.trace()[0].end_ns) <= begun.elapsed().as_nanos());
    }
}
