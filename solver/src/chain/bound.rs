//! wip
use super::costs::Costs;
pub(super) fn floor(costs: &Costs) -> u64 { costs.floor() }
