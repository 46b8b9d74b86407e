// The one layout of linear weights, for every kernel and every GPU; made by engine/backend/cuda/pack.rs.
//
// A matrix w [n, k], y = x * w^T, is padded with zeros to n % 64 == 0, k % 64 == 0 and cut into tiles of 16 n x 16 k
// of 32 lanes x 16 bytes (bf16, f16). Tiles lie k fastest: tile (i, j) at byte (i * k_tiles + j) * 512.
// Lane (g = lane / 4, t = lane % 4) of a tile holds four words of two elements, the lower k in the low half:
//   word 0  row feature(g),     k 2t, 2t + 1          word 1  row feature(g),     k 2t + 8, 2t + 9
//   word 2  row feature(g) + 2, k 2t, 2t + 1          word 3  row feature(g) + 2, k 2t + 8, 2t + 9
//   feature(g) = 4 * (g / 2) + g % 2
// So one 16-byte load of a lane is the B operands of two m16n8k16 multiplies, as aligned register pairs, with no
// swizzle in shared memory. The two multiplies' results in one thread are the four neighbouring features
// 4t .. 4t + 3 of a row (c0, c1 of the first, then of the second): one 16-byte vector of sums.
//
// Quantised weights lie in the same way, in blocks of 512 bytes of which a lane has 16:
//   int8  16 n x 32 k. Words 0 and 1 are row feature(g) at k + 0 and k + 16, words 2 and 3 row feature(g) + 2; a word's
//         bytes are k 2t, 2t + 8, 2t + 1, 2t + 9, two's complement. A row has one f32 scale.
//   int4  64 n x 16 k. Word j is rows 16j ..: nibbles 0, 4 are row feature(g) at k 2t, 2t + 1; nibbles 1, 5 the same
//         at k 2t + 8, 2t + 9; nibbles 2, 6 and 3, 7 row feature(g) + 2. Value (nibble - zero) * scale, with one scale
//         (f16, never 0) a row and group of 32, 64, 128 ... columns. Zero is 8, or stored as minus (base + zero) in T
//         with base 128 for bf16 and 1024 for f16: what has to be added to the T that the nibble is turned into.
// Blocks lie k fastest as tiles do, and integers become exact T in registers, in the order of operands.
//
// A gated matrix (gate and up of a feed-forward layer) is one packed matrix of 2n rows: gate of feature i is row 2i, up
// row 2i + 1, so that both meet in one thread.
#pragma once

#include "mma.cuh"

namespace engine {

constexpr int kTileN = 16;
constexpr int kTileK = 16;
constexpr int kBlockBytes = 512;

template <typename T>
constexpr bool kIsBf16 = false;
template <>
constexpr bool kIsBf16<__nv_bfloat16> = true;

// a * b + c of pairs of T.
template <typename T>
__device__ __forceinline__ uint32_t fma_pair(uint32_t a, uint32_t b, uint32_t c);
template <>
__device__ __forceinline__ uint32_t fma_pair<__nv_bfloat16>(uint32_t a, uint32_t b, uint32_t c) {
  uint32_t d;
  asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(d) : "r"(a), "r"(b), "r"(c));
  return d;
}
template <>
__device__ __forceinline__ uint32_t fma_pair<__half>(uint32_t a, uint32_t b, uint32_t c) {
  uint32_t d;
  asm("fma.rn.f16x2 %0, %1, %2, %3;" : "=r"(d) : "r"(a), "r"(b), "r"(c));
  return d;
}

// d += a * b of integers, [16, 32] x [32, 8].
__device__ __forceinline__ void mma_m16n8k32_s8(int (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+r"(d[0]), "+r"(d[1]), "+r"(d[2]), "+r"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// A storage of weights: a block is kTiles tiles of 16 n and kSteps steps of 16 k. `operands` gives the B operands of
// tile `j`, step `s` of a lane's words: b[0], b[1] of rows feature(g), b[2], b[3] of rows feature(g) + 2. `negative`
// holds what the two rows' zero points are taken off with, as pairs; `masks` are its constants, which a loop keeps
// in registers: a logic instruction takes one constant, and these have two.
struct Masks {
  uint32_t low, high;
};

template <typename T>
struct Dense {
  using Element = T;
  static constexpr int kTiles = 1, kSteps = 1;
  static constexpr bool kRowScales = false, kGroups = false, kIntegers = false;
  static __device__ __forceinline__ constexpr Masks constants() { return {}; }
  static __device__ __forceinline__ void operands(uint32_t (&b)[4], const uint4& w, int, int, const uint32_t (&)[2],
                                                  Masks = constants()) {
    b[0] = w.x, b[1] = w.y, b[2] = w.z, b[3] = w.w;
  }
};

// int8 of both weights and activations, as they are: T is of the result alone. A block of int8 weights is the B operands
// of two m16n8k32 multiplies just as a tile of T is of two m16n8k16, so with columns counted in pairs of bytes the two
// are one: rows of x are bytes, 16 columns at a time in the order of a weight's word, 2t, 2t + 8, 2t + 1, 2t + 9 for t
// of 0 to 3 (quantize_rows.cu).
template <typename T>
struct Int8Pairs : Dense<T> {
  static constexpr bool kRowScales = true, kIntegers = true;
};

template <typename T>
struct Int8 {
  using Element = T;
  static constexpr int kTiles = 1, kSteps = 2;
  static constexpr bool kRowScales = true, kGroups = false, kIntegers = false;
  static __device__ __forceinline__ constexpr Masks constants() {
    return kIsBf16<T> ? Masks{0x007f007fu, 0x00800080u} : Masks{0x00ff00ffu, 0};
  }
  // Bytes 0 and 2 of a word as a pair.
  static __device__ __forceinline__ uint32_t pair(uint32_t w, Masks masks = constants()) {
    if constexpr (kIsBf16<T>) {
      // bf16 has seven bits for the low bits of 128 + q; its sign bit is worth another -128.
      return fma_pair<T>((w & masks.low) | 0x43004300u, 0x3f803f80u, (w & masks.high) | 0xc300c300u);
    } else {
      // 1024 + (q + 128), less 1152.
      return fma_pair<T>((w & masks.low) ^ 0x64806480u, 0x3c003c00u, 0xe480e480u);
    }
  }
  static __device__ __forceinline__ void operands(uint32_t (&b)[4], const uint4& w, int, int s, const uint32_t (&)[2],
                                                  Masks masks = constants()) {
    const uint32_t low = s == 0 ? w.x : w.y, high = s == 0 ? w.z : w.w;
    b[0] = pair(low, masks), b[1] = pair(low >> 8, masks), b[2] = pair(high, masks), b[3] = pair(high >> 8, masks);
  }
};

template <typename T>
struct Int4 {
  using Element = T;
  static constexpr int kTiles = 4, kSteps = 1;
  static constexpr bool kRowScales = false, kGroups = true, kIntegers = false;
  // Nibbles are turned into base + nibble by taking them for low bits of a T; 1.0 for the multiply-add.
  static constexpr uint32_t kBase = kIsBf16<T> ? 0x43004300u : 0x64006400u;
  static constexpr uint32_t kOne = kIsBf16<T> ? 0x3f803f80u : 0x3c003c00u;
  // - (base + 8).
  static constexpr uint32_t kMinusEight = kIsBf16<T> ? 0xc308c308u : 0xe408e408u;
  static __device__ __forceinline__ constexpr Masks constants() { return {0x000f000fu, 0}; }
  static __device__ __forceinline__ uint32_t pair(uint32_t w, uint32_t negative, Masks masks) {
    return fma_pair<T>((w & masks.low) | kBase, kOne, negative);
  }
  static __device__ __forceinline__ void operands(uint32_t (&b)[4], uint32_t w, const uint32_t (&negative)[2],
                                                  Masks masks = constants()) {
    b[0] = pair(w, negative[0], masks), b[1] = pair(w >> 4, negative[0], masks);
    b[2] = pair(w >> 8, negative[1], masks), b[3] = pair(w >> 12, negative[1], masks);
  }
  static __device__ __forceinline__ void operands(uint32_t (&b)[4], const uint4& w, int j, int,
                                                  const uint32_t (&negative)[2], Masks masks = constants()) {
    operands(b, j == 0 ? w.x : j == 1 ? w.y : j == 2 ? w.z : w.w, negative, masks);
  }
};

// Four f16 scales of neighbouring packed rows, from shared memory.
__device__ __forceinline__ float4 load_scales(uint32_t address) {
  uint32_t low, high;
  asm volatile("ld.shared.v2.u32 {%0,%1}, [%2];" : "=r"(low), "=r"(high) : "r"(address) : "memory");
  const float2 a = unpack_pair<__half>(low), b = unpack_pair<__half>(high);
  return make_float4(a.x, a.y, b.x, b.y);
}

// A 16-bit element of shared memory, twice.
__device__ __forceinline__ uint32_t load_twice(uint32_t address) {
  uint16_t v;
  asm volatile("ld.shared.u16 %0, [%1];" : "=h"(v) : "r"(address) : "memory");
  return v * 0x00010001u;
}

}  // namespace engine
