// What several kernels share: 16-byte vectors of any element type, and a sum over a block.
//
// Owns: nothing. Not here: anything that only one kernel needs.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

namespace engine {

__device__ __forceinline__ float to_float(float v) { return v; }
__device__ __forceinline__ float to_float(__half v) { return __half2float(v); }
__device__ __forceinline__ float to_float(__nv_bfloat16 v) { return __bfloat162float(v); }

// Rounds to nearest even.
template <typename T>
__device__ __forceinline__ T from_float(float v);
template <>
__device__ __forceinline__ float from_float<float>(float v) { return v; }
template <>
__device__ __forceinline__ __half from_float<__half>(float v) { return __float2half_rn(v); }
template <>
__device__ __forceinline__ __nv_bfloat16 from_float<__nv_bfloat16>(float v) { return __float2bfloat16_rn(v); }

// 16 bytes: one load or store of a thread, a quarter of a 64-byte request of four.
template <typename T>
struct alignas(16) Vector {
  static constexpr int kElements = 16 / sizeof(T);
  T elements[kElements];
};

constexpr int kWarpThreads = 32;

// The sum of `value` over the block, in every thread. The order of additions depends on the block's size alone, so
// equal inputs give equal bits. `partial` is shared memory of one float a warp; a barrier lies between writing and
// reading it, so a second use needs a barrier of the caller before it.
__device__ __forceinline__ float block_sum(float value, float* partial) {
#pragma unroll
  for (int offset = kWarpThreads / 2; offset > 0; offset /= 2) {
    value += __shfl_xor_sync(0xffffffffu, value, offset);
  }
  const int warps = blockDim.x / kWarpThreads;
  if (threadIdx.x % kWarpThreads == 0) partial[threadIdx.x / kWarpThreads] = value;
  __syncthreads();
  float sum = 0.0f;
  for (int w = 0; w < warps; ++w) sum += partial[w];
  return sum;
}

}  // namespace engine
