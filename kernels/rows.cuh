// A grid over the pieces of rows: which thread has which piece of which row.
//
// Owns: the mapping that row_grid of engine/backend/cuda/ops/row_grid.rs makes launches for. Not here: what is done there.
#pragma once

#include "common.cuh"

namespace engine {

constexpr int kRowThreads = 256;

// Part of a row: one load or store of a thread.
template <typename T, int kWidth>
struct alignas(sizeof(T) * kWidth) Piece {
  T elements[kWidth];
};

struct RowPiece {
  long long row;
  int piece;
  bool live;
};

// Rows lie along grid x (which has room for 2^31 blocks) and block y, pieces along grid y and block x.
__device__ __forceinline__ RowPiece row_piece(int rows, int pieces, const int* num_rows) {
  const int row = blockIdx.x * blockDim.y + threadIdx.y;
  const int piece = blockIdx.y * blockDim.x + threadIdx.x;
  const int limit = num_rows == nullptr ? rows : min(rows, *num_rows);
  return {row, piece, row < limit && piece < pieces};
}

}  // namespace engine
