//! What one buffer holds, row by row.

use super::order::{Clock, Moment};
use crate::units::Span;

/// Since when a cell has content.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Written {
    Never,
    /// Before the first step.
    Before,
    At(Moment),
}

/// What is known of a cell's content. Copies carry it along.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Content {
    /// The operator that wrote it from nothing, counted from 1; 0 where contributions are all.
    pub(super) base: u32,
    /// Sum of a hash of every contribution: equal if and only if the contributions are (almost).
    pub(super) sum: u64,
    /// Whether a recomputation had a part in it.
    pub(super) remade: bool,
    /// The micro-batch it was written for.
    pub(super) micro_batch: Option<u32>,
    /// The step in which it was written from nothing; 0 for before both.
    pub(super) step: u8,
    /// The last optimizer update in it.
    pub(super) updated: Option<Moment>,
    /// The last contribution to it.
    pub(super) contributed: Option<Moment>,
    /// The last read by anything that does not contribute.
    pub(super) consumed: Option<Moment>,
}

/// Rows with one history.
#[derive(Clone, Copy, Debug)]
pub(super) struct Cell {
    pub(super) start: u64,
    pub(super) end: u64,
    pub(super) written: Written,
    /// For every stream how far it had come when it last read the present content.
    pub(super) reads: Clock,
    pub(super) content: Content,
}

impl Cell {
    pub(super) fn new(start: u64, end: u64, written: Written) -> Self {
        Self {
            start,
            end,
            written,
            reads: [0; 4],
            content: Content::default(),
        }
    }
}

/// The cells of one buffer, sorted and disjoint.
#[derive(Clone, Debug, Default)]
pub(super) struct Cells {
    cells: Vec<Cell>,
}

impl Cells {
    /// Cells with content from before the first step.
    pub(super) fn filled(ranges: impl Iterator<Item = Span>) -> Self {
        let cells = ranges.filter(|range| !range.is_empty());
        Self {
            cells: cells
                .map(|r| Cell::new(r.start, r.end, Written::Before))
                .collect(),
        }
    }
    pub(super) fn all(&self) -> &[Cell] {
        &self.cells
    }
    /// The cells that make up exactly `range`, cut and added as needed.
    pub(super) fn of(&mut self, range: Span) -> &mut [Cell] {
        if range.is_empty() {
            return &mut [];
        }
        let cells = &mut self.cells;
        let first = cells.partition_point(|cell| cell.end <= range.start);
        let mut next = first;
        let mut at = range.start;
        while at < range.end {
            match cells.get_mut(next) {
                Some(cell) if cell.start < at => {
                    let left = Cell { end: at, ..*cell };
                    cell.start = at;
                    cells.insert(next, left);
                    return self.of(range);
                }
                Some(cell) if cell.start == at => {
                    if cell.end > range.end {
                        let left = Cell {
                            end: range.end,
                            ..*cell
                        };
                        cell.start = range.end;
                        cells.insert(next, left);
                        at = range.end;
                    } else {
                        at = cell.end;
                    }
                }
                gap => {
                    let end = gap.map_or(range.end, |cell| cell.start.min(range.end));
                    // Most buffers are one cell for all their life.
                    if cells.is_empty() {
                        cells.reserve_exact(1);
                    }
                    cells.insert(next, Cell::new(at, end, Written::Never));
                    at = end;
                }
            }
            next += 1;
        }
        &mut self.cells[first..next]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cells_are_cut_and_added_to_cover_exactly_the_range() {
        let mut cells = Cells::filled([Span::new(10, 20)].into_iter());
        let spans = |cells: &[Cell]| cells.iter().map(|c| (c.start, c.end)).collect::<Vec<_>>();
        assert_eq!(spans(cells.of(Span::new(12, 14))), [(12, 14)]);
        assert_eq!(spans(cells.all()), [(10, 12), (12, 14), (14, 20)]);
        assert_eq!(
            spans(cells.of(Span::new(5, 25))),
            [(5, 10), (10, 12), (12, 14), (14, 20), (20, 25)]
        );
        assert_eq!(cells.all()[0].written, Written::Never);
        assert_eq!(cells.all()[1].written, Written::Before);
        assert!(cells.of(Span::new(7, 7)).is_empty());
    }
}
