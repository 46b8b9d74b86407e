// Patch embedding straight from 8-bit pixels: the convolution of a vision tower's patches as an implicit GEMM.
//   y[r, n] = scale * sum over k of (pixel[r, k] - 128) * w[n, k] + bias[n]
// Normalisation is in w and bias (engine/backend/cuda/pack_patches.rs), so no image of floats is ever made.
//
// In      pixels: images [height, width, 3] u8 anywhere in one array, read in aligned words of 4 bytes; origins [rows]
//         int2: byte of a patch's first pixel, bytes from one row of pixels to the next. A patch is patch_size rows of
//         3 patch_size bytes
//         w packed (packed.cuh), column k = row of pixels * 4 words + byte in it: rows of 3 patch_size bytes are padded to
//         whole words, and the padding's weights are zero; bias [n] f32
// Out     y [rows, n] T, rows y_stride elements apart, a multiple of 4
//         T is __nv_bfloat16 or __half (suffix bf16, f16)
// Grid    row tiles * column tiles, those of one row tile together, so that they share its pixels in L2; tiles from
//         *num_rows on do nothing
// Block   4 warps, each 32 x 64 of the block's 64 patches x 128 features
// Shared  48 KiB: two stages of 64 columns of patches as T and of w
// Limits  every patch_size and n; 2^31 bytes of pixels
// Cost    2 rows n k FLOPs, a patch's bytes once a column tile (from L2), w once a row tile. Bound by tensor cores and, with
//         few columns, by the 8 instructions that make four elements of four bytes
// Numerics pixels less 128 are whole numbers that T holds exactly; f32 sums, k ascending; one rounding to T
// Caller  engine/backend/cuda/ops/patch_embed.rs
// Oracle  engine/backend/cpu/patch_embed.rs; tests/cuda_ops/patch_embed.rs

#include "packed.cuh"

using namespace engine;

// Mirrored by PatchEmbedArgs in engine/backend/cuda/ops/patch_embed.rs.
struct PatchEmbedArgs {
  const unsigned char* pixels;
  const int2* origins;
  const void* w;
  const float* bias;
  void* y;
  const int* num_rows;  // null: rows
  int rows;             // of the bucket
  int n;
  int n_tiles;  // of w: packed rows / 16
  int k_tiles;  // of w: packed columns / 16
  int y_stride;
  int row_bytes;   // of a patch: 3 patch_size
  int row_words;   // the same in words, rounded up
  int patch_rows;  // patch_size
  float scale;
};
static_assert(sizeof(PatchEmbedArgs) == 88, "size as in Rust");

constexpr int kBM = 64, kBN = 128, kBK = 64;
constexpr int kThreads = 128;
constexpr int kBytesA = kBM * kBK * 2, kBytesW = kBN * kBK * 2;
constexpr int kRowsApart = kThreads / (kBK / 8);  // of a thread's chunks: all are in one column of chunks
constexpr int kCount = kBM / kRowsApart;

// Where chunk `chunk` (eight elements) of patch `row` lies in shared memory: the eight rows that one ldmatrix phase reads
// fall into different banks.
__device__ __forceinline__ int chunk_offset(int row, int chunk) { return (row * (kBK / 8) + (chunk ^ (row & 7))) * 16; }

// Four bytes of a row of pixels from any address: the two aligned words that they lie in, and where.
struct Bytes {
  uint32_t low, high;

  __device__ __forceinline__ void load(const unsigned char* at, int count) {
    const int inside = reinterpret_cast<uintptr_t>(at) & 3;
    const uint32_t* word = reinterpret_cast<const uint32_t*>(at - inside);
    low = __ldg(word);
    // The array may end with the last byte that is wanted.
    high = inside + count > 4 ? __ldg(word + 1) : 0u;
  }
  __device__ __forceinline__ uint32_t get(const unsigned char* at) const {
    return __funnelshift_r(low, high, (reinterpret_cast<uintptr_t>(at) & 3) * 8);
  }
};

// This thread's patches and where it is in them.
template <typename T>
struct Gather {
  const unsigned char* row[kCount];  // the first pixel of a patch
  int stride[kCount];
  Bytes bytes[kCount][2];
  uint32_t to;
  int word;  // of the chunk to load next, counted over the patch's rows

  __device__ __forceinline__ Gather(const PatchEmbedArgs& args, uint32_t shared, int row0, int rows) {
    const int chunk = threadIdx.x % (kBK / 8), first = threadIdx.x / (kBK / 8);
    word = chunk * 2;
    to = shared + chunk_offset(first, chunk);
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      // Rows beyond the batch repeat its last one; their results are not stored.
      const int2 origin = args.origins[min(row0 + first + i * kRowsApart, rows - 1)];
      row[i] = args.pixels + origin.x;
      stride[i] = origin.y;
    }
  }

  // Row of pixels and word in it; a word of the padding of k stands for the first one.
  __device__ __forceinline__ int2 place(const PatchEmbedArgs& args, int of) const {
    const int y = of / args.row_words;
    return y < args.patch_rows ? make_int2(y, of - y * args.row_words) : make_int2(0, 0);
  }

  __device__ __forceinline__ const unsigned char* address(int i, int2 at) const {
    return row[i] + at.x * stride[i] + at.y * 4;
  }

  // Starts the loads of this thread's chunks of a stage.
  __device__ __forceinline__ void load(const PatchEmbedArgs& args) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int2 at = place(args, word + half);
#pragma unroll
      for (int i = 0; i < kCount; ++i) bytes[i][half].load(address(i, at), args.row_bytes - at.y * 4);
    }
  }

  // Writes them to a stage as T, less 128, and goes on to the next.
  __device__ __forceinline__ void store(const PatchEmbedArgs& args, int stage) {
    const int2 at[2] = {place(args, word), place(args, word + 1)};
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      uint32_t pairs[4];
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        // As two's complement, which is what Int8 turns to T.
        const uint32_t word = bytes[i][half].get(address(i, at[half])) ^ 0x80808080u;
        pairs[half * 2] = Int8<T>::pair(__byte_perm(word, 0, 0x4140));
        pairs[half * 2 + 1] = Int8<T>::pair(__byte_perm(word, 0, 0x4342));
      }
      asm volatile("st.shared.v4.u32 [%0], {%1,%2,%3,%4};" ::"r"(to + stage * kBytesA + i * kRowsApart * kBK * 2),
                   "r"(pairs[0]), "r"(pairs[1]), "r"(pairs[2]), "r"(pairs[3])
                   : "memory");
    }
    word += kBK / 4;
  }
};

template <typename T>
__device__ __forceinline__ void store_row(const PatchEmbedArgs& args, int row, int column, float4 bias, float4 v) {
  const float s = args.scale;
  v = make_float4(fmaf(v.x, s, bias.x), fmaf(v.y, s, bias.y), fmaf(v.z, s, bias.z), fmaf(v.w, s, bias.w));
  T* y = static_cast<T*>(args.y) + static_cast<size_t>(row) * args.y_stride + column;
  if (column + 4 <= args.n) {
    *reinterpret_cast<uint2*>(y) = make_uint2(pack_pair<T>(v.x, v.y), pack_pair<T>(v.z, v.w));
  } else {
    const float values[3] = {v.x, v.y, v.z};
#pragma unroll
    for (int e = 0; e < 3; ++e) {
      if (column + e < args.n) y[e] = from_float<T>(values[e]);
    }
  }
}

template <typename T>
__device__ __forceinline__ void patch_embed(const PatchEmbedArgs& args) {
  __shared__ __align__(128) char shared[2 * (kBytesA + kBytesW)];
  const int rows = args.num_rows == nullptr ? args.rows : min(*args.num_rows, args.rows);
  const int col_tiles = (args.n_tiles * kTileN + kBN - 1) / kBN;
  const int row0 = blockIdx.x / col_tiles * kBM, n_tile0 = blockIdx.x % col_tiles * (kBN / kTileN);
  if (row0 >= rows) return;

  const uint32_t a_base = shared_address(shared), w_base = a_base + 2 * kBytesA;
  Gather<T> gather(args, a_base, row0, rows);
  // A strip of 16 features has four tiles a stage, one after another: a chunk of each strip a thread.
  constexpr int kStripBytes = kBK / kTileK * kBlockBytes;
  static_assert(kStripBytes / 16 == kThreads, "a chunk a thread");
  const int strip_apart = args.k_tiles * kBlockBytes;
  const char* w = static_cast<const char*>(args.w) + static_cast<size_t>(n_tile0) * strip_apart + threadIdx.x * 16;
  // Packed rows are a multiple of 64: half of the last tile may not be there; its first strip stands in.
  const int strips = min(kBN / kTileN, args.n_tiles - n_tile0);
  const auto copy_weights = [&](int stage) {
#pragma unroll
    for (int i = 0; i < kBN / kTileN; ++i) {
      cp_async_16(w_base + stage * kBytesW + i * kStripBytes + threadIdx.x * 16, w + (i < strips ? i * strip_apart : 0));
    }
    cp_async_commit();
    w += kStripBytes;
  };
  copy_weights(0);
  gather.load(args);
  gather.store(args, 0);

  const int warp = warp_index(), lane = threadIdx.x % kWarpThreads;
  const int warp_row = warp / 2 * 32, warp_tile = warp % 2 * 4;
  // ldmatrix: lanes 0..15 name rows 0..15 of the first eight k, lanes 16..31 of the next eight.
  const uint32_t a_lane = a_base + (warp_row + lane % 16) * kBK * 2;
  const uint32_t w_lane = w_base + warp_tile * kStripBytes + lane * 16;
  float sums[2][4][8] = {};
  const int steps = args.k_tiles / (kBK / kTileK);
  for (int step = 0; step < steps; ++step) {
    const int stage = step & 1;
    cp_async_wait<0>();
    __syncthreads();
    if (step + 1 < steps) {
      copy_weights(stage ^ 1);
      gather.load(args);
    }
#pragma unroll
    for (int kk = 0; kk < kBK / kTileK; ++kk) {
      uint32_t a[2][4];
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const uint32_t chunk = ((kk * 2 + lane / 16) ^ (lane & 7)) * 16;
        ldmatrix_x4(a[i], a_lane + stage * kBytesA + i * 16 * kBK * 2 + chunk);
      }
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        uint32_t b[4];
        const uint32_t from = w_lane + stage * kBytesW + j * kStripBytes + kk * kBlockBytes;
        asm volatile("ld.shared.v4.u32 {%0,%1,%2,%3}, [%4];"
                     : "=r"(b[0]), "=r"(b[1]), "=r"(b[2]), "=r"(b[3])
                     : "r"(from)
                     : "memory");
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          mma_m16n8k16<T>(*reinterpret_cast<float(*)[4]>(&sums[i][j][0]), a[i], b[0], b[1]);
          mma_m16n8k16<T>(*reinterpret_cast<float(*)[4]>(&sums[i][j][4]), a[i], b[2], b[3]);
        }
      }
    }
    if (step + 1 < steps) gather.store(args, stage ^ 1);
  }

  // A thread has four neighbouring features of a row; four lanes write a whole sector.
#pragma unroll
  for (int j = 0; j < 4; ++j) {
    const int column = (n_tile0 + warp_tile + j) * kTileN + lane % 4 * 4;
    if (column >= args.n) continue;
    float4 bias = make_float4(args.bias[column], 0.0f, 0.0f, 0.0f);
    if (column + 4 <= args.n) {
      bias = *reinterpret_cast<const float4*>(args.bias + column);
    } else {
      if (column + 1 < args.n) bias.y = args.bias[column + 1];
      if (column + 2 < args.n) bias.z = args.bias[column + 2];
    }
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int row = row0 + warp_row + i * 16 + lane / 4;
      const float* s = sums[i][j];
      if (row < rows) store_row<T>(args, row, column, bias, make_float4(s[0], s[1], s[4], s[5]));
      if (row + 8 < rows) store_row<T>(args, row + 8, column, bias, make_float4(s[2], s[3], s[6], s[7]));
    }
  }
}

#define PATCH_EMBED(suffix, T)                                                                                     \
  extern "C" __global__ void __launch_bounds__(kThreads, 4) patch_embed_##suffix(const PatchEmbedArgs args) { \
    patch_embed<T>(args);                                                                                          \
  }

PATCH_EMBED(bf16, __nv_bfloat16)
PATCH_EMBED(f16, __half)
