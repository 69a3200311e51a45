// What int8 loses in a model's weights: its passes over a few tokens, with operations that measure.
#include <algorithm>
#include <cmath>
#include <numeric>

#include "model/transformer.h"

namespace kdtw {
namespace {

constexpr int kMostIds = 4096;  // rows of the head that are looked at

}  // namespace

std::map<std::string, double> Transformer::int8_losses(const ProbeTokens& probe, const Poll& poll) const {
  const bool encodes = config_.has_encoder();
  for (const auto* ids : {&probe.source, &probe.tokens})
    for (const int32_t id : *ids)
      require(id >= 0 && id < config_.vocabulary, config_.name, ": the probe's token ", id,
              " is outside the vocabulary of ", config_.vocabulary);
  require(!probe.tokens.empty() && (!probe.source.empty() || !encodes), config_.name, ": the probe has no tokens");
  std::map<const Weight*, double> lost;
  const auto operations = make_measuring_operations(0, lost);
  const Listening listening(*operations, poll);
  const int source_room = encodes ? static_cast<int>(probe.source.size()) : 1, row = 0;
  // The last token is read, too, which of an output it is not.
  ModelState state(*this, 1, source_room, static_cast<int>(probe.tokens.size()) + 1);
  Workspace work;
  // Rows that only fill up a vocabulary may hold anything, and what is not finite spreads to all that see it: without
  // these tokens, unless there are no others.
  const auto finite = [&](const Stack& stack, const std::vector<int32_t>& ids) {
    const int count = static_cast<int>(ids.size()), M = config_of(stack).model_size;
    std::vector<TokenAt> places;
    for (int t = 0; t < count; ++t) places.push_back({row, t, t + 1});
    work.reserve(*operations, config_, count);
    embed(*operations, stack, work, {ids, {}, places, places, {}});
    std::vector<int32_t> found;
    for (int t = 0; t < count; ++t)
      if (std::ranges::all_of(std::span(work.hidden + static_cast<size_t>(t) * M, M),
                              [](float x) { return std::isfinite(x); }))
        found.push_back(ids[t]);
    return found.empty() ? ids : found;
  };
  const std::vector<int32_t> tokens = finite(decoder_, probe.tokens);
  const int T = static_cast<int>(tokens.size());
  // Without an encoder the first token is the prompt: then the decoder reads all others, and it, in one pass.
  const std::vector<int32_t> source = encodes ? finite(encoder_, probe.source) : std::vector{tokens[0]};
  open(*operations, state, work, std::span(&row, 1), std::span(&source, 1), poll);
  std::vector<InputToken> pass;
  for (int t = 0; t < T; ++t) pass.push_back({tokens[t], row, t, 0});
  std::vector<int32_t> wanted(T);
  std::iota(wanted.begin(), wanted.end(), 0);
  TokenLists lists;
  decode(*operations, state, work, list(state, pass, wanted, lists), poll);
  const auto some = head().first(std::min(head().outputs, kMostIds));
  const Buffer logits = operations->allocate(static_cast<size_t>(T) * some->outputs);
  operations->linear(*some, work.gathered, T, logits.data, false);
  std::map<std::string, double> named;
  for (size_t i = 0; i < weights_.size(); ++i) {
    const Weight* const weight = weights_[i] == &head() ? some.get() : weights_[i];
    if (const auto found = lost.find(weight); found != lost.end()) named[names_[i]] = found->second;
  }
  return named;
}

}  // namespace kdtw
