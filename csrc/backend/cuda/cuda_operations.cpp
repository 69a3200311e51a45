// Operations on a CUDA device, written against the kernels' table only. Everything is enqueued on one stream, or on a
// second one beside it (aside); the host waits only where it needs numbers, which is once a pick.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <functional>
#include <limits>
#include <optional>
#include <vector>

#include "backend/cuda/graph_host.h"
#include "backend/cuda/memory.h"
#include "backend/cuda/runner.h"
#include "backend/cuda/weight.h"
#include "core/error.h"

namespace kdtw::cuda {
namespace {

// A stream, and what is on its way to its operations.
struct Queue {
  explicit Queue(const std::shared_ptr<Pool>& pool)
      : pool(*pool), stream(pool->begin_stream()), staging(pool, stream) {}
  ~Queue() { pool.end_stream(stream); }

  Pool& pool;
  void* const stream;
  Staging staging;
  Scratch scratch;
};

class CudaOperations : public Operations, public GraphHost {
 public:
  explicit CudaOperations(int device)
      : pool_(Pool::of(library(), device)), table_(*pool_->library().table), main_(pool_) {}

  ~CudaOperations() override { table_.synchronise(main_.stream); }

  Buffer allocate(size_t floats) override {
    auto memory = memory_of(floats * sizeof(float));
    auto* data = static_cast<float*>(memory.get());
    return {std::move(memory), data, floats};
  }

  void upload(Buffer& to, std::span<const float> from) override {
    const auto here = pool_->use();
    check(table_, table_.copy_in(to.data, from.data(), from.size_bytes(), queue_->stream), "copy to the device");
    wait();
  }

  void download(std::span<float> to, const float* from) override {
    const auto here = pool_->use();
    check(table_, table_.copy_out(to.data(), from, to.size_bytes(), queue_->stream), "copy from the device");
    wait();
  }

  std::unique_ptr<Weight> pack(std::span<const float* const> parts, std::span<const int> part_outputs, int inputs,
                               DType dtype, WeightRole role) override {
    const auto here = pool_->use();
    return std::make_unique<DeviceWeight>(pool_, queue_->stream, parts, part_outputs, inputs, dtype, role);
  }

  std::unique_ptr<Weight> adopt(int, int, DType, Blob) override {
    throw std::invalid_argument("packed weights of a file are for device 'cpu'; load the model without cache");
  }

  std::unique_ptr<KeyValueCache> make_cache(int rows, int heads, int head_size, int capacity, DType dtype) override {
    const auto allocate = [this](size_t bytes) { return memory_of(bytes); };
    return std::make_unique<DeviceCache>(allocate, rows, heads, head_size, capacity, dtype);
  }

  std::unique_ptr<KeyValueCache> make_passing_cache(Buffer& memory, int rows, int heads, int head_size,
                                                    int capacity) override {
    const auto allocate = [&](size_t bytes) {
      if (memory.size * sizeof(float) < bytes) {
        memory = {};
        memory = this->allocate((bytes + sizeof(float) - 1) / sizeof(float));
      }
      return memory.memory;
    };
    return std::make_unique<DeviceCache>(allocate, rows, heads, head_size, capacity, DType::kFp32);
  }

  PassTokens place(const PassTokens& tokens) override {
    const auto here = pool_->use();
    begin(5, tokens.ids.size_bytes() + tokens.marked.size_bytes() + tokens.self.size_bytes() +
                 tokens.cross.size_bytes() + tokens.wanted.size_bytes());
    const PassTokens placed{queue_->staging.put(tokens.ids), queue_->staging.put(tokens.marked),
                            queue_->staging.put(tokens.self), queue_->staging.put(tokens.cross),
                            queue_->staging.put(tokens.wanted)};
    queue_->staging.send();
    return placed;
  }

  void embed(const Embedding& embedding, const PassTokens& tokens, float* out) override {
    if (tokens.ids.empty()) return;
    const auto here = pool_->use();
    const KdtwWeight table = view(*embedding.table);
    const float* positions = embedding.positions;
    if (positions != nullptr) positions += static_cast<size_t>(embedding.first_position) * table.inputs;
    check(table_,
          table_.embed(&table, embedding.scale, tokens.ids.data(),
                       embedding.mark != nullptr ? tokens.marked.data() : nullptr, embedding.mark, tokens.self.data(),
                       positions, static_cast<int32_t>(tokens.ids.size()), out, queue_->stream),
          "embed");
  }

  void norm(const Norm& norm, const float* x, int tokens, int size, float* out, bool accumulate) override {
    if (tokens == 0) return;
    const auto here = pool_->use();
    check(table_, table_.norm(&norm, x, tokens, size, accumulate, out, queue_->stream), "norm");
  }

  void angles(const Rotary& rotary, std::span<const TokenAt> tokens, float* out) override {
    if (tokens.empty()) return;
    const auto here = pool_->use();
    const auto count = static_cast<int32_t>(tokens.size());
    check(table_, table_.angles(&rotary, tokens.data(), count, out, queue_->stream), "angles");
  }

  void turn_heads(float* x, int stride, int tokens, int heads, int size, const Norm& norm, const float* angles,
                  int pairs) override {
    if (tokens == 0) return;
    const auto here = pool_->use();
    check(table_, table_.turn_heads(x, stride, tokens, heads, size, &norm, angles, pairs, queue_->stream),
          "turn_heads");
  }

  void linear(const Weight& weight, const float* x, int tokens, float* out, bool accumulate) override {
    multiply(weight, x, {}, tokens, nullptr, {accumulate ? kKdtwAdd : kKdtwStore, {}}, out);
  }

  void norm_linear(const Weight& weight, const float* x, const Norm& norm, int tokens, float* normed,
                   float* out) override {
    multiply(weight, x, norm, tokens, normed, {kKdtwStore, {}}, out);
  }

  void norm_linear_activate(const Weight& weight, Activation activation, const float* x, const Norm& norm, int tokens,
                            float* normed, float*, float* out) override {
    multiply(weight, x, norm, tokens, normed, {activation.gated ? kKdtwGate : kKdtwActivate, activation.function}, out);
  }

  void activate(Activation activation, const float* hidden, int tokens, int size, float* out) override {
    if (tokens == 0) return;
    const auto here = pool_->use();
    check(table_, table_.activate(&activation, hidden, tokens, size, out, queue_->stream), "activate");
  }

  void store(KeyValueCache& cache, std::span<const TokenAt> tokens, const float* keys, const float* values,
             int stride) override {
    if (tokens.empty()) return;
    const auto here = pool_->use();
    check(table_,
          table_.store(&static_cast<DeviceCache&>(cache).view(), tokens.data(), static_cast<int32_t>(tokens.size()),
                       keys, values, stride, queue_->stream),
          "store");
  }

  void copy(KeyValueCache& cache, int from, int to, int positions) override {
    const auto here = pool_->use();
    check(table_, table_.copy(&static_cast<DeviceCache&>(cache).view(), from, to, positions, queue_->stream), "copy");
  }

  void attend(const KeyValueCache& cache, std::span<const TokenAt> tokens, const float* queries, int stride,
              const AttentionRule& rule, float* out) override {
    if (tokens.empty()) return;
    const auto here = pool_->use();
    const KdtwCache& keys = static_cast<const DeviceCache&>(cache).view();
    const auto count = static_cast<int32_t>(tokens.size());
    float* const chunks = scratch(scratch_->chunks, kdtw_attention_scratch(&keys, count, rule.heads));
    check(table_, table_.attend(&keys, tokens.data(), count, queries, stride, &rule, chunks, out, queue_->stream),
          "attend");
  }

  void gather(const float* x, std::span<const int32_t> indices, int size, float* out) override {
    if (indices.empty()) return;
    const auto here = pool_->use();
    check(table_, table_.gather(x, indices.data(), static_cast<int32_t>(indices.size()), size, out, queue_->stream),
          "gather");
  }

  void pick(const Weight& head, const float* hidden, std::span<const PickRequest> requests,
            std::span<PickResult> results) override {
    if (requests.empty()) return;
    const auto here = pool_->use();
    const int n = static_cast<int>(requests.size());
    const PickResult* const decided = decide(head, hidden, send(requests), n, sampling_of(requests));
    PickResult* answers = answers_for(n);
    check(table_, table_.copy_out(answers, decided, n * sizeof(PickResult), queue_->stream), "copy from the device");
    wait();
    std::copy(answers, answers + n, results.begin());
  }

  Pool& pool() override { return *pool_; }
  void* stream() override { return main_.stream; }
  void follow_program() override { pool_->follow_program(main_.stream); }

  void aside(const std::function<void()>& work) override {
    const auto here = pool_->use();
    if (!side_) side_.emplace(pool_);
    check(table_, table_.follow(side_->stream, main_.stream), "order of two streams");
    put_aside_ = true;
    struct Back {
      CudaOperations& backend;
      ~Back() { backend.queue_ = &backend.main_, backend.use_scratch(nullptr); }
    } back{*this};
    queue_ = &*side_;
    use_scratch(nullptr);
    work();
  }

  void join() override {
    if (!put_aside_) return;
    const auto here = pool_->use();
    check(table_, table_.follow(main_.stream, side_->stream), "order of two streams");
    put_aside_ = false;
  }

  const PickResult* decide(const Weight& head, const float* hidden, const PickRequest* requests, int count,
                           KdtwSampling sampling) override {
    const auto here = pool_->use();
    const int V = head.outputs, chunks = (V + kKdtwChunk - 1) / kKdtwChunk;
    float* logits = scratch(scratch_->logits, static_cast<size_t>(count) * V);
    auto* summaries = scratch_as<KdtwSummary>(scratch_->summaries, static_cast<size_t>(count) * chunks);
    auto* sifts = sampling == kKdtwCuts ? scratch_as<KdtwSift>(scratch_->sifts, count) : nullptr;
    auto* decided = scratch_as<PickResult>(scratch_->decided, count);
    linear(head, hidden, count, logits, false);
    check(table_, table_.pick(logits, V, requests, count, sampling, summaries, sifts, decided, queue_->stream), "pick");
    return decided;
  }

  std::span<const PickRequest> stage(std::span<const PickRequest> requests) override {
    const auto here = pool_->use();
    put_lists(requests, 0);
    queue_->staging.send();
    return requests_;
  }

  void use_scratch(Scratch* scratch) override { scratch_ = scratch != nullptr ? scratch : &queue_->scratch; }

  void wait() override {
    const auto here = pool_->use();
    check(table_, table_.synchronise(queue_->stream), "wait for the device");
    queue_->staging.reset();
    if (side_ && !put_aside_) side_->staging.reset();  // it was waited for, too
  }

 private:
  KdtwWeight view(const Weight& weight) const {
    const auto* on_device = dynamic_cast<const DeviceWeight*>(&weight);
    if (on_device == nullptr || &on_device->library() != &pool_->library())
      throw std::runtime_error("the model was packed for another device, or with another CUDA library, than is in use");
    KdtwWeight seen = on_device->view();
    seen.bias = weight.bias.data, seen.cap = weight.cap;
    return seen;
  }

  std::shared_ptr<void> memory_of(size_t bytes) { return pool_->allocate(std::max<size_t>(bytes, 1), queue_->stream); }

  // Before `pieces` arrays of `bytes` together are put.
  void begin(size_t pieces, size_t bytes) { queue_->staging.make_room(pieces, bytes); }

  // Memory that is kept from call to call; grown by half when it is too small.
  float* scratch(Buffer& buffer, size_t floats) {
    if (buffer.size < floats) {
      if (scratch_->of_graphs) scratch_->outgrown.push_back(buffer);
      buffer = {};
      buffer = allocate(floats + floats / 2);
    }
    return buffer.data;
  }
  template <typename T>
  T* scratch_as(Buffer& buffer, size_t count) {
    static_assert(sizeof(T) % sizeof(float) == 0);
    return reinterpret_cast<T*>(scratch(buffer, count * (sizeof(T) / sizeof(float))));
  }

  // out = ending(norm(x) W^T). A norm is part of a kernel that there is anyway, but for layer norms before weights
  // without scales: those go through normed [T, K].
  void multiply(const Weight& weight, const float* x, const Norm& norm, int tokens, float* normed,
                const KdtwEnding& ending, float* out) {
    if (tokens == 0) return;
    const auto here = pool_->use();
    const KdtwWeight w = view(weight);
    if (w.scales == nullptr) {
      const bool apart = norm.scale != nullptr && (norm.centred || norm.shift != nullptr);
      if (apart) this->norm(norm, x, tokens, w.inputs, normed, false);
      const Norm within = apart ? Norm{} : norm;
      check(table_, table_.linear(&w, apart ? normed : x, &within, tokens, &ending, out, queue_->stream), "linear");
      return;
    }
    void* scaled =
        scratch(scratch_->scaled, static_cast<size_t>(tokens) * w.stride * bytes_of(w.format) / sizeof(float));
    float* scales = scratch(scratch_->scales, tokens);
    if (w.format == kKdtwInt8) {
      auto* to = static_cast<int8_t*>(scaled);
      check(table_, table_.quantise(x, &norm, tokens, w.inputs, w.stride, to, scales, queue_->stream), "quantise");
      check(table_, table_.linear_int8(&w, to, scales, tokens, &ending, out, queue_->stream), "linear_int8");
    } else {
      auto* to = static_cast<uint16_t*>(scaled);
      check(table_, table_.scale_to_fp16(x, &norm, tokens, w.inputs, w.stride, to, scales, queue_->stream),
            "scale_to_fp16");
      check(table_, table_.linear_tensor(&w, to, scales, tokens, &ending, out, queue_->stream), "linear_tensor");
    }
  }

  const PickRequest* send(std::span<const PickRequest> requests) {
    put_lists(requests, sizeof(PickRequest));
    const PickRequest* const sent = queue_->staging.put(std::span<const PickRequest>(requests_)).data();
    queue_->staging.send();
    return sent;
  }

  // Makes requests_ of the requests, their lists put, leaving room for so many bytes more a request.
  void put_lists(std::span<const PickRequest> requests, size_t more) {
    size_t bytes = requests.size() * more;
    for (const auto& request : requests) bytes += (request.banned_count + request.draft_banned_count) * sizeof(int32_t);
    begin(1 + 2 * requests.size(), bytes);
    requests_.assign(requests.begin(), requests.end());
    for (auto& request : requests_) {
      request.banned = put(request.banned, request.banned_count);
      request.draft_banned = put(request.draft_banned, request.draft_banned_count);
    }
  }
  const int32_t* put(const int32_t* ids, int count) {
    return queue_->staging.put(std::span(ids, static_cast<size_t>(count))).data();
  }

  // Pinned memory for n results.
  PickResult* answers_for(size_t n) {
    if (!answers_ || answers_->bytes() < n * sizeof(PickResult)) {
      answers_.reset();
      answers_.emplace(*pool_, 2 * n * sizeof(PickResult));
    }
    return reinterpret_cast<PickResult*>(answers_->get());
  }

  const std::shared_ptr<Pool> pool_;
  const KdtwCudaTable& table_;
  Queue main_;
  std::optional<Queue> side_;  // made when something is put aside
  Queue* queue_ = &main_;      // that operations go to
  bool put_aside_ = false;     // and not joined yet
  Scratch* scratch_ = &main_.scratch;
  std::vector<PickRequest> requests_;
  std::optional<Pinned> answers_;
};

}  // namespace
}  // namespace kdtw::cuda

namespace kdtw {

Backend make_cuda_backend(int index) {
  auto operations = std::make_unique<cuda::CudaOperations>(index);
  cuda::CudaOperations& own = *operations;
  return {std::move(operations), [&own](const MakePass& make_pass, const Weight& head, int rows) {
            return cuda::make_cuda_runner(own, own, make_pass, head, rows);
          }};
}

}  // namespace kdtw
