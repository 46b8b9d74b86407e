// y[m, n] = x[m, k] * w[n, k]^T with an epilogue, for m of 1 to 16: weights stream from memory to registers once.
//
//   linear  y = r + act(x w^T + b)      bias, activation and residual each optional; y is T or f32
//   gated   y = act(x gate^T) * (x up^T)
//
// In      x [rows, k] T, x_stride % 8 == 0, 16-byte aligned; columns from k on are never read
//         w packed (packed.cuh); bias [n] f32; residual [rows, n] T, stride % 4 == 0, may be y
// Out     y [rows, n]: T with a stride of a multiple of 4 elements, or f32 with any
//         T is __half or __nv_bfloat16 (suffix f16, bf16); arguments: LinearArgs (epilogue.cuh)
// Grid    x: packed rows of w / 16 R, R the tiles of a block (suffix rR; m16 has two); y: splits of k. A batch of no
//         rows does nothing
// Block   8 warps, each with one tile of w. The R warps of a part of k share two units of 64 columns of x in shared
//         memory, and wait for no other; the 8 / R parts take units in turn, so a block reads its rows of w front to back
// Shared  8 / R * 2 * (8 or 16) * 144 bytes, dynamic: at most 18 KiB, so that five blocks fit everywhere
// Limits  rows <= 8, of m16 <= 16; any n, k: packed n times k within 2^31
// Cost    reads n k of w once, 16 bytes a lane and 96 a thread in flight; x rows k from L2 by every block.
//         Tokens are the 16 rows of the multiply, weights its columns: the words of w are operands as they are, two
//         multiplies and no move a word of 16 bytes. (With tokens as the 8 columns there would be half the multiplies,
//         which are idle anyway, but four moves a word.) A step of 16 columns is a load, an ldmatrix and two multiplies, a
//         unit has 13 to 17 instructions besides: 1.05 to 1.2 a weight and lane. 48 registers: words in flight 24,
//         sums 8, x 4. Bound by memory
// Numerics products exact, f32 sums in tensor-core order; the parts' sums are added in order of parts, those of
//         splits in order of k by the last block to arrive: same bits on every run
// Caller  engine/backend/cuda/ops/linear.rs
// Oracle  engine/backend/cpu/matmul; tests/cuda_ops/linear.rs

#include "gemv.cuh"

using namespace engine;

#define GEMV(suffix, T, NAME, ROWS, TILES, BLOCKS)                                          \
  extern "C" __global__ void __launch_bounds__(kWarps* kWarpThreads, BLOCKS)                \
      gemv_##suffix##_##NAME(const LinearArgs args) {                                       \
    gemv<T, ROWS, TILES>(args);                                                             \
  }
#define GEMV_ALL(suffix, T)    \
  GEMV(suffix, T, r1, 8, 1, 5) \
  GEMV(suffix, T, r2, 8, 2, 5) \
  GEMV(suffix, T, m16, 16, 2, 4)

GEMV_ALL(bf16, __nv_bfloat16)
GEMV_ALL(f16, __half)
