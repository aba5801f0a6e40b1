//! What Linux says of the machine's memory and processor.

use std::fs;

use ebbtide_solver::units::Bytes;

use crate::error::{Error, Result};

/// The machine's memory.
pub struct MachineMemory {
    /// All of it.
    pub total: Bytes,
    /// What a process can get.
    pub available: Bytes,
}

/// The machine's memory.
///
/// # Errors
/// `NoDevice` where there is no `/proc`.
pub fn memory() -> Result<MachineMemory> {
    const FILE: &str = "/proc/meminfo";
    Ok(MachineMemory {
        total: kib(FILE, "MemTotal:")?,
        available: kib(FILE, "MemAvailable:")?,
    })
}

/// What this process holds of it.
///
/// # Errors
/// As [`memory`].
pub fn used() -> Result<Bytes> {
    kib("/proc/self/status", "VmRSS:")
}

/// Processors that this process may use.
pub fn cores() -> u64 {
    std::thread::available_parallelism().map_or(1, |cores| cores.get() as u64)
}

/// What the processor calls itself; `cpu` where it does not.
pub fn processor() -> String {
    let text = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let mut lines = text.lines().filter_map(|line| line.split_once(':'));
    let name = lines.find(|(key, _)| key.trim() == "model name");
    name.map_or_else(|| "cpu".to_owned(), |(_, name)| name.trim().to_owned())
}

/// The KiB behind a key in a file.
fn kib(file: &str, key: &str) -> Result<Bytes> {
    let text = fs::read_to_string(file).ok();
    let line = text.iter().flat_map(|text| text.lines());
    let number = line.filter_map(|line| line.strip_prefix(key)).next();
    let kib = number.and_then(|rest| rest.split_whitespace().next()?.parse::<u64>().ok());
    kib.map(|kib| Bytes::new(kib << 10))
        .ok_or_else(|| Error::no_device(format!("{file} does not say `{key}`")))
}
