// What both kinds of attention share: shapes, where a head's operands are, the kernels' parameters.
#pragma once

#include "device.cuh"

constexpr float LN_2 = 0.69314718f;

struct Shape {
    u32 sequence, heads, kv_heads, head_dim, window;
    float factor;

    __device__ u32 width() const { return (heads + 2 * kv_heads) * head_dim; }
    // Whether a query sees a key.
    __device__ bool seen(u32 query, u32 key) const {
        return key <= query && query < sequence && (window == 0 || query - key < window);
    }
    // Whether so many queries see as many keys, all of them.
    __device__ bool all_seen(u32 query, u32 queries, u32 key, u32 keys) const {
        return key + keys <= query + 1 && query + queries <= sequence &&
               (window == 0 || query + queries - 1 - key < window);
    }
    // The first key that a query sees.
    __device__ u32 first_key(u32 query) const {
        return window == 0 || query < window ? 0 : query + 1 - window;
    }
    // The end of the queries that see a key.
    __device__ u32 end_query(u32 key) const {
        return window == 0 || window > sequence - key ? sequence : key + window;
    }
};

// The first row of a query head and of its key/value head, of the sequence blockIdx.z. D is of the
// `of_heads` query heads from `first` on.
struct Head {
    u64 q, k, v, o, lse, delta;

    __device__ Head(const Shape& shape, u32 head, u32 first, u32 of_heads) {
        const u32 kv = head / (shape.heads / shape.kv_heads);
        const u64 row = u64(blockIdx.z) * shape.sequence;
        q = row * shape.width() + head * shape.head_dim;
        k = row * shape.width() + (shape.heads + kv) * shape.head_dim;
        v = k + shape.kv_heads * shape.head_dim;
        o = (row * shape.heads + head) * shape.head_dim;
        lse = row * shape.heads + head;
        delta = row * of_heads + head - first;
    }
};

// Kernels for heads of up to HD elements, `threads` a block; the templates of these names have the
// rest. Of the backward's blocks, blockIdx.y counts heads from those of key/value head `first` on,
// and D is of `of_kv_heads` of them.
#define FORWARD(threads, name, ...)                                                           \
    KERNEL(threads, attention_##name, const E* qkv, E* o, float* lse, u32 sequence, u32 heads,  \
           u32 kv_heads, u32 head_dim, u32 window, float factor) {                            \
        forward<__VA_ARGS__>(qkv, o, lse,                                                     \
                             Shape{sequence, heads, kv_heads, head_dim, window, factor});     \
    }
#define BACKWARD(threads, name, function, ...)                                                \
    KERNEL(threads, name, const E* qkv, const float* lse, const E* d_o, const float* delta,   \
           E* d_qkv, u32 sequence, u32 heads, u32 kv_heads, u32 head_dim, u32 window,         \
           float factor, u32 first, u32 of_kv_heads) {                                        \
        function<__VA_ARGS__>(qkv, lse, d_o, delta, d_qkv,                                    \
                              Shape{sequence, heads, kv_heads, head_dim, window, factor},     \
                              first, of_kv_heads);                                            \
    }
