// Sampling from logits [V] with temperature, top-k and top-p; one block works on a row together.
//
// A probability is kept as an integer, its "mass": in units of 2^-44 of the most likely id's probability. Integers add
// up to the same sum in any order, so shared-memory atomics give the same result every time. Top-k and top-p need no
// sorting: a radix select finds the smallest logit that stays, 8 bits at a time, and of the ids that have exactly that
// logit the lowest ones stay. A draw takes the first id, in ascending order, at which the running sum exceeds
// uniform * total.
#pragma once

#include <float.h>
#include <limits.h>

#include "backend/cuda/kernels/device_math.h"

namespace kdtw::cuda {

using Mass = unsigned long long;

constexpr int kBins = 256;
constexpr int kReads = 8;                  // numbers that a thread waits for at a time
constexpr float kOne = 17592186044416.0f;  // 2^44, the most likely id's mass; 64 bits hold the sum of fewer than 2^20

// An unsigned number that is larger where the float is larger (not for NaN): negative floats have their bits inverted.
__device__ __forceinline__ unsigned ordered(float value) {
  const unsigned bits = __float_as_uint(value);
  return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}
__device__ __forceinline__ float from_ordered(unsigned key) {
  return __uint_as_float(key & 0x80000000u ? key & 0x7fffffffu : ~key);
}
// A logit and its id as one number, so that the maximum of such numbers is the largest logit and, among equal ones, the
// lowest id. 0 is less than any of them.
__device__ __forceinline__ unsigned long long ranked(float logit, int id) {
  return static_cast<unsigned long long>(ordered(logit)) << 32 | (0xffffffffu - static_cast<unsigned>(id));
}
__device__ __forceinline__ int id_of(unsigned long long rank) {
  return static_cast<int>(0xffffffffu - static_cast<unsigned>(rank));
}
__device__ __forceinline__ float logit_of(unsigned long long rank) {
  return from_ordered(static_cast<unsigned>(rank >> 32));
}

// The block's shared memory.
struct Shared {
  Mass* bins;     // [kBins]
  Mass* scratch;  // [kWarps]
  Mass* found;    // [2]
};

struct Logits {
  const float* values;
  int size;
  const int32_t* banned;
  int banned_count;

  __device__ __forceinline__ float read(int id) const { return id < size ? values[id] : 0.0f; }
  __device__ __forceinline__ bool is_banned(int id) const {
    bool found = false;
    for (int i = 0; i < banned_count; ++i) found |= banned[i] == id;
    return found;
  }
};

// Calls visit(id, source.read(id)) for the ids begin, begin + by, … below `end`. Of kReads ids each, what is read is on
// its way before the first is visited.
template <typename Source, typename Visit>
__device__ __forceinline__ void visit_ids(const Source& source, int begin, int end, int by, Visit visit) {
  for (int start = begin; start < end; start += kReads * by) {
    decltype(source.read(0)) reads[kReads];
#pragma unroll
    for (int i = 0; i < kReads; ++i)
      reads[i] = start + i * by < end ? source.read(start + i * by) : decltype(source.read(0)){};
#pragma unroll
    for (int i = 0; i < kReads; ++i)
      if (start + i * by < end) visit(start + i * by, reads[i]);
  }
}

// Of a temperature above 0: finite, so that the most likely id has its mass at the smallest one, too.
__device__ __forceinline__ float inverse_of(const Sampling& sampling) {
  return fminf(1.0f / sampling.temperature, FLT_MAX);
}

// What is left of the softmax of logits / temperature after top-k and top-p: distribution(id) is the id's mass, 0 for
// an id that was cut or is banned.
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
  __device__ __forceinline__ float read(int id) const { return logits.read(id); }
  // The mass of an id whose logit was read.
  __device__ __forceinline__ Mass operator()(int id, float logit) const {
    return id < logits.size && keeps(id, ordered(logit)) ? mass_of(logit) : 0;
  }
  __device__ __forceinline__ Mass operator()(int id) const { return (*this)(id, read(id)); }
};

// The sum of this lane's mass and those of the lanes before it.
__device__ __forceinline__ Mass sum_until(Mass mass) {
  for (int offset = 1; offset < kWarp; offset *= 2) {
    const Mass other = __shfl_up_sync(kAllLanes, mass, offset);
    if (lane_id() >= offset) mass += other;
  }
  return mass;
}

struct Crossing {
  int bin;
  Mass before;  // the sum of the bins before it
};

// The first bin at which the running sum of the bins reaches `need`; where none does, the last bin that is not empty.
// All threads of the block must call it, and all get the same result.
__device__ __forceinline__ Crossing find_crossing(const Shared& shared, Mass need) {
  __syncthreads();
  if (warp_id() == 0) {
    constexpr int kEach = kBins / kWarp;
    const int lane = lane_id();
    Mass own = 0;
    for (int i = 0; i < kEach; ++i) own += shared.bins[lane * kEach + i];
    const Mass until = sum_until(own);
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
      // No bin reached it, and `before` includes the last bin that is not empty: take that one out again.
      if (before + shared.bins[bin] < need) before -= shared.bins[bin];
      shared.found[0] = static_cast<Mass>(bin), shared.found[1] = before;
    }
  }
  __syncthreads();
  return {static_cast<int>(shared.found[0]), shared.found[1]};
}

// One step of the radix select: sorts ids into bins by 8 bits of their logit, those at `shift`, and adds up
// weigh(id, logit) in each bin. Only ids whose higher bits equal those of `prefix` count. The largest 8 bits are bin 0.
template <typename Weigh>
__device__ __forceinline__ void histogram(const Shared& shared, const Logits& logits, unsigned prefix, int shift,
                                          Weigh weigh) {
  __syncthreads();
  for (int b = threadIdx.x; b < kBins; b += kBlock) shared.bins[b] = 0;
  __syncthreads();
  const unsigned high = shift == 24 ? 0u : 0xffffffffu << (shift + 8);
  visit_ids(logits, threadIdx.x, logits.size, kBlock, [&](int id, float logit) {
    const unsigned key = ordered(logit);
    if ((key & high) != (prefix & high)) return;
    const Mass mass = weigh(id, logit);
    if (mass > 0) atomicAdd(&shared.bins[kBins - 1 - (key >> shift & 255u)], mass);
  });
}

// Takes ids in descending order of their logits until the sum of weigh(id, logit) reaches `need`, and cuts the
// distribution behind the last one. unit(logit): what weigh gives an id of that logit. Returns the sum of what stays.
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
  if (each == 0 || above + here < need) return above + here;  // everything together does not exceed `need`
  const Mass ties = here / each, wanted = (need - above + each - 1) / each;
  int last = prefix == distribution.edge ? distribution.last : INT_MAX;
  if (wanted < ties) {
    Mass seen = 0;
    for (int start = 0; seen < wanted; start += kBlock) {
      const int id = start + static_cast<int>(threadIdx.x);
      const float logit = logits.read(id);
      const bool tie = id < logits.size && ordered(logit) == prefix && weigh(id, logit) > 0;
      const Mass before = seen;
      seen += static_cast<Mass>(__syncthreads_count(tie));
      if (seen >= wanted) {  // the last id that stays is one of these: the thread that has it counts those before it
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

// The mass at which top-p is content.
__device__ __forceinline__ Mass enough_of(const Sampling& sampling, Mass total) {
  const double enough = static_cast<double>(sampling.top_p) * static_cast<double>(total);
  Mass need = static_cast<Mass>(enough);
  if (static_cast<double>(need) < enough) ++need;
  return need > 0 ? need : 1;
}

// The distribution of a row. best, best_id: the largest logit that is not banned and its id. All threads of the block
// must call it, and all get the same result.
__device__ __forceinline__ Distribution make_distribution(const Shared& shared, const Logits& logits,
                                                          const Sampling& sampling, float best, int best_id) {
  const bool greedy = sampling.temperature == 0.0f;
  Distribution result{logits,
                      best,
                      greedy ? 0.0f : inverse_of(sampling),
                      greedy ? ordered(best) : 0u,
                      greedy ? best_id : INT_MAX,
                      static_cast<Mass>(kOne)};
  if (greedy) return result;
  if (sampling.top_k > 0 && sampling.top_k < logits.size)
    cut(
        shared, result, static_cast<Mass>(sampling.top_k), [&](int id, float) { return Mass{!logits.is_banned(id)}; },
        [](float) { return Mass{1}; });
  Mass own = 0;
  visit_ids(result, threadIdx.x, logits.size, kBlock, [&](int id, float logit) { own += result(id, logit); });
  result.total = block_reduce<Sum>(own, shared.scratch);
  if (sampling.top_p < 1.0f) {
    const Distribution all = result;
    result.total =
        cut(shared, result, enough_of(sampling, result.total), all, [&](float logit) { return all.mass_of(logit); });
  }
  return result;
}

// The first id at which the running sum of mass(id) exceeds uniform * total; -1 when the total is 0. All threads of the
// block must call it, and all get the same result. The ids are divided into kBins segments, which warps add up; then
// one warp walks through the segment in which the sum is exceeded.
template <typename Masses>
__device__ __forceinline__ int draw(const Shared& shared, const Masses& mass, int size, double uniform) {
  const int segment = (size + kBins * kWarp - 1) / (kBins * kWarp) * kWarp;  // ids of a bin
  __syncthreads();
  for (int bin = warp_id(); bin < kBins; bin += kWarps) {
    Mass own = 0;
    visit_ids(mass, bin * segment + lane_id(), min(size, (bin + 1) * segment), kWarp,
              [&](int id, auto read) { own += mass(id, read); });
    own = warp_reduce<Sum>(own);
    if (lane_id() == 0) shared.bins[bin] = own;
  }
  __syncthreads();
  Mass share = 0;
  for (int b = threadIdx.x; b < kBins; b += kBlock) share += shared.bins[b];
  const Mass total = block_reduce<Sum>(share, shared.scratch);
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
        const Mass until = sum_until(id < size ? mass(id) : 0);
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
