//! The H100: what was measured comes out again, and what was not is said to be extrapolated.

use ebbtide::format::profile as format;
use ebbtide::profile::cost::{Attention, AttentionDirection, Extrapolation, GemmDirection};
use ebbtide::profile::{build, load, Dtype};
use ebbtide_solver::units::Bytes;
use serde_json::Value;

use super::{attention, costs, gemm, H100, PASSES, PRODUCTS};

const H100_SAMPLES: &str = include_str!("../../../profiles/hardware/source/h100-sxm5-80gb.jsonl");
const H100_PROFILE: &str = include_str!("../../../profiles/hardware/h100-sxm5-80gb.json");

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
