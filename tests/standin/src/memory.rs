//! The card's memory and the host's pinned memory: which addresses are whose.

use std::collections::BTreeMap;
use std::sync::Mutex;

use crate::faults::{lock, number};
use crate::status::{ILLEGAL_ADDRESS, INVALID_VALUE, OUT_OF_MEMORY};

/// Bytes before and behind an allocation that nobody may change.
const GUARD: usize = 512;
const GUARDED: u8 = 0xA5;
/// What the context takes.
const CONTEXT: u64 = 300 << 20;

/// Where addresses are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// In the card's memory.
    Card,
    /// In pinned memory.
    Pinned,
}

struct Known {
    /// Bytes by first address.
    card: BTreeMap<u64, u64>,
    pinned: BTreeMap<u64, u64>,
}

static KNOWN: Mutex<Known> = Mutex::new(Known {
    card: BTreeMap::new(),
    pinned: BTreeMap::new(),
});

/// Free and total bytes of the card.
pub fn info() -> (u64, u64) {
    let total = number("EBBTIDE_STANDIN_MEMORY", 8 << 30);
    let taken: u64 = lock(&KNOWN).card.values().sum();
    (total.saturating_sub(CONTEXT + taken), total)
}

/// Whether bytes from an address on are within one allocation.
pub fn check(side: Side, address: u64, bytes: u64) -> Result<(), u32> {
    let known = lock(&KNOWN);
    let all = match side {
        Side::Card => &known.card,
        Side::Pinned => &known.pinned,
    };
    let before = all.range(..=address).next_back();
    let inside = before.is_some_and(|(&first, &length)| {
        let end = address.checked_add(bytes);
        end.is_some_and(|end| end <= first + length)
    });
    match inside {
        true => Ok(()),
        false => Err(ILLEGAL_ADDRESS),
    }
}

/// The first address of a new allocation.
pub fn allocate(bytes: u64) -> Result<u64, u32> {
    if bytes == 0 {
        return Err(INVALID_VALUE);
    }
    if bytes > info().0 {
        return Err(OUT_OF_MEMORY);
    }
    let size = size(bytes)?;
    // Only what is touched takes memory of this machine: an arena may be larger than that is.
    let (access, kind) = (
        libc::PROT_READ | libc::PROT_WRITE,
        libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
    );
    // SAFETY: a new mapping, wherever the system likes; the guards are within it.
    let base = unsafe {
        let base = libc::mmap(std::ptr::null_mut(), size, access, kind, -1, 0);
        if base == libc::MAP_FAILED {
            return Err(OUT_OF_MEMORY);
        }
        let base = base.cast::<u8>();
        base.write_bytes(GUARDED, GUARD);
        base.add(GUARD + bytes as usize).write_bytes(GUARDED, GUARD);
        base
    };
    let address = base as u64 + GUARD as u64;
    lock(&KNOWN).card.insert(address, bytes);
    Ok(address)
}

/// Gives an allocation back, after a look at its guards.
pub fn free(address: u64) -> Result<(), u32> {
    let bytes = lock(&KNOWN).card.remove(&address).ok_or(INVALID_VALUE)?;
    let base = (address - GUARD as u64) as *mut u8;
    // SAFETY: it was mapped with this size and is known no more.
    unsafe {
        let behind = base.add(GUARD + bytes as usize);
        for guard in [base, behind] {
            let bytes = std::slice::from_raw_parts(guard, GUARD);
            assert!(
                bytes.iter().all(|&byte| byte == GUARDED),
                "a guard was overwritten"
            );
        }
        libc::munmap(base.cast(), size(bytes)?);
    }
    Ok(())
}

/// With the guards.
fn size(bytes: u64) -> Result<usize, u32> {
    let size = usize::try_from(bytes).ok();
    size.and_then(|size| size.checked_add(2 * GUARD))
        .ok_or(OUT_OF_MEMORY)
}

/// Pins memory of the host.
pub fn pin(address: u64, bytes: u64) -> Result<(), u32> {
    if bytes == 0 || check(Side::Pinned, address, 1).is_ok() {
        return Err(INVALID_VALUE);
    }
    lock(&KNOWN).pinned.insert(address, bytes);
    Ok(())
}

/// Unpins it.
pub fn unpin(address: u64) -> Result<(), u32> {
    let removed = lock(&KNOWN).pinned.remove(&address);
    removed.map(drop).ok_or(INVALID_VALUE)
}
