//! The search: from a problem to the fastest plan it can find, and a bound that no plan beats.

pub mod coarse;
pub mod lp;
pub mod outline;
pub mod relaxation;
