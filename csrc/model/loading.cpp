// How a transformer is made of its tensors. Their names: `embedding`, `head`, `head.bias`, `mark`; of a stack
// (`encoder`, `decoder`): `.embedding`, `.embedding_norm`, `.positions`, `.bias`, `.rotary.KIND`, `.norm`; of its layer
// i: `.i.self`, `.i.cross` with `.query`, `.key`, `.value`, `.output`, `.query_norm`, `.key_norm`, `.bias`, and
// `.i.feed_forward` with `.gate`, `.in`, `.out`; of each of the three `.before`, `.inside` and `.after`, the norms.
// What is multiplied or is a norm may have a `.bias`.
#include <algorithm>
#include <atomic>
#include <cmath>

#include "model/transformer.h"

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

class Transformer::Loader {
 public:
  Loader(Transformer& model, Operations& operations, const TensorSource& tensors, const BlobSource& blobs)
      : model_(model), config_(model.config_), operations_(operations), tensors_(tensors), blobs_(blobs) {}

  void load() {
    const int V = config_.vocabulary, M = config_.decoder.model_size;
    // An embedding that is no head is looked up and never multiplied: nothing is gained from int8 there, so it stays
    // closer to the checkpoint.
    model_.embedding_ = stack(WeightRole::kDecoder, {"embedding"}, V, M, config_.has_head);
    if (config_.has_head) model_.head_ = stack(WeightRole::kDecoder, {"head"}, V, M);
    Weight& head = config_.has_head ? *model_.head_ : *model_.embedding_;
    head.bias = optional("head.bias", V);
    head.cap = config_.head_cap;
    if (config_.has_encoder()) load_stack(model_.encoder_, config_.encoder, "encoder");
    load_stack(model_.decoder_, config_.decoder, "decoder");
    // One teacher's is a vector.
    if (config_.teachers > 0)
      model_.mark_ = config_.teachers > 1 ? required("mark", config_.teachers, M) : required("mark", M);
    require(kept_ == config_.kept.size(), config_.name, ": of ", config_.kept.size(),
            " weights that are kept in bf16, only ", kept_, " are the model's");
  }

 private:
  Buffer optional(const std::string& name, int rows, int columns = 0) {
    const auto tensor = tensors_(name, rows, columns);
    if (!tensor) return {};
    Buffer buffer = operations_.allocate(tensor->values.size());
    operations_.upload(buffer, tensor->values);
    return buffer;
  }
  Buffer required(const std::string& name, int rows, int columns = 0) {
    Buffer buffer = optional(name, rows, columns);
    require(buffer.data != nullptr, config_.name, ": tensor '", name, "' is missing");
    return buffer;
  }
  NormWeights norm(const std::string& name, int size) {
    NormWeights weights{optional(name, size), {}};
    if (weights) weights.shift = optional(name + ".bias", size);
    return weights;
  }

  // Stacks matrices of as many inputs into one weight, so that one product computes them all. lookup: it is never
  // multiplied.
  std::unique_ptr<Weight> stack(WeightRole role, const std::vector<std::string>& names, const std::vector<int>& outputs,
                                int inputs, bool lookup = false) {
    const bool kept = config_.kept.contains(names[0]);
    kept_ += kept;
    const DType dtype = (lookup || kept) && config_.dtype == DType::kInt8 ? DType::kBf16 : config_.dtype;
    int all = 0;
    for (const int some : outputs) all += some;
    std::unique_ptr<Weight> weight;
    const Blob packed = blobs_ ? blobs_(names[0]) : Blob{};
    if (packed.owner) {
      weight = operations_.adopt(all, inputs, dtype, packed);
    } else {
      std::vector<Tensor> held;
      std::vector<const float*> parts;
      for (size_t i = 0; i < names.size(); ++i) {
        auto tensor = tensors_(names[i], outputs[i], inputs);
        require(tensor.has_value(), config_.name, ": tensor '", names[i], "' is missing");
        parts.push_back(held.emplace_back(*std::move(tensor)).values.data());
      }
      weight = operations_.pack(parts, outputs, inputs, dtype, role);
    }
    weight->bias = biases(names, outputs, all);
    model_.weights_.push_back(weight.get());
    model_.names_.push_back(names[0]);
    return weight;
  }
  std::unique_ptr<Weight> stack(WeightRole role, const std::vector<std::string>& names, int outputs, int inputs,
                                bool lookup = false) {
    return stack(role, names, std::vector<int>(names.size(), outputs), inputs, lookup);
  }

  // Those of the stacked parts, zeros where a part has none; nothing where no part has.
  Buffer biases(const std::vector<std::string>& names, const std::vector<int>& outputs, int all) {
    std::vector<float> values(all);
    bool any = false;
    float* to = values.data();
    for (size_t i = 0; i < names.size(); to += outputs[i++]) {
      if (names[i] == "head") continue;  // load() does it, tied or not
      const auto tensor = tensors_(names[i] + ".bias", outputs[i], 0);
      if (!tensor) continue;
      any = true;
      std::copy(tensor->values.begin(), tensor->values.end(), to);
    }
    if (!any) return {};
    Buffer buffer = operations_.allocate(all);
    operations_.upload(buffer, values);
    return buffer;
  }

  Norms norms(const std::string& part, int size) {
    return {norm(part + ".before", size), norm(part + ".inside", size), norm(part + ".after", size)};
  }

  Attention attention(const StackConfig& stack_config, WeightRole role, const std::string& part, bool cross) {
    const int M = stack_config.model_size, Q = stack_config.query_size(), K = stack_config.key_size();
    Attention layer;
    layer.norms = norms(part, M);
    if (cross) {
      layer.query = stack(role, {part + ".query"}, Q, M);
      layer.key_value = stack(WeightRole::kEncoder, {part + ".key", part + ".value"}, K, config_.encoder.model_size);
    } else {
      layer.query_key_value = stack(role, {part + ".query", part + ".key", part + ".value"}, {Q, K, K}, M);
      const bool whole = stack_config.query_norm_whole;
      layer.query_norm = norm(part + ".query_norm", whole ? Q : stack_config.head_size);
      layer.key_norm = norm(part + ".key_norm", whole ? K : stack_config.head_size);
    }
    layer.output = stack(role, {part + ".output"}, M, Q);
    return layer;
  }

  FeedForward feed_forward(const StackConfig& stack_config, WeightRole role, const std::string& part) {
    const int M = stack_config.model_size, F = stack_config.feed_forward;
    FeedForward layer;
    layer.norms = norms(part, M);
    std::vector<std::string> in = {part + ".in"};
    if (stack_config.activation.gated) in.insert(in.begin(), part + ".gate");
    layer.in = stack(role, in, F, M);
    layer.out = stack(role, {part + ".out"}, M, F);
    return layer;
  }

  void load_stack(Stack& to, const StackConfig& stack_config, const std::string& prefix) {
    const bool decoder = prefix == "decoder";
    const WeightRole role = decoder ? WeightRole::kDecoder : WeightRole::kEncoder;
    const int M = stack_config.model_size;
    if (!decoder && tensors_("encoder.embedding", config_.vocabulary, M))
      to.embedding = stack(WeightRole::kDecoder, {"encoder.embedding"}, config_.vocabulary, M, true);
    to.embedding_norm = norm(prefix + ".embedding_norm", M);
    if (stack_config.positions > 0) to.positions = required(prefix + ".positions", stack_config.positions, M);
    for (int kind = 0; kind < stack_config.rotary_kinds(); ++kind) {
      const std::string name = concat(prefix, ".rotary.", kind);
      const auto tensor = tensors_(name, stack_config.rotary_pairs, 0);
      require(tensor.has_value(), config_.name, ": tensor '", name, "' is missing");
      const bool small = std::ranges::all_of(tensor->values, [](float f) { return std::fabs(f) <= 64.0f; });
      require(small, config_.name, ": tensor '", name, "' must have frequencies of at most 64");  // see core/rotary.h
      to.frequencies[kind] = operations_.allocate(tensor->values.size());
      operations_.upload(to.frequencies[kind], tensor->values);
      to.rotary[kind] = {to.frequencies[kind].data, stack_config.rotary_pairs, stack_config.rotary_scales[kind]};
    }
    for (int i = 0; i < stack_config.layers; ++i) {
      const std::string layer = concat(prefix, ".", i);
      Layer made;
      made.self = attention(stack_config, role, layer + ".self", false);
      if (decoder && config_.has_encoder()) made.cross = attention(stack_config, role, layer + ".cross", true);
      made.feed_forward = feed_forward(stack_config, role, layer + ".feed_forward");
      to.layers.push_back(std::move(made));
    }
    to.norm = norm(prefix + ".norm", M);
    if (stack_config.bias_buckets == 0) return;
    for (int i = 0; i < stack_config.layers; ++i) {
      Attention& layer = to.layers[i].self;
      if (i > 0 && !stack_config.bias_per_layer) {
        layer.bias = to.layers[0].self.bias;
        continue;
      }
      const auto name = stack_config.bias_per_layer ? concat(prefix, ".", i, ".self.bias") : prefix + ".bias";
      const auto buckets = tensors_(name, stack_config.bias_buckets, stack_config.heads);
      require(buckets.has_value(), config_.name, ": tensor '", name, "' is missing");
      layer.bias = expand_bias(layer.bias_table, stack_config, buckets->values, !decoder);
    }
  }

  // The bias of every distance up to the last that has a bucket of its own; farther ones share it.
  PositionBias expand_bias(Buffer& to, const StackConfig& stack_config, std::span<const float> buckets,
                           bool bidirectional) {
    const int lowest = stack_config.bias_max_distance, highest = bidirectional ? lowest : 0, H = stack_config.heads;
    const int width = lowest + highest + 1;
    std::vector<float> table(static_cast<size_t>(H) * width);
    for (int distance = -lowest; distance <= highest; ++distance) {
      const int bucket =
          bias_bucket(distance, bidirectional, stack_config.bias_buckets, stack_config.bias_max_distance);
      for (int h = 0; h < H; ++h) table[static_cast<size_t>(h) * width + distance + lowest] = buckets[bucket * H + h];
    }
    to = operations_.allocate(table.size());
    operations_.upload(to, table);
    return {to.data, lowest, highest};
  }

  Transformer& model_;
  const Config& config_;
  Operations& operations_;
  const TensorSource& tensors_;
  const BlobSource& blobs_;
  size_t kept_ = 0;  // weights that config.kept names
};

Transformer::Transformer(Operations& operations, Config config, const TensorSource& tensors, const BlobSource& blobs)
    : config_(std::move(config)) {
  config_.validate();
  Loader(*this, operations, tensors, blobs).load();
}

std::shared_ptr<const void> Holders::hold(const std::string& model) {
  const std::lock_guard lock(mutex_);
  if (claimed_)
    throw std::runtime_error(concat(model, ": another thread is replacing the weights; call when it has done so"));
  return held_;
}

void Holders::claim(const std::string& model) {
  const std::lock_guard lock(mutex_);
  if (claimed_ || held_.use_count() > 1)
    throw std::runtime_error(concat(model, ": weights cannot change while the model decodes; end its ",
                                    "generate calls and close its streams first"));
  std::atomic_thread_fence(std::memory_order_acquire);  // what the last holder read comes before what is written now
  claimed_ = true;
}

void Holders::release() {
  const std::lock_guard lock(mutex_);
  claimed_ = false;
}

// Packing calls back into the program, which may begin a decode: the claim comes before it.
void Transformer::update(const std::function<Transformer()>& make) {
  const std::shared_ptr<Holders> holders = holders_;
  holders->claim(config_.name);
  try {
    Transformer other = make();
    other.holders_ = holders;
    *this = std::move(other);
  } catch (...) {
    holders->release();
    throw;
  }
  holders->release();
}

}  // namespace kdtw
