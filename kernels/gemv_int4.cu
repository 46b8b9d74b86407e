// y[m, n] = x[m, k] * ((q[n, k] - zero[n, k / group]) * scale[n, k / group])^T with an epilogue, for m of 1 to 8:
// weights of int4 in groups of columns.
//
// In      x [rows, k] T; q packed as int4 (packed.cuh); scales [ceil(k / group), packed rows] f16, offsets of the same
//         shape or null; group 32, 64 or a multiple of 128. The rest as gemv.cu, of which this is the same code:
//         epilogues, splits, but rows <= 8: sums of a group and totals of all are held at once
// Out     y [rows, n]: T or f32; T is __half or __nv_bfloat16 (suffix f16, bf16); arguments: LinearArgs (epilogue.cuh)
// Grid, block  as gemv.cu with 64 packed rows a block and units of 128 columns
// Shared  that of gemv.cu, and 16 KiB of scales and offsets
// Cost    reads n k / 2 bytes of w once, 128 bytes a thread in flight, 2 n k / group of scales. Bound by memory; 11
//         instructions turn a word of eight integers into operands
// Numerics as gemv.cu; products of x and integers are exact, each group's f32 sums are multiplied by its scales and
//         added in f32: no weight is rounded
// Caller  engine/backend/cuda/ops/linear.rs
// Oracle  engine/backend/cpu/matmul on dequantised weights; tests/cuda_ops/linear_quantized.rs

#include "gemv.cuh"

using namespace engine;

#define GEMV(suffix, T)                                                                                             \
  extern "C" __global__ void __launch_bounds__(kWarps* kWarpThreads, 2) gemv_int4_##suffix##_r4(const LinearArgs args) { \
    gemv<Int4<T>, 8, 4, 8>(args);                                                                                      \
  }

GEMV(bf16, __nv_bfloat16)
GEMV(f16, __half)
