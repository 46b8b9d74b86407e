// Rows from one place to another, bit for bit:
//   embedding        y[t] = table[ids[t]]
//   embed_merge      y[t] = image_rows[t] < 0 ? table[ids[t]] : slab[image_rows[t]]
//   gather_rows      y[i] = x[rows[i]]
//   scatter_rows     y[rows[i]] = x[i], rows[i] < 0 skipped
//   broadcast_rows   y[i] = x[i % period]
//   concat_segments  for each segment s the rows cu_a[s] .. cu_a[s + 1] of a, then rows cu_b[s] .. cu_b[s + 1] of b
//
// In      tables, x, a, b, slab [.., width] T; ids, image_rows, rows [num_rows] i32; cu_a, cu_b [num_segments + 1] i32
// Out     y [num_rows, width] T (scatter_rows: the slab). Rows a stride apart. T is any type of 2 bytes (b16)
// Grid    (blocks of rows, blocks of columns) as row_grid of engine/backend/cuda/ops/row_grid.rs makes it: a thread has one
//         piece of one row; rows from *num_rows on are left (num_rows null: every row)
// Block   (pieces of a row, rows), at most 256 threads
// Shared  none
// Limits  _v8: width a multiple of 8, arrays 16-byte aligned, strides multiples of 8; _v1 takes everything. Row numbers
//         are trusted: the scheduler has checked them. scatter_rows: no row twice.
// Cost    every row read once and written once, no arithmetic. Bound by memory.
// Numerics none
// Caller  engine/backend/cuda/ops/rows.rs
// Oracle  engine/backend/cpu/gather.rs (tests/cuda_ops/rows.rs)

#include "rows.cuh"

using namespace engine;

// Mirrored by RowsArgs in engine/backend/cuda/ops/rows.rs. Strides are in elements.
struct RowsArgs {
  const void* x;     // table, x or a
  const void* other; // slab or b
  void* y;
  const int* index;        // ids, rows or cu_a
  const int* other_index;  // image_rows or cu_b
  const int* num_rows;
  const int* num_segments;
  long long x_stride;
  long long other_stride;
  long long y_stride;
  int rows;
  int width;
  int segments;  // concat_segments: of the bucket
  int period;    // broadcast_rows
};
static_assert(sizeof(RowsArgs) == 96, "size as in Rust");

// Where a row comes from and goes to.
struct Move {
  const void* from;
  long long from_row;
  long long from_stride;
  long long to_row;
};

struct Embedding {
  static __device__ __forceinline__ Move of(const RowsArgs& a, long long row) {
    return {a.x, a.index[row], a.x_stride, row};
  }
};
struct EmbedMerge {
  static __device__ __forceinline__ Move of(const RowsArgs& a, long long row) {
    const int image_row = a.other_index[row];
    if (image_row >= 0) return {a.other, image_row, a.other_stride, row};
    return {a.x, a.index[row], a.x_stride, row};
  }
};
struct ScatterRows {
  static __device__ __forceinline__ Move of(const RowsArgs& a, long long row) {
    return {a.x, row, a.x_stride, a.index[row]};
  }
};
struct BroadcastRows {
  static __device__ __forceinline__ Move of(const RowsArgs& a, long long row) {
    return {a.x, static_cast<int>(row) % a.period, a.x_stride, row};
  }
};
struct ConcatSegments {
  // The segment of an output row: the last one that starts at or before it and is not empty.
  static __device__ __forceinline__ Move of(const RowsArgs& a, long long row) {
    const int segments = a.num_segments == nullptr ? a.segments : min(a.segments, *a.num_segments);
    const int first_a = a.index[0], first_b = a.other_index[0];
    const int base = first_a + first_b;
    int low = 0, high = segments;  // starts(low) <= row < starts(high), starts(s) = cu_a[s] + cu_b[s] - base
    while (high - low > 1) {
      const int middle = (low + high) / 2;
      if (a.index[middle] + a.other_index[middle] - base <= row) {
        low = middle;
      } else {
        high = middle;
      }
    }
    const int begin_a = a.index[low], begin_b = a.other_index[low], end_a = a.index[low + 1];
    const long long within = row - (begin_a + begin_b - base);
    if (within < end_a - begin_a) return {a.x, begin_a + within, a.x_stride, row};
    return {a.other, begin_b + within - (end_a - begin_a), a.other_stride, row};
  }
};

template <int kWidth, typename Which>
__device__ __forceinline__ void move_rows(const RowsArgs& args) {
  using P = Piece<unsigned short, kWidth>;
  const RowPiece at = row_piece(args.rows, args.width / kWidth, args.num_rows);
  if (!at.live) return;
  const Move move = Which::of(args, at.row);
  if (move.to_row < 0) return;
  const P* from = reinterpret_cast<const P*>(static_cast<const unsigned short*>(move.from) +
                                             move.from_row * move.from_stride);
  P* to = reinterpret_cast<P*>(static_cast<unsigned short*>(args.y) + move.to_row * args.y_stride);
  to[at.piece] = from[at.piece];
}

#define MOVE_ROWS(name, which)                                                                                 \
  extern "C" __global__ void __launch_bounds__(kRowThreads, 6) name##_b16_v8(const RowsArgs args) {            \
    move_rows<8, which>(args);                                                                                 \
  }                                                                                                            \
  extern "C" __global__ void __launch_bounds__(kRowThreads, 6) name##_b16_v1(const RowsArgs args) {            \
    move_rows<1, which>(args);                                                                                 \
  }

// gather_rows is embedding by another name.
MOVE_ROWS(embedding, Embedding)
MOVE_ROWS(embed_merge, EmbedMerge)
MOVE_ROWS(scatter_rows, ScatterRows)
MOVE_ROWS(broadcast_rows, BroadcastRows)
MOVE_ROWS(concat_segments, ConcatSegments)
