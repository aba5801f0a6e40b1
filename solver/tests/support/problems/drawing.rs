//! The blocks of a random problem, one value, operator and step after the other.

use super::super::random::Random;
use super::{log_uniform, machine, Shape};
use ebbtide_solver::ids::{Id, OpId, StepId, Table, ValueId};
use ebbtide_solver::problem::{
    Budget, Category, Domain, HostOptimizer, Node, Op, Phase, Problem, Scaling, Split, StateGroup,
    Step, Tensor, Value,
};
use ebbtide_solver::units::{Bytes, Nanos, Tokens};

/// A problem without a budget.
pub fn draw(random: &mut Random, shape: Shape) -> Problem {
    let (attention, mlp) =
        random.pick(&[(true, true), (false, true), (false, true), (true, false)]);
    let pieces = 1 + random.below(3) as u64;
    let granule = 1024;
    // The last granule may be ragged.
    let tokens = pieces * granule - random.pick(&[0, 0, 128, 896]);
    let fused = random.below(2) == 0;
    let clips = random.below(2) == 0;
    let problem = Problem {
        tokens: Tokens::new(tokens),
        micro_batches: 1 + random.below(2) as u32,
        passes: if fused && clips { 2 } else { 1 },
        groups: if attention {
            1 + random.below(2) as u32
        } else {
            1
        },
        granule: Tokens::new(granule),
        values: Table::new(),
        tensors: Table::new(),
        ops: Table::new(),
        program: Table::new(),
        states: Vec::new(),
        machine: machine(random, shape.unit_machine),
        budget: Budget {
            device: Bytes::ZERO,
            host: Bytes::ZERO,
        },
    };
    let mut drawing = Drawing {
        problem,
        attention,
        mlp,
        norm: random.below(2) == 0,
        fused,
        clips,
        states: random.below(2) == 0,
        tile: random.pick(&[512, 1024, 1024, 4096]),
        // Sizes and times differ from value to value, but are the same in every block.
        rows: (0..12)
            .map(|_| 16 * log_uniform(random, 16, 4096))
            .collect(),
        picos: (0..24)
            .map(|_| log_uniform(random, 1_000, 3_000_000))
            .collect(),
        launch: random.pick(&[0, 0, 3_000_000]),
        weight: Bytes::new(log_uniform(random, 1 << 12, 1 << 27)),
    };
    let blocks = 2 + random.below(shape.most_blocks - 1) as u32;
    drawing.program(blocks);
    drawing.problem
}

struct Drawing {
    problem: Problem,
    attention: bool,
    mlp: bool,
    norm: bool,
    fused: bool,
    clips: bool,
    states: bool,
    tile: u64,
    rows: Vec<u64>,
    picos: Vec<u64>,
    launch: u64,
    weight: Bytes,
}

/// What a block holds between forward and backward, and its weights.
struct Block {
    x: ValueId,
    n1: Option<ValueId>,
    attention: Option<(ValueId, ValueId)>,
    x2: Option<ValueId>,
    h: Option<ValueId>,
    /// Weight and gradient of the attention and of the MLP.
    weights: [(ValueId, ValueId); 2],
}

#[derive(Default)]
struct Uses {
    reads: Vec<ValueId>,
    writes: Vec<ValueId>,
    accumulates: Vec<ValueId>,
    updates: Vec<ValueId>,
}

impl Drawing {
    fn value(
        &mut self,
        name: &str,
        block: Option<u32>,
        split: Split,
        category: Category,
    ) -> ValueId {
        const NAMES: [&str; 12] = [
            "x", "n1", "qkv", "o", "x2", "h", "residual", "dh", "do", "dqkv", "dn1", "logits",
        ];
        let at = NAMES.iter().position(|n| *n == name);
        self.problem.values.push(Value {
            name: name.to_owned(),
            block,
            category,
            row_bytes: at.map_or(0, |at| self.rows[at]),
            packed_row_bytes: None,
            fixed_bytes: if at.is_none() {
                self.weight
            } else {
                Bytes::ZERO
            },
            split,
            tensor: None,
        })
    }
    fn saved(&mut self, name: &str, block: u32, split: Split) -> ValueId {
        let value = self.value(name, Some(block), split, Category::Activations);
        let Problem {
            tokens,
            granule,
            groups,
            ..
        } = self.problem;
        let pieces = match split {
            Split::Whole => 1,
            Split::Groups => groups,
            Split::Rows => tokens.get().div_ceil(granule.get()) as u32,
        };
        // The producer is filled in when its operator is made.
        let producer = OpId::from_index(0);
        let tensor = self.problem.tensors.push(Tensor {
            value,
            producer,
            pieces,
        });
        self.problem.values[value].tensor = Some(tensor);
        value
    }
    fn weights(&mut self, name: &str, block: Option<u32>) -> (ValueId, ValueId) {
        let weight = self.value(
            &format!("{name}.weight"),
            block,
            Split::Whole,
            Category::Weights,
        );
        let gradient = format!("{name}.gradient");
        (
            weight,
            self.value(&gradient, block, Split::Whole, Category::Gradients),
        )
    }
    fn op(&mut self, name: &str, block: Option<u32>, domain: Domain, uses: Uses) -> Node {
        const NAMES: [&str; 14] = [
            "embed",
            "norm",
            "project",
            "attend",
            "out",
            "up",
            "down",
            "head",
            "down_back",
            "up_back",
            "out_back",
            "attend_back",
            "project_back",
            "norm_back",
        ];
        let at = NAMES.iter().position(|n| *n == name).unwrap_or(NAMES.len());
        let (row, whole) = (self.picos[at], self.picos[at] * self.problem.tokens.get());
        let by_rows = matches!(domain, Domain::Rows | Domain::RowsOfGroup);
        let made: Vec<ValueId> = uses
            .writes
            .iter()
            .chain(&uses.accumulates)
            .copied()
            .collect();
        let op = self.problem.ops.push(Op {
            name: name.to_owned(),
            block,
            domain,
            memory_bound: name.contains("norm"),
            reads: uses.reads,
            writes: uses.writes,
            accumulates: uses.accumulates,
            updates: uses.updates,
            workspace: match domain {
                Domain::Group => Scaling::fixed(self.rows[11] * 64),
                _ => Scaling::default(),
            },
            picos: if by_rows {
                Scaling {
                    fixed: self.launch,
                    row,
                }
            } else {
                Scaling::fixed(self.launch + whole)
            },
        });
        for value in made {
            if let Some(tensor) = self.problem.values[value].tensor {
                self.problem.tensors[tensor].producer = op;
            }
        }
        Node::Op(op)
    }
    fn step(&mut self, name: &str, block: Option<u32>, phase: Phase, body: Vec<Node>) -> StepId {
        let tile = Tokens::new(self.tile.min(self.problem.tokens.get()));
        self.problem.program.push(Step {
            name: name.to_owned(),
            block,
            phase,
            tile,
            body,
        })
    }

    fn program(&mut self, blocks: u32) {
        let outer = self.weights("embedding", None);
        let first = self.saved("x", 0, Split::Whole);
        let uses = Uses {
            reads: vec![outer.0],
            writes: vec![first],
            ..Uses::default()
        };
        let embed = self.op("embed", None, Domain::Rows, uses);
        self.step(
            "embedding",
            None,
            Phase::Forward,
            vec![Node::Rows(vec![embed])],
        );
        let mut x = first;
        let mut held = Vec::new();
        for block in 0..blocks {
            let saved = self.block(block, x);
            x = if block + 1 < blocks {
                self.saved("x", block + 1, Split::Whole)
            } else {
                self.value("x", None, Split::Whole, Category::Transients)
            };
            self.forward(block, &saved, x);
            held.push(saved);
        }
        let residual = self.head(outer, x);
        let mut ends: Vec<[StepId; 2]> = Vec::new();
        for (block, saved) in (0..blocks).zip(&held).rev() {
            ends.push(self.backward(block, saved, residual));
        }
        ends.reverse();
        let uses = Uses {
            reads: vec![residual],
            accumulates: vec![outer.1],
            ..Uses::default()
        };
        let back = self.op("embed", None, Domain::Rows, uses);
        let last = self.step(
            "embedding backward",
            None,
            Phase::Backward,
            vec![Node::Rows(vec![back])],
        );
        for (saved, ends) in held.iter().zip(ends) {
            let members: Vec<_> = saved.weights.into_iter().zip(ends).collect();
            self.states("block", &members);
        }
        self.states("embedding", &[(outer, last)]);
    }

    fn block(&mut self, block: u32, x: ValueId) -> Block {
        let attention = self.attention;
        Block {
            x,
            n1: (self.norm && attention).then(|| self.saved("n1", block, Split::Rows)),
            attention: attention.then(|| {
                let qkv = self.saved("qkv", block, Split::Groups);
                (qkv, self.saved("o", block, Split::Groups))
            }),
            x2: (attention && self.mlp).then(|| self.saved("x2", block, Split::Rows)),
            h: self.mlp.then(|| self.saved("h", block, Split::Rows)),
            weights: [
                self.weights("attention", Some(block)),
                self.weights("mlp", Some(block)),
            ],
        }
    }

    fn forward(&mut self, block: u32, b: &Block, next: ValueId) {
        let at = Some(block);
        let [(wa, _), (wm, _)] = b.weights;
        let reading = |reads: &[ValueId], writes: ValueId| Uses {
            reads: reads.to_vec(),
            writes: vec![writes],
            ..Uses::default()
        };
        if let Some((qkv, o)) = b.attention {
            let mut body = Vec::new();
            if let Some(n1) = b.n1 {
                let norm = self.op("norm", at, Domain::Rows, reading(&[b.x], n1));
                body.push(Node::Rows(vec![norm]));
            }
            let uses = reading(&[b.n1.unwrap_or(b.x), wa], qkv);
            let project = self.op("project", at, Domain::RowsOfGroup, uses);
            let attend = self.op("attend", at, Domain::Group, reading(&[qkv], o));
            body.push(Node::Groups(vec![Node::Rows(vec![project]), attend]));
            self.step("attention", at, Phase::Forward, body);
        }
        let mut body = Vec::new();
        if let Some((_, o)) = b.attention {
            let uses = Uses {
                reads: vec![b.x, o, wa],
                accumulates: vec![b.x2.unwrap_or(next)],
                ..Uses::default()
            };
            body.push(self.op("out", at, Domain::RowsOfGroup, uses));
        }
        if let Some(h) = b.h {
            let x2 = b.x2.unwrap_or(b.x);
            body.push(self.op("up", at, Domain::Rows, reading(&[x2, wm], h)));
            body.push(self.op("down", at, Domain::Rows, reading(&[x2, h, wm], next)));
        }
        self.step("mlp", at, Phase::Forward, vec![Node::Rows(body)]);
    }

    /// Loss and the first residual gradient, a tile at a time.
    fn head(&mut self, outer: (ValueId, ValueId), x: ValueId) -> ValueId {
        let logits = self.value("logits", None, Split::Rows, Category::Transients);
        let residual = self.value("residual", None, Split::Whole, Category::Transients);
        let uses = Uses {
            reads: vec![x, outer.0],
            writes: vec![logits],
            ..Uses::default()
        };
        let project = self.op("head", None, Domain::Rows, uses);
        let uses = Uses {
            reads: vec![x, logits, outer.0],
            writes: vec![residual],
            accumulates: vec![outer.1],
            updates: vec![],
        };
        let back = self.op("head", None, Domain::Rows, uses);
        self.step(
            "head",
            None,
            Phase::Forward,
            vec![Node::Rows(vec![project, back])],
        );
        residual
    }

    /// The steps that contribute last to the gradients of attention and MLP.
    fn backward(&mut self, block: u32, b: &Block, residual: ValueId) -> [StepId; 2] {
        let at = Some(block);
        let passing =
            |drawing: &mut Self, name, split| drawing.value(name, at, split, Category::Transients);
        let [(wa, ga), (wm, gm)] = b.weights;
        let mut end = [StepId::from_index(0); 2];
        if let Some(h) = b.h {
            let dh = passing(self, "dh", Split::Rows);
            let uses = Uses {
                reads: vec![residual, wm, h],
                writes: vec![dh],
                accumulates: vec![gm],
                updates: vec![],
            };
            let down = self.op("down_back", at, Domain::Rows, uses);
            let uses = Uses {
                reads: vec![dh, b.x2.unwrap_or(b.x), wm],
                accumulates: vec![gm],
                updates: vec![residual],
                ..Uses::default()
            };
            let up = self.op("up_back", at, Domain::Rows, uses);
            end = [self.step(
                "mlp backward",
                at,
                Phase::Backward,
                vec![Node::Rows(vec![down, up])],
            ); 2];
        }
        let Some((qkv, o)) = b.attention else {
            return end;
        };
        let d_o = passing(self, "do", Split::Groups);
        let d_qkv = passing(self, "dqkv", Split::Groups);
        let d_n1 = passing(self, "dn1", Split::Whole);
        let uses = Uses {
            reads: vec![residual, o, wa],
            writes: vec![d_o],
            accumulates: vec![ga],
            updates: vec![],
        };
        let out = self.op("out_back", at, Domain::RowsOfGroup, uses);
        let uses = Uses {
            reads: vec![qkv, o, d_o],
            writes: vec![d_qkv],
            ..Uses::default()
        };
        let attend = self.op("attend_back", at, Domain::Group, uses);
        let uses = Uses {
            reads: vec![b.n1.unwrap_or(b.x), d_qkv, wa],
            accumulates: vec![d_n1, ga],
            ..Uses::default()
        };
        let project = self.op("project_back", at, Domain::RowsOfGroup, uses);
        let uses = Uses {
            reads: vec![b.x, d_n1],
            updates: vec![residual],
            ..Uses::default()
        };
        let norm = self.op("norm_back", at, Domain::Rows, uses);
        let groups = Node::Groups(vec![
            Node::Rows(vec![out]),
            attend,
            Node::Rows(vec![project]),
        ]);
        let body = vec![groups, Node::Rows(vec![norm])];
        let step = self.step("attention backward", at, Phase::Backward, body);
        [step, if self.mlp { end[1] } else { step }]
    }

    fn states(&mut self, name: &str, members: &[((ValueId, ValueId), StepId)]) {
        // Blocks without an MLP have no use for its weights, nor the other way round.
        let used = |value: ValueId| {
            self.problem
                .ops
                .values()
                .any(|op| op.reads.contains(&value))
        };
        let members: Vec<_> = members
            .iter()
            .filter(|((w, _), _)| used(*w))
            .copied()
            .collect();
        let states = (self.states && !self.fused).then(|| {
            let bytes = self.weight * (2 * members.len() as u64);
            let states = self.value("states", None, Split::Whole, Category::OptimizerStates);
            self.problem.values[states].fixed_bytes = bytes;
            states
        });
        let last = self.problem.last_step();
        let (mut updates, mut norms) = (Vec::new(), Vec::new());
        for &((weight, gradient), after) in &members {
            let uses = Uses {
                reads: vec![gradient],
                updates: [weight].into_iter().chain(states).collect(),
                ..Uses::default()
            };
            let Node::Op(op) = self.op("update", None, Domain::Whole, uses) else {
                unreachable!("an operator")
            };
            updates.push((if self.fused { after } else { last }, op));
            if self.clips {
                let uses = Uses {
                    reads: vec![gradient],
                    ..Uses::default()
                };
                let Node::Op(op) = self.op("gradient_norm", None, Domain::Whole, uses) else {
                    unreachable!("an operator")
                };
                norms.push((after, op));
            }
        }
        let parameters = self.weight.get() / 2 * members.len() as u64;
        self.problem.states.push(StateGroup {
            name: name.to_owned(),
            weights: members.iter().map(|((w, _), _)| *w).collect(),
            gradients: members.iter().map(|((_, g), _)| *g).collect(),
            parameters,
            states,
            updates,
            norms,
            host: (!self.fused).then(|| HostOptimizer {
                duration: Nanos::new(parameters / 2),
                bytes: states.map_or(Bytes::ZERO, |s| self.problem.value_bytes(s)),
            }),
        });
    }
}
