// Biases, norms and rotation of q and k, in place, and their backward. A head belongs to a group of
// neighbouring lanes, a power of two of them; a lane has pieces of N elements of the head's low
// half and the same of its high half.
#include "device.cuh"

// Lanes for a head: no more than there are pieces, or than a warp has.
template <int N>
__device__ __forceinline__ u32 lanes_of(u32 half) {
    u32 lanes = 1;
    while (lanes < 32 && lanes * N < half) lanes *= 2;
    return lanes;
}

// y = R(x) of a pair, or with the sine's sign changed its inverse.
__device__ __forceinline__ void turn(float& low, float& high, float cos, float sin) {
    const float x = low;
    low = x * cos - high * sin;
    high = high * cos + x * sin;
}

struct Biases {
    const E *b0, *b1, *b2;
    u32 end0, end1;
    // Of a column of the row; null: there are none.
    __device__ const E* at(u32 column) const {
        if (!b0) return nullptr;
        return column < end0 ? b0 + column : column < end1 ? b1 + (column - end0)
                                                           : b2 + (column - end1);
    }
};

// Both halves of a piece, with the bias.
template <int N>
__device__ __forceinline__ void load_pair(const E* head, const E* bias, u32 at, u32 half,
                                          float (&low)[N], float (&high)[N]) {
    load<N>(head + at, low);
    load<N>(head + half + at, high);
    if (!bias) return;
    float more[N];
    load<N>(bias + at, more);
    for (int i = 0; i < N; i++) low[i] += more[i];
    load<N>(bias + half + at, more);
    for (int i = 0; i < N; i++) high[i] += more[i];
}

template <int N>
__device__ __forceinline__ void scale_by(const E* scale, float (&x)[N], float inverse, u32 kind) {
    float scales[N];
    load<N>(scale, scales);
    for (int i = 0; i < N; i++) x[i] = norm_factor(kind, scales[i]) * (x[i] * inverse);
}

// A block has a row; NORMED: q and k have norms.
template <int N, bool NORMED>
__device__ void rotate(E* qkv, const float* cos, const float* sin, Biases biases,
                       const E* q_scale, const E* k_scale, float* inverses, u32 first,
                       u32 sequence, u32 heads, u32 kv_heads, u32 head_dim, float epsilon,
                       u32 kind, float direction) {
    const u32 half = head_dim / 2, lanes = lanes_of<N>(half), lane = threadIdx.x % lanes;
    const u32 group = threadIdx.x / lanes, groups = blockDim.x / lanes;
    const u32 turned = heads + kv_heads, all = turned + kv_heads;
    const u32 touched = biases.b0 ? all : turned;
    const u64 row = blockIdx.x;
    const u64 position = u64((first + blockIdx.x) % sequence) * half;
    for (u32 start = 0; start < touched; start += groups) {
        const u32 h = start + group;
        // Lanes without a head stay for the sums.
        const bool active = h < touched;
        E* head = qkv + (row * all + h) * head_dim;
        const E* bias = biases.at(h * head_dim);
        const E* scale = !NORMED ? nullptr : h < heads ? q_scale : h < turned ? k_scale : nullptr;
        float inverse = 1;
        if (NORMED) {
            float squares = 0;
            for (u32 at = lane * N; active && at < half; at += lanes * N) {
                float low[N], high[N];
                load_pair<N>(head, bias, at, half, low, high);
                for (int i = 0; i < N; i++) squares += low[i] * low[i] + high[i] * high[i];
            }
            squares = lanes_sum(squares, lanes);
            inverse = 1.0f / sqrtf(squares * (1.0f / float(head_dim)) + epsilon);
            if (active && scale && lane == 0) inverses[row * turned + h] = inverse;
        }
        if (!active) continue;
        for (u32 at = lane * N; at < half; at += lanes * N) {
            float low[N], high[N];
            load_pair<N>(head, bias, at, half, low, high);
            if (NORMED && scale) {
                scale_by<N>(scale + at, low, inverse, kind);
                scale_by<N>(scale + half + at, high, inverse, kind);
            }
            if (cos && h < turned) {
                float c[N], s[N];
                load<N>(cos + position + at, c);
                load<N>(sin + position + at, s);
                for (int i = 0; i < N; i++) turn(low[i], high[i], c[i], direction * s[i]);
            }
            store<N>(head + at, low);
            store<N>(head + half + at, high);
        }
    }
}

template <int N>
__device__ void rotate_by(E* qkv, const float* cos, const float* sin, Biases biases,
                          const E* q_scale, const E* k_scale, float* inverses, u32 first,
                          u32 sequence, u32 heads, u32 kv_heads, u32 head_dim, float epsilon,
                          u32 kind, float direction) {
    if (q_scale)
        rotate<N, true>(qkv, cos, sin, biases, q_scale, k_scale, inverses, first, sequence, heads,
                        kv_heads, head_dim, epsilon, kind, direction);
    else
        rotate<N, false>(qkv, cos, sin, biases, q_scale, k_scale, inverses, first, sequence, heads,
                         kv_heads, head_dim, epsilon, kind, direction);
}

KERNEL(256, rotary, E* qkv, const float* cos, const float* sin, const E* b0, const E* b1,
       const E* b2, u32 end0, u32 end1, const E* q_scale, const E* k_scale, float* inverses,
       u32 first, u32 sequence, u32 heads, u32 kv_heads, u32 head_dim, float epsilon, u32 kind,
       float direction) {
    const Biases biases = {b0, b1, b2, end0, end1};
    if (head_dim % (2 * WIDE) == 0 && aligned(qkv, cos, sin, b0, b1, b2, q_scale, k_scale))
        rotate_by<WIDE>(qkv, cos, sin, biases, q_scale, k_scale, inverses, first, sequence, heads,
                        kv_heads, head_dim, epsilon, kind, direction);
    else
        rotate_by<1>(qkv, cos, sin, biases, q_scale, k_scale, inverses, first, sequence, heads,
                     kv_heads, head_dim, epsilon, kind, direction);
}

// The gradient of a piece rotated back, and the norm's output (rotated back and, where the rotation
// was stretched, divided by its size).
template <int N>
__device__ __forceinline__ void load_backward(const E* d, const E* y, const float* cos,
                                              const float* sin, u32 at, u32 half,
                                              float (&d_low)[N], float (&d_high)[N],
                                              float (&low)[N], float (&high)[N]) {
    load_pair<N>(d, nullptr, at, half, d_low, d_high);
    load_pair<N>(y, nullptr, at, half, low, high);
    if (!cos) return;
    float c[N], s[N];
    load<N>(cos + at, c);
    load<N>(sin + at, s);
    for (int i = 0; i < N; i++) {
        const float by = reciprocal(c[i] * c[i] + s[i] * s[i]);
        turn(d_low[i], d_high[i], c[i], -s[i]);
        turn(low[i], high[i], c[i], -s[i]);
        low[i] *= by;
        high[i] *= by;
    }
}

// One half of a piece: changes `d`, adds to the scale's gradient.
template <int N>
__device__ __forceinline__ void norm_backward(const E* scale, const float (&y)[N], float (&d)[N],
                                              float inverse, float along, u32 kind, float* sums,
                                              u32 apart) {
    float scales[N], of_scale[N];
    load<N>(scale, scales);
    for (int i = 0; i < N; i++) {
        const float factor = norm_factor(kind, scales[i]);
        const float normed = y[i] * reciprocal(factor);
        of_scale[i] = d[i] * normed;
        d[i] = inverse * (factor * d[i] - normed * along);
    }
    add_to(sums, apart, of_scale);
}

// A block has every gridDim.x-th row and the heads of one key/value head: its query heads, then its
// key head. Each group of lanes adds the scales' gradients to sums of its own in shared memory.
template <int N>
__device__ void rotate_backward(E* d_qkv, const E* qkv, const float* cos, const float* sin,
                                const E* q_scale, const E* k_scale, const float* inverses,
                                float* partials, u32 first, u32 rows, u32 sequence, u32 heads,
                                u32 kv_heads, u32 head_dim, u32 kind) {
    DYNAMIC_SHARED(float, shared);
    const u32 half = head_dim / 2, lanes = lanes_of<N>(half), lane = threadIdx.x % lanes;
    const u32 group = threadIdx.x / lanes, groups = blockDim.x / lanes;
    const u32 turned = heads + kv_heads, all = turned + kv_heads;
    const u32 per_kv = heads / kv_heads, kv = blockIdx.y, pieces = half / N;
    constexpr u32 M = side_by_side(N);
    // So far apart that groups of a warp meet no bank twice.
    const u32 apart = 2 * head_dim + M * lanes;
    for (u32 at = threadIdx.x; at < groups * apart; at += blockDim.x) shared[at] = 0;
    __syncthreads();
    const u64 items = u64((rows - blockIdx.x + gridDim.x - 1) / gridDim.x) * (per_kv + 1);
    for (u64 start = 0; start < items; start += groups) {
        const u64 item = start + group;
        const bool active = item < items;
        const u64 row = blockIdx.x + item / (per_kv + 1) * gridDim.x;
        const u32 of = item % (per_kv + 1), h = of < per_kv ? kv * per_kv + of : heads + kv;
        const u64 head = (row * all + h) * head_dim;
        const u64 position = (first + row) % sequence * half;
        const float* c = cos ? cos + position : nullptr;
        const float* s = cos ? sin + position : nullptr;
        float along = 0, d_low[N] = {}, d_high[N] = {}, low[N] = {}, high[N] = {};
        for (u32 piece = lane; active && piece < pieces; piece += lanes) {
            load_backward<N>(d_qkv + head, qkv + head, c, s, piece * N, half, d_low, d_high, low,
                             high);
            for (int i = 0; i < N; i++) along += d_low[i] * low[i] + d_high[i] * high[i];
        }
        along = lanes_sum(along, lanes) * (1.0f / float(head_dim));
        if (!active) continue;
        const float inverse = inverses[row * turned + h];
        const E* scale = of < per_kv ? q_scale : k_scale;
        float* sums = shared + group * apart + (of < per_kv ? 0 : head_dim);
        for (u32 piece = lane; piece < pieces; piece += lanes) {
            const u32 at = piece * N;
            // A lane's only piece is there still.
            if (pieces > lanes)
                load_backward<N>(d_qkv + head, qkv + head, c, s, at, half, d_low, d_high, low,
                                 high);
            norm_backward<N>(scale + at, low, d_low, inverse, along, kind, sums + M * piece,
                             M * pieces);
            norm_backward<N>(scale + half + at, high, d_high, inverse, along, kind,
                             sums + half + M * piece, M * pieces);
            store<N>(d_qkv + head + at, d_low);
            store<N>(d_qkv + head + half + at, d_high);
        }
    }
    __syncthreads();
    // [part][q, k][kv head][head_dim]
    for (u32 at = threadIdx.x; at < 2 * head_dim; at += blockDim.x) {
        float sum = 0;
        for (u32 other = 0; other < groups; other++) sum += shared[other * apart + at];
        const u32 plane = at / head_dim, of_half = at % head_dim / half, in_half = at % half / M;
        const u32 element =
            of_half * half + in_half % pieces * N + in_half / pieces * M + at % half % M;
        const u64 place = (u64(blockIdx.x) * 2 + plane) * kv_heads + kv;
        partials[place * head_dim + element] = sum;
    }
}

CROWDED_KERNEL(256, 3, rotary_backward, E* d_qkv, const E* qkv, const float* cos,
               const float* sin, const E* q_scale, const E* k_scale, const float* inverses,
               float* partials, u32 first, u32 rows, u32 sequence, u32 heads, u32 kv_heads,
               u32 head_dim, u32 kind) {
    if (head_dim % (2 * WIDE) == 0 && aligned(d_qkv, qkv, cos, sin, q_scale, k_scale))
        rotate_backward<WIDE>(d_qkv, qkv, cos, sin, q_scale, k_scale, inverses, partials, first,
                              rows, sequence, heads, kv_heads, head_dim, kind);
    else
        rotate_backward<1>(d_qkv, qkv, cos, sin, q_scale, k_scale, inverses, partials, first, rows,
                           sequence, heads, kv_heads, head_dim, kind);
}
