// Updates by a factored second moment: AdaLomo, and FLORA's gradient over its moment
// (src/device/cpu/ops/factored.rs has the equations). A matrix has a vector of moments for its rows
// and one for its columns, of which one is divided by its mean; a gradient is multiplied with the
// inverses of their roots, as in Adafactor's code. A vector is a row whose columns' moments are its
// own.
#include "update.cuh"

// What is added to squares.
constexpr float FLOOR = 1e-30f;
// Columns that a warp adds up.
constexpr u32 PIECE = 128;

// Moves a moment towards a mean square.
__device__ __forceinline__ float moved(float moment, float square, float old, float fresh) {
    return old * moment + fresh * square;
}

// Sums of g^2 + 1e-30: of every row over pieces of 128 columns, and of every column over runs of
// rows, blockIdx.y the run.
template <class G>
__device__ void square_sums_of(const G* gradient, const Constants* constants, u32 rows,
                               u32 columns, float* of_rows, float* of_columns) {
    const Constants c = *constants;
    const u32 pieces = (columns + PIECE - 1) / PIECE;
    const u32 piece = blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32;
    const u32 lane = threadIdx.x % 32, start = piece * PIECE + lane * 4;
    const u32 length = (rows + gridDim.y - 1) / gridDim.y;
    const u32 end = least((blockIdx.y + 1) * length, rows);
    const bool wide = columns % 4 == 0 && aligned(gradient);
    float sums[4] = {};
    for (u32 row = blockIdx.y * length; row < end; row++) {
        float g[4] = {}, sum = 0;
        const G* from = gradient + u64(row) * columns;
        if (wide && start < columns)
            load<4>(from + start, g);
        else
            for (u32 i = 0; i < 4 && start + i < columns; i++) g[i] = widen(from[start + i]);
        for (u32 i = 0; i < 4; i++) {
            if (start + i >= columns) continue;
            const float x = clipped(g[i], c), square = x * x + FLOOR;
            sums[i] += square;
            sum += square;
        }
        sum = lanes_sum(sum, 32);
        if (lane == 0 && piece < pieces) of_rows[u64(row) * pieces + piece] = sum;
    }
    for (u32 i = 0; i < 4; i++)
        if (start + i < columns) of_columns[u64(blockIdx.y) * columns + start + i] = sums[i];
}
KERNEL(256, square_sums, const E* gradient, const Constants* constants, u32 rows, u32 columns,
       float* of_rows, float* of_columns) {
    square_sums_of(gradient, constants, rows, columns, of_rows, of_columns);
}
KERNEL(256, square_sums_summed, const float* gradient, const Constants* constants, u32 rows,
       u32 columns, float* of_rows, float* of_columns) {
    square_sums_of(gradient, constants, rows, columns, of_rows, of_columns);
}

// Moves the rows' moments by the sums of `pieces`; a warp for every row, which has `width` elements.
KERNEL(256, row_moments, float* moments, const float* sums, u32 rows, u32 pieces, float width,
       float old, float fresh) {
    const u32 lane = threadIdx.x % 32, warps = gridDim.x * (blockDim.x / 32);
    for (u32 row = (blockIdx.x * blockDim.x + threadIdx.x) / 32; row < rows; row += warps) {
        float sum = 0;
        for (u32 piece = lane; piece < pieces; piece += 32) sum += sums[u64(row) * pieces + piece];
        sum = lanes_sum(sum, 32);
        if (lane == 0) moments[row] = moved(moments[row], sum / width, old, fresh);
    }
}

// Moves the columns' moments by the sums of `parts`; a column has `height` elements.
KERNEL(256, column_moments, float* moments, const float* sums, u32 columns, u32 parts,
       float height, float old, float fresh) {
    const u32 column = blockIdx.x * blockDim.x + threadIdx.x;
    if (column >= columns) return;
    float sum = 0;
#pragma unroll 4
    for (u32 part = 0; part < parts; part++) sum += sums[u64(part) * columns + column];
    moments[column] = moved(moments[column], sum / height, old, fresh);
}

// Moves a vector's moments.
template <class G>
__device__ void vector_moments_of(float* moments, const G* gradient, const Constants* constants,
                                  u64 count, float old, float fresh) {
    const Constants c = *constants;
    const u64 step = u64(gridDim.x) * blockDim.x;
    for (u64 at = u64(blockIdx.x) * blockDim.x + threadIdx.x; at < count; at += step) {
        const float g = clipped(widen(gradient[at]), c);
        moments[at] = moved(moments[at], g * g + FLOOR, old, fresh);
    }
}
KERNEL(256, vector_moments, float* moments, const E* gradient, const Constants* constants,
       u64 count, float old, float fresh) {
    vector_moments_of(moments, gradient, constants, count, old, fresh);
}
KERNEL(256, vector_moments_summed, float* moments, const float* gradient,
       const Constants* constants, u64 count, float old, float fresh) {
    vector_moments_of(moments, gradient, constants, count, old, fresh);
}

// One block: the mean of moments.
KERNEL(1024, moments_mean, const float* moments, u32 count, float* mean) {
    double sum = 0;
    for (u32 i = threadIdx.x; i < count; i += blockDim.x) sum += moments[i];
    sum = block_sum(sum);
    if (threadIdx.x == 0) *mean = float(sum) / float(count);
}

// Inverse roots of moments, over their mean where it is not null.
KERNEL(256, inverse_roots, const float* moments, const float* mean, float* roots, u32 count) {
    const u32 at = blockIdx.x * blockDim.x + threadIdx.x;
    if (at < count) roots[at] = 1.0f / sqrtf(mean ? moments[at] / *mean : moments[at]);
}

// ---- updates -----------------------------------------------------------------------------------

// Inverse roots of moments of columns.
template <int N>
struct Roots {
    float v[N];
};

// A gradient over the roots of its moments; the inverses of the rows' may be null: 1.
template <class G>
struct Factored {
    const G* gradient;
    u64 stride;
    const float *rows, *columns;

    template <int N>
    using Known = Roots<N>;
    __device__ bool wide() const { return stride % 4 == 0 && aligned(gradient, columns); }
    template <int N>
    __device__ __forceinline__ Roots<N> known(u32 column) const {
        Roots<N> roots;
        ::load<N>(columns + column, roots.v);
        return roots;
    }
    template <int N>
    __device__ __forceinline__ void load(u32 row, u32 column, const Roots<N>& of_columns,
                                         const Constants& c, float (&to)[N]) const {
        ::load<N>(gradient + (row * stride + column), to);
        const float of_row = rows ? rows[row] : 1.0f;
        for (int i = 0; i < N; i++) to[i] = clipped(to[i], c) * of_row * of_columns.v[i];
    }
};

// One block: what weights are multiplied with, and what the update is, from sums of squares of both.
KERNEL(32, factored_rate, const double* of_weights, const double* of_update, u64 count,
       double learning_rate, double decay, float* rate) {
    if (threadIdx.x > 0) return;
    const double weights = sqrt(*of_weights / double(count));
    const double update = sqrt(*of_update / double(count));
    // The least that the size of weights counts for.
    const double relative = learning_rate * (weights > 1e-3 ? weights : 1e-3);
    rate[0] = float(1.0 - relative * decay);
    rate[1] = float(relative / (update > 1.0 ? update : 1.0));
}

// w <- w keep - by u, of what `factored_rate` has found.
template <class W, class U>
__device__ void follow(const Part<W>& part, const U& u, const Constants* constants,
                       const float* rate) {
    const float keep = rate[0], by = rate[1];
    change(part, u, constants, [=](float w, float u) { return w * keep - by * u; });
}

// FLORA: d <- take u + keep d, and the update itself as elements, dense.
template <int N, class G>
__device__ void mix_by(float* direction, u64 stride, const Factored<G>& u, E* update,
                       const Constants& c, u32 rows, u32 columns, float keep, float take) {
    const auto known = [&](u32 column) { return u.template known<N>(column); };
    down_columns<N>(rows, columns, known, [&](u32 row, u32 column, const Roots<N>& of_columns) {
        float x[N], d[N];
        u.load(row, column, of_columns, c, x);
        load<N>(direction + (row * stride + column), d);
        for (int i = 0; i < N; i++) d[i] = d[i] * keep + take * x[i];
        store<N>(direction + (row * stride + column), d);
        store<N>(update + (u64(row) * columns + column), x);
    });
}
template <class G>
__device__ void mix(float* direction, u64 stride, const Factored<G>& u, E* update,
                    const Constants* constants, u32 rows, u32 columns, float keep, float take) {
    const Constants c = *constants;
    if (columns % 4 == 0 && stride % 4 == 0 && u.wide() && aligned(direction, update))
        mix_by<4>(direction, stride, u, update, c, rows, columns, keep, take);
    else
        mix_by<1>(direction, stride, u, update, c, rows, columns, keep, take);
}

#define FACTORED(suffix, G)                                                                       \
    KERNEL(256, factored_squares##suffix, const G* gradient, u64 stride, const float* of_rows,    \
           const float* of_columns, const Constants* constants, u32 rows, u32 columns,            \
           double* partials) {                                                                    \
        const Factored<G> u = {gradient, stride, of_rows, of_columns};                            \
        square_update(u, constants, rows, columns, partials);                                     \
    }                                                                                             \
    KERNEL(256, factored_update##suffix, E* weight, u64 first, u64 width, const G* gradient,      \
           u64 stride, const float* of_rows, const float* of_columns,                             \
           const Constants* constants, const float* rate, u32 rows, u32 columns, u64 key,         \
           u32 step) {                                                                            \
        const Factored<G> u = {gradient, stride, of_rows, of_columns};                            \
        const Part<E> part = {weight, first, width, rows, columns, {key, step, WEIGHTS}};         \
        follow(part, u, constants, rate);                                                         \
    }                                                                                             \
    KERNEL(256, mixed##suffix, float* direction, u64 width, const G* gradient, u64 stride,        \
           const float* of_rows, const float* of_columns, E* update,                              \
           const Constants* constants, u32 rows, u32 columns, float keep, float take) {           \
        const Factored<G> u = {gradient, stride, of_rows, of_columns};                            \
        mix(direction, width, u, update, constants, rows, columns, keep, take);                   \
    }

FACTORED(, E)
FACTORED(_summed, float)

KERNEL(256, stored_update, E* weight, u64 first, u64 width, const float* update, u64 stride,
       const Constants* constants, const float* rate, u32 rows, u32 columns, u64 key, u32 step) {
    const Part<E> part = {weight, first, width, rows, columns, {key, step, WEIGHTS}};
    follow(part, Stored{update, stride}, constants, rate);
}
