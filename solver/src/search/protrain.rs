//! ProTrain (Yang et al. 2024, arXiv 2406.08334 v2): every block is swapped, checkpointed or left
//! alone; model states are chunks, the first few persistent, the others gathered from the host.
//!
//! Four numbers are searched: `n_persist`, `n_buffer`, `n_swap`, `n_checkpoint`. The layout of
//! blocks
//! follows: a swapped block opens an *interval* long enough to hide its copy, checkpointed blocks
//! fill
//! it, untouched blocks come last. The search minimises ProTrain's own estimate
//!
//! ```text
//! T      = T_fwd + max(T_bwd + T_gpu_optim, T_cpu_optim)
//! T_fwd  = Σ max(compute, prefetch)        T_bwd = Σ max(compute + recompute, communication)
//! M      = α·(persistent + n_buffer·chunk + activations)        α = 1.1
//! ```
//! under its own memory estimate; what it finds is then scheduled and simulated like any other
//! plan.
//! A chunk here is one block's states (the paper groups a block's parameters in one chunk too).
//! Block
//! inputs of checkpointed blocks are counted, which an independent port found missing.

use super::{Candidate, Context};
use crate::build::Infeasible;
use crate::plan::{Fate, Hold, Placement, Plan};
use crate::problem::{Phase, Problem, Split};

/// What becomes of a block's activations.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Sent to the host and back.
    Swap,
    /// Made again from the block's input.
    Checkpoint,
    /// Left alone.
    Untouched,
}

/// The interleaved layout: each swapped block followed by `interval − 1` checkpointed ones while
/// there are any, the remaining checkpointed blocks, then untouched ones.
pub fn interleave(blocks: usize, interval: usize, swap: usize, checkpoint: usize) -> Vec<Mode> {
    let mut modes = Vec::with_capacity(blocks);
    let mut left = checkpoint;
    for _ in 0..swap {
        modes.push(Mode::Swap);
        for _ in 1..interval {
            if left > 0 {
                modes.push(Mode::Checkpoint);
                left -= 1;
            }
        }
    }
    modes.extend(std::iter::repeat_n(Mode::Checkpoint, left));
    modes.resize(blocks.max(modes.len()), Mode::Untouched);
    modes.truncate(blocks);
    modes
}

/// One point of the search.
#[derive(Clone, Copy, Debug)]
struct Config {
    persist: usize,
    buffer: usize,
    swap: usize,
    checkpoint: usize,
    estimate_ns: u64,
}

/// What the estimator knows of a block.
struct Block {
    forward_ns: u64,
    backward_ns: u64,
    recompute_ns: u64,
    saved: u64,
    travelling: u64,
    input: u64,
    weights: u64,
    states: u64,
    update_ns: u64,
    host_ns: u64,
}

/// How many configurations are built until one fits.
const TRIES: usize = 12;

/// ProTrain's plan.
pub fn solve(context: &Context<'_>) -> Result<Candidate, Infeasible> {
    let blocks = blocks(context);
    let mut configs = configurations(context, &blocks);
    configs.sort_by_key(|c| c.estimate_ns);
    let mut miss = None;
    for config in configs.iter().take(TRIES) {
        let plan = plan(context, &blocks, config);
        match context.best_of([plan.clone()]) {
            Err(infeasible) if !context.fits(&plan) => miss = miss.or(Some(infeasible)),
            found => return found,
        }
    }
    // Its memory estimate was too kind: the leanest configurations it knows.
    let n = blocks.len();
    let leanest = [(0, 1, 0, n), (0, 1, n / interval(context, &blocks), n)].map(
        |(persist, buffer, swap, checkpoint)| Config {
            persist,
            buffer,
            swap,
            checkpoint: checkpoint - swap.min(checkpoint),
            estimate_ns: 0,
        },
    );
    let found = context.best_of(leanest.iter().map(|config| plan(context, &blocks, config)));
    found.map_err(|infeasible| miss.unwrap_or(infeasible))
}

fn blocks(context: &Context<'_>) -> Vec<Block> {
    let Context {
        problem, outline, ..
    } = context;
    (0..problem.blocks())
        .map(|block| {
            let time = |phase| {
                let of = problem.program.iter();
                of.filter(|(_, s)| s.block == Some(block) && s.phase == phase)
                    .map(|(id, _)| outline.steps[id].compute_ns)
                    .sum()
            };
            let mut b = Block {
                forward_ns: time(Phase::Forward),
                backward_ns: time(Phase::Backward),
                recompute_ns: 0,
                saved: 0,
                travelling: 0,
                input: 0,
                weights: outline.groups[block as usize].weight_bytes,
                states: outline.groups[block as usize].state_bytes
                    + outline.groups[block as usize].gradient_bytes,
                update_ns: outline.groups[block as usize].update_ns,
                host_ns: problem.states[block as usize]
                    .host
                    .map_or(0, |h| h.duration.get()),
            };
            for (id, tensor) in outline.tensors.iter() {
                let value = &problem.values[problem.tensors[id].value];
                if value.block == Some(block) {
                    b.saved += tensor.bytes;
                    b.travelling += tensor.host_bytes;
                    if value.split == Split::Whole {
                        b.input += tensor.bytes;
                    } else {
                        b.recompute_ns += tensor.recompute_ns;
                    }
                }
            }
            b
        })
        .collect()
}

/// `ceil(time to swap a block / time to compute it)`.
fn interval(context: &Context<'_>, blocks: &[Block]) -> usize {
    let Some(block) = blocks.first() else {
        return 1;
    };
    let link = context.problem.machine.links.d2h;
    let swap = link.time(crate::units::Bytes::new(block.travelling)).get();
    usize::try_from(swap.div_ceil(block.forward_ns.max(1)))
        .unwrap_or(usize::MAX)
        .clamp(1, blocks.len().max(1))
}

/// Every (n_swap, n_checkpoint), each with the most persistent chunks that memory allows and what
/// is left as buffers: more persistent chunks are never slower in its model, so the rest is pruned.
fn configurations(context: &Context<'_>, blocks: &[Block]) -> Vec<Config> {
    let n = blocks.len();
    let interval = interval(context, blocks);
    let mut configs = Vec::new();
    for swap in 0..=n / interval {
        for checkpoint in 0..=n - swap {
            let modes = interleave(n, interval, swap, checkpoint);
            let Some((persist, buffer)) = states_that_fit(context, blocks, &modes) else {
                continue;
            };
            let estimate_ns = estimate(context, blocks, &modes, persist, buffer);
            configs.push(Config {
                persist,
                buffer,
                swap,
                checkpoint,
                estimate_ns,
            });
        }
    }
    configs
}

fn states_that_fit(
    context: &Context<'_>,
    blocks: &[Block],
    modes: &[Mode],
) -> Option<(usize, usize)> {
    let outside: u64 = context.outline.groups[blocks.len()..]
        .iter()
        .map(|g| g.weight_bytes + g.state_bytes + g.gradient_bytes)
        .sum();
    let transient = context
        .outline
        .steps
        .values()
        .flat_map(|s| s.moments.iter().map(|m| m.fixed))
        .max()
        .unwrap_or(0);
    let activations: u64 = blocks
        .iter()
        .zip(modes)
        .map(|(block, mode)| match mode {
            Mode::Swap => 0,
            Mode::Checkpoint => block.input,
            Mode::Untouched => block.saved,
        })
        .sum();
    let recomputed = blocks.iter().map(|b| b.saved).max().unwrap_or(0);
    let recomputed = if modes.contains(&Mode::Checkpoint) {
        recomputed
    } else {
        0
    };
    let budget = context.problem.budget.device.get();
    let fits = |persist: usize, buffer: usize| {
        let persistent: u64 = blocks[..persist].iter().map(|b| b.weights + b.states).sum();
        let chunk = blocks.iter().map(|b| b.weights).max().unwrap_or(0);
        let bytes = outside + transient + activations + recomputed + persistent;
        // α = 1.1
        (bytes + chunk * buffer as u64) / 10 * 11 <= budget
    };
    let n = blocks.len();
    if fits(n, 0) {
        return Some((n, 0));
    }
    let persist = (0..n).rev().find(|&p| fits(p, 2.min(n - p)))?;
    let buffer = (1..=n - persist)
        .rev()
        .find(|&b| fits(persist, b))
        .unwrap_or(1);
    Some((persist, buffer))
}

/// Equations 2 to 7.
fn estimate(
    context: &Context<'_>,
    blocks: &[Block],
    modes: &[Mode],
    persist: usize,
    buffer: usize,
) -> u64 {
    let links = context.problem.machine.links;
    let n = blocks.len();
    let (mut forward, mut backward, mut gpu, mut cpu) = (0, 0, 0, 0);
    for (i, (block, mode)) in blocks.iter().zip(modes).enumerate() {
        let size = crate::units::Bytes::new(block.weights);
        let (upload, offload) = match i < persist {
            true => (0, 0),
            false => (links.h2d.time(size).get(), links.d2h.time(size).get()),
        };
        let in_buffer = i + buffer >= n;
        let upload_again = if in_buffer { 0 } else { upload };
        let recompute = if *mode == Mode::Checkpoint {
            block.recompute_ns
        } else {
            0
        };
        forward += block.forward_ns.max(upload);
        backward += (block.backward_ns + recompute).max(offload + upload_again);
        if i < persist {
            gpu += block.update_ns;
        } else {
            cpu += block.host_ns;
        }
    }
    forward + (backward + gpu).max(cpu)
}

fn plan(context: &Context<'_>, blocks: &[Block], config: &Config) -> Plan {
    let problem: &Problem = context.problem;
    let interval = interval(context, blocks);
    let modes = interleave(blocks.len(), interval, config.swap, config.checkpoint);
    let mut plan = Plan::keep_all(problem);
    plan.hold = Hold::ALL;
    for (id, tensor) in problem.tensors.iter() {
        let value = &problem.values[tensor.value];
        let mode = value.block.and_then(|b| modes.get(b as usize)).copied();
        plan.fates[id] = match (mode, value.split) {
            (Some(Mode::Swap), _) => Fate::swapped(tensor.pieces),
            (Some(Mode::Checkpoint), Split::Rows | Split::Groups) => Fate::RECOMPUTED,
            _ => Fate::kept(tensor.pieces),
        };
    }
    for chunk in config.persist..blocks.len() {
        plan.placements[chunk] = Placement::Streamed;
    }
    // A block has two steps in forward and two in backward; the head lies between.
    plan.weight_gap =
        Plan::WEIGHT_GAP + 4 * u32::try_from(config.buffer.saturating_sub(1)).unwrap_or(0);
    plan
}

#[cfg(test)]
mod tests {
    use super::*;
    use Mode::{Checkpoint as C, Swap as S, Untouched as U};

    #[test]
    fn swapped_blocks_open_intervals_and_untouched_ones_come_last() {
        assert_eq!(interleave(8, 3, 2, 4), [S, C, C, S, C, C, U, U]);
        assert_eq!(interleave(6, 2, 1, 3), [S, C, C, C, U, U]);
        assert_eq!(interleave(4, 1, 2, 0), [S, S, U, U]);
    }
}
