//! From an instruction to the operators that a device runs for it.
//!
//! In: an [`Instruction`] of a [`Program`]. Out: [`Operator`]s with every shape and address.

mod backward;
mod forward;

use ebbtide_solver::schedule::{Action, Instruction, ScheduledOp, GRADIENT_NORM};

use super::operands::Bound;
use super::program::Program;
use crate::device::layout::WeightValue;
use crate::device::packed::Packing;
use crate::device::{Operator, Region};
use crate::error::{Error, Result};
use crate::lower::COMPRESS_GRADIENT;

/// The operators of an instruction, in order; none for copies and barriers.
///
/// # Errors
/// Operands that are not what the operator takes.
pub fn operators(program: &Program<'_>, instruction: &Instruction) -> Result<Vec<Operator>> {
    match instruction.action {
        Action::Run(id) | Action::Recompute(id) => {
            let op = program.schedule.ops.get(id);
            let op = op.ok_or_else(|| Error::bad_input("there is no such operator"))?;
            let operators = Bound::new(program, instruction).run(op);
            operators.map_err(|error| error.within(&op.name))
        }
        Action::HostUpdate(group) => super::update::on_host(program, instruction, group),
        Action::Copy | Action::Barrier => Ok(Vec::new()),
    }
}

/// Source and target of a copy, and how it packs if it does.
///
/// # Errors
/// Operands that are not two buffers of the rows that the copy says.
pub fn copied(
    program: &Program<'_>,
    instruction: &Instruction,
) -> Result<(Region, Region, Option<Packing>)> {
    let [from, to] = instruction.operands[..] else {
        return Err(Error::bad_input("a copy needs a source and a target"));
    };
    let (from, to) = (program.buffer(from.buffer)?, program.buffer(to.buffer)?);
    if from.rows != instruction.rows || to.rows != instruction.rows {
        return Err(Error::bad_input(
            "a copy covers other rows than its buffers",
        ));
    }
    let packing = program.packing(from)?;
    Ok((program.region(from), program.region(to), packing))
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
            "project" => self.project(),
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
            GRADIENT_NORM => self.gradient_norm(),
            COMPRESS_GRADIENT => self.compress_gradient(),
            name if name.ends_with("_update") => self.update(),
            _ => Err(Error::bad_input("no device knows this operator")),
        }?;
        self.end()?;
        Ok(operators)
    }
}
