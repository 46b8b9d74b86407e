// y[m, n] = x[m, k] * w[n, k]^T with an epilogue, for m of 1 to 16: weights stream from memory to registers once.
//
//   linear  y = r + act(x w^T + b)      bias, activation and residual each optional; y is T or f32
//   gated   y = act(x gate^T) * (x up^T)
//
// In      x [rows, k] T, x_stride % 8 == 0, 16-byte aligned; columns from k on are never read
//         w packed (packed.cuh); bias [n] f32; residual [rows, n] T, stride % 4 == 0, may be y
// Out     y [rows, n]: T with a stride of a multiple of 4 elements, or f32 with any
//         T is __half or __nv_bfloat16 (suffix f16, bf16); arguments: LinearArgs (epilogue.cuh)
// Grid    x: packed rows of w / (16 R); y: splits of k. A batch of no rows does nothing
// Block   8 warps. They take turns at units of 16 U columns of k, so a block reads its rows of w front to back; each
//         has a ring of two units of x in shared memory of its own, so nothing waits for another warp before the end
// Shared  max(8 * 2 * rows * 32 U, 8 * rows * 64 R) bytes, dynamic
// Limits  rows <= 16; any n, k within 2^31 elements
// Cost    reads n k of w once, 16 bytes a lane and 128 a thread in flight; x rows k from L2 by every block.
//         Tokens are the 16 rows of the multiply, weights its columns: the words of w are operands as they are, two
//         multiplies and no move a word of 16 bytes. (With tokens as the 8 columns there would be half the multiplies,
//         which are idle anyway, but four moves a word, and a limit of 8 tokens.) Bound by memory
// Numerics products exact, f32 sums in tensor-core order; the eight warps' sums are added in order of warps, those of
//         splits in order of k by the last block to arrive: same bits on every run
// Caller  engine/backend/cuda/ops/linear.rs
// Oracle  engine/backend/cpu/matmul; tests/cuda_ops/linear.rs

#include "gemv.cuh"

using namespace engine;

#define GEMV(suffix, T, TILES, UNIT, BLOCKS)                                                                         \
  extern "C" __global__ void __launch_bounds__(kWarps* kWarpThreads, BLOCKS) gemv_##suffix##_r##TILES(const LinearArgs args) { \
    gemv<Dense<T>, 16, TILES, UNIT>(args);                                                                                      \
  }
#define GEMV_TILES(suffix, T)   \
  GEMV(suffix, T, 1, 8, 4)      \
  GEMV(suffix, T, 2, 4, kWideBlocks)

GEMV_TILES(bf16, __nv_bfloat16)
GEMV_TILES(f16, __half)
