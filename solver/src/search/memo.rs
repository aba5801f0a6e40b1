//! MEMO (Zhao et al. 2024, arXiv 2407.12117): block input and attention output always travel; of
//! every other tensor one fraction α of the tokens travels and the rest is recomputed. Two rounding
//! buffers of a block each alternate, so the last two blocks, still in them, are not touched.
//!
//! ```text
//! maximise α   subject to   (S_input + S_attn + α·S_others) / B         ≤ T_layer     overlap
//!                           (n − 2)·(S_input + S_attn + α·S_others)     ≤ M_host      host memory
//! ```
//! B: the link's rate, T_layer: forward of one block. Device memory has no say in α; where even α
//! = 0
//! violates a row the paper says nothing, and here α is 0. What head groups cut is rounded down to
//! whole groups, everything else to granules.

use super::{Candidate, Context};
use crate::build::Infeasible;
use crate::plan::{Fate, Hold, Plan};
use crate::problem::{Domain, Phase, Split};

/// The paper's program for α; any unit of bytes, seconds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AlphaProblem {
    /// Bytes of a block's input.
    pub input: f64,
    /// Bytes of a block's attention output.
    pub attention: f64,
    /// Bytes of a block's other saved tensors.
    pub others: f64,
    /// Bytes that the link moves in a second.
    pub bandwidth: f64,
    /// Seconds of one block's forward.
    pub layer_time: f64,
    /// Blocks.
    pub layers: u32,
    /// Bytes of host memory.
    pub host: f64,
}

/// The largest α in `[0, 1]` that satisfies both rows; 0 where none does.
pub fn alpha(p: &AlphaProblem) -> f64 {
    let always = p.input + p.attention;
    let travelling = f64::from(p.layers.saturating_sub(2));
    let overlap = (p.bandwidth * p.layer_time - always) / p.others;
    let host = if travelling > 0.0 {
        (p.host / travelling - always) / p.others
    } else {
        1.0
    };
    overlap.min(host).clamp(0.0, 1.0)
}

/// MEMO's plan.
pub fn solve(context: &Context<'_>) -> Result<Candidate, Infeasible> {
    let problem = context.problem;
    let blocks = problem.blocks();
    let mut sizes = [0.0f64; 3];
    for (id, tensor) in problem.tensors.iter() {
        if problem.values[tensor.value].block == Some(0) {
            let bytes = context.outline.tensors[id].host_bytes;
            sizes[kind(context, id) as usize] += bytes as f64;
        }
    }
    let layer_ns: u64 = problem
        .program
        .iter()
        .filter(|(_, s)| s.block == Some(0) && s.phase == Phase::Forward)
        .map(|(id, _)| context.outline.steps[id].compute_ns)
        .sum();
    let [input, attention, others] = sizes;
    let fraction = alpha(&AlphaProblem {
        input,
        attention,
        others: others.max(1.0),
        bandwidth: problem.machine.links.d2h.rate.get() as f64,
        layer_time: layer_ns as f64 / 1e9,
        layers: blocks,
        host: problem.budget.host.get() as f64,
    });
    let mut plan = Plan::keep_all(problem);
    plan.hold = Hold::ALL;
    for (id, tensor) in problem.tensors.iter() {
        if problem.values[tensor.value]
            .block
            .is_none_or(|b| b + 2 >= blocks)
        {
            continue;
        }
        let pieces = f64::from(tensor.pieces);
        plan.fates[id] = match kind(context, id) {
            Kind::Input | Kind::Attention => Fate::swapped(tensor.pieces),
            Kind::Other => Fate::swapped((fraction * pieces + 1e-9).floor() as u32),
        };
    }
    context.best_of(context.placed(&plan))
}

/// What MEMO tells apart.
#[derive(Clone, Copy)]
enum Kind {
    Input,
    Attention,
    Other,
}

fn kind(context: &Context<'_>, id: crate::ids::TensorId) -> Kind {
    let problem = context.problem;
    let tensor = &problem.tensors[id];
    match (
        problem.values[tensor.value].split,
        problem.ops[tensor.producer].domain,
    ) {
        (Split::Whole, _) => Kind::Input,
        (Split::Groups, Domain::Group) => Kind::Attention,
        _ => Kind::Other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// 7B on 8 devices with 256 GiB of host memory each, 10 GB/s, half of 312 TFLOP/s: the curve
    /// rises while overlap binds, saturates at 192K, falls when host memory binds.
    #[test]
    fn alpha_follows_the_papers_curve() {
        let (h, n) = (4096.0, 32);
        let at = |kilo_tokens: f64| {
            let s = kilo_tokens * 1024.0;
            let unit = s * h * 2.0 / 8.0;
            let flops = (24.0 * s * h * h + 2.0 * s * s * h) / 8.0;
            alpha(&AlphaProblem {
                input: unit,
                attention: unit,
                others: 14.0 * unit,
                bandwidth: 10e9,
                layer_time: flops / (0.5 * 312e12),
                layers: n,
                host: 256.0 * f64::from(1u32 << 30),
            })
        };
        let expected = [
            (64.0, 0.382),
            (128.0, 0.682),
            (192.0, 0.982),
            (256.0, 1.0),
            (512.0, 1.0),
            (640.0, 0.832),
            (1024.0, 0.467),
        ];
        for (tokens, alpha) in expected {
            assert!(
                (at(tokens) - alpha).abs() < 6e-4,
                "{tokens}K: {} is not {alpha}",
                at(tokens)
            );
        }
    }
}
