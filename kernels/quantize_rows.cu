// Activations to int8 with a scale a row: scale[r] = max_i |x[r, i]| / 127, q[r, i] = round(x[r, i] / scale[r]).
//
// In      x [rows, k] T, x_stride elements from row to row
// Out     q [rows, q_stride] int8, q_stride a multiple of 64 that holds k; columns from k on are zero. Each 16 columns
//         are in the order of the multiplies' operands (packed.cuh): 0, 8, 1, 9, 2, 10, ... 7, 15
//         scales [rows] f32; a row of zeros has scale 0
//         T is __half or __nv_bfloat16 (suffix f16, bf16)
// Grid    one block a row; blocks from *num_rows on do nothing (num_rows null: every block has a row)
// Block   128 threads, each with 16 columns at a time
// Shared  16 bytes
// Limits  any k; q and scales aligned to 16 bytes
// Cost    reads x twice (the second time from cache), writes k bytes a row. Bound by memory
// Numerics division by the scale in f32, rounding to nearest even
// Caller  engine/backend/cuda/ops/quantize_rows.rs
// Oracle  the formula, in tests/cuda_ops/linear_w8a8.rs

#include "mma.cuh"

using namespace engine;

// Mirrored by QuantizeRowsArgs in engine/backend/cuda/ops/quantize_rows.rs.
struct QuantizeRowsArgs {
  const void* x;
  signed char* q;
  float* scales;
  const int* num_rows;
  long long x_stride;
  int k;
  int q_stride;
};
static_assert(sizeof(QuantizeRowsArgs) == 48, "size as in Rust");

constexpr int kThreads = 128;
constexpr int kSpan = 16;  // columns of a thread

template <typename T>
__device__ __forceinline__ void quantize_rows(const QuantizeRowsArgs& args) {
  __shared__ float largest[kThreads / kWarpThreads];
  const int row = blockIdx.x;
  if (args.num_rows != nullptr && row >= *args.num_rows) return;
  const T* x = static_cast<const T*>(args.x) + row * args.x_stride;
  float most = 0.0f;
  for (int i = threadIdx.x; i < args.k; i += kThreads) most = fmaxf(most, fabsf(to_float(x[i])));
#pragma unroll
  for (int offset = kWarpThreads / 2; offset > 0; offset /= 2) {
    most = fmaxf(most, __shfl_xor_sync(kAllLanes, most, offset));
  }
  if (threadIdx.x % kWarpThreads == 0) largest[threadIdx.x / kWarpThreads] = most;
  __syncthreads();
#pragma unroll
  for (int w = 0; w < kThreads / kWarpThreads; ++w) most = fmaxf(most, largest[w]);
  const float scale = most / 127.0f;
  const float inverse = most > 0.0f ? 127.0f / most : 0.0f;
  if (threadIdx.x == 0) args.scales[row] = scale;

  uint4* q = reinterpret_cast<uint4*>(args.q + static_cast<size_t>(row) * args.q_stride);
  for (int span = threadIdx.x; span < args.q_stride / kSpan; span += kThreads) {
    uint32_t words[4];
#pragma unroll
    for (int w = 0; w < 4; ++w) {
      words[w] = 0;
#pragma unroll
      for (int b = 0; b < 4; ++b) {
        const int column = span * kSpan + 2 * w + b % 2 * 8 + b / 2;
        const float v = column < args.k ? to_float(x[column]) : 0.0f;
        words[w] |= static_cast<uint32_t>(__float2int_rn(v * inverse) & 0xff) << (8 * b);
      }
    }
    q[span] = make_uint4(words[0], words[1], words[2], words[3]);
  }
}

extern "C" __global__ void __launch_bounds__(kThreads) quantize_rows_bf16(const QuantizeRowsArgs args) {
  quantize_rows<__nv_bfloat16>(args);
}
extern "C" __global__ void __launch_bounds__(kThreads) quantize_rows_f16(const QuantizeRowsArgs args) {
  quantize_rows<__half>(args);
}
