// RMSNorm and a linear layer in one launch, for m of 1 to 8 rows:
//   s[r]  = 1 / sqrt(mean_i(x[r, i]^2) + eps)
//   y     = r + act((s x g) w^T + b)   or   act((s x g) gate^T) * ((s x g) up^T)
//
// In      x, w, bias, residual as gemv.cu; g, the norm's weight, as [round_up(k, 8)] T divided by a power of two, which
//         follows as an f32: for f16 one that makes the largest |g| at most 1, so that x g cannot overflow
// Out     y as gemv.cu; T is __half or __nv_bfloat16 (suffix f16, bf16); arguments: FusedArgs (qkv.cuh)
// Grid, block  as gemv.cu
// Shared  that of gemv.cu for one row more, which is g's, and 4 bytes a row
// Limits  rows <= 8; any n, k as gemv.cu
// Cost    as gemv.cu, and no launch, no pass over x for the norm. The multiply takes 16 rows, of which x has 8 at most:
//         the other 8 are g, so one ldmatrix gives a lane g beside the elements of x that it scales, two multiplies of
//         pairs and 16 columns. The sum of squares is the diagonal of x x^T, two more tensor-core multiplies for 16
//         columns, whose operands are the registers that are there. Their sums leave room for 64 bytes a thread in
//         flight in 48 registers, 80 KiB a multiprocessor with five blocks. Bound by memory
// Numerics x g is rounded to T, as a norm in a launch of its own rounds its result; squares, mean and root in f32
//         (rsqrt.approx, 2 ulp), s multiplies the f32 sums. In f16 an x g / power below 6e-5 is rounded to a multiple of
//         6e-8. Order of additions as gemv.cu: same bits on every run
// Caller  engine/backend/cuda/ops/fused.rs
// Oracle  engine/backend/cpu/norms.rs and matmul; tests/cuda_ops/norm_linear.rs

#include "gemv.cuh"

using namespace engine;

#define GEMV(suffix, T, TILES)                                                   \
  extern "C" __global__ void __launch_bounds__(kWarps* kWarpThreads, kNormBlocks) \
      gemv_norm_##suffix##_r##TILES(const FusedArgs args) {                      \
    gemv<T, 8, TILES, true>(args.linear, args);                                  \
  }
#define GEMV_TILES(suffix, T) \
  GEMV(suffix, T, 1)          \
  GEMV(suffix, T, 2)

GEMV_TILES(bf16, __nv_bfloat16)
GEMV_TILES(f16, __half)
