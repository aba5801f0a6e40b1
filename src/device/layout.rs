//! Where what lies within a buffer: the one place that says it, for all devices and the executor.
//!
//! - **Activations** are row-major `[rows, width]`. What lies by head groups has one piece for each
//!   group, `[rows, width / groups]`; a row of `qkv` is the group's q heads, its k heads, its v
//!   heads. f32 extras (`lse` of `o`; inverse deviations of `qkv`) follow the elements of the
//!   piece: `[rows, extras / groups]`.
//! - **A weight value** is its parts one after the other, in the order of
//!   [`ModelConfig::block_weights`], each matrix `[out, in]`.
//! - **A gradient** is the same, but of a matrix whose input is compressed it is `[out, rank]`; and
//!   those of `qkv` and `o` lie by head groups. A group's
//!   piece is, for `qkv`, the rows of the matrix of its q heads, its k heads, its v heads, then
//!   their biases, then a copy of the q norm's and of the k norm's gradient for each of its
//!   key/value heads; for `o` its columns of the matrix, then a copy of the bias' gradient for each
//!   of its key/value heads, of which only the first of the first group is used.
//! - **Optimizer states** of weights that are trained together are planes of f32, each with an
//!   element for every parameter in the weights' order: AdamW `m`, `v`; in bf16 `master`, `m`, `v`.

use super::operator::{Carry, HeadShape, Panel, UpdateRule, UpdateSlice};
use super::Region;
use crate::model::{Compressed, ModelConfig, Part, Weight};
use crate::profile::Dtype;

mod tensors;

pub use tensors::{PlacedTensor, Updated};

const F32_BYTES: u64 = 4;

/// How the name ends of a sum of gradients, dense tensor by tensor, some in spaces of low rank.
pub const ACCUMULATED: &str = ".accumulated";

/// Whether a value of this name is a gradient that micro-batches are added up in.
pub fn is_accumulated(name: &str) -> bool {
    name.ends_with(ACCUMULATED)
}

/// A weight value of a step: `norm1`, `qkv`, …
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum WeightValue {
    /// `embedding`: token and position vectors.
    Embedding,
    /// `final_norm`.
    FinalNorm,
    /// `lm_head`, where not tied.
    LmHead,
    /// `norm1`: before attention.
    Norm1,
    /// `qkv`.
    Qkv,
    /// `o`.
    O,
    /// `norm2`: before the MLP.
    Norm2,
    /// `gate_up`: of a plain MLP too.
    GateUp,
    /// `down`.
    Down,
}

impl WeightValue {
    /// All of them.
    pub const ALL: [WeightValue; 9] = [
        WeightValue::Embedding,
        WeightValue::FinalNorm,
        WeightValue::LmHead,
        WeightValue::Norm1,
        WeightValue::Qkv,
        WeightValue::O,
        WeightValue::Norm2,
        WeightValue::GateUp,
        WeightValue::Down,
    ];

    /// What a step calls it, without `.weight` and `.gradient`.
    pub const fn name(self) -> &'static str {
        match self {
            WeightValue::Embedding => "embedding",
            WeightValue::FinalNorm => "final_norm",
            WeightValue::LmHead => "lm_head",
            WeightValue::Norm1 => "norm1",
            WeightValue::Qkv => "qkv",
            WeightValue::O => "o",
            WeightValue::Norm2 => "norm2",
            WeightValue::GateUp => "gate_up",
            WeightValue::Down => "down",
        }
    }

    /// The value of a name such as `qkv.weight`, `qkv.gradient` or `qkv.accumulated`.
    pub fn of(name: &str) -> Option<WeightValue> {
        let stem = name
            .strip_suffix(".weight")
            .or_else(|| name.strip_suffix(".gradient"))
            .or_else(|| name.strip_suffix(ACCUMULATED))?;
        WeightValue::ALL.into_iter().find(|v| v.name() == stem)
    }

    /// Whether its gradient lies by head groups.
    pub const fn by_groups(self) -> bool {
        matches!(self, WeightValue::Qkv | WeightValue::O)
    }

    const fn parts(self) -> &'static [Part] {
        match self {
            WeightValue::Embedding => &[Part::Embedding, Part::PositionEmbedding],
            WeightValue::FinalNorm => &[Part::FinalNorm, Part::FinalNormBias],
            WeightValue::LmHead => &[Part::LmHead],
            WeightValue::Norm1 => &[Part::AttnNorm, Part::AttnNormBias],
            WeightValue::Qkv => &[Part::Qkv, Part::QkvBias, Part::QNorm, Part::KNorm],
            WeightValue::O => &[Part::O, Part::OBias],
            WeightValue::Norm2 => &[Part::MlpNorm, Part::MlpNormBias],
            WeightValue::GateUp => &[Part::GateUp, Part::GateUpBias, Part::Up, Part::UpBias],
            WeightValue::Down => &[Part::Down, Part::DownBias],
        }
    }
}

/// A part of a weight value with its place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PlacedPart {
    /// What and which shape.
    pub weight: Weight,
    /// Elements before it.
    pub first: u64,
}

/// A part of a head group's gradient with its place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GradientPart {
    /// Of which part.
    pub part: Part,
    /// Elements before it.
    pub first: u64,
    /// Elements of one copy.
    pub elements: u64,
    /// Copies, one after the other.
    pub copies: u64,
}

/// The planes of optimizer states that a group of weights has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct States {
    /// All planes.
    pub region: Region,
    /// Parameters of the group: elements of a plane.
    pub parameters: u64,
    /// Parameters of the group before the weight in question.
    pub first: u64,
}

/// How a model's values lie when attention runs in some head groups.
#[derive(Clone, Debug)]
pub struct Layout<'a> {
    /// The model.
    pub model: &'a ModelConfig,
    /// The type of weights and activations.
    pub dtype: Dtype,
    /// Head groups; divides the key/value heads.
    pub groups: u64,
    /// Which gradients are of low rank.
    pub compressed: Compressed,
}

impl Layout<'_> {
    /// The heads of one group.
    pub fn heads(&self) -> HeadShape {
        HeadShape {
            heads: self.model.heads / self.groups,
            kv_heads: self.model.kv_heads / self.groups,
            head_dim: self.model.head_dim,
        }
    }

    /// f32 planes of optimizer states under a rule.
    pub const fn planes(&self, rule: UpdateRule) -> u64 {
        rule.planes(self.dtype)
    }

    /// Rows `[first, first + count)` of a piece `[rows, width]` with `extras` f32 a row behind it:
    /// the rows' elements and the rows' extras (empty where there are none).
    pub fn rows(
        &self,
        piece: Region,
        rows: u64,
        (first, count): (u64, u64),
        (width, extras): (u64, u64),
    ) -> (Region, Region) {
        let row = width * self.dtype.bytes();
        let extra = extras * F32_BYTES;
        (
            piece.part(first * row, count * row),
            piece.part(rows * row + first * extra, count * extra),
        )
    }

    // ---- weights ------------------------------------------------------------------------------

    /// The parts of a weight value.
    pub fn parts(&self, value: WeightValue) -> Vec<PlacedPart> {
        self.placed(value, |weight| weight)
    }

    /// The same of its gradient, where that is not by head groups.
    pub fn parts_of_gradient(&self, value: WeightValue) -> Vec<PlacedPart> {
        self.placed(value, |weight| self.compressed.gradient(weight))
    }

    fn placed(&self, value: WeightValue, shape: impl Fn(Weight) -> Weight) -> Vec<PlacedPart> {
        let weights = [self.model.block_weights(), self.model.outer_weights()].concat();
        let mut first = 0;
        let chosen = weights
            .into_iter()
            .filter(|w| value.parts().contains(&w.part));
        chosen
            .map(shape)
            .map(|weight| {
                let placed = PlacedPart { weight, first };
                first += weight.elements();
                placed
            })
            .collect()
    }

    /// Elements of a weight value.
    pub fn elements(&self, value: WeightValue) -> u64 {
        self.parts(value).iter().map(|p| p.weight.elements()).sum()
    }

    /// One part of a weight value.
    pub fn part(&self, value: WeightValue, region: Region, part: Part) -> Option<Region> {
        self.part_in(&self.parts(value), region, part)
    }

    /// The same of a gradient that is not by head groups.
    pub fn part_of_gradient(
        &self,
        value: WeightValue,
        region: Region,
        part: Part,
    ) -> Option<Region> {
        self.part_in(&self.parts_of_gradient(value), region, part)
    }

    fn part_in(&self, parts: &[PlacedPart], region: Region, part: Part) -> Option<Region> {
        let placed = parts.iter().find(|p| p.weight.part == part)?;
        Some(self.elements_of(region, placed.first, placed.weight.elements()))
    }

    /// The whole matrix of a weight value: its first part.
    pub fn matrix(&self, value: WeightValue, region: Region) -> Panel {
        self.panel(self.parts(value)[0].weight, region)
    }

    /// The same of a gradient that is not by head groups.
    pub fn matrix_of_gradient(&self, value: WeightValue, region: Region) -> Panel {
        self.panel(self.parts_of_gradient(value)[0].weight, region)
    }

    fn panel(&self, Weight { rows, columns, .. }: Weight, region: Region) -> Panel {
        Panel {
            region: self.elements_of(region, 0, rows * columns),
            rows,
            columns,
            stride: columns,
        }
    }

    /// A head group's rows of the qkv matrix: q, k, v (one panel where they adjoin).
    pub fn qkv_weight(&self, region: Region, group: u64) -> Vec<Panel> {
        let columns = self.model.hidden;
        let panel = |(first, rows): (u64, u64)| Panel {
            region: self.elements_of(region, first * columns, rows * columns),
            rows,
            columns,
            stride: columns,
        };
        self.qkv_rows(group).into_iter().map(panel).collect()
    }

    /// A head group's pieces of the qkv bias; none where there is no bias.
    pub fn qkv_bias(&self, region: Region, group: u64) -> Vec<Region> {
        let Some(bias) = self.part(WeightValue::Qkv, region, Part::QkvBias) else {
            return Vec::new();
        };
        let pieces = self.qkv_rows(group).into_iter();
        pieces
            .map(|(first, rows)| self.elements_of(bias, first, rows))
            .collect()
    }

    /// A head group's columns of the output projection.
    pub fn o_weight(&self, region: Region, group: u64) -> Panel {
        let (hidden, width) = (self.model.hidden, self.model.query_width());
        let columns = width / self.groups;
        Panel {
            region: self.elements_of(region, group * columns, (hidden - 1) * width + columns),
            rows: hidden,
            columns,
            stride: width,
        }
    }

    /// First row and number of rows of a group's q, k and v in the qkv matrix.
    fn qkv_rows(&self, group: u64) -> Vec<(u64, u64)> {
        let (q, kv) = (self.model.query_width(), self.model.kv_width());
        if self.groups == 1 {
            return vec![(0, q + 2 * kv)];
        }
        let (q_rows, kv_rows) = (q / self.groups, kv / self.groups);
        vec![
            (group * q_rows, q_rows),
            (q + group * kv_rows, kv_rows),
            (q + kv + group * kv_rows, kv_rows),
        ]
    }

    // ---- gradients by head groups -------------------------------------------------------------

    /// The parts of a head group's gradient of `qkv` or `o`.
    pub fn gradient_parts(&self, value: WeightValue) -> Vec<GradientPart> {
        let mut first = 0;
        let placed = self.parts(value).into_iter().map(|placed| {
            let elements = self.compressed.gradient(placed.weight).elements();
            let shared = matches!(placed.weight.part, Part::QNorm | Part::KNorm | Part::OBias);
            let (elements, copies) = match shared {
                true => (elements, self.model.kv_heads / self.groups),
                false => (elements / self.groups, 1),
            };
            let part = GradientPart {
                part: placed.weight.part,
                first,
                elements,
                copies,
            };
            first += elements * copies;
            part
        });
        placed.collect()
    }

    /// One part of a head group's gradient, all its copies.
    pub fn gradient_part(&self, value: WeightValue, piece: Region, part: Part) -> Option<Region> {
        let parts = self.gradient_parts(value);
        let placed = parts.iter().find(|p| p.part == part)?;
        Some(self.elements_of(piece, placed.first, placed.elements * placed.copies))
    }

    /// The gradients of a value as [`super::Operator::GradientNorm`] takes them. `pieces`: the
    /// whole gradient, or every head group's in order.
    pub fn gradients(&self, value: WeightValue, pieces: &[Region]) -> Vec<Vec<Region>> {
        if !value.by_groups() {
            return vec![vec![pieces[0]]];
        }
        let mut shared = Vec::new();
        let mut gradients = Vec::new();
        for part in self.gradient_parts(value) {
            let copies = pieces.iter().flat_map(|&piece| self.copies(piece, part));
            match part.part {
                Part::OBias => shared.push(copies.take(1).collect()),
                Part::QNorm | Part::KNorm => shared.push(copies.collect()),
                _ => gradients.extend(copies.map(|copy| vec![copy])),
            }
        }
        gradients.extend(shared);
        gradients
    }

    fn copies(&self, piece: Region, part: GradientPart) -> impl Iterator<Item = Region> + '_ {
        (0..part.copies).map(move |copy| {
            let first = part.first + copy * part.elements;
            self.elements_of(piece, first, part.elements)
        })
    }

    // ---- updates ------------------------------------------------------------------------------

    /// What updates a weight value whose gradient is not by groups.
    pub fn update(
        &self,
        rule: UpdateRule,
        weight: Region,
        gradient: Region,
        states: Option<States>,
    ) -> Vec<UpdateSlice> {
        let elements = weight.bytes / self.dtype.bytes();
        let all = (0, 1, elements, elements);
        vec![self.slice(rule, weight, states, all, vec![gradient], None)]
    }

    /// What updates `qkv` or `o` by the gradients of the head groups `first_group ..`, as many as
    /// there are `pieces`; `carry_first`: where in the device's memory the carries of this weight's
    /// shared parts start, for updates that do not have all groups at once (they run in order).
    pub fn update_groups(
        &self,
        rule: UpdateRule,
        value: WeightValue,
        weight: Region,
        (first_group, pieces): (u64, &[Region]),
        states: Option<States>,
        carry_first: u64,
    ) -> Vec<UpdateSlice> {
        let end = first_group + pieces.len() as u64;
        let whole = pieces.len() as u64 == self.groups;
        let mut slices = Vec::new();
        let mut carried = carry_first;
        let parts = self.parts(value);
        for (placed, part) in parts.iter().zip(self.gradient_parts(value)) {
            let elements = placed.weight.elements();
            match part.part {
                Part::QNorm | Part::KNorm => {
                    let copies = pieces.iter().flat_map(|&piece| self.copies(piece, part));
                    let carry = (!whole).then_some(Carry {
                        offset: carried,
                        first: first_group == 0,
                        last: end == self.groups,
                    });
                    carried += elements;
                    let block = (placed.first, 1, elements, elements);
                    slices.push(self.slice(rule, weight, states, block, copies.collect(), carry));
                }
                Part::OBias if first_group > 0 => {}
                Part::OBias => {
                    let copy = self.elements_of(pieces[0], part.first, elements);
                    let block = (placed.first, 1, elements, elements);
                    slices.push(self.slice(rule, weight, states, block, vec![copy], None));
                }
                _ => {
                    for (group, &piece) in (first_group..).zip(pieces) {
                        let mut gradient = part.first;
                        for block in self.group_blocks(placed, group) {
                            let of = block.1 * block.2;
                            let dense = self.elements_of(piece, gradient, of);
                            gradient += of;
                            slices.push(self.slice(rule, weight, states, block, vec![dense], None));
                        }
                    }
                }
            }
        }
        slices
    }

    /// f32 elements that the carries of a value need.
    pub fn carry_elements(&self, value: WeightValue) -> u64 {
        let parts = self.parts(value).into_iter();
        parts
            .filter(|p| matches!(p.weight.part, Part::QNorm | Part::KNorm))
            .map(|p| p.weight.elements())
            .sum()
    }

    /// A head group's blocks of a part: first element, rows, columns, stride.
    fn group_blocks(&self, placed: &PlacedPart, group: u64) -> Vec<(u64, u64, u64, u64)> {
        let Weight { part, columns, .. } = placed.weight;
        if part == Part::O {
            let of_group = columns / self.groups;
            let first = placed.first + group * of_group;
            return vec![(first, placed.weight.rows, of_group, columns)];
        }
        let rows = self.qkv_rows(group).into_iter();
        rows.map(|(first, rows)| {
            let elements = rows * columns;
            (placed.first + first * columns, 1, elements, elements)
        })
        .collect()
    }

    fn slice(
        &self,
        rule: UpdateRule,
        weight: Region,
        states: Option<States>,
        (first, rows, columns, stride): (u64, u64, u64, u64),
        gradients: Vec<Region>,
        carry: Option<Carry>,
    ) -> UpdateSlice {
        let span = (rows - 1) * stride + columns;
        let planes = states.map_or(0, |_| self.planes(rule));
        let plane = |plane: u64| {
            let states = states.expect("planes are of states");
            let first = plane * states.parameters + states.first + first;
            states.region.part(first * F32_BYTES, span * F32_BYTES)
        };
        UpdateSlice {
            weight: Panel {
                region: self.elements_of(weight, first, span),
                rows,
                columns,
                stride,
            },
            gradients,
            states: (0..planes).map(plane).collect(),
            carry,
        }
    }

    fn elements_of(&self, region: Region, first: u64, elements: u64) -> Region {
        let bytes = self.dtype.bytes();
        region.part(first * bytes, elements * bytes)
    }
}
