// What CUDA has built in, for a host compiler: threads are fibres of one OS thread that take turns
// at barriers and shuffles (fibres.cpp). Right, not fast. Shared memory lives on the heap, filled
// with NaNs at the start of every block, so that the address sanitizer sees what is outside it.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstring>
#include <type_traits>
#include <utility>

#define __device__
#define __forceinline__ inline

namespace host {

struct Index {
    unsigned x, y, z;
};

// A variable of each OS thread, at a fixed place: the library is small enough to have that where it
// is opened late.
#define HOST_THREAD_LOCAL __thread __attribute__((tls_model("initial-exec")))

// The thread that runs.
struct Thread {
    Index thread, block, block_dim, grid_dim;
};
extern HOST_THREAD_LOCAL Thread* current;

// Waits for all threads of the block.
void block_barrier();
// What the lanes of a warp give each other, up to 24 bytes each.
typedef unsigned char Gift[24];
// Gives a lane's bytes to its warp; all 32 lanes call it. What they gave stays until the lane's
// next call but one.
const Gift* exchange(const void* mine, std::size_t bytes);
// The block's memory of a name.
void* shared(const void* name, std::size_t bytes);
// The block's dynamic shared memory.
void* dynamic_shared();

// A kernel by its name.
struct Kernel {
    const char* name;
    unsigned most_threads;
    void (*call)(void** arguments);
    const std::size_t* parameter_bytes;
    std::size_t parameters;
    const Kernel* next;

    Kernel(const char* name, unsigned most_threads, Kernel from);
    Kernel(void (*call)(void**), const std::size_t* parameter_bytes, std::size_t parameters)
        : name(nullptr), most_threads(0), call(call), parameter_bytes(parameter_bytes),
          parameters(parameters), next(nullptr) {}
};

template <auto F, class... P, std::size_t... I>
Kernel described(void (*)(P...), std::index_sequence<I...>) {
    // 0: an address.
    static const std::size_t sizes[] = {(std::is_pointer<P>::value ? 0 : sizeof(P))...};
    return {[](void** a) { F(*static_cast<P*>(a[I])...); }, sizes, sizeof...(P)};
}
template <auto F, class... P>
Kernel described(void (*f)(P...)) {
    return described<F>(f, std::index_sequence_for<P...>());
}

// cp.async: bytes that are copied to shared memory, from null as zeros, when their thread waits; until
// then there are NaNs.
void begin_copy(void* to, const void* from, std::size_t bytes);
void wait_for_copies();

// ldmatrix.x4 and mma.sync.m16n8k16 of bf16 (matrices.cpp).
void load_matrices(unsigned (&to)[4], const void* row, bool turned);
void multiply(float (&c)[4], const unsigned (&a)[4], unsigned b0, unsigned b1);

}  // namespace host

#define threadIdx (host::current->thread)
#define blockIdx (host::current->block)
#define blockDim (host::current->block_dim)
#define gridDim (host::current->grid_dim)

#define TEXT(name) TEXT_OF(name)
#define TEXT_OF(name) #name
#define KERNEL(threads, name, ...)                                                       \
    extern "C" void NAME(name)(__VA_ARGS__);                                             \
    static const host::Kernel registered_##name(TEXT(NAME(name)), threads,               \
                                                host::described<&NAME(name)>(&NAME(name))); \
    extern "C" void NAME(name)(__VA_ARGS__)
#define CROWDED_KERNEL(threads, blocks, ...) KERNEL(threads, __VA_ARGS__)
#define SHARED(type, name, extent)  \
    static const char name##_key = 0; \
    auto& name = *static_cast<type(*) extent>(host::shared(&name##_key, sizeof(type extent)))
#define DYNAMIC_SHARED(type, name) type* const name = static_cast<type*>(host::dynamic_shared())

inline void __syncthreads() { host::block_barrier(); }

template <class T>
T __shfl_xor_sync(unsigned, T mine, int mask) {
    T other;
    std::memcpy(&other, host::exchange(&mine, sizeof mine)[threadIdx.x % 32 ^ mask], sizeof other);
    return other;
}

inline int __popc(unsigned bits) { return __builtin_popcount(bits); }

inline float __uint_as_float(unsigned bits) {
    float x;
    std::memcpy(&x, &bits, sizeof x);
    return x;
}
inline unsigned __float_as_uint(float x) {
    unsigned bits;
    std::memcpy(&bits, &x, sizeof bits);
    return bits;
}
