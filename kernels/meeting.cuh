// Where blocks meet that computed parts of one result.
//
// Owns: who is the last to arrive. Not here: what the last one adds up, always in the order of the parts.
#pragma once

namespace engine {

// True in every thread of the block that is the last of `blocks` to get here; what the others wrote before is then
// visible. Leaves the counter zero for the next launch. `last` is shared memory that no thread needs any more.
__device__ __forceinline__ bool arrive_last(unsigned* arrived, int blocks, bool* last) {
  asm volatile("fence.acq_rel.gpu;" ::: "memory");
  __syncthreads();
  if (threadIdx.x == 0) {
    *last = atomicAdd(arrived, 1u) == blocks - 1;
    if (*last) *arrived = 0;
  }
  __syncthreads();
  asm volatile("fence.acq_rel.gpu;" ::: "memory");
  return *last;
}

}  // namespace engine
