// y[m,n] = a[m,k] * b[n,k]^T, bf16 in, f32 accumulate, f32 out. 128x128x32 tiles, 4 warps of 64x64, 3 cp.async stages,
// ldmatrix.x4 for both operands, shared rows of 64 B with chunk ^= (row >> 1) & 3. M, N % 128 == 0, K % 32 == 0.
// Shared memory (dynamic): 3 * (128 + 128) * 32 * 2 = 49152 bytes.
#include <cuda_bf16.h>
#include <cstdint>

namespace {
constexpr int kTile = 128, kDepth = 32, kStages = 3;
constexpr int kOperandBytes = kTile * kDepth * 2;

__device__ __forceinline__ uint32_t shared_address(const void* p) { return (uint32_t)__cvta_generic_to_shared(p); }
__device__ __forceinline__ int swizzled(int row, int chunk) { return row * 64 + ((chunk ^ ((row >> 1) & 3)) << 4); }

__device__ __forceinline__ void copy16(uint32_t to, const void* from) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(to), "l"(from));
}
__device__ __forceinline__ void ldmatrix4(uint32_t (&r)[4], uint32_t address) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(address));
}
__device__ __forceinline__ void mma(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
}  // namespace

extern "C" __global__ void __launch_bounds__(128)
gemm_bf16(const __nv_bfloat16* __restrict__ a, const __nv_bfloat16* __restrict__ b, float* __restrict__ y, int m, int n, int k) {
    extern __shared__ __align__(128) unsigned char smem[];
    const int tid = threadIdx.x, lane = tid & 31;
    const int warp = __shfl_sync(~0u, tid >> 5, 0);
    const int row0 = blockIdx.y * kTile, col0 = blockIdx.x * kTile;
    const int wm = (warp >> 1) * 64, wn = (warp & 1) * 64;
    const uint32_t base = shared_address(smem);
    float acc[4][8][4] = {};

    auto load = [&](int stage, int step) {
        const uint32_t sa = base + stage * 2 * kOperandBytes, sb = sa + kOperandBytes;
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            const int at = tid + i * 128, row = at >> 2, chunk = at & 3;
            copy16(sa + swizzled(row, chunk), a + (size_t)(row0 + row) * k + step * kDepth + chunk * 8);
            copy16(sb + swizzled(row, chunk), b + (size_t)(col0 + row) * k + step * kDepth + chunk * 8);
        }
    };
    const int steps = k / kDepth;
    for (int s = 0; s < kStages - 1; ++s) {
        if (s < steps) load(s, s);
        asm volatile("cp.async.commit_group;");
    }
    for (int step = 0; step < steps; ++step) {
        asm volatile("cp.async.wait_group %0;" ::"n"(kStages - 2));
        __syncthreads();
        const int next = step + kStages - 1;
        if (next < steps) load(next % kStages, next);
        asm volatile("cp.async.commit_group;");
        const uint32_t sa = base + (step % kStages) * 2 * kOperandBytes, sb = sa + kOperandBytes;
#pragma unroll
        for (int kk = 0; kk < kDepth / 16; ++kk) {
            uint32_t fa[4][4], fb[4][4];
#pragma unroll
            for (int i = 0; i < 4; ++i) ldmatrix4(fa[i], sa + swizzled(wm + i * 16 + (lane & 15), kk * 2 + (lane >> 4)));
#pragma unroll
            for (int j = 0; j < 4; ++j)
                ldmatrix4(fb[j], sb + swizzled(wn + j * 16 + (lane & 7) + ((lane >> 4) << 3), kk * 2 + ((lane >> 3) & 1)));
#pragma unroll
            for (int i = 0; i < 4; ++i)
#pragma unroll
                for (int j = 0; j < 8; ++j) mma(acc[i][j], fa[i], fb[j >> 1][(j & 1) * 2], fb[j >> 1][(j & 1) * 2 + 1]);
        }
    }
#pragma unroll
    for (int i = 0; i < 4; ++i)
#pragma unroll
        for (int j = 0; j < 8; ++j) {
            const int r = row0 + wm + i * 16 + (lane >> 2), c = col0 + wn + j * 8 + (lane & 3) * 2;
            *reinterpret_cast<float2*>(y + (size_t)r * n + c) = make_float2(acc[i][j][0], acc[i][j][1]);
            *reinterpret_cast<float2*>(y + (size_t)(r + 8) * n + c) = make_float2(acc[i][j][2], acc[i][j][3]);
        }
}
