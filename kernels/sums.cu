// Sums over rows in two steps, partial sums in scratch memory between them; and biases.
#include "device.cuh"

// Adds up partial sums: 32 columns a block, 8 runs of parts side by side, then those in order.
// `stride` is from one part to the next.
KERNEL(256, combine, const float* partials, E* out, u32 parts, u32 columns, u64 stride, u32 add) {
    SHARED(float, runs, [8][32]);
    const u32 lane = threadIdx.x % 32, run = threadIdx.x / 32;
    const u32 column = blockIdx.x * 32 + lane;
    const u32 length = (parts + 7) / 8;
    float sum = 0;
    if (column < columns) {
        const u32 end = least((run + 1) * length, parts);
#pragma unroll 16
        for (u32 part = run * length; part < end; part++) sum += partials[part * stride + column];
    }
    runs[run][lane] = sum;
    __syncthreads();
    if (run > 0 || column >= columns) return;
    for (int other = 1; other < 8; other++) sum += runs[other][lane];
    if (add) sum += widen(out[column]);
    narrow(sum, out[column]);
}

template <int N>
__device__ void sum_rows(const E* d_y, float* partials, u32 rows, u32 columns) {
    const u32 length = (rows + gridDim.y - 1) / gridDim.y;
    const u32 end = least((blockIdx.y + 1) * length, rows);
    const u32 step = gridDim.x * blockDim.x * N;
    for (u32 at = (blockIdx.x * blockDim.x + threadIdx.x) * N; at < columns; at += step) {
        float sums[N] = {};
#pragma unroll 4
        for (u32 row = blockIdx.y * length; row < end; row++) {
            float values[N];
            load<N>(d_y + u64(row) * columns + at, values);
            for (int i = 0; i < N; i++) sums[i] += values[i];
        }
        store<N>(partials + u64(blockIdx.y) * columns + at, sums);
    }
}

// The sums of the columns over runs of rows, blockIdx.y the run.
KERNEL(128, column_sums, const E* d_y, float* partials, u32 rows, u32 columns) {
    if (columns % WIDE == 0 && aligned(d_y, partials))
        sum_rows<WIDE>(d_y, partials, rows, columns);
    else
        sum_rows<1>(d_y, partials, rows, columns);
}

// Adds to every row a bias of up to three pieces, which end at columns end0, end1 and the last.
KERNEL(256, add_bias, E* y, const E* b0, const E* b1, const E* b2, u32 end0, u32 end1,
       u32 columns) {
    E* row = y + u64(blockIdx.x) * columns;
    const bool wide = aligned(y, b0, b1, b2) && end0 % WIDE == 0 && end1 % WIDE == 0 &&
                      columns % WIDE == 0;
    const u32 width = wide ? WIDE : 1;
    const u32 step = blockDim.x * gridDim.y * width;
    for (u32 at = (blockIdx.y * blockDim.x + threadIdx.x) * width; at < columns; at += step) {
        const E* bias = at < end0 ? b0 + at : at < end1 ? b1 + (at - end0) : b2 + (at - end1);
        if (wide) {
            float values[WIDE], more[WIDE];
            load<WIDE>(row + at, values);
            load<WIDE>(bias, more);
            for (int i = 0; i < WIDE; i++) values[i] += more[i];
            store<WIDE>(row + at, values);
        } else {
            narrow(widen(row[at]) + widen(*bias), row[at]);
        }
    }
}

// One block.
KERNEL(1024, sum_doubles, const double* values, u32 count, double* out) {
    double sum = 0;
    ahead<4>(threadIdx.x, count, blockDim.x, [=](u32 at) { return values[at]; },
          [&](u32, double value) { sum += value; });
    sum = block_sum(sum);
    if (threadIdx.x == 0) *out = sum;
}
