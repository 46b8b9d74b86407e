// y[m, n] = x[m, k] * (q[n, k] * scale[n])^T with an epilogue, for m of 1 to 8: weights of int8 with a scale a row.
//
// In      x [rows, k] T; q packed as int8 (packed.cuh); scales [packed rows] f32. The rest as gemv.cu: epilogues, splits
// Out     y [rows, n]: T or f32; T is __half or __nv_bfloat16 (suffix f16, bf16); arguments: LinearArgs (epilogue.cuh)
// Grid    x: packed rows of q / 32; y: splits of k
// Block   8 warps. They take turns at units of 128 columns of k, all 32 rows of q; nothing waits for another warp before
//         the end
// Shared  8 * 8 * 272 bytes, dynamic: a unit of x a warp, in the end the warps' sums
// Limits  rows <= 8; any n, k as gemv.cu
// Cost    reads n k bytes of q once, 128 bytes a thread in flight. Weights are the 16 rows of the multiply, tokens its 8
//         columns. Five instructions turn a word of four integers into operands, a multiply takes eight integers of a
//         lane: 1.75 instructions a weight and lane, 64 registers. (One operation less a word needs weights that are the
//         low bits of a number as they are; 7 bits are all that bf16 has.) Bound by memory
// Numerics operands are exact, q / 128 for bf16, q / 512 for f16: the low bits of a number are the integer itself, in
//         units of the smallest one, as long as subnormal operands of fma.rn.bf16x2 and f16x2 count, as PTX says. A
//         row's scale, times 128 or 512, is applied to its f32 sum. Order of additions as gemv.cu
// Caller  engine/backend/cuda/ops/linear.rs
// Oracle  engine/backend/cpu/matmul on dequantised weights; tests/cuda_ops/linear_quantized.rs

#include "gemv_integers.cuh"

using namespace engine;

#define GEMV(suffix, T)                                                   \
  extern "C" __global__ void __launch_bounds__(kWarps* kWarpThreads, 4)   \
      gemv_int8_##suffix##_r2(const LinearArgs args) {                    \
    gemv_integers<StreamInt8<T>>(args);                                   \
  }

GEMV(bf16, __nv_bfloat16)
GEMV(f16, __half)
