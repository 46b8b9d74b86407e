// Kernels with one planted bug each. "BUG: kind" ends the line that must be reported; tests/bugs.rs runs them all.
// Buffers: in holds n floats, out room for n floats that nothing has written. Blocks of 128 threads.
#include <cuda_bf16.h>
#include <cassert>
#include <cstdint>

#define KERNEL extern "C" __global__ void __launch_bounds__(128)

__device__ __forceinline__ uint32_t shared_address(const void* p) { return (uint32_t)__cvta_generic_to_shared(p); }

KERNEL off_by_one_store(const float* in, float* out, int n) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i <= n - 1) {
        float v = in[i];
        out[i + 1] = v;  // BUG: out-of-bounds access
    }
}

KERNEL off_by_one_load(const float* in, float* out, int n) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    float next = in[i + 1];  // BUG: out-of-bounds access
    if (i < n) out[i] = next;
}

KERNEL shared_off_by_one(const float* in, float* out, int n) {
    __shared__ float s[128];
    int t = threadIdx.x;
    s[t] = in[t];
    __syncthreads();
    out[t] = s[t + 1 + (n >> 20)];  // BUG: out-of-bounds access
}

KERNEL missing_syncthreads(const float* in, float* out, int n) {
    __shared__ float s[128];
    int t = threadIdx.x;
    s[t] = in[t];
    out[t] = s[127 - t];  // BUG: shared-memory race, read of uninitialised memory
}

KERNEL reduction_race(const float* in, float* out, int n) {
    __shared__ float s[128];
    int t = threadIdx.x;
    s[t] = in[t];
    __syncthreads();
#pragma unroll 1
    for (int o = 64; o > 0; o >>= 1) {
        if (t < o) {
            float v = s[t + o];  // BUG: shared-memory race
            s[t] += v;
        }
    }
    if (t == 0) out[0] = s[0];
}

KERNEL overwrite_before_read(const float* in, float* out, int n) {
    __shared__ float tile[128];
    int t = threadIdx.x;
    float sum = 0;
#pragma unroll 1
    for (int step = 0; step < 4; ++step) {
        tile[t] = in[step * 128 + t];  // BUG: shared-memory race
        __syncthreads();
        sum += tile[(t + 64) & 127];
    }
    out[t] = sum;
}

KERNEL missing_async_wait(const float* in, float* out, int n) {
    __shared__ __align__(16) float s[512];
    int t = threadIdx.x;
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(shared_address(s + 4 * t)), "l"(in + 4 * t));
    asm volatile("cp.async.commit_group;");
    __syncthreads();
    out[t] = s[t];  // BUG: missing cp.async wait
}

KERNEL wrong_wait_group(const float* in, float* out, int n) {
    __shared__ __align__(16) float s[1024];
    int t = threadIdx.x;
    for (int g = 0; g < 2; ++g) {
        asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(shared_address(s + 512 * g + 4 * t)), "l"(in + 4 * t));
        asm volatile("cp.async.commit_group;");
    }
    asm volatile("cp.async.wait_group 1;");
    __syncthreads();
    out[t] = s[t] + s[512 + t];  // BUG: missing cp.async wait
}

KERNEL async_without_barrier(const float* in, float* out, int n) {
    __shared__ __align__(16) float s[512];
    int t = threadIdx.x;
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(shared_address(s + 4 * t)), "l"(in + 4 * t));
    asm volatile("cp.async.commit_group;");
    asm volatile("cp.async.wait_group 0;" ::: "memory");
    out[t] = s[511 - t];  // BUG: shared-memory race, missing cp.async wait, read of uninitialised memory
}

KERNEL misaligned_vector_load(const float* in, float* out, int n) {
    int t = threadIdx.x;
    float4 v = *reinterpret_cast<const float4*>(in + 1 + 4 * t);  // BUG: misaligned access
    out[t] = v.x + v.w;
}

KERNEL misaligned_shared(const float* in, float* out, int n) {
    __shared__ __align__(16) float s[260];
    int t = threadIdx.x;
    s[2 * t] = in[t];
    s[2 * t + 1] = in[t];
    __syncthreads();
    float2 v = *reinterpret_cast<const float2*>(s + t);  // BUG: misaligned access
    out[t] = v.x + v.y;
}

KERNEL uninitialised_accumulator(const float* in, float* out, int n) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) out[i] += in[i];  // BUG: read of uninitialised memory
}

KERNEL uninitialised_shared(const float* in, float* out, int n) {
    __shared__ float s[256];
    int t = threadIdx.x;
    s[t] = in[t];
    __syncthreads();
    out[t] = s[t] + s[128 + t];  // BUG: read of uninitialised memory
}

KERNEL divergent_barrier(const float* in, float* out, int n) {
    __shared__ float s[128];
    int t = threadIdx.x;
    s[t] = in[t];
    if (t < 16) {
        __syncthreads();  // BUG: barrier divergence
        out[t] = s[t + 16];
    } else {
        out[t] = 0;
    }
}

KERNEL wrong_barrier_count(const float* in, float* out, int n) {
    int t = threadIdx.x;
    out[t] = in[t];
    if (t < 64) asm volatile("bar.sync 1, 96;" ::: "memory");  // BUG: barrier divergence
}

KERNEL divergent_shuffle(const float* in, float* out, int n) {
    int t = threadIdx.x;
    float v = in[t];
    if (v > 0.f) v += __shfl_xor_sync(0xffffffffu, v, 1);  // BUG: warp-level sync with absent lanes
    out[t] = v;
}

KERNEL missing_syncwarp(const float* in, float* out, int n) {
    __shared__ volatile float s[128];
    int t = threadIdx.x, lane = t & 31, base = t & ~31;
    s[t] = in[t];
    out[t] = s[base + (lane ^ 1)];  // BUG: shared-memory race
}

KERNEL histogram_without_atomics(const float* in, float* out, int n) {
    __shared__ int bins[8];
    int t = threadIdx.x;
    if (t < 8) bins[t] = 0;
    __syncthreads();
    bins[t & 7] += 1;  // BUG: shared-memory race
    __syncthreads();
    if (t < 8) out[t] = bins[t];
}

KERNEL wrong_fragment_index(const float* in, float* out, int n) {
    __shared__ __align__(16) uint16_t a[16 * 16];
    int t = threadIdx.x;
    a[2 * t] = (uint16_t)(in[t] * 100);
    a[2 * t + 1] = 1;
    __syncthreads();
    uint32_t r[4];
    // The row must be t & 15: lanes 16 to 31 name the right half of the same rows.
    uint32_t at = shared_address(a + (t & 31) * 16 + ((t & 31) >> 4) * 8);
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];" : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(at));  // BUG: out-of-bounds access
    out[t] = r[0] + r[1] + r[2] + r[3];
}

KERNEL null_pointer(const float* in, float* out, int n) {
    const float* p = reinterpret_cast<const float*>((uint64_t)(n >> 20));
    out[threadIdx.x] = p[threadIdx.x];  // BUG: out-of-bounds access
}

KERNEL use_after_free(const float* in, float* out, int n) {
    out[threadIdx.x] = in[threadIdx.x];  // BUG: use after free
}

KERNEL swapped_pitch(const float* in, float* out, int n) {
    int row = threadIdx.x, height = 128, width = n / 128;
    for (int c = 0; c < width; ++c) out[c * height + row] = in[row * height + c];  // BUG: out-of-bounds access
}

KERNEL negative_index(const float* in, float* out, int n) {
    int i = threadIdx.x;
    float left = in[i - 1];  // BUG: out-of-bounds access
    out[i] = left;
}

KERNEL local_overflow(const float* in, float* out, int n) {
    float v[8];
#pragma unroll 1
    for (int i = 0; i < 8; ++i) v[(i * n) & 7] = in[i];
    out[threadIdx.x] = v[(n & 15) + 8];  // BUG: out-of-bounds access
}

KERNEL failed_assert(const float* in, float* out, int n) {
    out[threadIdx.x] = in[threadIdx.x];
    assert(n < 0);  // BUG: assertion failed
}
