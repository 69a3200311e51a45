// Sampling by many blocks; the ids that stay and their masses are those of distribution.h. An id stays when those
// before it, in descending order of logits and then ascending of ids, have not yet reached what top-k or top-p asks
// for. So
//   1. blocks add up how many ids, and what mass, lie in each of kKdtwBins bins of logits (by atomics: integers);
//   2. of these sums every block sees in which bins the cuts lie. Top-p's depends on what top-k leaves, and that on the
//      ids of one bin: so there are two bins between which it lies. Blocks add up the ids above, chunk by chunk, and
//      collect those for which it is open;
//   3. one block ranks the open ones, which are few, against each other, adds them to their chunks, and looks for the
//      draw's id in one chunk.
#pragma once

#include "backend/cuda/kernels/distribution.h"

namespace kdtw::cuda {

constexpr int kBinsEach = kKdtwBins / kBlock;  // bins that a thread looks at
constexpr int kFewEach = kKdtwFew / kBlock;    // open ids, chunks, or ids of a chunk, that it looks at
static_assert(kKdtwChunk == kKdtwFew);

// The largest logit of a row that is not banned, and whether the row can be sampled from.
struct Best {
  bool there;
  float logit;
};

// Every warp looks at all chunks.
__device__ __forceinline__ Best best_of(const KdtwSummary* summaries, int chunks) {
  int bad = 0;
  unsigned long long best = 0;
  for (int c = lane_id(); c < chunks; c += kWarp) {
    bad |= !summaries[c].finite;
    const unsigned long long rank = summaries[c].top > -FLT_MAX ? ranked(summaries[c].top, summaries[c].id) : 0;
    best = rank > best ? rank : best;
  }
  best = warp_reduce<Largest>(best);
  return {__any_sync(kAllLanes, bad) == 0 && best != 0, logit_of(best)};
}

// The bin of a logit, a 64th of a unit of logit / temperature wide; ids in the last one have no mass, whatever stays.
__device__ __forceinline__ int bin_of(const Distribution& all, float logit) {
  const float below = (all.best - logit) * all.inverse * 64.0f;
  return below < static_cast<float>(kKdtwBins - 1) ? static_cast<int>(below) : kKdtwBins - 1;
}

// All ids of a row that are not banned.
__device__ __forceinline__ Distribution uncut(const Logits& row, const Sampling& sampling, float best) {
  return {row, best, inverse_of(sampling), 0u, INT_MAX, 0};
}
__device__ __forceinline__ bool has_k(const Sampling& sampling, int vocabulary) {
  return sampling.top_k > 0 && sampling.top_k < vocabulary;
}

// Where the running sum of the block's parts, of which thread t has those from kEach t on, first reaches `need`, which
// is not 0; past the last part where it does not. All threads of the block must call it, and all get the same result.
template <int kEach>
__device__ __forceinline__ Crossing first_reaching(const Shared& shared, const Mass (&parts)[kEach], Mass need) {
  Mass own = 0;
#pragma unroll
  for (int i = 0; i < kEach; ++i) own += parts[i];
  Mass until = sum_until(own), all = 0;
  __syncthreads();
  if (lane_id() == kWarp - 1) shared.scratch[warp_id()] = until;
  __syncthreads();
#pragma unroll
  for (int w = 0; w < kWarps; ++w) {
    if (w == warp_id()) until += all;
    all += shared.scratch[w];
  }
  Mass before = until - own;
  if (before < need && until >= need) {
    int at = static_cast<int>(threadIdx.x) * kEach;
    bool found = false;
#pragma unroll
    for (int i = 0; i < kEach; ++i) {
      found |= before + parts[i] >= need;
      if (!found) before += parts[i], ++at;
    }
    shared.found[0] = static_cast<Mass>(at), shared.found[1] = before;
  }
  if (all < need && threadIdx.x == 0) shared.found[0] = static_cast<Mass>(kEach * kBlock), shared.found[1] = all;
  __syncthreads();
  return {static_cast<int>(shared.found[0]), shared.found[1]};
}

// Where a row's cuts lie: the fields of KdtwSift.
struct Cuts {
  int k_bin, open_first, open_last;
  Mass k_count, k_mass, open_mass;
};

__device__ __forceinline__ Cuts find_cuts(const Shared& shared, const Sampling& sampling, int vocabulary,
                                          const KdtwSift& sift) {
  Cuts cuts{kKdtwBins, kKdtwBins, kKdtwBins, 0, 0, 0};
  const int first = static_cast<int>(threadIdx.x) * kBinsEach;
  if (has_k(sampling, vocabulary)) {
    Mass counts[kBinsEach];
#pragma unroll
    for (int i = 0; i < kBinsEach; i += 4) {
      const uint4 four = *reinterpret_cast<const uint4*>(sift.counts + first + i);
      counts[i] = four.x, counts[i + 1] = four.y, counts[i + 2] = four.z, counts[i + 3] = four.w;
    }
    const Crossing crossing = first_reaching(shared, counts, static_cast<Mass>(sampling.top_k));
    cuts.k_bin = cuts.open_first = cuts.open_last = crossing.bin, cuts.k_count = crossing.before;
  }
  if (sampling.top_p < 1.0f) {
    Mass masses[kBinsEach], own = 0;
#pragma unroll
    for (int i = 0; i < kBinsEach; i += 2) {
      const uint4 two = *reinterpret_cast<const uint4*>(sift.masses + first + i);
      masses[i] = static_cast<Mass>(two.y) << 32 | two.x, masses[i + 1] = static_cast<Mass>(two.w) << 32 | two.z;
    }
#pragma unroll
    for (int i = 0; i < kBinsEach; ++i) own += first + i < cuts.k_bin ? masses[i] : 0;
    cuts.k_mass = block_reduce<Sum>(own, shared.scratch);
    const Mass most = cuts.k_mass + (cuts.k_bin < kKdtwBins ? sift.masses[cuts.k_bin] : 0);
    const Crossing least = first_reaching(shared, masses, enough_of(sampling, cuts.k_mass));
    cuts.open_first = least.bin, cuts.open_mass = least.before;
    cuts.open_last = first_reaching(shared, masses, enough_of(sampling, most)).bin;
  }
  return cuts;
}

// What the deciding block ranks in: open ids, and the masses of ids, or of chunks.
struct Ranking {
  Mass* ranks;   // [kKdtwFew]
  Mass* masses;  // [kKdtwFew]
};

// Of the open ids those that stay; the last one of all that stay, as the edge of `result`. own: where thread t finds
// the rank and the mass of the open ids t, t + kBlock, …, of mass 0 those that do not stay.
__device__ __forceinline__ void rank_open(const Shared& shared, const Ranking& ranking, const Sampling& sampling,
                                          const KdtwSift& sift, Distribution& result, Mass (&ranks)[kFewEach],
                                          Mass (&masses)[kFewEach]) {
  const int count = static_cast<int>(sift.open_count);
  for (int i = threadIdx.x; i < count; i += kBlock) {
    const Mass rank = sift.open[i];
    ranking.ranks[i] = rank, ranking.masses[i] = result.mass_of(logit_of(rank));
  }
  __syncthreads();
  Mass before[kFewEach], above[kFewEach];
  int sooner = 0;  // ids before those of k_bin
#pragma unroll
  for (int e = 0; e < kFewEach; ++e) {
    ranks[e] = masses[e] = before[e] = above[e] = 0;
    const int own = e * kBlock + static_cast<int>(threadIdx.x);
    if (own >= count) continue;
    ranks[e] = ranking.ranks[own], masses[e] = ranking.masses[own];
    for (int i = 0; i < count; ++i) {
      const bool ahead = ranking.ranks[i] > ranks[e];
      before[e] += ahead, above[e] += ahead ? ranking.masses[i] : 0;
    }
    sooner += bin_of(result, logit_of(ranks[e])) < sift.k_bin;
  }
  sooner = static_cast<int>(block_reduce<Sum>(static_cast<Mass>(sooner), shared.scratch));
  Mass left = 0;  // of k_bin
  unsigned long long last = 0;
#pragma unroll
  for (int e = 0; e < kFewEach; ++e) {
    const int bin = bin_of(result, logit_of(ranks[e]));
    if (ranks[e] == 0 || bin != sift.k_bin) continue;
    if (sift.k_count + before[e] - sooner >= static_cast<Mass>(sampling.top_k)) ranks[e] = masses[e] = 0;
    left += masses[e];
  }
  Mass need = ~Mass{0};
  if (sampling.top_p < 1.0f) need = enough_of(sampling, sift.k_mass + block_reduce<Sum>(left, shared.scratch));
#pragma unroll
  for (int e = 0; e < kFewEach; ++e) {
    if (ranks[e] == 0) continue;
    if (bin_of(result, logit_of(ranks[e])) > sift.open_last || sift.open_mass + above[e] >= need)
      ranks[e] = masses[e] = 0;
    else
      last = last == 0 || ranks[e] < last ? ranks[e] : last;
  }
  // The least that is not 0 is the largest of what is left to all ones.
  last = ~block_reduce<Largest>(last == 0 ? Mass{0} : ~last, shared.scratch);
  if (last != ~Mass{0}) result.edge = static_cast<unsigned>(last >> 32), result.last = id_of(last);
}

// draw() of the row's distribution, of what the kernels before have found out.
__device__ __forceinline__ int draw_sifted(const Shared& shared, const Ranking& ranking, const Logits& row,
                                           const PickRequest& request, float best, const KdtwSummary* summaries,
                                           int chunks, const KdtwSift* sift) {
  const bool cuts = kdtw_sampling(request.sampling, request.check) == kKdtwCuts;
  Distribution result = uncut(row, request.sampling, best);
  Mass ranks[kFewEach] = {}, masses[kFewEach] = {};
  if (cuts) rank_open(shared, ranking, request.sampling, *sift, result, ranks, masses);
  for (int c = threadIdx.x; c < kKdtwFew; c += kBlock) ranking.masses[c] = c < chunks ? summaries[c].mass : 0;
  __syncthreads();
#pragma unroll
  for (int e = 0; e < kFewEach; ++e)
    if (masses[e] > 0) atomicAdd(&ranking.masses[id_of(ranks[e]) / kKdtwChunk], masses[e]);
  __syncthreads();
  Mass parts[kFewEach], own = 0;
  const int first = static_cast<int>(threadIdx.x) * kFewEach;
#pragma unroll
  for (int i = 0; i < kFewEach; ++i) own += parts[i] = ranking.masses[first + i];
  const Mass total = block_reduce<Sum>(own, shared.scratch);
  Mass target = static_cast<Mass>(request.uniform * static_cast<double>(total));
  if (target >= total) target = total - 1;
  const Crossing chunk = first_reaching(shared, parts, target + 1);
  const int begin = chunk.bin * kKdtwChunk;
  float logits[kFewEach];
#pragma unroll
  for (int i = 0; i < kFewEach; ++i) logits[i] = row.read(begin + i * kBlock + static_cast<int>(threadIdx.x));
#pragma unroll
  for (int i = 0; i < kFewEach; ++i) {
    const int at = i * kBlock + static_cast<int>(threadIdx.x);
    ranking.masses[at] = result(begin + at, logits[i]);
  }
  __syncthreads();
#pragma unroll
  for (int i = 0; i < kFewEach; ++i) parts[i] = ranking.masses[first + i];
  return begin + first_reaching(shared, parts, target - chunk.before + 1).bin;
}

}  // namespace kdtw::cuda
