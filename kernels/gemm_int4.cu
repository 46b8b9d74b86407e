// y[m, n] = x[m, k] * ((q[n, k] - zero[n, k / group]) * scale[n, k / group])^T with an epilogue: weights of int4 in
// groups of columns, activations of T.
//
// In      x [rows, k] T; q packed as int4 (packed.cuh); scales [ceil(k / group), packed rows] f16, offsets of the same
//         shape or null; group 32, 64 or a multiple of 128, no scale 0. The rest as gemm.cu, of which this is the same
//         code: epilogues, splits, limits
// Out     y [rows, n]: T or f32; T is __half or __nv_bfloat16 (suffix f16, bf16); arguments: LinearArgs (epilogue.cuh)
// Grid, block  as gemm.cu; splits of k are of whole 128 columns; name: gemm_int4_<T>_<BM>x<BN>
// Shared  stages * (BM * BK * 2 + BN * BK / 2 + 4 * BN) bytes, dynamic: of x, w, scales and offsets
// Cost    2 m n k FLOPs, n k / 2 bytes of weights and 2 n k / group of scales. Integers become exact T in registers, by
//         11 instructions a word of eight, shared by the rows of a warp's tile; a group costs an instruction a sum
// Numerics as gemm.cu; products of x and integers are exact, scales are applied to f32 sums (groups.cuh): no weight is
//         rounded
// Caller  engine/backend/cuda/ops/linear.rs
// Oracle  engine/backend/cpu/matmul on dequantised weights; tests/cuda_ops/linear_quantized.rs

#include "gemm.cuh"

using namespace engine;

// BOUND: registers; these leave room for three and for two blocks a multiprocessor, and spill none on any part.
#define GEMM(suffix, T, BM, BN, BK, WM, WN, STAGES, BOUND)      \
  extern "C" __global__ void BOUND                              \
      gemm_int4_##suffix##_##BM##x##BN(const LinearArgs args) { \
    gemm<Tile<Int4<T>, BM, BN, BK, WM, WN, STAGES>>(args);      \
  }
#define GEMM_TILES(suffix, T)                             \
  GEMM(suffix, T, 32, 256, 32, 1, 4, 4, __maxnreg__(140)) \
  GEMM(suffix, T, 64, 256, 32, 1, 4, 4, __maxnreg__(240))

GEMM_TILES(bf16, __nv_bfloat16)
GEMM_TILES(f16, __half)
