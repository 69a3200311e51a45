// A transformer, with or without an encoder, written once over Operations. It is shared between threads; what a decode
// changes lives in its ModelState, which also keeps the weights from being changed.
#pragma once

#include <array>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "backend/runner.h"
#include "model/config.h"

namespace kdtw {

// A tensor's values, row-major fp32, valid as long as `owner` is held.
struct Tensor {
  std::span<const float> values;
  std::shared_ptr<const void> owner;
};

// Gives the named tensor of exactly `rows` x `columns` (columns 0: a vector), or nothing where the model has none.
using TensorSource = std::function<std::optional<Tensor>(const std::string& name, int rows, int columns)>;

// Gives the blobs of all weights in the order of Transformer::weights(), each by the name of its first tensor; one
// without an owner: it is to be packed.
using BlobSource = std::function<Blob(const std::string& name)>;

class Transformer;

// Caches of one model for R rows of one generate call.
struct ModelState {
  // Capacities in tokens. std::invalid_argument where the model's table of positions ends before.
  ModelState(const Transformer& model, int rows, int source_capacity, int target_capacity);

  // Transformer::open does it the first time: a teacher that is never asked costs nothing.
  void make_caches(Operations& operations, const Config& config);

  std::shared_ptr<const void> weights;  // held
  const int rows, source_capacity, target_capacity;
  std::vector<std::unique_ptr<KeyValueCache>> self;   // per decoder layer
  std::vector<std::unique_ptr<KeyValueCache>> cross;  // per decoder layer, where there is an encoder
  std::vector<int> source_length;                     // per row; 0 = not opened yet
  // Without an encoder, per row: the prompt but for its last token fills as many places of the caches, and that last
  // token is what stands at position 0. With one: 0, and not looked at.
  std::vector<int> offset;
  std::vector<int32_t> prompt_end;
  std::vector<std::vector<int32_t>> prompts;  // what fills these places, also of a row that has left
};

// Activations of one pass; grown to the largest pass seen.
class Workspace {
 public:
  void reserve(Operations& operations, const Config& config, int tokens);
  float *hidden = nullptr, *normed = nullptr, *projected = nullptr, *mixed = nullptr, *gathered = nullptr;
  std::array<float*, 2> angles{};  // by kind of rotary frequencies
  Buffer passing;                  // Operations::make_passing_cache

 private:
  int tokens_ = 0;
  Buffer memory_;
};

// The lists of a pass over input tokens, on the host.
struct TokenLists {
  std::vector<int32_t> ids;
  std::vector<uint8_t> marked;
  std::vector<TokenAt> self, cross;
};

struct InputToken {
  int32_t id;
  int32_t row;
  int32_t position;
  uint8_t marked;  // k: written by teacher k, embedded with its beta (Eq. 13, 15); 0: by none
};

// Tokens that a model is tried with: a source, or nothing of a model without an encoder, and what its decoder reads.
struct ProbeTokens {
  std::vector<int32_t> source, tokens;
};

// Who reads the weights, and whether somebody is about to replace them: never both.
class Holders {
 public:
  // The messages name `model`.
  std::shared_ptr<const void> hold(const std::string& model);
  void claim(const std::string& model);
  void release();

 private:
  std::mutex mutex_;
  bool claimed_ = false;
  std::shared_ptr<const void> held_ = std::make_shared<char>();  // by how many: its use count
};

class Transformer {
 public:
  // With `blobs`, weights are made of them and `tensors` is asked for norms, biases and tables, and for what has no
  // blob.
  Transformer(Operations& operations, Config config, const TensorSource& tensors, const BlobSource& blobs = {});

  const Config& config() const { return config_; }
  size_t bytes() const;
  // All weights, in an order that the config decides.
  const std::vector<const Weight*>& weights() const { return weights_; }
  // Of each weight's first tensor.
  const std::vector<std::string>& names() const { return names_; }
  // What int8 loses in each of the int8 weights, by the name of its first tensor, when the CPU's model reads these
  // tokens: the power of the noise that rounding activations and weights adds to the weight's outputs, as a share of
  // that which tells tokens apart there, from 0 to 1, of the token where it is largest. A function of weights and
  // tokens, whatever the processor computes with.
  std::map<std::string, double> int8_losses(const ProbeTokens& probe, const Poll& poll) const;

  // As long as the result is held, the weights do not change.
  std::shared_ptr<const void> hold() const {
    check();
    return holders_->hold(config_.name);
  }
  // Another one where update() has taken other weights.
  const std::shared_ptr<const void>& identity() const { return identity_; }
  // Throws where the weights are not what they were any more: they may lie in a file. Who gives out what was computed
  // asks before.
  void check() const {
    if (check_) check_();
  }
  void check_by(std::function<void()> check) { check_ = std::move(check); }
  // Takes the weights of a model of the same config. std::runtime_error while somebody holds the present ones; when
  // `make` throws, they stay.
  void update(const std::function<Transformer()>& make);

  // Reads the sources of `rows`: the encoder fills their cross-attention caches or, without one, the decoder reads
  // the prompts. sources[i] belongs to rows[i].
  void open(Operations& operations, ModelState& state, Workspace& work, std::span<const int> rows,
            std::span<const std::vector<int32_t>> sources, const Poll& poll) const;

  // What a decoder's pass over `tokens` is made of, on the host; points to `lists` and `wanted`. Each row's positions
  // ascend and follow what its cache holds.
  PassTokens list(const ModelState& state, std::span<const InputToken> tokens, std::span<const int32_t> wanted,
                  TokenLists& lists) const;
  // Runs the decoder over tokens that Operations::place or a runner has put in their places, and leaves the normed
  // hidden states of those wanted at work.gathered, [wanted, M].
  void decode(Operations& operations, ModelState& state, Workspace& work, const PassTokens& placed,
              const Poll& poll) const;

  const Weight& head() const { return head_ ? *head_ : *embedding_; }

 private:
  // A norm's parameters; without a scale there is none, and the place where it would stand is passed.
  struct NormWeights {
    Buffer scale, shift;
    explicit operator bool() const { return scale.data != nullptr; }
  };
  // What surrounds a part f of a layer: x + inside(f(before(x))), and `after` over that.
  struct Norms {
    NormWeights before, inside, after;
  };
  struct Attention {
    Norms norms;
    NormWeights query_norm, key_norm;  // of every head
    std::unique_ptr<Weight> query, key_value, query_key_value, output;
    Buffer bias_table;
    PositionBias bias{};  // no table: none
  };
  struct FeedForward {
    Norms norms;
    std::unique_ptr<Weight> in, out;
  };
  struct Layer {
    Attention self, cross;
    FeedForward feed_forward;
  };
  struct Stack {
    std::unique_ptr<Weight> embedding;  // where it has one of its own
    NormWeights embedding_norm, norm;
    Buffer positions;
    std::array<Rotary, 2> rotary{};
    std::array<Buffer, 2> frequencies;
    std::vector<Layer> layers;
  };
  class Loader;

  Norm norm_of(const StackConfig& stack, const NormWeights& weights) const {
    return {weights.scale.data, weights.shift.data, stack.epsilon, stack.layer_norm};
  }
  const StackConfig& config_of(const Stack& stack) const {
    return &stack == &encoder_ ? config_.encoder : config_.decoder;
  }
  void embed(Operations& operations, const Stack& stack, Workspace& work, const PassTokens& placed) const;
  void self_attention(Operations& operations, const Stack& stack, size_t layer, KeyValueCache& cache, Workspace& work,
                      const PassTokens& placed) const;
  void cross_attention(Operations& operations, size_t layer, const KeyValueCache& cache, Workspace& work,
                       const PassTokens& placed) const;
  void feed_forward(Operations& operations, const StackConfig& stack, const FeedForward& part, Workspace& work,
                    int tokens) const;
  // work.projected = `weight` times the normed hidden state.
  void project(Operations& operations, const StackConfig& stack, const NormWeights& norm, const Weight& weight,
               Workspace& work, int tokens) const;
  // Adds `weight` times work.mixed, a part's last product, to the hidden state, through the norms around the part.
  void add(Operations& operations, const StackConfig& stack, const Norms& norms, const Weight& weight, Workspace& work,
           int tokens) const;
  void read_prompts(Operations& operations, ModelState& state, Workspace& work, std::span<const int> rows,
                    std::span<const std::vector<int32_t>> sources, const Poll& poll) const;

  Config config_;
  std::function<void()> check_;  // or none
  std::shared_ptr<Holders> holders_ = std::make_shared<Holders>();
  std::shared_ptr<const void> identity_ = std::make_shared<char>();
  std::vector<const Weight*> weights_;
  std::vector<std::string> names_;
  std::unique_ptr<Weight> embedding_, head_;  // head_ empty: tied
  Buffer mark_;
  Stack encoder_, decoder_;
};

}  // namespace kdtw
