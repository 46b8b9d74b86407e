// What a linear layer does besides its product: for few rows the norm of x before it, and for q, k and v of a decoder's
// attention what comes after: q and k turned by their positions, k and v stored in their pages.
//
// Owns: FusedArgs, the argument of gemv_norm.cu, gemv_qkv.cu and gemm_qkv.cu. Not here: products (gemv.cuh, gemm.cuh),
// the angle (rotary.cuh).
#pragma once

#include "epilogue.cuh"
#include "pages.cuh"
#include "rotary.cuh"

namespace engine {

// Mirrored by FusedArgs in engine/backend/cuda/ops/fused.rs.
struct FusedArgs {
  LinearArgs linear;      // of q, k and v: y is q, n the features of all three
  const void* norm;       // [k] T, divided by a power of two, and behind it, 16-byte aligned, that power as an f32
  const int* positions;   // [components, rows]
  const float* inv_freq;  // [head_dim / 2]
  void* cache;            // [page][K|V][kv_heads][16][head_dim] T
  const int* slots;       // [rows], page * 16 + offset; negative: k and v are not stored
  int heads;
  int kv_heads;
  int head_dim;
  float eps;
  int ends[2];  // frequencies from ends[i] on take component i + 1 of a position at least; ends and head_dim / 2 are even
};
static_assert(sizeof(FusedArgs) == 232, "size as in Rust");

// What a row's sums are multiplied by; `squares` is the sum over its k elements.
template <typename T>
__device__ __forceinline__ float norm_factor(const FusedArgs& args, int k, float squares) {
  const T* behind = static_cast<const T*>(args.norm) + (k + 7) / 8 * 8;
  return rsqrtf(squares / k + args.eps) * *reinterpret_cast<const float*>(behind);
}

// Where packed column `column`, an even one, lies: heads of q, then of k, then of v; and which pair of its head it starts.
struct PairOfHead {
  int head, at;
  __device__ __forceinline__ PairOfHead(const FusedArgs& args, int column)
      : head(column / 2 / (args.head_dim / 2)), at(column / 2 - head * (args.head_dim / 2)) {}
};

// Copies what turns a vector of four packed columns from `column` on, of one of the batch's `rows` rows, to shared
// memory, four words `apart` floats apart: position, two frequencies, slot. It arrives with this thread's next group of
// copies.
__device__ __forceinline__ void copy_turn(const FusedArgs& args, float* to, int apart, int row, int rows, int column) {
  const int half = args.head_dim / 2, pair = column / 2, first = pair % half;
  const int component = (first >= args.ends[0]) + (first >= args.ends[1]);
  cp_async<4>(shared_address(to), args.positions + component * rows + row);
  cp_async<4>(shared_address(to + apart), args.inv_freq + first);
  cp_async<4>(shared_address(to + 2 * apart), args.inv_freq + (pair + 1) % half);
  cp_async<4>(shared_address(to + 3 * apart), args.slots + row);
}

// Copies positions and slots of the rows from `row0` on, up to kRows of the batch's `rows`, to shared memory, [component]
// [kRows] and behind the third component slots. They arrive with a thread's next group of copies; a block has kRows
// threads at least.
template <int kRows>
__device__ __forceinline__ void copy_positions(const FusedArgs& args, int* to, int row0, int rows) {
  const int row = row0 + threadIdx.x;
  if (threadIdx.x >= kRows || row >= rows) return;
  const uint32_t shared = shared_address(to + threadIdx.x);
  cp_async<4>(shared, args.positions + row);
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    // A component that no frequency takes may not be there.
    if (args.ends[i] >= args.head_dim / 2) continue;
    cp_async<4>(shared + (i + 1) * kRows * 4, args.positions + (i + 1) * rows + row);
  }
  cp_async<4>(shared + 3 * kRows * 4, args.slots + row);
}

// What turns vectors of four packed columns from `column` on, of any row: two frequencies, and the rows' positions and
// slots as copy_positions leaves them.
template <int kRows>
struct Turn {
  PairOfHead pair;
  float first, second;
  const int *positions, *slots;

  __device__ __forceinline__ Turn(const FusedArgs& args, const int* copied, int column)
      : pair(args, column), slots(copied + 3 * kRows) {
    // Left to itself the compiler divides anew for every row.
    asm volatile("" : "+r"(pair.head), "+r"(pair.at));
    positions = copied + ((pair.at >= args.ends[0]) + (pair.at >= args.ends[1])) * kRows;
    first = args.inv_freq[pair.at];
    second = args.inv_freq[pair.at + 1 == args.head_dim / 2 ? 0 : pair.at + 1];
  }

  // Of row `row` of the kRows, as store_qkv takes it.
  __device__ __forceinline__ float4 of(int row) const {
    return make_float4(__int_as_float(positions[row]), first, second, __int_as_float(slots[row]));
  }
};

// Of a layer that turns nothing.
struct NoTurn {
  __device__ __forceinline__ NoTurn(int, const int*, int) {}
};

// Where element 0 of a row's head goes; null: nowhere. Heads of q, then of k, then of v.
template <typename T>
__device__ __forceinline__ T* head_of(const FusedArgs& args, int row, int head, int slot) {
  if (head < args.heads) {
    return static_cast<T*>(args.linear.y) + static_cast<size_t>(row) * args.linear.y_stride + head * args.head_dim;
  }
  if (slot < 0) return nullptr;
  return static_cast<T*>(args.cache) + slot_offset(slot, args.kv_heads, args.head_dim) +
         (head - args.heads) * (kPageSize * args.head_dim);
}

// Four sums of a row, packed columns from that of `pair` on, of which `count` are there, an even number. Two columns of q and
// k are a pair that is turned together, i and i + head_dim / 2 of a head; those of v are neighbours.
template <typename T>
__device__ __forceinline__ void store_qkv(const FusedArgs& args, int row, const PairOfHead& pair, int count,
                                          float4 v, float4 turn) {
  const int half = args.head_dim / 2, position = __float_as_int(turn.x), slot = __float_as_int(turn.w);
  const int head = pair.head, at = pair.at;
  const bool turned = head < args.heads + args.kv_heads;
  const float2 first = rotary(position, turn.y), second = rotary(position, turn.z);
  if (half % 2 == 0) {
    // Both pairs are of one head.
    T* to = count > 0 ? head_of<T>(args, row, head, slot) : nullptr;
    if (to == nullptr) return;
    if (turned) {
      *reinterpret_cast<uint32_t*>(to + at) =
          pack_pair<T>(v.x * first.x - v.y * first.y, v.z * second.x - v.w * second.y);
      *reinterpret_cast<uint32_t*>(to + at + half) =
          pack_pair<T>(v.y * first.x + v.x * first.y, v.w * second.x + v.z * second.y);
    } else {
      *reinterpret_cast<uint2*>(to + 2 * at) = make_uint2(pack_pair<T>(v.x, v.y), pack_pair<T>(v.z, v.w));
    }
    return;
  }
  for (int e = 0; 2 * e < count; ++e) {
    const bool next = at + e == half;
    const int i = next ? 0 : at + e;
    T* to = head_of<T>(args, row, head + next, slot);
    if (to == nullptr) continue;
    const float a = e == 0 ? v.x : v.z, b = e == 0 ? v.y : v.w;
    if (head + next < args.heads + args.kv_heads) {
      const float2 r = e == 0 ? first : second;
      to[i] = from_float<T>(a * r.x - b * r.y);
      to[i + half] = from_float<T>(b * r.x + a * r.y);
    } else {
      to[2 * i] = from_float<T>(a);
      to[2 * i + 1] = from_float<T>(b);
    }
  }
}

}  // namespace engine
