//! Attention and its backward as graphs of cuDNN's operations: tensors with dims, strides and
//! types, and what is computed of them in which order. Pure.
//!
//! cuDNN knows its fused kernels by the form of such a graph, so that operations, their order and
//! the strides of virtual tensors are as its own front end emits them for version 9.19. Whatever
//! computes the operations one by one gets attention: `tests/standin` does.
//!
//! Dims are `[B, H, S, D]`: sequences, heads (query heads `H`, key and value heads `G`), tokens,
//! elements of a head. `R` and `W` are elements from one token to the next of qkv and of o.

/// An attention that is called at once: all heads of qkv, or some of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Shape {
    /// `B`.
    pub sequences: i64,
    /// `S`.
    pub sequence: i64,
    /// `H`.
    pub heads: i64,
    /// `G`, which divides `H`.
    pub kv_heads: i64,
    /// `D`.
    pub head_dim: i64,
    /// `R`.
    pub qkv_row: i64,
    /// `W`.
    pub o_row: i64,
}

/// Type of a tensor's elements.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Type {
    /// bf16.
    Bf16,
    /// f32.
    F32,
    /// i32.
    I32,
    /// Yes or no.
    Bool,
}

/// Where a tensor's elements are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// At an address.
    Memory,
    /// One number on the host.
    Value,
    /// Nowhere that is known: it passes from operation to operation.
    Virtual,
}

/// A tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tensor {
    /// What a call names it by.
    pub id: i64,
    /// Its elements.
    pub dtype: Type,
    /// Where they are.
    pub kind: Kind,
    /// Dims.
    pub dims: [i64; 4],
    /// Elements from one index of a dim to the next.
    pub strides: [i64; 4],
}

/// q, and the others that calls give addresses of; by value scale, what a hidden score is, and 1.
pub const Q: i64 = 1;
/// k, as its transpose.
pub const K: i64 = 2;
/// v; in the backward as its transpose.
pub const V: i64 = 3;
/// o.
pub const O: i64 = 4;
/// lse: f32 `[B, H, S]`.
pub const STATISTICS: i64 = 5;
/// dO.
pub const D_O: i64 = 6;
/// dQ.
pub const D_Q: i64 = 7;
/// dK.
pub const D_K: i64 = 8;
/// dV.
pub const D_V: i64 = 9;
/// Σ dO · O: f32 `[B, H, S]`, which the caller gives memory for.
pub const ROW_SUMS: i64 = 10;
/// dQ before it is rounded: f32 `[B, H, S, D]`, which the caller gives memory for.
pub const ACCUMULATOR: i64 = 11;
/// 1 / √D.
pub const SCALE: i64 = 20;
/// −∞.
pub const HIDDEN: i64 = 21;
/// 1.
pub const ONE: i64 = 22;
/// The first virtual one.
const VIRTUAL: i64 = 100;

/// What is computed element by element.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pointwise {
    /// `x + b`.
    Add,
    /// `x · b`.
    Mul,
    /// `x − b`.
    Sub,
    /// `x / b`.
    Div,
    /// `eˣ`.
    Exp,
    /// `ln x`.
    Log,
    /// `x`, in another type.
    Identity,
    /// The index in a dim.
    Index(i64),
    /// `x ≥ b`.
    NotLess,
    /// `t ? x : b`.
    Select,
}

/// An operation; tensors by their place in the graph.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    /// `to = a · b`, matrices in the last two dims.
    Matmul {
        /// `a`.
        a: usize,
        /// `b`.
        b: usize,
        /// `to`.
        to: usize,
    },
    /// Element by element; dims of 1 are repeated.
    Pointwise {
        /// What.
        mode: Pointwise,
        /// `x`.
        x: usize,
        /// `b`, of two operands.
        b: Option<usize>,
        /// `t`, of three.
        t: Option<usize>,
        /// Result.
        to: usize,
    },
    /// Over the dims that are shorter in the result.
    Reduction {
        /// Whether the largest is taken, else the sum.
        largest: bool,
        /// Operand.
        x: usize,
        /// Result.
        to: usize,
    },
    /// The last two dims exchanged.
    Reshape {
        /// Operand.
        x: usize,
        /// Result.
        to: usize,
    },
}

/// A graph.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Graph {
    /// All tensors.
    pub tensors: Vec<Tensor>,
    /// Operations, in order.
    pub operations: Vec<Operation>,
}

impl Shape {
    /// Row-major strides.
    fn packed(dims: [i64; 4]) -> [i64; 4] {
        let [_, b, c, d] = dims;
        [b * c * d, c * d, d, 1]
    }

    /// q, or k and v as they are, of qkv.
    fn of_qkv(&self) -> [i64; 4] {
        [self.sequence * self.qkv_row, self.head_dim, self.qkv_row, 1]
    }

    /// o and its gradient.
    fn of_o(&self) -> [i64; 4] {
        [self.sequence * self.o_row, self.head_dim, self.o_row, 1]
    }

    fn queries(&self) -> [i64; 4] {
        [self.sequences, self.heads, self.sequence, self.head_dim]
    }

    fn keys(&self) -> [i64; 4] {
        [self.sequences, self.kv_heads, self.sequence, self.head_dim]
    }

    fn scores(&self) -> [i64; 4] {
        [self.sequences, self.heads, self.sequence, self.sequence]
    }

    fn of_rows(&self) -> [i64; 4] {
        [self.sequences, self.heads, self.sequence, 1]
    }
}

/// The last two of four exchanged.
const fn turned([a, b, c, d]: [i64; 4]) -> [i64; 4] {
    [a, b, d, c]
}

impl Graph {
    /// Attention: o and lse of q, k and v, in 14 operations.
    pub fn forward(shape: &Shape) -> Graph {
        let mut graph = Graph::default();
        let (of_qkv, rows) = (shape.of_qkv(), shape.of_rows());
        let q = graph.memory(Q, Type::Bf16, shape.queries(), of_qkv);
        let k = graph.memory(K, Type::Bf16, turned(shape.keys()), turned(of_qkv));
        let v = graph.memory(V, Type::Bf16, shape.keys(), of_qkv);
        let o = graph.memory(O, Type::Bf16, shape.queries(), shape.of_o());
        let statistics = graph.memory(STATISTICS, Type::F32, rows, Shape::packed(rows));
        let scale = graph.value(SCALE);
        let scores = graph.floats(shape.scores());
        graph.matmul(q, k, scores);
        let scaled = graph.pointwise(Pointwise::Mul, scores, Some(scale), shape.scores());
        let seen = graph.seen(shape, scaled);
        let largest = graph.reduced(true, seen, rows);
        let shifted = graph.pointwise(Pointwise::Sub, seen, Some(largest), shape.scores());
        let powers = graph.pointwise(Pointwise::Exp, shifted, None, shape.scores());
        let sum = graph.reduced(false, powers, rows);
        let log = graph.pointwise(Pointwise::Log, sum, None, rows);
        graph.write(Pointwise::Add, largest, Some(log), statistics);
        let dims = shape.scores();
        let probabilities = graph.tensor(Type::Bf16, dims, Shape::packed(dims));
        graph.write(Pointwise::Div, powers, Some(sum), probabilities);
        graph.matmul(probabilities, v, o);
        graph
    }

    /// Its backward: dQ, dK and dV of q, k, v, o, lse and dO, in 22 operations; 24 where several
    /// heads share keys, whose gradients are then summed.
    pub fn backward(shape: &Shape) -> Graph {
        let mut graph = Graph::default();
        let (of_qkv, of_o) = (shape.of_qkv(), shape.of_o());
        let (queries, rows, scores) = (shape.queries(), shape.of_rows(), shape.scores());
        let q = graph.memory(Q, Type::Bf16, queries, of_qkv);
        let k = graph.memory(K, Type::Bf16, turned(shape.keys()), turned(of_qkv));
        let v = graph.memory(V, Type::Bf16, turned(shape.keys()), turned(of_qkv));
        let o = graph.memory(O, Type::Bf16, queries, of_o);
        let d_o = graph.memory(D_O, Type::Bf16, queries, of_o);
        let statistics = graph.memory(STATISTICS, Type::F32, rows, Shape::packed(rows));
        let sums = graph.memory(ROW_SUMS, Type::F32, rows, Shape::packed(rows));
        let packed = Shape::packed(queries);
        let accumulator = graph.memory(ACCUMULATOR, Type::F32, queries, packed);
        let d_q = graph.memory(D_Q, Type::Bf16, queries, of_qkv);
        let d_k = graph.memory(D_K, Type::Bf16, shape.keys(), of_qkv);
        let d_v = graph.memory(D_V, Type::Bf16, shape.keys(), of_qkv);
        let (scale, one) = (graph.value(SCALE), graph.value(ONE));

        let product = graph.tensor(Type::F32, queries, of_o);
        graph.write(Pointwise::Mul, d_o, Some(o), product);
        let sum = graph.reduced(false, product, rows);
        graph.write(Pointwise::Mul, sum, Some(one), sums);

        let s = graph.floats(scores);
        graph.matmul(q, k, s);
        let scaled = graph.pointwise(Pointwise::Mul, s, Some(scale), scores);
        let shifted = graph.pointwise(Pointwise::Sub, scaled, Some(statistics), scores);
        let seen = graph.seen(shape, shifted);
        let probabilities = graph.pointwise(Pointwise::Exp, seen, None, scores);
        let p_turned = graph.turned(shape, probabilities);
        graph.key_gradient(shape, (p_turned, d_o), d_v);

        let d_p = graph.floats(scores);
        graph.matmul(d_o, v, d_p);
        let centred = graph.pointwise(Pointwise::Sub, d_p, Some(sums), scores);
        let weighted = graph.pointwise(Pointwise::Mul, centred, Some(probabilities), scores);
        let d_s = graph.pointwise(Pointwise::Mul, weighted, Some(scale), scores);
        let d_s_turned = graph.turned(shape, d_s);
        graph.key_gradient(shape, (d_s_turned, q), d_k);

        let keys = graph.tensor(Type::F32, shape.keys(), of_qkv);
        graph.operations.push(Operation::Reshape { x: k, to: keys });
        graph.matmul(d_s, keys, accumulator);
        graph.write(Pointwise::Identity, accumulator, None, d_q);
        graph
    }

    fn add(&mut self, tensor: Tensor) -> usize {
        self.tensors.push(tensor);
        self.tensors.len() - 1
    }

    fn memory(&mut self, id: i64, dtype: Type, dims: [i64; 4], strides: [i64; 4]) -> usize {
        self.add(Tensor {
            id,
            dtype,
            kind: Kind::Memory,
            dims,
            strides,
        })
    }

    fn value(&mut self, id: i64) -> usize {
        self.add(Tensor {
            id,
            dtype: Type::F32,
            kind: Kind::Value,
            dims: [1; 4],
            strides: [1; 4],
        })
    }

    fn tensor(&mut self, dtype: Type, dims: [i64; 4], strides: [i64; 4]) -> usize {
        let id = VIRTUAL + i64::try_from(self.tensors.len()).expect("some tens");
        self.add(Tensor {
            id,
            dtype,
            kind: Kind::Virtual,
            dims,
            strides,
        })
    }

    fn floats(&mut self, dims: [i64; 4]) -> usize {
        self.tensor(Type::F32, dims, Shape::packed(dims))
    }

    fn matmul(&mut self, a: usize, b: usize, to: usize) {
        self.operations.push(Operation::Matmul { a, b, to });
    }

    fn write(&mut self, mode: Pointwise, x: usize, b: Option<usize>, to: usize) {
        let t = None;
        self.operations
            .push(Operation::Pointwise { mode, x, b, t, to });
    }

    fn pointwise(&mut self, mode: Pointwise, x: usize, b: Option<usize>, dims: [i64; 4]) -> usize {
        let to = self.floats(dims);
        self.write(mode, x, b, to);
        to
    }

    fn reduced(&mut self, largest: bool, x: usize, dims: [i64; 4]) -> usize {
        let to = self.floats(dims);
        self.operations
            .push(Operation::Reduction { largest, x, to });
        to
    }

    /// Scores with those of later tokens hidden.
    fn seen(&mut self, shape: &Shape, scores: usize) -> usize {
        let dims = shape.scores();
        let packed = Shape::packed(dims);
        let [row, column] = [2, 3].map(|dim| {
            let index = self.tensor(Type::I32, dims, packed);
            self.write(Pointwise::Index(dim), scores, None, index);
            index
        });
        let t = self.tensor(Type::Bool, dims, packed);
        self.write(Pointwise::NotLess, row, Some(column), t);
        let hidden = self.value(HIDDEN);
        let to = self.floats(dims);
        self.operations.push(Operation::Pointwise {
            mode: Pointwise::Select,
            x: scores,
            b: Some(hidden),
            t: Some(t),
            to,
        });
        to
    }

    /// Scores' transpose in bf16, where they are.
    fn turned(&mut self, shape: &Shape, x: usize) -> usize {
        let dims = shape.scores();
        let to = self.tensor(Type::Bf16, dims, turned(Shape::packed(dims)));
        self.operations.push(Operation::Reshape { x, to });
        to
    }

    /// `to = a · b`, summed over the heads that share keys.
    fn key_gradient(&mut self, shape: &Shape, (a, b): (usize, usize), to: usize) {
        if shape.heads == shape.kv_heads {
            return self.matmul(a, b, to);
        }
        let dims = shape.queries();
        let every = self.tensor(Type::Bf16, dims, Shape::packed(dims));
        self.matmul(a, b, every);
        self.operations.push(Operation::Reduction {
            largest: false,
            x: every,
            to,
        });
    }
}
