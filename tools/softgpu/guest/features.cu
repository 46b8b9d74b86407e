// What ordinary CUDA C++ compiles to: half and bfloat16 headers, cooperative groups' tiles, templates, calls that stay
// calls, local arrays, switch tables, 64-bit and double arithmetic, math functions, printf.
#include <cooperative_groups.h>
#include <cooperative_groups/reduce.h>
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cstdint>
#include <cstdio>
namespace cg = cooperative_groups;

extern "C" __global__ void half_ops(const __half* a, const __half* b, __half* out, int n) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (2 * i + 1 >= n) return;
    __half2 x = reinterpret_cast<const __half2*>(a)[i], y = reinterpret_cast<const __half2*>(b)[i];
    __half2 r = __hfma2(x, y, __hadd2(x, y));
    r = __hmax2(r, __hsub2(x, y));
    r = __hadd2(r, h2exp2(__hmin2(x, y)));
    if (__hlt(__low2half(x), __high2half(y))) r = __lowhigh2highlow(r);
    reinterpret_cast<__half2*>(out)[i] = r;
}

extern "C" __global__ void bfloat_ops(const __nv_bfloat16* a, const __nv_bfloat16* b, __nv_bfloat16* out, int n) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (2 * i + 1 >= n) return;
    __nv_bfloat162 x = reinterpret_cast<const __nv_bfloat162*>(a)[i], y = reinterpret_cast<const __nv_bfloat162*>(b)[i];
    __nv_bfloat162 r = __hfma2(x, y, __hmul2(x, x));
    r = __hmax2(r, __hsub2(x, y));
    reinterpret_cast<__nv_bfloat162*>(out)[i] = __habs2(r);
}

template <int kTile>
__device__ float tile_sum(float v) {
    auto tile = cg::tiled_partition<kTile>(cg::this_thread_block());
    for (int o = tile.size() / 2; o; o /= 2) v += tile.shfl_down(v, o);
    return tile.shfl(v, 0);
}

extern "C" __global__ void tile_partitions(const float* x, float* out) {
    auto block = cg::this_thread_block();
    __shared__ float s[128];
    float v = x[block.group_index().x * block.size() + block.thread_rank()];
    s[block.thread_rank()] = tile_sum<8>(v) + 2.f * tile_sum<16>(v) + 4.f * tile_sum<32>(v);
    block.sync();
    auto warp = cg::tiled_partition<32>(block);
    float w = cg::reduce(warp, s[(block.thread_rank() + 1) % block.size()], cg::plus<float>());
    int q = cg::reduce(warp, (int)block.thread_rank(), cg::greater<int>());
    bool any = warp.any(v > 3.9f);
    out[block.group_index().x * block.size() + block.thread_rank()] = w + q + (any ? 1000.f : 0.f) + __popc(warp.ballot(v > 0.f));
}

__device__ __noinline__ float helper_square(float x, int k) { return x * x + k; }
__device__ __noinline__ int helper_gcd(int a, int b) {
    while (b) { int t = a % b; a = b; b = t; }
    return a;
}
struct Pair { float x; int k; };
__device__ __noinline__ Pair helper_pair(Pair p) { return Pair{p.x + 1.f, p.k * 2}; }

extern "C" __global__ void device_calls(const float* x, float* out, int n) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    Pair p = helper_pair(Pair{x[i], i});
    float v = helper_square(p.x, p.k);
    if (i % 3 == 0) v += helper_square(v, 7);
    out[i] = v + helper_gcd(i * 6 + 12, 18);
}

template <typename T, int N>
__device__ T sort_local(const T* x, int pick) {
    T v[N];
    for (int i = 0; i < N; ++i) v[i] = x[i];
    for (int i = 1; i < N; ++i)
        for (int j = i; j > 0 && v[j] < v[j - 1]; --j) { T t = v[j]; v[j] = v[j - 1]; v[j - 1] = t; }
    return v[pick];
}

extern "C" __global__ void local_sort(const int* x, int* out, int n) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) out[i] = sort_local<int, 9>(x + i * 9, i % 9);
}

__constant__ int table[8] = {3, 1, 4, 1, 5, 9, 2, 6};
__device__ int counter = 5;

extern "C" __global__ void switch_table(const int* x, int* out, int n) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    int v = x[i], r;
    switch (v & 15) {
        case 0: r = v * 3; break;
        case 1: r = v ^ 0x55; break;
        case 2: r = v - 17; break;
        case 3: r = v << 3; break;
        case 4: r = v / 7; break;
        case 5: r = v % 13; break;
        case 6: r = __brev(v); break;
        case 7: r = __clz(v); break;
        case 8: r = __ffs(v); break;
        case 9: r = ~v; break;
        case 10: r = min(v, 100); break;
        default: r = table[v & 7] + counter; break;
    }
    out[i] = r;
}

extern "C" __global__ void wide_integers(const long long* a, const long long* b, long long* out, int n) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    long long x = a[i], y = b[i] | 1;
    unsigned long long h = __umul64hi(x, y);
    out[4 * i] = x / y;
    out[4 * i + 1] = x % y;
    out[4 * i + 2] = (long long)(h ^ ((unsigned long long)x >> (y & 63)));
    out[4 * i + 3] = __mul64hi(x, y) + (long long)((unsigned)x / 10u) + __popcll(x) + __clzll(y) + __dp4a((int)x, (int)y, 3);
}

extern "C" __global__ void math_functions(const float* x, float* out, int n) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    float v = x[i], *o = out + 12 * i;
    o[0] = expf(v); o[1] = logf(fabsf(v) + 1e-3f); o[2] = sinf(v * 10.f); o[3] = cosf(v * 10.f);
    o[4] = tanhf(v); o[5] = erff(v); o[6] = sqrtf(fabsf(v)); o[7] = rsqrtf(fabsf(v) + 0.1f);
    o[8] = powf(fabsf(v) + 0.5f, 1.7f); o[9] = 1.f / (v + 20.f); o[10] = log1pf(fabsf(v)); o[11] = fmodf(v * 7.f, 1.3f);
}

extern "C" __global__ void double_math(const double* x, double* out, int n) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    double v = x[i];
    out[4 * i] = v / 3.0 + sqrt(fabs(v));
    out[4 * i + 1] = exp(v);
    out[4 * i + 2] = sin(v) * cos(v);
    out[4 * i + 3] = (double)(int)v + (double)__double2float_rz(v) + rint(v);
}

extern "C" __global__ void say_hello(int x) {
    if (threadIdx.x < 2) printf("thread %d of block %d says %s %.3f %x\n", threadIdx.x, blockIdx.x, "hello", x * 0.5, 255);
}

// Warp votes, matches, reductions, lane masks and scans.
extern "C" __global__ void warp_functions(const int* x, unsigned* out) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x, v = x[i];
    unsigned r = __ballot_sync(~0u, v & 1);
    r = r * 31 + __match_any_sync(~0u, v % 5);
    r = r * 31 + __reduce_add_sync(~0u, v) + __reduce_max_sync(~0u, v) + __reduce_or_sync(~0u, (unsigned)v);
    if (v > 0) r = r * 31 + __activemask();
    int scan = v;
    for (int o = 1; o < 32; o *= 2) {
        int up = __shfl_up_sync(~0u, scan, o);
        if ((threadIdx.x & 31) >= o) scan += up;
    }
    out[i] = r * 31 + scan + __all_sync(~0u, v > -1000) + __any_sync(~0u, v == 3);
}
