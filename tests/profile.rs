//! The shipped hardware profiles against their arithmetic, their samples and the laws of time;
//! broken files against the errors they must give.

use ebbtide::error::Kind;
use ebbtide::format::profile as format;
use ebbtide::profile::cost::{
    Attention, AttentionDirection, Costs, Extrapolation, Gemm, GemmDirection,
};
use ebbtide::profile::{build, load, shipped, Dtype, Profile};
use ebbtide_solver::machine::Slowdown;
use ebbtide_solver::units::{Bytes, Nanos};
use serde_json::{json, Value};

const H100: &str = "h100-sxm5-80gb";
const H100_SAMPLES: &str = include_str!("../profiles/hardware/source/h100-sxm5-80gb.jsonl");
const H100_PROFILE: &str = include_str!("../profiles/hardware/h100-sxm5-80gb.json");
const UNIT: &str = include_str!("../profiles/hardware/unit.json");
const PRODUCTS: [GemmDirection; 3] = [
    GemmDirection::Forward,
    GemmDirection::Dgrad,
    GemmDirection::Wgrad,
];
const PASSES: [AttentionDirection; 2] = [AttentionDirection::Forward, AttentionDirection::Backward];

fn costs(profile: &Profile) -> Costs<'_> {
    profile.costs(profile.default_dtype).unwrap()
}
fn gemm(m: u64, k: u64, n: u64, direction: GemmDirection) -> Gemm {
    Gemm {
        m,
        k,
        n,
        direction,
        accumulate: false,
    }
}
/// 32 heads of 128 elements, one sequence, the whole of it visible.
fn attention(tokens: u64, kv_heads: u64, direction: AttentionDirection) -> Attention {
    Attention {
        tokens,
        batch: 1,
        heads: 32,
        kv_heads,
        head_dim: 128,
        window: None,
        direction,
    }
}
fn h100_rows() -> Vec<Value> {
    H100_SAMPLES
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}
/// The rows of one kind.
fn rows(kind: &str) -> Vec<Value> {
    h100_rows()
        .into_iter()
        .filter(|row| row["k"] == kind)
        .collect()
}
fn row(kind: &str) -> Value {
    let [row] = <[Value; 1]>::try_from(rows(kind)).unwrap();
    row
}
fn close(found: f64, expected: f64, tolerance: f64) -> bool {
    (found / expected - 1.0).abs() <= tolerance
}

// --- the unit profile: mental arithmetic ---

#[test]
fn unit_profile_counts_flops_and_bytes() {
    let unit = load("unit").unwrap();
    let costs = costs(&unit);
    // 2·3·5·7 FLOPs in every direction, accumulated or not.
    for direction in PRODUCTS {
        for accumulate in [false, true] {
            let gemm = Gemm {
                accumulate,
                ..gemm(3, 5, 7, direction)
            };
            let estimate = costs.gemm(&gemm);
            assert_eq!(
                (estimate.time, estimate.extrapolated),
                (Nanos::new(210), None)
            );
        }
    }
    // S = 10, 2 heads of 3: forward 2·100·6, backward 5·100·6; the batch doubles it.
    let call = Attention {
        tokens: 10,
        batch: 1,
        heads: 2,
        kv_heads: 1,
        head_dim: 3,
        window: None,
        direction: AttentionDirection::Forward,
    };
    assert_eq!(costs.attention(&call).time, Nanos::new(1200));
    assert_eq!(
        costs.attention(&Attention { batch: 2, ..call }).time,
        Nanos::new(2400)
    );
    let backward = Attention {
        direction: AttentionDirection::Backward,
        ..call
    };
    assert_eq!(costs.attention(&backward).time, Nanos::new(3000));
    // A window of 4: 2·10·4 − 16 = 64 instead of 100; a window of 10 or more is none.
    assert_eq!(
        costs
            .attention(&Attention {
                window: Some(4),
                ..call
            })
            .time,
        Nanos::new(768)
    );
    assert_eq!(
        costs
            .attention(&Attention {
                window: Some(99),
                ..call
            })
            .time,
        Nanos::new(1200)
    );
    assert_eq!(costs.attention_workspace(&backward), Bytes::ZERO);
    assert_eq!(costs.elementwise(Bytes::gib(1)).time, Nanos::ZERO);
    assert_eq!(costs.device_adam(1_000_000).time, Nanos::ZERO);

    assert_eq!(unit.machine.links.d2h.time(Bytes::new(17)), Nanos::new(17));
    assert_eq!(unit.machine.links.h2d.time(Bytes::new(17)), Nanos::new(17));
    assert_eq!(unit.machine.matmul_slowdown, Slowdown::default());
    assert_eq!(unit.machine.elementwise_slowdown, Slowdown::default());
    for cut in unit.machine.links.contention() {
        assert!(
            cut.d2h_weight == 0 || cut.h2d_weight == 0,
            "no contention: {cut:?}"
        );
    }
    assert_eq!(unit.machine.host_adam.time(9), Nanos::new(9));
    assert_eq!(unit.device.budget(), Bytes::gib(1024));
    assert_eq!(unit.host.memory, Bytes::gib(1024));
    assert_eq!(unit.default_dtype, Dtype::F32);
}

// --- the H100: what was measured comes out again ---

#[test]
fn h100_reproduces_every_gemm_within_a_microsecond() {
    let h100 = load(H100).unwrap();
    assert_eq!(
        h100.fit.gemm_raised_ppm, 0,
        "the samples are monotone already"
    );
    let measured = rows("gemm");
    assert_eq!(measured.len(), 18);
    for row in measured {
        let [m, k, n] = ["m", "kk", "n"].map(|key| row[key].as_u64().unwrap());
        for (key, direction) in ["fwd", "dgrad", "wgrad"].into_iter().zip(PRODUCTS) {
            let flops = 2.0 * m as f64 * k as f64 * n as f64;
            let nanos = flops / (row[key].as_f64().unwrap() * 1e3);
            let estimate = costs(&h100).gemm(&gemm(m, k, n, direction));
            assert!(
                (estimate.time.get() as f64 - nanos).abs() < 1000.0,
                "{row} {direction:?}"
            );
            assert_eq!(estimate.extrapolated, None);
        }
    }
}

#[test]
fn h100_reproduces_every_attention_call_within_a_microsecond() {
    let h100 = load(H100).unwrap();
    assert_eq!(h100.fit.attention_raised_ppm, 0);
    let mut calls = 0;
    for row in rows("attn")
        .iter()
        .filter(|row| row["be"] == "CUDNN_ATTENTION")
    {
        let [tokens, kv_heads] = ["S", "hkv"].map(|key| row[key].as_u64().unwrap());
        for (key, direction) in ["tf", "tb"].into_iter().zip(PASSES) {
            let nanos = row[key].as_f64().unwrap() * 1e9;
            let estimate = costs(&h100).attention(&attention(tokens, kv_heads, direction));
            assert!(
                (estimate.time.get() as f64 - nanos).abs() < 1000.0,
                "{row} {direction:?}"
            );
            assert_eq!(estimate.extrapolated, None);
            calls += 1;
        }
    }
    assert_eq!(calls, 20);
}

#[test]
fn h100_copies_are_within_the_stated_error() {
    let h100 = load(H100).unwrap();
    let links = h100.machine.links;
    for (key, link, stated_ppm) in [
        ("d2h", links.d2h, h100.fit.d2h_ppm),
        ("h2d", links.h2d, h100.fit.h2d_ppm),
    ] {
        let mut worst = 0.0f64;
        for row in rows("copy") {
            let bytes = row["bytes"].as_u64().unwrap();
            let nanos = bytes as f64 / row[key].as_f64().unwrap();
            if bytes >= 1 << 20 {
                worst = worst.max((link.time(Bytes::new(bytes)).get() as f64 / nanos - 1.0).abs());
            }
        }
        println!("{key}: {link:?}, largest relative error {worst:.4}");
        assert!(
            (worst * 1e6 - stated_ppm as f64).abs() < 50.0,
            "{worst} {stated_ppm}"
        );
        assert!(worst < 0.045);
    }
    let [out, _] = links.contention();
    let c = out.h2d_weight as f64 / out.d2h_weight as f64;
    println!(
        "contention: out + {c:.3} in <= {} bytes/s",
        links.d2h.rate.get()
    );
    assert!((0.30..0.36).contains(&c), "{c}");
}

#[test]
fn h100_scalars_are_the_measured_ones() {
    let h100 = load(H100).unwrap();
    let device = row("dev");
    assert_eq!(h100.device.memory.get(), device["mem"].as_u64().unwrap());
    assert_eq!(h100.device.usable.get(), device["free"].as_u64().unwrap());
    assert_eq!(h100.host.cores, device["cpus"].as_u64().unwrap());
    let number = |kind: &str, key: &str| row(kind)[key].as_f64().unwrap();
    let memory = h100.device.memory_rate.unwrap().get() as f64;
    assert!(close(memory, number("d2d", "GBs") * 1e9, 1e-9));
    let host_memory = h100.machine.host_memory.unwrap().get() as f64;
    assert!(close(host_memory, 2e9 * number("host_copy", "GBs"), 1e-9));
    let pin = h100.host.pin_rate.unwrap().get() as f64;
    assert!(close(
        pin,
        (4u64 << 30) as f64 / number("pin4GiB", "s"),
        1e-9
    ));
    let host_adam = h100.machine.host_adam.params_per_s.get() as f64;
    assert!(close(
        host_adam,
        number("cpu_adamw_fused", "params_per_s"),
        1e-9
    ));
    let both = h100.machine.links.both;
    for rate in [both.d2h, both.h2d] {
        assert!(close(
            rate.get() as f64,
            number("copy_bidir", "each_GBs") * 1e9,
            1e-9
        ));
    }
    let alone: f64 = 1.402019214630127e-3;
    for (found, copy) in [
        (h100.machine.matmul_slowdown.d2h_ppm, "d2h"),
        (h100.machine.matmul_slowdown.h2d_ppm, "h2d"),
        (h100.machine.matmul_slowdown.both_ppm, "both"),
    ] {
        let rows = rows("gemm_under_copy");
        let beside = rows.iter().find(|row| row["copy"] == copy).unwrap()["s"]
            .as_f64()
            .unwrap();
        assert!(
            (f64::from(found) - (beside / alone - 1.0) * 1e6).abs() < 1.0,
            "{copy}"
        );
    }
    // A second of each, and the launch on top.
    let costs = costs(&h100);
    let second = 1_000_000_000 + h100.launch.get();
    let bytes = h100.device.memory_rate.unwrap().get();
    assert_eq!(costs.elementwise(Bytes::new(bytes)).time.get(), second);
    let params = h100.device_adam_params_per_s.unwrap().get();
    assert_eq!(costs.device_adam(params).time.get(), second);
    assert!(close(
        params as f64,
        number("gpu_adamw_fused", "params_per_s"),
        1e-9
    ));
    // The optimizer's 28 bytes for each parameter cannot be faster than memory.
    assert!(28 * params < bytes);
}

/// GEMMs and attention of Llama-2-7B's 32 blocks, forward and backward, all of it measured on the
/// same machine as the profile: 10.8 s at 64K tokens and 36.4 s at 128K.
#[test]
fn h100_floor_of_llama_2_7b() {
    let h100 = load(H100).unwrap();
    let costs = costs(&h100);
    for (tokens, expected) in [(65_536, 10.8), (131_072, 36.4)] {
        let layers = [(4096, 4096, 4), (4096, 11_008, 2), (11_008, 4096, 1)];
        let gemms: u64 = layers
            .iter()
            .flat_map(|(k, n, count)| PRODUCTS.map(|d| (gemm(tokens, *k, *n, d), count)))
            .map(|(gemm, count)| costs.gemm(&gemm).time.get() * count)
            .sum();
        let attention: u64 = PASSES
            .iter()
            .map(|pass| costs.attention(&attention(tokens, 32, *pass)).time.get())
            .sum();
        let seconds = 32.0 * (gemms + attention) as f64 / 1e9;
        println!("{tokens} tokens: {seconds:.3} s (expected {expected})");
        assert!(close(seconds, expected, 0.01), "{tokens}: {seconds}");
    }
}

/// The relative errors of predicting the samples that `hidden` picks from the others.
fn errors_when_hidden(hidden: impl Fn(&format::GemmSample) -> bool) -> Vec<f64> {
    let file = format::read(H100_PROFILE).unwrap();
    let all = file.operators.gemm.samples.clone().unwrap();
    let (asked, shown): (Vec<_>, Vec<_>) = all.into_iter().partition(hidden);
    assert!(!asked.is_empty());
    let mut fewer = file;
    fewer.operators.gemm.samples = Some(shown);
    let profile = build(fewer).unwrap();
    let error = |sample: &format::GemmSample| {
        let direction = match sample.direction {
            format::GemmDirectionName::Forward => GemmDirection::Forward,
            format::GemmDirectionName::Dgrad => GemmDirection::Dgrad,
            format::GemmDirectionName::Wgrad => GemmDirection::Wgrad,
        };
        let [m, k, n] = [sample.m, sample.k, sample.n].map(|x| x.get());
        let predicted = costs(&profile).gemm(&gemm(m, k, n, direction)).time.get();
        (predicted as f64 / sample.ns.get() as f64 - 1.0).abs()
    };
    asked.iter().map(error).collect()
}

/// How far interpolation and extrapolation are off, told by samples that were hidden from them.
#[test]
fn h100_predicts_products_that_it_was_not_shown() {
    let all = format::read(H100_PROFILE)
        .unwrap()
        .operators
        .gemm
        .samples
        .unwrap();
    let one_out = all
        .iter()
        .flat_map(|s| errors_when_hidden(|other| other == s))
        .collect();
    let report = |what: &str, errors: Vec<f64>| {
        let largest = errors.iter().copied().fold(0.0, f64::max);
        let mean = errors.iter().sum::<f64>() / errors.len() as f64;
        println!("hidden {what}: mean error {mean:.3}, largest {largest:.3}");
        // The measured rates themselves scatter between 604 and 783 TFLOP/s.
        assert!(mean < 0.06 && largest < 0.2, "{what}: {mean} {largest}");
    };
    report("one sample", one_out);
    report("16k tokens", errors_when_hidden(|s| s.m.get() == 16_384));
    report("64k tokens", errors_when_hidden(|s| s.m.get() == 65_536));
    report(
        "14336 wide",
        errors_when_hidden(|s| s.k.get().max(s.n.get()) == 14_336),
    );
}

#[test]
fn h100_says_what_it_extrapolates() {
    let h100 = load(H100).unwrap();
    let costs = costs(&h100);
    let why = |estimate: Option<Extrapolation>| estimate.map(|e| e.to_string());
    let product = |m, k, n| {
        why(costs
            .gemm(&gemm(m, k, n, GemmDirection::Forward))
            .extrapolated)
    };
    assert_eq!(product(20_000, 5000, 7000), None);
    assert_eq!(
        product(1 << 20, 4096, 4096).as_deref(),
        Some("GEMM tokens 1048576 (measured: 4096 to 65536)")
    );
    assert!(product(4096, 4096, 22_016)
        .unwrap()
        .starts_with("GEMM features out 22016"));
    let call = attention(1 << 20, 32, AttentionDirection::Forward);
    assert_eq!(
        why(costs.attention(&call).extrapolated).as_deref(),
        Some("attention tokens 1048576 (measured: 4096 to 262144)")
    );
    // Beyond the longest sample at its rate: four times the length is sixteen times the time.
    let longest = costs
        .attention(&attention(1 << 18, 32, AttentionDirection::Forward))
        .time
        .get();
    let ratio = costs.attention(&call).time.get() as f64 / longest as f64;
    assert!(close(ratio, 16.0, 1e-4), "{ratio}");
    let call = attention(65_536, 8, AttentionDirection::Forward);
    assert_eq!(costs.attention(&call).extrapolated, None);
    let narrow = Attention {
        head_dim: 64,
        ..call
    };
    assert!(why(costs.attention(&narrow).extrapolated)
        .unwrap()
        .contains("head_dim 64"));
    let single = Attention {
        kv_heads: 1,
        ..call
    };
    assert!(why(costs.attention(&single).extrapolated)
        .unwrap()
        .contains("key/value head 32"));
    let window = Attention {
        window: Some(4096),
        ..call
    };
    assert_eq!(
        costs.attention(&window).extrapolated,
        Some(Extrapolation::Window(4096))
    );
    // Another type of numbers: by the peaks, and said so.
    let f32 = h100
        .costs(Dtype::F32)
        .unwrap()
        .gemm(&gemm(4096, 4096, 4096, PRODUCTS[0]));
    assert_eq!(f32.extrapolated, Some(Extrapolation::Dtype(Dtype::F32)));
    let bf16 = costs.gemm(&gemm(4096, 4096, 4096, PRODUCTS[0]));
    let ratio = f32.time.get() as f64 / bf16.time.get() as f64;
    assert!(close(ratio, 989.4 / 66.9, 0.02), "{ratio}");
}

#[test]
fn h100_workspace_is_what_cudnn_asks_for() {
    let h100 = load(H100).unwrap();
    let workspace = |tokens, kv_heads, direction| {
        costs(&h100)
            .attention_workspace(&attention(tokens, kv_heads, direction))
            .get()
    };
    // cuDNN 9.19's own answers at 4096 tokens, 32 heads of 128: plan plus dQ accumulator and sum.
    assert_eq!(
        workspace(4096, 32, AttentionDirection::Backward),
        67_633_408
    );
    assert_eq!(
        workspace(4096, 8, AttentionDirection::Backward),
        134_742_272
    );
    assert_eq!(workspace(65_536, 32, AttentionDirection::Forward), 256);
}

// --- laws ---

/// xorshift64*: Vigna, "An experimental exploration of Marsaglia's xorshift generators", 2016.
struct Random(u64);
impl Random {
    /// From 1 to `largest`, evenly in the logarithm.
    fn size(&mut self, largest: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        let unit = (self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 11) as f64 / (1u64 << 53) as f64;
        (largest as f64).powf(unit).round() as u64
    }
}

/// A profile of few, scattered and noisy samples, where interpolation has the most to invent.
fn noisy(random: &mut Random) -> Profile {
    let mut file: Value = serde_json::from_str(UNIT).unwrap();
    let mut samples = Vec::new();
    for direction in ["forward", "dgrad", "wgrad"] {
        for i in 0..6 {
            let [m, k, n] = [1 << 16, 1 << 14, 1 << 14].map(|largest| random.size(largest));
            let ns = 1 + m * k * n / (200_000 + random.size(1 << 20));
            samples.push(json!({"m": m + i, "k": k, "n": n, "direction": direction, "ns": ns}));
        }
    }
    let section = &mut file["operators"]["gemm"];
    *section = json!({"source": "random", "samples": samples});
    build(format::read(&file.to_string()).unwrap()).unwrap()
}

#[test]
fn no_product_takes_less_time_when_a_dimension_grows() {
    let mut random = Random(7);
    let mut profiles = vec![load(H100).unwrap(), load("rtx-4090-24gb").unwrap()];
    profiles.extend((0..20).map(|_| noisy(&mut random)));
    for profile in &profiles {
        for i in 0..2000 {
            let shape = [1 << 21, 1 << 16, 1 << 16].map(|largest| random.size(largest));
            let direction = PRODUCTS[i % 3];
            let time = |[m, k, n]: [u64; 3]| costs(profile).gemm(&gemm(m, k, n, direction)).time;
            let mut larger = shape;
            larger[i / 3 % 3] += random.size(1 << 14);
            let (small, large) = (time(shape), time(larger));
            let name = &profile.name;
            assert!(
                small <= large,
                "{name}: {shape:?} {small:?}, {larger:?} {large:?}"
            );
            let [m, k, n] = shape;
            let added = Gemm {
                accumulate: true,
                ..gemm(m, k, n, direction)
            };
            assert!(time(shape) <= costs(profile).gemm(&added).time);
        }
    }
}

#[test]
fn no_product_beats_the_memory_bandwidth() {
    let h100 = load(H100).unwrap();
    let bandwidth = h100.device.memory_rate.unwrap();
    // One token: the 2·4096² bytes of weight are read whatever the FLOPs.
    let one = costs(&h100)
        .gemm(&gemm(1, 4096, 4096, GemmDirection::Forward))
        .time;
    assert!(one >= Bytes::new(2 * 4096 * 4096) / bandwidth + h100.launch);
}

#[test]
fn no_attention_takes_less_time_when_anything_grows() {
    let mut random = Random(11);
    for profile in [load(H100).unwrap(), load("rtx-4090-24gb").unwrap()] {
        for i in 0..6000 {
            let call = Attention {
                tokens: random.size(1 << 21),
                batch: random.size(8),
                window: (i % 2 == 0).then(|| random.size(1 << 18)),
                ..attention(1, if i % 3 == 0 { 8 } else { 32 }, PASSES[i % 2])
            };
            let time = |call: &Attention| costs(&profile).attention(call).time;
            let longer = Attention {
                tokens: call.tokens + random.size(1 << 16),
                ..call
            };
            assert!(time(&call) <= time(&longer), "{call:?} {longer:?}");
            let wider = Attention {
                window: call.window.map(|w| w + random.size(1 << 16)),
                ..call
            };
            assert!(time(&call) <= time(&wider), "{call:?} {wider:?}");
            assert!(
                time(&call)
                    <= time(&Attention {
                        batch: call.batch + 1,
                        ..call
                    })
            );
        }
    }
}

#[test]
fn largest_shapes_saturate_instead_of_overflowing() {
    for name in shipped() {
        let profile = load(name).unwrap();
        let huge = gemm(u64::MAX, u64::MAX, u64::MAX, GemmDirection::Wgrad);
        assert!(costs(&profile).gemm(&huge).time.get() <= 1_000_000_000_000_000_000);
        let huge = Attention {
            tokens: u64::MAX,
            batch: u64::MAX,
            heads: u64::MAX,
            ..attention(1, 8, AttentionDirection::Backward)
        };
        assert!(costs(&profile).attention(&huge).time.get() <= 1_000_000_000_000_000_000);
        assert!(costs(&profile).attention_workspace(&huge) < Bytes::MAX);
    }
}

// --- files ---

#[test]
fn shipped_profiles_load_by_name_and_survive_a_round_trip() {
    assert_eq!(
        Vec::from_iter(shipped()),
        ["unit", "h100-sxm5-80gb", "rtx-4090-24gb"]
    );
    for name in shipped() {
        let profile = load(name).unwrap();
        assert_eq!(profile.name, name);
        let path = format!(
            "{}/profiles/hardware/{name}.json",
            env!("CARGO_MANIFEST_DIR")
        );
        assert_eq!(load(&path).unwrap(), profile, "by path");
        let file = format::read(&std::fs::read_to_string(&path).unwrap()).unwrap();
        assert_eq!(format::read(&format::write(&file)).unwrap(), file);
        for (section, source) in &profile.sources {
            let kinds = ["measured:", "datasheet:", "assumed:", "defined:"];
            assert!(
                kinds.iter().any(|kind| source.starts_with(kind)),
                "{name} {section}"
            );
        }
    }
}

/// The error of the unit profile with `value` at `pointer`.
fn refused(pointer: &str, value: Value) -> String {
    let mut file: Value = serde_json::from_str(UNIT).unwrap();
    let (parent, key) = pointer.rsplit_once('/').unwrap();
    file.pointer_mut(parent).unwrap()[key] = value;
    refused_text(&file.to_string())
}
fn refused_text(text: &str) -> String {
    let error = format::read(text)
        .and_then(build)
        .expect_err("must be refused");
    assert_eq!(error.kind, Kind::BadInput);
    error.to_string()
}
#[track_caller]
fn says(error: String, words: &[&str]) {
    for word in words {
        assert!(error.contains(word), "`{word}` is not in: {error}");
    }
}

#[test]
fn numbers_out_of_range_are_refused_by_path() {
    for value in [
        json!(0),
        json!(-1),
        json!(0.5),
        json!(1e19),
        json!("1"),
        json!(null),
    ] {
        says(
            refused("/device/memory_bytes", value),
            &["device.memory_bytes: ", "whole number"],
        );
    }
    says(
        refused("/operators/gemm/flops_per_s", json!(0)),
        &["operators.gemm.flops_per_s"],
    );
    says(
        refused("/links/both/h2d_bytes_per_s", json!(0)),
        &["links.both.h2d_bytes_per_s"],
    );
    says(
        refused("/slowdown/matmul/d2h_ppm", json!(10_000_001)),
        &["slowdown.matmul.d2h_ppm"],
    );
    says(
        refused("/device/peak_flops_per_s/bf16", json!(-3)),
        &["device.peak_flops_per_s"],
    );
    let sample = json!([{"bytes": 1, "ns": 1}, {"bytes": 0, "ns": 1}]);
    says(
        refused("/links/d2h", json!({ "samples": sample })),
        &["links.d2h.samples[1].bytes"],
    );
    says(
        refused_text(&UNIT.replacen("1e9", "NaN", 1)),
        &["device", "expected value at line"],
    );
    says(
        refused_text(&UNIT.replacen("1e9", "1e999", 1)),
        &["device", "out of range at line"],
    );
}

#[test]
fn broken_files_are_refused() {
    for cut in (0..UNIT.trim_end().len()).filter(|cut| UNIT.is_char_boundary(*cut)) {
        refused_text(&UNIT[..cut]);
    }
    says(refused_text(&format!("{UNIT}x")), &["trailing characters"]);
    refused_text(&"[".repeat(100_000));
    let deep = format!("{}1{}", "[".repeat(100_000), "]".repeat(100_000));
    refused_text(&UNIT.replacen("\"unit\"", &deep, 1));
    refused_text(&UNIT.replacen("\"name\"", &format!("\"x\": {deep}, \"name\""), 1));
    says(
        refused("/links/colour", json!("red")),
        &["links", "unknown field `colour`"],
    );
    says(
        refused("/default_dtype", json!("f12")),
        &["default_dtype", "f12"],
    );
}

#[test]
fn other_versions_are_named_before_anything_else() {
    let other = "{\"schema\": \"ebbtide/profile/2\", \"new\": 1}";
    says(
        refused_text(other),
        &[
            "`ebbtide/profile/2`",
            "this version reads `ebbtide/profile/1`",
        ],
    );
    says(refused_text("{}"), &["`schema` is missing"]);
}

#[test]
fn sections_that_contradict_themselves_are_refused() {
    says(
        refused("/device/usable_bytes", json!(1u64 << 41)),
        &["usable_bytes", "more than"],
    );
    says(
        refused("/device/overhead_bytes", json!(1u64 << 40)),
        &["leaves nothing"],
    );
    says(
        refused("/links/d2h", json!({})),
        &["links.d2h: neither of `samples`"],
    );
    says(
        refused("/links/d2h", json!({"samples": []})),
        &["links.d2h.samples: empty"],
    );
    let sample = json!({"bytes": 1, "ns": 1});
    let both = json!({"samples": [sample], "bytes_per_s": 1e9});
    says(
        refused("/links/d2h", both),
        &["links.d2h: both of `samples`"],
    );
    let late = json!({"samples": [sample], "latency_ns": 1});
    says(refused("/links/d2h", late), &["links.d2h.latency_ns"]);
    let slow = json!({"samples": [{"bytes": 1000, "ns": 1e18}]});
    says(
        refused("/links/d2h", slow),
        &["links.d2h.samples", "1000000 to"],
    );
    let section = |samples| json!({"source": "measured: x", "samples": samples});
    says(
        refused("/operators/elementwise", section(json!([sample, sample]))),
        &["twice"],
    );
    let product = json!({"m": 1, "k": 1, "n": 1, "direction": "forward", "ns": 1});
    says(
        refused("/operators/gemm", section(json!([product, product]))),
        &["twice"],
    );
    says(
        refused("/operators/gemm", section(json!([product]))),
        &["direction `dgrad`"],
    );
    let call = json!({"tokens": 1, "heads": 1, "kv_heads": 1, "head_dim": 1,
        "direction": "forward", "ns": 1});
    let only = json!({"source": "x", "samples": [call], "workspace": "none"});
    says(
        refused("/operators/attention", only),
        &["direction `backward`"],
    );
}

#[test]
fn unknown_names_and_unreadable_files_are_told() {
    let told = |spec: &str| load(spec).expect_err("must be refused").to_string();
    says(told("h200"), &["\"h200\" is no file", "h100-sxm5-80gb"]);
    says(told(env!("CARGO_MANIFEST_DIR")), &["irectory"]);
    says(
        told(concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml")),
        &["Cargo.toml", "expected"],
    );
}

#[test]
fn measured_workspace_and_elementwise_samples_are_used() {
    let mut file: Value = serde_json::from_str(UNIT).unwrap();
    let call = |direction: &str, workspace: u64| {
        json!({"tokens": 100, "heads": 2, "kv_heads": 2, "head_dim": 5, "direction": direction,
            "ns": 1000, "workspace_bytes": workspace, "spread_ns": 3, "repetitions": 7})
    };
    file["operators"]["attention"] = json!({"source": "measured: x", "workspace": "cudnn",
        "samples": [call("forward", 0), call("backward", 4096)]});
    file["operators"]["elementwise"] = json!({"source": "measured: x",
        "samples": [{"bytes": 100, "ns": 110}, {"bytes": 200, "ns": 160}]});
    file["operators"]["launch"] = json!({"source": "measured: x", "ns": 60});
    let profile = build(format::read(&file.to_string()).unwrap()).unwrap();
    let costs = costs(&profile);
    let call = Attention {
        tokens: 200,
        batch: 3,
        heads: 2,
        kv_heads: 2,
        head_dim: 5,
        window: None,
        direction: AttentionDirection::Backward,
    };
    assert_eq!(costs.attention_workspace(&call), Bytes::new(6 * 4096));
    // Launch 60 once; 940 for 100 tokens, four times that for 200, three sequences.
    assert_eq!(costs.attention(&call).time, Nanos::new(60 + 12 * 940));
    assert_eq!(costs.elementwise(Bytes::new(200)).time, Nanos::new(160));
    assert_eq!(costs.elementwise(Bytes::new(400)).time, Nanos::new(260));
    assert!(costs.elementwise(Bytes::new(400)).extrapolated.is_some());
}
