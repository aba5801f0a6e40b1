//! wip
use super::costs::Costs;
use super::interval::{Intervals, Scope};
use super::{bound, Chain, Failure, Solution, Status};
use std::time::Instant;
/// wip
pub fn solve(chain: &Chain, deadline: Option<Instant>) -> Result<Solution, Failure> {
    let costs = Costs::of(chain)?;
    let scope = Scope {
        rebuilds: true,
        extra_limit: u64::MAX,
        most_points: std::env::var("PTS").ok().and_then(|x| x.parse().ok()).unwrap_or(16384),
        deadline,
    };
    let table = Intervals::solve(&costs, scope).ok_or(Failure::NoTime)?;
    match table.sequence() {
        Some(sequence) => {
            Ok(super::judged(chain, sequence, Some(bound::floor(&costs)), Status::Gap))
        }
        None => Err(super::infeasible(&costs, chain)),
    }
}
