// Choosing tokens on the device, as engine/run/sampler.rs and logits.rs do on the host, in two launches:
//   sampling_scan    edits the rows (repetition penalty, forced and banned tokens) and finds the greatest of each part
//   sampling_choose  temperature, top-k, top-p, min-p, the draw, log-probabilities
//
// In      logits [rows, vocab] f32, contiguous, edited in place; settings [rows] SamplingSettings; ids: token ids that
//         the settings' ranges point into
// Out     partials [rows, parts] of the scan; tokens [rows] i32; chosen [rows] SamplingChoice; top [rows, max_top]
//         SamplingTop, of which chosen.num_top are valid, in no order
// Grid    scan: (parts, rows); choose: rows; rows from *num_rows on do nothing (null: every row)
// Block   scan 256, choose 1024 threads
// Shared  scan 64 bytes; choose 40.3 KB
// Limits  vocab below 2^19; at most 32 parts; max_top at most 1024; a penalised token is listed once
// Cost    scan reads the logits once. choose is one multiprocessor a row: greedy reads the parts alone; sampling reads the
//         row once or twice more from the second cache (600 KB for 152,000 tokens, about 6 us each). Bound by latency.
// Numerics weights are the host's f32 bit for bit, masses integers of 2^-45 (sampling.cuh), so every sum is exact to 2^-46
//         a token and independent of order. A token can differ from the host's only where the draw or a nucleus ends
//         within about 1e-11 of a boundary.
// Caller  engine/backend/cuda/ops/sampling.rs
// Oracle  engine/run/sampler.rs with engine/run/logits.rs (tests/cuda_ops/sampling.rs)
//
// Every selection is a search for the greatest key or id with a property of the mass or count above it, one bit a
// round. Rounds go over a list of candidates in shared memory: a histogram by distance to the greatest logit tells how
// far down the candidates reach. Where they are too many for the list (flat distributions) rounds go over the row.

#include "sampling.cuh"

using namespace engine;

// Mirrored by SamplingSettings in engine/backend/sampling.rs.
struct SamplingSettings {
  float temperature;  // 0: greedy
  float top_p;        // 1: off
  float min_p;        // 0: off
  float repetition_penalty;
  int top_k;    // 0: off
  int num_top;  // -1: no log-probabilities wanted
  // Ranges of `ids`. A forced list that is not empty bans every token outside of it. Banned tokens win over forced ones.
  int penalized_begin, penalized_end;
  int forced_begin, forced_end;
  int banned_begin, banned_end;
  unsigned long long seed;
  unsigned long long position;
};
static_assert(sizeof(SamplingSettings) == 64, "size as in Rust");

// Mirrored by SamplingChoice there.
struct SamplingChoice {
  int token;
  int status;   // 0; 1: a logit is no number or infinite (token: the first such, value: that logit); 2: no token left
  float value;  // the token's logit after temperature
  float max;    // the greatest
  double sum;   // of exp(logit - max) over the tokens that stay; 0 unless log-probabilities are wanted
  int num_top;
  int unused;
};
static_assert(sizeof(SamplingChoice) == 32, "size as in Rust");

struct SamplingTop {
  int token;
  float value;
};

// Of one part of a row.
struct SamplingPart {
  unsigned key;  // of the greatest logit
  int token;     // the first that has it
  int wrong;     // the first that is not a number below infinity; vocab where there is none
  int unused;
};

// Mirrored by SamplingArgs in engine/backend/cuda/ops/sampling.rs.
struct SamplingArgs {
  float* logits;
  const SamplingSettings* settings;
  const int* ids;
  SamplingPart* partials;
  SamplingChoice* chosen;
  SamplingTop* top;
  int* tokens;
  const int* num_rows;
  int vocab;
  int parts;
  int max_top;
  int unused;
};
static_assert(sizeof(SamplingArgs) == 80, "size as in Rust");

constexpr int kScanThreads = 256;
// Blocks of the scan on a multiprocessor: the 2048 threads that the largest ones take.
constexpr int kScanBlocks = 8;
constexpr int kThreads = 1024;
constexpr int kWarps = kThreads / kWarpThreads;
constexpr int kCandidates = 2048;
constexpr int kBins = 2048;
// Bins a unit of log-probability; the last bin has everything from 32 units down.
constexpr float kBinsPerUnit = 64.0f;

// The last token at or before `begin` whose logit, of row `row`, starts a sector of memory: a warp that starts there asks
// for whole sectors only, whatever the vocabulary.
__device__ __forceinline__ int sector_start(int row, int vocab, int begin) {
  return begin - static_cast<int>((static_cast<unsigned>(row) * static_cast<unsigned>(vocab) + begin) % 8);
}

__device__ __forceinline__ bool row_is_idle(const SamplingArgs& args, int row) {
  return args.num_rows != nullptr && row >= *args.num_rows;
}

extern "C" __global__ void __launch_bounds__(kScanThreads, kScanBlocks) sampling_scan(const SamplingArgs args) {
  __shared__ unsigned long long best_of[kScanThreads / kWarpThreads];
  __shared__ int wrong_of[kScanThreads / kWarpThreads];
  const int row = blockIdx.y;
  if (row_is_idle(args, row)) return;
  const SamplingSettings& set = args.settings[row];
  float* logits = args.logits + static_cast<long long>(row) * args.vocab;
  // Parts end at multiples of four, so that vectors do not straddle them.
  const int part = ((args.vocab + args.parts - 1) / args.parts + 3) & ~3;
  const int begin = min(args.vocab, static_cast<int>(blockIdx.x) * part), end = min(args.vocab, begin + part);

  for (int i = set.penalized_begin + threadIdx.x; i < set.penalized_end; i += kScanThreads) {
    const int token = args.ids[i];
    if (token < begin || token >= end) continue;
    const float logit = logits[token];
    logits[token] = logit < 0.0f ? logit * set.repetition_penalty : __fdiv_rn(logit, set.repetition_penalty);
  }
  if (set.forced_end > set.forced_begin) {
    __syncthreads();
    for (int i = begin + threadIdx.x; i < end; i += kScanThreads) logits[i] = kBanned;
    __syncthreads();
    for (int i = set.forced_begin + threadIdx.x; i < set.forced_end; i += kScanThreads) {
      const int token = args.ids[i];
      if (token >= begin && token < end) logits[token] = 0.0f;
    }
  }
  if (set.banned_end > set.banned_begin) {
    __syncthreads();
    for (int i = set.banned_begin + threadIdx.x; i < set.banned_end; i += kScanThreads) {
      const int token = args.ids[i];
      if (token >= begin && token < end) logits[token] = kBanned;
    }
  }
  __syncthreads();

  // The greater key wins, of equal ones the lower token.
  unsigned long long best = 0;
  int wrong = args.vocab;
  const auto visit = [&](int token, float logit) {
    // NaN and +infinity fail this.
    if (!(logit < INFINITY)) {
      wrong = min(wrong, token);
      return;
    }
    const unsigned long long packed = static_cast<unsigned long long>(key_of(logit)) << 32 | ~static_cast<unsigned>(token);
    best = packed > best ? packed : best;
  };
  if (args.vocab % 4 == 0) {
    for (int i = begin / 4 + threadIdx.x; i < end / 4; i += kScanThreads) {
      const float4 four = reinterpret_cast<const float4*>(logits)[i];
      visit(4 * i, four.x);
      visit(4 * i + 1, four.y);
      visit(4 * i + 2, four.z);
      visit(4 * i + 3, four.w);
    }
  } else {
    for (int i = sector_start(row, args.vocab, begin) + threadIdx.x; i < end; i += kScanThreads) {
      if (i >= begin) visit(i, logits[i]);
    }
  }
  best = warp_max(best);
  wrong = -warp_max(-wrong);
  const int warp = threadIdx.x / kWarpThreads;
  if (threadIdx.x % kWarpThreads == 0) {
    best_of[warp] = best;
    wrong_of[warp] = wrong;
  }
  __syncthreads();
  if (threadIdx.x == 0) {
    for (int w = 1; w < kScanThreads / kWarpThreads; ++w) {
      best = best_of[w] > best ? best_of[w] : best;
      wrong = min(wrong, wrong_of[w]);
    }
    SamplingPart& out = args.partials[static_cast<long long>(row) * args.parts + blockIdx.x];
    out.key = static_cast<unsigned>(best >> 32);
    out.token = static_cast<int>(~static_cast<unsigned>(best));
    out.wrong = wrong;
  }
}

// Which tokens are left. A new one keeps all.
struct Filter {
  unsigned least = 0;    // top-k: keys below it are gone
  unsigned nucleus = 0;  // top-p: keys below it are gone, and of equal ones the tokens below `from`
  int from = 0;
  float min_p = 0.0f;

  __device__ __forceinline__ bool keeps(int token, unsigned key, float weight) const {
    return key >= least && key >= nucleus && (key > nucleus || token >= from) && weight >= min_p;
  }
};

// A row that a block works on: all of it, or candidates that include every token of interest.
struct Row {
  const float* logits;
  int vocab;
  float temperature, shift, max;
  int listed;  // candidates in the list; -1: the row itself

  // The logit after temperature, in f32 as the host divides.
  __device__ __forceinline__ float value(float logit) const {
    return temperature == 1.0f ? logit : __fdiv_rn(logit - shift, temperature);
  }
};

struct Shared {
  int bins[kBins];
  int tokens[kCandidates];
  unsigned keys[kCandidates];
  Mass masses[kCandidates];
  Mass sums[kWarps];
  int counts[kWarps];
  Mass sum;
  int count;
  int listed;
  int bin;
};

// f(token, key, weight's mass) for every token between two ids that the filter keeps.
template <typename F>
__device__ __forceinline__ void for_each(const Shared& shared, const Row& row, const Filter& filter, int begin, int end,
                                         F f) {
  if (row.listed >= 0) {
    // The list holds what the filter of its making kept; later filters tell by key and token, and min-p was part of it.
    for (int i = threadIdx.x; i < row.listed; i += kThreads) {
      const int token = shared.tokens[i];
      const unsigned key = shared.keys[i];
      if (token < begin || token >= end) continue;
      if (filter.keeps(token, key, filter.min_p > 0.0f ? weight_of(value_of_key(key) - row.max) : 1.0f)) {
        f(token, key, shared.masses[i]);
      }
    }
    return;
  }
  for (int token = sector_start(blockIdx.x, row.vocab, begin) + threadIdx.x; token < end; token += kThreads) {
    if (token < begin) continue;
    const float value = row.value(row.logits[token]);
    const float weight = weight_of(value - row.max);
    const unsigned key = key_of(value);
    if (value > kBanned && filter.keeps(token, key, weight)) f(token, key, mass_of(weight));
  }
}

// Count and mass over the block; the results are in shared.count and shared.sum for every thread.
__device__ __forceinline__ void reduce(Shared& shared, int count, Mass mass) {
  count = warp_sum(count);
  mass = warp_sum(mass);
  const int warp = threadIdx.x / kWarpThreads, lane = threadIdx.x % kWarpThreads;
  if (lane == 0) {
    shared.counts[warp] = count;
    shared.sums[warp] = mass;
  }
  __syncthreads();
  if (warp == 0) {
    count = warp_sum(shared.counts[lane]);
    mass = warp_sum(shared.sums[lane]);
    if (lane == 0) {
      shared.count = count;
      shared.sum = mass;
    }
  }
  __syncthreads();
}

// The greatest key at or above which `enough` tokens or, with kByMass, that much mass lies.
template <bool kByMass>
__device__ __noinline__ unsigned boundary_key(Shared& shared, const Row& row, const Filter& filter, double enough) {
  unsigned key = 0;
  for (unsigned bit = 0x80000000u; bit != 0; bit >>= 1) {
    const unsigned trial = key | bit;
    int count = 0;
    Mass mass = 0;
    for_each(shared, row, filter, 0, row.vocab, [&](int, unsigned k, Mass m) {
      if (k >= trial) {
        ++count;
        mass += m;
      }
    });
    reduce(shared, count, mass);
    if ((kByMass ? static_cast<double>(shared.sum) : static_cast<double>(shared.count)) >= enough) key = trial;
  }
  return key;
}

// Tokens that have exactly this key: the greatest id with fewer than `rank` of them below it, so the rank-th (from 1).
__device__ __noinline__ int token_of_rank(Shared& shared, const Row& row, const Filter& filter, unsigned key, int rank) {
  int id = 0, below = 0;
  for (int bit = 1 << 18; bit != 0; bit >>= 1) {
    const int trial = id | bit;
    if (trial >= row.vocab) continue;
    int count = 0;
    for_each(shared, row, filter, id, trial, [&](int, unsigned k, Mass) { count += k == key; });
    reduce(shared, count, 0);
    if (below + shared.count < rank) {
      id = trial;
      below += shared.count;
    }
  }
  return id;
}

// Fills the histogram with the tokens that the filter keeps; shared.sum is their mass, shared.count their number.
__device__ __noinline__ void count_bins(Shared& shared, const Row& row, const Filter& filter) {
  for (int i = threadIdx.x; i < kBins; i += kThreads) shared.bins[i] = 0;
  __syncthreads();
  int count = 0;
  Mass mass = 0;
  for_each(shared, row, filter, 0, row.vocab, [&](int, unsigned key, Mass m) {
    const float distance = (row.max - value_of_key(key)) * kBinsPerUnit;
    atomicAdd(&shared.bins[distance < kBins - 1 ? static_cast<int>(distance) : kBins - 1], 1);
    ++count;
    mass += m;
  });
  reduce(shared, count, mass);
}

// The first bin up to which there are `wanted` tokens, or tokens of at least `share` of the greatest weight's mass.
// A bin's mass is counted at its lower edge, so that nothing of the nucleus is missed.
__device__ __noinline__ int boundary_bin(Shared& shared, int wanted, float share) {
  constexpr int kRun = kBins / kWarpThreads;
  if (threadIdx.x < kWarpThreads) {
    const int lane = threadIdx.x;
    int count = 0;
    float mass = 0.0f;
    for (int i = 0; i < kRun; ++i) {
      // Lanes start at different bins, or they would all wait for one bank.
      const int bin = lane * kRun + (i + lane) % kRun;
      count += shared.bins[bin];
      if (bin < kBins - 1) mass += shared.bins[bin] * __expf(-(bin + 1) / kBinsPerUnit);
    }
    int count_before = 0;
    float mass_before = 0.0f;
    for (int other = 0; other < kWarpThreads; ++other) {
      const int c = __shfl_sync(0xffffffffu, count, other);
      const float m = __shfl_sync(0xffffffffu, mass, other);
      if (other < lane) {
        count_before += c;
        mass_before += m;
      }
    }
    if (lane == 0) shared.bin = kBins - 1;
    __syncwarp();
    // Exactly one lane has the boundary in its run, or none has.
    const bool by_count = wanted > 0;
    const bool mine = by_count ? count_before < wanted && count_before + count >= wanted
                               : mass_before < share && mass_before + mass >= share;
    if (mine) {
      int bin = lane * kRun;
      for (; bin < (lane + 1) * kRun - 1; ++bin) {
        count_before += shared.bins[bin];
        if (bin < kBins - 1) mass_before += shared.bins[bin] * __expf(-(bin + 1) / kBinsPerUnit);
        if (by_count ? count_before >= wanted : mass_before >= share) break;
      }
      shared.bin = bin;
    }
  }
  __syncthreads();
  return shared.bin;
}

// Makes the list from the tokens of the first bins that the filter keeps, where they fit.
__device__ __noinline__ void list_candidates(Shared& shared, Row& row, const Filter& filter, int last_bin) {
  if (threadIdx.x == 0) shared.listed = 0;
  int count = 0;
  for (int i = threadIdx.x; i <= last_bin; i += kThreads) count += shared.bins[i];
  reduce(shared, count, 0);
  if (shared.count > kCandidates) return;
  for_each(shared, row, filter, 0, row.vocab, [&](int token, unsigned key, Mass mass) {
    const float distance = (row.max - value_of_key(key)) * kBinsPerUnit;
    if ((distance < kBins - 1 ? static_cast<int>(distance) : kBins - 1) <= last_bin) {
      const int place = atomicAdd(&shared.listed, 1);
      shared.tokens[place] = token;
      shared.keys[place] = key;
      shared.masses[place] = mass;
    }
  });
  __syncthreads();
  row.listed = shared.listed;
}

// Keeps the shortest list of the most likely tokens whose mass reaches p; of equal logits the higher ids go first, as in
// transformers, which sorts upwards and cuts from below.
__device__ __noinline__ void cut_nucleus(Shared& shared, const Row& row, Filter& filter, float p, Mass total) {
  const double enough = static_cast<double>(p) * static_cast<double>(total);
  const unsigned key = boundary_key<true>(shared, row, filter, enough);
  int ties = 0;
  Mass above = 0;
  for_each(shared, row, filter, 0, row.vocab, [&](int, unsigned k, Mass m) {
    if (k == key) ++ties;
    if (k > key) above += m;
  });
  reduce(shared, ties, above);
  ties = shared.count;
  const double missing = enough - static_cast<double>(shared.sum);
  filter.nucleus = key;
  if (ties > 1) {
    const Mass each = mass_of(weight_of(value_of_key(key) - row.max));
    const double needed = each == 0 ? ties : ceil(missing / static_cast<double>(each));
    const int kept = needed < 1.0 ? 1 : needed < ties ? static_cast<int>(needed) : ties;
    if (kept < ties) filter.from = token_of_rank(shared, row, filter, key, ties - kept + 1);
  }
}

// The token with at most the threshold's mass before it, and more with its own.
__device__ __noinline__ int draw(Shared& shared, const Row& row, const Filter& filter, double threshold) {
  int id = 0;
  Mass below = 0;
  for (int bit = 1 << 18; bit != 0; bit >>= 1) {
    const int trial = id | bit;
    if (trial >= row.vocab) continue;
    Mass mass = 0;
    for_each(shared, row, filter, id, trial, [&](int, unsigned, Mass m) { mass += m; });
    reduce(shared, 0, mass);
    if (static_cast<double>(below + shared.sum) <= threshold) {
      id = trial;
      below += shared.sum;
    }
  }
  return id;
}

extern "C" __global__ void __launch_bounds__(kThreads, 1) sampling_choose(const SamplingArgs args) {
  __shared__ Shared shared;
  const int number = blockIdx.x;
  if (row_is_idle(args, number)) return;
  const SamplingSettings& set = args.settings[number];

  // The greatest of all parts, in every thread.
  const int lane = threadIdx.x % kWarpThreads;
  unsigned long long best = 0;
  int wrong = args.vocab;
  if (lane < args.parts) {
    const SamplingPart part = args.partials[static_cast<long long>(number) * args.parts + lane];
    best = static_cast<unsigned long long>(part.key) << 32 | ~static_cast<unsigned>(part.token);
    wrong = part.wrong;
  }
  best = warp_max(best);
  wrong = -warp_max(-wrong);
  const float greatest = value_of_key(static_cast<unsigned>(best >> 32));
  const bool greedy = set.temperature == 0.0f;

  Row row{args.logits + static_cast<long long>(number) * args.vocab, args.vocab, 1.0f, 0.0f, greatest, -1};
  SamplingChoice out{static_cast<int>(~static_cast<unsigned>(best)), 0, greatest, greatest, 0.0, 0, 0};
  if (wrong < args.vocab) {
    out.status = 1;
    out.token = wrong;
    out.value = row.logits[wrong];
  } else if (!(greatest > kBanned)) {
    out.status = 2;
  }
  Filter filter;
  if (out.status == 0 && !greedy) {
    row.temperature = set.temperature;
    if (set.temperature != 1.0f) {
      // A tiny temperature would carry the logits themselves beyond f32; then their distances are divided.
      row.shift = isfinite(__fdiv_rn(greatest, set.temperature)) ? 0.0f : greatest;
      row.max = row.value(greatest);
    }
    const bool top_k = set.top_k > 0 && set.top_k < args.vocab;
    Mass total = 0;
    if (top_k || set.top_p < 1.0f) {
      count_bins(shared, row, filter);
      total = shared.sum;
      const float share = set.top_p * static_cast<float>(static_cast<double>(total) * kMassUnit) * 1.00001f;
      list_candidates(shared, row, filter, boundary_bin(shared, top_k ? min(set.top_k, shared.count) : 0, share));
    }
    if (top_k) {
      filter.least = boundary_key<false>(shared, row, filter, set.top_k);
    }
    if (set.top_p < 1.0f) {
      if (top_k) {
        Mass mass = 0;
        for_each(shared, row, filter, 0, row.vocab, [&](int, unsigned, Mass m) { mass += m; });
        reduce(shared, 0, mass);
        total = shared.sum;
      }
      cut_nucleus(shared, row, filter, set.top_p, total);
    }
    filter.min_p = set.min_p;
  }
  if (out.status == 0 && (!greedy || set.num_top >= 0)) {
    int count = 0;
    Mass mass = 0;
    for_each(shared, row, filter, 0, row.vocab, [&](int, unsigned, Mass m) {
      ++count;
      mass += m;
    });
    reduce(shared, count, mass);
    const int left = shared.count;
    const Mass total = shared.sum;
    if (!greedy) {
      const double uniform = philox_uniform(set.seed, set.position);
      out.token = draw(shared, row, filter, uniform * static_cast<double>(total));
    }
    out.value = row.value(row.logits[out.token]);
    out.max = row.max;
    out.sum = static_cast<double>(total) * kMassUnit;
    const int wanted = min(min(set.num_top, args.max_top), left);
    if (wanted > 0) {
      if (row.listed < 0) {
        count_bins(shared, row, filter);
        list_candidates(shared, row, filter, boundary_bin(shared, wanted, 0.0f));
      }
      const unsigned key = boundary_key<false>(shared, row, filter, wanted);
      int above = 0;
      for_each(shared, row, filter, 0, row.vocab, [&](int, unsigned k, Mass) { above += k > key; });
      reduce(shared, above, 0);
      // Of equal ones the lower ids.
      const int last = token_of_rank(shared, row, filter, key, wanted - shared.count);
      if (threadIdx.x == 0) shared.listed = 0;
      __syncthreads();
      for_each(shared, row, filter, 0, row.vocab, [&](int token, unsigned k, Mass) {
        if (k > key || (k == key && token <= last)) {
          const int place = atomicAdd(&shared.listed, 1);
          args.top[static_cast<long long>(number) * args.max_top + place] = {token, value_of_key(k)};
        }
      });
      out.num_top = wanted;
    }
  }
  if (threadIdx.x == 0) {
    args.chosen[number] = out;
    args.tokens[number] = out.token;
  }
}
