// T5 (Raffel et al. 2020), encoder and decoder, written once over Operations. A T5 is shared between threads; what a
// decode changes lives in its T5State, which also keeps the weights from being changed.
#pragma once

#include <functional>
#include <memory>
#include <span>
#include <vector>

#include "backend/runner.h"
#include "model/t5_config.h"

namespace kdtw {

// A tensor's values, row-major fp32, valid as long as `owner` is held.
struct Tensor {
  std::span<const float> values;
  std::shared_ptr<const void> owner;
};

// Gives the named tensor of exactly `rows` x `columns` (columns 0: a vector).
using TensorSource = std::function<Tensor(const std::string& name, int rows, int columns)>;

// Gives the blobs of all weights in the order of T5::weights().
using BlobSource = std::function<Blob()>;

class T5;

// Caches of one model for R rows of one generate call.
struct T5State {
  T5State(const T5& model, int rows, int source_capacity, int target_capacity);

  // T5::encode does it the first time: a teacher that is never asked costs nothing.
  void make_caches(Operations& operations, const T5Config& config);

  const std::shared_ptr<const void> weights;  // held
  const int rows, source_capacity, target_capacity;
  std::vector<std::unique_ptr<KeyValueCache>> self;   // per decoder layer
  std::vector<std::unique_ptr<KeyValueCache>> cross;  // per decoder layer
  std::vector<int> source_length;                     // per row; 0 = not encoded yet
};

// Activations of one pass; grown to the largest pass seen.
class Workspace {
 public:
  void reserve(Operations& operations, const T5Config& config, int tokens);
  float *hidden = nullptr, *normed = nullptr, *projected = nullptr, *mixed = nullptr, *gathered = nullptr;

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

class T5 {
 public:
  // With `blobs`, weights are made of them and `tensors` is asked for norms, biases and beta only.
  T5(Operations& operations, T5Config config, const TensorSource& tensors, const BlobSource& blobs = {});

  const T5Config& config() const { return config_; }
  size_t bytes() const;
  // All weights, in an order that the config decides.
  const std::vector<const Weight*>& weights() const { return weights_; }

  // As long as the result is held, the weights do not change.
  std::shared_ptr<const void> hold() const { return holds_; }
  // Takes other weights of the same config. std::runtime_error while somebody holds the present ones; when `tensors`
  // throws, they stay.
  void update(Operations& operations, const TensorSource& tensors);

  // Encodes the sources of `rows` and fills their cross-attention caches. sources[i] belongs to rows[i].
  void encode(Operations& operations, T5State& state, Workspace& work, std::span<const int> rows,
              std::span<const std::vector<int32_t>> sources, const Poll& poll) const;

  // What a decoder's pass over `tokens` is made of, on the host; points to `lists` and `wanted`. Each row's positions
  // ascend and follow what its cache holds.
  PassTokens list(const T5State& state, std::span<const InputToken> tokens, std::span<const int32_t> wanted,
                  TokenLists& lists) const;
  // Runs the decoder over tokens that Operations::place or a runner has put in their places, and leaves the normed
  // hidden states of those wanted at work.gathered, [wanted, M].
  void decode(Operations& operations, T5State& state, Workspace& work, const PassTokens& placed,
              const Poll& poll) const;

  const Weight& head() const { return head_ ? *head_ : *embedding_; }

 private:
  struct Attention {
    Buffer norm;
    std::unique_ptr<Weight> query, key_value, query_key_value, output;
  };
  struct FeedForward {
    Buffer norm;
    std::unique_ptr<Weight> in, out;
  };
  struct EncoderLayer {
    Attention self;
    FeedForward feed_forward;
  };
  struct DecoderLayer {
    Attention self, cross;
    FeedForward feed_forward;
  };

  void feed_forward(Operations& operations, Workspace& work, const FeedForward& layer, int tokens) const;
  PositionBias expand_bias(Operations& operations, Buffer& to, std::span<const float> buckets,
                           bool bidirectional) const;

  T5Config config_;
  std::shared_ptr<const void> holds_ = std::make_shared<char>();
  std::vector<const Weight*> weights_;
  std::unique_ptr<Weight> embedding_, head_;  // head_ empty: tied
  std::vector<EncoderLayer> encoder_;
  std::vector<DecoderLayer> decoder_;
  Buffer encoder_norm_, decoder_norm_, mark_, encoder_bias_table_, decoder_bias_table_;
  PositionBias encoder_bias_{}, decoder_bias_{};
};

}  // namespace kdtw
