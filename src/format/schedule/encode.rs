//! A schedule as text.

use std::fmt::Write;

use serde::Serialize;

use ebbtide_solver::ids::Id;
use ebbtide_solver::machine::{Link, Slowdown};
use ebbtide_solver::schedule::{
    Action, Buffer, Instruction, ScheduledGroup, ScheduledOp, ScheduledValue, Stream,
};
use ebbtide_solver::units::{BytesPerSec, Span};

use super::wire::*;
use super::{Decision, Predicted, ScheduleFile, State, SCHEMA};
use crate::device::arithmetic::Arithmetic;
use crate::methods::{Layers, Rank};

/// The whole file: one line for each short section and for each entry of the long ones.
pub(super) fn to_text(file: &ScheduleFile) -> String {
    let s = &file.schedule;
    let mut text = head(file);
    list(&mut text, "operators", s.ops.values().map(operator));
    list(&mut text, "values", s.values.values().map(value));
    list(&mut text, "buffers", s.buffers.values().map(buffer));
    text.push_str("\"streams\":{\n");
    for stream in Stream::ALL {
        list(
            &mut text,
            stream.name(),
            s.stream(stream).iter().map(instruction),
        );
    }
    end(&mut text, "}\n}\n");
    text
}

/// All but what an interpreter needs.
pub(super) fn to_summary(file: &ScheduleFile) -> String {
    let mut text = head(file);
    end(&mut text, "}\n");
    text
}

/// The object's beginning: its sections up to the long lists.
fn head(file: &ScheduleFile) -> String {
    let s = &file.schedule;
    let states = s
        .state_groups
        .iter()
        .zip(&file.states)
        .map(|(group, state)| wire_state(group, state));
    let mut text = String::from("{\n");
    line(&mut text, "schema", &SCHEMA);
    line(&mut text, "ebbtide_version", &file.ebbtide_version);
    line(&mut text, "model", &model(file));
    line(&mut text, "workload", &workload(file));
    line(&mut text, "hardware", &hardware(file));
    line(&mut text, "method", &file.method);
    if let Some(options) = file.method_options {
        let (rank, rank_divisor) = match options.rank {
            Some(Rank::Part(parts)) => (None, Some(parts)),
            Some(Rank::Of(rank)) => (Some(rank), None),
            None => (None, None),
        };
        let some = options.layers != Layers::ALL;
        let compress = some.then(|| options.layers.names());
        let options = WireMethodOptions {
            rank,
            rank_divisor,
            refresh: options.refresh,
            scale: options.scale,
            per_layer: options.per_layer,
            svd: options.svd,
            eight_bit: options.eight_bit,
            compress: compress.map(|names| names.into_iter().map(String::from).collect()),
        };
        line(&mut text, "method_options", &options);
    }
    if let Some(storage) = file.storage {
        line(&mut text, "storage", &WireStorage::from(storage));
    }
    if file.arithmetic != Arithmetic::Plain {
        line(&mut text, "arithmetic", &file.arithmetic.name());
    }
    line(&mut text, "strategy", &file.strategy);
    let budget = WireBudget {
        device_bytes: s.budget.device.get(),
        host_bytes: s.budget.host.get(),
    };
    line(&mut text, "budget", &budget);
    line(&mut text, "solver", &solver(file));
    line(&mut text, "predicted", &predicted(&file.predicted));
    list(&mut text, "decisions", file.decisions.iter().map(decision));
    list(&mut text, "states", states);
    line(&mut text, "head_groups", &s.groups);
    line(&mut text, "events", &s.events);
    line(&mut text, "arena_bytes", &s.arena_bytes.get());
    line(&mut text, "host_bytes", &s.host_bytes.get());
    text
}

fn json(value: &impl Serialize) -> String {
    serde_json::to_string(value).expect("plain data with text keys")
}
fn line(text: &mut String, key: &str, value: &impl Serialize) {
    writeln!(text, "\"{key}\":{},", json(value)).expect("memory");
}
fn list<T: Serialize>(text: &mut String, key: &str, entries: impl Iterator<Item = T>) {
    write!(text, "\"{key}\":[").expect("memory");
    for (i, entry) in entries.enumerate() {
        write!(text, "{}\n{}", if i == 0 { "" } else { "," }, json(&entry)).expect("memory");
    }
    text.push_str("],\n");
}
/// Closes an object after its last entry's comma.
fn end(text: &mut String, close: &str) {
    text.truncate(text.len() - ",\n".len());
    text.push('\n');
    text.push_str(close);
}

fn pair(span: Span) -> [u64; 2] {
    [span.start, span.end]
}
fn number<I: Id>(id: I) -> u32 {
    u32::try_from(id.index()).expect("ids have 32 bits")
}
fn numbers<I: Id>(ids: &[I]) -> Vec<u32> {
    ids.iter().copied().map(number).collect()
}
fn finite(number: f64) -> f64 {
    assert!(number.is_finite(), "a schedule's numbers are finite");
    number
}

fn model(file: &ScheduleFile) -> WireModel {
    let model = &file.model;
    WireModel {
        name: model.name.clone(),
        parameters: model.parameters,
        layers: model.layers,
        hidden: model.hidden,
        intermediate: model.intermediate,
        heads: model.heads,
        kv_heads: model.kv_heads,
        head_dim: model.head_dim,
        vocab: model.vocab,
        config: model.config.clone(),
    }
}

fn workload(file: &ScheduleFile) -> WireWorkload {
    WireWorkload {
        seq: file.workload.seq,
        batch: file.workload.batch,
        accumulate: file.schedule.micro_batches,
        passes: file.schedule.passes,
        dtype: file.workload.dtype.clone(),
        tokens: file.schedule.tokens,
    }
}

fn hardware(file: &ScheduleFile) -> WireHardware {
    let machine = &file.schedule.machine;
    let link = |link: Link| WireLink {
        latency_ns: link.latency.get(),
        bytes_per_s: link.rate.get(),
    };
    WireHardware {
        name: file.hardware.name.clone(),
        d2h: link(machine.links.d2h),
        h2d: link(machine.links.h2d),
        both: WireRates {
            d2h_bytes_per_s: machine.links.both.d2h.get(),
            h2d_bytes_per_s: machine.links.both.h2d.get(),
        },
        matmul_slowdown: slowdown(machine.matmul_slowdown),
        elementwise_slowdown: slowdown(machine.elementwise_slowdown),
        packing: machine.packing.map(link),
        host_adam: WireHostAdam {
            params_per_s: machine.host_adam.params_per_s.get(),
            bytes_per_param: machine.host_adam.bytes_per_param.get(),
        },
        host_memory_bytes_per_s: machine.host_memory.map(BytesPerSec::get),
        overhead_bytes: file.hardware.overhead.get(),
        peak_flops_per_s: file.hardware.peak_flops_per_s,
        host_memory_bytes: file.hardware.host_memory.get(),
    }
}

fn slowdown(slowdown: Slowdown) -> WireSlowdown {
    WireSlowdown {
        d2h_ppm: slowdown.d2h_ppm,
        h2d_ppm: slowdown.h2d_ppm,
        both_ppm: slowdown.both_ppm,
    }
}

fn decision(decision: &Decision) -> WireDecision {
    WireDecision {
        block: decision.block,
        tensor: decision.tensor.clone(),
        keep_tokens: decision.keep_tokens,
        packed_tokens: decision.packed_tokens,
        swap_tokens: decision.swap_tokens,
        recompute_tokens: decision.recompute_tokens,
        stored_as: decision.stored_as.clone(),
    }
}

fn wire_state(group: &ScheduledGroup, state: &State) -> WireState {
    WireState {
        name: group.name.clone(),
        placement: state.placement.into(),
        parameters: state.parameters,
        on_host: group.on_host,
        weights: numbers(&group.weights),
        gradients: numbers(&group.gradients),
        states: group.states.map(number),
    }
}

fn operator(op: &ScheduledOp) -> WireOperator {
    WireOperator {
        name: op.name.clone(),
        block: op.block,
        domain: op.domain.into(),
        memory_bound: op.memory_bound,
        required: op.required,
        reads: numbers(&op.reads),
        writes: numbers(&op.writes),
        accumulates: numbers(&op.accumulates),
        updates: numbers(&op.updates),
    }
}

fn value(value: &ScheduledValue) -> WireValue {
    WireValue {
        name: value.name.clone(),
        block: value.block,
        category: value.category.into(),
        row_bytes: value.row_bytes,
        packed_row_bytes: value.packed_row_bytes,
        fixed_bytes: value.fixed_bytes.get(),
        by_groups: value.by_groups,
    }
}

fn buffer(buffer: &Buffer) -> WireBuffer {
    WireBuffer {
        value: buffer.value.map(number),
        category: buffer.category.into(),
        space: buffer.space.into(),
        offset_bytes: buffer.offset.get(),
        bytes: buffer.bytes.get(),
        rows: pair(buffer.rows),
        groups: pair(buffer.groups),
        packed: buffer.packed,
        persistent: buffer.persistent,
        lifetime: pair(buffer.lifetime),
    }
}

fn instruction(instruction: &Instruction) -> WireInstruction {
    let (verb, op, state) = match instruction.action {
        Action::Run(op) => (Verb::Run, Some(number(op)), None),
        Action::Recompute(op) => (Verb::Recompute, Some(number(op)), None),
        Action::HostUpdate(state) => (Verb::HostUpdate, None, Some(state)),
        Action::Copy => (Verb::Copy, None, None),
        Action::Barrier => (Verb::Barrier, None, None),
    };
    WireInstruction {
        verb,
        op,
        state,
        rows: pair(instruction.rows),
        groups: pair(instruction.groups),
        micro_batch: instruction.micro_batch,
        operands: instruction
            .operands
            .iter()
            .copied()
            .map(WireOperand)
            .collect(),
        waits: numbers(&instruction.waits),
        signals: instruction.signals.map(number),
        duration_ns: instruction.duration.get(),
    }
}

fn solver(file: &ScheduleFile) -> WireSolver {
    WireSolver {
        status: file.solver.status.into(),
        bound_ns: file.solver.bound.map(|bound| bound.get()),
        gap: file.solver.gap.map(finite),
        solve_ms: file.solver.solve_ms,
    }
}

/// The object of `predicted`.
pub(super) fn to_value(numbers: &Predicted) -> serde_json::Value {
    serde_json::to_value(predicted(numbers)).expect("plain data with text keys")
}

fn predicted(predicted: &Predicted) -> WirePredicted {
    WirePredicted {
        step_ns: predicted.step.get(),
        floor_ns: predicted.floor.get(),
        recompute_ns: predicted.recompute.get(),
        packing_ns: predicted.packing.get(),
        stall_ns: predicted.stall.get(),
        optimizer_tail_ns: predicted.optimizer_tail.get(),
        tokens_per_s: finite(predicted.tokens_per_s),
        mfu: finite(predicted.mfu),
        hfu: finite(predicted.hfu),
        peak_live_bytes: predicted.peak_live.get(),
        arena_bytes: predicted.arena.get(),
        device_bytes: predicted.device.get(),
        host_bytes: predicted.host.get(),
        d2h_bytes: predicted.d2h.get(),
        h2d_bytes: predicted.h2d.get(),
    }
}
