// What the kernels for few rows share: copies of x, and what becomes of the warps' sums. Then the body of those for
// weights as stored, gemv.cu, with what comes before and after a layer's product in the same launch, for gemv_norm.cu
// and gemv_qkv.cu. That of integers is gemv_integers.cuh.
//
// Owns: the pipeline. Not here: layouts of weights (packed.cuh), what becomes of a sum (epilogue.cuh, qkv.cuh).
#pragma once

#include "epilogue.cuh"
#include "packed.cuh"
#include "qkv.cuh"

namespace engine {

constexpr int kWarps = 8;
// Blocks with a norm on a multiprocessor. build.rs gives parts on which 48 registers do not hold them four.
constexpr int kNormBlocks = 5;

// x in shared memory, 16 kSteps columns at a time. A row has a chunk of 16 bytes more than that, so that the eight rows
// of an ldmatrix phase lie in different banks.
template <int kSteps>
constexpr int kRowBytes = kSteps * kTileK * 2 + 16;

// The part of `kSharing` warps in copies of a unit of x, `kSteps` steps of `kRows` rows: a lane has one 16-byte chunk of
// every kApart-th of its warp's rows.
template <typename T, int kRows, int kSteps, int kSharing>
struct Copy {
  static constexpr int kChunks = kSteps * 2;             // of a row of a unit
  static constexpr int kApart = kWarpThreads / kChunks;  // rows
  static constexpr int kCopies = kRows / (kApart * kSharing);
  static_assert(kCopies * kApart * kSharing == kRows, "every row once");
  uint32_t from;  // bytes from x to this lane's chunk of the next unit, in its first row
  uint32_t to;
  int row, rows;

  // `to` and `unit` are the first unit's; `which` of the warps that share the work is this.
  __device__ __forceinline__ Copy(const LinearArgs& args, uint32_t to, int unit, int which, int lane, int rows)
      : row(which * kCopies * kApart + lane / kChunks), rows(rows) {
    from = (row * args.x_stride + unit * (kSteps * kTileK) + lane % kChunks * 8) * static_cast<uint32_t>(sizeof(T));
    this->to = to + row * kRowBytes<kSteps> + lane % kChunks * 16;
  }

  // The next unit, to `target` bytes behind the first's place. The one after it is `columns` columns further.
  __device__ __forceinline__ void next(const LinearArgs& args, uint32_t target, int columns) {
    const uint32_t apart = kApart * args.x_stride * sizeof(T);
#pragma unroll
    for (int i = kCopies - 1; i >= 0; --i) {
      cp_async_16_if(row + i * kApart < rows, to + target + i * kApart * kRowBytes<kSteps>,
                     static_cast<const char*>(args.x) + (from + i * apart));
    }
    from += columns * sizeof(T);
  }

  // The last unit, of which `columns` are there from this lane's chunk on: the others become zero.
  __device__ __forceinline__ void last(const LinearArgs& args, int columns) const {
    const int bytes = max(min(columns, 8), 0) * static_cast<int>(sizeof(T));
#pragma unroll 1
    for (int i = 0; i < kCopies && row + i * kApart < rows; ++i) {
      // A chunk without columns takes nothing, from an address that is there.
      const uint32_t source = bytes > 0 ? from + i * kApart * args.x_stride * static_cast<uint32_t>(sizeof(T)) : 0;
      cp_async<16>(to + i * kApart * kRowBytes<kSteps>, static_cast<const char*>(args.x) + source, bytes);
    }
  }
};

// Units of a part of k: of `units` those that this block takes, which its `parts` take in turn, from `first` on.
struct Units {
  int first, end, left;
  __device__ __forceinline__ Units(const LinearArgs& args, int units, int part, int parts) {
    const unsigned splits = args.splits, begin = units * blockIdx.y / splits;
    end = units * (blockIdx.y + 1) / splits;
    first = begin + part;
    left = (end - first + parts - 1) / parts;
  }
};

// The thread's number, read again: a kernel that computes from it what it needs at the end has no registers for that in
// its loop.
__device__ __forceinline__ int thread_index() {
  int index;
  asm volatile("mov.u32 %0, %%tid.x;" : "=r"(index));
  return index;
}

// What a thread has of a block's output: four neighbouring columns of a row, vector `vector` of it; with a norm also one
// thread a row has the sum of squares instead, as the vector behind the last.
struct Place {
  int row, vector;
  bool mine;
};

__device__ __forceinline__ float4 add(float4 a, float4 b) {
  return make_float4(a.x + b.x, a.y + b.y, a.z + b.z, a.w + b.w);
}

// The block's sums, `kVectors` vectors a row: those of splits together, then the epilogue. `factors` are `rows` floats
// of shared memory, `turn` what turns this thread's vector. `shared` is free.
template <typename F, int kVectors, bool kNorm, bool kQkv, typename More>
__device__ __forceinline__ void finish(const LinearArgs& args, const More& more, char* shared, const Place& place,
                                       int rows, float4 sum, float* factors, float4 turn) {
  using T = typename F::Element;
  constexpr int kColumns = kVectors + kNorm;
  if (args.splits > 1) {
    const int count = rows * kColumns;
    float4* mine = reinterpret_cast<float4*>(args.partial) + static_cast<size_t>(blockIdx.x) * args.splits * count +
                   place.row * kColumns + place.vector;
    if (place.mine) mine[static_cast<size_t>(blockIdx.y) * count] = sum;
    if (!arrive_last(&args.arrived[blockIdx.x], args.splits, reinterpret_cast<bool*>(shared))) return;
    if (place.mine) {
      sum = __ldcg(mine);
#pragma unroll 4
      for (int split = 1; split < args.splits; ++split) sum = add(sum, __ldcg(&mine[static_cast<size_t>(split) * count]));
    }
  }
  if constexpr (kNorm) {
    if (place.mine && place.vector == kVectors) factors[place.row] = norm_factor<T>(more, args.k, sum.x);
    __syncthreads();
  }
  if (!place.mine || place.vector == kVectors) return;
  const Epilogue<T, F::kRowScales, false> epilogue(args, (blockIdx.x * kVectors + place.vector) * 4);
  if constexpr (kNorm) {
    const float f = factors[place.row];
    sum = make_float4(sum.x * f, sum.y * f, sum.z * f, sum.w * f);
  }
  if constexpr (kQkv) {
    sum = epilogue.biased(epilogue.scaled(sum));
    store_qkv<T>(more, place.row, PairOfHead(more, epilogue.col), epilogue.count, sum, turn);
  } else {
    epilogue.store(args, place.row, sum);
  }
}

// Weights as stored. Up to kRows rows of x, 8 or 16; a block has kTiles tiles of 16 rows of w, a warp one of them, and the
// kTiles warps of a part of k share its x. kNorm: x is normalised first; kQkv: y is q, k and v of attention (qkv.cuh).
template <typename T, int kRows, int kTiles, bool kNorm = false, bool kQkv = false, typename More = int>
__device__ __forceinline__ void gemv(const LinearArgs& args, const More& more = {}) {
  static_assert(!kNorm || kRows == 8, "rows 8 to 15 of the multiply hold the norm's weight");
  constexpr int kParts = kWarps / kTiles;
  constexpr int kSteps = 4;  // of a unit: 64 columns, what those of w are a multiple of
  constexpr int kAhead = kNorm ? 4 : 6;  // tiles of w that a warp has in flight, 16 bytes a thread each
  constexpr int kRound = kNorm ? 4 : 6;  // units after which words and stages of x are where they were
  static_assert(kRound * kSteps % kAhead == 0 && kRound % 2 == 0, "a round");
  constexpr int kStage = (kRows + kNorm) * kRowBytes<kSteps>;  // bytes; two stages a part
  constexpr int kUnitBytes = kSteps * kBlockBytes;
  extern __shared__ __align__(256) char shared[];
  const int warp = warp_index(), lane = threadIdx.x % kWarpThreads;
  const int tile = warp % kTiles, part = warp / kTiles;
  const int whole = args.k / (kSteps * kTileK);  // units
  Units units(args, whole, part, kParts);
  const char* w = static_cast<const char*>(args.w) + lane * 16 +
                  (static_cast<size_t>(blockIdx.x * kTiles + tile) * args.k_tiles + units.first * kSteps) * kBlockBytes;
  // Step p of a round, and where it lies.
  uint4 words[kAhead];
  const auto load = [&](int p) {
    words[p % kAhead] = load_streaming(w + (p / kSteps * kParts * kUnitBytes + p % kSteps * kBlockBytes));
  };
  // Weights do not depend on the batch: their first loads are under way before its size is known.
#pragma unroll
  for (int p = 0; p < kAhead; ++p) {
    if (units.left > p / kSteps) load(p);
  }
  const int rows = live_rows(args);
  if (rows <= 0) return;

  // Where a thread's output goes, which is where the multiply leaves it.
  constexpr int kHalves = kRows / 8, kVectors = kTiles * 4, kOutputs = kTiles * kHalves * kWarpThreads;
  const auto find_place = [&](int thread) {
    const int of_warp = thread / kWarpThreads, of_lane = thread % kWarpThreads;
    Place place{of_warp % kHalves * 8 + of_lane / 4, of_warp / kHalves * 4 + of_lane % 4, false};
    if (kNorm && of_warp == kOutputs / kWarpThreads) place = {of_lane, kVectors, of_lane < rows};
    if (thread < kOutputs) place.mine = place.row < rows;
    return place;
  };

  constexpr int kSquares = kWarps * kHalves * kWarpThreads * 16, kSums = kSquares + (kNorm ? kParts * 32 : 0);
  constexpr int kUsed = kParts * 2 * kStage > kSums ? kParts * 2 * kStage : kSums;
  // Behind x: what turns each vector of sums; each row's factor.
  float* turns = reinterpret_cast<float*>(shared + kUsed);
  float* factors = turns + (kQkv ? 4 * kOutputs : 0);
  if constexpr (kQkv) {
    const int index = threadIdx.x;
    const Place place = find_place(index);
    if (place.mine && place.vector < kVectors) {
      copy_turn(more, turns + index, kOutputs, place.row, rows, (blockIdx.x * kVectors + place.vector) * 4);
    }
  }

  const uint32_t ring = shared_address(shared) + part * 2 * kStage;
  const auto meet = [&] {
    if constexpr (kTiles == 1) {
      __syncwarp();
    } else {
      asm volatile("bar.sync %0, %1;" ::"r"(part + 1), "n"(kTiles * kWarpThreads) : "memory");
    }
  };
  Copy<T, kRows, kSteps, kTiles> copy(args, ring, units.first, tile, lane, rows);
  // The norm's weight is one more row, copied by those who have the first.
  const bool norm_mine = kNorm && tile == 0 && lane < 8;
  constexpr uint32_t kNormRow = kRows * kRowBytes<kSteps>;

  // ldmatrix: lanes 0..15 name rows 0..15 of eight k, lanes 16..31 of the next eight. Rows beyond the batch repeat its
  // last one; their sums are not used. With a norm rows 8 to 15 are eight times its weight, so its elements lie in a
  // register beside those of x that they belong to.
  int x_row = min(lane % kRows, rows - 1);
  if (kNorm && lane % 16 >= 8) x_row = kRows;
  const uint32_t x_lane = ring + x_row * kRowBytes<kSteps> + lane / 16 * 16;
  float squares[4] = {};  // of a norm: x x^T
  float sums[8] = {};
  const auto multiply = [&](uint32_t x, const uint4& b) {
    uint32_t a[4];
    ldmatrix_x4(a, x);
    if constexpr (kNorm) {
      // The same registers are x^T as the other operand. What lies in rows 8 to 15 of the products is not used.
      mma_m16n8k8<T>(squares, a[0], a[1], a[0]);
      mma_m16n8k8<T>(squares, a[2], a[3], a[2]);
      a[0] = fma_pair<T>(a[0], a[1], 0x80008000u);
      a[2] = fma_pair<T>(a[2], a[3], 0x80008000u);
    }
    mma_m16n8k16<T>(*reinterpret_cast<float(*)[4]>(&sums[0]), a, b.x, b.y);
    mma_m16n8k16<T>(*reinterpret_cast<float(*)[4]>(&sums[4]), a, b.z, b.w);
  };
  constexpr int kApart = kParts * kSteps * kTileK;  // columns from unit to unit
  const auto copy_unit = [&](int stage) {
    if constexpr (kNorm) {
      cp_async_16_if(norm_mine, copy.to + kNormRow + stage * kStage, static_cast<const char*>(more.norm) + copy.from);
    }
    copy.next(args, stage * kStage, kApart);
    cp_async_commit();
  };
  const auto stream = [&] {
    copy_unit(0);
    bool next = units.left > 1;
    while (true) {
#pragma unroll
      for (int i = 0; i < kRound; ++i) {
        // This unit is there for all who wait, and they have read the one before it.
        cp_async_wait<0>();
        meet();
        if (next) copy_unit((i + 1) % 2);
        const bool second = units.left > i + 2;
#pragma unroll
        for (int s = 0; s < kSteps; ++s) {
          const int p = i * kSteps + s;
          multiply(x_lane + i % 2 * kStage + s * 32, words[p % kAhead]);
          if ((p + kAhead) / kSteps == i + 1 ? next : second) load(p + kAhead);
        }
        if (!next) return;
        next = second;
      }
      units.left -= kRound;
      w += kRound * kParts * kUnitBytes;
    }
  };
  if (units.left > 0) stream();
  // Columns that do not fill a unit: at the end, and without haste.
  if (args.k % (kSteps * kTileK) != 0 && part == 0 && blockIdx.y + 1 == args.splits) {
    meet();
    const int lane = thread_index() % kWarpThreads, column = whole * kSteps * kTileK + lane % 8 * 8;
    const Copy<T, kRows, kSteps, kTiles> last(args, ring, whole, tile, lane, rows);
    last.last(args, args.k - column);
    if constexpr (kNorm) {
      const int there = max(min(args.k - column, 8), 0);
      const char* weight = static_cast<const char*>(more.norm) + column * sizeof(T);
      if (norm_mine) cp_async<16>(last.to + kNormRow, there > 0 ? weight : args.x, there * static_cast<int>(sizeof(T)));
    }
    cp_async_commit();
    cp_async_wait<0>();
    meet();
    const char* from = static_cast<const char*>(args.w) + lane * 16 +
                       (static_cast<size_t>(blockIdx.x * kTiles + tile) * args.k_tiles + whole * kSteps) * kBlockBytes;
#pragma unroll 1
    for (int s = 0; s < kSteps; ++s) multiply(x_lane + s * 32, load_streaming(from + s * kBlockBytes));
  }
  // What turns sums is a group of its own where a part has had no unit.
  cp_async_commit();
  cp_async_wait<0>();
  __syncthreads();

  // Sums of the warps, [part][tile][half][lane], where x was; of a norm the rows' sums of squares follow, [part][row].
  float4* parts = reinterpret_cast<float4*>(shared);
  float* squares_of = reinterpret_cast<float*>(shared + kSquares);
#pragma unroll
  for (int half = 0; half < kHalves; ++half) {
    const float* s = &sums[half * 2];
    parts[(warp * kHalves + half) * kWarpThreads + lane] = make_float4(s[0], s[1], s[4], s[5]);
  }
  if constexpr (kNorm) {
    const int g = lane / 4;
    if (tile == 0 && lane % 4 == g / 2) squares_of[part * 8 + g] = g % 2 == 0 ? squares[0] : squares[1];
  }
  __syncthreads();
  const int index = thread_index();
  const Place place = find_place(index);
  float4 sum = make_float4(0.0f, 0.0f, 0.0f, 0.0f), turn = sum;
  if (index < kOutputs) {
    sum = parts[index];
#pragma unroll
    for (int i = 1; i < kParts; ++i) sum = add(sum, parts[i * kOutputs + index]);
    if (kQkv && place.mine) {
      turn = make_float4(turns[index], turns[kOutputs + index], turns[2 * kOutputs + index], turns[3 * kOutputs + index]);
    }
  } else if (kNorm && place.mine) {
    for (int i = 0; i < kParts; ++i) sum.x += squares_of[i * 8 + place.row];
  }
  finish<Dense<T>, kVectors, kNorm, kQkv>(args, more, shared, place, rows, sum, factors, turn);
}

}  // namespace engine
