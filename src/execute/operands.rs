//! The operands of an instruction, taken one by one.
//!
//! They stand in the order of `model/step.rs`: what an operator reads, updates, accumulates and
//! writes, then its scratch memory. Each is taken by its expected name, so that an operand in a
//! wrong place is an error and not another number.
//!
//! The first contribution to a gradient replaces it ([`Access::Write`]). Where an operator makes
//! only a part of the gradient, the whole is cleared first and everything adds.

use ebbtide_solver::problem::Category;
use ebbtide_solver::schedule::{Access, Action, Buffer, Instruction, ScheduledValue};
use ebbtide_solver::units::Span;

use super::program::Program;
use crate::device::layout::WeightValue;
use crate::device::{AttentionShape, NormShape, Operator, Region, Rows};
use crate::error::{Error, Result};

/// An instruction whose operands are taken one by one.
pub(super) struct Bound<'a, 'b> {
    pub(super) program: &'b Program<'a>,
    pub(super) instruction: &'b Instruction,
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
    pub(super) extras: Region,
}

impl Taken<'_> {
    /// Whether what is there is added to.
    pub(super) fn adds(&self) -> bool {
        self.access == Access::Update
    }
}

impl<'a, 'b> Bound<'a, 'b> {
    /// None of them taken yet.
    pub(super) fn new(program: &'b Program<'a>, instruction: &'b Instruction) -> Self {
        Self {
            program,
            instruction,
            next: 0,
        }
    }

    /// The next operand.
    pub(super) fn any(&mut self) -> Result<Taken<'a>> {
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
    pub(super) fn share(&self, buffer: &Buffer, value: &ScheduledValue) -> Result<u64> {
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

    pub(super) fn rows_of(
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
    pub(super) fn take(&mut self, names: &[&str]) -> Result<Taken<'a>> {
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
    pub(super) fn rows(&mut self, name: &str) -> Result<Region> {
        Ok(self.take(&[name])?.region)
    }

    /// The next operand, which must be this weight or gradient.
    pub(super) fn fixed(
        &mut self,
        category: Category,
        weights: &[WeightValue],
    ) -> Result<Fixed<'a>> {
        let taken = self.any()?;
        let names: Vec<&str> = weights.iter().map(|w| w.name()).collect();
        let weight = WeightValue::of(&taken.value.name);
        match weight.filter(|w| weights.contains(w) && taken.value.category == category) {
            Some(weight) => Ok(Fixed { taken, weight }),
            None => Err(unexpected(&taken, &names)),
        }
    }

    pub(super) fn weight(&mut self, weight: WeightValue) -> Result<Region> {
        Ok(self.fixed(Category::Weights, &[weight])?.taken.region)
    }

    pub(super) fn gradient(&mut self, weight: WeightValue) -> Result<Taken<'a>> {
        Ok(self.fixed(Category::Gradients, &[weight])?.taken)
    }

    /// The head group's piece of the next operand, which must be this gradient. Where the gradient
    /// lies as a whole, the group that begins it clears those of the others too.
    pub(super) fn group_gradient(&mut self, weight: WeightValue, partial: bool) -> Result<Piece> {
        let taken = self.gradient(weight)?;
        if taken.value.by_groups {
            let (clear, adds) = cleared(&taken, partial);
            return Ok(Piece {
                region: taken.region,
                clear,
                adds,
            });
        }
        let pieces = self.program.layout.pieces(weight, taken.region);
        let (clear, adds) = cleared(&taken, partial || pieces.len() > 1);
        let group = usize::try_from(self.group()?).expect("bounded by the config reader");
        Ok(Piece {
            region: pieces[group],
            clear,
            adds,
        })
    }

    /// Scratch memory, if there is any.
    pub(super) fn workspace(&mut self) -> Result<Option<Region>> {
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
    pub(super) fn end(&self) -> Result<()> {
        match self.next == self.instruction.operands.len() {
            true => Ok(()),
            false => Err(Error::bad_input("an operand too many")),
        }
    }

    pub(super) fn tile(&self) -> Rows {
        let Span { start, end } = self.instruction.rows;
        Rows {
            first: start,
            count: end.saturating_sub(start),
            sequence: self.program.sequence,
        }
    }

    pub(super) fn group(&self) -> Result<u64> {
        let groups = self.instruction.groups;
        let one = groups.end.checked_sub(groups.start) == Some(1);
        match one && groups.end <= self.program.layout.groups {
            true => Ok(groups.start),
            false => Err(Error::bad_input("does not run on one head group")),
        }
    }

    pub(super) fn norm_shape(&self, width: u64) -> NormShape {
        let model = self.program.layout.model;
        NormShape {
            kind: model.norm,
            width,
            epsilon: model.norm_eps,
        }
    }

    /// The micro-batch whose tokens it reads, whichever pass it is of.
    pub(super) fn micro_batch(&self) -> u32 {
        self.instruction.micro_batch % self.program.schedule.micro_batches
    }

    pub(super) fn attention_shape(&self) -> Result<AttentionShape> {
        let (program, block) = (self.program, self.block()?);
        Ok(AttentionShape {
            heads: program.layout.heads(),
            sequences: program.schedule.tokens / program.sequence,
            sequence: program.sequence,
            window: program.layout.model.windows[block],
        })
    }

    /// The block of the operator.
    pub(super) fn block(&self) -> Result<usize> {
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
pub(super) struct Fixed<'a> {
    pub(super) taken: Taken<'a>,
    pub(super) weight: WeightValue,
}

/// A head group's piece of a gradient.
pub(super) struct Piece {
    pub(super) region: Region,
    /// What runs before the operator that makes it.
    pub(super) clear: Vec<Operator>,
    /// Whether that operator is to add.
    pub(super) adds: bool,
}

fn unexpected(taken: &Taken<'_>, names: &[&str]) -> Error {
    Error::bad_input(format!(
        "an operand is {} ({}), expected {}",
        taken.value.name,
        taken.value.category.name(),
        names.join(" or ")
    ))
}

/// Clears a gradient that is begun by an operator that makes a part of it; says whether that
/// operator is to add.
pub(super) fn cleared(gradient: &Taken<'_>, partial: bool) -> (Vec<Operator>, bool) {
    match gradient.adds() {
        true => (Vec::new(), true),
        false if partial => {
            let region = gradient.region;
            (vec![Operator::Zero { region }], true)
        }
        false => (Vec::new(), false),
    }
}
