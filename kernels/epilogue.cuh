// What linear kernels do with a sum before it is stored: bias, activation, gate, residual, rounding.
//
// Owns: LinearArgs, the argument of every linear kernel. Not here: products (gemm.cu, gemv.cu).
#pragma once

#include "meeting.cuh"
#include "mma.cuh"

namespace engine {

enum LinearFlags : int {
  kActivate = 1,    // y = act(x w^T + b)
  kGated = 2,       // y = act(gate) * up, w packed as gate and up in turn (packed.cuh); no bias, no residual, y is T
  kFloatOutput = 4, // y is f32
  kHeadMajor = 8    // y is [n / head_dim][rows][head_dim] T: heads head_stride elements apart, their rows y_stride
};

// act(v) = v * sigmoid(v * P(v^2)), P a polynomial in min(v^2, limit). Silu, quick gelu and the tanh form of gelu are
// exactly of this form, relu is its limit, and the erf form is one within 7e-6 (2e-5 relative for v > 0). So every
// activation is one straight run of a dozen instructions, with no branch for which.
// `c` holds the coefficients of P times -log2(e), from the constant one on.
struct SigmoidForm {
  float limit;
  float c[6];
};

__device__ __forceinline__ float activate(float v, const SigmoidForm& form) {
  const float s = fminf(v * v, form.limit);
  float p = form.c[5];
#pragma unroll
  for (int i = 4; i >= 0; --i) p = fmaf(p, s, form.c[i]);
  return __fdividef(v, 1.0f + exp2_approx(v * p));
}

// Mirrored by LinearArgs in engine/backend/cuda/ops/linear.rs.
struct LinearArgs {
  const void* x;         // [rows, k] T
  const void* w;         // packed.cuh
  const void* scales;    // of int8: [packed rows] f32; of int4: [groups, packed rows] f16
  const void* offsets;   // of int4: [groups, packed rows] T, minus (base + zero point) (packed.cuh); null: zero is 8
  const float* x_scales; // of int8 x: [rows]
  const float* bias;     // [n], or null
  const void* residual;  // [rows, n] T, or null; may be y
  void* y;               // [rows, n] T or f32
  float* partial;        // of splits > 1: [splits, rows of tiles, n of tiles] f32, in the order of fragments
  unsigned* arrived;     // of splits > 1: one a tile, zero before the launch and after it
  const int* num_rows;   // rows of this batch, at most `rows`; null: `rows`
  int rows;              // of the bucket
  int n;                 // features of y
  int k;
  int n_tiles;           // of w: packed rows / 16
  int k_tiles;           // of w: packed columns / 16
  int x_stride;          // elements from row to row
  int residual_stride;
  int y_stride;
  int splits;            // parts of k, each a block's
  int flags;             // LinearFlags
  SigmoidForm activation;
  int group;             // of int4: columns with one scale: 32, 64 or a multiple of 128
  int head_dim;          // of kHeadMajor, a multiple of 4
  int head_stride;
};
static_assert(sizeof(LinearArgs) == 168, "size as in Rust");

__device__ __forceinline__ int live_rows(const LinearArgs& args) {
  return args.num_rows == nullptr ? args.rows : min(*args.num_rows, args.rows);
}

// From a thread's four sums of a row, neighbouring packed columns of w from `column` on (column % 4 == 0), to y: four
// features, or two where each is a gate and its up. kScaled: sums are of int8 weights, which have a scale a
// row; kScaledRows: of int8 activations too.
template <typename T, bool kScaled, bool kScaledRows>
struct Epilogue {
  float4 scale;
  float4 bias;  // the same for every row
  int col;      // feature of y
  int count;    // features from col on that y has, 0..4
  int place;    // elements from the start of a row of y to them

  __device__ __forceinline__ Epilogue(const LinearArgs& args, int column) {
    const bool gated = args.flags & kGated;
    col = gated ? column / 2 : column;
    count = min(max(args.n - col, 0), gated ? 2 : 4);
    place = args.flags & kHeadMajor ? col / args.head_dim * args.head_stride + col % args.head_dim : col;
    if constexpr (kScaled) {
      if (count > 0) scale = *reinterpret_cast<const float4*>(static_cast<const float*>(args.scales) + column);
    }
    bias = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
    if (args.bias != nullptr) {
      if (count == 4) {
        bias = *reinterpret_cast<const float4*>(args.bias + col);
      } else {
        if (count > 0) bias.x = args.bias[col];
        if (count > 1) bias.y = args.bias[col + 1];
        if (count > 2) bias.z = args.bias[col + 2];
      }
    }
  }

  // A sum of products with the scale of its weights.
  __device__ __forceinline__ float4 scaled(float4 v) const {
    if constexpr (kScaled) v = make_float4(v.x * scale.x, v.y * scale.y, v.z * scale.z, v.w * scale.w);
    return v;
  }

  __device__ __forceinline__ float4 biased(float4 v) const {
    return make_float4(v.x + bias.x, v.y + bias.y, v.z + bias.z, v.w + bias.w);
  }

  __device__ __forceinline__ void store(const LinearArgs& args, int row, float4 v) const {
    if (count == 0) return;
    v = scaled(v);
    if constexpr (kScaledRows) {
      const float s = args.x_scales[row];
      v = make_float4(v.x * s, v.y * s, v.z * s, v.w * s);
    }
    v = biased(v);
    if (args.flags & kGated) {
      const float first = activate(v.x, args.activation) * v.y, second = activate(v.z, args.activation) * v.w;
      T* y = static_cast<T*>(args.y) + static_cast<size_t>(row) * args.y_stride + col;
      if (count == 2) {
        *reinterpret_cast<uint32_t*>(y) = pack_pair<T>(first, second);
      } else {
        y[0] = from_float<T>(first);
      }
      return;
    }
    if (args.flags & kActivate) {
      v = make_float4(activate(v.x, args.activation), activate(v.y, args.activation), activate(v.z, args.activation),
                      activate(v.w, args.activation));
    }
    if (args.residual != nullptr) {
      const T* r = static_cast<const T*>(args.residual) + static_cast<size_t>(row) * args.residual_stride + col;
      if (count == 4) {
        const uint2 pairs = *reinterpret_cast<const uint2*>(r);
        const float2 low = unpack_pair<T>(pairs.x), high = unpack_pair<T>(pairs.y);
        v = make_float4(v.x + low.x, v.y + low.y, v.z + high.x, v.w + high.y);
      } else {
        v.x += to_float(r[0]);
        if (count > 1) v.y += to_float(r[1]);
        if (count > 2) v.z += to_float(r[2]);
      }
    }
    const size_t at = static_cast<size_t>(row) * args.y_stride + place;
    if (args.flags & kFloatOutput) {
      put<float>(static_cast<float*>(args.y) + at, v, count == 4 && args.y_stride % 4 == 0);
    } else {
      put<T>(static_cast<T*>(args.y) + at, v, count == 4);
    }
  }

  template <typename O>
  __device__ __forceinline__ void put(O* y, float4 v, bool vector) const {
    if (vector) {
      if constexpr (sizeof(O) == 4) {
        *reinterpret_cast<float4*>(y) = v;
      } else {
        *reinterpret_cast<uint2*>(y) = make_uint2(pack_pair<O>(v.x, v.y), pack_pair<O>(v.z, v.w));
      }
    } else {
      y[0] = from_float<O>(v.x);
      if (count > 1) y[1] = from_float<O>(v.y);
      if (count > 2) y[2] = from_float<O>(v.z);
      if (count > 3) y[3] = from_float<O>(v.w);
    }
  }
};

}  // namespace engine
