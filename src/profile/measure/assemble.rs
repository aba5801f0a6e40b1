//! From what was measured to a profile.

use std::collections::{BTreeMap, BTreeSet};

use super::statistics::OUTLIERS;
use super::step::WARM_UP;
use super::{positive, Request};
use crate::device::Facts;
use crate::device::UpdateRule;
use crate::error::{Error, Result};
use crate::format::measured::{Calibration, MeasuredFile, MeasuredHost, MeasuredStep};
use crate::format::number::{Positive, Within};
use crate::format::profile::{
    self as file, AlgorithmsSection, AttentionSample, GemmDirectionName, GemmSample, KernelSample,
    ProfileFile, WorkspaceName,
};
use crate::methods::Method;
use crate::profile::{Dtype, Workspace};

/// The profile, called by the device's name as schedules know it. Where two steps measured the
/// same shape, the first one counts.
///
/// # Errors
/// A stage that has not been measured.
pub fn assemble(
    request: &Request<'_>,
    measured: &MeasuredFile,
    facts: &Facts,
) -> Result<ProfileFile> {
    let missing = |what: &str| Error::bad_input(format!("{what}: not measured yet"));
    let calibration = measured.calibration.clone();
    let calibration = calibration.ok_or_else(|| missing("calibration"))?;
    let links = measured.links.clone().ok_or_else(|| missing("copies"))?;
    let slowdown = measured.slowdown.clone();
    let host = measured.host.clone().ok_or_else(|| missing("host"))?;
    let operators = operators(request, measured, &calibration);
    let peak = peak(operators.gemm.samples.iter().flatten());
    let overhead = measured.steps.iter().map(|step| step.overhead_bytes).max();
    Ok(ProfileFile {
        schema: file::SCHEMA.into(),
        name: measured.settings.device.clone(),
        default_dtype: measured.settings.dtype,
        device: file::DeviceSection {
            source: "stated by the machine: memory, and what a process can get (where device and \
                     host share memory, half of each); measured: peak (of the fastest product), \
                     overhead (memory in use during a step beside what its schedule places; of a \
                     card 256 MiB more, for kernels that are loaded later)"
                .into(),
            name: facts.name.clone(),
            memory_bytes: positive(facts.memory.get()),
            usable_bytes: positive(facts.usable.get()),
            overhead_bytes: overhead.unwrap_or_else(|| natural(0)),
            peak_flops_per_s: BTreeMap::from([(measured.settings.dtype, positive(peak))]),
            memory_bytes_per_s: None,
        },
        host: host_section(request.dtype, &host, facts),
        links,
        slowdown: slowdown.ok_or_else(|| missing("compute beside copies"))?,
        operators,
        measurement: Some(file::MeasurementSection {
            ebbtide_version: measured.settings.ebbtide_version.clone(),
            model: measured.settings.model.clone(),
            warm_up_steps: natural(WARM_UP),
            outliers: OUTLIERS.into(),
            timer_ns: calibration.timer_ns,
            handover_ns: calibration.handover_ns,
            blocks: adamw(measured).map(|step| step.block.clone()).collect(),
        }),
    })
}

/// The steps whose lengths and cuts differ.
fn adamw(measured: &MeasuredFile) -> impl Iterator<Item = &MeasuredStep> {
    let adamw = |step: &&MeasuredStep| step.method == Method::AdamW.name();
    measured.steps.iter().filter(adamw)
}

fn host_section(dtype: Dtype, host: &MeasuredHost, facts: &Facts) -> file::HostSection {
    file::HostSection {
        source: "stated by the machine: memory and cores; measured: AdamW on the host's threads, \
                 pinning of 256 MiB; counted: bytes of an update"
            .into(),
        memory_bytes: positive(facts.host_memory.get()),
        cores: positive(facts.cores),
        memory_bytes_per_s: None,
        pin_bytes_per_s: Some(host.pin_bytes_per_s),
        adam_params_per_s: host.adam_params_per_s,
        adam_bytes_per_param: natural(UpdateRule::AdamW.traffic(dtype)),
    }
}

fn operators(
    request: &Request<'_>,
    measured: &MeasuredFile,
    calibration: &Calibration,
) -> file::OperatorsSection {
    let model = &measured.settings.model;
    let where_ = format!("measured: in training steps of {model}, in place");
    let steps = &measured.steps;
    let kernels = first(
        steps.iter().flat_map(|step| &step.kernels),
        |k: &KernelSample| (k.operator.clone(), k.bytes),
    );
    let gemm = first(
        steps.iter().flat_map(|step| &step.gemm),
        |g: &GemmSample| (g.m, g.k, g.n, g.direction),
    );
    let attention = first(
        steps.iter().flat_map(|step| &step.attention),
        |a: &AttentionSample| (a.tokens, a.heads, a.kv_heads, a.direction),
    );
    // Which kernels computed it.
    let notes: BTreeSet<&str> = steps
        .iter()
        .flat_map(|s| &s.device_notes)
        .map(String::as_str)
        .collect();
    let noted = std::iter::once(where_.as_str())
        .chain(notes)
        .collect::<Vec<_>>()
        .join("; ");
    let norms = kernels.iter().filter(|kernel| kernel.operator == "norm");
    let sizes = norms.map(|kernel| file::SizeSample {
        bytes: kernel.bytes,
        ns: kernel.ns,
        spread_ns: kernel.spread_ns,
        repetitions: kernel.repetitions,
    });
    file::OperatorsSection {
        launch: file::LaunchSection {
            source: "measured: from the start of an operator without work to the next one's".into(),
            ns: calibration.launch_ns,
        },
        elementwise: file::ElementwiseSection {
            source: format!("{where_}; `samples` are those of the norm"),
            samples: Some(sizes.collect()),
            kernels: Some(kernels),
        },
        gemm: file::GemmSection {
            source: format!("{where_}, each layer with its bias and residual"),
            flops_per_s: None,
            samples: Some(gemm),
            algorithms: algorithms(steps),
        },
        attention: file::AttentionSection {
            source: noted,
            flops_per_s: None,
            samples: Some(attention),
            workspace: match request.workspace {
                Workspace::None => WorkspaceName::None,
                Workspace::Cudnn => WorkspaceName::Cudnn,
            },
        },
        optimizer: file::OptimizerSection {
            source: "measured: by size, `adamw_update` in elementwise.kernels".into(),
            adam_params_per_s: None,
        },
    }
}

/// The fastest algorithms of all steps; where two timed the same product, the first one counts, and
/// so does its library.
fn algorithms(steps: &[MeasuredStep]) -> Option<AlgorithmsSection> {
    let mut all = steps.iter().filter_map(|step| step.algorithms.clone());
    let mut first = all.next()?;
    for more in all.filter(|more| more.library == first.library) {
        for (product, timed) in more.fastest {
            first.fastest.entry(product).or_insert(timed);
        }
    }
    Some(first)
}

/// The first of everything that has the same key.
fn first<'a, T: Clone + 'a, K: Ord>(
    all: impl Iterator<Item = &'a T>,
    key: impl Fn(&T) -> K,
) -> Vec<T> {
    let mut seen = BTreeSet::new();
    all.filter(|item| seen.insert(key(item))).cloned().collect()
}

/// FLOP/s of the fastest product.
fn peak<'a>(samples: impl Iterator<Item = &'a GemmSample>) -> u64 {
    let rate = |sample: &GemmSample| {
        let sizes = [sample.m, sample.k, sample.n].map(|size| u128::from(size.get()));
        let flops = 2 * sizes.iter().product::<u128>();
        u64::try_from(flops * 1_000_000_000 / u128::from(sample.ns.get())).unwrap_or(u64::MAX)
    };
    let forward = samples.filter(|sample| sample.direction == GemmDirectionName::Forward);
    forward.map(rate).max().unwrap_or(1).min(Positive::MOST)
}

fn natural<const MOST: u64>(number: u64) -> Within<0, MOST> {
    Within::new(number.min(MOST)).expect("in range")
}
