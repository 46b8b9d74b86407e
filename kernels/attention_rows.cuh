// Which rows of queries and which keys a block has, in attention within the segments of a flat batch: for attention.cu
// and attention_short.cu.
//
// Owns: AttentionArgs, the argument of both. Not here: what is computed (attention.cuh).
#pragma once

#include "attention.cuh"

namespace engine {

// Mirrored by AttentionArgs in engine/backend/cuda/ops/attention.rs.
struct AttentionArgs {
  const void* q;
  const void* k;
  const void* v;
  void* out;
  const int* cu_q;
  const int* cu_k;
  const int* num_segments;
  const int* num_rows;
  int max_segments;
  int max_rows;
  int q_stride;
  int k_stride;
  int v_stride;
  int out_stride;
  int head_stride;  // of q, k and v: from head to head; of out it is head_dim
  int group;
  int head_dim;
  float scale_log2;
  float* partial;     // of pieces: one after another for each tile of rows and KV head (attention_pieces.cuh)
  unsigned* arrived;  // one a tile and KV head
};
static_assert(sizeof(AttentionArgs) == 120, "size as in Rust");

// kPieces: keys are cut among gridDim.z blocks.
template <typename Tile, bool kPieces>
__device__ __forceinline__ void attention(const AttentionArgs& args) {
  using T = typename Tile::T;
  extern __shared__ __align__(1024) unsigned char shared[];
  const int segments = args.num_segments != nullptr ? *args.num_segments : args.max_segments;
  // One more segment than there are, of the rows after the last one; it has no keys.
  const int s = find_segment(args.cu_q, segments + 1, args.group, Tile::kRows, blockIdx.x);
  if (s < 0) return;
  const bool real = s < segments;
  const int query = args.cu_q[s];
  const int last_row = real ? args.cu_q[s + 1] : args.num_rows != nullptr ? *args.num_rows : args.max_rows;
  Rows<T> rows;
  rows.rows = (last_row - query) * args.group;
  rows.first = (static_cast<int>(blockIdx.x) - (query * args.group / Tile::kRows + s)) * Tile::kRows;
  if (rows.first >= rows.rows) return;
  const int head = blockIdx.y * args.group;
  rows.head_dim = Tile::kExact ? Tile::kDim : args.head_dim;
  rows.q = static_cast<const T*>(args.q) + static_cast<long long>(head) * args.head_stride;
  rows.q_head = args.head_stride;
  rows.out = static_cast<T*>(args.out) + head * rows.head_dim;
  rows.query = query;
  rows.q_stride = args.q_stride;
  rows.out_stride = args.out_stride;
  rows.group = args.group;
  int key = real ? args.cu_k[s] : 0;
  rows.begin = 0;
  rows.end = real ? args.cu_k[s + 1] - key : 0;
  std::conditional_t<kPieces, Pieces, Whole> pieces;
  if constexpr (kPieces) {
    // Whole tiles of keys, as evenly as they go; a segment without keys is one piece too.
    const int tiles = (rows.end + Tile::kKeys - 1) / Tile::kKeys, blocks = gridDim.z;
    const int most = max((tiles + blocks - 1) / blocks, 1) * Tile::kKeys;
    pieces.count = max((rows.end + most - 1) / most, 1);
    pieces.piece = blockIdx.z;
    if (pieces.piece >= pieces.count) return;
    key += pieces.piece * most;
    rows.end = min(rows.end - pieces.piece * most, most);
    const int tile = blockIdx.x * gridDim.y + blockIdx.y;
    pieces.partial = args.partial + static_cast<long long>(tile) * blocks * kPartialFloats<Tile>;
    pieces.arrived = args.arrived + tile;
  }
  rows.position = 0;
  rows.window = INT_MAX;
  rows.scale_log2 = args.scale_log2;
  RowKeys<Tile> keys;
  const long long kv_head = static_cast<long long>(blockIdx.y) * args.head_stride;
  keys.k = static_cast<const T*>(args.k) + static_cast<long long>(key) * args.k_stride + kv_head;
  keys.v = static_cast<const T*>(args.v) + static_cast<long long>(key) * args.v_stride + kv_head;
  keys.k_stride = args.k_stride * static_cast<int>(sizeof(T));
  keys.v_stride = args.v_stride * static_cast<int>(sizeof(T));
  attend<Tile, false>(rows, keys, shared, pieces);
}

}  // namespace engine
