// Operations that measure what int8 loses. Their passes are those of a model whose weights are int8 and whose
// activations are not: a token x = s q + rest goes through a weight twice, as s q and as the rest, which is quantised
// once more. What the rest adds is what int8 leaves away. Integer products are the same at every SIMD level and all
// else is computed by the generic kernels, so that what is measured, too, is the same everywhere.
#include <algorithm>
#include <cmath>
#include <iterator>
#include <limits>
#include <stdexcept>
#include <vector>

#include "backend/cpu/cpu_operations.h"
#include "backend/cpu/packed_weight.h"
#include "backend/cpu/simd_levels.h"
#include "core/error.h"

namespace kdtw::cpu {
namespace {

constexpr int kMostJudged = 64;  // outputs of a weight, evenly spaced

// The generic kernels, but for what gives the same bits at every level.
Kernels same_everywhere() {
  Kernels mixed = generic_kernels();
  const Kernels& best = kernels();
  mixed.gemm[static_cast<int>(DType::kInt8)] = best.gemm[static_cast<int>(DType::kInt8)];
  mixed.int8_offset = best.int8_offset;
  mixed.quantise = best.quantise;
  return mixed;
}

float median(std::vector<float>& values) {
  const auto middle = values.begin() + static_cast<long>(values.size() / 2);
  std::nth_element(values.begin(), middle, values.end());
  return *middle;
}

class MeasuringOperations : public Operations {
 public:
  MeasuringOperations(int threads, std::map<const Weight*, double>& lost)
      : kernels_(same_everywhere()), inner_(make_operations(kernels_, threads)), lost_(lost) {}

  void listen(const Poll* poll) override { inner_->listen(poll); }
  Buffer allocate(size_t floats) override { return inner_->allocate(floats); }
  void upload(Buffer& to, std::span<const float> from) override { inner_->upload(to, from); }
  void download(std::span<float> to, const float* from) override { inner_->download(to, from); }
  std::unique_ptr<Weight> pack(std::span<const float* const>, std::span<const int>, int, DType, WeightRole) override {
    refuse();
  }
  std::unique_ptr<Weight> adopt(int, int, DType, Blob) override { refuse(); }
  // Of fp32, whatever the model's will be.
  std::unique_ptr<KeyValueCache> make_cache(int rows, int heads, int head_size, int capacity, DType) override {
    return inner_->make_cache(rows, heads, head_size, capacity, DType::kFp32);
  }
  // A pass begins with it: all else is where the embedding is.
  void embed(const Embedding& embedding, const PassTokens& tokens, float* out) override {
    require(dynamic_cast<const PackedWeight*>(embedding.table) != nullptr,
            "what int8 loses is measured on the CPU, but these weights are on another device; load the model with "
            "device='cpu'");
    inner_->embed(embedding, tokens, out);
  }
  void norm(const Norm& norm, const float* x, int tokens, int size, float* out, bool accumulate) override {
    inner_->norm(norm, x, tokens, size, out, accumulate);
  }
  void linear(const Weight& weight, const float* x, int tokens, float* out, bool accumulate) override {
    const auto& packed = static_cast<const PackedWeight&>(weight);
    if (packed.dtype() != DType::kInt8) return inner_->linear(weight, x, tokens, out, accumulate);
    const int K = weight.inputs, N = weight.outputs;
    const size_t size = static_cast<size_t>(tokens) * N;
    const auto bare = weight.first(N);  // a bias is added once, and a head's cap is left out
    bare->bias = {}, bare->cap = 0.0f;
    // All tokens and then their rests, so that the weight is read once.
    inputs_.resize(2 * static_cast<size_t>(tokens) * K), outputs_.resize(2 * size);
    codes_.resize(static_cast<size_t>(K + kChunk));
    std::copy(x, x + static_cast<size_t>(tokens) * K, inputs_.begin());
    for (int t = 0; t < tokens; ++t) {
      const float* from = x + static_cast<size_t>(t) * K;
      const float scale = kernels_.quantise(from, K, 0, codes_.data(), kChunk);
      float* to = inputs_.data() + (static_cast<size_t>(tokens) + t) * K;
      for (int k = 0; k < K; ++k) to[k] = from[k] - scale * static_cast<float>(static_cast<int8_t>(codes_[k]));
    }
    inner_->linear(*bare, inputs_.data(), 2 * tokens, outputs_.data(), false);
    whole_ = outputs_.data(), left_ = whole_ + size;
    for (size_t i = 0; i < size; ++i) whole_[i] += left_[i];
    double& lost = lost_[&weight];
    lost = std::max(lost, judge(packed, x, tokens));
    for (int t = 0; weight.bias.data != nullptr && t < tokens; ++t)
      for (int n = 0; n < N; ++n) whole_[static_cast<size_t>(t) * N + n] += weight.bias.data[n];
    for (size_t i = 0; i < size; ++i) out[i] = accumulate ? out[i] + whole_[i] : whole_[i];
  }
  void activate(Activation activation, const float* hidden, int tokens, int size, float* out) override {
    inner_->activate(activation, hidden, tokens, size, out);
  }
  void angles(const Rotary& rotary, std::span<const TokenAt> tokens, float* out) override {
    inner_->angles(rotary, tokens, out);
  }
  void turn_heads(float* x, int stride, int tokens, int heads, int size, const Norm& norm, const float* angles,
                  int pairs) override {
    inner_->turn_heads(x, stride, tokens, heads, size, norm, angles, pairs);
  }
  void store(KeyValueCache& cache, std::span<const TokenAt> tokens, const float* keys, const float* values,
             int stride) override {
    inner_->store(cache, tokens, keys, values, stride);
  }
  void copy(KeyValueCache&, int, int, int) override { refuse(); }
  void attend(const KeyValueCache& cache, std::span<const TokenAt> tokens, const float* queries, int stride,
              const AttentionRule& rule, float* out) override {
    inner_->attend(cache, tokens, queries, stride, rule, out);
  }
  void gather(const float* x, std::span<const int32_t> indices, int size, float* out) override {
    inner_->gather(x, indices, size, out);
  }
  void pick(const Weight&, const float*, std::span<const PickRequest>, std::span<PickResult>) override { refuse(); }

 private:
  [[noreturn]] static void refuse() { throw std::logic_error("a probe only reads tokens"); }

  // Of the token that loses most, the mean over outputs of noise / signal, at most 1. Noise: what the rounding of
  // activations left away, squared, and what that of weights, even within a step, makes of the token. Signal: how far
  // tokens are apart in this output, squared, by their median, which a few massive tokens do not move, and a token that
  // is farther itself. What all tokens have in common tells nothing: where there is no signal, nothing is judged, nor
  // is what is not finite; of a weight with no finite output nothing is known, and it is 1.
  double judge(const PackedWeight& weight, const float* x, int tokens) {
    constexpr float kMedianOfSquares = 0.4549364f;  // of normal numbers of variance 1
    const int K = weight.inputs, N = weight.outputs, judged = std::min(N, kMostJudged);
    std::vector<double> energy(tokens);
    for (int t = 0; t < tokens; ++t)
      for (const float value : std::span(x + static_cast<size_t>(t) * K, K))
        energy[t] += static_cast<double>(value) * value;
    std::vector<float> line(tokens), sorted;
    std::vector<double> lost(tokens), counted(tokens);
    const auto median_of_line = [&] {
      sorted.clear();
      std::ranges::copy_if(line, std::back_inserter(sorted), [](float y) { return !std::isnan(y); });
      return median(sorted);
    };
    bool finite = false;
    for (int i = 0; i < judged; ++i) {
      const int n = static_cast<int>(static_cast<long>(i) * N / judged);
      for (int t = 0; t < tokens; ++t) {
        line[t] = whole_[static_cast<size_t>(t) * N + n];
        if (!std::isfinite(line[t])) line[t] = std::numeric_limits<float>::quiet_NaN();
      }
      if (std::ranges::all_of(line, [](float y) { return std::isnan(y); })) continue;
      finite = true;
      const float middle = median_of_line();
      for (float& y : line) y = (y - middle) * (y - middle);
      const double usual = median_of_line() / kMedianOfSquares;
      const double step = static_cast<double>(weight.scale(n)) * weight.scale(n) / 12.0;
      for (int t = 0; t < tokens; ++t) {
        const double left = left_[static_cast<size_t>(t) * N + n], noise = left * left + step * energy[t];
        const double signal = std::max<double>(usual, line[t]);
        if (std::isnan(line[t]) || signal == 0.0) continue;
        counted[t] += 1.0;
        lost[t] += noise < signal ? noise / signal : 1.0;
      }
    }
    if (!finite) return 1.0;
    double most = 0.0;
    for (int t = 0; t < tokens; ++t)
      if (counted[t] > 0.0) most = std::max(most, lost[t] / counted[t]);
    return most;
  }

  const Kernels kernels_;
  const std::unique_ptr<Operations> inner_;
  std::map<const Weight*, double>& lost_;
  std::vector<float> inputs_, outputs_;
  float *whole_ = nullptr, *left_ = nullptr;  // of the outputs: with the rest, and the rest's own
  std::vector<uint8_t> codes_;
};

}  // namespace
}  // namespace kdtw::cpu

namespace kdtw {

std::unique_ptr<Operations> make_measuring_operations(int threads, std::map<const Weight*, double>& lost) {
  return std::make_unique<cpu::MeasuringOperations>(threads, lost);
}

}  // namespace kdtw
