//! From a file's numbers to curves, with the checks that need more than one number.

use super::cost::AttentionDirection;
use super::fit::{line, ppm};
use super::{
    AttentionRate, Curve, Device, Dtype, Family, FitErrors, GemmGrids, GemmRate, Grid, Host,
    PerElement, Profile, Rate, Workspace,
};
use crate::error::{Error, Result};
use crate::format::number::{LinkRate, Natural, Positive, Within, LARGEST};
use crate::format::profile as file;
use ebbtide_solver::machine::{HostAdam, Link, LinkRates, Links, Machine, Slowdown};
use ebbtide_solver::units::{Bytes, BytesPerSec, Nanos};
use std::collections::BTreeMap;

/// The profile that a file describes.
///
/// # Errors
/// A memory larger than the one it is part of, a section with both or neither of samples and a
/// rate, a shape measured twice, a direction that was not measured, too many different shapes.
pub fn build(file: file::ProfileFile) -> Result<Profile> {
    let mut fit = FitErrors::default();
    let (d2h, d2h_ppm) = link("links.d2h", &file.links.d2h)?;
    let (h2d, h2d_ppm) = link("links.h2d", &file.links.h2d)?;
    (fit.d2h_ppm, fit.h2d_ppm) = (d2h_ppm, h2d_ppm);
    let both = LinkRates {
        d2h: bytes_rate(file.links.both.d2h_bytes_per_s),
        h2d: bytes_rate(file.links.both.h2d_bytes_per_s),
    };
    let operators = &file.operators;
    let launch = Nanos::new(operators.launch.ns.get());
    let gemm = gemm(&operators.gemm, launch, &mut fit)?;
    let attention = attention(&operators.attention, launch, &mut fit)?;
    let elementwise_curve = elementwise(&operators.elementwise, launch, &mut fit)?;
    let kernels = kernels(&operators.elementwise, launch, &mut fit)?;
    Ok(Profile {
        default_dtype: file.default_dtype.into(),
        device: device(&file.device)?,
        host: Host {
            memory: Bytes::new(file.host.memory_bytes.get()),
            cores: file.host.cores.get(),
            pin_rate: file.host.pin_bytes_per_s.map(bytes_rate),
        },
        machine: Machine {
            links: Links::new(d2h, h2d, both),
            matmul_slowdown: slowdown(&file.slowdown.matmul),
            elementwise_slowdown: slowdown(&file.slowdown.elementwise),
            // Of plans that pack; what it costs depends on what they pack.
            packing: None,
            host_adam: HostAdam {
                params_per_s: rate(file.host.adam_params_per_s).0,
                bytes_per_param: Bytes::new(file.host.adam_bytes_per_param.get()),
            },
            host_memory: file.host.memory_bytes_per_s.map(bytes_rate),
        },
        launch,
        gemm,
        attention,
        workspace: match operators.attention.workspace {
            file::WorkspaceName::None => Workspace::None,
            file::WorkspaceName::Cudnn => Workspace::Cudnn,
        },
        elementwise: elementwise_curve,
        kernels,
        device_adam_params_per_s: operators.optimizer.adam_params_per_s.map(rate),
        fit,
        sources: sources(&file),
        name: file.name,
    })
}

fn device(section: &file::DeviceSection) -> Result<Device> {
    let [memory, usable] = [section.memory_bytes, section.usable_bytes].map(Positive::get);
    let overhead = section.overhead_bytes.get();
    if usable > memory {
        return Err(Error::bad_input(format!(
            "device.usable_bytes: {usable} is more than memory_bytes {memory}"
        )));
    }
    if overhead >= usable {
        return Err(Error::bad_input(format!(
            "device.overhead_bytes: {overhead} leaves nothing of usable_bytes {usable}"
        )));
    }
    let peaks = section.peak_flops_per_s.iter();
    Ok(Device {
        name: section.name.clone(),
        memory: Bytes::new(memory),
        usable: Bytes::new(usable),
        overhead: Bytes::new(overhead),
        peak_flops_per_s: peaks
            .map(|(dtype, peak)| ((*dtype).into(), peak.get()))
            .collect(),
        memory_rate: section.memory_bytes_per_s.map(bytes_rate),
    })
}

fn link(path: &str, section: &file::LinkSection) -> Result<(Link, u64)> {
    let latency = section.latency_ns.map(Natural::get);
    match one_of(path, "bytes_per_s", section.bytes_per_s, &section.samples)? {
        Stated::Rate(rate) => {
            let latency = Nanos::new(latency.unwrap_or(0));
            Ok((
                Link {
                    latency,
                    rate: bytes_rate(rate),
                },
                0,
            ))
        }
        Stated::Samples(_) if latency.is_some() => Err(Error::bad_input(format!(
            "{path}.latency_ns: samples already say the latency"
        ))),
        Stated::Samples(samples) => {
            let points = samples
                .iter()
                .map(|s| (Bytes::new(s.bytes.get()), time(s.ns)));
            let fitted = line(&Vec::from_iter(points));
            let usable = fitted.filter(|(link, _)| LinkRate::new(link.rate.get()).is_some());
            usable.ok_or_else(|| {
                let [least, most] = [LinkRate::LEAST, LinkRate::MOST];
                Error::bad_input(format!(
                    "{path}.samples: their rate is not from {least} to {most} bytes/s"
                ))
            })
        }
    }
}

fn gemm(section: &file::GemmSection, launch: Nanos, fit: &mut FitErrors) -> Result<GemmRate> {
    const PATH: &str = "operators.gemm";
    let samples = match one_of(PATH, "flops_per_s", section.flops_per_s, &section.samples)? {
        Stated::Rate(constant) => return Ok(GemmRate::Constant(rate(constant))),
        Stated::Samples(samples) => samples,
    };
    let mut by_direction: BTreeMap<_, BTreeMap<[u64; 3], f64>> = BTreeMap::new();
    for sample in samples {
        let shape = [sample.m, sample.k, sample.n].map(|x| x.get());
        let group = by_direction.entry(sample.direction).or_default();
        if group.insert(shape, net(sample.ns, launch)).is_some() {
            return Err(twice(
                PATH,
                format_args!("{shape:?} {:?}", sample.direction),
            ));
        }
    }
    let mut grid = |direction| {
        let group = by_direction
            .get(&direction)
            .ok_or_else(|| missing(PATH, direction))?;
        let group = Vec::from_iter(group.iter().map(|(shape, time)| (*shape, *time)));
        let (grid, raised) = Grid::new(&group).ok_or_else(|| {
            Error::bad_input(format!("{PATH}.samples: too many different m, k and n"))
                .hint("measure every layer at the same few token counts")
        })?;
        fit.gemm_raised_ppm = fit.gemm_raised_ppm.max(ppm(raised));
        Ok(grid)
    };
    Ok(GemmRate::Sampled(Box::new(GemmGrids {
        forward: grid(file::GemmDirectionName::Forward)?,
        dgrad: grid(file::GemmDirectionName::Dgrad)?,
        wgrad: grid(file::GemmDirectionName::Wgrad)?,
    })))
}

fn attention(
    section: &file::AttentionSection,
    launch: Nanos,
    fit: &mut FitErrors,
) -> Result<AttentionRate> {
    const PATH: &str = "operators.attention";
    let samples = match one_of(PATH, "flops_per_s", section.flops_per_s, &section.samples)? {
        Stated::Rate(constant) => return Ok(AttentionRate::Constant(rate(constant))),
        Stated::Samples(samples) => samples,
    };
    for direction in [
        file::AttentionDirectionName::Forward,
        file::AttentionDirectionName::Backward,
    ] {
        if samples.iter().all(|sample| sample.direction != direction) {
            return Err(missing(PATH, direction));
        }
    }
    let mut by_layout: BTreeMap<_, BTreeMap<u64, &file::AttentionSample>> = BTreeMap::new();
    for sample in samples {
        let layout = (
            sample.direction,
            sample.heads,
            sample.kv_heads,
            sample.head_dim,
        );
        let tokens = sample.tokens.get();
        if by_layout
            .entry(layout)
            .or_default()
            .insert(tokens, sample)
            .is_some()
        {
            return Err(twice(
                PATH,
                format_args!("{tokens} tokens {:?}", sample.direction),
            ));
        }
    }
    let mut families = Vec::new();
    for ((direction, heads, kv_heads, head_dim), group) in by_layout {
        let points = group.iter().map(|(tokens, s)| (*tokens, net(s.ns, launch)));
        let (curve, raised) = Curve::new(points.collect(), 2.0);
        fit.attention_raised_ppm = fit.attention_raised_ppm.max(ppm(raised));
        families.push(Family {
            direction: direction.into(),
            heads: heads.get(),
            kv_heads: kv_heads.get(),
            head_dim: head_dim.get(),
            curve,
            workspace: workspace(group.values().copied()),
        });
    }
    Ok(AttentionRate::Sampled(families))
}

/// The largest measured workspace for each element of the query.
fn workspace<'a>(samples: impl Iterator<Item = &'a file::AttentionSample>) -> Option<PerElement> {
    let measured = samples.filter_map(|sample| {
        let dimensions = [sample.tokens, sample.heads, sample.head_dim];
        let elements = dimensions.iter().map(|x| u128::from(x.get())).product();
        Some(PerElement {
            bytes: Bytes::new(sample.workspace_bytes?.get()),
            elements,
        })
    });
    let ratio = |per: &PerElement| per.bytes.get() as f64 / per.elements as f64;
    measured.max_by(|a, b| ratio(a).total_cmp(&ratio(b)))
}

fn elementwise(
    section: &file::ElementwiseSection,
    launch: Nanos,
    fit: &mut FitErrors,
) -> Result<Option<Curve>> {
    const PATH: &str = "operators.elementwise";
    let Some(samples) = &section.samples else {
        return Ok(None);
    };
    if samples.is_empty() {
        return Err(Error::bad_input(format!("{PATH}.samples: empty"))
            .hint("without `samples` such kernels run at the device's memory bandwidth"));
    }
    let points = samples.iter().map(|s| (s.bytes.get(), net(s.ns, launch)));
    let points: BTreeMap<u64, f64> = points.collect();
    if points.len() < samples.len() {
        return Err(twice(PATH, format_args!("one size")));
    }
    let (curve, raised) = Curve::new(points.into_iter().collect(), 1.0);
    fit.elementwise_raised_ppm = ppm(raised);
    Ok(Some(curve))
}

/// A curve for every operator that was timed by name.
fn kernels(
    section: &file::ElementwiseSection,
    launch: Nanos,
    fit: &mut FitErrors,
) -> Result<BTreeMap<String, Curve>> {
    let mut by_name: BTreeMap<&str, BTreeMap<u64, f64>> = BTreeMap::new();
    for sample in section.kernels.iter().flatten() {
        let points = by_name.entry(&sample.operator).or_default();
        let bytes = sample.bytes.get();
        if points.insert(bytes, net(sample.ns, launch)).is_some() {
            return Err(Error::bad_input(format!(
                "operators.elementwise.kernels: {} of {bytes} bytes is there twice",
                sample.operator
            )));
        }
    }
    let mut curve = |points: BTreeMap<u64, f64>| {
        let (curve, raised) = Curve::new(points.into_iter().collect(), 1.0);
        fit.elementwise_raised_ppm = fit.elementwise_raised_ppm.max(ppm(raised));
        curve
    };
    let curves = by_name.into_iter();
    Ok(curves
        .map(|(name, points)| (name.to_owned(), curve(points)))
        .collect())
}

/// What a section states: exactly one of the two.
enum Stated<'a, R, T> {
    Rate(R),
    Samples(&'a [T]),
}

fn one_of<'a, R, T>(
    path: &str,
    rate_name: &str,
    rate: Option<R>,
    samples: &'a Option<Vec<T>>,
) -> Result<Stated<'a, R, T>> {
    match (rate, samples) {
        (Some(rate), None) => Ok(Stated::Rate(rate)),
        (None, Some(samples)) if !samples.is_empty() => Ok(Stated::Samples(samples)),
        (None, Some(_)) => Err(Error::bad_input(format!("{path}.samples: empty"))),
        (stated, _) => {
            let which = if stated.is_some() { "both" } else { "neither" };
            Err(
                Error::bad_input(format!("{path}: {which} of `samples` and `{rate_name}`"))
                    .hint("state exactly one of the two"),
            )
        }
    }
}

fn twice(path: &str, what: std::fmt::Arguments<'_>) -> Error {
    Error::bad_input(format!("{path}.samples: {what} is there twice"))
}

fn missing(path: &str, direction: impl std::fmt::Debug) -> Error {
    let direction = format!("{direction:?}").to_lowercase();
    Error::bad_input(format!("{path}.samples: none for direction `{direction}`"))
}

/// A sample's time without the launch that every kernel is charged for.
fn net(ns: Positive, launch: Nanos) -> f64 {
    ns.get().saturating_sub(launch.get()).max(1) as f64
}

fn time(ns: Positive) -> Nanos {
    Nanos::new(ns.get())
}

fn rate(number: Positive) -> Rate {
    Rate::new(number.get()).expect("the format accepts no zero here")
}

fn bytes_rate<const MIN: u64>(number: Within<MIN, LARGEST>) -> BytesPerSec {
    BytesPerSec::new(number.get()).expect("the format accepts no zero here")
}

fn slowdown(section: &file::SlowdownPpm) -> Slowdown {
    let [d2h_ppm, h2d_ppm, both_ppm] = [section.d2h_ppm, section.h2d_ppm, section.both_ppm]
        .map(|ppm| u32::try_from(ppm.get()).expect("the format's limit is ten million"));
    Slowdown {
        d2h_ppm,
        h2d_ppm,
        both_ppm,
    }
}

fn sources(file: &file::ProfileFile) -> Vec<(&'static str, String)> {
    let operators = &file.operators;
    let all = [
        ("device", &file.device.source),
        ("host", &file.host.source),
        ("links", &file.links.source),
        ("slowdown", &file.slowdown.source),
        ("operators.launch", &operators.launch.source),
        ("operators.gemm", &operators.gemm.source),
        ("operators.attention", &operators.attention.source),
        ("operators.elementwise", &operators.elementwise.source),
        ("operators.optimizer", &operators.optimizer.source),
    ];
    all.map(|(section, source)| (section, source.clone()))
        .to_vec()
}

impl From<file::DtypeName> for Dtype {
    fn from(name: file::DtypeName) -> Self {
        match name {
            file::DtypeName::F32 => Self::F32,
            file::DtypeName::Bf16 => Self::Bf16,
            file::DtypeName::Fp8 => Self::Fp8,
        }
    }
}

impl From<file::AttentionDirectionName> for AttentionDirection {
    fn from(name: file::AttentionDirectionName) -> Self {
        match name {
            file::AttentionDirectionName::Forward => Self::Forward,
            file::AttentionDirectionName::Backward => Self::Backward,
        }
    }
}
