//! From attention to calls of cuDNN: which pieces of it, with which operands and scratch memory.
//!
//! cuDNN's lse is `[sequences, heads, tokens]`, ours `[tokens, heads]`. It takes other strides than
//! its own without a word and then computes wrong gradients, so lse is transposed on the way, in
//! the device's scratch memory. A call covers as many key/value heads, with the query heads that
//! they serve, as scratch memory holds: every head is computed alone anyway.

use super::super::super::{AttentionShape, Failure, Operator, Region, Result};
use super::super::cudnn::graph::{self, Shape};
use super::operand::{kernel, launch, number, Operands};
use super::{Argument, Buffer, Launch, SCRATCH_BYTES};
use crate::device::Reservation;
use crate::profile::cost::AttentionDirection;
use crate::profile::{fused_refuses, Dtype, FusedShape};

/// Scratch memory for the forward's plan, which asks for 256 bytes; lse lies behind it.
const FORWARD_BYTES: u64 = 1 << 20;
/// Of the addresses of tensors, and of a plan's workspace.
const ALIGNMENT: [u64; 2] = [16, 256];
/// Rows and columns of a block's tile of a transpose.
const TILE: u64 = 32;

/// A call of cuDNN, and what runs before and after it.
#[derive(Clone, Debug, PartialEq)]
pub struct FusedCall {
    /// Forward or backward.
    pub direction: AttentionDirection,
    /// The heads of this call.
    pub shape: Shape,
    /// Brings lse into cuDNN's order.
    pub before: Option<Launch>,
    /// Tensors in memory by the graph's ids.
    pub tensors: Vec<(i64, Argument)>,
    /// Where the plan's workspace is, and how long.
    pub workspace: (Argument, u64),
    /// Brings lse into our order.
    pub after: Option<Launch>,
}

/// The calls of an attention or its backward, in order; or why it is not cuDNN's.
///
/// # Errors
/// Shapes that cannot be, operands that are not as long as they say.
pub fn fused_calls(
    operator: &Operator,
    reservation: &Reservation,
) -> Result<std::result::Result<Vec<FusedCall>, String>> {
    let of = match Attention::of(operator) {
        Ok(of) => of,
        Err(why) => return Ok(Err(why)),
    };
    let operands = Operands::new(reservation, &[])?;
    of.check(&operands)?;
    let at_once = match of.at_once(reservation.dtype) {
        Ok(at_once) => at_once,
        Err(why) => return Ok(Err(why)),
    };
    let kv_heads = of.shape.heads.kv_heads;
    let count = kv_heads.div_ceil(at_once);
    let calls = (0..count).map(|n| {
        let [first, end] = [n, n + 1].map(|n| kv_heads * n / count);
        of.call(&operands, first, end - first)
    });
    calls.collect::<Result<_>>().map(Ok)
}

struct Attention {
    shape: AttentionShape,
    qkv: Region,
    o: Region,
    lse: Region,
    backward: Option<Backward>,
}

struct Backward {
    d_o: Region,
    d_qkv: Region,
    workspace: Region,
}

impl Attention {
    fn of(operator: &Operator) -> std::result::Result<Attention, String> {
        match *operator {
            Operator::Attention {
                shape, qkv, o, lse, ..
            } => Ok(Attention {
                shape,
                qkv,
                o,
                lse,
                backward: None,
            }),
            Operator::AttentionBackward {
                shape,
                qkv,
                o,
                lse,
                d_o,
                d_qkv,
                workspace: Some(workspace),
            } => Ok(Attention {
                shape,
                qkv,
                o,
                lse,
                backward: Some(Backward {
                    d_o,
                    d_qkv,
                    workspace,
                }),
            }),
            Operator::AttentionBackward { .. } => {
                Err("the schedule plans no scratch memory for it".into())
            }
            _ => Err("it is no attention".into()),
        }
    }

    fn rows(&self) -> u64 {
        self.shape.sequences * self.shape.sequence
    }

    fn check(&self, operands: &Operands) -> Result<()> {
        let (heads, rows) = (self.shape.heads, self.rows());
        if heads.kv_heads == 0 || heads.heads % heads.kv_heads != 0 || rows * heads.heads == 0 {
            return Err(Failure::refused("attention of no heads or no tokens"));
        }
        operands.elements(self.qkv, rows * heads.qkv_width())?;
        operands.elements(self.o, rows * heads.query_width())?;
        operands.floats(self.lse, rows * heads.heads)?;
        if let Some(backward) = &self.backward {
            operands.elements(backward.d_o, rows * heads.query_width())?;
            operands.elements(backward.d_qkv, rows * heads.qkv_width())?;
            operands.bytes(backward.workspace)?;
        }
        Ok(())
    }

    /// How many key/value heads a call covers.
    fn at_once(&self, dtype: Dtype) -> std::result::Result<u64, String> {
        let (heads, rows) = (self.shape.heads, self.rows());
        let window = self.shape.window.filter(|&w| w < self.shape.sequence);
        if let Some(why) = fused_refuses(dtype, heads.head_dim, window) {
            return Err(why);
        }
        let [tensor, plan] = ALIGNMENT;
        let mut aligned = vec![(self.qkv, tensor), (self.o, tensor)];
        let group = heads.heads / heads.kv_heads;
        let mut at_once = (SCRATCH_BYTES - FORWARD_BYTES) / (4 * rows * group);
        let mut planned = SCRATCH_BYTES;
        if let Some(backward) = &self.backward {
            aligned.extend([(backward.d_o, tensor), (backward.d_qkv, tensor)]);
            aligned.push((backward.workspace, plan));
            planned = backward.workspace.bytes;
            at_once = at_once.min(self.sizes().backward_fits(planned));
        }
        if let Some((region, to)) = aligned.iter().find(|(r, to)| r.offset_bytes % to != 0) {
            let at = region.offset_bytes;
            return Err(format!("an operand at {at} is not aligned to {to} bytes"));
        }
        match at_once {
            0 => Err(format!(
                "its scratch memory of {planned} bytes is too short for a key/value head"
            )),
            _ => Ok(at_once.min(heads.kv_heads)),
        }
    }

    /// All heads, as memory is counted by.
    fn sizes(&self) -> FusedShape {
        let heads = self.shape.heads;
        FusedShape {
            rows: self.rows(),
            heads: heads.heads,
            kv_heads: heads.kv_heads,
            head_dim: heads.head_dim,
        }
    }

    /// The call that covers `kv_heads` key/value heads from one on.
    fn call(&self, operands: &Operands, first_kv: u64, kv_heads: u64) -> Result<FusedCall> {
        let AttentionShape {
            heads,
            sequences,
            sequence,
            ..
        } = self.shape;
        let sizes = self.sizes().part(kv_heads);
        let first = first_kv * (heads.heads / heads.kv_heads);
        let shape = Shape {
            sequences: int(sequences)?,
            sequence: int(sequence)?,
            heads: int(sizes.heads)?,
            kv_heads: int(kv_heads)?,
            head_dim: int(heads.head_dim)?,
            qkv_row: int(heads.qkv_width())?,
            o_row: int(heads.query_width())?,
        };
        // The first token's head of a number.
        let head =
            |region: Region, number: u64| from(region, operands.size() * number * heads.head_dim);
        let keys = heads.heads + first_kv;
        let values = keys + heads.kv_heads;
        let statistics = Argument::Own(Buffer::Scratch, FORWARD_BYTES);
        let lse = from(self.lse, 4 * first);
        let mut tensors = vec![
            (graph::Q, head(self.qkv, first)),
            (graph::K, head(self.qkv, keys)),
            (graph::V, head(self.qkv, values)),
            (graph::O, head(self.o, first)),
            (graph::STATISTICS, statistics),
        ];
        let name = kernel!(operands, "transpose");
        let turn = |from, to| transpose(name, sequences, from, to);
        let Some(backward) = &self.backward else {
            let by_head = (statistics, [sizes.heads, sequence], sequence);
            return Ok(FusedCall {
                direction: AttentionDirection::Forward,
                shape,
                before: None,
                tensors,
                workspace: (Argument::Own(Buffer::Scratch, 0), FORWARD_BYTES),
                after: Some(turn(by_head, (lse, heads.heads))?),
            });
        };
        let small = |bytes: u128| u64::try_from(bytes).expect("within the region");
        let plan = small(sizes.backward_plan_bytes());
        let sums = plan + small(sizes.accumulator_bytes());
        tensors.extend([
            (graph::D_O, head(backward.d_o, first)),
            (graph::D_Q, head(backward.d_qkv, first)),
            (graph::D_K, head(backward.d_qkv, keys)),
            (graph::D_V, head(backward.d_qkv, values)),
            (graph::ACCUMULATOR, from(backward.workspace, plan)),
            (graph::ROW_SUMS, from(backward.workspace, sums)),
        ]);
        let by_token = (lse, [sequence, sizes.heads], heads.heads);
        Ok(FusedCall {
            direction: AttentionDirection::Backward,
            shape,
            before: Some(turn(by_token, (statistics, sequence))?),
            tensors,
            workspace: (from(backward.workspace, 0), plan),
            after: None,
        })
    }
}

/// A region from a byte on.
fn from(region: Region, offset: u64) -> Argument {
    Argument::Region(region.part(offset, region.bytes - offset))
}

/// Transposes an f32 matrix of each sequence: `[rows, columns]` with a stride from row to row, into
/// `[columns, rows]` with another. A sequence begins where the last row before it ends.
fn transpose(
    name: &'static str,
    sequences: u64,
    (from, [rows, columns], stride): (Argument, [u64; 2], u64),
    (to, to_stride): (Argument, u64),
) -> Result<Launch> {
    let tiles = rows.div_ceil(TILE) * columns.div_ceil(TILE);
    let arguments = vec![
        from,
        to,
        number(rows)?,
        number(columns)?,
        Argument::U64(stride),
        Argument::U64(to_stride),
    ];
    launch(name, [tiles, sequences, 1], 256, 0, arguments)
}

/// A number as cuDNN takes it.
fn int(number: u64) -> Result<i64> {
    let number = i32::try_from(number);
    let number = number.map_err(|_| Failure::refused("a shape of more than 2^31 - 1"))?;
    Ok(number.into())
}
