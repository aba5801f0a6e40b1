// The MLP's non-linearities.
#include "device.cuh"

constexpr u32 SILU = 0, GELU = 1, GELU_TANH = 2;

// The function and its slope.
template <u32 KIND>
__device__ __forceinline__ void evaluate(float x, float& value, float& slope) {
    if (KIND == SILU) {
        const float s = reciprocal(1.0f + exponential(-x));
        value = x * s;
        slope = s * (1.0f + x * (1.0f - s));
    } else if (KIND == GELU) {
        const float below = 0.5f * (1.0f + erff(x * 0.70710678f));
        value = x * below;
        slope = below + x * (0.39894228f * exponential(-0.5f * x * x));
    } else {
        const float c = 0.79788456f, cube = 0.044715f;
        const float t = tanhf(c * (x + cube * x * x * x));
        value = 0.5f * x * (1.0f + t);
        slope = 0.5f * (1.0f + t) +
                0.5f * x * (1.0f - t * t) * (c * (1.0f + 3.0f * cube * x * x));
    }
}

template <int N, u32 KIND>
__device__ void forward(const E* x, E* h, u32 width, bool gated) {
    const E* row = x + u64(blockIdx.x) * width * (gated ? 2 : 1);
    const u32 step = gridDim.y * blockDim.x * N;
    for (u32 at = (blockIdx.y * blockDim.x + threadIdx.x) * N; at < width; at += step) {
        float gate[N], up[N];
        load<N>(row + at, gate);
        if (gated) load<N>(row + width + at, up);
        for (int i = 0; i < N; i++) {
            float slope;
            evaluate<KIND>(gate[i], gate[i], slope);
        }
        if (gated)
            for (int i = 0; i < N; i++) gate[i] *= up[i];
        store<N>(h + u64(blockIdx.x) * width + at, gate);
    }
}

template <int N>
__device__ void forward_by(u32 kind, const E* x, E* h, u32 width, bool gated) {
    if (kind == SILU)
        forward<N, SILU>(x, h, width, gated);
    else if (kind == GELU)
        forward<N, GELU>(x, h, width, gated);
    else
        forward<N, GELU_TANH>(x, h, width, gated);
}

KERNEL(256, activation, const E* x, E* h, u32 width, u32 kind, u32 gated) {
    if (width % WIDE == 0 && aligned(x, h))
        forward_by<WIDE>(kind, x, h, width, gated);
    else
        forward_by<1>(kind, x, h, width, gated);
}

template <int N, u32 KIND>
__device__ void backward(const E* x, const E* d_h, E* d_x, E* h, u32 width, bool gated) {
    const u64 row = u64(blockIdx.x) * width, wide_row = row * (gated ? 2 : 1);
    const u32 step = gridDim.y * blockDim.x * N;
    for (u32 at = (blockIdx.y * blockDim.x + threadIdx.x) * N; at < width; at += step) {
        float gate[N], up[N], d[N], d_up[N], value[N];
        load<N>(x + wide_row + at, gate);
        if (gated) load<N>(x + wide_row + width + at, up);
        load<N>(d_h + row + at, d);
        for (int i = 0; i < N; i++) evaluate<KIND>(gate[i], value[i], gate[i]);
        if (gated) {
            for (int i = 0; i < N; i++) {
                d_up[i] = d[i] * value[i];
                value[i] *= up[i];
                d[i] *= up[i];
            }
            store<N>(d_x + wide_row + width + at, d_up);
        }
        for (int i = 0; i < N; i++) d[i] *= gate[i];
        store<N>(d_x + wide_row + at, d);
        if (h) store<N>(h + row + at, value);
    }
}

template <int N>
__device__ void backward_by(u32 kind, const E* x, const E* d_h, E* d_x, E* h, u32 width,
                            bool gated) {
    if (kind == SILU)
        backward<N, SILU>(x, d_h, d_x, h, width, gated);
    else if (kind == GELU)
        backward<N, GELU>(x, d_h, d_x, h, width, gated);
    else
        backward<N, GELU_TANH>(x, d_h, d_x, h, width, gated);
}

// Writes h again where it is asked for.
KERNEL(256, activation_backward, const E* x, const E* d_h, E* d_x, E* h, u32 width, u32 kind,
       u32 gated) {
    if (width % WIDE == 0 && aligned(x, d_h, d_x, h))
        backward_by<WIDE>(kind, x, d_h, d_x, h, width, gated);
    else
        backward_by<1>(kind, x, d_h, d_x, h, width, gated);
}
