//! What should go wrong, and what is kept once something has.

use std::cell::Cell;
use std::collections::HashMap;
use std::env;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

use crate::status::{INVALID_CONTEXT, SUCCESS};

/// The first error of a command that ran: every later call returns it, as a card's context does.
static LOST: AtomicU32 = AtomicU32::new(SUCCESS);

/// Keeps the first error.
pub fn lose(status: u32) {
    let _ = LOST.compare_exchange(SUCCESS, status, Ordering::AcqRel, Ordering::Acquire);
}

/// The error that is kept.
pub fn lost() -> u32 {
    LOST.load(Ordering::Acquire)
}

thread_local! {
    /// Whether a context is this thread's.
    static CURRENT: Cell<bool> = const { Cell::new(false) };
}

/// Makes the card's context this thread's.
pub fn enter() {
    CURRENT.set(true);
}

/// What is called before there is a context.
const BEFORE: [&str; 4] = [
    "cuInit",
    "cuDeviceGetCount",
    "cuDevicePrimaryCtxRetain",
    "cuCtxSetCurrent",
];

/// Counts a call and says what it is to return, unless all is well.
pub fn call(name: &'static str) -> Result<(), u32> {
    match lost() {
        SUCCESS if !CURRENT.get() && !BEFORE.contains(&name) => Err(INVALID_CONTEXT),
        SUCCESS => injected(name),
        status => Err(status),
    }
}

/// What the environment asks for at this call of a name.
pub fn injected(name: &'static str) -> Result<(), u32> {
    static CALLS: OnceLock<Mutex<HashMap<&'static str, u64>>> = OnceLock::new();
    let mut calls = lock(CALLS.get_or_init(Mutex::default));
    let count = calls.entry(name).or_default();
    *count += 1;
    let wanted = env::var("EBBTIDE_STANDIN_FAIL").unwrap_or_default();
    for fault in wanted.split(',') {
        let parsed = fault.split_once('=').and_then(|(place, status)| {
            let (what, nth) = place.split_once(':')?;
            Some((what, nth.parse::<u64>().ok()?, status.parse::<u32>().ok()?))
        });
        if let Some((what, nth, status)) = parsed {
            if (what, nth) == (name, *count) {
                return Err(status);
            }
        }
    }
    Ok(())
}

/// A lock, whatever became of who held it.
pub fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Whether what is queued is looked at and timed, but not done.
pub fn is_idle() -> bool {
    env::var_os("EBBTIDE_STANDIN_IDLE").is_some()
}

/// A number from the environment.
pub fn number(variable: &str, otherwise: u64) -> u64 {
    let value = env::var(variable).ok();
    value
        .and_then(|text| text.parse().ok())
        .unwrap_or(otherwise)
}

/// The next random number (splitmix64, Steele et al. 2014).
pub fn random(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
    let mut z = *state;
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}
