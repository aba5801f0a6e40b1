//! The shipped hardware profiles against their arithmetic, their samples and the laws of time;
//! broken files against the errors they must give.

mod h100;

use ebbtide::error::Kind;
use ebbtide::format::profile as format;
use ebbtide::profile::cost::{Attention, AttentionDirection, Costs, Gemm, GemmDirection};
use ebbtide::profile::{build, load, shipped, Dtype, Profile};
use ebbtide_solver::machine::Slowdown;
use ebbtide_solver::units::{Bytes, Nanos};
use serde_json::{json, Value};

const H100: &str = "h100-sxm5-80gb";
const UNIT: &str = include_str!("../../../profiles/hardware/unit.json");
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
