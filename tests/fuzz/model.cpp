// Any config with any tensors, packed or as blobs from a file: a model that decodes, or std::invalid_argument.
#include <memory>

#include "../../tests/fuzz/bytes.h"
#include "core/error.h"
#include "model/transformer.h"

namespace kdtw::fuzz {
namespace {

constexpr size_t kMostFloats = 1 << 13;  // of a tensor: what the reader in Python holds against the file's size

StackConfig stack(Bytes& bytes, int model_size) {
  StackConfig stack;
  stack.layers = bytes.small(0, 2);
  stack.model_size = bytes.rarely() ? bytes.size(1, 9) : model_size;
  stack.heads = bytes.size(1, 3);
  stack.key_heads = bytes.rarely() ? bytes.size(1, 3) : stack.heads;
  stack.head_size = bytes.size(1, 9);
  stack.feed_forward = bytes.size(1, 20);
  stack.activation = {static_cast<Function>(bytes.small(0, 3)), bytes.ConsumeBool()};
  stack.layer_norm = bytes.ConsumeBool();
  stack.epsilon = bytes.rarely() ? bytes.number() : 1e-6f;
  stack.query_norm_whole = bytes.ConsumeBool();
  stack.embedding_scale = bytes.number(), stack.attention_scale = bytes.number();
  stack.attention_cap = bytes.ConsumeBool() ? 0.0f : std::fabs(bytes.number());
  stack.bias_buckets = bytes.ConsumeBool() ? 0 : bytes.size(0, 12);
  stack.bias_max_distance = bytes.small(0, 20);
  stack.bias_per_layer = bytes.ConsumeBool();
  stack.positions = bytes.ConsumeBool() ? 0 : bytes.size(0, 30);
  stack.first_position = bytes.small(0, 3);
  if (bytes.ConsumeBool()) {
    stack.rotary_pairs = bytes.size(0, 4);
    for (int i = bytes.small(0, 3); i > 0; --i) stack.rotary_scales.push_back(bytes.number());
    for (int i = bytes.small(0, 2); i > 0; --i) stack.rotary_kind.push_back(bytes.small(-1, 2));
  }
  for (int i = bytes.small(0, 2); i > 0; --i) stack.windows.push_back(bytes.size(0, 4));
  return stack;
}

void run(Bytes& bytes) {
  Config config;
  config.vocabulary = bytes.size(1, 40);
  const int size = bytes.size(1, 9);
  config.encoder = stack(bytes, size), config.decoder = stack(bytes, size);
  config.has_head = bytes.ConsumeBool();
  config.head_cap = bytes.ConsumeBool() ? 0.0f : std::fabs(bytes.number());
  config.teachers = bytes.size(0, 2);
  config.dtype = static_cast<DType>(bytes.small(0, 3)), config.cache_dtype = static_cast<DType>(bytes.small(0, 3));
  const int absent = bytes.small(0, 60);  // the tensor that the file does not have
  int asked = 0;
  const TensorSource tensors = [&](const std::string& name, int rows, int columns) -> std::optional<Tensor> {
    const size_t count = static_cast<size_t>(rows) * std::max(columns, 1);
    require(rows > 0 && columns >= 0 && count <= kMostFloats, name, " has another shape");
    const bool matrix = columns > 0 && name.find("norm") == std::string::npos;
    if (++asked == absent || (!matrix && bytes.ConsumeBool())) return {};
    auto values = std::make_shared<const std::vector<float>>(bytes.numbers(count));
    return Tensor{*values, values};
  };
  const Backend backend = make_backend("cpu", 1);
  Operations& operations = *backend.operations;
  auto model = std::make_shared<Transformer>(operations, config, tensors);
  if (bytes.ConsumeBool()) {  // as a file of packed weights: each of its blobs as it was, or of another size or place
    size_t next = 0;
    const int wrong = bytes.small(0, 20);
    const BlobSource blobs = [&](const std::string&) -> Blob {
      require(next < model->weights().size(), "no more");
      const auto whole = model->weights()[next++]->blob().bytes;
      const bool cut = static_cast<int>(next) == wrong;
      return {cut ? whole.subspan(std::min<size_t>(whole.size(), bytes.small(0, 64))) : whole, model};
    };
    asked = 0;
    model = std::make_shared<Transformer>(operations, config, tensors, blobs);
  }
  const std::vector<int32_t> source = bytes.ids(1, 6, config.vocabulary), tokens = bytes.ids(1, 4, config.vocabulary);
  const int T = static_cast<int>(tokens.size()), row = 0;
  ModelState state(*model, 1, static_cast<int>(source.size()), T + 1);
  Workspace work;
  const Poll poll = [] {};
  model->open(operations, state, work, std::span(&row, 1), std::span(&source, 1), poll);
  std::vector<InputToken> pass;
  std::vector<int32_t> wanted;
  for (int i = 0; i < T; ++i) {
    pass.push_back({tokens[i], 0, i, static_cast<uint8_t>(bytes.small(0, config.teachers))});
    wanted.push_back(i);
  }
  TokenLists lists;
  model->decode(operations, state, work, operations.place(model->list(state, pass, wanted, lists)), poll);
  Buffer logits = operations.allocate(static_cast<size_t>(T) * config.vocabulary);
  operations.linear(model->head(), work.gathered, T, logits.data, false);
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
