// Rotary position embedding, half rotation, alone and together with the write of keys and values to their pages:
//   angle[t, i] = positions[axis[i]][t] * inv_freq[i]
//   y[t, h, i]        = x[t, h, i] * cos(angle) * scaling - x[t, h, i + half] * sin(angle) * scaling
//   y[t, h, i + half] = x[t, h, i + half] * cos(angle) * scaling + x[t, h, i] * sin(angle) * scaling
// and y = x from element 2 * half of a head on. One axis is the plain form; M-RoPE has three (time, height, width) and
// gives each frequency one of them; the 2-D form of vision towers has two, the frequencies listed once for each.
//
// In      x [tokens, heads, head_dim] T, rows x_stride elements apart; positions [axes, tokens] i32; inv_freq [half] f32;
//         axis [half] i32, null where there is one axis
//         rope_kv: k, v [tokens, kv_heads, head_dim] T; slots [tokens] i32 (page * 16 + offset; negative: not written).
//         x and k are as a product with packed weights leaves them (PackedQkv in engine/backend/cuda/upload.rs): elements
//         i and i + half of a head lie side by side, at 2 i and 2 i + 1
// Out     y as x, may be x itself; rope_kv: in order, not x; the cache [page][K|V][kv_heads][16][head_dim] T, keys rotated
//         T is __nv_bfloat16 or __half (suffix bf16, f16)
// Grid    one block a token; blocks from *num_tokens on do nothing (null: every block has a token)
// Block   a multiple of 32 up to 256 threads; a thread takes four pairs, or four values, at a time
// Shared  8 * half bytes, rounded up: cos and sin of the token, computed once for all heads
// Limits  Vector entries: half, head_dim and strides multiples of 4, pointers 8-byte aligned; rope_kv: head_dim and
//         strides multiples of 8, pointers 16-byte aligned. The others (_scalar) take every size.
// Cost    tokens * (heads [+ 2 kv_heads]) * head_dim * sizeof(T) in and out; bound by memory
// Numerics angles as rotary.cuh; the rotation in f32, one rounding to T
// Caller  engine/backend/cuda/ops/rope.rs
// Oracle  engine/backend/cpu/rope.rs, kv_cache.rs; tests/cuda_ops/rope.rs

#include "common.cuh"
#include "pages.cuh"
#include "rotary.cuh"

using namespace engine;

// Mirrored by RopeArgs in engine/backend/cuda/ops/rope.rs.
struct RopeArgs {
  const void* x;
  void* y;
  const int* positions;
  const float* inv_freq;
  const int* axis;
  const int* num_tokens;
  const void* k;
  const void* v;
  void* cache;
  const int* slots;
  int x_stride;
  int y_stride;
  int k_stride;
  int v_stride;
  int position_stride;  // of axis to axis; 0 where it is *num_tokens
  int heads;
  int kv_heads;
  int head_dim;
  int half;
  float scaling;
};
static_assert(sizeof(RopeArgs) == 120, "size as in Rust");

constexpr int kMaxThreads = 256;

// Four elements: 8 bytes, so that a pair's halves, cos and sin of a thread fit 40 registers.
template <typename T>
struct alignas(8) Four {
  T elements[4];
};

// cos and sin of this block's token, times scaling.
__device__ __forceinline__ void make_table(const RopeArgs& args, int token, float* cosine, float* sine) {
  for (int i = threadIdx.x; i < args.half; i += blockDim.x) {
    const int stride = args.position_stride != 0 ? args.position_stride : *args.num_tokens;
    const int axis = args.axis != nullptr ? args.axis[i] : 0;
    const float2 turn = rotary(args.positions[axis * stride + token], args.inv_freq[i]);
    cosine[i] = turn.x * args.scaling;
    sine[i] = turn.y * args.scaling;
  }
  __syncthreads();
}

// Rotates pairs at..at + 4 of a head; kPairs: of which both elements lie side by side.
template <typename T, bool kPairs>
__device__ __forceinline__ void rotate(const T* x, T* y, int at, int half, const float* cosine, const float* sine) {
  Four<T> a, b;
  if constexpr (kPairs) {
    const Vector<T> pairs = *reinterpret_cast<const Vector<T>*>(x + 2 * at);
#pragma unroll
    for (int e = 0; e < 4; ++e) a.elements[e] = pairs.elements[2 * e], b.elements[e] = pairs.elements[2 * e + 1];
  } else {
    a = *reinterpret_cast<const Four<T>*>(x + at);
    b = *reinterpret_cast<const Four<T>*>(x + half + at);
  }
  const float4 c = *reinterpret_cast<const float4*>(cosine + at);
  const float4 s = *reinterpret_cast<const float4*>(sine + at);
  const float cs[4] = {c.x, c.y, c.z, c.w}, ss[4] = {s.x, s.y, s.z, s.w};
  Four<T> first, second;
#pragma unroll
  for (int e = 0; e < 4; ++e) {
    const float p = to_float(a.elements[e]), q = to_float(b.elements[e]);
    first.elements[e] = from_float<T>(p * cs[e] - q * ss[e]);
    second.elements[e] = from_float<T>(q * cs[e] + p * ss[e]);
  }
  *reinterpret_cast<Four<T>*>(y + at) = first;
  *reinterpret_cast<Four<T>*>(y + half + at) = second;
}

// Rotates `heads` heads from x to y; y_head is the distance of heads in y. With kVector four pairs at a time.
template <typename T, bool kVector, bool kPairs>
__device__ __forceinline__ void rotate_heads(const T* x, T* y, int heads, int y_head, const RopeArgs& args,
                                             const float* cosine, const float* sine) {
  const int per_head = kVector ? args.half / 4 : args.half;
  for (int i = threadIdx.x; i < heads * per_head; i += blockDim.x) {
    const int head = i / per_head, at = i - head * per_head;
    const T* from = x + head * args.head_dim;
    T* to = y + static_cast<long long>(head) * y_head;
    if constexpr (kVector) {
      rotate<T, kPairs>(from, to, at * 4, args.half, cosine, sine);
    } else {
      const float a = to_float(from[kPairs ? 2 * at : at]), b = to_float(from[kPairs ? 2 * at + 1 : at + args.half]);
      to[at] = from_float<T>(a * cosine[at] - b * sine[at]);
      to[at + args.half] = from_float<T>(b * cosine[at] + a * sine[at]);
    }
  }
  const int rest = args.head_dim - 2 * args.half;
  if (rest > 0 && x != y) {
    for (int i = threadIdx.x; i < heads * rest; i += blockDim.x) {
      const int head = i / rest, at = 2 * args.half + i - head * rest;
      y[static_cast<long long>(head) * y_head + at] = x[head * args.head_dim + at];
    }
  }
}

template <typename T, bool kVector, bool kPages>
__device__ __forceinline__ void rope(const RopeArgs& args) {
  extern __shared__ __align__(16) float table[];
  const int token = blockIdx.x;
  if (args.num_tokens != nullptr && token >= *args.num_tokens) return;
  float* sine = table + (args.half + 3) / 4 * 4;
  make_table(args, token, table, sine);
  const T* x = static_cast<const T*>(args.x) + static_cast<long long>(token) * args.x_stride;
  T* y = static_cast<T*>(args.y) + static_cast<long long>(token) * args.y_stride;
  rotate_heads<T, kVector, kPages>(x, y, args.heads, args.head_dim, args, table, sine);
  if constexpr (kPages) {
    const int slot = args.slots[token];
    if (slot < 0) return;
    const int page_head = kPageSize * args.head_dim;
    T* keys = static_cast<T*>(args.cache) + slot_offset(slot, args.kv_heads, args.head_dim);
    T* values = keys + args.kv_heads * page_head;
    const T* k = static_cast<const T*>(args.k) + static_cast<long long>(token) * args.k_stride;
    const T* v = static_cast<const T*>(args.v) + static_cast<long long>(token) * args.v_stride;
    rotate_heads<T, kVector, true>(k, keys, args.kv_heads, page_head, args, table, sine);
    if constexpr (kVector) {
      const int per_head = args.head_dim / 4;
      for (int i = threadIdx.x; i < args.kv_heads * per_head; i += blockDim.x) {
        const int head = i / per_head, at = i - head * per_head;
        *reinterpret_cast<uint2*>(values + head * page_head + at * 4) = *reinterpret_cast<const uint2*>(v + i * 4);
      }
    } else {
      for (int i = threadIdx.x; i < args.kv_heads * args.head_dim; i += blockDim.x) {
        const int head = i / args.head_dim, at = i - head * args.head_dim;
        values[head * page_head + at] = v[i];
      }
    }
  }
}

// Six blocks an SM keep the registers at 40, and the SM full.
#define ROPE_KERNEL(name, ...)                                                                \
  extern "C" __global__ void __launch_bounds__(kMaxThreads, 6) name(const RopeArgs args) { \
    rope<__VA_ARGS__>(args);                                                                  \
  }
#define ROPE(suffix, T)                                        \
  ROPE_KERNEL(rope_##suffix, T, true, false)                   \
  ROPE_KERNEL(rope_##suffix##_scalar, T, false, false)         \
  ROPE_KERNEL(rope_kv_##suffix, T, true, true)                 \
  ROPE_KERNEL(rope_kv_##suffix##_scalar, T, false, true)

ROPE(f16, __half)
ROPE(bf16, __nv_bfloat16)
