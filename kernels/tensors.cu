// Updates of whole tensors, element by element: Adam with moments in f32, in the elements' type or in
// 8 bits, on weights without master copies, and Adam's direction in a space of low rank. The host's
// bits (src/device/cpu/run/tensors.rs).
//
// Elements are counted from the tensor's start; gradients and directions lie from `first` on.
#include "update.cuh"

typedef unsigned char u8;

template <int N>
__device__ void gather_by(float* out, const E* block, u32 rows, u32 columns, u64 to, u64 from) {
    every<N>(rows, columns, [=](u32 row, u32 column) {
        float sums[N], values[N];
        load<N>(out + (row * to + column), sums);
        load<N>(block + (row * from + column), values);
        for (int i = 0; i < N; i++) sums[i] += values[i];
        store<N>(out + (row * to + column), sums);
    });
}

// Adds a block of a gradient to what is gathered; `to` and `from` are from row to row.
KERNEL(256, gather, float* out, const E* block, u32 rows, u32 columns, u64 to, u64 from) {
    if ((columns | to | from) % 4 == 0 && aligned(out, block))
        gather_by<4>(out, block, rows, columns, to, from);
    else
        gather_by<1>(out, block, rows, columns, to, from);
}

template <int N>
__device__ void cut_by(float* x, u64 count, float most) {
    const u64 step = u64(gridDim.x) * blockDim.x * N;
    for (u64 at = (u64(blockIdx.x) * blockDim.x + threadIdx.x) * N; at < count; at += step) {
        float values[N];
        load<N>(x + at, values);
        for (int i = 0; i < N; i++) values[i] = no_larger(values[i], most);
        store<N>(x + at, values);
    }
}

// No larger than `most`.
KERNEL(256, cut, float* x, u64 count, float most) {
    if (count % 4 == 0 && aligned(x))
        cut_by<4>(x, count, most);
    else
        cut_by<1>(x, count, most);
}

template <int N>
__device__ void narrow_by(const float* from, u64 stride, E* to, u32 rows, u32 columns) {
    every<N>(rows, columns, [=](u32 row, u32 column) {
        float values[N];
        load<N>(from + (row * stride + column), values);
        store<N>(to + (u64(row) * columns + column), values);
    });
}

// f32, `stride` from row to row, to elements, to the nearest, without a gap.
KERNEL(256, narrowed, const float* from, u64 stride, E* to, u32 rows, u32 columns) {
    if ((columns | stride) % 4 == 0 && aligned(from, to))
        narrow_by<4>(from, stride, to, rows, columns);
    else
        narrow_by<1>(from, stride, to, rows, columns);
}

// ---- what moments change -----------------------------------------------------------------------

// AdamW's weights, of a type, by their gradient.
template <class W, class G>
struct Adam {
    W* weight;
    const G* gradient;
    Draws draws;
    u64 first;

    __device__ bool wide() const { return aligned(weight + first, gradient); }
    template <int N>
    __device__ __forceinline__ void change(u64 at, float (&m)[N], float (&v)[N],
                                           const Constants& c) const {
        float w[N], g[N];
        load<N>(weight + at, w);
        load<N>(gradient + (at - first), g);
        for (int i = 0; i < N; i++) adamw_element(w[i], m[i], v[i], clipped(g[i], c), c);
        round_by<W>(draws, at, w);
        store<N>(weight + at, w);
    }
};

// A gradient of low rank, which becomes Adam's direction; `out` may be the gradient. What was
// projected was cut before, and `most` is infinite.
template <class G>
struct Direction {
    float* out;
    const G* gradient;
    u64 first;
    float most;

    __device__ bool wide() const { return aligned(out, gradient); }
    template <int N>
    __device__ __forceinline__ void change(u64 at, float (&m)[N], float (&v)[N],
                                           const Constants& c) const {
        float r[N];
        load<N>(gradient + (at - first), r);
        for (int i = 0; i < N; i++)
            r[i] = direction_element(no_larger(r[i], most) * c.clip, m[i], v[i], c);
        store<N>(out + (at - first), r);
    }
};

// ---- moments of 2 or 4 bytes -------------------------------------------------------------------

template <int N, class M, class Changed>
__device__ void by_moments(const Changed& changed, M* m, M* v, const Constants& c, Draws draws,
                           u64 first, u64 count) {
    const u64 step = u64(gridDim.x) * blockDim.x * N;
    for (u64 i = (u64(blockIdx.x) * blockDim.x + threadIdx.x) * N; i < count; i += step) {
        const u64 at = first + i;
        float one[N], two[N];
        load<N>(m + at, one);
        load<N>(v + at, two);
        changed.template change<N>(at, one, two, c);
        round_by<M>({draws.key, draws.epoch, FIRST_MOMENT}, at, one);
        round_by<M>({draws.key, draws.epoch, SECOND_MOMENT}, at, two);
        store<N>(m + at, one);
        store<N>(v + at, two);
    }
}

template <class M, class Changed>
__device__ void with_moments(const Changed& changed, M* m, M* v, const Constants* constants,
                             u64 first, u64 count, u64 key, u32 step) {
    const Constants c = *constants;
    const Draws draws = {key, step, FIRST_MOMENT};
    if (count % 4 == 0 && first % 4 == 0 && changed.wide() && aligned(m + first, v + first))
        by_moments<4>(changed, m, v, c, draws, first, count);
    else
        by_moments<1>(changed, m, v, c, draws, first, count);
}

// ---- moments of 8 bits -------------------------------------------------------------------------

// The code of the value nearest to x on a map of 256 in ascending order; of two as near the lower.
__device__ __forceinline__ u32 nearest(const float* map, float x) {
    u32 above = 0;
    for (u32 half = 128; half > 0; half /= 2)
        if (map[above + half - 1] < x) above += half;
    const u32 below = above > 0 ? above - 1 : 0;
    return x - map[below] <= map[above] - x ? below : above;
}

constexpr int OF_LANE = 8;

// Codes of a block's values, of which each lane has two runs of four, and their scale.
__device__ __forceinline__ void quantise(const float* map, const float (&values)[OF_LANE],
                                         u32 (&codes)[OF_LANE], float& scale) {
    scale = 0;
    for (const float x : values) scale = fabsf(x) > scale ? fabsf(x) : scale;
    scale = lanes_most(scale, 32);
    const float by = scale > 0 ? 1.0f / scale : 0.0f;
    for (int i = 0; i < OF_LANE; i++)
        codes[i] = nearest(map, by < INFINITE ? values[i] * by : values[i] / scale);
}

// A warp for every block of 256 elements; `first` is a multiple of it.
template <class Changed>
__device__ void in_eight_bits(const Changed& changed, u8* m, u8* v, float* m_scales,
                              float* v_scales, const float* maps, const Constants* constants,
                              u64 first, u64 count) {
    SHARED(float, map, [512]);
    for (u32 i = threadIdx.x; i < 512; i += blockDim.x) map[i] = maps[i];
    __syncthreads();
    const Constants c = *constants;
    const bool wide = changed.wide();
    const u32 lane = threadIdx.x % 32;
    const u64 step = u64(gridDim.x) * blockDim.x / 32 * 256;
    for (u64 start = (u64(blockIdx.x) * blockDim.x + threadIdx.x) / 32 * 256; start < count;
         start += step) {
        float one[OF_LANE] = {}, two[OF_LANE] = {};
        const u64 block = (first + start) / 256;
        for (int run = 0; run < 2; run++) {
            const u64 i = start + run * 128 + lane * 4;
            float four[2][4] = {};
            for (int j = 0; j < 4; j++) {
                if (i + j >= count) continue;
                four[0][j] = map[m[first + i + j]] * m_scales[block];
                four[1][j] = map[256 + v[first + i + j]] * v_scales[block];
            }
            if (wide && i + 4 <= count)
                changed.template change<4>(first + i, four[0], four[1], c);
            else
                for (int j = 0; j < 4 && i + j < count; j++) {
                    float a[1] = {four[0][j]}, b[1] = {four[1][j]};
                    changed.template change<1>(first + i + j, a, b, c);
                    four[0][j] = a[0];
                    four[1][j] = b[0];
                }
            for (int j = 0; j < 4; j++) {
                one[run * 4 + j] = four[0][j];
                two[run * 4 + j] = four[1][j];
            }
        }
        u32 codes[2][OF_LANE];
        float scales[2];
        quantise(map, one, codes[0], scales[0]);
        quantise(map + 256, two, codes[1], scales[1]);
        for (int i = 0; i < OF_LANE; i++) {
            const u64 at = start + i / 4 * 128 + lane * 4 + i % 4;
            if (at >= count) continue;
            m[first + at] = u8(codes[0][i]);
            v[first + at] = u8(codes[1][i]);
        }
        if (lane > 0) continue;
        m_scales[block] = scales[0];
        v_scales[block] = scales[1];
    }
}

// ---- kernels -----------------------------------------------------------------------------------

// By a gradient of elements, or of f32.
#define BY_MOMENTS(suffix, G)                                                                     \
    KERNEL(256, adam##suffix, E* weight, const G* gradient, float* m, float* v,                   \
           const Constants* constants, u64 first, u64 count, u64 key, u32 step) {                 \
        const Adam<E, G> adam = {weight, gradient, {key, step, WEIGHTS}, first};                  \
        with_moments(adam, m, v, constants, first, count, key, step);                             \
    }                                                                                             \
    KERNEL(256, adam_rounded##suffix, E* weight, const G* gradient, E* m, E* v,                   \
           const Constants* constants, u64 first, u64 count, u64 key, u32 step) {                 \
        const Adam<E, G> adam = {weight, gradient, {key, step, WEIGHTS}, first};                  \
        with_moments(adam, m, v, constants, first, count, key, step);                             \
    }                                                                                             \
    KERNEL(256, adam_in_8_bits##suffix, E* weight, const G* gradient, u8* m, u8* v,               \
           float* m_scales, float* v_scales, const float* maps, const Constants* constants,       \
           u64 first, u64 count, u64 key, u32 step) {                                             \
        const Adam<E, G> adam = {weight, gradient, {key, step, WEIGHTS}, first};                  \
        in_eight_bits(adam, m, v, m_scales, v_scales, maps, constants, first, count);             \
    }                                                                                             \
    KERNEL(256, direction##suffix, float* out, const G* gradient, float* m, float* v,             \
           const Constants* constants, u64 first, u64 count, u64 key, u32 step, float most) {     \
        const Direction<G> direction = {out, gradient, first, most};                              \
        with_moments(direction, m, v, constants, first, count, key, step);                        \
    }                                                                                             \
    KERNEL(256, direction_rounded##suffix, float* out, const G* gradient, E* m, E* v,             \
           const Constants* constants, u64 first, u64 count, u64 key, u32 step, float most) {     \
        const Direction<G> direction = {out, gradient, first, most};                              \
        with_moments(direction, m, v, constants, first, count, key, step);                        \
    }                                                                                             \
    KERNEL(256, direction_in_8_bits##suffix, float* out, const G* gradient, u8* m, u8* v,         \
           float* m_scales, float* v_scales, const float* maps, const Constants* constants,       \
           u64 first, u64 count, u64, u32, float most) {                                          \
        const Direction<G> direction = {out, gradient, first, most};                              \
        in_eight_bits(direction, m, v, m_scales, v_scales, maps, constants, first, count);        \
    }

BY_MOMENTS(, E)
BY_MOMENTS(_summed, float)
