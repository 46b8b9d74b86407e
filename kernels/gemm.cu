// y[m, n] = x[m, k] * w[n, k]^T with an epilogue, on tensor cores, for more rows than gemv.cu takes.
//
//   linear  y = r + act(x w^T + b)      bias, activation and residual each optional; y is T or f32
//   gated   y = act(x gate^T) * (x up^T)
//
// In      x [rows, k] T, x_stride % 8 == 0, 16-byte aligned; columns from k on are never read
//         w packed (packed.cuh); bias [n] f32; residual [rows, n] T, stride % 4 == 0, may be y
// Out     y [rows, n]: T with a stride of a multiple of 4 elements, or f32 with any
//         T is __half or __nv_bfloat16 (suffix f16, bf16); arguments: LinearArgs (epilogue.cuh)
// Grid    x: row tiles * column tiles, eight row tiles at a time so that weights are shared in L2; y: splits of k.
//         Tiles from *num_rows on do nothing, so that a graph captured for a bucket serves every batch in it
// Block   one warp a warp tile; name: gemm_<T>_<BM>x<BN>
// Shared  kStages * (BM + BN) * BK * 2 bytes, dynamic
// Limits  every m, n, k >= 1 within 2^31 elements
// Cost    2 m n k FLOPs; x is read once a column tile, w once a row tile (mostly from L2). Bound by tensor cores
//         from m of about 150 (H100) on, by weights below
// Numerics products exact, f32 sums in tensor-core order, k ascending; epilogue in f32, one rounding to T. With splits,
//         the last block of a tile to arrive adds the parts in order of k: same bits on every run
// Caller  engine/backend/cuda/ops/linear.rs, gated_linear.rs
// Oracle  engine/backend/cpu/matmul; tests/cuda_ops/linear.rs

#include "epilogue.cuh"
#include "packed.cuh"

using namespace engine;

template <int kBM, int kBN, int kBK, int kWarpsM, int kWarpsN, int kStageCount>
struct Tile {
  static constexpr int BM = kBM, BN = kBN, BK = kBK, kStages = kStageCount;
  static constexpr int kWarpColumns = kWarpsN;
  static constexpr int kThreads = kWarpsM * kWarpsN * kWarpThreads;
  // Of a warp, in tiles of 16.
  static constexpr int kRowTiles = BM / kWarpsM / 16;
  static constexpr int kColTiles = BN / kWarpsN / 16;
  static constexpr int kBytesX = BM * BK * 2;
  static constexpr int kBytesW = BN * BK * 2;
  static constexpr int kSharedBytes = kStages * (kBytesX + kBytesW);
  static_assert(BK == 32 || BK == 64, "rows of x in shared memory are 64 or 128 bytes");
  static_assert(kColTiles == 2 || kColTiles == 4, "rows of a warp's sums are one or two lines of shared memory");
  static_assert(kSharedBytes >= BM * BN * 4, "the sums fit where the stages were");
};

// Where 16-byte chunk `chunk` of row `row` of x lies in shared memory: swizzled so that the eight rows that one
// ldmatrix phase reads fall into different banks.
template <int kBK>
__device__ __forceinline__ int x_offset(int row, int chunk) {
  constexpr int kChunks = kBK / 8;
  const int key = kChunks == 8 ? row & 7 : (row >> 1) & 3;
  return (row * kChunks + (chunk ^ key)) * 16;
}

// Copies of one stage. A thread's chunks of x are all in one column of chunks, those of w at one offset in its tiles.
template <typename T, typename Tl>
struct Loader {
  static constexpr int kChunks = Tl::BK / 8;                    // of a row of x
  static constexpr int kRowsApart = Tl::kThreads / kChunks;     // rows between a thread's chunks
  static constexpr int kCountX = Tl::BM / kRowsApart;
  static constexpr int kTileChunks = Tl::BK / 16 * kWarpThreads;  // of one row of tiles of w
  static constexpr int kCountW = Tl::BN * Tl::BK / 8 / Tl::kThreads;
  static_assert(Tl::BM % kRowsApart == 0, "x divides among the threads");
  static_assert(kRowsApart % 8 == 0, "one swizzle key a thread");
  static_assert(Tl::kThreads % kTileChunks == 0 && kCountW % 2 == 0, "w divides into halves of whole tiles");

  const char* x;            // this thread's chunk of the tile's first row, at k = 0
  uint32_t x_row[kCountX];  // bytes from there to this thread's rows
  const char* w;            // the next step of its first tile
  uint32_t w_apart, w_half; // bytes to its next tile, and to the second half of its tiles
  uint32_t x_shared, w_shared;
  int at, k;                // elements: where the next step's chunk lies, where x ends

  __device__ __forceinline__ Loader(const LinearArgs& args, uint32_t shared, int rows, int row0, int n_tile0, int step) {
    const int tid = threadIdx.x;
    const int chunk = tid % kChunks, row = tid / kChunks;
    x = static_cast<const char*>(args.x) + static_cast<size_t>(row0) * args.x_stride * sizeof(T);
#pragma unroll
    for (int i = 0; i < kCountX; ++i) {
      // Rows beyond the batch repeat its last one: they are real memory, and their results are not stored.
      x_row[i] = min(row + i * kRowsApart, rows - 1 - row0) * args.x_stride * static_cast<int>(sizeof(T));
    }
    at = step * Tl::BK + chunk * 8;
    k = args.k;
    const int tile_bytes = args.k_tiles * kTileBytes;
    w = static_cast<const char*>(args.w) + static_cast<size_t>(n_tile0 + tid / kTileChunks) * tile_bytes +
        step * (Tl::BK / 16) * kTileBytes + tid % kTileChunks * 16;
    w_apart = Tl::kThreads / kTileChunks * tile_bytes;
    // Packed rows are a multiple of 64: of the last 128 the second half may not be there; the first stands in for it.
    w_half = n_tile0 + Tl::BN / 16 <= args.n_tiles ? w_apart * (kCountW / 2) : 0;
    x_shared = shared + x_offset<Tl::BK>(row, chunk);
    w_shared = shared + Tl::kStages * Tl::kBytesX + tid * 16;
  }

  // The next step of k into stage `stage`.
  __device__ __forceinline__ void copy(int stage) {
    const int bytes = max(min(k - at, 8), 0) * static_cast<int>(sizeof(T));
    // A chunk that starts beyond k takes nothing, from an address that is there.
    const char* from = x + min(at, (k - 1) & ~7) * static_cast<int>(sizeof(T));
    at += Tl::BK;
#pragma unroll
    for (int i = 0; i < kCountX; ++i) {
      cp_async<16>(x_shared + stage * Tl::kBytesX + i * kRowsApart * Tl::BK * 2, from + x_row[i], bytes);
    }
#pragma unroll
    for (int i = 0; i < kCountW; ++i) {
      const uint32_t offset = i < kCountW / 2 ? w_apart * i : w_half + w_apart * (i - kCountW / 2);
      cp_async_16(w_shared + stage * Tl::kBytesW + i * Tl::kThreads * 16, w + offset);
    }
    w += Tl::BK / 16 * kTileBytes;
  }
};

// Adds the parts of a tile that other blocks computed. True in the block that arrived last, whose `sums` are then
// whole; the others are done.
template <typename Tl>
__device__ __forceinline__ bool join_splits(const LinearArgs& args, int tile, int tiles,
                                            float (&sums)[Tl::kRowTiles][Tl::kColTiles][8]) {
  __shared__ bool last;
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
  if (!arrive_last(&args.arrived[tile], args.splits, &last)) return false;
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

template <typename T, typename Tl>
__device__ __forceinline__ void gemm(const LinearArgs& args) {
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

  const int all_steps = (args.k + Tl::BK - 1) / Tl::BK;
  const int first = static_cast<int>(static_cast<long long>(all_steps) * blockIdx.y / args.splits);
  const int steps = static_cast<int>(static_cast<long long>(all_steps) * (blockIdx.y + 1) / args.splits) - first;

  const uint32_t base = shared_address(shared);
  Loader<T, Tl> loader(args, base, rows, row0, n_tile0, first);
#pragma unroll
  for (int s = 0; s < Tl::kStages - 1; ++s) {
    if (s < steps) loader.copy(s);
    cp_async_commit();
  }

  const int warp = warp_index(), lane = threadIdx.x % kWarpThreads;
  const int warp_row = warp / Tl::kWarpColumns * Tl::kRowTiles * 16;
  const int warp_tile = warp % Tl::kWarpColumns * Tl::kColTiles;
  // ldmatrix: lanes 0..15 name rows 0..15 of the first eight k, lanes 16..31 of the next eight.
  const uint32_t x_lane = base + (warp_row + lane % 16) * Tl::BK * 2;
  const int x_key = Tl::BK == 64 ? lane & 7 : (lane >> 1) & 3;
  const uint32_t w_lane = base + Tl::kStages * Tl::kBytesX + warp_tile * (Tl::BK / 16) * kTileBytes + lane * 16;

  float sums[Tl::kRowTiles][Tl::kColTiles][8];
#pragma unroll
  for (int i = 0; i < Tl::kRowTiles; ++i) {
#pragma unroll
    for (int j = 0; j < Tl::kColTiles; ++j) {
#pragma unroll
      for (int e = 0; e < 8; ++e) sums[i][j][e] = 0.0f;
    }
  }

  int stage = 0;
  for (int step = 0; step < steps; ++step) {
    cp_async_wait<Tl::kStages - 2>();
    __syncthreads();
    const int free_stage = stage == 0 ? Tl::kStages - 1 : stage - 1;
    if (step + Tl::kStages - 1 < steps) loader.copy(free_stage);
    cp_async_commit();
#pragma unroll
    for (int kk = 0; kk < Tl::BK / 16; ++kk) {
      uint32_t a[Tl::kRowTiles][4];
#pragma unroll
      for (int i = 0; i < Tl::kRowTiles; ++i) {
        const uint32_t chunk = ((kk * 2 + lane / 16) ^ x_key) * 16;
        ldmatrix_x4(a[i], x_lane + stage * Tl::kBytesX + i * 16 * Tl::BK * 2 + chunk);
      }
#pragma unroll
      for (int j = 0; j < Tl::kColTiles; ++j) {
        uint32_t b0, b1, b2, b3;
        asm volatile("ld.shared.v4.u32 {%0,%1,%2,%3}, [%4];"
                     : "=r"(b0), "=r"(b1), "=r"(b2), "=r"(b3)
                     : "r"(w_lane + stage * Tl::kBytesW + (j * (Tl::BK / 16) + kk) * kTileBytes)
                     : "memory");
#pragma unroll
        for (int i = 0; i < Tl::kRowTiles; ++i) {
          mma_m16n8k16<T>(*reinterpret_cast<float(*)[4]>(&sums[i][j][0]), a[i], b0, b1);
          mma_m16n8k16<T>(*reinterpret_cast<float(*)[4]>(&sums[i][j][4]), a[i], b2, b3);
        }
      }
    }
    stage = stage == Tl::kStages - 1 ? 0 : stage + 1;
  }
  cp_async_wait<0>();

  if (args.splits > 1 && !join_splits<Tl>(args, blockIdx.x, row_tiles * col_tiles, sums)) return;

  // Through shared memory, so that what follows is a short loop in which a lane keeps its columns and a warp's lanes
  // are neighbours in memory. Each warp has its own part; 16-byte chunks of odd rows are swapped by halves of a line.
  __syncthreads();
  constexpr int kColumns = Tl::kColTiles * kTileN, kRows = Tl::kRowTiles * 16;
  float4* own = reinterpret_cast<float4*>(shared) + warp * (kRows * kColumns / 4);
  const int g = lane / 4, t = lane % 4;
#pragma unroll
  for (int i = 0; i < Tl::kRowTiles; ++i) {
#pragma unroll
    for (int j = 0; j < Tl::kColTiles; ++j) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const float* s = &sums[i][j][half * 2];
        const int row = i * 16 + half * 8 + g, chunk = (j * 4 + t) ^ ((g & 1) * 4);
        own[row * (kColumns / 4) + chunk] = make_float4(s[0], s[1], s[4], s[5]);
      }
    }
  }
  __syncwarp();
  constexpr int kLanes = kColumns / 4;  // of a row
  const int column = (n_tile0 + warp_tile) * kTileN + lane % kLanes * 4;
  const Epilogue<T> epilogue(args, column);
#pragma unroll 4
  for (int r = lane / kLanes; r < kRows; r += kWarpThreads / kLanes) {
    const float4 v = own[r * kLanes + ((lane % kLanes) ^ ((r & 1) * 4))];
    const int row = row0 + warp_row + r;
    if (row < rows) epilogue.store(args, row, v);
  }
}

#define GEMM(suffix, T, BM, BN, BK, WM, WN, STAGES, BLOCKS)                                                        \
  extern "C" __global__ void __launch_bounds__(WM* WN* kWarpThreads, BLOCKS)                                       \
      gemm_##suffix##_##BM##x##BN(const LinearArgs args) {                                                          \
    gemm<T, Tile<BM, BN, BK, WM, WN, STAGES>>(args);                                                                \
  }
#define GEMM_TILES(suffix, T)                    \
  GEMM(suffix, T, 32, 128, 64, 1, 4, 4, 2)       \
  GEMM(suffix, T, 64, 128, 64, 1, 4, 4, 2)       \
  GEMM(suffix, T, 128, 128, 32, 2, 2, 4, 2)

GEMM_TILES(bf16, __nv_bfloat16)
GEMM_TILES(f16, __half)
