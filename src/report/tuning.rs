//! What the auto-tuner tried, the fastest first.

use crate::lower::Workload;
use crate::methods::Method;
use crate::report::{columns, grouped};
use crate::tuning::{Candidate, Outcome};

/// A table of all candidates, the chosen one first, and what the choice changes.
pub fn table(candidates: &[Candidate]) -> String {
    let title = [
        "tried",
        "micro-batches",
        "tokens/s",
        "step",
        "device",
        "host",
        "",
    ];
    let mut rows = vec![Vec::from(title.map(String::from))];
    rows.extend(candidates.iter().enumerate().map(row));
    let numbers = [false, false, true, true, true, true, false];
    let mut text = columns(&rows, &numbers).join("\n");
    text.push('\n');
    if let Some(chosen) = candidates.first() {
        let words = match chosen.method {
            Method::AdamW => "adamw changes no result".to_owned(),
            other => format!("{other} trains otherwise than adamw: {}", other.summary()),
        };
        text.push_str(&format!("{words}\n\n"));
    }
    text
}

fn row((nth, candidate): (usize, &Candidate)) -> Vec<String> {
    let Workload {
        batch, accumulate, ..
    } = candidate.workload;
    let mut row = vec![
        candidate.method.to_string(),
        format!("{accumulate} of {batch}"),
    ];
    match &candidate.outcome {
        Outcome::Planned(planned) => {
            let predicted = &planned.file.predicted;
            row.extend([
                grouped(predicted.tokens_per_s.round() as u64),
                predicted.step.to_string(),
                predicted.arena.to_string(),
                predicted.host.to_string(),
                if nth == 0 { "chosen" } else { "" }.to_owned(),
            ]);
        }
        Outcome::Infeasible(miss) => {
            let step = miss.step.as_deref().unwrap_or("the host");
            let words = format!("{step} needs {} of {}", miss.needed, miss.limit);
            row.extend(["", "", "", "", &words].map(String::from));
        }
        Outcome::Refused(error) => {
            row.extend(["", "", "", "", &error.to_string()].map(String::from));
        }
    }
    row
}
