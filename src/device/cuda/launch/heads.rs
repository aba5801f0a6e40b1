//! What follows the projection to q, k and v, and its backward.

use super::super::super::{
    Failure, HeadNorms, HeadNormsBackward, HeadShape, NormShape, Operator, Region, Result, Rows,
};
use super::operand::{blocks, kernel, launch, norm_arguments, number, threads, Operands};
use super::{Argument, Buffer, Launch};
use crate::model::NormKind;

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
        ref other => Err(Failure::refused(format!("{} turns no heads", other.name()))),
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

    /// Sizes as parameters, those of the rows and those of the heads.
    fn shape(&self) -> Result<([Argument; 3], [Argument; 3])> {
        if self.heads.head_dim % 2 != 0 {
            let what = format!("rotation or norms of heads of {}", self.heads.head_dim);
            return Err(Failure::refused(what));
        }
        let rows = [self.rows.first, self.rows.count, self.rows.sequence].map(number);
        let [first, count, sequence] = rows;
        Ok((
            [first?, count?, sequence?],
            [
                number(self.heads.heads)?,
                number(self.heads.kv_heads)?,
                number(self.heads.head_dim)?,
            ],
        ))
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
        let ([first, _, sequence], heads) = self.shape()?;
        arguments.extend([first, sequence]);
        arguments.extend(heads);
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
        // Two heads of a row for each group of lanes.
        let lanes = lanes(self.heads.head_dim / 2, self.operands.wide());
        let threads = threads(
            (heads + 2 * kv_heads - untouched) * lanes / 2,
            THREADS as u32,
        );
        let grid = [self.rows.count, 1, 1];
        let name = kernel!(self.operands, "rotary");
        Ok(vec![launch(name, grid, threads, 0, arguments)?])
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
        let (rows, heads) = self.shape()?;
        arguments.extend(rows);
        arguments.extend(heads);
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

    /// Shared memory for the scales' gradients: of every head that a block has at once q's and
    /// k's, and a little to set them apart; by pieces or by elements, whichever needs more.
    fn sums_bytes(&self) -> u64 {
        let of = |piece| {
            let lanes = lanes(self.heads.head_dim / 2, piece);
            THREADS / lanes * (2 * self.heads.head_dim + piece.min(4) * lanes) * 4
        };
        of(1).max(of(self.operands.wide()))
    }
}

/// Lanes that a head has: a power of two, up to a warp.
fn lanes(half: u64, piece: u64) -> u64 {
    half.div_ceil(piece).clamp(1, 32).next_power_of_two()
}
