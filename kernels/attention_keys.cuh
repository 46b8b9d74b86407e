// Where keys and values come from: their copies from memory into the tiles of attention.cuh.
//
// Owns: where a row's 16-byte chunks lie in shared memory; keys in rows of a matrix, and in pages. Not here: what is
// computed of them (attention.cuh).
#pragma once

#include "mma.cuh"
#include "pages.cuh"

namespace engine {

// A row of kDim 16-bit elements in shared memory: its 16-byte chunks side by side, without padding, twisted such that
// the eight rows of an ldmatrix matrix lie in eight different bank groups. An odd number of chunks does that by itself.
// Otherwise rows repeat the same groups after 8, 4 or 2 rows (2, 4 or 8 chunks a group of rows), and as many low bits of
// the chunk's number are exchanged for the row's.
template <int kDim>
struct RowLayout {
  static_assert(kDim % 8 == 0, "whole chunks");
  static constexpr int kChunks = kDim / 8;
  static constexpr int kRowBytes = kChunks * 16;
  static constexpr int kTwistMask = kChunks % 2 != 0 ? 0 : kChunks % 4 != 0 ? 1 : kChunks % 8 != 0 ? 3 : 7;

  // Of eight rows; the same for rows a multiple of eight apart, and an exclusive or of those of the row's bits.
  static __device__ __forceinline__ int twist(int row) {
    return kTwistMask == 7 ? row & 7 : kTwistMask == 3 ? (row >> 1) & 3 : kTwistMask == 1 ? (row >> 2) & 1 : 0;
  }
  static __device__ __forceinline__ uint32_t offset(int row, int chunk) {
    return row * kRowBytes + (chunk ^ twist(row)) * 16;
  }
  // From the address of chunk 0 or 1 of a row to the one `chunks` further, an even number. Buffers are aligned to 128
  // bytes, so that the exclusive or may be one of the whole address.
  static __device__ __forceinline__ uint32_t step(uint32_t address, int chunks) {
    return (address ^ ((chunks & kTwistMask) * 16)) + (chunks & ~kTwistMask) * 16;
  }
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
  using Layout = typename Tile::Layout;
  const T* k;  // key 0, this KV head
  const T* v;
  int k_stride;  // bytes
  int v_stride;

  __device__ __forceinline__ void look_ahead(int, int, int) {}

  // Starts the copy of keys and values `at..at + kKeys`. Those from `end` on, of which there are none where kWhole, are
  // copies of the last one before it: never used, but numbers.
  template <bool kWhole>
  __device__ __forceinline__ void copy(int at, int, int end, int head_dim, uint32_t k_buffer, uint32_t v_buffer) const {
    if constexpr (Tile::kExact) {
      // A pass is a constant distance in shared memory. Where rows end within a 32-byte sector it takes an even number of
      // them, and from a key that starts within one all threads are one further: so no two warps read one sector.
      constexpr bool kHalves = Layout::kChunks % 2 != 0;
      constexpr int kMost = Tile::kThreads / Layout::kChunks;
      constexpr int kPassRows = kHalves ? kMost / 2 * 2 : kMost / 8 * 8;
      constexpr int kPasses = (Tile::kKeys + kPassRows - 1) / kPassRows;
      static_assert(!kHalves || kPassRows * Layout::kChunks < Tile::kThreads, "a thread to spare");
      // Thread -1 is none of the rows.
      const unsigned thread = threadIdx.x - (kHalves ? reinterpret_cast<uintptr_t>(k) / 16 % 2 : 0);
      const int row = thread / Layout::kChunks, chunk = thread % Layout::kChunks;
      const uint32_t offset = Layout::offset(row, chunk);
#pragma unroll
      for (int pass = 0; pass < kPasses; ++pass) {
        const int i = kWhole ? at + row + pass * kPassRows : min(at + row + pass * kPassRows, end - 1);
        const bool last = pass + 1 == kPasses && Tile::kKeys % kPassRows != 0;
        const bool mine = (Tile::kThreads == kPassRows * Layout::kChunks || row < kPassRows) &&
                          (!last || row < Tile::kKeys - pass * kPassRows);
        const uint32_t target = offset + pass * kPassRows * Layout::kRowBytes;
        cp_async_16_if(mine, k_buffer + target, advance(k + chunk * 8, i, k_stride));
        cp_async_16_if(mine, v_buffer + target, advance(v + chunk * 8, i, v_stride));
      }
    } else {
#pragma unroll 1
      for (int c = threadIdx.x; c < Tile::kKeys * Layout::kChunks; c += Tile::kThreads) {
        const int row = c / Layout::kChunks, chunk = c % Layout::kChunks;
        const int i = min(at + row, end - 1);
        const uint32_t offset = Layout::offset(row, chunk);
        copy_chunk<Tile>(k_buffer + offset, reinterpret_cast<const T*>(advance(k, i, k_stride)), chunk, head_dim);
        copy_chunk<Tile>(v_buffer + offset, reinterpret_cast<const T*>(advance(v, i, v_stride)), chunk, head_dim);
      }
    }
  }
};

// Keys and values of a sequence in pages (pages.cuh). The page numbers of a tile are held by the lanes of each warp,
// read one tile ahead.
template <typename Tile>
struct PageKeys {
  using T = typename Tile::T;
  using Layout = typename Tile::Layout;
  static constexpr int kPages = Tile::kKeys / kPageSize;
  const T* k;        // page 0, this KV head
  const T* v;
  const int* table;  // of the sequence
  int page_bytes;
  int pages;

  // Reads the page numbers of the tile that starts at key `at`; those of keys outside begin..end are not looked at.
  __device__ __forceinline__ void look_ahead(int at, int begin, int end) {
    const int page = at / kPageSize + threadIdx.x % kWarpThreads % kPages;
    pages = table[min(max(page, begin / kPageSize), (end - 1) / kPageSize)];
  }

  // Starts the copy of keys and values `at..at + kKeys`; those of pages before begin's, and those from `end` on, of
  // which the page may hold nothing, are zero. kWhole: there are none of either. Every lane of a warp calls this.
  template <bool kWhole>
  __device__ __forceinline__ void copy(int at, int begin, int end, int head_dim, uint32_t k_buffer,
                                       uint32_t v_buffer) const {
    const int held = begin / kPageSize * kPageSize;
    const unsigned count = end - held;
    const int before = at - held;  // negative where the tile starts on pages that are not there
    if constexpr (Tile::kExact) {
      // A pass is a part of a page or whole pages.
      constexpr int kPassRows = Tile::kThreads / Layout::kChunks >= kPageSize ? kPageSize : kPageSize / 2;
      static_assert(kPassRows * Layout::kChunks <= Tile::kThreads, "a thread a chunk");
      const int row = threadIdx.x / Layout::kChunks, chunk = threadIdx.x % Layout::kChunks;
      const bool mine = Tile::kThreads == kPassRows * Layout::kChunks || row < kPassRows;
      const uint32_t offset = Layout::offset(row, chunk);
      const int element = row * Tile::kDim + chunk * 8;
#pragma unroll
      for (int p = 0; p < kPages; ++p) {
        const int page = __shfl_sync(kAllLanes, pages, p);
        const T* k_page = reinterpret_cast<const T*>(advance(k + element, page, page_bytes));
        const T* v_page = reinterpret_cast<const T*>(advance(v + element, page, page_bytes));
#pragma unroll
        for (int inside = 0; inside < kPageSize; inside += kPassRows) {
          const uint32_t target = offset + (p * kPageSize + inside) * Layout::kRowBytes;
          if constexpr (kWhole) {
            cp_async_16_if(mine, k_buffer + target, k_page + inside * Tile::kDim);
            cp_async_16_if(mine, v_buffer + target, v_page + inside * Tile::kDim);
          } else if (mine) {
            const int bytes = static_cast<unsigned>(before + row + p * kPageSize + inside) < count ? 16 : 0;
            cp_async<16>(k_buffer + target, k_page + inside * Tile::kDim, bytes);
            cp_async<16>(v_buffer + target, v_page + inside * Tile::kDim, bytes);
          }
        }
      }
    } else {
      static_assert(Tile::kKeys * Layout::kChunks % Tile::kThreads == 0, "whole passes");
#pragma unroll 1
      for (int c = threadIdx.x; c < Tile::kKeys * Layout::kChunks; c += Tile::kThreads) {
        const int row = c / Layout::kChunks, chunk = c % Layout::kChunks;
        const int page = __shfl_sync(kAllLanes, pages, row / kPageSize);
        const int element = row % kPageSize * head_dim;
        // Of a row that is not there no element is below this.
        const int dim = kWhole || static_cast<unsigned>(before + row) < count ? head_dim : 0;
        const uint32_t offset = Layout::offset(row, chunk);
        copy_chunk<Tile>(k_buffer + offset, reinterpret_cast<const T*>(advance(k, page, page_bytes)) + element, chunk, dim);
        copy_chunk<Tile>(v_buffer + offset, reinterpret_cast<const T*>(advance(v, page, page_bytes)) + element, chunk, dim);
      }
    }
  }
};

}  // namespace engine
