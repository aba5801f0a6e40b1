//! What `ebbtide profile` says: the machine in a few lines, and how well its parts add up.

use super::columns;
use crate::format::profile::{BlockSample, ProfileFile};
use crate::profile::Profile;
use ebbtide_solver::units::Nanos;

/// The table, and remarks behind it.
pub fn table(file: &ProfileFile, profile: &Profile, remarks: &[String]) -> String {
    let links = &profile.machine.links;
    let adam = profile.machine.host_adam.params_per_s.get() as f64 / 1e6;
    let peak = profile.device.peak_flops_per_s.values().max();
    let both = &links.both;
    let count = |samples: Option<usize>| samples.unwrap_or(0);
    let operators = &file.operators;
    let gemms = count(operators.gemm.samples.as_ref().map(Vec::len));
    let attention = count(operators.attention.samples.as_ref().map(Vec::len));
    let kernels = count(operators.elementwise.kernels.as_ref().map(Vec::len));
    let percent = |ppm: u32| f64::from(ppm) / 1e4;
    let slowdown = &profile.machine.matmul_slowdown;
    let lines = [
        (
            "device",
            format!("{}, {}", profile.name, profile.device.name),
        ),
        (
            "memory",
            format!(
                "{} usable, {} overhead; host {}",
                profile.device.usable, profile.device.overhead, profile.host.memory
            ),
        ),
        (
            "peak",
            format!("{:.1} GFLOP/s", peak.copied().unwrap_or(0) as f64 / 1e9),
        ),
        ("launch", profile.launch.to_string()),
        (
            "to the host",
            format!(
                "{} and {}, {} beside the other",
                links.d2h.latency, links.d2h.rate, both.d2h
            ),
        ),
        (
            "to the device",
            format!(
                "{} and {}, {} beside the other",
                links.h2d.latency, links.h2d.rate, both.h2d
            ),
        ),
        (
            "beside copies",
            format!(
                "products take {:.1} % longer (copies out), {:.1} % (in), {:.1} % (both)",
                percent(slowdown.d2h_ppm),
                percent(slowdown.h2d_ppm),
                percent(slowdown.both_ppm)
            ),
        ),
        ("host AdamW", format!("{adam:.0} M parameters/s")),
        (
            "samples",
            format!("{gemms} products, {attention} of attention, {kernels} other kernels"),
        ),
    ];
    let rows: Vec<Vec<String>> = lines
        .into_iter()
        .map(|(name, text)| vec![name.to_owned(), text])
        .collect();
    let mut text = columns(&rows, &[]).join("\n") + "\n";
    if let Some(measurement) = &file.measurement {
        text += &blocks(&measurement.blocks);
    }
    for remark in remarks {
        text += &format!("note: {remark}\n");
    }
    text
}

/// Blocks from end to end beside the sum of their operators.
fn blocks(blocks: &[BlockSample]) -> String {
    let titles = [
        "block of tokens",
        "head groups",
        "forward",
        "sum of operators",
        "backward",
        "sum of operators",
    ];
    let mut rows = vec![titles.map(String::from).to_vec()];
    rows.extend(blocks.iter().map(|block| {
        let time = |ns: u64| Nanos::new(ns).to_string();
        vec![
            block.tokens.get().to_string(),
            block.groups.get().to_string(),
            time(block.forward_ns.get()),
            time(block.forward_operators_ns.get()),
            time(block.backward_ns.get()),
            time(block.backward_operators_ns.get()),
        ]
    }));
    format!("\n{}\n", columns(&rows, &[true; 6]).join("\n"))
}
