//! Operators on heads: what follows the projection to q, k and v, and attention.

use super::super::super::{
    AttentionShape, Failure, HeadNorms, HeadNormsBackward, HeadShape, NormShape, Operator, Region,
    Result, Rows,
};
use super::operand::{blocks, kernel, launch, norm_arguments, number, threads, Operands};
use super::{Argument, Buffer, Launch, SCRATCH_BYTES};
use crate::model::NormKind;
use crate::profile::Dtype;

/// Threads of a block on heads.
const THREADS: u64 = 256;

/// Pieces that a bias may come in.
const PIECES: usize = 3;

pub fn launches(operands: &Operands, operator: &Operator) -> Result<Vec<Launch>> {
    match *operator {
        Operator::QkvProjection {
            rows,
            heads,
            ref bias,
            norms,
            rotate,
            qkv,
            ..
        } => {
            let on = OnHeads {
                operands,
                rows,
                heads,
                rotate,
            };
            match norms.is_some() || rotate {
                true => on.rotary(qkv, bias, norms, 1.0),
                false if bias.is_empty() => Ok(Vec::new()),
                false => on.add_bias(qkv, bias),
            }
        }
        Operator::RotaryBackward {
            rows,
            heads,
            rotate,
            norms,
            d_qkv,
        } => {
            let on = OnHeads {
                operands,
                rows,
                heads,
                rotate,
            };
            match norms {
                Some(norms) => on.rotary_backward(d_qkv, norms),
                None if rotate => on.rotary(d_qkv, &[], None, -1.0),
                None => Ok(Vec::new()),
            }
        }
        Operator::Attention {
            shape, qkv, o, lse, ..
        } => {
            let of = Attention::new(operands, shape)?;
            let mut arguments = vec![
                operands.elements(qkv, of.rows * shape.heads.qkv_width())?,
                operands.elements(o, of.rows * shape.heads.query_width())?,
                operands.floats(lse, of.rows * shape.heads.heads)?,
            ];
            arguments.extend(of.arguments()?);
            let heads = shape.heads.heads;
            Ok(vec![of.launch(&of.kernels.forward, heads, arguments)?])
        }
        Operator::AttentionBackward { .. } => attention_backward(operands, operator),
        ref other => Err(Failure::refused(format!(
            "{} is not on heads",
            other.name()
        ))),
    }
}

// ---- rotation -----------------------------------------------------------------------------------

struct OnHeads<'a> {
    operands: &'a Operands<'a>,
    rows: Rows,
    heads: HeadShape,
    rotate: bool,
}

impl OnHeads<'_> {
    fn qkv(&self, region: Region) -> Result<Argument> {
        let HeadShape {
            heads,
            kv_heads,
            head_dim,
        } = self.heads;
        if kv_heads == 0 || head_dim == 0 || heads % kv_heads != 0 {
            let what = format!("{heads} heads of {head_dim} for {kv_heads} of keys");
            return Err(Failure::refused(what));
        }
        let elements = self.rows.count * self.heads.qkv_width();
        self.operands.elements(region, elements)
    }

    /// Pieces of a bias and where the first two end.
    fn bias(&self, bias: &[Region]) -> Result<[Argument; PIECES + 2]> {
        let size = self.operands.size();
        let width = self.heads.qkv_width();
        let mut pieces = [Argument::Null; PIECES];
        let mut ends = [width; PIECES];
        let mut end = 0;
        if bias.len() > PIECES {
            let what = format!("a bias in {} pieces", bias.len());
            return Err(Failure::refused(what));
        }
        for (i, &piece) in bias.iter().enumerate() {
            pieces[i] = self.operands.elements(piece, piece.bytes / size)?;
            end += piece.bytes / size;
            ends[i] = end;
        }
        let heads = ends.iter().all(|end| end % self.heads.head_dim == 0);
        if !bias.is_empty() && (end != width || !heads) {
            let what = format!("a bias that has not the {width} elements of its layer");
            return Err(Failure::refused(what));
        }
        let [b0, b1, b2] = pieces;
        Ok([b0, b1, b2, number(ends[0])?, number(ends[1])?])
    }

    fn add_bias(&self, qkv: Region, bias: &[Region]) -> Result<Vec<Launch>> {
        let width = self.heads.qkv_width();
        let mut arguments = vec![self.qkv(qkv)?];
        arguments.extend(self.bias(bias)?);
        arguments.push(number(width)?);
        let pieces = width.div_ceil(self.operands.wide());
        let threads = threads(pieces, THREADS as u32);
        let grid = [self.rows.count, blocks(pieces, threads.into(), 65_535), 1];
        let name = kernel!(self.operands, "add_bias");
        Ok(vec![launch(name, grid, threads, 0, arguments)?])
    }

    /// Cosines and sines.
    fn table(&self) -> Result<[Argument; 2]> {
        if self.rows.sequence == 0 {
            return Err(Failure::refused("sequences of no tokens"));
        }
        if !self.rotate {
            return Ok([Argument::Null; 2]);
        }
        let end = (self.rows.first % self.rows.sequence + self.rows.count).min(self.rows.sequence);
        let table = self.operands.reservation.rotary.as_ref();
        let half = self.heads.head_dim / 2;
        match table {
            Some(table) if table.half == half && end <= table.positions => {
                Ok([Buffer::Cos, Buffer::Sin].map(|buffer| Argument::Own(buffer, 0)))
            }
            _ => Err(Failure::refused(format!(
                "no rotation of {end} positions and {half} pairs was reserved"
            ))),
        }
    }

    fn shape(&self) -> Result<[Argument; 6]> {
        if self.heads.head_dim % 2 != 0 {
            let what = format!("rotation or norms of heads of {}", self.heads.head_dim);
            return Err(Failure::refused(what));
        }
        Ok([
            number(self.rows.first)?,
            number(self.rows.count)?,
            number(self.rows.sequence)?,
            number(self.heads.heads)?,
            number(self.heads.kv_heads)?,
            number(self.heads.head_dim)?,
        ])
    }

    fn scales(&self, norms: HeadNorms) -> Result<[Argument; 3]> {
        let norm = norms.norm;
        if norm.kind == NormKind::Layer || norm.width != self.heads.head_dim {
            let what = "norms of q and k that are layer norms, or not of a head's width";
            return Err(Failure::refused(what));
        }
        let turned = self.heads.heads + self.heads.kv_heads;
        Ok([
            self.operands.elements(norms.q_scale, norm.width)?,
            self.operands.elements(norms.k_scale, norm.width)?,
            self.operands
                .floats(norms.inverse_deviations, self.rows.count * turned)?,
        ])
    }

    fn rotary(
        &self,
        qkv: Region,
        bias: &[Region],
        norms: Option<HeadNorms>,
        direction: f32,
    ) -> Result<Vec<Launch>> {
        let mut arguments = vec![self.qkv(qkv)?];
        arguments.extend(self.table()?);
        arguments.extend(self.bias(bias)?);
        let scales = norms.map(|norms| self.scales(norms)).transpose()?;
        arguments.extend(scales.unwrap_or([Argument::Null; 3]));
        arguments.extend(self.shape()?);
        let none = NormShape {
            kind: NormKind::Rms,
            width: 0,
            epsilon: 0.0,
        };
        arguments.extend(norm_arguments(norms.map_or(none, |norms| norms.norm)));
        arguments.push(Argument::F32(direction));
        let HeadShape {
            heads, kv_heads, ..
        } = self.heads;
        let untouched = if bias.is_empty() { kv_heads } else { 0 };
        let items = self.rows.count * (heads + 2 * kv_heads - untouched);
        let grid = [blocks(items, self.groups(), i32::MAX as u64), 1, 1];
        let name = kernel!(self.operands, "rotary");
        Ok(vec![launch(name, grid, THREADS as u32, 0, arguments)?])
    }

    fn rotary_backward(&self, d_qkv: Region, given: HeadNormsBackward) -> Result<Vec<Launch>> {
        let kv_heads = self.heads.kv_heads;
        let out_width = self.heads.kv_width();
        // Of every part q's sums and then k's.
        let stride = 2 * out_width;
        let parts = self.operands.parts(self.rows.count, stride);
        let mut arguments = vec![self.qkv(d_qkv)?, self.qkv(given.qkv)?];
        arguments.extend(self.table()?);
        arguments.extend(self.scales(given.norms)?);
        arguments.push(Argument::Own(Buffer::Scratch, 0));
        arguments.extend(self.shape()?);
        arguments.push(norm_arguments(given.norms.norm)[1]);
        let mut all = vec![launch(
            kernel!(self.operands, "rotary_backward"),
            [parts, kv_heads, 1],
            THREADS as u32,
            self.sums_bytes(),
            arguments,
        )?];
        for (first, out) in [(0, given.d_q_scale), (out_width, given.d_k_scale)] {
            let of = (first, out_width);
            let sum = self
                .operands
                .combine((parts, stride), of, out, given.accumulate)?;
            all.push(sum);
        }
        Ok(all)
    }

    /// Heads that a block has at once where rows are read in pieces of 16 bytes.
    fn groups(&self) -> u64 {
        THREADS / lanes(self.heads.head_dim / 2, self.operands.wide())
    }

    /// Shared memory for the scales' gradients: of every head that a block has at once q's and
    /// k's, and a little to set them apart; by pieces or by elements, whichever needs more.
    fn sums_bytes(&self) -> u64 {
        let of = |piece| {
            let lanes = lanes(self.heads.head_dim / 2, piece);
            THREADS / lanes * (2 * self.heads.head_dim + lanes) * 4
        };
        of(1).max(of(self.operands.wide()))
    }
}

/// Lanes that a head has: a power of two, up to a warp.
fn lanes(half: u64, piece: u64) -> u64 {
    half.div_ceil(piece).clamp(1, 32).next_power_of_two()
}

// ---- attention ----------------------------------------------------------------------------------

/// The kernels for heads up to some size.
struct Kernels {
    forward: Tiled,
    keys: Tiled,
    queries: Tiled,
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
/// long, and tiles of scores.
fn on_cores(names: [&'static str; 3], head_dim: u64, own: u64) -> Kernels {
    const OTHER: u64 = 32;
    let row = head_dim + 4;
    let tiled = |name, rows, elements: u64| Tiled {
        name,
        threads: THREADS as u32,
        rows,
        shared_bytes: 4 * elements,
    };
    let four = 2 * (own + OTHER) * row;
    Kernels {
        forward: tiled(names[0], 64, 2 * 64 * row + 64 * (64 + 4)),
        keys: tiled(names[1], own, four + 2 * OTHER * (own + 4)),
        queries: tiled(names[2], own, four + own * (OTHER + 4)),
    }
}

/// Of bf16: rows of bf16, 8 elements further apart; scores are in registers.
fn on_matrix_units(names: [&'static str; 3], head_dim: u64) -> Kernels {
    let tiled = |name, rows: u64| Tiled {
        name,
        threads: 128,
        rows: 64,
        shared_bytes: 2 * rows * (head_dim + 8),
    };
    Kernels {
        forward: tiled(names[0], 3 * 64),
        keys: tiled(names[1], 2 * (64 + 32)),
        queries: tiled(names[2], 2 * (64 + 32)),
    }
}

struct Attention {
    shape: AttentionShape,
    kernels: Kernels,
    rows: u64,
}

impl Attention {
    fn new(operands: &Operands, shape: AttentionShape) -> Result<Attention> {
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
        let f32 = operands.reservation.dtype == Dtype::F32;
        let kernels = match head_dim {
            0..=64 if f32 => on_cores(names!(64), 64, 64),
            65..=128 if f32 => on_cores(names!(128), 128, 64),
            0..=64 => on_matrix_units(names!(64), 64),
            65..=128 => on_matrix_units(names!(128), 128),
            129..=256 => on_cores(names!(256), 256, 32),
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

fn attention_backward(operands: &Operands, operator: &Operator) -> Result<Vec<Launch>> {
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
    let of = Attention::new(operands, shape)?;
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
        let warps = [blocks(of.rows * queries, THREADS / 32, u64::MAX), 1, 1];
        let name = kernel!(operands, "attention_delta");
        all.push(launch(name, warps, THREADS as u32, 0, arguments)?);
        let mut arguments = vec![qkv, lse, d_o, delta, d_qkv];
        arguments.extend(of.arguments()?);
        arguments.extend([number(first)?, number(count)?]);
        all.push(of.launch(&of.kernels.keys, count, arguments.clone())?);
        all.push(of.launch(&of.kernels.queries, queries, arguments)?);
        first += count;
    }
    Ok(all)
}
