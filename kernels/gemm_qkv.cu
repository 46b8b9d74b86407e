// q, k and v of a decoder's attention in one launch, for more rows than gemv_qkv.cu takes: their product with x, the turn
// of q and k by their positions, the write of k and v to their pages.
//   [q | k | v] = x [wq | wk | wv]^T + b
//   q, k        turned as rope.cu does, over the whole head: elements i and i + head_dim / 2 are a pair
//
// In      x, w, bias, positions, inv_freq, slots as gemv_qkv.cu
// Out     q [rows, heads, head_dim] T in order; the cache [page][K|V][kv_heads][16][head_dim] T, keys turned
//         T is __half or __nv_bfloat16 (suffix f16, bf16); arguments: FusedArgs (qkv.cuh)
// Grid, block  as gemm.cu; name: gemm_qkv_<T>_<BM>x<BN>
// Shared  that of gemm.cu, and 16 BM bytes: positions and slots of the rows, on their way while the products are formed
// Limits  rows as gemm.cu; head_dim even, any other size
// Cost    as gemm.cu; q, k and v are written once and nothing is read back. Cosines and sines are computed anew for
//         every head: a lane's pair takes 39 instructions behind the k / 32 multiplies of its sums (sm_80)
// Numerics as gemm.cu, angles as rotary.cuh; sums and bias are turned in f32, one rounding to T
// Caller  engine/backend/cuda/ops/fused.rs
// Oracle  engine/backend/cpu: matmul, rope.rs, kv_cache.rs; tests/cuda_ops/qkv.rs

#include "gemm.cuh"

using namespace engine;

#define GEMM(suffix, T, BM, BN, BK, WM, WN, STAGES, BOUND)                     \
  extern "C" __global__ void BOUND                                             \
      gemm_qkv_##suffix##_##BM##x##BN(const FusedArgs args) {                  \
    gemm<Tile<Dense<T>, BM, BN, BK, WM, WN, STAGES>, true>(args.linear, args); \
  }

DENSE_TILES(GEMM, bf16, __nv_bfloat16)
DENSE_TILES(GEMM, f16, __half)
