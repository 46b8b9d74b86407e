// The tile loop of fused attention: rows of queries against their keys, 64 (or 32) keys at a time, with an online
// softmax; the scores never leave registers. Shared by attention.cu, attention_short.cu (keys in rows) and
// paged_prefill.cu (keys in pages).
//
// A row is one query and one of the `group` query heads that share a KV head; the rows of a segment are numbered query
// by query, heads within. A block takes kRows rows of one segment and KV head, so that keys and values are read once
// for the whole group.
//
// In      a Keys object that knows where key i of the segment lies (attention_keys.cuh)
// Owns    shared memory of a block: Q rows, then two buffers of K and V rows
// Not here who has which segment (attention_rows.cuh, paged_prefill.cu), sums over blocks (attention_pieces.cuh), one
//         query per sequence over long contexts (paged_decode.cu)
//
// Numerics scores, softmax and sums in f32 (ex2.approx); probabilities rounded to T for the second product; one
//         rounding at the end. Fixed order: equal inputs give equal bits.
#pragma once

#include <climits>
#include <type_traits>

#include "attention_keys.cuh"
#include "attention_pieces.cuh"

namespace engine {

// Sizes of a block. kExact: head_dim is kDim and rows are 16-byte aligned; otherwise head_dim is at most kDim and
// anything, the rest of a row is filled with zeros.
template <typename T_, int kDim_, bool kExact_, int kWarps_, int kRowTiles_, int kKeys_>
struct AttentionTile {
  using T = T_;
  using Layout = RowLayout<kDim_>;
  static constexpr int kDim = kDim_;
  static constexpr bool kExact = kExact_;
  static constexpr int kWarps = kWarps_;
  static constexpr int kThreads = kWarps * kWarpThreads;
  static constexpr int kRowTiles = kRowTiles_;  // m16 tiles of a warp
  static constexpr int kWarpRows = 16 * kRowTiles;
  static constexpr int kRows = kWarps * kWarpRows;
  static constexpr int kKeys = kKeys_;
  static constexpr int kBufferBytes = kKeys * Layout::kRowBytes;
  static constexpr int kTileBytes = kRows * Layout::kRowBytes + 4 * kBufferBytes;
  static constexpr int kSharedBytes = kTileBytes + 16;
  static_assert(!kExact || kDim % 8 == 0, "exact rows are whole chunks");
  static_assert(kExact || kDim % 16 == 0, "padded rows are whole k steps");
};

// The segment that tile `slot` of a flat numbering belongs to. Segment s has the slots from begin[s] * group / rows + s
// on: at least as many as it has tiles, known without a list. 32 segments are looked at at a time.
// Returns the last segment that does not start after the slot; -1 where the first one does.
__device__ __forceinline__ int find_segment(const int* begin, int segments, int group, int rows, int slot) {
  const int lane = threadIdx.x % kWarpThreads;
  int low = 0;
  while (segments > 0) {
    const int stride = (segments + kWarpThreads - 1) / kWarpThreads;
    const int s = low + lane * stride;
    const bool at_or_before = lane * stride < segments && begin[s] * group / rows + s <= slot;
    const int found = __popc(__ballot_sync(kAllLanes, at_or_before)) - 1;
    if (found < 0) return -1;
    low += found * stride;
    if (stride == 1) break;
    segments = min(stride, segments - found * stride);
  }
  return low;
}

// Probabilities are 2^(score - shift) up to a common factor, with shift near the largest score of a row so far. It moves,
// and what has been added up is scaled, only when a score exceeds it by more than this: the factor is exact either way,
// sums stay far from the limits of f32, 2^8 far from that of f16.
constexpr float kSlack = 8.0f;
// Before the first score: low, and a number, so that rows that have seen no key need no case of their own.
constexpr float kNoShift = -1e30f;

// What a block does.
template <typename T>
struct Rows {
  const T* q;       // row 0 of all, first head of the group
  T* out;           // its place in the result
  int q_stride;     // elements from query to query
  int q_head;       // elements from head to head of the group
  int out_stride;
  int query;        // first query of the segment, among the rows of q
  int first;        // first row of the block
  int rows;         // rows of the segment
  int group;        // heads that share keys
  int head_dim;
  int begin, end;   // keys that any row of the block sees
  int position;     // of query 0, where keys after a query are hidden from it
  int window;       // latest keys that a query sees, its own included
  float scale_log2; // scale * log2(e)
};

// Computes a block's rows. `shared` has Tile::kSharedBytes, aligned to 1024. `pieces` is Pieces, or Whole where a block
// sees all keys.
template <typename Tile, bool kCausal, typename Keys, typename Parts>
__device__ __forceinline__ void attend(const Rows<typename Tile::T>& rows, Keys& keys, unsigned char* shared,
                                       const Parts& pieces) {
  using T = typename Tile::T;
  using Layout = typename Tile::Layout;
  constexpr int kRowTiles = Tile::kRowTiles;
  constexpr int kSteps = Tile::kDim / 16;         // k16 steps of q k^T
  constexpr bool kTail = Tile::kDim % 16 != 0;    // and a k8 one
  constexpr int kScoreTiles = Tile::kKeys / 8;    // n8 tiles of scores
  constexpr int kOutTiles = Tile::kDim / 8;       // n8 tiles of the result
  const int lane = threadIdx.x % kWarpThreads;
  const int warp = warp_index();
  const uint32_t q_base = shared_address(shared);
  const uint32_t k_base = q_base + Tile::kRows * Layout::kRowBytes;
  const uint32_t v_base = k_base + 2 * Tile::kBufferBytes;

  // Q rows; those past the segment's end repeat its last one and are not stored.
  for (int c = threadIdx.x; c < Tile::kRows * Layout::kChunks; c += Tile::kThreads) {
    const int row = c / Layout::kChunks, chunk = c % Layout::kChunks;
    const int r = min(rows.first + row, rows.rows - 1);
    const int query = r / rows.group;
    const T* source = rows.q + static_cast<long long>(rows.query + query) * rows.q_stride +
                      (r - query * rows.group) * rows.q_head;
    copy_chunk<Tile>(q_base + Layout::offset(row, chunk), source, chunk, rows.head_dim);
  }
  // What is needed again at the end waits in shared memory: in the loop every register counts.
  volatile int* kept = reinterpret_cast<int*>(shared + Tile::kTileBytes);
  if (threadIdx.x == 0) {
    kept[0] = rows.query;
    kept[1] = rows.first;
    kept[2] = rows.rows;
  }
  // Keys by tiles, in order: the order of a row's sums must not depend on which rows are in its block. Tiles that not
  // every row of the block sees whole, first and last ones, take masks and bounds; so does the one before the last ones,
  // for the copy that it starts. The loop over the rest has neither.
  const int first_tile = rows.begin / Tile::kKeys;
  const int end_tile = (rows.end + Tile::kKeys - 1) / Tile::kKeys;
  int free_begin = rows.begin, free_end = rows.end;
  if constexpr (kCausal) {
    const int last = min(rows.first + Tile::kRows, rows.rows) - 1;
    free_end = min(free_end, rows.position + rows.first / rows.group + 1);
    free_begin = max(free_begin, rows.position + last / rows.group + 1 - rows.window);
  }
  const int whole_tile = min((free_begin + Tile::kKeys - 1) / Tile::kKeys, end_tile);
  const int whole_end = free_end / Tile::kKeys - 1;
  if (first_tile < end_tile) {
    const int at = first_tile * Tile::kKeys;
    keys.look_ahead(at, rows.begin, rows.end);
    keys.template copy<false>(at, rows.begin, rows.end, rows.head_dim, k_base, v_base);
    keys.look_ahead(at + Tile::kKeys, rows.begin, rows.end);
  }
  cp_async_commit();

  const int warp_first = rows.first + warp * Tile::kWarpRows;
  const bool active = warp_first < rows.rows;
  int limit[kRowTiles][2];
  if constexpr (kCausal) {
#pragma unroll
    for (int m = 0; m < kRowTiles; ++m) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int r = warp_first + m * 16 + half * 8 + lane / 4;
        limit[m][half] = rows.position + r / rows.group + 1;
      }
    }
  }

  // This lane's rows of the first ldmatrix of each kind. Of matrix i = lane / 8: Q and V have rows 8 (i % 2) and chunk
  // i / 2, K has rows 8 (i / 2) and chunk i % 2.
  const int matrix = lane / 8;
  const uint32_t q_lane = q_base + Layout::offset(warp * Tile::kWarpRows + (matrix % 2) * 8 + lane % 8, matrix / 2);
  // Q fragments stay in registers where those suffice.
  constexpr bool kHeldQ = Tile::kDim <= 64 && Tile::kExact;
  uint32_t held_q[kHeldQ ? kSteps : 1][kRowTiles][4];
  if constexpr (kHeldQ) {
    cp_async_wait<0>();
    __syncthreads();
#pragma unroll
    for (int step = 0; step < kSteps; ++step) {
#pragma unroll
      for (int m = 0; m < kRowTiles; ++m) {
        ldmatrix_x4(held_q[step][m], Layout::step(q_lane, 2 * step) + m * 16 * Layout::kRowBytes);
      }
    }
  }
  uint32_t k_lane = Layout::offset((matrix / 2) * 8 + lane % 8, matrix % 2);
  uint32_t v_lane = Layout::offset((matrix % 2) * 8 + lane % 8, matrix / 2);
  // Kept: the compiler would compute them anew for every tile.
  asm volatile("" : "+r"(k_lane), "+r"(v_lane));

  float out[kRowTiles][kOutTiles][4];
  float shift[kRowTiles][2], row_sum[kRowTiles][2];
#pragma unroll
  for (int m = 0; m < kRowTiles; ++m) {
#pragma unroll
    for (int n = 0; n < kOutTiles; ++n) {
#pragma unroll
      for (int i = 0; i < 4; ++i) out[m][n][i] = 0.0f;
    }
    shift[m][0] = shift[m][1] = kNoShift;
    row_sum[m][0] = row_sum[m][1] = 0.0f;
  }

  // Keys `at..at + kKeys`, which lie in `buffer`. If there are more, it starts the copy of the next ones.
  const auto take = [&](int at, uint32_t buffer, bool more, auto is_masked) {
    constexpr bool kMasked = decltype(is_masked)::value;
    cp_async_wait<0>();
    // This tile is there for all, and all have done with the one before it, whose buffer is filled next.
    __syncthreads();
    if (more) {
      const uint32_t other = Tile::kBufferBytes - buffer;
      keys.template copy<!kMasked>(at + Tile::kKeys, rows.begin, rows.end, rows.head_dim, k_base + other, v_base + other);
      keys.look_ahead(at + 2 * Tile::kKeys, rows.begin, rows.end);
      cp_async_commit();
    }
    if (!active) return;

    float score[kRowTiles][kScoreTiles][4];
#pragma unroll
    for (int m = 0; m < kRowTiles; ++m) {
#pragma unroll
      for (int n = 0; n < kScoreTiles; ++n) {
#pragma unroll
        for (int i = 0; i < 4; ++i) score[m][n][i] = 0.0f;
      }
    }
    const uint32_t k_address = k_base + buffer + k_lane;
#pragma unroll
    for (int step = 0; step < kSteps; ++step) {
      uint32_t read_q[kRowTiles][4];
      if constexpr (!kHeldQ) {
#pragma unroll
        for (int m = 0; m < kRowTiles; ++m) {
          ldmatrix_x4(read_q[m], Layout::step(q_lane, 2 * step) + m * 16 * Layout::kRowBytes);
        }
      }
      const auto& q = kHeldQ ? held_q[kHeldQ ? step : 0] : read_q;
#pragma unroll
      for (int n = 0; n < kScoreTiles; n += 2) {
        uint32_t k[4];
        ldmatrix_x4(k, Layout::step(k_address, 2 * step) + n * 8 * Layout::kRowBytes);
#pragma unroll
        for (int m = 0; m < kRowTiles; ++m) {
          mma_m16n8k16<T>(score[m][n], q[m], k[0], k[1]);
          mma_m16n8k16<T>(score[m][n + 1], q[m], k[2], k[3]);
        }
      }
    }
    if constexpr (kTail) {
      // Four n8 tiles at a time: matrix i holds keys 8i.. of the last chunk.
      static_assert(!kTail || Layout::kTwistMask == 0, "a tail comes with an odd number of chunks");
      uint32_t q[kRowTiles][2];
#pragma unroll
      for (int m = 0; m < kRowTiles; ++m) {
        const int row = warp * Tile::kWarpRows + m * 16 + lane % 16;
        ldmatrix_x2(q[m][0], q[m][1], q_base + Layout::offset(row, 2 * kSteps));
      }
#pragma unroll
      for (int n = 0; n < kScoreTiles; n += 4) {
        uint32_t k[4];
        ldmatrix_x4(k, k_base + buffer + Layout::offset(n * 8 + lane, 2 * kSteps));
#pragma unroll
        for (int m = 0; m < kRowTiles; ++m) {
#pragma unroll
          for (int i = 0; i < 4; ++i) mma_m16n8k8<T>(score[m][n + i], q[m][0], q[m][1], k[i]);
        }
      }
    }

    if constexpr (kMasked) {
#pragma unroll
      for (int m = 0; m < kRowTiles; ++m) {
#pragma unroll
        for (int n = 0; n < kScoreTiles; ++n) {
#pragma unroll
          for (int i = 0; i < 4; ++i) {
            const int key = at + n * 8 + lane % 4 * 2 + i % 2;
            bool seen = key < rows.end;
            if constexpr (kCausal) seen = key < limit[m][i / 2] && key >= limit[m][i / 2] - rows.window;
            if (!seen) score[m][n][i] = -INFINITY;
          }
        }
      }
    }

    float top[kRowTiles][2];
    bool grows[kRowTiles][2], any_grows = false;
#pragma unroll
    for (int m = 0; m < kRowTiles; ++m) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        float& t = top[m][half];
        t = fmaxf(score[m][0][half * 2], score[m][0][half * 2 + 1]);
#pragma unroll
        for (int n = 1; n < kScoreTiles; ++n) t = fmaxf(t, fmaxf(score[m][n][half * 2], score[m][n][half * 2 + 1]));
        t = fmaxf(t, __shfl_xor_sync(kAllLanes, t, 1));
        t = fmaxf(t, __shfl_xor_sync(kAllLanes, t, 2));
        grows[m][half] = fmaf(t, rows.scale_log2, -shift[m][half]) > kSlack;
        any_grows |= grows[m][half];
      }
    }
    if (__any_sync(kAllLanes, any_grows)) {
#pragma unroll
      for (int m = 0; m < kRowTiles; ++m) {
        float factor[2];
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          // Only of rows that have grown themselves: which rows share a warp depends on the batch, a row's bits do not.
          const float next = grows[m][half] ? top[m][half] * rows.scale_log2 : shift[m][half];
          factor[half] = exp2_approx(shift[m][half] - next);
          shift[m][half] = next;
          row_sum[m][half] *= factor[half];
        }
#pragma unroll
        for (int n = 0; n < kOutTiles; ++n) {
#pragma unroll
          for (int i = 0; i < 4; ++i) out[m][n][i] *= factor[i / 2];
        }
      }
    }
#pragma unroll
    for (int m = 0; m < kRowTiles; ++m) {
#pragma unroll
      for (int n = 0; n < kScoreTiles; ++n) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          float& s = score[m][n][i];
          s = exp2_approx(fmaf(s, rows.scale_log2, -shift[m][i / 2]));
          row_sum[m][i / 2] += s;
        }
      }
    }

    const uint32_t v_address = v_base + buffer + v_lane;
#pragma unroll
    for (int step = 0; step < Tile::kKeys / 16; ++step) {
      uint32_t p[kRowTiles][4];
#pragma unroll
      for (int m = 0; m < kRowTiles; ++m) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const float* s = &score[m][2 * step + i / 2][i % 2 * 2];
          p[m][i] = pack_pair<T>(s[0], s[1]);
        }
      }
#pragma unroll
      for (int n = 0; n + 1 < kOutTiles; n += 2) {
        uint32_t v[4];
        ldmatrix_x4_trans(v, Layout::step(v_address, n) + step * 16 * Layout::kRowBytes);
#pragma unroll
        for (int m = 0; m < kRowTiles; ++m) {
          mma_m16n8k16<T>(out[m][n], p[m], v[0], v[1]);
          mma_m16n8k16<T>(out[m][n + 1], p[m], v[2], v[3]);
        }
      }
      if constexpr (kOutTiles % 2 != 0) {
        uint32_t v[2];
        ldmatrix_x2_trans(v[0], v[1], v_address + (kOutTiles - 1) * 16 + step * 16 * Layout::kRowBytes);
#pragma unroll
        for (int m = 0; m < kRowTiles; ++m) mma_m16n8k16<T>(out[m][kOutTiles - 1], p[m], v[0], v[1]);
      }
    }
  };
  uint32_t buffer = 0;
  int at = first_tile * Tile::kKeys;
  const int end = end_tile * Tile::kKeys;
  // One copy of the masked loop's code serves before and after the other one.
#pragma unroll 1
  for (int stop = whole_tile * Tile::kKeys;; stop = end) {
#pragma unroll 1
    for (; at < stop; at += Tile::kKeys) {
      take(at, buffer, at + Tile::kKeys < end, std::true_type{});
      buffer = Tile::kBufferBytes - buffer;
    }
    if (stop == end) break;
#pragma unroll 1
    for (; at < whole_end * Tile::kKeys; at += Tile::kKeys) {
      take(at, buffer, true, std::false_type{});
      buffer = Tile::kBufferBytes - buffer;
    }
  }
  // Without keys the copy of Q is still under way.
  if (first_tile >= end_tile) {
    cp_async_wait<0>();
    __syncthreads();
  }
  // Where a row of the block belongs.
  const int query_first = kept[0], first_row = kept[1];
  const auto target = [&](int row) {
    const int query = (first_row + row) / rows.group;
    return rows.out + static_cast<long long>(query_first + query) * rows.out_stride +
           (first_row + row - query * rows.group) * rows.head_dim;
  };
  if constexpr (Parts::kSome) {
    if (pieces.count > 1) {
      const int count = min(Tile::kRows, kept[2] - first_row);
      store_piece<Tile>(pieces, warp, count, out, shift, row_sum);
      // The words at the end of shared memory have been read, or are read by none.
      if (!arrive_last(pieces.arrived, pieces.count, reinterpret_cast<bool*>(shared))) return;
      add_pieces<Tile>(pieces, count, rows.head_dim, target);
      return;
    }
  }
  if (!active) return;

  // The result takes the place of the warp's own Q rows and leaves in whole chunks.
  __syncwarp();
#pragma unroll
  for (int m = 0; m < kRowTiles; ++m) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const float sum = quad_sum(row_sum[m][half]);
      const float inverse = sum > 0.0f ? 1.0f / sum : 0.0f;
      const int row = warp * Tile::kWarpRows + m * 16 + half * 8 + lane / 4;
#pragma unroll
      for (int n = 0; n < kOutTiles; ++n) {
        const uint32_t pair = pack_pair<T>(out[m][n][half * 2] * inverse, out[m][n][half * 2 + 1] * inverse);
        *reinterpret_cast<uint32_t*>(shared + Layout::offset(row, n) + lane % 4 * 4) = pair;
      }
    }
  }
  __syncwarp();
  const int warp_row = warp * Tile::kWarpRows;
  const int count = min(Tile::kWarpRows, kept[2] - first_row - warp_row);
  for (int c = lane; c < count * Layout::kChunks; c += kWarpThreads) {
    const int row = warp_row + c / Layout::kChunks, chunk = c % Layout::kChunks;
    const int left = rows.head_dim - chunk * 8;
    const unsigned char* source = shared + Layout::offset(row, chunk);
    T* to = target(row) + chunk * 8;
    if (Tile::kExact || (left >= 8 && rows.head_dim % 8 == 0)) {
      *reinterpret_cast<uint4*>(to) = *reinterpret_cast<const uint4*>(source);
    } else {
      for (int e = 0; e < min(left, 8); ++e) to[e] = reinterpret_cast<const T*>(source)[e];
    }
  }
}

}  // namespace engine
