// What a call says of the tokens that may be written, whatever the models say: transformers' logits processors as data
// of a row, and the one function that says what they mean for a pick.
#pragma once

#include <stdint.h>

#include <algorithm>
#include <cmath>
#include <span>
#include <vector>

#include "core/pass.h"

namespace kdtw {

struct TokenRules {
  // The last of the tokens, where it follows the others, has its logit raised by `bias`; -infinity: it is banned.
  struct Sequence {
    std::vector<int32_t> tokens;
    float bias;
  };
  // A token that is banned before output `until`.
  struct Early {
    int32_t id;
    int32_t until;
  };
  std::vector<Sequence> sequences;
  std::vector<Early> early;
  float repetition_penalty = 1.0f;  // of tokens that were read: positive logits are divided by it, others multiplied
  int32_t no_repeat_ngram = 0;      // no n tokens that were read one after the other come again; 0: they may
  int32_t forced_end = -1;          // what output `last` is; -1: whatever it is picked to be
  int32_t last = -1;
};

// What rules mean for one pick.
struct TokenEdits {
  std::vector<LogitEdit> edits;  // by ascending id, each id once
  std::vector<int32_t> banned;
  int32_t only = -1;

  // The request's own bans come to these, whose memory it is given.
  void put(PickRequest& request) {
    banned.insert(banned.end(), request.banned, request.banned + request.banned_count);
    request.banned = banned.data(), request.banned_count = static_cast<int32_t>(banned.size());
    request.edits = edits.data(), request.edit_count = static_cast<int32_t>(edits.size());
    request.only = only;
  }
  // The same of the distribution that the request's draft was picked from.
  void put_draft(PickRequest& request) {
    banned.insert(banned.end(), request.draft_banned, request.draft_banned + request.draft_banned_count);
    request.draft_banned = banned.data(), request.draft_banned_count = static_cast<int32_t>(banned.size());
    request.draft_edits = edits.data(), request.draft_edit_count = static_cast<int32_t>(edits.size());
    request.draft_only = only;
  }
};

// read: all that the model has read before output `position`: its prompt or start token, then the outputs.
inline void find_edits(const TokenRules& rules, std::span<const int32_t> read, int32_t position, TokenEdits& found) {
  found.edits.clear(), found.banned.clear(), found.only = -1;
  if (rules.forced_end >= 0 && position == rules.last) {
    found.only = rules.forced_end;
    return;
  }
  for (const auto& [tokens, bias] : rules.sequences) {
    const size_t before = tokens.size() - 1;
    if (before > read.size() || !std::equal(tokens.begin(), tokens.end() - 1, read.end() - before)) continue;
    if (std::isinf(bias)) {
      found.banned.push_back(tokens.back());
    } else {
      found.edits.push_back({tokens.back(), bias, 1.0f});
    }
  }
  if (rules.repetition_penalty != 1.0f)
    for (const int32_t id : read) found.edits.push_back({id, 0.0f, rules.repetition_penalty});
  std::stable_sort(found.edits.begin(), found.edits.end(),
                   [](const LogitEdit& a, const LogitEdit& b) { return a.id < b.id; });
  size_t kept = 0;
  for (const LogitEdit& edit : found.edits) {
    if (kept > 0 && found.edits[kept - 1].id == edit.id) {
      found.edits[kept - 1].bias += edit.bias;
      if (edit.penalty != 1.0f) found.edits[kept - 1].penalty = edit.penalty;
    } else {
      found.edits[kept++] = edit;
    }
  }
  found.edits.resize(kept);
  for (const auto& [id, until] : rules.early)
    if (position < until) found.banned.push_back(id);
  const size_t n = rules.no_repeat_ngram;
  if (n == 0 || read.size() + 1 < n) return;
  const auto newest = read.end() - (n - 1);
  for (auto begin = read.begin(); begin + (n - 1) < read.end(); ++begin)
    if (std::equal(newest, read.end(), begin)) found.banned.push_back(begin[n - 1]);
}

// A row that drafts under rules: what the student has read of it.
struct RuledDraft {
  const TokenRules* rules = nullptr;
  std::vector<int32_t> read;
  TokenEdits edits;  // of its next pick
};

}  // namespace kdtw
