//! A run for a person: predicted against measured, the worst offenders first.

use std::cmp::Reverse;

use ebbtide_solver::units::Nanos;

use super::{columns, count, grouped};
use crate::format::run::{Kind, Part, RunFile};

/// How many operators are shown.
const OPERATORS: usize = 12;

/// The table.
pub fn table(file: &RunFile, remarks: &[String]) -> String {
    let mut lines = vec![
        format!(
            "{}, {}, {}: planned for {}, run on {}",
            file.model, file.method, file.strategy, file.hardware, file.device
        ),
        losses(file),
        String::new(),
    ];
    lines.extend(parts(file));
    lines.push(String::new());
    lines.extend(memory(file));
    lines.extend(remarks.iter().map(|remark| format!("note: {remark}")));
    lines.join("\n") + "\n"
}

fn losses(file: &RunFile) -> String {
    match (file.losses.first(), file.losses.last()) {
        (Some(first), Some(last)) => format!(
            "{}, loss {first:.4} → {last:.4}, {} tokens/s (predicted {})",
            count(file.losses.len(), "step"),
            grouped(file.measured.tokens_per_s.round() as u64),
            grouped(file.predicted.tokens_per_s.round() as u64),
        ),
        _ => "no step".into(),
    }
}

/// Each kind in its own rows; within it what differs by most time first.
fn parts(file: &RunFile) -> Vec<String> {
    let title = ["", "", "predicted", "measured", "difference", ""];
    let mut rows = vec![Vec::from(title.map(String::from))];
    for kind in Kind::ALL {
        let mut of_kind: Vec<&Part> = file.parts.iter().filter(|p| p.kind == kind).collect();
        of_kind.retain(|p| !(p.predicted.is_zero() && p.measured.is_zero()));
        // The totals have an order of their own.
        if kind != Kind::Total {
            of_kind.sort_by_key(|part| Reverse(part.measured.get().abs_diff(part.predicted.get())));
        }
        let shown = match kind {
            Kind::Operator => OPERATORS,
            _ => of_kind.len(),
        };
        for (nth, part) in of_kind.iter().take(shown).enumerate() {
            let label = if nth == 0 { kind.name() } else { "" };
            rows.push(row(label, part));
        }
        if of_kind.len() > shown {
            rows.push(vec![String::new(), "…".into()]);
        }
    }
    columns(&rows, &[false, false, true, true, true, true])
}

fn row(label: &str, part: &Part) -> Vec<String> {
    let (predicted, measured) = (part.predicted, part.measured);
    let sign = if measured < predicted { "-" } else { "+" };
    let difference = Nanos::new(measured.get().abs_diff(predicted.get()));
    let relative = match predicted.get() {
        0 => String::new(),
        of => {
            let percent = difference.get() as f64 / of as f64 * 100.0;
            format!("{sign}{percent:.1} %")
        }
    };
    vec![
        label.to_owned(),
        part.name.clone(),
        predicted.to_string(),
        measured.to_string(),
        format!("{sign}{difference}"),
        relative,
    ]
}

fn memory(file: &RunFile) -> Vec<String> {
    let title = ["memory", "predicted", "measured"];
    let mut rows = vec![Vec::from(title.map(String::from))];
    let (predicted, measured) = (&file.predicted, &file.measured);
    for (name, predicted, measured) in [
        ("peak alive", predicted.peak_live, measured.peak_live),
        ("arena", predicted.arena, measured.arena),
        ("host", predicted.host, measured.host),
        ("sent to host", predicted.d2h, measured.d2h),
        ("fetched", predicted.h2d, measured.h2d),
    ] {
        rows.push(vec![
            name.to_owned(),
            predicted.to_string(),
            measured.to_string(),
        ]);
    }
    columns(&rows, &[false, true, true])
}
