// Edits, bans, warping, greedy or sampled choice, and the tests that the accept rules ask for. Sampling walks the
// distribution in ascending id order (inverse CDF): first over chunks, then within one.
#include "backend/cpu/pick.h"

#include <algorithm>
#include <cfloat>
#include <cmath>
#include <numeric>
#include <vector>

namespace kdtw::cpu {
namespace {

// What a banned logit becomes: finite, so that it is no fault, and lower than any real one.
constexpr float kBanned = -3.4028235e38f;

// What a request says of the logits of one distribution.
struct Edited {
  std::span<const LogitEdit> edits;
  std::span<const int32_t> banned;
  int32_t only;

  bool is_banned(int id) const {
    return only >= 0 ? id != only : std::find(banned.begin(), banned.end(), id) != banned.end();
  }
  // The logit of one id.
  float operator()(int id, float logit) const {
    if (is_banned(id)) return kBanned;
    const auto edit =
        std::lower_bound(edits.begin(), edits.end(), id, [](const LogitEdit& e, int wanted) { return e.id < wanted; });
    return edit != edits.end() && edit->id == id ? changed(*edit, logit) : logit;
  }
  // Edits and bans logits [count] of ids first, first + 1, ...; true if any of them may have changed.
  bool apply(float* logits, int first, int count) const {
    if (only >= 0) {
      for (int i = 0; i < count; ++i)
        if (first + i != only) logits[i] = kBanned;
      return true;
    }
    bool any = false;
    auto edit = std::lower_bound(edits.begin(), edits.end(), first,
                                 [](const LogitEdit& e, int wanted) { return e.id < wanted; });
    for (; edit != edits.end() && edit->id < first + count; ++edit, any = true)
      logits[edit->id - first] = changed(*edit, logits[edit->id - first]);
    for (const int32_t id : banned) {
      if (id < first || id >= first + count) continue;
      logits[id - first] = kBanned;
      any = true;
    }
    return any;
  }

 private:
  static float changed(const LogitEdit& edit, float logit) {
    logit += edit.bias;
    return logit < 0.0f ? logit * edit.penalty : logit / edit.penalty;
  }
};

Edited edited_in(const PickRequest& request) {
  return {{request.edits, static_cast<size_t>(request.edit_count)},
          {request.banned, static_cast<size_t>(request.banned_count)},
          request.only};
}

Edited draft_edited_in(const PickRequest& request) {
  return {{request.draft_edits, static_cast<size_t>(request.draft_edit_count)},
          {request.draft_banned, static_cast<size_t>(request.draft_banned_count)},
          request.draft_only};
}

// Turns logits (edits and bans applied) into unnormalised probabilities in place, zero where the warp removes an
// id, and returns their sum.
double warp(const Kernels& kernels, float* logits, int vocabulary, const Sampling& sampling) {
  float best;
  int best_id;
  bool finite;
  kernels.argmax(logits, vocabulary, &best, &best_id, &finite);
  if (sampling.temperature == 0.0f) {
    std::fill(logits, logits + vocabulary, 0.0f);
    logits[best_id] = 1.0f;
    return 1.0;
  }
  std::vector<int32_t> order;
  const auto larger = [&](int32_t a, int32_t b) { return logits[a] != logits[b] ? logits[a] > logits[b] : a < b; };
  const bool cut_k = sampling.top_k > 0 && sampling.top_k < vocabulary;
  if (cut_k) {
    order.resize(vocabulary);
    std::iota(order.begin(), order.end(), 0);
    std::nth_element(order.begin(), order.begin() + (sampling.top_k - 1), order.end(), larger);
    for (int i = sampling.top_k; i < vocabulary; ++i) logits[order[i]] = kBanned;
    order.resize(sampling.top_k);
  }
  const float inverse = 1.0f / sampling.temperature;
  std::vector<uint8_t> removed(vocabulary, 0);
  for (int i = 0; i < vocabulary; ++i) removed[i] = logits[i] == kBanned;
  kernels.exp_scaled(logits, vocabulary, best, inverse, logits);
  double total = 0.0;
  for (int i = 0; i < vocabulary; ++i) {
    if (removed[i]) logits[i] = 0.0f;
    total += logits[i];
  }
  if (sampling.top_p < 1.0f) {
    if (!cut_k) {
      order.resize(vocabulary);
      std::iota(order.begin(), order.end(), 0);
    }
    std::sort(order.begin(), order.end(), larger);
    const double enough = sampling.top_p * total;
    double kept = 0.0;
    size_t n = 0;
    while (n < order.size() && (n == 0 || kept < enough)) kept += logits[order[n++]];
    for (; n < order.size(); ++n) logits[order[n]] = 0.0f;
    total = 0.0;
    for (int i = 0; i < vocabulary; ++i) total += logits[i];
  }
  return total;
}

int draw(const float* weights, int size, double total, double uniform) {
  const double target = uniform * total;
  double sum = 0.0;
  int last = -1;
  for (int i = 0; i < size; ++i) {
    if (weights[i] <= 0.0f) continue;
    sum += weights[i];
    last = i;
    if (sum > target) return i;
  }
  return last;
}

// max q >= max p - threshold TV(p, q) at temperature 1: a cascade leaves the token to the student.
bool student_decides(const Kernels& kernels, const float* all_logits, int vocabulary, const PickRequest& request,
                     PickWeights& memory) {
  auto& [p, q] = memory;
  p.assign(all_logits, all_logits + vocabulary);
  q.assign(request.draft_logits, request.draft_logits + request.draft_vocabulary);
  edited_in(request).apply(p.data(), 0, vocabulary);
  draft_edited_in(request).apply(q.data(), 0, request.draft_vocabulary);
  const Sampling plain{.temperature = 1.0f};
  const double q_total = warp(kernels, q.data(), request.draft_vocabulary, plain);
  const double p_total = warp(kernels, p.data(), vocabulary, plain);
  double apart = 0.0;
  for (int i = 0; i < vocabulary; ++i)
    apart += std::max(0.0, p[i] / p_total - (i < request.draft_vocabulary ? q[i] / q_total : 0.0));
  return 1.0 / q_total >= 1.0 / p_total - request.threshold * apart;  // the likeliest id's weight is 1
}

// u * l * q(x) <= p(x); otherwise a draw from norm(max(0, p - l q)). Sets result.id and result.passed.
void reject_or_resample(const Kernels& kernels, const float* all_logits, int vocabulary, const PickRequest& request,
                        double lenience, PickResult& result, PickWeights& memory) {
  const int shared = std::min(vocabulary, request.draft_vocabulary), x = request.draft;
  auto& [p, q] = memory;
  p.assign(all_logits, all_logits + vocabulary);
  q.assign(request.draft_logits, request.draft_logits + request.draft_vocabulary);
  edited_in(request).apply(p.data(), 0, vocabulary);
  draft_edited_in(request).apply(q.data(), 0, request.draft_vocabulary);
  const double q_total = warp(kernels, q.data(), request.draft_vocabulary, request.draft_sampling);
  const double p_total = warp(kernels, p.data(), vocabulary, request.sampling);
  const auto p_of = [&](int id) { return id < vocabulary ? p[id] / p_total : 0.0; };
  result.passed = request.accept_uniform * lenience * (q[x] / q_total) <= p_of(x);
  if (result.passed) return;
  double residual_total = 0.0;
  for (int i = 0; i < shared; ++i) {
    q[i] = static_cast<float>(std::max(0.0, p_of(i) - lenience * (q[i] / q_total)));
    residual_total += q[i];
  }
  result.id = residual_total > 0.0 ? draw(q.data(), shared, residual_total, request.uniform)
                                   : draw(p.data(), vocabulary, p_total, request.uniform);
}

struct Picked {
  int id;
  float logit;
};

// A draw from the warped distribution over the whole vocabulary.
Picked sample_all(const Kernels& kernels, const float* all_logits, int vocabulary, const PickRequest& request,
                  PickWeights& memory) {
  std::vector<float>& weights = memory.teacher;
  weights.assign(all_logits, all_logits + vocabulary);
  edited_in(request).apply(weights.data(), 0, vocabulary);
  const double total = warp(kernels, weights.data(), vocabulary, request.sampling);
  const int id = draw(weights.data(), vocabulary, total, request.uniform);
  return {id, all_logits[id]};
}

// out[c] = exp((top of chunk c - largest) * scale): what brings the sums of the chunks to one scale.
template <typename Top>
std::vector<float> chunk_factors(const Kernels& kernels, std::span<const ChunkSummary> chunks, Top&& top, float largest,
                                 float scale) {
  std::vector<float> factors(chunks.size());
  std::transform(chunks.begin(), chunks.end(), factors.begin(), top);
  kernels.exp_scaled(factors.data(), static_cast<int>(factors.size()), largest, scale, factors.data());
  return factors;
}

// A draw at a temperature, nothing cut: the chunk by its share, then the id by its share of that chunk.
Picked sample_chunks(const Kernels& kernels, const PickRequest& request, int vocabulary, float best,
                     std::span<const ChunkSummary> chunks, const RecomputeChunk& recompute) {
  const float inverse = 1.0f / request.sampling.temperature;
  const auto factors =
      chunk_factors(kernels, chunks, [](const ChunkSummary& chunk) { return chunk.top; }, best, inverse);
  double total = 0.0;
  for (size_t c = 0; c < chunks.size(); ++c) total += chunks[c].warped_sum * factors[c];
  const double target = request.uniform * total;
  // Where rounding leaves no chunk, and below no id, the last one that has a share.
  int chosen = 0;
  double before = 0.0, sum = 0.0;
  for (size_t c = 0; c < chunks.size() && sum <= target; ++c) {
    const double share = chunks[c].warped_sum * factors[c];
    if (share <= 0.0) continue;
    chosen = static_cast<int>(c), before = sum;
    sum += share;
  }
  const int first = chosen * kVocabularyChunk, count = std::min(kVocabularyChunk, vocabulary - first);
  float logits[kVocabularyChunk], edited[kVocabularyChunk], weights[kVocabularyChunk];
  recompute(chosen, logits);
  std::copy(logits, logits + count, edited);
  edited_in(request).apply(edited, first, count);
  kernels.exp_scaled(edited, count, chunks[chosen].top, inverse, weights);
  for (int i = 0; i < count; ++i)
    if (edited[i] == kBanned) weights[i] = 0.0f;
  const int i = draw(weights, count, 1.0, (target - before) / factors[chosen]);
  return {first + i, logits[i]};
}

// What the chunks say together.
struct Summary {
  bool finite = true;
  float best;                   // the largest logit that is not banned, edited
  float raw = 0.0f;             // that logit as it was
  int id = -1;                  // its id, the lowest on ties
  int before_draft = 0;         // how many rank before the draft
  double log_normaliser = 0.0;  // over all ids
  double log_allowed = 0.0;     // over the ids that are not banned
  double entropy = 0.0;         // of their distribution
};

bool wants_allowed_sum(const PickRequest& request) {
  return request.want_confidence || request.want_entropy || request.check == Check::kDivergence;
}

// Chunks in ascending order, so that ties go to the lowest id and sums have one order.
Summary merge(const Kernels& kernels, const PickRequest& request, std::span<const ChunkSummary> chunks) {
  Summary all;
  float raw_best = chunks[0].raw_top;
  for (const auto& chunk : chunks) {
    if (!chunk.finite) return {.finite = false, .best = 0.0f};
    if (all.id < 0 || chunk.top > all.best) all.best = chunk.top, all.raw = chunk.raw, all.id = chunk.id;
    raw_best = std::max(raw_best, chunk.raw_top);
    all.before_draft += chunk.before;
  }
  const auto log_sum = [&](auto top, auto sum, float largest) {
    const auto factors = chunk_factors(kernels, chunks, top, largest, 1.0f);
    double total = 0.0;
    for (size_t c = 0; c < chunks.size(); ++c) total += sum(chunks[c]) * factors[c];
    return largest + std::log(total);
  };
  if (request.want_log_prob)
    all.log_normaliser = log_sum([](const ChunkSummary& chunk) { return chunk.raw_top; },
                                 [](const ChunkSummary& chunk) { return chunk.raw_sum; }, raw_best);
  if (wants_allowed_sum(request))
    all.log_allowed = log_sum([](const ChunkSummary& chunk) { return chunk.top; },
                              [](const ChunkSummary& chunk) { return chunk.allowed_sum; }, all.best);
  if (request.want_entropy) {  // log sum exp(x - best), less the mean of x - best
    const auto factors =
        chunk_factors(kernels, chunks, [](const ChunkSummary& chunk) { return chunk.top; }, all.best, 1.0f);
    double weighted = 0.0;
    for (size_t c = 0; c < chunks.size(); ++c) {
      const double below = double{chunks[c].top} - all.best;
      weighted += (chunks[c].allowed_weighted + below * chunks[c].allowed_sum) * factors[c];
    }
    const double log_sum = all.log_allowed - all.best;
    all.entropy = log_sum - weighted / std::exp(log_sum);
  }
  return all;
}

bool is_cut(const Sampling& sampling, int vocabulary) {
  return (sampling.top_k > 0 && sampling.top_k < vocabulary) || sampling.top_p < 1.0f;
}

bool may_sample(const PickRequest& request) {
  return request.sampling.temperature > 0.0f && request.check != Check::kScore && !needs_draft_logits(request.check);
}

}  // namespace

bool needs_all_logits(const PickRequest& request, int vocabulary) {
  return needs_draft_logits(request.check) || (may_sample(request) && is_cut(request.sampling, vocabulary));
}

ChunkSummary summarise(const Kernels& kernels, float* logits, int first, int count, int vocabulary,
                       const PickRequest& request, float draft_logit) {
  ChunkSummary chunk{};
  int best;
  kernels.argmax(logits, count, &chunk.raw_top, &best, &chunk.finite);
  if (!chunk.finite) return chunk;
  chunk.top = chunk.raw_top;
  if (request.draft >= first && request.draft < first + count) chunk.draft = logits[request.draft - first];
  if (request.want_log_prob) chunk.raw_sum = kernels.sum_exp(logits, count, chunk.raw_top, 1.0f);
  chunk.raw = chunk.raw_top;
  const Edited edited = edited_in(request);
  float raw[kVocabularyChunk];
  if (!edited.edits.empty()) std::copy(logits, logits + count, raw);
  if (edited.apply(logits, first, count)) {
    bool finite;
    kernels.argmax(logits, count, &chunk.top, &best, &finite);
    chunk.raw = edited.edits.empty() ? chunk.top : raw[best];
  }
  chunk.id = first + best;
  if (chunk.top > kBanned) {  // otherwise all of them are banned and have no share
    if (wants_allowed_sum(request)) chunk.allowed_sum = kernels.sum_exp(logits, count, chunk.top, 1.0f);
    if (request.want_entropy) chunk.allowed_weighted = kernels.sum_weighted_exp(logits, count, chunk.top);
    if (may_sample(request) && !is_cut(request.sampling, vocabulary))
      chunk.warped_sum = kernels.sum_exp(logits, count, chunk.top, 1.0f / request.sampling.temperature);
  }
  if (request.check == Check::kTopK) {
    draft_logit = edited(request.draft, draft_logit);
    // Lower ids than the draft's come before it on a tie. Two plain loops, because those the compiler vectorises.
    const int lower = std::clamp(request.draft - first, 0, count);
    int before = 0;
    for (int i = 0; i < lower; ++i) before += logits[i] >= draft_logit;
    for (int i = lower; i < count; ++i) before += logits[i] > draft_logit;
    chunk.before = before;
  }
  return chunk;
}

void rank(const Kernels& kernels, const PickRequest& request, int vocabulary, std::span<const ChunkSummary> chunks,
          const float* logits) {
  const Summary all = merge(kernels, request, chunks);
  if (!all.finite) return;
  std::vector<int32_t> ids(vocabulary);
  std::iota(ids.begin(), ids.end(), 0);
  const int count = std::min<int>(request.top_count, vocabulary);
  std::partial_sort(ids.begin(), ids.begin() + count, ids.end(),
                    [logits](int32_t a, int32_t b) { return logits[a] != logits[b] ? logits[a] > logits[b] : a < b; });
  for (int i = 0; i < count; ++i) request.top[i] = {ids[i], static_cast<float>(logits[ids[i]] - all.log_normaliser)};
}

PickResult decide(const Kernels& kernels, const PickRequest& request, int vocabulary,
                  std::span<const ChunkSummary> chunks, const float* all_logits, const RecomputeChunk& recompute,
                  PickWeights& memory) {
  const Summary all = merge(kernels, request, chunks);
  PickResult result;
  result.finite = all.finite;
  if (!result.finite) return result;
  const bool none_left = all.best == kBanned;
  if (none_left && request.check != Check::kScore) {
    result.finite = 0, result.id = kNoneLeft;
    return result;
  }
  const bool has_draft = request.draft >= 0 && request.draft < vocabulary;
  const float raw_draft = has_draft ? chunks[request.draft / kVocabularyChunk].draft : kBanned;
  const float draft = has_draft ? edited_in(request)(request.draft, raw_draft) : kBanned;
  if (request.want_confidence && !none_left)
    result.confidence = static_cast<float>(std::exp(all.best - all.log_allowed));
  if (request.want_entropy && !none_left) result.entropy = static_cast<float>(all.entropy);

  result.id = all.id;
  float chosen = all.raw;  // the raw logit of what is picked
  switch (request.check) {
    case Check::kNone:
      break;
    case Check::kScore:
      result.id = request.draft;
      break;
    case Check::kLenience:
      result.passed = request.threshold > DBL_MAX ? request.draft == all.id : draft >= all.best + request.threshold;
      break;
    case Check::kTopK:
      result.passed = all.before_draft < request.threshold;
      break;
    case Check::kDivergence:
      result.passed = all.log_allowed - draft <= request.threshold;
      break;
    case Check::kRejection:
      reject_or_resample(kernels, all_logits, vocabulary, request, request.threshold, result, memory);
      chosen = all_logits[result.id];
      break;
    case Check::kCascade:
      if (student_decides(kernels, all_logits, vocabulary, request, memory)) break;  // result.passed
      if (request.sampling.temperature > 0) {
        reject_or_resample(kernels, all_logits, vocabulary, request, 1.0, result, memory);
      } else {
        result.passed = request.draft == all.id;
      }
      chosen = all_logits[result.id];
      break;
  }
  if (request.check != Check::kNone && result.passed) {
    chosen = raw_draft;
  } else if (may_sample(request)) {
    const Picked picked = all_logits ? sample_all(kernels, all_logits, vocabulary, request, memory)
                                     : sample_chunks(kernels, request, vocabulary, all.best, chunks, recompute);
    result.id = picked.id, chosen = picked.logit;
  }
  if (request.want_log_prob) result.log_prob = static_cast<float>(chosen - all.log_normaliser);
  return result;
}

}  // namespace kdtw::cpu
