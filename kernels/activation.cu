// The MLP's non-linearities.
#include "device.cuh"

constexpr u32 SILU = 0, GELU = 1;

// The function and its slope.
__device__ __forceinline__ void evaluate(u32 kind, float x, float& value, float& slope) {
    if (kind == SILU) {
        const float s = 1.0f / (1.0f + expf(-x));
        value = x * s;
        slope = s * (1.0f + x * (1.0f - s));
    } else if (kind == GELU) {
        const float below = 0.5f * (1.0f + erff(x * 0.70710678f));
        value = x * below;
        slope = below + x * (0.39894228f * expf(-0.5f * x * x));
    } else {
        const float c = 0.79788456f, cube = 0.044715f;
        const float t = tanhf(c * (x + cube * x * x * x));
        value = 0.5f * x * (1.0f + t);
        slope = 0.5f * (1.0f + t) +
                0.5f * x * (1.0f - t * t) * (c * (1.0f + 3.0f * cube * x * x));
    }
}

template <int N>
__device__ void forward(const E* x, E* h, u32 width, u32 kind, bool gated) {
    const E* row = x + u64(blockIdx.x) * width * (gated ? 2 : 1);
    const u32 step = gridDim.y * blockDim.x * N;
    for (u32 at = (blockIdx.y * blockDim.x + threadIdx.x) * N; at < width; at += step) {
        float gate[N], up[N];
        load<N>(row + at, gate);
        if (gated) load<N>(row + width + at, up);
        for (int i = 0; i < N; i++) {
            float slope;
            evaluate(kind, gate[i], gate[i], slope);
            if (gated) gate[i] *= up[i];
        }
        store<N>(h + u64(blockIdx.x) * width + at, gate);
    }
}

KERNEL(256, activation, const E* x, E* h, u32 width, u32 kind, u32 gated) {
    if (width % WIDE == 0 && aligned(x, h))
        forward<WIDE>(x, h, width, kind, gated);
    else
        forward<1>(x, h, width, kind, gated);
}

template <int N>
__device__ void backward(const E* x, const E* d_h, E* d_x, E* h, u32 width, u32 kind,
                         bool gated) {
    const u64 row = u64(blockIdx.x) * width, wide_row = row * (gated ? 2 : 1);
    const u32 step = gridDim.y * blockDim.x * N;
    for (u32 at = (blockIdx.y * blockDim.x + threadIdx.x) * N; at < width; at += step) {
        float gate[N], up[N], d[N], d_up[N], value[N];
        load<N>(x + wide_row + at, gate);
        if (gated) load<N>(x + wide_row + width + at, up);
        load<N>(d_h + row + at, d);
        for (int i = 0; i < N; i++) {
            float slope;
            evaluate(kind, gate[i], value[i], slope);
            if (gated) {
                d_up[i] = d[i] * value[i];
                value[i] *= up[i];
                d[i] *= up[i];
            }
            d[i] *= slope;
        }
        store<N>(d_x + wide_row + at, d);
        if (gated) store<N>(d_x + wide_row + width + at, d_up);
        if (h) store<N>(h + row + at, value);
    }
}

// Writes h again where it is asked for.
KERNEL(256, activation_backward, const E* x, const E* d_h, E* d_x, E* h, u32 width, u32 kind,
       u32 gated) {
    if (width % WIDE == 0 && aligned(x, d_h, d_x, h))
        backward<WIDE>(x, d_h, d_x, h, width, kind, gated);
    else
        backward<1>(x, d_h, d_x, h, width, kind, gated);
}
