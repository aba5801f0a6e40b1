//! Why nothing fits, for a person: which step, which bytes, and what would make it fit.

use std::time::Duration;

use ebbtide_solver::build::Infeasible;
use ebbtide_solver::units::{Bytes, Nanos, Tokens};

use super::by_category;
use crate::error::Error;
use crate::planning::WouldFit;

/// What runs out, in a few words: `device memory: 80.1 GiB of 72.0 GiB in mlp of block 3`.
pub fn what_binds(infeasible: &Infeasible) -> String {
    let Infeasible { needed, limit, .. } = infeasible;
    let size = match needed.to_string() == limit.to_string() {
        true => format!("{} more than {limit}", needed.saturating_sub(*limit)),
        false => format!("{needed} of {limit}"),
    };
    match &infeasible.step {
        None => format!("host memory: {size}"),
        Some(step) => format!("device memory: {size} in {step}"),
    }
}

/// The error that says why `what` does not fit, and what would.
pub fn error(what: &str, infeasible: &Infeasible, would_fit: &WouldFit) -> Error {
    let Infeasible { needed, limit, .. } = infeasible;
    let place = match (&infeasible.step, &infeasible.operator) {
        (None, _) => "host memory".to_owned(),
        (Some(step), None) => format!("device memory in {step}"),
        (Some(step), Some(operator)) => format!("device memory at {operator} in {step}"),
    };
    let parts = match by_category(&infeasible.by_category) {
        parts if parts.is_empty() => parts,
        parts => format!(" ({parts})"),
    };
    let message = format!(
        "{what} does not fit: the nearest plan takes {needed} of {place}, the limit is \
         {limit}{parts}"
    );
    Error::infeasible(message).hint(ways_out(would_fit))
}

/// The error that says that no plan for `what` was found in the time for it.
pub fn late(what: &str, infeasible: &Infeasible, time: Duration) -> Error {
    let time = Nanos::new(u64::try_from(time.as_nanos()).unwrap_or(u64::MAX));
    let miss = what_binds(infeasible);
    let message =
        format!("no plan for {what} was found in {time}; the nearest miss is one of {miss}");
    Error::infeasible(message).hint("a longer --time-limit tells whether it fits")
}

fn ways_out(would_fit: &WouldFit) -> String {
    // Rounded up to what a person would type.
    let flag = |bytes: Bytes| match bytes.get().div_ceil(1 << 30) {
        0 | 1 => format!("{}MiB", bytes.get().div_ceil(1 << 20)),
        gib => format!("{gib}GiB"),
    };
    let mut ways = Vec::new();
    if let Some(device) = would_fit.device {
        ways.push(format!("--device-memory {}", flag(device)));
    }
    if let Some(host) = would_fit.host {
        ways.push(format!("--host-memory {}", flag(host)));
    }
    if let Some(both) = would_fit.both {
        let (device, host) = (flag(both.device), flag(both.host));
        ways.push(format!(
            "--device-memory {device} with --host-memory {host}"
        ));
    }
    if let Some(seq) = would_fit.seq {
        ways.push(format!("--seq {}", Tokens::new(seq)));
    }
    if let Some(method) = would_fit.method {
        ways.push(format!("--method {method}"));
    }
    if ways.is_empty() {
        return "more memory on device and host, or a smaller model".into();
    }
    format!("it fits with {}", ways.join(", or "))
}
