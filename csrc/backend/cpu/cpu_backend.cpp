#include "backend/cpu/cpu_backend.h"

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <cstring>

#include "backend/cpu/memory.h"
#include "backend/cpu/packed_weight.h"
#include "backend/cpu/thread_pool.h"
#include "core/error.h"

namespace kdtw::cpu {
namespace {

int round_up(int value, int multiple) { return (value + multiple - 1) / multiple * multiple; }

// keys: [R][H][capacity / kKeyBlock][D][kKeyBlock]; values: [R][H][capacity][D rounded up to 16].
class BlockedCache : public KeyValueCache {
 public:
  BlockedCache(int rows, int heads, int head_size, int capacity)
      : heads(heads),
        head_size(head_size),
        value_stride(round_up(head_size, 16)),
        capacity(round_up(capacity, kKeyBlock)),
        rows_(rows),
        memory_(zeroed(bytes())),
        keys_(aligned(memory_)),
        values_(keys_ + static_cast<size_t>(rows) * heads * this->capacity * head_size) {}

  size_t bytes() const override {
    return sizeof(float) * rows_ * heads * static_cast<size_t>(capacity) * (head_size + value_stride);
  }
  float* keys(int row, int head) const { return keys_ + plane(row, head) * head_size; }
  float* values(int row, int head) const { return values_ + plane(row, head) * value_stride; }

  const int heads, head_size, value_stride, capacity;

 private:
  size_t plane(int row, int head) const { return (static_cast<size_t>(row) * heads + head) * capacity; }

  int rows_;
  std::shared_ptr<void> memory_;
  float* keys_;
  float* values_;
};

// Below this many multiply-adds an operation stays on the calling thread: waking a worker costs about 2 us.
constexpr long kParallelWork = 1 << 17;

class CpuBackend : public Backend {
 public:
  explicit CpuBackend(int threads) : kernels_(kernels()), threads_(threads) {}

  Buffer allocate(size_t floats) override {
    auto memory = zeroed(floats * sizeof(float));
    float* data = aligned(memory);
    return {std::move(memory), data, floats};
  }

  void upload(Buffer& to, std::span<const float> from) override {
    std::memcpy(to.data, from.data(), from.size_bytes());
  }

  void download(std::span<float> to, const float* from) override { std::memcpy(to.data(), from, to.size_bytes()); }

  std::unique_ptr<Weight> pack(std::span<const float* const> parts, std::span<const int> part_outputs, int inputs,
                               DType dtype) override {
    int outputs = 0;
    for (const int n : part_outputs) outputs += n;
    auto weight = std::make_unique<PackedWeight>(outputs, inputs, dtype);
    weight->pack(kernels_, parts, part_outputs, threads_);
    return weight;
  }

  std::unique_ptr<KeyValueCache> make_cache(int rows, int heads, int head_size, int capacity, DType dtype) override {
    require(dtype == DType::kFp32, "caches are fp32 only so far");
    return std::make_unique<BlockedCache>(rows, heads, head_size, capacity);
  }

  void embed(const Weight& table, std::span<const int32_t> ids, std::span<const uint8_t> marked, const float* mark,
             float* out) override {
    const auto& packed = static_cast<const PackedWeight&>(table);
    const int size = table.inputs;
    for (size_t t = 0; t < ids.size(); ++t, out += size) {
      packed.unpack(ids[t], out);
      if (!marked.empty() && marked[t])
        for (int m = 0; m < size; ++m) out[m] += mark[m];
    }
  }

  void rms_norm(const float* x, const float* scale, float epsilon, int tokens, int size, float* out) override {
    for_tokens(tokens, size * 4L, [&](int first, int last) {
      for (int t = first; t < last; ++t)
        kernels_.rms_norm(x + static_cast<size_t>(t) * size, scale, epsilon, size, out + static_cast<size_t>(t) * size);
    });
  }

  void linear(const Weight& weight, const float* x, int tokens, float* out, bool accumulate) override {
    const auto& packed = static_cast<const PackedWeight&>(weight);
    const Operand& operand = prepare(packed, x, tokens);
    parallel_for(packed.panels(), 1, threads_for(static_cast<long>(tokens) * weight.inputs * weight.outputs),
                 [&](int first, int last) {
                   multiply(kernels_, packed, operand, first, last, out + first * kPanel, weight.outputs, accumulate);
                 });
  }

  void activate(Activation activation, const float* hidden, int tokens, int size, float* out) override {
    const bool gated = activation == Activation::kGatedGelu;
    for_tokens(tokens, size * 16L, [&](int first, int last) {
      for (int t = first; t < last; ++t) {
        const float* line = hidden + static_cast<size_t>(t) * size * (gated ? 2 : 1);
        float* to = out + static_cast<size_t>(t) * size;
        if (gated) {
          kernels_.gated_gelu(line, line + size, size, to);
        } else {
          kernels_.relu(line, size, to);
        }
      }
    });
  }

  void store(KeyValueCache& cache, std::span<const TokenAt> tokens, const float* keys, const float* values,
             int stride) override {
    const auto& blocked = static_cast<const BlockedCache&>(cache);
    const int D = blocked.head_size;
    for (size_t t = 0; t < tokens.size(); ++t) {
      const int block = tokens[t].position / kKeyBlock, slot = tokens[t].position % kKeyBlock;
      for (int h = 0; h < blocked.heads; ++h) {
        const float* key = keys + t * stride + h * D;
        const float* value = values + t * stride + h * D;
        float* to = blocked.keys(tokens[t].row, h) + static_cast<size_t>(block) * kKeyBlock * D + slot;
        for (int d = 0; d < D; ++d) to[d * kKeyBlock] = key[d];
        std::memcpy(blocked.values(tokens[t].row, h) + static_cast<size_t>(tokens[t].position) * blocked.value_stride,
                    value, D * sizeof(float));
      }
    }
  }

  void attend(const KeyValueCache& cache, std::span<const TokenAt> tokens, const float* queries, int stride,
              const PositionBias* bias, float* out) override {
    const auto& blocked = static_cast<const BlockedCache&>(cache);
    const int H = blocked.heads, D = blocked.head_size;
    long work = 0;
    int longest = 0;
    for (const auto& token : tokens) {
      work += static_cast<long>(token.length) * H * D * 2;
      longest = std::max(longest, token.length);
    }
    const int items = static_cast<int>(tokens.size()) * H;
    parallel_for(items, 1, work >= kParallelWork ? threads_ : 1, [&](int first, int last) {
      thread_local std::vector<float> scratch;
      scratch.resize(round_up(longest, kKeyBlock) + blocked.value_stride);
      for (int item = first; item < last; ++item) {
        const int t = item / H, h = item % H;
        const auto& token = tokens[t];
        const float* table = bias ? bias->table + h * (bias->lowest + bias->highest + 1) : nullptr;
        kernels_.attend(queries + static_cast<size_t>(t) * stride + h * D, blocked.keys(token.row, h),
                        blocked.values(token.row, h), token.length, D, blocked.value_stride, table,
                        bias ? bias->lowest : 0, bias ? bias->highest : 0, token.position,
                        scratch.data() + blocked.value_stride, scratch.data(),
                        out + (static_cast<size_t>(t) * H + h) * D);
      }
    });
  }

  void gather(const float* x, std::span<const int32_t> indices, int size, float* out) override {
    for (const int32_t index : indices) {
      std::memcpy(out, x + static_cast<size_t>(index) * size, size * sizeof(float));
      out += size;
    }
  }

  void pick(const Weight& head, const float* hidden, std::span<const PickRequest> requests,
            std::span<PickResult> results) override {
    const int V = head.outputs, n = static_cast<int>(requests.size());
    logits_.resize(static_cast<size_t>(n) * V);
    linear(head, hidden, n, logits_.data(), false);
    parallel_for(n, 1, static_cast<long>(n) * V * 8 >= kParallelWork ? threads_ : 1, [&](int first, int last) {
      thread_local std::vector<float> scratch;
      for (int i = first; i < last; ++i)
        results[i] = decide(kernels_, logits_.data() + static_cast<size_t>(i) * V, V, requests[i], scratch);
    });
  }

 private:
  int threads_for(long work) const { return work >= kParallelWork ? threads_ : 1; }

  template <typename Body>
  void for_tokens(int tokens, long work_per_token, Body&& body) {
    parallel_for(tokens, 1, threads_for(tokens * work_per_token), body);
  }

  // x [T, K] made ready for multiply() with this weight or others of its number format; valid until the next call.
  const Operand& prepare(const PackedWeight& weight, const float* x, int tokens) {
    operand_.prepare(kernels_, weight, x, tokens, threads_for(static_cast<long>(tokens) * weight.inputs));
    return operand_;
  }

  const Kernels& kernels_;
  const int threads_;
  Operand operand_;
  std::vector<float> logits_;
};

std::vector<const Kernels*> supported() {
  std::vector<const Kernels*> tables;
#if defined(__x86_64__)
  __builtin_cpu_init();
  const auto add = [&](const Kernels* table, bool runs) {
    if (table && runs) tables.push_back(table);
  };
  const bool avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  add(avx512_vnni_kernels(), avx512 && __builtin_cpu_supports("avx512vnni"));
  add(avx512_kernels(), avx512);
  add(avx2_vnni_kernels(), avx2 && __builtin_cpu_supports("avxvnni"));
  add(avx2_kernels(), avx2);
#endif
  tables.push_back(&generic_kernels());
  return tables;
}

std::atomic<const Kernels*> current{nullptr};

}  // namespace

std::vector<std::string> simd_levels() {
  std::vector<std::string> names;
  for (const auto* table : supported()) names.push_back(table->name);
  return names;
}

void set_simd(const std::string& level) {
  for (const auto* table : supported()) {
    if (level == table->name) {
      current = table;
      return;
    }
  }
  std::string known;
  for (const auto& name : simd_levels()) known += (known.empty() ? "'" : ", '") + name + "'";
  throw std::invalid_argument(concat("SIMD level '", level, "' is not available here; choose one of ", known));
}

const Kernels& kernels() {
  if (current.load() == nullptr) current = supported().front();
  return *current.load();
}

}  // namespace kdtw::cpu

namespace kdtw {

std::unique_ptr<Backend> make_cpu_backend(int threads) {
  return std::make_unique<cpu::CpuBackend>(threads > 0 ? threads : cpu::hardware_threads());
}

}  // namespace kdtw
