// The angle of a rotary embedding, for the kernels that turn: rope.cu, gemv_qkv.cu, gemm_qkv.cu.
//
// Owns: its sine and cosine. Not here: which elements of a head are a pair.
#pragma once

namespace engine {

// (cos, sin) of position * frequency. The angle is an f32 product, as transformers forms it, reduced by 2 pi in two
// steps (exact to 2^-22 up to positions of 2^22); the functions are approximate to 2^-21 of 1.
__device__ __forceinline__ float2 rotary(int position, float frequency) {
  const float angle = position * frequency;
  // 2 pi = 6.2831855f - 1.7484555e-7f; the first product's difference is exact.
  const float turns = rintf(angle * 0.15915494f);
  const float rest = fmaf(turns, 1.7484555e-7f, fmaf(turns, -6.2831855f, angle));
  return make_float2(__cosf(rest), __sinf(rest));
}

}  // namespace engine
