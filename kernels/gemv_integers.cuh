// The body of the kernels for few rows whose weights are integers: gemv_int8.cu, gemv_int4.cu.
//
// Owns: how integers become operands without a step that their sum can take instead, and the pipeline. Not here: layouts
// of weights (packed.cuh), copies of x and what becomes of the warps' sums (gemv.cuh).
#pragma once

#include "gemv.cuh"

namespace engine {

// Weights are the 16 rows of the multiply, rows of x its 8 columns: a multiply a tile and step, and registers that are
// made here may be in any order. Words become operands a[0], a[2] of row feature(g), a[1], a[3] of feature(g) + 2.
template <typename T>
struct StreamInt8 : Int8<T> {
  // 128 + q as the low bits of a number is (128 + q) 2^-133, of f16 2^-24, for subnormal numbers and the first normal
  // ones alike. Times 2^126, of f16 2^15, less 128 of that, it is q / kUnit.
  static constexpr float kUnit = kIsBf16<T> ? 128.0f : 512.0f;
  static constexpr uint32_t kLift = kIsBf16<T> ? 0x7e807e80u : 0x78007800u;
  static constexpr uint32_t kLess = kIsBf16<T> ? 0xbf80bf80u : 0xb400b400u;
  static __device__ __forceinline__ void operands(uint32_t (&a)[4], const uint4& w, int step) {
    const uint32_t first = (step == 0 ? w.x : w.y) ^ 0x80808080u, second = (step == 0 ? w.z : w.w) ^ 0x80808080u;
    a[0] = fma_pair<T>(__byte_perm(first, 0, 0x4240), kLift, kLess);
    a[1] = fma_pair<T>(__byte_perm(second, 0, 0x4240), kLift, kLess);
    a[2] = fma_pair<T>(__byte_perm(first, 0, 0x4341), kLift, kLess);
    a[3] = fma_pair<T>(__byte_perm(second, 0, 0x4341), kLift, kLess);
  }
};

template <typename T>
struct StreamInt4 : Int4<T> {
  // Base + nibble: what is too much is taken from the sum.
  static __device__ __forceinline__ uint32_t pair(uint32_t w, uint32_t mask) { return (w & mask) | Int4<T>::kBase; }
  // Of tile `j` of a lane's words.
  static __device__ __forceinline__ void operands(uint32_t (&a)[4], const uint4& words, int j, uint32_t mask) {
    const uint32_t w = j == 0 ? words.x : j == 1 ? words.y : j == 2 ? words.z : words.w;
    a[0] = pair(w, mask), a[1] = pair(w >> 8, mask), a[2] = pair(w >> 4, mask), a[3] = pair(w >> 12, mask);
  }
};

// d = a * b + c, [16, 16] x [16, 8]: the first of a run of sums that starts from another's registers.
template <typename T>
__device__ __forceinline__ void mma_m16n8k16_from(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1,
                                                  const float (&c)[4]) {
  if constexpr (kIsBf16<T>) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%10,%11,%12,%13};"
        : "=f"(d[0]), "=f"(d[1]), "=f"(d[2]), "=f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1), "f"(c[0]), "f"(c[1]), "f"(c[2]), "f"(c[3]));
  } else {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%10,%11,%12,%13};"
        : "=f"(d[0]), "=f"(d[1]), "=f"(d[2]), "=f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1), "f"(c[0]), "f"(c[1]), "f"(c[2]), "f"(c[3]));
  }
}

__device__ __forceinline__ float4 load_vector(uint32_t address) {
  float4 v;
  asm volatile("ld.shared.v4.f32 {%0,%1,%2,%3}, [%4];"
               : "=f"(v.x), "=f"(v.y), "=f"(v.z), "=f"(v.w)
               : "r"(address)
               : "memory");
  return v;
}
__device__ __forceinline__ void store_vector(uint32_t address, float4 v) {
  asm volatile("st.shared.v4.f32 [%0], {%1,%2,%3,%4};" ::"r"(address), "f"(v.x), "f"(v.y), "f"(v.z), "f"(v.w) : "memory");
}
// A 16-bit element.
template <typename T>
__device__ __forceinline__ float load_element(uint32_t address) {
  uint16_t v;
  asm volatile("ld.shared.u16 %0, [%1];" : "=h"(v) : "r"(address) : "memory");
  if constexpr (kIsBf16<T>) return __uint_as_float(static_cast<uint32_t>(v) << 16);
  return __half2float(__ushort_as_half(v));
}

// F: StreamInt8 or StreamInt4. Up to 8 rows of x. A warp's unit is 128 columns of all of the block's rows of w, whose
// words it holds while they are multiplied. kGroupSteps: of int4, steps of 16 columns with one scale, at most 8.
template <typename F, int kGroupSteps = 8, bool kOffsets = false>
__device__ __forceinline__ void gemv_integers(const LinearArgs& args) {
  using T = typename F::Element;
  constexpr int kRows = 8, kSteps = 8;
  constexpr int kTiles = F::kGroups ? F::kTiles : 2;
  constexpr int kStrips = kTiles / F::kTiles, kBlocks = kSteps / F::kSteps;
  constexpr int kGroups = kSteps / kGroupSteps;  // of a unit
  extern __shared__ __align__(256) char shared[];
  const int warp = warp_index(), lane = threadIdx.x % kWarpThreads;
  const int whole = args.k / (kSteps * kTileK);
  Units units(args, whole, warp, kWarps);
  const uint32_t strip_bytes = args.k_tiles / F::kSteps * kBlockBytes;
  // Of this unit and of the end, bytes from the first weight on: 32 bits take one register less than an address.
  constexpr uint32_t kUnitBytes = kBlocks * kBlockBytes;
  const uint32_t begin = blockIdx.x * kStrips * strip_bytes, end = begin + units.end * kUnitBytes;
  uint32_t w = begin + units.first * kUnitBytes;
  uint4 words[kStrips][kBlocks];
  const auto load = [&] {
#pragma unroll
    for (int j = 0; j < kStrips; ++j) {
      const char* from = static_cast<const char*>(args.w) + (w + j * strip_bytes + lane * 16);
#pragma unroll
      for (int u = 0; u < kBlocks; ++u) words[j][u] = load_streaming(from + u * kBlockBytes);
    }
  };
  // Weights do not depend on the batch: their first loads are under way before its size is known.
  if (w < end) load();
  const int rows = live_rows(args);
  if (rows <= 0) return;

  // Of a warp: a unit of x; of int4 the totals of its tiles, in the places that two rows of x would have, and scales and
  // offsets of its groups. In the end the others have their totals where x was.
  constexpr int kScales = kTiles * kTileN * 2;   // bytes of a group
  constexpr int kTotal = 2 * kRowBytes<kSteps>;  // of a tile
  constexpr int kX = kRows * kRowBytes<kSteps>, kTotals = F::kGroups ? kX : 0;
  constexpr int kOffsetsAt = kGroups * kScales + (kGroups > 2 ? 16 : 0);
  constexpr int kWarpBytes = kX + (F::kGroups ? kTiles * kTotal + (1 + kOffsets) * kOffsetsAt : 0);
  const uint32_t x = shared_address(shared) + warp * kWarpBytes;
  constexpr uint32_t kScalesAt = kX + kTiles * kTotal;
  Copy<T, kRows, kSteps, 1> copy(args, x, units.first, 0, lane, rows);
  // Scales, and offsets, of a unit's groups, of which `first` is the first: a lane has those of 8 rows of w.
  const auto copy_scales = [&](uint32_t to, int lane, int first, int last) {
    if (lane < 8 * kGroups) {
      const int group = kGroups == 1 ? first : min(first + lane / 8, last);
      const size_t at = (static_cast<size_t>(args.n_tiles) * group + blockIdx.x * kTiles) * (kTileN * 2);
      cp_async_16(to + kScalesAt, static_cast<const char*>(args.scales) + at + lane % 8 * 16);
      if constexpr (kOffsets) {
        cp_async_16(to + kScalesAt + kOffsetsAt, static_cast<const char*>(args.offsets) + at + lane % 8 * 16);
      }
    }
  };
  // A unit's first group. Where groups are larger than units the quotient is exact up to 2^21 units.
  const auto group_of = [&](int unit) {
    if constexpr (kGroupSteps < kSteps) return unit * kGroups;
    return __float2int_rz(__fdividef(unit + 0.5f, args.group / (kSteps * kTileK)));
  };
  const auto copy_unit = [&] {
    const int unit = (w - begin) / kUnitBytes;
    Copy<T, kRows, kSteps, 1>(args, x, unit, 0, lane, rows).next(args, 0, 0);
    if constexpr (F::kGroups) copy_scales(copy.to, lane, group_of(unit), 0x7fffffff);
    cp_async_commit();
  };

  // ldmatrix: lanes 8 i .. name the rows of eight k; four are two steps. Rows beyond the batch repeat its last one.
  const uint32_t x_lane = x + min(lane % 8, rows - 1) * kRowBytes<kSteps> + lane / 8 * 16;
  const uint32_t scale_lane = x + kScalesAt + (lane / 8 * 4 + lane / 4 % 2) * 2;
  float sums[F::kGroups ? 1 : kTiles][4] = {};
  if constexpr (F::kGroups) {
#pragma unroll
    for (int j = 0; j < kTiles; ++j) store_vector(copy.to + kTotals + j * kTotal, make_float4(0.0f, 0.0f, 0.0f, 0.0f));
  }
  // A constant that the compiler cannot know to be one: it stays in a register and is not made anew for every use.
  const uint32_t mask = F::kGroups ? __ballot_sync(kAllLanes, rows > 0) & 0x000f000fu : 0;
  // The products of a unit.
  const auto multiply = [&] {
    if constexpr (!F::kGroups) {
#pragma unroll
      for (int u = 0; u < kBlocks; ++u) {
        uint32_t b[4];
        ldmatrix_x4(b, x_lane + u * 64);
#pragma unroll
        for (int j = 0; j < kTiles; ++j) {
          uint32_t a[4];
          F::operands(a, words[j][u], 0);
          mma_m16n8k16<T>(sums[j], a, b[0], b[1]);
          F::operands(a, words[j][u], 1);
          mma_m16n8k16<T>(sums[j], a, b[2], b[3]);
        }
      }
    } else {
#pragma unroll
      for (int g = 0; g < kGroups; ++g) {
        const uint32_t scale = scale_lane + g * kScales + g / 2 * 16;
        // What is too much in a sum: a row's sum of x, times the offset, minus (base + zero point).
        const uint32_t one = kOffsets ? F::kOne : F::kMinusEight;
        const uint32_t ones[4] = {one, one, one, one};
        float rest[4] = {};
#pragma unroll
        for (int u = g * kGroupSteps; u < (g + 1) * kGroupSteps; u += 2) {
          uint32_t b[4];
          ldmatrix_x4(b, x_lane + u * 32);
          mma_m16n8k16<T>(rest, ones, b[0], b[1]);
          mma_m16n8k16<T>(rest, ones, b[2], b[3]);
        }
        // Without it the compiler keeps what it has read of x for the first tile, and spills it.
        __syncwarp();
#pragma unroll
        for (int j = 0; j < kTiles; ++j) {
          float sum[4];
          if constexpr (kOffsets) {
            const float n0 = load_element<T>(scale + kOffsetsAt + j * kTileN * 2);
            const float n1 = load_element<T>(scale + kOffsetsAt + j * kTileN * 2 + 4);
            sum[0] = rest[0] * n0, sum[1] = rest[1] * n0, sum[2] = rest[0] * n1, sum[3] = rest[1] * n1;
          }
#pragma unroll
          for (int u = g * kGroupSteps; u < (g + 1) * kGroupSteps; u += 2) {
            uint32_t a[4], b[4];
            ldmatrix_x4(b, x_lane + u * 32);
            F::operands(a, words[0][u], j, mask);
            if (!kOffsets && u == g * kGroupSteps) {
              mma_m16n8k16_from<T>(sum, a, b[0], b[1], rest);
            } else {
              mma_m16n8k16<T>(sum, a, b[0], b[1]);
            }
            F::operands(a, words[0][u + 1], j, mask);
            mma_m16n8k16<T>(sum, a, b[2], b[3]);
          }
          const float s0 = load_element<__half>(scale + j * kTileN * 2);
          const float s1 = load_element<__half>(scale + j * kTileN * 2 + 4);
          float4 total = load_vector(copy.to + kTotals + j * kTotal);
          total.x = fmaf(sum[0], s0, total.x), total.y = fmaf(sum[1], s0, total.y);
          total.z = fmaf(sum[2], s1, total.z), total.w = fmaf(sum[3], s1, total.w);
          store_vector(copy.to + kTotals + j * kTotal, total);
        }
      }
    }
  };
  if (w < end) {
    copy_unit();
    while (true) {
      cp_async_wait<0>();
      __syncwarp();
      multiply();
      w += kWarps * kUnitBytes;
      if (w >= end) break;
      // The words are not needed any more, nor is x when all have read it.
      load();
      __syncwarp();
      copy_unit();
    }
  }
  // Columns that do not fill a unit: at the end, and without haste.
  if (args.k % (kSteps * kTileK) != 0 && thread_index() / kWarpThreads == kWarps - 1 && blockIdx.y + 1 == args.splits) {
    __syncwarp();
    const int lane = thread_index() % kWarpThreads;
    const uint32_t x = shared_address(shared) + (kWarps - 1) * kWarpBytes;
    const Copy<T, kRows, kSteps, 1> last(args, x, whole, 0, lane, rows);
    last.last(args, args.k - whole * kSteps * kTileK - lane % 16 * 8);
    if constexpr (F::kGroups) {
      // Groups that are not there have no weights, so any scale will do.
      const int groups = (args.k_tiles * kTileK + args.group - 1) / args.group;
      copy_scales(last.to, lane, group_of(whole), groups - 1);
    }
    cp_async_commit();
    w = begin + whole * kUnitBytes;
#pragma unroll
    for (int j = 0; j < kStrips; ++j) {
      const char* from = static_cast<const char*>(args.w) + (w + j * strip_bytes + lane * 16);
#pragma unroll
      for (int u = 0; u < kBlocks; ++u) {
        const bool there = whole * kSteps + u * F::kSteps < args.k_tiles;
        words[j][u] = there ? load_streaming(from + u * kBlockBytes) : make_uint4(0, 0, 0, 0);
      }
    }
    cp_async_wait<0>();
    __syncwarp();
    multiply();
  }
  __syncthreads();

  // Sums of the warps, [warp][tile][lane].
  if constexpr (!F::kGroups) {
    const int lane = thread_index() % kWarpThreads;
    const uint32_t x = shared_address(shared) + thread_index() / kWarpThreads * kWarpBytes;
#pragma unroll
    for (int j = 0; j < kTiles; ++j) {
      store_vector(x + lane / 16 * kRowBytes<kSteps> + lane % 16 * 16 + j * kTotal,
                   make_float4(sums[j][0], sums[j][1], sums[j][2], sums[j][3]));
    }
    __syncthreads();
  }
  const int index = thread_index();
  float4 sum = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
  Place place{0, 0, false};
  if (index < kTiles * kWarpThreads) {
    const uint32_t mine = shared_address(shared) + kTotals + index / kWarpThreads * kTotal +
                          index % kWarpThreads / 16 * kRowBytes<kSteps> + index % 16 * 16;
    sum = load_vector(mine);
#pragma unroll
    for (int i = 1; i < kWarps; ++i) sum = add(sum, load_vector(mine + i * kWarpBytes));
    if constexpr (!F::kGroups) {
      sum = make_float4(sum.x * F::kUnit, sum.y * F::kUnit, sum.z * F::kUnit, sum.w * F::kUnit);
    }
    // This lane has columns feature(g) and feature(g) + 2 of rows 2t and 2t + 1 of x, the one of the other g of a pair
    // those between: they swap a row.
    const int g = index % kWarpThreads / 4, odd = g % 2;
    const float x0 = __shfl_xor_sync(kAllLanes, odd ? sum.x : sum.y, 4);
    const float x1 = __shfl_xor_sync(kAllLanes, odd ? sum.z : sum.w, 4);
    sum = odd ? make_float4(x0, sum.y, x1, sum.w) : make_float4(sum.x, x0, sum.z, x1);
    place = {index % 4 * 2 + odd, index / kWarpThreads * 4 + g / 2, false};
    place.mine = place.row < rows;
  }
  finish<F, kTiles * 4, false, false>(args, 0, shared, place, rows, sum, nullptr, sum);
}

}  // namespace engine
