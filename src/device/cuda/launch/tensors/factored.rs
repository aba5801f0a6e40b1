//! Factored second moments: AdaLomo.

use super::super::super::super::Result;
use super::super::operand::{blocks, kernel, number};
use super::super::{Argument, Buffer};
use super::by_gradient;
use super::sequence::{Area, Given, Sequence};
use crate::device::cpu::ops::factored::decay;
use crate::device::tensors::{TensorShape, TensorUpdate};

/// Columns that a warp of `square_sums` adds up, and those of a block.
const PIECE: u64 = 128;
const OF_BLOCK: u64 = 8 * PIECE;

/// Runs of rows over which columns are added up apart, at most.
const MOST_RUNS: u64 = 256;

/// Second moments as kernels take them: inverse roots of those of rows, null where there is none,
/// and of those of columns.
#[derive(Clone, Copy)]
pub struct Factors {
    pub rows: Argument,
    pub columns: Argument,
}

impl Factors {
    /// Those of an area.
    pub fn of(self, area: Area) -> [Argument; 2] {
        [
            self.rows.behind(4 * area.row),
            self.columns.behind(4 * area.column),
        ]
    }
}

impl Sequence<'_> {
    pub(super) fn adalomo(&mut self, tensor: &TensorUpdate) -> Result<()> {
        let elements = tensor.shape.elements();
        // A vector is a row here, whose columns' moments are its own.
        let shape = match tensor.shape.is_vector() {
            true => TensorShape {
                rows: 1,
                columns: elements,
            },
            false => tensor.shape,
        };
        let weight = self.operands.elements(tensor.weight, elements)?;
        let factors = self.second_moments(tensor)?;
        let of_weights = self.squares(weight, elements, false)?;
        let of_gradient = |area| match tensor.shape.is_vector() {
            true => Area::of(tensor.shape),
            false => area,
        };
        let partials = self.partials()?;
        let given = Given::of(tensor);
        let areas = self.areas(given, shape)?;
        for &area in &areas {
            let mark = self.mark();
            let gradient = self.gradient(given, of_gradient(area))?;
            let mut arguments = vec![gradient.at, Argument::U64(shape.columns)];
            arguments.extend(factors.of(area));
            arguments.extend([
                Argument::Own(Buffer::Constants, 0),
                number(area.rows)?,
                number(shape.columns)?,
            ]);
            let name = by_gradient!(self.operands, gradient, "factored_squares");
            self.square(name, (area.rows, shape.columns), arguments, partials)?;
            self.release(mark);
        }
        let of_update = self.squared(partials)?;
        let rate = self.rate(of_weights, of_update, elements)?;
        for area in areas {
            let mark = self.mark();
            let gradient = self.gradient(given, of_gradient(area))?;
            let mut arguments = vec![
                weight,
                Argument::U64(area.row * shape.columns),
                Argument::U64(shape.columns),
                gradient.at,
                Argument::U64(shape.columns),
            ];
            arguments.extend(factors.of(area));
            arguments.extend([
                Argument::Own(Buffer::Constants, 0),
                rate,
                number(area.rows)?,
                number(shape.columns)?,
                Argument::U64(tensor.key),
                self.epoch(),
            ]);
            let name = by_gradient!(self.operands, gradient, "factored_update");
            self.over(name, (area.rows, shape.columns), arguments)?;
            self.release(mark);
        }
        Ok(())
    }

    /// What weights are multiplied with and what the update is, from the sums of squares of both.
    pub(super) fn rate(
        &mut self,
        of_weights: Argument,
        of_update: Argument,
        elements: u64,
    ) -> Result<Argument> {
        let rate = self.take(8)?;
        let arguments = vec![
            of_weights,
            of_update,
            Argument::U64(elements),
            Argument::F64(self.step.learning_rate),
            Argument::F64(self.step.weight_decay),
            rate,
        ];
        let name = kernel!(self.operands, "factored_rate");
        self.launch(name, [1; 3], 32, arguments)?;
        Ok(rate)
    }

    /// Moves AdaLomo's second moments.
    fn second_moments(&mut self, tensor: &TensorUpdate) -> Result<Factors> {
        match tensor.states[..] {
            [whole] => {
                let count = tensor.shape.elements();
                let moments = self.operands.floats(whole, count)?;
                let mark = self.mark();
                let gradient = self.gradient(Given::of(tensor), Area::of(tensor.shape))?;
                let [old, fresh] = self.shares();
                let arguments = vec![
                    moments,
                    gradient.at,
                    Argument::Own(Buffer::Constants, 0),
                    Argument::U64(count),
                    old,
                    fresh,
                ];
                let name = by_gradient!(self.operands, gradient, "vector_moments");
                let grid = blocks(count, 256, i32::MAX as u64);
                self.launch(name, [grid, 1, 1], 256, arguments)?;
                self.release(mark);
                Ok(Factors {
                    rows: Argument::Null,
                    columns: self.inverse_roots(moments, count, false)?,
                })
            }
            _ => {
                let (rows, columns) = (tensor.states[0], tensor.states[1]);
                let rows = self.operands.floats(rows, tensor.shape.rows)?;
                let columns = self.operands.floats(columns, tensor.shape.columns)?;
                self.factors(Given::of(tensor), rows, columns)?;
                Ok(Factors {
                    rows: self.inverse_roots(rows, tensor.shape.rows, true)?,
                    columns: self.inverse_roots(columns, tensor.shape.columns, false)?,
                })
            }
        }
    }

    /// The shares of what was and of what is new in a moment.
    fn shares(&self) -> [Argument; 2] {
        let old = decay(self.step.step);
        [old, 1.0 - old].map(|share| Argument::F32(share as f32))
    }

    /// Inverse roots of moments, or of those over their mean: their address.
    pub(super) fn inverse_roots(
        &mut self,
        moments: Argument,
        count: u64,
        over_mean: bool,
    ) -> Result<Argument> {
        let roots = self.take(4 * count)?;
        let grid = blocks(count, 256, i32::MAX as u64);
        let count = number(count)?;
        let mean = match over_mean {
            true => {
                let mean = self.take(4)?;
                let name = kernel!(self.operands, "moments_mean");
                self.launch(name, [1; 3], 1024, vec![moments, count, mean])?;
                mean
            }
            false => Argument::Null,
        };
        let name = kernel!(self.operands, "inverse_roots");
        self.launch(name, [grid, 1, 1], 256, vec![moments, mean, roots, count])?;
        Ok(roots)
    }

    /// Moves the moments of a matrix's rows and columns by its gradient.
    pub(super) fn factors(
        &mut self,
        given: Given<'_>,
        rows: Argument,
        columns: Argument,
    ) -> Result<()> {
        let mark = self.mark();
        let TensorShape {
            rows: height,
            columns: width,
        } = given.shape;
        let pieces = width.div_ceil(PIECE);
        let gathered = if given.is_whole() { 0 } else { width };
        // An eighth of what is left is for the columns.
        let room = self.left() / 8;
        let at_once = {
            let sides = (height, width);
            self.at_once(self.left() - room, sides, 4 * (gathered + pieces))?
        };
        let areas: Vec<Area> = Area::of(given.shape).by_rows(at_once).collect();
        let runs = room / (4 * width) / areas.len() as u64;
        let runs = runs.clamp(1, MOST_RUNS.min(at_once));
        let parts = runs * areas.len() as u64;
        let of_columns = self.take(4 * width * parts)?;
        let [old, fresh] = self.shares();
        let count = |n: u64| Argument::F32(n as f32);
        for (nth, area) in (0..).zip(areas) {
            let mark = self.mark();
            let gradient = self.gradient(given, area)?;
            let of_rows = self.take(4 * pieces * area.rows)?;
            let arguments = vec![
                gradient.at,
                Argument::Own(Buffer::Constants, 0),
                number(area.rows)?,
                number(width)?,
                of_rows,
                of_columns.behind(4 * width * runs * nth),
            ];
            let name = by_gradient!(self.operands, gradient, "square_sums");
            let grid = [width.div_ceil(OF_BLOCK), runs, 1];
            self.launch(name, grid, 256, arguments)?;
            let arguments = vec![
                rows.behind(4 * area.row),
                of_rows,
                number(area.rows)?,
                number(pieces)?,
                count(width),
                old,
                fresh,
            ];
            let name = kernel!(self.operands, "row_moments");
            let grid = blocks(area.rows, 8, i32::MAX as u64);
            self.launch(name, [grid, 1, 1], 256, arguments)?;
            self.release(mark);
        }
        let arguments = vec![
            columns,
            of_columns,
            number(width)?,
            number(parts)?,
            count(height),
            old,
            fresh,
        ];
        let name = kernel!(self.operands, "column_moments");
        self.launch(name, [width.div_ceil(256), 1, 1], 256, arguments)?;
        self.release(mark);
        Ok(())
    }
}
