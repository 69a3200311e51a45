// What a device computes: mathematics and memory. Everything above this line of the tree (model/, decode/) speaks only
// to this interface and to runner.h, and never names a device. Float pointers are device memory obtained from
// allocate(); a pass's token lists are where place() put them; requests and results live on the host.
//
// Shapes: R rows, T tokens of this pass (all rows' tokens flattened), H heads, D head size, M model
// size, F feed-forward size, V vocabulary, S source length, N x K a weight's outputs x inputs.
//
// Contract that every device keeps: the value computed for one token does not depend on T, on the
// other tokens of the pass, or on the number of threads (one fixed accumulation order per output).
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <span>
#include <vector>

#include "core/pass.h"

namespace kdtw {

// Called while long work goes on so that it can be stopped; throws to stop.
using Poll = std::function<void()>;

// Number format of a weight or a cache. Arithmetic accumulates in fp32 (int8: exactly, in int32, then scaled).
enum class DType : uint8_t { kFp32, kBf16, kInt8, kFp16 };

// Which products a weight is for: a decoder's, of few tokens at a time, or those that whole sources go through (the
// encoder's, and the keys and values of cross-attention). A device may compute the two in different ways; a weight's
// are all computed in one, so that a token's values do not depend on how many tokens share a pass.
enum class WeightRole : uint8_t { kDecoder, kEncoder };

// Bytes that are valid as long as `owner` is held.
struct Blob {
  std::span<const std::byte> bytes;
  std::shared_ptr<const void> owner;
};

struct Buffer {  // device memory; freed with the handle
  std::shared_ptr<void> memory;
  float* data = nullptr;
  size_t size = 0;  // floats
};

// A weight matrix [N, K] in the device's own layout and number format.
class Weight {
 public:
  Weight(int outputs, int inputs) : outputs(outputs), inputs(inputs) {}
  virtual ~Weight() = default;
  virtual size_t bytes() const = 0;
  // What it is made of, in host memory, as Operations::adopt takes it; std::runtime_error where it is not kept there.
  virtual Blob blob() const = 0;
  // The same without the outputs from `count` on; shares this one's memory.
  virtual std::unique_ptr<Weight> first(int count) const = 0;
  const int outputs, inputs;
  // Of a product with it: added to every token's outputs [N] where there is one; then, of a head, c tanh(x / c) with
  // c = cap where that is not 0.
  Buffer bias;
  float cap = 0.0f;
};

// Keys and values of one attention layer for R rows of up to `capacity` positions, in the device's own
// layout. A lane's length says how much of it is valid, so rewinding moves no data.
class KeyValueCache {
 public:
  virtual ~KeyValueCache() = default;
  virtual size_t bytes() const = 0;
};

// The token lists of a pass of T tokens.
struct PassTokens {
  std::span<const int32_t> ids;
  std::span<const uint8_t> marked;       // k: written by teacher k; empty: none was written by one
  std::span<const TokenAt> self, cross;  // places in the caches of self- and of cross-attention
  std::span<const int32_t> wanted;       // the tokens that somebody asks about, ascending
};

// The rows that a pass begins with: table[id] * scale (+ mark[k - 1] where teacher k wrote it, Eq. 15; mark is
// [teachers, M]) (+ positions[first_position + position]).
struct Embedding {
  const Weight* table;
  float scale = 1.0f;
  const float* mark = nullptr;       // null: marks are not looked at
  const float* positions = nullptr;  // null: none
  int first_position = 0;
};

class Operations {
 public:
  virtual ~Operations() = default;

  // Polls on the calling thread inside operations that take long, as far as the device can, until it is told another
  // or none (null). An operation that is stopped leaves its output undefined.
  virtual void listen(const Poll*) {}

  virtual Buffer allocate(size_t floats) = 0;
  virtual void upload(Buffer& to, std::span<const float> from) = 0;
  virtual void download(std::span<float> to, const float* from) = 0;

  // Packs a row-major host matrix [outputs, inputs]; several matrices stacked along outputs are one weight.
  virtual std::unique_ptr<Weight> pack(std::span<const float* const> parts, std::span<const int> part_outputs,
                                       int inputs, DType dtype, WeightRole role) = 0;
  // The weight whose blob() this was, without a copy; std::invalid_argument when it cannot be this weight's.
  virtual std::unique_ptr<Weight> adopt(int outputs, int inputs, DType dtype, Blob blob) = 0;
  // dtype: fp32, bf16 or, on devices that have it, fp16.
  virtual std::unique_ptr<KeyValueCache> make_cache(int rows, int heads, int head_size, int capacity, DType dtype) = 0;
  // One in fp32 for a single pass. A device that allocates slowly puts it into `memory`, which it makes large enough
  // and which nothing else uses meanwhile.
  virtual std::unique_ptr<KeyValueCache> make_passing_cache(Buffer& /*memory*/, int rows, int heads, int head_size,
                                                            int capacity) {
    return make_cache(rows, heads, head_size, capacity, DType::kFp32);
  }

  // Puts lists of the host where embed, store, attend and gather read them; they stay until the next place() or pick().
  virtual PassTokens place(const PassTokens& tokens) { return tokens; }

  // Of tokens' ids, marks and places in the cache of self-attention: out[T, M].
  virtual void embed(const Embedding& embedding, const PassTokens& tokens, float* out) = 0;
  // out[T, M] = norm(x), or += when accumulate; out may be x when not.
  virtual void norm(const Norm& norm, const float* x, int tokens, int size, float* out, bool accumulate = false) = 0;
  // out[T, N] = x[T, K] W^T + bias, or += when accumulate
  virtual void linear(const Weight& weight, const float* x, int tokens, float* out, bool accumulate) = 0;
  // hidden [T, 2F] -> out [T, size = F] for gated activations (gate first), [T, F] -> [T, F] otherwise
  virtual void activate(Activation activation, const float* hidden, int tokens, int size, float* out) = 0;
  // out = linear(norm(x)), or of x where there is no norm; what lies between may be left in normed [T, K].
  virtual void norm_linear(const Weight& weight, const float* x, const Norm& norm, int tokens, float* normed,
                           float* out);
  // out [T, F] = activate(linear(norm(x))); what lies between may be left in normed [T, K] and hidden [T, N].
  virtual void norm_linear_activate(const Weight& weight, Activation activation, const float* x, const Norm& norm,
                                    int tokens, float* normed, float* hidden, float* out);
  // out[T, 2 * pairs]: the cosines and sines of every token's position.
  virtual void angles(const Rotary& rotary, std::span<const TokenAt> tokens, float* out) = 0;
  // Queries or keys x [T, heads * size], `stride` apart, in place: each head normed, where there is a norm, and its
  // first 2 * pairs numbers turned by its token's angles.
  virtual void turn_heads(float* x, int stride, int tokens, int heads, int size, const Norm& norm, const float* angles,
                          int pairs) = 0;
  // Copies keys [T, H*D] and values, H the cache's heads, both with the given row stride, to (row, position) of the
  // cache.
  virtual void store(KeyValueCache& cache, std::span<const TokenAt> tokens, const float* keys, const float* values,
                     int stride) = 0;
  // Copies the first `positions` of row `from` to row `to`; what stands behind them in that row is undefined then.
  virtual void copy(KeyValueCache& cache, int from, int to, int positions) = 0;
  // out[T, heads * D] = the values' mean by the rule's weights
  virtual void attend(const KeyValueCache& cache, std::span<const TokenAt> tokens, const float* queries, int stride,
                      const AttentionRule& rule, float* out) = 0;
  // out[i] = x[indices[i]] for rows of `size` floats
  virtual void gather(const float* x, std::span<const int32_t> indices, int size, float* out) = 0;
  // Projects hidden [n, M] on the vocabulary and decides each request there; n results come back.
  virtual void pick(const Weight& head, const float* hidden, std::span<const PickRequest> requests,
                    std::span<PickResult> results) = 0;
};

// Listens as long as it lives.
class Listening {
 public:
  Listening(Operations& operations, const Poll& poll) : operations_(operations) { operations.listen(&poll); }
  ~Listening() { operations_.listen(nullptr); }
  Listening(const Listening&) = delete;
  Listening& operator=(const Listening&) = delete;

 private:
  Operations& operations_;
};

std::unique_ptr<Operations> make_cpu_operations(int threads);

// The CPU's, which note in `lost` what int8 loses in the products of a pass, by weight (backend/cpu/int8_losses.cpp).
// The numbers are the same at every SIMD level and with any number of threads. Only what passes ask for is computed.
std::unique_ptr<Operations> make_measuring_operations(int threads, std::map<const Weight*, double>& lost);

}  // namespace kdtw
