// One decision over the vocabulary on the CPU: bans, warping, greedy or sampled choice, and the tests
// that the accept rules ask for. Sampling walks the distribution in ascending id order (inverse CDF).
#include <algorithm>
#include <cmath>
#include <numeric>

#include "backend/cpu/cpu_backend.h"

namespace kdtw::cpu {
namespace {

// What a banned logit becomes: finite, so that it is no fault, and lower than any real one.
constexpr float kBanned = -3.4028235e38f;

struct Best {
  float logit;
  int id;
};

void ban(float* logits, int vocabulary, std::span<const int32_t> banned) {
  for (const int32_t id : banned)
    if (id < vocabulary) logits[id] = kBanned;
}

Best best_of(const Kernels& kernels, const float* logits, int vocabulary) {
  Best best;
  bool finite;
  kernels.argmax(logits, vocabulary, &best.logit, &best.id, &finite);
  return best;
}

// Turns logits (bans applied) into unnormalised probabilities in place, zero where the warp removes an
// id, and returns their sum.
double warp(const Kernels& kernels, float* logits, int vocabulary, const Sampling& sampling) {
  const Best best = best_of(kernels, logits, vocabulary);
  if (sampling.temperature == 0.0f) {
    std::fill(logits, logits + vocabulary, 0.0f);
    logits[best.id] = 1.0f;
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
  kernels.exp_scaled(logits, vocabulary, best.logit, inverse, logits);
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

// How many of the logits rank before `id`, ties by lowest id.
int rank_of(const float* logits, int vocabulary, int id) {
  int rank = 0;
  for (int i = 0; i < vocabulary; ++i) rank += logits[i] > logits[id] || (logits[i] == logits[id] && i < id);
  return rank;
}

// u * l * q(x) <= p(x); otherwise a draw from norm(max(0, p - l q)). Leaves p in `logits`.
void reject_or_resample(const Kernels& kernels, float* logits, int vocabulary, const PickRequest& request,
                        std::vector<float>& scratch, PickResult& result) {
  const int shared = std::min(vocabulary, request.draft_vocabulary);
  scratch.assign(request.draft_logits, request.draft_logits + request.draft_vocabulary);
  float* q = scratch.data();
  ban(q, request.draft_vocabulary, request.draft_banned);
  const double q_total = warp(kernels, q, request.draft_vocabulary, request.draft_sampling);
  const double p_total = warp(kernels, logits, vocabulary, request.sampling);
  const auto p_of = [&](int id) { return id < vocabulary ? logits[id] / p_total : 0.0; };
  const int x = request.draft;
  result.passed = request.accept_uniform * request.threshold * (q[x] / q_total) <= p_of(x);
  if (result.passed) return;
  double residual_total = 0.0;
  for (int i = 0; i < shared; ++i) {
    const double residual = std::max(0.0, p_of(i) - request.threshold * (q[i] / q_total));
    q[i] = static_cast<float>(residual);
    residual_total += q[i];
  }
  result.id = residual_total > 0.0 ? draw(q, shared, residual_total, request.uniform)
                                   : draw(logits, vocabulary, p_total, request.uniform);
}

}  // namespace

PickResult decide(const Kernels& kernels, float* logits, int vocabulary, const PickRequest& request,
                  std::vector<float>& scratch) {
  PickResult result;
  Best best;
  kernels.argmax(logits, vocabulary, &best.logit, &best.id, &result.finite);
  if (!result.finite) return result;
  if (request.keep_logits) std::copy(logits, logits + vocabulary, request.keep_logits);

  double log_normaliser = 0.0;
  float raw_draft = 0.0f;
  if (request.want_log_prob) {
    log_normaliser = best.logit + std::log(kernels.sum_exp(logits, vocabulary, best.logit));
    if (request.draft >= 0) raw_draft = logits[request.draft];
  }
  if (request.check == Check::kScore) {
    result.id = request.draft;
    result.log_prob = static_cast<float>(raw_draft - log_normaliser);
    return result;
  }
  // The chosen token's raw logit must survive warping, which works in place.
  std::vector<float> raw;
  const bool warps = request.sampling.temperature > 0.0f || request.check == Check::kRejection;
  if (request.want_log_prob && warps) raw.assign(logits, logits + vocabulary);

  if (!request.banned.empty()) {
    ban(logits, vocabulary, request.banned);
    best = best_of(kernels, logits, vocabulary);
  }
  double log_allowed = 0.0;  // log-normaliser over the ids that are not banned
  if (request.want_confidence || request.check == Check::kDivergence) {
    log_allowed = std::log(kernels.sum_exp(logits, vocabulary, best.logit));
    result.confidence = static_cast<float>(std::exp(-log_allowed));
  }
  result.id = best.id;
  switch (request.check) {
    case Check::kNone:
    case Check::kScore:
      break;
    case Check::kLenience:
      result.passed = request.threshold >= 1.0 ? request.draft == best.id
                                               : logits[request.draft] >= best.logit + std::log(request.threshold);
      break;
    case Check::kTopK:
      result.passed = rank_of(logits, vocabulary, request.draft) < request.threshold;
      break;
    case Check::kDivergence:
      result.passed = best.logit + log_allowed - logits[request.draft] <= request.threshold;
      break;
    case Check::kRejection:
      reject_or_resample(kernels, logits, vocabulary, request, scratch, result);
      break;
  }
  const bool passed_draft = request.check != Check::kNone && result.passed;
  if (warps && request.check != Check::kRejection && !passed_draft) {
    const double total = warp(kernels, logits, vocabulary, request.sampling);
    result.id = draw(logits, vocabulary, total, request.uniform);
  }
  if (request.want_log_prob) {
    const int id = passed_draft ? request.draft : result.id;
    result.log_prob = static_cast<float>((raw.empty() ? logits[id] : raw[id]) - log_normaliser);
  }
  return result;
}

}  // namespace kdtw::cpu
