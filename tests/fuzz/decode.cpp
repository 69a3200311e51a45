// Any method with any options over rows that come and go, with a tiny pair: outputs that keep every promise, or
// std::invalid_argument. Ids lie in the vocabulary and options in the ranges that kdtw_fast checks before.
#include <algorithm>
#include <memory>

#include "../../tests/fuzz/bytes.h"
#include "core/error.h"
#include "decode/session.h"

namespace kdtw::fuzz {
namespace {

constexpr int kVocabulary = 11, kEnd = 1, kTau = 10;

std::shared_ptr<const Transformer> tiny(bool has_encoder, bool student, int rows) {
  Config config;
  config.vocabulary = rows;
  StackConfig& stack = config.decoder;
  stack.layers = 1, stack.model_size = 6, stack.heads = 2, stack.key_heads = 1, stack.head_size = 3;
  stack.feed_forward = 8, stack.activation = {Function::kSilu, true};
  if (has_encoder) config.encoder = stack;
  config.teachers = student ? 1 : 0;
  uint32_t state = 7 + rows + 2 * has_encoder;
  const TensorSource tensors = [&](const std::string&, int rows, int columns) -> std::optional<Tensor> {
    auto values = std::make_shared<std::vector<float>>(static_cast<size_t>(rows) * std::max(columns, 1));
    for (float& value : *values) {
      state = state * 1664525u + 1013904223u;
      value = static_cast<float>(static_cast<int32_t>(state)) * 0x1p-30f;
    }
    return Tensor{*values, values};
  };
  const Backend backend = make_backend("cpu", 1);
  return std::make_shared<Transformer>(*backend.operations, config, tensors);
}

Sampling sampling(Bytes& bytes) {
  if (bytes.ConsumeBool()) return {};
  const float temperature = bytes.rarely() ? bytes.PickValueInArray({1e-30f, 1e-20f, 1e30f, 3e38f})
                                           : bytes.ConsumeFloatingPointInRange(0.1f, 3.0f);
  return {temperature, bytes.ConsumeBool() ? bytes.size(1, 12) & 0x7fffffff : 0,
          bytes.ConsumeBool() ? bytes.ConsumeFloatingPointInRange(1e-7f, 1.0f) : 1.0f};
}

std::shared_ptr<const TokenRules> rules(Bytes& bytes, int most) {
  auto rules = std::make_shared<TokenRules>();
  for (int i = bytes.small(0, 3); i > 0; --i)
    rules->sequences.push_back(
        {bytes.ids(1, 3, kVocabulary), bytes.ConsumeBool() ? -INFINITY : bytes.ConsumeFloatingPointInRange(-9.f, 9.f)});
  for (int i = bytes.small(0, 2); i > 0; --i)
    rules->early.push_back({bytes.small(0, kVocabulary - 1), bytes.small(0, most)});
  if (bytes.ConsumeBool()) rules->repetition_penalty = bytes.ConsumeFloatingPointInRange(0.01f, 9.0f);
  rules->no_repeat_ngram = bytes.small(0, 3);
  if (bytes.ConsumeBool()) rules->forced_end = kEnd, rules->last = most - 1;
  return rules;
}

RowOptions row_options(Bytes& bytes, int most) {
  RowOptions options;
  options.max_new_tokens = bytes.small(1, most);
  options.min_new_tokens = bytes.small(0, options.max_new_tokens);
  options.forced_tokens = bytes.ids(0, std::min(2, options.max_new_tokens), kTau);
  options.student_sampling = sampling(bytes), options.teacher_sampling = sampling(bytes);
  options.seed = bytes.ConsumeIntegral<uint64_t>();
  if (bytes.rarely()) options.max_seconds = bytes.PickValueInArray({1e-9, 1e-5, 1e300});
  if (bytes.ConsumeBool()) options.rules = rules(bytes, options.max_new_tokens);
  options.stops.tokens = bytes.ids(0, 2, kVocabulary);
  if (bytes.rarely()) {
    const int at = bytes.small(-1, 3);
    options.stops.find = std::make_shared<const FindStop>(
        [at](std::span<const int32_t> outputs) { return static_cast<int>(outputs.size()) > at ? at : -1; });
  }
  return options;
}

Ledger ledger(Bytes& bytes) {
  Ledger ledger;
  if (bytes.ConsumeBool()) ledger.max_calls = bytes.small(0, 4);
  if (bytes.ConsumeBool()) ledger.max_fraction = bytes.ConsumeFloatingPointInRange(0.0, 1.0);
  return ledger;
}

MethodRules method(Bytes& bytes) {
  MethodRules rules;
  const int kind = bytes.small(0, 7);
  rules.two_models = kind > 1;
  rules.teacher_alone = kind == 1;
  if (kind < 2) return rules;
  rules.marks_teacher = bytes.ConsumeBool();
  const double threshold = bytes.ConsumeFloatingPointInRange(0.0, 1.0);
  if (kind == 2) rules.call.on_tau = true;
  if (kind == 3) rules.call.max_uniform = threshold;
  if (kind == 4) rules.call.max_entropy = 3 * threshold;
  if (kind == 5) rules.call.min_confidence = threshold;
  if (kind > 5) {
    rules.call.draft_length = bytes.small(1, 5);
    rules.accept.checks_all = kind == 6 || bytes.ConsumeBool();
    rules.accept.teacher_continues = bytes.ConsumeBool();
  }
  constexpr Check kChecks[] = {Check::kLenience, Check::kRejection, Check::kTopK, Check::kDivergence, Check::kCascade};
  if (rules.accept.checks_all || bytes.ConsumeBool()) rules.accept.check = bytes.PickValueInArray(kChecks);
  rules.accept.threshold = rules.accept.check == Check::kTopK ? bytes.small(1, 12) : std::max(threshold, 1e-3);
  return rules;
}

void run(Bytes& bytes) {
  static const std::shared_ptr<const Transformer> students[] = {tiny(false, true, 11), tiny(true, true, 11)};
  static const std::shared_ptr<const Transformer> teachers[] = {tiny(false, false, 10), tiny(true, false, 10)};
  auto decoder = std::make_shared<Decoder>();
  decoder->device = "cpu";
  decoder->method = method(bytes);
  decoder->student = students[bytes.small(0, 1)];
  if (decoder->method.two_models) decoder->teachers = {teachers[bytes.small(0, 1)]};
  decoder->special = {.start = 0, .end = {kEnd}, .tau = {kTau}};
  if (bytes.ConsumeBool()) decoder->special.end.push_back(bytes.small(2, 9));
  decoder->vocabulary = kTau;
  const int most = bytes.small(1, 9);
  SessionOptions options;
  options.row = row_options(bytes, most);
  options.row.max_new_tokens = most;
  options.row.min_new_tokens = std::min(options.row.min_new_tokens, most);
  options.teacher_batch = bytes.small(0, 2);
  options.want_log_probs = bytes.ConsumeBool(), options.want_reads = bytes.ConsumeBool();
  options.threads = 1;
  const int slots = bytes.small(1, 3), longest = bytes.small(1, 5);
  Session session(decoder, options, slots, longest);
  const Poll poll = [] {};
  std::vector<Ledger> ledgers;
  std::vector<std::vector<int32_t>> streamed;
  const TokenStream stream = [&](std::span<const SettledToken> settled) {
    for (const auto& [row, position, token, owner] : settled) {
      hold(position == static_cast<int>(streamed[row].size()));
      streamed[row].push_back(token);
    }
  };
  const bool streams = bytes.ConsumeBool();
  int running = 0;
  for (int turn = bytes.small(1, 5); turn > 0; --turn) {
    while (session.free_slots() > 0 && bytes.ConsumeBool()) {
      std::optional<RowOptions> own;
      if (bytes.ConsumeBool()) own = row_options(bytes, most);
      if (own) own->min_new_tokens = std::max(own->min_new_tokens, 0);
      std::vector<std::vector<int32_t>> others;
      if (bytes.ConsumeBool()) others.push_back(bytes.ids(1, longest, kTau));
      ledgers.push_back(decoder->method.keeps_ledger() ? ledger(bytes) : Ledger());
      const int index = session.add(bytes.ConsumeIntegral<uint64_t>(), ledgers.back(), bytes.ids(1, longest, kTau),
                                    others, {}, own ? &*own : nullptr);
      hold(index == static_cast<int>(streamed.size()));
      streamed.emplace_back();
      ++running;
    }
    if (running > 0 && bytes.rarely()) running -= session.drop(bytes.small(0, static_cast<int>(streamed.size()) - 1));
    const Until until = static_cast<Until>(bytes.small(0, 2));
    for (const Row& row : session.run(until, poll, streams ? stream : TokenStream())) {
      --running;
      hold(row.finish != Finish::kRunning);
      if (row.finish == Finish::kFault) continue;
      hold(row.outputs() >= 0 && row.outputs() <= row.options.max_new_tokens);
      hold(row.owners.size() == row.tokens.size() && row.teacher_index.size() == row.tokens.size());
      for (const int32_t token : row.tokens) hold(token >= 0 && token < kTau);
      if (streams)
        hold(std::equal(row.tokens.begin() + 1, row.tokens.end(), streamed[row.index].begin(),
                        streamed[row.index].end()));
      const auto written = std::count_if(row.owners.begin(), row.owners.end(), written_by_teacher);
      if (ledgers[row.index].bounds()) {
        hold(written <= ledgers[row.index].max_calls);
        hold(written <= ledgers[row.index].max_fraction * row.outputs() + 1e-6);
      }
    }
  }
}

}  // namespace
}  // namespace kdtw::fuzz

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  kdtw::fuzz::Bytes bytes(data, size);
  try {
    kdtw::fuzz::run(bytes);
  } catch (const std::invalid_argument&) {
  }
  return 0;
}
