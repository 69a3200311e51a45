// What int8 loses in a model's weights: its passes over a few tokens, with operations that measure.
#include <algorithm>
#include <numeric>

#include "model/transformer.h"

namespace kdtw {
namespace {

constexpr int kMostIds = 4096;  // rows of the head that are looked at

}  // namespace

std::map<std::string, double> Transformer::int8_losses(const ProbeTokens& probe, const Poll& poll) const {
  std::map<const Weight*, double> lost;
  const auto operations = make_measuring_operations(0, lost);
  const Listening listening(*operations, poll);
  // Without an encoder the first token is the prompt: then the decoder reads all others, and it, in one pass.
  const bool encodes = config_.has_encoder();
  const std::vector<int32_t> source = encodes ? probe.source : std::vector{probe.tokens.at(0)};
  const int T = static_cast<int>(probe.tokens.size()), row = 0;
  ModelState state(*this, 1, static_cast<int>(source.size()), T);
  Workspace work;
  open(*operations, state, work, std::span(&row, 1), std::span(&source, 1), poll);
  std::vector<InputToken> pass;
  for (int t = 0; t < T; ++t) pass.push_back({probe.tokens[t], row, t, 0});
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
