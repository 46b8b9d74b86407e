// Writes keys and values of a step to their pages:
//   cache[slot / 16][K][h][slot % 16] = k[t, h], cache[slot / 16][V][h][slot % 16] = v[t, h], slot = slots[t]
//
// In      k, v [tokens, kv_heads, head_dim] T, rows k_stride and v_stride elements apart; slots [tokens] i32, negative:
//         the token is not written
// Out     cache [page][K|V][kv_heads][16][head_dim] T; T is any 16-bit type, its bits are copied
// Grid    one block a token; blocks from *num_tokens on do nothing (null: every block has a token)
// Block   a multiple of 32 up to 256 threads; a thread copies eight values at a time
// Shared  none
// Limits  kv_write: head_dim and strides multiples of 8, pointers 16-byte aligned; kv_write_scalar: none
// Cost    tokens * 2 * kv_heads * head_dim * 2 bytes in and out; bound by memory
// Numerics exact
// Caller  engine/backend/cuda/ops/kv_write.rs; where keys are rotated first, rope.cu does both in one launch
// Oracle  engine/backend/cpu/kv_cache.rs; tests/cuda_ops/kv_write.rs

#include "common.cuh"
#include "pages.cuh"

using namespace engine;

// Mirrored by KvWriteArgs in engine/backend/cuda/ops/kv_write.rs.
struct KvWriteArgs {
  const void* k;
  const void* v;
  void* cache;
  const int* slots;
  const int* num_tokens;
  int k_stride;
  int v_stride;
  int kv_heads;
  int head_dim;
};
static_assert(sizeof(KvWriteArgs) == 56, "size as in Rust");

constexpr int kMaxThreads = 256;

// Word holds kElements values of 16 bits.
template <typename Word>
__device__ __forceinline__ void kv_write_words(const KvWriteArgs& args) {
  constexpr int kElements = sizeof(Word) / 2;
  const int token = blockIdx.x;
  if (args.num_tokens != nullptr && token >= *args.num_tokens) return;
  const int slot = args.slots[token];
  if (slot < 0) return;
  const int page_head = kPageSize * args.head_dim / kElements;
  Word* keys = static_cast<Word*>(args.cache) + slot_offset(slot, args.kv_heads, args.head_dim) / kElements;
  Word* values = keys + args.kv_heads * page_head;
  const Word* k = static_cast<const Word*>(args.k) + static_cast<long long>(token) * (args.k_stride / kElements);
  const Word* v = static_cast<const Word*>(args.v) + static_cast<long long>(token) * (args.v_stride / kElements);
  const int per_head = args.head_dim / kElements;
  for (int i = threadIdx.x; i < args.kv_heads * per_head; i += blockDim.x) {
    const int head = i / per_head;
    const int to = head * page_head + i - head * per_head;
    keys[to] = k[i];
    values[to] = v[i];
  }
}

extern "C" __global__ void __launch_bounds__(kMaxThreads, 6) kv_write(const KvWriteArgs args) {
  kv_write_words<uint4>(args);
}
extern "C" __global__ void __launch_bounds__(kMaxThreads, 6) kv_write_scalar(const KvWriteArgs args) {
  kv_write_words<unsigned short>(args);
}
