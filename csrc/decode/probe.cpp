#include "decode/probe.h"

#include <algorithm>
#include <numeric>

#include "core/clock.h"
#include "core/error.h"
#include "core/random.h"
#include "decode/rules.h"

namespace kdtw {
// Passes every call on and adds up what it took.
class Probe::ProfiledOperations : public Operations {
 public:
  using Costs = std::array<OperationCost, kOperations>;

  // width: of queries, H*D.
  ProfiledOperations(std::unique_ptr<Operations> inner, int width, Costs& costs)
      : inner_(std::move(inner)), width_(width), costs_(costs) {}

  void listen(const Poll* poll) override { inner_->listen(poll); }
  Buffer allocate(size_t floats) override { return inner_->allocate(floats); }
  void upload(Buffer& to, std::span<const float> from) override { inner_->upload(to, from); }
  void download(std::span<float> to, const float* from) override { inner_->download(to, from); }
  std::unique_ptr<Weight> pack(std::span<const float* const> parts, std::span<const int> part_outputs, int inputs,
                               DType dtype, WeightRole role) override {
    return inner_->pack(parts, part_outputs, inputs, dtype, role);
  }
  std::unique_ptr<Weight> adopt(int outputs, int inputs, DType dtype, Blob blob) override {
    return inner_->adopt(outputs, inputs, dtype, std::move(blob));
  }
  std::unique_ptr<KeyValueCache> make_cache(int rows, int heads, int head_size, int capacity, DType dtype) override {
    return inner_->make_cache(rows, heads, head_size, capacity, dtype);
  }

  void embed(const Embedding& embedding, const PassTokens& tokens, float* out) override {
    const Timed timed(*this, Operation::kOther);
    inner_->embed(embedding, tokens, out);
  }
  void norm(const Norm& norm, const float* x, int tokens, int size, float* out, bool accumulate) override {
    const Timed timed(*this, Operation::kOther);
    inner_->norm(norm, x, tokens, size, out, accumulate);
  }
  void linear(const Weight& weight, const float* x, int tokens, float* out, bool accumulate) override {
    const Timed timed(*this, Operation::kLinear, weight, tokens);
    inner_->linear(weight, x, tokens, out, accumulate);
  }
  void activate(Activation activation, const float* hidden, int tokens, int size, float* out) override {
    const Timed timed(*this, Operation::kOther);
    inner_->activate(activation, hidden, tokens, size, out);
  }
  void angles(const Rotary& rotary, std::span<const TokenAt> tokens, float* out) override {
    const Timed timed(*this, Operation::kOther);
    inner_->angles(rotary, tokens, out);
  }
  void turn_heads(float* x, int stride, int tokens, int heads, int size, const Norm& norm, const float* angles,
                  int pairs) override {
    const Timed timed(*this, Operation::kOther);
    inner_->turn_heads(x, stride, tokens, heads, size, norm, angles, pairs);
  }
  void store(KeyValueCache& cache, std::span<const TokenAt> tokens, const float* keys, const float* values,
             int stride) override {
    const Timed timed(*this, Operation::kAttention);
    inner_->store(cache, tokens, keys, values, stride);
  }
  void copy(KeyValueCache& cache, int from, int to, int positions) override {
    const Timed timed(*this, Operation::kAttention);
    inner_->copy(cache, from, to, positions);
  }
  void attend(const KeyValueCache& cache, std::span<const TokenAt> tokens, const float* queries, int stride,
              const AttentionRule& rule, float* out) override {
    const Timed timed(*this, Operation::kAttention);
    for (const auto& token : tokens)
      costs_[static_cast<int>(Operation::kAttention)].flops += 4.0 * token.length * width_;
    inner_->attend(cache, tokens, queries, stride, rule, out);
  }
  void gather(const float* x, std::span<const int32_t> indices, int size, float* out) override {
    const Timed timed(*this, Operation::kOther);
    inner_->gather(x, indices, size, out);
  }
  void pick(const Weight& head, const float* hidden, std::span<const PickRequest> requests,
            std::span<PickResult> results) override {
    const Timed timed(*this, Operation::kHead, head, static_cast<int>(requests.size()));
    inner_->pick(head, hidden, requests, results);
  }

 private:
  class Timed {
   public:
    Timed(ProfiledOperations& operations, Operation operation)
        : cost_(operations.costs_[static_cast<int>(operation)]), watch_(cost_.seconds) {}
    Timed(ProfiledOperations& operations, Operation operation, const Weight& weight, int tokens)
        : Timed(operations, operation) {
      cost_.weight_bytes += static_cast<double>(weight.bytes());
      cost_.flops += 2.0 * tokens * weight.outputs * weight.inputs;
    }

   private:
    OperationCost& cost_;
    const Stopwatch watch_;
  };

  const std::unique_ptr<Operations> inner_;
  const int width_;
  Costs& costs_;
};

namespace {

// Writes positions [0, length) of every row: memory that was never touched is not read from where a decode's caches
// are.
void fill(Operations& operations, KeyValueCache& cache, int rows, int length, int width) {
  if (length == 0) return;
  Buffer line = operations.allocate(width);
  std::vector<float> values(width);
  for (int i = 0; i < width; ++i) values[i] = 0.125f * static_cast<float>(i % 7 - 3);
  operations.upload(line, values);
  std::vector<TokenAt> tokens(length);
  for (int row = 0; row < rows; ++row) {
    for (int position = 0; position < length; ++position) tokens[position] = {row, position, position + 1};
    // Stride 0: all of them are stored from the one line.
    operations.store(cache, operations.place({{}, {}, tokens, {}, {}}).self, line.data, line.data, 0);
  }
}

}  // namespace

Probe::Probe(const std::string& device, std::shared_ptr<const Transformer> model, int rows, int source_tokens,
             int history, int most_tokens, int threads)
    : model_(std::move(model)),
      source_tokens_(source_tokens),
      history_(history),
      most_tokens_(most_tokens),
      backend_(make_backend(device, threads)),
      operations_([&]() -> Operations& {
        if (device == "cpu")
          backend_.operations = std::make_unique<ProfiledOperations>(std::move(backend_.operations),
                                                                     model_->config().decoder.query_size(), costs_);
        return *backend_.operations;
      }()),
      end_(operations_.allocate(1)),
      state_(*model_, rows, source_tokens, history + most_tokens),
      // The default one: what is timed is a pass that the host enqueues.
      runner_(std::make_unique<Runner>(
          operations_,
          [this](int) -> DecoderPass {
            const auto work = std::make_shared<Workspace>();
            return [this, work](const PassTokens& placed, const Poll& poll) -> const float* {
              model_->decode(operations_, state_, *work, placed, poll);
              return work->gathered;
            };
          },
          model_->head())) {
  const int width = model_->config().decoder.key_size();
  const float end = 0.0f;
  operations_.upload(end_, std::span(&end, 1));
  state_.make_caches(operations_, model_->config());
  const int prompt = model_->config().has_encoder() ? 0 : source_tokens - 1;
  for (auto& cache : state_.self) fill(operations_, *cache, rows, prompt + history, width);
  for (auto& cache : state_.cross) fill(operations_, *cache, rows, source_tokens, width);
  std::fill(state_.source_length.begin(), state_.source_length.end(), source_tokens);
  if (model_->config().has_encoder()) return;
  std::fill(state_.offset.begin(), state_.offset.end(), source_tokens - 1);
}

Probe::~Probe() = default;

template <typename Pass>
PassCosts Probe::repeated(int repeats, Pass&& pass) {
  costs_ = {};
  PassCosts out;
  for (int i = 0; i < repeats; ++i) {
    const auto start = Clock::now();
    pass();
    float end = 0.0f;
    operations_.download(std::span(&end, 1), end_.data);
    out.seconds.push_back(seconds_since(start));
  }
  out.operations = costs_;
  for (auto& cost : out.operations) cost.seconds /= repeats, cost.weight_bytes /= repeats, cost.flops /= repeats;
  return out;
}

PassCosts Probe::encode(int repeats, const Poll& poll) {
  std::vector<int> rows(state_.rows);
  std::iota(rows.begin(), rows.end(), 0);
  std::vector<std::vector<int32_t>> sources(state_.rows, std::vector<int32_t>(source_tokens_));
  for (int row = 0; row < state_.rows; ++row)
    for (int i = 0; i < source_tokens_; ++i) sources[row][i] = random_id(row, i);
  const Listening listening(operations_, poll);
  return repeated(repeats, [&] { model_->open(operations_, state_, encoding_, rows, sources, poll); });
}

PassCosts Probe::decode(int tokens, int asked, int repeats, const Poll& poll) {
  require(tokens >= 1 && tokens <= most_tokens_, "a pass has 1 to ", most_tokens_, " tokens of a row here, got ",
          tokens);
  require(asked >= 0 && asked <= tokens, "the head is asked about 0 to ", tokens, " tokens of a row, got ", asked);
  std::vector<InputToken> input;
  for (int row = 0; row < state_.rows; ++row)
    for (int i = 0; i < tokens; ++i) input.push_back({random_id(row, history_ + i), row, history_ + i, 0});
  std::vector<int32_t> wanted;
  std::vector<PickRequest> requests;
  for (size_t t = 0; t < input.size(); ++t) {
    const int after = history_ + tokens - 1 - input[t].position;  // tokens of the row behind this one
    if (after >= asked) continue;
    PickRequest request;
    if (after > 0) {
      request.check = Check::kLenience, request.threshold = asked_threshold(Check::kLenience, 1.0);
      request.draft = input[t + 1].id;
    }
    wanted.push_back(static_cast<int32_t>(t));
    requests.push_back(request);
  }
  TokenLists lists;
  const PassTokens pass = model_->list(state_, input, wanted, lists);
  std::vector<PickResult> results(requests.size());
  const Listening listening(operations_, poll);
  return repeated(repeats, [&] {
    runner_->answer(pass, requests, results, poll);
    for (const auto& result : results)
      if (!result.finite)
        throw NonFiniteError(concat("the ", model_->config().name, "'s logits are not finite on random tokens"));
  });
}

size_t Probe::cache_bytes() const {
  size_t total = 0;
  for (const auto& cache : state_.self) total += cache->bytes();
  for (const auto& cache : state_.cross) total += cache->bytes();
  return total;
}

int32_t Probe::random_id(int row, int position) const {
  const double u = uniform(0, row, static_cast<uint32_t>(position), RandomStream::kStudent);
  return static_cast<int32_t>(u * model_->config().vocabulary);
}

}  // namespace kdtw
