// Attention of one query a sequence over its KV pages, split over the keys:
//   out[t, h] = softmax(scale * q[t, h] K[h / group]^T) V[h / group] over the latest `window` keys of t's sequence
//
// In      as paged_prefill.cu; sequences of other than one query are left to it
//         partials: f32, kPartialFloats(D) a (sequence, head tile, split); counters [seqs * head tiles] i32, zero
// Out     out as q, another buffer; counters zero again. T is __nv_bfloat16 or __half (suffix bf16, f16)
// Grid    (splits, kv_heads * head tiles, seqs) of the bucket; a head tile is up to 8 of the heads that share keys.
//         A sequence is cut into equal pieces of at least kWarps pages; blocks without a piece do nothing
// Block   4 warps; each walks every 4th page of the piece through its own ring of page buffers, without a block barrier
// Shared  4 warps * 2 pages (1 for any256) * (K and V) of 16 rows of head_dim: 64 KiB for 128
// Limits  dN entries: head_dim N, pointers 16-byte aligned, strides multiples of 8. anyN: head_dim up to N
// Cost    reads every key and value once a head tile (once in all for groups up to 8); 4 * keys * heads * head_dim FLOPs.
//         Bound by memory
// Numerics scores, softmax and sums in f32 (ex2.approx), probabilities rounded to T. Warps are merged in order, pieces
//         in order by the last block to finish: equal inputs in an equal bucket give equal bits
// Caller  engine/backend/cuda/ops/paged_attention.rs
// Oracle  engine/backend/cpu/attention/paged.rs; tests/cuda_ops/paged_attention.rs
//
// A multiply has the heads as its 16 rows in q k^T, of which 8 are used: its scores then lie in registers just as the
// column operand of V^T p^T wants them, where the heads are 8 columns and no row is wasted.

#include "attention.cuh"

using namespace engine;

// Mirrored by PagedDecodeArgs in engine/backend/cuda/ops/paged_attention.rs.
struct PagedDecodeArgs {
  const void* q;
  const void* cache;
  void* out;
  const int* block_table;
  const int* cu_q;
  const int* context_lens;
  const int* num_seqs;
  const int* table_stride;
  float* partials;
  int* counters;
  int max_table_stride;
  int q_stride;
  int out_stride;
  int group;
  int num_kv_heads;
  int head_dim;
  int window;
  float scale_log2;
};
static_assert(sizeof(PagedDecodeArgs) == 112, "size as in Rust");

constexpr int kWarps = 4;
constexpr int kHeads = 8;  // of a tile
constexpr int kMaxSplits = 64;

template <typename T_, int kDim_, bool kExact_>
struct DecodeTile {
  using T = T_;
  using Layout = RowLayout<kDim_>;
  static constexpr int kDim = kDim_;
  static constexpr bool kExact = kExact_;
  static constexpr int kPageBytes = kPageSize * Layout::kRowBytes;
  // Pages of a warp under way; two of the largest heads do not fit sm_86.
  static constexpr int kStages = kDim > 128 ? 1 : 2;
  // A head's row of f32 results in shared memory; four more keep the lanes of a store in different banks.
  static constexpr int kOutFloats = kDim + 4;
  static constexpr int kRingBytes = kWarps * kStages * 2 * kPageBytes;
  static constexpr int kMergeBytes = (kWarps * kHeads * (kOutFloats + 2) + kMaxSplits * kHeads + kHeads + 1) * 4;
  static constexpr int kSharedBytes = kRingBytes > kMergeBytes ? kRingBytes : kMergeBytes;
  // Of a partial result: kHeads rows of kDim sums, maxima, sums of weights.
  static constexpr int kPartialFloats = kHeads * (kDim + 2);
};

// Starts a warp's copy of one page's keys and values to a buffer; rows from `count` on, of which the page may hold
// nothing, are zero. `keys` and `values` are those of page 0.
template <typename Tile>
__device__ __forceinline__ void copy_page(const typename Tile::T* keys, const typename Tile::T* values, int page,
                                          int page_bytes, int count, int head_dim, uint32_t buffer) {
  using T = typename Tile::T;
  using Layout = typename Tile::Layout;
  const int lane = threadIdx.x % kWarpThreads;
  if constexpr (Tile::kExact) {
    // A power of two, so that the twist of a pass is one more exclusive or.
    constexpr int kMost = kWarpThreads / Layout::kChunks;
    constexpr int kPassRows = kMost >= 4 ? 4 : kMost >= 2 ? 2 : 1;
    const int row = lane / Layout::kChunks, chunk = lane % Layout::kChunks;
    const bool mine = kPassRows * Layout::kChunks == kWarpThreads || row < kPassRows;
    const int element = row * Tile::kDim + chunk * 8;
    const T* k = reinterpret_cast<const T*>(advance(keys + element, page, page_bytes));
    const T* v = reinterpret_cast<const T*>(advance(values + element, page, page_bytes));
    const uint32_t target = buffer + Layout::offset(row, chunk);
#pragma unroll
    for (int first = 0; first < kPageSize; first += kPassRows) {
      const int bytes = first + row < count ? 16 : 0;
      const uint32_t to = (target ^ (Layout::twist(first) * 16)) + first * Layout::kRowBytes;
      if (mine) {
        cp_async<16>(to, k + first * Tile::kDim, bytes);
        cp_async<16>(to + Tile::kPageBytes, v + first * Tile::kDim, bytes);
      }
    }
  } else {
#pragma unroll 1
    for (int piece = lane; piece < kPageSize * Layout::kChunks; piece += kWarpThreads) {
      const int row = piece / Layout::kChunks, chunk = piece % Layout::kChunks;
      const int dim = row < count ? head_dim : 0;
      const uint32_t target = buffer + Layout::offset(row, chunk);
      const T* k = reinterpret_cast<const T*>(advance(keys, page, page_bytes)) + row * head_dim;
      const T* v = reinterpret_cast<const T*>(advance(values, page, page_bytes)) + row * head_dim;
      copy_chunk<Tile>(target, k, chunk, dim);
      copy_chunk<Tile>(target + Tile::kPageBytes, v, chunk, dim);
    }
  }
}

// Two neighbouring elements of q, zero from head_dim on.
template <typename Tile>
__device__ __forceinline__ uint32_t load_pair(const typename Tile::T* q, int at, int head_dim) {
  if constexpr (Tile::kExact) return *reinterpret_cast<const uint32_t*>(q + at);
  const unsigned short* bits = reinterpret_cast<const unsigned short*>(q);
  const uint32_t low = at < head_dim ? bits[at] : 0;
  const uint32_t high = at + 1 < head_dim ? bits[at + 1] : 0;
  return low | high << 16;
}

template <typename Tile>
__device__ __forceinline__ void paged_decode(const PagedDecodeArgs& args) {
  using T = typename Tile::T;
  using Layout = typename Tile::Layout;
  constexpr int kSteps = Tile::kDim / 16;
  constexpr int kStages = Tile::kStages;
  extern __shared__ __align__(1024) unsigned char shared[];
  const int s = blockIdx.z;
  if (args.num_seqs != nullptr && s >= *args.num_seqs) return;
  const int query = args.cu_q[s];
  if (args.cu_q[s + 1] - query != 1) return;
  const int context = args.context_lens[s];
  const int begin = max(0, context - args.window);
  const int first_page = begin / kPageSize;
  const int pages = (context + kPageSize - 1) / kPageSize - first_page;
  // Equal pieces, whole rounds of the warps.
  const int splits = gridDim.x;
  const int piece = ((pages + splits - 1) / splits + kWarps - 1) / kWarps * kWarps;
  const int pieces = (pages + piece - 1) / piece;
  const int split = blockIdx.x;
  if (split >= pieces) return;

  const int lane = threadIdx.x % kWarpThreads;
  const int warp = warp_index();
  const int head_dim = Tile::kExact ? Tile::kDim : args.head_dim;
  const int head_tiles = (args.group + kHeads - 1) / kHeads;
  const int kv_head = blockIdx.y / head_tiles;
  const int head_in_group = blockIdx.y % head_tiles * kHeads;
  const int heads = min(kHeads, args.group - head_in_group);
  const int head = kv_head * args.group + head_in_group;

  // Q as the row operand: row lane / 4 is a head, rows 8.. are nothing.
  uint32_t q[kSteps][2];
  const T* q_row = static_cast<const T*>(args.q) + static_cast<long long>(query) * args.q_stride +
                   (head + min(lane / 4, heads - 1)) * head_dim;
#pragma unroll
  for (int step = 0; step < kSteps; ++step) {
#pragma unroll
    for (int i = 0; i < 2; ++i) q[step][i] = load_pair<Tile>(q_row, step * 16 + i * 8 + lane % 4 * 2, head_dim);
  }

  const int stride = args.table_stride != nullptr ? *args.table_stride : args.max_table_stride;
  const int* table = args.block_table + static_cast<long long>(s) * stride + first_page;
  const int value_offset = args.num_kv_heads * kPageSize * head_dim;
  const T* keys = static_cast<const T*>(args.cache) + kv_head * kPageSize * head_dim;
  const int at = split * piece + warp;  // this warp's first page, its others are kWarps apart
  const int end = min(pages, (split + 1) * piece);
  const int count = at < end ? (end - at + kWarps - 1) / kWarps : 0;

  const uint32_t ring = shared_address(shared) + warp * (kStages * 2 * Tile::kPageBytes);
  // Lane l holds the number of the warp's page l of the 32 in hand.
  int numbers = 0;
  const auto start = [&](int i) {
    if (i < count) {
      if (i % kWarpThreads == 0) numbers = table[min(at + (i + lane) * kWarps, end - 1)];
      const int number = __shfl_sync(kAllLanes, numbers, i % kWarpThreads);
      const int key = (first_page + at + i * kWarps) * kPageSize;
      copy_page<Tile>(keys, keys + value_offset, number, 4 * value_offset, context - key, head_dim,
                      ring + i % kStages * (2 * Tile::kPageBytes));
    }
    cp_async_commit();
  };

  // Results as the sum of a multiply of 16 elements of the head (rows) and 8 heads (columns).
  float out[kSteps][4];
#pragma unroll
  for (int step = 0; step < kSteps; ++step) {
#pragma unroll
    for (int i = 0; i < 4; ++i) out[step][i] = 0.0f;
  }
  float shift = kNoShift, row_sum = 0.0f;  // of head lane / 4
  const uint32_t lane_offset = Layout::offset(lane / 16 * 8 + lane % 8, lane / 8 % 2);
#pragma unroll
  for (int i = 0; i < kStages; ++i) start(i);
  for (int i = 0; i < count; ++i) {
    cp_async_wait<kStages - 1>();
    __syncwarp();
    const uint32_t k_address = ring + i % kStages * (2 * Tile::kPageBytes) + lane_offset;
    float score[2][4] = {};
#pragma unroll
    for (int step = 0; step < kSteps; ++step) {
      uint32_t k[4];
      ldmatrix_x4(k, Layout::step(k_address, 2 * step));
      const uint32_t rows[4] = {q[step][0], 0, q[step][1], 0};
      mma_m16n8k16<T>(score[0], rows, k[0], k[1]);
      mma_m16n8k16<T>(score[1], rows, k[2], k[3]);
    }
    const int key = (first_page + at + i * kWarps) * kPageSize;
    if (key < begin || key + kPageSize > context) {
#pragma unroll
      for (int n = 0; n < 2; ++n) {
#pragma unroll
        for (int c = 0; c < 2; ++c) {
          const int k = key + n * 8 + lane % 4 * 2 + c;
          if (k < begin || k >= context) score[n][c] = -INFINITY;
        }
      }
    }
    float top = fmaxf(fmaxf(score[0][0], score[0][1]), fmaxf(score[1][0], score[1][1]));
    top = fmaxf(top, __shfl_xor_sync(kAllLanes, top, 1));
    top = fmaxf(top, __shfl_xor_sync(kAllLanes, top, 2));
    if (__any_sync(kAllLanes, fmaf(top, args.scale_log2, -shift) > kSlack)) {
      const float next = fmaxf(shift, top * args.scale_log2);
      const float factor = exp2_approx(shift - next);
      shift = next;
      row_sum *= factor;
      // Columns of this lane's results are heads 2 (lane % 4) and the next.
      const float even = __shfl_sync(kAllLanes, factor, lane % 4 * 8);
      const float odd = __shfl_sync(kAllLanes, factor, lane % 4 * 8 + 4);
#pragma unroll
      for (int step = 0; step < kSteps; ++step) {
#pragma unroll
        for (int c = 0; c < 4; ++c) out[step][c] *= c % 2 == 0 ? even : odd;
      }
    }
    uint32_t p[2];
#pragma unroll
    for (int n = 0; n < 2; ++n) {
      const float a = exp2_approx(fmaf(score[n][0], args.scale_log2, -shift));
      const float b = exp2_approx(fmaf(score[n][1], args.scale_log2, -shift));
      row_sum += a + b;
      p[n] = pack_pair<T>(a, b);
    }
#pragma unroll
    for (int step = 0; step < kSteps; ++step) {
      uint32_t v[4];
      ldmatrix_x4_trans(v, Layout::step(k_address + Tile::kPageBytes, 2 * step));
      mma_m16n8k16<T>(out[step], v, p[0], p[1]);
    }
    // All lanes have read the page before it is overwritten.
    __syncwarp();
    start(i + kStages);
  }
  cp_async_wait<0>();
  row_sum += __shfl_xor_sync(kAllLanes, row_sum, 1);
  row_sum += __shfl_xor_sync(kAllLanes, row_sum, 2);
  // The rings become the place where warps meet.
  __syncthreads();
  float* sums = reinterpret_cast<float*>(shared);                 // [kWarps][kHeads][kOutFloats]
  float* maxima = sums + kWarps * kHeads * Tile::kOutFloats;      // [kWarps][kHeads]
  float* totals = maxima + kWarps * kHeads;                       // [kWarps][kHeads]
  float* weights = totals + kWarps * kHeads;                      // [pieces][kHeads], then 1 / total
#pragma unroll
  for (int step = 0; step < kSteps; ++step) {
#pragma unroll
    for (int c = 0; c < 4; ++c) {
      sums[(warp * kHeads + lane % 4 * 2 + c % 2) * Tile::kOutFloats + step * 16 + c / 2 * 8 + lane / 4] = out[step][c];
    }
  }
  if (lane % 4 == 0) {
    maxima[warp * kHeads + lane / 4] = shift;
    totals[warp * kHeads + lane / 4] = row_sum;
  }
  __syncthreads();

  const int tile = s * gridDim.y + blockIdx.y;
  float* partial = args.partials + (static_cast<long long>(tile) * splits + split) * Tile::kPartialFloats;
  T* target = static_cast<T*>(args.out) + static_cast<long long>(query) * args.out_stride + head * head_dim;
  for (int i = threadIdx.x; i < heads * Tile::kDim; i += kWarps * kWarpThreads) {
    const int h = i / Tile::kDim, d = i % Tile::kDim;
    float top = maxima[h];
#pragma unroll
    for (int w = 1; w < kWarps; ++w) top = fmaxf(top, maxima[w * kHeads + h]);
    float sum = 0.0f, total = 0.0f;
#pragma unroll
    for (int w = 0; w < kWarps; ++w) {
      const float weight = exp2_approx(maxima[w * kHeads + h] - top);
      sum = fmaf(weight, sums[(w * kHeads + h) * Tile::kOutFloats + d], sum);
      total = fmaf(weight, totals[w * kHeads + h], total);
    }
    if (pieces == 1) {
      if (d < head_dim) target[h * head_dim + d] = from_float<T>(sum / total);
    } else {
      partial[i] = sum;
      if (d == 0) {
        partial[kHeads * Tile::kDim + h] = top;
        partial[kHeads * (Tile::kDim + 1) + h] = total;
      }
    }
  }
  if (pieces == 1) return;

  // The last block of the tile to get here adds the pieces, in their order.
  // Dynamic like the rest: a static variable would take the blocks that use all of 48 KiB over it.
  int* last = reinterpret_cast<int*>(weights + kMaxSplits * kHeads + kHeads);
  __threadfence();
  __syncthreads();
  if (threadIdx.x == 0) *last = atomicAdd(&args.counters[tile], 1) == pieces - 1;
  __syncthreads();
  if (*last == 0) return;
  __threadfence();
  const float* parts = args.partials + static_cast<long long>(tile) * splits * Tile::kPartialFloats;
  if (threadIdx.x < heads) {
    const int h = threadIdx.x;
    float top = -INFINITY, total = 0.0f;
    for (int p = 0; p < pieces; ++p) top = fmaxf(top, __ldcg(&parts[p * Tile::kPartialFloats + kHeads * Tile::kDim + h]));
    for (int p = 0; p < pieces; ++p) {
      const float* part = parts + p * Tile::kPartialFloats + kHeads * Tile::kDim + h;
      const float weight = exp2_approx(__ldcg(part) - top);
      weights[p * kHeads + h] = weight;
      total = fmaf(weight, __ldcg(part + kHeads), total);
    }
    weights[pieces * kHeads + h] = 1.0f / total;
  }
  __syncthreads();
  for (int i = threadIdx.x; i < heads * Tile::kDim; i += kWarps * kWarpThreads) {
    const int h = i / Tile::kDim, d = i % Tile::kDim;
    float sum = 0.0f;
    for (int p = 0; p < pieces; ++p) sum = fmaf(weights[p * kHeads + h], __ldcg(&parts[p * Tile::kPartialFloats + i]), sum);
    if (d < head_dim) target[h * head_dim + d] = from_float<T>(sum * weights[pieces * kHeads + h]);
  }
  // The next launch, of the same graph perhaps, counts from zero again.
  if (threadIdx.x == 0) args.counters[tile] = 0;
}

#define PAGED_DECODE_KERNEL(name, blocks, ...)                                                                        \
  extern "C" __global__ void __launch_bounds__(kWarps* kWarpThreads, blocks) paged_decode_##name(const PagedDecodeArgs args) { \
    paged_decode<DecodeTile<__VA_ARGS__>>(args);                                                                      \
  }
#define PAGED_DECODE(suffix, T)                              \
  PAGED_DECODE_KERNEL(suffix##_d64, 4, T, 64, true)          \
  PAGED_DECODE_KERNEL(suffix##_d80, 4, T, 80, true)          \
  PAGED_DECODE_KERNEL(suffix##_d96, 4, T, 96, true)          \
  PAGED_DECODE_KERNEL(suffix##_d128, 3, T, 128, true)        \
  PAGED_DECODE_KERNEL(suffix##_any32, 4, T, 32, false)       \
  PAGED_DECODE_KERNEL(suffix##_any128, 3, T, 128, false)     \
  PAGED_DECODE_KERNEL(suffix##_any256, 2, T, 256, false)

PAGED_DECODE(f16, __half)
PAGED_DECODE(bf16, __nv_bfloat16)
