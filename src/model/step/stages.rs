//! The operators of every stage of a step, forward and backward, in the order in which they run.

use petgraph::graph::NodeIndex;

use super::{BlockNodes, Builder, Outer};
use crate::model::graph::{Cut, Layout, Operator, Product, Role, Shared, Stage, Work};

impl Builder<'_> {
    fn run(
        &mut self,
        name: &'static str,
        place: (Stage, Option<u32>, Cut),
        work: &[Work],
        reads: &[NodeIndex],
        makes: &[NodeIndex],
    ) {
        let (stage, block, cut) = place;
        let work = work.to_vec();
        self.operator(
            Operator {
                name,
                block,
                stage,
                cut,
                work,
            },
            reads,
            makes,
        );
    }

    /// Projects an input whose projection is to be saved.
    fn project(&mut self, place: (Stage, u32), input: (NodeIndex, u64), projected: NodeIndex) {
        let ((stage, block), (input, width)) = (place, input);
        if projected == input {
            return;
        }
        let rank = self.step.tensor(projected).map_or(0, |t| t.elements);
        let work = [
            Work::Drawn {
                elements: rank * width,
            },
            gemm(width, rank, Product::Forward, Shared::None),
        ];
        let place = (stage, Some(block), Cut::Rows);
        self.run("project", place, &work, &[input], &[projected]);
    }

    pub(super) fn embedding(&mut self, outer: &Outer, x: NodeIndex) {
        let place = (Stage::Embedding, None, Cut::Rows);
        let work = [traffic(2 * self.model.hidden)];
        self.run("embedding", place, &work, &[outer.embedding.0], &[x]);
    }

    pub(super) fn attention(&mut self, block: u32, b: &BlockNodes) {
        let m = self.model;
        let (d, q, kv) = (m.hidden, m.query_width(), 2 * m.kv_width());
        let place = |cut| (Stage::Attention, Some(block), cut);
        self.run(
            "norm",
            place(Cut::Rows),
            &[traffic(2 * d)],
            &[b.x, b.norm1],
            &[b.n1],
        );
        self.project((Stage::Attention, block), (b.n1, d), b.inputs.qkv);
        // The rotation, biases and norms of q and k are one pass over q and k in place.
        let project = [
            gemm(d, q + kv, Product::Forward, Shared::Output),
            traffic(2 * (q + m.kv_width())),
        ];
        self.run(
            "qkv_projection",
            place(Cut::RowsAndGroups),
            &project,
            &[b.n1, b.qkv],
            &[b.saved_qkv],
        );
        let attend = [Work::Attention {
            backward: false,
            window: m.window(block as usize),
        }];
        self.run(
            "attention",
            place(Cut::Groups),
            &attend,
            &[b.saved_qkv],
            &[b.saved_o],
        );
    }

    /// Makes the next block's input, or the head's.
    pub(super) fn mlp(&mut self, block: u32, b: &BlockNodes, more: bool) -> NodeIndex {
        let m = self.model;
        let (d, q, f) = (m.hidden, m.query_width(), m.intermediate);
        let ups = if m.gated { 2 } else { 1 };
        let place = |cut| (Stage::Mlp, Some(block), cut);
        let next = if more {
            self.saved("x", block + 1, Layout::Whole, d)
        } else {
            self.activation("final_x", None, Role::Passing, Layout::Whole, d)
        };
        let output = [gemm(q, d, Product::Forward, Shared::Input)];
        self.run(
            "output_projection",
            place(Cut::RowsAndGroups),
            &output,
            &[b.x, b.saved_o, b.o],
            &[b.x2],
        );
        self.run(
            "norm",
            place(Cut::Rows),
            &[traffic(2 * d)],
            &[b.x2, b.norm2],
            &[b.n2],
        );
        self.project((Stage::Mlp, block), (b.n2, d), b.inputs.up);
        let up = [gemm(d, ups * f, Product::Forward, Shared::None)];
        self.run(
            "up_projection",
            place(Cut::Rows),
            &up,
            &[b.n2, b.up],
            &[b.gate_up],
        );
        let activate = [traffic((ups + 1) * f)];
        self.run(
            "activation",
            place(Cut::Rows),
            &activate,
            &[b.gate_up],
            &[b.h],
        );
        self.project((Stage::Mlp, block), (b.h, f), b.inputs.down);
        let down = [gemm(f, d, Product::Forward, Shared::None)];
        self.run(
            "down_projection",
            place(Cut::Rows),
            &down,
            &[b.x2, b.h, b.down],
            &[next],
        );
        next
    }

    /// Logits, loss and their gradients a tile at a time; makes the residual gradient.
    pub(super) fn head(&mut self, outer: &Outer, x: NodeIndex) -> NodeIndex {
        let (d, v) = (self.model.hidden, self.model.vocab);
        let place = (Stage::Head, None, Cut::Rows);
        let (weight, weight_gradient) = outer.lm_head.unwrap_or(outer.embedding);
        let (norm, norm_gradient) = outer.final_norm;
        let normed = self.passing("final_n", None, d);
        let logits = self.passing("logits", None, v);
        self.run("norm", place, &[traffic(2 * d)], &[x, norm], &[normed]);
        let project = [gemm(d, v, Product::Forward, Shared::None)];
        self.run("logits", place, &project, &[normed, weight], &[logits]);
        // One pass finds maximum and sum, a second writes the gradient in place.
        let d_logits = self.version(logits);
        self.run(
            "cross_entropy",
            place,
            &[traffic(3 * v)],
            &[logits],
            &[d_logits],
        );
        let d_normed = self.passing("final_n.gradient", None, d);
        let back = [gemm(d, v, Product::InputGradient, Shared::None)];
        self.run(
            "logits_input_gradient",
            place,
            &back,
            &[d_logits, weight],
            &[d_normed],
        );
        let grad = [gemm(d, v, Product::WeightGradient, Shared::None)];
        self.run(
            "logits_weight_gradient",
            place,
            &grad,
            &[normed, d_logits],
            &[weight_gradient],
        );
        let residual = self.activation("residual.gradient", None, Role::Passing, Layout::Whole, d);
        let makes = [residual, norm_gradient];
        self.run(
            "norm_backward",
            place,
            &[traffic(3 * d)],
            &[x, d_normed, norm],
            &makes,
        );
        residual
    }

    pub(super) fn mlp_backward(
        &mut self,
        block: u32,
        b: &BlockNodes,
        gradient: NodeIndex,
    ) -> NodeIndex {
        let m = self.model;
        let (d, f) = (m.hidden, m.intermediate);
        let ups = if m.gated { 2 } else { 1 };
        let place = (Stage::MlpBackward, Some(block), Cut::Rows);
        let at = Some(block);
        let [_, _, _, norm2, up, down] = b.gradients;
        let d_h = self.passing("h.gradient", at, f);
        let back = |k, n| [gemm(k, n, Product::InputGradient, Shared::None)];
        let grad = |k, n| [gemm(k, n, Product::WeightGradient, Shared::None)];
        self.run(
            "down_input_gradient",
            place,
            &back(f, d),
            &[gradient, b.down],
            &[d_h],
        );
        self.run(
            "down_weight_gradient",
            place,
            &grad(self.compressed.down.unwrap_or(f), d),
            &[b.inputs.down, gradient],
            &[down],
        );
        let d_up = self.passing("gate_up.gradient", at, ups * f);
        let activate = [traffic((2 * ups + 1) * f)];
        self.run(
            "activation_backward",
            place,
            &activate,
            &[b.gate_up, d_h],
            &[d_up],
        );
        let d_n2 = self.passing("n2.gradient", at, d);
        self.run(
            "up_input_gradient",
            place,
            &back(d, ups * f),
            &[d_up, b.up],
            &[d_n2],
        );
        self.run(
            "up_weight_gradient",
            place,
            &grad(self.compressed.gate_up.unwrap_or(d), ups * f),
            &[b.inputs.up, d_up],
            &[up],
        );
        let next = self.version(gradient);
        let reads = [b.x2, d_n2, b.norm2, gradient];
        self.run(
            "norm_backward",
            place,
            &[traffic(4 * d)],
            &reads,
            &[next, norm2],
        );
        next
    }

    pub(super) fn attention_backward(
        &mut self,
        block: u32,
        b: &BlockNodes,
        gradient: NodeIndex,
    ) -> NodeIndex {
        let m = self.model;
        let (d, q, kv) = (m.hidden, m.query_width(), 2 * m.kv_width());
        let at = Some(block);
        let place = |cut| (Stage::AttentionBackward, at, cut);
        let [norm1, qkv, o, ..] = b.gradients;
        let grouped = |elements| (Role::Passing, Layout::ByGroups, elements);
        let (role, layout, elements) = grouped(q);
        let d_o = self.activation("o.gradient", at, role, layout, elements);
        let back = [gemm(q, d, Product::InputGradient, Shared::Input)];
        self.run(
            "output_input_gradient",
            place(Cut::RowsAndGroups),
            &back,
            &[gradient, b.o],
            &[d_o],
        );
        let grad = [gemm(q, d, Product::WeightGradient, Shared::Input)];
        self.run(
            "output_weight_gradient",
            place(Cut::RowsAndGroups),
            &grad,
            &[b.saved_o, gradient],
            &[o],
        );
        let (role, layout, elements) = grouped(q + kv);
        let d_qkv = self.activation("qkv.gradient", at, role, layout, elements);
        let attend = [Work::Attention {
            backward: true,
            window: m.window(block as usize),
        }];
        let reads = [b.saved_qkv, b.saved_o, d_o];
        self.run(
            "attention_backward",
            place(Cut::Groups),
            &attend,
            &reads,
            &[d_qkv],
        );
        let rotated = self.version(d_qkv);
        let rotate = [traffic(2 * (q + m.kv_width()))];
        // The norms' backward needs their outputs and scales.
        let norms: &[NodeIndex] = match m.qk_norm {
            true => &[b.saved_qkv, b.qkv],
            false => &[],
        };
        let reads = [&[d_qkv][..], norms].concat();
        // With norms of q and k, their gradients too.
        let makes: &[NodeIndex] = if m.qk_norm {
            &[rotated, qkv]
        } else {
            &[rotated]
        };
        self.run(
            "rotary_backward",
            place(Cut::RowsAndGroups),
            &rotate,
            &reads,
            makes,
        );
        let d_n1 = self.activation("n1.gradient", at, Role::Passing, Layout::Whole, d);
        let back = [gemm(d, q + kv, Product::InputGradient, Shared::Output)];
        self.run(
            "qkv_input_gradient",
            place(Cut::RowsAndGroups),
            &back,
            &[rotated, b.qkv],
            &[d_n1],
        );
        let inputs = self.compressed.qkv.unwrap_or(d);
        let grad = [gemm(
            inputs,
            q + kv,
            Product::WeightGradient,
            Shared::Output,
        )];
        self.run(
            "qkv_weight_gradient",
            place(Cut::RowsAndGroups),
            &grad,
            &[b.inputs.qkv, rotated],
            &[qkv],
        );
        let next = self.version(gradient);
        let reads = [b.x, d_n1, b.norm1, gradient];
        self.run(
            "norm_backward",
            place(Cut::Rows),
            &[traffic(4 * d)],
            &reads,
            &[next, norm1],
        );
        next
    }

    pub(super) fn embedding_backward(&mut self, outer: &Outer, gradient: NodeIndex) {
        let place = (Stage::EmbeddingBackward, None, Cut::Rows);
        let work = [traffic(3 * self.model.hidden)];
        self.run(
            "embedding_backward",
            place,
            &work,
            &[gradient],
            &[outer.embedding.1],
        );
    }
}

const fn gemm(k: u64, n: u64, product: Product, shared: Shared) -> Work {
    Work::Gemm {
        k,
        n,
        product,
        shared,
    }
}

const fn traffic(elements: u64) -> Work {
    Work::Elementwise { elements }
}
