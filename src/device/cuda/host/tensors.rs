//! Adam on whole tensors: the CPU device's arithmetic, a block of elements after the other.
//!
//! Rules that look at a tensor as a whole are not the host's work ([`Method::on_host`]).
//!
//! [`Method::on_host`]: crate::methods::Method::on_host

use rayon::prelude::*;

use super::{Host, Work};
use crate::device::cpu::memory::{decode, encode};
use crate::device::cpu::ops::linear::add;
use crate::device::cpu::ops::philox::{Draws, Purpose};
use crate::device::cpu::ops::quantised::{dequantise, quantise, BLOCK, SIGNED, UNSIGNED};
use crate::device::cpu::ops::rounding::round_all;
use crate::device::cpu::ops::update::{adamw, Constants};
use crate::device::cpu::update::{blocks, tasks, ELEMENTS};
use crate::device::tensors::{GradientBlock, Moments, TensorRule, TensorUpdate};
use crate::device::{Failure, Region, Result};
use crate::profile::Dtype;

/// Whole blocks of 8-bit moments go through the stack.
const _: () = assert!(ELEMENTS % BLOCK == 0);

impl Host {
    /// Refuses a tensor that does not follow Adam, or whose operands are elsewhere or do not fit.
    pub(super) fn check_tensor(&self, tensor: &TensorUpdate) -> Result<()> {
        tensor.check(self.dtype)?;
        let TensorRule::Adam(_) = tensor.rule else {
            let what = "an update on the host that looks at a tensor as a whole";
            return Err(Failure::refused(what));
        };
        let size = self.dtype.bytes();
        self.check(tensor.weight, size)?;
        let mut gradients = tensor.gradient.iter();
        gradients.try_for_each(|block| self.check(block.region, size))?;
        let mut states = tensor.states.iter();
        states.try_for_each(|&state| self.check(state, 4))
    }
}

impl Work {
    /// Updates a tensor on all threads.
    pub(super) fn tensor(&self, tensor: &TensorUpdate, constants: &Constants) {
        let TensorRule::Adam(moments) = tensor.rule else {
            unreachable!("refused before");
        };
        let elements = tensor.shape.elements();
        let moments = moments.of(elements);
        let tasks: Vec<_> = tasks(1, elements).collect();
        self.host.threads.install(|| {
            tasks.par_iter().for_each(|&(_, start, end)| {
                for (at, count) in blocks(start, end) {
                    let mut block = [0.0; ELEMENTS];
                    let g = &mut block[..count];
                    self.gather(tensor, at, g);
                    self.adam(tensor, moments, constants, at, g);
                }
            });
        });
    }

    /// Elements of a tensor's gradient: its blocks added up in order.
    fn gather(&self, tensor: &TensorUpdate, first: u64, out: &mut [f32]) {
        let columns = tensor.shape.columns;
        let end = first + out.len() as u64;
        let mut at = first;
        // Row by row, as far as the block goes.
        while at < end {
            let (row, column) = (at / columns, at % columns);
            let until = end.min((row + 1) * columns);
            let held = |b: &&GradientBlock| (b.row..b.row + b.rows).contains(&row);
            for block in tensor.gradient.iter().filter(held) {
                let start = column.max(block.column);
                let stop = (column + until - at).min(block.column + block.columns);
                if start >= stop {
                    continue;
                }
                let place = (row - block.row) * block.columns + start - block.column;
                let mut values = [0.0; ELEMENTS];
                let values = &mut values[..(stop - start) as usize];
                self.load(block.region, place, self.host.dtype, values);
                let to = (row * columns + start - first) as usize;
                add(&mut out[to..to + values.len()], values);
            }
            at = until;
        }
    }

    /// Adam of the elements from `at` on.
    fn adam(
        &self,
        tensor: &TensorUpdate,
        moments: Moments,
        constants: &Constants,
        at: u64,
        g: &[f32],
    ) {
        let dtype = self.host.dtype;
        let mut stack = [[0.0; ELEMENTS]; 3];
        let [w, m, v] = stack.each_mut().map(|values| &mut values[..g.len()]);
        self.load(tensor.weight, at, dtype, w);
        let of_moments = match moments {
            Moments::AsWeights => dtype,
            _ => Dtype::F32,
        };
        let maps = [&*SIGNED, &*UNSIGNED];
        for (nth, moment) in [&mut *m, &mut *v].into_iter().enumerate() {
            match moments {
                Moments::EightBit => {
                    let (codes, scales) = self.codes(tensor, nth, at, g.len());
                    dequantise(maps[nth], codes, scales, moment);
                }
                _ => self.load(tensor.states[nth], at, of_moments, moment),
            }
        }
        adamw(constants, w, m, v, g);
        self.round(tensor.key, Purpose::Weights, at, dtype, w);
        self.store(tensor.weight, at, dtype, w);
        let purposes = [Purpose::FirstMoment, Purpose::SecondMoment];
        for (nth, moment) in [m, v].into_iter().enumerate() {
            match moments {
                Moments::EightBit => {
                    let (codes, scales) = self.codes(tensor, nth, at, g.len());
                    quantise(maps[nth], moment, codes, scales);
                }
                _ => {
                    self.round(tensor.key, purposes[nth], at, of_moments, moment);
                    self.store(tensor.states[nth], at, of_moments, moment);
                }
            }
        }
    }

    fn round(&self, key: u64, purpose: Purpose, at: u64, dtype: Dtype, values: &mut [f32]) {
        if dtype == Dtype::Bf16 {
            let draws = Draws {
                key,
                epoch: self.parameters.step as u32,
                purpose,
            };
            round_all(draws, at, values);
        }
    }

    /// Bytes of the slab from an element of a region on.
    #[allow(clippy::mut_from_ref, reason = "each thread has elements of its own")]
    pub(super) fn bytes(&self, region: Region, at: u64, count: u64) -> &mut [u8] {
        let base = self.host.slab.address(region.offset_bytes + at, count);
        // SAFETY: inside the slab, as was checked; operands of an update do not overlap, no two
        // threads have the same elements and none holds two of the same, and events order all
        // other uses before or behind this call.
        unsafe { std::slice::from_raw_parts_mut(base, count as usize) }
    }

    /// Codes and scales of a moment in 8 bits, from the start of a block on.
    fn codes(
        &self,
        tensor: &TensorUpdate,
        nth: usize,
        at: u64,
        count: usize,
    ) -> (&mut [u8], &mut [f32]) {
        let block = BLOCK as u64;
        let scales = (count as u64).div_ceil(block) * 4;
        let scales = self.bytes(tensor.states[2 + nth], at / block * 4, scales);
        let codes = self.bytes(tensor.states[nth], at, count as u64);
        (codes, bytemuck::cast_slice_mut(scales))
    }

    pub(super) fn load(&self, region: Region, at: u64, dtype: Dtype, values: &mut [f32]) {
        let size = dtype.bytes();
        let bytes = self.bytes(region, at * size, values.len() as u64 * size);
        match dtype {
            Dtype::F32 => bytemuck::cast_slice_mut(values).copy_from_slice(bytes),
            _ => decode(bytes, values),
        }
    }

    fn store(&self, region: Region, at: u64, dtype: Dtype, values: &[f32]) {
        let size = dtype.bytes();
        let bytes = self.bytes(region, at * size, values.len() as u64 * size);
        match dtype {
            Dtype::F32 => bytes.copy_from_slice(bytemuck::cast_slice(values)),
            _ => encode(values, bytes),
        }
    }
}
