// Inline PTX that kernels share: tensor-core multiplies, ldmatrix, asynchronous copies, streaming loads.
//
// Owns: the names of these instructions and what each lane of their fragments holds. Not here: tiles, pipelines,
// layouts of packed weights (packed.cuh). All of it runs on sm_80 and later; T is __nv_bfloat16 or __half.
//
// Fragments, with g = lane / 4 and t = lane % 4 (PTX ISA, "Matrix fragments for mma.m16n8k16"); a register holds two
// elements, the one of the lower k (for A, B) in its low half:
//   A [16 rows, 16 k]  a0 = (g, 2t..)   a1 = (g + 8, 2t..)   a2 = (g, 2t + 8..)   a3 = (g + 8, 2t + 8..)
//   B [16 k, 8 cols]   b0 = (k 2t.., col g)   b1 = (k 2t + 8.., col g)
//   C, D [16, 8] f32   c0, c1 = (g, 2t), (g, 2t + 1)   c2, c3 = (g + 8, 2t), (g + 8, 2t + 1)
//   m16n8k8: A is a0, a1 alone, B is b0 alone.
// So the C fragments of two neighbouring 8-column tiles, rounded to T, are the A fragment of their 16 columns as k:
//   a0 = (c0, c1) of the first, a1 = (c2, c3) of the first, a2 and a3 the same of the second.
//
// ldmatrix: lanes 8i..8i+7 name the eight 16-byte rows of matrix i; register i of lane (g, t) gets elements 2t, 2t + 1
// of its row g, with .trans of its column g (element rows 2t, 2t + 1).
#pragma once

#include <cstdint>

#include "common.cuh"

namespace engine {

constexpr unsigned kAllLanes = 0xffffffffu;

// The warp's number in its block, in a register that the compiler knows to be the same in all lanes: without this
// every loop around mma gets a guard for divergence, which costs a third of the registers.
__device__ __forceinline__ int warp_index() { return __shfl_sync(kAllLanes, threadIdx.x / kWarpThreads, 0); }

// The address that ldmatrix, cp.async and other shared-memory instructions take.
__device__ __forceinline__ uint32_t shared_address(const void* p) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(p));
}

// Two f32 to one register of a fragment, `low` in the low half; rounds to nearest even.
template <typename T>
__device__ __forceinline__ uint32_t pack_pair(float low, float high);
template <>
__device__ __forceinline__ uint32_t pack_pair<__nv_bfloat16>(float low, float high) {
  uint32_t r;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(high), "f"(low));
  return r;
}
template <>
__device__ __forceinline__ uint32_t pack_pair<__half>(float low, float high) {
  uint32_t r;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(high), "f"(low));
  return r;
}

// The halves of a register of a fragment.
template <typename T>
__device__ __forceinline__ float2 unpack_pair(uint32_t pair);
template <>
__device__ __forceinline__ float2 unpack_pair<__nv_bfloat16>(uint32_t pair) {
  return make_float2(__uint_as_float(pair << 16), __uint_as_float(pair & 0xffff0000u));
}
template <>
__device__ __forceinline__ float2 unpack_pair<__half>(uint32_t pair) {
  return __half22float2(*reinterpret_cast<const __half2*>(&pair));
}

// d += a * b, [16, 16] x [16, 8], f32 sums.
template <typename T>
__device__ __forceinline__ void mma_m16n8k16(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1);
template <>
__device__ __forceinline__ void mma_m16n8k16<__nv_bfloat16>(float (&d)[4], const uint32_t (&a)[4], uint32_t b0,
                                                            uint32_t b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
template <>
__device__ __forceinline__ void mma_m16n8k16<__half>(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// d += a * b, [16, 8] x [8, 8]: the tail of a k that is an odd multiple of 8.
template <typename T>
__device__ __forceinline__ void mma_m16n8k8(float (&d)[4], uint32_t a0, uint32_t a1, uint32_t b0);
template <>
__device__ __forceinline__ void mma_m16n8k8<__nv_bfloat16>(float (&d)[4], uint32_t a0, uint32_t a1, uint32_t b0) {
  asm volatile("mma.sync.aligned.m16n8k8.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5}, {%6}, {%0,%1,%2,%3};"
               : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
               : "r"(a0), "r"(a1), "r"(b0));
}
template <>
__device__ __forceinline__ void mma_m16n8k8<__half>(float (&d)[4], uint32_t a0, uint32_t a1, uint32_t b0) {
  asm volatile("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5}, {%6}, {%0,%1,%2,%3};"
               : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
               : "r"(a0), "r"(a1), "r"(b0));
}

// One, two or four 8x8 matrices of 16-bit elements from shared memory. `row` is this lane's 16-byte row address; x1
// reads those of lanes 0..7, x2 of 0..15.
__device__ __forceinline__ void ldmatrix_x1(uint32_t& r0, uint32_t row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x1.shared.b16 {%0}, [%1];" : "=r"(r0) : "r"(row) : "memory");
}
__device__ __forceinline__ void ldmatrix_x2(uint32_t& r0, uint32_t& r1, uint32_t row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0,%1}, [%2];" : "=r"(r0), "=r"(r1) : "r"(row) : "memory");
}
__device__ __forceinline__ void ldmatrix_x4(uint32_t (&r)[4], uint32_t row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(row)
               : "memory");
}
__device__ __forceinline__ void ldmatrix_x1_trans(uint32_t& r0, uint32_t row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x1.trans.shared.b16 {%0}, [%1];" : "=r"(r0) : "r"(row) : "memory");
}
__device__ __forceinline__ void ldmatrix_x2_trans(uint32_t& r0, uint32_t& r1, uint32_t row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0,%1}, [%2];"
               : "=r"(r0), "=r"(r1)
               : "r"(row)
               : "memory");
}
__device__ __forceinline__ void ldmatrix_x4_trans(uint32_t (&r)[4], uint32_t row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(row)
               : "memory");
}

// Copies kBytes (4, 8 or 16, both sides aligned to it) from global to shared memory without passing registers. Of the
// source only the first `source_bytes` are read and the rest of the target is zero; 0 reads nothing, but the address
// must still be one of the allocation. 16 bytes pass the L1 cache by.
template <int kBytes>
__device__ __forceinline__ void cp_async(uint32_t target, const void* source, int source_bytes = kBytes) {
  static_assert(kBytes == 4 || kBytes == 8 || kBytes == 16, "sizes of cp.async");
  if constexpr (kBytes == 16) {
    asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16, %2;"
                 :
                 : "r"(target), "l"(__cvta_generic_to_global(source)), "r"(source_bytes)
                 : "memory");
  } else {
    asm volatile("cp.async.ca.shared.global [%0], [%1], %2, %3;"
                 :
                 : "r"(target), "l"(__cvta_generic_to_global(source)), "n"(kBytes), "r"(source_bytes)
                 : "memory");
  }
}
// As above, always whole.
__device__ __forceinline__ void cp_async_16(uint32_t target, const void* source) {
  asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16;"
               :
               : "r"(target), "l"(__cvta_generic_to_global(source))
               : "memory");
}
// As above, by threads where `mine` holds: a predicate, not a branch.
__device__ __forceinline__ void cp_async_16_if(bool mine, uint32_t target, const void* source) {
  asm volatile(
      "{\n\t.reg .pred p;\n\tsetp.ne.s32 p, %2, 0;\n\t@p cp.async.cg.shared.global.L2::128B [%0], [%1], 16;\n\t}"
      :
      : "r"(target), "l"(__cvta_generic_to_global(source)), "r"(static_cast<int>(mine))
      : "memory");
}
// Ends this thread's group of copies, an empty one too.
__device__ __forceinline__ void cp_async_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
// Waits until at most kPending of this thread's groups are under way. Other threads' copies need a barrier after it.
template <int kPending>
__device__ __forceinline__ void cp_async_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
}

// 16 bytes that are read once: past the L1 cache, in whole 128-byte lines. Volatile, so that loads written one after
// another stay together and are all in flight at once.
__device__ __forceinline__ uint4 load_streaming(const void* p) {
  uint4 v;
  asm volatile("ld.global.nc.L1::no_allocate.L2::128B.v4.u32 {%0,%1,%2,%3}, [%4];"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
               : "l"(__cvta_generic_to_global(p)));
  return v;
}

// base + count * bytes in one instruction; the compiler makes three multiplies of it where it knows a sign.
__device__ __forceinline__ const char* advance(const void* base, int count, int bytes) {
  const char* p;
  asm("mad.wide.s32 %0, %1, %2, %3;" : "=l"(p) : "r"(count), "r"(bytes), "l"(base));
  return p;
}

// 2^x, 2 ulp; -inf gives 0.
__device__ __forceinline__ float exp2_approx(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

}  // namespace engine
