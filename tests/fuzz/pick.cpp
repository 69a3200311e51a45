// Any logits and any request: a decision for an id that may be picked, the same alone and in company.
#include <algorithm>
#include <cmath>
#include <memory>

#include "../../tests/fuzz/bytes.h"
#include "backend/operations.h"
#include "core/error.h"

namespace kdtw::fuzz {
namespace {

Sampling sampling(Bytes& bytes) {
  if (bytes.ConsumeBool()) return {};
  const float temperature =
      bytes.rarely() ? bytes.PickValueInArray({1e-30f, 1e-20f, 1e30f}) : bytes.ConsumeFloatingPointInRange(0.05f, 4.0f);
  return {temperature, bytes.ConsumeBool() ? bytes.small(1, 300) : 0,
          bytes.ConsumeBool() ? bytes.ConsumeFloatingPointInRange(1e-7f, 1.0f) : 1.0f};
}

std::vector<LogitEdit> edits(Bytes& bytes, int vocabulary) {
  std::vector<LogitEdit> edits;
  for (int id = bytes.small(0, 40); id < vocabulary && edits.size() < 4; id += bytes.small(1, 60))
    edits.push_back(
        {id, bytes.ConsumeFloatingPointInRange(-9.0f, 9.0f), bytes.ConsumeFloatingPointInRange(0.1f, 9.0f)});
  return edits;
}

void run(Bytes& bytes) {
  const int V = bytes.small(1, bytes.rarely() ? 400 : 40);
  std::vector<float> head = bytes.numbers(V);
  for (float& logit : head)  // edits do not make these overflow
    if (std::isfinite(logit)) logit = std::clamp(logit, -1e30f, 1e30f);
  std::vector<float> draft_logits = bytes.numbers(V);
  for (float& logit : draft_logits)  // a draft with others is at fault, and nobody checks it
    logit = std::isfinite(logit) ? std::clamp(logit, -1e30f, 1e30f) : 0.0f;
  const auto dtype = static_cast<DType>(bytes.small(0, 2));
  const std::vector<int32_t> banned = bytes.ids(0, 5, V), draft_banned = bytes.ids(0, 3, V);
  const auto edited = edits(bytes, V), draft_edited = edits(bytes, V);
  PickRequest request;
  request.banned = banned.data(), request.banned_count = static_cast<int32_t>(banned.size());
  request.draft_banned = draft_banned.data(), request.draft_banned_count = static_cast<int32_t>(draft_banned.size());
  request.edits = edited.data(), request.edit_count = static_cast<int32_t>(edited.size());
  request.draft_edits = draft_edited.data(), request.draft_edit_count = static_cast<int32_t>(draft_edited.size());
  request.sampling = sampling(bytes), request.draft_sampling = sampling(bytes);
  request.uniform = std::min(bytes.ConsumeProbability<double>(), 1 - 0x1p-53);
  request.accept_uniform = std::min(bytes.ConsumeProbability<double>(), 1 - 0x1p-53);
  request.check = static_cast<Check>(bytes.small(0, 6));
  if (request.check != Check::kNone) request.draft = bytes.small(0, V - 1);
  request.threshold = request.check == Check::kTopK ? bytes.small(1, V) : bytes.ConsumeFloatingPointInRange(0.0, 2.0);
  if (request.check == Check::kLenience) request.threshold = bytes.ConsumeBool() ? INFINITY : -request.threshold;
  if (needs_draft_logits(request.check)) request.draft_logits = draft_logits.data(), request.draft_vocabulary = V;
  if (bytes.rarely()) request.only = bytes.small(0, V - 1);
  request.want_log_prob = bytes.ConsumeBool(), request.want_confidence = bytes.ConsumeBool();
  request.want_entropy = bytes.ConsumeBool();
  const auto operations = make_cpu_operations(1);
  const float* const part = head.data();
  const auto weight = operations->pack(std::span(&part, 1), std::span(&V, 1), 1, dtype, WeightRole::kDecoder);
  // Alone, and between two others: a greedy one, and one that wants everything.
  PickRequest other;
  other.want_entropy = other.want_confidence = other.want_log_prob = 1, other.sampling = {1.0f, 5, 0.9f};
  const PickRequest requests[] = {{}, request, other};
  const float hidden[] = {-1.0f, 1.0f, 0.5f};
  PickResult results[3], result;
  operations->pick(*weight, hidden, requests, results);
  operations->pick(*weight, hidden + 1, std::span(&request, 1), std::span(&result, 1));
  hold(result.finite == results[1].finite);
  if (!result.finite) return;
  hold(result.id == results[1].id && result.passed == results[1].passed);
  hold(result.log_prob == results[1].log_prob && result.entropy == results[1].entropy);
  if (request.check == Check::kNone || (request.check != Check::kScore && !result.passed)) {  // a score names no id
    hold(result.id >= 0 && result.id < V);
    hold(request.only >= 0 ? result.id == request.only
                           : std::find(banned.begin(), banned.end(), result.id) == banned.end());
  }
  if (request.want_confidence) hold(result.confidence >= 0.0f && result.confidence <= 1.0001f);
  if (request.want_entropy) hold(result.entropy >= -1e-3f && result.entropy <= std::log(float(V)) + 1e-3f);
  if (request.want_log_prob) hold(result.log_prob <= 1e-3f);
}

}  // namespace
}  // namespace kdtw::fuzz

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  kdtw::fuzz::Bytes bytes(data, size);
  kdtw::fuzz::run(bytes);
  return 0;
}
