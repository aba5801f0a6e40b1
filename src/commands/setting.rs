//! What to plan for: the flags that `plan`, `fit` and `compare` share, and what they stand for.

use crate::cli::parse;
use crate::device::arithmetic::Arithmetic;
use crate::error::Result;
use crate::lower::Workload;
use crate::methods::{Layers, Method, Rank, Told};
use crate::model::{self, ModelConfig};
use crate::planning::Request;
use crate::profile::{self, Dtype, Profile};
use ebbtide_solver::problem::Budget;
use ebbtide_solver::units::Bytes;

/// Model, machine and limits.
#[derive(Clone, Debug, clap::Args)]
#[group(skip)] // Else it would have the name of the group of the command that it is a part of.
pub struct Args {
    /// An HF config.json, a directory with one, or a name from `ebbtide list models`
    #[arg(long, value_name = "MODEL")]
    pub model: String,
    /// A profile's file, or a name from `ebbtide list profiles`
    #[arg(long, value_name = "PROFILE")]
    pub profile: String,
    /// Sequences of a micro-batch
    #[arg(long, value_name = "N", default_value_t = 1)]
    #[arg(value_parser = parse::within::<u64, 1, { 1 << 24 }>, allow_hyphen_values = true)]
    pub batch: u64,
    /// Micro-batches of an optimizer step
    #[arg(long, value_name = "N", default_value_t = 1)]
    #[arg(value_parser = parse::within::<u32, 1, 64>, allow_hyphen_values = true)]
    pub accumulate: u32,
    /// Prepare for `run --clip`: gradients are counted, and no weight changes before all are
    #[arg(long)]
    pub clip: bool,
    /// Type of weights and activations [default: the profile's]
    #[arg(long, value_name = "TYPE", value_parser = parse::dtype())]
    pub dtype: Option<Dtype>,
    /// Device memory for the plan, such as 72GiB [default: what the profile says is usable, less
    /// what lies beside the plan]
    #[arg(long, value_name = "BYTES", value_parser = parse::bytes, allow_hyphen_values = true)]
    pub device_memory: Option<Bytes>,
    /// Host memory for the plan, such as 110GiB [default: 90 % of the profile's]
    #[arg(long, value_name = "BYTES", value_parser = parse::bytes, allow_hyphen_values = true)]
    pub host_memory: Option<Bytes>,
}

/// How a low-rank method is run.
#[derive(Clone, Copy, Debug, clap::Args)]
#[group(skip)]
pub struct LowRankArgs {
    /// Rank of a low-rank method; of compact also a part of each input, such as 1/8 [default: the
    /// method's own, at most a quarter of the smallest side of a matrix; of compact 1/4]
    #[arg(long, value_name = "N", value_parser = parse::rank, allow_hyphen_values = true)]
    pub rank: Option<Rank>,
    /// Steps after which a low-rank method renews its projections [default: the method's]
    #[arg(long, value_name = "STEPS", value_parser = parse::within::<u32, 1, { u32::MAX as u64 }>)]
    #[arg(allow_hyphen_values = true)]
    pub refresh: Option<u32>,
    /// What a low-rank method scales its update by [default: the method's]
    #[arg(long, value_name = "X", value_parser = parse::positive, allow_hyphen_values = true)]
    pub scale: Option<f64>,
    /// Update each weight inside backward, so that no gradient is kept
    #[arg(long)]
    pub per_layer: bool,
    /// Find the projections of galore and fira by singular value decompositions, not by subspace
    /// iterations
    #[arg(long)]
    pub svd: bool,
    /// Keep the moments of galore, fira, apollo, apollo-mini and compact in 8 bits
    #[arg(long)]
    pub eight_bit: bool,
    /// Layers whose inputs compact compresses, of qkv, gate_up and down; what is left out is saved
    /// or made again exactly [default: all]
    #[arg(long, value_name = "LAYERS", value_parser = parse::layers)]
    pub compress: Option<Layers>,
}

impl LowRankArgs {
    /// What they tell a method.
    pub fn told(self) -> Told {
        let Self {
            rank,
            refresh,
            scale,
            per_layer,
            svd,
            eight_bit,
            compress,
        } = self;
        Told {
            rank,
            refresh,
            scale,
            per_layer,
            svd,
            eight_bit,
            layers: compress,
        }
    }
}

/// What the flags stand for.
pub struct Setting {
    /// The model.
    pub model: ModelConfig,
    /// The machine.
    pub profile: Profile,
    /// Sequences of a micro-batch.
    pub batch: u64,
    /// Micro-batches of an optimizer step.
    pub accumulate: u32,
    /// Whether gradients are clipped by their global norm.
    pub clip: bool,
    /// The type of weights and activations.
    pub dtype: Dtype,
    /// The limits.
    pub budget: Budget,
    /// Whether the device's limit is for the arena alone. Where nobody asked for one, what grows
    /// with the length has to fit beside it.
    pub arena_alone: bool,
}

impl Args {
    /// Reads the files and fills in the defaults.
    ///
    /// # Errors
    /// Whatever is wrong with model or profile.
    pub fn read(&self) -> Result<Setting> {
        let profile = profile::load(&self.profile)?;
        Ok(Setting {
            model: model::load(&self.model)?,
            batch: self.batch,
            accumulate: self.accumulate,
            clip: self.clip,
            arena_alone: self.device_memory.is_some(),
            dtype: self.dtype.unwrap_or(profile.default_dtype),
            budget: Budget {
                device: self.device_memory.unwrap_or(profile.device.budget()),
                host: self
                    .host_memory
                    .unwrap_or(profile.host.memory.scaled(9, 10)),
            },
            profile,
        })
    }
}

impl Setting {
    /// To plan a method for sequences of so many tokens.
    pub fn request(&self, method: Method, seq: u64) -> Request<'_> {
        let workload = Workload {
            seq,
            batch: self.batch,
            accumulate: self.accumulate,
            dtype: self.dtype,
            clip: self.clip,
        };
        let mut request = Request {
            model: &self.model,
            profile: &self.profile,
            workload,
            method,
            storage: None,
            arithmetic: Arithmetic::Plain,
            budget: self.budget,
        };
        if !self.arena_alone {
            request.budget.device = request.left_for_arena();
        }
        request
    }
}
