//! Operators where they run: in training steps of a model of few blocks that keeps everything.
//!
//! In: a model, tokens, a way to cut attention, a method. Out: for every shape that the lowering
//! asks a profile for, the time it took in its place in the step, with the caches as they are
//! there. Nothing is copied meanwhile; the schedule comes from the same planner and runs through
//! the same interpreter as any other.
//!
//! An operator that the lowering counts as a product and a kernel (the projection to q, k and v
//! with its rotation) is one entry of the trace. The kernel is taken to last as long as the
//! backward of the rotation, which moves the same bytes; the product has the rest.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use ebbtide_solver::ids::{Id, OpId};
use ebbtide_solver::problem::Budget;
use ebbtide_solver::schedule::{Action, Instruction, Stream};
use ebbtide_solver::search::{Options, Strategy};
use ebbtide_solver::units::Bytes;

use super::statistics::Summary;
use super::{positive, Request};
use crate::device::arithmetic::Arithmetic;
use crate::device::TraceEntry;
use crate::error::{Error, Result};
use crate::execute::{Optimizer, Session};
use crate::format::measured::{Calibration, MeasuredStep};
use crate::format::number::{Dimension, Natural, Positive};
use crate::format::profile as file;
use crate::lower::{lower, Charge, Tiling, Workload};
use crate::methods::Method;
use crate::model::graph::Stage;
use crate::model::{step_graph, ModelConfig, Weight};
use crate::planning::{self, Planned};
use crate::profile::cost::{Attention, AttentionDirection, Gemm, GemmDirection};
use crate::training::initial;
use crate::training::tokens::Tokens;
use crate::training::Place;

/// The fewest blocks of the model that is run: the first and the last one differ from what is
/// between, in what they find in caches; of three, most of every pass are alike, so that the median
/// is theirs.
const BLOCKS: u64 = 3;
/// What a step keeps, if the model has as many blocks: more than caches hold, so that backward
/// finds it where that of all blocks would. Some 3 % of the step of a small model on a CPU.
const UNCACHED: Bytes = Bytes::mib(128);
/// Steps that run before any that count.
pub(super) const WARM_UP: u64 = 2;
/// The fewest and the most steps that count.
const STEPS: [usize; 2] = [7, 60];
/// How long steps run, if the fewest take no longer.
const ENOUGH: Duration = Duration::from_millis(1500);

/// Elements of a weight that are drawn.
const DRAWN: u64 = 1 << 20;

/// Measures a step.
///
/// # Errors
/// A step that does not fit into the device's memory, and every failure of the device.
pub(super) fn step(
    request: &Request<'_>,
    (tokens, tiling, method): (u64, Tiling, Method),
    known: &Calibration,
) -> Result<MeasuredStep> {
    let (model, planned) = deep(request, (tokens, tiling, method))?;
    let schedule = &planned.file.schedule;
    let mut session = Session::begin(&planned.file, &model, request.target.open_to_time()?, false)?;
    session.load(|place| weights(&model, place))?;
    let synthetic = Tokens::Synthetic {
        vocab: model.vocab,
        seed: 0,
    };
    let batch = [synthetic.batch(0, 1, tokens)];
    // Weights stay as they are, so that every step computes the same.
    let optimizer = Optimizer {
        learning_rate: 0.0,
        ..Optimizer::default()
    };
    let mut seen = Seen::new(&planned, &model, known);
    for step in 0..WARM_UP {
        session.step(step, &batch, &optimizer)?;
    }
    let begun = Instant::now();
    while seen.steps < STEPS[0] || (begun.elapsed() < ENOUGH && seen.steps < STEPS[1]) {
        session.step(WARM_UP + seen.steps as u64, &batch, &optimizer)?;
        seen.add(session.trace());
    }
    let (device, host) = (schedule.arena_bytes, schedule.host_bytes);
    let overhead = request.target.overhead(request.memory, device, host)?;
    // What grows with the length is known, and counted for each.
    let overhead = overhead.saturating_sub(planned.file.hardware.overhead);
    let mut measured = MeasuredStep {
        tokens: dimension(tokens),
        groups: dimension(u64::from(tiling.groups)),
        method: method.name().to_owned(),
        gemm: Vec::new(),
        algorithms: session.algorithms(),
        attention: Vec::new(),
        kernels: Vec::new(),
        block: seen.block(tokens, tiling),
        overhead_bytes: Natural::new(overhead.get()).expect("less than an exabyte"),
        device_notes: session.device_notes(),
    };
    seen.samples(&mut measured);
    Ok(measured)
}

/// Weights that a run may begin with, but for rows that come again: to draw all of them takes
/// longer than to multiply them.
fn weights(model: &ModelConfig, place: Place) -> Result<Vec<f32>> {
    let Weight { rows, columns, .. } = place.weight;
    let drawn = Weight {
        rows: DRAWN.div_ceil(columns).min(rows),
        ..place.weight
    };
    let values = initial::values(
        model,
        Place {
            weight: drawn,
            ..place
        },
        0,
    )?;
    let elements = usize::try_from(rows * columns).unwrap_or(usize::MAX);
    let mut all = values.repeat(elements.div_ceil(values.len()));
    all.truncate(elements);
    Ok(all)
}

/// The arena of the step that is measured.
///
/// # Errors
/// A step that no device has memory for.
pub(super) fn needed(request: &Request<'_>, cut: (u64, Tiling, Method)) -> Result<Bytes> {
    Ok(deep(request, cut)?.1.file.schedule.arena_bytes)
}

/// The step of as few blocks as tell what those of all take, and its model.
fn deep(request: &Request<'_>, cut: (u64, Tiling, Method)) -> Result<(ModelConfig, Planned)> {
    let most = request.model.layers;
    let mut layers = BLOCKS.min(most);
    loop {
        let model = shortened(request.model, layers);
        let planned = keep(request, &model, cut)?;
        let arena = planned.file.schedule.arena_bytes;
        if layers == most || arena >= UNCACHED || arena * 2 > request.memory {
            return Ok((model, planned));
        }
        layers = (layers * 2).min(most);
    }
}

/// The model with so many blocks, and attention to all tokens.
fn shortened(model: &ModelConfig, layers: u64) -> ModelConfig {
    ModelConfig {
        layers,
        windows: vec![None; usize::try_from(layers).unwrap_or(1)],
        ..model.clone()
    }
}

/// The step that keeps everything, whatever it takes.
fn keep(
    request: &Request<'_>,
    model: &ModelConfig,
    (tokens, tiling, method): (u64, Tiling, Method),
) -> Result<Planned> {
    let mut profile = crate::profile::load("unit")?;
    // What takes too long on this says so by this name.
    profile.name = "a device of 1 GFLOP/s".into();
    profile.workspace = request.workspace;
    let wanted = planning::Request {
        model,
        profile: &profile,
        workload: Workload {
            seq: tokens,
            batch: 1,
            accumulate: 1,
            dtype: request.dtype,
            clip: false,
        },
        method,
        storage: None,
        arithmetic: Arithmetic::Plain,
        budget: Budget {
            device: profile.device.memory,
            host: profile.host.memory,
        },
    };
    wanted.workload.check(model)?;
    let graph = step_graph(model);
    let (workload, budget) = (&wanted.workload, wanted.budget);
    let lowered = lower(&graph, model, &profile, method, workload, budget, tiling)?;
    let options = Options {
        deadline: None,
        gap: 1.0,
        ..Options::default()
    };
    planning::plan_variants(&wanted, vec![lowered], Strategy::Keep, &options)
        .map_err(|_| Error::infeasible(format!("a step of {tokens} tokens needs more than 1 TiB")))
}

/// An operator by its name and the shapes of its kernels, with all its times.
struct Timed {
    name: String,
    charges: Vec<Charge>,
    took: Vec<u64>,
}

/// What the steps' traces say.
struct Seen<'a> {
    planned: &'a Planned,
    known: &'a Calibration,
    steps: usize,
    timed: Vec<Timed>,
    /// Which of `timed` an instruction of the compute stream is, where it covers a whole tile.
    of_instruction: Vec<Option<usize>>,
    /// The instructions of each block's forward and backward.
    blocks: BTreeMap<(u32, bool), Vec<usize>>,
    spans: [Vec<u64>; 2],
}

impl<'a> Seen<'a> {
    fn new(planned: &'a Planned, model: &ModelConfig, known: &'a Calibration) -> Self {
        let graph = step_graph(model);
        let forward = |op: OpId| {
            let node = graph.order.get(op.index())?;
            let operator = graph.operator(*node)?;
            Some(matches!(operator.stage, Stage::Attention | Stage::Mlp))
        };
        let mut seen = Self {
            planned,
            known,
            steps: 0,
            timed: Vec::new(),
            of_instruction: Vec::new(),
            blocks: BTreeMap::new(),
            spans: [Vec::new(), Vec::new()],
        };
        let stream = planned.file.schedule.stream(Stream::Compute);
        for (at, instruction) in stream.iter().enumerate() {
            let which = seen.which(instruction);
            seen.of_instruction.push(which);
            let Some(op) = operator(instruction) else {
                continue;
            };
            let block = planned.lowered.problem.ops[op].block;
            if let (Some(block), Some(forward)) = (block, forward(op)) {
                seen.blocks.entry((block, forward)).or_default().push(at);
            }
        }
        seen
    }

    /// The place in `timed` of an instruction's operator.
    fn which(&mut self, instruction: &Instruction) -> Option<usize> {
        let op = operator(instruction)?;
        let charges = &self.planned.lowered.charges[op];
        let rows = charges.iter().find_map(|charge| match charge {
            Charge::Gemm(gemm) => Some(gemm.m),
            _ => None,
        });
        if rows.is_some_and(|rows| rows != instruction.rows.len()) {
            return None;
        }
        let name = &self.planned.lowered.problem.ops[op].name;
        let same = |timed: &Timed| timed.name == *name && timed.charges == *charges;
        let found = self.timed.iter().position(same);
        Some(found.unwrap_or_else(|| {
            self.timed.push(Timed {
                name: name.clone(),
                charges: charges.clone(),
                took: Vec::new(),
            });
            self.timed.len() - 1
        }))
    }

    /// Adds a step.
    fn add(&mut self, trace: &[TraceEntry]) {
        let (timer, launch) = (self.known.timer_ns.get(), self.known.launch_ns.get());
        let mut took = vec![0; self.of_instruction.len()];
        let mut spans = vec![(u64::MAX, 0); took.len()];
        for entry in trace.iter().filter(|e| e.stream == Stream::Compute) {
            let at = entry.instruction as usize;
            let length = entry.end_ns.saturating_sub(entry.start_ns);
            took[at] += length.saturating_sub(timer) + launch;
            let (start, end) = &mut spans[at];
            (*start, *end) = ((*start).min(entry.start_ns), (*end).max(entry.end_ns));
        }
        for (which, took) in self.of_instruction.iter().zip(took) {
            if let Some(which) = which {
                self.timed[*which].took.push(took);
            }
        }
        for ((_, forward), instructions) in &self.blocks {
            let of = || instructions.iter().map(|&at| spans[at]);
            let start = of().map(|span| span.0).min().unwrap_or(0);
            let end = of().map(|span| span.1).max().unwrap_or(0);
            self.spans[usize::from(*forward)].push(end.saturating_sub(start));
        }
        self.steps += 1;
    }

    /// Blocks from end to end, and the sum of their operators.
    fn block(&self, tokens: u64, tiling: Tiling) -> file::BlockSample {
        let whole = |forward: bool| positive(Summary::of(&self.spans[usize::from(forward)]).median);
        let parts = |forward: bool| {
            let first = self.blocks.get(&(0, forward)).into_iter().flatten();
            let medians = first.filter_map(|&at| {
                let timed = &self.timed[self.of_instruction[at]?];
                Some(Summary::of(&timed.took).median)
            });
            positive(medians.sum())
        };
        file::BlockSample {
            tokens: dimension(tokens),
            groups: dimension(u64::from(tiling.groups)),
            forward_ns: whole(true),
            forward_operators_ns: parts(true),
            backward_ns: whole(false),
            backward_operators_ns: parts(false),
        }
    }

    /// Every operator's samples.
    fn samples(&self, measured: &mut MeasuredStep) {
        let rotation = |bytes: Bytes| {
            let charges = [Charge::Kernel(bytes)];
            let mut timed = self.timed.iter();
            let backward = timed.find(|t| t.name == "rotary_backward" && t.charges == charges);
            backward.map(|timed| Summary::of(&timed.took))
        };
        for timed in &self.timed {
            let all = Summary::of(&timed.took);
            match timed.charges[..] {
                [Charge::Gemm(gemm)] => measured.gemm.push(gemm_sample(&gemm, all)),
                [Charge::Attention(shape)] => {
                    measured.attention.push(attention_sample(&shape, all))
                }
                [Charge::Kernel(bytes)] => {
                    measured
                        .kernels
                        .push(kernel_sample(&timed.name, bytes, all));
                }
                [Charge::Gemm(gemm), Charge::Kernel(bytes)] => {
                    let part = rotation(bytes).unwrap_or(all).median.min(all.median / 2);
                    let share = |median| Summary { median, ..all };
                    measured
                        .gemm
                        .push(gemm_sample(&gemm, share(all.median - part)));
                    let kernel = kernel_sample(&timed.name, bytes, share(part));
                    measured.kernels.push(kernel);
                }
                _ => unreachable!("no operator of a step has other kernels"),
            }
        }
    }
}

fn operator(instruction: &Instruction) -> Option<OpId> {
    match instruction.action {
        Action::Run(op) | Action::Recompute(op) => Some(op),
        Action::HostUpdate(_) | Action::Copy | Action::Barrier => None,
    }
}

fn dimension(number: u64) -> Dimension {
    let most = Dimension::MOST;
    Dimension::new(number.clamp(1, most)).expect("in range")
}

fn gemm_sample(gemm: &Gemm, summary: Summary) -> file::GemmSample {
    file::GemmSample {
        m: dimension(gemm.m),
        k: dimension(gemm.k),
        n: dimension(gemm.n),
        direction: match gemm.direction {
            GemmDirection::Forward => file::GemmDirectionName::Forward,
            GemmDirection::Dgrad => file::GemmDirectionName::Dgrad,
            GemmDirection::Wgrad => file::GemmDirectionName::Wgrad,
        },
        ns: positive(summary.median),
        spread_ns: Natural::new(summary.spread),
        repetitions: Positive::new(summary.count),
    }
}

fn attention_sample(attention: &Attention, summary: Summary) -> file::AttentionSample {
    file::AttentionSample {
        tokens: dimension(attention.tokens),
        heads: dimension(attention.heads),
        kv_heads: dimension(attention.kv_heads),
        head_dim: dimension(attention.head_dim),
        direction: match attention.direction {
            AttentionDirection::Forward => file::AttentionDirectionName::Forward,
            AttentionDirection::Backward => file::AttentionDirectionName::Backward,
        },
        ns: positive(summary.median),
        workspace_bytes: None,
        spread_ns: Natural::new(summary.spread),
        repetitions: Positive::new(summary.count),
    }
}

fn kernel_sample(operator: &str, bytes: Bytes, summary: Summary) -> file::KernelSample {
    file::KernelSample {
        operator: operator.to_owned(),
        bytes: positive(bytes.get()),
        ns: positive(summary.median),
        spread_ns: Natural::new(summary.spread),
        repetitions: Positive::new(summary.count),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::null::NullDevice;
    use crate::device::{Operator, Target};
    use crate::lower::tilings;

    /// Steps on a device with a virtual clock, on which an operator takes 1000 ns and a
    /// rotation's backward 400 ns; `spoil` changes the trace of the last one.
    fn samples(spoil: impl Fn(&mut Vec<TraceEntry>)) -> MeasuredStep {
        let model = crate::model::load("tiny").unwrap();
        let request = Request {
            target: Target::Cpu(None),
            workspace: crate::profile::Workspace::None,
            model: &model,
            dtype: crate::profile::Dtype::F32,
            tokens: vec![64],
            memory: Bytes::gib(1),
            link: None,
            deterministic: false,
        };
        let known = Calibration {
            launch_ns: Natural::new(100).unwrap(),
            timer_ns: Natural::new(30).unwrap(),
            handover_ns: Natural::new(0).unwrap(),
        };
        let model = shortened(&model, BLOCKS);
        let workload = Workload {
            seq: 64,
            batch: 1,
            accumulate: 1,
            dtype: crate::profile::Dtype::F32,
            clip: false,
        };
        let tiling = tilings(&model, &workload)[0];
        let planned = keep(&request, &model, (64, tiling, Method::AdamW)).unwrap();
        let clock = |_, _, operator: Option<&Operator>| match operator {
            Some(Operator::RotaryBackward { .. }) => 400,
            _ => 1000,
        };
        let device = Box::new(NullDevice::new(Box::new(clock)));
        let mut session = Session::begin(&planned.file, &model, device, false).unwrap();
        let synthetic = Tokens::Synthetic {
            vocab: model.vocab,
            seed: 0,
        };
        let batch = [synthetic.batch(0, 1, 64)];
        let mut seen = Seen::new(&planned, &model, &known);
        for step in 0..5 {
            session.step(step, &batch, &Optimizer::default()).unwrap();
            let mut trace = session.trace().to_vec();
            if step == 4 {
                spoil(&mut trace);
            }
            seen.add(&trace);
        }
        let mut measured = MeasuredStep {
            tokens: dimension(64),
            groups: dimension(1),
            method: String::new(),
            gemm: Vec::new(),
            algorithms: None,
            attention: Vec::new(),
            kernels: Vec::new(),
            block: seen.block(64, tiling),
            overhead_bytes: Natural::new(0).unwrap(),
            device_notes: Vec::new(),
        };
        seen.samples(&mut measured);
        measured
    }

    #[test]
    fn the_timer_is_taken_off_and_a_launch_put_on() {
        let measured = samples(|_| {});
        for sample in &measured.attention {
            assert_eq!(sample.ns.get(), 1000 - 30 + 100);
        }
        // The projection is one operator of 1000 ns; its rotation has the backward's share of it.
        let forward = |s: &&file::GemmSample| s.direction == file::GemmDirectionName::Forward;
        let products = measured.gemm.iter().filter(forward);
        let mut took: Vec<u64> = products.map(|sample| sample.ns.get()).collect();
        took.sort_unstable();
        assert_eq!(took, [600, 1070, 1070, 1070, 1070]);
        let kernel = |name: &str| {
            let found = measured.kernels.iter().find(|k| k.operator == name);
            found.unwrap_or_else(|| panic!("no {name}")).ns.get()
        };
        assert_eq!(kernel("rotary_backward"), 470);
        assert_eq!(kernel("qkv_projection"), 470);
        assert_eq!(kernel("norm"), 1070);
        assert_eq!(measured.block.forward_operators_ns.get() % 1070, 0);
    }

    #[test]
    fn a_step_that_something_disturbed_does_not_count() {
        let late = |trace: &mut Vec<TraceEntry>| {
            for entry in trace {
                entry.end_ns = entry.start_ns + 50 * (entry.end_ns - entry.start_ns);
            }
        };
        let (quiet, disturbed) = (samples(|_| {}), samples(late));
        assert_eq!(quiet.gemm.len(), disturbed.gemm.len());
        for (quiet, disturbed) in quiet.gemm.iter().zip(&disturbed.gemm) {
            assert_eq!(quiet.ns, disturbed.ns, "{quiet:?}");
            let count = |s: &file::GemmSample| s.repetitions.unwrap().get();
            // One of five steps.
            assert_eq!(4 * count(quiet), 5 * count(disturbed), "{quiet:?}");
        }
    }
}
