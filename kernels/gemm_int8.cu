// y[m, n] = x[m, k] * (q[n, k] * scale[n])^T with an epilogue: weights of int8 with a scale a row, activations of T.
//
// In      x [rows, k] T; q packed as int8 (packed.cuh); scales [packed rows] f32. The rest as gemm.cu, of which this is
//         the same code: epilogues, splits, limits
// Out     y [rows, n]: T or f32; T is __half or __nv_bfloat16 (suffix f16, bf16); arguments: LinearArgs (epilogue.cuh)
// Grid, block, shared  as gemm.cu; name: gemm_int8_<T>_<BM>x<BN>
// Cost    2 m n k FLOPs, n k bytes of weights. Integers become exact T in registers, by 7 instructions a word of four
//         (bf16; f16 5), shared by the rows of a warp's tile
// Numerics as gemm.cu: products of x and integers are exact, a row's scale is applied to its f32 sum
// Caller  engine/backend/cuda/ops/linear.rs
// Oracle  engine/backend/cpu/matmul on dequantised weights; tests/cuda_ops/linear_quantized.rs

#include "gemm.cuh"

using namespace engine;

#define GEMM(suffix, T, BM, BN, BK, WM, WN, STAGES, BOUND)      \
  extern "C" __global__ void BOUND                              \
      gemm_int8_##suffix##_##BM##x##BN(const LinearArgs args) { \
    gemm<Tile<Int8<T>, BM, BN, BK, WM, WN, STAGES>>(args);      \
  }
#define GEMM_TILES(suffix, T)                                      \
  GEMM(suffix, T, 32, 128, 64, 1, 4, 4, __maxnreg__(102))          \
  GEMM(suffix, T, 64, 128, 64, 1, 4, 4, __launch_bounds__(128, 3)) \
  GEMM(suffix, T, 128, 128, 32, 2, 2, 4, __maxnreg__(232))

GEMM_TILES(bf16, __nv_bfloat16)
GEMM_TILES(f16, __half)
