// RMSNorm over the last dimension: y[r, i] = x[r, i] / sqrt(mean_i(x[r, i]^2) + eps) * weight[i]
//
// In      x [rows, hidden] T, rows x_stride elements apart; weight [hidden] f32
// Out     y [rows, hidden] T, rows y_stride elements apart; may be x itself
//         T is float, __half or __nv_bfloat16 (suffix f32, f16, bf16)
// Grid    one block a row; blocks from *num_rows on do nothing, so that a graph captured for a bucket serves every
//         batch in it (num_rows null: every block has a row)
// Block   a multiple of 32 up to 256 threads, enough for one vector a thread where that suffices
// Shared  8 floats
// Limits  vN kernels: hidden a multiple of 16 / sizeof(T) and at most N vectors a thread; x, y and weight 16-byte
//         aligned, strides multiples of 16 / sizeof(T). The scalar kernel (v0) takes every hidden and alignment.
// Cost    reads and writes rows * hidden * sizeof(T) once each, weight from L2; 4 FLOPs an element. Bound by memory.
// Numerics sum of squares, mean, root and product in f32, one rounding to T at the end; rsqrt.approx (2 ulp).
//         Fixed order of additions: same block size, same bits.
// Caller  engine/backend/cuda/ops/rmsnorm.rs
// Oracle  engine/backend/cpu/norms.rs; tests/cuda_kernels.rs compares with float64

#include "common.cuh"

using namespace engine;

// Mirrored by RmsNormArgs in engine/backend/cuda/ops/rmsnorm.rs.
struct RmsNormArgs {
  const void* x;
  const float* weight;
  void* y;
  const int* num_rows;
  long long x_stride;
  long long y_stride;
  int hidden;
  float eps;
};
static_assert(sizeof(RmsNormArgs) == 56, "size as in Rust");

constexpr int kMaxThreads = 256;
// Five blocks an SM keep every variant at 48 registers without spills: weights are loaded late rather than held, and
// 5 * 256 threads with up to 64 bytes each in flight are several times what the memory of any part needs.
constexpr int kMinBlocks = 5;

// kVectors vectors a thread are held in registers, so x is read once.
template <typename T, int kVectors>
__device__ __forceinline__ void rmsnorm_vectors(const RmsNormArgs& args) {
  using V = Vector<T>;
  __shared__ float partial[kMaxThreads / kWarpThreads];
  const int row = blockIdx.x;
  if (args.num_rows != nullptr && row >= *args.num_rows) return;
  const V* x = reinterpret_cast<const V*>(static_cast<const T*>(args.x) + row * args.x_stride);
  V* y = reinterpret_cast<V*>(static_cast<T*>(args.y) + row * args.y_stride);
  const int count = args.hidden / V::kElements;

  V held[kVectors];
  float sum = 0.0f;
#pragma unroll
  for (int v = 0; v < kVectors; ++v) {
    const int i = v * blockDim.x + threadIdx.x;
    if (i < count) {
      held[v] = x[i];
#pragma unroll
      for (int e = 0; e < V::kElements; ++e) {
        const float value = to_float(held[v].elements[e]);
        sum = fmaf(value, value, sum);
      }
    }
  }
  const float scale = rsqrtf(block_sum(sum, partial) / args.hidden + args.eps);

#pragma unroll
  for (int v = 0; v < kVectors; ++v) {
    const int i = v * blockDim.x + threadIdx.x;
    if (i < count) {
      V out;
#pragma unroll
      for (int part = 0; part < V::kElements / 4; ++part) {
        const float4 w = reinterpret_cast<const float4*>(args.weight)[i * (V::kElements / 4) + part];
        const float factors[4] = {w.x, w.y, w.z, w.w};
#pragma unroll
        for (int e = 0; e < 4; ++e) {
          out.elements[part * 4 + e] = from_float<T>(to_float(held[v].elements[part * 4 + e]) * scale * factors[e]);
        }
      }
      y[i] = out;
    }
  }
}

// Any size and alignment; x is read twice.
template <typename T>
__device__ __forceinline__ void rmsnorm_scalars(const RmsNormArgs& args) {
  __shared__ float partial[kMaxThreads / kWarpThreads];
  const int row = blockIdx.x;
  if (args.num_rows != nullptr && row >= *args.num_rows) return;
  const T* x = static_cast<const T*>(args.x) + row * args.x_stride;
  T* y = static_cast<T*>(args.y) + row * args.y_stride;
  float sum = 0.0f;
  for (int i = threadIdx.x; i < args.hidden; i += blockDim.x) {
    const float value = to_float(x[i]);
    sum = fmaf(value, value, sum);
  }
  const float scale = rsqrtf(block_sum(sum, partial) / args.hidden + args.eps);
  for (int i = threadIdx.x; i < args.hidden; i += blockDim.x) {
    y[i] = from_float<T>(to_float(x[i]) * scale * args.weight[i]);
  }
}

#define RMSNORM_KERNEL(name, body)                                                                            \
  extern "C" __global__ void __launch_bounds__(kMaxThreads, kMinBlocks) rmsnorm_##name(const RmsNormArgs args) { \
    body(args);                                                                                               \
  }
#define RMSNORM(suffix, T)                                      \
  RMSNORM_KERNEL(suffix##_v0, rmsnorm_scalars<T>)               \
  RMSNORM_KERNEL(suffix##_v1, (rmsnorm_vectors<T, 1>))          \
  RMSNORM_KERNEL(suffix##_v2, (rmsnorm_vectors<T, 2>))          \
  RMSNORM_KERNEL(suffix##_v4, (rmsnorm_vectors<T, 4>))

RMSNORM(f32, float)
RMSNORM(f16, __half)
RMSNORM(bf16, __nv_bfloat16)
