//! Updates of whole tensors: gradient, weights and states to floats, one rule, and back.

use super::{Outcome, Runner};
use crate::device::cpu::ops::factored::{self, Second};
use crate::device::cpu::ops::philox::{Draws, Purpose};
use crate::device::cpu::ops::quantised::{dequantise, quantise, SIGNED, UNSIGNED};
use crate::device::cpu::ops::rounding::round_all;
use crate::device::cpu::ops::update::{adamw, Constants};
use crate::device::cpu::ops::{linear, vectorised};
use crate::device::cpu::scratch::Loan;
use crate::device::tensors::{GradientBlock, Moments, TensorRule, TensorShape, TensorUpdate};
use crate::device::{Cause, Failure, Region};
use crate::profile::Dtype;

impl<'a> Runner<'a> {
    /// Updates tensors, one after the other.
    pub(super) fn run_tensors(&self, tensors: &[TensorUpdate]) -> Outcome {
        let step = self.state.step().parameters;
        let clip = step.clip_factor(|| self.state.gradient_norm());
        for tensor in tensors {
            self.check_tensor(tensor)?;
            let shape = tensor.rule.gradient_shape(tensor.shape);
            let mut g = self.gradient(shape, &tensor.gradient)?;
            if tensor.rule.accumulated_rank().is_some() {
                g = self.decompressed(tensor, &g);
            }
            self.clip(&mut g, clip as f32);
            let mut w = self.load(tensor.weight, tensor.shape.elements())?;
            match tensor.rule {
                TensorRule::Adam(moments) => {
                    let constants = Constants::new(&step, 1.0);
                    self.with_moments(tensor.key, &tensor.states, &mut w, moments, {
                        |w, m, v| adamw(&constants, w, m, v, &g)
                    })?;
                }
                TensorRule::Galore {
                    projection,
                    scale,
                    svd,
                    moments,
                }
                | TensorRule::Fira {
                    projection,
                    scale,
                    svd,
                    moments,
                } => {
                    let how = (scale, svd, moments);
                    self.run_galore((tensor, projection), how, (&mut w, &mut g))?;
                }
                TensorRule::Apollo {
                    projection,
                    scale,
                    channels,
                    moments,
                } => {
                    let how = (scale, channels, moments);
                    self.run_apollo((tensor, projection), how, (&mut w, &mut g))?;
                }
                TensorRule::Compact {
                    projection,
                    scale,
                    moments,
                } => {
                    let how = (scale, moments);
                    self.run_compact((tensor, projection), how, (&mut w, &mut g))?;
                }
                TensorRule::Flora { projection, .. } => {
                    self.run_flora((tensor, projection), (&mut w, &mut g))?;
                }
                TensorRule::AdaLomo => {
                    let decay = factored::decay(step.step);
                    self.with_factors(tensor, |second| {
                        factored::precondition(&mut g, second, decay);
                    })?;
                    factored::descend(&mut w, &g, step.learning_rate, step.weight_decay);
                }
            }
            self.store_rounded(tensor.weight, &mut w, tensor.key, Purpose::Weights)?;
        }
        Ok(())
    }

    fn check_tensor(&self, tensor: &TensorUpdate) -> Outcome {
        let check = |checked: Result<(), Failure>| checked.map_err(|failure| failure.cause);
        check(tensor.check(self.dtype()))?;
        let mut states = tensor.states.iter();
        states.try_for_each(|&region| check(self.state.check(region)))
    }

    /// A whole gradient in f32: its blocks added up, in order.
    pub(super) fn gradient(
        &self,
        shape: TensorShape,
        blocks: &[GradientBlock],
    ) -> Result<Loan<'a>, Cause> {
        let width = shape.columns as usize;
        let mut g = self.scratch.zeros(shape.elements() as usize);
        for block in blocks {
            let fits = block.row + block.rows <= shape.rows
                && block.column + block.columns <= shape.columns;
            if !fits {
                return Err(Cause::Refused("a gradient outside its tensor".into()));
            }
            let part = self.load(block.region, block.rows * block.columns)?;
            let columns = block.columns as usize;
            for (row, values) in (block.row as usize..).zip(part.chunks_exact(columns)) {
                let first = row * width + block.column as usize;
                linear::add(&mut g[first..first + columns], values);
            }
        }
        Ok(g)
    }

    /// Clips a gradient to the step's largest magnitude, then multiplies it with `clip`.
    fn clip(&self, g: &mut [f32], clip: f32) {
        if let Some(most) = self.state.step().parameters.clip_value {
            let most = most as f32;
            g.iter_mut().for_each(|g| *g = g.clamp(-most, most));
        }
        if clip < 1.0 {
            vectorised(
                #[inline(always)]
                || g.iter_mut().for_each(|g| *g *= clip),
            );
        }
    }

    /// Stores elements of the weights' type, rounded stochastically where that is bf16.
    fn store_rounded(
        &self,
        region: Region,
        values: &mut [f32],
        key: u64,
        purpose: Purpose,
    ) -> Outcome {
        if self.dtype() == Dtype::Bf16 {
            let draws = Draws {
                key,
                epoch: self.state.step().parameters.step as u32,
                purpose,
            };
            round_all(draws, 0, values);
        }
        self.store(region, values)
    }

    /// Changes `values` with Adam's moments in f32, and stores what becomes of these.
    pub(super) fn with_moments(
        &self,
        key: u64,
        states: &[Region],
        values: &mut [f32],
        moments: Moments,
        change: impl FnOnce(&mut [f32], &mut [f32], &mut [f32]),
    ) -> Outcome {
        let elements = values.len() as u64;
        let (first, second) = (states[0], states[1]);
        match moments.of(elements) {
            Moments::F32 => {
                let mut m = self.load_as(first, elements, Dtype::F32)?;
                let mut v = self.load_as(second, elements, Dtype::F32)?;
                change(values, &mut m, &mut v);
                self.store_as(first, &m, Dtype::F32)?;
                self.store_as(second, &v, Dtype::F32)
            }
            Moments::AsWeights => {
                let bytes = elements * self.dtype().bytes();
                let [first, second] = [first, second].map(|region| region.part(0, bytes));
                let mut m = self.load(first, elements)?;
                let mut v = self.load(second, elements)?;
                change(values, &mut m, &mut v);
                self.store_rounded(first, &mut m, key, Purpose::FirstMoment)?;
                self.store_rounded(second, &mut v, key, Purpose::SecondMoment)
            }
            Moments::EightBit => {
                let maps = [&*SIGNED, &*UNSIGNED];
                let mut lent = [0, 1].map(|_| self.scratch.take(elements as usize));
                let mut codes = vec![0; elements as usize];
                for (nth, moment) in lent.iter_mut().enumerate() {
                    let (at, scales) = (states[nth], self.words(states[2 + nth])?);
                    let memory = self.state.memory(at.space);
                    memory.read(at.offset_bytes, &mut codes);
                    dequantise(maps[nth], &codes, &scales, moment);
                }
                let [m, v] = &mut lent;
                change(values, m, v);
                for (nth, moment) in lent.iter().enumerate() {
                    let at = states[nth];
                    let mut scales = self.scratch.take((states[2 + nth].bytes / 4) as usize);
                    quantise(maps[nth], moment, &mut codes, &mut scales);
                    let memory = self.state.memory(at.space);
                    memory.write(at.offset_bytes, &codes);
                    self.store_as(states[2 + nth], &scales, Dtype::F32)?;
                }
                Ok(())
            }
        }
    }

    /// f32 elements that fill a region.
    pub(super) fn words(&self, region: Region) -> Result<Loan<'a>, Cause> {
        self.load_as(region, region.bytes / 4, Dtype::F32)
    }

    /// Lends second moments, factored for a matrix, and stores what becomes of them.
    fn with_factors(&self, tensor: &TensorUpdate, change: impl FnOnce(Second<'_, f32>)) -> Outcome {
        match tensor.states[..] {
            [rows, columns] => {
                let (mut r, mut c) = (self.words(rows)?, self.words(columns)?);
                change(Second::Factored {
                    rows: &mut r,
                    columns: &mut c,
                });
                self.store_as(rows, &r, Dtype::F32)?;
                self.store_as(columns, &c, Dtype::F32)
            }
            [whole] => {
                let mut v = self.words(whole)?;
                change(Second::Whole(&mut v));
                self.store_as(whole, &v, Dtype::F32)
            }
            _ => unreachable!("checked before"),
        }
    }
}
