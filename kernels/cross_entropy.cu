// Cross entropy with its gradient in place.
#include "device.cuh"

// A row's loss; its logits become their gradient. They are read from memory once: the first `kept` of
// them stay in shared memory, of the others the second cache holds the rows of all blocks that run.
template <int N>
__device__ double in_place(E* z, u32 vocab, u32 label, float loss_scale, u32 kept) {
    DYNAMIC_SHARED(E, row);
    typedef Pack<E, N> Piece;
    const u32 first = threadIdx.x * N, step = blockDim.x * N;
    const float chosen = widen(z[label]);
    float highest = -INFINITE, sum = 0;
    ahead<4>(first, vocab, step, [=](u32 at) { return piece_at<N>(z + at); },
             [&](u32 at, const Piece& piece) {
                 if (at < kept) *reinterpret_cast<Piece*>(row + at) = piece;
                 float values[N], here = highest;
                 unpack(piece, values);
                 for (int i = 0; i < N; i++) here = fmaxf(here, values[i]);
                 // Of a thread that has seen -inf only; elsewhere a NaN goes into the sum.
                 const float base = here == -INFINITE ? 0.0f : here;
                 if (here != highest) sum *= exponential(highest - base);
                 for (int i = 0; i < N; i++) sum += exponential(values[i] - base);
                 highest = here;
             });
    const float top = block_most(highest);
    sum = block_sum(highest == -INFINITE ? sum : sum * exponential(highest - top));
    const float factor = loss_scale / sum;
    for (u32 at = first; at < vocab; at += step) {
        float values[N];
        load<N>((at < kept ? row : z) + at, values);
        for (int i = 0; i < N; i++) values[i] = exponential(values[i] - top) * factor;
        if (label - at < N)
            for (int i = 0; i < N; i++)
                if (at + i == label) values[i] -= loss_scale;
        store<N>(z + at, values);
    }
    return log(double(sum)) + (double(top) - double(chosen));
}

template <int N>
__device__ void clear(E* z, u32 vocab) {
    const float zeros[N] = {};
    for (u32 at = threadIdx.x * N; at < vocab; at += blockDim.x * N) store<N>(z + at, zeros);
}

// One block a row, whose shared memory has room for `kept` of its elements.
KERNEL(1024, cross_entropy, E* logits, const int* labels, double* losses,
       const Constants* constants, u32 vocab, u32 kept) {
    E* z = logits + u64(blockIdx.x) * vocab;
    const int label = labels[blockIdx.x];
    const bool wide = vocab % WIDE == 0 && aligned(logits);
    double loss = 0;
    if (label < 0)
        wide ? clear<WIDE>(z, vocab) : clear<1>(z, vocab);
    else
        loss = wide ? in_place<WIDE>(z, vocab, label, constants->loss_scale, kept)
                    : in_place<1>(z, vocab, label, constants->loss_scale, kept);
    if (threadIdx.x == 0) losses[blockIdx.x] = loss;
}
