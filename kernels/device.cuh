// What all kernels share: the type of elements, accesses of 16 bytes, sums over warps and blocks.
//
// A translation unit has one type of elements, E: EBBTIDE_BF16 or EBBTIDE_F32. With EBBTIDE_HOST a
// host compiler reads the same source; host/shim.h then stands for what CUDA has built in.
#pragma once

typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;

#if defined(EBBTIDE_BF16)
#define NAME(name) name##_bf16
#elif defined(EBBTIDE_F32)
#define NAME(name) name##_f32
#else
#error "define EBBTIDE_BF16 or EBBTIDE_F32"
#endif

#ifdef EBBTIDE_HOST
#include "host/shim.h"
#else
// A kernel for blocks of up to `threads` threads, and one of whose blocks a multiprocessor is to
// have room for so many at once.
#define KERNEL(threads, name, ...) \
    extern "C" __global__ void __launch_bounds__(threads) NAME(name)(__VA_ARGS__)
#define CROWDED_KERNEL(threads, blocks, name, ...) \
    extern "C" __global__ void __launch_bounds__(threads, blocks) NAME(name)(__VA_ARGS__)
// An array that the threads of a block share.
#define SHARED(type, name, extent) __shared__ type name extent
// The shared memory whose size the launch gives.
#define DYNAMIC_SHARED(type, name)                                \
    extern __shared__ __align__(16) unsigned char dynamic_bytes[]; \
    type* const name = reinterpret_cast<type*>(dynamic_bytes)
#endif

// ---- elements ----------------------------------------------------------------------------------

struct bf16 {
    u16 bits;
};

__device__ __forceinline__ float widen(float x) { return x; }
__device__ __forceinline__ float widen(bf16 x) { return __uint_as_float(u32(x.bits) << 16); }

__device__ __forceinline__ void narrow(float x, float& to) { to = x; }
// To the nearest, ties to even; a NaN stays one.
__device__ __forceinline__ void narrow(float x, bf16& to) {
#ifdef __CUDA_ARCH__
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(to.bits) : "f"(x));
#else
    const u32 bits = __float_as_uint(x);
    const u32 rounded = bits + 0x7FFF + (bits >> 16 & 1);
    to.bits = u16((x == x ? rounded : bits | 0x400000) >> 16);
#endif
}

#ifdef EBBTIDE_BF16
typedef bf16 E;
#else
typedef float E;
#endif

// Elements of 16 bytes.
constexpr int WIDE = 16 / sizeof(E);

// ---- memory ------------------------------------------------------------------------------------

template <class T, int N>
struct alignas(sizeof(T) * N > 16 ? 16 : sizeof(T) * N) Pack {
    T v[N];
};

template <int N, class T>
__device__ __forceinline__ Pack<T, N> piece_at(const T* from) {
    return *reinterpret_cast<const Pack<T, N>*>(from);
}

template <int N, class T>
__device__ __forceinline__ void unpack(const Pack<T, N>& pack, float (&to)[N]) {
#pragma unroll
    for (int i = 0; i < N; i++) to[i] = widen(pack.v[i]);
}
// Two of a word at once: an instruction for each.
template <int N>
__device__ __forceinline__ void unpack(const Pack<bf16, N>& pack, float (&to)[N]) {
    if (N == 1) to[0] = widen(pack.v[0]);
#pragma unroll
    for (int i = 0; i + 1 < N; i += 2) {
        u32 word;
        memcpy(&word, &pack.v[i], sizeof word);
        to[i] = __uint_as_float(word << 16);
        to[i + 1] = __uint_as_float(word & 0xFFFF0000);
    }
}

template <int N, class T>
__device__ __forceinline__ void load(const T* from, float (&to)[N]) {
    unpack(piece_at<N>(from), to);
}

template <int N, class T>
__device__ __forceinline__ void store(T* to, const float (&from)[N]) {
    Pack<T, N> pack;
#pragma unroll
    for (int i = 0; i < N; i++) narrow(from[i], pack.v[i]);
    *reinterpret_cast<Pack<T, N>*>(to) = pack;
}

// Runs `use(place, take(place))` for every `step`-th place before `end`, in order: of AHEAD places
// everything is taken before anything is used. Compilers do not see that they may.
template <int AHEAD, class Place, class Take, class Use>
__device__ __forceinline__ void ahead(Place place, Place end, Place step, Take take, Use use) {
    for (; place < end; place += AHEAD * step) {
        decltype(take(place)) taken[AHEAD];
#pragma unroll
        for (int i = 0; i < AHEAD; i++)
            if (place + i * step < end) taken[i] = take(place + i * step);
#pragma unroll
        for (int i = 0; i < AHEAD; i++)
            if (place + i * step < end) use(place + i * step, taken[i]);
    }
}

// Brings what is read soon as far as the second cache.
__device__ __forceinline__ void expect(const void* soon) {
#ifdef __CUDA_ARCH__
    asm volatile("prefetch.global.L2 [%0];" ::"l"(soon));
#else
    (void)soon;
#endif
}

// Whether addresses (null ones too) are multiples of 16 bytes.
__device__ __forceinline__ bool aligned() { return true; }
template <class... More>
__device__ __forceinline__ bool aligned(const void* first, More... more) {
    return (reinterpret_cast<u64>(first) & 15) == 0 && aligned(more...);
}

// ---- numbers -----------------------------------------------------------------------------------

#define INFINITE __uint_as_float(0x7F800000u)

constexpr float LOG2_E = 1.44269504f;

// 2^x by one instruction, 0 where that is not normal.
__device__ __forceinline__ float power_of_two(float x) {
#ifdef __CUDA_ARCH__
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
#else
    return exp2f(x);
#endif
}

// 1 / x by one instruction, off by its last bit, 0 where that is not normal.
__device__ __forceinline__ float reciprocal(float x) {
#ifdef __CUDA_ARCH__
    float y;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
#else
    return 1.0f / x;
#endif
}

// e^x, off by about 1e-7 of itself times x's magnitude: a quarter of expf's work.
__device__ __forceinline__ float exponential(float x) { return power_of_two(x * LOG2_E); }

template <class T>
__device__ __forceinline__ T least(T a, T b) {
    return b < a ? b : a;
}
template <class T>
__device__ __forceinline__ T most(T a, T b) {
    return a < b ? b : a;
}

// ---- sums --------------------------------------------------------------------------------------

// The sum over a group of lanes, a power of two; every lane gets it.
template <class T>
__device__ __forceinline__ T lanes_sum(T x, int lanes) {
    for (int mask = lanes / 2; mask > 0; mask /= 2) x += __shfl_xor_sync(~0u, x, mask);
    return x;
}

template <class T>
__device__ __forceinline__ T lanes_most(T x, int lanes) {
    for (int mask = lanes / 2; mask > 0; mask /= 2)
        x = most(x, __shfl_xor_sync(~0u, x, mask));
    return x;
}

// The sums over a block of whole warps; every thread gets them.
template <class T, int N>
__device__ __forceinline__ void block_sums(T (&x)[N]) {
    SHARED(T, of_warp, [N][32]);
    const u32 lane = threadIdx.x % 32;
    for (T& of : x) of = lanes_sum(of, 32);
    __syncthreads();
    for (int i = 0; i < N; i++)
        if (lane == 0) of_warp[i][threadIdx.x / 32] = x[i];
    __syncthreads();
    for (int i = 0; i < N; i++)
        x[i] = lanes_sum(lane < blockDim.x / 32 ? of_warp[i][lane] : T(0), 32);
}
template <class T>
__device__ __forceinline__ T block_sum(T x) {
    T one[1] = {x};
    block_sums(one);
    return one[0];
}

// The largest over a block of whole warps; every thread gets it.
template <class T>
__device__ __forceinline__ T block_most(T x) {
    SHARED(T, of_warp, [32]);
    x = lanes_most(x, 32);
    const u32 lane = threadIdx.x % 32;
    __syncthreads();
    if (lane == 0) of_warp[threadIdx.x / 32] = x;
    __syncthreads();
    return lanes_most(of_warp[lane < blockDim.x / 32 ? lane : 0], 32);
}

// Sums that a thread keeps in shared memory of every column of a piece of N: so many lie side by
// side, 16 bytes, and then those of the next piece, so that lanes meet no bank twice.
__device__ constexpr int side_by_side(int n) { return n < 4 ? n : 4; }

// Adds a piece to its sums; those of its columns that lie side by side are `apart`.
template <int N>
__device__ __forceinline__ void add_to(float* sums, u32 apart, const float (&values)[N]) {
    constexpr int M = side_by_side(N);
    for (int i = 0; i < N; i += M) {
        float some[M];
        load<M>(sums + i / M * apart, some);
        for (int j = 0; j < M; j++) some[j] += values[i + j];
        store<M>(sums + i / M * apart, some);
    }
}

// ---- the step ----------------------------------------------------------------------------------

// What kernels know of the step, as `launch::constants` writes it.
struct Constants {
    float clip;           // what gradients are multiplied with
    float keep;           // 1 - learning rate * decay
    float first;          // 1 - beta1
    float second;         // beta2
    float second_new;     // 1 - beta2
    float correction;     // 1 / sqrt(1 - beta2^t)
    float epsilon;
    float step_size;      // learning rate / (1 - beta1^t)
    float learning_rate;
    float weight_decay;
    float loss_scale;
    float most;           // the largest magnitude of a gradient's element; infinite: not clipped
    double limit;         // the largest norm of all gradients; infinite: not clipped
    float first_old;      // beta1
    float direction;      // sqrt(1 - beta2^t) / (1 - beta1^t)
};

// Kinds of norms.
constexpr u32 RMS = 0, RMS_PLUS_ONE = 1, LAYER = 2;

// What multiplies the normed value.
__device__ __forceinline__ float norm_factor(u32 kind, float scale) {
    return kind == RMS_PLUS_ONE ? 1.0f + scale : scale;
}
