//! The operators of backward, updates included.

use ebbtide_solver::problem::Category;

use super::super::operands::{cleared, Bound};
use super::super::update;
use super::{NORMS, RESIDUAL};
use crate::device::layout::{is_accumulated, WeightValue};
use crate::device::{HeadNormsBackward, Operator, Region};
use crate::error::{Error, Result};
use crate::model::{Part, Weight};

impl Bound<'_, '_> {
    pub(super) fn norm_backward(&mut self) -> Result<Vec<Operator>> {
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

    pub(super) fn input_gradient(
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
            workspace: self.workspace()?,
        }])
    }

    pub(super) fn weight_gradient(
        &mut self,
        x: &str,
        d_y: &str,
        weight: WeightValue,
    ) -> Result<Vec<Operator>> {
        let x = self.input(x, weight)?;
        let d_y = self.rows(d_y)?;
        let gradient = self.gradient(weight)?;
        let layout = &self.program.layout;
        let matrix = layout.matrix_of_gradient(weight, gradient.region);
        Ok(vec![Operator::LinearWeightGradient {
            rows: self.tile().count,
            x,
            inputs: matrix.columns,
            d_y,
            outputs: matrix.rows,
            d_weight: matrix.region,
            d_bias: self.bias_gradient(weight, gradient.region),
            accumulate: gradient.adds(),
        }])
    }

    /// What a weight's gradient is made of: an input's rows, or their projection.
    fn input(&mut self, input: &str, weight: WeightValue) -> Result<Region> {
        match self.program.rank(weight) {
            Some(_) => self.rows(&format!("{input}.projected")),
            None => self.rows(input),
        }
    }

    pub(super) fn activation_backward(&mut self) -> Result<Vec<Operator>> {
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

    pub(super) fn output_input_gradient(&mut self) -> Result<Vec<Operator>> {
        let d_y = self.rows(RESIDUAL)?;
        let weight = self.weight(WeightValue::O)?;
        let d_x = self.rows("o.gradient")?;
        Ok(vec![Operator::LinearInputGradient {
            rows: self.tile().count,
            d_y,
            weight: vec![self.program.layout.o_weight(weight, self.group()?)],
            d_x,
            accumulate: false,
            workspace: self.workspace()?,
        }])
    }

    pub(super) fn output_weight_gradient(&mut self) -> Result<Vec<Operator>> {
        let x = self.rows("o")?;
        let d_y = self.rows(RESIDUAL)?;
        let gradient = self.group_gradient(WeightValue::O, false)?;
        let layout = &self.program.layout;
        let part = |part| layout.gradient_part(WeightValue::O, gradient.region, part);
        // The bias' gradient is the same for all head groups: the first one's first copy counts.
        let bias = part(Part::OBias).filter(|_| self.instruction.groups.start == 0);
        let bias = bias.map(|copies| copies.part(0, layout.model.hidden * layout.dtype.bytes()));
        let mut operators = gradient.clear;
        operators.push(Operator::LinearWeightGradient {
            rows: self.tile().count,
            x,
            inputs: layout.heads().query_width(),
            d_y,
            outputs: layout.model.hidden,
            d_weight: part(Part::O).expect("every model has one"),
            d_bias: bias,
            accumulate: gradient.adds,
        });
        Ok(operators)
    }

    pub(super) fn attention_backward(&mut self) -> Result<Vec<Operator>> {
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

    pub(super) fn rotary_backward(&mut self) -> Result<Vec<Operator>> {
        let saved = match self.program.layout.model.qk_norm {
            true => Some((self.take(&["qkv"])?, self.weight(WeightValue::Qkv)?)),
            false => None,
        };
        let d_qkv = self.rows("qkv.gradient")?;
        let mut operators = Vec::new();
        let mut norms = None;
        if let Some((qkv, weight)) = saved {
            let gradient = self.group_gradient(WeightValue::Qkv, true)?;
            operators = gradient.clear;
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
                accumulate: gradient.adds,
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

    pub(super) fn qkv_input_gradient(&mut self) -> Result<Vec<Operator>> {
        let d_y = self.rows("qkv.gradient")?;
        let weight = self.weight(WeightValue::Qkv)?;
        let d_x = self.take(&["n1.gradient"])?;
        Ok(vec![Operator::LinearInputGradient {
            rows: self.tile().count,
            d_y,
            weight: self.program.layout.qkv_weight(weight, self.group()?),
            d_x: d_x.region,
            accumulate: d_x.adds(),
            workspace: self.workspace()?,
        }])
    }

    pub(super) fn qkv_weight_gradient(&mut self) -> Result<Vec<Operator>> {
        let x = self.input("n1", WeightValue::Qkv)?;
        let d_y = self.rows("qkv.gradient")?;
        let gradient = self.group_gradient(WeightValue::Qkv, false)?;
        let layout = &self.program.layout;
        let part = |part| layout.gradient_part(WeightValue::Qkv, gradient.region, part);
        let mut operators = gradient.clear;
        operators.push(Operator::LinearWeightGradient {
            rows: self.tile().count,
            x,
            inputs: layout.compressed.qkv.unwrap_or(layout.model.hidden),
            d_y,
            outputs: layout.heads().qkv_width(),
            d_weight: part(Part::Qkv).expect("every model has one"),
            d_bias: part(Part::QkvBias),
            accumulate: gradient.adds,
        });
        Ok(operators)
    }

    pub(super) fn embedding_backward(&mut self) -> Result<Vec<Operator>> {
        let d_x = self.rows(RESIDUAL)?;
        let gradient = self.gradient(WeightValue::Embedding)?;
        let (mut operators, _) = cleared(&gradient, true);
        let layout = &self.program.layout;
        let part = |part| layout.part(WeightValue::Embedding, gradient.region, part);
        operators.push(Operator::EmbeddingBackward {
            rows: self.tile(),
            micro_batch: self.micro_batch(),
            d_x,
            width: layout.model.hidden,
            scale: layout.model.embedding_scale,
            d_weight: part(Part::Embedding).expect("every model has one"),
            vocab: layout.model.vocab,
            d_positions: part(Part::PositionEmbedding),
        });
        Ok(operators)
    }

    /// Counts a gradient. The slot is the queue's.
    pub(super) fn gradient_norm(&mut self) -> Result<Vec<Operator>> {
        let gradient = self.any()?;
        if gradient.value.category != Category::Gradients || gradient.value.by_groups {
            return Err(Error::bad_input("does not count a whole gradient"));
        }
        let value = self.program.weight_value(gradient.value)?;
        let layout = &self.program.layout;
        let gradients = match is_accumulated(&gradient.value.name) {
            true => vec![vec![gradient.region]],
            false => layout.gradients(value, &layout.pieces(value, gradient.region)),
        };
        Ok(vec![Operator::GradientNorm { gradients, slot: 0 }])
    }

    /// Adds a micro-batch's gradient to the step's, in a space of low rank.
    pub(super) fn compress_gradient(&mut self) -> Result<Vec<Operator>> {
        let gradient = self.any()?;
        let sum = self.any()?;
        let value = self.program.weight_value(gradient.value)?;
        let is_gradient = gradient.value.category == Category::Gradients;
        let fits = self.program.weight_value(sum.value)? == value
            && sum.value.block == gradient.value.block
            && is_accumulated(&sum.value.name);
        if !is_gradient || gradient.value.by_groups || !fits {
            return Err(Error::bad_input("does not add a gradient to its sum"));
        }
        let (program, block) = (self.program, gradient.value.block);
        let regions = (gradient.region, sum.region);
        let rule = |weight: &Weight| program.method.tensor_rule(weight);
        Ok(vec![Operator::CompressGradient {
            tensors: program.layout.sums(value, block, regions, rule),
            accumulate: sum.adds(),
            workspace: self.workspace()?,
        }])
    }

    pub(super) fn update(&mut self) -> Result<Vec<Operator>> {
        let gradient = self.any()?;
        let weight = self.any()?;
        let states = match self.program.method.keeps_states() {
            true => Some(self.any()?),
            false => None,
        };
        let workspace = self.workspace()?;
        update::on_device(
            self.program,
            self.instruction,
            gradient,
            weight,
            (states, workspace),
        )
    }
}
