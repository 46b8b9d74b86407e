// The tile loop of fused attention: rows of queries against their keys, 64 (or 32) keys at a time, with an online
// softmax; the scores never leave registers. Shared by attention.cu (keys in rows) and paged_prefill.cu (keys in pages).
//
// A row is one query and one of the `group` query heads that share a KV head; the rows of a segment are numbered query
// by query, heads within. A block takes kRows rows of one segment and KV head, so that keys and values are read once
// for the whole group.
//
// In      a Keys object that knows where key i of the segment lies
// Owns    shared memory of a block: Q rows, then two buffers of K and V rows; where a row's 16-byte chunks lie in it
// Not here who has which segment (attention.cu, paged_prefill.cu), one query per sequence over long contexts
//         (paged_decode.cu)
//
// Numerics scores, softmax and sums in f32 (ex2.approx); probabilities rounded to T for the second product; one
//         rounding at the end. Fixed order: equal inputs give equal bits.
#pragma once

#include <climits>

#include "mma.cuh"
#include "pages.cuh"

namespace engine {

// A row of kDim 16-bit elements in shared memory, such that the eight rows of an ldmatrix matrix lie in eight different
// bank groups. An odd number of 16-byte chunks does that by itself; powers of two are swizzled; other rows get a chunk
// more. The buffer must be aligned to its row, so that `step` may be an exclusive or of the whole address.
template <int kDim>
struct RowLayout {
  static_assert(kDim % 8 == 0 && kDim >= 32, "whole chunks");
  static constexpr int kChunks = kDim / 8;
  static constexpr bool kSwizzled = (kChunks & (kChunks - 1)) == 0;
  static constexpr int kRowBytes = (kSwizzled ? kChunks : kChunks | 1) * 16;

  static __device__ __forceinline__ uint32_t offset(int row, int chunk) {
    if constexpr (!kSwizzled) return row * kRowBytes + chunk * 16;
    const int twist = kChunks == 4 ? (row >> 1) & 3 : row & 7;
    return row * kRowBytes + ((chunk ^ twist) * 16);
  }
  // From the address of a chunk of even number 0 (or 1) of a row to the one `chunks` (even) further.
  static __device__ __forceinline__ uint32_t step(uint32_t address, int chunks) {
    return kSwizzled ? address ^ (chunks * 16) : address + chunks * 16;
  }
};

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
  static constexpr int kSharedBytes = kRows * Layout::kRowBytes + 4 * kBufferBytes;
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

// What a block does.
template <typename T>
struct Rows {
  const T* q;       // query 0 of the segment, first head of the group
  T* out;           // its place in the result
  int q_stride;     // elements from query to query
  int out_stride;
  int first;        // first row of the block
  int rows;         // rows of the segment
  int group;        // heads that share keys
  int head_dim;
  int begin, end;   // keys that any row of the block sees
  int position;     // of query 0, where keys after a query are hidden from it
  int window;       // latest keys that a query sees, its own included
  float scale_log2; // scale * log2(e)
};

// One chunk of a row to shared memory: eight elements from `row + 8 * chunk` on, zeros from head_dim on.
template <typename Tile>
__device__ __forceinline__ void copy_chunk(uint32_t target, const typename Tile::T* row, int chunk, int head_dim) {
  if constexpr (Tile::kExact) {
    cp_async_16(target, row + chunk * 8);
  } else {
    const int left = head_dim - chunk * 8;
    if (head_dim % 8 == 0) {
      cp_async<16>(target, left > 0 ? row + chunk * 8 : row, left > 0 ? 16 : 0);
      return;
    }
    uint32_t pairs[4];
    const unsigned short* source = reinterpret_cast<const unsigned short*>(row + chunk * 8);
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      const uint32_t low = 2 * e < left ? source[2 * e] : 0;
      const uint32_t high = 2 * e + 1 < left ? source[2 * e + 1] : 0;
      pairs[e] = low | high << 16;
    }
    asm volatile("st.shared.v4.u32 [%0], {%1,%2,%3,%4};"
                 :
                 : "r"(target), "r"(pairs[0]), "r"(pairs[1]), "r"(pairs[2]), "r"(pairs[3])
                 : "memory");
  }
}

// Keys and values of a segment that lie in rows of a matrix.
template <typename Tile>
struct RowKeys {
  using T = typename Tile::T;
  const T* k;  // key 0, this KV head
  const T* v;
  int k_stride;  // elements
  int v_stride;

  __device__ __forceinline__ void look_ahead(int, int, int) {}
  __device__ __forceinline__ const T* key(int i, int) const { return k + static_cast<long long>(i) * k_stride; }
  __device__ __forceinline__ const T* value(int i, const T*) const { return v + static_cast<long long>(i) * v_stride; }
};

// Keys and values of a sequence in pages (pages.cuh). The page numbers of a tile are
// held by the lanes of each warp, read one tile ahead.
template <typename Tile>
struct PageKeys {
  using T = typename Tile::T;
  static constexpr int kPages = Tile::kKeys / kPageSize;
  const T* cache;      // page 0, this KV head
  const int* table;    // of the sequence
  int page_stride;     // elements
  int value_offset;
  int head_dim;
  int pages;

  // Reads the page numbers of the tile that starts at key `at`; those of keys outside begin..end are not looked at.
  __device__ __forceinline__ void look_ahead(int at, int begin, int end) {
    const int page = at / kPageSize + threadIdx.x % kPages;
    pages = table[min(max(page, begin / kPageSize), (end - 1) / kPageSize)];
  }
  // Every lane of the warp calls this.
  __device__ __forceinline__ const T* key(int i, int at) const {
    const int page = __shfl_sync(kAllLanes, pages, (i - at) / kPageSize);
    return cache + static_cast<long long>(page) * page_stride + i % kPageSize * head_dim;
  }
  __device__ __forceinline__ const T* value(int, const T* key) const { return key + value_offset; }
};

// Starts the copy of keys and values `at..at + kKeys`. Those before `begin` or from `end` on are copies of the nearest
// one within: never used, but numbers, and of memory that may be read.
template <typename Tile, typename Keys>
__device__ __forceinline__ void copy_keys(const Keys& keys, int at, const Rows<typename Tile::T>& rows, uint32_t k_buffer,
                                          uint32_t v_buffer) {
  using Layout = typename Tile::Layout;
  constexpr int kPassRows = Tile::kThreads / Layout::kChunks;
  constexpr int kPasses = (Tile::kKeys + kPassRows - 1) / kPassRows;
  const int thread_row = threadIdx.x / Layout::kChunks;
  const int chunk = threadIdx.x % Layout::kChunks;
#pragma unroll
  for (int pass = 0; pass < kPasses; ++pass) {
    const int row = pass * kPassRows + thread_row;
    const int i = min(max(at + row, rows.begin), rows.end - 1);
    // The last pass, and threads beyond the last whole row of a pass.
    const bool mine = (Tile::kThreads % Layout::kChunks == 0 || thread_row < kPassRows) &&
                      (Tile::kKeys % kPassRows == 0 || pass + 1 < kPasses || row < Tile::kKeys);
    const auto* k = keys.key(min(i, at + Tile::kKeys - 1), at);
    const auto* v = keys.value(i, k);
    if (mine) {
      const uint32_t offset = Layout::offset(row, chunk);
      copy_chunk<Tile>(k_buffer + offset, k, chunk, rows.head_dim);
      copy_chunk<Tile>(v_buffer + offset, v, chunk, rows.head_dim);
    }
  }
}

// Computes a block's rows. `shared` has Tile::kSharedBytes, aligned to 1024.
template <typename Tile, bool kCausal, typename Keys>
__device__ __forceinline__ void attend(const Rows<typename Tile::T>& rows, Keys& keys, unsigned char* shared) {
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
    const T* source = rows.q + static_cast<long long>(query) * rows.q_stride + (r - query * rows.group) * rows.head_dim;
    copy_chunk<Tile>(q_base + Layout::offset(row, chunk), source, chunk, rows.head_dim);
  }
  const int first_tile = rows.begin / Tile::kKeys;
  const int end_tile = (rows.end + Tile::kKeys - 1) / Tile::kKeys;
  if (first_tile < end_tile) {
    keys.look_ahead(first_tile * Tile::kKeys, rows.begin, rows.end);
    copy_keys<Tile>(keys, first_tile * Tile::kKeys, rows, k_base, v_base);
    keys.look_ahead((first_tile + 1) * Tile::kKeys, rows.begin, rows.end);
  }
  cp_async_commit();

  // Keys that all rows of this warp see need no mask.
  const int warp_first = rows.first + warp * Tile::kWarpRows;
  const bool active = warp_first < rows.rows;
  int free_begin = rows.begin, free_end = rows.end;
  int limit[kRowTiles][2];
  if constexpr (kCausal) {
    const int last = min(warp_first + Tile::kWarpRows, rows.rows) - 1;
    free_end = min(free_end, rows.position + warp_first / rows.group + 1);
    free_begin = max(free_begin, rows.position + last / rows.group + 1 - rows.window);
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
  const uint32_t k_lane = Layout::offset((matrix / 2) * 8 + lane % 8, matrix % 2);
  const uint32_t v_lane = Layout::offset((matrix % 2) * 8 + lane % 8, matrix / 2);

  float out[kRowTiles][kOutTiles][4];
  float row_max[kRowTiles][2], row_sum[kRowTiles][2];
#pragma unroll
  for (int m = 0; m < kRowTiles; ++m) {
#pragma unroll
    for (int n = 0; n < kOutTiles; ++n) {
#pragma unroll
      for (int i = 0; i < 4; ++i) out[m][n][i] = 0.0f;
    }
    row_max[m][0] = row_max[m][1] = -INFINITY;
    row_sum[m][0] = row_sum[m][1] = 0.0f;
  }

  for (int tile = first_tile; tile < end_tile; ++tile) {
    const uint32_t buffer = ((tile - first_tile) & 1) * Tile::kBufferBytes;
    cp_async_wait<0>();
    // This tile is there for all, and all have done with the one before it, whose buffer is filled next.
    __syncthreads();
    if (tile + 1 < end_tile) {
      const uint32_t other = Tile::kBufferBytes - buffer;
      copy_keys<Tile>(keys, (tile + 1) * Tile::kKeys, rows, k_base + other, v_base + other);
      keys.look_ahead((tile + 2) * Tile::kKeys, rows.begin, rows.end);
      cp_async_commit();
    }
    if (!active) continue;

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
      uint32_t q[kRowTiles][4];
#pragma unroll
      for (int m = 0; m < kRowTiles; ++m) {
        ldmatrix_x4(q[m], Layout::step(q_lane, 2 * step) + m * 16 * Layout::kRowBytes);
      }
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
      static_assert(!kTail || !Layout::kSwizzled, "a tail comes with an odd number of chunks");
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

    const int at = tile * Tile::kKeys;
    if (at < free_begin || at + Tile::kKeys > free_end) {
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

    float factor[kRowTiles][2];
    bool moved = false;
#pragma unroll
    for (int m = 0; m < kRowTiles; ++m) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        float top = row_max[m][half];
#pragma unroll
        for (int n = 0; n < kScoreTiles; ++n) {
          top = fmaxf(top, fmaxf(score[m][n][half * 2], score[m][n][half * 2 + 1]));
        }
        top = fmaxf(top, __shfl_xor_sync(kAllLanes, top, 1));
        top = fmaxf(top, __shfl_xor_sync(kAllLanes, top, 2));
        moved |= top > row_max[m][half];
        // A row that has seen no key yet: any finite number in place of -inf gives zeros below.
        const float shift = top == -INFINITY ? 0.0f : top * rows.scale_log2;
        factor[m][half] = exp2_approx(fmaf(row_max[m][half], rows.scale_log2, -shift));
        row_max[m][half] = top;
        float sum = 0.0f;
#pragma unroll
        for (int n = 0; n < kScoreTiles; ++n) {
#pragma unroll
          for (int i = 0; i < 2; ++i) {
            float& s = score[m][n][half * 2 + i];
            s = exp2_approx(fmaf(s, rows.scale_log2, -shift));
            sum += s;
          }
        }
        row_sum[m][half] = fmaf(row_sum[m][half], factor[m][half], sum);
      }
    }
    // Where no maximum has grown all factors are 1; that is most tiles of a long row of keys.
    if (__any_sync(kAllLanes, moved)) {
#pragma unroll
      for (int m = 0; m < kRowTiles; ++m) {
#pragma unroll
        for (int n = 0; n < kOutTiles; ++n) {
#pragma unroll
          for (int i = 0; i < 4; ++i) out[m][n][i] *= factor[m][i / 2];
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
  }
  // Without keys the copy of Q is still under way.
  if (first_tile >= end_tile) {
    cp_async_wait<0>();
    __syncthreads();
  }
  if (!active) return;

  // The result takes the place of the warp's own Q rows and leaves in whole chunks.
  __syncwarp();
#pragma unroll
  for (int m = 0; m < kRowTiles; ++m) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      float sum = row_sum[m][half];
      sum += __shfl_xor_sync(kAllLanes, sum, 1);
      sum += __shfl_xor_sync(kAllLanes, sum, 2);
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
  const int count = min(Tile::kWarpRows, rows.rows - warp_first);
  for (int c = lane; c < count * Layout::kChunks; c += kWarpThreads) {
    const int row = c / Layout::kChunks, chunk = c % Layout::kChunks;
    const int left = rows.head_dim - chunk * 8;
    const int query = (warp_first + row) / rows.group;
    T* target = rows.out + static_cast<long long>(query) * rows.out_stride +
                (warp_first + row - query * rows.group) * rows.head_dim + chunk * 8;
    const unsigned char* source = shared + Layout::offset(warp * Tile::kWarpRows + row, chunk);
    if (Tile::kExact || (left >= 8 && rows.head_dim % 8 == 0)) {
      *reinterpret_cast<uint4*>(target) = *reinterpret_cast<const uint4*>(source);
    } else {
      for (int e = 0; e < min(left, 8); ++e) target[e] = reinterpret_cast<const T*>(source)[e];
    }
  }
}

}  // namespace engine
