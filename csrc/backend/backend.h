// What a device must be able to do for the model and the decode loop. Everything above this line of the
// tree (model/, decode/) speaks only to this interface and never names a device. Float pointers are
// device memory obtained from allocate(); a pass's token lists are where place() put them; requests and results live
// on the host.
//
// Shapes: R rows, T tokens of this pass (all rows' tokens flattened), H heads, D head size, M model
// size, F feed-forward size, V vocabulary, S source length, N x K a weight's outputs x inputs.
//
// Contract that every backend keeps: the value computed for one token does not depend on T, on the
// other tokens of the pass, or on the number of threads (one fixed accumulation order per output).
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <limits>
#include <memory>
#include <span>
#include <string>
#include <vector>

namespace kdtw {

// Number format of a weight or a cache. Arithmetic accumulates in fp32 (int8: exactly, in int32, then scaled).
enum class DType : uint8_t { kFp32, kBf16, kInt8, kFp16 };

// Which products a weight is for: a decoder's, of few tokens at a time, or those that whole sources go through (the
// encoder's, and the keys and values of cross-attention). A backend may compute the two in different ways; a weight's
// are all computed in one, so that a token's values do not depend on how many tokens share a pass.
enum class WeightRole : uint8_t { kDecoder, kEncoder };

// Bytes that are valid as long as `owner` is held.
struct Blob {
  std::span<const std::byte> bytes;
  std::shared_ptr<const void> owner;
};

// A weight matrix [N, K] in the backend's own layout and number format.
class Weight {
 public:
  Weight(int outputs, int inputs) : outputs(outputs), inputs(inputs) {}
  virtual ~Weight() = default;
  virtual size_t bytes() const = 0;
  // What it is made of, in host memory, as Backend::adopt takes it; std::runtime_error where it is not kept there.
  virtual std::span<const std::byte> blob() const = 0;
  const int outputs, inputs;
};

// Keys and values of one attention layer for R rows of up to `capacity` positions, in the backend's own
// layout. A lane's length says how much of it is valid, so rewinding moves no data.
class KeyValueCache {
 public:
  virtual ~KeyValueCache() = default;
  virtual size_t bytes() const = 0;
};

struct Buffer {  // device memory; freed with the handle
  std::shared_ptr<void> memory;
  float* data = nullptr;
  size_t size = 0;  // floats
};

// One token of a pass: cache row and position. Keys 0..length-1 are visible to it.
struct TokenAt {
  int32_t row;
  int32_t position;
  int32_t length;
};

// The token lists of a pass of T tokens.
struct PassTokens {
  std::span<const int32_t> ids;
  std::span<const uint8_t> marked;       // k: written by teacher k; empty: none was written by one
  std::span<const TokenAt> self, cross;  // places in the caches of self- and of cross-attention
  std::span<const int32_t> wanted;       // the tokens that somebody asks about, ascending
};

// T5's relative bias expanded over distance: table [H, lowest + highest + 1], entry (h, d + lowest) is
// the bias for key position - query position = d, clamped to [-lowest, highest].
struct PositionBias {
  const float* table;
  int lowest;
  int highest;
};

enum class Activation { kRelu, kGatedGelu };

struct Sampling {
  float temperature = 0.0f;  // 0 = greedy
  int top_k = 0;             // 0 = off
  float top_p = 1.0f;        // 1 = off
};

// What is asked about a token that is already there (a draft) when the teacher's logits are known.
enum class Check : uint8_t {
  kNone,       // nothing: just pick
  kScore,      // log-probability only; always passes
  kLenience,   // logit(x) >= max logit + ln(threshold); threshold 1: x is the greedy pick (Algorithm 1, as corrected)
  kRejection,  // u * threshold * q(x) <= p(x), on failure a draw from max(0, p - threshold * q) (Leviathan et al. 2023)
  kTopK,       // among the threshold largest logits (SKD)
  kDivergence  // -log p(x) <= threshold (BiLD)
};

// One decision over the vocabulary. Banned ids take no part in anything but raw log-probabilities.
struct PickRequest {
  Sampling sampling;
  double uniform = 0.0;  // the draw that decides when sampling
  std::span<const int32_t> banned;
  Check check = Check::kNone;
  int32_t draft = -1;
  double threshold = 0.0;
  double accept_uniform = 0.0;          // kRejection
  const float* draft_logits = nullptr;  // kRejection: the student's logits [V_student], device memory
  int draft_vocabulary = 0;             // kRejection: V_student
  Sampling draft_sampling;              // kRejection: how the draft was drawn
  std::span<const int32_t> draft_banned;
  float* keep_logits = nullptr;  // where to leave this token's raw logits [V], device memory
  bool want_log_prob = false;
  bool want_confidence = false;
  bool want_entropy = false;
};

struct PickResult {
  int32_t id = -1;          // the token picked (when the draft passed: undefined for sampling checks)
  bool passed = true;       // the draft's standing under `check`
  bool finite = true;       // false: a logit was NaN or infinite, nothing else is valid
  float log_prob = 0.0f;    // raw log-softmax (temperature 1, nothing banned) of the draft if it passed, else of `id`
  float confidence = 0.0f;  // largest softmax probability over the ids that are not banned, temperature 1
  float entropy = 0.0f;     // of the softmax over the ids that are not banned, temperature 1, in nats
};

// A token at which a row stops drafting when it picks it.
struct DraftStop {
  int32_t id;
  int waits_for;  // this teacher then, 1 .. n; 0: it has finished
};

// What the rows of a session's drafts share.
struct DraftRules {
  int teachers = 0;
  std::vector<DraftStop> stops;
  Sampling sampling;
  uint64_t seed = 0;
  double min_confidence = 0;  // a row whose pick has less waits for teacher 1
  // From DraftRow::first_call on a row waits for teacher 1 where the entropy of a pick is above max_entropy, and where,
  // before it reads on, the number that RandomStream::kCall draws for the next output is above max_uniform.
  double max_entropy = std::numeric_limits<double>::infinity();
  double max_uniform = 1;
  bool want_log_prob = false;
};

// A row that drafts: it reads its newest token and picks the next, reads that, and so on, until it stops.
struct DraftRow {
  int32_t id = 0;               // the newest token
  uint8_t marked = 0;           // see PassTokens
  TokenAt self{}, cross{};      // its places; what follows it is output self.position
  uint64_t key = 0;             // names the row to the random numbers
  int limit = 0;                // it stops at so many picks, 1 or more
  bool waits_at_limit = false;  // for teacher 1
  uint32_t unseen_by = 0;  // bit k - 1: teacher k has not seen its source: the draft pauses as soon as it waits for k
  int first_call = std::numeric_limits<int>::max();  // see DraftRules
  std::vector<int32_t> first_allowed;  // beside DraftRules::stops: the first output at which the row may pick each
  float* keep_logits = nullptr;        // where its picks' raw logits go, [limit, V], device memory
};

// A draft ends while rows could go on: as soon as those that wait for a teacher k, waiting[k - 1] others among them,
// are as many as `batch` (0: as those that go on), one waits for a teacher that has not seen it, or one has finished
// and `at_finish`.
struct DraftPause {
  std::span<const int> waiting;
  int batch = 0;
  bool at_finish = false;
};

// Lets rows draft without the host: what a step picks is what the next one reads.
class Drafter {
 public:
  virtual ~Drafter() = default;

  // Drafts until every row has stopped, or a pause; at least one step. picks[i] gets row i's in order; the last one is
  // what it stopped at, if it did. hidden: of the newest tokens, [rows, M], where they have been read already; or null.
  virtual void draft(std::span<const DraftRow> rows, const DraftPause& pause, const float* hidden,
                     std::vector<std::vector<PickResult>>& picks) = 0;
};

// Enqueues the decoder over placed tokens; gives the normed hidden states of those wanted, [wanted, M].
using DecoderPass = std::function<const float*(const PassTokens& placed)>;

// Passes of few tokens that a device keeps ready.
class Replay {
 public:
  virtual ~Replay() = default;

  // Whether this pass is one of them; who is told no computes it another way.
  virtual bool takes(size_t tokens, size_t requests) = 0;
  // The pass over host lists, and requests[i] decided at tokens.wanted[i].
  virtual void answer(const PassTokens& tokens, std::span<const PickRequest> requests,
                      std::span<PickResult> results) = 0;
};

class Backend {
 public:
  virtual ~Backend() = default;

  // To be called before the work of a call: what the program has enqueued on the device elsewhere comes before it.
  virtual void begin_call() {}

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

  // Puts lists of the host where embed, store, attend and gather read them; they stay until the next place() or pick().
  virtual PassTokens place(const PassTokens& tokens) { return tokens; }

  // out[T, M] = table[ids[t]] (+ mark[marked[t] - 1] where marked[t] > 0, Eq. 15; mark is [teachers, M]). Both may be
  // empty.
  virtual void embed(const Weight& table, std::span<const int32_t> ids, std::span<const uint8_t> marked,
                     const float* mark, float* out) = 0;
  // out[T, M] = x / rms(x) * scale
  virtual void rms_norm(const float* x, const float* scale, float epsilon, int tokens, int size, float* out) = 0;
  // out[T, N] = x[T, K] W^T, or += when accumulate
  virtual void linear(const Weight& weight, const float* x, int tokens, float* out, bool accumulate) = 0;
  // hidden [T, 2F] -> out [T, F] for gated activations (gate first), [T, F] -> [T, F] otherwise
  virtual void activate(Activation activation, const float* hidden, int tokens, int size, float* out) = 0;
  // out = linear(rms_norm(x)); what lies between may be left in normed [T, K].
  virtual void norm_linear(const Weight& weight, const float* x, const float* scale, float epsilon, int tokens,
                           float* normed, float* out);
  // out [T, F] = activate(linear(rms_norm(x))); what lies between may be left in normed [T, K] and hidden [T, N].
  virtual void norm_linear_activate(const Weight& weight, Activation activation, const float* x, const float* scale,
                                    float epsilon, int tokens, float* normed, float* hidden, float* out);
  // Copies keys [T, H*D] and values, both with the given row stride, to (row, position) of the cache.
  virtual void store(KeyValueCache& cache, std::span<const TokenAt> tokens, const float* keys, const float* values,
                     int stride) = 0;
  // out[T, H*D] = softmax(q k^T + bias) v over the visible keys; T5 does not scale. `bias` may be null.
  virtual void attend(const KeyValueCache& cache, std::span<const TokenAt> tokens, const float* queries, int stride,
                      const PositionBias* bias, float* out) = 0;
  // out[i] = x[indices[i]] for rows of `size` floats
  virtual void gather(const float* x, std::span<const int32_t> indices, int size, float* out) = 0;
  // Projects hidden [n, M] on the vocabulary and decides each request there; n results come back.
  virtual void pick(const Weight& head, const float* hidden, std::span<const PickRequest> requests,
                    std::span<PickResult> results) = 0;

  // Null where the host takes every step, as on the CPU. Drafts have up to `rows` rows and `steps` steps. `pass` is
  // called with up to 2 * rows tokens and must find its memory where it was the last time; pass and head outlive the
  // drafter.
  virtual std::unique_ptr<Drafter> make_drafter(DecoderPass pass, const Weight& head, const DraftRules& rules, int rows,
                                                int steps);
  // Null where nothing is gained, as on the CPU. `pass` is called with up to most_replayed() tokens; else as above.
  virtual std::unique_ptr<Replay> make_replay(DecoderPass pass, const Weight& head);
  virtual int most_replayed() const { return 0; }

  // Whether the device can do what is put aside beside the rest; on the CPU it could only come first.
  virtual bool overlaps() const { return false; }
  // Enqueues operations beside all that comes next, until join(). Memory that `work` asks for must not be used by
  // anything that is not put aside too.
  virtual void aside(const std::function<void()>& work) { work(); }
  // What comes next begins when all that was put aside has ended.
  virtual void join() {}
};

// The device that a user's word means, "cpu" or "cuda:<index>". Known are "cpu", "cuda", "cuda:<index>" and "auto", the
// first CUDA device where there is one. std::invalid_argument with one sentence for a device that cannot be used here.
std::string resolve_device(const std::string& device);
// For a device that resolve_device knows; threads are the CPU's.
std::unique_ptr<Backend> make_backend(const std::string& device, int threads);
std::unique_ptr<Backend> make_cpu_backend(int threads);
std::unique_ptr<Backend> make_cuda_backend(int index);
// Why the CUDA device cannot be used and what to do, after "device … was asked for, but "; empty when it can.
std::string why_no_cuda(int index);

}  // namespace kdtw
