#include "backend/cpu/cpu_operations.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>

#include "backend/cpu/key_value_cache.h"
#include "backend/cpu/memory.h"
#include "backend/cpu/packed_weight.h"
#include "backend/cpu/pick.h"
#include "backend/cpu/simd_levels.h"
#include "backend/cpu/thread_pool.h"
#include "backend/operations.h"
#include "core/error.h"
#include "core/rotary.h"

namespace kdtw::cpu {
namespace {

int round_up(int value, int multiple) { return (value + multiple - 1) / multiple * multiple; }

// Below this many multiply-adds an operation stays on the calling thread: waking a worker costs about 2 us.
constexpr long kParallelWork = 1 << 17;

// Between two polls inside an operation, a few milliseconds: a poll costs little, but more than a small operation.
constexpr long kUnheardWork = 1 << 24;

class CpuOperations : public Operations {
 public:
  CpuOperations(const Kernels& kernels, int threads) : kernels_(kernels), threads_(threads) {}

  void listen(const Poll* poll) override { poll_ = poll; }

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
                               DType dtype, WeightRole) override {
    require(dtype != DType::kFp16, "dtype 'fp16' is for device 'cuda'; on 'cpu' choose 'fp32', 'bf16' or 'int8'");
    return PackedWeight::pack(kernels_, parts, part_outputs, inputs, dtype, threads_,
                              [this](const Range& range, long work) { done(range, work); });
  }

  std::unique_ptr<Weight> adopt(int outputs, int inputs, DType dtype, Blob blob) override {
    return std::make_unique<PackedWeight>(outputs, inputs, dtype, std::move(blob));
  }

  std::unique_ptr<KeyValueCache> make_cache(int rows, int heads, int head_size, int capacity, DType dtype) override {
    require(dtype == DType::kFp32 || dtype == DType::kBf16,
            "on device 'cpu' keys and values are cached in fp32 or bf16; choose one of these as cache_dtype");
    return std::make_unique<BlockedCache>(rows, heads, head_size, capacity, dtype);
  }

  void embed(const Embedding& embedding, const PassTokens& tokens, float* out) override {
    const auto& packed = static_cast<const PackedWeight&>(*embedding.table);
    const int size = packed.inputs;
    const auto add = [&](const float* table, size_t row) {
      const float* values = table + row * size;
      for (int m = 0; m < size; ++m) out[m] += values[m];
    };
    for (size_t t = 0; t < tokens.ids.size(); ++t, out += size) {
      packed.unpack(tokens.ids[t], out);
      if (embedding.scale != 1.0f)
        for (int m = 0; m < size; ++m) out[m] *= embedding.scale;
      if (embedding.mark && !tokens.marked.empty() && tokens.marked[t] > 0) add(embedding.mark, tokens.marked[t] - 1);
      if (embedding.positions) add(embedding.positions, embedding.first_position + tokens.self[t].position);
    }
  }

  void norm(const Norm& norm, const float* x, int tokens, int size, float* out, bool accumulate) override {
    const int threads = threads_for(tokens * (size * 4L));
    float* const normed = accumulate ? scratch_of(parts_of(tokens, 1, threads) * static_cast<size_t>(size)) : nullptr;
    parallel_for(tokens, 1, threads, [&](const Range& range) {
      for (int t = range.begin; t < range.end; ++t) {
        float* const line = out + static_cast<size_t>(t) * size;
        float* const to = accumulate ? normed + range.part * static_cast<size_t>(size) : line;
        kernels_.norm[norm.centred](x + static_cast<size_t>(t) * size, norm.scale, norm.shift, norm.epsilon, size, to);
        if (accumulate)
          for (int m = 0; m < size; ++m) line[m] += to[m];
      }
    });
  }

  void linear(const Weight& weight, const float* x, int tokens, float* out, bool accumulate) override {
    const auto& packed = static_cast<const PackedWeight&>(weight);
    const Operand& operand = prepare(packed, x, tokens);
    parallel_for(packed.panels(), 1, threads_for(static_cast<long>(tokens) * weight.inputs * weight.outputs),
                 [&](const Range& range) {
                   // All blocks of tokens of a few panels before the next panels: those panels stay in the cache.
                   for (int p = range.begin; p < range.end; p += kGroup) {
                     float* const to = out + p * kPanel;
                     multiply_group(kernels_, packed, operand, p, std::min(p + kGroup, range.end),
                                    p + kGroup < range.ahead ? p + kGroup : p, to, weight.outputs, accumulate);
                     const int columns =
                         std::min(weight.outputs, std::min(p + kGroup, range.end) * kPanel) - p * kPanel;
                     if (weight.bias.data != nullptr || weight.cap > 0.0f)
                       for (int t = 0; t < tokens; ++t)
                         finish(weight, p * kPanel, columns, to + static_cast<size_t>(t) * weight.outputs);
                     done(range, static_cast<long>(tokens) * weight.inputs * kGroup * kPanel);
                   }
                 });
  }

  void activate(Activation activation, const float* hidden, int tokens, int size, float* out) override {
    const auto run = kernels_.activate[static_cast<int>(activation.function)][activation.gated];
    for_tokens(tokens, size * 16L, [&](const Range& range) {
      for (int t = range.begin; t < range.end; ++t) {
        const float* line = hidden + static_cast<size_t>(t) * size * (activation.gated ? 2 : 1);
        run(line, line + size, size, out + static_cast<size_t>(t) * size);
      }
    });
  }

  void angles(const Rotary& rotary, std::span<const TokenAt> tokens, float* out) override {
    for (const TokenAt& token : tokens) {
      for (int i = 0; i < rotary.pairs; ++i) {
        const Turn turn = turn_by(static_cast<float>(token.position) * rotary.frequencies[i]);
        out[i] = turn.cosine * rotary.scale;
        out[rotary.pairs + i] = turn.sine * rotary.scale;
      }
      out += 2 * rotary.pairs;
    }
  }

  void turn_heads(float* x, int stride, int tokens, int heads, int size, const Norm& norm, const float* angles,
                  int pairs) override {
    for_tokens(tokens, heads * size * 4L, [&](const Range& range) {
      for (int t = range.begin; t < range.end; ++t) {
        const float* const cosines = angles + static_cast<size_t>(t) * 2 * pairs;
        const float* const sines = cosines + pairs;
        for (int h = 0; h < heads; ++h) {
          float* const head = x + static_cast<size_t>(t) * stride + h * size;
          if (norm.scale) kernels_.norm[norm.centred](head, norm.scale, norm.shift, norm.epsilon, size, head);
          for (int i = 0; i < pairs; ++i) {
            const float a = head[i], b = head[pairs + i];
            head[i] = a * cosines[i] - b * sines[i];
            head[pairs + i] = b * cosines[i] + a * sines[i];
          }
        }
      }
    });
  }

  void store(KeyValueCache& cache, std::span<const TokenAt> tokens, const float* keys, const float* values,
             int stride) override {
    auto& blocked = static_cast<BlockedCache&>(cache);
    const long work = static_cast<long>(tokens.size()) * blocked.heads * blocked.head_size * 4;
    parallel_for(blocked.heads, 1, threads_for(work),
                 [&](int first, int last) { blocked.store(tokens, keys, values, stride, first, last); });
  }

  void copy(KeyValueCache& cache, int from, int to, int positions) override {
    auto& blocked = static_cast<BlockedCache&>(cache);
    const long work = static_cast<long>(positions) * blocked.heads * blocked.head_size;
    parallel_for(blocked.heads, 1, threads_for(work),
                 [&](int first, int last) { blocked.copy(from, to, positions, first, last); });
  }

  void attend(const KeyValueCache& cache, std::span<const TokenAt> tokens, const float* queries, int stride,
              const AttentionRule& rule, float* out) override {
    if (tokens.empty()) return;
    const auto& blocked = static_cast<const BlockedCache&>(cache);
    const PositionBias& bias = rule.bias;
    const int H = rule.heads, D = blocked.head_size, sharing = H / blocked.heads;
    long work = 0;
    int longest = 0;
    for (const auto& token : tokens) {
      const long seen = rule.window > 0 ? std::min<long>(token.length, 2L * rule.window) : token.length;
      work += seen * H * D * 2;
      longest = std::max(longest, token.length);
    }
    const int threads = threads_for(work);
    group_queries(tokens, H, bias.table ? 1 : sharing, threads);
    const auto run = kernels_.attend[static_cast<int>(blocked.dtype)];
    const int groups = static_cast<int>(groups_.size());
    const size_t needed = static_cast<size_t>(round_up(longest, kKeyBlock)) * kernels_.max_queries;
    float* const scratch = scratch_of(parts_of(groups, 1, threads) * needed);
    parallel_for(groups, 1, threads, [&](const Range& range) {
      for (int i = range.begin; i < range.end; ++i) {
        const auto [h, t, count, of_heads] = groups_[i];
        const int row = tokens[t].row, before = rule.window > 0 ? tokens[t].position - rule.window + 1 : 0;
        const int skipped = std::max(before, 0) / kKeyBlock * kKeyBlock;
        run({.queries = queries + static_cast<size_t>(t) * stride + h * D,
             .query_stride = of_heads ? D : stride,
             .tokens = tokens.data() + t,
             .token_stride = of_heads ? 0 : 1,
             .count = count,
             .skipped = skipped,
             .keys = blocked.keys(row, h / sharing, skipped),
             .values = blocked.values(row, h / sharing, skipped),
             .head_size = D,
             .value_stride = blocked.value_stride,
             .bias = bias.table ? bias.table + h * (bias.lowest + bias.highest + 1) : nullptr,
             .lowest = bias.lowest,
             .highest = bias.highest,
             .scale = rule.scale,
             .cap = rule.cap,
             .window = rule.window,
             .scratch = scratch + range.part * needed,
             .out = out + (static_cast<size_t>(t) * H + h) * D,
             .out_stride = of_heads ? D : H * D});
        done(range, static_cast<long>(tokens[t].length) * count * D * 2);
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
    const auto& packed = static_cast<const PackedWeight&>(head);
    const int V = head.outputs, n = static_cast<int>(requests.size());
    const int chunks = (V + kVocabularyChunk - 1) / kVocabularyChunk;
    const std::vector<float*> kept = keep_logits(requests, V);
    std::vector<float> draft_logits(n);
    for (int i = 0; i < n; ++i)
      if (requests[i].check == Check::kTopK && requests[i].draft < V)
        draft_logits[i] = logit_of(packed, hidden + static_cast<size_t>(i) * head.inputs, requests[i].draft);
    summaries_.resize(static_cast<size_t>(n) * chunks);

    const Operand& operand = prepare(packed, hidden, n);
    const int threads = threads_for(static_cast<long>(n) * head.inputs * V);
    const size_t tile_size = static_cast<size_t>(n) * kVocabularyChunk;
    float* const tiles = scratch_of(parts_of(chunks, 1, threads) * tile_size);
    parallel_for(chunks, 1, threads, [&](const Range& range) {
      float* const tile = tiles + range.part * tile_size;
      for (int c = range.begin; c < range.end; ++c) {
        const int panel = c * kGroup, first = c * kVocabularyChunk, count = std::min(kVocabularyChunk, V - first);
        multiply_group(kernels_, packed, operand, panel, std::min(panel + kGroup, packed.panels()),
                       c + 1 < range.ahead ? panel + kGroup : panel, tile, kVocabularyChunk, false);
        for (int i = 0; i < n; ++i) {
          float* logits = tile + static_cast<size_t>(i) * kVocabularyChunk;
          finish(head, first, count, logits);
          if (kept[i]) std::copy(logits, logits + count, kept[i] + first);
          summaries_[static_cast<size_t>(i) * chunks + c] =
              summarise(kernels_, logits, first, count, V, requests[i], draft_logits[i]);
        }
        done(range, static_cast<long>(n) * head.inputs * kVocabularyChunk);
      }
    });

    const int deciding = threads_for(static_cast<long>(n) * chunks * kVocabularyChunk);
    deciders_.resize(std::max<size_t>(deciders_.size(), parts_of(n, 1, deciding)));
    parallel_for(n, 1, deciding, [&](const Range& range) {
      Decider& own = deciders_[range.part];
      for (int i = range.begin; i < range.end; ++i) {
        const auto recompute = [&](int chunk, float* logits) {
          const int panel = chunk * kGroup;
          multiply_alone(packed, hidden + static_cast<size_t>(i) * head.inputs, panel,
                         std::min(panel + kGroup, packed.panels()), logits, own.operand);
        };
        results[i] =
            decide(kernels_, requests[i], V, std::span(summaries_).subspan(static_cast<size_t>(i) * chunks, chunks),
                   needs_all_logits(requests[i], V) ? kept[i] : nullptr, recompute, own.weights);
        if (requests[i].top_count > 0)
          rank(kernels_, requests[i], V, std::span(summaries_).subspan(static_cast<size_t>(i) * chunks, chunks),
               kept[i]);
        done(range, needs_all_logits(requests[i], V) ? 64L * V : V);
      }
    });
  }

 private:
  // What follows the products with the weight's outputs [first, first + count): the bias, and a head's cap.
  void finish(const Weight& weight, int first, int count, float* out) const {
    if (const float* bias = weight.bias.data)
      for (int n = 0; n < count; ++n) out[n] += bias[first + n];
    if (weight.cap > 0.0f) kernels_.soft_cap(out, count, weight.cap, out);
  }

  int threads_for(long work) const { return work >= kParallelWork ? threads_ : 1; }

  // To be called when a body has done so many multiply-adds: the calling thread polls every few milliseconds, and the
  // others stop when it, or any of them, has failed.
  void done(const Range& range, long work) {
    range.stop_if_failed();
    if (range.part != 0 || poll_ == nullptr || (unheard_ += work) < kUnheardWork) return;
    unheard_ = 0;
    (*poll_)();
  }

  template <typename Body>
  void for_tokens(int tokens, long work_per_token, Body&& body) {
    parallel_for(tokens, 1, threads_for(tokens * work_per_token), body);
  }

  // Cuts the queries into nearly equal groups that read the same keys, for attend() to take at once: a row's tokens of
  // one head; of a row with a single token, the heads that share keys, but not fewer groups than `threads` if that can
  // be. Groups with the same keys and values follow each other, which stay in the cache.
  void group_queries(std::span<const TokenAt> tokens, int heads, int sharing, int threads) {
    groups_.clear();
    const int T = static_cast<int>(tokens.size()), most = kernels_.max_queries;
    const int wanted = (threads * sharing + T * heads - 1) / (T * heads);
    for (int first = 0, last; first < T; first = last) {
      for (last = first + 1; last < T && tokens[last].row == tokens[first].row;) ++last;
      const int together = last - first == 1 ? sharing : 1, queries = std::max(last - first, together);
      const int groups = std::max((queries + most - 1) / most, std::min(together, wanted));
      const auto begin = [&](int group) { return static_cast<int>(queries * long{group} / groups); };
      for (int h = 0; h < heads; h += together)
        for (int g = 0; g < groups; ++g) {
          const int count = begin(g + 1) - begin(g);
          if (together > 1) {
            groups_.push_back({h + begin(g), first, count, true});
          } else {
            groups_.push_back({h, first + begin(g), count, false});
          }
        }
    }
  }

  // x [T, K] made ready for multiply() with this weight or others of its number format; valid until the next call.
  const Operand& prepare(const PackedWeight& weight, const float* x, int tokens) {
    operand_.prepare(kernels_, weight, x, tokens, threads_for(static_cast<long>(tokens) * weight.inputs));
    return operand_;
  }

  // Products of one token outside of the pass's operand, with at most kGroup panels; any thread may call it with an
  // operand of its own.
  void multiply_alone(const PackedWeight& weight, const float* x, int first, int last, float* out,
                      Operand& operand) const {
    operand.prepare(kernels_, weight, x, 1, 1);
    multiply_group(kernels_, weight, operand, first, last, first, out, kVocabularyChunk, false);
    finish(weight, first * kPanel, std::min(weight.outputs, last * kPanel) - first * kPanel, out);
  }

  // One logit of one token: the same bits as in any chunk.
  float logit_of(const PackedWeight& head, const float* x, int id) {
    float logits[kPanel];
    multiply_alone(head, x, id / kPanel, id / kPanel + 1, logits, operand_);
    return logits[id % kPanel];
  }

  // Memory for the threads of a region, cut up by Range::part; valid until the next call. The calling thread makes it:
  // workers have no memory of their own that could be refused to them.
  float* scratch_of(size_t floats) {
    if (scratch_.size() < floats) scratch_.resize(floats);
    return scratch_.data();
  }

  // Where each request's logits are to be written: where it asks for it, or for its own decision, or nowhere.
  std::vector<float*> keep_logits(std::span<const PickRequest> requests, int vocabulary) {
    std::vector<float*> kept(requests.size());
    const auto needs = [&](const PickRequest& request) {
      return request.keep_logits == nullptr && (needs_all_logits(request, vocabulary) || request.top_count > 0);
    };
    logits_.resize(std::count_if(requests.begin(), requests.end(), needs) * static_cast<size_t>(vocabulary));
    float* free = logits_.data();
    for (size_t i = 0; i < requests.size(); ++i) {
      kept[i] = requests[i].keep_logits;
      if (needs(requests[i])) kept[i] = free, free += vocabulary;
    }
    return kept;
  }

  struct QueryGroup {
    int head, first, count;  // tokens [first, first + count) of one row
    bool of_heads;           // or heads [head, head + count) of the token `first`
  };

  // What a thread needs to decide requests, kept for its memory.
  struct Decider {
    Operand operand;
    PickWeights weights;
  };

  const Kernels& kernels_;
  const int threads_;
  const Poll* poll_ = nullptr;
  long unheard_ = 0;
  Operand operand_;
  std::vector<float> scratch_;
  std::vector<Decider> deciders_;
  std::vector<QueryGroup> groups_;
  std::vector<ChunkSummary> summaries_;
  std::vector<float> logits_;
};

}  // namespace

std::unique_ptr<Operations> make_operations(const Kernels& kernels, int threads) {
  return std::make_unique<CpuOperations>(kernels, std::min(threads > 0 ? threads : 1 << 20, hardware_threads()));
}

}  // namespace kdtw::cpu

namespace kdtw {

std::unique_ptr<Operations> make_cpu_operations(int threads) { return cpu::make_operations(cpu::kernels(), threads); }

}  // namespace kdtw
