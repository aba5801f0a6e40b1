//! What the auto-tuner tried, the fastest first.

use crate::device::arithmetic::Arithmetic;
use crate::device::packed::{Storage, GROUP};
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
        let method = chosen.method;
        let otherwise = format!("{method} trains otherwise than adamw: {}", method.summary());
        let mut changes = Vec::from_iter((method != Method::AdamW).then_some(otherwise));
        changes.extend(chosen.storage.map(of_storage));
        changes.extend(of_arithmetic(chosen.arithmetic));
        if changes.is_empty() {
            changes.push("adamw changes no result".to_owned());
        }
        text.push_str(&format!("{}\n\n", changes.join("\n")));
    }
    text
}

/// What a storage changes.
pub fn of_storage(storage: Storage) -> String {
    format!(
        "what travels or stays packed is rounded to {storage} with a scale for every {GROUP} \
         elements: losses and gradients change"
    )
}

/// What an arithmetic changes, if it does.
pub fn of_arithmetic(arithmetic: Arithmetic) -> Option<String> {
    let format = arithmetic.format()?;
    let what = match arithmetic.is_aware() {
        true => "rows of weights",
        false => "both operands of linear layers, but for weights' gradients,",
    };
    Some(format!(
        "{what} are rounded to {format}: losses and gradients change"
    ))
}

/// `adamw, fp8-compute, int8 storage`.
fn named(candidate: &Candidate) -> String {
    let mut name = candidate.method.to_string();
    if candidate.arithmetic != Arithmetic::Plain {
        name += &format!(", {}", candidate.arithmetic);
    }
    if let Some(storage) = candidate.storage {
        name += &format!(", {storage} storage");
    }
    name
}

fn row((nth, candidate): (usize, &Candidate)) -> Vec<String> {
    let Workload {
        batch, accumulate, ..
    } = candidate.workload;
    let mut row = vec![named(candidate), format!("{accumulate} of {batch}")];
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
            row.extend(["", "", "", "", &error.message].map(String::from));
        }
    }
    row
}
