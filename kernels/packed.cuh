// The one layout of linear weights, for every kernel and every GPU; made by engine/backend/cuda/pack.rs.
//
// A matrix w [n, k], y = x * w^T, is padded with zeros to n % 64 == 0, k % 64 == 0 and cut into tiles of 16 n x 16 k
// of 32 lanes x 16 bytes (bf16, f16). Tiles lie k fastest: tile (i, j) at byte ((i * k_tiles) + j) * 512.
// Lane (g = lane / 4, t = lane % 4) of a tile holds four words of two elements, the lower k in the low half:
//   word 0  row feature(g),     k 2t, 2t + 1          word 1  row feature(g),     k 2t + 8, 2t + 9
//   word 2  row feature(g) + 2, k 2t, 2t + 1          word 3  row feature(g) + 2, k 2t + 8, 2t + 9
//   feature(g) = 4 * (g / 2) + g % 2
// So one 16-byte load of a lane is the B operands of two m16n8k16 multiplies, as aligned register pairs, with no
// swizzle in shared memory. The two multiplies' results in one thread are the four neighbouring features
// 4t .. 4t + 3 of a row (c0, c1 of the first, then of the second): one 16-byte vector of sums.
//
// A gated matrix (gate and up of a feed-forward layer) is one packed matrix of 2n rows: gate of feature i is row 2i, up
// row 2i + 1, so that both meet in one thread.
#pragma once

namespace engine {

constexpr int kTileN = 16;
constexpr int kTileK = 16;
constexpr int kTileBytes = 512;

}  // namespace engine
