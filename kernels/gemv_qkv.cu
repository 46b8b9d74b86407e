// q, k and v of a decoder's attention for few rows, in one launch: their product with x, the turn of q and k by their
// positions, the write of k and v to their pages; gemv_qkv_norm with the norm of x before it.
//   [q | k | v] = x' [wq | wk | wv]^T + b      x' = x, or its RMSNorm (gemv_norm.cu)
//   q, k        turned as rope.cu does, over the whole head: elements i and i + head_dim / 2 are a pair
//
// In      x as gemv.cu; w packed with the two rows of every pair of q and k side by side (PackedQkv in
//         engine/backend/cuda/upload.rs), so both sums of a pair are one thread's; bias in the same order; positions
//         [rows] i32, inv_freq [head_dim / 2] f32, slots [rows] i32 (page * 16 + offset; negative: not written)
// Out     q [rows, heads, head_dim] T in order; the cache [page][K|V][kv_heads][16][head_dim] T, keys turned
//         T is __half or __nv_bfloat16 (suffix f16, bf16); arguments: FusedArgs (qkv.cuh)
// Grid, block  as gemv.cu
// Shared  that of gemv.cu (with a norm of gemv_norm.cu), and 16 bytes a vector of four sums: what turns it, on its way
//         while the products are formed
// Limits  rows <= 8, of m16 <= 16; head_dim even, any other size
// Cost    as gemv.cu; q, k and v are written once and nothing is read back. Bound by memory
// Numerics as gemv.cu and gemv_norm.cu, angles as rotary.cuh; sums and bias are turned in f32, one rounding to T
// Caller  engine/backend/cuda/ops/fused.rs
// Oracle  engine/backend/cpu: matmul, norms, rope.rs, kv_cache.rs; tests/cuda_ops/qkv.rs

#include "gemv.cuh"

using namespace engine;

#define GEMV(name, T, SIZE, ROWS, TILES, BLOCKS, NORM)                        \
  extern "C" __global__ void __launch_bounds__(kWarps* kWarpThreads, BLOCKS) \
      name##_##SIZE(const FusedArgs args) {                                  \
    gemv<T, ROWS, TILES, NORM, true>(args.linear, args);                     \
  }
#define GEMV_ALL(suffix, T)                                     \
  GEMV(gemv_qkv_##suffix, T, r1, 8, 1, 5, false)                \
  GEMV(gemv_qkv_##suffix, T, r2, 8, 2, 5, false)                \
  GEMV(gemv_qkv_##suffix, T, m16, 16, 2, 4, false)              \
  GEMV(gemv_qkv_norm_##suffix, T, r1, 8, 1, kNormBlocks, true)  \
  GEMV(gemv_qkv_norm_##suffix, T, r2, 8, 2, kNormBlocks, true)

GEMV_ALL(bf16, __nv_bfloat16)
GEMV_ALL(f16, __half)
