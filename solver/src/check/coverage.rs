//! Every required operator runs exactly once on every range of every micro-batch.

use super::form::everything;
use super::violation::{Fault, Findings, Place};
use crate::ids::{Id, OpId};
use crate::problem::{Category, Domain};
use crate::schedule::{Action, Schedule, ScheduledOp, Stream};
use crate::units::Span;

/// One run: micro-batch, group, rows, and where it is.
type Run = (u32, u64, Span, Place);

pub(super) fn check_coverage(schedule: &Schedule, findings: &mut Findings) {
    let mut runs: Vec<Vec<Run>> = vec![Vec::new(); schedule.ops.len()];
    for stream in Stream::ALL {
        for (index, instruction) in schedule.stream(stream).iter().enumerate() {
            let Action::Run(op) = instruction.action else {
                continue;
            };
            let Some(entry) = schedule.ops.get(op).filter(|entry| entry.required) else {
                continue;
            };
            let at = Place {
                step: 1,
                stream,
                index,
            };
            let micro_batch = match changes_states(schedule, entry) {
                true => 0,
                false => instruction.micro_batch,
            };
            let all = everything(schedule);
            let rows = match entry.domain {
                Domain::Rows | Domain::RowsOfGroup => instruction.rows,
                Domain::Group | Domain::Whole => all.rows,
            };
            let groups = match entry.domain {
                Domain::RowsOfGroup | Domain::Group => instruction.groups,
                Domain::Rows | Domain::Whole => Span::new(0, 1),
            };
            for group in groups.start..groups.end.min(schedule.groups) {
                runs[op.index()].push((micro_batch, group, rows, at));
            }
        }
    }
    for (op, entry) in schedule.ops.iter().filter(|(_, entry)| entry.required) {
        let runs = &mut runs[op.index()];
        runs.sort_unstable();
        check_op(schedule, op, entry, runs, findings);
    }
}

/// Whether an operator belongs to the optimizer, which runs once a step and not once a micro-batch.
fn changes_states(schedule: &Schedule, op: &ScheduledOp) -> bool {
    op.updates
        .iter()
        .filter_map(|&value| schedule.values.get(value))
        .any(|value| {
            matches!(
                value.category,
                Category::Weights | Category::OptimizerStates
            )
        })
}

fn check_op(
    schedule: &Schedule,
    op: OpId,
    entry: &ScheduledOp,
    runs: &[Run],
    findings: &mut Findings,
) {
    let last = schedule.micro_batches - 1;
    // What runs once after all micro-batches of the first pass and changes no weights (a norm of
    // all gradients).
    let closes = entry.domain == Domain::Whole
        && entry.accumulates.is_empty()
        && !runs.is_empty()
        && runs.iter().all(|&(micro_batch, ..)| micro_batch == last);
    let (first, end) = match (changes_states(schedule, entry), closes) {
        (true, _) => (0, 1),
        (_, true) => (last, last + 1),
        _ => (0, schedule.rounds()),
    };
    let groups = match entry.domain {
        Domain::RowsOfGroup | Domain::Group => schedule.groups,
        Domain::Rows | Domain::Whole => 1,
    };
    let mut rest = runs;
    for micro_batch in first..end {
        for group in 0..groups {
            let count = rest
                .iter()
                .take_while(|r| (r.0, r.1) == (micro_batch, group))
                .count();
            let (mine, others) = rest.split_at(count);
            rest = others;
            let complete = check_rows(schedule.tokens, mine, &mut |fault_rows, run| {
                let at = run.map(|run: &Run| run.3);
                refuse(op, entry, (micro_batch, group), fault_rows, at, findings);
            });
            // One hole says it all; micro-batches may be many and are not all worth a look.
            if !complete {
                return;
            }
        }
    }
}

/// Whether sorted runs cover all rows exactly once; reports the first hole or overlap, the latter
/// with the run that repeats.
fn check_rows<'a>(
    tokens: u64,
    runs: &'a [Run],
    report: &mut dyn FnMut(Span, Option<&'a Run>),
) -> bool {
    let mut covered = 0;
    for run in runs {
        let rows = run.2;
        if rows.start > covered {
            report(Span::new(covered, rows.start), None);
            return false;
        }
        if rows.start < covered {
            report(Span::new(rows.start, covered.min(rows.end)), Some(run));
            return false;
        }
        covered = covered.max(rows.end);
    }
    if covered < tokens {
        report(Span::new(covered, tokens), None);
    }
    covered >= tokens
}

fn refuse(
    op: OpId,
    entry: &ScheduledOp,
    (micro_batch, group): (u32, u64),
    rows: Span,
    again: Option<Place>,
    findings: &mut Findings,
) {
    let groups = Span::new(group, group + 1);
    let fault = match again {
        None => Fault::MissingRange {
            op,
            micro_batch,
            rows,
            groups,
        },
        Some(_) => Fault::DoubleRange {
            op,
            micro_batch,
            rows,
            groups,
        },
    };
    findings.add(fault, again, None, None);
    for &value in &entry.accumulates {
        let fault = match again {
            None => Fault::ContributionMissing { op, value },
            Some(_) => Fault::ContributionTwice { op, value },
        };
        findings.add(fault, again, None, None);
    }
}
