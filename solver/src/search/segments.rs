//! Segments: which block inputs are retained where not even those all fit.
//!
//! The relaxation does not know that the inputs made again for one segment are alive together, nor
//! what stands beside them while a block is differentiated. So both are counted here: what stands
//! is read off an expansion of the program, and a segment is as long as memory allows beside it.
//! Memory frees up as backward goes, so segments grow with the distance from the turn. The
//! relaxation then decides everything else for that shape, what it keeps gives a better shape, and
//! so on until the built plan fits.

use std::ops::Range;

use super::outline::TensorOutline;
use super::relaxation::{relax, Margins, Relaxed};
use super::rounding::{place_states, stacked, Input, Shape};
use super::{better, Candidate, Context};
use crate::build::{expand, Infeasible};
use crate::ids::{Id, StepId, Table, TensorId};
use crate::plan::{Fate, Hold, Placement, Plan};
use crate::problem::{Category, Domain, Phase, Problem, Split};

/// Attention outputs on the way to another block's input stay in so many parts of the blocks, or in
/// fewer.
const AHEAD: u32 = 4;
/// How often a shape is made and built.
const ROUNDS: usize = 8;
/// Shapes are made for so many amounts of what is kept at the turn.
const AMOUNTS: u64 = 48;
/// The relaxation is solved for so many of them.
const SHAPES: usize = 2;
/// The part of the device that addresses may lose to fragmentation.
const FRAGMENTATION: u64 = 100;

/// Whether the relaxation makes block inputs again.
pub fn inputs_recomputed(context: &Context<'_>, relaxed: &Relaxed) -> bool {
    let classes = context.coarse.classes.iter().zip(&relaxed.fates);
    let again = classes.filter(|(class, _)| is_input(context.problem, class.members[0]));
    again
        .map(|(class, stored)| (1.0 - stored.retained()) * class.members.len() as f64)
        .sum::<f64>()
        > 1.5
}

fn is_input(problem: &Problem, tensor: TensorId) -> bool {
    problem.values[problem.tensors[tensor].value].split == Split::Whole
}

/// The best plan with segments that is found. Attention outputs that are made again stay for their
/// own block if that fits.
pub fn solve(context: &Context<'_>, relaxed: &Relaxed) -> Result<Candidate, Infeasible> {
    let blocks = context.problem.blocks();
    let far = |best: &Result<Candidate, Infeasible>| {
        let step = best.as_ref().map(Candidate::step);
        !context.expired() && step.map_or(true, |step| context.far(step, 1.0))
    };
    let mut best = with_hold(context, relaxed, Hold::OUTPUT);
    for part in (1..=AHEAD).rev() {
        if !far(&best) {
            return best;
        }
        let hold = Hold {
            ahead: blocks * part / AHEAD,
            ..Hold::OUTPUT
        };
        let found = with_hold(context, relaxed, hold);
        let fits = found.is_ok();
        best = better(best, found);
        if fits {
            return best;
        }
    }
    match best {
        Ok(best) => Ok(best),
        Err(miss) => better(Err(miss), with_hold(context, relaxed, Hold::NONE)),
    }
}

fn with_hold(
    context: &Context<'_>,
    relaxed: &Relaxed,
    hold: Hold,
) -> Result<Candidate, Infeasible> {
    let mut standing = Standing::of(context, relaxed, hold);
    let mut best: Result<Candidate, Infeasible> = Err(Infeasible::default());
    for round in 0..ROUNDS {
        let shapes = standing.shapes(context);
        let solved = shapes.into_iter().filter_map(|shape| {
            let margins = standing.margins(context, &shape);
            let relaxed = relax(context.problem, &context.coarse, &margins).ok()?;
            Some((relaxed, shape))
        });
        let solved: Vec<_> = solved.collect();
        let Some((relaxed, shape)) = solved.iter().min_by_key(|(r, _)| r.bound_ns) else {
            break;
        };
        if !context.can_win(relaxed.bound_ns) {
            break;
        }
        let found = context.candidate(stacked(context, relaxed, hold, shape));
        let settled = match &found {
            Ok(_) => true,
            Err(miss) => {
                standing.learn(context, miss, round);
                miss.needed.is_zero()
            }
        };
        best = better(best, found);
        if settled || context.expired() {
            break;
        }
    }
    best
}

/// What stands on the device in backward beside what is kept, when block inputs arrive from the
/// host, what the relaxation mostly retains too, and the rest is made again.
struct Standing {
    /// For every step, the most bytes.
    steps: Table<StepId, u64>,
    /// Bytes of model states that stay.
    resident: u64,
    /// Bytes of a block input.
    input: u64,
    /// The same where it is stored.
    stored: u64,
    /// In blocks below this one, attention outputs made for a later block's input stay.
    ahead: usize,
    /// Bytes of an attention output.
    output: u64,
    /// Bytes of a block that the relaxation retains beside its input.
    saved: u64,
    /// Bytes of activations that the host holds.
    host: u64,
    /// For every epoch, what built plans turned out to need besides.
    learned: Vec<u64>,
    /// Host bytes likewise.
    learned_host: u64,
}

impl Standing {
    fn of(context: &Context<'_>, relaxed: &Relaxed, hold: Hold) -> Self {
        let problem = context.problem;
        let mut plan = Plan::keep_all(problem);
        plan.hold = hold;
        place_states(context, relaxed, &mut plan.placements);
        let mut saved = 0.0;
        for (class, stored) in context.coarse.classes.iter().zip(&relaxed.fates) {
            let input = is_input(problem, class.members[0]);
            for &id in &class.members {
                plan.fates[id] = if input || stored.retained() > 0.5 {
                    Fate::swapped(problem.tensors[id].pieces)
                } else {
                    Fate::RECOMPUTED
                };
            }
            saved += if input {
                0.0
            } else {
                let spared = (class.bytes.saturating_sub(class.host_bytes)) as f64;
                stored.retained() * class.bytes as f64 - (stored.pack + stored.swap) * spared
            };
        }
        let largest = |which: &dyn Fn(TensorId) -> bool, size: fn(&TensorOutline) -> u64| {
            let tensors = context.outline.tensors.iter().filter(|(id, _)| which(*id));
            tensors.map(|(_, tensor)| size(tensor)).max().unwrap_or(0)
        };
        let of_group =
            |id: TensorId| problem.ops[problem.tensors[id].producer].domain == Domain::Group;
        let is_input = |id: TensorId| is_input(problem, id);
        let groups = context.outline.groups.iter().zip(&plan.placements);
        let resident = groups.filter(|(_, p)| **p != Placement::Streamed);
        let states = context.states_on_host(&plan);
        Self {
            steps: standing(problem, &plan),
            ahead: hold.ahead as usize,
            resident: resident.map(|(g, _)| g.weight_bytes + g.state_bytes).sum(),
            input: largest(&is_input, |tensor| tensor.bytes),
            stored: largest(&is_input, |tensor| tensor.host_bytes.min(tensor.bytes)),
            output: largest(&of_group, |tensor| tensor.bytes),
            saved: saved as u64 / u64::from(problem.blocks().max(1)),
            host: problem.budget.host.get().saturating_sub(states),
            learned: vec![problem.budget.device.get() / FRAGMENTATION; context.coarse.epochs.len()],
            learned_host: 0,
        }
    }

    /// The shapes that leave least to be made again of what the relaxation retains, best first.
    fn shapes(&self, context: &Context<'_>) -> Vec<Shape> {
        let free = self.free(context);
        let most = free.last().map_or(0, |&f| f + self.stored);
        let mut shapes: Vec<(u64, Shape)> = Vec::new();
        for nth in 0..=AMOUNTS {
            let kept = most / AMOUNTS * nth;
            let found = self
                .shape(&free, kept, 0)
                .and_then(|(missing, shape)| match missing {
                    0 => Some((missing, shape)),
                    _ => self.shape(&free, kept, missing),
                });
            shapes.extend(found);
        }
        // Of equals the one that retains more inputs: they need not be made again.
        shapes.sort_by_key(|(missing, shape)| {
            let remade = shape.inputs.iter().filter(|i| **i == Input::Remade);
            (*missing, remade.count())
        });
        let mut best: Vec<Shape> = Vec::new();
        for (_, shape) in shapes {
            if best.len() < SHAPES && !best.contains(&shape) {
                best.push(shape);
            }
        }
        best
    }

    /// For every block what backward leaves free there.
    fn free(&self, context: &Context<'_>) -> Vec<u64> {
        let problem = context.problem;
        let budget = problem.budget.device.get();
        let mut free = vec![budget; problem.blocks() as usize];
        for (epoch, learned) in context.coarse.epochs.iter().zip(&self.learned) {
            for step in epoch.steps.0.index()..=epoch.steps.1.index() {
                let id = StepId::from_index(step);
                let step = &problem.program[id];
                if let (Some(block), Phase::Backward) = (step.block, step.phase) {
                    let room = budget.saturating_sub(self.steps[id] + self.resident + learned);
                    let free = &mut free[block as usize];
                    *free = room.min(*free);
                }
            }
        }
        free
    }

    /// The longest segments that fit where `kept` bytes stay at the turn, those of the last blocks,
    /// and `again` bytes of attention output are made again; with it the bytes for which there is
    /// no place. Nothing where so much cannot stay.
    fn shape(&self, free: &[u64], kept: u64, mut again: u64) -> Option<(u64, Shape)> {
        let blocks = free.len();
        let mut shape = Shape {
            inputs: vec![Input::Remade; blocks],
            again: vec![0; blocks],
        };
        let mut left = kept;
        let mut end = blocks;
        let mut needed = self.saved * blocks as u64;
        while end > 0 {
            if end < blocks && left == 0 {
                shape.again[end - 1] = again.min(self.output);
                again -= shape.again[end - 1];
            }
            // Of what is kept, the part that is there in block `j`.
            let there = |j: usize| left.saturating_sub(self.saved * (end - 1 - j) as u64);
            let stays = |start: usize| there(start) >= self.saved + self.stored;
            let fits = |start: usize| {
                (start..end).all(|j| {
                    // Beside the block's own, the inputs of the segment before it.
                    let before = self.made(start..j);
                    let as_it_is = stays(start) && self.stored == self.input;
                    let own = if as_it_is { self.input } else { 0 };
                    there(j) + before + shape.again[j] <= free[j] + own
                })
            };
            let start = (0..end).rev().take_while(|&s| fits(s)).last()?;
            let consumed = self.saved * (end - start) as u64;
            (shape.inputs[start], left) = if stays(start) {
                (Input::Kept, left.saturating_sub(consumed + self.stored))
            } else {
                (Input::Swapped, left.saturating_sub(consumed))
            };
            needed += self.stored;
            end = start;
        }
        Some((needed.saturating_sub(kept - left + self.host), shape))
    }

    /// What stays of running these blocks again for the input of the block behind them.
    fn made(&self, blocks: Range<usize>) -> u64 {
        let held = blocks.end.min(self.ahead).saturating_sub(blocks.start);
        blocks.len() as u64 * self.input + held as u64 * self.output
    }

    /// What the relaxation must leave free, and which inputs are retained.
    fn margins(&self, context: &Context<'_>, shape: &Shape) -> Margins {
        let problem = context.problem;
        let input_of = |id: TensorId| {
            let block = problem.values[problem.tensors[id].value].block;
            block.map_or(Input::Remade, |b| shape.inputs[b as usize])
        };
        let retained = context.coarse.classes.iter().map(|class| {
            is_input(problem, class.members[0]).then(|| {
                let retained = class
                    .members
                    .iter()
                    .filter(|&&id| input_of(id) != Input::Remade);
                retained.count() as f64 / class.members.len() as f64
            })
        });
        // While backward is in a block, the inputs of its segment before it are there. One that is
        // kept is counted by the relaxation.
        let together = |block: u32| {
            let inside = shape.inputs[..=block as usize].iter().rev();
            let remade = inside.take_while(|&&input| input == Input::Remade).count();
            let start = block as usize - remade.min(block as usize);
            let kept = u64::from(shape.inputs[start] == Input::Kept);
            (
                self.made(start..block as usize) + shape.again[block as usize],
                kept * self.stored,
            )
        };
        let device = context.coarse.epochs.iter().zip(&self.learned);
        let device = device.map(|(epoch, learned)| {
            let known = epoch.moments.iter().map(|m| m.fixed).max().unwrap_or(0);
            let steps = (epoch.steps.0.index()..=epoch.steps.1.index()).map(StepId::from_index);
            let needed = steps.filter(|&s| problem.program[s].phase == Phase::Backward);
            let needed = needed.map(|s| {
                let (there, kept) = problem.program[s].block.map_or((0, 0), together);
                (self.steps[s] + there).saturating_sub(kept)
            });
            learned + needed.max().map_or(0, |n| n.saturating_sub(known))
        });
        Margins {
            device: device.collect(),
            host: self.learned_host,
            retained: retained.collect(),
            ..Margins::default()
        }
    }

    /// Takes note of what a built plan missed.
    fn learn(&mut self, context: &Context<'_>, miss: &Infeasible, round: usize) {
        let excess = miss.needed.saturating_sub(miss.limit).get();
        // Less than a piece would lead to the same plan.
        let least = (context.problem.budget.device.get() / (4 * FRAGMENTATION)) << round;
        if miss.step.is_none() {
            self.learned_host += excess + 1;
            self.host = self.host.saturating_sub(excess + 1);
        } else if miss.missing.is_empty() {
            let lost = excess.max(least);
            self.learned.iter_mut().for_each(|l| *l += lost);
        }
        for (epoch, learned) in context.coarse.epochs.iter().zip(&mut self.learned) {
            let short = miss.missing.iter();
            let short = short.filter(|(s, _)| epoch.steps.0 <= *s && *s <= epoch.steps.1);
            let short = short.map(|(_, bytes)| bytes.get().max(least)).max();
            *learned += short.unwrap_or(0);
        }
    }
}

/// The most bytes that stand in every step of backward: activations, transients and scratch, and
/// the weights and gradients at work.
fn standing(problem: &Problem, plan: &Plan) -> Table<StepId, u64> {
    let single = Problem {
        micro_batches: 1,
        passes: 1,
        ..problem.clone()
    };
    let draft = expand(&single, plan);
    let mut change = vec![0i128; draft.instructions.len() + 1];
    for buffer in draft.buffers.iter().filter(|b| b.first != usize::MAX) {
        if buffer.persistent {
            continue;
        }
        let last = match buffer.category {
            Category::Gradients => buffer.last_write,
            _ => buffer.last,
        };
        change[buffer.first] += i128::from(buffer.bytes.get());
        change[last + 1] -= i128::from(buffer.bytes.get());
    }
    let mut most: Table<StepId, u64> = problem.program.values().map(|_| 0).collect();
    let mut live = 0;
    for (instruction, change) in draft.instructions.iter().zip(change) {
        live += change;
        let operands = draft.operands(instruction).iter();
        let buffers = operands.map(|&(b, _)| &draft.buffers[b]);
        let weights = buffers.filter(|b| b.persistent && b.category == Category::Weights);
        let weights: u64 = weights.map(|b| b.bytes.get()).sum();
        let most = &mut most[instruction.step];
        *most = (*most).max(u64::try_from(live).unwrap_or(0) + weights);
    }
    most
}
