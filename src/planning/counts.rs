//! What a schedule file says beside the schedule: the model, what was decided, what is predicted.

use ebbtide_solver::plan::{Fate, Placement, Plan};
use ebbtide_solver::problem::{Problem, Split};
use ebbtide_solver::schedule::{Action, Schedule, Stream};
use ebbtide_solver::simulate::{copied_bytes, Timeline};
use ebbtide_solver::units::Nanos;

use super::Request;
use crate::format::schedule as file;
use crate::lower::{is_of_method, Lowered};
use crate::model::ModelConfig;

pub(super) fn describe_model(model: &ModelConfig) -> file::Model {
    let small = |count: u64| u32::try_from(count).expect("bounded by the config reader");
    file::Model {
        name: model.name.clone(),
        parameters: model.parameters(),
        layers: small(model.layers),
        hidden: model.hidden,
        intermediate: model.intermediate,
        heads: small(model.heads),
        kv_heads: small(model.kv_heads),
        head_dim: small(model.head_dim),
        vocab: model.vocab,
        config: model.source.as_object().cloned(),
    }
}

/// The peak that MFU is counted against.
pub(super) fn peak_flops_per_s(request: &Request<'_>) -> u64 {
    let peaks = &request.profile.device.peak_flops_per_s;
    let peak = peaks.get(&request.workload.dtype);
    *peak.expect("lowering refuses a type without a peak")
}

/// What becomes of every tensor, in tokens: where pieces are head groups, the same part of them.
pub(super) fn decisions(
    problem: &Problem,
    plan: &Plan,
    request: &Request<'_>,
) -> Vec<file::Decision> {
    let all = problem.tokens.get();
    let decide = |(id, fate): (_, Fate)| {
        let tensor = &problem.tensors[id];
        let value = &problem.values[tensor.value];
        let tokens_until = |pieces: u32| match value.split {
            Split::Rows => problem.pieces_extent(id, 0, pieces).0.len(),
            Split::Groups | Split::Whole => {
                all * u64::from(pieces) / u64::from(tensor.pieces.max(1))
            }
        };
        let exact = tokens_until(fate.keep);
        let kept = tokens_until(fate.keep + fate.pack);
        let stored = tokens_until(fate.retained());
        file::Decision {
            block: value.block,
            tensor: value.name.clone(),
            keep_tokens: kept,
            packed_tokens: kept - exact,
            swap_tokens: stored - kept,
            recompute_tokens: all - stored,
            stored_as: match request.storage.filter(|_| fate.keep < fate.retained()) {
                Some(storage) => storage.to_string(),
                None => request.workload.dtype.to_string(),
            },
        }
    };
    plan.iter().map(decide).collect()
}

pub(super) fn states(problem: &Problem, placements: &[Placement]) -> Vec<file::State> {
    let groups = problem.states.iter().zip(placements);
    groups
        .map(|(group, &placement)| file::State {
            placement,
            parameters: group.parameters,
        })
        .collect()
}

pub(super) fn predict(
    request: &Request<'_>,
    lowered: &Lowered,
    schedule: &Schedule,
    timeline: &Timeline,
    floor: Nanos,
) -> file::Predicted {
    let seconds = timeline.step.get().max(1) as f64 / 1e9;
    let (model, executed) = flops(lowered, schedule);
    let of_peak = |flops: u128| flops as f64 / seconds / peak_flops_per_s(request) as f64;
    let tokens = schedule.tokens * u64::from(schedule.micro_batches);
    file::Predicted {
        step: timeline.step,
        floor,
        recompute: timeline.recompute,
        packing: timeline.packing,
        stall: timeline.stall,
        optimizer_tail: timeline.tail,
        tokens_per_s: tokens as f64 / seconds,
        mfu: of_peak(model),
        hfu: of_peak(executed),
        peak_live: crate::memory::peak(schedule).bytes,
        arena: schedule.arena_bytes,
        device: schedule.arena_bytes + request.beside_arena(),
        host: schedule.host_bytes,
        d2h: copied_bytes(schedule, Stream::D2h),
        h2d: copied_bytes(schedule, Stream::H2d),
    }
}

/// FLOPs of a step: the model's own, and all that are executed. Of attention's five products
/// backward one makes the scores again, which is the kernel's choice and not the model's; neither
/// is a pass that only counts gradients.
fn flops(lowered: &Lowered, schedule: &Schedule) -> (u128, u128) {
    let (mut model, mut executed) = (0, 0);
    for instruction in schedule.stream(Stream::Compute) {
        let (Action::Run(op) | Action::Recompute(op)) = instruction.action else {
            continue;
        };
        let flops = lowered.flops[op];
        let flops = flops.fixed + flops.row * u128::from(instruction.rows.len());
        executed += flops;
        let counts = instruction.micro_batch < schedule.micro_batches;
        if instruction.action == Action::Run(op) && counts {
            model += match lowered.problem.ops[op].name.as_str() {
                "attention_backward" => flops * 4 / 5,
                name if is_of_method(name) => 0,
                _ => flops,
            };
        }
    }
    (model, executed)
}
