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

// One 16-byte vector a thread is a row of 4096 elements of 16 bits.
constexpr int kNormThreads = 512;
constexpr int kNormWarps = kNormThreads / kWarpThreads;

__device__ __forceinline__ bool norm_row_is_idle(const NormArgs& args) {
  return args.num_rows != nullptr && static_cast<int>(blockIdx.x) >= *args.num_rows;
}

// Vectors v * blockDim.x + threadIdx.x of the block's row, for v below kVectors. With kAdd the residual is added, the
// sum rounded to T and stored: what follows sees what a later kernel would read. Absent vectors are zeros.
template <typename T, int kVectors, bool kAdd>
__device__ __forceinline__ void load_row(const NormArgs& args, Vector<T> (&held)[kVectors]) {
  using V = Vector<T>;
  const long long row = blockIdx.x;
  const V* x = reinterpret_cast<const V*>(static_cast<const T*>(args.x) + row * args.x_stride);
  const V* residual = reinterpret_cast<const V*>(static_cast<const T*>(args.residual) + row * args.residual_stride);
  V* sum = reinterpret_cast<V*>(static_cast<T*>(args.sum) + row * args.sum_stride);
  const int count = args.hidden / V::kElements;
#pragma unroll
  for (int v = 0; v < kVectors; ++v) {
    const int i = v * blockDim.x + threadIdx.x;
    if (i < count) {
      held[v] = x[i];
    } else {
#pragma unroll
      for (int e = 0; e < V::kElements; ++e) held[v].elements[e] = from_float<T>(0.0f);
    }
  }
  if constexpr (kAdd) {
#pragma unroll
    for (int v = 0; v < kVectors; ++v) {
      const int i = v * blockDim.x + threadIdx.x;
      if (i < count) {
        const V other = residual[i];
#pragma unroll
        for (int e = 0; e < V::kElements; ++e) {
          held[v].elements[e] = from_float<T>(to_float(held[v].elements[e]) + to_float(other.elements[e]));
        }
        sum[i] = held[v];
      }
    }
  }
}

// Four weights (or biases) of vector i, part `part`.
template <typename T>
__device__ __forceinline__ float4 factors_of(const float* weight, int i, int part) {
  return reinterpret_cast<const float4*>(weight)[i * (Vector<T>::kElements / 4) + part];
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
