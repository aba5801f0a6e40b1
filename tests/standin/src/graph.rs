//! What a graph of cuDNN's operations computes: one operation after the other, in f32, from memory
//! and to memory wherever a tensor has an address.

use std::collections::BTreeMap;

use half::bf16;

use crate::memory::{check, Side};

/// cuDNN's numbers of types.
pub const FLOAT: u32 = 0;
pub const INT32: u32 = 4;
pub const BFLOAT16: u32 = 9;
pub const BOOLEAN: u32 = 11;

/// A tensor, as its descriptor says.
#[derive(Clone, Debug, PartialEq)]
pub struct Tensor {
    pub id: i64,
    pub dtype: u32,
    pub dims: [i64; 4],
    pub strides: [i64; 4],
    pub is_virtual: bool,
    pub is_value: bool,
}

/// What an operation does.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Kind {
    Matmul,
    /// cuDNN's mode, and the axis of an index.
    Pointwise(u32, i64),
    /// cuDNN's operator.
    Reduction(u32),
    Reshape,
}

/// An operation: operands in the order of its attributes, then its result.
#[derive(Clone, Debug)]
pub struct Operation {
    pub kind: Kind,
    pub operands: Vec<Tensor>,
    pub to: Tensor,
}

/// A graph.
#[derive(Clone, Debug)]
pub struct Graph {
    pub operations: Vec<Operation>,
}

/// Where tensors are, by id.
pub type Addresses = BTreeMap<i64, u64>;

impl Tensor {
    fn count(&self) -> usize {
        self.dims.iter().product::<i64>() as usize
    }

    fn element_bytes(&self) -> u64 {
        if self.dtype == BFLOAT16 {
            2
        } else {
            4
        }
    }

    /// Bytes from its first element to its last.
    fn span(&self) -> u64 {
        let last = self.dims.iter().zip(self.strides).map(|(d, s)| (d - 1) * s);
        (last.sum::<i64>() as u64 + 1) * self.element_bytes()
    }

    /// Whether it lies on the card where it is said to.
    pub fn is_at(&self, address: u64) -> bool {
        address % 16 == 0 && check(Side::Card, address, self.span()).is_ok()
    }

    /// Of each element in order, where it lies from the first on.
    fn offsets(&self) -> impl Iterator<Item = u64> + '_ {
        (0..self.count()).map(|at| {
            let index = index(at, self.dims);
            let place = index.iter().zip(self.strides).map(|(i, s)| i * s);
            place.sum::<i64>() as u64 * self.element_bytes()
        })
    }

    unsafe fn read(&self, address: u64) -> Vec<f32> {
        let value = |offset| match self.dtype {
            BFLOAT16 => bf16::from_bits(((address + offset) as *const u16).read()).to_f32(),
            _ => ((address + offset) as *const f32).read(),
        };
        self.offsets().map(value).collect()
    }

    unsafe fn write(&self, address: u64, values: &[f32]) {
        for (offset, &value) in self.offsets().zip(values) {
            match self.dtype {
                BFLOAT16 => ((address + offset) as *mut u16).write(bf16::from_f32(value).to_bits()),
                _ => ((address + offset) as *mut f32).write(value),
            }
        }
    }
}

/// The index of an element by its number.
fn index(at: usize, dims: [i64; 4]) -> [i64; 4] {
    let mut rest = at as i64;
    let mut index = [0; 4];
    for dim in (0..4).rev() {
        index[dim] = rest % dims[dim];
        rest /= dims[dim];
    }
    index
}

/// The number of an element of other dims: of 1, or of a whole number of elements for each.
fn number(index: [i64; 4], of: [i64; 4], dims: [i64; 4]) -> usize {
    let mut number = 0;
    for dim in 0..4 {
        number = number * dims[dim] + index[dim] * dims[dim] / of[dim];
    }
    number as usize
}

impl Operation {
    /// Whether dims belong together.
    pub fn is_whole(&self) -> bool {
        let divides = |a: i64, b: i64| a > 0 && b > 0 && b % a == 0;
        let to = self.to.dims;
        let spread = |t: &Tensor| (0..4).all(|d| t.dims[d] == 1 || t.dims[d] == to[d]);
        match (self.kind, &self.operands[..]) {
            (Kind::Matmul, [a, b]) => {
                let (a, b) = (a.dims, b.dims);
                let heads = divides(a[1], to[1]) && divides(b[1], to[1]);
                (a[0], b[0], a[2], b[3]) == (to[0], to[0], to[2], to[3]) && a[3] == b[2] && heads
            }
            (Kind::Pointwise(..), operands) => operands.iter().all(spread),
            (Kind::Reduction(_), [x]) => (0..4).all(|d| divides(to[d], x.dims[d])),
            (Kind::Reshape, [x]) => {
                let [a, b, c, d] = x.dims;
                to == [a, b, d, c]
            }
            _ => false,
        }
    }

    fn compute(&self, operands: &[Vec<f32>]) -> Vec<f32> {
        let to = self.to.dims;
        let values = |at: usize| &operands[at];
        match self.kind {
            Kind::Matmul => {
                let (a, b) = (self.operands[0].dims, self.operands[1].dims);
                let each = (0..self.to.count()).map(|at| {
                    let [n, h, row, column] = index(at, to);
                    let left = number([n, h, row, 0], [to[0], to[1], to[2], 1], a);
                    let first = ((n * b[1] + h * b[1] / to[1]) * b[2] * b[3] + column) as usize;
                    let along = (0..a[3] as usize)
                        .map(|k| values(0)[left + k] * values(1)[first + k * b[3] as usize]);
                    along.sum()
                });
                each.collect()
            }
            Kind::Pointwise(mode, axis) => {
                let each = (0..self.to.count()).map(|at| {
                    let place = index(at, to);
                    let of = |n: usize| values(n)[number(place, to, self.operands[n].dims)];
                    match mode {
                        0 => of(0) + of(1),
                        1 => of(0) * of(1),
                        6 => of(0) / of(1),
                        9 => of(0) - of(1),
                        13 => of(0).exp(),
                        15 => of(0).ln(),
                        21 => of(0),
                        303 => f32::from(of(0) >= of(1)),
                        501 => place[axis as usize] as f32,
                        601 if of(2) != 0.0 => of(0),
                        601 => of(1),
                        _ => f32::NAN,
                    }
                });
                each.collect()
            }
            Kind::Reduction(operator) => {
                let from = self.operands[0].dims;
                let largest = operator == 3;
                let begin = if largest { f32::NEG_INFINITY } else { 0.0 };
                let mut sums = vec![begin; self.to.count()];
                for (at, &value) in values(0).iter().enumerate() {
                    let sum = &mut sums[number(index(at, from), from, to)];
                    *sum = if largest {
                        sum.max(value)
                    } else {
                        *sum + value
                    };
                }
                sums
            }
            Kind::Reshape => {
                let from = self.operands[0].dims;
                let each = (0..self.to.count()).map(|at| {
                    let [n, h, row, column] = index(at, to);
                    values(0)[number([n, h, column, row], from, from)]
                });
                each.collect()
            }
        }
    }
}

impl Graph {
    /// Tensors that are given at a call, each once.
    pub fn given(&self) -> BTreeMap<i64, &Tensor> {
        let all = self.operations.iter();
        let all = all.flat_map(|operation| operation.operands.iter().chain([&operation.to]));
        all.filter(|t| !t.is_virtual).map(|t| (t.id, t)).collect()
    }

    /// Bytes beside the tensors that are given: what is summed over heads lies there before.
    pub fn workspace(&self) -> u64 {
        let reduced = |to: &Tensor| {
            let mut all = self.operations.iter();
            all.any(|o| matches!(o.kind, Kind::Reduction(_)) && o.operands[0].id == to.id)
        };
        let products = self.operations.iter().filter(|o| o.kind == Kind::Matmul);
        let kept = products
            .map(|o| &o.to)
            .filter(|to| to.is_virtual && reduced(to));
        kept.map(|to| to.count() as u64 * to.element_bytes())
            .sum::<u64>()
            + 256
    }

    /// Floating-point operations of its products.
    pub fn flops(&self) -> u64 {
        let products = self.operations.iter().filter(|o| o.kind == Kind::Matmul);
        products
            .map(|o| 2 * o.to.count() as u64 * o.operands[0].dims[3] as u64)
            .sum()
    }

    /// Computes it.
    ///
    /// # Safety
    /// Every tensor lies where its address is, and the workspace too.
    pub unsafe fn run(&self, addresses: &Addresses, values: &BTreeMap<i64, f32>, workspace: u64) {
        let mut passing: BTreeMap<i64, Vec<f32>> = BTreeMap::new();
        // An engine may write there at any time.
        let scribble = || (workspace as *mut u8).write_bytes(0xFF, self.workspace() as usize);
        scribble();
        for operation in &self.operations {
            let operands = operation.operands.iter().map(|tensor| match tensor {
                Tensor { is_value: true, .. } => vec![values[&tensor.id]],
                Tensor {
                    is_virtual: true, ..
                } => passing[&tensor.id].clone(),
                _ => tensor.read(addresses[&tensor.id]),
            });
            let mut result = operation.compute(&operands.collect::<Vec<_>>());
            let to = &operation.to;
            match to.is_virtual {
                false => to.write(addresses[&to.id], &result),
                true => {
                    if to.dtype == BFLOAT16 {
                        let rounded = |value: &mut f32| *value = bf16::from_f32(*value).to_f32();
                        result.iter_mut().for_each(rounded);
                    }
                    passing.insert(to.id, result);
                }
            }
        }
        scribble();
    }
}
