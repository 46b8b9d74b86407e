// Scales and zero points of weights in groups of columns, within a tile of gemm.cuh: their copies, and what they do to
// the sums.
//
// Products are of x and integers, and the sums are kept divided by the scale of the group they have come to: where the
// next group begins they are multiplied by the ratio of the two scales, so no scale may be zero (pack_quantized.rs).
// That takes no second set of sums, which leaves registers for 64 x 64 of them a warp, and no weight is rounded.
//
// Owns: the order of groups, and that arithmetic. Not here: integers to T (packed.cuh), copies of x and w (gemm.cuh).
#pragma once

#include "epilogue.cuh"
#include "packed.cuh"

namespace engine {

// In place of Groups for storage without any.
struct NoGroups {
  uint32_t negative[4][2] = {};
  __device__ __forceinline__ NoGroups(const LinearArgs&, uint32_t, int, int, int) {}
};

// Tl: a tile whose stages have kBytesScales for a row of scales and one of offsets, each of BN.
template <typename Tl>
struct Groups {
  static constexpr int kRowBytes = Tl::BN * 2;
  static constexpr int kRowChunks = Tl::BN / 8;
  static constexpr int kLongest = 128;  // columns of a segment
  static_assert(2 * kRowChunks <= Tl::kThreads, "scales by some threads, offsets by others, a chunk each");

  // Steps of a segment less one, a power of two less one: a segment is a group, or of a longer one 128 columns.
  int segment_mask;

  // Copies: whether this thread has a chunk, and that of the next segment; segments of its group from that one on.
  bool mine;
  const char* from;
  uint32_t to;
  int left;

  // Sums: where the lane's rows lie; scales of features 4t .. 4t + 3 of each tile, offsets of its rows of operands.
  uint32_t scales_lane, offsets_lane;
  uint32_t pick;
  uint2 scale[Tl::kColTiles];  // four f16
  uint32_t negative[Tl::kColTiles][2];

  // `shared`: of the first stage. `step`: where the block starts, a multiple of kLongest columns.
  __device__ __forceinline__ Groups(const LinearArgs& args, uint32_t shared, int n_tile0, int warp_tile, int step) {
    const int tid = threadIdx.x, lane = tid % kWarpThreads;
    segment_mask = min(args.group, kLongest) / Tl::BK - 1;
    const int column = step * Tl::BK, group = column / args.group;
    left = segments(args) - (column - group * args.group) / kLongest;
    const void* source = tid < kRowChunks ? args.scales : args.offsets;
    // The tile's last rows may not be there; the last that are stand in for them.
    const int chunk = min(tid % kRowChunks, (args.n_tiles - n_tile0) * kTileN / 8 - 1);
    mine = tid < 2 * kRowChunks && source != nullptr;
    from = static_cast<const char*>(source) + (n_tile0 * kTileN + chunk * 8) * 2 + group * row_bytes(args);
    to = shared + tid * 16;
    scales_lane = shared + warp_tile * kTileN * 2 + lane % 4 * 8;
    offsets_lane = shared + kRowBytes + warp_tile * kTileN * 2 + lane / 8 * 8;
    pick = lane / 4 % 2 == 0 ? 0x1010 : 0x3232;
#pragma unroll
    for (int j = 0; j < Tl::kColTiles; ++j) {
      negative[j][0] = negative[j][1] = Tl::Format::kMinusEight;
      scale[j] = make_uint2(0x3c003c00u, 0x3c003c00u);
    }
  }

  static __device__ __forceinline__ int segments(const LinearArgs& args) { return max(args.group / kLongest, 1); }
  static __device__ __forceinline__ int64_t row_bytes(const LinearArgs& args) {
    return static_cast<int64_t>(args.n_tiles) * kTileN * 2;
  }

  // What belongs to the next segment into stage `stage`.
  __device__ __forceinline__ void copy(const LinearArgs& args, int stage) {
    cp_async_16_if(mine, to + stage * Tl::kBytesScales, from);
    if (--left == 0) {
      left = segments(args);
      from += row_bytes(args);
    }
  }

  // Sums of the segment whose scales are in `stage` begin.
  __device__ __forceinline__ void enter(const LinearArgs& args, int stage,
                                        float (&sums)[Tl::kRowTiles][Tl::kColTiles][8]) {
#pragma unroll
    for (int j = 0; j < Tl::kColTiles; ++j) {
      const uint2 to = load_8_bytes(scales_lane + stage * Tl::kBytesScales + j * kTileN * 2);
      const float4 before = floats(scale[j]), after = floats(to);
      scale[j] = to;
      const float ratios[4] = {before.x * reciprocal(after.x), before.y * reciprocal(after.y),
                               before.z * reciprocal(after.z), before.w * reciprocal(after.w)};
#pragma unroll
      for (int e = 0; e < 4; ++e) {
#pragma unroll
        for (int i = 0; i < Tl::kRowTiles; ++i) {
          sums[i][j][e / 2 * 4 + e % 2] *= ratios[e];
          sums[i][j][e / 2 * 4 + e % 2 + 2] *= ratios[e];
        }
      }
    }
    if (args.offsets == nullptr) return;
#pragma unroll
    for (int j = 0; j < Tl::kColTiles; ++j) {
      const uint2 pairs = load_8_bytes(offsets_lane + stage * Tl::kBytesScales + j * kTileN * 2);
      negative[j][0] = __byte_perm(pairs.x, 0, pick);
      negative[j][1] = __byte_perm(pairs.y, 0, pick);
    }
  }

  // The last segment has ended: sums become those of weights.
  __device__ __forceinline__ void finish(float (&sums)[Tl::kRowTiles][Tl::kColTiles][8]) const {
#pragma unroll
    for (int j = 0; j < Tl::kColTiles; ++j) {
      const float4 last = floats(scale[j]);
      const float by[4] = {last.x, last.y, last.z, last.w};
#pragma unroll
      for (int e = 0; e < 4; ++e) {
#pragma unroll
        for (int i = 0; i < Tl::kRowTiles; ++i) {
          sums[i][j][e / 2 * 4 + e % 2] *= by[e];
          sums[i][j][e / 2 * 4 + e % 2 + 2] *= by[e];
        }
      }
    }
  }

  static __device__ __forceinline__ float4 floats(const uint2& v) {
    const float2 low = unpack_pair<__half>(v.x), high = unpack_pair<__half>(v.y);
    return make_float4(low.x, low.y, high.x, high.y);
  }

  static __device__ __forceinline__ float reciprocal(float v) {
    float r;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(v));
    return r;
  }

  static __device__ __forceinline__ uint2 load_8_bytes(uint32_t address) {
    uint2 v;
    asm volatile("ld.shared.v2.u32 {%0,%1}, [%2];" : "=r"(v.x), "=r"(v.y) : "r"(address) : "memory");
    return v;
  }
};

}  // namespace engine
