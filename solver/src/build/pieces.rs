//! How tensors are cut into buffers, and sets of rows.

use crate::ids::TensorId;
use crate::plan::Fate;
use crate::problem::{Problem, Split};
use crate::units::{Bytes, Span};

/// The least bytes of a swapped or packed piece: below this a copy's latency shows.
const SWAP_CHUNK: Bytes = Bytes::mib(64);

/// How a piece is stored between forward and backward.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stored {
    Kept,
    Packed,
    Swapped,
}

/// The buffers that a tensor's stored pieces live in: rows, groups, and how.
pub(super) fn pieces_of(
    problem: &Problem,
    tensor: TensorId,
    fate: Fate,
    pieces: u32,
) -> Vec<(Span, Span, Stored)> {
    let split = problem.values[problem.tensors[tensor].value].split;
    let mut parts = Vec::new();
    let mut first = 0;
    let mut cut = |count: u32, chunk: u32, stored: Stored| {
        let last = first + count;
        while first < last {
            let end = (first + chunk).min(last);
            let (rows, groups) = problem.pieces_extent(tensor, first, end);
            parts.push((rows, groups, stored));
            first = end;
        }
    };
    let (kept_chunk, swap_chunk) = match split {
        Split::Whole | Split::Groups => (1, 1),
        Split::Rows => {
            let piece = problem.pieces_bytes(tensor, 0, 1).get().max(1);
            (
                pieces,
                u32::try_from(SWAP_CHUNK.get().div_ceil(piece)).unwrap_or(pieces),
            )
        }
    };
    cut(fate.keep, kept_chunk, Stored::Kept);
    cut(fate.pack, swap_chunk, Stored::Packed);
    cut(fate.swap, swap_chunk, Stored::Swapped);
    parts
}

/// All head groups.
pub(super) fn all_groups(problem: &Problem) -> Span {
    Span::new(0, u64::from(problem.groups))
}

/// What two spans share.
pub(super) fn intersect(a: Span, b: Span) -> Option<Span> {
    let both = Span::new(a.start.max(b.start), a.end.min(b.end));
    (!both.is_empty()).then_some(both)
}

/// Whether sorted, disjoint, merged spans cover all of `span`.
pub(super) fn covers(spans: &[Span], span: Span) -> bool {
    spans.iter().any(|s| s.contains(span))
}

/// The parts of `span` outside sorted, disjoint spans.
pub(super) fn gaps(spans: &[Span], span: Span) -> Vec<Span> {
    let mut start = span.start;
    let mut gaps = Vec::new();
    for covered in spans.iter().filter(|s| s.overlaps(span)) {
        gaps.push(Span::new(start, covered.start.max(start)));
        start = covered.end;
    }
    gaps.push(Span::new(start.min(span.end), span.end));
    gaps.retain(|gap| !gap.is_empty());
    gaps
}

/// Adds `span` to sorted, disjoint spans and merges neighbours.
pub(super) fn cover(spans: &mut Vec<Span>, span: Span) {
    spans.push(span);
    spans.sort_unstable();
    let mut merged: Vec<Span> = Vec::with_capacity(spans.len());
    for s in spans.drain(..) {
        match merged.last_mut() {
            Some(last) if s.start <= last.end => last.end = last.end.max(s.end),
            _ => merged.push(s),
        }
    }
    *spans = merged;
}
