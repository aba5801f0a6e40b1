//! One plan in time, coarse enough for a picture: what each stream does, neighbours of one block
//! and kind together, and the memory curve under it.

use ebbtide_solver::problem::Category;
use ebbtide_solver::schedule::{Action, Instruction, Schedule, Stream};

use crate::format::comparison::{MemoryPoint, Share, Slice, Timeline};
use crate::memory;
use crate::planning::Planned;

/// The memory curve has at most so many points.
const POINTS: u64 = 1200;

/// A pause shorter than this part of the step does not part neighbours.
const PAUSE: u64 = 2000;

/// The plan in time.
pub fn timeline(planned: &Planned) -> Timeline {
    let step_ns = planned.timeline.step.get();
    Timeline {
        step_ns,
        slices: Stream::ALL
            .into_iter()
            .flat_map(|stream| slices(planned, stream, step_ns / PAUSE))
            .collect(),
        blocks: blocks(planned),
        memory: curve(planned, step_ns),
        categories: Category::ALL.map(|c| c.name().to_owned()).into(),
    }
}

fn slices(planned: &Planned, stream: Stream, pause_ns: u64) -> Vec<Slice> {
    let schedule = &planned.file.schedule;
    let timed = schedule.stream(stream).iter();
    let timed = timed.zip(&planned.timeline.spans[stream as usize]);
    let mut slices: Vec<Slice> = Vec::new();
    for (instruction, &(start, end)) in timed {
        let Some((kind, block)) = kind(schedule, instruction) else {
            continue;
        };
        let (start_ns, end_ns) = (start.get(), end.get());
        match slices.last_mut() {
            Some(last)
                if last.kind == kind
                    && last.block == block
                    && start_ns <= last.end_ns + pause_ns =>
            {
                last.end_ns = end_ns;
            }
            _ => slices.push(Slice {
                stream: stream.name().into(),
                kind: kind.into(),
                block,
                what: memory::doing(schedule, instruction),
                start_ns,
                end_ns,
            }),
        }
    }
    slices
}

/// What kind of work an instruction is, and for which block; nothing for the step's edges.
fn kind(schedule: &Schedule, instruction: &Instruction) -> Option<(&'static str, Option<u32>)> {
    let moved = || {
        let operand = instruction.operands.first()?;
        let value = schedule.buffers[operand.buffer].value?;
        schedule.values[value].block
    };
    match instruction.action {
        Action::Run(op) => Some(("run", schedule.ops[op].block)),
        Action::Recompute(op) => Some(("recompute", schedule.ops[op].block)),
        Action::HostUpdate(_) => Some(("update", moved())),
        Action::Copy => Some(("copy", moved())),
        Action::Barrier => None,
    }
}

/// What becomes of each block's tensors, by bytes.
fn blocks(planned: &Planned) -> Vec<Share> {
    let problem = &planned.lowered.problem;
    let mut sums = vec![[0u64; 3]; problem.blocks() as usize];
    // One decision for every tensor, in order.
    for ((id, tensor), decision) in problem.tensors.iter().zip(&planned.file.decisions) {
        let Some(block) = problem.values[tensor.value].block else {
            continue;
        };
        let parts = [
            decision.keep_tokens,
            decision.swap_tokens,
            decision.recompute_tokens,
        ];
        let all = parts.iter().sum::<u64>().max(1);
        let bytes = problem.tensor_bytes(id);
        for (sum, part) in sums[block as usize].iter_mut().zip(parts) {
            *sum += bytes.scaled(part, all).get();
        }
    }
    let share = |(block, sums): (usize, &[u64; 3])| {
        let all = sums.iter().sum::<u64>().max(1) as f64;
        let [keep, swap, recompute] = sums.map(|sum| sum as f64 / all);
        Share {
            tensor: format!("block {block}"),
            keep,
            swap,
            recompute,
        }
    };
    sums.iter().enumerate().map(share).collect()
}

/// Live memory by category: of every short stretch of time the moment at which most lives.
fn curve(planned: &Planned, step_ns: u64) -> Vec<MemoryPoint> {
    let schedule = &planned.file.schedule;
    let mut live = vec![0u64; Category::ALL.len()];
    let mut points: Vec<MemoryPoint> = Vec::new();
    let stretch = |at_ns: u64| u128::from(at_ns) * u128::from(POINTS) / u128::from(step_ns.max(1));
    for change in memory::changes(schedule) {
        let sum = &mut live[schedule.buffers[change.buffer].category as usize];
        if change.begins {
            *sum += change.bytes.get();
        } else {
            *sum -= change.bytes.get();
        }
        let at_ns = memory::moment(&planned.timeline, change.position).get();
        let all = |bytes: &[u64]| bytes.iter().sum::<u64>();
        let here = || MemoryPoint {
            at_ns,
            bytes: live.clone(),
        };
        match points.last_mut() {
            Some(last) if stretch(last.at_ns) == stretch(at_ns) => {
                if all(&live) > all(&last.bytes) {
                    *last = here();
                }
            }
            _ => points.push(here()),
        }
    }
    points
}
