// A draft: rows of which each reads its newest token, picks the next, reads that, and so on, until it stops. Here are
// the rules of it, as pure functions: when a row stops and whom it waits for, what its next step asks, when all pause.
// The host's loop (backend/runner.cpp) and the device's kernel (backend/cuda/kernels/draft.cu) both call them.
#pragma once

#include <float.h>
#include <limits.h>
#include <stdint.h>

#include "core/both.h"
#include "core/pass.h"
#include "core/random.h"

namespace kdtw {

// Where a row stands; k > 0: it waits for teacher k.
enum Stand : int32_t { kFinished = -1, kDrafting = 0 };

enum { kMostTeachers = 32 };

struct RuledDraft;  // core/token_rules.h
struct TopPicks;    // the likeliest tokens of a draft's picks

// A token with a meaning for the loop: <tau> of teacher k, or for teacher 0 one that ends the output.
struct StopToken {
  int32_t id;
  int32_t teacher;
};

// What the rows of a session share.
struct DraftRules {
  const StopToken* stops = nullptr;
  double min_confidence = 0;     // a row whose pick has less waits for teacher 1
  double max_entropy = DBL_MAX;  // the same of a pick with more; from DraftRow::first_call on
  double max_uniform = 1;        // the same, before the pick, where RandomStream::kCall draws more; from there on, too
  int32_t stop_count = 0;
  int32_t teachers = 0;
  int32_t draft_length = 0;   // so many drafts wait for teacher 1; 0: any number goes on
  int32_t checks_all = 0;     // a row that ends lets teacher 1 check its drafts first
  int32_t vocabulary = 0;     // the student's
  int32_t want_log_prob = 0;  // of picks
  int32_t top_count = 0;      // their likeliest tokens, for rows that have DraftRow::top
};

// A row that drafts.
struct DraftRow {
  uint64_t seed = 0;                       // of its random numbers
  uint64_t key = 0;                        // names the row to them
  float* keep_logits = nullptr;            // where its next pick's raw logits go [V], device memory; or null
  const int32_t* first_allowed = nullptr;  // beside DraftRules::stops: the first output at which it may pick each
  RuledDraft* ruled = nullptr;             // rules of its own on tokens, the host's; or null
  TopPicks* top = nullptr;                 // the host's; or null
  Sampling sampling;
  int32_t most_outputs = 0;   // its output has so many tokens at most
  int32_t most_drafted = 0;   // and drafts reach so far: 1 less where the teacher's token must find a place behind them
  int32_t row = 0;            // its place in the caches
  int32_t id = 0;             // the newest token, which it reads next
  int32_t marked = 0;         // k: teacher k wrote that
  int32_t position = 0;       // the output (0 = first) that it picks next
  int32_t offset = 0;         // of position 0 in the caches of self-attention: a prompt stands before it
  int32_t source_length = 0;  // keys that cross-attention sees
  int32_t drafts = 0;         // tokens since a teacher's last word
  int32_t first_call = INT_MAX;  // see DraftRules: the first output at which a ledger allows a call
  uint32_t unseen_by = 0;        // bit k - 1: teacher k has not seen its source
  int32_t picks = 0;             // in this draft
  int32_t stand = kDrafting;
};

// When a draft ends while rows could go on: see goes_on.
struct DraftPause {
  int32_t waiting[kMostTeachers] = {};  // others that wait for teacher k, at k - 1
  int32_t batch = 0;                    // see call_now
  int32_t at_finish = 0;
  int32_t at_unseen = 0;
  int32_t most_steps = INT_MAX;
};

// A draft as it goes; of rows that have drafted in it.
struct DraftCount {
  int32_t steps;
  int32_t drafting;  // rows that go on
  int32_t finished;  // rows that have stopped for good
  int32_t unseen;    // rows that wait for a teacher that has not seen their source
};

KDTW_BOTH double draw(const DraftRow& row, RandomStream stream) {
  return uniform(row.seed, row.key, static_cast<uint32_t>(row.position), stream);
}

// StopToken::teacher of a token; -1: it has no meaning.
KDTW_BOTH int stop_of(const DraftRules& rules, int32_t id) {
  for (int s = 0; s < rules.stop_count; ++s)
    if (rules.stops[s].id == id) return rules.stops[s].teacher;
  return -1;
}

// Where a row stands before its next pick.
KDTW_BOTH int stand_of(const DraftRules& rules, const DraftRow& row) {
  const bool ended = row.position > 0 && stop_of(rules, row.id) == 0;
  if (ended || row.position >= row.most_outputs) return rules.checks_all && row.drafts > 0 ? 1 : kFinished;
  if (row.position >= row.most_drafted || (rules.draft_length > 0 && row.drafts >= rules.draft_length)) return 1;
  if (row.position >= row.first_call && draw(row, RandomStream::kCall) > rules.max_uniform) return 1;
  return kDrafting;
}

// The teacher that a pick asks instead of being a token of the output; 0: it is one. What a pick was not asked for is 0
// there and asks nobody.
KDTW_BOTH int asked_by(const DraftRules& rules, const PickResult& pick) {
  if (pick.confidence < rules.min_confidence || pick.entropy > rules.max_entropy) return 1;
  const int teacher = stop_of(rules, pick.id);
  return teacher > 0 ? teacher : 0;
}

// Where a row stands whose pick is void. Where no token is left to it and its drafts are checked, that may be for a
// draft that does not stand, or for the student alone: the teacher goes on, if it has anything to do. Otherwise the row
// is at fault.
KDTW_BOTH int stand_of_void(const DraftRules& rules, const DraftRow& row, const PickResult& pick) {
  const bool teacher_continues = row.most_drafted < row.most_outputs;
  return pick.id == kNoneLeft && rules.checks_all && (row.drafts > 0 || teacher_continues) ? 1 : kFinished;
}

// The row's next pick. A row at fault has finished; who asks a teacher keeps its newest token.
KDTW_BOTH void take(const DraftRules& rules, DraftRow& row, const PickResult& pick) {
  ++row.picks;
  row.stand = pick.finite ? asked_by(rules, pick) : stand_of_void(rules, row, pick);
  if (row.stand != kDrafting) return;
  row.id = pick.id, row.marked = 0;
  ++row.position, ++row.drafts;
  if (row.keep_logits != nullptr) row.keep_logits += rules.vocabulary;
  row.stand = stand_of(rules, row);
}

// What the row's next step asks. banned: memory for as many ids as there are stops.
KDTW_BOTH PickRequest ask(const DraftRules& rules, const DraftRow& row, int32_t* banned) {
  PickRequest request;
  request.sampling = row.sampling;
  if (row.sampling.temperature > 0) request.uniform = draw(row, RandomStream::kStudent);
  request.banned = banned;
  for (int s = 0; s < rules.stop_count; ++s)
    if (row.position < row.first_allowed[s]) banned[request.banned_count++] = rules.stops[s].id;
  request.keep_logits = row.keep_logits;
  request.want_log_prob = rules.want_log_prob;
  request.want_confidence = rules.min_confidence > 0;
  request.want_entropy = rules.max_entropy < DBL_MAX && row.position >= row.first_call;
  return request;
}

// Whether the rows that wait for a teacher are served now, or held while others draft on. Holding makes the teacher's
// passes few and large, but thins out the student's. `batch` rows are enough, 0: as many as go on drafting, which is
// half of the rows that run.
KDTW_BOTH bool call_now(int waiting, int drafting, int batch) {
  return waiting > 0 && (drafting == 0 || waiting >= (batch > 0 ? batch : drafting));
}

// Whether a draft takes another step. called: of the rows that wait for some teacher, outside of the draft and in it,
// there are enough (call_now).
KDTW_BOTH bool goes_on(const DraftPause& pause, const DraftCount& count, bool called) {
  if (count.drafting == 0 || called || count.steps >= pause.most_steps) return false;
  return !(pause.at_finish && count.finished > 0) && !(pause.at_unseen && count.unseen > 0);
}

// An upper bound of a row's next steps.
KDTW_BOTH int most_steps(const DraftRules& rules, const DraftRow& row) {
  const int places = row.most_drafted - row.position, drafts = rules.draft_length - row.drafts;
  return rules.draft_length > 0 && drafts < places ? drafts : places;
}

}  // namespace kdtw
