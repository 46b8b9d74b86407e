// RMSNorm over the last dimension, alone or after a residual:
//   y[r, i] = s[r, i] / sqrt(mean_i(s[r, i]^2) + eps) * weight[i],  s = x  or  s = x + residual
//
// In      x, residual [rows, hidden] T, rows a stride apart; weight [hidden] f32
// Out     y [rows, hidden] T, may be x; the _add kernels also write s (rounded to T, and normalised from that), which
//         may be x or residual. T is float, __half or __nv_bfloat16 (suffix f32, f16, bf16)
// Grid    one block a row; blocks from *num_rows on do nothing, so that a graph captured for a bucket serves every
//         batch in it (num_rows null: every block has a row)
// Block   a multiple of 32 up to 512 threads, enough for one piece of 4 elements a thread where that suffices; of the
//         widest rows up to 1024
// Shared  32 floats
// Limits  vN kernels: hidden and strides multiples of 4, at most N pieces a thread, all arrays 16-byte aligned. The
//         scalar kernel (v0) takes every hidden and alignment.
// Cost    x (and residual) read once, y (and s) written once, weight from L2; 4 FLOPs an element. Bound by memory.
// Numerics sum of squares, mean, root and product in f32, one rounding to T at the end; rsqrt.approx (2 ulp).
//         Fixed order of additions: same block size, same bits.
// Caller  engine/backend/cuda/ops/norm.rs
// Oracle  engine/backend/cpu/norms.rs (tests/cuda_ops/rmsnorm.rs)

#include "norm.cuh"

using namespace engine;

// The row is held in registers, so it is read once.
template <typename T, int kPieces, bool kAdd>
__device__ __forceinline__ void rmsnorm_pieces(const NormArgs& args) {
  using V = NormPiece<T>;
  __shared__ float partial[kNormWarps];
  if (norm_row_is_idle(args)) return;
  V held[kPieces];
  load_row<T, kPieces, kAdd>(args, held);

  float sum = 0.0f;
#pragma unroll
  for (int v = 0; v < kPieces; ++v) {
#pragma unroll
    for (int e = 0; e < kNormPiece; ++e) {
      const float value = to_float(held[v].elements[e]);
      sum = fmaf(value, value, sum);
    }
  }
  const float scale = rsqrtf(block_sum(sum, partial) / args.hidden + args.eps);

  V* y = reinterpret_cast<V*>(static_cast<T*>(args.y) + blockIdx.x * args.y_stride);
  const int count = args.hidden / kNormPiece;
#pragma unroll
  for (int v = 0; v < kPieces; ++v) {
    const int i = v * blockDim.x + threadIdx.x;
    if (i < count) {
      const float4 w = reinterpret_cast<const float4*>(args.weight)[i];
      const float factors[kNormPiece] = {w.x, w.y, w.z, w.w};
      V out;
#pragma unroll
      for (int e = 0; e < kNormPiece; ++e) {
        out.elements[e] = from_float<T>(to_float(held[v].elements[e]) * scale * factors[e]);
      }
      y[i] = out;
    }
  }
}

// Any size and alignment; the row is read twice.
template <typename T, bool kAdd>
__device__ __forceinline__ void rmsnorm_scalars(const NormArgs& args) {
  __shared__ float partial[kNormWarps];
  if (norm_row_is_idle(args)) return;
  float sum = 0.0f;
  for (int i = threadIdx.x; i < args.hidden; i += blockDim.x) {
    const float value = first_visit<T, kAdd>(args, i);
    sum = fmaf(value, value, sum);
  }
  const float scale = rsqrtf(block_sum(sum, partial) / args.hidden + args.eps);
  T* y = static_cast<T*>(args.y) + blockIdx.x * args.y_stride;
  for (int i = threadIdx.x; i < args.hidden; i += blockDim.x) {
    y[i] = from_float<T>(next_visit<T, kAdd>(args, i) * scale * args.weight[i]);
  }
}

// Three blocks of 512 threads an SM: 40 registers a thread, and on every part enough bytes in flight.
#define RMSNORM_KERNEL(name, body)                                                 \
  extern "C" __global__ void __maxnreg__(40) rmsnorm_##name(const NormArgs args) { \
    body(args);                                                                    \
  }
#define RMSNORM(prefix, suffix, T, add)                            \
  RMSNORM_KERNEL(prefix##suffix##_v0, (rmsnorm_scalars<T, add>))   \
  RMSNORM_KERNEL(prefix##suffix##_v1, (rmsnorm_pieces<T, 1, add>)) \
  RMSNORM_KERNEL(prefix##suffix##_v2, (rmsnorm_pieces<T, 2, add>)) \
  RMSNORM_KERNEL(prefix##suffix##_v4, (rmsnorm_pieces<T, 4, add>))

RMSNORM(, f32, float, false)
RMSNORM(, f16, __half, false)
RMSNORM(, bf16, __nv_bfloat16, false)
RMSNORM(add_, f32, float, true)
RMSNORM(add_, f16, __half, true)
RMSNORM(add_, bf16, __nv_bfloat16, true)
