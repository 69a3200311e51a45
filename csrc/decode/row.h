// One sequence being decoded.
#pragma once

#include <algorithm>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "core/clock.h"
#include "core/draft.h"
#include "core/token_rules.h"
#include "core/top_picks.h"
#include "decode/rules.h"

namespace kdtw {

enum class Finish : uint8_t { kRunning = 0, kEnd = 1, kLength = 2, kTime = 3, kFault = 4, kStop = 5 };

// Given a row's outputs behind forced ones, when there are more that nothing can take back: how many of them it keeps
// when it stops, or -1.
using FindStop = std::function<int(std::span<const int32_t> outputs)>;

// Where a row stops beside the ends of its models: behind the first of these tokens, and where it is found to.
struct Stops {
  std::vector<int32_t> tokens;
  std::shared_ptr<const FindStop> find;  // or null

  bool any() const { return find || !tokens.empty(); }
};

// What a row may be asked for by itself.
struct RowOptions {
  int max_new_tokens = 64;
  int min_new_tokens = 0;
  Sampling student_sampling, teacher_sampling;
  uint64_t seed = 0;
  double max_seconds = 0.0;                 // from when it was added; 0 = no limit
  std::shared_ptr<const TokenRules> rules;  // null: none
  Stops stops;
  std::vector<int32_t> forced_tokens;  // that its output begins with
};

struct Row {
  // Given
  int index = 0;                              // how many rows its session had been given before
  uint64_t key = 0;                           // names the row to the random numbers
  std::vector<std::vector<int32_t>> sources;  // [0] the student's, [k] teacher k's
  RowOptions options;
  Ledger ledger;                    // of all teachers together
  std::vector<Ledger> own_ledgers;  // [k - 1] of teacher k
  Clock::time_point added;

  // Committed tokens, the start token first; owners beside them.
  std::vector<int32_t> tokens;
  std::vector<Owner> owners;
  std::vector<uint8_t> teacher_index;                       // the teacher, 1 .. n, that wrote it; 0: none did
  std::vector<float> student_log_probs, teacher_log_probs;  // beside the tokens, when asked for
  std::vector<TopToken> top;                                // top_count beside each token
  std::vector<int32_t> student_reads, teacher_reads;        // tokens that each pass read of this row, when asked for

  Check check = Check::kNone;          // AcceptRule's, for the row's sampling
  DraftRow draft;                      // its draft's state
  std::vector<int32_t> first_allowed;  // DraftRow::first_allowed
  RuledDraft ruled;                    // DraftRow::ruled, where it has rules
  TopPicks drafted_top;                // DraftRow::top, where it is asked for
  Finish finish = Finish::kRunning;
  std::string fault;  // kFault: what is wrong, in one sentence
  int calls = 0, drafted = 0, accepted = 0, rolled_back = 0;
  std::vector<int> own_calls;   // [k - 1] of teacher k
  float asked_log_prob = 0.0f;  // log-probability of the action that asked for the teacher
  int streamed = 1;             // tokens already handed to the streamer
  int own_begin = 1;            // index of the first token that is not forced
  int looked_at = 1;            // tokens among which it does not stop

  int outputs() const { return static_cast<int>(tokens.size()) - 1; }
  int drafts() const { return draft.drafts; }
  int draft_begin() const { return static_cast<int>(tokens.size()) - drafts(); }  // index of the first of these
  int waiting() const { return std::max<int>(draft.stand, 0); }                   // for this teacher; 0: it drafts
  bool running() const { return finish == Finish::kRunning; }

  // What a model has read of the row before output `position`: its start token, or without an encoder the whole prompt,
  // its source of this number; and the outputs.
  void read_by(bool has_encoder, int source, int position, std::vector<int32_t>& read) const {
    read.assign(tokens.begin() + 1, tokens.begin() + 1 + position);
    if (has_encoder) {
      read.insert(read.begin(), tokens.front());
    } else {
      read.insert(read.begin(), sources[source].begin(), sources[source].end());
    }
  }

  // The first output before `end` where both ledgers of teacher k allow its token, if it is not called before: what
  // allows a call goes on allowing it.
  int first_call(int k, int end) const {
    return std::max(ledger.first_allowed(calls, outputs(), end),
                    own_ledgers[k - 1].first_allowed(own_calls[k - 1], outputs(), end));
  }
  // The first output that a check by teacher k may replace without breaking a fraction.
  int first_replaceable(int k) const {
    return std::max(ledger.first_replaceable(calls, outputs()),
                    own_ledgers[k - 1].first_replaceable(own_calls[k - 1], outputs()));
  }
};

}  // namespace kdtw
