// Attention in tiles, forward by online softmax, backward from its log-sum-exp in two kernels: one
// owns keys and walks over queries for dk and dv, the other owns queries and walks over keys for
// dq. Each sum has one owner, so its order is fixed. Scores are made a third time for that, and no
// memory is needed but D = sum(do * o).
//
// A block has 16 x 16 threads; thread (y, x) has rows y * ROWS / 16 + i of a tile of scores and its
// columns x + 16 j, and of a tile of outputs the columns 4 x + 64 j .. + 4. Tiles lie in shared
// memory as f32, rows 4 elements further apart than they are long: no bank is met twice.
#include "attention.cuh"

// Copies rows `start ..` of a matrix of which `from` is row 0, zero behind its end and its columns.
template <int N, int ROWS, int HD>
__device__ void fill_by(float* tile, const E* from, u64 stride, u32 start, u32 end, u32 columns) {
    for (u32 piece = threadIdx.x; piece < ROWS * HD / N; piece += blockDim.x) {
        const u32 row = piece / (HD / N), column = piece % (HD / N) * N;
        float values[N] = {};
        if (start + row < end && column < columns)
            load<N>(from + (start + row) * stride + column, values);
        for (int i = 0; i < N; i++) tile[row * (HD + 4) + column + i] = values[i];
    }
}

template <int ROWS, int HD>
__device__ void fill(float* tile, const E* from, u64 stride, u32 start, u32 end, u32 columns) {
    if (columns % WIDE == 0 && stride % WIDE == 0 && aligned(from))
        fill_by<WIDE, ROWS, HD>(tile, from, stride, start, end, columns);
    else
        fill_by<1, ROWS, HD>(tile, from, stride, start, end, columns);
}

// c[i][j] = row i of a times row j of b, for this thread's rows and columns.
template <int ROWS, int COLUMNS, int HD>
__device__ __forceinline__ void scores(const float* a, const float* b,
                                       float (&c)[ROWS / 16][COLUMNS / 16]) {
    constexpr int R = ROWS / 16, C = COLUMNS / 16;
    const u32 y = threadIdx.x / 16, x = threadIdx.x % 16;
#pragma unroll
    for (int i = 0; i < R; i++)
#pragma unroll
        for (int j = 0; j < C; j++) c[i][j] = 0;
#pragma unroll 4
    for (int k = 0; k < HD; k += 4) {
        float of_a[R][4], of_b[C][4];
#pragma unroll
        for (int i = 0; i < R; i++) load<4>(a + (y * R + i) * (HD + 4) + k, of_a[i]);
#pragma unroll
        for (int j = 0; j < C; j++) load<4>(b + (x + 16 * j) * (HD + 4) + k, of_b[j]);
#pragma unroll
        for (int i = 0; i < R; i++)
#pragma unroll
            for (int j = 0; j < C; j++)
#pragma unroll
                for (int e = 0; e < 4; e++) c[i][j] += of_a[i][e] * of_b[j][e];
    }
}

// c[i] += sum over k of p(k, row i) * row k of b, for this thread's rows and columns. `p` has its
// rows `stride` apart; TURNED: they are k, else k runs along them.
template <int ROWS, int DEPTH, int HD, bool TURNED>
__device__ __forceinline__ void products(const float* p, u32 stride, const float* b,
                                         float (&c)[ROWS / 16][HD / 16]) {
    constexpr int R = ROWS / 16;
    const u32 y = threadIdx.x / 16, x = threadIdx.x % 16;
#pragma unroll 4
    for (int k = 0; k < DEPTH; k++) {
        float of_p[R];
#pragma unroll
        for (int i = 0; i < R; i++)
            of_p[i] = TURNED ? p[k * stride + y * R + i] : p[(y * R + i) * stride + k];
#pragma unroll
        for (int j = 0; j < HD / 64; j++) {
            float of_b[4];
            load<4>(b + k * (HD + 4) + x * 4 + 64 * j, of_b);
#pragma unroll
            for (int i = 0; i < R; i++)
#pragma unroll
                for (int e = 0; e < 4; e++) c[i][4 * j + e] += of_p[i] * of_b[e];
        }
    }
}

// Stores this thread's part of a tile, times a factor for each row.
template <int ROWS, int HD>
__device__ void put(E* to, u64 stride, u32 start, u32 end, u32 columns,
                    const float (&c)[ROWS / 16][HD / 16], const float (&factor)[ROWS / 16]) {
    const u32 y = threadIdx.x / 16, x = threadIdx.x % 16;
    const bool whole = columns % 4 == 0 && stride % 4 == 0 && aligned(to);
#pragma unroll
    for (int i = 0; i < ROWS / 16; i++) {
        const u32 row = start + y * (ROWS / 16) + i;
#pragma unroll
        for (int j = 0; j < HD / 64; j++) {
            const u32 column = x * 4 + 64 * j;
            float values[4];
            for (int e = 0; e < 4; e++) values[e] = c[i][4 * j + e] * factor[i];
            if (row >= end || column >= columns) continue;
            E* place = to + row * stride + column;
            if (whole)
                store<4>(place, values);
            else
                for (u32 e = 0; e < 4 && column + e < columns; e++) narrow(values[e], place[e]);
        }
    }
}

template <int HD, int ROWS>
__device__ void forward(const E* qkv, E* o, float* lse, Shape shape) {
    constexpr int KEYS = ROWS, R = ROWS / 16, C = KEYS / 16;
    DYNAMIC_SHARED(float, shared);
    float* const q = shared;
    float* const kv = q + ROWS * (HD + 4);
    float* const p = kv + KEYS * (HD + 4);
    const u32 y = threadIdx.x / 16, x = threadIdx.x % 16;
    // The longest rows first.
    const u32 start = (gridDim.x - 1 - blockIdx.x) * ROWS;
    const u32 length = shape.sequence, dim = shape.head_dim, width = shape.width();
    const Head head(shape, blockIdx.y, 0, 0);
    fill<ROWS, HD>(q, qkv + head.q, width, start, length, dim);
    float out[R][HD / 16] = {}, highest[R], sum[R] = {};
    for (int i = 0; i < R; i++) highest[i] = -INFINITE;
    const float factor = shape.factor * LOG2_E;
    const u32 end = least(start + ROWS, length);
    for (u32 keys = shape.first_key(start) / KEYS * KEYS; keys < end; keys += KEYS) {
        __syncthreads();
        fill<KEYS, HD>(kv, qkv + head.k, width, keys, length, dim);
        __syncthreads();
        float s[R][C];
        scores<ROWS, KEYS, HD>(q, kv, s);
#pragma unroll
        for (int i = 0; i < R; i++) {
            const u32 query = start + y * R + i;
            float here = -INFINITE;
#pragma unroll
            for (int j = 0; j < C; j++) {
                s[i][j] = shape.seen(query, keys + x + 16 * j) ? s[i][j] * factor : -INFINITE;
                here = most(here, s[i][j]);
            }
            here = most(highest[i], lanes_most(here, 16));
            // A row that has seen nothing yet: its window begins further right.
            const float base = here == -INFINITE ? 0.0f : here;
            const float decay = exp2f(highest[i] - base);
            float more = 0;
#pragma unroll
            for (int j = 0; j < C; j++) {
                s[i][j] = exp2f(s[i][j] - base);
                more += s[i][j];
                p[(y * R + i) * (KEYS + 4) + x + 16 * j] = s[i][j];
            }
            sum[i] = sum[i] * decay + lanes_sum(more, 16);
            highest[i] = here;
#pragma unroll
            for (int e = 0; e < HD / 16; e++) out[i][e] *= decay;
        }
        __syncthreads();
        fill<KEYS, HD>(kv, qkv + head.v, width, keys, length, dim);
        __syncthreads();
        products<ROWS, KEYS, HD, false>(p, KEYS + 4, kv, out);
    }
    float inverse[R];
    for (int i = 0; i < R; i++) {
        const u32 query = start + y * R + i;
        inverse[i] = 1.0f / sum[i];
        if (x == 0 && query < length)
            lse[head.lse + u64(query) * shape.heads] = highest[i] * LN_2 + logf(sum[i]);
    }
    put<ROWS, HD>(o + head.o, u64(shape.heads) * dim, start, length, dim, out, inverse);
}

template <int N>
__device__ float lanes_dot(const E* a, const E* b, u32 length) {
    float sum = 0;
    for (u32 i = threadIdx.x % 32 * N; i < length; i += 32 * N) {
        float x[N], y[N];
        load<N>(a + i, x);
        load<N>(b + i, y);
        for (int j = 0; j < N; j++) sum += x[j] * y[j];
    }
    return lanes_sum(sum, 32);
}

// D of every row and head of a range: a warp for each, no more than scratch memory has room for.
KERNEL(256, attention_delta, const E* o, const E* d_o, float* delta, u32 rows, u32 heads,
       u32 head_dim, u32 first_head, u32 of_heads) {
    const u32 item = blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32, row = item / of_heads;
    if (row >= rows) return;
    const u64 at = (u64(row) * heads + first_head + item % of_heads) * head_dim;
    const float sum = head_dim % 4 == 0 && aligned(o, d_o)
                          ? lanes_dot<4>(o + at, d_o + at, head_dim)
                          : lanes_dot<1>(o + at, d_o + at, head_dim);
    if (threadIdx.x % 32 == 0) delta[item] = sum;
}

// p = P and d_s = ds of a tile, in shared memory, from scores already made.
template <int ROWS, int KEYS>
__device__ void slopes(const Shape& shape, const float* lse, const float* delta, u32 of_heads,
                       u32 queries, u32 keys, const float (&s)[ROWS / 16][KEYS / 16],
                       const float (&d_p)[ROWS / 16][KEYS / 16], float* p, float* d_s) {
    const u32 y = threadIdx.x / 16, x = threadIdx.x % 16;
#pragma unroll
    for (int i = 0; i < ROWS / 16; i++) {
        const u32 row = y * (ROWS / 16) + i, query = queries + row;
        const bool real = query < shape.sequence;
        const float of_lse = real ? lse[u64(query) * shape.heads] : 0;
        const float of_delta = real ? delta[u64(query) * of_heads] : 0;
#pragma unroll
        for (int j = 0; j < KEYS / 16; j++) {
            const u32 column = x + 16 * j;
            const bool seen = shape.seen(query, keys + column);
            const float here = seen ? exp2f((s[i][j] * shape.factor - of_lse) * LOG2_E) : 0;
            if (p) p[row * (KEYS + 4) + column] = here;
            d_s[row * (KEYS + 4) + column] = here * (d_p[i][j] - of_delta);
        }
    }
}

// dk and dv of a tile of keys.
template <int HD, int KEYS, int ROWS>
__device__ void backward_keys(const E* qkv, const float* lse, const E* d_o, const float* delta,
                              E* d_qkv, Shape shape, u32 first, u32 of_kv_heads) {
    constexpr int R = KEYS / 16;
    DYNAMIC_SHARED(float, shared);
    float* const k = shared;
    float* const v = k + KEYS * (HD + 4);
    float* const q = v + KEYS * (HD + 4);
    float* const d = q + ROWS * (HD + 4);
    float* const p = d + ROWS * (HD + 4);
    float* const d_s = p + ROWS * (KEYS + 4);
    const u32 start = blockIdx.x * KEYS;
    const u32 length = shape.sequence, dim = shape.head_dim, width = shape.width();
    const u32 per_kv = shape.heads / shape.kv_heads, of_heads = of_kv_heads * per_kv;
    const u32 first_head = (first + blockIdx.y) * per_kv;
    const u64 o_width = u64(shape.heads) * dim;
    const Head own(shape, first_head, 0, 0);
    fill<KEYS, HD>(k, qkv + own.k, width, start, length, dim);
    fill<KEYS, HD>(v, qkv + own.v, width, start, length, dim);
    float d_k[R][HD / 16] = {}, d_v[R][HD / 16] = {};
    const u32 end = shape.end_query(least(start + KEYS, length) - 1);
    for (u32 of = first_head; of < first_head + per_kv; of++) {
        const Head head(shape, of, first * per_kv, of_heads);
        for (u32 queries = start / ROWS * ROWS; queries < end; queries += ROWS) {
            __syncthreads();
            fill<ROWS, HD>(q, qkv + head.q, width, queries, length, dim);
            fill<ROWS, HD>(d, d_o + head.o, o_width, queries, length, dim);
            __syncthreads();
            float s[ROWS / 16][R], d_p[ROWS / 16][R];
            scores<ROWS, KEYS, HD>(q, k, s);
            scores<ROWS, KEYS, HD>(d, v, d_p);
            slopes<ROWS, KEYS>(shape, lse + head.lse, delta + head.delta, of_heads, queries, start,
                               s, d_p, p, d_s);
            __syncthreads();
            products<KEYS, ROWS, HD, true>(p, KEYS + 4, d, d_v);
            products<KEYS, ROWS, HD, true>(d_s, KEYS + 4, q, d_k);
        }
    }
    float one[R], factor[R];
    for (int i = 0; i < R; i++) one[i] = 1, factor[i] = shape.factor;
    put<KEYS, HD>(d_qkv + own.k, width, start, length, dim, d_k, factor);
    put<KEYS, HD>(d_qkv + own.v, width, start, length, dim, d_v, one);
}

// dq of a tile of queries.
template <int HD, int ROWS, int KEYS>
__device__ void backward_queries(const E* qkv, const float* lse, const E* d_o, const float* delta,
                                 E* d_qkv, Shape shape, u32 first, u32 of_kv_heads) {
    constexpr int R = ROWS / 16;
    DYNAMIC_SHARED(float, shared);
    float* const q = shared;
    float* const d = q + ROWS * (HD + 4);
    float* const k = d + ROWS * (HD + 4);
    float* const v = k + KEYS * (HD + 4);
    float* const d_s = v + KEYS * (HD + 4);
    const u32 start = (gridDim.x - 1 - blockIdx.x) * ROWS;
    const u32 length = shape.sequence, dim = shape.head_dim, width = shape.width();
    const u32 per_kv = shape.heads / shape.kv_heads, of_heads = of_kv_heads * per_kv;
    const Head head(shape, first * per_kv + blockIdx.y, first * per_kv, of_heads);
    fill<ROWS, HD>(q, qkv + head.q, width, start, length, dim);
    fill<ROWS, HD>(d, d_o + head.o, u64(shape.heads) * dim, start, length, dim);
    float d_q[R][HD / 16] = {};
    const u32 end = least(start + ROWS, length);
    for (u32 keys = shape.first_key(start) / KEYS * KEYS; keys < end; keys += KEYS) {
        __syncthreads();
        fill<KEYS, HD>(k, qkv + head.k, width, keys, length, dim);
        fill<KEYS, HD>(v, qkv + head.v, width, keys, length, dim);
        __syncthreads();
        float s[R][KEYS / 16], d_p[R][KEYS / 16];
        scores<ROWS, KEYS, HD>(q, k, s);
        scores<ROWS, KEYS, HD>(d, v, d_p);
        slopes<ROWS, KEYS>(shape, lse + head.lse, delta + head.delta, of_heads, start, keys, s, d_p,
                           nullptr, d_s);
        __syncthreads();
        products<ROWS, KEYS, HD, false>(d_s, KEYS + 4, k, d_q);
    }
    float factor[R];
    for (int i = 0; i < R; i++) factor[i] = shape.factor;
    put<ROWS, HD>(d_qkv + head.q, width, start, length, dim, d_q, factor);
}

// Of bf16 attention_mma.cu has the smaller ones. Behind the head's size: rows of a forward's tiles,
// and of a backward's own tile and the other one. Tight ones are for cards that give a block less
// shared memory, 99 KiB of compute capability 8.6 and 8.9.
#define TILES(suffix, HD, forward_rows, own, other)                                  \
    FORWARD(256, HD##suffix, HD, forward_rows)                                       \
    BACKWARD(256, attention_keys_##HD##suffix, backward_keys, HD, own, other)        \
    BACKWARD(256, attention_queries_##HD##suffix, backward_queries, HD, own, other)
#ifdef EBBTIDE_F32
TILES(, 64, 64, 64, 32)
TILES(, 128, 64, 64, 32)
TILES(_tight, 128, 64, 32, 32)
#endif
TILES(, 256, 64, 32, 32)
TILES(_tight, 256, 32, 16, 16)
