// A warped distribution over logits [V] that one block looks at together: temperature, top-k and top-p, and a draw from
// it by inverse CDF in ascending id order.
//
// Probabilities are integers in units of 2^-44 of the most likely id's, so that sums have one value in any order and
// atomics on them are deterministic. What is cut is found without sorting: the smallest logit that stays, digit by
// digit (radix select), and the last id that stays among those that have it.
#pragma once

#include <limits.h>

#include "backend/cuda/kernels/device_math.h"

namespace kdtw::cuda {

using Mass = unsigned long long;

constexpr int kPickThreads = 256, kPickWarps = kPickThreads / kWarp;
constexpr int kBins = 256;
constexpr float kOne = 17592186044416.0f;  // 2^44: the mass of the most likely id; 2^18 of them fit into 64 bits

// Orders as floats do; NaN aside.
__device__ __forceinline__ unsigned ordered(float value) {
  const unsigned bits = __float_as_uint(value);
  return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}
__device__ __forceinline__ float from_ordered(unsigned key) {
  return __uint_as_float(key & 0x80000000u ? key & 0x7fffffffu : ~key);
}
// The larger logit, then the lower id, is the larger number. 0 is smaller than any.
__device__ __forceinline__ unsigned long long ranked(float logit, int id) {
  return static_cast<unsigned long long>(ordered(logit)) << 32 | (0xffffffffu - static_cast<unsigned>(id));
}
__device__ __forceinline__ int id_of(unsigned long long rank) {
  return static_cast<int>(0xffffffffu - static_cast<unsigned>(rank));
}
__device__ __forceinline__ float logit_of(unsigned long long rank) {
  return from_ordered(static_cast<unsigned>(rank >> 32));
}

// What the threads of the block share.
struct Shared {
  Mass* bins;     // [kBins]
  Mass* scratch;  // [kPickWarps]
  Mass* found;    // [2]
};

struct Logits {
  const float* values;
  int size;
  const int32_t* banned;
  int banned_count;

  __device__ __forceinline__ bool is_banned(int id) const {
    bool found = false;
    for (int i = 0; i < banned_count; ++i) found |= banned[i] == id;
    return found;
  }
};

struct Distribution {
  Logits logits;
  float best;     // the largest logit that is not banned
  float inverse;  // of the temperature
  unsigned edge;  // the smallest logit that stays, ordered()
  int last;       // the last id that stays among those with that logit
  Mass total;

  __device__ __forceinline__ bool keeps(int id, unsigned key) const {
    return (key > edge || (key == edge && id <= last)) && !logits.is_banned(id);
  }
  __device__ __forceinline__ Mass mass_of(float logit) const {
    return static_cast<Mass>(expf((logit - best) * inverse) * kOne);
  }
  __device__ __forceinline__ Mass operator()(int id) const {
    if (id >= logits.size) return 0;
    const float logit = logits.values[id];
    return keeps(id, ordered(logit)) ? mass_of(logit) : 0;
  }
};

struct Crossing {
  int bin;
  Mass before;  // the sum of the bins before it
};

// The first bin at which the running sum of the bins reaches `need`; the last one with a share where none does. All
// threads call it and get the same.
__device__ __forceinline__ Crossing find_crossing(const Shared& shared, Mass need) {
  __syncthreads();
  if (warp_id() == 0) {
    constexpr int kEach = kBins / kWarp;
    const int lane = lane_id();
    Mass own = 0;
    for (int i = 0; i < kEach; ++i) own += shared.bins[lane * kEach + i];
    Mass until = own;  // and with the lanes before
    for (int offset = 1; offset < kWarp; offset *= 2) {
      const Mass other = __shfl_up_sync(kAllLanes, until, offset);
      if (lane >= offset) until += other;
    }
    const unsigned reached = __ballot_sync(kAllLanes, until >= need), share = __ballot_sync(kAllLanes, own > 0);
    const int chosen = reached != 0 ? __ffs(reached) - 1 : share != 0 ? kWarp - 1 - __clz(share) : 0;
    if (lane == chosen) {
      Mass before = until - own;
      int bin = lane * kEach;
      for (int i = 0, last = bin; i < kEach; ++i) {
        const Mass mass = shared.bins[last + i];
        if (mass == 0) continue;
        bin = last + i;
        if (before + mass >= need) break;
        before += mass;
      }
      // Where no bin reached it: the last one, and what lies before that one.
      if (before + shared.bins[bin] < need) before -= shared.bins[bin];
      shared.found[0] = static_cast<Mass>(bin), shared.found[1] = before;
    }
  }
  __syncthreads();
  return {static_cast<int>(shared.found[0]), shared.found[1]};
}

// Adds up weigh(id) by the digit of the id's logit at `shift`, of the ids whose higher digits are those of `prefix`;
// the largest digit comes first.
template <typename Weigh>
__device__ __forceinline__ void histogram(const Shared& shared, const Logits& logits, unsigned prefix, int shift,
                                          Weigh weigh) {
  __syncthreads();
  for (int b = threadIdx.x; b < kBins; b += kPickThreads) shared.bins[b] = 0;
  __syncthreads();
  const unsigned high = shift == 24 ? 0u : 0xffffffffu << (shift + 8);
  for (int id = threadIdx.x; id < logits.size; id += kPickThreads) {
    const unsigned key = ordered(logits.values[id]);
    if ((key & high) != (prefix & high)) continue;
    const Mass mass = weigh(id);
    if (mass > 0) atomicAdd(&shared.bins[kBins - 1 - (key >> shift & 255u)], mass);
  }
}

// Cuts the distribution where the running sum of weigh(id), largest logits first, reaches `need`. unit(logit): what
// weigh gives every kept id of that logit. Returns what is left.
template <typename Weigh, typename Unit>
__device__ __forceinline__ Mass cut(const Shared& shared, Distribution& distribution, Mass need, Weigh weigh,
                                    Unit unit) {
  const Logits& logits = distribution.logits;
  unsigned prefix = 0;
  Mass above = 0, here = 0;
  for (int shift = 24; shift >= 0; shift -= 8) {
    histogram(shared, logits, prefix, shift, weigh);
    const Crossing crossing = find_crossing(shared, need - above);
    prefix |= static_cast<unsigned>(kBins - 1 - crossing.bin) << shift;
    above += crossing.before;
    here = shared.bins[crossing.bin];
  }
  const Mass each = unit(from_ordered(prefix));
  if (each == 0 || above + here < need) return above + here;  // all of it was needed
  const Mass ties = here / each, wanted = (need - above + each - 1) / each;
  int last = prefix == distribution.edge ? distribution.last : INT_MAX;
  if (wanted < ties) {
    Mass seen = 0;
    for (int start = 0; seen < wanted; start += kPickThreads) {
      const int id = start + static_cast<int>(threadIdx.x);
      const bool tie = id < logits.size && ordered(logits.values[id]) == prefix && weigh(id) > 0;
      const Mass before = seen;
      seen += static_cast<Mass>(__syncthreads_count(tie));
      if (seen >= wanted) {  // the tie is among these: its rank is found by counting those before
        const unsigned lanes = __ballot_sync(kAllLanes, tie);
        if (lane_id() == 0) shared.scratch[warp_id()] = static_cast<Mass>(__popc(lanes));
        __syncthreads();
        Mass rank = before + static_cast<Mass>(__popc(lanes & ((1u << lane_id()) - 1u)));
        for (int w = 0; w < warp_id(); ++w) rank += shared.scratch[w];
        if (tie && rank + 1 == wanted) shared.found[0] = static_cast<Mass>(id);
        __syncthreads();
      }
    }
    last = static_cast<int>(shared.found[0]);
  }
  distribution.edge = prefix, distribution.last = last;
  return above + wanted * each;
}

// All threads call it and get the same. best, best_id: of the ids that are not banned.
__device__ __forceinline__ Distribution make_distribution(const Shared& shared, const Logits& logits,
                                                          const Sampling& sampling, float best, int best_id) {
  const bool greedy = sampling.temperature == 0.0f;
  Distribution result{logits,
                      best,
                      greedy ? 0.0f : 1.0f / sampling.temperature,
                      greedy ? ordered(best) : 0u,
                      greedy ? best_id : INT_MAX,
                      static_cast<Mass>(kOne)};
  if (greedy) return result;
  if (sampling.top_k > 0 && sampling.top_k < logits.size)
    cut(
        shared, result, static_cast<Mass>(sampling.top_k), [&](int id) { return Mass{!logits.is_banned(id)}; },
        [](float) { return Mass{1}; });
  Mass own = 0;
  for (int id = threadIdx.x; id < logits.size; id += kPickThreads) own += result(id);
  result.total = block_reduce<Sum, kPickWarps>(own, shared.scratch);
  if (sampling.top_p < 1.0f) {
    const double enough = static_cast<double>(sampling.top_p) * static_cast<double>(result.total);
    Mass need = static_cast<Mass>(enough);
    if (static_cast<double>(need) < enough) ++need;
    if (need == 0) need = 1;
    const Distribution all = result;
    result.total = cut(shared, result, need, all, [&](float logit) { return all.mass_of(logit); });
  }
  return result;
}

// The id at which the running sum of mass(id), ascending, exceeds `uniform` of the whole; -1 when the whole is 0. All
// threads call it and get the same.
template <typename Masses>
__device__ __forceinline__ int draw(const Shared& shared, const Masses& mass, int size, double uniform) {
  const int segment = (size + kBins * kWarp - 1) / (kBins * kWarp) * kWarp;  // ids of a bin
  __syncthreads();
  for (int bin = warp_id(); bin < kBins; bin += kPickWarps) {
    Mass own = 0;
    for (int i = lane_id(); i < segment; i += kWarp) {
      const int id = bin * segment + i;
      if (id < size) own += mass(id);
    }
    own = warp_reduce<Sum>(own);
    if (lane_id() == 0) shared.bins[bin] = own;
  }
  __syncthreads();
  Mass share = 0;
  for (int b = threadIdx.x; b < kBins; b += kPickThreads) share += shared.bins[b];
  const Mass total = block_reduce<Sum, kPickWarps>(share, shared.scratch);
  int result = -1;
  if (total > 0) {
    Mass target = static_cast<Mass>(uniform * static_cast<double>(total));
    if (target >= total) target = total - 1;
    const Crossing crossing = find_crossing(shared, target + 1);
    __syncthreads();
    if (warp_id() == 0) {
      Mass before = crossing.before;
      bool found = false;
      for (int start = 0; start < segment && !found; start += kWarp) {
        const int id = crossing.bin * segment + start + lane_id();
        Mass until = id < size ? mass(id) : 0;
        for (int offset = 1; offset < kWarp; offset *= 2) {
          const Mass other = __shfl_up_sync(kAllLanes, until, offset);
          if (lane_id() >= offset) until += other;
        }
        const unsigned beyond = __ballot_sync(kAllLanes, before + until > target);
        found = beyond != 0;
        if (found && lane_id() == 0) shared.found[0] = static_cast<Mass>(id + __ffs(beyond) - 1);
        before += __shfl_sync(kAllLanes, until, kWarp - 1);
      }
    }
    __syncthreads();
    result = static_cast<int>(shared.found[0]);
  }
  return result;
}

}  // namespace kdtw::cuda
