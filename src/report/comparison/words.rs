//! What a comparison says, in sentences.

use std::collections::BTreeSet;

use ebbtide_solver::units::{Bytes, BytesPerSec, Nanos, Tokens};

use crate::format::comparison::{Cell, ComparisonFile, Fit, Group};
use crate::report::count;

/// `llama-3.1-8b on h100-sxm5-80gb: which strategy when`.
pub(super) fn title(file: &ComparisonFile) -> String {
    let settings = &file.settings;
    format!(
        "{} on {}: which strategy when",
        settings.model, settings.profile
    )
}

/// The strategy whose plan is fastest with tiles, and its plan; of equals the first.
pub(super) fn fastest(group: &Group) -> Option<(&Cell, &Fit)> {
    let cells = group.cells.iter().filter(|cell| cell.tiled);
    let plans = cells.filter_map(|cell| Some((cell, cell.fits.as_ref()?)));
    plans.min_by_key(|(_, fit)| fit.step_ns)
}

/// The kinds of tensors that blocks have, as the first plan names them.
pub(super) fn tensor_kinds<'a>(groups: impl IntoIterator<Item = &'a Group>) -> Vec<String> {
    let first = groups.into_iter().find_map(fastest);
    let shares = first.map(|(_, fit)| fit.shares.iter().map(|share| share.tensor.clone()));
    shares.map(Vec::from_iter).unwrap_or_default()
}

/// `128k`.
pub(super) fn tokens(seq: u64) -> String {
    Tokens::new(seq).to_string()
}

/// `device memory` of `device memory: 80.1 GiB of 72.0 GiB in …`.
pub(super) fn cause(why: &str) -> &str {
    why.split(':').next().unwrap_or(why)
}

/// A sentence or two for each method.
pub(super) fn summary(file: &ComparisonFile) -> Vec<String> {
    let mut lines = Vec::new();
    for method in file.methods() {
        let groups: Vec<&Group> = file.of_method(method).collect();
        let fitting = groups.iter().filter_map(|g| Some((*g, fastest(g)?)));
        let fitting: Vec<_> = fitting.collect();
        let Some((longest, (cell, fit))) = fitting.last() else {
            let lengths = groups.first().map_or(0, |group| group.seq);
            lines.push(format!(
                "{method}: nothing fits, not even {} tokens",
                tokens(lengths)
            ));
            continue;
        };
        let over = |(group, (_, fit)): &(&Group, (&Cell, &Fit))| fit.over(group.floor_ns);
        let worst = fitting.iter().map(over).fold(0.0, f64::max);
        let best = fitting.iter().map(over).fold(f64::INFINITY, f64::min);
        lines.push(format!(
            "{method}: the longest compared length that fits is {} ({}, {} a step); the fastest \
             plans take {best:.3} to {worst:.3} × their floor{}",
            tokens(longest.seq),
            cell.strategy,
            Nanos::new(fit.step_ns),
            match best < 1.0 {
                true => " (less than 1 where the host updates what the floor's device does)",
                false => "",
            }
        ));
        lines.extend(switches(method, &fitting));
        lines.extend(gains(method, &groups));
    }
    lines
}

/// From which length on which of the simple strategies is fastest.
fn switches(method: &str, fitting: &[(&Group, (&Cell, &Fit))]) -> Option<String> {
    let mut runs: Vec<(String, u64, u64)> = Vec::new();
    for (group, _) in fitting {
        let simple = group
            .cells
            .iter()
            .filter(|c| c.tiled && c.strategy != "ilp");
        let plans = simple.filter_map(|cell| Some((cell, cell.fits.as_ref()?.step_ns)));
        let Some((cell, _)) = plans.min_by_key(|(_, step)| *step) else {
            continue;
        };
        match runs.last_mut() {
            Some((name, _, last)) if *name == cell.strategy => *last = group.seq,
            _ => runs.push((cell.strategy.clone(), group.seq, group.seq)),
        }
    }
    let words = runs.iter().map(|(name, from, to)| match from == to {
        true => format!("{name} at {}", tokens(*from)),
        false => format!("{name} from {} to {}", tokens(*from), tokens(*to)),
    });
    let words = Vec::from_iter(words);
    (!words.is_empty()).then(|| {
        format!(
            "{method}: fastest but for the search (ilp): {}",
            words.join(", ")
        )
    })
}

/// How much faster the fastest plan is than what people run today.
fn gains(method: &str, groups: &[&Group]) -> Option<String> {
    let gain = |strategy: &str, tiled: bool| {
        let gains = groups.iter().filter_map(|group| {
            let cell = if tiled {
                group.cell(strategy)
            } else {
                group.untiled(strategy)
            };
            let step = cell?.fits.as_ref()?.step_ns as f64;
            Some((step / fastest(group)?.1.step_ns as f64, group.seq))
        });
        gains.max_by(|a, b| a.0.total_cmp(&b.0))
    };
    let against = |tiled: bool| {
        let all = ["checkpoint", "checkpoint-offload"].into_iter();
        let all = all.filter_map(|strategy| {
            let (gain, seq) = gain(strategy, tiled)?;
            let at = tokens(seq);
            Some(format!("{gain:.2} × as fast as {strategy} (at {at})"))
        });
        Vec::from_iter(all).join(" and ")
    };
    let (same, without) = (against(true), against(false));
    let parts = [("with the same tiles", same), ("without tiles", without)];
    let parts = parts.into_iter().filter(|(_, gains)| !gains.is_empty());
    let parts = parts.map(|(tiles, gains)| format!("{gains} {tiles}"));
    let parts = Vec::from_iter(parts);
    (!parts.is_empty()).then(|| format!("{method}: at most {}", parts.join("; ")))
}

/// What the numbers are worth.
pub(super) fn provenance(file: &ComparisonFile) -> Vec<String> {
    let settings = &file.settings;
    let [d2h, h2d] = settings.link_bytes_per_s.map(|rate| {
        BytesPerSec::new(rate).map_or_else(|| "no link".into(), |rate| rate.to_string())
    });
    let mut lines = vec![format!(
        "predicted, not run: {} of {} at batch {} × {}, {} of device memory (and {} of context \
         and libraries), {} of host memory, links {d2h} out and {h2d} in",
        settings.dtype,
        settings.model,
        settings.batch,
        settings.accumulate,
        Bytes::new(settings.device_bytes),
        Bytes::new(settings.overhead_bytes),
        Bytes::new(settings.host_bytes),
    )];
    let beyond = file
        .groups
        .iter()
        .filter(|g| g.seq > settings.max_positions)
        .count();
    if beyond > 0 {
        lines.push(format!(
            "{} was made for {} tokens: longer sequences are beyond max_position_embeddings",
            settings.model,
            tokens(settings.max_positions)
        ));
    }
    if not_measured(file) {
        lines.push(format!(
            "the profile {} is not measured: its numbers are datasheet values and assumptions, \
             listed below",
            settings.profile
        ));
    }
    let guessed: BTreeSet<u64> = file
        .groups
        .iter()
        .filter(|group| beyond_measured_lengths(group))
        .map(|group| group.seq)
        .collect();
    if !guessed.is_empty() {
        let lengths = Vec::from_iter(guessed.iter().map(|seq| tokens(*seq)));
        lines.push(format!(
            "{} {} outside the lengths that the profile measured: {}; rings in the figures",
            count(guessed.len(), "length"),
            if guessed.len() == 1 { "is" } else { "are" },
            lengths.join(", ")
        ));
    }
    lines
}

/// Whether nothing of the profile has been measured.
pub(super) fn not_measured(file: &ComparisonFile) -> bool {
    let sources = &file.settings.sources;
    let assumed = |words: &String| words.contains("assumed") || words.contains("datasheet");
    !sources.is_empty() && sources.values().all(assumed)
}

/// Whether a cost was asked of the profile for a number of tokens that it has not measured.
pub(super) fn beyond_measured_lengths(group: &Group) -> bool {
    group
        .extrapolated
        .iter()
        .any(|guess| guess.contains("attention tokens"))
}
