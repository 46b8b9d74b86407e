// y[m, n] = x[m, k] * ((q[n, k] - zero[n, k / group]) * scale[n, k / group])^T with an epilogue, for m of 1 to 8:
// weights of int4 in groups of columns.
//
// In      x [rows, k] T; q packed as int4 (packed.cuh); scales [ceil(k / group), packed rows] f16; offsets of the same
//         shape, of the entries z alone (in g a zero is 8); group 32, 64 or a multiple of 128 (suffix 128). The rest as
//         gemv.cu: epilogues, splits
// Out     y [rows, n]: T or f32; T is __half or __nv_bfloat16 (suffix f16, bf16); arguments: LinearArgs (epilogue.cuh)
// Grid, block  as gemv_int8.cu with 64 packed rows a block
// Shared  35 to 43 KiB, dynamic: of a warp a unit of x, the totals of its four tiles (16 registers less), scales and
//         offsets of a unit's groups
// Limits  rows <= 8; any n, k as gemv.cu
// Cost    reads n k / 2 bytes of q once, 128 bytes a thread in flight, 2 n k / group of scales. As gemv_int8.cu, with
//         seven instructions a word of eight integers: base + q is the low bits of a number (128 + q for bf16, 1024 + q
//         for f16), and base + zero times the sum of x, a tensor-core multiply a step for all four tiles, is taken from
//         a group's sum. For groups of 128 and more 1.7 instructions a weight and lane (1.8 with offsets), 64 registers.
//         Bound by memory
// Numerics products of x and base + q are exact; a group's f32 sum starts from -(base + zero) times its sum of x, so what
//         is lost is 2^-24 of base times the sum of |x|, 1e-5 of a typical result; it is multiplied by its scale and
//         added in f32: no weight is rounded. Order of additions as gemv.cu
// Caller  engine/backend/cuda/ops/linear.rs
// Oracle  engine/backend/cpu/matmul on dequantised weights; tests/cuda_ops/linear_quantized.rs

#include "gemv_integers.cuh"

using namespace engine;

// Small groups take more than the 64 registers that four blocks leave.
#define GEMV(suffix, T, GROUP, NAME, OFFSETS)                                                              \
  extern "C" __global__ void __launch_bounds__(kWarps* kWarpThreads, GROUP == 128 ? 4 : 3)                  \
      gemv_int4_##suffix##_##NAME##GROUP(const LinearArgs args) {                                          \
    gemv_integers<StreamInt4<T>, GROUP / kTileK, OFFSETS>(args);                                           \
  }
#define GEMV_GROUPS(suffix, T) \
  GEMV(suffix, T, 128, g, false) \
  GEMV(suffix, T, 64, g, false)  \
  GEMV(suffix, T, 32, g, false)  \
  GEMV(suffix, T, 128, z, true)  \
  GEMV(suffix, T, 64, z, true)   \
  GEMV(suffix, T, 32, z, true)

GEMV_GROUPS(bf16, __nv_bfloat16)
GEMV_GROUPS(f16, __half)
