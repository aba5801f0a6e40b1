//! The operators of forward and of the head.

use ebbtide_solver::problem::Category;

use super::super::operands::{cleared, Bound};
use super::super::program::projected;
use super::{HEADS, NORMS};
use crate::device::layout::WeightValue;
use crate::device::tensors::TensorRule;
use crate::device::{HeadNorms, Operator, Region};
use crate::error::{Error, Result};
use crate::model::Part;

const BIASES: [Part; 3] = [Part::GateUpBias, Part::UpBias, Part::DownBias];

impl Bound<'_, '_> {
    pub(super) fn embedding(&mut self) -> Result<Vec<Operator>> {
        let weight = self.weight(WeightValue::Embedding)?;
        let x = self.rows("x")?;
        let layout = &self.program.layout;
        let part = |part| layout.part(WeightValue::Embedding, weight, part);
        Ok(vec![Operator::Embedding {
            rows: self.tile(),
            micro_batch: self.micro_batch(),
            weight: part(Part::Embedding).expect("every model has one"),
            vocab: layout.model.vocab,
            positions: part(Part::PositionEmbedding),
            width: layout.model.hidden,
            scale: layout.model.embedding_scale,
            x,
        }])
    }

    /// Scale and shift of a norm, or their gradients.
    pub(super) fn norm_parts(&self, norm: WeightValue, region: Region) -> (Region, Option<Region>) {
        let parts = self.program.layout.parts(norm);
        let of = |at: usize| parts.get(at).map(|placed| placed.weight.part);
        let part = |at| {
            let part = of(at)?;
            self.program.layout.part(norm, region, part)
        };
        (part(0).expect("every norm has a scale"), part(1))
    }

    pub(super) fn norm(&mut self) -> Result<Vec<Operator>> {
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

    pub(super) fn qkv_projection(&mut self) -> Result<Vec<Operator>> {
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
            workspace: self.workspace()?,
        }])
    }

    pub(super) fn rotates(&self) -> bool {
        let positions = &self.program.layout.model.positions;
        matches!(positions, crate::model::Positions::Rope { .. })
    }

    pub(super) fn head_norms(
        &self,
        weight: Region,
        inverse_deviations: Region,
    ) -> Option<HeadNorms> {
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

    pub(super) fn attention(&mut self) -> Result<Vec<Operator>> {
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

    pub(super) fn output_projection(&mut self) -> Result<Vec<Operator>> {
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
            workspace: self.workspace()?,
        }])
    }

    pub(super) fn linear(
        &mut self,
        x: &str,
        weight: WeightValue,
        y: &[&str],
    ) -> Result<Vec<Operator>> {
        let x = self.rows(x)?;
        let region = self.weight(weight)?;
        let y = self.take(y)?.region;
        Ok(vec![self.linear_of(x, (weight, region), None, y)?])
    }

    pub(super) fn linear_of(
        &mut self,
        x: Region,
        (weight, region): (WeightValue, Region),
        residual: Option<Region>,
        y: Region,
    ) -> Result<Operator> {
        let layout = &self.program.layout;
        Ok(Operator::Linear {
            rows: self.tile().count,
            x,
            weight: vec![layout.matrix(weight, region)],
            bias: self.bias(weight, region).into_iter().collect(),
            residual,
            y,
            workspace: self.workspace()?,
        })
    }

    /// The bias of a linear layer.
    fn bias(&self, weight: WeightValue, region: Region) -> Option<Region> {
        let layout = &self.program.layout;
        let mut biases = BIASES.into_iter();
        biases.find_map(|part| layout.part(weight, region, part))
    }

    /// The gradient of the bias of a linear layer.
    pub(super) fn bias_gradient(&self, weight: WeightValue, region: Region) -> Option<Region> {
        let layout = &self.program.layout;
        let mut biases = BIASES.into_iter();
        biases.find_map(|part| layout.part_of_gradient(weight, region, part))
    }

    /// What is saved of an input in a space of low rank.
    pub(super) fn project(&mut self) -> Result<Vec<Operator>> {
        let input = self.take(&["n1", "n2", "h"])?;
        let z = self.take(&["n1.projected", "n2.projected", "h.projected"])?;
        let (weight, of) = projected(&z.value.name).expect("one of these");
        if of != input.value.name || z.value.block != input.value.block {
            return Err(Error::bad_input("projects another input than it says"));
        }
        let program = self.program;
        let layout = &program.layout;
        let matrix = layout.tensors(weight)[0].weight;
        let rule = program.method.tensor_rule(&matrix);
        let TensorRule::Compact {
            projection: Some(projection),
            ..
        } = rule
        else {
            return Err(Error::bad_input("the method projects no inputs"));
        };
        Ok(vec![Operator::Project {
            rows: self.tile().count,
            x: input.region,
            inputs: matrix.columns,
            projection,
            key: layout.projection_key(weight, z.value.block),
            z: z.region,
            workspace: self.workspace()?,
        }])
    }

    pub(super) fn activation(&mut self) -> Result<Vec<Operator>> {
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

    pub(super) fn down_projection(&mut self) -> Result<Vec<Operator>> {
        let x2 = self.rows("x2")?;
        let h = self.rows("h")?;
        let weight = self.weight(WeightValue::Down)?;
        let y = self.take(&["x", "final_x"])?.region;
        Ok(vec![self.linear_of(
            h,
            (WeightValue::Down, weight),
            Some(x2),
            y,
        )?])
    }

    // ---- head ---------------------------------------------------------------------------------

    pub(super) fn logits(&mut self) -> Result<Vec<Operator>> {
        let x = self.rows("final_n")?;
        let head = self.fixed(Category::Weights, &HEADS)?;
        let y = self.rows("logits")?;
        let weight = (head.weight, head.taken.region);
        Ok(vec![self.linear_of(x, weight, None, y)?])
    }

    pub(super) fn cross_entropy(&mut self) -> Result<Vec<Operator>> {
        let logits = self.rows("logits")?;
        Ok(vec![Operator::CrossEntropy {
            rows: self.tile(),
            micro_batch: self.micro_batch(),
            vocab: self.program.layout.model.vocab,
            logits,
            // Given its number by whoever queues it.
            slot: 0,
        }])
    }

    pub(super) fn logits_input_gradient(&mut self) -> Result<Vec<Operator>> {
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
            workspace: self.workspace()?,
        }])
    }

    pub(super) fn logits_weight_gradient(&mut self) -> Result<Vec<Operator>> {
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
}
