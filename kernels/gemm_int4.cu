// y[m, n] = x[m, k] * ((q[n, k] - zero[n, k / group]) * scale[n, k / group])^T with an epilogue: weights of int4 in
// groups of columns, activations of T.
//
// In      x [rows, k] T; q packed as int4 (packed.cuh); scales [ceil(k / group), packed rows] f16, offsets of the same
//         shape or null; group 32 or a multiple of 64. The rest as gemm.cu, of which this is the same code: epilogues,
//         splits, limits
// Out     y [rows, n]: T or f32; T is __half or __nv_bfloat16 (suffix f16, bf16); arguments: LinearArgs (epilogue.cuh)
// Grid, block, shared  as gemm.cu with 4 KiB of scales; name: gemm_int4_<T>_<BM>x<BN>
// Cost    2 m n k FLOPs, n k / 2 bytes of weights and 2 n k / group of scales. Integers become exact T in registers, by
//         11 instructions a word of eight, shared by the rows of a warp's tile
// Numerics as gemm.cu; products of x and integers are exact, each group's f32 sums are multiplied by its scales and
//         added in f32: no weight is rounded. That takes a second set of sums, so tiles of a warp are at most 64 x 32
// Caller  engine/backend/cuda/ops/linear.rs
// Oracle  engine/backend/cpu/matmul on dequantised weights; tests/cuda_ops/linear_quantized.rs

#include "gemm.cuh"

using namespace engine;

#define GEMM(suffix, T, BM, BN, BK, WM, WN, STAGES, BOUND)      \
  extern "C" __global__ void BOUND                              \
      gemm_int4_##suffix##_##BM##x##BN(const LinearArgs args) { \
    gemm<Tile<Int4<T>, BM, BN, BK, WM, WN, STAGES>>(args);      \
  }
#define GEMM_TILES(suffix, T)                                      \
  GEMM(suffix, T, 32, 128, 64, 1, 4, 4, __launch_bounds__(128, 2)) \
  GEMM(suffix, T, 64, 128, 64, 1, 4, 4, __launch_bounds__(128, 2))

GEMM_TILES(bf16, __nv_bfloat16)
GEMM_TILES(f16, __half)
