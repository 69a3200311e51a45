// Decisions about logits [n, V]. Many blocks reduce chunks of kKdtwChunk logits to summaries, then one block for each
// request decides from its row's summaries. Where requests sample, many blocks read the row again between the two
// (sift.h). Only checks that compare two distributions are one block's work, which reads both rows again and again.
#include "backend/cuda/kernels/sift.h"

namespace kdtw::cuda {
namespace {

constexpr int kEach = kKdtwChunk / kBlock;  // ids of a chunk that a thread looks at
constexpr float kBanned = -FLT_MAX;         // a banned logit: lower than any real one

__device__ __forceinline__ Logits logits_of(const float* row, int vocabulary, const PickRequest& request) {
  return {row, vocabulary, request.banned, request.banned_count};
}

// Grid: chunk, request. Reads each logit once, and copies it where the request wants the logits kept. Of the sums, only
// those that the request needs are computed. Clears what weigh_kernel adds to.
__global__ void __launch_bounds__(kBlock)
    summarise_kernel(const float* logits, int vocabulary, const PickRequest* requests, KdtwSummary* summaries,
                     KdtwSift* sifts) {
  KDTW_SHARED(float, scratch, kWarps);
  KDTW_SHARED(int, counts, kWarps);
  KDTW_SHARED(unsigned long long, ranks, kWarps);
  const PickRequest request = requests[blockIdx.y];
  const float* row = logits + static_cast<size_t>(blockIdx.y) * vocabulary;
  const Logits all = logits_of(row, vocabulary, request);
  const int first = static_cast<int>(blockIdx.x) * kKdtwChunk;
  if (sifts != nullptr) {
    KdtwSift& sift = sifts[blockIdx.y];
    const int begin = static_cast<int>(blockIdx.x) * kBlock + static_cast<int>(threadIdx.x);
    for (int b = begin; b < kKdtwBins; b += static_cast<int>(gridDim.x) * kBlock) sift.masses[b] = sift.counts[b] = 0;
    if (begin == 0) sift.open_count = 0;
  }
  const bool ranks_draft = request.check == Check::kTopK;
  float draft = kBanned;
  if (ranks_draft && request.draft < vocabulary && !all.is_banned(request.draft)) draft = row[request.draft];

  float values[kEach], top = kBanned;
  bool allowed[kEach];
  int bad = 0, before = 0;
  unsigned long long best = 0;
#pragma unroll
  for (int i = 0; i < kEach; ++i) {
    const int id = first + i * kBlock + static_cast<int>(threadIdx.x);
    const bool there = id < vocabulary;
    const float value = there ? row[id] : kBanned;
    values[i] = value;
    allowed[i] = there && !all.is_banned(id);
    if (there) {
      if (request.keep_logits != nullptr) request.keep_logits[id] = value;
      bad |= !is_finite(value);
      top = fmaxf(top, value);
      const float ranking = allowed[i] ? value : kBanned;
      if (ranks_draft) before += id < request.draft ? ranking >= draft : ranking > draft;
    }
    if (allowed[i]) {
      const unsigned long long rank = ranked(value, id);
      best = rank > best ? rank : best;
    }
  }
  KdtwSummary summary;
  summary.finite = !__syncthreads_or(bad);
  summary.raw_top = block_reduce<Largest>(top, scratch);
  best = block_reduce<Largest>(best, ranks);
  summary.top = best != 0 ? logit_of(best) : kBanned;
  summary.id = best != 0 ? id_of(best) : vocabulary;
  summary.before = ranks_draft ? block_reduce<Sum>(before, counts) : 0;
  summary.raw_sum = summary.allowed_sum = summary.allowed_weighted = 0.0f;
  summary.mass = 0;
  if (request.want_log_prob) {
    float sum = 0.0f;
#pragma unroll
    for (int i = 0; i < kEach; ++i)
      if (first + i * kBlock + static_cast<int>(threadIdx.x) < vocabulary) sum += expf(values[i] - summary.raw_top);
    summary.raw_sum = block_reduce<Sum>(sum, scratch);
  }
  if (request.want_confidence || request.want_entropy || request.check == Check::kDivergence) {
    float sum = 0.0f, weighted = 0.0f;
#pragma unroll
    for (int i = 0; i < kEach; ++i) {
      if (!allowed[i]) continue;
      const float below = values[i] - summary.top, weight = expf(below);
      sum += weight;
      if (weight > 0.0f) weighted += weight * below;
    }
    summary.allowed_sum = block_reduce<Sum>(sum, scratch);
    if (request.want_entropy) summary.allowed_weighted = block_reduce<Sum>(weighted, scratch);
  }
  if (threadIdx.x == 0) summaries[static_cast<size_t>(blockIdx.y) * gridDim.x + blockIdx.x] = summary;
}

// Calls visit(distribution, id, logit) for the ids of this block's chunk that are not banned.
template <typename Visit>
__device__ __forceinline__ void visit_chunk(const Distribution& all, Visit visit) {
  const int first = static_cast<int>(blockIdx.x) * kKdtwChunk + static_cast<int>(threadIdx.x);
  float values[kEach];
#pragma unroll
  for (int i = 0; i < kEach; ++i) values[i] = all.logits.read(first + i * kBlock);
#pragma unroll
  for (int i = 0; i < kEach; ++i) {
    const int id = first + i * kBlock;
    if (id < all.logits.size && !all.logits.is_banned(id)) visit(id, values[i]);
  }
}

// Grid: chunk, request. Adds the chunk's ids to their bins.
__global__ void __launch_bounds__(kBlock) weigh_kernel(const float* logits, int vocabulary, const PickRequest* requests,
                                                       const KdtwSummary* summaries, KdtwSift* sifts) {
  const PickRequest request = requests[blockIdx.y];
  if (kdtw_sampling(request.sampling, request.check) != kKdtwCuts) return;
  const Best best = best_of(summaries + static_cast<size_t>(blockIdx.y) * gridDim.x, static_cast<int>(gridDim.x));
  if (!best.there) return;
  const Logits row = logits_of(logits + static_cast<size_t>(blockIdx.y) * vocabulary, vocabulary, request);
  const Distribution all = uncut(row, request.sampling, best.logit);
  KdtwSift& sift = sifts[blockIdx.y];
  const bool by_k = has_k(request.sampling, vocabulary), by_p = request.sampling.top_p < 1.0f;
  visit_chunk(all, [&](int, float logit) {
    const int bin = bin_of(all, logit);
    if (bin == kKdtwBins - 1) return;  // where many ids may be, and no mass is
    if (by_k) atomicAdd(&sift.counts[bin], 1u);
    if (by_p) atomicAdd(reinterpret_cast<Mass*>(&sift.masses[bin]), all.mass_of(logit));
  });
}

// Grid: chunk, request. Adds up the chunk's ids that stay for certain, and collects those for which it is open.
__global__ void __launch_bounds__(kBlock) sift_kernel(const float* logits, int vocabulary, const PickRequest* requests,
                                                      KdtwSummary* summaries, KdtwSift* sifts) {
  KDTW_SHARED(Mass, scratch, kWarps);
  KDTW_SHARED(Mass, found, 2);
  const Shared shared{nullptr, scratch, found};
  const PickRequest request = requests[blockIdx.y];
  const KdtwSampling sampling = kdtw_sampling(request.sampling, request.check);
  if (sampling == kKdtwGreedy) return;
  summaries += static_cast<size_t>(blockIdx.y) * gridDim.x;
  const Best best = best_of(summaries, static_cast<int>(gridDim.x));
  if (!best.there) return;
  const Logits row = logits_of(logits + static_cast<size_t>(blockIdx.y) * vocabulary, vocabulary, request);
  const Distribution all = uncut(row, request.sampling, best.logit);
  KdtwSift* const sift = sifts + blockIdx.y;
  Cuts cuts{kKdtwBins, kKdtwBins, kKdtwBins, 0, 0, 0};
  if (sampling == kKdtwCuts) cuts = find_cuts(shared, request.sampling, vocabulary, *sift);
  Mass own = 0;
  visit_chunk(all, [&](int id, float logit) {
    const int bin = sampling == kKdtwCuts ? bin_of(all, logit) : 0;
    if (bin < cuts.open_first) own += all.mass_of(logit);
    if ((bin >= cuts.open_first && bin <= cuts.open_last) || bin == cuts.k_bin) {
      const unsigned at = atomicAdd(&sift->open_count, 1u);
      if (at < kKdtwFew) sift->open[at] = ranked(logit, id);
    }
  });
  own = block_reduce<Sum>(own, shared.scratch);
  if (threadIdx.x != 0) return;
  summaries[blockIdx.x].mass = own;
  if (blockIdx.x == 0 && sampling == kKdtwCuts) {
    sift->k_bin = cuts.k_bin, sift->open_first = cuts.open_first, sift->open_last = cuts.open_last;
    sift->k_count = cuts.k_count, sift->k_mass = cuts.k_mass, sift->open_mass = cuts.open_mass;
  }
}

// The summary of a whole row.
struct Merged {
  bool finite;
  unsigned long long best;
  float log_normaliser;
  float allowed_sum, allowed_weighted;  // of exp(x - best), and of exp(x - best) (x - best)
  int before;
};

// Every warp merges all chunks itself, lane l the chunks l, l + 32, ... and then the lanes: no barrier is needed. A
// chunk's sums are relative to its own largest logit, and are brought to the row's here.
__device__ __forceinline__ Merged merge(const KdtwSummary* summaries, int chunks) {
  int bad = 0, before = 0;
  float raw_top = kBanned;
  unsigned long long best = 0;
  for (int c = lane_id(); c < chunks; c += kWarp) {
    const KdtwSummary chunk = summaries[c];
    bad |= !chunk.finite;
    raw_top = fmaxf(raw_top, chunk.raw_top);
    before += chunk.before;
    const unsigned long long rank = chunk.top > kBanned ? ranked(chunk.top, chunk.id) : 0;
    best = rank > best ? rank : best;
  }
  Merged all;
  all.finite = __any_sync(kAllLanes, bad) == 0;
  raw_top = warp_reduce<Largest>(raw_top);
  all.best = warp_reduce<Largest>(best);
  all.before = warp_reduce<Sum>(before);
  float raw_sum = 0.0f, allowed_sum = 0.0f, allowed_weighted = 0.0f;
  for (int c = lane_id(); c < chunks; c += kWarp) {
    const KdtwSummary chunk = summaries[c];
    raw_sum += chunk.raw_sum * expf(chunk.raw_top - raw_top);
    if (chunk.top > kBanned) {
      const float below = chunk.top - logit_of(all.best), factor = expf(below);
      allowed_sum += chunk.allowed_sum * factor;
      if (factor > 0.0f) allowed_weighted += (chunk.allowed_weighted + below * chunk.allowed_sum) * factor;
    }
  }
  all.log_normaliser = raw_top + logf(warp_reduce<Sum>(raw_sum));
  all.allowed_sum = warp_reduce<Sum>(allowed_sum);
  all.allowed_weighted = warp_reduce<Sum>(allowed_weighted);
  return all;
}

// What the teacher draws from when a draft was rejected: max(0, p - threshold q), not normalised (Leviathan et al.
// 2023).
struct Residual {
  const Distribution &p, &q;
  double of_p, of_q;  // factors that turn masses into probabilities; that of q times the threshold

  __device__ __forceinline__ float2 read(int id) const { return make_float2(p.read(id), q.read(id)); }
  __device__ __forceinline__ Mass operator()(int id, float2 logits) const {
    const double left = static_cast<double>(p(id, logits.x)) * of_p - static_cast<double>(q(id, logits.y)) * of_q;
    return left > 0.0 ? static_cast<Mass>(left * static_cast<double>(kOne)) : 0;
  }
  __device__ __forceinline__ Mass operator()(int id) const { return (*this)(id, read(id)); }
};

// The teacher's distribution p and the student's q, where the student drafted.
struct Pair {
  Distribution p, q;

  __device__ __forceinline__ Residual residual(double threshold) const {
    return {p, q, 1.0 / static_cast<double>(p.total), threshold / static_cast<double>(q.total)};
  }
};

__device__ __forceinline__ Pair make_pair(const Shared& shared, const Logits& row, const PickRequest& request,
                                          unsigned long long best, const Sampling& sampling,
                                          const Sampling& draft_sampling) {
  const Logits drafts{request.draft_logits, request.draft_vocabulary, request.draft_banned, request.draft_banned_count};
  unsigned long long draft_best = 0;
  visit_ids(drafts, threadIdx.x, drafts.size, kBlock, [&](int id, float logit) {
    const unsigned long long rank = drafts.is_banned(id) ? 0 : ranked(logit, id);
    draft_best = rank > draft_best ? rank : draft_best;
  });
  draft_best = block_reduce<Largest>(draft_best, shared.scratch);
  const Distribution p = make_distribution(shared, row, sampling, logit_of(best), id_of(best));
  const Distribution q = make_distribution(shared, drafts, draft_sampling, logit_of(draft_best), id_of(draft_best));
  return {p, q};
}

// Rejection sampling (Check::kRejection): sets result.passed, and where that is false draws result.id. Where nothing is
// left after rounding, the draw is from p.
__device__ __forceinline__ void reject_or_resample(const Shared& shared, const Logits& row, const PickRequest& request,
                                                   unsigned long long best, double lenience, PickResult& result) {
  const Pair pair = make_pair(shared, row, request, best, request.sampling, request.draft_sampling);
  const Residual residual = pair.residual(lenience);
  const double p_of_draft = static_cast<double>(pair.p(request.draft)) * residual.of_p;
  const double q_of_draft = static_cast<double>(pair.q(request.draft)) * residual.of_q;
  result.passed = request.accept_uniform * q_of_draft <= p_of_draft;
  if (!result.passed) {
    const int size = row.size < pair.q.logits.size ? row.size : pair.q.logits.size;
    result.id = draw(shared, residual, size, request.uniform);
    if (result.id < 0) result.id = draw(shared, pair.p, row.size, request.uniform);
  }
}

// max q >= max p - threshold TV(p, q) at temperature 1: a cascade leaves the token to the student.
__device__ __forceinline__ bool student_decides(const Shared& shared, const Logits& row, const PickRequest& request,
                                                unsigned long long best) {
  const Sampling plain{1.0f, 0, 1.0f};
  const Pair pair = make_pair(shared, row, request, best, plain, plain);
  const Residual residual = pair.residual(1.0);
  Mass apart = 0;
  visit_ids(residual, threadIdx.x, row.size, kBlock, [&](int id, float2 logits) { apart += residual(id, logits); });
  apart = block_reduce<Sum>(apart, shared.scratch);
  const double one = static_cast<double>(kOne);  // the likeliest id's mass
  return one * residual.of_q >= one * residual.of_p - request.threshold * (static_cast<double>(apart) / one);
}

__global__ void __launch_bounds__(kBlock)
    decide_kernel(const float* logits, int vocabulary, const PickRequest* requests, const KdtwSummary* summaries,
                  int chunks, const KdtwSift* sifts, PickResult* results) {
  KDTW_SHARED(Mass, bins, kBins);
  KDTW_SHARED(Mass, ranks, kKdtwFew);
  KDTW_SHARED(Mass, masses, kKdtwFew);
  KDTW_SHARED(Mass, scratch, kWarps);
  KDTW_SHARED(Mass, found, 2);
  const Shared shared{bins, scratch, found};
  const PickRequest request = requests[blockIdx.x];
  const Logits row = logits_of(logits + static_cast<size_t>(blockIdx.x) * vocabulary, vocabulary, request);
  summaries += static_cast<size_t>(blockIdx.x) * chunks;
  const Merged all = merge(summaries, chunks);
  PickResult result{id_of(all.best), 1, all.finite, 0.0f, 0.0f, 0.0f};
  if (all.finite) {
    const float best = logit_of(all.best);
    const bool there = request.draft >= 0 && request.draft < vocabulary;
    const float raw_draft = there ? row.values[request.draft] : kBanned;
    const float draft = there && !row.is_banned(request.draft) ? raw_draft : kBanned;
    if (request.want_confidence) result.confidence = 1.0f / all.allowed_sum;
    if (request.want_entropy) result.entropy = logf(all.allowed_sum) - all.allowed_weighted / all.allowed_sum;
    switch (request.check) {
      case Check::kNone:
        break;
      case Check::kScore:
        result.id = request.draft;
        break;
      case Check::kLenience:
        result.passed = request.threshold > DBL_MAX
                            ? request.draft == result.id
                            : static_cast<double>(draft) >= static_cast<double>(best) + request.threshold;
        break;
      case Check::kRejection:
        reject_or_resample(shared, row, request, all.best, request.threshold, result);
        break;
      case Check::kCascade:
        if (student_decides(shared, row, request, all.best)) break;  // result.passed
        if (request.sampling.temperature > 0.0f) {
          reject_or_resample(shared, row, request, all.best, 1.0, result);
        } else {
          result.passed = request.draft == result.id;
        }
        break;
      case Check::kTopK:
        result.passed = static_cast<double>(all.before) < request.threshold;
        break;
      case Check::kDivergence:
        result.passed = static_cast<double>(best + logf(all.allowed_sum) - draft) <= request.threshold;
        break;
    }
    const bool keeps_draft = request.check != Check::kNone && result.passed;
    const KdtwSampling sampling = kdtw_sampling(request.sampling, request.check);
    if (!keeps_draft && sampling != kKdtwGreedy && all.best != 0) {
      const KdtwSift* const sift = sampling == kKdtwCuts ? sifts + blockIdx.x : nullptr;
      if (chunks > kKdtwFew || (sift != nullptr && sift->open_count > kKdtwFew)) {  // this block does it alone
        const Distribution p = make_distribution(shared, row, request.sampling, best, id_of(all.best));
        result.id = draw(shared, p, vocabulary, request.uniform);
      } else {
        result.id = draw_sifted(shared, {ranks, masses}, row, request, best, summaries, chunks, sift);
      }
    }
    if (request.want_log_prob) {
      const float chosen = keeps_draft ? raw_draft : row.values[result.id];
      result.log_prob = chosen - all.log_normaliser;
    }
  }
  if (threadIdx.x == 0) results[blockIdx.x] = result;
}

}  // namespace

int32_t pick(const float* logits, int32_t vocabulary, const PickRequest* requests, int32_t count, KdtwSampling sampling,
             KdtwSummary* summaries, KdtwSift* sifts, PickResult* results, void* stream) {
  const int chunks = ceil_divide(vocabulary, kKdtwChunk);
  const dim3 spread(chunks, count), block(kBlock);
  if (sampling != kKdtwCuts) sifts = nullptr;
  KDTW_LAUNCH(summarise_kernel, spread, block, stream, logits, vocabulary, requests, summaries, sifts);
  if (sampling == kKdtwCuts)
    KDTW_LAUNCH(weigh_kernel, spread, block, stream, logits, vocabulary, requests, summaries, sifts);
  if (sampling != kKdtwGreedy)
    KDTW_LAUNCH(sift_kernel, spread, block, stream, logits, vocabulary, requests, summaries, sifts);
  KDTW_LAUNCH(decide_kernel, dim3(count), block, stream, logits, vocabulary, requests, summaries, chunks, sifts,
              results);
  return cudaGetLastError();
}

}  // namespace kdtw::cuda
