// Where a token's keys and values lie in the KV cache of a layer: [page][K|V][kv_heads][kPageSize][head_dim].
//
// Owns: that layout, on the device; engine/backend/cpu/kv_cache.rs is its twin. Not here: who holds which page.
#pragma once

namespace engine {

// PAGE_SIZE of engine/graph/builder.rs.
constexpr int kPageSize = 16;

// Element where the keys of slot `page * kPageSize + offset` start, of KV head 0. Head h is `h * kPageSize * head_dim`
// further, values are `kv_heads * kPageSize * head_dim` further than keys.
__device__ __forceinline__ long long slot_offset(int slot, int kv_heads, int head_dim) {
  const int page = slot / kPageSize;
  return static_cast<long long>(page) * (2 * kv_heads * kPageSize * head_dim) + slot % kPageSize * head_dim;
}

}  // namespace engine
