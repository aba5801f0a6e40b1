// Numbers of 8 bits that share a scale: FP8 (e4m3) and integers. Codes, scales and values are those
// of the CPU device to the bit (src/device/cpu/ops/packed.rs).
#include "device.cuh"

typedef unsigned char u8;

// Formats.
constexpr u32 FP8 = 0;
// Elements of a row that share a scale on their way to the host.
constexpr u32 GROUP = 128;

// ---- numbers -----------------------------------------------------------------------------------

// The bits of |x|: as whole numbers they have the order of the magnitudes, and what is not finite is
// above them.
__device__ __forceinline__ u32 magnitude(float x) { return __float_as_uint(x) & 0x7FFFFFFF; }

// What one is among numbers with the largest of these magnitudes; NaN where not all are finite.
__device__ __forceinline__ float scale_of(u32 largest, u32 format) {
    if (largest >= 0x7F800000) return __uint_as_float(0x7FC00000);
    return __uint_as_float(largest) / (format == FP8 ? 448.0f : 127.0f);
}

// The nearest of e4m3, of two as near the even one; what is larger than the largest becomes that.
__device__ __forceinline__ u32 encode(float x) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 890
    u16 two;
    asm("cvt.rn.satfinite.e4m3x2.f32 %0, %1, %2;" : "=h"(two) : "f"(0.0f), "f"(x));
    return two & 0xFF;
#else
    const u32 bits = __float_as_uint(x);
    if (magnitude(x) > 0x7F800000) return 0x7F;
    const u32 size = least(magnitude(x), 0x43E00000u);  // 448
    // Below the smallest exponent numbers are as far apart as above it.
    const int exponent = most(int(size >> 23) - 127, -6);
    const float of_step = __uint_as_float(u32(127 + 3 - exponent) << 23);
    const u32 steps = u32(rintf(__uint_as_float(size) * of_step));
    return (bits >> 24 & 0x80) | (u32(exponent + 7) * 8 + steps - 8);
#endif
}

__device__ __forceinline__ float decode(u32 code) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 890
    // Halves have all of its numbers.
    u32 two;
    float x;
    asm("cvt.rn.f16x2.e4m3x2 %0, %1;" : "=r"(two) : "h"(u16(code)));
    asm("cvt.f32.f16 %0, %1;" : "=f"(x) : "h"(u16(two)));
    return x;
#else
    const u32 exponent = code >> 3 & 15, fraction = code & 7;
    if ((code & 0x7F) == 0x7F) return __uint_as_float(0x7FC00000);
    const float step = __uint_as_float((most(exponent, 1u) + 117) << 23);
    const float size = float(exponent > 0 ? 8 + fraction : fraction) * step;
    return code & 0x80 ? -size : size;
#endif
}

// Quotients by one scale. Where that is far from the ends of f32, its reciprocal and two corrections
// round as a division does (Markstein 1990), if not to a quotient so small that its code is 0.
struct Scale {
    float scale, inverse;

    __device__ __forceinline__ explicit Scale(float scale) : scale(scale), inverse(0) {
        if (scale > 1e-20f && scale < 1e20f) inverse = 1.0f / scale;
    }
    template <int N>
    __device__ __forceinline__ void divide(float (&x)[N]) const {
        if (inverse == 0) {
            for (int i = 0; i < N; i++) x[i] = scale == 0 ? 0.0f : x[i] / scale;
            return;
        }
        for (int i = 0; i < N; i++) {
            float q = x[i] * inverse;
            q = fmaf(fmaf(-q, scale, x[i]), inverse, q);
            q = fmaf(fmaf(-q, scale, x[i]), inverse, q);
            // Of -0 too.
            x[i] = copysignf(q, x[i]);
        }
    }
};

// Codes of quotients.
template <int N>
__device__ __forceinline__ void round_quotients(const float (&x)[N], u8 (&codes)[N], u32 format) {
    if (format == FP8) {
        for (int i = 0; i < N; i++) codes[i] = u8(encode(x[i]));
        return;
    }
    for (int i = 0; i < N; i++) {
        // A scale that is not normal can be too small by a little.
        const float whole = most(-127.0f, least(127.0f, rintf(x[i])));
        codes[i] = x[i] == x[i] ? u8(int(whole)) : u8(0);
    }
}

__device__ __forceinline__ float value_of(u8 code, float scale, u32 format) {
    return scale * (format == FP8 ? decode(code) : float(static_cast<signed char>(code)));
}

// ---- to the host and back ----------------------------------------------------------------------

// A warp's group of rows of `width` elements.
struct Group {
    u64 number, element;
    u32 length, lane;

    __device__ __forceinline__ explicit Group(u32 width) {
        number = u64(blockIdx.x) * (blockDim.x / 32) + threadIdx.x / 32;
        const u32 of_row = (width + GROUP - 1) / GROUP, at = u32(number % of_row) * GROUP;
        element = number / of_row * width + at;
        length = least(GROUP, width - at);
        lane = threadIdx.x % 32;
    }
};

template <int N>
__device__ __forceinline__ void pack_group(const E* values, u8* codes, float* scales,
                                           const Group& group, u32 format) {
    constexpr int PIECES = GROUP / 32 / N;
    float x[PIECES][N] = {};
    u32 largest = 0;
#pragma unroll
    for (int piece = 0; piece < PIECES; piece++) {
        const u32 at = (piece * 32 + group.lane) * N;
        if (at < group.length) load<N>(values + group.element + at, x[piece]);
        for (int i = 0; i < N; i++) largest = most(largest, magnitude(x[piece][i]));
    }
    const Scale scale(scale_of(lanes_most(largest, 32), format));
    if (group.lane == 0) scales[group.number] = scale.scale;
#pragma unroll
    for (int piece = 0; piece < PIECES; piece++) {
        const u32 at = (piece * 32 + group.lane) * N;
        Pack<u8, N> pack;
        scale.divide(x[piece]);
        round_quotients(x[piece], pack.v, format);
        if (at < group.length) *reinterpret_cast<Pack<u8, N>*>(codes + group.element + at) = pack;
    }
}

// A warp for each group.
KERNEL(256, pack, const E* values, u8* codes, float* scales, u64 groups, u32 width, u32 format) {
    const Group group(width);
    if (group.number >= groups) return;
    if (width % 4 == 0 && aligned(values, codes))
        pack_group<4>(values, codes, scales, group, format);
    else
        pack_group<1>(values, codes, scales, group, format);
}

template <int N>
__device__ __forceinline__ void unpack_group(const u8* codes, const float* scales, E* values,
                                             const Group& group, u32 format) {
    const float scale = scales[group.number];
    for (u32 at = group.lane * N; at < group.length; at += 32 * N) {
        const Pack<u8, N> pack = *reinterpret_cast<const Pack<u8, N>*>(codes + group.element + at);
        float x[N];
        for (int i = 0; i < N; i++) x[i] = value_of(pack.v[i], scale, format);
        store<N>(values + group.element + at, x);
    }
}

KERNEL(256, unpack, const u8* codes, const float* scales, E* values, u64 groups, u32 width,
       u32 format) {
    const Group group(width);
    if (group.number >= groups) return;
    if (width % 4 == 0 && aligned(values, codes))
        unpack_group<4>(codes, scales, values, group, format);
    else
        unpack_group<1>(codes, scales, values, group, format);
}

// ---- operands of products ----------------------------------------------------------------------

// The scale of a row; all threads of the block take part.
template <int N>
__device__ __forceinline__ float row_scale(const E* row, u32 width, u32 format) {
    u32 largest = 0;
    ahead<4>(threadIdx.x * N, width, blockDim.x * N, [=](u32 at) { return piece_at<N>(row + at); },
             [&](u32, const Pack<E, N>& piece) {
                 float x[N];
                 unpack(piece, x);
                 for (int i = 0; i < N; i++) largest = most(largest, magnitude(x[i]));
             });
    return scale_of(block_most(largest), format);
}

template <int N>
__device__ void round_row(const E* row, u8* codes, float* scale, u32 width, u32 format) {
    const Scale one(row_scale<N>(row, width, format));
    if (threadIdx.x == 0) *scale = one.scale;
    for (u32 at = threadIdx.x * N; at < width; at += blockDim.x * N) {
        float x[N];
        load<N>(row + at, x);
        Pack<u8, N> pack;
        one.divide(x);
        round_quotients(x, pack.v, format);
        *reinterpret_cast<Pack<u8, N>*>(codes + at) = pack;
    }
}

// Codes of rows of `width` elements that are `stride` apart, one block a row, each row filled up
// with zeros to `padded`; blocks behind the last row make rows of zeros.
KERNEL(256, round_rows, const E* in, u8* codes, float* scales, u32 rows, u32 width, u64 stride,
       u32 padded, u32 format) {
    const u32 row = blockIdx.x;
    codes += u64(row) * padded;
    for (u32 at = (row < rows ? width : 0) + threadIdx.x; at < padded; at += blockDim.x)
        codes[at] = 0;
    if (row >= rows) {
        if (threadIdx.x == 0) scales[row] = 0;
    } else if (width % WIDE == 0 && stride % WIDE == 0 && aligned(in, codes)) {
        round_row<WIDE>(in + row * stride, codes, scales + row, width, format);
    } else {
        round_row<1>(in + row * stride, codes, scales + row, width, format);
    }
}

template <int N>
__device__ void round_weights(const E* row, E* out, u32 width, u32 format) {
    const Scale scale(row_scale<N>(row, width, format));
    for (u32 at = threadIdx.x * N; at < width; at += blockDim.x * N) {
        float x[N];
        load<N>(row + at, x);
        u8 codes[N];
        scale.divide(x);
        round_quotients(x, codes, format);
        for (int i = 0; i < N; i++) x[i] = value_of(codes[i], scale.scale, format);
        store<N>(out + at, x);
    }
}

// What codes of a weight's rows stand for, one block a row.
KERNEL(256, round_weight, const E* in, E* out, u32 width, u64 stride, u32 format) {
    const u64 row = blockIdx.x;
    if (width % WIDE == 0 && stride % WIDE == 0 && aligned(in, out))
        round_weights<WIDE>(in + row * stride, out + row * width, width, format);
    else
        round_weights<1>(in + row * stride, out + row * width, width, format);
}

template <int N>
__device__ void columns_most(const E* in, u32* partials, u32 rows, u32 columns, u64 stride) {
    const u32 length = (rows + gridDim.y - 1) / gridDim.y;
    const u32 end = least((blockIdx.y + 1) * length, rows);
    const u32 step = gridDim.x * blockDim.x * N;
    for (u32 at = (blockIdx.x * blockDim.x + threadIdx.x) * N; at < columns; at += step) {
        u32 largest[N] = {};
#pragma unroll 8
        for (u32 row = blockIdx.y * length; row < end; row++) {
            float x[N];
            load<N>(in + (row * stride + at), x);
            for (int i = 0; i < N; i++) largest[i] = most(largest[i], magnitude(x[i]));
        }
        for (int i = 0; i < N; i++) partials[u64(blockIdx.y) * columns + at + i] = largest[i];
    }
}

// The largest magnitudes of the columns over runs of rows, blockIdx.y the run.
KERNEL(256, column_most, const E* in, u32* partials, u32 rows, u32 columns, u64 stride) {
    if (columns % WIDE == 0 && stride % WIDE == 0 && aligned(in))
        columns_most<WIDE>(in, partials, rows, columns, stride);
    else
        columns_most<1>(in, partials, rows, columns, stride);
}

// The columns' scales; 0 from `columns` on to `padded`.
KERNEL(256, column_scales, const u32* partials, float* scales, u32 parts, u32 columns, u32 padded,
       u32 format) {
    const u32 column = blockIdx.x * blockDim.x + threadIdx.x;
    if (column >= padded) return;
    u32 largest = 0;
    if (column < columns)
#pragma unroll 8
        for (u32 part = 0; part < parts; part++)
            largest = most(largest, partials[u64(part) * columns + column]);
    scales[column] = scale_of(largest, format);
}

// Rows and columns of a tile that is turned, and bytes from one of its rows to the next.
constexpr u32 TURNED = 64, APART = TURNED + 4;

// Codes of a tile, row by row in pieces of N columns; zeros outside.
template <int N>
__device__ void round_tile(u8* tile, const E* in, const float* scales, u32 rows, u32 columns,
                           u64 stride, u32 format) {
    constexpr int M = N < 4 ? N : 4;
#pragma unroll 2
    for (u32 i = threadIdx.x; i < TURNED * TURNED / N; i += blockDim.x) {
        const u32 of_row = i / (TURNED / N), of_column = i % (TURNED / N) * N;
        const u32 row = blockIdx.y * TURNED + of_row, column = blockIdx.x * TURNED + of_column;
        Pack<u8, N> codes = {};
        if (row < rows && column < columns) {
            float x[N], of_columns[N];
            load<N>(in + (row * stride + column), x);
            load<N>(scales + column, of_columns);
            for (int i = 0; i < N; i++) x[i] = of_columns[i] == 0 ? 0.0f : x[i] / of_columns[i];
            round_quotients(x, codes.v, format);
        }
        for (int i = 0; i < N; i += M) {
            Pack<u8, M> some;
            for (int j = 0; j < M; j++) some.v[j] = codes.v[i + j];
            *reinterpret_cast<Pack<u8, M>*>(tile + of_row * APART + of_column + i) = some;
        }
    }
}

// Codes of columns as rows that are `padded` long, 64 rows of 64 columns a block. Rows from `rows`
// to `rows_end` and columns from `columns` to `columns_end` are zeros.
KERNEL(256, round_columns, const E* in, const float* scales, u8* codes, u32 rows, u32 rows_end,
       u32 columns, u32 columns_end, u64 stride, u32 padded, u32 format) {
    SHARED(u32, words, [TURNED * APART / 4]);
    u8* const tile = reinterpret_cast<u8*>(words);
    if (columns % WIDE == 0 && stride % WIDE == 0 && aligned(in, scales))
        round_tile<WIDE>(tile, in, scales, rows, columns, stride, format);
    else
        round_tile<1>(tile, in, scales, rows, columns, stride, format);
    __syncthreads();
    // Four rows of a column at a time, or one.
    const bool whole = (padded | rows_end) % 4 == 0 && reinterpret_cast<u64>(codes) % 4 == 0;
    const u32 some = whole ? 4 : 1, pieces = TURNED / some;
    for (u32 i = threadIdx.x; i < TURNED * pieces; i += blockDim.x) {
        const u32 of_row = i % pieces * some, of_column = i / pieces;
        const u32 row = blockIdx.y * TURNED + of_row, column = blockIdx.x * TURNED + of_column;
        if (row >= rows_end || column >= columns_end) continue;
        u8* const to = codes + u64(column) * padded + row;
        const u8* const from = tile + of_row * APART + of_column;
        if (whole)
            *reinterpret_cast<Pack<u8, 4>*>(to) = {
                {from[0], from[APART], from[2 * APART], from[3 * APART]}};
        else
            *to = *from;
    }
}

template <int N>
__device__ void scale_row(const float* sums, const float* scales, float scale, const E* bias,
                          const E* added, E* out, u32 columns, u32 format) {
    const u32 step = blockDim.x * gridDim.y * N;
    for (u32 at = (blockIdx.y * blockDim.x + threadIdx.x) * N; at < columns; at += step) {
        float x[N], of_column[N];
        load<N>(sums + at, x);
        load<N>(scales + at, of_column);
        for (int i = 0; i < N; i++) {
            if (format != FP8) x[i] = float(int(__float_as_uint(x[i])));
            x[i] = x[i] * of_column[i] * scale;
        }
        if (bias) {
            float of_bias[N];
            load<N>(bias + at, of_bias);
            for (int i = 0; i < N; i++) x[i] += of_bias[i];
        }
        if (added) {
            float old[N];
            load<N>(added + at, old);
            for (int i = 0; i < N; i++) x[i] += old[i];
        }
        store<N>(out + at, x);
    }
}

// Elements from sums over codes, f32 of FP8 and i32 of integers: row r of the sums times scale r of
// the rows, column c times scale c of the columns, and what is added.
KERNEL(256, scale_sums, const float* sums, const float* columns_scales, const float* rows_scales,
       const E* bias, const E* added, E* out, u32 columns, u32 sums_stride, u64 stride,
       u32 format) {
    const u64 row = blockIdx.x;
    sums += row * sums_stride;
    out += row * stride;
    if (added) added += row * stride;
    const float scale = rows_scales[row];
    if (columns % 4 == 0 && aligned(sums, columns_scales, bias, added, out))
        scale_row<4>(sums, columns_scales, scale, bias, added, out, columns, format);
    else
        scale_row<1>(sums, columns_scales, scale, bias, added, out, columns, format);
}
