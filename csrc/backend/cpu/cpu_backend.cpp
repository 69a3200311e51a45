#include "backend/cpu/cpu_backend.h"

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <cstring>

#include "backend/cpu/thread_pool.h"
#include "core/error.h"

namespace kdtw::cpu {
namespace {

int round_up(int value, int multiple) { return (value + multiple - 1) / multiple * multiple; }

// Zeroed, 64-byte aligned, and not touched until used: a cache of long capacity costs only what is written.
std::shared_ptr<void> zeroed(size_t bytes) {
  void* raw = std::calloc(bytes + 64, 1);
  if (raw == nullptr) throw OutOfMemory(bytes);
  return std::shared_ptr<void>(raw, std::free);
}

float* aligned(const std::shared_ptr<void>& memory) {
  const auto address = reinterpret_cast<uintptr_t>(memory.get());
  return reinterpret_cast<float*>((address + 63) / 64 * 64);
}

class PackedWeight : public Weight {
 public:
  PackedWeight(int outputs, int inputs)
      : Weight(outputs, inputs),
        panels_((outputs + kPanel - 1) / kPanel),
        memory_(zeroed(bytes())),
        data_(aligned(memory_)) {}

  size_t bytes() const override { return sizeof(float) * panels_ * kPanel * static_cast<size_t>(inputs); }
  int panels() const { return panels_; }
  const float* data() const { return data_; }
  float* at(int output) { return data_ + panel_offset(output); }
  const float* at(int output) const { return data_ + panel_offset(output); }

 private:
  // Element (output, k) lies at at(output)[k * kPanel].
  size_t panel_offset(int output) const {
    return static_cast<size_t>(output / kPanel) * kPanel * inputs + output % kPanel;
  }

  int panels_;
  std::shared_ptr<void> memory_;
  float* data_;
};

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
    require(dtype == DType::kFp32, "weights are fp32 only so far");
    int outputs = 0;
    for (const int n : part_outputs) outputs += n;
    auto weight = std::make_unique<PackedWeight>(outputs, inputs);
    int output = 0;
    for (size_t part = 0; part < parts.size(); ++part) {
      for (int n = 0; n < part_outputs[part]; ++n, ++output) {
        const float* line = parts[part] + static_cast<size_t>(n) * inputs;
        float* column = weight->at(output);
        for (int k = 0; k < inputs; ++k) column[static_cast<size_t>(k) * kPanel] = line[k];
      }
    }
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
      const float* column = packed.at(ids[t]);
      for (int m = 0; m < size; ++m) out[m] = column[static_cast<size_t>(m) * kPanel];
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
    const int K = weight.inputs, N = weight.outputs;
    const int blocks = (tokens + kernels_.max_rows - 1) / kernels_.max_rows;
    const float* interleaved = x;
    if (tokens > 1) interleaved = interleave(x, tokens, K, blocks);
    const int threads = static_cast<long>(tokens) * K * N >= kParallelWork ? threads_ : 1;
    parallel_for(packed.panels(), 4, threads, [&](int first, int last) {
      // All token blocks of a few panels before the next panels: those panels stay in the cache.
      for (int p = first; p < last; p += 4) {
        const int end = std::min(p + 4, last);
        for (int b = 0, t = 0; b < blocks; ++b) {
          const int rows = block_end(b, blocks, tokens) - t;
          kernels_.gemm(interleaved + static_cast<size_t>(t) * K, rows, packed.data(), p, end, K, N,
                        out + static_cast<size_t>(t) * N, N, accumulate);
          t += rows;
        }
      }
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
  template <typename Body>
  void for_tokens(int tokens, long work_per_token, Body&& body) {
    parallel_for(tokens, 1, tokens * work_per_token >= kParallelWork ? threads_ : 1, body);
  }

  // Tokens are cut into `blocks` nearly equal blocks; where the cuts fall changes no result.
  static int block_end(int block, int blocks, int tokens) {
    return static_cast<int>(static_cast<long>(tokens) * (block + 1) / blocks);
  }

  // x [T, K] -> per block [K][rows of the block]: the micro-kernel then reads one stream.
  const float* interleave(const float* x, int tokens, int K, int blocks) {
    interleaved_.resize(static_cast<size_t>(tokens) * K);
    parallel_for(blocks, 1, static_cast<long>(tokens) * K >= kParallelWork ? threads_ : 1, [&](int first, int last) {
      for (int b = first; b < last; ++b) {
        const int begin = b == 0 ? 0 : block_end(b - 1, blocks, tokens);
        const int rows = block_end(b, blocks, tokens) - begin;
        float* to = interleaved_.data() + static_cast<size_t>(begin) * K;
        for (int r = 0; r < rows; ++r) {
          const float* line = x + static_cast<size_t>(begin + r) * K;
          for (int k = 0; k < K; ++k) to[static_cast<size_t>(k) * rows + r] = line[k];
        }
      }
    });
    return interleaved_.data();
  }

  const Kernels& kernels_;
  const int threads_;
  std::vector<float> interleaved_;
  std::vector<float> logits_;
};

std::vector<const Kernels*> supported() {
  std::vector<const Kernels*> tables;
#if defined(__x86_64__)
  __builtin_cpu_init();
  if (avx512_kernels() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq"))
    tables.push_back(avx512_kernels());
  if (avx2_kernels() && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"))
    tables.push_back(avx2_kernels());
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
