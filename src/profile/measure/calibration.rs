//! What measuring itself costs: operators without work, and signals from stream to stream.
//!
//! ```text
//! d2h      |long copy|…|
//! compute               |e|e|e|e|…      launch: from start to start, timer: from start to end
//! d2h      |long copy|…|
//! compute               |e|     |e|     handover: from an end to the start that waited for it
//! h2d                     |copy|  |copy|
//! ```
//! The long copies let the queues fill, so that the host that queues is not what is timed.

use super::bench::{length, of, Bench};
use super::statistics::Summary;
use super::Request;
use crate::device::{Device, Event, Operator, Space, Stream};
use crate::error::Result;
use crate::format::measured::Calibration;
use crate::format::number::Natural;

/// Bytes of a long copy.
const LONG: u64 = 64 << 20;
/// How long the long copies take at least, in nanoseconds, and the most of them.
const FILLING: u64 = 5_000_000;
const MOST: u64 = 100;
/// Operators without work: with their marks no more than a card's queue holds.
const LAUNCHES: u32 = 300;
/// Signals each way.
const SIGNALS: u32 = 100;

/// Measures them.
pub(super) fn calibrate(request: &Request<'_>) -> Result<Calibration> {
    let memories = (LONG + 4096, LONG + 4096);
    let events = 2 * SIGNALS + 1;
    let mut bench = Bench::new(request.target.open()?, request.dtype, memories, events)?;
    let [long, to] = [Space::Device, Space::Host].map(|space| bench.take(space, LONG));
    let [short, host] = [Space::Device, Space::Host].map(|space| bench.take(space, 64));
    let copy_out = |device: &mut dyn Device, count: u32| {
        (0..count).try_for_each(|at| device.copy(Stream::D2h, at, long, to))
    };
    let trace = bench.step(|device| copy_out(device, 2))?;
    let one = of(&trace, Stream::D2h).last().map_or(1, length).max(1);
    let filling = FILLING.div_ceil(one).min(MOST) as u32;
    let fill = |device: &mut dyn Device| {
        copy_out(device, filling)?;
        device.record(Stream::D2h, 2 * SIGNALS)?;
        device.wait(Stream::Compute, 2 * SIGNALS)
    };
    let empty = |device: &mut dyn Device, at| {
        device.launch(Stream::Compute, at, &Operator::Zero { region: short })
    };
    // The first one also loads its kernel.
    bench.step(|device| empty(device, 0))?;
    let (mut launches, mut timers) = (Vec::new(), Vec::new());
    for _ in 0..3 {
        let trace = bench.step(|device| {
            fill(device)?;
            (0..LAUNCHES).try_for_each(|at| empty(device, at))
        })?;
        let ran = of(&trace, Stream::Compute);
        timers.extend(ran.iter().map(length));
        let pairs = ran.windows(2);
        launches.extend(pairs.map(|pair| pair[1].start_ns - pair[0].start_ns));
    }
    let trace = bench.step(|device| {
        fill(device)?;
        for at in 0..SIGNALS {
            let events: [Event; 2] = [2 * at, 2 * at + 1];
            empty(device, at)?;
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
