// What cuBLASLt is asked for: out = factor a b + kept added, columns first. Only for tests.
#include "../device.cuh"

// Of elements or of f32.
template <class T>
__device__ float element(const void* from, u64 at, u32 wide) {
    return wide ? static_cast<const float*>(from)[at] : widen(static_cast<const T*>(from)[at]);
}

KERNEL(256, host_product, const void* a, const void* b, const void* added, void* out, u64 m, u64 n,
       u64 k, u64 a_stride, u64 b_stride, u64 stride, u32 a_turned, u32 b_turned, u32 wide,
       u32 out_wide, float factor, float kept) {
    const u64 step = u64(gridDim.x) * blockDim.x;
    for (u64 i = u64(blockIdx.x) * blockDim.x + threadIdx.x; i < m * n; i += step) {
        const u64 row = i % m, column = i / m, at = column * stride + row;
        float sum = 0;
        for (u64 j = 0; j < k; j++)
            sum += element<E>(a, a_turned ? row * a_stride + j : j * a_stride + row, wide) *
                   element<E>(b, b_turned ? j * b_stride + column : column * b_stride + j, wide);
        sum *= factor;
        if (added) sum += kept * element<E>(added, at, out_wide);
        if (out_wide)
            static_cast<float*>(out)[at] = sum;
        else
            narrow(sum, static_cast<E*>(out)[at]);
    }
}
