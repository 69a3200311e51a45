#include "model/t5.h"

#include <algorithm>
#include <cmath>

namespace kdtw {
namespace {

// T5's bucket of a distance (key position - query position), as Hugging Face computes it in fp32.
int bias_bucket(int distance, bool bidirectional, int buckets, int max_distance) {
  int bucket = 0;
  if (bidirectional) {
    buckets /= 2;
    if (distance > 0) bucket += buckets;
    distance = std::abs(distance);
  } else {
    distance = std::max(-distance, 0);
  }
  const int exact = buckets / 2;
  if (distance < exact) return bucket + distance;
  const float ratio = std::log(static_cast<float>(distance) / static_cast<float>(exact)) /
                      static_cast<float>(std::log(static_cast<double>(max_distance) / exact));
  const int large = exact + static_cast<int>(ratio * static_cast<float>(buckets - exact));
  return bucket + std::min(large, buckets - 1);
}

}  // namespace

T5State::T5State(const T5& model, int rows, int source_capacity, int target_capacity)
    : weights(model.hold()),
      rows(rows),
      source_capacity(source_capacity),
      target_capacity(target_capacity),
      source_length(rows, 0) {}

void T5State::make_caches(Operations& operations, const T5Config& config) {
  if (!self.empty()) return;
  for (int i = 0; i < config.decoder_layers; ++i) {
    self.push_back(operations.make_cache(rows, config.heads, config.head_size, target_capacity, config.cache_dtype));
    cross.push_back(operations.make_cache(rows, config.heads, config.head_size, source_capacity, config.cache_dtype));
  }
}

void Workspace::reserve(Operations& operations, const T5Config& config, int tokens) {
  if (tokens <= tokens_) return;
  const size_t M = config.model_size, inner = config.inner();
  const size_t wide = std::max<size_t>(3 * inner, (config.gated() ? 2 : 1) * static_cast<size_t>(config.feed_forward));
  const size_t mixed_size = std::max<size_t>(inner, config.feed_forward);
  memory_ = operations.allocate(tokens * (3 * M + wide + mixed_size));
  hidden = memory_.data;
  normed = hidden + tokens * M;
  gathered = normed + tokens * M;
  projected = gathered + tokens * M;
  mixed = projected + tokens * wide;
  tokens_ = tokens;
}

T5::T5(Operations& operations, T5Config config, const TensorSource& tensors, const BlobSource& blobs)
    : config_(std::move(config)) {
  config_.validate();
  const int M = config_.model_size, I = config_.inner(), F = config_.feed_forward;

  const auto vector = [&](const std::string& name, int size, float factor = 1.0f) {
    const Tensor tensor = tensors(name, size, 0);
    Buffer buffer = operations.allocate(size);
    std::vector<float> scaled(tensor.values.begin(), tensor.values.end());
    for (float& value : scaled) value *= factor;
    operations.upload(buffer, scaled);
    return buffer;
  };
  // Stacks matrices of the same size into one weight, so that one product computes them all.
  const auto stack_as = [&](DType dtype, WeightRole role, std::initializer_list<std::string> names, int outputs,
                            int inputs) {
    const int count = static_cast<int>(names.size());
    std::unique_ptr<Weight> weight;
    if (blobs) {
      weight = operations.adopt(count * outputs, inputs, dtype, blobs());
    } else {
      std::vector<Tensor> held;
      std::vector<const float*> parts;
      for (const auto& name : names) {
        held.push_back(tensors(name, outputs, inputs));
        parts.push_back(held.back().values.data());
      }
      weight = operations.pack(parts, std::vector<int>(count, outputs), inputs, dtype, role);
    }
    weights_.push_back(weight.get());
    return weight;
  };
  const auto stack = [&](WeightRole role, std::initializer_list<std::string> names, int outputs, int inputs) {
    return stack_as(config_.dtype, role, names, outputs, inputs);
  };
  const auto attention = [&](WeightRole role, const std::string& prefix, const std::string& kind, bool cross) {
    Attention layer;
    const std::string base = prefix + "." + kind + ".";
    layer.norm = vector(prefix + ".layer_norm.weight", M);
    if (cross) {
      layer.query = stack(role, {base + "q.weight"}, I, M);
      layer.key_value = stack(WeightRole::kEncoder, {base + "k.weight", base + "v.weight"}, I, M);
    } else {
      layer.query_key_value = stack(role, {base + "q.weight", base + "k.weight", base + "v.weight"}, I, M);
    }
    layer.output = stack(role, {base + "o.weight"}, M, I);
    return layer;
  };
  const auto feed_forward = [&](WeightRole role, const std::string& prefix) {
    FeedForward layer;
    const std::string base = prefix + ".DenseReluDense.";
    layer.norm = vector(prefix + ".layer_norm.weight", M);
    layer.in = config_.gated() ? stack(role, {base + "wi_0.weight", base + "wi_1.weight"}, F, M)
                               : stack(role, {base + "wi.weight"}, F, M);
    layer.out = stack(role, {base + "wo.weight"}, M, F);
    return layer;
  };

  // An embedding that is no head is looked up and never multiplied: nothing is gained from int8 there, so it stays
  // closer to the checkpoint.
  const bool lookup_only = config_.has_head && config_.dtype == DType::kInt8;
  embedding_ = stack_as(lookup_only ? DType::kBf16 : config_.dtype, WeightRole::kDecoder, {"shared.weight"},
                        config_.vocabulary, M);
  if (config_.has_head) head_ = stack(WeightRole::kDecoder, {"lm_head.weight"}, config_.vocabulary, M);
  for (int i = 0; i < config_.encoder_layers; ++i) {
    const std::string prefix = concat("encoder.block.", i, ".layer.");
    encoder_.push_back({attention(WeightRole::kEncoder, prefix + "0", "SelfAttention", false),
                        feed_forward(WeightRole::kEncoder, prefix + "1")});
  }
  for (int i = 0; i < config_.decoder_layers; ++i) {
    const std::string prefix = concat("decoder.block.", i, ".layer.");
    decoder_.push_back({attention(WeightRole::kDecoder, prefix + "0", "SelfAttention", false),
                        attention(WeightRole::kDecoder, prefix + "1", "EncDecAttention", true),
                        feed_forward(WeightRole::kDecoder, prefix + "2")});
  }
  encoder_norm_ = vector("encoder.final_layer_norm.weight", M);
  // T5 v1.0 scales the decoder's output by M^-1/2: folded into the last norm.
  const float output_scale = config_.scale_outputs ? 1.0f / std::sqrt(static_cast<float>(M)) : 1.0f;
  decoder_norm_ = vector("decoder.final_layer_norm.weight", M, output_scale);
  const std::string bias = ".block.0.layer.0.SelfAttention.relative_attention_bias.weight";
  encoder_bias_ = expand_bias(operations, encoder_bias_table_,
                              tensors("encoder" + bias, config_.bias_buckets, config_.heads).values, true);
  decoder_bias_ = expand_bias(operations, decoder_bias_table_,
                              tensors("decoder" + bias, config_.bias_buckets, config_.heads).values, false);
  if (config_.has_mark) {
    const Tensor beta = tensors("teacher_token_embedding", config_.teachers > 1 ? config_.teachers : M,
                                config_.teachers > 1 ? M : 0);  // one teacher's is a vector
    mark_ = operations.allocate(beta.values.size());
    operations.upload(mark_, beta.values);
  }
}

void T5::update(Operations& operations, const TensorSource& tensors) {
  if (holds_.use_count() > 1)
    throw std::runtime_error(concat(config_.name, ": weights cannot change while the model decodes; end its ",
                                    "generate calls and close its streams first"));
  *this = T5(operations, config_, tensors);
}

size_t T5::bytes() const {
  size_t total = 0;
  for (const Weight* weight : weights_) total += weight->bytes();
  return total;
}

// The bias of every distance up to the last that has a bucket of its own; farther ones share it.
PositionBias T5::expand_bias(Operations& operations, Buffer& to, std::span<const float> buckets,
                             bool bidirectional) const {
  const int lowest = config_.bias_max_distance, highest = bidirectional ? lowest : 0, H = config_.heads;
  const int width = lowest + highest + 1;
  std::vector<float> table(static_cast<size_t>(H) * width);
  for (int distance = -lowest; distance <= highest; ++distance) {
    const int bucket = bias_bucket(distance, bidirectional, config_.bias_buckets, config_.bias_max_distance);
    for (int h = 0; h < H; ++h) table[static_cast<size_t>(h) * width + distance + lowest] = buckets[bucket * H + h];
  }
  to = operations.allocate(table.size());
  operations.upload(to, table);
  return {to.data, lowest, highest};
}

void T5::feed_forward(Operations& operations, Workspace& work, const FeedForward& layer, int tokens) const {
  operations.norm_linear_activate(*layer.in, config_.activation, work.hidden, layer.norm.data, config_.epsilon, tokens,
                                  work.normed, work.projected, work.mixed);
  operations.linear(*layer.out, work.mixed, tokens, work.hidden, true);
}

void T5::encode(Operations& operations, T5State& state, Workspace& work, std::span<const int> rows,
                std::span<const std::vector<int32_t>> sources, const Poll& poll) const {
  const int M = config_.model_size, I = config_.inner();
  state.make_caches(operations, config_);
  for (size_t first = 0; first < rows.size();) {
    // As many whole rows as fit a pass, at least one: attention needs a whole row.
    size_t last = first;
    int count = 0, longest = 0;
    while (last < rows.size() && (last == first || count + static_cast<int>(sources[last].size()) <= kMostTokens)) {
      count += static_cast<int>(sources[last].size());
      longest = std::max(longest, static_cast<int>(sources[last].size()));
      ++last;
    }
    const int group = static_cast<int>(last - first);
    std::vector<int32_t> ids;
    std::vector<TokenAt> local, target;  // places in the pass's own cache, and in the state's
    for (int i = 0; i < group; ++i) {
      const auto& source = sources[first + i];
      const int length = static_cast<int>(source.size());
      for (int position = 0; position < length; ++position) {
        ids.push_back(source[position]);
        local.push_back({i, position, length});
        target.push_back({rows[first + i], position, length});
      }
      state.source_length[rows[first + i]] = length;
    }
    work.reserve(operations, config_, count);
    const auto cache = operations.make_cache(group, config_.heads, config_.head_size, longest, DType::kFp32);
    const PassTokens placed = operations.place({ids, {}, local, target, {}});
    operations.embed(*embedding_, placed.ids, {}, nullptr, work.hidden);
    for (const auto& layer : encoder_) {
      poll();
      operations.norm_linear(*layer.self.query_key_value, work.hidden, layer.self.norm.data, config_.epsilon, count,
                             work.normed, work.projected);
      operations.store(*cache, placed.self, work.projected + I, work.projected + 2 * I, 3 * I);
      operations.attend(*cache, placed.self, work.projected, 3 * I, &encoder_bias_, work.mixed);
      operations.linear(*layer.self.output, work.mixed, count, work.hidden, true);
      poll();
      feed_forward(operations, work, layer.feed_forward, count);
    }
    operations.rms_norm(work.hidden, encoder_norm_.data, config_.epsilon, count, M, work.normed);
    for (size_t i = 0; i < decoder_.size(); ++i) {
      poll();
      operations.linear(*decoder_[i].cross.key_value, work.normed, count, work.projected, false);
      operations.store(*state.cross[i], placed.cross, work.projected, work.projected + I, 2 * I);
    }
    first = last;
  }
}

PassTokens T5::list(const T5State& state, std::span<const InputToken> tokens, std::span<const int32_t> wanted,
                    TokenLists& lists) const {
  lists.ids.clear(), lists.marked.clear(), lists.self.clear(), lists.cross.clear();
  lists.ids.reserve(tokens.size()), lists.self.reserve(tokens.size()), lists.cross.reserve(tokens.size());
  if (config_.has_mark) lists.marked.reserve(tokens.size());
  bool any_marked = false;
  for (const InputToken& token : tokens) {
    lists.ids.push_back(token.id);
    if (config_.has_mark) lists.marked.push_back(token.marked), any_marked |= token.marked != 0;
    lists.self.push_back({token.row, token.position, token.position + 1});
    lists.cross.push_back({token.row, token.position, state.source_length[token.row]});
  }
  if (!any_marked) lists.marked.clear();
  return {lists.ids, lists.marked, lists.self, lists.cross, wanted};
}

void T5::decode(Operations& operations, T5State& state, Workspace& work, const PassTokens& placed,
                const Poll& poll) const {
  const int M = config_.model_size, I = config_.inner();
  const int count = static_cast<int>(placed.ids.size());
  work.reserve(operations, config_, count);
  operations.embed(*embedding_, placed.ids, config_.has_mark ? placed.marked : std::span<const uint8_t>(), mark_.data,
                   work.hidden);
  for (size_t i = 0; i < decoder_.size(); ++i) {
    const auto& layer = decoder_[i];
    poll();
    operations.norm_linear(*layer.self.query_key_value, work.hidden, layer.self.norm.data, config_.epsilon, count,
                           work.normed, work.projected);
    operations.store(*state.self[i], placed.self, work.projected + I, work.projected + 2 * I, 3 * I);
    operations.attend(*state.self[i], placed.self, work.projected, 3 * I, &decoder_bias_, work.mixed);
    operations.linear(*layer.self.output, work.mixed, count, work.hidden, true);

    operations.norm_linear(*layer.cross.query, work.hidden, layer.cross.norm.data, config_.epsilon, count, work.normed,
                           work.projected);
    operations.attend(*state.cross[i], placed.cross, work.projected, I, nullptr, work.mixed);
    operations.linear(*layer.cross.output, work.mixed, count, work.hidden, true);
    poll();
    feed_forward(operations, work, layer.feed_forward, count);
  }
  // Only the positions that somebody asks about go on to the head.
  const int asked = static_cast<int>(placed.wanted.size());
  operations.gather(work.hidden, placed.wanted, M, work.normed);
  operations.rms_norm(work.normed, decoder_norm_.data, config_.epsilon, asked, M, work.gathered);
}

}  // namespace kdtw
