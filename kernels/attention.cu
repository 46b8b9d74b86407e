// Attention within the segments of a flat batch, bidirectional: vision towers, perceivers, resamplers, cross attention.
//   out[t, h] = softmax(scale * q[t, h] k[.., h / group]^T) v[.., h / group] over the keys of t's segment
//
// In      q [rows, heads, head_dim], k, v [keys, kv_heads, head_dim] T, rows *_stride elements apart, heads head_stride:
//         head_dim, or more where each head has its rows for itself; cu_q, cu_k [segments + 1] i32: segment s has
//         queries cu_q[s]..cu_q[s + 1] and keys cu_k[s]..cu_k[s + 1]
// Out     out [rows, heads, head_dim], another buffer; rows of no segment, or of one without keys, are zero, rows from
//         *num_rows on are left alone. T is __nv_bfloat16 or __half (suffix bf16, f16)
// Grid    (rows * group / tile rows + segments + 1, kv_heads) of the bucket; a block finds its segment and tile from
//         cu_q, blocks without one do nothing
// Block   128 threads: 64 or 128 rows (a row is a query and one of the `group` heads that share keys)
// Shared  (tile rows + 4 * tile keys) rows of head_dim: Q, two buffers of K and V; 24 to 96 KiB
// Limits  dN entries: head_dim N, pointers 16-byte aligned, strides multiples of 8. anyN: head_dim up to N, rows padded
//         with zeros in shared memory, element by element where head_dim is no multiple of 8
// Cost    4 * sum of queries * keys * heads * head_dim FLOPs; q and out once, k and v once a tile of rows. Bound by the
//         tensor cores from about 200 keys on
// Numerics as attention.cuh
// Caller  engine/backend/cuda/ops/attention.rs
// Oracle  engine/backend/cpu/attention/segments.rs; tests/cuda_ops/attention.rs

#include "attention_rows.cuh"

using namespace engine;

// 64 keys at a time while scores, results and Q fragments fit the registers, at 32 rows a warp: that halves what a
// multiply reads from shared memory against 16 rows.
#define ATTENTION_KERNEL(name, blocks, ...)                                                                   \
  extern "C" __global__ void __launch_bounds__(4 * kWarpThreads, blocks) attention_##name(const AttentionArgs args) { \
    attention<AttentionTile<__VA_ARGS__>, false>(args);                                                                \
  }
#define ATTENTION(suffix, T)                                        \
  ATTENTION_KERNEL(suffix##_d64, 2, T, 64, true, 4, 2, 64)          \
  ATTENTION_KERNEL(suffix##_d72, 2, T, 72, true, 4, 2, 64)          \
  ATTENTION_KERNEL(suffix##_d80, 2, T, 80, true, 4, 2, 64)          \
  ATTENTION_KERNEL(suffix##_d88, 2, T, 88, true, 4, 2, 64)          \
  ATTENTION_KERNEL(suffix##_d96, 2, T, 96, true, 4, 2, 64)          \
  ATTENTION_KERNEL(suffix##_d128, 2, T, 128, true, 4, 2, 48)        \
  ATTENTION_KERNEL(suffix##_any32, 2, T, 32, false, 4, 2, 64)       \
  ATTENTION_KERNEL(suffix##_any128, 2, T, 128, false, 4, 1, 64)     \
  ATTENTION_KERNEL(suffix##_any256, 1, T, 256, false, 4, 1, 32)

ATTENTION(f16, __half)
ATTENTION(bf16, __nv_bfloat16)
