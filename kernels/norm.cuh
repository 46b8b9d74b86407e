// What the norms share: a row read once into registers, with an optional residual added on the way.
//
// Owns: the arguments of both norms, and which thread holds which part of a row. Not here: the formulas.
#pragma once

#include "common.cuh"

namespace engine {

// Mirrored by NormArgs in engine/backend/cuda/ops/norm.rs. Strides are in elements.
struct NormArgs {
  const void* x;
  const void* residual;  // the _add kernels alone
  void* sum;             // the _add kernels alone: x + residual, rounded to T
  const float* weight;
  const float* bias;  // LayerNorm alone
  void* y;
  const int* num_rows;
  long long x_stride;
  long long residual_stride;
  long long sum_stride;
  long long y_stride;
  int hidden;
  float eps;
};
static_assert(sizeof(NormArgs) == 96, "size as in Rust");

// Elements that a thread loads at once. Four, not as many as 16 bytes hold: then a warp's loads of the f32 weights are
// contiguous too, and every sector is asked for once.
constexpr int kNormPiece = 4;
constexpr int kNormThreads = 1024;
constexpr int kNormWarps = kNormThreads / kWarpThreads;

__device__ __forceinline__ bool norm_row_is_idle(const NormArgs& args) {
  return args.num_rows != nullptr && static_cast<int>(blockIdx.x) >= *args.num_rows;
}

template <typename T>
struct alignas(kNormPiece * sizeof(T)) NormPiece {
  T elements[kNormPiece];
};

// Pieces v * blockDim.x + threadIdx.x of the block's row, for v below kPieces. With kAdd the residual is added, the sum
// rounded to T and stored: what follows sees what a later kernel would read. Absent pieces are zeros.
template <typename T, int kPieces, bool kAdd>
__device__ __forceinline__ void load_row(const NormArgs& args, NormPiece<T> (&held)[kPieces]) {
  using V = NormPiece<T>;
  const long long row = blockIdx.x;
  const V* x = reinterpret_cast<const V*>(static_cast<const T*>(args.x) + row * args.x_stride);
  const V* residual = reinterpret_cast<const V*>(static_cast<const T*>(args.residual) + row * args.residual_stride);
  V* sum = reinterpret_cast<V*>(static_cast<T*>(args.sum) + row * args.sum_stride);
  const int count = args.hidden / kNormPiece;
#pragma unroll
  for (int v = 0; v < kPieces; ++v) {
    const int i = v * blockDim.x + threadIdx.x;
    if (i < count) {
      held[v] = x[i];
    } else {
#pragma unroll
      for (int e = 0; e < kNormPiece; ++e) held[v].elements[e] = from_float<T>(0.0f);
    }
  }
  if constexpr (kAdd) {
#pragma unroll
    for (int v = 0; v < kPieces; ++v) {
      const int i = v * blockDim.x + threadIdx.x;
      if (i < count) {
        const V other = residual[i];
#pragma unroll
        for (int e = 0; e < kNormPiece; ++e) {
          held[v].elements[e] = from_float<T>(to_float(held[v].elements[e]) + to_float(other.elements[e]));
        }
        sum[i] = held[v];
      }
    }
  }
}

// Element i of the block's row for kernels that take any width; with kAdd the first visit adds and stores.
template <typename T, bool kAdd>
__device__ __forceinline__ float first_visit(const NormArgs& args, int i) {
  const long long row = blockIdx.x;
  const T value = static_cast<const T*>(args.x)[row * args.x_stride + i];
  if constexpr (!kAdd) return to_float(value);
  const T other = static_cast<const T*>(args.residual)[row * args.residual_stride + i];
  const T rounded = from_float<T>(to_float(value) + to_float(other));
  static_cast<T*>(args.sum)[row * args.sum_stride + i] = rounded;
  return to_float(rounded);
}

// The same element again: a thread visits the elements that it visited before.
template <typename T, bool kAdd>
__device__ __forceinline__ float next_visit(const NormArgs& args, int i) {
  const long long row = blockIdx.x;
  if constexpr (kAdd) return to_float(static_cast<const T*>(args.sum)[row * args.sum_stride + i]);
  return to_float(static_cast<const T*>(args.x)[row * args.x_stride + i]);
}

}  // namespace engine
