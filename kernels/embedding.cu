// Tokens to vectors and back.
#include "device.cuh"

template <int N>
__device__ void embed(const E* vector, const E* position, E* x, float scale, u32 width) {
    for (u32 at = threadIdx.x * N; at < width; at += blockDim.x * N) {
        float values[N];
        load<N>(vector + at, values);
        for (int i = 0; i < N; i++) values[i] *= scale;
        if (position) {
            float more[N];
            load<N>(position + at, more);
            for (int i = 0; i < N; i++) values[i] += more[i];
        }
        store<N>(x + at, values);
    }
}

// One block a row.
KERNEL(256, embedding, const u32* tokens, const E* weight, const E* positions, E* x, float scale,
       u32 width, u32 first, u32 sequence) {
    const u64 row = blockIdx.x;
    const u64 position = (first + row) % sequence;
    const E* vector = weight + u64(tokens[row]) * width;
    const E* at = positions ? positions + position * width : nullptr;
    if (width % WIDE == 0 && aligned(weight, positions, x))
        embed<WIDE>(vector, at, x + row * width, scale, width);
    else
        embed<1>(vector, at, x + row * width, scale, width);
}

// Adds rows to a vector, in order: the `i`-th is `row(i)`.
template <int N, class Row>
__device__ void gather(const E* d_x, E* sum, float scale, u32 width, u32 count, Row row) {
    const u32 step = gridDim.y * blockDim.x * N;
    for (u32 at = (blockIdx.y * blockDim.x + threadIdx.x) * N; at < width; at += step) {
        float sums[N];
        load<N>(sum + at, sums);
#pragma unroll 4
        for (u32 i = 0; i < count; i++) {
            float values[N];
            load<N>(d_x + u64(row(i)) * width + at, values);
            for (int j = 0; j < N; j++) sums[j] += scale * values[j];
        }
        store<N>(sum + at, sums);
    }
}

// A block for every row and piece of columns. Rows of one token stand together in `order`; the
// block of the first of them within the call's rows adds them all, the others do nothing.
KERNEL(128, embedding_gradient, const u32* tokens, const u32* order, const u32* place,
       const E* d_x, E* d_weight, float scale, u32 batch_rows, u32 first, u32 rows, u32 width) {
    const u32 row = first + blockIdx.x, token = tokens[row], start = place[row];
    if (start > 0) {
        const u32 before = order[start - 1];
        if (before >= first && tokens[before] == token) return;
    }
    u32 count = 0, found;
    do {
        const u64 at = u64(start) + count + threadIdx.x;
        const u32 other = at < batch_rows ? order[at] : ~0u;
        const bool same = at < batch_rows && other < first + rows && tokens[other] == token;
        found = block_sum(u32(same));
        count += found;
    } while (found == blockDim.x);
    E* sum = d_weight + u64(token) * width;
    const auto of = [&](u32 i) { return order[start + i] - first; };
    if (width % WIDE == 0 && aligned(d_x, d_weight))
        gather<WIDE>(d_x, sum, scale, width, count, of);
    else
        gather<1>(d_x, sum, scale, width, count, of);
}

// A block for every position and piece of columns.
KERNEL(128, position_gradient, const E* d_x, E* d_positions, u32 first, u32 rows, u32 sequence,
       u32 width) {
    const u32 start = blockIdx.x;
    const u32 count = (rows - start + sequence - 1) / sequence;
    E* sum = d_positions + (u64(first) + start) % sequence * width;
    const auto of = [&](u32 i) { return start + i * sequence; };
    if (width % WIDE == 0 && aligned(d_x, d_positions))
        gather<WIDE>(d_x, sum, 1.0f, width, count, of);
    else
        gather<1>(d_x, sum, 1.0f, width, count, of);
}
