//! How long an operator takes on a profile, and what a guess that is.
//!
//! In: an operator's shape. Out: an [`Estimate`] in whole nanoseconds. Every kernel costs the
//! fixed launch time plus the larger of what its samples (or its constant rate) say and of its
//! operands' traffic at the memory bandwidth, the roofline of Williams et al. 2009. Nothing here
//! knows of copies beside the operator; the simulator adds their slowdown.
//!
//! Not known: what a kernel loses to cold caches, to a hot device's lower clock, to tiles that do
//! not fill the last wave. All of it is in the samples, and only there.

use super::{fused_refuses, AttentionRate, Dtype, FusedShape, GemmRate, Profile, Rate, Workspace};
use ebbtide_solver::machine::Link;
use ebbtide_solver::units::{Bytes, BytesPerSec, Nanos};
use std::fmt;

/// A time, and whether it comes from outside what was measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Estimate {
    /// The time.
    pub time: Nanos,
    /// The first reason why it is a guess.
    pub extrapolated: Option<Extrapolation>,
}

/// Why a time is a guess.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Extrapolation {
    /// A quantity outside the measured range.
    Beyond {
        /// What the quantity is.
        quantity: &'static str,
        /// Its value.
        value: u64,
        /// The least measured.
        least: u64,
        /// The most measured.
        most: u64,
    },
    /// A sliding window, where only full causal attention was measured.
    Window(u64),
    /// A type of numbers that was not measured: rates are in proportion to the peaks.
    Dtype(Dtype),
}

impl Extrapolation {
    /// The fact that `value` is outside `least..=most`, if it is.
    pub fn beyond(quantity: &'static str, value: u64, least: u64, most: u64) -> Option<Self> {
        let outside = !(least..=most).contains(&value);
        outside.then_some(Self::Beyond {
            quantity,
            value,
            least,
            most,
        })
    }
}

impl fmt::Display for Extrapolation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Beyond {
                quantity,
                value,
                least,
                most,
            } if least == most => {
                write!(f, "{quantity} {value} (measured: {least})")
            }
            Self::Beyond {
                quantity,
                value,
                least,
                most,
            } => {
                write!(f, "{quantity} {value} (measured: {least} to {most})")
            }
            Self::Window(window) => {
                write!(
                    f,
                    "attention window {window} (measured: full causal attention)"
                )
            }
            Self::Dtype(dtype) => write!(f, "{dtype} (not measured: in proportion to the peaks)"),
        }
    }
}

/// Which of the three products of a linear layer `y = x·W`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum GemmDirection {
    /// `y = x·W`.
    Forward,
    /// `dx = dy·Wᵀ`.
    Dgrad,
    /// `dW = xᵀ·dy`.
    Wgrad,
}

/// A product of a linear layer from k to n features over m tokens, in any direction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gemm {
    /// Tokens.
    pub m: u64,
    /// Features in.
    pub k: u64,
    /// Features out.
    pub n: u64,
    /// Which product.
    pub direction: GemmDirection,
    /// Whether the result is added to what is there, which reads it too.
    pub accumulate: bool,
}

impl Gemm {
    /// Multiplications and additions: 2·m·k·n in every direction.
    pub fn flops(&self) -> u128 {
        product(&[2, self.m, self.k, self.n])
    }

    /// Elements read and written: both operands, the result, and the result's old value.
    fn traffic(&self) -> u128 {
        let (x, w, y) = (
            product(&[self.m, self.k]),
            product(&[self.k, self.n]),
            product(&[self.m, self.n]),
        );
        let result = match self.direction {
            GemmDirection::Forward => y,
            GemmDirection::Dgrad => x,
            GemmDirection::Wgrad => w,
        };
        sum(&[x, w, y, if self.accumulate { result } else { 0 }])
    }
}

/// Which pass of attention.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum AttentionDirection {
    /// The forward pass.
    Forward,
    /// The backward pass: five products instead of two.
    Backward,
}

/// Causal attention of `batch` sequences.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attention {
    /// Tokens of one sequence.
    pub tokens: u64,
    /// Sequences.
    pub batch: u64,
    /// Query heads.
    pub heads: u64,
    /// Key and value heads.
    pub kv_heads: u64,
    /// Elements of one head.
    pub head_dim: u64,
    /// How many tokens back a token sees, itself included; nothing: all.
    pub window: Option<u64>,
    /// Which pass.
    pub direction: AttentionDirection,
}

impl Attention {
    /// Twice the query-key pairs of one sequence: S², or with a window w < S: 2·S·w − w².
    fn twice_pairs(&self) -> u128 {
        let (s, w) = (u128::from(self.tokens), u128::from(self.reach()));
        w.saturating_mul(2 * s - w)
    }

    /// The window, at most the sequence.
    fn reach(&self) -> u64 {
        self.window
            .map_or(self.tokens, |window| window.min(self.tokens))
    }

    /// Multiplications and additions, causally halved: forward 2·S²·heads·head_dim, backward 2.5
    /// times that; with a window only the pairs inside it.
    pub fn flops(&self) -> u128 {
        let per_pair = match self.direction {
            AttentionDirection::Forward => 2,
            AttentionDirection::Backward => 5,
        };
        let width = product(&[per_pair, self.batch, self.heads, self.head_dim]);
        width.saturating_mul(self.twice_pairs())
    }

    /// Elements of the query of all sequences (S·heads·head_dim each).
    fn query(&self) -> u128 {
        product(&[self.batch, self.tokens, self.heads, self.head_dim])
    }

    /// Elements read and written: q, k, v, o; backward also their gradients.
    fn traffic(&self) -> u128 {
        let kv = product(&[self.batch, self.tokens, self.kv_heads, self.head_dim]);
        let once = sum(&[self.query(), kv]).saturating_mul(2);
        match self.direction {
            AttentionDirection::Forward => once,
            AttentionDirection::Backward => once.saturating_mul(2),
        }
    }
}

/// A profile's costs for one type of numbers: what [`Profile::costs`] gives.
#[derive(Clone, Copy, Debug)]
pub struct Costs<'a> {
    pub(super) profile: &'a Profile,
    pub(super) dtype: Dtype,
    /// Measured and asked-for peak, where they are of different types of numbers.
    pub(super) peaks: Option<(u64, u64)>,
}

/// The longest time an estimate says, 10¹⁸ ns (31 years): sums of estimates stay in 64 bits.
const LONGEST: u128 = 1_000_000_000_000_000_000;

impl Costs<'_> {
    /// One product.
    pub fn gemm(&self, gemm: &Gemm) -> Estimate {
        let shape = [gemm.m, gemm.k, gemm.n];
        let (work, beyond) = match &self.profile.gemm {
            GemmRate::Constant(rate) => (rate.time(gemm.flops()), None),
            GemmRate::Sampled(grids) => {
                let grid = match gemm.direction {
                    GemmDirection::Forward => &grids.forward,
                    GemmDirection::Dgrad => &grids.dgrad,
                    GemmDirection::Wgrad => &grids.wgrad,
                };
                (whole(grid.at(shape)), grid.beyond(shape))
            }
        };
        self.kernel(work, gemm.traffic(), beyond)
    }

    /// Attention of all sequences of the batch.
    ///
    /// A sampled curve gives the time of one sequence of this length with the measured heads; it
    /// is scaled by heads × head_dim, by the batch, and by the window's share of the pairs.
    pub fn attention(&self, attention: &Attention) -> Estimate {
        let (work, beyond) = match &self.profile.attention {
            AttentionRate::Constant(rate) => (rate.time(attention.flops()), None),
            AttentionRate::Sampled(_) => {
                let family = self.profile.attention.nearest(attention);
                let family = family.expect("a sampled profile has every direction");
                let full = attention.tokens as f64 * attention.tokens.max(1) as f64;
                let share = attention.twice_pairs() as f64 / full.max(1.0);
                let width = attention.heads as f64 * attention.head_dim as f64
                    / (family.heads as f64 * family.head_dim as f64);
                let one = family.curve.at(attention.tokens) * share * width;
                let window = (attention.reach() < attention.tokens)
                    .then(|| Extrapolation::Window(attention.reach()));
                let beyond = self.profile.attention.beyond(attention, family);
                (whole(one * attention.batch as f64), beyond.or(window))
            }
        };
        self.kernel(work, attention.traffic(), beyond)
    }

    /// Device memory that attention needs beside its operands, results and log-sum-exp.
    ///
    /// Measured where the nearest samples say, in proportion to tokens × heads × head_dim. Else by
    /// rule: what cuDNN's fused attention takes of what it is asked to serve.
    pub fn attention_workspace(&self, attention: &Attention) -> Bytes {
        let nearest = self.profile.attention.nearest(attention);
        let measured = nearest.and_then(|family| family.workspace);
        let window = Some(attention.reach()).filter(|&reach| reach < attention.tokens);
        let refused = fused_refuses(self.dtype, attention.head_dim, window);
        let shape = FusedShape {
            rows: attention.batch.saturating_mul(attention.tokens),
            heads: attention.heads,
            kv_heads: attention.kv_heads,
            head_dim: attention.head_dim,
        };
        let bytes = match (measured, self.profile.workspace, attention.direction) {
            (Some(per), ..) => attention
                .query()
                .saturating_mul(per.bytes.get().into())
                .div_ceil(per.elements.max(1)),
            (None, Workspace::None, _) => 0,
            (None, Workspace::Cudnn, _) if refused.is_some() => 0,
            (None, Workspace::Cudnn, AttentionDirection::Forward) => shape.forward_bytes(),
            (None, Workspace::Cudnn, AttentionDirection::Backward) => shape.backward_bytes(),
        };
        Bytes::new(u64::try_from(bytes.min(LONGEST)).expect("bounded"))
    }

    /// A kernel limited by memory that reads plus writes `traffic`.
    pub fn elementwise(&self, traffic: Bytes) -> Estimate {
        let (work, beyond) = match &self.profile.elementwise {
            Some(curve) => {
                let beyond = curve.beyond("elementwise bytes", traffic.get());
                (whole(curve.at(traffic.get())), beyond)
            }
            None => (self.profile.memory_time(traffic.get().into()), None),
        };
        Estimate {
            time: self.profile.kernel_time(work),
            extrapolated: beyond,
        }
    }

    /// An operator limited by memory, by its own samples or like any other kernel.
    pub fn operator(&self, name: &str, traffic: Bytes) -> Estimate {
        self.timed(name, traffic)
            .unwrap_or_else(|| self.elementwise(traffic))
    }

    /// What packs and unpacks tensors, at the rate of a kernel that reads and writes `traffic`:
    /// nothing is measured of it, so it is taken to be one like any other. Nothing where such a
    /// kernel takes no time.
    pub fn packing(&self, traffic: Bytes) -> Option<Link> {
        let latency = self.profile.launch;
        let work = self.elementwise(traffic).time.saturating_sub(latency);
        let rate = u128::from(traffic.get()) * 1_000_000_000 / u128::from(work.get()).max(1);
        let rate = BytesPerSec::new(u64::try_from(rate).unwrap_or(u64::MAX))?;
        (!work.is_zero()).then_some(Link { latency, rate })
    }

    /// An operator by its own samples, if there are any.
    fn timed(&self, name: &str, traffic: Bytes) -> Option<Estimate> {
        let curve = self.profile.kernels.get(name)?;
        Some(Estimate {
            time: self.profile.kernel_time(whole(curve.at(traffic.get()))),
            extrapolated: curve.beyond("bytes of a kernel", traffic.get()),
        })
    }

    /// An update on the device of `params` parameters, whose memory traffic is `traffic`: by its
    /// own samples, AdamW by its measured rate, or like any other kernel.
    pub fn update(&self, name: &str, params: u64, traffic: Bytes) -> Estimate {
        match self.timed(name, traffic) {
            Some(estimate) => estimate,
            None if name == "adamw_update" => self.device_adam(params),
            None => self.elementwise(traffic),
        }
    }

    /// A thin singular value decomposition of a matrix with these sides, `6 M μ² + 20 μ³`
    /// operations (Golub and Van Loan, table 8.6.1). No profile measures it; the rate is a 360th of
    /// the peak, which is what 540 s for all matrices of a 7B model on an A100 come to (APOLLO, Zhu
    /// et al. 2025, table 7).
    pub fn decomposition(&self, (long, short): (u64, u64)) -> Nanos {
        let (long, short) = (u128::from(long), u128::from(short));
        let operations = 6 * long * short * short + 20 * short * short * short;
        let peaks = &self.profile.device.peak_flops_per_s;
        let peak = peaks.get(&self.dtype).copied().unwrap_or(1).max(1);
        let nanos = operations * 360 * 1_000_000_000 / u128::from(peak);
        Nanos::new(u64::try_from(nanos).unwrap_or(u64::MAX))
    }

    /// AdamW on the device for `params` parameters with f32 states.
    pub fn device_adam(&self, params: u64) -> Estimate {
        let per_param = u128::from(self.profile.machine.host_adam.bytes_per_param.get());
        let work = match self.profile.device_adam_params_per_s {
            Some(rate) => rate.time(params.into()),
            None => self
                .profile
                .memory_time(per_param.saturating_mul(params.into())),
        };
        Estimate {
            time: self.profile.kernel_time(work),
            extrapolated: None,
        }
    }

    /// The launch, and the larger of the work at the asked-for type's rate and of the traffic.
    fn kernel(&self, work: u128, elements: u128, beyond: Option<Extrapolation>) -> Estimate {
        let work = match self.peaks {
            Some((measured, asked)) => work.saturating_mul(measured.into()).div_ceil(asked.into()),
            None => work,
        };
        let traffic = elements.saturating_mul(self.dtype.bytes().into());
        let time = self
            .profile
            .kernel_time(work.max(self.profile.memory_time(traffic)));
        let dtype = self.peaks.map(|_| Extrapolation::Dtype(self.dtype));
        Estimate {
            time,
            extrapolated: beyond.or(dtype),
        }
    }
}

impl Rate {
    /// Nanoseconds for `amount` of whatever is counted each second, rounded up.
    fn time(self, amount: u128) -> u128 {
        amount
            .saturating_mul(1_000_000_000)
            .div_ceil(self.get().into())
    }
}

impl Profile {
    /// Nanoseconds that `traffic` bytes take at the memory bandwidth; none where it is no limit.
    fn memory_time(&self, traffic: u128) -> u128 {
        self.device.memory_rate.map_or(0, |rate| {
            traffic
                .saturating_mul(1_000_000_000)
                .div_ceil(rate.get().into())
        })
    }

    /// The time of one kernel with this much work.
    fn kernel_time(&self, work: u128) -> Nanos {
        bounded(work.saturating_add(self.launch.get().into()))
    }
}

/// A time as an estimate says it.
fn bounded(nanos: u128) -> Nanos {
    Nanos::new(u64::try_from(nanos.min(LONGEST)).expect("bounded"))
}

/// The nearest whole number of nanoseconds.
fn whole(nanos: f64) -> u128 {
    nanos.round() as u128
}

/// The product, or the largest number where it does not fit.
fn product(factors: &[u64]) -> u128 {
    factors.iter().fold(1, |product, factor| {
        product.saturating_mul(u128::from(*factor))
    })
}

/// The sum, or the largest number where it does not fit.
fn sum(terms: &[u128]) -> u128 {
    terms.iter().fold(0, |sum, term| sum.saturating_add(*term))
}
