#include "model/config.h"

#include <cstdint>

namespace kdtw {
namespace {

void validate_stack(const std::string& model, const std::string& prefix, const StackConfig& stack) {
  const auto positive = [&](int value, const char* field) {
    require(value > 0, model, ": ", prefix, field, " must be positive, got ", value);
  };
  const auto fits = [&](int64_t times, int64_t one, int64_t other, const char* what) {
    const int64_t most = (int64_t{1} << 30) / times;  // held against by division: the product may have no 64 bits
    require(one <= 0 || other <= most / one, model, ": ", prefix, what, " are ", one, " and ", other, ": ", times,
            " times their product is more than 2^30");
  };
  positive(stack.model_size, "model_size");
  positive(stack.heads, "heads");
  positive(stack.key_heads, "key_heads");
  positive(stack.head_size, "head_size");
  positive(stack.feed_forward, "feed_forward");
  fits(3, stack.heads, stack.head_size, "heads and head_size");
  require(stack.feed_forward <= (1 << 29), model, ": ", prefix, "feed_forward must be at most 2^29, got ",
          stack.feed_forward);
  require(stack.heads % stack.key_heads == 0, model, ": ", prefix, "heads must be a multiple of key_heads, got ",
          stack.heads, " and ", stack.key_heads);
  require(stack.epsilon > 0.0f, model, ": ", prefix, "epsilon must be positive, got ", stack.epsilon);
  require(stack.bias_buckets == 0 || (stack.bias_buckets >= 4 && stack.bias_buckets % 2 == 0), model, ": ", prefix,
          "bias_buckets must be even and at least 4, got ", stack.bias_buckets);
  require(stack.bias_buckets == 0 || stack.bias_max_distance > stack.bias_buckets / 2, model, ": ", prefix,
          "bias_max_distance must exceed half the buckets (", stack.bias_buckets / 2, "), got ",
          stack.bias_max_distance);
  fits(2, stack.bias_max_distance, stack.heads, "bias_max_distance and heads");
  require(stack.rotary_pairs >= 0 && 2 * int64_t{stack.rotary_pairs} <= stack.head_size, model, ": ", prefix,
          "rotary_pairs must be 0 to half the head size of ", stack.head_size, ", got ", stack.rotary_pairs);
  require(stack.rotary_pairs == 0 || (stack.rotary_kinds() >= 1 && stack.rotary_kinds() <= 2), model, ": ", prefix,
          "rotary_scales must be of one or two kinds of frequencies, got ", stack.rotary_kinds());
  for (const int kind : stack.rotary_kind)
    require(kind < stack.rotary_kinds(), model, ": ", prefix, "rotary_kind names kind ", kind, " of ",
            stack.rotary_kinds());
  for (const auto* list : {&stack.windows, &stack.rotary_kind}) {
    require(list->empty() || list->size() == static_cast<size_t>(stack.layers), model, ": ", prefix,
            "windows and rotary_kind must have a value for each of the ", stack.layers, " layers, got ", list->size());
    for (const int value : *list)
      require(value >= 0, model, ": ", prefix, "windows and rotary_kind must not be negative, got ", value);
  }
  require(stack.positions >= 0 && stack.first_position >= 0 && stack.first_position <= stack.positions, model, ": ",
          prefix, "first_position must lie in the table of ", stack.positions, " positions, got ",
          stack.first_position);
}

}  // namespace

void Config::validate() const {
  require(vocabulary > 0, name, ": vocabulary must be positive, got ", vocabulary);
  require(decoder.layers > 0, name, ": decoder.layers must be positive, got ", decoder.layers);
  require(encoder.layers >= 0, name, ": encoder.layers must not be negative, got ", encoder.layers);
  validate_stack(name, "decoder.", decoder);
  if (has_encoder()) validate_stack(name, "encoder.", encoder);
  require(teachers >= 0 && teachers <= 32, name, ": a student has 1 to 32 teachers, got ", teachers);
  require(cache_dtype != DType::kInt8, name, ": keys and values are not cached in int8");
  require(kept.empty() || dtype == DType::kInt8, name, ": weights are kept in bf16 beside dtype int8 only");
}

}  // namespace kdtw
