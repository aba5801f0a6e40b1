// Attention of bf16 on matrix units (mma.sync, sm_80 and later), as attention.cu has it: forward by
// online softmax, backward by a kernel that owns keys and one that owns queries.
//
// A warp owns 16 rows of its block's tile and keeps scores, probabilities and sums in registers, in
// the layout that mma.sync leaves: of every 16 x 8 tile a lane has row lane / 4 and columns 2 (lane
// % 4) and the next, then the same of the row 8 further down. As the left factor of the next
// product they are where it wants them. Tiles in shared memory have rows 8 elements further apart
// than they are long, so that ldmatrix meets no bank twice. While a tile is used the next one is on
// its way (cp.async): a forward's values while scores are made and its keys while they are used, of
// a backward both of the other tiles.
#include "attention.cuh"

#ifdef EBBTIDE_BF16

// ---- matrix units -------------------------------------------------------------------------------

// Four 8 x 8 matrices from shared memory; lane i gives the address of row i % 8 of matrix i / 8.
template <bool TURNED>
__device__ __forceinline__ void load_matrices(u32 (&to)[4], const bf16* row) {
#ifdef __CUDA_ARCH__
    const u32 address = u32(__cvta_generic_to_shared(row));
    if (TURNED)
        asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                     : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
                     : "r"(address));
    else
        asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                     : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
                     : "r"(address));
#else
    host::load_matrices(to, row, TURNED);
#endif
}

// c += a * b: a 16 x 16 by 16 x 8 product.
__device__ __forceinline__ void multiply(float (&c)[4], const u32 (&a)[4], u32 b0, u32 b1) {
#ifdef __CUDA_ARCH__
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
                 "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
#else
    host::multiply(c, a, b0, b1);
#endif
}

// ---- copies on their way -------------------------------------------------------------------------

// Begins to copy to shared memory; zeros where `from` is not to be read.
template <int BYTES>
__device__ __forceinline__ void begin_copy(void* to, const void* from, bool read) {
#ifdef __CUDA_ARCH__
    const u32 address = u32(__cvta_generic_to_shared(to)), bytes = read ? BYTES : 0;
    if (BYTES == 16)
        asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(address), "l"(from),
                     "r"(bytes)
                     : "memory");
    else
        asm volatile("cp.async.ca.shared.global [%0], [%1], %3, %2;" ::"r"(address), "l"(from),
                     "r"(bytes), "n"(BYTES)
                     : "memory");
#else
    host::begin_copy(to, read ? from : nullptr, BYTES);
#endif
}

// Waits for all that the block has begun to copy, and for what its threads did until then.
__device__ __forceinline__ void finish_copies() {
#ifdef __CUDA_ARCH__
    asm volatile("cp.async.wait_all;" ::: "memory");
#else
    host::wait_for_copies();
#endif
    __syncthreads();
}

__device__ __forceinline__ u32 pair(float low, float high) {
    bf16 a, b;
    narrow(low, a);
    narrow(high, b);
    return u32(a.bits) | u32(b.bits) << 16;
}

// ---- tiles --------------------------------------------------------------------------------------

constexpr u32 WARPS = 4, OWN = 16 * WARPS;

// Begins to copy rows `start ..` of a matrix of which `from` is row 0, zero behind its end and its
// columns; what does not lie on 16 bytes is copied at once.
template <int ROWS, int HD>
__device__ void fill(bf16* tile, const bf16* from, u64 stride, u32 start, u32 end, u32 columns) {
    from += start * stride;
    if (columns % 8 == 0 && stride % 8 == 0 && aligned(from)) {
        const u32 column = threadIdx.x % (HD / 8) * 8;
#pragma unroll
        for (u32 i = 0; i < ROWS * HD / 8; i += 32 * WARPS) {
            const u32 row = (i + threadIdx.x) / (HD / 8);
            begin_copy<16>(tile + row * (HD + 8) + column, from + row * stride + column,
                           start + row < end && column < columns);
        }
    } else {
#pragma unroll 1
        for (u32 i = threadIdx.x; i < ROWS * HD; i += 32 * WARPS) {
            const u32 row = i / HD, column = i % HD;
            const bool inside = start + row < end && column < columns;
            tile[row * (HD + 8) + column] = inside ? from[row * stride + column] : bf16{};
        }
    }
}

// c = the 16 rows of a from `a` on, times the rows of b.
template <int N, int HD>
__device__ __forceinline__ void scores(const bf16* a, const bf16* b, float (&c)[N / 8][4]) {
    const u32 lane = threadIdx.x % 32;
#pragma unroll
    for (int n = 0; n < N / 8; n++)
        for (int i = 0; i < 4; i++) c[n][i] = 0;
#pragma unroll
    for (int k = 0; k < HD; k += 16) {
        u32 of_a[4];
        load_matrices<false>(of_a, a + lane % 16 * (HD + 8) + k + lane / 16 * 8);
#pragma unroll
        for (int n = 0; n < N; n += 16) {
            u32 of_b[4];
            const u32 row = n + lane % 8 + lane / 16 * 8;
            load_matrices<false>(of_b, b + row * (HD + 8) + k + lane / 8 % 2 * 8);
            multiply(c[n / 8], of_a, of_b[0], of_b[1]);
            multiply(c[n / 8 + 1], of_a, of_b[2], of_b[3]);
        }
    }
}

// c += p * b, b's rows as many as p's columns.
template <int N, int HD>
__device__ __forceinline__ void products(const float (&p)[N / 8][4], const bf16* b,
                                         float (&c)[HD / 8][4]) {
    const u32 lane = threadIdx.x % 32;
#pragma unroll
    for (int k = 0; k < N; k += 16) {
        const float(&left)[4] = p[k / 8], (&right)[4] = p[k / 8 + 1];
        const u32 of_p[4] = {pair(left[0], left[1]), pair(left[2], left[3]),
                             pair(right[0], right[1]), pair(right[2], right[3])};
#pragma unroll
        for (int n = 0; n < HD; n += 16) {
            u32 of_b[4];
            load_matrices<true>(of_b, b + (k + lane % 16) * (HD + 8) + n + lane / 16 * 8);
            multiply(c[n / 8], of_p, of_b[0], of_b[1]);
            multiply(c[n / 8 + 1], of_p, of_b[2], of_b[3]);
        }
    }
}

// Stores a warp's 16 rows from `start` on, times a factor for each of a lane's two rows.
template <int HD>
__device__ void put(bf16* to, u64 stride, u32 start, u32 end, u32 columns,
                    const float (&c)[HD / 8][4], float upper, float lower) {
    const u32 lane = threadIdx.x % 32;
    const bool whole = columns % 2 == 0 && stride % 2 == 0 && reinterpret_cast<u64>(to) % 4 == 0;
#pragma unroll
    for (int n = 0; n < HD / 8; n++)
#pragma unroll
        for (int half = 0; half < 2; half++) {
            const u32 row = start + lane / 4 + 8 * half, column = 8 * n + lane % 4 * 2;
            if (row >= end || column >= columns) continue;
            const float factor = half ? lower : upper;
            const float values[2] = {c[n][2 * half] * factor, c[n][2 * half + 1] * factor};
            bf16* place = to + row * stride + column;
            if (whole) {
                store<2>(place, values);
            } else {
                narrow(values[0], place[0]);
                if (column + 1 < columns) narrow(values[1], place[1]);
            }
        }
}

// ---- forward ------------------------------------------------------------------------------------

template <int HD>
__device__ void forward(const bf16* qkv, bf16* o, float* lse, Shape shape) {
    constexpr int KEYS = 64;
    DYNAMIC_SHARED(bf16, shared);
    bf16* const q = shared;
    bf16* const k = q + OWN * (HD + 8);
    bf16* const v = k + KEYS * (HD + 8);
    const u32 lane = threadIdx.x % 32, own = threadIdx.x / 32 * 16;
    // The longest rows first.
    const u32 start = (gridDim.x - 1 - blockIdx.x) * OWN, mine = start + own + lane / 4;
    const u32 length = shape.sequence, dim = shape.head_dim, width = shape.width();
    const Head head(shape, blockIdx.y, 0, 0);
    const u32 first = shape.first_key(start) / KEYS * KEYS, end = least(start + OWN, length);
    fill<OWN, HD>(q, qkv + head.q, width, start, length, dim);
    fill<KEYS, HD>(k, qkv + head.k, width, first, length, dim);
    // Of a lane's two rows.
    float out[HD / 8][4] = {}, highest[2] = {-INFINITE, -INFINITE}, sum[2] = {};
    const float factor = shape.factor * LOG2_E;
    for (u32 keys = first; keys < end; keys += KEYS) {
        // These keys are there, and no warp is at the values before any more.
        finish_copies();
        fill<KEYS, HD>(v, qkv + head.v, width, keys, length, dim);
        float s[KEYS / 8][4];
        scores<KEYS, HD>(q + own * (HD + 8), k, s);
        if (!shape.all_seen(start + own, 16, keys, KEYS))
#pragma unroll
            for (int n = 0; n < KEYS / 8; n++)
#pragma unroll
                for (int i = 0; i < 4; i++)
                    if (!shape.seen(mine + i / 2 * 8, keys + 8 * n + lane % 4 * 2 + i % 2))
                        s[n][i] = -INFINITE;
#pragma unroll
        for (int half = 0; half < 2; half++) {
            float here = -INFINITE;
#pragma unroll
            for (int n = 0; n < KEYS / 8; n++)
#pragma unroll
                for (int i = 2 * half; i < 2 * half + 2; i++) {
                    s[n][i] *= factor;
                    here = fmaxf(here, s[n][i]);
                }
            here = most(highest[half], lanes_most(here, 4));
            // A row that has seen nothing yet: its window begins further right.
            const float base = here == -INFINITE ? 0.0f : here;
            const float decay = power_of_two(highest[half] - base);
            float more = 0;
#pragma unroll
            for (int n = 0; n < KEYS / 8; n++)
#pragma unroll
                for (int i = 2 * half; i < 2 * half + 2; i++) {
                    s[n][i] = power_of_two(s[n][i] - base);
                    more += s[n][i];
                }
            sum[half] = sum[half] * decay + lanes_sum(more, 4);
            highest[half] = here;
#pragma unroll
            for (int n = 0; n < HD / 8; n++)
#pragma unroll
                for (int i = 2 * half; i < 2 * half + 2; i++) out[n][i] *= decay;
        }
        // These values are there, and no warp is at the keys any more.
        finish_copies();
        if (keys + KEYS < end)
            fill<KEYS, HD>(k, qkv + head.k, width, keys + KEYS, length, dim);
        products<KEYS, HD>(s, v, out);
    }
    for (int half = 0; half < 2; half++) {
        const u32 query = mine + 8 * half;
        if (lane % 4 == 0 && query < length)
            lse[head.lse + u64(query) * shape.heads] = highest[half] * LN_2 + logf(sum[half]);
    }
    put<HD>(o + head.o, u64(shape.heads) * dim, start + own, length, dim, out, 1.0f / sum[0],
            1.0f / sum[1]);
}

// ---- backward -----------------------------------------------------------------------------------

// dk and dv of a tile of keys: scores lie turned, rows are keys.
template <int HD>
__device__ void backward_keys(const bf16* qkv, const float* lse, const bf16* d_o,
                              const float* delta, bf16* d_qkv, Shape shape, u32 first,
                              u32 of_kv_heads) {
    constexpr int ROWS = 32, TILE = ROWS * (HD + 8);
    DYNAMIC_SHARED(bf16, shared);
    bf16* const k = shared;
    bf16* const v = k + OWN * (HD + 8);
    // By turns: q and d of a tile of queries, their lse and D.
    bf16* const tiles = v + OWN * (HD + 8);
    float* const of_tiles = reinterpret_cast<float*>(tiles + 4 * TILE);
    const u32 lane = threadIdx.x % 32, own = threadIdx.x / 32 * 16;
    const u32 start = blockIdx.x * OWN, mine = start + own + lane / 4;
    const u32 length = shape.sequence, dim = shape.head_dim, width = shape.width();
    const u32 per_kv = shape.heads / shape.kv_heads, of_heads = of_kv_heads * per_kv;
    const u32 first_head = (first + blockIdx.y) * per_kv;
    const Head of_keys(shape, first_head, 0, 0);
    const auto begin = [&](u32 of, u32 queries, u32 turn) {
        const Head head(shape, of, first * per_kv, of_heads);
        bf16* const q = tiles + turn * 2 * TILE;
        fill<ROWS, HD>(q, qkv + head.q, width, queries, length, dim);
        fill<ROWS, HD>(q + TILE, d_o + head.o, u64(shape.heads) * dim, queries, length, dim);
        const u64 query = queries + threadIdx.x;
        if (threadIdx.x >= ROWS) return;
        float* const to = of_tiles + turn * 2 * ROWS + threadIdx.x;
        begin_copy<4>(to, lse + head.lse + query * shape.heads, query < length);
        begin_copy<4>(to + ROWS, delta + head.delta + query * of_heads, query < length);
    };
    fill<OWN, HD>(k, qkv + of_keys.k, width, start, length, dim);
    fill<OWN, HD>(v, qkv + of_keys.v, width, start, length, dim);
    begin(first_head, start, 0);
    float d_k[HD / 8][4] = {}, d_v[HD / 8][4] = {};
    const u32 end = shape.end_query(least(start + OWN, length) - 1);
    u32 turn = 0;
    for (u32 of = first_head; of < first_head + per_kv; of++)
        for (u32 queries = start; queries < end; queries += ROWS, turn ^= 1) {
            // This tile is there, and no warp is at the one before any more.
            finish_copies();
            const bool last = queries + ROWS >= end;
            const u32 next = last ? of + 1 : of;
            if (next < first_head + per_kv) begin(next, last ? start : queries + ROWS, turn ^ 1);
            const bf16* const q = tiles + turn * 2 * TILE;
            const bf16* const d = q + TILE;
            const float* const of_lse = of_tiles + turn * 2 * ROWS;
            const float* const of_delta = of_lse + ROWS;
            float p[ROWS / 8][4], d_s[ROWS / 8][4];
            scores<ROWS, HD>(k + own * (HD + 8), q, p);
            scores<ROWS, HD>(v + own * (HD + 8), d, d_s);
#pragma unroll
            for (int n = 0; n < ROWS / 8; n++)
#pragma unroll
                for (int i = 0; i < 4; i++) {
                    const u32 row = 8 * n + lane % 4 * 2 + i % 2;
                    const float s = p[n][i] * shape.factor - of_lse[row];
                    p[n][i] = power_of_two(s * LOG2_E);
                    d_s[n][i] = d_s[n][i] - of_delta[row];
                }
            if (!shape.all_seen(queries, ROWS, start + own, 16))
#pragma unroll
                for (int n = 0; n < ROWS / 8; n++)
#pragma unroll
                    for (int i = 0; i < 4; i++) {
                        const u32 query = queries + 8 * n + lane % 4 * 2 + i % 2;
                        if (!shape.seen(query, mine + i / 2 * 8)) p[n][i] = 0;
                    }
#pragma unroll
            for (int n = 0; n < ROWS / 8; n++)
#pragma unroll
                for (int i = 0; i < 4; i++) d_s[n][i] *= p[n][i];
            products<ROWS, HD>(p, d, d_v);
            products<ROWS, HD>(d_s, q, d_k);
        }
    put<HD>(d_qkv + of_keys.k, width, start + own, length, dim, d_k, shape.factor, shape.factor);
    put<HD>(d_qkv + of_keys.v, width, start + own, length, dim, d_v, 1, 1);
}

// dq of a tile of queries.
template <int HD>
__device__ void backward_queries(const bf16* qkv, const float* lse, const bf16* d_o,
                                 const float* delta, bf16* d_qkv, Shape shape, u32 first,
                                 u32 of_kv_heads) {
    constexpr int KEYS = 32, TILE = KEYS * (HD + 8);
    DYNAMIC_SHARED(bf16, shared);
    bf16* const q = shared;
    bf16* const d = q + OWN * (HD + 8);
    // By turns: k and v.
    bf16* const tiles = d + OWN * (HD + 8);
    const u32 lane = threadIdx.x % 32, own = threadIdx.x / 32 * 16;
    const u32 start = (gridDim.x - 1 - blockIdx.x) * OWN, mine = start + own + lane / 4;
    const u32 length = shape.sequence, dim = shape.head_dim, width = shape.width();
    const u32 per_kv = shape.heads / shape.kv_heads, of_heads = of_kv_heads * per_kv;
    const Head head(shape, first * per_kv + blockIdx.y, first * per_kv, of_heads);
    const auto begin = [&](u32 keys, u32 turn) {
        bf16* const k = tiles + turn * 2 * TILE;
        fill<KEYS, HD>(k, qkv + head.k, width, keys, length, dim);
        fill<KEYS, HD>(k + TILE, qkv + head.v, width, keys, length, dim);
    };
    const u32 first_key = shape.first_key(start) / KEYS * KEYS, end = least(start + OWN, length);
    fill<OWN, HD>(q, qkv + head.q, width, start, length, dim);
    fill<OWN, HD>(d, d_o + head.o, u64(shape.heads) * dim, start, length, dim);
    begin(first_key, 0);
    float of_lse[2], of_delta[2], d_q[HD / 8][4] = {};
    for (int half = 0; half < 2; half++) {
        const u64 query = mine + 8 * half;
        of_lse[half] = query < length ? lse[head.lse + query * shape.heads] : 0;
        of_delta[half] = query < length ? delta[head.delta + query * of_heads] : 0;
    }
    u32 turn = 0;
    for (u32 keys = first_key; keys < end; keys += KEYS, turn ^= 1) {
        // This tile is there, and no warp is at the one before any more.
        finish_copies();
        if (keys + KEYS < end) begin(keys + KEYS, turn ^ 1);
        const bf16* const k = tiles + turn * 2 * TILE;
        float s[KEYS / 8][4], d_s[KEYS / 8][4];
        scores<KEYS, HD>(q + own * (HD + 8), k, s);
        scores<KEYS, HD>(d + own * (HD + 8), k + TILE, d_s);
#pragma unroll
        for (int n = 0; n < KEYS / 8; n++)
#pragma unroll
            for (int i = 0; i < 4; i++) {
                const float here = s[n][i] * shape.factor - of_lse[i / 2];
                d_s[n][i] = power_of_two(here * LOG2_E) * (d_s[n][i] - of_delta[i / 2]);
            }
        if (!shape.all_seen(start + own, 16, keys, KEYS))
#pragma unroll
            for (int n = 0; n < KEYS / 8; n++)
#pragma unroll
                for (int i = 0; i < 4; i++)
                    if (!shape.seen(mine + i / 2 * 8, keys + 8 * n + lane % 4 * 2 + i % 2))
                        d_s[n][i] = 0;
        products<KEYS, HD>(d_s, k, d_q);
    }
    put<HD>(d_qkv + head.q, width, start + own, length, dim, d_q, shape.factor, shape.factor);
}

#define ATTENTION(HD)                                                 \
    FORWARD(128, HD, HD)                                              \
    BACKWARD(128, attention_keys_##HD, backward_keys, HD)             \
    BACKWARD(128, attention_queries_##HD, backward_queries, HD)
ATTENTION(64)
ATTENTION(128)

#endif
