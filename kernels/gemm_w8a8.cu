// y[m, n] = (xq[m, k] * xs[m]) * (q[n, k] * scale[n])^T with an epilogue: int8 weights and int8 activations.
//
// In      xq [rows, k] int8 from quantize_rows.cu: padded with zeros to a multiple of 64 columns, in its order; xs [rows]
//         f32; q packed as int8 (packed.cuh), scales [packed rows] f32. k, x_stride and k_tiles of the arguments count
//         pairs of bytes. The rest as gemm.cu, of which this is the same code: epilogues, splits, limits
// Out     y [rows, n]: T or f32; T is __half or __nv_bfloat16 (suffix f16, bf16); arguments: LinearArgs (epilogue.cuh)
// Grid, block, shared  as gemm.cu; name: gemm_w8a8_<T>_<BM>x<BN>
// Cost    2 m n k integer operations at twice the rate of 16-bit ones (four times on parts where f32 sums are slow), n k
//         bytes of weights
// Numerics sums of integers are exact for k up to 2^17; with splits the parts are added in f32, in order of k. Scales,
//         bias and the rest in f32, one rounding to T
// Caller  engine/backend/cuda/ops/linear.rs
// Oracle  exact sums of integers on the host; tests/cuda_ops/linear_w8a8.rs

#include "gemm.cuh"

using namespace engine;

// BOUND: registers, by blocks of a multiprocessor or outright. Left to itself the compiler takes all 255 and the loop
// gains nothing.
#define GEMM(suffix, T, BM, BN, BK, WM, WN, STAGES, BOUND)      \
  extern "C" __global__ void BOUND                              \
      gemm_w8a8_##suffix##_##BM##x##BN(const LinearArgs args) { \
    gemm<Tile<Int8Pairs<T>, BM, BN, BK, WM, WN, STAGES>>(args); \
  }
#define GEMM_TILES(suffix, T)                                      \
  GEMM(suffix, T, 32, 128, 32, 1, 4, 4, __launch_bounds__(128, 5)) \
  GEMM(suffix, T, 64, 128, 32, 1, 4, 4, __launch_bounds__(128, 4)) \
  GEMM(suffix, T, 128, 128, 32, 2, 2, 4, __maxnreg__(208))         \
  GEMM(suffix, T, 128, 256, 32, 2, 4, 3, __maxnreg__(200))

GEMM_TILES(bf16, __nv_bfloat16)
GEMM_TILES(f16, __half)
