//! Attention and its backward.

use super::super::super::{AttentionShape, Failure, HeadShape, Operator, Result};
use super::operand::{blocks, kernel, launch, number, Operands};
use super::{Argument, Buffer, Launch, SCRATCH_BYTES};
use crate::profile::Dtype;

/// Threads of a block that computes on the cores.
const THREADS: u32 = 256;

pub fn launches(
    operands: &Operands,
    operator: &Operator,
    shared_bytes: u64,
) -> Result<Vec<Launch>> {
    match *operator {
        Operator::Attention {
            shape, qkv, o, lse, ..
        } => {
            let of = Attention::new(operands, shape, shared_bytes)?;
            let mut arguments = vec![
                operands.elements(qkv, of.rows * shape.heads.qkv_width())?,
                operands.elements(o, of.rows * shape.heads.query_width())?,
                operands.floats(lse, of.rows * shape.heads.heads)?,
            ];
            arguments.extend(of.arguments()?);
            let heads = shape.heads.heads;
            Ok(vec![of.launch(&of.kernels.forward, heads, arguments)?])
        }
        Operator::AttentionBackward { .. } => attention_backward(operands, operator, shared_bytes),
        ref other => Err(Failure::refused(format!(
            "{} is no attention",
            other.name()
        ))),
    }
}

/// The kernels for heads up to some size.
struct Kernels {
    forward: Tiled,
    keys: Tiled,
    queries: Tiled,
}

impl Kernels {
    /// The most that one of them asks for.
    fn shared_bytes(&self) -> u64 {
        let all = [&self.forward, &self.keys, &self.queries];
        all.map(|kernel| kernel.shared_bytes)
            .into_iter()
            .fold(0, u64::max)
    }
}

/// A kernel that walks over tiles.
struct Tiled {
    name: &'static str,
    threads: u32,
    /// Rows of the tile that a block has to itself.
    rows: u64,
    shared_bytes: u64,
}

/// Of f32, and of large heads: four tiles' rows of f32, 4 elements further apart than they are
/// long, and tiles of scores. Rows of a forward's tiles, of a backward's own tile and of the other.
fn on_cores(
    names: [&'static str; 3],
    head_dim: u64,
    (of_forward, own, other): (u64, u64, u64),
) -> Kernels {
    let row = head_dim + 4;
    let tiled = |name, rows, elements: u64| Tiled {
        name,
        threads: THREADS,
        rows,
        shared_bytes: 4 * elements,
    };
    let two = 2 * of_forward * row;
    let four = 2 * (own + other) * row;
    Kernels {
        forward: tiled(names[0], of_forward, two + of_forward * (of_forward + 4)),
        keys: tiled(names[1], own, four + 2 * other * (own + 4)),
        queries: tiled(names[2], own, four + own * (other + 4)),
    }
}

/// Of bf16: rows of bf16, 8 elements further apart; scores are in registers. A backward's own tiles
/// are of 64 rows; of 32 are those that it walks over, of which the next are on their way, with an
/// lse and a D for every row.
fn on_matrix_units(names: [&'static str; 3], head_dim: u64) -> Kernels {
    let tiled = |name, rows: u64, floats: u64| Tiled {
        name,
        threads: 128,
        rows: 64,
        shared_bytes: 2 * rows * (head_dim + 8) + 4 * floats,
    };
    Kernels {
        forward: tiled(names[0], 3 * 64, 0),
        keys: tiled(names[1], 2 * (64 + 2 * 32), 2 * 2 * 32),
        queries: tiled(names[2], 2 * (64 + 2 * 32), 0),
    }
}

struct Attention {
    shape: AttentionShape,
    kernels: Kernels,
    rows: u64,
}

impl Attention {
    fn new(operands: &Operands, shape: AttentionShape, shared_bytes: u64) -> Result<Attention> {
        let HeadShape {
            heads,
            kv_heads,
            head_dim,
        } = shape.heads;
        let whole = kv_heads > 0 && heads > 0 && heads % kv_heads == 0 && head_dim > 0;
        if !whole || shape.sequence == 0 || shape.window == Some(0) {
            let what = format!(
                "attention of {heads} heads of {head_dim} for {kv_heads} of keys over {} tokens",
                shape.sequence
            );
            return Err(Failure::refused(what));
        }
        macro_rules! names {
            ($dim:literal) => {
                [
                    kernel!(operands, "attention_", $dim),
                    kernel!(operands, "attention_keys_", $dim),
                    kernel!(operands, "attention_queries_", $dim),
                ]
            };
        }
        let fitting = |large: Kernels, tight| match large.shared_bytes() > shared_bytes {
            true => tight,
            false => large,
        };
        let f32 = operands.reservation.dtype == Dtype::F32;
        let kernels = match head_dim {
            0..=64 if f32 => on_cores(names!("64"), 64, (64, 64, 32)),
            65..=128 if f32 => fitting(
                on_cores(names!("128"), 128, (64, 64, 32)),
                on_cores(names!("128_tight"), 128, (64, 32, 32)),
            ),
            0..=64 => on_matrix_units(names!("64"), 64),
            65..=128 => on_matrix_units(names!("128"), 128),
            129..=256 => fitting(
                on_cores(names!("256"), 256, (64, 32, 32)),
                on_cores(names!("256_tight"), 256, (32, 16, 16)),
            ),
            _ => {
                let what = format!("attention of heads of {head_dim} (up to 256)");
                return Err(Failure::refused(what));
            }
        };
        let rows = shape.sequences * shape.sequence;
        Ok(Attention {
            shape,
            kernels,
            rows,
        })
    }

    fn launch(&self, kernel: &Tiled, heads: u64, arguments: Vec<Argument>) -> Result<Launch> {
        let tiles = self.shape.sequence.div_ceil(kernel.rows);
        let grid = [tiles, heads, self.shape.sequences];
        let shared = kernel.shared_bytes;
        launch(kernel.name, grid, kernel.threads, shared, arguments)
    }

    fn arguments(&self) -> Result<[Argument; 6]> {
        let heads = self.shape.heads;
        // A window as long as the sequence hides nothing.
        let window = self.shape.window.filter(|&w| w < self.shape.sequence);
        let factor = 1.0 / (heads.head_dim as f64).sqrt();
        Ok([
            number(self.shape.sequence)?,
            number(heads.heads)?,
            number(heads.kv_heads)?,
            number(heads.head_dim)?,
            number(window.unwrap_or(0))?,
            Argument::F32(factor as f32),
        ])
    }
}

fn attention_backward(
    operands: &Operands,
    operator: &Operator,
    shared_bytes: u64,
) -> Result<Vec<Launch>> {
    let Operator::AttentionBackward {
        shape,
        qkv,
        o,
        lse,
        d_o,
        d_qkv,
        ..
    } = *operator
    else {
        return Ok(Vec::new());
    };
    let of = Attention::new(operands, shape, shared_bytes)?;
    let heads = shape.heads;
    let group = heads.heads / heads.kv_heads;
    // D of as many heads at once as scratch memory holds; every head is computed alone anyway.
    let room = SCRATCH_BYTES / (4 * of.rows * group);
    if room == 0 {
        let what = format!("the backward of attention over {} rows at once", of.rows);
        return Err(Failure::refused(what));
    }
    let qkv = operands.elements(qkv, of.rows * heads.qkv_width())?;
    let o = operands.elements(o, of.rows * heads.query_width())?;
    let lse = operands.floats(lse, of.rows * heads.heads)?;
    let d_o = operands.elements(d_o, of.rows * heads.query_width())?;
    let d_qkv = operands.elements(d_qkv, of.rows * heads.qkv_width())?;
    let delta = Argument::Own(Buffer::Scratch, 0);
    let mut all = Vec::new();
    let mut first = 0;
    while first < heads.kv_heads {
        let count = room.min(heads.kv_heads - first);
        let queries = count * group;
        let arguments = vec![
            o,
            d_o,
            delta,
            number(of.rows)?,
            number(heads.heads)?,
            number(heads.head_dim)?,
            number(first * group)?,
            number(queries)?,
        ];
        let warps = [
            blocks(of.rows * queries, u64::from(THREADS) / 32, u64::MAX),
            1,
            1,
        ];
        let name = kernel!(operands, "attention_delta");
        all.push(launch(name, warps, THREADS, 0, arguments)?);
        let mut arguments = vec![qkv, lse, d_o, delta, d_qkv];
        arguments.extend(of.arguments()?);
        arguments.extend([number(first)?, number(count)?]);
        all.push(of.launch(&of.kernels.keys, count, arguments.clone())?);
        all.push(of.launch(&of.kernels.queries, queries, arguments)?);
        first += count;
    }
    Ok(all)
}
