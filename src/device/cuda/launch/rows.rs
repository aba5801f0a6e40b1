//! Operators that treat every row alone: memory, embedding, norms, non-linearities, the loss.

use super::super::super::{Failure, NormShape, Operator, Region, Result, Rows};
use super::operand::{blocks, flag, kernel, launch, norm_arguments, number, threads, Operands};
use super::{Argument, Buffer, Launch, SCRATCH_BYTES};
use crate::model::{Activation, NormKind};
use crate::profile::Dtype;

/// Pieces of 16 bytes of a row that a thread of a norm has, and of a loss, so that what a block
/// does once is little beside what it does for each.
const OF_NORM: u64 = 4;
const OF_LOSS: u64 = 8;

/// Shared memory in which a loss keeps its row, at most, and what its sums have beside it.
const KEPT_BYTES: u64 = 160 << 10;
const SUMS_BYTES: u64 = 1 << 10;

pub fn launches(
    operands: &Operands,
    operator: &Operator,
    shared_bytes: u64,
) -> Result<Vec<Launch>> {
    match *operator {
        Operator::Zero { region } if region.bytes == 0 => Ok(Vec::new()),
        Operator::Zero { region } => {
            let at = operands.bytes(region)?;
            Ok(vec![operands.zero(at, region.bytes)?])
        }
        Operator::Embedding { .. } => embedding(operands, operator),
        Operator::EmbeddingBackward { .. } => embedding_backward(operands, operator),
        Operator::Norm {
            norm,
            rows,
            x,
            scale,
            shift,
            y,
        } => {
            check_norm(norm, shift)?;
            let mut arguments = vec![
                operands.elements(x, rows * norm.width)?,
                operands.elements(scale, norm.width)?,
                operands.optional(shift, norm.width)?,
                operands.elements(y, rows * norm.width)?,
                number(norm.width)?,
            ];
            arguments.extend(norm_arguments(norm));
            let threads = threads(norm.width.div_ceil(OF_NORM * operands.wide()), 256);
            let name = kernel!(operands, "norm");
            Ok(vec![launch(name, [rows, 1, 1], threads, 0, arguments)?])
        }
        Operator::NormBackward { .. } => norm_backward(operands, operator),
        Operator::LinearWeightGradient {
            rows,
            d_y,
            outputs,
            d_bias: Some(d_bias),
            accumulate,
            ..
        } => column_sums(operands, (rows, outputs), d_y, d_bias, accumulate),
        Operator::LinearWeightGradient { .. } => Ok(Vec::new()),
        Operator::Activation {
            kind,
            gated,
            rows,
            width,
            x,
            h,
        } => {
            let arguments = vec![
                operands.elements(x, rows * width * inputs(gated))?,
                operands.elements(h, rows * width)?,
                number(width)?,
                activation(kind),
                flag(gated),
            ];
            let name = kernel!(operands, "activation");
            Ok(vec![by_pieces(operands, name, (rows, width), arguments)?])
        }
        Operator::ActivationBackward {
            kind,
            gated,
            rows,
            width,
            x,
            d_h,
            d_x,
        } => {
            let arguments = vec![
                operands.elements(x, rows * width * inputs(gated))?,
                operands.elements(d_h, rows * width)?,
                operands.elements(d_x, rows * width * inputs(gated))?,
                Argument::Null,
                number(width)?,
                activation(kind),
                flag(gated),
            ];
            let name = kernel!(operands, "activation_backward");
            Ok(vec![by_pieces(operands, name, (rows, width), arguments)?])
        }
        Operator::CrossEntropy { .. } => cross_entropy(operands, operator, shared_bytes),
        ref other => Err(Failure::refused(format!("{} is not by rows", other.name()))),
    }
}

fn inputs(gated: bool) -> u64 {
    1 + u64::from(gated)
}

fn activation(kind: Activation) -> Argument {
    Argument::U32(match kind {
        Activation::Silu => 0,
        Activation::Gelu => 1,
        Activation::GeluTanh => 2,
    })
}

/// A thread for every 16 bytes of every row of the result.
fn by_pieces(
    operands: &Operands,
    name: &'static str,
    (rows, width): (u64, u64),
    arguments: Vec<Argument>,
) -> Result<Launch> {
    let pieces = width.div_ceil(operands.wide());
    let threads = threads(pieces, 256);
    let across = blocks(pieces, threads.into(), 65_535);
    launch(name, [rows, across, 1], threads, 0, arguments)
}

// ---- embedding ----------------------------------------------------------------------------------

/// `c` as the elements' type has it; 1 where there is none.
fn rounded(scale: Option<f64>, dtype: Dtype) -> Argument {
    let scale = scale.map_or(1.0, |scale| scale as f32);
    Argument::F32(match dtype {
        Dtype::F32 => scale,
        _ => half::bf16::from_f32(scale).to_f32(),
    })
}

/// A table of positions, which has to have those of the rows.
fn positions(
    operands: &Operands,
    table: Option<Region>,
    rows: Rows,
    width: u64,
) -> Result<Argument> {
    let Some(table) = table else {
        return Ok(Argument::Null);
    };
    let has = table.bytes / (width * operands.size()).max(1);
    let end = (rows.first % rows.sequence + rows.count).min(rows.sequence);
    if has < end {
        let last = end - 1;
        let what = format!("vector {last} of a table of {has}");
        return Err(Failure::refused(what));
    }
    operands.elements(table, has * width)
}

fn check_sequence(rows: Rows) -> Result<()> {
    match rows.sequence {
        0 => Err(Failure::refused("sequences of no tokens")),
        _ => Ok(()),
    }
}

fn embedding(operands: &Operands, operator: &Operator) -> Result<Vec<Launch>> {
    let Operator::Embedding {
        rows,
        micro_batch,
        weight,
        vocab,
        positions: table,
        width,
        scale,
        x,
    } = *operator
    else {
        return Ok(Vec::new());
    };
    check_sequence(rows)?;
    operands.check_tokens(operands.batch(micro_batch, rows)?, vocab)?;
    let arguments = vec![
        Argument::Own(Buffer::Tokens(micro_batch), 4 * rows.first),
        operands.elements(weight, vocab * width)?,
        positions(operands, table, rows, width)?,
        operands.elements(x, rows.count * width)?,
        rounded(scale, operands.reservation.dtype),
        number(width)?,
        number(rows.first)?,
        number(rows.sequence)?,
    ];
    let threads = threads(width.div_ceil(operands.wide()), 256);
    let name = kernel!(operands, "embedding");
    let grid = [rows.count, 1, 1];
    Ok(vec![launch(name, grid, threads, 0, arguments)?])
}

fn embedding_backward(operands: &Operands, operator: &Operator) -> Result<Vec<Launch>> {
    let Operator::EmbeddingBackward {
        rows,
        micro_batch,
        d_x,
        width,
        scale,
        d_weight,
        vocab,
        d_positions,
    } = *operator
    else {
        return Ok(Vec::new());
    };
    check_sequence(rows)?;
    let facts = operands.batch(micro_batch, rows)?;
    operands.check_tokens(facts, vocab)?;
    let across = blocks(width.div_ceil(operands.wide()), 128, 65_535);
    let own = |buffer| Argument::Own(buffer, 0);
    let d_x = operands.elements(d_x, rows.count * width)?;
    let mut all = vec![launch(
        kernel!(operands, "embedding_gradient"),
        [rows.count, across, 1],
        128,
        0,
        vec![
            own(Buffer::Tokens(micro_batch)),
            own(Buffer::Order(micro_batch)),
            own(Buffer::Place(micro_batch)),
            d_x,
            operands.elements(d_weight, vocab * width)?,
            rounded(scale, operands.reservation.dtype),
            number(facts.rows)?,
            number(rows.first)?,
            number(rows.count)?,
            number(width)?,
        ],
    )?];
    if d_positions.is_some() {
        all.push(launch(
            kernel!(operands, "position_gradient"),
            [rows.count.min(rows.sequence), across, 1],
            128,
            0,
            vec![
                d_x,
                positions(operands, d_positions, rows, width)?,
                number(rows.first)?,
                number(rows.count)?,
                number(rows.sequence)?,
                number(width)?,
            ],
        )?);
    }
    Ok(all)
}

// ---- norms and sums over rows -------------------------------------------------------------------

fn check_norm(norm: NormShape, shift: Option<Region>) -> Result<()> {
    if shift.is_some() == (norm.kind == NormKind::Layer) {
        return Ok(());
    }
    Err(Failure::refused(
        "a norm with a shift that is no layer norm, or one without",
    ))
}

fn norm_backward(operands: &Operands, operator: &Operator) -> Result<Vec<Launch>> {
    let Operator::NormBackward {
        norm,
        rows,
        x,
        scale,
        d_y,
        d_x,
        accumulate_x,
        d_scale,
        d_shift,
        accumulate_weight,
    } = *operator
    else {
        return Ok(Vec::new());
    };
    check_norm(norm, d_shift)?;
    let columns = norm.width * (1 + u64::from(d_shift.is_some()));
    let parts = operands.parts(rows, columns);
    let mut arguments = vec![
        operands.elements(x, rows * norm.width)?,
        operands.elements(scale, norm.width)?,
        operands.elements(d_y, rows * norm.width)?,
        operands.elements(d_x, rows * norm.width)?,
        Argument::Own(Buffer::Scratch, 0),
        number(rows)?,
        number(norm.width)?,
    ];
    arguments.extend(norm_arguments(norm));
    arguments.push(flag(accumulate_x));
    let threads = threads(norm.width.div_ceil(operands.wide()), 256);
    let name = kernel!(operands, "norm_backward");
    let mut all = vec![launch(
        name,
        [parts, 1, 1],
        threads,
        4 * columns,
        arguments,
    )?];
    let outs = [Some(d_scale), d_shift].into_iter().flatten();
    for (first, out) in outs.enumerate() {
        let first = first as u64 * norm.width;
        let of = (first, norm.width);
        all.push(operands.combine((parts, columns), of, out, accumulate_weight)?);
    }
    Ok(all)
}

fn column_sums(
    operands: &Operands,
    (rows, columns): (u64, u64),
    d_y: Region,
    out: Region,
    add: bool,
) -> Result<Vec<Launch>> {
    let parts = operands.parts(rows.div_ceil(32), columns);
    let across = blocks(columns.div_ceil(operands.wide()), 128, 65_535);
    let sums = launch(
        kernel!(operands, "column_sums"),
        [across, parts, 1],
        128,
        0,
        vec![
            operands.elements(d_y, rows * columns)?,
            Argument::Own(Buffer::Scratch, 0),
            number(rows)?,
            number(columns)?,
        ],
    )?;
    let combine = operands.combine((parts, columns), (0, columns), out, add)?;
    Ok(vec![sums, combine])
}

// ---- the loss -----------------------------------------------------------------------------------

fn cross_entropy(
    operands: &Operands,
    operator: &Operator,
    shared_bytes: u64,
) -> Result<Vec<Launch>> {
    let Operator::CrossEntropy {
        rows,
        micro_batch,
        vocab,
        logits,
        slot,
    } = *operator
    else {
        return Ok(Vec::new());
    };
    operands.check_labels(operands.batch(micro_batch, rows)?, vocab)?;
    let slots = operands.reservation.loss_slots;
    if slot >= slots {
        let what = format!("loss slot {slot} of {slots} that were reserved");
        return Err(Failure::refused(what));
    }
    if rows.count > SCRATCH_BYTES / 8 {
        let what = format!("the loss of {} rows at once", rows.count);
        return Err(Failure::refused(what));
    }
    let most = KEPT_BYTES.min(shared_bytes.saturating_sub(SUMS_BYTES)) / 16 * operands.wide();
    let kept = vocab.min(most);
    let gradient = launch(
        kernel!(operands, "cross_entropy"),
        [rows.count, 1, 1],
        threads(vocab.div_ceil(OF_LOSS * operands.wide()), 1024),
        kept * operands.size(),
        vec![
            operands.elements(logits, rows.count * vocab)?,
            Argument::Own(Buffer::Labels(micro_batch), 4 * rows.first),
            Argument::Own(Buffer::Scratch, 0),
            Argument::Own(Buffer::Constants, 0),
            number(vocab)?,
            number(kept)?,
        ],
    )?;
    let losses = Argument::Own(Buffer::Scratch, 0);
    let slot = Argument::Own(Buffer::Losses, 8 * u64::from(slot));
    let sum = operands.sum_doubles(losses, rows.count, slot)?;
    Ok(vec![gradient, sum])
}
