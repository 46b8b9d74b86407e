// Attention of few rows to many keys by several blocks: each takes a piece of the keys, the last to arrive adds them up.
//
// Owns: what a block leaves behind of its piece. Not here: who has which keys (attention_rows.cuh), their sums
// (attention.cuh).
//
// Numerics a piece is sums with weights 2^(score - shift) of its own shift, f32; they are added in the order of the keys
//         whichever block is the last, so equal inputs give equal bits.
#pragma once

#include "meeting.cuh"
#include "mma.cuh"

namespace engine {

// A block that sees all keys of its rows.
struct Whole {
  static constexpr bool kSome = false;
};

// The pieces of a tile of rows, of which this block has number `piece`.
struct Pieces {
  static constexpr bool kSome = true;
  int count;
  int piece;
  float* partial;     // [count][kPartialFloats]
  unsigned* arrived;  // blocks of the tile that are done, zero before the launch and after it
};

// Of a piece: rows of kDim sums, their shifts, their sums of weights.
template <typename Tile>
constexpr int kPartialFloats = Tile::kRows * (Tile::kDim + 2);

// The sum over the four lanes that share a row.
__device__ __forceinline__ float quad_sum(float v) {
  v += __shfl_xor_sync(kAllLanes, v, 1);
  return v + __shfl_xor_sync(kAllLanes, v, 2);
}

// Leaves this warp's sums in memory, of the first `count` rows of the block.
template <typename Tile, int kRowTiles, int kOutTiles>
__device__ __forceinline__ void store_piece(const Pieces& pieces, int warp, int count,
                                            const float (&out)[kRowTiles][kOutTiles][4],
                                            const float (&shift)[kRowTiles][2], const float (&row_sum)[kRowTiles][2]) {
  const int lane = threadIdx.x % kWarpThreads;
  float* part = pieces.partial + pieces.piece * kPartialFloats<Tile>;
#pragma unroll
  for (int m = 0; m < kRowTiles; ++m) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int row = warp * Tile::kWarpRows + m * 16 + half * 8 + lane / 4;
      const float sum = quad_sum(row_sum[m][half]);
      if (row >= count) continue;
#pragma unroll
      for (int n = 0; n < kOutTiles; ++n) {
        *reinterpret_cast<float2*>(part + row * Tile::kDim + n * 8 + lane % 4 * 2) =
            make_float2(out[m][n][half * 2], out[m][n][half * 2 + 1]);
      }
      if (lane % 4 == 0) {
        part[Tile::kRows * Tile::kDim + row] = shift[m][half];
        part[Tile::kRows * (Tile::kDim + 1) + row] = sum;
      }
    }
  }
}

// Adds the pieces of the first `count` rows and stores the result; `target(row)` is where a row belongs. Every thread of
// the last block calls this.
template <typename Tile, typename Target>
__device__ __forceinline__ void add_pieces(const Pieces& pieces, int count, int head_dim, const Target& target) {
  using T = typename Tile::T;
  constexpr int kFours = Tile::kDim / 4;
  for (int c = threadIdx.x; c < count * kFours; c += Tile::kThreads) {
    const int row = c / kFours, at = c % kFours * 4;
    const float* shifts = pieces.partial + Tile::kRows * Tile::kDim + row;
    float top = __ldcg(shifts);
    for (int p = 1; p < pieces.count; ++p) top = fmaxf(top, __ldcg(shifts + p * kPartialFloats<Tile>));
    float4 sum = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
    float total = 0.0f;
    for (int p = 0; p < pieces.count; ++p) {
      const int start = p * kPartialFloats<Tile>;
      const float weight = exp2_approx(__ldcg(shifts + start) - top);
      total = fmaf(weight, __ldcg(shifts + start + Tile::kRows), total);
      const float4 v = __ldcg(reinterpret_cast<const float4*>(pieces.partial + start + row * Tile::kDim + at));
      sum = make_float4(fmaf(weight, v.x, sum.x), fmaf(weight, v.y, sum.y), fmaf(weight, v.z, sum.z),
                        fmaf(weight, v.w, sum.w));
    }
    // A piece has a key, so there are weights.
    const float inverse = 1.0f / total;
    static_assert(Tile::kExact, "rows of whole vectors");
    *reinterpret_cast<uint2*>(target(row) + at) =
        make_uint2(pack_pair<T>(sum.x * inverse, sum.y * inverse), pack_pair<T>(sum.z * inverse, sum.w * inverse));
  }
}

}  // namespace engine
