// What updates share: random numbers by counter, rounding by them, clipping, Adam's element. All are
// the CPU device's, bit by bit (src/device/cpu/ops/{philox,rounding,update,low_rank}.rs).
#pragma once
#include "device.cuh"

// ---- random numbers ----------------------------------------------------------------------------

// What numbers that round are drawn for: philox.rs's `Purpose`, which has more.
constexpr u32 WEIGHTS = 0, FIRST_MOMENT = 1, SECOND_MOMENT = 2;

// The numbers of one tensor for one purpose in one epoch.
struct Draws {
    u64 key;
    u32 epoch, purpose;
};

struct Words {
    u32 v[4];

    // A word by a number that only the run knows: chosen, since registers cannot be indexed.
    __device__ __forceinline__ u32 at(u32 i) const {
        return i == 0 ? v[0] : i == 1 ? v[1] : i == 2 ? v[2] : v[3];
    }
};

// All 64 bits. NVRTC adds a zero to the upper half of what it is not told to be one instruction.
__device__ __forceinline__ u64 wide_product(u32 x, u32 y) {
#ifdef __CUDA_ARCH__
    u64 all;
    asm("mul.wide.u32 %0, %1, %2;" : "=l"(all) : "r"(x), "r"(y));
    return all;
#else
    return u64(x) * y;
#endif
}

// Philox 4x32 with 10 rounds (Salmon et al. 2011, section 3.3).
__device__ __forceinline__ Words words(const Draws& draws, u64 block) {
    u32 c0 = u32(block), c1 = u32(block >> 32), c2 = draws.epoch, c3 = draws.purpose;
    u32 k0 = u32(draws.key), k1 = u32(draws.key >> 32);
#pragma unroll
    for (int round = 0; round < 10; round++) {
        const u64 a = wide_product(0xD2511F53u, c0), b = wide_product(0xCD9E8D57u, c2);
        c0 = u32(b >> 32) ^ c1 ^ k0;
        c1 = u32(b);
        c2 = u32(a >> 32) ^ c3 ^ k1;
        c3 = u32(a);
        k0 += 0x9E3779B9u;
        k1 += 0xBB67AE85u;
    }
    return {{c0, c1, c2, c3}};
}

// To bf16, up with the probability of what is cut off; infinities and NaNs stay.
__device__ __forceinline__ float stochastic(float x, u32 random) {
    const u32 bits = __float_as_uint(x);
    const bool finite = (bits & 0x7F800000) != 0x7F800000;
    return finite ? __uint_as_float((bits + (random & 0xFFFF)) & 0xFFFF0000) : x;
}

// Rounds a tensor's elements from `at` on, each by the half of a word that its place has, if they
// become bf16. N is 1, or 4 or 8 where `at` is a multiple of it.
template <class T, int N>
__device__ __forceinline__ void round_by(const Draws& draws, u64 at, float (&x)[N]) {
    static_assert(N == 1 || N == 4 || N == 8, "a block of words has eight halves");
    if (sizeof(T) > 2) return;
    const Words random = words(draws, at / 8);
    const u32 first = at % 8;
#pragma unroll
    for (int i = 0; i < N; i++) {
        const u32 word = N == 8 ? random.v[i / 2]
                         : N == 4 ? (first ? random.v[2 + i / 2] : random.v[i / 2])
                                  : random.at(first / 2);
        x[i] = stochastic(x[i], word >> (N == 1 ? first : i) % 2 * 16);
    }
}

// ---- elements ----------------------------------------------------------------------------------

// No larger than `most`; a NaN stays one.
__device__ __forceinline__ float no_larger(float x, float most) {
#ifdef __CUDA_ARCH__
    asm("min.NaN.f32 %0, %0, %1;" : "+f"(x) : "f"(most));
    asm("max.NaN.f32 %0, %0, %1;" : "+f"(x) : "f"(-most));
    return x;
#else
    return x < -most ? -most : x > most ? most : x;
#endif
}

// A gradient as updates take it: no larger than the step allows, then scaled by the norm of all.
__device__ __forceinline__ float clipped(float g, const Constants& c) {
    return no_larger(g, c.most) * c.clip;
}

// AdamW of one parameter by a clipped gradient.
__device__ __forceinline__ void adamw_element(float& w, float& m, float& v, float g,
                                              const Constants& c) {
    m = m + c.first * (g - m);
    v = v * c.second + c.second_new * g * g;
    const float deviation = sqrtf(v) * c.correction + c.epsilon;
    w = w * c.keep - c.step_size * m / deviation;
}

// Adam's direction, as GaLore has it: epsilon is added before the bias is corrected.
__device__ __forceinline__ float direction_element(float r, float& m, float& v,
                                                   const Constants& c) {
    m = c.first_old * m + c.first * r;
    v = c.second * v + c.second_new * r * r;
    return c.direction * m / (sqrtf(v) + c.epsilon);
}

// The sum of N squares: in f32, at a fraction of f64's cost, where that can hold it.
template <int N>
__device__ __forceinline__ double sum_of_squares(const float (&x)[N]) {
    float sum = 0;
    for (int i = 0; i < N; i++) sum += x[i] * x[i];
    if (sum < INFINITE) return sum;
    double wide = 0;
    for (int i = 0; i < N; i++) wide += double(x[i]) * double(x[i]);
    return wide;
}

// ---- matrices ----------------------------------------------------------------------------------

// Runs `at(row, column)` for every N-th element of a matrix.
template <int N, class At>
__device__ void every(u32 rows, u32 columns, At at) {
    for (u32 row = blockIdx.y; row < rows; row += gridDim.y)
        for (u64 i = (u64(blockIdx.x) * blockDim.x + threadIdx.x) * N; i < columns;
             i += u64(gridDim.x) * blockDim.x * N)
            at(row, u32(i));
}

// Runs `at(row, column, known(column))` for every N-th element, each column's one below the other, so
// that what is to be known of columns is found once.
template <int N, class Known, class At>
__device__ void down_columns(u32 rows, u32 columns, Known known, At at) {
    for (u64 i = (u64(blockIdx.x) * blockDim.x + threadIdx.x) * N; i < columns;
         i += u64(gridDim.x) * blockDim.x * N) {
        const auto of_columns = known(u32(i));
        for (u32 row = blockIdx.y; row < rows; row += gridDim.y) at(row, u32(i), of_columns);
    }
}
struct Nothing {};

// A part of a tensor's weights, of a type, that an update changes: elements are counted from the
// tensor's start, whose rows are `stride` long; the part begins at `first`.
template <class W>
struct Part {
    W* weight;
    u64 first, stride;
    u32 rows, columns;
    Draws draws;
};

// w <- move(w, u), where `u.load(row, column, ...)` gives the update of the part's elements by what
// `u.known(column)` has found, and `u.wide()` whether it does so four at a time.
template <int N, class W, class U, class Move>
__device__ void change_by(const Part<W>& part, const U& u, const Constants& c, Move move) {
    const auto known = [&](u32 column) { return u.template known<N>(column); };
    typedef typename U::template Known<N> Known;
    const auto change = [&](u32 row, u32 column, const Known& of_columns) {
        const u64 at = part.first + row * part.stride + column;
        float w[N], x[N];
        load<N>(part.weight + at, w);
        u.load(row, column, of_columns, c, x);
        for (int i = 0; i < N; i++) w[i] = move(w[i], x[i]);
        round_by<W>(part.draws, at, w);
        store<N>(part.weight + at, w);
    };
    down_columns<N>(part.rows, part.columns, known, change);
}
template <class W, class U, class Move>
__device__ void change(const Part<W>& part, const U& u, const Constants* constants, Move move) {
    const Constants c = *constants;
    const bool whole = part.columns % 4 == 0 && part.stride % 4 == 0 && part.first % 4 == 0;
    if (whole && u.wide() && aligned(part.weight))
        change_by<4>(part, u, c, move);
    else
        change_by<1>(part, u, c, move);
}

// An update that lies in memory as f32, `stride` from row to row.
struct Stored {
    const float* update;
    u64 stride;

    template <int N>
    using Known = Nothing;
    __device__ bool wide() const { return stride % 4 == 0 && aligned(update); }
    template <int N>
    __device__ Nothing known(u32) const {
        return {};
    }
    template <int N>
    __device__ __forceinline__ void load(u32 row, u32 column, Nothing, const Constants&,
                                         float (&to)[N]) const {
        ::load<N>(update + (row * stride + column), to);
    }
};

// Adds the squares of an update to a partial sum for each block.
template <int N, class U>
__device__ double update_squares(const U& u, const Constants& c, u32 rows, u32 columns) {
    double sum = 0;
    const auto known = [&](u32 column) { return u.template known<N>(column); };
    typedef typename U::template Known<N> Known;
    down_columns<N>(rows, columns, known, [&](u32 row, u32 column, const Known& of_columns) {
        float x[N];
        u.load(row, column, of_columns, c, x);
        sum += sum_of_squares(x);
    });
    return sum;
}
template <class U>
__device__ void square_update(const U& u, const Constants* constants, u32 rows, u32 columns,
                              double* partials) {
    const Constants c = *constants;
    const double sum = block_sum(columns % 4 == 0 && u.wide()
                                     ? update_squares<4>(u, c, rows, columns)
                                     : update_squares<1>(u, c, rows, columns));
    if (threadIdx.x == 0) partials[blockIdx.y * gridDim.x + blockIdx.x] += sum;
}
