// Norms of rows. A row is read from memory once; where it is needed again it is still in the first
// cache.
#include "device.cuh"

// Mean (0 for RMS) and inverse deviation of a row; all threads of the block take part.
template <int N>
__device__ void statistics(const E* x, u32 width, float epsilon, u32 kind, float& mean,
                           float& inverse) {
    const float share = 1.0f / float(width);
    mean = 0;
    if (kind == LAYER) {
        float sum = 0;
        for (u32 at = threadIdx.x * N; at < width; at += blockDim.x * N) {
            float values[N];
            load<N>(x + at, values);
            for (int i = 0; i < N; i++) sum += values[i];
        }
        mean = block_sum(sum) * share;
    }
    float squares = 0;
    for (u32 at = threadIdx.x * N; at < width; at += blockDim.x * N) {
        float values[N];
        load<N>(x + at, values);
        for (int i = 0; i < N; i++) squares += (values[i] - mean) * (values[i] - mean);
    }
    inverse = 1.0f / sqrtf(block_sum(squares) * share + epsilon);
}

template <int N>
__device__ void normalise(const E* x, const E* scale, const E* shift, E* y, u32 width,
                          float epsilon, u32 kind) {
    float mean, inverse;
    statistics<N>(x, width, epsilon, kind, mean, inverse);
    for (u32 at = threadIdx.x * N; at < width; at += blockDim.x * N) {
        float values[N], scales[N];
        load<N>(x + at, values);
        load<N>(scale + at, scales);
        for (int i = 0; i < N; i++)
            values[i] = norm_factor(kind, scales[i]) * ((values[i] - mean) * inverse);
        if (shift) {
            float shifts[N];
            load<N>(shift + at, shifts);
            for (int i = 0; i < N; i++) values[i] += shifts[i];
        }
        store<N>(y + at, values);
    }
}

// One block a row.
KERNEL(256, norm, const E* x, const E* scale, const E* shift, E* y, u32 width, float epsilon,
       u32 kind) {
    const u64 row = u64(blockIdx.x) * width;
    if (width % WIDE == 0 && aligned(x, scale, shift, y))
        normalise<WIDE>(x + row, scale, shift, y + row, width, epsilon, kind);
    else
        normalise<1>(x + row, scale, shift, y + row, width, epsilon, kind);
}

// A block's rows are every gridDim.x-th. Its sums of dw (and, of a layer norm, db) stay in shared
// memory, every column with one thread, piece by piece apart so that lanes meet no bank twice.
template <int N>
__device__ void normalise_backward(const E* x, const E* scale, const E* d_y, E* d_x,
                                   float* partials, u32 rows, u32 width, float epsilon, u32 kind,
                                   bool add) {
    DYNAMIC_SHARED(float, sums);
    const float share = 1.0f / float(width);
    const u32 pieces = width / N, planes = kind == LAYER ? 2 : 1;
    for (u32 at = threadIdx.x; at < planes * width; at += blockDim.x) sums[at] = 0;
    __syncthreads();
    for (u64 row = blockIdx.x; row < rows; row += gridDim.x) {
        const E* of_x = x + row * width;
        const E* of_y = d_y + row * width;
        E* of_dx = d_x + row * width;
        float mean, inverse;
        statistics<N>(of_x, width, epsilon, kind, mean, inverse);
        float along = 0, level = 0;
        for (u32 piece = threadIdx.x; piece < pieces; piece += blockDim.x) {
            float values[N], scales[N], d[N];
            load<N>(of_x + piece * N, values);
            load<N>(scale + piece * N, scales);
            load<N>(of_y + piece * N, d);
            for (int i = 0; i < N; i++) {
                const float normed = (values[i] - mean) * inverse;
                const float u = d[i] * norm_factor(kind, scales[i]);
                along += u * normed;
                level += u;
                sums[i * pieces + piece] += d[i] * normed;
                if (kind == LAYER) sums[width + i * pieces + piece] += d[i];
            }
        }
        along = block_sum(along) * share;
        level = kind == LAYER ? block_sum(level) * share : 0;
        for (u32 piece = threadIdx.x; piece < pieces; piece += blockDim.x) {
            float values[N], scales[N], d[N];
            load<N>(of_x + piece * N, values);
            load<N>(scale + piece * N, scales);
            load<N>(of_y + piece * N, d);
            for (int i = 0; i < N; i++) {
                const float normed = (values[i] - mean) * inverse;
                const float u = d[i] * norm_factor(kind, scales[i]);
                values[i] = inverse * (u - level - normed * along);
            }
            if (add) {
                float old[N];
                load<N>(of_dx + piece * N, old);
                for (int i = 0; i < N; i++) values[i] += old[i];
            }
            store<N>(of_dx + piece * N, values);
        }
    }
    float* out = partials + u64(blockIdx.x) * planes * width;
    for (u32 piece = threadIdx.x; piece < pieces; piece += blockDim.x)
        for (u32 plane = 0; plane < planes; plane++) {
            float values[N];
            for (int i = 0; i < N; i++) values[i] = sums[plane * width + i * pieces + piece];
            store<N>(out + plane * width + piece * N, values);
        }
}

KERNEL(256, norm_backward, const E* x, const E* scale, const E* d_y, E* d_x, float* partials,
       u32 rows, u32 width, float epsilon, u32 kind, u32 add) {
    if (width % WIDE == 0 && aligned(x, scale, d_y, d_x, partials))
        normalise_backward<WIDE>(x, scale, d_y, d_x, partials, rows, width, epsilon, kind, add);
    else
        normalise_backward<1>(x, scale, d_y, d_x, partials, rows, width, epsilon, kind, add);
}
