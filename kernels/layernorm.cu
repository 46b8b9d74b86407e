// LayerNorm over the last dimension, alone or after a residual:
//   y[r, i] = (s[r, i] - mean) / sqrt(var + eps) * weight[i] + bias[i],  s = x  or  s = x + residual
//   mean = mean_i(s[r, i]),  var = mean_i((s[r, i] - mean)^2)
//
// In      x, residual [rows, hidden] T, rows a stride apart; weight, bias [hidden] f32
// Out     y [rows, hidden] T, may be x; the _add kernels also write s (rounded to T, and normalised from that), which
//         may be x or residual. T is float, __half or __nv_bfloat16 (suffix f32, f16, bf16)
// Grid    one block a row; blocks from *num_rows on do nothing (num_rows null: every block has a row)
// Block   a multiple of 32 up to 512 threads, enough for one piece of 4 elements a thread where that suffices; of the
//         widest rows up to 1024
// Shared  64 floats
// Limits  vN kernels: hidden and strides multiples of 4, at most N pieces a thread, all arrays 16-byte aligned. The
//         scalar kernel (v0) takes every hidden and alignment.
// Cost    x (and residual) read once, y (and s) written once, weight and bias from L2; 7 FLOPs an element. Bound by
//         memory.
// Numerics all in f32, the variance from differences to the mean (two passes, over registers), one rounding to T at
//         the end; rsqrt.approx (2 ulp). Fixed order of additions: same block size, same bits.
// Caller  engine/backend/cuda/ops/norm.rs
// Oracle  engine/backend/cpu/norms.rs (tests/cuda_ops/layernorm.rs)

#include "norm.cuh"

using namespace engine;

// The row is held in registers, so it is read once.
template <typename T, int kPieces, bool kAdd>
__device__ __forceinline__ void layernorm_pieces(const NormArgs& args) {
  using V = NormPiece<T>;
  __shared__ float partial[2][kNormWarps];
  if (norm_row_is_idle(args)) return;
  V held[kPieces];
  load_row<T, kPieces, kAdd>(args, held);

  float sum = 0.0f;
#pragma unroll
  for (int v = 0; v < kPieces; ++v) {
#pragma unroll
    for (int e = 0; e < kNormPiece; ++e) sum += to_float(held[v].elements[e]);
  }
  const float mean = block_sum(sum, partial[0]) / args.hidden;

  const int count = args.hidden / kNormPiece;
  float squares = 0.0f;
#pragma unroll
  for (int v = 0; v < kPieces; ++v) {
    if (v * blockDim.x + threadIdx.x < count) {
#pragma unroll
      for (int e = 0; e < kNormPiece; ++e) {
        const float off = to_float(held[v].elements[e]) - mean;
        squares = fmaf(off, off, squares);
      }
    }
  }
  const float scale = rsqrtf(block_sum(squares, partial[1]) / args.hidden + args.eps);

  V* y = reinterpret_cast<V*>(static_cast<T*>(args.y) + blockIdx.x * args.y_stride);
#pragma unroll
  for (int v = 0; v < kPieces; ++v) {
    const int i = v * blockDim.x + threadIdx.x;
    if (i < count) {
      const float4 w = reinterpret_cast<const float4*>(args.weight)[i];
      const float4 b = reinterpret_cast<const float4*>(args.bias)[i];
      const float factors[kNormPiece] = {w.x, w.y, w.z, w.w}, shifts[kNormPiece] = {b.x, b.y, b.z, b.w};
      V out;
#pragma unroll
      for (int e = 0; e < kNormPiece; ++e) {
        const float unit = (to_float(held[v].elements[e]) - mean) * scale;
        out.elements[e] = from_float<T>(fmaf(unit, factors[e], shifts[e]));
      }
      y[i] = out;
    }
  }
}

// Any size and alignment; the row is read three times.
template <typename T, bool kAdd>
__device__ __forceinline__ void layernorm_scalars(const NormArgs& args) {
  __shared__ float partial[2][kNormWarps];
  if (norm_row_is_idle(args)) return;
  float sum = 0.0f;
  for (int i = threadIdx.x; i < args.hidden; i += blockDim.x) sum += first_visit<T, kAdd>(args, i);
  const float mean = block_sum(sum, partial[0]) / args.hidden;
  float squares = 0.0f;
  for (int i = threadIdx.x; i < args.hidden; i += blockDim.x) {
    const float off = next_visit<T, kAdd>(args, i) - mean;
    squares = fmaf(off, off, squares);
  }
  const float scale = rsqrtf(block_sum(squares, partial[1]) / args.hidden + args.eps);
  T* y = static_cast<T*>(args.y) + blockIdx.x * args.y_stride;
  for (int i = threadIdx.x; i < args.hidden; i += blockDim.x) {
    const float unit = (next_visit<T, kAdd>(args, i) - mean) * scale;
    y[i] = from_float<T>(fmaf(unit, args.weight[i], args.bias[i]));
  }
}

// Three blocks of 512 threads an SM: 40 registers a thread, and on every part enough bytes in flight.
#define LAYERNORM_KERNEL(name, body)                                                 \
  extern "C" __global__ void __maxnreg__(40) layernorm_##name(const NormArgs args) { \
    body(args);                                                                      \
  }
#define LAYERNORM(prefix, suffix, T, add)                              \
  LAYERNORM_KERNEL(prefix##suffix##_v0, (layernorm_scalars<T, add>))   \
  LAYERNORM_KERNEL(prefix##suffix##_v1, (layernorm_pieces<T, 1, add>)) \
  LAYERNORM_KERNEL(prefix##suffix##_v2, (layernorm_pieces<T, 2, add>)) \
  LAYERNORM_KERNEL(prefix##suffix##_v4, (layernorm_pieces<T, 4, add>))

LAYERNORM(, f32, float, false)
LAYERNORM(, f16, __half, false)
LAYERNORM(, bf16, __nv_bfloat16, false)
LAYERNORM(add_, f32, float, true)
LAYERNORM(add_, f16, __half, true)
LAYERNORM(add_, bf16, __nv_bfloat16, true)
