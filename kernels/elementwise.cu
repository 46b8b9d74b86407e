// Sums, products and activations, element by element, in place:
//   add: y += x    mul: y *= x    NAME: y = act(y)    NAME_mul: y = act(y) * x
//   act: silu x / (1 + e^-x); gelu x/2 (1 + erf(x / sqrt 2)); gelu_tanh x/2 (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3)));
//        quick_gelu x / (1 + e^-1.702x); relu max(x, 0)
//
// In      x [rows, width] T; Out y [rows, width] T, also read; rows a stride apart. T is __half or __nv_bfloat16
// Grid    (blocks of rows, blocks of columns) as row_grid of engine/backend/cuda/ops/row_grid.rs makes it: a thread has one
//         piece of one row; rows from *num_rows on are left (num_rows null: every row)
// Block   (pieces of a row, rows), at most 256 threads
// Shared  none
// Limits  _v8: width a multiple of 8, arrays 16-byte aligned, strides multiples of 8; _v1 takes everything
// Cost    each array read once and y written once; up to 30 FLOPs an element. Bound by memory.
// Numerics f32, one rounding to T at the end. 1 + tanh(u) = 2 / (1 + e^-2u), so that four of the five are quotients by
//         1 + an exponential: ex2.approx and a division within 2 ulp. gelu takes erff.
// Caller  engine/backend/cuda/ops/elementwise.rs
// Oracle  engine/backend/cpu/elementwise.rs, activations.rs (tests/cuda_ops/elementwise.rs)

#include "rows.cuh"

using namespace engine;

// Mirrored by ElementwiseArgs in engine/backend/cuda/ops/elementwise.rs. Strides are in elements.
struct ElementwiseArgs {
  const void* x;
  void* y;
  const int* num_rows;
  long long x_stride;
  long long y_stride;
  int rows;
  int width;
};
static_assert(sizeof(ElementwiseArgs) == 48, "size as in Rust");

struct Identity {
  static __device__ __forceinline__ float of(float x) { return x; }
};
// x / (1 + e^-kx). An infinite exponential gives 0, as it should.
__device__ __forceinline__ float gated(float x, float k) { return __fdividef(x, 1.0f + __expf(-k)); }
struct Silu {
  static __device__ __forceinline__ float of(float x) { return gated(x, x); }
};
struct Gelu {
  static __device__ __forceinline__ float of(float x) { return 0.5f * x * (1.0f + erff(x * 0.70710678f)); }
};
struct GeluTanh {
  static __device__ __forceinline__ float of(float x) {
    return gated(x, 1.5957691f * fmaf(0.044715f * x * x, x, x));
  }
};
struct QuickGelu {
  static __device__ __forceinline__ float of(float x) { return gated(x, 1.702f * x); }
};
struct Relu {
  // NaN stays.
  static __device__ __forceinline__ float of(float x) { return x < 0.0f ? 0.0f : x; }
};

enum class Second { kNone, kAdd, kMul };

template <typename T, int kWidth, typename Act, Second kSecond>
__device__ __forceinline__ void elementwise(const ElementwiseArgs& args) {
  using P = Piece<T, kWidth>;
  const RowPiece at = row_piece(args.rows, args.width / kWidth, args.num_rows);
  if (!at.live) return;
  P* y = reinterpret_cast<P*>(static_cast<T*>(args.y) + at.row * args.y_stride) + at.piece;
  const P* x = reinterpret_cast<const P*>(static_cast<const T*>(args.x) + at.row * args.x_stride) + at.piece;
  P out = *y, other;
  if constexpr (kSecond != Second::kNone) other = *x;
#pragma unroll
  for (int e = 0; e < kWidth; ++e) {
    float value = Act::of(to_float(out.elements[e]));
    if constexpr (kSecond == Second::kAdd) value += to_float(other.elements[e]);
    if constexpr (kSecond == Second::kMul) value *= to_float(other.elements[e]);
    out.elements[e] = from_float<T>(value);
  }
  *y = out;
}

#define ELEMENTWISE(name, T, width, act, second)                                                   \
  extern "C" __global__ void __launch_bounds__(kRowThreads, 6) name(const ElementwiseArgs args) {  \
    elementwise<T, width, act, Second::second>(args);                                              \
  }
#define ALL_WIDTHS(name, suffix, T, act, second)        \
  ELEMENTWISE(name##_##suffix##_v8, T, 8, act, second)  \
  ELEMENTWISE(name##_##suffix##_v1, T, 1, act, second)
#define ALL_TYPES(name, act, second)                     \
  ALL_WIDTHS(name, f16, __half, act, second)             \
  ALL_WIDTHS(name, bf16, __nv_bfloat16, act, second)

ALL_TYPES(add, Identity, kAdd)
ALL_TYPES(mul, Identity, kMul)
ALL_TYPES(silu, Silu, kNone)
ALL_TYPES(gelu, Gelu, kNone)
ALL_TYPES(gelu_tanh, GeluTanh, kNone)
ALL_TYPES(quick_gelu, QuickGelu, kNone)
ALL_TYPES(relu, Relu, kNone)
ALL_TYPES(silu_mul, Silu, kMul)
ALL_TYPES(gelu_mul, Gelu, kMul)
ALL_TYPES(gelu_tanh_mul, GeluTanh, kMul)
ALL_TYPES(quick_gelu_mul, QuickGelu, kMul)
ALL_TYPES(relu_mul, Relu, kMul)
