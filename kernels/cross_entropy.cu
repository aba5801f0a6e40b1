// Cross entropy with its gradient in place.
#include "device.cuh"

// A row's loss; its logits become their gradient. They are read from memory once: the second time
// they are in the second cache, which holds the rows of all blocks that run.
template <int N>
__device__ double in_place(E* z, u32 vocab, u32 label, float loss_scale) {
    const float chosen = widen(z[label]);
    float highest = -INFINITE, sum = 0;
    for (u32 at = threadIdx.x * N; at < vocab; at += blockDim.x * N) {
        float values[N];
        load<N>(z + at, values);
        float here = highest;
        for (int i = 0; i < N; i++) here = most(here, values[i]);
        // Of a thread that has seen -inf only; elsewhere a NaN goes into the sum.
        const float base = here == -INFINITE ? 0.0f : here;
        sum *= expf(highest - base);
        for (int i = 0; i < N; i++) sum += expf(values[i] - base);
        highest = here;
    }
    const float top = block_most(highest);
    sum = block_sum(highest == -INFINITE ? sum : sum * expf(highest - top));
    const float factor = loss_scale / sum;
    for (u32 at = threadIdx.x * N; at < vocab; at += blockDim.x * N) {
        float values[N];
        load<N>(z + at, values);
        for (int i = 0; i < N; i++) {
            values[i] = expf(values[i] - top) * factor;
            if (at + i == label) values[i] -= loss_scale;
        }
        store<N>(z + at, values);
    }
    return log(double(sum)) + (double(top) - double(chosen));
}

template <int N>
__device__ void clear(E* z, u32 vocab) {
    const float zeros[N] = {};
    for (u32 at = threadIdx.x * N; at < vocab; at += blockDim.x * N) store<N>(z + at, zeros);
}

// One block a row.
KERNEL(1024, cross_entropy, E* logits, const int* labels, double* losses,
       const Constants* constants, u32 vocab) {
    E* z = logits + u64(blockIdx.x) * vocab;
    const int label = labels[blockIdx.x];
    const bool wide = vocab % WIDE == 0 && aligned(logits);
    double loss = 0;
    if (label < 0)
        wide ? clear<WIDE>(z, vocab) : clear<1>(z, vocab);
    else
        loss = wide ? in_place<WIDE>(z, vocab, label, constants->loss_scale)
                    : in_place<1>(z, vocab, label, constants->loss_scale);
    if (threadIdx.x == 0) losses[blockIdx.x] = loss;
}
