// Arithmetic of sampling: the host sampler's exponential and generator bit for bit, and probability mass as integers.
//
// Owns: the unit of mass. Not here: which token is chosen (sampling.cu).
#pragma once

#include "common.cuh"

namespace engine {

constexpr float kBanned = -INFINITY;

// exp(x) for x <= 0 as engine/run/weights.rs computes it: separate products and sums in this order, nothing fused.
__device__ __forceinline__ float weight_of(float x) {
  constexpr float kLeast = -87.0f, kMagic = 12582912.0f, kLog2E = 1.44269504f;
  if (!(x > kLeast)) return 0.0f;
  const float shifted = __fadd_rn(__fmul_rn(x, kLog2E), kMagic);
  const float n = __fsub_rn(shifted, kMagic);
  const float r = __fsub_rn(__fsub_rn(x, __fmul_rn(n, 0.6933594f)), __fmul_rn(n, -2.1219444e-4f));
  float series = __fadd_rn(1.0f / 120.0f, __fmul_rn(r, 1.0f / 720.0f));
  series = __fadd_rn(1.0f / 24.0f, __fmul_rn(r, series));
  series = __fadd_rn(1.0f / 6.0f, __fmul_rn(r, series));
  series = __fadd_rn(0.5f, __fmul_rn(r, series));
  series = __fadd_rn(1.0f, __fmul_rn(r, series));
  series = __fadd_rn(1.0f, __fmul_rn(r, series));
  return __fmul_rn(series, __uint_as_float((__float_as_uint(shifted) << 23) + (127u << 23)));
}

// Mass in units of 2^-45 of the greatest weight. Sums of integers have no order, so any split of the work gives the
// same bits; half a million weights of 1 fit, and rounding each costs less than 2^-46.
using Mass = unsigned long long;
__device__ __forceinline__ Mass mass_of(float weight) { return __float2ull_rn(weight * 35184372088832.0f); }
constexpr double kMassUnit = 1.0 / 35184372088832.0;

// Unsigned integers in the order of the floats; -0 and +0 are one.
__device__ __forceinline__ unsigned key_of(float value) {
  const unsigned bits = __float_as_uint(value + 0.0f);
  return (bits & 0x80000000u) ? ~bits : bits | 0x80000000u;
}

__device__ __forceinline__ float value_of_key(unsigned key) {
  return __uint_as_float((key & 0x80000000u) ? key & 0x7fffffffu : ~key);
}

// A uniform number in [0, 1) of 53 bits for a position under a seed: Philox4x32-10, as engine/run/philox.rs.
__device__ __forceinline__ double philox_uniform(unsigned long long seed, unsigned long long position) {
  unsigned c0 = static_cast<unsigned>(position), c1 = static_cast<unsigned>(position >> 32), c2 = 0, c3 = 0;
  unsigned k0 = static_cast<unsigned>(seed), k1 = static_cast<unsigned>(seed >> 32);
#pragma unroll 1
  for (int round = 0; round < 10; ++round) {
    const unsigned high0 = __umulhi(0xd2511f53u, c0), low0 = 0xd2511f53u * c0;
    const unsigned high1 = __umulhi(0xcd9e8d57u, c2), low1 = 0xcd9e8d57u * c2;
    c0 = high1 ^ c1 ^ k0;
    c1 = low1;
    c2 = high0 ^ c3 ^ k1;
    c3 = low0;
    k0 += 0x9e3779b9u;
    k1 += 0xbb67ae85u;
  }
  const unsigned long long bits = c0 | static_cast<unsigned long long>(c1) << 32;
  return static_cast<double>(bits >> 11) * (1.0 / 9007199254740992.0);
}

template <typename V>
__device__ __forceinline__ V warp_sum(V value) {
#pragma unroll
  for (int offset = kWarpThreads / 2; offset > 0; offset /= 2) value += __shfl_xor_sync(0xffffffffu, value, offset);
  return value;
}

template <typename V>
__device__ __forceinline__ V warp_max(V value) {
#pragma unroll
  for (int offset = kWarpThreads / 2; offset > 0; offset /= 2) {
    const V other = __shfl_xor_sync(0xffffffffu, value, offset);
    value = other > value ? other : value;
  }
  return value;
}

}  // namespace engine
