//! What is saved in 8 bits, and products of operands in 8 bits.

use std::time::Duration;

use ebbtide::device::arithmetic::Arithmetic;
use ebbtide::device::cpu::{CpuDevice, CpuOptions, Delays};
use ebbtide::device::packed::Storage;
use ebbtide::execute::Session;
use ebbtide::format::schedule::ScheduleFile;
use ebbtide::memory;
use ebbtide::methods::Method;
use ebbtide::model::{ModelConfig, Part};
use ebbtide::profile::Dtype;
use ebbtide::training::{initial, Place};
use ebbtide_solver::check::check;
use ebbtide_solver::plan::{Fate, Plan};
use ebbtide_solver::problem::Problem;
use ebbtide_solver::schedule::{Schedule, Space, Stream};
use ebbtide_solver::simulate::copied_bytes;

use super::models::{self, model};
use super::plans::*;
use super::runs::{batches, optimizer, run, session};
use super::straight::straight;

const STORAGES: [Storage; 2] = [Storage::Fp8, Storage::Int8];

/// The same becomes of everything that is saved.
fn all(problem: &Problem, fate: fn(u32) -> Fate) -> Schedule {
    let mut plan = Plan::keep_all(problem);
    for (tensor, chosen) in problem.tensors.values().zip(plan.fates.values_mut()) {
        *chosen = fate(tensor.pieces);
    }
    schedule(problem, &plan)
}

/// Everything that can travel does.
fn swapped(problem: &Problem) -> Schedule {
    all(problem, Fate::swapped)
}

fn packed_file(
    model: &ModelConfig,
    cut: &Cut,
    schedule: Schedule,
    storage: Storage,
) -> ScheduleFile {
    let mut file = file_of(model, cut, schedule);
    file.storage = Some(storage);
    file
}

/// Losses and weights are near those of the exact run, not the same; how fast copies are changes
/// no bit; the arena holds what the plan says and the host a quarter of it.
#[test]
fn packed_runs_are_near_the_exact_one() {
    for name in models::names() {
        let model = model(name);
        for dtype in [Dtype::F32, Dtype::Bf16] {
            let mut cut = Cut::new(Method::Sgd, 2);
            cut.workload.dtype = dtype;
            let exact = swapped(&problem(&model, &cut));
            let packed = swapped(&packed_problem(&model, &cut));
            assert_eq!(check(&packed), [], "{name}");
            for way in [Stream::D2h, Stream::H2d] {
                let [plain, less] = [&exact, &packed].map(|s| copied_bytes(s, way).get());
                let least = if dtype == Dtype::F32 { 2 } else { 1 };
                assert!(least * less < plain, "{name}: {plain} {less}");
            }
            assert!(packed.host_bytes < exact.host_bytes);
            let plain = file_of(&model, &cut, exact);
            let (expected, _) = run(&plain, &model, CpuOptions::default(), 5).unwrap();
            for storage in STORAGES {
                let file = packed_file(&model, &cut, packed.clone(), storage);
                let (found, used) = run(&file, &model, CpuOptions::default(), 5).unwrap();
                let arena = file.schedule.arena_bytes.get();
                assert_eq!(used.high_water_bytes, arena, "{name} {storage}");
                // The first loss is of forward alone, which nothing travels into.
                assert_eq!(found.losses[0], expected.losses[0], "{name} {storage}");
                let [a, b] = [&found, &expected].map(|o| f64::from_bits(o.losses[1]));
                assert!(
                    a != b && (a - b).abs() < 2e-3 * b,
                    "{name} {storage}: {a} {b}"
                );
                let slow = CpuOptions {
                    delays: Some(Delays {
                        seed: 9,
                        longest: Duration::from_micros(20),
                    }),
                    ..CpuOptions::default()
                };
                let (again, _) = run(&file, &model, slow, 5).unwrap();
                assert_eq!(again.difference(&found), None, "{name} {storage}");
            }
        }
    }
}

/// What stays packed on the device has the bits of what travels packed, with fewer of its bytes
/// alive than of what stays as it is; what forward reads is exact.
#[test]
fn what_stays_packed_is_what_travels_packed() {
    for name in models::names() {
        let model = model(name);
        for (dtype, method) in [(Dtype::F32, Method::AdamW), (Dtype::Bf16, Method::Lomo)] {
            let mut cut = Cut::new(method, 2);
            cut.workload.dtype = dtype;
            let problem = packed_problem(&model, &cut);
            let [stays, travels] = [Fate::packed, Fate::swapped].map(|fate| all(&problem, fate));
            assert_eq!(check(&stays), [], "{name}");
            assert_eq!(copied_bytes(&stays, Stream::D2h).get(), 0);
            let kept = all(&problem, Fate::kept);
            assert!(stays.arena_bytes < kept.arena_bytes, "{name}");
            for storage in STORAGES {
                let file = packed_file(&model, &cut, travels.clone(), storage);
                let (expected, _) = run(&file, &model, CpuOptions::default(), 5).unwrap();
                let file = packed_file(&model, &cut, stays.clone(), storage);
                let (found, used) = run(&file, &model, CpuOptions::default(), 5).unwrap();
                assert_eq!(found.difference(&expected), None, "{name} {storage}");
                let arena = file.schedule.arena_bytes.get();
                assert_eq!(used.high_water_bytes, arena, "{name} {storage}");
                assert_eq!(used.peak_live_bytes, memory::peak(&stays).bytes.get());
            }
        }
    }
}

/// Some pieces of everything stay as they are, some packed, some travel and some are made again;
/// whatever the streams' delays, the bits are the same.
#[test]
fn mixed_storage_does_not_depend_on_time() {
    let model = model("gqa");
    let mut cut = Cut::new(Method::AdamW, 2);
    cut.granule = 8;
    let problem = packed_problem(&model, &cut);
    let mut plan = Plan::keep_all(&problem);
    for (nth, (tensor, fate)) in (0..).zip(problem.tensors.values().zip(plan.fates.values_mut())) {
        *fate = match tensor.pieces {
            1 | 2 => [Fate::packed, Fate::swapped, Fate::kept][nth % 3](tensor.pieces),
            pieces => Fate {
                keep: 1,
                pack: pieces - 3,
                swap: 1,
            },
        };
    }
    let schedule = schedule(&problem, &plan);
    assert_eq!(check(&schedule), []);
    let file = packed_file(&model, &cut, schedule, Storage::Fp8);
    let run = |delays| {
        let options = CpuOptions {
            delays,
            ..CpuOptions::default()
        };
        run(&file, &model, options, 5).unwrap().0
    };
    let slow = Delays {
        seed: 4,
        longest: Duration::from_micros(20),
    };
    assert_eq!(run(Some(slow)).difference(&run(None)), None);
}

/// What stays or is made again is exact: without swaps a storage changes nothing.
#[test]
fn without_copies_nothing_is_rounded() {
    let model = model("gqa");
    let cut = Cut::new(Method::AdamW, 1);
    let plain = file_of(&model, &cut, segments(&problem(&model, &cut)));
    let packed = segments(&packed_problem(&model, &cut));
    let packed = packed_file(&model, &cut, packed, Storage::Fp8);
    let of = |file: &ScheduleFile| run(file, &model, CpuOptions::default(), 5).unwrap().0;
    assert_eq!(of(&packed).difference(&of(&plain)), None);
}

/// Sizes and the storage belong together.
#[test]
fn packed_sizes_without_their_storage_are_refused() {
    let model = model("gqa");
    let cut = Cut::new(Method::Sgd, 2);
    let good = packed_file(
        &model,
        &cut,
        swapped(&packed_problem(&model, &cut)),
        Storage::Int8,
    );
    let refused = |file: &ScheduleFile| -> String {
        let session: Result<Session<'_>, _> = session(file, &model, CpuOptions::default(), 1);
        session.err().expect("refused").to_string()
    };
    let mut none = good.clone();
    none.storage = None;
    assert!(refused(&none).contains("packed rows"), "{}", refused(&none));
    let mut other = good.clone();
    let values = other.schedule.values.values_mut();
    values
        .filter_map(|v| v.packed_row_bytes.as_mut())
        .for_each(|bytes| *bytes += 4);
    for buffer in other.schedule.buffers.values_mut() {
        if buffer.space == Space::Host {
            buffer.bytes += ebbtide_solver::units::Bytes::new(4);
        }
    }
    assert!(
        refused(&other).contains("packed rows"),
        "{}",
        refused(&other)
    );
}

/// Whatever the plan, a row that is multiplied is rounded the same; and it is rounded: losses are
/// near the exact ones and not the same.
#[test]
fn products_in_eight_bits_do_not_depend_on_the_plan() {
    for name in ["gqa", "tied", "gpt2"] {
        let model = model(name);
        let cut = Cut::new(Method::AdamW, 2);
        let problem = problem(&model, &cut);
        let planned = file_of(&model, &cut, mixed(&problem));
        let plain = file_of(&model, &cut, straight(&planned.schedule));
        let of = |file: &ScheduleFile, arithmetic: Arithmetic| {
            let mut file = file.clone();
            file.arithmetic = arithmetic;
            run(&file, &model, CpuOptions::default(), 5).unwrap().0
        };
        let exact = of(&plain, Arithmetic::Plain);
        let mut seen = vec![exact.losses[0]];
        for arithmetic in Arithmetic::ROUNDED {
            let expected = of(&plain, arithmetic);
            let found = of(&planned, arithmetic);
            assert_eq!(found.difference(&expected), None, "{name} {arithmetic}");
            let [a, b] = [&found, &exact].map(|o| f64::from_bits(o.losses[0]));
            assert!((a - b).abs() < 5e-3 * b, "{name} {arithmetic}: {a} {b}");
            assert!(!seen.contains(&found.losses[0]), "{name} {arithmetic}");
            seen.push(found.losses[0]);
        }
    }
}

/// Forward of a training that is aware of integers is that of weights which are such integers
/// already.
#[test]
fn aware_training_sees_rounded_weights() {
    let model = model("mha");
    let cut = Cut::new(Method::Sgd, 1);
    let file = file_of(&model, &cut, segments(&problem(&model, &cut)));
    let first_loss = |arithmetic: Arithmetic, round: bool| {
        let mut file = file.clone();
        file.arithmetic = arithmetic;
        let device = Box::new(CpuDevice::new(CpuOptions::default()));
        let mut session = Session::begin(&file, &model, device, false).unwrap();
        let load = |place: Place| {
            let mut values = initial::values(&model, place, 7)?;
            let table = place.weight.part == Part::Embedding;
            if round && place.weight.is_matrix() && !table {
                for row in values.chunks_mut(place.weight.columns as usize) {
                    let scale = row.iter().fold(0.0f32, |most, w| most.max(w.abs())) / 127.0;
                    row.iter_mut()
                        .for_each(|w| *w = scale * (*w / scale).round_ties_even());
                }
            }
            Ok(values)
        };
        session.load(load).unwrap();
        let batches = batches(&file, &model, 0, 7);
        let with = optimizer();
        session.step(0, &batches, &with).unwrap().loss
    };
    let aware = first_loss(Arithmetic::QatInt8, false);
    assert_eq!(aware, first_loss(Arithmetic::Plain, true));
    assert_ne!(aware, first_loss(Arithmetic::Plain, false));
}
