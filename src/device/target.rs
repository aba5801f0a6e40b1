//! Devices by the name that a person gives them, and what each says of its machine.

use ebbtide_solver::units::{Bytes, BytesPerSec, Nanos};

use super::cpu::{machine, CpuDevice, CpuOptions, LinkSpeed};
use super::Device;
use crate::error::{Error, Result};
use crate::format::number::LinkRate;
use crate::profile::Workspace;

/// A device that this build has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    /// This machine's processor, with the speed that copies are held to in each direction.
    Cpu(Option<BytesPerSec>),
}

/// What a device says of its machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Facts {
    /// The device's own name.
    pub name: String,
    /// Its memory.
    pub memory: Bytes,
    /// What a process can get of it.
    pub usable: Bytes,
    /// The host's memory.
    pub host_memory: Bytes,
    /// The host's cores.
    pub cores: u64,
    /// What attention needs beside its operands.
    pub workspace: Workspace,
}

impl Target {
    /// The device of a name; `link` holds copies to a speed.
    ///
    /// # Errors
    /// `NoDevice` for a GPU, which this build has none of; bad input for what names no device,
    /// and for a link slower than any that a profile has.
    pub fn named(name: &str, link: Option<BytesPerSec>) -> Result<Self> {
        if link.is_some_and(|rate| LinkRate::new(rate.get()).is_none()) {
            return Err(Error::bad_input("--link: less than 1MB/s"));
        }
        let number = name.strip_prefix("cuda:");
        match name {
            "cpu" => Ok(Self::Cpu(link)),
            _ if number.is_some_and(|number| number.parse::<u32>().is_ok()) => {
                Err(Error::no_device(format!("there is no device `{name}`"))
                    .hint("this build runs on cpu"))
            }
            _ => Err(
                Error::bad_input(format!("`{name}` is the name of no device"))
                    .within("--device")
                    .hint("devices are called cpu, cuda:0, cuda:1, …"),
            ),
        }
    }

    /// A device that has reserved nothing yet. Released memory is not filled with NaNs: schedules
    /// are checked before they run, and it would count as their time.
    pub fn open(self) -> Box<dyn Device> {
        let Self::Cpu(link) = self;
        let cores = machine::cores().max(1);
        let link = link.map(|rate| LinkSpeed {
            latency: Nanos::ZERO,
            rate,
        });
        Box::new(CpuDevice::new(CpuOptions {
            d2h: link,
            h2d: link,
            poison: false,
            awake: cores > 1,
            // Compute has one to itself.
            host_threads: usize::try_from(cores - 1).unwrap_or(1).max(1),
            ..CpuOptions::default()
        }))
    }

    /// What it says of its machine. Device and host share the CPU's memory: each has half.
    ///
    /// # Errors
    /// `NoDevice` where the machine does not say.
    pub fn facts(self) -> Result<Facts> {
        let memory = machine::memory()?;
        let half = |bytes: Bytes| bytes.scaled(1, 2);
        Ok(Facts {
            name: machine::processor(),
            memory: half(memory.total),
            usable: half(memory.available),
            host_memory: half(memory.total),
            cores: machine::cores(),
            workspace: Workspace::None,
        })
    }

    /// Memory that this process uses now, the host's included where they are one.
    ///
    /// # Errors
    /// `NoDevice` where the machine does not say.
    pub fn used(self) -> Result<Bytes> {
        machine::used()
    }
}
