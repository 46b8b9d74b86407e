// y[m, n] = x[m, k] * w[n, k]^T with an epilogue, on tensor cores, for more rows than gemv.cu takes.
//
//   linear  y = r + act(x w^T + b)      bias, activation and residual each optional; y is T or f32
//   gated   y = act(x gate^T) * (x up^T)
//
// In      x [rows, k] T, x_stride % 8 == 0, 16-byte aligned; columns from k on are never read
//         w packed (packed.cuh); bias [n] f32; residual [rows, n] T, stride % 4 == 0, may be y
// Out     y [rows, n]: T with a stride of a multiple of 4 elements, or f32 with any
//         T is __half or __nv_bfloat16 (suffix f16, bf16); arguments: LinearArgs (epilogue.cuh)
// Grid    x: row tiles * column tiles, eight row tiles at a time so that weights are shared in L2; y: splits of k.
//         Tiles from *num_rows on do nothing, so that a graph captured for a bucket serves every batch in it
// Block   one warp a warp tile; name: gemm_<T>_<BM>x<BN>
// Shared  stages of x and w: stages * (BM + BN) * BK * 2 bytes, dynamic
// Limits  every m, n, k >= 1 within 2^31 elements
// Cost    2 m n k FLOPs; x is read once a column tile, w once a row tile (mostly from L2). Bound by tensor cores
//         from m of about 150 (H100) on, by weights below
// Numerics products exact, f32 sums in tensor-core order, k ascending in every tile; epilogue in f32, one rounding to
//         T. With splits, the last block of a tile to arrive adds the parts in order of k: same bits on every run
// Caller  engine/backend/cuda/ops/linear.rs, gated_linear.rs
// Oracle  engine/backend/cpu/matmul; tests/cuda_ops/linear.rs

#include "gemm.cuh"

using namespace engine;

#define GEMM(suffix, T, BM, BN, BK, WM, WN, STAGES, BOUND)  \
  extern "C" __global__ void BOUND                          \
      gemm_##suffix##_##BM##x##BN(const LinearArgs args) {  \
    gemm<Tile<Dense<T>, BM, BN, BK, WM, WN, STAGES>>(args); \
  }

DENSE_TILES(GEMM, bf16, __nv_bfloat16)
DENSE_TILES(GEMM, f16, __half)
