//! The graph of a training step: its shape, what recomputation takes, live ranges, FLOPs, bytes.

use ebbtide::lower::{lower, Tiling, Workload};
use ebbtide::methods::Method;
use ebbtide::model::graph::{Role, Stage, StepGraph};
use ebbtide::model::{load, shipped, step_graph, ModelConfig};
use ebbtide::profile::{self, Dtype};
use ebbtide_solver::problem::{Budget, Domain, Phase};
use ebbtide_solver::units::Bytes;
use petgraph::graph::NodeIndex;

fn saved(step: &StepGraph, block: u32, name: &str) -> NodeIndex {
    let named = |n: &NodeIndex| {
        step.tensor(*n)
            .is_some_and(|t| t.block == Some(block) && t.name == name)
    };
    step.saved()
        .find(named)
        .unwrap_or_else(|| panic!("no {name} in block {block}"))
}

/// The names of the operators that make `tensor` again when these tensors of its block are there.
fn closure(step: &StepGraph, tensor: &str, retained: &[&str]) -> Vec<&'static str> {
    let at_hand = |n: NodeIndex| retained.iter().any(|&name| n == saved(step, 1, name));
    let operators = step.recompute_closure(saved(step, 1, tensor), &at_hand);
    operators
        .iter()
        .map(|&o| step.operator(o).expect("operators").name)
        .collect()
}

#[test]
fn every_models_step_is_acyclic_and_in_order() {
    for name in shipped() {
        let step = step_graph(&load(name).unwrap());
        assert!(
            petgraph::algo::toposort(&step.graph, None).is_ok(),
            "{name}"
        );
        let mut at = vec![usize::MAX; step.graph.node_count()];
        for (position, &operator) in step.order.iter().enumerate() {
            at[operator.index()] = position;
        }
        for &operator in &step.order {
            for read in step.reads(operator) {
                let tensor = step.tensor(read).expect("operators read tensors");
                let made = step.makers(read);
                let known = tensor.role == Role::Weight || !made.is_empty();
                assert!(known, "{name}: nobody makes {}", tensor.name);
                let early = made.iter().all(|m| at[m.index()] < at[operator.index()]);
                assert!(early, "{name}: {} is read before it is made", tensor.name);
            }
        }
    }
}

#[test]
fn closures_are_the_operators_between_what_is_retained_and_what_is_wanted() {
    let step = step_graph(&load("llama-2-7b").unwrap());
    let cases: [(&str, &[&str], &[&str]); 9] = [
        (
            "gate_up",
            &["x", "o"],
            &["output_projection", "norm", "up_projection"],
        ),
        ("gate_up", &["x2"], &["norm", "up_projection"]),
        ("gate_up", &["n2"], &["up_projection"]),
        ("h", &["gate_up"], &["activation"]),
        (
            "h",
            &["x", "o"],
            &["output_projection", "norm", "up_projection", "activation"],
        ),
        ("o", &["x"], &["norm", "qkv_projection", "attention"]),
        ("qkv", &["n1"], &["qkv_projection"]),
        ("x2", &["x", "o"], &["output_projection"]),
        ("n1", &["x"], &["norm"]),
    ];
    for (tensor, retained, operators) in cases {
        assert_eq!(
            closure(&step, tensor, retained),
            operators,
            "{tensor} from {retained:?}"
        );
    }
    assert_eq!(
        closure(&step, "x", &["x"]),
        [""; 0],
        "what is retained takes nothing"
    );
    // A block input that is not retained comes from the block before it: a segment of two blocks.
    let before = |n: NodeIndex| n == saved(&step, 0, "x");
    let segment = step.recompute_closure(saved(&step, 1, "x"), &before);
    let names: Vec<_> = segment
        .iter()
        .map(|&o| step.operator(o).unwrap().name)
        .collect();
    let block = [
        "norm",
        "qkv_projection",
        "attention",
        "output_projection",
        "norm",
        "up_projection",
        "activation",
        "down_projection",
    ];
    assert_eq!(names, block);
}

#[test]
fn tensors_live_until_the_backward_that_needs_them() {
    let step = step_graph(&load("tiny").unwrap());
    let last_user = |name: &str| {
        let (_, last) = step.live_range(saved(&step, 1, name)).expect("is used");
        let operator = step.operator(step.order[last]).expect("an operator");
        assert_eq!(operator.block, Some(1), "{name}");
        (operator.stage, operator.name)
    };
    let mlp = Stage::MlpBackward;
    let attention = Stage::AttentionBackward;
    // The column "backward needs it for" of the table of tensors.
    assert_eq!(last_user("h"), (mlp, "down_weight_gradient"));
    assert_eq!(last_user("gate_up"), (mlp, "activation_backward"));
    assert_eq!(last_user("n2"), (mlp, "up_weight_gradient"));
    assert_eq!(last_user("x2"), (mlp, "norm_backward"));
    assert_eq!(last_user("o"), (attention, "attention_backward"));
    assert_eq!(last_user("qkv"), (attention, "attention_backward"));
    assert_eq!(last_user("n1"), (attention, "qkv_weight_gradient"));
    assert_eq!(last_user("x"), (attention, "norm_backward"));
    let readers = |name: &str| {
        let all = step.readers(saved(&step, 1, name));
        all.iter()
            .map(|&o| step.operator(o).unwrap().name)
            .collect::<Vec<_>>()
    };
    assert!(
        readers("o").contains(&"output_weight_gradient"),
        "{:?}",
        readers("o")
    );
    // Without norms of q and k the rotation's backward needs no projections; with them it does.
    let step = step_graph(&load("qwen3-8b").unwrap());
    let (_, last) = step.live_range(saved(&step, 1, "qkv")).unwrap();
    assert_eq!(
        step.operator(step.order[last]).unwrap().name,
        "rotary_backward"
    );
}

/// Bytes for each token that a block saves, by tensor, in bf16.
fn saved_bytes(model: &ModelConfig) -> Vec<(String, u64)> {
    let step = step_graph(model);
    let of_block = step
        .saved()
        .filter_map(|n| step.tensor(n))
        .filter(|t| t.block == Some(1));
    of_block
        .map(|t| (t.name.clone(), t.elements * 2 + t.f32_elements * 4))
        .collect()
}

#[test]
fn a_block_saves_the_bytes_of_its_tensors() {
    // d, q = heads·head_dim, k = 2·kv_heads·head_dim, f; lse is 4 bytes a head.
    for (name, d, q, k, f, heads) in [
        ("llama-2-7b", 4096, 4096, 8192, 11008, 32),
        ("llama-3.1-8b", 4096, 4096, 2048, 14336, 32),
        ("llama-3.2-1b", 2048, 2048, 1024, 8192, 32),
        ("qwen2.5-7b", 3584, 3584, 1024, 18944, 28),
        ("gemma-7b", 3072, 4096, 8192, 24576, 16),
    ] {
        let mut expected = vec![
            ("x".to_owned(), 2 * d),
            ("n1".into(), 2 * d),
            ("qkv".into(), 2 * (q + k)),
            ("o".into(), 2 * q + 4 * heads),
            ("x2".into(), 2 * d),
            ("n2".into(), 2 * d),
            ("gate_up".into(), 2 * 2 * f),
            ("h".into(), 2 * f),
        ];
        let mut found = saved_bytes(&load(name).unwrap());
        expected.sort();
        found.sort();
        assert_eq!(found, expected, "{name}");
    }
}

#[test]
fn a_gpt_block_saves_what_memo_counts_and_the_softmax_statistics() {
    // MEMO counts 16·b·s·h elements of a GPT block with f = 4h: input, norm, q, k, v, attention
    // output, second norm's input and output (8), and before and after the activation (4 + 4).
    // Ours are the same sixteen; beside them a float for every head, log-sum-exp.
    for name in ["gpt2", "gpt2-xl"] {
        let model = load(name).unwrap();
        assert_eq!(model.intermediate, 4 * model.hidden);
        let bytes: u64 = saved_bytes(&model).iter().map(|(_, bytes)| bytes).sum();
        assert_eq!(bytes, 2 * 16 * model.hidden + 4 * model.heads, "{name}");
    }
}

/// FLOPs of forward and of backward, head apart, on one sequence.
fn flops(model: &ModelConfig, seq: u64, groups: u32) -> [u128; 3] {
    let graph = step_graph(model);
    let profile = profile::load("unit").unwrap();
    let workload = Workload {
        seq,
        batch: 1,
        accumulate: 1,
        dtype: Dtype::F32,
        clip: false,
    };
    let all = Bytes::new(1 << 50);
    let budget = Budget {
        device: all,
        host: all,
    };
    let tiling = Tiling {
        tile: 1024,
        head_tile: 1024,
        groups,
    };
    let lowered = lower(
        &graph,
        model,
        &profile,
        Method::Lomo,
        &workload,
        budget,
        tiling,
    )
    .unwrap();
    let problem = &lowered.problem;
    let mut sums = [0; 3];
    for (id, step) in problem.program.iter() {
        let mut operators = Vec::new();
        collect(&step.body, &mut operators);
        for op in operators {
            let domain = problem.ops[op].domain;
            let runs = match domain {
                Domain::RowsOfGroup | Domain::Group => u128::from(groups),
                Domain::Rows | Domain::Whole => 1,
            };
            let flops = lowered.flops[op];
            let slot = match (problem.program[id].block, step.phase) {
                (None, _) => 2,
                (_, Phase::Forward) => 0,
                (_, Phase::Backward) => 1,
            };
            sums[slot] += runs * (flops.fixed + flops.row * u128::from(seq));
        }
    }
    sums
}

fn collect(nodes: &[ebbtide_solver::problem::Node], into: &mut Vec<ebbtide_solver::ids::OpId>) {
    use ebbtide_solver::problem::Node;
    for node in nodes {
        match node {
            Node::Op(op) => into.push(*op),
            Node::Rows(body) | Node::Groups(body) => collect(body, into),
        }
    }
}

#[test]
fn flops_of_llama_2_7b_follow_the_closed_formula() {
    let model = load("llama-2-7b").unwrap();
    let (d, f, layers, vocab, seq) = (4096u128, 11008u128, 32u128, 32000u128, 8192u64);
    let s = u128::from(seq);
    // Two FLOPs a weight and token; QKᵀ and PV over the causal half.
    let linear = 2 * s * (4 * d * d + 3 * d * f) * layers;
    let attention = 4 * d * s * s / 2 * layers;
    for groups in [1, 4, 32] {
        let [forward, backward, head] = flops(&model, seq, groups);
        let close = |a: u128, b: u128| a.abs_diff(b) * 1000 <= b;
        assert!(
            close(forward, linear + attention),
            "{forward} {}",
            linear + attention
        );
        // Twice the linear layers; five products instead of two in attention.
        let expected = 2 * linear + attention * 5 / 2;
        assert!(close(backward, expected), "{backward} {expected}");
        assert_eq!(head, 3 * 2 * s * d * vocab);
    }
}

#[test]
fn every_shipped_model_can_be_lowered() {
    let profile = profile::load("h100-sxm5-80gb").unwrap();
    let budget = Budget {
        device: Bytes::gib(72),
        host: Bytes::gib(110),
    };
    for name in shipped() {
        let model = load(name).unwrap();
        let graph = step_graph(&model);
        let workload = Workload {
            seq: 1024,
            batch: 2,
            accumulate: 1,
            dtype: Dtype::Bf16,
            clip: false,
        };
        for tiling in ebbtide::lower::tilings(&model, &workload) {
            let lowered = lower(
                &graph,
                &model,
                &profile,
                Method::AdamW,
                &workload,
                budget,
                tiling,
            )
            .unwrap();
            let problem = &lowered.problem;
            let parameters: u64 = problem.states.iter().map(|g| g.parameters).sum();
            assert_eq!(parameters, model.parameters(), "{name}");
            // An operator makes at most one tensor: making it again is counted once.
            for op in problem.ops.values() {
                let made = op.writes.iter().chain(&op.accumulates);
                let tensors = made
                    .filter(|&&v| problem.values[v].tensor.is_some())
                    .count();
                assert!(tensors <= 1, "{name}: {}", op.name);
            }
        }
    }
}
