// Memory as such.
#include "device.cuh"

// Bytes that a block clears.
constexpr u64 CLEARED = 16384;

KERNEL(256, zero, unsigned char* out, u64 bytes) {
    const u64 start = blockIdx.x * CLEARED;
    const u64 end = least(start + CLEARED, bytes);
    if (aligned(out)) {
        const u64 whole = end / 16 * 16;
        const float zeros[4] = {0, 0, 0, 0};
        for (u64 at = start + threadIdx.x * 16; at < whole; at += blockDim.x * 16)
            store<4>(reinterpret_cast<float*>(out + at), zeros);
        for (u64 at = whole + threadIdx.x; at < end; at += blockDim.x) out[at] = 0;
    } else {
        for (u64 at = start + threadIdx.x; at < end; at += blockDim.x) out[at] = 0;
    }
}
