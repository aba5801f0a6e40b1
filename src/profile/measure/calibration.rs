//! What measuring itself costs: operators without work, and signals from stream to stream.
//!
//! ```text
//! compute  |long|long|…|e|e|e|e|…       launch: from start to start, timer: from start to end
//! compute  |long|long|…|e|     |e|      handover: from an end to the start that waited for it
//! h2d                     |copy|  |copy|
//! ```
//! The long operators let the queue fill, so that the host that queues is not what is timed.

use super::bench::{length, of, Bench};
use super::statistics::Summary;
use super::Request;
use crate::device::{Device, Event, Operator, Space, Stream};
use crate::error::Result;
use crate::format::measured::Calibration;
use crate::format::number::Natural;

/// Bytes of a long operator.
const LONG: u64 = 64 << 20;
/// How long the long operators run at least, in nanoseconds, and the most of them.
const FILLING: u64 = 5_000_000;
const MOST: u64 = 1000;
/// Operators without work: with their marks no more than a card's queue holds.
const LAUNCHES: u32 = 300;
/// Signals each way.
const SIGNALS: u32 = 100;

/// Measures them.
pub(super) fn calibrate(request: &Request<'_>) -> Result<Calibration> {
    let memories = (LONG + 4096, 4096);
    let mut bench = Bench::new(request.target.open()?, request.dtype, memories, 2 * SIGNALS)?;
    let long = bench.take(Space::Device, LONG);
    let [short, host] = [Space::Device, Space::Host].map(|space| bench.take(space, 64));
    let zero = |region| Operator::Zero { region };
    let queue = |device: &mut dyn Device, count: u32, region| {
        (0..count).try_for_each(|at| device.launch(Stream::Compute, at, &zero(region)))
    };
    // The first one also loads its kernel.
    let trace = bench.step(|device| queue(device, 2, long))?;
    let one = of(&trace, Stream::Compute).last().map_or(1, length).max(1);
    let filling = FILLING.div_ceil(one).min(MOST) as u32;
    let (mut launches, mut timers) = (Vec::new(), Vec::new());
    for _ in 0..3 {
        let trace = bench.step(|device| {
            queue(device, filling, long)?;
            queue(device, LAUNCHES, short)
        })?;
        let ran = of(&trace, Stream::Compute);
        let ran = &ran[filling as usize..];
        timers.extend(ran.iter().map(length));
        let pairs = ran.windows(2);
        launches.extend(pairs.map(|pair| pair[1].start_ns - pair[0].start_ns));
    }
    let trace = bench.step(|device| {
        queue(device, filling, long)?;
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
    let operators = &operators[filling as usize..];
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
