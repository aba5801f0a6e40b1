//! Devices by the name that a person gives them, and what each says of its machine.

use ebbtide_solver::units::{Bytes, BytesPerSec, Nanos};

use super::cpu::{machine, CpuDevice, CpuOptions, LinkSpeed};
use super::cuda::{self, CudaDevice, CudaOptions};
use super::Device;
use crate::error::{Error, Result};
use crate::format::number::LinkRate;
use crate::profile::Workspace;

/// Of a card: what kernels may take that no step has run yet. The libraries load them, and what
/// threads spill, when they are launched for the first time.
const LATER: Bytes = Bytes::mib(256);

/// A device that can be named.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    /// This machine's processor, with the speed that copies are held to in each direction.
    Cpu(Option<BytesPerSec>),
    /// A GPU of NVIDIA's.
    Cuda {
        /// Its number.
        number: u32,
        /// Whether every run is to give the same bits, whatever it costs. The processor's does.
        deterministic: bool,
    },
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
    /// The device of a name, which may not be there; `link` holds copies to a speed,
    /// `deterministic` asks for the same bits in every run.
    ///
    /// # Errors
    /// Bad input for what names no device, and for a link slower than any that a profile has, or
    /// of a GPU.
    pub fn named(name: &str, link: Option<BytesPerSec>, deterministic: bool) -> Result<Self> {
        if link.is_some_and(|rate| LinkRate::new(rate.get()).is_none()) {
            return Err(Error::bad_input("--link: less than 1MB/s"));
        }
        let number = name.strip_prefix("cuda:");
        match (name, number.and_then(|number| number.parse().ok())) {
            ("cpu", _) => Ok(Self::Cpu(link)),
            (_, Some(_)) if link.is_some() => Err(Error::bad_input(format!(
                "--link: copies to and from {name} are as fast as they are"
            ))
            .hint("only the cpu device is held to a speed")),
            (_, Some(number)) => Ok(Self::Cuda {
                number,
                deterministic,
            }),
            _ => Err(
                Error::bad_input(format!("`{name}` is the name of no device"))
                    .within("--device")
                    .hint("devices are called cpu, cuda:0, cuda:1, …"),
            ),
        }
    }

    /// A device that has reserved nothing yet. Released memory is not filled with NaNs: schedules
    /// are checked before they run, and it would count as their time.
    ///
    /// # Errors
    /// `NoDevice` where a GPU, its driver or a library is not there.
    pub fn open(self) -> Result<Box<dyn Device>> {
        self.opened(false)
    }

    fn opened(self, times_algorithms: bool) -> Result<Box<dyn Device>> {
        let link = match self {
            Self::Cpu(link) => link,
            Self::Cuda {
                number,
                deterministic,
            } => {
                let options = CudaOptions {
                    deterministic,
                    times_algorithms,
                    ..CudaOptions::default()
                };
                let device = CudaDevice::open(number, options);
                return device.map(|device| Box::new(device) as Box<dyn Device>);
            }
        };
        let cores = machine::cores().max(1);
        let link = link.map(|rate| LinkSpeed {
            latency: Nanos::ZERO,
            rate,
        });
        Ok(Box::new(CpuDevice::new(CpuOptions {
            d2h: link,
            h2d: link,
            poison: false,
            awake: cores > 1,
            // Compute has one to itself.
            host_threads: usize::try_from(cores - 1).unwrap_or(1).max(1),
            ..CpuOptions::default()
        })))
    }

    /// The same, which times the algorithms of matrix products before it uses one of them, where it
    /// has a choice.
    ///
    /// # Errors
    /// As [`Target::open`].
    pub fn open_to_time(self) -> Result<Box<dyn Device>> {
        self.opened(true)
    }

    /// What it says of its machine. Device and host share the CPU's memory: each has half.
    ///
    /// # Errors
    /// As [`Target::open`], and where the machine does not say.
    pub fn facts(self) -> Result<Facts> {
        let host = machine::memory()?;
        let half = |bytes: Bytes| bytes.scaled(1, 2);
        let cores = machine::cores();
        Ok(match self {
            Self::Cpu(_) => Facts {
                name: machine::processor(),
                memory: half(host.total),
                usable: half(host.available),
                host_memory: half(host.total),
                cores,
                workspace: Workspace::None,
            },
            Self::Cuda {
                number,
                deterministic,
            } => {
                let card = cuda::facts(number)?;
                Facts {
                    name: card.name,
                    memory: card.memory,
                    usable: card.free,
                    host_memory: host.total,
                    cores,
                    workspace: match !deterministic && card.has_cudnn {
                        true => Workspace::Cudnn,
                        false => Workspace::None,
                    },
                }
            }
        })
    }

    /// Memory in use now beside what a schedule places on the device and on the host, where
    /// `usable` was what a process could get. Of the CPU it is all that this process holds; of a
    /// card also what `LATER` is for.
    ///
    /// # Errors
    /// As [`Target::facts`].
    pub fn overhead(self, usable: Bytes, device: Bytes, host: Bytes) -> Result<Bytes> {
        Ok(match self {
            Self::Cpu(_) => machine::used()?.saturating_sub(device + host),
            Self::Cuda { number, .. } => {
                let taken = usable.saturating_sub(cuda::facts(number)?.free);
                taken.saturating_sub(device) + LATER
            }
        })
    }
}
