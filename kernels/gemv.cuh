// The body of the kernels for few rows: streams of weights, rings of x, products, sums over warps and splits of k,
// epilogue. For gemv.cu (weights as stored), gemv_int8.cu, gemv_int4.cu; with what comes before and after a layer's
// product in the same launch, for gemv_norm.cu and gemv_qkv.cu.
//
// Owns: the pipeline. Not here: layouts of weights (packed.cuh), what becomes of a sum (epilogue.cuh, qkv.cuh).
#pragma once

#include "epilogue.cuh"
#include "packed.cuh"
#include "qkv.cuh"

namespace engine {

constexpr int kWarps = 8;
// Blocks of two tiles on a multiprocessor. From sm_100 on they take more than the 64 registers that four blocks leave.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 1000
constexpr int kWideBlocks = 3;
#else
constexpr int kWideBlocks = 4;
#endif

// Copies of x: a lane has one 16-byte chunk of every kStep-th row of its warp's unit.
template <typename T, int kRows, int kUnit>
struct Copy {
  static constexpr int kChunks = kUnit * 2;             // of a row of a unit
  static constexpr int kStep = kWarpThreads / kChunks;  // rows
  const char* from;  // this lane's chunk of the next unit, in its first row
  uint32_t to;
  int left;  // columns of x from there on
  int row;

  __device__ __forceinline__ Copy(const LinearArgs& args, uint32_t ring, int unit, int lane) {
    const int chunk = lane % kChunks, at = unit * kUnit * kTileK + chunk * 8;
    row = lane / kChunks;
    from = static_cast<const char*>(args.x) + (static_cast<size_t>(row) * args.x_stride + at) * sizeof(T);
    to = ring + row * kChunks * 16 + (chunk ^ row) * 16;
    left = args.k - at;
  }

  // The weight of x's norm beside x's next unit, as one more row of the ring, in order: all who read it read one chunk.
  __device__ __forceinline__ void next_weight(const LinearArgs& args, const void* weight, uint32_t stage) const {
    if (row != 0) return;
    const int at = left > 0 ? args.k - left : 0;
    cp_async<16>(to + args.rows * kChunks * 16 + stage, static_cast<const T*>(weight) + at,
                 max(min(left, 8), 0) * static_cast<int>(sizeof(T)));
  }

  // The next unit of this warp into its ring at `stage` bytes; columns from k on become zero. Chunk c of row r lies at
  // c ^ (r & 7), so that the eight rows of an ldmatrix phase fall into different banks.
  __device__ __forceinline__ void next(const LinearArgs& args, int rows, uint32_t stage) {
    const int bytes = max(min(left, 8), 0) * static_cast<int>(sizeof(T));
    // A chunk beyond k takes nothing, from an address that is there: the chunk that ends x.
    const char* source = left > 0 ? from : from + ((left - 1) >> 3) * 16;
    const uint32_t apart = kStep * args.x_stride * sizeof(T);
#pragma unroll
    for (int i = 0; i < kRows / kStep; ++i) {
      if (i * kStep >= rows) break;
      const uint32_t target = (to + stage) ^ ((i * kStep & 7) * 16);
      if (i * kStep + row < rows) cp_async<16>(target + i * kStep * kChunks * 16, source, bytes);
      source += apart;
    }
    from += kWarps * kUnit * kTileK * sizeof(T);
    left -= kWarps * kUnit * kTileK;
  }
};

// Of one unit: scales of up to four groups, then their offsets.
template <int kTiles>
constexpr uint32_t kScalesBytes = 2 * 4 * kTiles * kTileN * 2;

// Copies scales and offsets of a unit's groups to `shared`.
template <int kTiles, int kUnit>
__device__ __forceinline__ void copy_scales(const LinearArgs& args, uint32_t shared, int unit, int lane) {
  constexpr int kChunks = kTiles * kTileN / 8;  // of a group, eight scales each
  static_assert(kUnit * kTileK <= 128 && 4 * kChunks <= kWarpThreads, "a chunk a lane");
  const int column = unit * kUnit * kTileK, group = lane / kChunks;
  // The last unit may be half there; its other groups have no weights, so any scale will do.
  const int groups = (min(kUnit * kTileK, args.k_tiles * kTileK - column) + args.group - 1) / args.group;
  const size_t at = static_cast<size_t>(column / args.group + min(group, groups - 1)) * args.n_tiles * kTileN +
                    blockIdx.x * kTiles * kTileN + lane % kChunks * 8;
  cp_async_16(shared + lane * 16, static_cast<const char*>(args.scales) + at * 2);
  if (args.offsets != nullptr) {
    cp_async_16(shared + kScalesBytes<kTiles> / 2 + lane * 16, static_cast<const char*>(args.offsets) + at * 2);
  }
}

// F: the storage of weights (packed.cuh). Up to kRows rows of x, 8 or 16; 16 kTiles rows of w a block; a unit is
// 16 kUnit columns. kNorm: x is normalised first; kQkv: y is q, k and v of attention (qkv.cuh).
template <typename F, int kRows, int kTiles, int kUnit, bool kNorm = false, bool kQkv = false, typename More = int>
__device__ __forceinline__ void gemv(const LinearArgs& args, const More& more = {}) {
  static_assert(!kNorm || kRows == 8, "rows 8 to 15 of the multiply hold the norm's weight");
  static_assert(!F::kGroups || (!kNorm && !kQkv), "what they need lies where scales do");
  using T = typename F::Element;
  extern __shared__ __align__(256) char shared[];
  const int warp = warp_index(), lane = threadIdx.x % kWarpThreads;
  const int tile0 = blockIdx.x * kTiles;
  const int all_units = (args.k_tiles + kUnit - 1) / kUnit;
  const int first = static_cast<int>(static_cast<long long>(all_units) * blockIdx.y / args.splits);
  const int end = static_cast<int>(static_cast<long long>(all_units) * (blockIdx.y + 1) / args.splits);
  int unit = first + warp;
  // This lane's words of the next unit; those of the next strip of rows lie one strip further.
  constexpr int kStrips = kTiles / F::kTiles, kBlocks = kUnit / F::kSteps;
  static_assert(kTiles % F::kTiles == 0 && kUnit % F::kSteps == 0, "units are whole blocks");
  const int strip_bytes = args.k_tiles / F::kSteps * kBlockBytes;
  const char* w = static_cast<const char*>(args.w) + static_cast<size_t>(tile0 / F::kTiles) * strip_bytes +
                  static_cast<size_t>(unit) * kBlocks * kBlockBytes + lane * 16;
  uint4 words[kStrips][kBlocks];
  const auto load = [&](int of) {
#pragma unroll
    for (int j = 0; j < kStrips; ++j) {
      const char* strip = w + static_cast<size_t>(static_cast<uint32_t>(j * strip_bytes));
#pragma unroll
      for (int u = 0; u < kBlocks; ++u) {
        // Columns of w are a multiple of 64, four steps, so the last unit may be half there.
        const bool there = u * F::kSteps < 4 || of * kUnit + u * F::kSteps < args.k_tiles;
        words[j][u] = there ? load_streaming(strip + u * kBlockBytes) : make_uint4(0, 0, 0, 0);
      }
    }
    w += kWarps * kBlocks * kBlockBytes;
  };
  // Weights do not depend on the batch: their first loads are under way before its size is known.
  if (unit < end) load(unit);
  const int rows = live_rows(args);
  if (rows <= 0) return;

  const uint32_t stage_bytes = (args.rows + kNorm) * kUnit * 32;
  const uint32_t ring = shared_address(shared) + warp * 2 * stage_bytes;
  Copy<T, kRows, kUnit> copy(args, ring, unit, lane);
  // Of grouped storage: a ring of two units of scales and offsets, behind that of x.
  const uint32_t scales = shared_address(shared) + kWarps * 2 * stage_bytes + warp * 2 * kScalesBytes<kTiles>;
  constexpr int kVectors = kTiles * 4;  // of four columns
  // Behind the rings of dense storage: for each vector of sums what turns it, then each row's factor.
  float4* turns = reinterpret_cast<float4*>(shared + kWarps * 2 * stage_bytes);
  float* factors = reinterpret_cast<float*>(turns + (kQkv ? args.rows * kVectors : 0));
  if constexpr (kQkv) copy_turn(more, turns, rows, kVectors, tile0 * kTileN);
  if (unit < end) {
    if constexpr (kNorm) copy.next_weight(args, more.norm, 0);
    copy.next(args, rows, 0);
    if constexpr (F::kGroups) copy_scales<kTiles, kUnit>(args, scales, unit, lane);
  }
  cp_async_commit();

  // ldmatrix: lanes 0..15 name rows 0..15 of eight k, lanes 16..31 of the next eight. Rows beyond the batch repeat its
  // last one; their sums are not used.
  const int x_row = min(lane % kRows, rows - 1);
  uint32_t x_lane = ring + x_row * kUnit * 32 + ((lane / 16) ^ (x_row & 7)) * 16;
  // With a norm rows 8 to 15 are eight times its weight, so its elements lie in a register beside those of x that they
  // belong to.
  if (kNorm && lane % 16 >= 8) x_lane = ring + args.rows * kUnit * 32 + lane / 16 * 16;
  float squares[4] = {};  // of a norm: x x^T of the first eight rows
  float sums[kTiles][8] = {};
  // Of the first eight rows, and of the next: that many of a tile's sums are of use.
  constexpr int kHalves = kRows / 8;
  float totals[F::kGroups ? kTiles : 1][kHalves * 4] = {};
  uint32_t negative[kTiles][2];
  if constexpr (F::kGroups) {
#pragma unroll
    for (int j = 0; j < kTiles; ++j) negative[j][0] = negative[j][1] = F::kMinusEight;
  }
  uint32_t stage = 0, scales_stage = 0;
  while (unit < end) {
    const int next = unit + kWarps;
    if (next < end) {
      if constexpr (kNorm) copy.next_weight(args, more.norm, stage ^ stage_bytes);
      copy.next(args, rows, stage ^ stage_bytes);
      if constexpr (F::kGroups) copy_scales<kTiles, kUnit>(args, scales + (scales_stage ^ kScalesBytes<kTiles>), next, lane);
    }
    cp_async_commit();
    cp_async_wait<1>();
    __syncwarp();
#pragma unroll
    for (int u = 0; u < kUnit; ++u) {
      if constexpr (F::kGroups) {
        if (args.offsets != nullptr && (u == 0 || u * kTileK % args.group == 0)) {
          const uint32_t row = scales + scales_stage + kScalesBytes<kTiles> / 2 + u * kTileK / args.group * kTiles * 32 +
                               (lane / 8 * 4 + lane / 4 % 2) * 2;
#pragma unroll
          for (int j = 0; j < kTiles; ++j) {
            negative[j][0] = load_twice(row + j * kTileN * 2);
            negative[j][1] = load_twice(row + j * kTileN * 2 + 4);
          }
        }
      }
      uint32_t a[4];
      // Rows of a unit are aligned to their size, so the chunk's swizzle is a change of low bits.
      ldmatrix_x4(a, (x_lane + stage) ^ (u * 32));
      if constexpr (kNorm) {
        // The same registers are x^T as the other operand.
        mma_m16n8k16<T>(squares, a, a[0], a[2]);
        a[0] = a[1] = fma_pair<T>(a[0], a[1], 0x80008000u);
        a[2] = a[3] = fma_pair<T>(a[2], a[3], 0x80008000u);
      }
#pragma unroll
      for (int j = 0; j < kTiles; ++j) {
        uint32_t b[4];
        F::operands(b, words[j / F::kTiles][u / F::kSteps], j % F::kTiles, u % F::kSteps, negative[j]);
        mma_m16n8k16<T>(*reinterpret_cast<float(*)[4]>(&sums[j][0]), a, b[0], b[1]);
        mma_m16n8k16<T>(*reinterpret_cast<float(*)[4]>(&sums[j][4]), a, b[2], b[3]);
      }
      if constexpr (F::kGroups) {
        // Every group of a unit ends in it as far as its scale is concerned.
        if (u == kUnit - 1 || (u % 2 == 1 && (u + 1) * kTileK % args.group == 0)) {
          const uint32_t row = scales + scales_stage + u * kTileK / args.group * kTiles * 32 + lane % 4 * 8;
#pragma unroll
          for (int j = 0; j < kTiles; ++j) {
            const float4 s = load_scales(row + j * kTileN * 2);
#pragma unroll
            for (int half = 0; half < kHalves; ++half) {
              float* total = totals[F::kGroups ? j : 0] + half * 4;
              const float* sum = &sums[j][half * 2];
              total[0] = fmaf(sum[0], s.x, total[0]), total[1] = fmaf(sum[1], s.y, total[1]);
              total[2] = fmaf(sum[4], s.z, total[2]), total[3] = fmaf(sum[5], s.w, total[3]);
            }
#pragma unroll
            for (int e = 0; e < 8; ++e) sums[j][e] = 0.0f;
          }
        }
      }
    }
    if (next < end) load(next);
    __syncwarp();
    stage ^= stage_bytes;
    scales_stage ^= kScalesBytes<kTiles>;
    unit = next;
  }
  cp_async_wait<0>();
  __syncthreads();

  // Sums of the warps, [warp][row][16 R] in shared memory, where x was; of a norm a row's sum of squares follows.
  constexpr int kColumns = kVectors + kNorm;
  float4* part = reinterpret_cast<float4*>(shared);
  const int g = lane / 4, t = lane % 4;
#pragma unroll
  for (int half = 0; half < kHalves; ++half) {
    const int row = half * 8 + g;
    if (row < rows) {
#pragma unroll
      for (int j = 0; j < kTiles; ++j) {
        const float* s = &sums[j][half * 2];
        const float* total = totals[F::kGroups ? j : 0] + half * 4;
        part[(warp * rows + row) * kColumns + j * 4 + t] =
            F::kGroups ? make_float4(total[0], total[1], total[2], total[3]) : make_float4(s[0], s[1], s[4], s[5]);
      }
      if constexpr (kNorm) {
        const float square = g % 2 == 0 ? squares[0] : squares[1];
        if (t == g / 2) part[(warp * rows + row) * kColumns + kVectors] = make_float4(square, 0.0f, 0.0f, 0.0f);
      }
    }
  }
  __syncthreads();
  const auto add = [](float4 a, float4 b) { return make_float4(a.x + b.x, a.y + b.y, a.z + b.z, a.w + b.w); };
  const int count = rows * kColumns, index = threadIdx.x;
  static_assert(kRows * kColumns <= kWarps * kWarpThreads, "a thread an output vector");
  float4 sum;
  if (index < count) {
    sum = part[index];
#pragma unroll
    for (int i = 1; i < kWarps; ++i) sum = add(sum, part[i * count + index]);
  }
  if (args.splits > 1) {
    float4* mine = reinterpret_cast<float4*>(args.partial) + static_cast<size_t>(blockIdx.x) * args.splits * count + index;
    if (index < count) mine[static_cast<size_t>(blockIdx.y) * count] = sum;
    if (!arrive_last(&args.arrived[blockIdx.x], args.splits, reinterpret_cast<bool*>(shared))) return;
    if (index < count) {
      sum = __ldcg(mine);
#pragma unroll 4
      for (int split = 1; split < args.splits; ++split) sum = add(sum, __ldcg(&mine[static_cast<size_t>(split) * count]));
    }
  }
  const int row = index / kColumns, vector = index % kColumns;
  if constexpr (kNorm) {
    if (index < count && vector == kVectors) factors[row] = norm_factor<T>(more, args.k, sum.x);
    __syncthreads();
    if (vector == kVectors) return;
  }
  if (index < count) {
    const Epilogue<T, F::kRowScales, false> epilogue(args, tile0 * kTileN + vector * 4);
    if constexpr (kNorm) {
      const float f = factors[row];
      sum = make_float4(sum.x * f, sum.y * f, sum.z * f, sum.w * f);
    }
    if constexpr (kQkv) {
      sum = epilogue.biased(epilogue.scaled(sum));
      store_qkv<T>(more, row, epilogue.col, epilogue.count, sum, turns[row * kVectors + vector]);
    } else {
      epilogue.store(args, row, sum);
    }
  }
}

}  // namespace engine
