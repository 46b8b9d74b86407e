// Activations to int8 with a scale a row: scale[r] = max_i |x[r, i]| / 127, q[r, i] = round(x[r, i] / scale[r]).
//
// In      x [rows, k] T, x_stride elements from row to row
// Out     q [rows, q_stride] int8, q_stride a multiple of 64 that holds k; columns from k on are zero. Each 16 columns
//         are in the order of the multiplies' operands (packed.cuh): 0, 8, 1, 9, 2, 10, ... 7, 15
//         scales [rows] f32; a row of zeros has scale 0
//         T is __half or __nv_bfloat16 (suffix f16, bf16)
// Grid    one block a row; blocks from *num_rows on do nothing (num_rows null: every block has a row)
// Block   128 threads, each with 8 columns at a time; two neighbours make 16 columns' order of operands
// Shared  16 bytes
// Limits  any k; q aligned to 16 bytes; x so too, and x_stride a multiple of 8, where `vectors` says so
// Cost    reads x twice, 16 bytes a lane (the second time from cache), writes k bytes a row. Bound by memory
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
  int vectors;  // 8 columns of x may be read at once
  int unused;
};
static_assert(sizeof(QuantizeRowsArgs) == 56, "size as in Rust");

constexpr int kThreads = 128;
constexpr int kSpan = 8;  // columns of a thread

// Columns `first`.. of a row as pairs; those from k on are zero and not read.
template <typename T>
__device__ __forceinline__ uint4 load_span(const QuantizeRowsArgs& args, const T* x, int first) {
  if (args.vectors && first + kSpan <= args.k) return *reinterpret_cast<const uint4*>(x + first);
  float v[kSpan];
#pragma unroll
  for (int i = 0; i < kSpan; ++i) v[i] = first + i < args.k ? to_float(x[first + i]) : 0.0f;
  return make_uint4(pack_pair<T>(v[0], v[1]), pack_pair<T>(v[2], v[3]), pack_pair<T>(v[4], v[5]), pack_pair<T>(v[6], v[7]));
}

// The bytes of four columns, the first lowest.
template <typename T>
__device__ __forceinline__ uint32_t quantize(uint32_t low, uint32_t high, float inverse) {
  const float2 a = unpack_pair<T>(low), b = unpack_pair<T>(high);
  const float v[4] = {a.x, a.y, b.x, b.y};
  uint32_t bytes = 0;
#pragma unroll
  for (int i = 0; i < 4; ++i) bytes |= static_cast<uint32_t>(__float2int_rn(v[i] * inverse) & 0xff) << (8 * i);
  return bytes;
}

template <typename T>
__device__ __forceinline__ void quantize_rows(const QuantizeRowsArgs& args) {
  __shared__ float largest[kThreads / kWarpThreads];
  const int row = blockIdx.x, lane = threadIdx.x % kWarpThreads;
  if (args.num_rows != nullptr && row >= *args.num_rows) return;
  const T* x = static_cast<const T*>(args.x) + row * args.x_stride;
  const int spans = args.q_stride / kSpan;
  float most = 0.0f;
  for (int span = threadIdx.x; span < spans; span += kThreads) {
    const uint4 pairs = load_span<T>(args, x, span * kSpan);
    const uint32_t words[4] = {pairs.x, pairs.y, pairs.z, pairs.w};
#pragma unroll
    for (int w = 0; w < 4; ++w) {
      const float2 v = unpack_pair<T>(words[w]);
      most = fmaxf(most, fmaxf(fabsf(v.x), fabsf(v.y)));
    }
  }
#pragma unroll
  for (int offset = kWarpThreads / 2; offset > 0; offset /= 2) {
    most = fmaxf(most, __shfl_xor_sync(kAllLanes, most, offset));
  }
  if (lane == 0) largest[threadIdx.x / kWarpThreads] = most;
  __syncthreads();
#pragma unroll
  for (int w = 0; w < kThreads / kWarpThreads; ++w) most = fmaxf(most, largest[w]);
  const float scale = most / 127.0f;
  const float inverse = most > 0.0f ? 127.0f / most : 0.0f;
  if (threadIdx.x == 0) args.scales[row] = scale;

  // A warp goes round whole, since its lanes exchange what they have. The even lane of two has columns 0..7 and writes
  // 0, 8, .. 3, 11; the odd one has 8..15 and writes 4, 12, .. 7, 15.
  uint2* q = reinterpret_cast<uint2*>(args.q + static_cast<size_t>(row) * args.q_stride);
  const bool odd = lane % 2;
  for (int span = threadIdx.x; span - lane < spans; span += kThreads) {
    uint4 pairs = make_uint4(0, 0, 0, 0);
    if (span < spans) pairs = load_span<T>(args, x, span * kSpan);
    const uint32_t first = quantize<T>(pairs.x, pairs.y, inverse), last = quantize<T>(pairs.z, pairs.w, inverse);
    const uint32_t other = __shfl_xor_sync(kAllLanes, odd ? first : last, 1);
    const uint32_t low = odd ? other : first, high = odd ? last : other;
    if (span < spans) q[span] = make_uint2(__byte_perm(low, high, 0x5140), __byte_perm(low, high, 0x7362));
  }
}

extern "C" __global__ void __launch_bounds__(kThreads) quantize_rows_bf16(const QuantizeRowsArgs args) {
  quantize_rows<__nv_bfloat16>(args);
}
extern "C" __global__ void __launch_bounds__(kThreads) quantize_rows_f16(const QuantizeRowsArgs args) {
  quantize_rows<__half>(args);
}
