//! A plan for a person: what was decided, what it costs, what binds, how much is proved.

use std::collections::BTreeMap;

use ebbtide_solver::plan::Placement;
use ebbtide_solver::schedule::{Schedule, Stream};
use ebbtide_solver::search::Strategy;
use ebbtide_solver::units::{Bytes, Nanos, Tokens};

use super::{by_category, columns, count, grouped, percent, Sheet};
use crate::format::schedule::{Decision, ScheduleFile, Status};
use crate::memory;
use crate::methods::{Layers, LowRank};
use crate::planning::{Planned, Sensitivity};

/// The table.
pub fn table(planned: &Planned, sensitivity: &Sensitivity, remarks: &[(&str, String)]) -> String {
    let mut sheet = Sheet::default();
    head(planned, &mut sheet);
    sheet.gap();
    decided(planned, &mut sheet);
    sheet.gap();
    time(planned, &mut sheet);
    sheet.gap();
    space(planned, &mut sheet);
    sheet.gap();
    proof(planned, sensitivity, &mut sheet);
    for (i, guess) in planned.lowered.extrapolated.iter().enumerate() {
        sheet.row(if i == 0 { "extrapolated" } else { "" }, guess);
    }
    for (kind, words) in remarks {
        sheet.row(kind, words);
    }
    sheet.text()
}

fn head(planned: &Planned, sheet: &mut Sheet) {
    let file = &planned.file;
    let many = |number: u64, what: &str| match number {
        1 => String::new(),
        number => format!(" × {number} {what}"),
    };
    let workload = format!(
        "{} tokens{}{}, {}",
        Tokens::new(file.workload.seq),
        many(file.workload.batch, "sequences"),
        many(file.schedule.micro_batches.into(), "micro-batches"),
        file.workload.dtype
    );
    let parameters = grouped(file.model.parameters);
    sheet.row(
        "model",
        format!("{}, {parameters} parameters", file.model.name),
    );
    let clipped = match file.schedule.clips() {
        true if file.schedule.passes > 1 => ", clipped by the global norm in two passes",
        true => ", clipped by the global norm",
        false => "",
    };
    sheet.row("workload", format!("{workload}, {}{clipped}", file.method));
    if let Some(options) = file.method_options {
        sheet.row("method", of_low_rank(&options));
    }
    if let Some(storage) = file.storage {
        sheet.row("storage", super::tuning::of_storage(storage));
    }
    if let Some(words) = super::tuning::of_arithmetic(file.arithmetic) {
        sheet.row("arithmetic", words);
    }
    sheet.row("hardware", &file.hardware.name);
}

/// `rank 256, refreshed every 200 steps, scale 0.25`.
fn of_low_rank(options: &LowRank) -> String {
    let flags = [
        (options.per_layer, ", updated layer by layer"),
        (options.svd, ", by singular values"),
        (options.eight_bit, ", moments in 8 bits"),
    ];
    let mut flags: String = flags.iter().filter(|f| f.0).map(|f| f.1).collect();
    if options.layers != Layers::ALL {
        flags += &format!(", inputs of {}", options.layers.names().join(" and "));
    }
    format!(
        "rank {}, refreshed every {} steps, scale {}{flags}",
        options
            .rank
            .map_or_else(String::new, |rank| rank.to_string()),
        options.refresh,
        options.scale
    )
}

// ---- what was decided ---------------------------------------------------------------------------

fn decided(planned: &Planned, sheet: &mut Sheet) {
    let file = &planned.file;
    // Only a storage that is used has a column.
    let packed = file.decisions.iter().any(|d| d.packed_tokens > 0);
    let title = ["decided", "keep", "packed", "swap", "recompute", "blocks"];
    let mut rows = vec![Vec::from(title.map(String::from))];
    let mut order: Vec<&str> = Vec::new();
    let mut kinds: BTreeMap<&str, Vec<&Decision>> = BTreeMap::new();
    for decision in &file.decisions {
        let kind = kinds.entry(&decision.tensor).or_default();
        if kind.is_empty() {
            order.push(&decision.tensor);
        }
        kind.push(decision);
    }
    for name in order {
        let kind = &kinds[name];
        let part = |of: fn(&Decision) -> u64| {
            let all = file.schedule.tokens as f64 * kind.len() as f64;
            percent(kind.iter().map(|d| of(d) as f64).sum::<f64>() / all)
        };
        rows.push(vec![
            format!("  {name:<12}"),
            part(|d| d.keep_tokens - d.packed_tokens),
            part(|d| d.packed_tokens),
            part(|d| d.swap_tokens),
            part(|d| d.recompute_tokens),
            fates(kind),
        ]);
    }
    let mut right = vec![false, true, true, true, true, false];
    if !packed {
        rows.iter_mut().for_each(|row| drop(row.remove(2)));
        right.remove(2);
    }
    for line in columns(&rows, &right) {
        sheet.line(line);
    }
    sheet.row("states", placements(file));
    let tiling = planned.lowered.tiling;
    let cut = format!(
        "{}, tiles of {} tokens, of {} in the head",
        count(tiling.groups as usize, "head group"),
        Tokens::new(tiling.tile),
        Tokens::new(tiling.head_tile)
    );
    sheet.row("cut", cut);
}

/// `20 keep, 12 swap and recompute`: how many blocks do what with one tensor.
fn fates(decisions: &[&Decision]) -> String {
    let mut counts: BTreeMap<[bool; 4], usize> = BTreeMap::new();
    for d in decisions {
        let kept = d.keep_tokens - d.packed_tokens;
        let does = [d.recompute_tokens, d.swap_tokens, d.packed_tokens, kept];
        *counts.entry(does.map(|tokens| tokens > 0)).or_default() += 1;
    }
    let words = counts.into_iter().map(|(does, count)| {
        let verbs = ["recompute", "swap", "pack", "keep"];
        let verbs = verbs.iter().zip(does).rev().filter(|v| v.1).map(|v| *v.0);
        format!("{count} {}", Vec::from_iter(verbs).join(" and "))
    });
    Vec::from_iter(words).join(", ")
}

fn placements(file: &ScheduleFile) -> String {
    let kinds = [
        (Placement::Resident, "on the device"),
        (Placement::HostOptimizer, "updated by the host"),
        (Placement::Streamed, "streamed from the host"),
    ];
    let words = kinds.into_iter().filter_map(|(placement, words)| {
        let there = file.states.iter().filter(|s| s.placement == placement);
        let parameters: u64 = there.clone().map(|s| s.parameters).sum();
        let groups = count(there.count(), "group");
        (parameters > 0).then(|| format!("{groups} {words} ({} parameters)", grouped(parameters)))
    });
    Vec::from_iter(words).join(", ")
}

// ---- what it costs ------------------------------------------------------------------------------

fn time(planned: &Planned, sheet: &mut Sheet) {
    let (predicted, timeline) = (&planned.file.predicted, &planned.timeline);
    let step = timeline.step;
    let ratio = step.get() as f64 / predicted.floor.get().max(1) as f64;
    let below = match step < predicted.floor {
        true => ", whose updates are all on the device",
        false => "",
    };
    let floor = predicted.floor;
    sheet.row(
        "step",
        format!("{step} = {ratio:.3} × the floor of {floor}{below}"),
    );
    let parts = [
        ("compute", timeline.compute),
        ("recompute", timeline.recompute),
        ("packing", timeline.packing),
        ("slowed", timeline.slowed),
        ("stall", timeline.stall),
        ("tail", timeline.tail),
    ];
    for (name, length) in parts {
        if name == "packing" && length.is_zero() {
            continue;
        }
        let words = match name {
            "packing" => " of what stays in 8 bits",
            "slowed" => " beside copies",
            "stall" => " waiting for copies",
            "tail" => " for copies and optimizer after the last operator",
            _ => "",
        };
        let share = percent(length.get() as f64 / step.get().max(1) as f64);
        let length = length.to_string();
        sheet.row(
            &format!("  {name}"),
            format!("{length:>9}  {share:>7}{words}"),
        );
    }
    let renewal = planned.lowered.renewal;
    if !renewal.time.is_zero() {
        let (time, every) = (renewal.time, renewal.every);
        let words = format!("{time} more in one of {every} steps, spread over all of them");
        sheet.row("renewals", words);
    }
    let rate = format!(
        "{} tokens/s, MFU {}, HFU {}",
        grouped(predicted.tokens_per_s.round() as u64),
        percent(predicted.mfu),
        percent(predicted.hfu)
    );
    sheet.row("rate", rate);
}

fn space(planned: &Planned, sheet: &mut Sheet) {
    let file = &planned.file;
    let (schedule, predicted) = (&file.schedule, &file.predicted);
    let peak = memory::peak(schedule);
    let above = predicted.arena.saturating_sub(peak.bytes);
    let live = if above.is_zero() {
        "as much as lives at once, so optimal".to_owned()
    } else {
        let share = above.get() as f64 / peak.bytes.get().max(1) as f64;
        format!(
            "{} live, {:.2} % lost between buffers",
            peak.bytes,
            share * 100.0
        )
    };
    let device = format!(
        "arena of {} ({live}), budget {}; {} with context and libraries",
        predicted.arena, schedule.budget.device, predicted.device
    );
    sheet.row("device", device);
    sheet.row("  at its peak", by_category(&peak.by_category));
    sheet.row(
        "",
        format!("in {}", memory::running(schedule, peak.position)),
    );
    sheet.row(
        "host",
        format!("{}, budget {}", predicted.host, schedule.budget.host),
    );
    if !predicted.host.is_zero() {
        sheet.row("", by_category(&memory::host(schedule)));
    }
    for (name, stream, bytes) in [
        ("to the host", Stream::D2h, predicted.d2h),
        ("to the device", Stream::H2d, predicted.h2d),
    ] {
        let busy = percent(busy(planned, stream));
        sheet.row(name, format!("{bytes}, link busy {busy} of the step"));
    }
    sheet.row("binds", binds(planned));
}

fn busy(planned: &Planned, stream: Stream) -> f64 {
    let busy = planned.timeline.busy[stream as usize].get();
    busy as f64 / planned.timeline.step.get().max(1) as f64
}

/// What keeps the step from its floor, told by what is used up.
fn binds(planned: &Planned) -> String {
    /// What is used to this part is used up: pieces do not fit into less.
    const NEARLY: f64 = 0.97;
    let (schedule, timeline) = (&planned.file.schedule, &planned.timeline);
    let floor = planned.file.predicted.floor;
    if timeline.step.saturating_sub(floor) * 1000 <= floor {
        return "nothing: the step is at its floor".into();
    }
    let used = |bytes: Bytes, of: Bytes| bytes.get() as f64 / of.get().max(1) as f64;
    let mut binding = Vec::new();
    if used(schedule.arena_bytes, schedule.budget.device) > NEARLY {
        binding.push("device memory");
    }
    if used(schedule.host_bytes, schedule.budget.host) > NEARLY {
        binding.push("host memory");
    }
    if busy(planned, Stream::D2h) > NEARLY || busy(planned, Stream::H2d) > NEARLY {
        binding.push("the link");
    } else if (timeline.stall + timeline.tail) * 200 > timeline.step {
        binding.push("the link at times (it stalls compute)");
    }
    match (binding.is_empty(), planned.found_by) {
        (false, _) => binding.join(", "),
        (true, Strategy::Ilp) => {
            "no limit on its own: pieces of tensors are too large for what is free".into()
        }
        (true, strategy) => format!("nothing but the strategy: {} uses no more", strategy.name()),
    }
}

// ---- how sure it is -----------------------------------------------------------------------------

fn proof(planned: &Planned, sensitivity: &Sensitivity, sheet: &mut Sheet) {
    let file = &planned.file;
    let solver = &file.solver;
    let status = match solver.status {
        Status::Optimal => "optimal",
        Status::Gap => "gap",
        Status::TimeLimit => "time limit",
        Status::Unproved => "unproved",
    };
    let bound = solver.bound.unwrap_or(Nanos::ZERO);
    let gap = solver.gap.unwrap_or(1.0) * 100.0;
    let seconds = solver.solve_ms as f64 / 1e3;
    let words = format!("{status}: no plan beats {bound}, a gap of {gap:.2} %");
    sheet.row("proof", words);
    sheet.row(
        "strategy",
        format!(
            "{}, found by {} in {seconds:.2} s",
            file.strategy,
            planned.found_by.name()
        ),
    );
    sheet.row("check", checked(&file.schedule));
    let moved = |step: Nanos| {
        let base = planned.timeline.step.get() as f64;
        let part = (step.get() as f64 - base) / base.max(1.0) * 100.0;
        // With the minus sign of the words around it; what rounds to nothing has not moved back.
        match format!("{part:+.1} %") {
            nothing if nothing == "-0.0 %" => "+0.0 %".into(),
            moved => moved.replace('-', "−"),
        }
    };
    let words = format!(
        "links −10 %: step {}; compute +5 %: {}; compute −5 %: {}",
        moved(sensitivity.slow_links),
        moved(sensitivity.slow_compute),
        moved(sensitivity.fast_compute)
    );
    sheet.row("if", words);
}

/// The checker's verdict where it found nothing.
pub fn checked(schedule: &Schedule) -> String {
    let instructions: usize = schedule.streams.iter().map(Vec::len).sum();
    format!(
        "0 violations, {}, two steps",
        count(instructions, "instruction")
    )
}
