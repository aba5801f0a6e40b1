//! The kernels' sources and how they are compiled.

use crate::profile::Dtype;

/// A file of kernels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Source {
    /// Its name.
    pub file: &'static str,
    /// Its text; includes only [`HEADERS`].
    pub text: &'static str,
    /// Whether products are fused with the sums they go into.
    pub fused: bool,
}

/// What files include: names and texts.
pub const HEADERS: [(&str, &str); 3] = [
    ("device.cuh", include_str!("../../../../kernels/device.cuh")),
    ("update.cuh", include_str!("../../../../kernels/update.cuh")),
    (
        "attention.cuh",
        include_str!("../../../../kernels/attention.cuh"),
    ),
];

macro_rules! source {
    ($file:literal, $fused:literal) => {
        Source {
            file: $file,
            text: include_str!(concat!("../../../../kernels/", $file)),
            fused: $fused,
        }
    };
}

/// All files. Only attention is bound by arithmetic: the others round every operation alone, as the
/// host does.
pub const SOURCES: [Source; 14] = [
    source!("memory.cu", false),
    source!("embedding.cu", false),
    source!("norm.cu", false),
    source!("sums.cu", false),
    source!("rotary.cu", false),
    source!("activation.cu", false),
    source!("cross_entropy.cu", false),
    source!("update.cu", false),
    source!("tensors.cu", false),
    source!("factored.cu", false),
    source!("low_rank.cu", false),
    source!("packed.cu", false),
    source!("attention.cu", true),
    source!("attention_mma.cu", true),
];

impl Source {
    /// Whether it has a kernel for a type of elements: tensor cores multiply bf16, not f32.
    pub fn has(&self, dtype: Dtype) -> bool {
        dtype == Dtype::Bf16 || self.file != "attention_mma.cu"
    }

    /// Options for NVRTC: an architecture such as `sm_90` and the elements' type.
    pub fn options(&self, architecture: &str, dtype: Dtype) -> Vec<String> {
        let element = match dtype {
            Dtype::F32 => "-DEBBTIDE_F32",
            _ => "-DEBBTIDE_BF16",
        };
        let fused = if self.fused { "true" } else { "false" };
        vec![
            format!("--gpu-architecture={architecture}"),
            "-std=c++17".into(),
            element.into(),
            format!("--fmad={fused}"),
        ]
    }
}
