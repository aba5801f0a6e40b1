//! Our CUDA kernels without a GPU: compiled for the host and run thread by thread under the
//! address sanitizer against the CPU device, in several orders of threads; and compiled by NVRTC
//! for its architectures, where it is at hand.

mod attention;
mod case;
mod fused;
mod heads;
mod host;
mod library;
mod low_rank;
mod nvrtc;
mod packed;
mod plans;
mod request;
mod rows;
mod tensors;
mod update;
