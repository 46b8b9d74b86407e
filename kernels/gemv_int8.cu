// y[m, n] = x[m, k] * (q[n, k] * scale[n])^T with an epilogue, for m of 1 to 16: weights of int8 with a scale a row.
//
// In      x [rows, k] T; q packed as int8 (packed.cuh); scales [packed rows] f32. The rest as gemv.cu, of which this is
//         the same code: epilogues, splits, limits
// Out     y [rows, n]: T or f32; T is __half or __nv_bfloat16 (suffix f16, bf16); arguments: LinearArgs (epilogue.cuh)
// Grid, block, shared  as gemv.cu with 32 packed rows a block and units of 128 columns
// Cost    reads n k bytes of w once, 128 bytes a thread in flight. Bound by memory; 7 instructions (bf16; f16 5) turn a
//         word of four integers into operands
// Numerics as gemv.cu: products of x and integers are exact, a row's scale is applied to its f32 sum
// Caller  engine/backend/cuda/ops/linear.rs
// Oracle  engine/backend/cpu/matmul on dequantised weights; tests/cuda_ops/linear_quantized.rs

#include "gemv.cuh"

using namespace engine;

#define GEMV(suffix, T)                                                                                             \
  extern "C" __global__ void __launch_bounds__(kWarps* kWarpThreads, 3) gemv_int8_##suffix##_r2(const LinearArgs args) { \
    gemv<Int8<T>, 16, 2, 8>(args);                                                                                      \
  }

GEMV(bf16, __nv_bfloat16)
GEMV(f16, __half)
