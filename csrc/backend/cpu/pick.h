// Decisions over a vocabulary whose logits are not kept: they come in chunks, each chunk of a request's logits is
// reduced to a summary, and the summaries decide. Nothing here depends on the other requests or on the number of
// threads.
#pragma once

#include <functional>
#include <span>
#include <vector>

#include "backend/cpu/kernels.h"
#include "backend/operations.h"

namespace kdtw::cpu {

// The vocabulary is always cut here: what is added up over it is added up in the same order.
inline constexpr int kVocabularyChunk = kGroup * kPanel;

// One request's logits in one chunk. Sums are there when the request asks for something made of them, otherwise 0.
struct ChunkSummary {
  bool finite;              // no logit is NaN or infinite; if one is, nothing else is valid
  int32_t id;               // of the largest logit that is not banned, the lowest on ties
  float top;                // that logit, edited
  float raw;                // that logit as it was
  float raw_top;            // the largest logit, banned or not, before edits
  float draft;              // the draft's logit, banned or not, before edits; valid in the draft's chunk
  int32_t before;           // how many rank before the draft (kTopK)
  double raw_sum;           // of exp(x - raw_top)
  double allowed_sum;       // of exp(x - top) over the ids that are not banned
  double allowed_weighted;  // of exp(x - top) (x - top) over the ids that are not banned
  double warped_sum;        // of exp((x - top) / temperature) over the ids that are not banned
};

// Whether the request is decided on the whole distribution: top-k, top-p and rejection sampling.
bool needs_all_logits(const PickRequest& request, int vocabulary);

// Summarises logits [count] of ids first, first + 1, ... out of `vocabulary`; overwrites what is edited or banned.
// draft_logit: the draft's, wherever it lies; only for kTopK.
ChunkSummary summarise(const Kernels& kernels, float* logits, int first, int count, int vocabulary,
                       const PickRequest& request, float draft_logit);

// Writes the raw logits of a chunk once more.
using RecomputeChunk = std::function<void(int chunk, float* logits)>;

// Memory for whole distributions, kept between requests. One thread uses it at a time.
struct PickWeights {
  std::vector<float> teacher, draft;
};

// Fills request.top from logits, raw, [vocabulary]; of equal ones the lower id comes first.
void rank(const Kernels& kernels, const PickRequest& request, int vocabulary, std::span<const ChunkSummary> chunks,
          const float* logits);

// Decides a request by the summaries of all chunks, in order. all_logits: raw, [vocabulary], where needs_all_logits;
// otherwise null.
PickResult decide(const Kernels& kernels, const PickRequest& request, int vocabulary,
                  std::span<const ChunkSummary> chunks, const float* all_logits, const RecomputeChunk& recompute,
                  PickWeights& weights);

}  // namespace kdtw::cpu
