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

// Rows and columns of a block's tile.
constexpr u32 TILE = 32;

// out[j][i] = in[i][j], for a matrix of each blockIdx.y, one behind the other.
KERNEL(256, transpose, const float* in, float* out, u32 rows, u32 columns, u64 in_stride,
       u64 out_stride) {
    SHARED(float, tile, [TILE][TILE + 1]);
    in += blockIdx.y * rows * in_stride;
    out += blockIdx.y * columns * out_stride;
    const u32 across = (columns + TILE - 1) / TILE;
    const u32 row = blockIdx.x / across * TILE, column = blockIdx.x % across * TILE;
    const u32 lane = threadIdx.x % TILE, warp = threadIdx.x / TILE;
    for (u32 i = warp; i < TILE; i += blockDim.x / TILE)
        if (row + i < rows && column + lane < columns)
            tile[i][lane] = in[(row + i) * in_stride + column + lane];
    __syncthreads();
    for (u32 i = warp; i < TILE; i += blockDim.x / TILE)
        if (column + i < columns && row + lane < rows)
            out[(column + i) * out_stride + row + lane] = tile[lane][i];
}
