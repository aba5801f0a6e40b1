//! What the JSON says, as a schedule.

use std::num::NonZeroU64;

use ebbtide_solver::ids::{Id, Table};
use ebbtide_solver::machine::{HostAdam, Link, LinkRates, Links, Machine, Slowdown};
use ebbtide_solver::problem::Budget;
use ebbtide_solver::schedule::{
    Action, Buffer, Instruction, Schedule, ScheduledGroup, ScheduledOp, ScheduledValue, Stream,
};
use ebbtide_solver::units::{Bytes, BytesPerSec, Nanos, Span};

use super::wire::*;
use super::{Decision, Hardware, Model, Predicted, ScheduleFile, Solver, State, Workload};
use crate::device::arithmetic::Arithmetic;
use crate::error::{Error, Result};
use crate::methods::{Layers, LowRank, Rank};

/// # Errors
/// Bad input: a rate of zero, a negative fraction, an action without its operator or state group.
pub(super) fn into_domain(file: File) -> Result<ScheduleFile> {
    check_tokens(&file)?;
    let machine = machine(&file.hardware)?;
    let compute = instructions(Stream::Compute, file.streams.compute)?;
    let d2h = instructions(Stream::D2h, file.streams.d2h)?;
    let h2d = instructions(Stream::H2d, file.streams.h2d)?;
    let host = instructions(Stream::Host, file.streams.host)?;
    let states = file.states.iter().map(|state| State {
        placement: state.placement.into(),
        parameters: state.parameters,
    });
    let states = states.collect();
    let schedule = Schedule {
        tokens: file.workload.tokens,
        groups: file.head_groups,
        micro_batches: file.workload.accumulate,
        passes: file.workload.passes,
        ops: file.operators.into_iter().map(operator).collect(),
        values: file.values.into_iter().map(value).collect(),
        state_groups: file.states.into_iter().map(state_group).collect(),
        buffers: file
            .buffers
            .into_iter()
            .map(buffer)
            .collect::<Table<_, _>>(),
        streams: [compute, d2h, h2d, host],
        events: file.events,
        arena_bytes: Bytes::new(file.arena_bytes),
        host_bytes: Bytes::new(file.host_bytes),
        budget: Budget {
            device: Bytes::new(file.budget.device_bytes),
            host: Bytes::new(file.budget.host_bytes),
        },
        machine,
    };
    Ok(ScheduleFile {
        ebbtide_version: file.ebbtide_version,
        model: model(file.model),
        workload: Workload {
            seq: file.workload.seq,
            batch: file.workload.batch,
            dtype: file.workload.dtype,
        },
        hardware: Hardware {
            name: file.hardware.name,
            overhead: Bytes::new(file.hardware.overhead_bytes),
            peak_flops_per_s: file.hardware.peak_flops_per_s,
            host_memory: Bytes::new(file.hardware.host_memory_bytes),
        },
        method: file.method,
        method_options: file.method_options.map(method_options).transpose()?,
        storage: file.storage.map(Into::into),
        arithmetic: match file.arithmetic {
            Some(name) => name.parse()?,
            None => Arithmetic::Plain,
        },
        strategy: file.strategy,
        decisions: file.decisions.into_iter().map(decision).collect(),
        states,
        schedule,
        solver: Solver {
            status: file.solver.status.into(),
            bound: file.solver.bound_ns.map(Nanos::new),
            gap: file
                .solver
                .gap
                .map(|gap| not_negative("solver.gap", gap))
                .transpose()?,
            solve_ms: file.solver.solve_ms,
        },
        predicted: predicted(&file.predicted)?,
    })
}

/// What says the same in two ways says the same.
fn check_tokens(file: &File) -> Result<()> {
    let (workload, tokens) = (&file.workload, file.workload.tokens);
    if workload.seq.checked_mul(workload.batch) != Some(tokens) {
        return Err(Error::bad_input(format!(
            "workload.tokens is {tokens}, not seq {} × batch {}",
            workload.seq, workload.batch
        )));
    }
    for (i, d) in file.decisions.iter().enumerate() {
        let parts = [d.keep_tokens, d.swap_tokens, d.recompute_tokens];
        let sum: u128 = parts.into_iter().map(u128::from).sum();
        if d.packed_tokens > d.keep_tokens {
            return Err(Error::bad_input(format!(
                "decisions[{i}] keeps {} tokens packed, but {} in all",
                d.packed_tokens, d.keep_tokens
            )));
        }
        if sum != tokens.into() {
            return Err(Error::bad_input(format!(
                "decisions[{i}] is of {sum} tokens, must be of {tokens}"
            )));
        }
    }
    Ok(())
}

fn span([start, end]: [u64; 2]) -> Span {
    Span { start, end }
}
fn id<I: Id>(number: u32) -> I {
    I::from_index(number as usize)
}
fn ids<I: Id>(numbers: Vec<u32>) -> Vec<I> {
    numbers.into_iter().map(id).collect()
}

fn not_negative(what: &str, number: f64) -> Result<f64> {
    match number >= 0.0 {
        true => Ok(number),
        false => Err(Error::bad_input(format!(
            "{what} is {number}, must not be negative"
        ))),
    }
}

fn machine(hardware: &WireHardware) -> Result<Machine> {
    let rate = |what: &str, rate: u64| {
        let zero = || Error::bad_input(format!("hardware.{what} is 0, must be a rate"));
        BytesPerSec::new(rate).ok_or_else(zero)
    };
    let link = |what: &str, link: &WireLink| {
        let latency = Nanos::new(link.latency_ns);
        Ok(Link {
            latency,
            rate: rate(&format!("{what}.bytes_per_s"), link.bytes_per_s)?,
        })
    };
    let both = &hardware.both;
    let adam = &hardware.host_adam;
    let no_adam = || Error::bad_input("hardware.host_adam.params_per_s is 0, must be a rate");
    let memory = hardware.host_memory_bytes_per_s;
    Ok(Machine {
        links: Links {
            d2h: link("d2h", &hardware.d2h)?,
            h2d: link("h2d", &hardware.h2d)?,
            both: LinkRates {
                d2h: rate("both.d2h_bytes_per_s", both.d2h_bytes_per_s)?,
                h2d: rate("both.h2d_bytes_per_s", both.h2d_bytes_per_s)?,
            },
        },
        matmul_slowdown: slowdown(&hardware.matmul_slowdown),
        elementwise_slowdown: slowdown(&hardware.elementwise_slowdown),
        packing: (hardware.packing.as_ref())
            .map(|packing| link("packing", packing))
            .transpose()?,
        host_adam: HostAdam {
            params_per_s: NonZeroU64::new(adam.params_per_s).ok_or_else(no_adam)?,
            bytes_per_param: Bytes::new(adam.bytes_per_param),
        },
        host_memory: memory
            .map(|m| rate("host_memory_bytes_per_s", m))
            .transpose()?,
    })
}

fn slowdown(slowdown: &WireSlowdown) -> Slowdown {
    Slowdown {
        d2h_ppm: slowdown.d2h_ppm,
        h2d_ppm: slowdown.h2d_ppm,
        both_ppm: slowdown.both_ppm,
    }
}

fn model(model: WireModel) -> Model {
    Model {
        name: model.name,
        parameters: model.parameters,
        layers: model.layers,
        hidden: model.hidden,
        intermediate: model.intermediate,
        heads: model.heads,
        kv_heads: model.kv_heads,
        head_dim: model.head_dim,
        vocab: model.vocab,
        config: model.config,
    }
}

fn decision(decision: WireDecision) -> Decision {
    Decision {
        block: decision.block,
        tensor: decision.tensor,
        keep_tokens: decision.keep_tokens,
        packed_tokens: decision.packed_tokens,
        swap_tokens: decision.swap_tokens,
        recompute_tokens: decision.recompute_tokens,
        stored_as: decision.stored_as,
    }
}

fn state_group(state: WireState) -> ScheduledGroup {
    ScheduledGroup {
        name: state.name,
        weights: ids(state.weights),
        gradients: ids(state.gradients),
        states: state.states.map(id),
        on_host: state.on_host,
    }
}

fn operator(op: WireOperator) -> ScheduledOp {
    ScheduledOp {
        name: op.name,
        block: op.block,
        domain: op.domain.into(),
        memory_bound: op.memory_bound,
        required: op.required,
        reads: ids(op.reads),
        writes: ids(op.writes),
        accumulates: ids(op.accumulates),
        updates: ids(op.updates),
    }
}

fn value(value: WireValue) -> ScheduledValue {
    ScheduledValue {
        name: value.name,
        block: value.block,
        category: value.category.into(),
        row_bytes: value.row_bytes,
        packed_row_bytes: value.packed_row_bytes,
        fixed_bytes: Bytes::new(value.fixed_bytes),
        by_groups: value.by_groups,
    }
}

fn buffer(buffer: WireBuffer) -> Buffer {
    Buffer {
        value: buffer.value.map(id),
        category: buffer.category.into(),
        space: buffer.space.into(),
        offset: Bytes::new(buffer.offset_bytes),
        bytes: Bytes::new(buffer.bytes),
        rows: span(buffer.rows),
        groups: span(buffer.groups),
        packed: buffer.packed,
        persistent: buffer.persistent,
        lifetime: span(buffer.lifetime),
    }
}

fn instructions(stream: Stream, list: Vec<WireInstruction>) -> Result<Vec<Instruction>> {
    let name = |index| format!("streams.{}[{index}]", stream.name());
    let entries = list.into_iter().enumerate();
    entries
        .map(|(i, entry)| instruction(entry).map_err(|e| e.within(name(i))))
        .collect()
}

fn instruction(wire: WireInstruction) -> Result<Instruction> {
    let action = match (wire.verb, wire.op, wire.state) {
        (Verb::Run, Some(op), None) => Action::Run(id(op)),
        (Verb::Recompute, Some(op), None) => Action::Recompute(id(op)),
        (Verb::HostUpdate, None, Some(state)) => Action::HostUpdate(state),
        (Verb::Copy, None, None) => Action::Copy,
        (Verb::Barrier, None, None) => Action::Barrier,
        _ => {
            let message = "run and recompute need \"op\", host_update needs \"state\", \
                           the others neither";
            return Err(Error::bad_input(message));
        }
    };
    Ok(Instruction {
        action,
        rows: span(wire.rows),
        groups: span(wire.groups),
        micro_batch: wire.micro_batch,
        operands: wire
            .operands
            .into_iter()
            .map(|WireOperand(operand)| operand)
            .collect(),
        waits: ids(wire.waits),
        signals: wire.signals.map(id),
        duration: Nanos::new(wire.duration_ns),
    })
}

fn predicted(wire: &WirePredicted) -> Result<Predicted> {
    Ok(Predicted {
        step: Nanos::new(wire.step_ns),
        floor: Nanos::new(wire.floor_ns),
        recompute: Nanos::new(wire.recompute_ns),
        packing: Nanos::new(wire.packing_ns),
        stall: Nanos::new(wire.stall_ns),
        optimizer_tail: Nanos::new(wire.optimizer_tail_ns),
        tokens_per_s: not_negative("predicted.tokens_per_s", wire.tokens_per_s)?,
        mfu: not_negative("predicted.mfu", wire.mfu)?,
        hfu: not_negative("predicted.hfu", wire.hfu)?,
        peak_live: Bytes::new(wire.peak_live_bytes),
        arena: Bytes::new(wire.arena_bytes),
        device: Bytes::new(wire.device_bytes),
        host: Bytes::new(wire.host_bytes),
        d2h: Bytes::new(wire.d2h_bytes),
        h2d: Bytes::new(wire.h2d_bytes),
    })
}

fn method_options(wire: WireMethodOptions) -> Result<LowRank> {
    let scale = not_negative("method_options.scale", wire.scale)?;
    let rank = match (wire.rank, wire.rank_divisor) {
        (Some(rank), None) => Rank::Of(rank),
        (None, Some(parts)) => Rank::Part(parts),
        _ => {
            return Err(Error::bad_input(
                "method_options needs either a rank or a rank_divisor",
            ))
        }
    };
    let layers = match &wire.compress {
        None => Some(Layers::ALL),
        Some(names) => Layers::named(names.iter().map(String::as_str)),
    };
    let layers = layers.ok_or_else(|| {
        let known = Layers::NAMES.join(", ");
        Error::bad_input(format!("method_options.compress lists others than {known}"))
    })?;
    let none = matches!(rank, Rank::Of(0) | Rank::Part(0));
    if none || wire.refresh == 0 || scale == 0.0 {
        return Err(Error::bad_input(
            "method_options has a rank, refresh or scale of 0",
        ));
    }
    Ok(LowRank {
        rank: Some(rank),
        refresh: wire.refresh,
        scale,
        per_layer: wire.per_layer,
        svd: wire.svd,
        eight_bit: wire.eight_bit,
        layers,
        accumulated: false,
    })
}
