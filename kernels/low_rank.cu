// Updates in a space of low rank: what is drawn, scaled, made orthonormal and taken off weights; the
// products between are cuBLASLt's (src/device/cpu/run/low_rank.rs has the order).
#include "update.cuh"

// Elements `first ...` of a random projection for a purpose, as whole numbers, which bf16 holds exactly: ones of 32
// fair bits, less 16. What they are multiplied with is the product's.
KERNEL(256, draw, E* out, u64 key, u32 epoch, u32 purpose, u64 first, u64 count) {
    const Draws draws = {key, epoch, purpose};
    const u64 step = u64(gridDim.x) * blockDim.x, end = first + count;
    for (u64 block = first / 4 + u64(blockIdx.x) * blockDim.x + threadIdx.x; block * 4 < end;
         block += step) {
        const Words random = words(draws, block);
        for (int i = 0; i < 4; i++) {
            const u64 at = block * 4 + i;
            if (at < first || at >= end) continue;
            narrow(float(__popc(random.v[i])) - 16.0f, out[at - first]);
        }
    }
}

// w <- w - factor u, then w <- w - decay w.
template <class W, class U>
__device__ void descend(const Part<W>& part, const U& u, const Constants* constants,
                        float factor, float decay) {
    change(part, u, constants, [=](float w, float u) {
        const float moved = w - factor * u;
        return moved - decay * moved;
    });
}

// By an update in memory, `stride` from row to row.
KERNEL(256, descended, E* weight, u64 first, u64 width, const float* update, u64 stride,
       const Constants* constants, float factor, float decay, u32 rows, u32 columns, u64 key,
       u32 step) {
    const Part<E> part = {weight, first, width, rows, columns, {key, step, WEIGHTS}};
    descend(part, Stored{update, stride}, constants, factor, decay);
}

// ---- APOLLO, Fira ------------------------------------------------------------------------------

// The sum of squares of every row; a warp for each.
KERNEL(256, row_squares, const float* x, u32 rows, u32 columns, double* sums) {
    const u32 lane = threadIdx.x % 32, warps = gridDim.x * (blockDim.x / 32);
    for (u32 row = (blockIdx.x * blockDim.x + threadIdx.x) / 32; row < rows; row += warps) {
        double sum = 0;
        for (u32 i = lane; i < columns; i += 32) {
            const double value = x[u64(row) * columns + i];
            sum += value * value;
        }
        sum = lanes_sum(sum, 32);
        if (lane == 0) sums[row] = sum;
    }
}

// What Adam made of channels, from the sums of squares of their gradients, which are not yet scaled
// by the norm of all, and of their directions.
KERNEL(256, channel_factors, const double* of_gradient, const double* of_direction, u32 count,
       const Constants* constants, float* factors) {
    const double clip = constants->clip;
    for (u32 i = blockIdx.x * blockDim.x + threadIdx.x; i < count; i += gridDim.x * blockDim.x)
        factors[i] = float(sqrt(of_direction[i]) / (sqrt(of_gradient[i]) * clip + 1e-8));
}

// A gradient by the factors of its rows (1), its columns (2) or one for all (0), times `growth`.
// APOLLO's as it is; Fira's is a residual: `taken`, negative and not yet scaled by the norm of all,
// is added before, and what Adam made of what was taken, `added`, behind.
template <class G>
struct Scaled {
    const G* gradient;
    u64 stride;
    const float* taken;
    u64 taken_stride;
    const float* factors;
    u32 by;
    float growth;
    const float* added;
    u64 added_stride;

    template <int N>
    using Known = Nothing;
    __device__ bool wide() const {
        return (stride | taken_stride | added_stride) % 4 == 0 && aligned(gradient, taken, added);
    }
    template <int N>
    __device__ Nothing known(u32) const {
        return {};
    }
    template <int N>
    __device__ __forceinline__ void load(u32 row, u32 column, Nothing, const Constants& c,
                                         float (&to)[N]) const {
        ::load<N>(gradient + (row * stride + column), to);
        float less[N] = {}, more[N] = {};
        if (taken) ::load<N>(taken + (row * taken_stride + column), less);
        if (added) ::load<N>(added + (row * added_stride + column), more);
        for (int i = 0; i < N; i++) {
            const float factor = factors[by == 0 ? 0 : by == 1 ? row : column + i];
            to[i] = (clipped(to[i], c) + less[i] * c.clip) * factor * growth + more[i];
        }
    }
};

// One thread: keeps an update to 1.01 times the norm of the one before, where there was one.
KERNEL(32, limited_growth, const double* squares, float* norm, float* growth) {
    if (threadIdx.x > 0) return;
    const double now = sqrt(*squares), most = 1.01 * double(*norm);
    const bool fits = *norm == 0 || now <= most;
    *growth = fits ? 1.0f : float(most / now);
    *norm = float(fits ? now : most);
}

#define SCALED(suffix, G)                                                                         \
    KERNEL(256, scaled_squares##suffix, const G* gradient, u64 stride, const float* taken,        \
           u64 taken_stride, const float* factors, u32 by, const Constants* constants, u32 rows,  \
           u32 columns, double* partials) {                                                       \
        const Scaled<G> u = {gradient, stride, taken,   taken_stride, factors,                    \
                             by,       1.0f,   nullptr, 0};                                       \
        square_update(u, constants, rows, columns, partials);                                     \
    }                                                                                             \
    KERNEL(256, scaled_update##suffix, E* weight, u64 first, u64 width, const G* gradient,        \
           u64 stride, const float* taken, u64 taken_stride, const float* factors, u32 by,        \
           const float* growth, const float* added, u64 added_stride, const Constants* constants, \
           float factor, float decay, u32 rows, u32 columns, u64 key, u32 step) {                 \
        const Part<E> part = {weight, first, width, rows, columns, {key, step, WEIGHTS}};         \
        const Scaled<G> u = {gradient, stride,  taken, taken_stride, factors,                     \
                             by,       *growth, added, added_stride};                             \
        descend(part, u, constants, factor, decay);                                               \
    }

SCALED(, E)
SCALED(_summed, float)

// ---- GaLore ------------------------------------------------------------------------------------

// One block: makes up to 32 vectors orthonormal, one below the other, in their order: classical
// Gram-Schmidt, twice (Giraud et al. 2005), a warp for every vector before.
KERNEL(1024, orthonormal, float* vectors, u32 count, u32 width) {
    SHARED(double, shares, [32]);
    const u32 lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    for (u32 i = 0; i < count; i++) {
        float* vector = vectors + u64(i) * width;
        for (int pass = 0; i > 0 && pass < 2; pass++) {
            if (warp < i) {
                const float* before = vectors + u64(warp) * width;
                double sum = 0;
                for (u32 at = lane; at < width; at += 32)
                    sum += double(vector[at]) * double(before[at]);
                sum = lanes_sum(sum, 32);
                if (lane == 0) shares[warp] = sum;
            }
            __syncthreads();
            for (u32 at = threadIdx.x; at < width; at += blockDim.x) {
                double left = vector[at];
                for (u32 j = 0; j < i; j++) left -= shares[j] * vectors[u64(j) * width + at];
                vector[at] = float(left);
            }
            __syncthreads();
        }
        double sum = 0;
        for (u32 at = threadIdx.x; at < width; at += blockDim.x)
            sum += double(vector[at]) * double(vector[at]);
        const double norm = sqrt(block_sum(sum));
        const double by = norm > 0 ? 1.0 / norm : 0.0;
        for (u32 at = threadIdx.x; at < width; at += blockDim.x)
            vector[at] = float(vector[at] * by);
        __syncthreads();
    }
}
