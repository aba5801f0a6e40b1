//! Updates in a space of low rank: operands of [`crate::device::cpu::ops::low_rank`].

use super::{Outcome, Runner};
use crate::device::cpu::ops::factored::{self, Second};
use crate::device::cpu::ops::linear::add;
use crate::device::cpu::ops::low_rank::{
    adam, back, descend, iterated_basis, limit_growth, project, residual, scale_as, singular_basis,
    Sizes,
};
use crate::device::cpu::ops::philox::{Draws, Purpose};
use crate::device::cpu::scratch::Loan;
use crate::device::operator::Operator;
use crate::device::tensors::{
    GradientSum, Moments, Projection, TensorRule, TensorShape, TensorUpdate,
};
use crate::device::{Cause, Region};
use crate::profile::Dtype;

/// A matrix turned so that it is tall.
fn tall(values: &mut [f32], shape: TensorShape) {
    if shape.rows < shape.columns {
        turn(values, shape.rows as usize, shape.columns as usize);
    }
}

/// The way back.
fn as_was(values: &mut [f32], shape: TensorShape) {
    if shape.rows < shape.columns {
        turn(values, shape.columns as usize, shape.rows as usize);
    }
}

fn turn(values: &mut [f32], rows: usize, columns: usize) {
    let turned: Vec<f32> = (0..rows * columns)
        .map(|i| values[(i % rows) * columns + i / rows])
        .collect();
    values.copy_from_slice(&turned);
}

fn sizes(shape: TensorShape, rank: u64) -> Sizes {
    let (long, short) = shape.sides();
    Sizes {
        long: long as usize,
        short: short as usize,
        rank: rank as usize,
    }
}

impl<'a> Runner<'a> {
    /// A random projection `[r × μ]` of variance `1/r`.
    fn drawn(&self, key: u64, epoch: u32, sizes: Sizes) -> Vec<f32> {
        self.drawn_for(Purpose::Projection, key, epoch, sizes)
    }

    fn drawn_for(&self, purpose: Purpose, key: u64, epoch: u32, sizes: Sizes) -> Vec<f32> {
        let draws = Draws {
            key,
            epoch,
            purpose,
        };
        let mut matrix = vec![0.0; sizes.rank * sizes.short];
        draws.fill(0, (sizes.rank as f32).sqrt().recip(), &mut matrix);
        matrix
    }

    /// The projection in which a step's gradients of a tensor are added up.
    fn accumulation(&self, key: u64, sizes: Sizes) -> Vec<f32> {
        let step = self.state.step().parameters.step as u32;
        self.drawn_for(Purpose::Accumulation, key, step, sizes)
    }

    /// Adds a micro-batch's gradients to sums in spaces of low rank.
    pub(super) fn run_compress(&self, tensors: &[GradientSum], accumulate: bool) -> Outcome {
        for tensor in tensors {
            let checked = tensor.check(self.dtype());
            checked.map_err(|failure| failure.cause)?;
            let mut g = self.gradient(tensor.shape, &tensor.gradient)?;
            let mut sum = match tensor.rank {
                Some(rank) => {
                    let sizes = sizes(tensor.shape, rank);
                    tall(&mut g, tensor.shape);
                    project(&g, &self.accumulation(tensor.key, sizes), sizes)
                }
                None => g.to_vec(),
            };
            if accumulate {
                let before = self.load(tensor.sum, sum.len() as u64)?;
                add(&mut sum, &before);
            }
            self.store(tensor.sum, &sum)?;
        }
        Ok(())
    }

    /// What has been added up so, as a gradient of the tensor's shape.
    pub(super) fn decompressed(&self, tensor: &TensorUpdate, sum: &[f32]) -> Loan<'a> {
        let rank = tensor.rule.accumulated_rank().expect("asked for before");
        let sizes = sizes(tensor.shape, rank);
        let mut g = self.scratch.take(sizes.long * sizes.short);
        g.copy_from_slice(&back(sum, &self.accumulation(tensor.key, sizes), sizes));
        as_was(&mut g, tensor.shape);
        g
    }

    /// CompAct's inputs.
    pub(super) fn run_project(&self, operator: &Operator) -> Outcome {
        let Operator::Project {
            rows,
            x,
            inputs,
            projection,
            key,
            z,
            workspace: _,
        } = *operator
        else {
            unreachable!("dispatched by name");
        };
        let sizes = Sizes {
            long: rows as usize,
            short: inputs as usize,
            rank: projection.rank as usize,
        };
        let epoch = projection.epoch(self.state.step().parameters.step - 1);
        let x = self.load(x, rows * inputs)?;
        self.store(z, &project(&x, &self.drawn(key, epoch, sizes), sizes))
    }

    /// CompAct's update, by a gradient that is projected already.
    pub(super) fn run_compact(
        &self,
        (tensor, projection): (&TensorUpdate, Option<Projection>),
        (scale, moments): (f64, Moments),
        (w, g): (&mut [f32], &mut [f32]),
    ) -> Outcome {
        let step = self.state.step().parameters;
        self.with_moments(tensor.key, &tensor.states, g, moments, {
            |g, m, v| adam(g, m, v, &step)
        })?;
        let factor = step.learning_rate * scale;
        let Some(projection) = projection else {
            descend(w, g, factor, &step);
            return Ok(());
        };
        let sizes = Sizes {
            long: tensor.shape.rows as usize,
            short: tensor.shape.columns as usize,
            rank: projection.rank as usize,
        };
        let epoch = projection.epoch(step.step - 1);
        let basis = self.drawn(tensor.projection_key, epoch, sizes);
        descend(w, &back(g, &basis, sizes), factor, &step);
        Ok(())
    }

    /// GaLore; Fira, which adds what GaLore leaves.
    pub(super) fn run_galore(
        &self,
        (tensor, projection): (&TensorUpdate, Projection),
        (scale, svd, moments): (f64, bool, Moments),
        (w, g): (&mut [f32], &mut [f32]),
    ) -> Outcome {
        let step = self.state.step().parameters;
        let sizes = sizes(tensor.shape, projection.rank);
        tall(w, tensor.shape);
        tall(g, tensor.shape);
        let elements = (sizes.rank * sizes.short) as u64;
        let place = tensor.states[0].part(0, elements * self.dtype().bytes());
        if projection.renews(step.step) {
            let basis = match (svd, step.step) {
                (true, _) => singular_basis(g, sizes).ok_or_else(|| {
                    Cause::Failed("the singular values of a gradient do not converge".into())
                })?,
                (false, 1) => iterated_basis(g, &self.drawn(tensor.key, 0, sizes), sizes),
                (false, _) => iterated_basis(g, &self.load(place, elements)?, sizes),
            };
            self.store(place, &basis)?;
        }
        let basis = self.load(place, elements)?;
        let small = project(g, &basis, sizes);
        let mut scaled = small.clone();
        self.with_moments(tensor.key, &tensor.states[1..], &mut scaled, moments, {
            |r, m, v| adam(r, m, v, &step)
        })?;
        let mut update = back(&scaled, &basis, sizes);
        let mut factor = step.learning_rate * scale;
        if matches!(tensor.rule, TensorRule::Fira { .. }) {
            residual(g, (&small, &scaled), &basis, scale, sizes);
            self.limit(g, *tensor.states.last().expect("checked before"))?;
            for (update, left) in update.iter_mut().zip(&*g) {
                *update = scale as f32 * *update + left;
            }
            factor = step.learning_rate;
        }
        descend(w, &update, factor, &step);
        as_was(w, tensor.shape);
        Ok(())
    }

    /// Lets an update grow slowly; its last norm is a state.
    fn limit(&self, update: &mut [f32], norm: Region) -> Outcome {
        let before = self.words(norm)?[0];
        let now = limit_growth(update, f64::from(before));
        self.store_as(norm, &[now as f32], Dtype::F32)
    }

    /// APOLLO.
    pub(super) fn run_apollo(
        &self,
        (tensor, projection): (&TensorUpdate, Projection),
        (scale, channels, moments): (f64, bool, Moments),
        (w, g): (&mut [f32], &mut [f32]),
    ) -> Outcome {
        let step = self.state.step().parameters;
        let sizes = sizes(tensor.shape, projection.rank);
        tall(w, tensor.shape);
        tall(g, tensor.shape);
        let epoch = projection.epoch(step.step - 1);
        let small = project(g, &self.drawn(tensor.key, epoch, sizes), sizes);
        let mut scaled = small.clone();
        let (norm, moment_states) = tensor.states.split_last().expect("checked before");
        self.with_moments(tensor.key, moment_states, &mut scaled, moments, {
            |r, m, v| adam(r, m, v, &step)
        })?;
        scale_as(g, &small, &scaled, sizes, channels);
        self.limit(g, *norm)?;
        descend(w, g, step.learning_rate * scale.sqrt(), &step);
        as_was(w, tensor.shape);
        Ok(())
    }

    /// FLORA.
    pub(super) fn run_flora(
        &self,
        (tensor, projection): (&TensorUpdate, Projection),
        (w, g): (&mut [f32], &mut [f32]),
    ) -> Outcome {
        let step = self.state.step().parameters;
        let sizes = sizes(tensor.shape, projection.rank);
        tall(w, tensor.shape);
        tall(g, tensor.shape);
        let [momentum, rows, columns] = tensor.states[..] else {
            unreachable!("checked before");
        };
        let (mut r, mut c) = (self.words(rows)?, self.words(columns)?);
        let second = Second::Factored {
            rows: &mut r,
            columns: &mut c,
        };
        factored::precondition(g, second, factored::decay(step.step));
        let done = step.step - 1;
        let (old, new) = (
            projection.epoch(done.saturating_sub(1)),
            projection.epoch(done),
        );
        let mut m = self.words(momentum)?;
        let mut a = self.drawn(tensor.key, old, sizes);
        let mut direction = back(&m, &a, sizes);
        if old != new {
            a = self.drawn(tensor.key, new, sizes);
            m.copy_from_slice(&project(&direction, &a, sizes));
        }
        let (keep, take) = (step.beta1 as f32, (1.0 - step.beta1) as f32);
        let mix = |old: &mut [f32], new: &[f32]| {
            old.iter_mut().for_each(|old| *old *= keep);
            let taken: Vec<f32> = new.iter().map(|new| take * new).collect();
            add(old, &taken);
        };
        mix(&mut direction, g);
        mix(&mut m, &project(g, &a, sizes));
        factored::descend(w, &direction, step.learning_rate, step.weight_decay);
        self.store_as(momentum, &m, Dtype::F32)?;
        self.store_as(rows, &r, Dtype::F32)?;
        self.store_as(columns, &c, Dtype::F32)?;
        as_was(w, tensor.shape);
        Ok(())
    }
}
