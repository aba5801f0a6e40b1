//! From fractions to whole pieces.
//!
//! In: what the [`Relaxed`] program wants of classes of tensors and of groups of model states. Out:
//! a [`Plan`]. Whole pieces are handed out along the blocks, the remainder carried from one to the
//! next, so that what is kept, swapped and made again interleaves and no kind is off by more than a
//! piece; what is swapped never exceeds the host.

use std::collections::BTreeMap;

use super::relaxation::{Fractions, Relaxed};
use super::Context;
use crate::ids::{Table, TensorId};
use crate::plan::{Fate, Hold, Placement, Plan};
use crate::problem::{Problem, Split};

/// Whole pieces for fractions, interleaved along the blocks.
pub fn interleaved(context: &Context<'_>, relaxed: &Relaxed, hold: Hold) -> Plan {
    let pieces = |kind: &[Wanted]| {
        // What is retained, of that what stays, and of that what stays as it is.
        let mut carried = [0.0; 3];
        let fate = kind.iter().map(|wanted| {
            let Fractions { keep, pack, .. } = wanted.stored;
            let parts = [wanted.stored.retained(), keep + pack, keep];
            let mut most = wanted.pieces;
            let [retained, stays, keep] = std::array::from_fn(|i| {
                carried[i] += parts[i] * f64::from(wanted.pieces);
                most = whole(carried[i]).min(most);
                carried[i] -= f64::from(most);
                most
            });
            Fate {
                keep,
                pack: stays - keep,
                swap: retained - stays,
            }
        });
        fate.collect()
    };
    rounded(context, relaxed, hold, pieces)
}

/// Where segments start and where there is room to make an attention output again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shape {
    /// For every block what becomes of its input.
    pub inputs: Vec<Input>,
    /// For every block the bytes of attention output that may be made again. Only blocks that end a
    /// segment are good for that: no later block input is made of theirs.
    pub again: Vec<u64>,
}

/// What becomes of a block input.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Input {
    /// It stays, packed where it can be: where memory is this short, half of it is worth more.
    Kept,
    /// It travels.
    Swapped,
    /// It is made again from the block before.
    Remade,
}

/// As much of every kind, but what is kept is of the last blocks, which need it first and are soon
/// through with it, what is kept packed of those before them, and what is made again is first of
/// blocks where `shape` has room for that. Of block inputs those of `shape` are retained.
pub fn stacked(context: &Context<'_>, relaxed: &Relaxed, hold: Hold, shape: &Shape) -> Plan {
    let pieces = |kind: &[Wanted]| {
        let sum = |part: fn(&Wanted) -> f64| -> u32 {
            whole(kind.iter().map(|w| part(w) * f64::from(w.pieces)).sum())
        };
        if kind[0].input {
            let fate = |w: &Wanted| match shape.inputs[w.block as usize] {
                Input::Kept if w.packs => Fate::packed(w.pieces),
                Input::Kept => Fate::kept(w.pieces),
                Input::Swapped => Fate::swapped(w.pieces),
                Input::Remade => Fate::RECOMPUTED,
            };
            return kind.iter().map(fate).collect();
        }
        let mut fates: Vec<Fate> = kind.iter().map(|w| Fate::swapped(w.pieces)).collect();
        let mut keep = sum(|w| w.stored.keep);
        let mut pack = sum(|w| w.stored.pack);
        let mut again = fates.iter().map(|f| f.swap).sum::<u32>();
        again = again.saturating_sub(sum(|w| w.stored.retained()));
        for fate in fates.iter_mut().rev() {
            fate.keep = keep.min(fate.swap);
            fate.pack = pack.min(fate.swap - fate.keep);
            fate.swap -= fate.keep + fate.pack;
            keep -= fate.keep;
            pack -= fate.pack;
        }
        let room = |w: &usize| shape.again[kind[*w].block as usize] > 0;
        let (ends, inside): (Vec<usize>, Vec<usize>) = (0..kind.len()).rev().partition(room);
        for w in ends.into_iter().chain(inside) {
            let dropped = again.min(fates[w].swap);
            fates[w].swap -= dropped;
            again -= dropped;
        }
        fates
    };
    rounded(context, relaxed, hold, pieces)
}

/// What the relaxation wants of a tensor.
struct Wanted {
    block: u32,
    /// Whether it is a block input.
    input: bool,
    pieces: u32,
    /// Whether it can stay packed.
    packs: bool,
    stored: Fractions,
}

/// A plan whose fates are chosen kind by kind: tensors of one name, in the order of blocks.
fn rounded(
    context: &Context<'_>,
    relaxed: &Relaxed,
    hold: Hold,
    choose: impl Fn(&[Wanted]) -> Vec<Fate>,
) -> Plan {
    let problem = context.problem;
    let mut plan = Plan::keep_all(problem);
    plan.hold = hold;
    place_states(context, relaxed, &mut plan.placements);
    let mut kinds: BTreeMap<&str, BTreeMap<TensorId, Wanted>> = BTreeMap::new();
    for (class, &stored) in context.coarse.classes.iter().zip(&relaxed.fates) {
        for &id in &class.members {
            let value = &problem.values[problem.tensors[id].value];
            let wanted = Wanted {
                block: value.block.unwrap_or(0),
                input: value.split == Split::Whole,
                pieces: problem.tensors[id].pieces,
                packs: class.packs,
                stored,
            };
            kinds.entry(&value.name).or_default().insert(id, wanted);
        }
    }
    for kind in kinds.into_values() {
        let (ids, kind): (Vec<_>, Vec<_>) = kind.into_iter().unzip();
        for (id, mut fate) in ids.into_iter().zip(choose(&kind)) {
            // Of a kind, what cannot stay packed stays as it is.
            if !problem.packs(id) {
                fate.keep += std::mem::take(&mut fate.pack);
            }
            plan.fates[id] = fate;
        }
    }
    let states = context.states_on_host(&plan);
    let room = problem.budget.host.get().saturating_sub(states);
    fit_host(problem, room, &mut plan.fates);
    plan
}

/// Groups that stay are handed out by bytes, the remainder carried from one to the next. The first
/// groups are wanted first and updated last: they stay.
pub fn place_states(context: &Context<'_>, relaxed: &Relaxed, placements: &mut [Placement]) {
    let (mut resident_bytes, mut host_bytes) = (0.0, 0.0);
    for (group, [resident, host, _]) in context.coarse.groups.iter().zip(&relaxed.placements) {
        for &member in &group.members {
            let bytes = context.outline.groups[member].weight_bytes as f64;
            resident_bytes += resident * bytes;
            host_bytes += host * bytes;
            placements[member] = if member < relaxed.first || resident_bytes >= 0.5 * bytes {
                resident_bytes -= bytes;
                Placement::Resident
            } else if host_bytes >= 0.5 * bytes {
                host_bytes -= bytes;
                Placement::HostOptimizer
            } else {
                Placement::Streamed
            };
        }
    }
}

/// Rounding can swap a little more than the host holds: the last pieces stay instead, small ones
/// first.
fn fit_host(problem: &Problem, room: u64, fates: &mut Table<TensorId, Fate>) {
    let repeats = u64::from(problem.rounds());
    let piece = |id: TensorId| problem.pieces_host_bytes(id, 0, 1).get() * repeats;
    let mut by_piece: Vec<TensorId> = problem
        .tensors
        .ids()
        .filter(|&id| fates[id].swap > 0)
        .collect();
    let mut swapped: u64 = by_piece
        .iter()
        .map(|&id| piece(id) * u64::from(fates[id].swap))
        .sum();
    by_piece.sort_by_key(|&id| (piece(id), std::cmp::Reverse(id)));
    for id in by_piece {
        while swapped > room && fates[id].swap > 0 {
            fates[id].swap -= 1;
            fates[id].keep += 1;
            swapped -= piece(id);
        }
    }
}

/// Rounded down, but for the solver's tolerance.
fn whole(fraction: f64) -> u32 {
    (fraction + 1e-6).floor().max(0.0) as u32
}
