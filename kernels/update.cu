// Updates of parameters and the norm of all gradients. Compiled without fused products: an update
// gives the same bits here and on the host.
#include "update.cuh"

// Copies that one launch adds up.
constexpr int COPIES = 8;

template <int N>
__device__ void add_copies(float* out, u64 count, bool from_zero, u32 copies,
                           const E* const (&all)[COPIES]) {
    const u64 step = u64(gridDim.x) * blockDim.x * N;
    for (u64 at = (u64(blockIdx.x) * blockDim.x + threadIdx.x) * N; at < count; at += step) {
        Pack<E, N> packs[COPIES] = {};
#pragma unroll
        for (u32 copy = 0; copy < COPIES; copy++)
            if (copy < copies) packs[copy] = piece_at<N>(all[copy] + at);
        float sums[N], values[N];
        unpack(packs[0], sums);
        if (!from_zero) {
            load<N>(out + at, values);
            for (int i = 0; i < N; i++) sums[i] = values[i] + sums[i];
        }
#pragma unroll
        for (u32 copy = 1; copy < COPIES; copy++) {
            if (copy >= copies) break;
            unpack(packs[copy], values);
            for (int i = 0; i < N; i++) sums[i] += values[i];
        }
        store<N>(out + at, sums);
    }
}

// Adds copies of a gradient up, in order: to what `out` holds, or from the first copy on.
KERNEL(256, gradient_sum, float* out, u64 count, u32 from_zero, u32 copies, const E* c0,
       const E* c1, const E* c2, const E* c3, const E* c4, const E* c5, const E* c6,
       const E* c7) {
    const E* const all[COPIES] = {c0, c1, c2, c3, c4, c5, c6, c7};
    if (count % 4 == 0 && aligned(out, c0, c1, c2, c3, c4, c5, c6, c7))
        add_copies<4>(out, count, from_zero, copies, all);
    else
        add_copies<1>(out, count, from_zero, copies, all);
}

template <int N, class G>
__device__ double add_squares(const G* gradient, u64 count) {
    double sum = 0;
    const u64 first = (u64(blockIdx.x) * blockDim.x + threadIdx.x) * N;
    const u64 step = u64(gridDim.x) * blockDim.x * N;
    ahead<4>(first, count, step, [=](u64 at) { return piece_at<N>(gradient + at); },
          [&](u64, const Pack<G, N>& pack) {
              float values[N];
              unpack(pack, values);
              for (int i = 0; i < N; i++) sum += double(values[i]) * double(values[i]);
          });
    return sum;
}

template <class G>
__device__ void square(const G* gradient, u64 count, double* partials) {
    constexpr int wide = 16 / sizeof(G);
    const double sum = count % wide == 0 && aligned(gradient)
                           ? add_squares<wide>(gradient, count)
                           : add_squares<1>(gradient, count);
    const double all = block_sum(sum);
    if (threadIdx.x == 0) partials[blockIdx.x] = all;
}

// A partial sum of squares for each block.
KERNEL(256, squares, const E* gradient, u64 count, double* partials) {
    square(gradient, count, partials);
}
KERNEL(256, squares_summed, const float* gradient, u64 count, double* partials) {
    square(gradient, count, partials);
}

// One block: what gradients are multiplied with, from the sums of squares in order.
KERNEL(256, clip_factor, const double* sums, u32 slots, Constants* constants) {
    SHARED(double, some, [256]);
    double sum = 0;
    for (u32 start = 0; start < slots; start += 256) {
        __syncthreads();
        if (start + threadIdx.x < slots) some[threadIdx.x] = sums[start + threadIdx.x];
        __syncthreads();
        if (threadIdx.x == 0)
            for (u32 i = 0; i < least(256u, slots - start); i++) sum += some[i];
    }
    if (threadIdx.x > 0) return;
    const double factor = constants->limit / (sqrt(sum) + 1e-6);
    // A norm that is no number clips nothing.
    constants->clip = float(factor < 1.0 ? factor : 1.0);
}

// Elements that a thread has at once: 16 bytes of f32, so that a warp's accesses leave no gaps.
constexpr int OF_THREAD = 4;

// Updates N elements; the operands' addresses are those of the first.
template <int N, class G>
__device__ __forceinline__ void adamw_at(E* weight, const G* gradient, float* master, float* m,
                                         float* v, const Constants& c) {
    float w[N], g[N], first[N], second[N];
    if (master)
        load<N>(master, w);
    else
        load<N>(weight, w);
    load<N>(gradient, g);
    load<N>(m, first);
    load<N>(v, second);
    for (int i = 0; i < N; i++) adamw_element(w[i], first[i], second[i], clipped(g[i], c), c);
    if (master) store<N>(master, w);
    store<N>(weight, w);
    store<N>(m, first);
    store<N>(v, second);
}

template <int N, class G>
__device__ __forceinline__ void sgd_at(E* weight, const G* gradient, const Constants& c) {
    float w[N], g[N];
    load<N>(weight, w);
    load<N>(gradient, g);
    for (int i = 0; i < N; i++)
        w[i] = w[i] - c.learning_rate * (clipped(g[i], c) + c.weight_decay * w[i]);
    store<N>(weight, w);
}

// Runs `at(element of a matrix with strides, element of a dense one)` for every N-th element.
template <int N, class At>
__device__ void each_element(u32 rows, u64 columns, u64 stride, At at) {
    const u64 step = u64(gridDim.x) * blockDim.x * N;
    for (u64 row = blockIdx.y; row < rows; row += gridDim.y)
        for (u64 i = (u64(blockIdx.x) * blockDim.x + threadIdx.x) * N; i < columns; i += step)
            at(row * stride + i, row * columns + i);
}

template <class G>
__device__ void adamw_all(E* weight, const G* gradient, float* master, float* m, float* v,
                          const Constants* constants, u32 rows, u64 columns, u64 stride) {
    const Constants c = *constants;
    const bool whole = columns % OF_THREAD == 0 && (rows == 1 || stride % OF_THREAD == 0);
    if (whole && aligned(weight, gradient, master, m, v))
        each_element<OF_THREAD>(rows, columns, stride, [&](u64 at, u64 dense) {
            adamw_at<OF_THREAD>(weight + at, gradient + dense, master ? master + at : nullptr,
                                m + at, v + at, c);
        });
    else
        each_element<1>(rows, columns, stride, [&](u64 at, u64 dense) {
            adamw_at<1>(weight + at, gradient + dense, master ? master + at : nullptr, m + at,
                        v + at, c);
        });
}

template <class G>
__device__ void sgd_all(E* weight, const G* gradient, const Constants* constants, u32 rows,
                        u64 columns, u64 stride) {
    const Constants c = *constants;
    constexpr int N = 16 / sizeof(G);
    const bool whole = columns % N == 0 && (rows == 1 || stride % N == 0);
    if (whole && aligned(weight, gradient))
        each_element<N>(rows, columns, stride, [&](u64 at, u64 dense) {
            sgd_at<N>(weight + at, gradient + dense, c);
        });
    else
        each_element<1>(rows, columns, stride, [&](u64 at, u64 dense) {
            sgd_at<1>(weight + at, gradient + dense, c);
        });
}

KERNEL(256, adamw, E* weight, const E* gradient, float* master, float* m, float* v,
       const Constants* constants, u32 rows, u64 columns, u64 stride) {
    adamw_all(weight, gradient, master, m, v, constants, rows, columns, stride);
}
KERNEL(256, adamw_summed, E* weight, const float* gradient, float* master, float* m, float* v,
       const Constants* constants, u32 rows, u64 columns, u64 stride) {
    adamw_all(weight, gradient, master, m, v, constants, rows, columns, stride);
}
KERNEL(256, sgd, E* weight, const E* gradient, const Constants* constants, u32 rows, u64 columns,
       u64 stride) {
    sgd_all(weight, gradient, constants, rows, columns, stride);
}
KERNEL(256, sgd_summed, E* weight, const float* gradient, const Constants* constants, u32 rows,
       u64 columns, u64 stride) {
    sgd_all(weight, gradient, constants, rows, columns, stride);
}
