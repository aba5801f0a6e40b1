//! How much longer operators take beside copies: one product and one kernel limited by memory, of
//! the model's own sizes, alone and beside each kind of copy. Operators and copies go through more
//! memory than caches hold, as a step does: beside copies that stay in a cache, nothing is slower.

use super::bench::{length, of, Bench};
use super::copies::{busy, within, Sides};
use super::statistics::median;
use super::Request;
use crate::device::{Operator, Panel, Space, Stream, Target};
use crate::error::Result;
use crate::format::number::Ppm;
use crate::format::profile::{SlowdownPpm, SlowdownSection};
use ebbtide_solver::units::Bytes;

/// Bytes of a copy on the CPU, and on a GPU, of which a driver queues some thousand only.
const COPY: [u64; 2] = [1 << 20, 16 << 20];
/// Bytes that the copies of a direction go through, and all operands together: more than caches
/// hold.
const THROUGH: u64 = 64 << 20;
/// How long operators run, in nanoseconds, at least.
const ENOUGH: u64 = 150_000_000;
/// The fewest and the most operators.
const OPERATORS: [u64; 2] = [7, 400];
/// How often operators run alone and beside copies; what drifts is in all kinds of a round.
const ROUNDS: usize = 5;

/// Measures both.
pub(super) fn slowdown(request: &Request<'_>) -> Result<SlowdownSection> {
    let model = request.model;
    let copy = COPY[usize::from(matches!(request.target, Target::Cuda { .. }))];
    let width = request.dtype.bytes();
    let rows = request.tokens.iter().copied().max().unwrap_or(1);
    let up = if model.gated { 2 } else { 1 } * model.intermediate;
    let sizes = [model.hidden * rows, model.hidden * up, up * rows, up * rows].map(|n| n * width);
    let places = THROUGH.div_ceil(sizes.iter().sum::<u64>().max(1)).max(2);
    let arena = places * (sizes.iter().sum::<u64>() + 4096) + 2 * THROUGH;
    let (memories, device) = ((arena, 2 * THROUGH), request.target.open()?);
    let mut bench = Bench::new(device, request.dtype, memories, 0)?;
    let sides = [(); 2].map(|()| Sides {
        device: bench.take(Space::Device, THROUGH),
        host: bench.take(Space::Host, THROUGH),
    });
    let (mut products, mut kernels) = (Vec::new(), Vec::new());
    for _ in 0..places {
        let [x, weight, y, h] = sizes.map(|bytes| bench.take(Space::Device, bytes));
        bench.step(|device| {
            let zero = |(region, at)| {
                let operator = Operator::Zero { region };
                device.launch(Stream::Compute, at, &operator)
            };
            [y, h].into_iter().zip(0..).try_for_each(zero)
        })?;
        bench.fill(x)?;
        bench.fill(weight)?;
        products.push(Operator::Linear {
            rows,
            x,
            weight: vec![Panel {
                region: weight,
                rows: up,
                columns: model.hidden,
                stride: model.hidden,
            }],
            bias: Vec::new(),
            residual: None,
            y,
            workspace: None,
        });
        kernels.push(Operator::Activation {
            kind: model.activation,
            gated: model.gated,
            rows,
            width: model.intermediate,
            x: y,
            h: h.part(0, model.intermediate * rows * width),
        });
    }
    Ok(SlowdownSection {
        source: format!(
            "measured: the MLP's product and its activation over {rows} tokens, beside copies of \
             {}; operands and copies go through 64 MiB each{}",
            Bytes::new(copy),
            request.held_to()
        ),
        matmul: beside(&mut bench, (sides, copy), &products)?,
        elementwise: beside(&mut bench, (sides, copy), &kernels)?,
    })
}

/// Added time of like operators beside each kind of copies: the median over the rounds of what is
/// added to their mean time. Mean, since a copy that is held to a speed moves in bursts, beside
/// which few operators run.
fn beside(
    bench: &mut Bench,
    (sides, size): ([Sides; 2], u64),
    alike: &[Operator],
) -> Result<SlowdownPpm> {
    const KINDS: [[bool; 2]; 4] = [[false, false], [true, false], [false, true], [true, true]];
    let operator = |at: u64| &alike[(at % alike.len() as u64) as usize];
    let first = bench.step(|device| {
        device.launch(Stream::Compute, 0, operator(0))?;
        device.launch(Stream::Compute, 1, operator(1))?;
        sides[0].copy(device, Stream::D2h, 0, size)?;
        sides[1].copy(device, Stream::H2d, 0, size)
    })?;
    let once = |stream| of(&first, stream).last().map_or(1, length).max(1);
    let operators = (ENOUGH / once(Stream::Compute)).clamp(OPERATORS[0], OPERATORS[1]);
    let long = 2 * operators * once(Stream::Compute);
    let copies = [Stream::D2h, Stream::H2d].map(|stream| long.div_ceil(once(stream)) + 1);
    // Of every round, in nanoseconds by kind; none where no operator was beside copies throughout.
    let mut rounds = Vec::new();
    for _ in 0..ROUNDS {
        let mut means = [None; 4];
        for (kind, mean) in KINDS.into_iter().zip(&mut means) {
            let trace = bench.step(|device| {
                // The many copies come last: whoever queues them may have to wait for them.
                for at in 0..operators {
                    device.launch(Stream::Compute, number(at), operator(at))?;
                }
                for copy in 0..copies[0].max(copies[1]) {
                    for (at, stream) in [Stream::D2h, Stream::H2d].into_iter().enumerate() {
                        if kind[at] && copy < copies[at] {
                            let side = sides[at].part(copy * size % THROUGH, size);
                            side.copy(device, stream, number(copy), size)?;
                        }
                    }
                }
                Ok(())
            })?;
            let whole = busy(&trace, Stream::Compute);
            let spans = [Stream::D2h, Stream::H2d].map(|stream| busy(&trace, stream));
            let spans = spans.into_iter().zip(kind);
            let spans: Vec<_> = spans.map(|(s, on)| if on { s } else { whole }).collect();
            // The first fetches its operands from wherever the last step left them.
            let ran = of(&trace, Stream::Compute);
            let beside = ran[1..]
                .iter()
                .filter(|entry| spans.iter().all(|&span| within(entry, span)));
            let took: Vec<u64> = beside.map(length).collect();
            *mean = mean_of(&took);
        }
        rounds.push(means);
    }
    let [_, d2h, h2d, both] = [0, 1, 2, 3].map(|kind| added(&rounds, kind));
    Ok(SlowdownPpm {
        d2h_ppm: d2h,
        h2d_ppm: h2d,
        both_ppm: both,
    })
}

fn mean_of(took: &[u64]) -> Option<f64> {
    let sum: u64 = took.iter().sum();
    (sum > 0).then(|| sum as f64 / took.len() as f64)
}

/// What a kind of copies adds, in millionths of the time alone; nothing where it was not seen.
fn added(rounds: &[[Option<f64>; 4]], kind: usize) -> Ppm {
    let ratios = rounds.iter().filter_map(|round| {
        let ratio = round[kind]? / round[0]?;
        Some((ratio * 1e6).min(1e6 + Ppm::MOST as f64).round() as u64)
    });
    let ratios: Vec<u64> = ratios.collect();
    let most = match ratios.is_empty() {
        true => 0,
        false => median(&ratios).saturating_sub(1_000_000),
    };
    Ppm::new(most.min(Ppm::MOST)).expect("in range")
}

fn number(at: u64) -> u32 {
    u32::try_from(at).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_copies_add_is_the_median_of_the_rounds() {
        let round = |beside: f64| [Some(200.0), Some(beside), None, Some(190.0)];
        // A drift is in both times of a round; the last round was disturbed.
        let drifted = [Some(400.0), Some(420.0), None, Some(390.0)];
        let rounds = [round(210.0), drifted, round(900.0)];
        let found = [1, 2, 3].map(|kind| added(&rounds, kind).get());
        assert_eq!(found, [50_000, 0, 0], "5 %, not seen, not slower");
    }
}
