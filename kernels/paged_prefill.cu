// Causal attention of a step's tokens over the KV pages of their sequences: prefill, in chunks or whole, and mixed batches.
//   out[t, h] = softmax(scale * q[t, h] K[h / group]^T) V[h / group] over the sequence's keys up to t's own, the latest
//   `window` of them
//
// In      q [rows, heads, head_dim] T, rows q_stride elements apart; cache [page][K|V][kv_heads][16][head_dim] T;
//         block_table [seqs, table_stride] i32, entries past a context or before every window are not read; cu_q
//         [seqs + 1] i32: sequence s has queries cu_q[s]..cu_q[s + 1], the last ones of its context_lens[s] keys
// Out     out as q, another buffer; rows of no sequence are zero, rows from *num_rows on and those of sequences with
//         fewer than min_queries queries are left alone. T is __nv_bfloat16 or __half (suffix bf16, f16)
// Grid    (rows * group / tile rows + seqs + 1, kv_heads) of the bucket; a block finds its sequence and tile from cu_q,
//         blocks without one do nothing; later tiles, which have more keys, start first
// Block   128 threads: 64 or 128 rows (a row is a query and one of the `group` heads that share keys)
// Shared  (tile rows + 4 * tile keys) rows of head_dim: Q, two buffers of K and V; 24 to 96 KiB
// Limits  dN entries: head_dim N, pointers 16-byte aligned, strides multiples of 8. anyN: head_dim up to N, rows padded
//         with zeros in shared memory, element by element where head_dim is no multiple of 8
// Cost    4 * sum of seen (query, key) pairs * heads * head_dim FLOPs, plus the masked part of tiles on the diagonal;
//         q and out once, pages once a tile of rows. Bound by the tensor cores from about 200 keys on
// Numerics as attention.cuh
// Caller  engine/backend/cuda/ops/paged_attention.rs
// Oracle  engine/backend/cpu/attention/paged.rs; tests/cuda_ops/paged_attention.rs

#include "attention.cuh"

using namespace engine;

// Mirrored by PagedPrefillArgs in engine/backend/cuda/ops/paged_attention.rs.
struct PagedPrefillArgs {
  const void* q;
  const void* cache;
  void* out;
  const int* block_table;
  const int* cu_q;
  const int* context_lens;
  const int* num_seqs;
  const int* num_rows;
  const int* table_stride;
  int max_seqs;
  int max_rows;
  int max_table_stride;
  int q_stride;
  int out_stride;
  int group;
  int num_kv_heads;
  int head_dim;
  int window;
  int min_queries;
  float scale_log2;
  int reserved;
};
static_assert(sizeof(PagedPrefillArgs) == 120, "size as in Rust");

template <typename Tile>
__device__ __forceinline__ void paged_prefill(const PagedPrefillArgs& args) {
  using T = typename Tile::T;
  extern __shared__ __align__(1024) unsigned char shared[];
  const int seqs = args.num_seqs != nullptr ? *args.num_seqs : args.max_seqs;
  // The last tiles of a sequence have the most keys, so they start first.
  const int slot = gridDim.x - 1 - blockIdx.x;
  // One more segment than there are sequences, of the rows after the last one; it has no keys.
  const int s = find_segment(args.cu_q, seqs + 1, args.group, Tile::kRows, slot);
  if (s < 0) return;
  const bool real = s < seqs;
  const int query = args.cu_q[s];
  const int last_row = real ? args.cu_q[s + 1] : args.num_rows != nullptr ? *args.num_rows : args.max_rows;
  Rows<T> rows;
  rows.rows = (last_row - query) * args.group;
  rows.first = (slot - (query * args.group / Tile::kRows + s)) * Tile::kRows;
  if (rows.first >= rows.rows || (real && last_row - query < args.min_queries)) return;
  const int head = blockIdx.y * args.group;
  rows.head_dim = Tile::kExact ? Tile::kDim : args.head_dim;
  rows.q = static_cast<const T*>(args.q) + head * rows.head_dim;
  rows.out = static_cast<T*>(args.out) + head * rows.head_dim;
  rows.query = query;
  rows.q_stride = args.q_stride;
  rows.q_head = rows.head_dim;
  rows.out_stride = args.out_stride;
  rows.group = args.group;
  const int context = real ? args.context_lens[s] : 0;
  rows.position = context - (last_row - query);
  rows.window = args.window;
  const int last_query = (min(rows.first + Tile::kRows, rows.rows) - 1) / args.group;
  rows.begin = max(0, rows.position + rows.first / args.group + 1 - args.window);
  rows.end = real ? rows.position + last_query + 1 : 0;
  rows.scale_log2 = args.scale_log2;
  PageKeys<Tile> keys;
  const int stride = args.table_stride != nullptr ? *args.table_stride : args.max_table_stride;
  keys.table = args.block_table + static_cast<long long>(s) * stride;
  const int kv_elements = args.num_kv_heads * kPageSize * rows.head_dim;  // keys of a page
  keys.k = static_cast<const T*>(args.cache) + static_cast<int>(blockIdx.y) * kPageSize * rows.head_dim;
  keys.v = keys.k + kv_elements;
  keys.page_bytes = 2 * kv_elements * static_cast<int>(sizeof(T));
  attend<Tile, true>(rows, keys, shared, Whole{});
}

// 64 keys at a time while scores, results and Q fragments fit the registers, at 32 rows a warp: that halves what a
// multiply reads from shared memory against 16 rows.
#define PAGED_PREFILL_KERNEL(name, blocks, ...)                                                       \
  extern "C" __global__ void __launch_bounds__(4 * kWarpThreads, blocks) paged_prefill_##name( \
      const PagedPrefillArgs args) {                                                                  \
    paged_prefill<AttentionTile<__VA_ARGS__>>(args);                                                  \
  }
#define PAGED_PREFILL(suffix, T)                                        \
  PAGED_PREFILL_KERNEL(suffix##_d64, 2, T, 64, true, 4, 2, 64)          \
  PAGED_PREFILL_KERNEL(suffix##_d80, 2, T, 80, true, 4, 2, 64)          \
  PAGED_PREFILL_KERNEL(suffix##_d96, 2, T, 96, true, 4, 2, 48)          \
  PAGED_PREFILL_KERNEL(suffix##_d128, 2, T, 128, true, 4, 2, 32)        \
  PAGED_PREFILL_KERNEL(suffix##_any32, 2, T, 32, false, 4, 2, 64)       \
  PAGED_PREFILL_KERNEL(suffix##_any128, 2, T, 128, false, 4, 1, 64)     \
  PAGED_PREFILL_KERNEL(suffix##_any256, 1, T, 256, false, 4, 1, 32)

PAGED_PREFILL(f16, __half)
PAGED_PREFILL(bf16, __nv_bfloat16)
