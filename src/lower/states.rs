//! Model states: groups of weights with their gradients, optimizer states and updates.

use std::collections::BTreeMap;

use ebbtide_solver::ids::{OpId, StepId, ValueId};
use ebbtide_solver::problem::{
    Category, Domain, HostOptimizer, Node, Op, Scaling, Split, StateGroup, Value,
};
use ebbtide_solver::schedule::GRADIENT_NORM;
use ebbtide_solver::units::{Bytes, Nanos};
use petgraph::graph::NodeIndex;

use super::{update_name, Charge, Flops, Lowering, Renewed, COMPRESS_GRADIENT, LONGEST};
use crate::device::layout::{Layout, WeightValue, ACCUMULATED};
use crate::device::tensors::{Multiplied, Renewal};
use crate::methods::Method;
use crate::model::graph::{Stage, WeightGroup};
use crate::profile::cost::{Gemm, GemmDirection};

impl<'a> Lowering<'a> {
    pub(super) fn states(
        &mut self,
        method: Method,
        steps: &BTreeMap<(Stage, Option<u32>), StepId>,
    ) {
        let last = self.problem.last_step();
        for group in &self.graph.groups {
            let costs = self.update_costs(method, group);
            let states = (costs.states > 0).then(|| {
                self.problem.values.push(Value {
                    name: format!("{}.states", group.name),
                    block: None,
                    category: Category::OptimizerStates,
                    row_bytes: 0,
                    packed_row_bytes: None,
                    fixed_bytes: Bytes::new(costs.states),
                    split: Split::Whole,
                    tensor: None,
                })
            });
            let (mut updates, mut norms, mut gradients) = (Vec::new(), Vec::new(), Vec::new());
            for member in 0..group.weights.len() {
                let complete = steps[&group.complete_after[member]];
                let gradient = self.gradient(method, group, member, complete);
                gradients.push(gradient);
                let after = if method.fused() { complete } else { last };
                let update = self.update(method, (group, member), gradient, states);
                updates.push((after, update));
                if self.workload.clip {
                    norms.push((complete, self.norm(gradient)));
                }
            }
            self.problem.states.push(StateGroup {
                name: group.name.clone(),
                weights: group.weights.iter().map(|&w| self.value(w)).collect(),
                gradients,
                parameters: group.parameters.iter().sum(),
                states,
                updates,
                norms,
                host: method.on_host().then(|| self.host_optimizer(costs, group)),
            });
        }
    }

    /// A weight as devices know it, and how it lies.
    fn placed(&self, method: Method, weight: NodeIndex) -> (Layout<'a>, WeightValue) {
        let layout = Layout {
            model: self.model,
            dtype: self.workload.dtype,
            groups: u64::from(self.tiling.groups),
            compressed: method.compressed(self.model),
        };
        let weight = self.graph.tensor(weight).expect("groups list tensors");
        let value = WeightValue::of(&weight.name).expect("the graph's weights have these names");
        (layout, value)
    }

    /// What updates of all weights of a group cost.
    fn update_costs(&self, method: Method, group: &WeightGroup) -> UpdateCosts {
        let all = group.weights.iter().map(|&w| self.update_cost(method, w));
        all.fold(UpdateCosts::default(), |sum, one| UpdateCosts {
            states: sum.states + one.states,
            traffic: sum.traffic + one.traffic,
            workspace: sum.workspace.max(one.workspace),
        })
    }

    /// What an update of a weight costs.
    fn update_cost(&self, method: Method, weight: NodeIndex) -> UpdateCosts {
        let (layout, value) = self.placed(method, weight);
        UpdateCosts {
            states: method.state_bytes(&layout, value),
            traffic: method.update_traffic(&layout, value),
            // One tensor after the other.
            workspace: method
                .tensor_rules(&layout, value)
                .iter()
                .map(|(rule, shape)| rule.workspace_bytes(*shape))
                .max()
                .unwrap_or(0),
        }
    }

    /// The products of an update of a weight: their time, FLOPs and shapes; and the time of a
    /// renewal of its projections, with the steps between two.
    fn products(&mut self, method: Method, weight: NodeIndex) -> (Products, Option<Renewed>) {
        let (layout, value) = self.placed(method, weight);
        let (mut each, mut renewed) = (Products::default(), None);
        for (rule, shape) in method.tensor_rules(&layout, value) {
            for product in rule.products(shape) {
                self.add_product(&mut each, product);
            }
            let mut renewal = Products::default();
            let (what, every) = rule.renewal(shape);
            match what {
                Renewal::None => continue,
                Renewal::Products(products) => {
                    for product in products {
                        self.add_product(&mut renewal, product);
                    }
                }
                Renewal::Decomposition(shape) => {
                    renewal.time = self.costs.decomposition(shape.sides());
                    let why = "singular value decomposition: nothing is measured";
                    self.extrapolated.insert(why.to_owned());
                }
            }
            let before = renewed.map_or(Nanos::ZERO, |r: Renewed| r.time);
            renewed = Some(Renewed {
                time: before + renewal.time,
                every,
            });
        }
        (each, renewed)
    }

    fn add_product(&mut self, products: &mut Products, product: Multiplied) {
        let gemm = Gemm {
            m: product.m,
            k: product.k,
            n: product.n,
            direction: GemmDirection::Forward,
            accumulate: false,
        };
        let charge = Charge::Gemm(gemm);
        let (estimate, flops) = self.estimate(charge, "update");
        if let Some(why) = estimate.extrapolated {
            self.extrapolated.insert(format!("matrix product: {why}"));
        }
        products.time += estimate.time;
        products.flops += flops;
        products.charges.push(charge);
    }

    fn host_optimizer(&self, costs: UpdateCosts, group: &WeightGroup) -> HostOptimizer {
        let adam = self.profile.machine.host_adam;
        let parameters: u64 = group.parameters.iter().sum();
        HostOptimizer {
            // Bound by memory, so in proportion to the traffic of the measured AdamW.
            duration: adam.time(parameters).scaled(
                costs.traffic,
                (parameters * adam.bytes_per_param.get()).max(1),
            ),
            bytes: Bytes::new(costs.states),
        }
    }

    /// The gradient that a weight is updated by: the one that backward makes, or a sum in a space
    /// of low rank to which each micro-batch adds that one once it is complete.
    fn gradient(
        &mut self,
        method: Method,
        group: &WeightGroup,
        member: usize,
        complete: StepId,
    ) -> ValueId {
        let made = self.value(group.gradients[member]);
        let (layout, weight) = self.placed(method, group.weights[member]);
        if !method.accumulates(&layout, weight) {
            return made;
        }
        let (mut elements, mut scratch, mut products) = (0, 0, Products::default());
        for (rule, shape) in method.tensor_rules(&layout, weight) {
            elements += rule.gradient_shape(shape).elements();
            if let Some(n) = rule.accumulated_rank() {
                let (m, k) = shape.sides();
                self.add_product(&mut products, Multiplied { m, k, n });
                scratch = scratch.max(4 * (m + k) * n);
            }
        }
        let bytes = Bytes::new(elements * self.workload.dtype.bytes());
        let sum = self.problem.values.push(Value {
            name: format!("{}{ACCUMULATED}", weight.name()),
            fixed_bytes: bytes,
            ..self.problem.values[made].clone()
        });
        let traffic = self.problem.value_bytes(made) + bytes + bytes + Bytes::new(2 * scratch);
        let time = self.costs.elementwise(traffic).time + products.time;
        let op = self.problem.ops.push(Op {
            name: COMPRESS_GRADIENT.to_owned(),
            block: self.problem.values[made].block,
            domain: Domain::Whole,
            memory_bound: true,
            reads: vec![made],
            writes: Vec::new(),
            accumulates: vec![sum],
            updates: Vec::new(),
            workspace: Scaling::fixed(scratch),
            picos: Scaling::fixed(time.get() * 1000),
        });
        self.flops.push(Flops {
            fixed: products.flops,
            row: 0,
        });
        let kernel = [Charge::Kernel(traffic)].into_iter();
        self.charges.push(kernel.chain(products.charges).collect());
        self.problem.program[complete].body.push(Node::Op(op));
        sum
    }

    /// What counts a gradient for its global norm: it is read once.
    fn norm(&mut self, gradient: ValueId) -> OpId {
        let traffic = self.problem.value_bytes(gradient);
        let op = self.problem.ops.push(Op {
            name: GRADIENT_NORM.to_owned(),
            block: None,
            domain: Domain::Whole,
            memory_bound: true,
            reads: vec![gradient],
            writes: Vec::new(),
            accumulates: Vec::new(),
            updates: Vec::new(),
            workspace: Scaling::fixed(0),
            picos: Scaling::fixed(self.costs.elementwise(traffic).time.get() * 1000),
        });
        self.flops.push(Flops::default());
        self.charges.push(vec![Charge::Kernel(traffic)]);
        op
    }

    fn update(
        &mut self,
        method: Method,
        (group, member): (&WeightGroup, usize),
        gradient: ValueId,
        states: Option<ValueId>,
    ) -> OpId {
        let by_groups = self.problem.values[gradient].split == Split::Groups;
        let runs = if by_groups {
            u64::from(self.tiling.groups)
        } else {
            1
        };
        let parameters = group.parameters[member] / runs;
        let name = update_name(method);
        let costs = self.update_cost(method, group.weights[member]);
        let traffic = Bytes::new(costs.traffic / runs);
        let estimate = self.costs.update(&name, parameters, traffic);
        let (products, renewed) = self.products(method, group.weights[member]);
        let mut time = estimate.time + products.time;
        if let Some(renewed) = renewed {
            self.renewal.time += renewed.time;
            self.renewal.every = renewed.every;
            // Every step bears its part.
            time += Nanos::new(renewed.time.get().div_ceil(u64::from(renewed.every)));
        }
        let mut charges = vec![Charge::Kernel(traffic)];
        charges.extend(products.charges);
        let mut updates = vec![self.value(group.weights[member])];
        if costs.states > 0 {
            updates.extend(states);
        }
        let op = self.problem.ops.push(Op {
            name,
            block: None,
            domain: if by_groups {
                Domain::Group
            } else {
                Domain::Whole
            },
            memory_bound: true,
            reads: vec![gradient],
            writes: Vec::new(),
            accumulates: Vec::new(),
            updates,
            workspace: Scaling::fixed(costs.workspace),
            picos: Scaling::fixed(time.min(LONGEST).get() * 1000),
        });
        self.flops.push(Flops {
            fixed: products.flops,
            row: 0,
        });
        self.charges.push(charges);
        op
    }
}

/// Bytes that an update keeps and moves.
#[derive(Clone, Copy, Default)]
struct UpdateCosts {
    states: u64,
    traffic: u64,
    workspace: u64,
}

/// Matrix products, together.
#[derive(Default)]
struct Products {
    time: Nanos,
    flops: u128,
    charges: Vec<Charge>,
}
