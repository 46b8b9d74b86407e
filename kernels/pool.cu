// Fewer, wider or averaged rows from a grid of rows:
//   pixel_shuffle  y[n, r, c] = x[n, s r + 0, s c + 0] | x[n, s r + 0, s c + 1] | ... | x[n, s r + s-1, s c + s-1]
//   average_pool   y[n, r, c] = mean of x[n, s r + i, s c + j] over i, j < s
//
// In      x [images, skip + height * width, channels] T, rows a stride apart; the first `skip` rows of an image (class
//         and register tokens) are passed over
// Out     y [images, height / s * width / s, channels * s * s (shuffle) or channels (pool)] T; with `transposed` the
//         rows of an image go column by column. pixel_shuffle T: any type of 2 bytes (b16); average_pool: __half,
//         __nv_bfloat16 (f16, bf16)
// Grid    (blocks of rows of y, blocks of columns) as row_grid of engine/backend/cuda/ops/row_grid.rs makes it; rows from
//         *num_rows on are left (num_rows null: every row)
// Block   (pieces of a row, rows), at most 256 threads
// Shared  none
// Limits  s divides height and width. _v8: channels a multiple of 8, arrays 16-byte aligned, strides multiples of 8; _v1
//         takes everything
// Cost    every row read once, y written once. Bound by memory.
// Numerics average_pool: sums in f32, row by row of the window, one rounding to T at the end
// Caller  engine/backend/cuda/ops/pool.rs
// Oracle  plain loops in tests/cuda_ops/pool.rs

#include "rows.cuh"

using namespace engine;

// Mirrored by PoolArgs in engine/backend/cuda/ops/pool.rs. Strides are in elements.
struct PoolArgs {
  const void* x;
  void* y;
  const int* num_rows;
  long long x_stride;
  long long y_stride;
  int rows;
  int channels;
  int height;
  int width;
  int scale;
  int skip;
  int transposed;
  int unused;
};
static_assert(sizeof(PoolArgs) == 72, "size as in Rust");

// The row of x at the upper left of the window that row `row` of y stands for.
__device__ __forceinline__ long long window_of(const PoolArgs& args, int row) {
  const int down = args.height / args.scale, across = args.width / args.scale;
  const int image = row / (down * across), within = row % (down * across);
  const int r = args.transposed ? within % down : within / across;
  const int c = args.transposed ? within / down : within % across;
  return static_cast<long long>(image) * (args.skip + args.height * args.width) + args.skip +
         r * args.scale * args.width + c * args.scale;
}

template <int kWidth>
__device__ __forceinline__ void pixel_shuffle(const PoolArgs& args) {
  using P = Piece<unsigned short, kWidth>;
  const int part = args.channels / kWidth;
  const RowPiece at = row_piece(args.rows, part * args.scale * args.scale, args.num_rows);
  if (!at.live) return;
  const int pixel = at.piece / part;
  const long long row = window_of(args, static_cast<int>(at.row)) + pixel / args.scale * args.width + pixel % args.scale;
  const P* x = reinterpret_cast<const P*>(static_cast<const unsigned short*>(args.x) + row * args.x_stride);
  P* y = reinterpret_cast<P*>(static_cast<unsigned short*>(args.y) + at.row * args.y_stride);
  y[at.piece] = x[at.piece % part];
}

template <typename T, int kWidth>
__device__ __forceinline__ void average_pool(const PoolArgs& args) {
  using P = Piece<T, kWidth>;
  const RowPiece at = row_piece(args.rows, args.channels / kWidth, args.num_rows);
  if (!at.live) return;
  const long long first = window_of(args, static_cast<int>(at.row));
  float sums[kWidth];
#pragma unroll
  for (int e = 0; e < kWidth; ++e) sums[e] = 0.0f;
  for (int i = 0; i < args.scale; ++i) {
    for (int j = 0; j < args.scale; ++j) {
      const long long row = first + i * args.width + j;
      const P piece = reinterpret_cast<const P*>(static_cast<const T*>(args.x) + row * args.x_stride)[at.piece];
#pragma unroll
      for (int e = 0; e < kWidth; ++e) sums[e] += to_float(piece.elements[e]);
    }
  }
  const float factor = 1.0f / (args.scale * args.scale);
  P out;
#pragma unroll
  for (int e = 0; e < kWidth; ++e) out.elements[e] = from_float<T>(sums[e] * factor);
  reinterpret_cast<P*>(static_cast<T*>(args.y) + at.row * args.y_stride)[at.piece] = out;
}

// Blocks on a multiprocessor: 40 registers a thread.
constexpr int kBlocks = 6;
#define POOL(name, ...) \
  extern "C" __global__ void __launch_bounds__(kRowThreads, kBlocks) name(const PoolArgs args) { __VA_ARGS__(args); }

POOL(pixel_shuffle_b16_v8, pixel_shuffle<8>)
POOL(pixel_shuffle_b16_v1, pixel_shuffle<1>)
POOL(average_pool_bf16_v8, average_pool<__nv_bfloat16, 8>)
POOL(average_pool_bf16_v1, average_pool<__nv_bfloat16, 1>)
POOL(average_pool_f16_v8, average_pool<__half, 8>)
POOL(average_pool_f16_v1, average_pool<__half, 1>)
