// Guest kernels of the softgpu tests: vector add, rmsnorm, softmax with shuffles, histogram with atomics, a chain for graphs.
// Compiled to PTX by make_ptx.sh; the PTX is committed, so the tests need no compiler.
#include <cuda_bf16.h>
#include <cstdint>

extern "C" __global__ void __launch_bounds__(256) vector_add(const float* a, const float* b, float* c, int n) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) c[i] = a[i] + b[i];
}

// y = x * rsqrt(mean(x^2) + eps) * w, one block a row, bf16 in and out, f32 inside. hidden % 8 == 0.
extern "C" __global__ void __launch_bounds__(256)
rmsnorm(const __nv_bfloat16* __restrict__ x, const __nv_bfloat16* __restrict__ w, __nv_bfloat16* __restrict__ y, int hidden, float eps) {
    __shared__ float partial[8];
    const int row = blockIdx.x, tid = threadIdx.x;
    const uint4* xr = reinterpret_cast<const uint4*>(x + (size_t)row * hidden);
    const uint4* wr = reinterpret_cast<const uint4*>(w);
    uint4* yr = reinterpret_cast<uint4*>(y + (size_t)row * hidden);
    float sum = 0.f;
    for (int i = tid; i < hidden / 8; i += 256) {
        uint4 v = xr[i];
        const __nv_bfloat162* p = reinterpret_cast<const __nv_bfloat162*>(&v);
#pragma unroll
        for (int j = 0; j < 4; ++j) {
            float2 f = __bfloat1622float2(p[j]);
            sum += f.x * f.x + f.y * f.y;
        }
    }
#pragma unroll
    for (int o = 16; o; o >>= 1) sum += __shfl_xor_sync(~0u, sum, o);
    if ((tid & 31) == 0) partial[tid >> 5] = sum;
    __syncthreads();
    float total = 0.f;
#pragma unroll
    for (int j = 0; j < 8; ++j) total += partial[j];
    const float scale = rsqrtf(total / hidden + eps);
    for (int i = tid; i < hidden / 8; i += 256) {
        uint4 v = xr[i], g = wr[i], o;
        const __nv_bfloat162* p = reinterpret_cast<const __nv_bfloat162*>(&v);
        const __nv_bfloat162* q = reinterpret_cast<const __nv_bfloat162*>(&g);
        __nv_bfloat162* r = reinterpret_cast<__nv_bfloat162*>(&o);
#pragma unroll
        for (int j = 0; j < 4; ++j) {
            float2 f = __bfloat1622float2(p[j]), h = __bfloat1622float2(q[j]);
            r[j] = __floats2bfloat162_rn(f.x * scale * h.x, f.y * scale * h.y);
        }
        yr[i] = o;
    }
}

// One warp a row.
extern "C" __global__ void __launch_bounds__(128) softmax_rows(const float* x, float* y, int rows, int cols) {
    const int lane = threadIdx.x & 31, row = blockIdx.x * 4 + (threadIdx.x >> 5);
    if (row >= rows) return;
    float m = -INFINITY, s = 0.f;
    for (int c = lane; c < cols; c += 32) m = fmaxf(m, x[(size_t)row * cols + c]);
#pragma unroll
    for (int o = 16; o; o >>= 1) m = fmaxf(m, __shfl_xor_sync(~0u, m, o));
    for (int c = lane; c < cols; c += 32) s += __expf(x[(size_t)row * cols + c] - m);
#pragma unroll
    for (int o = 16; o; o >>= 1) s += __shfl_xor_sync(~0u, s, o);
    const float inv = 1.f / s;
    for (int c = lane; c < cols; c += 32) y[(size_t)row * cols + c] = __expf(x[(size_t)row * cols + c] - m) * inv;
}

// 256 bins over bytes: shared-memory atomics a block, then one global atomic a bin.
extern "C" __global__ void __launch_bounds__(256) histogram(const uint8_t* x, unsigned* bins, int n) {
    __shared__ unsigned local[256];
    local[threadIdx.x] = 0;
    __syncthreads();
    for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < n; i += gridDim.x * blockDim.x) atomicAdd(&local[x[i]], 1u);
    __syncthreads();
    if (local[threadIdx.x]) atomicAdd(&bins[threadIdx.x], local[threadIdx.x]);
}

extern "C" __global__ void __launch_bounds__(256) scale_shift(float* x, float scale, float shift, int n) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) x[i] = x[i] * scale + shift;
}

// The bench's arithmetic loop: 8 independent chains of integer and float work, nothing but registers inside.
extern "C" __global__ void __launch_bounds__(256) arithmetic_loop(float* out, int iterations) {
    float a = threadIdx.x * 0.001f, b = 1.5f, c = 0.25f, d = 2.0f;
    unsigned u = threadIdx.x, v = 0x9e3779b9u;
#pragma unroll 4
    for (int i = 0; i < iterations; ++i) {
        a = fmaf(a, 0.999f, b);
        b = fmaf(b, 0.998f, c);
        c = fmaf(c, 0.997f, d);
        d = fmaf(d, 0.5f, a * 1e-3f);
        u = (u ^ (u << 13)) + v;
        v = (v ^ (v >> 7)) + u * 5u;
    }
    out[blockIdx.x * blockDim.x + threadIdx.x] = a + b + c + d + __uint_as_float((u ^ v) & 0x3fffffffu);
}
