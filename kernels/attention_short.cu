// Attention within the segments of a flat batch where those have few queries: windows, and latents over many keys.
//   out[t, h] = softmax(scale * q[t, h] k[.., h / group]^T) v[.., h / group] over the keys of t's segment
//
// In      as attention.cu; *arrived zero
// Out     as attention.cu; *arrived zero again, *partial anything
// Grid    (rows * group / 64 + segments + 1, kv_heads, pieces) of the bucket; the keys of a segment are cut into as many
//         pieces, fewer where it has fewer tiles of 64; blocks without rows or keys do nothing
// Block   128 threads: 64 rows (a row is a query and one of the `group` heads that share keys), 16 a warp
// Shared  (64 + 4 * 64) rows of head_dim: Q, two buffers of K and V; 40 to 80 KiB
// Limits  head_dim 64, 80, 96, 128; pointers 16-byte aligned, strides multiples of 8
// Cost    4 * sum of queries * keys * heads * head_dim FLOPs; q and out once, k and v once a tile of rows; of more pieces
//         than one, 8 * (head_dim + 2) bytes a row and piece, most of them in the L2 cache. Bound by memory with one tile
//         of rows a segment
// Numerics as attention.cuh; pieces are added in f32, in the order of the keys: same bits on every run
// Caller  engine/backend/cuda/ops/attention.rs
// Oracle  engine/backend/cpu/attention/segments.rs; tests/cuda_ops/attention.rs

#include "attention_rows.cuh"

using namespace engine;

// As many blocks as shared memory holds on sm_80; against 128 rows all four warps of a short segment have work, and three
// blocks of them fit the registers instead of two.
#define ATTENTION_SHORT_KERNEL(name, blocks, ...)                              \
  extern "C" __global__ void __launch_bounds__(4 * kWarpThreads, blocks)        \
      attention_short_##name(const AttentionArgs args) {                       \
    attention<AttentionTile<__VA_ARGS__>, true>(args);                         \
  }
#define ATTENTION_SHORT(suffix, T)                                \
  ATTENTION_SHORT_KERNEL(suffix##_d64, 3, T, 64, true, 4, 1, 64)  \
  ATTENTION_SHORT_KERNEL(suffix##_d80, 3, T, 80, true, 4, 1, 64)  \
  ATTENTION_SHORT_KERNEL(suffix##_d96, 3, T, 96, true, 4, 1, 64)  \
  ATTENTION_SHORT_KERNEL(suffix##_d128, 2, T, 128, true, 4, 1, 64)

ATTENTION_SHORT(f16, __half)
ATTENTION_SHORT(bf16, __nv_bfloat16)
