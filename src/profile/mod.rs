//! What one machine can do: memory, links, and how long each operator takes.
//!
//! In: a file in the format of [`crate::format::profile`], or the name of a shipped one. Out: a
//! [`Profile`] with curves instead of samples, in the solver's integer units. The way:
//! [`load`] reads, `build` turns samples into curves (`fit`), [`Profile::costs`] answers (`cost`).
//!
//! A profile knows shapes, not models: which operators a model has is the lowering's business.

mod attention;
mod build;
pub mod cost;
mod fit;
mod fused;
pub mod measure;

pub use attention::{AttentionRate, Family, PerElement};
pub use build::build;
pub use fit::{Curve, Grid};
pub use fused::{fused_refuses, FusedShape};

use crate::error::{Error, Result};
use crate::files::read_text;
use crate::format::{self, profile::ProfileFile};
use cost::Costs;
use ebbtide_solver::machine::Machine;
use ebbtide_solver::units::{Bytes, BytesPerSec, Nanos};
use std::collections::BTreeMap;
use std::fmt;
use std::num::NonZeroU64;
use std::path::Path;

/// One machine.
#[derive(Clone, Debug, PartialEq)]
pub struct Profile {
    /// What the profile is called.
    pub name: String,
    /// The type of numbers that it was measured with, and that workloads have by default.
    pub default_dtype: Dtype,
    /// The accelerator.
    pub device: Device,
    /// The machine around it.
    pub host: Host,
    /// What the simulator needs: links, contention, slowdown, the host's optimizer.
    pub machine: Machine,
    /// The fixed cost of every kernel.
    pub launch: Nanos,
    /// Matrix products.
    pub gemm: GemmRate,
    /// Causal attention.
    pub attention: AttentionRate,
    /// What attention needs beside its operands, where no sample says.
    pub workspace: Workspace,
    /// Kernels limited by memory; nothing: they run at the device's memory bandwidth.
    pub elementwise: Option<Curve>,
    /// Operators limited by memory that were timed by name, over the bytes they read plus write.
    pub kernels: BTreeMap<String, Curve>,
    /// AdamW on the device, parameters a second; nothing: its traffic at the memory bandwidth.
    pub device_adam_params_per_s: Option<Rate>,
    /// How far the curves are from the samples.
    pub fit: FitErrors,
    /// Where each section's numbers are from: (section, words), in the file's order.
    pub sources: Vec<(&'static str, String)>,
}

/// The accelerator.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Device {
    /// The device's own name.
    pub name: String,
    /// Its memory.
    pub memory: Bytes,
    /// What a process can get of it.
    pub usable: Bytes,
    /// What context and libraries take of the usable memory, whatever the length.
    pub overhead: Bytes,
    /// Datasheet peak in FLOP/s for dense products: what MFU is counted against.
    pub peak_flops_per_s: BTreeMap<Dtype, u64>,
    /// Memory traffic, read plus written; nothing where memory is never the limit.
    pub memory_rate: Option<BytesPerSec>,
}

impl Device {
    /// What is left for the arena: usable memory less the constant overhead.
    pub fn budget(&self) -> Bytes {
        self.usable.saturating_sub(self.overhead)
    }
}

/// The machine around the device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Host {
    /// Its memory.
    pub memory: Bytes,
    /// Its cores.
    pub cores: u64,
    /// How fast memory is pinned; nothing: at once.
    pub pin_rate: Option<BytesPerSec>,
}

/// A type of numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Dtype {
    /// IEEE single.
    F32,
    /// bfloat16 with f32 accumulation.
    Bf16,
    /// 8-bit floats with f32 accumulation.
    Fp8,
}

impl Dtype {
    /// Bytes of one element.
    pub const fn bytes(self) -> u64 {
        match self {
            Self::F32 => 4,
            Self::Bf16 => 2,
            Self::Fp8 => 1,
        }
    }
}

impl fmt::Display for Dtype {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::F32 => "f32",
            Self::Bf16 => "bf16",
            Self::Fp8 => "fp8",
        })
    }
}

/// FLOPs or parameters a second, never zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate(NonZeroU64);

impl Rate {
    /// This many a second; nothing when it is zero.
    pub fn new(per_s: u64) -> Option<Self> {
        NonZeroU64::new(per_s).map(Self)
    }
    /// The bare number.
    pub const fn get(self) -> u64 {
        self.0.get()
    }
}

/// How long products take.
#[derive(Clone, Debug, PartialEq)]
pub enum GemmRate {
    /// FLOPs a second, whatever the shape.
    Constant(Rate),
    /// By shape.
    Sampled(Box<GemmGrids>),
}

/// Nanoseconds over (m, k, n), less the launch.
#[derive(Clone, Debug, PartialEq)]
pub struct GemmGrids {
    /// `y = x·W`.
    pub forward: Grid,
    /// `dx = dy·Wᵀ`.
    pub dgrad: Grid,
    /// `dW = xᵀ·dy`.
    pub wgrad: Grid,
}

/// A rule for attention's workspace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Workspace {
    /// None.
    None,
    /// As cuDNN's fused kernels need it.
    Cudnn,
}

/// How far the curves are from the samples, in parts per million; zero for constant rates.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FitErrors {
    /// Largest relative error of the line for device to host, over copies of 1 MiB and more.
    pub d2h_ppm: u64,
    /// The same for host to device.
    pub h2d_ppm: u64,
    /// By how much the most was a product raised so that time never falls with size.
    pub gemm_raised_ppm: u64,
    /// The same for attention.
    pub attention_raised_ppm: u64,
    /// The same for kernels limited by memory.
    pub elementwise_raised_ppm: u64,
}

impl Profile {
    /// The costs for one type of numbers. For another than was measured, products and attention
    /// are scaled by the ratio of the peaks and marked as extrapolated.
    ///
    /// # Errors
    /// A type whose peak the profile does not state.
    pub fn costs(&self, dtype: Dtype) -> Result<Costs<'_>> {
        let peak = |dtype| {
            self.device
                .peak_flops_per_s
                .get(&dtype)
                .copied()
                .ok_or_else(|| {
                    let known = self.device.peak_flops_per_s.keys().map(Dtype::to_string);
                    let known = match Vec::from_iter(known).join(", ") {
                        none if none.is_empty() => "no type".into(),
                        types => types,
                    };
                    let field = "device.peak_flops_per_s";
                    Error::bad_input(format!("profile `{}`: {field} lacks {dtype}", self.name))
                        .hint(format!("it has {known}; add a peak, or change --dtype"))
                })
        };
        let measured = self.default_dtype;
        // MFU is counted against it, whatever products take.
        let own = peak(dtype)?;
        let peaks = match dtype == measured {
            true => None,
            false => Some((peak(measured)?, own)),
        };
        Ok(Costs {
            profile: self,
            dtype,
            peaks,
        })
    }
}

/// The profiles that come with the program: name and text.
const SHIPPED: [(&str, &str); 3] = [
    ("unit", include_str!("../../profiles/hardware/unit.json")),
    (
        "h100-sxm5-80gb",
        include_str!("../../profiles/hardware/h100-sxm5-80gb.json"),
    ),
    (
        "rtx-4090-24gb",
        include_str!("../../profiles/hardware/rtx-4090-24gb.json"),
    ),
];

/// A profile is never large.
const LARGEST: Bytes = Bytes::mib(16);

/// The names of the profiles that come with the program.
pub fn shipped() -> impl Iterator<Item = &'static str> {
    SHIPPED.iter().map(|(name, _)| *name)
}

/// The profile that `spec` names: a file, or a shipped one. What exists on disk comes first.
///
/// # Errors
/// A name that is neither, a file that cannot be read, and whatever is wrong with its content,
/// said of the file.
pub fn load(spec: &str) -> Result<Profile> {
    let path = Path::new(spec);
    let file = match path.exists() {
        true => read(path)?,
        false => shipped_file(spec)?,
    };
    build(file).map_err(|error| error.within(spec))
}

fn shipped_file(spec: &str) -> Result<ProfileFile> {
    let Some((_, text)) = SHIPPED.iter().find(|(name, _)| *name == spec) else {
        let names = Vec::from_iter(shipped()).join(", ");
        return Err(Error::bad_input(format!(
            "\"{spec}\" is no file and no shipped hardware profile"
        ))
        .hint(format!("shipped profiles are {names}")));
    };
    format::profile::read(text).map_err(|error| error.within(spec))
}

/// A profile as its file has it.
///
/// # Errors
/// A file that cannot be read or is no profile, said of the file.
pub fn read(path: &Path) -> Result<ProfileFile> {
    let text = read_text(path, LARGEST, "a profile")?;
    format::profile::read(&text).map_err(|error| error.within(path.display()))
}
