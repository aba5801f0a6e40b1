// Norms of rows. A row is read from memory once; where it is needed again it is still in the first
// cache.
#include "device.cuh"

// Runs `use` for a thread's elements of a row.
template <int N, class Use>
__device__ __forceinline__ void each(const E* row, u32 width, Use use) {
    ahead<2>(threadIdx.x * N, width, blockDim.x * N, [=](u32 at) { return piece_at<N>(row + at); },
          [&](u32, const Pack<E, N>& pack) {
              float values[N];
              unpack(pack, values);
              for (int i = 0; i < N; i++) use(values[i]);
          });
}

// The mean of a row, 0 for RMS; all threads of the block take part.
template <int N, u32 KIND>
__device__ float mean_of(const E* x, u32 width) {
    if (KIND != LAYER) return 0;
    float sum = 0;
    each<N>(x, width, [&](float x) { sum += x; });
    return block_sum(sum) * (1.0f / float(width));
}

__device__ __forceinline__ float inverse_deviation(float squares, u32 width, float epsilon) {
    return 1.0f / sqrtf(squares * (1.0f / float(width)) + epsilon);
}

template <int N, u32 KIND>
__device__ void normalise(const E* x, const E* scale, const E* shift, E* y, u32 width,
                          float epsilon) {
    const float mean = mean_of<N, KIND>(x, width);
    float squares = 0;
    each<N>(x, width, [&](float x) { squares += (x - mean) * (x - mean); });
    const float inverse = inverse_deviation(block_sum(squares), width, epsilon);
    for (u32 at = threadIdx.x * N; at < width; at += blockDim.x * N) {
        float values[N], scales[N];
        load<N>(x + at, values);
        load<N>(scale + at, scales);
        for (int i = 0; i < N; i++)
            values[i] = norm_factor(KIND, scales[i]) * ((values[i] - mean) * inverse);
        if (KIND == LAYER) {
            float shifts[N];
            load<N>(shift + at, shifts);
            for (int i = 0; i < N; i++) values[i] += shifts[i];
        }
        store<N>(y + at, values);
    }
}

template <int N>
__device__ void normalise_by(u32 kind, const E* x, const E* scale, const E* shift, E* y, u32 width,
                             float epsilon) {
    if (kind == LAYER)
        normalise<N, LAYER>(x, scale, shift, y, width, epsilon);
    else if (kind == RMS_PLUS_ONE)
        normalise<N, RMS_PLUS_ONE>(x, scale, shift, y, width, epsilon);
    else
        normalise<N, RMS>(x, scale, shift, y, width, epsilon);
}

// One block a row.
KERNEL(256, norm, const E* x, const E* scale, const E* shift, E* y, u32 width, float epsilon,
       u32 kind) {
    const u64 row = u64(blockIdx.x) * width;
    if (width % WIDE == 0 && aligned(x, scale, shift, y))
        normalise_by<WIDE>(kind, x + row, scale, shift, y + row, width, epsilon);
    else
        normalise_by<1>(kind, x + row, scale, shift, y + row, width, epsilon);
}

// A block's rows are every gridDim.x-th. Its sums of dw (and, of a layer norm, db) stay in shared
// memory, every column with one thread. One pass over a row finds its deviation and what lies along
// it, a second what is to be written, while the next row is on its way.
template <int N, u32 KIND>
__device__ void normalise_backward(const E* x, const E* scale, const E* d_y, E* d_x,
                                   float* partials, u32 rows, u32 width, float epsilon,
                                   bool add) {
    DYNAMIC_SHARED(float, sums);
    struct Operands {
        Pack<E, N> x, d;
    };
    constexpr int M = side_by_side(N);
    const float share = 1.0f / float(width);
    const u32 pieces = width / N;
    constexpr u32 planes = KIND == LAYER ? 2 : 1;
    for (u32 at = threadIdx.x; at < planes * width; at += blockDim.x) sums[at] = 0;
    __syncthreads();
    for (u64 row = blockIdx.x; row < rows; row += gridDim.x) {
        const E* of_x = x + row * width;
        const E* of_y = d_y + row * width;
        E* of_dx = d_x + row * width;
        const float mean = mean_of<N, KIND>(of_x, width);
        // Of squares, along the row, and of a layer norm level.
        float all[KIND == LAYER ? 3 : 2] = {};
        ahead<KIND == LAYER ? 1 : 2>(threadIdx.x * N, width, blockDim.x * N,
                 [=](u32 at) { return Operands{piece_at<N>(of_x + at), piece_at<N>(of_y + at)}; },
                 [&](u32 at, const Operands& of) {
                     float values[N], scales[N], d[N];
                     load<N>(scale + at, scales);
                     unpack(of.x, values);
                     unpack(of.d, d);
                     for (int i = 0; i < N; i++) {
                         const float off = values[i] - mean;
                         const float u = d[i] * norm_factor(KIND, scales[i]);
                         all[0] += off * off;
                         all[1] += u * off;
                         if (KIND == LAYER) all[planes] += u;
                     }
                 });
        block_sums(all);
        const float inverse = inverse_deviation(all[0], width, epsilon);
        const float along = all[1] * inverse * share, level = all[planes] * share;
        const u64 next = u64(gridDim.x) * width;
        for (u32 at = threadIdx.x * N; row + gridDim.x < rows && at < width; at += blockDim.x * N) {
            expect(of_x + next + at);
            expect(of_y + next + at);
            if (add) expect(of_dx + next + at);
        }
        for (u32 piece = threadIdx.x; piece < pieces; piece += blockDim.x) {
            Pack<E, N> old;
            if (add) old = piece_at<N>(of_dx + piece * N);
            float values[N], scales[N], d[N];
            load<N>(of_x + piece * N, values);
            load<N>(scale + piece * N, scales);
            load<N>(of_y + piece * N, d);
            if (KIND == LAYER) add_to(sums + width + piece * M, pieces * M, d);
            for (int i = 0; i < N; i++) {
                const float normed = (values[i] - mean) * inverse;
                const float u = d[i] * norm_factor(KIND, scales[i]);
                scales[i] = d[i] * normed;
                values[i] = inverse * (KIND == LAYER ? u - level - normed * along
                                                     : u - normed * along);
            }
            add_to(sums + piece * M, pieces * M, scales);
            if (add) {
                unpack(old, d);
                for (int i = 0; i < N; i++) values[i] += d[i];
            }
            store<N>(of_dx + piece * N, values);
        }
    }
    float* out = partials + u64(blockIdx.x) * planes * width;
    for (u32 piece = threadIdx.x; piece < pieces; piece += blockDim.x)
        for (u32 plane = 0; plane < planes; plane++) {
            for (int i = 0; i < N; i += M) {
                float values[M];
                load<M>(sums + plane * width + i * pieces + piece * M, values);
                store<M>(out + plane * width + piece * N + i, values);
            }
        }
}

template <int N>
__device__ void normalise_backward_by(u32 kind, const E* x, const E* scale, const E* d_y, E* d_x,
                                      float* partials, u32 rows, u32 width, float epsilon,
                                      bool add) {
    if (kind == LAYER)
        normalise_backward<N, LAYER>(x, scale, d_y, d_x, partials, rows, width, epsilon, add);
    else if (kind == RMS_PLUS_ONE)
        normalise_backward<N, RMS_PLUS_ONE>(x, scale, d_y, d_x, partials, rows, width, epsilon,
                                            add);
    else
        normalise_backward<N, RMS>(x, scale, d_y, d_x, partials, rows, width, epsilon, add);
}

CROWDED_KERNEL(256, 4, norm_backward, const E* x, const E* scale, const E* d_y, E* d_x,
               float* partials, u32 rows, u32 width, float epsilon, u32 kind, u32 add) {
    if (width % WIDE == 0 && aligned(x, scale, d_y, d_x, partials))
        normalise_backward_by<WIDE>(kind, x, scale, d_y, d_x, partials, rows, width, epsilon, add);
    else
        normalise_backward_by<1>(kind, x, scale, d_y, d_x, partials, rows, width, epsilon, add);
}
