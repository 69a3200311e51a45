// The Backend on a CUDA device, written against the kernels' table only. Everything is enqueued on one stream; the host
// waits where it needs numbers, once a pick.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

#include "backend/backend.h"
#include "backend/cuda/drafter.h"
#include "backend/cuda/memory.h"
#include "backend/cuda/weight.h"
#include "core/error.h"

namespace kdtw::cuda {
namespace {

static_assert(sizeof(TokenAt) == sizeof(KdtwToken) && sizeof(TokenAt) == 3 * sizeof(int32_t));

const KdtwToken* as_tokens(const TokenAt* tokens) { return reinterpret_cast<const KdtwToken*>(tokens); }

KdtwCheck check_of(Check check) {
  switch (check) {
    case Check::kNone:
      return kKdtwNone;
    case Check::kScore:
      return kKdtwScore;
    case Check::kLenience:
      return kKdtwLenience;
    case Check::kRejection:
      return kKdtwRejection;
    case Check::kTopK:
      return kKdtwTopK;
    case Check::kDivergence:
      return kKdtwDivergence;
  }
  throw std::logic_error("a check that the kernels do not know");
}

class CudaBackend : public Backend, private DraftHost {
 public:
  explicit CudaBackend(int device)
      : pool_(Pool::of(library(), device)),
        table_(*pool_->library().table),
        stream_(pool_->create_stream()),
        staging_(pool_, stream_) {}

  ~CudaBackend() override {
    pool_->end_stream(stream_);
    if (answers_ != nullptr) table_.release_host(answers_);
  }

  Buffer allocate(size_t floats) override {
    auto memory = memory_of(floats * sizeof(float));
    auto* data = static_cast<float*>(memory.get());
    return {std::move(memory), data, floats};
  }

  void upload(Buffer& to, std::span<const float> from) override {
    pool_->use();
    check(table_, table_.copy_in(to.data, from.data(), from.size_bytes(), stream_), "copy to the device");
    wait();
  }

  void download(std::span<float> to, const float* from) override {
    pool_->use();
    check(table_, table_.copy_out(to.data(), from, to.size_bytes(), stream_), "copy from the device");
    wait();
  }

  std::unique_ptr<Weight> pack(std::span<const float* const> parts, std::span<const int> part_outputs, int inputs,
                               DType dtype, Use use) override {
    pool_->use();
    return std::make_unique<DeviceWeight>(pool_, stream_, parts, part_outputs, inputs, dtype, use);
  }

  std::unique_ptr<Weight> adopt(int, int, DType, Blob) override {
    throw std::invalid_argument("packed weights of a file are for device 'cpu'; load the model without cache");
  }

  std::unique_ptr<KeyValueCache> make_cache(int rows, int heads, int head_size, int capacity, DType dtype) override {
    return std::make_unique<DeviceCache>(*pool_, stream_, rows, heads, head_size, capacity, dtype);
  }

  PassTokens place(const PassTokens& tokens) override {
    begin(5, tokens.ids.size_bytes() + tokens.marked.size_bytes() + tokens.self.size_bytes() +
                 tokens.cross.size_bytes() + tokens.wanted.size_bytes());
    const PassTokens placed{staging_.put(tokens.ids), staging_.put(tokens.marked), staging_.put(tokens.self),
                            staging_.put(tokens.cross), staging_.put(tokens.wanted)};
    staging_.send();
    return placed;
  }

  void embed(const Weight& table, std::span<const int32_t> ids, std::span<const uint8_t> marked, const float* mark,
             float* out) override {
    if (ids.empty()) return;
    pool_->use();
    check(table_,
          table_.embed(&view(table), ids.data(), marked.data(), mark, static_cast<int32_t>(ids.size()), out, stream_),
          "embed");
  }

  void rms_norm(const float* x, const float* scale, float epsilon, int tokens, int size, float* out) override {
    if (tokens == 0) return;
    pool_->use();
    check(table_, table_.rms_norm(x, scale, epsilon, tokens, size, out, stream_), "rms_norm");
  }

  void linear(const Weight& weight, const float* x, int tokens, float* out, bool accumulate) override {
    multiply(weight, x, nullptr, 0.0f, tokens, accumulate ? kKdtwAdd : kKdtwStore, out);
  }

  void norm_linear(const Weight& weight, const float* x, const float* scale, float epsilon, int tokens, float*,
                   float* out) override {
    multiply(weight, x, scale, epsilon, tokens, kKdtwStore, out);
  }

  void norm_linear_activate(const Weight& weight, Activation activation, const float* x, const float* scale,
                            float epsilon, int tokens, float*, float*, float* out) override {
    const bool gated = activation == Activation::kGatedGelu;
    multiply(weight, x, scale, epsilon, tokens, gated ? kKdtwGatedGelu : kKdtwRelu, out);
  }

  void activate(Activation activation, const float* hidden, int tokens, int size, float* out) override {
    if (tokens == 0) return;
    pool_->use();
    check(table_, table_.activate(activation == Activation::kGatedGelu, hidden, tokens, size, out, stream_),
          "activate");
  }

  void store(KeyValueCache& cache, std::span<const TokenAt> tokens, const float* keys, const float* values,
             int stride) override {
    if (tokens.empty()) return;
    pool_->use();
    check(table_,
          table_.store(&static_cast<DeviceCache&>(cache).view(), as_tokens(tokens.data()),
                       static_cast<int32_t>(tokens.size()), keys, values, stride, stream_),
          "store");
  }

  void attend(const KeyValueCache& cache, std::span<const TokenAt> tokens, const float* queries, int stride,
              const PositionBias* bias, float* out) override {
    if (tokens.empty()) return;
    pool_->use();
    const KdtwBias view = bias ? KdtwBias{bias->table, bias->lowest, bias->highest} : KdtwBias{nullptr, 0, 0};
    check(table_,
          table_.attend(&static_cast<const DeviceCache&>(cache).view(), as_tokens(tokens.data()),
                        static_cast<int32_t>(tokens.size()), queries, stride, &view, out, stream_),
          "attend");
  }

  void gather(const float* x, std::span<const int32_t> indices, int size, float* out) override {
    if (indices.empty()) return;
    pool_->use();
    check(table_, table_.gather(x, indices.data(), static_cast<int32_t>(indices.size()), size, out, stream_), "gather");
  }

  void pick(const Weight& head, const float* hidden, std::span<const PickRequest> requests,
            std::span<PickResult> results) override {
    if (requests.empty()) return;
    const int n = static_cast<int>(requests.size());
    const KdtwResult* const decided = decide(head, hidden, send(requests), n);
    KdtwResult* answers = answers_for(n);
    check(table_, table_.copy_out(answers, decided, n * sizeof(KdtwResult), stream_), "copy from the device");
    wait();
    std::transform(answers, answers + n, results.begin(), to_pick);
  }

  std::unique_ptr<Drafter> make_drafter(DecoderPass pass, const Weight& head, const DraftRules& rules, int rows,
                                        int steps) override {
    return make_cuda_drafter(*this, *pool_, stream_, std::move(pass), head, rules, rows, steps);
  }

 private:
  const KdtwResult* decide(const Weight& head, const float* hidden, const KdtwRequest* requests, int count) override {
    const int V = head.outputs, chunks = (V + kKdtwChunk - 1) / kKdtwChunk;
    float* logits = scratch(scratch_->logits, static_cast<size_t>(count) * V);
    auto* summaries = scratch_as<KdtwSummary>(scratch_->summaries, static_cast<size_t>(count) * chunks);
    auto* decided = scratch_as<KdtwResult>(scratch_->decided, count);
    linear(head, hidden, count, logits, false);
    check(table_, table_.pick(logits, V, requests, count, summaries, decided, stream_), "pick");
    return decided;
  }

  void use_scratch(Scratch* scratch) override { scratch_ = scratch != nullptr ? scratch : &own_scratch_; }

  void wait() override {
    check(table_, table_.synchronise(stream_), "wait for the device");
    staging_.reset();
  }

  const KdtwWeight& view(const Weight& weight) const {
    const auto* on_device = dynamic_cast<const DeviceWeight*>(&weight);
    if (on_device == nullptr || &on_device->library() != &pool_->library())
      throw std::runtime_error("the model was packed for another device, or with another CUDA library, than is in use");
    return on_device->view();
  }

  std::shared_ptr<void> memory_of(size_t bytes) { return pool_->allocate(std::max<size_t>(bytes, 1), stream_); }

  // Before `pieces` arrays of `bytes` together are put.
  void begin(size_t pieces, size_t bytes) {
    pool_->use();
    staging_.make_room(pieces, bytes);
  }

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

  // out = epilogue(x W^T), of x normalised where norm_scale is given.
  void multiply(const Weight& weight, const float* x, const float* norm_scale, float epsilon, int tokens,
                KdtwEpilogue epilogue, float* out) {
    if (tokens == 0) return;
    pool_->use();
    const KdtwWeight& w = view(weight);
    if (w.scales == nullptr) {
      check(table_, table_.linear(&w, x, norm_scale, epsilon, tokens, epilogue, out, stream_), "linear");
      return;
    }
    void* scaled =
        scratch(scratch_->scaled, static_cast<size_t>(tokens) * w.stride * bytes_of(w.format) / sizeof(float));
    float* scales = scratch(scratch_->scales, tokens);
    if (w.format == kKdtwInt8) {
      auto* to = static_cast<int8_t*>(scaled);
      check(table_, table_.quantise(x, norm_scale, epsilon, tokens, w.inputs, w.stride, to, scales, stream_),
            "quantise");
      check(table_, table_.linear_int8(&w, to, scales, tokens, epilogue, out, stream_), "linear_int8");
    } else {
      auto* to = static_cast<uint16_t*>(scaled);
      check(table_, table_.scale_to_fp16(x, norm_scale, epsilon, tokens, w.inputs, w.stride, to, scales, stream_),
            "scale_to_fp16");
      check(table_, table_.linear_tensor(&w, to, scales, tokens, epilogue, out, stream_), "linear_tensor");
    }
  }

  const KdtwRequest* send(std::span<const PickRequest> requests) {
    size_t bytes = requests.size() * sizeof(KdtwRequest);
    for (const auto& request : requests) bytes += request.banned.size_bytes() + request.draft_banned.size_bytes();
    begin(1 + 2 * requests.size(), bytes);
    const auto put = [&](std::span<const int32_t> ids) { return staging_.put(ids).data(); };
    requests_.clear();
    for (const auto& request : requests) {
      KdtwRequest& to = requests_.emplace_back();
      std::memset(&to, 0, sizeof to);
      to.banned = put(request.banned), to.banned_count = static_cast<int32_t>(request.banned.size());
      to.draft_banned = put(request.draft_banned);
      to.draft_banned_count = static_cast<int32_t>(request.draft_banned.size());
      to.draft_logits = request.draft_logits, to.draft_vocabulary = request.draft_vocabulary;
      to.keep_logits = request.keep_logits;
      to.uniform = request.uniform, to.accept_uniform = request.accept_uniform;
      to.sampling = sampling_of(request.sampling), to.draft_sampling = sampling_of(request.draft_sampling);
      to.check = check_of(request.check), to.draft = request.draft;
      to.threshold = request.threshold;
      if (request.check == Check::kLenience)
        to.threshold = request.threshold >= 1.0 ? std::numeric_limits<double>::infinity() : std::log(request.threshold);
      to.want_log_prob = request.want_log_prob;
      to.want_confidence = request.want_confidence || request.check == Check::kDivergence;
      to.want_entropy = request.want_entropy;
    }
    const KdtwRequest* const sent = staging_.put(std::span<const KdtwRequest>(requests_)).data();
    staging_.send();
    return sent;
  }

  // Pinned memory for n results.
  KdtwResult* answers_for(int n) {
    if (n > answers_capacity_) {
      if (answers_ != nullptr) table_.release_host(answers_);
      answers_ = nullptr, answers_capacity_ = 0;
      void* host = nullptr;
      if (table_.allocate_host(&host, 2 * n * sizeof(KdtwResult)) != 0) throw OutOfMemory(2 * n * sizeof(KdtwResult));
      answers_ = static_cast<KdtwResult*>(host), answers_capacity_ = 2 * n;
    }
    return answers_;
  }

  const std::shared_ptr<Pool> pool_;
  const KdtwCudaTable& table_;
  void* const stream_;
  Staging staging_;
  Scratch own_scratch_;
  Scratch* scratch_ = &own_scratch_;
  std::vector<KdtwRequest> requests_;
  KdtwResult* answers_ = nullptr;
  int answers_capacity_ = 0;
};

}  // namespace
}  // namespace kdtw::cuda

namespace kdtw {

std::unique_ptr<Backend> make_cuda_backend(int index) { return std::make_unique<cuda::CudaBackend>(index); }

}  // namespace kdtw
