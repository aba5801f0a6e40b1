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
    // Eight roundings take one draw.
    constexpr int N = sizeof(M) == 2 ? 8 : 4;
    if (count % N == 0 && first % N == 0 && changed.wide() && aligned(m + first, v + first))
        by_moments<N>(changed, m, v, c, draws, first, count);
    else
        by_moments<1>(changed, m, v, c, draws, first, count);
}

// ---- moments of 8 bits -------------------------------------------------------------------------

// Where numbers change their code: quantised.rs's `Map`, in shared memory. Magnitudes are told apart
// by all but their TRAILING bits.
template <int SIGNS, int TRAILING>
struct Map {
    // Leading bits of 2^-23, below which everything is nearest to 0, and of 1.
    static constexpr int LEAST = (127 - 23) << (23 - TRAILING), MOST = 127 << (23 - TRAILING);
    static constexpr int TURNS = MOST - LEAST + 1;
    const float* values;
    const u32* turns;

    // The code of the value nearest to x, in the lowest byte; of two as near the lower.
    __device__ __forceinline__ u32 code(float x) const {
        const u32 bits = __float_as_uint(x);
        const bool negative = SIGNS == 2 && int(bits) < 0;
        const int group = most(LEAST, least(int(bits & 0x7FFFFFFF) >> TRAILING, MOST));
        const u32 turn = turns[group - LEAST + (negative ? TURNS : 0)];
        if (bits << (32 - TRAILING) <= turn) return turn;
        return negative ? turn - 1 : turn + 1;
    }
};
typedef Map<2, 17> Signed;
typedef Map<1, 16> Unsigned;

constexpr int OF_LANE = 8;

// Codes of a block's values, of which each lane has a run, and their scale.
template <class M>
__device__ __forceinline__ void quantise(const M& map, const float (&values)[OF_LANE],
                                         u32 (&codes)[OF_LANE], float& scale) {
    scale = 0;
    for (const float x : values) scale = fmaxf(fabsf(x), scale);
    scale = lanes_most(scale, 32);
    const float by = scale > 0 ? 1.0f / scale : 0.0f;
    if (by < INFINITE)
        for (int i = 0; i < OF_LANE; i++) codes[i] = map.code(values[i] * by);
    else
        for (int i = 0; i < OF_LANE; i++) codes[i] = map.code(values[i] / scale);
}

// A warp for every block of 256 elements; `first` is a multiple of it.
template <class Changed>
__device__ void in_eight_bits(const Changed& changed, u8* m, u8* v, float* m_scales,
                              float* v_scales, const u32* maps, const Constants* constants,
                              u64 first, u64 count) {
    constexpr u32 VALUES = 512, TURNS = 2 * Signed::TURNS + Unsigned::TURNS;
    SHARED(u32, words, [VALUES + TURNS]);
    for (u32 i = threadIdx.x; i < VALUES + TURNS; i += blockDim.x) words[i] = maps[i];
    __syncthreads();
    const float* values = reinterpret_cast<const float*>(words);
    const Signed of_m = {values, words + VALUES};
    const Unsigned of_v = {values + 256, words + VALUES + 2 * Signed::TURNS};
    const Constants c = *constants;
    const bool wide = changed.wide() && aligned(m, v);
    const u32 lane = threadIdx.x % 32;
    const u64 step = u64(gridDim.x) * blockDim.x / 32 * 256;
    for (u64 start = (u64(blockIdx.x) * blockDim.x + threadIdx.x) / 32 * 256; start < count;
         start += step) {
        const u64 block = (first + start) / 256, at = first + start + lane * OF_LANE;
        float scales[2] = {m_scales[block], v_scales[block]};
        const u32 left = u32(least(count - start, u64(256)));
        const bool whole = wide && left == 256;
        float one[OF_LANE] = {}, two[OF_LANE] = {};
        u32 codes[2][OF_LANE];
        if (whole) {
            const Pack<u8, OF_LANE> of_one = piece_at<OF_LANE>(m + at);
            const Pack<u8, OF_LANE> of_two = piece_at<OF_LANE>(v + at);
            for (int i = 0; i < OF_LANE; i++) {
                one[i] = of_m.values[of_one.v[i]] * scales[0];
                two[i] = of_v.values[of_two.v[i]] * scales[1];
            }
            changed.template change<OF_LANE>(at, one, two, c);
        } else
            for (u32 i = 0; i < OF_LANE; i++) {
                if (lane * OF_LANE + i >= left) break;
                float a[1] = {of_m.values[m[at + i]] * scales[0]};
                float b[1] = {of_v.values[v[at + i]] * scales[1]};
                changed.template change<1>(at + i, a, b, c);
                one[i] = a[0];
                two[i] = b[0];
            }
        quantise(of_m, one, codes[0], scales[0]);
        quantise(of_v, two, codes[1], scales[1]);
        if (whole) {
            Pack<u8, OF_LANE> of_one, of_two;
            for (int i = 0; i < OF_LANE; i++) {
                of_one.v[i] = u8(codes[0][i]);
                of_two.v[i] = u8(codes[1][i]);
            }
            *reinterpret_cast<Pack<u8, OF_LANE>*>(m + at) = of_one;
            *reinterpret_cast<Pack<u8, OF_LANE>*>(v + at) = of_two;
        } else
            for (u32 i = 0; i < OF_LANE; i++) {
                if (lane * OF_LANE + i >= left) break;
                m[at + i] = u8(codes[0][i]);
                v[at + i] = u8(codes[1][i]);
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
           float* m_scales, float* v_scales, const u32* maps, const Constants* constants,       \
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
           float* m_scales, float* v_scales, const u32* maps, const Constants* constants,       \
           u64 first, u64 count, u64, u32, float most) {                                          \
        const Direction<G> direction = {out, gradient, first, most};                              \
        in_eight_bits(direction, m, v, m_scales, v_scales, maps, constants, first, count);        \
    }

BY_MOMENTS(, E)
BY_MOMENTS(_summed, float)
