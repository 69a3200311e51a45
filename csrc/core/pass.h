// The structs of a pass: what engine, CPU kernels and CUDA kernels tell each other. Plain C layout, so that host and
// device read the same bytes.
#pragma once

#include <stdint.h>

#include "core/both.h"

namespace kdtw {

// One token of a pass: cache row and position. Keys 0..length-1 are visible to it; of length 0 it only fills up the
// pass: nothing is stored for it, and it sees nothing.
struct TokenAt {
  int32_t row;
  int32_t position;
  int32_t length;
};

// T5's relative bias expanded over distance: table [H, lowest + highest + 1], entry (h, d + lowest) is the bias for
// key position - query position = d, clamped to [-lowest, highest].
struct PositionBias {
  const float* table;
  int32_t lowest;
  int32_t highest;
};

// How scores become weights: softmax(cap(scale * q k^T) + bias) over the keys that are visible and, with a window, less
// than so far away. The bias's table is null where there is none; cap(x) = c tanh(x / c), of c = 0 x itself.
struct AttentionRule {
  int32_t heads;  // of queries, a multiple of the cache's: neighbours share a head of keys
  float scale = 1.0f;
  float cap = 0.0f;
  int32_t window = 0;
  PositionBias bias{};
};

enum class Function : int32_t { kRelu, kGelu, kGeluTanh, kSilu };
struct Activation {
  Function function = Function::kRelu;
  bool gated = false;  // of [gate, x] it is function(gate) * x
};

// Of T numbers per token: x / rms(x) * scale; centred, a layer norm: (x - mean) / deviation * scale + shift.
struct Norm {
  const float* scale = nullptr;  // null: there is no norm
  const float* shift = nullptr;  // may be null
  float epsilon = 0.0f;
  bool centred = false;
};

// Pairs (i, i + pairs) of a head's numbers are turned by position * frequencies[i]; cosines and sines are multiplied by
// `scale` (Su et al. 2021, YaRN).
struct Rotary {
  const float* frequencies = nullptr;
  int32_t pairs = 0;
  float scale = 1.0f;
};

struct Sampling {
  float temperature = 0.0f;  // 0 = greedy
  int32_t top_k = 0;         // 0 = off
  float top_p = 1.0f;        // 1 = off
};

// What is asked about a token that is already there (a draft) when the teacher's logits are known.
enum class Check : int32_t {
  kNone,      // nothing: just pick
  kScore,     // log-probability only; always passes
  kLenience,  // logit(x) >= max logit + threshold, a logarithm; infinity: x is the greedy pick (Algorithm 1, corrected)
  kRejection,  // u * threshold * q(x) <= p(x), on failure a draw from max(0, p - threshold * q) (Leviathan et al. 2023)
  kTopK,       // among the threshold largest logits (SKD)
  kDivergence,  // -log p(x) <= threshold (BiLD)
  kCascade  // max q >= max p - threshold * TV(p, q) at temperature 1; otherwise lossless: the teacher's greedy pick, or
            // kRejection with 1 (Narasimhan et al. 2025)
};

// Whether a check compares the teacher's distribution with the one that the draft was picked from.
KDTW_BOTH bool needs_draft_logits(Check check) { return check == Check::kRejection || check == Check::kCascade; }

// A logit x becomes x + bias, and then, where that is negative, times the penalty, otherwise divided by it.
struct LogitEdit {
  int32_t id;
  float bias;
  float penalty;
};

// One of the likeliest tokens; of places that have none (forced tokens, small vocabularies) -1 and NaN.
struct TopToken {
  int32_t id;
  float log_prob;
};

// One decision over the vocabulary. Edits come first; banned ids take no part in anything; and of both raw
// log-probabilities know nothing. Edits, `only` and `top` are the CPU's.
struct PickRequest {
  const int32_t* banned = nullptr;
  const int32_t* draft_banned = nullptr;
  const LogitEdit* edits = nullptr;        // by ascending id, each id once
  const LogitEdit* draft_edits = nullptr;  // needs_draft_logits: of the student's logits, like draft_banned
  const float* draft_logits = nullptr;     // needs_draft_logits: the student's [V_student], device memory
  float* keep_logits = nullptr;            // where to leave this token's raw logits [V], device memory
  TopToken* top = nullptr;                 // where to leave the top_count likeliest by raw log-probability
  double uniform = 0.0;                    // the draw that decides when sampling
  double accept_uniform = 0.0;             // needs_draft_logits
  double threshold = 0.0;
  Sampling sampling;
  Sampling draft_sampling;  // needs_draft_logits: how the draft was drawn
  int32_t banned_count = 0;
  int32_t draft_banned_count = 0;
  int32_t edit_count = 0;
  int32_t draft_edit_count = 0;
  int32_t only = -1;  // the one id that is not banned, also if it stands among them; -1: none is alone
  int32_t draft_only = -1;
  int32_t draft_vocabulary = 0;  // V_student
  Check check = Check::kNone;
  int32_t draft = -1;
  int32_t want_log_prob = 0;
  int32_t want_confidence = 0;
  int32_t want_entropy = 0;
  int32_t top_count = 0;  // goes with want_log_prob
  int32_t unused = 0;     // kernels copy requests whole: no byte of them is left unset
};

inline constexpr int32_t kNoneLeft = -2;

struct PickResult {
  int32_t id = -1;          // the token picked (when the draft passed: undefined for sampling checks)
  int32_t passed = 1;       // the draft's standing under `check`
  int32_t finite = 1;       // 0: a logit was NaN or infinite, or (id = kNoneLeft) all ids are banned; all else is void
  float log_prob = 0.0f;    // raw log-softmax (temperature 1, nothing banned) of the draft if it passed, else of `id`
  float confidence = 0.0f;  // largest softmax probability over the ids that are not banned, temperature 1
  float entropy = 0.0f;     // of the softmax over the ids that are not banned, temperature 1, in nats
};

}  // namespace kdtw
