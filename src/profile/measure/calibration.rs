//! What measuring itself costs: operators without work, and signals from stream to stream.
//!
//! ```text
//! compute  |long operator|e|e|e|e|…     launch: from start to start, timer: from start to end
//! compute  |e|     |e|     |e|          handover: from an end to the start that waited for it
//! h2d         |copy|  |copy|
//! ```
//! The long operator lets the queue fill, so that the host that queues is not what is timed.

use super::bench::{length, of, Bench};
use super::statistics::Summary;
use super::Request;
use crate::device::{Event, Operator, Space, Stream};
use crate::error::Result;
use crate::format::measured::Calibration;
use crate::format::number::Natural;

/// Bytes of the long operator.
const LONG: u64 = 64 << 20;
/// Operators without work.
const LAUNCHES: u32 = 1000;
/// Signals each way.
const SIGNALS: u32 = 200;

/// Measures them.
pub(super) fn calibrate(request: &Request<'_>) -> Result<Calibration> {
    let memories = (LONG + 4096, 4096);
    let mut bench = Bench::new(request.target.open()?, request.dtype, memories, 2 * SIGNALS)?;
    let long = bench.take(Space::Device, LONG);
    let [short, host] = [Space::Device, Space::Host].map(|space| bench.take(space, 64));
    let zero = |region| Operator::Zero { region };
    let (mut launches, mut timers) = (Vec::new(), Vec::new());
    for _ in 0..3 {
        let trace = bench.step(|device| {
            device.launch(Stream::Compute, 0, &zero(long))?;
            (1..=LAUNCHES).try_for_each(|at| device.launch(Stream::Compute, at, &zero(short)))
        })?;
        let ran = of(&trace, Stream::Compute);
        timers.extend(ran[1..].iter().map(length));
        let pairs = ran[1..].windows(2);
        launches.extend(pairs.map(|pair| pair[1].start_ns - pair[0].start_ns));
    }
    let trace = bench.step(|device| {
        for at in 0..SIGNALS {
            let events: [Event; 2] = [2 * at, 2 * at + 1];
            device.launch(Stream::Compute, at, &zero(short))?;
            device.record(Stream::Compute, events[0])?;
            device.wait(Stream::H2d, events[0])?;
            device.copy(Stream::H2d, at, host, short)?;
            device.record(Stream::H2d, events[1])?;
            device.wait(Stream::Compute, events[1])?;
        }
        Ok(())
    })?;
    let (operators, copies) = (of(&trace, Stream::Compute), of(&trace, Stream::H2d));
    let there = operators.iter().zip(&copies);
    let mut handovers: Vec<u64> = there
        .map(|(operator, copy)| copy.start_ns.saturating_sub(operator.end_ns))
        .collect();
    let back = copies.iter().zip(&operators[1..]);
    handovers.extend(back.map(|(copy, operator)| operator.start_ns.saturating_sub(copy.end_ns)));
    let median = |samples: &[u64]| {
        let median = Summary::of(samples).median;
        Natural::new(median).expect("a step is shorter than 31 years")
    };
    Ok(Calibration {
        launch_ns: median(&launches),
        timer_ns: median(&timers),
        handover_ns: median(&handovers),
    })
}
