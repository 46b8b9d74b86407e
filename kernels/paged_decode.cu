// Attention of one query a sequence over its KV pages, split over the keys:
//   out[t, h] = softmax(scale * q[t, h] K[h / group]^T) V[h / group] over the latest `window` keys of t's sequence
//
// In      as paged_prefill.cu; sequences of other than one query are left to it
//         partials: f32, kPartialFloats(D) a (sequence, head tile, split); counters [seqs * head tiles] u32, zero
// Out     out as q, another buffer; counters zero again. T is __nv_bfloat16 or __half (suffix bf16, f16)
// Grid    (splits, kv_heads * head tiles, seqs) of the bucket; a head tile is up to 8 of the heads that share keys.
//         A sequence is cut into equal pieces of at least kWarps pages; blocks without a piece do nothing
// Block   4 warps; each walks a quarter of the piece's pages through slots of its own, two at a time, without a block
//         barrier. Keys of the next two are on their way as soon as those of these are multiplied, values likewise
// Shared  4 warps * 2 slots (1 for any256) * (K and V) of 16 rows of head_dim: 64 KiB for 128
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
  unsigned* counters;
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
  static constexpr int kSteps = kDim / 16;  // k16 steps of q k^T, m16 tiles of the result
  static constexpr int kPageBytes = kPageSize * Layout::kRowBytes;  // keys, or values
  // Pages that a warp holds, and multiplies at once; two of the largest heads do not fit sm_86.
  static constexpr int kSlots = kDim > 128 ? 1 : 2;
  // A head's row of f32 results in shared memory; four more keep the lanes of a store in different banks.
  static constexpr int kOutFloats = kDim + 4;
  static constexpr int kSlotBytes = kWarps * kSlots * 2 * kPageBytes;
  static constexpr int kMergeBytes = (kWarps * kHeads * (kOutFloats + 2) + kMaxSplits * kHeads + kHeads + 1) * 4;
  static constexpr int kSharedBytes = kSlotBytes > kMergeBytes ? kSlotBytes : kMergeBytes;
  // Of a partial result: kHeads rows of kDim sums, maxima, sums of weights.
  static constexpr int kPartialFloats = kHeads * (kDim + 2);
};

// Starts a warp's copy of a page's keys, or of its values, which are one run of memory, to a slot. kWhole: every row
// holds something; otherwise rows from `count` on are zero.
template <typename Tile, bool kWhole>
__device__ __forceinline__ void copy_rows(const typename Tile::T* rows, int count, int head_dim, uint32_t slot) {
  using Layout = typename Tile::Layout;
  const int lane = threadIdx.x % kWarpThreads;
  if constexpr (Tile::kExact) {
    constexpr int kPieces = kPageSize * Layout::kChunks;
    static_assert(kPieces % kWarpThreads == 0, "a page is whole passes of a warp");
#pragma unroll
    for (int first = 0; first < kPieces; first += kWarpThreads) {
      const int row = (first + lane) / Layout::kChunks, chunk = (first + lane) % Layout::kChunks;
      const uint32_t target = slot + Layout::offset(row, chunk);
      if constexpr (kWhole) {
        cp_async_16(target, rows + first * 8);
      } else {
        cp_async<16>(target, rows + first * 8, row < count ? 16 : 0);
      }
    }
  } else {
#pragma unroll 1
    for (int piece = lane; piece < kPageSize * Layout::kChunks; piece += kWarpThreads) {
      const int row = piece / Layout::kChunks, chunk = piece % Layout::kChunks;
      copy_chunk<Tile>(slot + Layout::offset(row, chunk), rows + row * head_dim, chunk,
                       kWhole || row < count ? head_dim : 0);
    }
  }
}

// Two neighbouring elements of q, zero from head_dim on.
template <typename T>
__device__ __forceinline__ uint32_t load_pair(const T* q, int at, int head_dim) {
  const unsigned short* bits = reinterpret_cast<const unsigned short*>(q);
  const uint32_t low = at < head_dim ? bits[at] : 0;
  const uint32_t high = at + 1 < head_dim ? bits[at + 1] : 0;
  return low | high << 16;
}

// What a warp has of its heads, and what it does with the pages in its slots.
template <typename Tile>
struct HeadTile {
  using T = typename Tile::T;
  using Layout = typename Tile::Layout;
  static constexpr int kSteps = Tile::kSteps;
  uint32_t q[kSteps][2];       // the row operand: row lane / 4 is a head, rows 8.. are nothing
  float out[kSteps][4];        // sum of a multiply of 16 elements of the head (rows) and 8 heads (columns)
  float shift, row_sum;        // of head lane / 4

  // `row`: of head lane / 4.
  __device__ __forceinline__ HeadTile(const T* row, int head_dim) : shift(kNoShift), row_sum(0.0f) {
    const int lane = threadIdx.x % kWarpThreads;
#pragma unroll
    for (int step = 0; step < kSteps; ++step) {
      if constexpr (Tile::kExact) {
        // Four lanes read a whole sector of a row, and hand each other words t and t + 4 of its eight.
        const uint2 words = *reinterpret_cast<const uint2*>(row + step * 16 + lane % 4 * 4);
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          const int from = lane / 4 * 4 + 2 * i + lane % 4 / 2;
          const uint32_t even = __shfl_sync(kAllLanes, words.x, from), odd = __shfl_sync(kAllLanes, words.y, from);
          q[step][i] = lane % 2 == 0 ? even : odd;
        }
      } else {
#pragma unroll
        for (int i = 0; i < 2; ++i) q[step][i] = load_pair(row, step * 16 + i * 8 + lane % 4 * 2, head_dim);
      }
#pragma unroll
      for (int i = 0; i < 4; ++i) out[step][i] = 0.0f;
    }
  }

  // Scores against the keys of kPages slots; `keys`: this lane's first row of ldmatrix.
  template <int kPages>
  __device__ __forceinline__ void multiply_keys(uint32_t keys, float (&score)[2 * kPages][4]) const {
#pragma unroll
    for (int n = 0; n < 2 * kPages; ++n) {
#pragma unroll
      for (int i = 0; i < 4; ++i) score[n][i] = 0.0f;
    }
#pragma unroll
    for (int step = 0; step < kSteps; ++step) {
      const uint32_t rows[4] = {q[step][0], 0, q[step][1], 0};
#pragma unroll
      for (int page = 0; page < kPages; ++page) {
        uint32_t k[4];
        ldmatrix_x4(k, Layout::step(keys, 2 * step) + page * Tile::kPageBytes);
        mma_m16n8k16<T>(score[2 * page], rows, k[0], k[1]);
        mma_m16n8k16<T>(score[2 * page + 1], rows, k[2], k[3]);
      }
    }
  }

  // Probabilities of those scores, as the column operand; sums so far are scaled where a maximum has grown.
  template <int kPages>
  __device__ __forceinline__ void weigh(const float (&score)[2 * kPages][4], float scale_log2,
                                        uint32_t (&p)[2 * kPages]) {
    float top = fmaxf(score[0][0], score[0][1]);
#pragma unroll
    for (int n = 1; n < 2 * kPages; ++n) top = fmaxf(top, fmaxf(score[n][0], score[n][1]));
    top = fmaxf(top, __shfl_xor_sync(kAllLanes, top, 1));
    top = fmaxf(top, __shfl_xor_sync(kAllLanes, top, 2));
    if (__any_sync(kAllLanes, fmaf(top, scale_log2, -shift) > kSlack)) {
      const float next = fmaxf(shift, top * scale_log2);
      const float factor = exp2_approx(shift - next);
      shift = next;
      row_sum *= factor;
      // Columns of this lane's results are heads 2 (lane % 4) and the next.
      const int lane = threadIdx.x % kWarpThreads;
      const float even = __shfl_sync(kAllLanes, factor, lane % 4 * 8);
      const float odd = __shfl_sync(kAllLanes, factor, lane % 4 * 8 + 4);
#pragma unroll
      for (int step = 0; step < kSteps; ++step) {
#pragma unroll
        for (int c = 0; c < 4; ++c) out[step][c] *= c % 2 == 0 ? even : odd;
      }
    }
#pragma unroll
    for (int n = 0; n < 2 * kPages; ++n) {
      const float a = exp2_approx(fmaf(score[n][0], scale_log2, -shift));
      const float b = exp2_approx(fmaf(score[n][1], scale_log2, -shift));
      row_sum += a + b;
      p[n] = pack_pair<T>(a, b);
    }
  }

  template <int kPages>
  __device__ __forceinline__ void multiply_values(uint32_t values, const uint32_t (&p)[2 * kPages]) {
#pragma unroll
    for (int page = 0; page < kPages; ++page) {
#pragma unroll
      for (int step = 0; step < kSteps; ++step) {
        uint32_t v[4];
        ldmatrix_x4_trans(v, Layout::step(values, 2 * step) + page * Tile::kPageBytes);
        mma_m16n8k16<T>(out[step], v, p[2 * page], p[2 * page + 1]);
      }
    }
  }
};

template <typename Tile>
__device__ __forceinline__ void paged_decode(const PagedDecodeArgs& args) {
  using T = typename Tile::T;
  using Layout = typename Tile::Layout;
  constexpr int kSteps = Tile::kSteps;
  constexpr int kSlots = Tile::kSlots;
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

  const int stride = args.table_stride != nullptr ? *args.table_stride : args.max_table_stride;
  const int* table = args.block_table + static_cast<long long>(s) * stride + first_page;
  const int value_offset = args.num_kv_heads * kPageSize * head_dim;
  const int page_bytes = 4 * value_offset;
  // Of page 0; where rows are exact, this lane's first piece of them.
  const T* keys =
      static_cast<const T*>(args.cache) + kv_head * kPageSize * head_dim + (Tile::kExact ? lane * 8 : 0);
  const T* values = keys + value_offset;
  const auto page = [&](const T* first, int number) {
    return reinterpret_cast<const T*>(advance(first, number, page_bytes));
  };
  const T* q_row = static_cast<const T*>(args.q) + static_cast<long long>(query) * args.q_stride +
                   (head + min(lane / 4, heads - 1)) * head_dim;
  // This warp's pages are a run of the piece's, so that their numbers are one in the table.
  const int here = min(piece, pages - split * piece);
  const int count = here / kWarps + (warp < here % kWarps);
  const int at = split * piece + here / kWarps * warp + min(warp, here % kWarps);
  table += at;
  const int key = (first_page + at) * kPageSize;  // the first
  // Pages of which some keys may not count come first, one at a time: the last one, and the first one where a window
  // begins in it. One more does where that leaves an odd number, so that the rest needs no mask, no bounds, and is pairs.
  int singles = min(count, kSlots == 1 ? count : begin > key ? 2 : 1);
  singles += (count - singles) % kSlots;
  // In this order, the page of a turn; the last one for a turn that does not come.
  const auto page_of = [&](int turn) { return turn == 0 ? count - 1 : min(turn, count) - 1; };

  const uint32_t key_slots = shared_address(shared) + warp * (2 * kSlots * Tile::kPageBytes);
  const uint32_t value_slots = key_slots + kSlots * Tile::kPageBytes;
  int numbers[kSlots] = {}, ahead[kSlots] = {};  // of the pages of the next turns
  if (count > 0) {
#pragma unroll
    for (int slot = 0; slot < kSlots; ++slot) numbers[slot] = table[page_of(slot)];
#pragma unroll
    for (int slot = 0; slot < kSlots; ++slot) ahead[slot] = table[page_of(kSlots + slot)];
  }
#pragma unroll
  for (int slot = 0; slot < kSlots; ++slot) {
    const int held = slot < count ? context - (key + page_of(slot) * kPageSize) : 0;
    if (held > 0) copy_rows<Tile, false>(page(keys, numbers[slot]), held, head_dim, key_slots + slot * Tile::kPageBytes);
    cp_async_commit();
    if (held > 0) copy_rows<Tile, false>(page(values, numbers[slot]), held, head_dim, value_slots + slot * Tile::kPageBytes);
    cp_async_commit();
  }

  HeadTile<Tile> tile(q_row, head_dim);
  const uint32_t lane_offset = Layout::offset(lane / 16 * 8 + lane % 8, lane / 8 % 2);
#pragma unroll 1
  for (int turn = 0; turn < singles; ++turn) {
    const uint32_t slot = turn % kSlots * Tile::kPageBytes;
    const bool more = turn + kSlots < count;
    cp_async_wait<2 * kSlots - 1>();
    __syncwarp();
    float score[2][4];
    tile.template multiply_keys<1>(key_slots + slot + lane_offset, score);
#pragma unroll
    for (int n = 0; n < 2; ++n) {
#pragma unroll
      for (int c = 0; c < 2; ++c) {
        const int k = key + page_of(turn) * kPageSize + n * 8 + lane % 4 * 2 + c;
        if (k < begin || k >= context) score[n][c] = -INFINITY;
      }
    }
    // All lanes have read the slot before it is overwritten.
    __syncwarp();
    if (more) copy_rows<Tile, true>(page(keys, ahead[0]), kPageSize, head_dim, key_slots + slot);
    cp_async_commit();
    uint32_t p[2];
    tile.template weigh<1>(score, args.scale_log2, p);
    cp_async_wait<2 * kSlots - 1>();
    __syncwarp();
    tile.template multiply_values<1>(value_slots + slot + lane_offset, p);
    __syncwarp();
    if (more) copy_rows<Tile, true>(page(values, ahead[0]), kPageSize, head_dim, value_slots + slot);
    cp_async_commit();
    ahead[0] = ahead[kSlots - 1];
    ahead[kSlots - 1] = table[page_of(turn + 2 * kSlots)];
  }
  if constexpr (kSlots == 2) {
    const int* next = table + singles + 3;
#pragma unroll 1
    for (int turn = singles; turn < count; turn += 2, next += 2) {
      const bool more = turn + 2 < count;
      cp_async_wait<1>();
      __syncwarp();
      float score[4][4];
      tile.template multiply_keys<2>(key_slots + lane_offset, score);
      __syncwarp();
      if (more) {
        copy_rows<Tile, true>(page(keys, ahead[0]), kPageSize, head_dim, key_slots);
        copy_rows<Tile, true>(page(keys, ahead[1]), kPageSize, head_dim, key_slots + Tile::kPageBytes);
      }
      cp_async_commit();
      uint32_t p[4];
      tile.template weigh<2>(score, args.scale_log2, p);
      cp_async_wait<1>();
      __syncwarp();
      tile.template multiply_values<2>(value_slots + lane_offset, p);
      __syncwarp();
      if (more) {
        copy_rows<Tile, true>(page(values, ahead[0]), kPageSize, head_dim, value_slots);
        copy_rows<Tile, true>(page(values, ahead[1]), kPageSize, head_dim, value_slots + Tile::kPageBytes);
      }
      cp_async_commit();
      if (turn + 4 < count) {
        ahead[0] = next[0];
        ahead[1] = next[1];
      }
    }
  }
  cp_async_wait<0>();
  float (&out)[kSteps][4] = tile.out;
  float row_sum = tile.row_sum;
  row_sum += __shfl_xor_sync(kAllLanes, row_sum, 1);
  row_sum += __shfl_xor_sync(kAllLanes, row_sum, 2);
  // The slots become the place where warps meet.
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
    maxima[warp * kHeads + lane / 4] = tile.shift;
    totals[warp * kHeads + lane / 4] = row_sum;
  }
  __syncthreads();

  const int head_tile = s * gridDim.y + blockIdx.y;
  float* partial = args.partials + (static_cast<long long>(head_tile) * splits + split) * Tile::kPartialFloats;
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
  bool* last = reinterpret_cast<bool*>(weights + kMaxSplits * kHeads + kHeads);
  if (!arrive_last(&args.counters[head_tile], pieces, last)) return;
  const float* parts = args.partials + static_cast<long long>(head_tile) * splits * Tile::kPartialFloats;
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
}

// As many as shared memory holds on sm_90.
constexpr int kBlocks64 = 5;

#define PAGED_DECODE_KERNEL(name, blocks, ...)                                                                        \
  extern "C" __global__ void __launch_bounds__(kWarps* kWarpThreads, blocks) paged_decode_##name( \
      const PagedDecodeArgs args) {                                                                  \
    paged_decode<DecodeTile<__VA_ARGS__>>(args);                                                     \
  }
#define PAGED_DECODE(suffix, T)                              \
  PAGED_DECODE_KERNEL(suffix##_d64, kBlocks64, T, 64, true)  \
  PAGED_DECODE_KERNEL(suffix##_d80, 4, T, 80, true)          \
  PAGED_DECODE_KERNEL(suffix##_d96, 4, T, 96, true)          \
  PAGED_DECODE_KERNEL(suffix##_d128, 3, T, 128, true)        \
  PAGED_DECODE_KERNEL(suffix##_any32, 4, T, 32, false)       \
  PAGED_DECODE_KERNEL(suffix##_any128, 3, T, 128, false)     \
  PAGED_DECODE_KERNEL(suffix##_any256, 2, T, 256, false)

PAGED_DECODE(f16, __half)
PAGED_DECODE(bf16, __nv_bfloat16)
