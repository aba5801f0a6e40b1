//! The auto-tuner: which method, which micro-batch and which storage give the most tokens a second.
//!
//! In: a request whose sequences of a step (`batch × accumulate`) are wanted, and what may be
//! chosen. Out: a plan, or why there is none, for each method, for each way to cut the sequences
//! into micro-batches and for each storage of what is saved, the fastest first; of equals that
//! which changes least. Cutting changes no result but for rounding, and strategy, tiles and
//! placements are the search's own decisions; methods and storages change what is learnt, so that
//! none is tried that was not allowed.

use std::time::Instant;

use ebbtide_solver::build::Infeasible;
use ebbtide_solver::search::{Options, Strategy};

use crate::device::arithmetic::Arithmetic;
use crate::device::packed::Storage;
use crate::error::Error;
use crate::lower::Workload;
use crate::methods::Method;
use crate::planning::{plan, Planned, Request};

/// One choice and what came of it.
#[derive(Debug)]
pub struct Candidate {
    /// The method.
    pub method: Method,
    /// The workload, cut into micro-batches.
    pub workload: Workload,
    /// How what is saved is packed, if it is.
    pub storage: Option<Storage>,
    /// How linear layers multiply.
    pub arithmetic: Arithmetic,
    /// The plan, why nothing fits, or why the choice cannot be.
    pub outcome: Outcome,
}

/// What may be chosen.
#[derive(Clone, Debug, PartialEq)]
pub struct Freedom {
    /// Methods.
    pub methods: Vec<Method>,
    /// Storages beside none.
    pub storages: Vec<Storage>,
    /// How linear layers may multiply: as the first says, unless another is faster.
    pub arithmetics: Vec<Arithmetic>,
    /// Whether sequences may be cut otherwise than they are.
    pub cuts: bool,
}

/// What came of a choice.
#[derive(Debug)]
pub enum Outcome {
    /// A plan.
    Planned(Box<Planned>),
    /// Nothing fits.
    Infeasible(Box<Infeasible>),
    /// The method cannot be combined with it.
    Refused(Error),
}

impl Candidate {
    /// Tokens a second, where there is a plan.
    pub fn rate(&self) -> Option<f64> {
        match &self.outcome {
            Outcome::Planned(planned) => Some(planned.file.predicted.tokens_per_s),
            Outcome::Infeasible(_) | Outcome::Refused(_) => None,
        }
    }
}

/// A storage or arithmetic that rounds more is taken where it is this many times as fast.
const WORTH: f64 = 1.001;

/// The most micro-batches of a step.
const MOST_MICRO_BATCHES: u64 = 64;

/// The ways to cut the sequences of a step into equal micro-batches, the largest first.
pub fn cuts(workload: &Workload) -> Vec<Workload> {
    let sequences = workload.batch * u64::from(workload.accumulate);
    let counts = (1..=sequences.min(MOST_MICRO_BATCHES)).filter(|n| sequences % n == 0);
    counts
        .map(|count| Workload {
            batch: sequences / count,
            accumulate: u32::try_from(count).expect("at most 64"),
            ..*workload
        })
        .collect()
}

/// A choice.
type Choice = (Arithmetic, Option<Storage>, Method, Workload);

/// All choices, those that change least first.
fn choices(request: &Request<'_>, freedom: &Freedom) -> Vec<Choice> {
    let cuts = match freedom.cuts {
        true => cuts(&request.workload),
        false => vec![request.workload],
    };
    let storages = freedom.storages.iter().map(|&storage| Some(storage));
    let storages = [None].into_iter().chain(storages);
    let mut choices = Vec::new();
    for &arithmetic in &freedom.arithmetics {
        for storage in storages.clone() {
            for &method in &freedom.methods {
                let of_cut = cuts.iter().map(|&cut| (arithmetic, storage, method, cut));
                choices.extend(of_cut);
            }
        }
    }
    choices
}

/// Plans with every choice, in equal parts of the time that is left; the fastest first, and those
/// without a plan last.
pub fn tune(
    request: &Request<'_>,
    freedom: &Freedom,
    strategy: Strategy,
    options: &Options,
) -> Vec<Candidate> {
    let choices = choices(request, freedom);
    let mut left = u32::try_from(choices.len()).unwrap_or(u32::MAX);
    let mut found = Vec::new();
    for (arithmetic, storage, method, workload) in choices {
        let now = Instant::now();
        let share = |end: Instant| now + end.saturating_duration_since(now) / left.max(1);
        let options = Options {
            deadline: options.deadline.map(share),
            ..*options
        };
        let request = Request {
            method,
            workload,
            storage,
            arithmetic,
            ..*request
        };
        let outcome = match plan(&request, strategy, &options) {
            Ok(Ok(planned)) => Outcome::Planned(Box::new(planned)),
            Ok(Err(infeasible)) => Outcome::Infeasible(Box::new(infeasible)),
            Err(error) => Outcome::Refused(error),
        };
        found.push(Candidate {
            method,
            workload,
            storage,
            arithmetic,
            outcome,
        });
        left = left.saturating_sub(1);
    }
    let rate = |candidate: &Candidate| candidate.rate().unwrap_or(f64::NEG_INFINITY);
    found.sort_by(|a, b| rate(b).total_cmp(&rate(a)));
    // What rounds more has to be worth it.
    let exact = |c: &Candidate| c.storage.is_none() && c.arithmetic == freedom.arithmetics[0];
    if let Some(nth) = found.iter().position(exact) {
        if rate(&found[nth]) * WORTH >= rate(&found[0]) {
            found[..=nth].rotate_right(1);
        }
    }
    found
}
