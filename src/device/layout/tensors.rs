//! Weight values as tensors, for updates that look at each as a whole.

use super::{Layout, WeightValue};
use crate::device::tensors::{GradientBlock, GradientSum, TensorRule, TensorShape, TensorUpdate};
use crate::device::Region;
use crate::model::{Part, Weight};

/// A tensor of a weight value with its place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PlacedTensor {
    /// What and which shape.
    pub weight: Weight,
    /// Elements before it in the weight value.
    pub first: u64,
    /// Rows before it in its part.
    row: u64,
}

impl PlacedTensor {
    /// Its shape.
    pub fn shape(&self) -> TensorShape {
        TensorShape {
            rows: self.weight.rows,
            columns: self.weight.columns,
        }
    }

    /// A number that no other tensor of the model has.
    fn key(&self, block: Option<u32>) -> u64 {
        let block = block.map_or(0, |block| u64::from(block) + 1);
        (block << 40) | (self.weight.part as u64) << 32 | self.row
    }
}

/// Where a value to update lies.
#[derive(Clone, Copy, Debug)]
pub struct Updated<'a> {
    /// The weights.
    pub weight: Region,
    /// The gradient: one region, or those of all head groups in order.
    pub gradient: &'a [Region],
    /// Whether it has been accumulated, tensor by tensor.
    pub accumulated: bool,
    /// The states of its tensors, one behind the other, where they have any.
    pub states: Option<Region>,
    /// Of which block it is.
    pub block: Option<u32>,
}

impl Layout<'_> {
    /// The tensors of a weight value, in order.
    pub fn tensors(&self, value: WeightValue) -> Vec<PlacedTensor> {
        let mut tensors = Vec::new();
        for part in self.parts(value) {
            let mut row = 0;
            for weight in self.model.tensors(part.weight) {
                tensors.push(PlacedTensor {
                    weight,
                    first: part.first + row * weight.columns,
                    row,
                });
                row += weight.rows;
            }
        }
        tensors
    }

    /// Elements of a gradient, all head groups together.
    pub fn gradient_elements(&self, value: WeightValue) -> u64 {
        if value.by_groups() {
            let parts = self.gradient_parts(value).into_iter();
            return parts.map(|p| p.elements * p.copies).sum::<u64>() * self.groups;
        }
        let parts = self.parts_of_gradient(value).into_iter();
        parts.map(|p| p.weight.elements()).sum()
    }

    /// Which numbers are drawn for the projection of what a matrix reads: its siblings share it.
    pub fn projection_key(&self, value: WeightValue, block: Option<u32>) -> u64 {
        self.tensors(value)[0].key(block)
    }

    /// A gradient that lies by head groups, all in one region: the piece of each.
    pub fn pieces(&self, value: WeightValue, gradient: Region) -> Vec<Region> {
        let pieces = if value.by_groups() { self.groups } else { 1 };
        let bytes = gradient.bytes / pieces;
        (0..pieces)
            .map(|piece| gradient.part(piece * bytes, bytes))
            .collect()
    }

    /// What updates the tensors of a weight value.
    pub fn update_tensors(
        &self,
        value: WeightValue,
        at: Updated<'_>,
        rule: impl Fn(&Weight) -> TensorRule,
    ) -> Vec<TensorUpdate> {
        let pieces = match at.gradient {
            [whole] if at.accumulated => vec![*whole],
            [whole] => self.pieces(value, *whole),
            pieces => pieces.to_vec(),
        };
        let (mut taken, mut summed) = (0, 0);
        let tensors = self.tensors(value).into_iter();
        tensors
            .map(|tensor| {
                let (rule, shape) = (rule(&tensor.weight), tensor.shape());
                let gradient = match at.accumulated {
                    true => {
                        let of = rule.gradient_shape(shape);
                        summed += of.elements();
                        let first = summed - of.elements();
                        vec![GradientBlock {
                            region: self.elements_of(pieces[0], first, of.elements()),
                            row: 0,
                            rows: of.rows,
                            column: 0,
                            columns: of.columns,
                        }]
                    }
                    false => self.gradient_blocks(value, &tensor, &pieces),
                };
                let states = rule.states(shape, self.dtype).into_iter().map(|bytes| {
                    let all = at.states.expect("planned with states");
                    taken += bytes;
                    all.part(taken - bytes, bytes)
                });
                TensorUpdate {
                    rule,
                    shape,
                    states: states.collect(),
                    weight: self.elements_of(at.weight, tensor.first, shape.elements()),
                    gradient,
                    key: tensor.key(at.block),
                    projection_key: self.projection_key(value, at.block),
                }
            })
            .collect()
    }

    /// What adds a micro-batch's gradient of a weight value, whole, to the step's sum.
    pub fn sums(
        &self,
        value: WeightValue,
        block: Option<u32>,
        (gradient, sum): (Region, Region),
        rule: impl Fn(&Weight) -> TensorRule,
    ) -> Vec<GradientSum> {
        let pieces = self.pieces(value, gradient);
        let mut summed = 0;
        let tensors = self.tensors(value).into_iter();
        tensors
            .map(|tensor| {
                let (rule, shape) = (rule(&tensor.weight), tensor.shape());
                let elements = rule.gradient_shape(shape).elements();
                summed += elements;
                GradientSum {
                    shape,
                    gradient: self.gradient_blocks(value, &tensor, &pieces),
                    rank: rule.accumulated_rank(),
                    sum: self.elements_of(sum, summed - elements, elements),
                    key: tensor.key(block),
                }
            })
            .collect()
    }

    /// Where the pieces of a gradient hold that of a tensor.
    fn gradient_blocks(
        &self,
        value: WeightValue,
        tensor: &PlacedTensor,
        pieces: &[Region],
    ) -> Vec<GradientBlock> {
        let Weight { part, columns, .. } = self.compressed.gradient(tensor.weight);
        let mut blocks = Vec::new();
        for (group, &piece) in (0..).zip(pieces) {
            // First row and rows within the part, first column and columns, elements before.
            let held: Vec<(u64, u64, u64, u64, u64)> = if value.by_groups() {
                self.held_by(value, part, columns, group)
            } else {
                let parts = self.parts_of_gradient(value).into_iter();
                let before = parts.filter(|p| p.weight.part == part).map(|p| p.first);
                let before = before.sum::<u64>() + tensor.row * columns;
                vec![(tensor.row, tensor.weight.rows, 0, columns, before)]
            };
            for (first, rows, column, width, before) in held {
                let start = first.max(tensor.row);
                let end = (first + rows).min(tensor.row + tensor.weight.rows);
                if start < end {
                    let elements = (before + (start - first) * width, (end - start) * width);
                    blocks.push(GradientBlock {
                        region: self.elements_of(piece, elements.0, elements.1),
                        row: start - tensor.row,
                        rows: end - start,
                        column,
                        columns: width,
                    });
                }
            }
        }
        blocks
    }

    /// The rows and columns of a part that a head group's piece holds: first row, rows, first
    /// column, columns, elements before them.
    fn held_by(
        &self,
        value: WeightValue,
        part: Part,
        columns: u64,
        group: u64,
    ) -> Vec<(u64, u64, u64, u64, u64)> {
        let parts = self.gradient_parts(value);
        let held = parts.iter().find(|p| p.part == part);
        let held = held.expect("a value's gradient has the value's parts");
        match part {
            Part::O => {
                let width = columns / self.groups;
                let rows = held.elements / width;
                vec![(0, rows, group * width, width, held.first)]
            }
            Part::OBias if group > 0 => Vec::new(),
            Part::OBias => vec![(0, held.elements, 0, 1, held.first)],
            Part::QNorm | Part::KNorm => (0..held.copies)
                .map(|copy| (0, held.elements, 0, 1, held.first + copy * held.elements))
                .collect(),
            _ => {
                let mut before = held.first;
                let rows = self.qkv_rows(group).into_iter();
                rows.map(|(first, rows)| {
                    before += rows * columns;
                    (first, rows, 0, columns, before - rows * columns)
                })
                .collect()
            }
        }
    }
}
