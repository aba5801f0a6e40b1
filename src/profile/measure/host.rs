//! The host: its AdamW, and how fast its memory is pinned.

use std::time::Instant;

use super::bench::{length, of, Bench};
use super::statistics::Summary;
use super::{positive, Request};
use crate::device::{Operator, Panel, Space, Stream, UpdateRule, UpdateSlice};
use crate::error::Result;
use crate::format::measured::MeasuredHost;
use crate::profile::Dtype;

/// Parameters of an update: more than caches hold.
const PARAMETERS: u64 = 4 << 20;
/// Updates, after one that does not count.
const UPDATES: u32 = 9;
/// What is pinned to see how long that takes.
const PINNED: u64 = 256 << 20;

/// Measures both.
pub(super) fn host(request: &Request<'_>) -> Result<MeasuredHost> {
    Ok(MeasuredHost {
        adam_params_per_s: positive(per_second(PARAMETERS, update(request)?)),
        pin_bytes_per_s: positive(per_second(PINNED, pin(request)?)),
    })
}

fn per_second(amount: u64, ns: u64) -> u64 {
    let rate = u128::from(amount) * 1_000_000_000 / u128::from(ns.max(1));
    u64::try_from(rate).unwrap_or(u64::MAX)
}

/// Nanoseconds of an update.
fn update(request: &Request<'_>) -> Result<u64> {
    let weight_bytes = PARAMETERS * request.dtype.bytes();
    let planes = if request.dtype == Dtype::F32 { 2 } else { 3 };
    let slab = 2 * weight_bytes + planes * PARAMETERS * 4 + 4096;
    let mut bench = Bench::new(request.target.open()?, request.dtype, (4096, slab), 0)?;
    let mut take = |bytes| bench.take(Space::Host, bytes);
    let (weight, gradient) = (take(weight_bytes), take(weight_bytes));
    let states: Vec<_> = (0..planes).map(|_| take(PARAMETERS * 4)).collect();
    let operator = Operator::Update {
        rule: UpdateRule::AdamW,
        slices: vec![UpdateSlice {
            weight: Panel {
                region: weight,
                rows: 1,
                columns: PARAMETERS,
                stride: PARAMETERS,
            },
            gradients: vec![gradient],
            states: states.clone(),
            carry: None,
        }],
    };
    let trace = bench.step(|device| {
        for region in states.into_iter().chain([weight, gradient]) {
            device.launch(Stream::Host, 0, &Operator::Zero { region })?;
        }
        (0..=UPDATES).try_for_each(|_| device.launch(Stream::Host, 1, &operator))
    })?;
    let ran = of(&trace, Stream::Host);
    let updates = ran.iter().filter(|entry| entry.instruction == 1).skip(1);
    Ok(Summary::of(&updates.map(length).collect::<Vec<u64>>()).median)
}

/// Nanoseconds by which a large slab takes longer to reserve than a small one.
fn pin(request: &Request<'_>) -> Result<u64> {
    let reserve = |slab| -> Result<u64> {
        let begun = Instant::now();
        Bench::new(request.target.open()?, request.dtype, (4096, slab), 0)?;
        Ok(u64::try_from(begun.elapsed().as_nanos()).unwrap_or(u64::MAX))
    };
    reserve(4096)?;
    let small = reserve(4096)?;
    Ok(reserve(PINNED)?.saturating_sub(small))
}
