//! Builds the graph of a training step from a model's config.
//!
//! In: a [`ModelConfig`]. Out: a [`StepGraph`]. Every stage is written once, with what each of its
//! operators reads, makes and computes. Element-wise work counts the elements read and written by
//! kernels that are fused so that every tensor is touched once.

mod stages;

use petgraph::graph::{DiGraph, NodeIndex};

use super::compressed::Compressed;
use super::config::ModelConfig;
use super::graph::{Layout, Node, Operator, Role, Stage, StepGraph, Tensor, WeightGroup};
use super::weights::{Part, Weight};

/// The graph of one micro-batch's step; sizes are for each token.
pub fn step_graph(model: &ModelConfig) -> StepGraph {
    compressed_step_graph(model, Compressed::default())
}

/// The same where some inputs of linear layers are saved in a space of low rank.
pub fn compressed_step_graph(model: &ModelConfig, compressed: Compressed) -> StepGraph {
    let mut builder = Builder {
        model,
        compressed,
        step: StepGraph {
            graph: DiGraph::new(),
            order: Vec::new(),
            groups: Vec::new(),
        },
    };
    builder.step();
    builder.step
}

struct Builder<'a> {
    model: &'a ModelConfig,
    compressed: Compressed,
    step: StepGraph,
}

/// The weights of a block by part.
struct BlockNodes {
    norm1: NodeIndex,
    qkv: NodeIndex,
    o: NodeIndex,
    norm2: NodeIndex,
    up: NodeIndex,
    down: NodeIndex,
    gradients: [NodeIndex; 6],
    inputs: Inputs,
    x: NodeIndex,
    n1: NodeIndex,
    saved_qkv: NodeIndex,
    saved_o: NodeIndex,
    x2: NodeIndex,
    n2: NodeIndex,
    gate_up: NodeIndex,
    h: NodeIndex,
}

/// What the gradients of linear layers are made of: an input, or its projection.
struct Inputs {
    qkv: NodeIndex,
    up: NodeIndex,
    down: NodeIndex,
}

impl Builder<'_> {
    fn tensor(&mut self, tensor: Tensor) -> NodeIndex {
        self.step.graph.add_node(Node::Tensor(tensor))
    }

    fn activation(
        &mut self,
        name: &str,
        block: Option<u32>,
        role: Role,
        layout: Layout,
        elements: u64,
    ) -> NodeIndex {
        self.tensor(Tensor {
            name: name.to_owned(),
            block,
            role,
            layout,
            elements,
            f32_elements: 0,
            fixed_elements: 0,
            version_of: None,
        })
    }

    fn saved(&mut self, name: &str, block: u32, layout: Layout, elements: u64) -> NodeIndex {
        self.activation(name, Some(block), Role::Saved, layout, elements)
    }

    fn passing(&mut self, name: &str, block: Option<u32>, elements: u64) -> NodeIndex {
        self.activation(name, block, Role::Passing, Layout::ByRows, elements)
    }

    fn version(&mut self, of: NodeIndex) -> NodeIndex {
        let original = match &self.step.graph[of] {
            Node::Tensor(tensor) => tensor.clone(),
            Node::Operator(_) => unreachable!("only tensors have versions"),
        };
        self.tensor(Tensor {
            version_of: Some(of),
            ..original
        })
    }

    fn operator(
        &mut self,
        operator: Operator,
        reads: &[NodeIndex],
        makes: &[NodeIndex],
    ) -> NodeIndex {
        let node = self.step.graph.add_node(Node::Operator(operator));
        for &tensor in reads {
            self.step.graph.add_edge(tensor, node, ());
        }
        for &tensor in makes {
            self.step.graph.add_edge(node, tensor, ());
        }
        self.step.order.push(node);
        node
    }

    fn step(&mut self) {
        let model = self.model;
        let layers = u32::try_from(model.layers).expect("bounded by the config reader");
        let outer = self.outer_groups();
        let mut blocks = Vec::new();
        let first = self.saved("x", 0, Layout::Whole, model.hidden);
        self.embedding(&outer, first);
        let mut x = first;
        for block in 0..layers {
            let nodes = self.block(block, x);
            self.attention(block, &nodes);
            x = self.mlp(block, &nodes, block + 1 < layers);
            blocks.push(nodes);
        }
        let mut gradient = self.head(&outer, x);
        for (block, nodes) in (0..layers).zip(&blocks).rev() {
            gradient = self.mlp_backward(block, nodes, gradient);
            gradient = self.attention_backward(block, nodes, gradient);
        }
        self.embedding_backward(&outer, gradient);
        let mut groups: Vec<_> = (0..layers)
            .zip(&blocks)
            .map(|(block, nodes)| self.block_group(block, nodes))
            .collect();
        groups.extend(outer.groups);
        self.step.groups = groups;
    }

    // ---- weights ------------------------------------------------------------------------------

    /// A weight of several parts (matrix, biases, small norms) and its gradient.
    fn weight(
        &mut self,
        name: &str,
        block: Option<u32>,
        parts: &[Part],
        by_groups: bool,
    ) -> (NodeIndex, NodeIndex) {
        let weights = match block {
            Some(_) => self.model.block_weights(),
            None => self.model.outer_weights(),
        };
        let chosen = weights.iter().filter(|w| parts.contains(&w.part));
        let elements: u64 = chosen.clone().map(Weight::elements).sum();
        let of_gradient = chosen.clone().map(|&w| self.compressed.gradient(w));
        let of_gradient: u64 = of_gradient.map(|w| w.elements()).sum();
        // Norms of q and k are shared by all heads: each group has a gradient of its own.
        let shared = [Part::QNorm, Part::KNorm, Part::OBias];
        let once: u64 = chosen
            .filter(|w| shared.contains(&w.part))
            .map(Weight::elements)
            .sum();
        let weight = Tensor {
            name: format!("{name}.weight"),
            block,
            role: Role::Weight,
            layout: Layout::Whole,
            elements: 0,
            f32_elements: 0,
            fixed_elements: elements,
            version_of: None,
        };
        let gradient = Tensor {
            name: format!("{name}.gradient"),
            role: Role::Gradient,
            layout: if by_groups {
                Layout::ByGroups
            } else {
                Layout::Whole
            },
            fixed_elements: if by_groups {
                of_gradient - once + once * self.model.kv_heads
            } else {
                of_gradient
            },
            ..weight.clone()
        };
        (self.tensor(weight), self.tensor(gradient))
    }

    fn block(&mut self, block: u32, x: NodeIndex) -> BlockNodes {
        let model = self.model;
        let at = Some(block);
        let (q, kv) = (model.query_width(), 2 * model.kv_width());
        let up_width = if model.gated { 2 } else { 1 } * model.intermediate;
        let (norm1, g1) = self.weight("norm1", at, &[Part::AttnNorm, Part::AttnNormBias], false);
        let (qkv, g2) = self.weight(
            "qkv",
            at,
            &[Part::Qkv, Part::QkvBias, Part::QNorm, Part::KNorm],
            true,
        );
        let (o, g3) = self.weight("o", at, &[Part::O, Part::OBias], true);
        let (norm2, g4) = self.weight("norm2", at, &[Part::MlpNorm, Part::MlpNormBias], false);
        let ups = [Part::GateUp, Part::GateUpBias, Part::Up, Part::UpBias];
        let (up, g5) = self.weight("gate_up", at, &ups, false);
        let (down, g6) = self.weight("down", at, &[Part::Down, Part::DownBias], false);
        let n1 = self.saved("n1", block, Layout::ByRows, model.hidden);
        let saved_qkv = self.saved("qkv", block, Layout::ByGroups, q + kv);
        let saved_o = self.saved("o", block, Layout::ByGroups, q);
        // Softmax statistics (log-sum-exp) travel with the output; with q and k norms, so do
        // the inverse deviations of q and k with the projections.
        self.add_f32(saved_o, model.heads);
        if model.qk_norm {
            self.add_f32(saved_qkv, model.heads + model.kv_heads);
        }
        let x2 = self.saved("x2", block, Layout::ByRows, model.hidden);
        let n2 = self.saved("n2", block, Layout::ByRows, model.hidden);
        let gate_up = self.saved("gate_up", block, Layout::ByRows, up_width);
        let h = self.saved("h", block, Layout::ByRows, model.intermediate);
        let gradients = [g1, g2, g3, g4, g5, g6];
        let Compressed {
            qkv: of_qkv,
            gate_up: of_up,
            down: of_down,
        } = self.compressed;
        let inputs = Inputs {
            qkv: self.projected("n1.projected", block, of_qkv, n1),
            up: self.projected("n2.projected", block, of_up, n2),
            down: self.projected("h.projected", block, of_down, h),
        };
        BlockNodes {
            norm1,
            qkv,
            o,
            norm2,
            up,
            down,
            gradients,
            inputs,
            x,
            n1,
            saved_qkv,
            saved_o,
            x2,
            n2,
            gate_up,
            h,
        }
    }

    /// What is saved of an input for a gradient: its projection, if it has one.
    fn projected(
        &mut self,
        name: &str,
        block: u32,
        rank: Option<u64>,
        input: NodeIndex,
    ) -> NodeIndex {
        match rank {
            Some(rank) => self.saved(name, block, Layout::ByRows, rank),
            None => input,
        }
    }

    fn add_f32(&mut self, tensor: NodeIndex, elements: u64) {
        if let Node::Tensor(tensor) = &mut self.step.graph[tensor] {
            tensor.f32_elements += elements;
        }
    }

    fn block_group(&self, block: u32, nodes: &BlockNodes) -> WeightGroup {
        let attention = (Stage::AttentionBackward, Some(block));
        let mlp = (Stage::MlpBackward, Some(block));
        let weights = vec![
            nodes.norm1,
            nodes.qkv,
            nodes.o,
            nodes.norm2,
            nodes.up,
            nodes.down,
        ];
        WeightGroup {
            name: format!("block {block}"),
            parameters: weights.iter().map(|&w| self.fixed(w)).collect(),
            weights,
            gradients: nodes.gradients.to_vec(),
            complete_after: vec![attention, attention, attention, mlp, mlp, mlp],
        }
    }

    fn fixed(&self, node: NodeIndex) -> u64 {
        self.step.tensor(node).map_or(0, |t| t.fixed_elements)
    }
}

/// The weights outside the blocks.
struct Outer {
    embedding: (NodeIndex, NodeIndex),
    final_norm: (NodeIndex, NodeIndex),
    /// None where the embedding serves.
    lm_head: Option<(NodeIndex, NodeIndex)>,
    groups: Vec<WeightGroup>,
}

impl Builder<'_> {
    fn outer_groups(&mut self) -> Outer {
        let embedding = self.weight(
            "embedding",
            None,
            &[Part::Embedding, Part::PositionEmbedding],
            false,
        );
        let final_norm = self.weight(
            "final_norm",
            None,
            &[Part::FinalNorm, Part::FinalNormBias],
            false,
        );
        let lm_head =
            (!self.model.tied).then(|| self.weight("lm_head", None, &[Part::LmHead], false));
        let group = |name: &str, members: &[((NodeIndex, NodeIndex), Stage)]| WeightGroup {
            name: name.to_owned(),
            weights: members.iter().map(|m| m.0 .0).collect(),
            gradients: members.iter().map(|m| m.0 .1).collect(),
            parameters: members.iter().map(|m| self.fixed(m.0 .0)).collect(),
            complete_after: members.iter().map(|m| (m.1, None)).collect(),
        };
        let mut head = vec![(final_norm, Stage::Head)];
        head.extend(lm_head.map(|w| (w, Stage::Head)));
        let groups = vec![
            group("embedding", &[(embedding, Stage::EmbeddingBackward)]),
            group("head", &head),
        ];
        Outer {
            embedding,
            final_norm,
            lm_head,
            groups,
        }
    }
}
