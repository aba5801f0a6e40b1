//! The relaxation: a linear program whose optimum no plan can beat.
//!
//! In: a [`Problem`] with its [`Coarse`] outline. Out: a bound in nanoseconds, and how much of
//! every tensor it would keep, swap and recompute. It is the formulation of the search in queue
//! form, every whole-or-nothing choice made fractional, and inside a step every rounding in the
//! plan's favour.
//!
//! What travels may be packed: queues and links count its bytes on the host. On the device it is
//! no smaller, so that counting no more there is in the plan's favour too.
//!
//! For every tensor t (size b, recomputed in c): kept k, kept packed p and swapped s with
//! k + p + s ≤ 1. For every step j of length Δ: bytes out and in, with queues over steps:
//!
//! ```text
//! minimise  Σ Δ_j + tail                 tail ≥ Σ resident_g · update_g
//! compute   Δ_j ≥ compute_j + Σ_{t needed first in j} c_t (1 − k_t − p_t − s_t) + early_j
//!               + κ·copy time
//! packing   Σ Δ_j ≥ Σ_j all of that but κ·copy time + Σ_t packing_t (p_t + s_t)
//! links     out + c·in ≤ β·Δ and its mirror                 the measured polygon
//! out       left_j = left_{j-1} + made_j − out_j ≥ 0        nothing leaves before it is made
//! in        ahead_j = ahead_{j-1} + in_j − needed_j ≥ 0     everything is back when needed
//! memory    fixed + Σ kept, packed ones at their packed size + still leaving + already back
//!               + states ≤ device                                               every moment
//! host      Σ swapped + states there ≤ host
//! ```
//! *Early*: when t is made again in a step before its operands are needed themselves (a block input
//! from the block before: a checkpoint segment), what is not retained of these operands must be
//! made for it and, unless it is held, made again later; early_u ≥ r_t + r_u − 1 for such an
//! operand u.
//!
//! *Packing*: what is packed and unpacked on the compute stream takes time of its own, what copies
//! pack and unpack delays compute by as much. When that is depends on the plan (what an earlier
//! recomputation unpacks may stay), so one row counts it over all steps.
//!
//! Time is in thousandths of the floor, memory in hundredths of what there is to decide about: the
//! solver's tolerances want numbers near one, whatever the problem's scale.

mod memory;

use crate::problem::Problem;

use super::coarse::Coarse;
use super::lp::{Column, Lp, Optimum, Unsolved};

/// What the relaxation found.
#[derive(Clone, Debug)]
pub struct Relaxed {
    /// No plan is faster, in nanoseconds.
    pub bound_ns: u64,
    /// For every class: the fractions that are stored.
    pub fates: Vec<Fractions>,
    /// For every group of groups: the fractions resident, with the optimizer on the host, and
    /// streamed.
    pub placements: Vec<[f64; 3]>,
    /// So many of the first groups stay, whatever the fractions say.
    pub first: usize,
}

/// How much of a class is stored, and how; the rest is made again.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Fractions {
    /// Kept on the device.
    pub keep: f64,
    /// Kept there packed.
    pub pack: f64,
    /// Swapped.
    pub swap: f64,
}

impl Fractions {
    /// All that is stored.
    pub fn retained(self) -> f64 {
        self.keep + self.pack + self.swap
    }
}

/// What a plan must leave free beyond what the relaxation knows: for planning, not for the bound.
#[derive(Clone, Debug, Default)]
pub struct Margins {
    /// Device bytes in every epoch.
    pub device: Vec<u64>,
    /// Host bytes.
    pub host: u64,
    /// For every class, the fraction retained where that is already decided.
    pub retained: Vec<Option<f64>>,
    /// Whether no weights may be streamed.
    pub resident: bool,
    /// So many of the first groups of model states stay.
    pub first: usize,
    /// The part of the links that is left unused.
    pub link: f64,
    /// Whether what leaves before a step's tightest moment takes memory until then.
    pub lingering: bool,
}

/// Solves the relaxation.
///
/// # Errors
/// When even the relaxation is infeasible, or cannot be solved.
pub fn relax(problem: &Problem, coarse: &Coarse, margins: &Margins) -> Result<Relaxed, Unsolved> {
    let model = Model::built(problem, coarse, margins);
    let optimum = model.lp.minimise()?;
    Ok(model.read(&optimum))
}

struct Model<'a> {
    problem: &'a Problem,
    coarse: &'a Coarse,
    margins: &'a Margins,
    lp: Lp,
    units: Units,
    /// Cost of a unit of memory that moves though it need not: ties go to what stays.
    nudge: f64,
    keep: Vec<Column>,
    swap: Vec<Column>,
    /// Kept packed, for classes that can be.
    pack: Vec<Option<Column>>,
    /// Fractions made early for other classes, with the epochs in which that happens.
    early: Vec<Vec<(Column, usize)>>,
    /// Resident, host optimizer (where the method has one), streamed.
    placed: Vec<(Column, Option<Column>, Column)>,
    /// Weights that stay from forward to backward though they are streamed.
    stays: Vec<Option<Column>>,
}

/// All ties together cost at most this fraction of the floor, which the bound gives back.
const NUDGE: f64 = 1e-5;

/// What one is in the program.
#[derive(Clone, Copy)]
struct Units {
    bytes: f64,
    nanos: f64,
    /// All bytes that can move one way: tensors once, weights twice, gradients.
    all: f64,
}

/// The step without anything recomputed, in units of time.
const FLOOR: f64 = 1000.0;

impl Units {
    fn of(coarse: &Coarse) -> Self {
        let tensors: u64 = coarse.classes.iter().map(|c| c.bytes).sum();
        let weights: u64 = coarse.groups.iter().map(|g| g.weight_bytes).sum();
        let floor: u64 = coarse.epochs.iter().map(|e| e.compute_ns).sum();
        let gradients: u64 = coarse.groups.iter().map(|g| g.gradient_bytes).sum();
        let bytes = ((tensors + weights) as f64 / 100.0).max(1.0);
        Self {
            bytes,
            nanos: (floor as f64 / FLOOR).max(f64::MIN_POSITIVE),
            all: (tensors + 3 * weights + gradients) as f64 / bytes,
        }
    }
}

impl<'a> Model<'a> {
    fn built(problem: &'a Problem, coarse: &'a Coarse, margins: &'a Margins) -> Self {
        let mut model = Model {
            problem,
            coarse,
            margins,
            lp: Lp::default(),
            units: Units::of(coarse),
            // A hundred units of memory, weights counted twice.
            nudge: NUDGE * FLOOR / 200.0,
            keep: Vec::new(),
            swap: Vec::new(),
            pack: Vec::new(),
            early: vec![Vec::new(); coarse.classes.len()],
            placed: Vec::new(),
            stays: Vec::new(),
        };
        model.tensors();
        model.states();
        model.steps();
        model.host();
        model
    }

    fn mem(&self, bytes: u64) -> f64 {
        bytes as f64 / self.units.bytes
    }

    fn time(&self, nanos: u64) -> f64 {
        nanos as f64 / self.units.nanos
    }

    fn repeats(&self) -> f64 {
        f64::from(self.problem.rounds())
    }

    fn tensors(&mut self) {
        for (c, class) in self.coarse.classes.iter().enumerate() {
            let keep = self.lp.column(0.0, 1.0);
            let nudge = self.nudge * self.mem(class.bytes);
            let swap = self.lp.column(nudge, 1.0);
            let pack = class.packs.then(|| self.lp.column(nudge, 1.0));
            self.keep.push(keep);
            self.swap.push(swap);
            self.pack.push(pack);
            let retained = self.retained(c, 1.0).collect();
            match self.margins.retained.get(c).copied().flatten() {
                Some(fraction) => self.lp.equal(retained, fraction),
                None => self.lp.at_most(retained, 1.0),
            }
        }
        for c in 0..self.coarse.classes.len() {
            self.made_early(c);
        }
    }

    /// What is stored of a class, each fraction with this factor.
    fn retained(&self, class: usize, factor: f64) -> impl Iterator<Item = (Column, f64)> {
        let columns = [
            Some(self.keep[class]),
            Some(self.swap[class]),
            self.pack[class],
        ];
        columns.into_iter().flatten().map(move |c| (c, factor))
    }

    /// early ≥ (made again of the readers) + (not retained of the class) − 1, in each epoch in
    /// which
    /// a reader is made again; what is made early wants its own operands early.
    fn made_early(&mut self, class: usize) {
        let members = self.coarse.classes[class].members.len() as f64;
        for readers in &self.coarse.classes[class].early_readers {
            let epochs = readers.iter().map(|&(r, _)| self.coarse.classes[r].needed);
            let early = self.early_columns(class, &epochs.collect::<Vec<_>>());
            let mut row: Vec<_> = early.iter().map(|&c| (c, -members)).collect();
            row.extend(self.retained(class, -members));
            let mut read = 0.0;
            for &(reader, count) in readers {
                // Readers of a class are decided together: each reads one member.
                let count = count as f64;
                row.extend(self.retained(reader, -count));
                read += count;
            }
            self.lp.at_most(row, -read);
            self.operands_early(class, &early);
        }
    }

    fn operands_early(&mut self, class: usize, made: &[Column]) {
        let epochs: Vec<_> = self.early[class].iter().map(|&(_, at)| at).collect();
        for &operand in &self.coarse.classes[class].operands {
            let early = self.early_columns(operand, &epochs);
            let mut row: Vec<_> = early.iter().map(|&c| (c, -1.0)).collect();
            row.extend(made.iter().map(|&c| (c, 1.0)));
            row.extend(self.retained(operand, -1.0));
            self.lp.at_most(row, 0.0);
            self.operands_early(operand, &early);
        }
    }

    /// The columns of what is made early of a class, one for each of these epochs at least.
    fn early_columns(&mut self, class: usize, epochs: &[usize]) -> Vec<Column> {
        for &epoch in epochs {
            if self.early[class].iter().all(|&(_, at)| at != epoch) {
                let column = self.lp.column(0.0, 1.0);
                self.early[class].push((column, epoch));
            }
        }
        self.early[class]
            .iter()
            .map(|&(column, _)| column)
            .collect()
    }

    fn states(&mut self) {
        for group in &self.coarse.groups {
            let resident = self.lp.column(0.0, 1.0);
            let nudge = self.nudge * self.mem(group.weight_bytes);
            let host = group.host_ns.map(|_| self.lp.column(nudge, 1.0));
            let most = if self.margins.resident { 0.0 } else { 1.0 };
            let streamed = self.lp.column(2.0 * nudge, most);
            let mut row = vec![(resident, 1.0), (streamed, 1.0)];
            row.extend(host.map(|h| (h, 1.0)));
            self.lp.equal(row, 1.0);
            let first = group.members.iter().filter(|&&m| m < self.margins.first);
            let first = first.count() as f64 / group.members.len() as f64;
            if first > 0.0 {
                self.lp.at_most(vec![(resident, -1.0)], -first);
            }
            self.placed.push((resident, host, streamed));
            let both = group.forward.is_some() && group.backward.is_some();
            self.stays.push(both.then(|| {
                let stays = self.lp.column(0.0, 1.0);
                self.lp.at_most(vec![(stays, 1.0), (streamed, -1.0)], 0.0);
                stays
            }));
        }
    }

    /// A column for bytes that move or wait to: at most all there are. Tight limits help the proof.
    fn moving(&mut self) -> Column {
        self.lp.column(0.0, self.units.all)
    }

    // ---- epochs -------------------------------------------------------------------------------

    fn steps(&mut self) {
        let epochs = self.coarse.epochs.len();
        let (mut left, mut ahead, mut host_left) = (None, None, None);
        let mut lengths = Vec::new();
        // One epoch more than there are: the tail, in which links and host finish.
        for j in 0..=epochs {
            let tail = j == epochs;
            let cost = if tail { 1.0 } else { self.repeats() };
            let length = self.lp.column(cost, f64::INFINITY);
            let out = self.moving();
            let into = self.moving();
            self.links(length, out, into);
            self.compute(j, length, out, into);
            let new_left = self.lp.column(0.0, if tail { 0.0 } else { self.units.all });
            // left_j − left_{j-1} − made_j + out_j = 0
            let leaving = self.leaving(j);
            let mut row = vec![(new_left, 1.0), (out, 1.0)];
            row.extend(left.map(|l| (l, -1.0)));
            row.extend(leaving.iter().map(|&(c, bytes)| (c, -bytes)));
            self.lp.equal(row, 0.0);
            // ahead_j − ahead_{j-1} − in_j + needed_j = 0
            let needed = self.arriving(j);
            let new_ahead = self.moving();
            let mut row = vec![(new_ahead, 1.0), (into, -1.0)];
            row.extend(ahead.map(|a| (a, -1.0)));
            row.extend(needed.iter().copied());
            self.lp.equal(row, 0.0);
            host_left = self.host_queue(j, length, host_left);
            if !tail {
                self.memory(j, length, (left, new_left), ahead, &needed);
                lengths.push(length);
            }
            (left, ahead) = (Some(new_left), Some(new_ahead));
        }
        self.packing(&lengths);
    }

    /// All steps together take all of compute, and all packing and unpacking.
    fn packing(&mut self, lengths: &[Column]) {
        let classes = &self.coarse.classes;
        if classes.iter().all(|class| class.packing_ns == 0) {
            return;
        }
        let mut row: Vec<_> = lengths.iter().map(|&length| (length, -1.0)).collect();
        let once: u64 = self.coarse.epochs.iter().map(|e| e.compute_ns).sum();
        let again: u64 = classes.iter().map(|class| class.recompute_ns).sum();
        for (c, class) in classes.iter().enumerate() {
            let cost = self.time(class.recompute_ns);
            let packed = self.time(class.packing_ns) - cost;
            row.push((self.keep[c], -cost));
            row.push((self.swap[c], packed));
            row.extend(self.pack[c].map(|pack| (pack, packed)));
            row.extend(self.early[c].iter().map(|&(column, _)| (column, cost)));
        }
        self.lp.at_most(row, -self.time(once + again));
    }

    /// What becomes ready to leave in epoch `j`: (column, units of memory).
    fn leaving(&self, j: usize) -> Vec<(Column, f64)> {
        let mut terms = Vec::new();
        for (c, class) in self
            .coarse
            .classes
            .iter()
            .enumerate()
            .filter(|(_, t)| t.made == j)
        {
            terms.push((self.swap[c], self.mem(class.host_bytes)));
        }
        for (g, group) in self.coarse.groups.iter().enumerate() {
            if group.completes_in(j) {
                terms.extend(self.leaving_of_group(g));
            }
        }
        terms
    }

    /// The host's optimizer wants gradients; a fused one on the device sends new weights back, once
    /// in all rounds.
    fn leaving_of_group(&self, g: usize) -> Vec<(Column, f64)> {
        let group = &self.coarse.groups[g];
        let (_, host, streamed) = self.placed[g];
        let sent = if host.is_some() {
            self.mem(group.gradient_bytes)
        } else {
            self.mem(group.weight_bytes) / self.repeats()
        };
        host.into_iter()
            .chain([streamed])
            .map(|c| (c, sent))
            .collect()
    }

    /// What must have arrived by the end of epoch `j`: (column, units of memory).
    fn arriving(&self, j: usize) -> Vec<(Column, f64)> {
        let mut terms = Vec::new();
        for (c, class) in self
            .coarse
            .classes
            .iter()
            .enumerate()
            .filter(|(_, t)| t.needed == j)
        {
            terms.push((self.swap[c], self.mem(class.host_bytes)));
        }
        for (g, group) in self.coarse.groups.iter().enumerate() {
            let (_, host, streamed) = self.placed[g];
            let weights = self.mem(group.weight_bytes);
            if group.forward.is_some_and(|(first, _)| first == j) {
                terms.push((streamed, weights));
            }
            if group.backward.is_some_and(|(first, _)| first == j) {
                terms.push((streamed, weights));
                terms.extend(self.stays[g].map(|c| (c, -weights)));
            }
            if j == self.coarse.epochs.len() {
                terms.extend(host.map(|c| (c, weights)));
            }
        }
        terms
    }

    fn links(&mut self, length: Column, out: Column, into: Column) {
        for cut in self.problem.machine.links.contention() {
            // Units of memory in a unit of time.
            let capacity = cut.capacity as f64 * (1.0 - self.margins.link);
            let per_unit = self.units.bytes * 1e9 / (self.units.nanos * capacity);
            let weights = [cut.d2h_weight, cut.h2d_weight].map(|w| w as f64 * per_unit);
            self.lp.at_most(
                vec![(length, -1.0), (out, weights[0]), (into, weights[1])],
                0.0,
            );
        }
    }

    fn compute(&mut self, j: usize, length: Column, out: Column, into: Column) {
        let Some(epoch) = self.coarse.epochs.get(j) else {
            // Updates on the device run last, beside copies and the host's.
            let groups = self.coarse.groups.iter().zip(&self.placed);
            let updates = groups.map(|(g, placed)| (placed.0, self.time(g.update_ns)));
            let row = updates.chain([(length, -1.0)]).collect();
            self.lp.at_most(row, 0.0);
            return;
        };
        let mut terms = vec![(length, -1.0)];
        let mut constant = self.time(epoch.compute_ns);
        for (c, class) in self.coarse.classes.iter().enumerate() {
            let cost = self.time(class.recompute_ns);
            if class.needed == j {
                constant += cost;
                terms.extend(self.retained(c, -cost));
            }
            let early = self.early[c].iter().filter(|&&(_, at)| at == j);
            terms.extend(early.map(|&(column, _)| (column, cost)));
        }
        // While a copy runs, compute progresses at 1/(1+σ) of its speed, or waits.
        let machine = &self.problem.machine;
        let drag = |ppm: u32| {
            let sigma = f64::from(ppm) / 1e6;
            sigma / (1.0 + sigma)
        };
        let slow = machine.matmul_slowdown;
        let gentle = machine.elementwise_slowdown;
        let copies = [
            (
                out,
                slow.d2h_ppm.min(gentle.d2h_ppm),
                machine.links.d2h.rate,
            ),
            (
                into,
                slow.h2d_ppm.min(gentle.h2d_ppm),
                machine.links.h2d.rate,
            ),
        ];
        let mut slowed = false;
        for (column, ppm, rate) in copies {
            if ppm == 0 {
                continue;
            }
            let mut row = terms.clone();
            row.push((
                column,
                drag(ppm) * self.units.bytes * 1e9 / (self.units.nanos * rate.get() as f64),
            ));
            self.lp.at_most(row, -constant);
            slowed = true;
        }
        if !slowed {
            self.lp.at_most(terms, -constant);
        }
    }

    /// The host's optimizer: work that its groups bring, less what an epoch's length serves.
    fn host_queue(&mut self, j: usize, length: Column, left: Option<Column>) -> Option<Column> {
        if self.coarse.groups.iter().all(|g| g.host_ns.is_none()) {
            return None;
        }
        let tail = j == self.coarse.epochs.len();
        let column = self.lp.column(0.0, if tail { 0.0 } else { f64::INFINITY });
        // left_j ≥ left_{j-1} + brought_j − Δ_j
        let mut row = vec![(column, -1.0), (length, -1.0)];
        row.extend(left.map(|l| (l, 1.0)));
        for (g, group) in self.coarse.groups.iter().enumerate() {
            let begins = match self.problem.clips() {
                true => tail,
                false => group.completes_in(j),
            };
            let (Some(work), true) = (group.host_ns, begins) else {
                continue;
            };
            row.extend(self.placed[g].1.map(|c| (c, self.time(work))));
            row.push((self.placed[g].2, self.time(work)));
        }
        self.lp.at_most(row, 0.0);
        Some(column)
    }

    fn read(&self, optimum: &Optimum) -> Relaxed {
        let bound = (optimum.bound - NUDGE * FLOOR).max(0.0);
        let value = |c: Column| optimum.value(c);
        let fractions = |c: usize| Fractions {
            keep: value(self.keep[c]),
            pack: self.pack[c].map_or(0.0, value),
            swap: value(self.swap[c]),
        };
        Relaxed {
            bound_ns: (bound * self.units.nanos) as u64,
            fates: (0..self.keep.len()).map(fractions).collect(),
            placements: self
                .placed
                .iter()
                .map(|&(resident, host, streamed)| {
                    [value(resident), host.map_or(0.0, value), value(streamed)]
                })
                .collect(),
            first: self.margins.first,
        }
    }
}
