//! wip
use super::costs::Costs;
use super::interval::{Intervals, Scope};
use super::{bound, Chain, Failure, Solution, Status};
use std::time::Instant;
/// wip
pub fn solve(chain: &Chain, deadline: Option<Instant>) -> Result<Solution, Failure> {
    let costs = Costs::of(chain)?;
    let Some(lb) = bound::one_moment(&costs) else { return Err(super::infeasible(&costs, chain)) };
    let pts: usize = std::env::var("PTS").ok().and_then(|x| x.parse().ok()).unwrap_or(4096);
    let mut slack = 0;
    loop {
        let t = Instant::now();
        let scope = Scope {
            budget: costs.budget,
            rebuilds: true,
            extra_limit: lb.saturating_add(slack),
            inner_limit: slack,
            most_points: pts,
            deadline,
        };
        let table = Intervals::solve(&costs, scope).ok_or(Failure::NoTime)?;
        eprintln!("   slack {slack} {:?} {:?}", table.extra(), t.elapsed());
        if let Some(extra) = table.extra() {
            let mut b = lb;
            if extra > lb {
                let t = Instant::now();
                let r = bound::two_moments(&costs, lb, extra);
                eprintln!("   lb1 {lb} ub {extra} lb2 {r:?} {:?}", t.elapsed());
                b = r.unwrap_or(lb);
            }
            return Ok(super::judged(chain, table.sequence().unwrap(), Some(costs.floor() + b), Status::Gap));
        }
        if slack == u64::MAX { return Err(super::infeasible(&costs, chain)); }
        slack = if slack == 0 { costs.floor() / 256 } else if slack > costs.floor() * 32 { u64::MAX } else { slack * 4 };
    }
}
