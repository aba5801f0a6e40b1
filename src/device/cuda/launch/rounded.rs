//! What rounds the operands of linear layers, and what makes elements of sums over codes.

use super::super::super::operator::Panel;
use super::super::super::{Region, Result};
use super::operand::{blocks, kernel, launch, number, threads, Operands};
use super::packed::format;
use super::{Argument, Buffer, Launch};
use crate::device::packed::Storage;

/// Pieces of 16 bytes of a row that a thread rounds, so that what a block does once is little
/// beside what it does for each.
const OF_THREAD: u64 = 4;
/// Rows of a weight whose columns one block goes through, and the most such runs of a weight, whose
/// blocks have one each at least.
const RUN: u64 = 64;
const MOST_RUNS: u64 = 128;
/// Rows and columns of a tile that is turned.
const TILE: u64 = 64;

/// Codes `[rows, padded]` and f32 scales `[rows]` in the arena.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Codes {
    /// The codes.
    pub codes: Region,
    /// The scales.
    pub scales: Region,
    /// Bytes from one row to the next.
    pub padded: u64,
}

impl Codes {
    /// Those of `rows` rows from row `first` on.
    pub fn part(self, first: u64, rows: u64) -> Codes {
        Codes {
            codes: self.codes.part(first * self.padded, rows * self.padded),
            scales: self.scales.part(4 * first, 4 * rows),
            padded: self.padded,
        }
    }
    fn rows(self) -> u64 {
        self.scales.bytes / 4
    }
}

/// Launches by operands' type and the format that is rounded to.
#[derive(Clone, Copy)]
pub struct Rounding<'a> {
    /// Memory and the type of elements.
    pub operands: &'a Operands<'a>,
    /// What is rounded to.
    pub storage: Storage,
}

impl Rounding<'_> {
    fn panel(&self, panel: &Panel) -> Result<Argument> {
        self.operands.elements(panel.region, panel.span())
    }

    fn threads(&self, columns: u64) -> u32 {
        threads(columns.div_ceil(OF_THREAD * self.operands.wide()), 256)
    }

    /// Rows of codes from rows of elements; what has no rows of elements is zeros.
    pub fn rows(&self, panel: &Panel, to: Codes) -> Result<Launch> {
        let arguments = vec![
            self.panel(panel)?,
            self.operands.bytes(to.codes)?,
            self.operands.floats(to.scales, to.rows())?,
            number(panel.rows)?,
            number(panel.columns)?,
            Argument::U64(panel.stride),
            number(to.padded)?,
            format(self.storage),
        ];
        let name = kernel!(self.operands, "round_rows");
        let grid = [to.rows(), 1, 1];
        launch(name, grid, self.threads(panel.columns), 0, arguments)
    }

    /// Dense rows of what a weight's codes stand for.
    pub fn weight(&self, panel: &Panel, to: Region) -> Result<Launch> {
        let arguments = vec![
            self.panel(panel)?,
            self.operands.elements(to, panel.rows * panel.columns)?,
            number(panel.columns)?,
            Argument::U64(panel.stride),
            format(self.storage),
        ];
        let name = kernel!(self.operands, "round_weight");
        let grid = [panel.rows, 1, 1];
        launch(name, grid, self.threads(panel.columns), 0, arguments)
    }

    /// Rows of codes from the columns of a weight's blocks, which lie one below the other.
    pub fn columns(&self, panels: &[Panel], to: Codes) -> Result<Vec<Launch>> {
        let columns = panels.first().map_or(0, |panel| panel.columns);
        let most = (MOST_RUNS / panels.len().max(1) as u64).max(1);
        let runs = |panel: &Panel| panel.rows.div_ceil(RUN).min(most);
        let mut launches = Vec::new();
        let mut parts = 0;
        for panel in panels {
            let arguments = vec![
                self.panel(panel)?,
                Argument::Own(Buffer::Scratch, 4 * parts * columns),
                number(panel.rows)?,
                number(columns)?,
                Argument::U64(panel.stride),
            ];
            let name = kernel!(self.operands, "column_most");
            let across = blocks(columns.div_ceil(self.operands.wide()), 128, 65_535);
            let grid = [across, runs(panel), 1];
            launches.push(launch(name, grid, 128, 0, arguments)?);
            parts += runs(panel);
        }
        let scales = self.operands.floats(to.scales, to.rows())?;
        let arguments = vec![
            Argument::Own(Buffer::Scratch, 0),
            scales,
            number(parts)?,
            number(columns)?,
            number(to.rows())?,
            format(self.storage),
        ];
        let name = kernel!(self.operands, "column_scales");
        launches.push(launch(
            name,
            [to.rows().div_ceil(256), 1, 1],
            256,
            0,
            arguments,
        )?);
        let mut first = 0;
        for (at, panel) in panels.iter().enumerate() {
            let end = match at + 1 == panels.len() {
                true => to.padded - first,
                false => panel.rows,
            };
            // From the panel's first column of codes on.
            let codes = to.codes.part(first, to.codes.bytes - first);
            let arguments = vec![
                self.panel(panel)?,
                scales,
                self.operands.bytes(codes)?,
                number(panel.rows)?,
                number(end)?,
                number(columns)?,
                number(to.rows())?,
                Argument::U64(panel.stride),
                number(to.padded)?,
                format(self.storage),
            ];
            let name = kernel!(self.operands, "round_columns");
            let grid = [to.rows().div_ceil(TILE), end.div_ceil(TILE), 1];
            launches.push(launch(name, grid, 256, 0, arguments)?);
            first += panel.rows;
        }
        Ok(launches)
    }

    /// Elements of sums in scratch memory, from the `first` of its rows of `stride` sums on.
    pub fn scaled(&self, sums: &Sums) -> Result<Launch> {
        let Sums {
            first,
            stride,
            rows,
            columns,
            out,
            out_stride,
            ..
        } = *sums;
        let span = |region: Option<Region>| {
            let elements = rows.saturating_sub(1) * out_stride + columns;
            self.operands.optional(region, elements)
        };
        let arguments = vec![
            Argument::Own(Buffer::Scratch, 4 * first),
            self.operands.floats(sums.of_columns, columns)?,
            self.operands.floats(sums.of_rows, rows)?,
            self.operands.optional(sums.bias, columns)?,
            span(sums.added)?,
            span(Some(out))?,
            number(columns)?,
            number(stride)?,
            Argument::U64(out_stride),
            format(self.storage),
        ];
        let threads = threads(columns.div_ceil(4), 256);
        let across = blocks(columns.div_ceil(4), threads.into(), 65_535);
        let name = kernel!(self.operands, "scale_sums");
        launch(name, [rows, across, 1], threads, 0, arguments)
    }
}

/// Sums over codes and what elements are made of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sums {
    /// The first sum in scratch memory.
    pub first: u64,
    /// Sums from one row to the next.
    pub stride: u64,
    /// Rows.
    pub rows: u64,
    /// Columns.
    pub columns: u64,
    /// f32 `[rows]`.
    pub of_rows: Region,
    /// f32 `[columns]`.
    pub of_columns: Region,
    /// `[columns]`.
    pub bias: Option<Region>,
    /// Lies as `out` does, or is `out`.
    pub added: Option<Region>,
    /// Elements, from the first to the last.
    pub out: Region,
    /// Elements from one row of `out` to the next.
    pub out_stride: u64,
}
