//! From an instruction to the operators that a device runs for it.
//!
//! In: an [`Instruction`] of a [`Program`]. Out: [`Operator`]s with every shape and address. Operands
//! stand in the order of `model/step.rs`: what an operator reads, updates, accumulates and writes,
//! then its scratch memory. Each is taken by its expected name, so that an operand in a wrong place
//! is an error and not another number.
//!
//! The first contribution to a gradient replaces it ([`Access::Write`]). Where an operator makes
//! only a part of the gradient, the whole is cleared first and everything adds.

use ebbtide_solver::problem::Category;
use ebbtide_solver::schedule::{Access, Action, Buffer, Instruction, ScheduledOp, ScheduledValue};
use ebbtide_solver::units::Span;

use super::program::Program;
use crate::device::layout::WeightValue;
use crate::device::{
    AttentionShape, HeadNorms, HeadNormsBackward, NormShape, Operator, Region, Rows,
};
use crate::error::{Error, Result};
use crate::model::Part;

/// The operators of an instruction, in order; none for copies and barriers.
///
/// # Errors
/// Operands that are not what the operator takes.
pub fn operators(program: &Program<'_>, instruction: &Instruction) -> Result<Vec<Operator>> {
    match instruction.action {
        Action::Run(id) | Action::Recompute(id) => {
            let op = program.schedule.ops.get(id);
            let op = op.ok_or_else(|| Error::bad_input("there is no such operator"))?;
            let mut bound = Bound {
                program,
                instruction,
                next: 0,
            };
            let operators = bound.run(op);
            operators.map_err(|error| error.within(&op.name))
        }
        Action::HostUpdate(group) => super::update::on_host(program, instruction, group),
        Action::Copy | Action::Barrier => Ok(Vec::new()),
    }
}

/// Source and target of a copy.
///
/// # Errors
/// Operands that are not two buffers of the rows that the copy says.
pub fn copied(program: &Program<'_>, instruction: &Instruction) -> Result<(Region, Region)> {
    let [from, to] = instruction.operands[..] else {
        return Err(Error::bad_input("a copy needs a source and a target"));
    };
    let (from, to) = (program.buffer(from.buffer)?, program.buffer(to.buffer)?);
    if from.rows != instruction.rows || to.rows != instruction.rows {
        return Err(Error::bad_input(
            "a copy covers other rows than its buffers",
        ));
    }
    Ok((program.region(from), program.region(to)))
}

/// An instruction whose operands are taken one by one.
struct Bound<'a, 'b> {
    program: &'b Program<'a>,
    instruction: &'b Instruction,
    next: usize,
}

/// An operand that has been taken.
pub(super) struct Taken<'a> {
    pub(super) buffer: &'a Buffer,
    pub(super) value: &'a ScheduledValue,
    pub(super) access: Access,
    /// The instruction's rows of it; all of a weight or gradient.
    pub(super) region: Region,
    /// The f32 extras of the same rows.
    extras: Region,
}

impl Taken<'_> {
    /// Whether what is there is added to.
    fn adds(&self) -> bool {
        self.access == Access::Update
    }
}

impl<'a> Bound<'a, '_> {
    /// The next operand.
    fn any(&mut self) -> Result<Taken<'a>> {
        let operand = self.instruction.operands.get(self.next);
        let operand = operand.ok_or_else(|| Error::bad_input("an operand is missing"))?;
        self.next += 1;
        let buffer = self.program.buffer(operand.buffer)?;
        let value = self.program.value(buffer)?;
        let whole = self.program.region(buffer);
        let (region, extras) = match value.category {
            Category::Activations | Category::Transients | Category::Workspace => {
                self.rows_of(buffer, value, whole)?
            }
            Category::Weights | Category::Gradients | Category::OptimizerStates => {
                let bytes = value.fixed_bytes.get();
                let share = self.share(buffer, value)?;
                if share * whole.bytes != bytes {
                    return Err(Error::bad_input(format!(
                        "a buffer of {} has {} bytes, not {}",
                        value.name,
                        whole.bytes,
                        bytes / share
                    )));
                }
                (whole, Region { bytes: 0, ..whole })
            }
        };
        Ok(Taken {
            buffer,
            value,
            access: operand.access,
            region,
            extras,
        })
    }

    /// Of how many equal pieces of its value a buffer is one.
    fn share(&self, buffer: &Buffer, value: &ScheduledValue) -> Result<u64> {
        let groups = self.program.layout.groups;
        match value.by_groups {
            false => Ok(1),
            true if buffer.groups == self.instruction.groups && buffer.groups.len() == 1 => {
                Ok(groups)
            }
            true => Err(Error::bad_input(format!(
                "a buffer of {} is not of the instruction's head group",
                value.name
            ))),
        }
    }

    fn rows_of(
        &self,
        buffer: &Buffer,
        value: &ScheduledValue,
        whole: Region,
    ) -> Result<(Region, Region)> {
        let layout = &self.program.layout;
        let (width, extras) = self.program.row(value)?;
        let share = self.share(buffer, value)?;
        let (all, rows) = (buffer.rows, self.instruction.rows);
        let bytes = all.end.checked_sub(all.start);
        let bytes = bytes.and_then(|rows| rows.checked_mul(value.row_bytes / share));
        if bytes != Some(whole.bytes) {
            return Err(Error::bad_input(format!(
                "a buffer of {} has {} bytes for rows {}..{}",
                value.name, whole.bytes, all.start, all.end
            )));
        }
        let inside = rows.start < rows.end && all.start <= rows.start && rows.end <= all.end;
        if !inside {
            return Err(Error::bad_input(format!(
                "rows {}..{} are not in a buffer of {} with rows {}..{}",
                rows.start, rows.end, value.name, all.start, all.end
            )));
        }
        let within = (rows.start - all.start, rows.end - rows.start);
        let regions = layout.rows(whole, all.end - all.start, within, (width, extras));
        Ok(regions)
    }

    /// The next operand, which must have one of these names and be no weight, gradient or state.
    fn take(&mut self, names: &[&str]) -> Result<Taken<'a>> {
        let taken = self.any()?;
        let fixed = matches!(
            taken.value.category,
            Category::Weights | Category::Gradients | Category::OptimizerStates
        );
        match names.contains(&taken.value.name.as_str()) && !fixed {
            true => Ok(taken),
            false => Err(unexpected(&taken, names)),
        }
    }

    /// The next operand's rows.
    fn rows(&mut self, name: &str) -> Result<Region> {
        Ok(self.take(&[name])?.region)
    }

    /// The next operand, which must be this weight or gradient.
    fn fixed(&mut self, category: Category, weights: &[WeightValue]) -> Result<Fixed<'a>> {
        let taken = self.any()?;
        let names: Vec<&str> = weights.iter().map(|w| w.name()).collect();
        let weight = WeightValue::of(&taken.value.name);
        match weight.filter(|w| weights.contains(w) && taken.value.category == category) {
            Some(weight) => Ok(Fixed { taken, weight }),
            None => Err(unexpected(&taken, &names)),
        }
    }

    fn weight(&mut self, weight: WeightValue) -> Result<Region> {
        Ok(self.fixed(Category::Weights, &[weight])?.taken.region)
    }

    fn gradient(&mut self, weight: WeightValue) -> Result<Taken<'a>> {
        Ok(self.fixed(Category::Gradients, &[weight])?.taken)
    }

    /// Scratch memory, if there is any.
    fn workspace(&mut self) -> Result<Option<Region>> {
        let Some(operand) = self.instruction.operands.get(self.next) else {
            return Ok(None);
        };
        let buffer = self.program.buffer(operand.buffer)?;
        if buffer.value.is_some() {
            return Err(Error::bad_input("an operand too many"));
        }
        self.next += 1;
        Ok(Some(self.program.region(buffer)))
    }

    /// All operands have been taken.
    fn end(&self) -> Result<()> {
        match self.next == self.instruction.operands.len() {
            true => Ok(()),
            false => Err(Error::bad_input("an operand too many")),
        }
    }

    fn tile(&self) -> Rows {
        let Span { start, end } = self.instruction.rows;
        Rows {
            first: start,
            count: end.saturating_sub(start),
            sequence: self.program.sequence,
        }
    }

    fn group(&self) -> Result<u64> {
        let groups = self.instruction.groups;
        let one = groups.end.checked_sub(groups.start) == Some(1);
        match one && groups.end <= self.program.layout.groups {
            true => Ok(groups.start),
            false => Err(Error::bad_input("does not run on one head group")),
        }
    }

    fn norm_shape(&self, width: u64) -> NormShape {
        let model = self.program.layout.model;
        NormShape {
            kind: model.norm,
            width,
            epsilon: model.norm_eps,
        }
    }

    fn attention_shape(&self) -> Result<AttentionShape> {
        let (program, block) = (self.program, self.block()?);
        Ok(AttentionShape {
            heads: program.layout.heads(),
            sequences: program.schedule.tokens / program.sequence,
            sequence: program.sequence,
            window: program.layout.model.windows[block],
        })
    }

    /// The block of the operator.
    fn block(&self) -> Result<usize> {
        let op = match self.instruction.action {
            Action::Run(id) | Action::Recompute(id) => self.program.schedule.ops.get(id),
            _ => None,
        };
        let block = op.and_then(|op| op.block).map(|block| block as usize);
        let layers = self.program.layout.model.windows.len();
        block
            .filter(|&block| block < layers)
            .ok_or_else(|| Error::bad_input("is of no block of the model"))
    }
}

/// A weight or gradient that has been taken.
struct Fixed<'a> {
    taken: Taken<'a>,
    weight: WeightValue,
}

fn unexpected(taken: &Taken<'_>, names: &[&str]) -> Error {
    Error::bad_input(format!(
        "an operand is {} ({}), expected {}",
        taken.value.name,
        taken.value.category.name(),
        names.join(" or ")
    ))
}

const NORMS: [WeightValue; 3] = [
    WeightValue::Norm1,
    WeightValue::Norm2,
    WeightValue::FinalNorm,
];
const HEADS: [WeightValue; 2] = [WeightValue::LmHead, WeightValue::Embedding];
const RESIDUAL: &str = "residual.gradient";

impl<'a> Bound<'a, '_> {
    fn run(&mut self, op: &ScheduledOp) -> Result<Vec<Operator>> {
        let operators = match op.name.as_str() {
            "embedding" => self.embedding(),
            "norm" => self.norm(),
            "qkv_projection" => self.qkv_projection(),
            "attention" => self.attention(),
            "output_projection" => self.output_projection(),
            "up_projection" => self.linear("n2", WeightValue::GateUp, &["gate_up"]),
            "activation" => self.activation(),
            "down_projection" => self.down_projection(),
            "logits" => self.logits(),
            "cross_entropy" => self.cross_entropy(),
            "logits_input_gradient" => self.logits_input_gradient(),
            "logits_weight_gradient" => self.logits_weight_gradient(),
            "norm_backward" => self.norm_backward(),
            "down_input_gradient" => self.input_gradient(RESIDUAL, WeightValue::Down, "h.gradient"),
            "down_weight_gradient" => self.weight_gradient("h", RESIDUAL, WeightValue::Down),
            "activation_backward" => self.activation_backward(),
            "up_input_gradient" => {
                self.input_gradient("gate_up.gradient", WeightValue::GateUp, "n2.gradient")
            }
            "up_weight_gradient" => {
                self.weight_gradient("n2", "gate_up.gradient", WeightValue::GateUp)
            }
            "output_input_gradient" => self.output_input_gradient(),
            "output_weight_gradient" => self.output_weight_gradient(),
            "attention_backward" => self.attention_backward(),
            "rotary_backward" => self.rotary_backward(),
            "qkv_input_gradient" => self.qkv_input_gradient(),
            "qkv_weight_gradient" => self.qkv_weight_gradient(),
            "embedding_backward" => self.embedding_backward(),
            name if name.ends_with("_update") => self.update(),
            _ => Err(Error::bad_input("no device knows this operator")),
        }?;
        self.end()?;
        Ok(operators)
    }

    // ---- forward ------------------------------------------------------------------------------

    fn embedding(&mut self) -> Result<Vec<Operator>> {
        let weight = self.weight(WeightValue::Embedding)?;
        let x = self.rows("x")?;
        let layout = &self.program.layout;
        let part = |part| layout.part(WeightValue::Embedding, weight, part);
        Ok(vec![Operator::Embedding {
            rows: self.tile(),
            micro_batch: self.instruction.micro_batch,
            weight: part(Part::Embedding).expect("every model has one"),
            vocab: layout.model.vocab,
            positions: part(Part::PositionEmbedding),
            width: layout.model.hidden,
            scale: layout.model.embedding_scale,
            x,
        }])
    }

    /// Scale and shift of a norm, or their gradients.
    fn norm_parts(&self, norm: WeightValue, region: Region) -> (Region, Option<Region>) {
        let parts = self.program.layout.parts(norm);
        let of = |at: usize| parts.get(at).map(|placed| placed.weight.part);
        let part = |at| {
            let part = of(at)?;
            self.program.layout.part(norm, region, part)
        };
        (part(0).expect("every norm has a scale"), part(1))
    }

    fn norm(&mut self) -> Result<Vec<Operator>> {
        let x = self.take(&["x", "x2", "final_x"])?.region;
        let norm = self.fixed(Category::Weights, &NORMS)?;
        let y = self.take(&["n1", "n2", "final_n"])?.region;
        let (scale, shift) = self.norm_parts(norm.weight, norm.taken.region);
        Ok(vec![Operator::Norm {
            norm: self.norm_shape(self.program.layout.model.hidden),
            rows: self.tile().count,
            x,
            scale,
            shift,
            y,
        }])
    }

    fn qkv_projection(&mut self) -> Result<Vec<Operator>> {
        let x = self.rows("n1")?;
        let weight = self.weight(WeightValue::Qkv)?;
        let qkv = self.take(&["qkv"])?;
        let (layout, group) = (&self.program.layout, self.group()?);
        Ok(vec![Operator::QkvProjection {
            rows: self.tile(),
            heads: layout.heads(),
            x,
            weight: layout.qkv_weight(weight, group),
            bias: layout.qkv_bias(weight, group),
            norms: self.head_norms(weight, qkv.extras),
            rotate: self.rotates(),
            qkv: qkv.region,
        }])
    }

    fn rotates(&self) -> bool {
        let positions = &self.program.layout.model.positions;
        matches!(positions, crate::model::Positions::Rope { .. })
    }

    fn head_norms(&self, weight: Region, inverse_deviations: Region) -> Option<HeadNorms> {
        let layout = &self.program.layout;
        let part = |part| layout.part(WeightValue::Qkv, weight, part);
        let norm = self.norm_shape(layout.model.head_dim);
        Some(HeadNorms {
            norm,
            q_scale: part(Part::QNorm)?,
            k_scale: part(Part::KNorm)?,
            inverse_deviations,
        })
    }

    fn attention(&mut self) -> Result<Vec<Operator>> {
        let qkv = self.rows("qkv")?;
        let o = self.take(&["o"])?;
        Ok(vec![Operator::Attention {
            shape: self.attention_shape()?,
            qkv,
            o: o.region,
            lse: o.extras,
            workspace: self.workspace()?,
        }])
    }

    fn output_projection(&mut self) -> Result<Vec<Operator>> {
        let x = self.rows("x")?;
        let o = self.rows("o")?;
        let weight = self.weight(WeightValue::O)?;
        let x2 = self.take(&["x2"])?;
        let layout = &self.program.layout;
        let bias = layout.part(WeightValue::O, weight, Part::OBias);
        let first = !x2.adds();
        Ok(vec![Operator::Linear {
            rows: self.tile().count,
            x: o,
            weight: vec![layout.o_weight(weight, self.group()?)],
            bias: bias.filter(|_| first).into_iter().collect(),
            residual: Some(if first { x } else { x2.region }),
            y: x2.region,
        }])
    }

    fn linear(&mut self, x: &str, weight: WeightValue, y: &[&str]) -> Result<Vec<Operator>> {
        let x = self.rows(x)?;
        let region = self.weight(weight)?;
        let y = self.take(y)?.region;
        Ok(vec![self.linear_of(x, (weight, region), None, y)])
    }

    fn linear_of(
        &self,
        x: Region,
        (weight, region): (WeightValue, Region),
        residual: Option<Region>,
        y: Region,
    ) -> Operator {
        let layout = &self.program.layout;
        Operator::Linear {
            rows: self.tile().count,
            x,
            weight: vec![layout.matrix(weight, region)],
            bias: self.bias(weight, region).into_iter().collect(),
            residual,
            y,
        }
    }

    /// The bias of a linear layer, or its gradient.
    fn bias(&self, weight: WeightValue, region: Region) -> Option<Region> {
        let biases = [Part::GateUpBias, Part::UpBias, Part::DownBias];
        let layout = &self.program.layout;
        biases
            .into_iter()
            .find_map(|part| layout.part(weight, region, part))
    }

    fn activation(&mut self) -> Result<Vec<Operator>> {
        let x = self.rows("gate_up")?;
        let h = self.rows("h")?;
        let model = self.program.layout.model;
        Ok(vec![Operator::Activation {
            kind: model.activation,
            gated: model.gated,
            rows: self.tile().count,
            width: model.intermediate,
            x,
            h,
        }])
    }

    fn down_projection(&mut self) -> Result<Vec<Operator>> {
        let x2 = self.rows("x2")?;
        let h = self.rows("h")?;
        let weight = self.weight(WeightValue::Down)?;
        let y = self.take(&["x", "final_x"])?.region;
        Ok(vec![self.linear_of(
            h,
            (WeightValue::Down, weight),
            Some(x2),
            y,
        )])
    }

    // ---- head ---------------------------------------------------------------------------------

    fn logits(&mut self) -> Result<Vec<Operator>> {
        let x = self.rows("final_n")?;
        let head = self.fixed(Category::Weights, &HEADS)?;
        let y = self.rows("logits")?;
        let weight = (head.weight, head.taken.region);
        Ok(vec![self.linear_of(x, weight, None, y)])
    }

    fn cross_entropy(&mut self) -> Result<Vec<Operator>> {
        let logits = self.rows("logits")?;
        Ok(vec![Operator::CrossEntropy {
            rows: self.tile(),
            micro_batch: self.instruction.micro_batch,
            vocab: self.program.layout.model.vocab,
            logits,
            // Given its number by whoever queues it.
            slot: 0,
        }])
    }

    fn logits_input_gradient(&mut self) -> Result<Vec<Operator>> {
        let d_y = self.rows("logits")?;
        let head = self.fixed(Category::Weights, &HEADS)?;
        let d_x = self.rows("final_n.gradient")?;
        let layout = &self.program.layout;
        Ok(vec![Operator::LinearInputGradient {
            rows: self.tile().count,
            d_y,
            weight: vec![layout.matrix(head.weight, head.taken.region)],
            d_x,
            accumulate: false,
        }])
    }

    fn logits_weight_gradient(&mut self) -> Result<Vec<Operator>> {
        let x = self.rows("final_n")?;
        let d_y = self.rows("logits")?;
        let head = self.fixed(Category::Gradients, &HEADS)?;
        let model = self.program.layout.model;
        // The embedding's gradient may have positions, which this does not make.
        let partial = head.weight == WeightValue::Embedding;
        let (mut operators, accumulate) = cleared(&head.taken, partial);
        let matrix = self.program.layout.matrix(head.weight, head.taken.region);
        operators.push(Operator::LinearWeightGradient {
            rows: self.tile().count,
            x,
            inputs: model.hidden,
            d_y,
            outputs: model.vocab,
            d_weight: matrix.region,
            d_bias: None,
            accumulate,
        });
        Ok(operators)
    }

    // ---- backward -----------------------------------------------------------------------------

    fn norm_backward(&mut self) -> Result<Vec<Operator>> {
        let x = self.take(&["x", "x2", "final_x"])?.region;
        let d_y = self
            .take(&["n1.gradient", "n2.gradient", "final_n.gradient"])?
            .region;
        let norm = self.fixed(Category::Weights, &NORMS)?;
        // Within blocks the residual's gradient is added to; at the head it is made.
        let in_block = norm.weight != WeightValue::FinalNorm;
        let updated = match in_block {
            true => Some(self.take(&[RESIDUAL])?),
            false => None,
        };
        let gradient = self.gradient(norm.weight)?;
        let residual = match updated {
            Some(residual) => residual,
            None => self.take(&[RESIDUAL])?,
        };
        let (scale, _) = self.norm_parts(norm.weight, norm.taken.region);
        let (d_scale, d_shift) = self.norm_parts(norm.weight, gradient.region);
        Ok(vec![Operator::NormBackward {
            norm: self.norm_shape(self.program.layout.model.hidden),
            rows: self.tile().count,
            x,
            scale,
            d_y,
            d_x: residual.region,
            accumulate_x: in_block,
            d_scale,
            d_shift,
            accumulate_weight: gradient.adds(),
        }])
    }

    fn input_gradient(
        &mut self,
        d_y: &str,
        weight: WeightValue,
        d_x: &str,
    ) -> Result<Vec<Operator>> {
        let d_y = self.rows(d_y)?;
        let region = self.weight(weight)?;
        let d_x = self.rows(d_x)?;
        Ok(vec![Operator::LinearInputGradient {
            rows: self.tile().count,
            d_y,
            weight: vec![self.program.layout.matrix(weight, region)],
            d_x,
            accumulate: false,
        }])
    }

    fn weight_gradient(
        &mut self,
        x: &str,
        d_y: &str,
        weight: WeightValue,
    ) -> Result<Vec<Operator>> {
        let x = self.rows(x)?;
        let d_y = self.rows(d_y)?;
        let gradient = self.gradient(weight)?;
        let matrix = self.program.layout.matrix(weight, gradient.region);
        Ok(vec![Operator::LinearWeightGradient {
            rows: self.tile().count,
            x,
            inputs: matrix.columns,
            d_y,
            outputs: matrix.rows,
            d_weight: matrix.region,
            d_bias: self.bias(weight, gradient.region),
            accumulate: gradient.adds(),
        }])
    }

    fn activation_backward(&mut self) -> Result<Vec<Operator>> {
        let x = self.rows("gate_up")?;
        let d_h = self.rows("h.gradient")?;
        let d_x = self.rows("gate_up.gradient")?;
        let model = self.program.layout.model;
        Ok(vec![Operator::ActivationBackward {
            kind: model.activation,
            gated: model.gated,
            rows: self.tile().count,
            width: model.intermediate,
            x,
            d_h,
            d_x,
        }])
    }

    fn output_input_gradient(&mut self) -> Result<Vec<Operator>> {
        let d_y = self.rows(RESIDUAL)?;
        let weight = self.weight(WeightValue::O)?;
        let d_x = self.rows("o.gradient")?;
        Ok(vec![Operator::LinearInputGradient {
            rows: self.tile().count,
            d_y,
            weight: vec![self.program.layout.o_weight(weight, self.group()?)],
            d_x,
            accumulate: false,
        }])
    }

    fn output_weight_gradient(&mut self) -> Result<Vec<Operator>> {
        let x = self.rows("o")?;
        let d_y = self.rows(RESIDUAL)?;
        let gradient = self.gradient(WeightValue::O)?;
        let layout = &self.program.layout;
        let part = |part| layout.gradient_part(WeightValue::O, gradient.region, part);
        // The bias' gradient is the same for all head groups: the first one's first copy counts.
        let bias = part(Part::OBias).filter(|_| self.instruction.groups.start == 0);
        let bias = bias.map(|copies| copies.part(0, layout.model.hidden * layout.dtype.bytes()));
        Ok(vec![Operator::LinearWeightGradient {
            rows: self.tile().count,
            x,
            inputs: layout.heads().query_width(),
            d_y,
            outputs: layout.model.hidden,
            d_weight: part(Part::O).expect("every model has one"),
            d_bias: bias,
            accumulate: gradient.adds(),
        }])
    }

    fn attention_backward(&mut self) -> Result<Vec<Operator>> {
        let qkv = self.rows("qkv")?;
        let o = self.take(&["o"])?;
        let d_o = self.rows("o.gradient")?;
        let d_qkv = self.rows("qkv.gradient")?;
        Ok(vec![Operator::AttentionBackward {
            shape: self.attention_shape()?,
            qkv,
            o: o.region,
            lse: o.extras,
            d_o,
            d_qkv,
            workspace: self.workspace()?,
        }])
    }

    fn rotary_backward(&mut self) -> Result<Vec<Operator>> {
        let saved = match self.program.layout.model.qk_norm {
            true => Some((self.take(&["qkv"])?, self.weight(WeightValue::Qkv)?)),
            false => None,
        };
        let d_qkv = self.rows("qkv.gradient")?;
        let mut operators = Vec::new();
        let mut norms = None;
        if let Some((qkv, weight)) = saved {
            let gradient = self.gradient(WeightValue::Qkv)?;
            let (clear, accumulate) = cleared(&gradient, true);
            operators = clear;
            let layout = &self.program.layout;
            let part = |part| {
                let part = layout.gradient_part(WeightValue::Qkv, gradient.region, part);
                part.ok_or_else(|| Error::bad_input("the model has no norms of q and k"))
            };
            let shape = self.head_norms(weight, qkv.extras);
            norms = Some(HeadNormsBackward {
                norms: shape
                    .ok_or_else(|| Error::bad_input("the model has no norms of q and k"))?,
                qkv: qkv.region,
                d_q_scale: part(Part::QNorm)?,
                d_k_scale: part(Part::KNorm)?,
                accumulate,
            });
        }
        operators.push(Operator::RotaryBackward {
            rows: self.tile(),
            heads: self.program.layout.heads(),
            rotate: self.rotates(),
            norms,
            d_qkv,
        });
        Ok(operators)
    }

    fn qkv_input_gradient(&mut self) -> Result<Vec<Operator>> {
        let d_y = self.rows("qkv.gradient")?;
        let weight = self.weight(WeightValue::Qkv)?;
        let d_x = self.take(&["n1.gradient"])?;
        Ok(vec![Operator::LinearInputGradient {
            rows: self.tile().count,
            d_y,
            weight: self.program.layout.qkv_weight(weight, self.group()?),
            d_x: d_x.region,
            accumulate: d_x.adds(),
        }])
    }

    fn qkv_weight_gradient(&mut self) -> Result<Vec<Operator>> {
        let x = self.rows("n1")?;
        let d_y = self.rows("qkv.gradient")?;
        let gradient = self.gradient(WeightValue::Qkv)?;
        let layout = &self.program.layout;
        let part = |part| layout.gradient_part(WeightValue::Qkv, gradient.region, part);
        Ok(vec![Operator::LinearWeightGradient {
            rows: self.tile().count,
            x,
            inputs: layout.model.hidden,
            d_y,
            outputs: layout.heads().qkv_width(),
            d_weight: part(Part::Qkv).expect("every model has one"),
            d_bias: part(Part::QkvBias),
            accumulate: gradient.adds(),
        }])
    }

    fn embedding_backward(&mut self) -> Result<Vec<Operator>> {
        let d_x = self.rows(RESIDUAL)?;
        let gradient = self.gradient(WeightValue::Embedding)?;
        let (mut operators, _) = cleared(&gradient, true);
        let layout = &self.program.layout;
        let part = |part| layout.part(WeightValue::Embedding, gradient.region, part);
        operators.push(Operator::EmbeddingBackward {
            rows: self.tile(),
            micro_batch: self.instruction.micro_batch,
            d_x,
            width: layout.model.hidden,
            scale: layout.model.embedding_scale,
            d_weight: part(Part::Embedding).expect("every model has one"),
            vocab: layout.model.vocab,
            d_positions: part(Part::PositionEmbedding),
        });
        Ok(operators)
    }

    fn update(&mut self) -> Result<Vec<Operator>> {
        let gradient = self.any()?;
        let weight = self.any()?;
        let states = match self.instruction.operands.get(self.next) {
            Some(_) => Some(self.any()?),
            None => None,
        };
        super::update::on_device(self.program, self.instruction, gradient, weight, states)
    }
}

/// Clears a gradient that is begun by an operator that makes a part of it; says whether that
/// operator is to add.
fn cleared(gradient: &Taken<'_>, partial: bool) -> (Vec<Operator>, bool) {
    match gradient.adds() {
        true => (Vec::new(), true),
        false if partial => {
            let region = gradient.region;
            (vec![Operator::Zero { region }], true)
        }
        false => (Vec::new(), false),
    }
}
