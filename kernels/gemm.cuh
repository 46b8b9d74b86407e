// The body of the GEMM kernels: tiles, copies, products, sums over splits of k, epilogue. For gemm.cu and gemm_qkv.cu
// (weights as stored), gemm_int8.cu, gemm_int4.cu.
//
// Owns: the pipeline. Not here: layouts of weights (packed.cuh), what becomes of a sum (epilogue.cuh, qkv.cuh).
#pragma once

#include <type_traits>

#include "epilogue.cuh"
#include "groups.cuh"
#include "packed.cuh"
#include "qkv.cuh"

namespace engine {

// F: the storage of weights (packed.cuh). The rest: a block's part of y, k of a stage, warps, stages.
template <typename F, int kBM, int kBN, int kBK, int kWarpsM, int kWarpsN, int kStageCount>
struct Tile {
  using Format = F;
  static constexpr int BM = kBM, BN = kBN, BK = kBK, kStages = kStageCount;
  static constexpr int kWarpColumns = kWarpsN;
  static constexpr int kThreads = kWarpsM * kWarpsN * kWarpThreads;
  // Of a warp, in tiles of 16.
  static constexpr int kRowTiles = BM / kWarpsM / 16;
  static constexpr int kColTiles = BN / kWarpsN / 16;
  static constexpr int kBytesX = BM * BK * 2;
  static constexpr int kBytesW = BN / 16 * (BK / 16) * kBlockBytes / (F::kTiles * F::kSteps);
  // Of grouped storage: scales and offsets of a group.
  static constexpr int kBytesScales = F::kGroups ? 2 * BN * 2 : 0;
  static_assert(BK == 32 || BK == 64, "rows of x in shared memory are 64 or 128 bytes");
  static_assert(kColTiles == 2 || kColTiles == 4, "rows of a warp's sums are one or two lines of shared memory");
  static_assert(!F::kGroups || BK == 32, "a stage is of one group, the shortest of which has 32 columns");
  static_assert(!F::kGroups || kColTiles == F::kTiles, "a block of w is a warp's");
  static_assert(!F::kGroups || BK * kStages == 128, "all stages are a segment (groups.cuh)");
};

// The tiles of weights as stored. BOUND: registers, by blocks of a multiprocessor or outright. Left to itself the compiler
// takes all 255 and the loop gains nothing.
#define DENSE_TILES(GEMM, suffix, T)                               \
  GEMM(suffix, T, 32, 128, 64, 1, 4, 4, __maxnreg__(108))          \
  GEMM(suffix, T, 64, 128, 64, 1, 4, 4, __launch_bounds__(128, 3)) \
  GEMM(suffix, T, 128, 128, 32, 2, 2, 4, __maxnreg__(208))         \
  GEMM(suffix, T, 128, 256, 32, 2, 4, 3, __maxnreg__(200))

// Makes the compiler take a value as it is: it keeps it in a register where it would compute it anew in every step.
__device__ __forceinline__ void keep(uint32_t& v) { asm volatile("" : "+r"(v)); }
__device__ __forceinline__ void keep(const char*& v) { asm volatile("" : "+l"(v)); }

// Where 16-byte chunk `chunk` of row `row` of x lies in shared memory: swizzled so that the eight rows that one
// ldmatrix phase reads fall into different banks.
template <int kBK>
__device__ __forceinline__ int x_offset(int row, int chunk) {
  constexpr int kChunks = kBK / 8;
  const int key = kChunks == 8 ? row & 7 : (row >> 1) & 3;
  return (row * kChunks + (chunk ^ key)) * 16;
}

// Copies of one stage. A thread's chunks of x are all in one column of chunks. Of w a warp copies whole blocks, as many
// as there are of a strip (or a part of them), so that most of their addresses differ by constants.
template <typename T, typename Tl>
struct Loader {
  static constexpr int kChunks = Tl::BK / 8;                    // of a row of x
  static constexpr int kRowsApart = Tl::kThreads / kChunks;     // rows between a thread's chunks
  static constexpr int kCountX = Tl::BM / kRowsApart;
  // Of w: blocks of a strip of 16 kTiles rows, which are contiguous; those that a warp copies, and of how many strips.
  static constexpr int kStripBlocks = Tl::BK / 16 / Tl::Format::kSteps;
  static constexpr int kStripBytes = kStripBlocks * kBlockBytes;
  static constexpr int kCountW = Tl::kBytesW / 16 / Tl::kThreads;
  static constexpr int kStrips = kCountW < kStripBlocks ? 1 : kCountW / kStripBlocks;
  static_assert(Tl::BM % kRowsApart == 0, "x divides among the threads");
  static_assert(kRowsApart % 8 == 0, "one swizzle key a thread");
  static_assert(kCountW % kStripBlocks == 0 || kStripBlocks % kCountW == 0, "strips divide among the warps");

  // This thread's chunks of the next step: a pointer where what they are apart by is no constant.
  const char* x[kCountX];
  const char* w[kStrips];
  uint32_t x_shared, w_shared;

  __device__ __forceinline__ Loader(const LinearArgs& args, uint32_t shared, int rows, int row0, int n_tile0,
                                    int step) {
    const int tid = threadIdx.x;
    const int chunk = tid % kChunks, row = tid / kChunks;
    const char* x0 = static_cast<const char*>(args.x) +
                     (static_cast<size_t>(row0) * args.x_stride + step * Tl::BK + chunk * 8) * sizeof(T);
#pragma unroll
    for (int i = 0; i < kCountX; ++i) {
      // Rows beyond the batch repeat its last one: they are real memory, and their results are not stored.
      const int there = min(row + i * kRowsApart, rows - 1 - row0);
      x[i] = x0 + static_cast<size_t>(there) * args.x_stride * sizeof(T);
    }
    const size_t strip_bytes = static_cast<size_t>(args.k_tiles) / Tl::Format::kSteps * kBlockBytes;
    const int block = warp_index() * kCountW;
#pragma unroll
    for (int i = 0; i < kStrips; ++i) {
      // Packed rows are a multiple of 64: the tile's last ones may not be there; its first stand in for them.
      const int tile = n_tile0 + (block / kStripBlocks + i) * Tl::Format::kTiles;
      const int strip = (tile < args.n_tiles ? tile : n_tile0) / Tl::Format::kTiles;
      w[i] = static_cast<const char*>(args.w) + strip * strip_bytes + step * kStripBytes +
             block % kStripBlocks * kBlockBytes + tid % kWarpThreads * 16;
      keep(w[i]);
    }
    x_shared = shared + x_offset<Tl::BK>(row, chunk);
    w_shared = shared + Tl::kStages * Tl::kBytesX + block * kBlockBytes + tid % kWarpThreads * 16;
  }

  // Step `ahead` from the next one into stage `stage`.
  __device__ __forceinline__ void copy(int stage, int ahead) const {
#pragma unroll
    for (int i = 0; i < kCountX; ++i) {
      cp_async_16(x_shared + stage * Tl::kBytesX + i * kRowsApart * Tl::BK * 2, x[i] + ahead * Tl::BK * sizeof(T));
    }
    copy_weights(stage, ahead);
  }

  // As above, of a step of which only `columns` columns of x are there: the rest is zero.
  __device__ __forceinline__ void copy_part(int stage, int ahead, int columns) const {
    const int left = columns - threadIdx.x % kChunks * 8;
    const int bytes = max(min(left, 8), 0) * static_cast<int>(sizeof(T));
    // A chunk of which nothing is there takes nothing, from an address that is.
    const int back = left > 0 ? 0 : ((left - 1) >> 3) * 16;
#pragma unroll
    for (int i = 0; i < kCountX; ++i) {
      const char* from = x[i] + ahead * Tl::BK * static_cast<int>(sizeof(T)) + back;
      cp_async<16>(x_shared + stage * Tl::kBytesX + i * kRowsApart * Tl::BK * 2, from, bytes);
    }
    copy_weights(stage, ahead);
  }

  __device__ __forceinline__ void copy_weights(int stage, int ahead) const {
#pragma unroll
    for (int i = 0; i < kCountW; ++i) {
      cp_async_16(w_shared + stage * Tl::kBytesW + i * kBlockBytes,
                  w[i / kStripBlocks] + ahead * kStripBytes + i % kStripBlocks * kBlockBytes);
    }
  }

  __device__ __forceinline__ void advance(int steps) {
#pragma unroll
    for (int i = 0; i < kCountX; ++i) x[i] += steps * Tl::BK * sizeof(T);
#pragma unroll
    for (int i = 0; i < kStrips; ++i) w[i] += steps * kStripBytes;
  }
};

// This lane's words of a block, from shared memory.
__device__ __forceinline__ uint4 load_words(uint32_t address) {
  uint4 v;
  asm volatile("ld.shared.v4.u32 {%0,%1,%2,%3}, [%4];"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
               : "r"(address)
               : "memory");
  return v;
}

// Adds the parts of a tile that other blocks computed. True in the block that arrived last, whose `sums` are then
// whole; the others are done. `last` is shared memory.
template <typename Tl>
__device__ __forceinline__ bool join_splits(const LinearArgs& args, int tile, int tiles, bool* last,
                                            float (&sums)[Tl::kRowTiles][Tl::kColTiles][8]) {
  float4* mine = reinterpret_cast<float4*>(args.partial) + threadIdx.x;
  constexpr int kVectors = Tl::kRowTiles * Tl::kColTiles * 2;
  const size_t part = static_cast<size_t>(kVectors) * Tl::kThreads;  // float4 of one tile
  float4* out = mine + (static_cast<size_t>(blockIdx.y) * tiles + tile) * part;
#pragma unroll
  for (int v = 0; v < kVectors; ++v) {
    float* s = &sums[v / 2 / Tl::kColTiles][v / 2 % Tl::kColTiles][v % 2 * 4];
    out[v * Tl::kThreads] = make_float4(s[0], s[1], s[2], s[3]);
    s[0] = s[1] = s[2] = s[3] = 0.0f;
  }
  if (!arrive_last(&args.arrived[tile], args.splits, last)) return false;
#pragma unroll 1
  for (int split = 0; split < args.splits; ++split) {
    const float4* in = mine + (static_cast<size_t>(split) * tiles + tile) * part;
#pragma unroll
    for (int v = 0; v < kVectors; ++v) {
      float* s = &sums[v / 2 / Tl::kColTiles][v / 2 % Tl::kColTiles][v % 2 * 4];
      const float4 p = __ldcg(&in[v * Tl::kThreads]);
      s[0] += p.x, s[1] += p.y, s[2] += p.z, s[3] += p.w;
    }
  }
  return true;
}

// kQkv: y is q, k and v of attention (qkv.cuh), `more` the FusedArgs.
template <typename Tl, bool kQkv = false, typename More = int>
__device__ __forceinline__ void gemm(const LinearArgs& args, const More& more = {}) {
  using F = typename Tl::Format;
  using T = typename F::Element;
  extern __shared__ __align__(128) char shared[];
  const int rows = live_rows(args);
  const int row_tiles = (rows + Tl::BM - 1) / Tl::BM;
  const int col_tiles = (args.n_tiles * kTileN + Tl::BN - 1) / Tl::BN;
  if (static_cast<int>(blockIdx.x) >= row_tiles * col_tiles) return;
  // Eight row tiles go through the columns together, so a column's weights come from memory once for the eight.
  constexpr int kGroup = 8;
  const int group = blockIdx.x / (kGroup * col_tiles), in_group = blockIdx.x % (kGroup * col_tiles);
  const int group_rows = min(row_tiles - group * kGroup, kGroup);
  const int row_tile = group * kGroup + in_group % group_rows, col_tile = in_group / group_rows;
  const int row0 = row_tile * Tl::BM, n_tile0 = col_tile * (Tl::BN / kTileN);

  // Steps of k of this block. Of groups it starts at a whole segment.
  constexpr int kUnit = F::kGroups ? Tl::kStages : 1;
  const int all_steps = (args.k + Tl::BK - 1) / Tl::BK, units = (all_steps + kUnit - 1) / kUnit;
  const auto start = [&](int split) {
    return min(static_cast<int>(static_cast<long long>(units) * split / args.splits) * kUnit, all_steps);
  };
  const int first = start(blockIdx.y);
  int steps = start(blockIdx.y + 1) - first;

  // Columns of x in a step within which k ends. It is not one of `steps`: it comes after them, outside the loop that has
  // no time to look where k ends. So every tile sums k in one order.
  const int part = first + steps == all_steps && steps > 0 ? args.k % Tl::BK : 0;
  if (part > 0) --steps;

  const uint32_t base = shared_address(shared);
  const int warp = warp_index(), lane = threadIdx.x % kWarpThreads;
  const int warp_row = warp / Tl::kWarpColumns * Tl::kRowTiles * 16;
  const int warp_tile = warp % Tl::kWarpColumns * Tl::kColTiles;
  Loader<T, Tl> loader(args, base, rows, row0, n_tile0, first);
  using Sum = std::conditional_t<F::kIntegers, int, float>;
  Sum sums[Tl::kRowTiles][Tl::kColTiles][8] = {};
  using Scales = std::conditional_t<F::kGroups, Groups<Tl>, NoGroups>;
  Scales groups(args, base + Tl::kStages * (Tl::kBytesX + Tl::kBytesW), n_tile0, warp_tile, first);
  // Behind the stages: positions and slots of the rows, on their way while the products are formed.
  int* positions = reinterpret_cast<int*>(shared + Tl::kStages * (Tl::kBytesX + Tl::kBytesW));
  if constexpr (kQkv) copy_positions<Tl::BM>(more, positions, row0, rows);
#pragma unroll
  for (int s = 0; s < Tl::kStages - 1; ++s) {
    if (s < steps) {
      loader.copy(s, 0);
      loader.advance(1);
      if constexpr (F::kGroups) {
        if ((s & groups.segment_mask) == 0) groups.copy(args, s);
      }
    } else if (s == steps && part > 0) {
      loader.copy_part(s, 0, part);
      if constexpr (F::kGroups) {
        if ((s & groups.segment_mask) == 0) groups.copy(args, s);
      }
    }
    cp_async_commit();
  }

  // ldmatrix: lanes 0..15 name rows 0..15 of the first eight k, lanes 16..31 of the next eight.
  uint32_t x_lane[Tl::BK / 16];
#pragma unroll
  for (int kk = 0; kk < Tl::BK / 16; ++kk) {
    x_lane[kk] = base + x_offset<Tl::BK>(warp_row + lane % 16, kk * 2 + lane / 16);
    keep(x_lane[kk]);
  }
  uint32_t w_lane = base + Tl::kStages * Tl::kBytesX + warp_tile / F::kTiles * Loader<T, Tl>::kStripBytes + lane * 16;
  keep(w_lane);

  // Plus a zero that the compiler does not know for one: constants it writes into a register anew before each use.
  const uint32_t zero = gridDim.y - args.splits;
  const Masks masks = {F::constants().low + zero, F::constants().high + zero};
  const auto multiply = [&](int stage) {
    uint4 words[Tl::kColTiles];
#pragma unroll
    for (int kk = 0; kk < Tl::BK / 16; ++kk) {
      uint32_t a[Tl::kRowTiles][4];
#pragma unroll
      for (int i = 0; i < Tl::kRowTiles; ++i) {
        ldmatrix_x4(a[i], x_lane[kk] + stage * Tl::kBytesX + i * 16 * Tl::BK * 2);
      }
      const uint32_t w_block = w_lane + stage * Tl::kBytesW + kk / F::kSteps * kBlockBytes;
      if constexpr (F::kTiles == Tl::kColTiles) {
        words[0] = load_words(w_block);
      } else if (kk % F::kSteps == 0) {
#pragma unroll
        for (int j = 0; j < Tl::kColTiles; ++j) words[j] = load_words(w_block + j * Loader<T, Tl>::kStripBytes);
      }
#pragma unroll
      for (int j = 0; j < Tl::kColTiles; ++j) {
        uint32_t b[4];
        F::operands(b, words[F::kTiles == Tl::kColTiles ? 0 : j], j, kk % F::kSteps, groups.negative[j], masks);
#pragma unroll
        for (int i = 0; i < Tl::kRowTiles; ++i) {
          Sum(&low)[4] = *reinterpret_cast<Sum(*)[4]>(&sums[i][j][0]);
          Sum(&high)[4] = *reinterpret_cast<Sum(*)[4]>(&sums[i][j][4]);
          if constexpr (F::kIntegers) {
            mma_m16n8k32_s8(low, a[i], b[0], b[1]);
            mma_m16n8k32_s8(high, a[i], b[2], b[3]);
          } else {
            mma_m16n8k16<T>(low, a[i], b[0], b[1]);
            mma_m16n8k16<T>(high, a[i], b[2], b[3]);
          }
        }
      }
    }
  };

  int done = 0;
  // All stages in turn, so that their addresses are constants; every step of these has one to copy. Of groups these are
  // one segment.
  if (!F::kGroups || args.group % (kUnit * Tl::BK) == 0) {
#pragma unroll 1
    for (; done + 2 * (Tl::kStages - 1) < steps; done += Tl::kStages) {
#pragma unroll
      for (int s = 0; s < Tl::kStages; ++s) {
        cp_async_wait<Tl::kStages - 2>();
        __syncthreads();
        loader.copy((s + Tl::kStages - 1) % Tl::kStages, s);
        if constexpr (F::kGroups) {
          if (s == 1) groups.copy(args, 0);
        }
        cp_async_commit();
        if constexpr (F::kGroups) {
          if (s == 0) groups.enter(args, 0, sums);
        }
        multiply(s);
      }
      loader.advance(Tl::kStages);
    }
  }
  int stage = 0;
#pragma unroll 1
  for (; done < steps; ++done) {
    cp_async_wait<Tl::kStages - 2>();
    __syncthreads();
    const int free_stage = stage == 0 ? Tl::kStages - 1 : stage - 1;
    if (done + Tl::kStages - 1 < steps) {
      loader.copy(free_stage, 0);
      loader.advance(1);
      if constexpr (F::kGroups) {
        if ((free_stage & groups.segment_mask) == 0) groups.copy(args, free_stage);
      }
    } else if (done + Tl::kStages - 1 == steps && part > 0) {
      loader.copy_part(free_stage, 0, part);
      if constexpr (F::kGroups) {
        if ((free_stage & groups.segment_mask) == 0) groups.copy(args, free_stage);
      }
    }
    cp_async_commit();
    if constexpr (F::kGroups) {
      if ((stage & groups.segment_mask) == 0) groups.enter(args, stage, sums);
    }
    multiply(stage);
    stage = stage == Tl::kStages - 1 ? 0 : stage + 1;
  }
  if (part > 0) {
    cp_async_wait<0>();
    __syncthreads();
    if constexpr (F::kGroups) {
      if ((stage & groups.segment_mask) == 0) groups.enter(args, stage, sums);
    }
    multiply(stage);
  }
  if constexpr (F::kGroups) groups.finish(sums);
  cp_async_wait<0>();
  float whole[Tl::kRowTiles][Tl::kColTiles][8];
#pragma unroll
  for (int i = 0; i < Tl::kRowTiles; ++i) {
#pragma unroll
    for (int j = 0; j < Tl::kColTiles; ++j) {
#pragma unroll
      for (int e = 0; e < 8; ++e) whole[i][j][e] = static_cast<float>(sums[i][j][e]);
    }
  }

  bool* last = reinterpret_cast<bool*>(shared);
  if (args.splits > 1 && !join_splits<Tl>(args, blockIdx.x, row_tiles * col_tiles, last, whole)) return;

  // Sixteen rows at a time through shared memory, so that what follows is a short loop in which a lane keeps its
  // columns and a warp's lanes are neighbours in memory. Each warp has its own part; 16-byte chunks of odd rows are
  // swapped by halves of a line.
  __syncthreads();
  constexpr int kColumns = Tl::kColTiles * kTileN;
  constexpr int kLanes = kColumns / 4;  // of a row
  float4* own = reinterpret_cast<float4*>(shared) + warp * (16 * kLanes);
  const int g = lane / 4, t = lane % 4;
  const int column = (n_tile0 + warp_tile) * kTileN + lane % kLanes * 4;
  const Epilogue<T, F::kRowScales, F::kIntegers> epilogue(args, column);
  using Turns = std::conditional_t<kQkv, Turn<Tl::BM>, NoTurn>;
  const Turns turn(more, positions, column);
#pragma unroll
  for (int i = 0; i < Tl::kRowTiles; ++i) {
#pragma unroll
    for (int j = 0; j < Tl::kColTiles; ++j) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const float* s = &whole[i][j][half * 2];
        own[(half * 8 + g) * kLanes + ((j * 4 + t) ^ ((g & 1) * 4))] = make_float4(s[0], s[1], s[4], s[5]);
      }
    }
    __syncwarp();
#pragma unroll 1
    for (int r = lane / kLanes; r < 16; r += kWarpThreads / kLanes) {
      const float4 v = own[r * kLanes + ((lane % kLanes) ^ ((r & 1) * 4))];
      const int row = row0 + warp_row + i * 16 + r;
      if (row >= rows) continue;
      if constexpr (kQkv) {
        store_qkv<T>(more, row, turn.pair, epilogue.count, epilogue.biased(v), turn.of(row - row0));
      } else {
        epilogue.store(args, row, v);
      }
    }
    __syncwarp();
  }
}

}  // namespace engine
